//! The host's memory and worker threads.

use crate::error::{Context, Result};
use sysinfo::System;

/// Memory limit of a run on this machine: what is free now, within the limits of the cgroup and of the setting.
pub fn host_budget(limit: Option<u64>) -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let available = system.available_memory();
    let free = system.cgroup_limits().map_or(available, |limits| available.min(limits.free_memory));
    limit.map_or(free, |limit| free.min(limit))
}

/// Sets the size of the worker pool, once per process.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context(|| format!("{threads} worker threads could not be started"))
}
