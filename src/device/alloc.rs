//! A best-fit offset allocator with two ends. It touches no memory, so that a planner can replay a run's allocations
//! and read off the peak.

use std::collections::{BTreeMap, BTreeSet};

/// Every allocation begins at a multiple of it, as device memory does.
const ALIGNMENT: u64 = 256;

/// The use of a range of memory when most of it is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeakUsage {
    /// Bytes that are in use or between allocations at the same end.
    pub bytes: u64,
    /// Bytes of every name at that moment, each allocation rounded up to 256; gaps between allocations are in none of
    /// them.
    pub names: BTreeMap<&'static str, u64>,
}

/// The end of a range of memory that an allocation comes from.
///
/// A gap is left where what lives long lies above what lives short. Few are left where nested lifetimes take turns:
/// what a run keeps is at the low end, what a layer has while it computes at the high one, and what single operations
/// have meanwhile at the low one again. No computed value depends on it: both give multiples of 256 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryEnd {
    #[default]
    Low,
    High,
}

/// The part of a range that grows from one of its ends. Places are distances from there.
#[derive(Debug, Default)]
struct Region {
    /// Where the free middle begins
    end: u64,
    /// Length of every free range before the end, by place; no two touch, and none touches the end.
    gaps: BTreeMap<u64, u64>,
    /// Length and place of every gap.
    by_len: BTreeSet<(u64, u64)>,
}

impl Region {
    /// The place of `bytes` bytes that are free, which are no longer. `middle`: bytes between both regions
    fn take(&mut self, bytes: u64, middle: u64) -> Option<u64> {
        if let Some(&(len, place)) = self.by_len.range((bytes, 0)..).next() {
            self.remove_gap(place, len);
            if len > bytes {
                self.insert_gap(place + bytes, len - bytes);
            }
            return Some(place);
        }
        if bytes > middle {
            return None;
        }
        self.end += bytes;
        Some(self.end - bytes)
    }

    fn free(&mut self, place: u64, bytes: u64) {
        let (mut start, mut end) = (place, place + bytes);
        if let Some(&len) = self.gaps.get(&end) {
            self.remove_gap(end, len);
            end += len;
        }
        let before = self.gaps.range(..place).next_back().map(|(&before, &len)| (before, len));
        if let Some((before, len)) = before.filter(|(before, len)| before + len == place) {
            self.remove_gap(before, len);
            start = before;
        }
        if end == self.end {
            self.end = start;
        } else {
            self.insert_gap(start, end - start);
        }
    }

    fn insert_gap(&mut self, place: u64, len: u64) {
        self.gaps.insert(place, len);
        self.by_len.insert((len, place));
    }

    fn remove_gap(&mut self, place: u64, len: u64) {
        self.gaps.remove(&place);
        self.by_len.remove(&(len, place));
    }
}

/// Allocates offsets in `0..capacity`, each under a name, from either end.
///
/// An allocation takes the smallest gap at its end that has room for it, the one nearest to the end of equal ones, and
/// the free middle only if no gap has room. So distances from the ends depend on nothing but the order of calls: not on
/// the capacity either, as long as that is enough.
#[derive(Debug)]
pub struct OffsetAllocator {
    capacity: u64,
    low: Region,
    high: Region,
    /// Length of every allocation, its name's index and its end, by offset.
    allocations: BTreeMap<u64, (u64, usize, MemoryEnd)>,
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
            low: Region::default(),
            high: Region::default(),
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

    /// The offset of `bytes` bytes at the low end; none if there is no room.
    pub fn alloc(&mut self, name: &'static str, bytes: u64) -> Option<u64> {
        self.alloc_at(MemoryEnd::Low, name, bytes)
    }

    /// The offset of `bytes` bytes at an end; none if there is no room.
    pub fn alloc_at(&mut self, end: MemoryEnd, name: &'static str, bytes: u64) -> Option<u64> {
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let middle = self.capacity - self.reached();
        let place = self.region(end).take(bytes, middle)?;
        let is_peak = self.reached() > self.peak;
        if !is_peak {
            self.leave_peak();
        }
        let (index, offset) = (self.index(name), self.offset(end, place, bytes));
        self.allocations.insert(offset, (bytes, index, end));
        self.named[index] += bytes;
        self.used += bytes;
        if is_peak {
            self.peak = self.reached();
            self.at_peak = true;
        }
        Some(offset)
    }

    fn region(&mut self, end: MemoryEnd) -> &mut Region {
        match end {
            MemoryEnd::Low => &mut self.low,
            MemoryEnd::High => &mut self.high,
        }
    }

    /// Bytes from both ends to the free middle.
    fn reached(&self) -> u64 {
        self.low.end + self.high.end
    }

