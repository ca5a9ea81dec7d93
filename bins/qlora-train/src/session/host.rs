//! The host's memory and worker threads.

use super::cgroup;
use crate::bail_usage;
use crate::error::{Context, Result};
use sysinfo::System;

/// Bytes that this process may take in all: what it has, and what is free now on this machine and in its control
/// groups; at most `limit`.
pub fn host_budget(limit: Option<u64>) -> u64 {
    let budget = free_bytes().saturating_add(own_bytes());
    limit.map_or(budget, |limit| budget.min(limit))
}

/// Bytes that are free now on this machine and in the control groups of this process, pages of files among them.
pub fn free_bytes() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let available = system.available_memory();
    cgroup::free_bytes().map_or(available, |free| available.min(free))
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

/// The length of a list such as `0-3,8`; none where it cannot be read.
fn count_of(list: &str) -> Option<usize> {
    let count = |range: &str| -> Option<usize> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
    };
    list.trim().split(',').try_fold(0usize, |sum, range| sum.checked_add(count(range)?))
}

/// Worker threads of each of several processes that share processors; none of one, which takes them all.
pub fn threads_of_each(processes: usize) -> Option<usize> {
    (processes > 1).then(|| (processors() / processes).max(1))
}

/// Processors that this process may use.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}

/// Most worker threads of a processor: some thousands on two of them wait for each other and never finish a step.
const THREADS_OF_A_PROCESSOR: usize = 256;

/// Makes the worker pool, once per process, of `threads` threads or as many as there are processors. This thread is one
/// of them: it computes beside the others instead of waiting for them, and a piece of work begins without waking it.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    let processors = processors();
    let most = processors.saturating_mul(THREADS_OF_A_PROCESSOR);
    if let Some(threads) = threads.filter(|threads| *threads > most) {
        bail_usage!(
            "`threads`: found {threads}, expected at most {most}: they share processors, of which here are {processors}"
        );
    }
    // 0: as many as there are processors.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).use_current_thread();
    pool.build_global().context(|| match threads {
        Some(threads) => format!("{threads} worker threads could not be started"),
        None => "the worker threads could not be started".to_owned(),
    })
}

#[cfg(test)]
mod tests;
