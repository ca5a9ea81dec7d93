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