    /// The offset of `bytes` bytes at a place of an end; the place of those at an offset.
    fn offset(&self, end: MemoryEnd, place: u64, bytes: u64) -> u64 {
        match end {
            MemoryEnd::Low => place,
            MemoryEnd::High => self.capacity - place - bytes,
        }
    }

    /// Frees what [`alloc`](Self::alloc) or [`alloc_at`](Self::alloc_at) gave.
    ///
    /// # Panics
    ///
    /// If no allocation begins there.
    pub fn free(&mut self, offset: u64) {
        self.leave_peak();
        let (bytes, index, end) = self.allocations.remove(&offset).expect("an allocation is freed once");
        self.used -= bytes;
        self.named[index] -= bytes;
        let place = self.offset(end, offset, bytes);
        self.region(end).free(place, bytes);
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

    #[test]
    fn either_end_has_gaps_of_its_own() {
        use MemoryEnd::{High, Low};
        let mut allocator = OffsetAllocator::new(4096);
        let mut alloc = |end, bytes| allocator.alloc_at(end, "a", bytes);
        assert_eq!([alloc(High, 512), alloc(Low, 256), alloc(High, 256)], [Some(3584), Some(0), Some(3328)]);
        allocator.free(3584);
        assert_eq!(allocator.alloc("b", 512), Some(256), "a gap at the other end is not taken");
        assert_eq!(allocator.alloc_at(High, "b", 256), Some(3840), "one nearest to the end is");
        assert_eq!((allocator.used(), allocator.peak().bytes), (256 + 256 + 512 + 256, 768 + 768));
        assert_eq!(allocator.alloc("c", 2816), None, "the middle has 2560");
        assert_eq!(allocator.alloc_at(High, "c", 2560), Some(768));
        assert_eq!(allocator.peak().bytes, 4096);
        for offset in [768, 3328, 3840] {
            allocator.free(offset);
        }
        assert_eq!(allocator.alloc("c", 3328), Some(768), "the middle is what both ends have left");
    }

    /// Layers that need more and more while they compute, and leave something for later.
    #[test]
    fn what_comes_from_both_ends_leaves_no_gap() {
        let peak = |of_layer: MemoryEnd| {
            let mut allocator = OffsetAllocator::new(u64::MAX);
            for used in [2560, 3072, 3584] {
                let used = allocator.alloc_at(of_layer, "used", used).unwrap();
                allocator.alloc("left", 1024).unwrap();
                allocator.free(used);
            }
            let PeakUsage { bytes, names } = allocator.peak();
            (bytes, bytes - names.values().sum::<u64>())
        };
        assert_eq!(peak(MemoryEnd::High), (3584 + 3 * 1024, 0));
        // What the first has left keeps the gap below it from growing.
        assert_eq!(peak(MemoryEnd::Low), (2560 + 1024 + 3584, 2560 - 1024));
    }

    fn end(choice: u8) -> MemoryEnd {
        if choice & 4 == 0 { MemoryEnd::Low } else { MemoryEnd::High }
    }

    proptest! {
        /// A capacity of what another needed at most gives equal distances from the ends.
        #[test]
        fn the_capacity_changes_nothing(steps in proptest::collection::vec((any::<u8>(), 0u64..5000), 1..200)) {
            let run = |capacity: u64| {
                let mut allocator = OffsetAllocator::new(capacity);
                let (mut held, mut given) = (Vec::new(), Vec::new());
                for &(choice, bytes) in &steps {
                    if choice % 2 == 0 && !held.is_empty() {
                        allocator.free(held.swap_remove(choice as usize % held.len()));
                    } else {
                        held.push(allocator.alloc_at(end(choice), "part", bytes)?);
                        let from = if end(choice) == MemoryEnd::Low { 0 } else { allocator.capacity() };
                        given.push(held[held.len() - 1].abs_diff(from));
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
                } else if let Some(offset) = allocator.alloc_at(end(choice), "part", bytes) {
                    prop_assert!(offset % 256 == 0 && offset + bytes <= 64 << 10);
                    prop_assert!(held.iter().all(|&(other, len)| offset + bytes <= other || other + len <= offset));
                    held.push((offset, bytes.max(1).next_multiple_of(256)));
                }
                prop_assert_eq!(allocator.used(), held.iter().map(|part| part.1).sum::<u64>());
                prop_assert!(allocator.peak().bytes >= allocator.used());
            }
            held.iter().for_each(|&(offset, _)| allocator.free(offset));
            for region in [&allocator.low, &allocator.high] {
                prop_assert_eq!((region.gaps.len(), region.by_len.len(), region.end), (0, 0, 0));
            }
            prop_assert_eq!(allocator.used(), 0);
            prop_assert_eq!(allocator.alloc("all", 64 << 10), Some(0));
        }
    }
}
