//! A best-fit offset allocator. It touches no memory, so that a planner can replay a run's allocations and read off the
//! peak.

use std::collections::{BTreeMap, BTreeSet};

/// Every allocation begins at a multiple of it, as device memory does.
const ALIGNMENT: u64 = 256;

/// The use of a range of memory when most of it is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeakUsage {
    /// Bytes from the beginning to the end of the last allocation.
    pub bytes: u64,
    /// Bytes of every name at that moment, each allocation rounded up to 256; gaps between allocations are in none of
    /// them.
    pub names: BTreeMap<&'static str, u64>,
}

/// Allocates offsets in `0..capacity`, each under a name.
///
/// An allocation takes the smallest gap that has room for it, the first of equal ones, and the free end only if no gap
/// has room. So the offsets depend on nothing but the order of calls: not on the capacity either, as long as that is
/// enough.
#[derive(Debug)]
pub struct OffsetAllocator {
    capacity: u64,
    /// Beginning of the free end.
    end: u64,
    /// Length of every free range before the end, by offset; no two touch, and none touches the end.
    gaps: BTreeMap<u64, u64>,
    /// Length and offset of every gap.
    by_len: BTreeSet<(u64, u64)>,
    /// Length of every allocation, and its name's index, by offset.
    allocations: BTreeMap<u64, (u64, usize)>,
    /// In the order of their first use.
    names: Vec<&'static str>,
    /// Bytes of every name.
    named: Vec<u64>,
    used: u64,
    peak: u64,
    /// Bytes of every name that there was at the peak.
    named_at_peak: Vec<u64>,
    /// Whether `named` is what it was at the peak, whose own is older: while use only grows, nothing is copied.
    at_peak: bool,
}

