//! Pages of the weights on machines whose memory hangs on several nodes.
//!
//! Any thread may read any part of a weight, because tiles go to whichever thread is free. Weights are therefore
//! spread over all nodes, page by page, so that every link carries the same share. Buffers are not: their pages lie on
//! the node of the thread that writes them first, which computes what is in them.

#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Allocations of this thread go to all nodes in turn, until it is dropped.
pub struct Interleaved(());

impl Interleaved {
    /// None where there is one node, or where the system does not let a process choose.
    pub fn begin() -> Option<Self> {
        static NODES: OnceLock<Vec<usize>> = OnceLock::new();
        let nodes = NODES.get_or_init(|| {
            let online = std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
            numbers(&online).unwrap_or_default()
        });
        (nodes.len() > 1).then(|| Self::over(nodes)).flatten()
    }

    fn over(nodes: &[usize]) -> Option<Self> {
        policy::set(policy::INTERLEAVE, nodes).then_some(Self(()))
    }
}

impl Drop for Interleaved {
    fn drop(&mut self) {
        policy::set(policy::DEFAULT, &[]);
    }
}

/// A list as the kernel writes it: `0-3,8`.
fn numbers(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

#[cfg(target_os = "linux")]
mod policy {
    pub const DEFAULT: i32 = 0;
    pub const INTERLEAVE: i32 = 3;
    /// Nodes that a mask has room for, as many as the kernel can have.
    const NODES: usize = 1024;

    /// Sets the policy by which the thread's pages are placed; false where the system refuses.
    pub fn set(mode: i32, nodes: &[usize]) -> bool {
        let mut mask = [0u64; NODES / 64];
        for &node in nodes.iter().filter(|&&node| node < NODES) {
            mask[node / 64] |= 1 << (node % 64);
        }
        // SAFETY: the kernel reads the bits of the mask, which outlives the call, and nothing else; it does not use the
        // last bit that the call counts.
        unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask.as_ptr(), NODES) == 0 }
    }

    #[cfg(test)]
    pub fn get() -> Option<i32> {
        let mut mode = 0i32;
        let no_mask = std::ptr::null_mut::<u64>();
        // SAFETY: the kernel writes the mode, and no mask where it is given none.
        let done = unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, no_mask, 0, 0, 0) };
        (done == 0).then_some(mode)
    }
}

#[cfg(not(target_os = "linux"))]
mod policy {
    pub const DEFAULT: i32 = 0;
    pub const INTERLEAVE: i32 = 3;

    pub fn set(_: i32, _: &[usize]) -> bool {
        false
    }

    #[cfg(test)]
    pub fn get() -> Option<i32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nodes_are_read() {
        assert_eq!(numbers("0\n"), Some(vec![0]));
        assert_eq!(numbers("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!((numbers(""), numbers("none"), numbers("1-x")), (None, None, None));
    }

    #[test]
    fn pages_are_spread_until_the_policy_is_dropped() {
        let before = policy::get();
        let spread = Interleaved::over(&[0]);
        // A container may forbid both calls, together.
        assert_eq!(spread.is_some(), before.is_some(), "{before:?}");
        assert_eq!(policy::get(), before.map(|_| policy::INTERLEAVE));
        drop(spread);
        assert_eq!(policy::get(), before.map(|_| policy::DEFAULT));
        assert!(Interleaved::over(&[1 << 20]).is_none(), "a node that no machine has");
    }
}
