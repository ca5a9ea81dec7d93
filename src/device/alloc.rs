//! A best-fit offset allocator with two ends. It touches no memory, so that a planner can replay a run's allocations
//! and read off the peak.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

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
    /// Start of the free middle
    end: u64,
    /// Length of every free range before the end, by place; no two touch, and none touches the end.
    gaps: BTreeMap<u64, u64>,
    /// Length and place of every gap.
    by_len: BTreeSet<(u64, u64)>,
}

impl Region {
    /// Takes `bytes` free bytes and returns their place. `middle`: bytes between both regions
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

/// Hash of an offset. Those of a run are multiples of [`ALIGNMENT`] near each other, which a product spreads.
#[derive(Debug, Default)]
struct OffsetHasher(u64);

impl Hasher for OffsetHasher {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("an offset is one number")
    }

    fn write_u64(&mut self, offset: u64) {
        self.0 = (offset / ALIGNMENT).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
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
    allocations: HashMap<u64, (u64, usize, MemoryEnd), BuildHasherDefault<OffsetHasher>>,
    /// In the order of their first use.
    names: Vec<&'static str>,
    /// Bytes of every name.
    named: Vec<u64>,
    used: u64,
    peak: u64,
    /// Bytes of every name that there was at the peak.
    named_at_peak: Vec<u64>,
    /// True while `named` is that of the peak and `named_at_peak` is older: nothing is copied while use only grows.
    at_peak: bool,
    /// The exclusive or of the hashes of all allocations
    state: u64,
    given: u64,
}

/// Spreads the bits of a number (the finalizer of SplitMix64).
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A hash of one allocation.
fn hash(offset: u64, bytes: u64, name: usize, end: MemoryEnd) -> u64 {
    let end = u64::from(end == MemoryEnd::High);
    mixed(mixed(mixed(offset + 1).wrapping_add(bytes)).wrapping_add(2 * name as u64 + end))
}

impl OffsetAllocator {
    /// An allocator of `0..capacity`, with the capacity rounded down to a multiple of 256 bytes.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity: capacity / ALIGNMENT * ALIGNMENT,
            low: Region::default(),
            high: Region::default(),
            allocations: HashMap::default(),
            names: Vec::new(),
            named: Vec::new(),
            used: 0,
            peak: 0,
            named_at_peak: Vec::new(),
            at_peak: false,
            state: 0,
            given: 0,
        }
    }

    /// Bytes of the range.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes that are in use now.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The use of the range when most of it was in use.
    pub fn peak(&self) -> PeakUsage {
        let named = if self.at_peak { &self.named } else { &self.named_at_peak };
        let in_use = self.names.iter().copied().zip(named.iter().copied()).filter(|(_, bytes)| *bytes > 0);
        PeakUsage { bytes: self.peak, names: in_use.collect() }
    }

    /// A hash of the allocations that there are. Where it is equal, equal calls get equal offsets.
    pub fn state(&self) -> u64 {
        self.state
    }

    /// A hash of the offsets that were given since it was last forgotten, in their order.
    pub fn given(&self) -> u64 {
        self.given
    }

    /// Begins the hash of [`given`](Self::given) again.
    pub fn forget_given(&mut self) {
        self.given = 0;
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
        let hash = hash(offset, bytes, index, end);
        self.state ^= hash;
        self.given = mixed(self.given.wrapping_add(hash));
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
        self.state ^= hash(offset, bytes, index, end);
        let place = self.offset(end, offset, bytes);
        self.region(end).free(place, bytes);
    }
}

#[cfg(test)]
mod tests;