impl OffsetAllocator {
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity: capacity / ALIGNMENT * ALIGNMENT,
            end: 0,
            gaps: BTreeMap::new(),
            by_len: BTreeSet::new(),
            allocations: BTreeMap::new(),
            names: Vec::new(),
            named: Vec::new(),
            used: 0,
            peak: 0,
            named_at_peak: Vec::new(),
            at_peak: false,
        }
    }

    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes that are in use now.
    pub fn used(&self) -> u64 {
        self.used
    }

    pub fn peak(&self) -> PeakUsage {
        let named = if self.at_peak { &self.named } else { &self.named_at_peak };
        let in_use = self.names.iter().copied().zip(named.iter().copied()).filter(|(_, bytes)| *bytes > 0);
        PeakUsage { bytes: self.peak, names: in_use.collect() }
    }

    /// Keeps what the peak held before that changes.
    fn leave_peak(&mut self) {
        if std::mem::take(&mut self.at_peak) {
            self.named_at_peak.clone_from(&self.named);
        }
    }

    /// Names are few, and one name is hardly ever two strings.
    fn index(&mut self, name: &'static str) -> usize {
        let found = self.names.iter().position(|&known| std::ptr::eq(known, name));
        found.or_else(|| self.names.iter().position(|&known| known == name)).unwrap_or_else(|| {
            self.names.push(name);
            self.named.push(0);
            self.names.len() - 1
        })
    }

    /// The beginning of `bytes` bytes that are free, which are no longer.
    fn take(&mut self, bytes: u64) -> Option<u64> {
        if let Some(&(len, offset)) = self.by_len.range((bytes, 0)..).next() {
            self.remove_gap(offset, len);
            if len > bytes {
                self.insert_gap(offset + bytes, len - bytes);
            }
            return Some(offset);
        }
        let offset = self.end;
        self.end = offset.checked_add(bytes).filter(|end| *end <= self.capacity)?;
        Some(offset)
    }

    fn insert_gap(&mut self, offset: u64, len: u64) {
        self.gaps.insert(offset, len);
        self.by_len.insert((len, offset));
    }

    fn remove_gap(&mut self, offset: u64, len: u64) {
        self.gaps.remove(&offset);
        self.by_len.remove(&(len, offset));
    }

    /// The offset of `bytes` bytes; none if no gap has room.
    pub fn alloc(&mut self, name: &'static str, bytes: u64) -> Option<u64> {
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let offset = self.take(bytes)?;
        let is_peak = offset + bytes > self.peak;
        if !is_peak {
            self.leave_peak();
        }
        let index = self.index(name);
        self.allocations.insert(offset, (bytes, index));
        self.named[index] += bytes;
        self.used += bytes;
        if is_peak {
            self.peak = offset + bytes;
            self.at_peak = true;
        }
        Some(offset)
    }

    /// Frees what [`alloc`](Self::alloc) gave.
    ///
    /// # Panics
    ///
    /// If no allocation begins there.
    pub fn free(&mut self, offset: u64) {
        self.leave_peak();
        let (bytes, index) = self.allocations.remove(&offset).expect("an allocation is freed once");
        self.used -= bytes;
        self.named[index] -= bytes;
        let (mut start, mut end) = (offset, offset + bytes);
        if let Some(&len) = self.gaps.get(&end) {
            self.remove_gap(end, len);
            end += len;
        }
        let before = self.gaps.range(..offset).next_back().map(|(&before, &len)| (before, len));
        if let Some((before, len)) = before.filter(|(before, len)| before + len == offset) {
            self.remove_gap(before, len);
            start = before;
        }
        if end == self.end {
            self.end = start;
        } else {
            self.insert_gap(start, end - start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_smallest_gap_serves_and_neighbors_grow_together() {
        let mut allocator = OffsetAllocator::new(4096);
        let parts: Vec<u64> = [512, 256, 1024, 256, 512].map(|bytes| allocator.alloc("a", bytes).unwrap()).to_vec();
        assert_eq!(parts, [0, 512, 768, 1792, 2048]);
        assert_eq!((allocator.used(), allocator.peak().bytes), (2560, 2560));
        for part in [0, 768] {
            allocator.free(part);
        }
        assert_eq!(allocator.alloc("b", 300), Some(0), "512 bytes are nearer to 300 than 1024 are");
        assert_eq!(allocator.alloc("b", 1), Some(768), "a part has at least 256 bytes");
        allocator.free(768);
        allocator.free(512);
        assert_eq!(allocator.alloc("b", 1280), Some(512), "two gaps that touch are one");
        assert_eq!(allocator.alloc("b", 4096), None);
        assert_eq!(allocator.peak().bytes, 2560, "what was refused changes nothing");
        assert_eq!(allocator.peak().names, BTreeMap::from([("a", 2560)]));
        assert_eq!(allocator.alloc("c", 1536), Some(2560));
        let names = BTreeMap::from([("a", 256 + 512), ("b", 512 + 1280), ("c", 1536)]);
        assert_eq!(allocator.peak(), PeakUsage { bytes: 4096, names });
        assert_eq!(allocator.alloc("c", 1), None);
        assert_eq!(OffsetAllocator::new(u64::MAX).alloc("huge", u64::MAX), None);
    }

    proptest! {
        /// A capacity of what another needed at most gives equal offsets.
        #[test]
        fn the_capacity_changes_nothing(steps in proptest::collection::vec((any::<u8>(), 0u64..5000), 1..200)) {
            let run = |capacity: u64| {
                let mut allocator = OffsetAllocator::new(capacity);
                let (mut held, mut given) = (Vec::new(), Vec::new());
                for &(choice, bytes) in &steps {
                    if choice % 2 == 0 && !held.is_empty() {
                        allocator.free(held.swap_remove(choice as usize % held.len()));
                    } else {
                        held.push(allocator.alloc("part", bytes)?);
                        given.push(held[held.len() - 1]);
                    }
                }
                Some((given, allocator.peak().bytes))
            };
            let (given, peak) = run(u64::MAX).unwrap();
            prop_assert_eq!(run(peak), Some((given, peak)));
            prop_assert_eq!(run(peak - 256), None);
        }

        /// Allocations never overlap or leave the range, and in the end one gap is all there is.
        #[test]
        fn parts_do_not_overlap(steps in proptest::collection::vec((any::<u8>(), 0u64..5000), 1..200)) {
            let mut allocator = OffsetAllocator::new(64 << 10);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (choice, bytes) in steps {
                if choice % 3 == 0 && !held.is_empty() {
                    let (offset, _) = held.swap_remove(choice as usize % held.len());
                    allocator.free(offset);
                } else if let Some(offset) = allocator.alloc("part", bytes) {
                    prop_assert!(offset % 256 == 0 && offset + bytes <= 64 << 10);
                    prop_assert!(held.iter().all(|&(other, len)| offset + bytes <= other || other + len <= offset));
                    held.push((offset, bytes.max(1).next_multiple_of(256)));
                }
                prop_assert_eq!(allocator.used(), held.iter().map(|part| part.1).sum::<u64>());
                prop_assert!(allocator.peak().bytes >= allocator.used());
            }
            held.iter().for_each(|&(offset, _)| allocator.free(offset));
            prop_assert_eq!((allocator.gaps.len(), allocator.by_len.len(), allocator.end, allocator.used()), (0, 0, 0, 0));
            prop_assert_eq!(allocator.alloc("all", 64 << 10), Some(0));
        }
    }
}
