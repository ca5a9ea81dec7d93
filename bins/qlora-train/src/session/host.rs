//! The host's memory and worker threads.

use super::cgroup;
use crate::error::{Context, Result};
use sysinfo::System;

/// Bytes that this process may take in all: what it has, and what is free now on this machine and in its control
/// groups; at most `limit`.
pub fn host_budget(limit: Option<u64>) -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let available = system.available_memory();
    let free = cgroup::free_bytes().map_or(available, |free| available.min(free));
    let budget = free.saturating_add(own_bytes());
    limit.map_or(budget, |limit| budget.min(limit))
}

/// The part of [`host_budget`] that one of the `here` processes of this machine may take: each has as much of what is
/// free, and at most `limit`.
pub fn share(limit: Option<u64>, here: usize) -> u64 {
    part(host_budget(None), limit, here)
}

fn part(budget: u64, limit: Option<u64>, here: usize) -> u64 {
    let part = budget / here.max(1) as u64;
    limit.map_or(part, |limit| part.min(limit))
}

/// Bytes of memory that this process holds and no file stands behind: rows, tokenizer, headers, the program's own.
pub fn own_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    anonymous_in(&status).unwrap_or(0)
}

fn anonymous_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Processors that each of `processes` of this machine may use, and those that it has, where a launcher that binds each
/// to its own leaves half of them idle or more. `alike`: how many of the processes may use those that this one may.
pub fn bound(processes: usize, alike: usize) -> Option<(usize, usize)> {
    let own = std::thread::available_parallelism().ok()?.get();
    let online = count_of(&std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?)?;
    // A container gives all of them the same.
    (alike < processes && is_idle(own, processes, online)).then_some((own, online))
}

fn is_idle(own: usize, processes: usize, online: usize) -> bool {
    processes > 1 && own.saturating_mul(processes).saturating_mul(2) <= online
}

/// How many a list such as `0-3,8` has; none where it cannot be read.
fn count_of(list: &str) -> Option<usize> {
    let count = |range: &str| -> Option<usize> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
    };
    list.trim().split(',').try_fold(0usize, |sum, range| sum.checked_add(count(range)?))
}

/// Worker threads of each of several processes that share processors; none of one, which takes them all.
pub fn threads_of_each(processes: usize) -> Option<usize> {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    (processes > 1).then(|| (processors / processes).max(1))
}

/// Makes the worker pool, once per process, of `threads` threads or as many as there are processors. This thread is one
/// of them: it computes beside the others instead of waiting for them, and a piece of work begins without waking it.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    // 0: as many as there are processors.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).use_current_thread();
    pool.build_global().context(|| match threads {
        Some(threads) => format!("{threads} worker threads could not be started"),
        None => "the worker threads could not be started".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_that_a_launcher_leaves_idle_are_told() {
        let counts = ["0\n", "0-7\n", "0-3,8,10-11\n"].map(count_of);
        assert_eq!(counts, [Some(1), Some(8), Some(7)]);
        for list in ["", "\n", "a", "3-1", "0-", "-2", "0,,1", "0-18446744073709551615"] {
            assert_eq!(count_of(list), None, "{list:?}");
        }
        // One of two that are bound to a core, or to half a machine; one alone.
        assert!(is_idle(1, 2, 64) && is_idle(1, 2, 4) && is_idle(8, 2, 32));
        assert!(!is_idle(1, 2, 2) && !is_idle(32, 2, 64) && !is_idle(1, 1, 64) && !is_idle(usize::MAX, 2, 64));
        // Where all may use the same, nothing was bound.
        assert_eq!((bound(2, 2), bound(1, 1)), (None, None));
    }

    #[test]
    fn processes_of_a_machine_share_its_memory_whatever_limit_each_was_given() {
        for here in 1..5 {
            for limit in [None, Some(0), Some(1000), Some(5000), Some(1 << 40)] {
                let part = part(4000, limit, here);
                assert!(part * here as u64 <= 4000 && part <= limit.unwrap_or(u64::MAX), "{here} {limit:?}: {part}");
                assert!(part == limit.unwrap_or(u64::MAX).min(4000 / here as u64), "{here} {limit:?}: {part}");
            }
        }
        // A part of none is one of all.
        assert_eq!(part(4000, None, 0), 4000);
    }

    #[test]
    fn anonymous_memory_is_read_from_the_status_of_the_process() {
        let status = "VmHWM:\t  999 kB\nRssAnon:\t    1234 kB\nRssFile:\t  77 kB\n";
        assert_eq!(anonymous_in(status), Some(1234 << 10));
        assert_eq!((anonymous_in(""), anonymous_in("RssAnon:\tmany kB\n")), (None, None));
        let before = own_bytes();
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = own_bytes();
        assert!(before > 0 && after >= before + (60 << 20), "{before} {after} {}", held.len());
    }
}
