//! Which bytes of one range of memory are taken: arithmetic only, so that a plan takes and gives back as the run will and learns how
//! many bytes the run needs.

use std::collections::BTreeMap;

/// Every part begins at a multiple of it, as device memory does.
const ALIGNMENT: u64 = 256;

/// What a range holds when it holds most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// Bytes from the beginning to the end of the last part.
    pub bytes: u64,
    /// Bytes of every name at that moment, each part rounded up to 256; what lies between parts is in none of them.
    pub names: BTreeMap<&'static str, u64>,
}

/// Parts of `0..capacity`, each with a name.
///
/// A part is taken from the smallest gap that has room for it, the first of equal ones, and from what is free at the end only if no other
/// has. So what is given depends on nothing but the order of calls: not on the capacity either, as long as that is enough.
#[derive(Debug)]
pub struct Ranges {
    capacity: u64,
    /// Offset and length of what is free; no two touch.
    gaps: BTreeMap<u64, u64>,
    /// Of what is taken, by offset.
    parts: BTreeMap<u64, (u64, &'static str)>,
    names: BTreeMap<&'static str, u64>,
    taken: u64,
    peak: Peak,
}

impl Ranges {
    pub fn new(capacity: u64) -> Self {
        let capacity = capacity / ALIGNMENT * ALIGNMENT;
        Self {
            capacity,
            gaps: BTreeMap::from([(0, capacity)]),
            parts: BTreeMap::new(),
            names: BTreeMap::new(),
            taken: 0,
            peak: Peak::default(),
        }
    }

    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes that are taken now.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    pub fn peak(&self) -> &Peak {
        &self.peak
    }

    /// The offset of `bytes` bytes; none if no gap has room.
    pub fn take(&mut self, name: &'static str, bytes: u64) -> Option<u64> {
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let fitting = self.gaps.iter().filter(|(_, len)| **len >= bytes);
        let at_end = |offset: u64, len: u64| offset + len == self.capacity;
        let (&offset, &len) = fitting.min_by_key(|&(&offset, &len)| (at_end(offset, len), len, offset))?;
        self.gaps.remove(&offset);
        if len > bytes {
            self.gaps.insert(offset + bytes, len - bytes);
        }
        self.parts.insert(offset, (bytes, name));
        *self.names.entry(name).or_default() += bytes;
        self.taken += bytes;
        if offset + bytes > self.peak.bytes {
            self.peak = Peak { bytes: offset + bytes, names: self.names.clone() };
        }
        Some(offset)
    }

    /// Gives back what [`take`](Self::take) gave.
    ///
    /// # Panics
    ///
    /// If no part begins there.
    pub fn give_back(&mut self, offset: u64) {
        let (mut bytes, name) = self.parts.remove(&offset).expect("a part that was taken is given back once");
        self.taken -= bytes;
        let of_name = self.names.get_mut(name).expect("every part has a name");
        *of_name -= bytes;
        if *of_name == 0 {
            self.names.remove(name);
        }
        if let Some(next) = self.gaps.remove(&(offset + bytes)) {
            bytes += next;
        }
        match self.gaps.range_mut(..offset).next_back() {
            Some((&before, len)) if before + *len == offset => *len += bytes,
            _ => {
                self.gaps.insert(offset, bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_smallest_gap_serves_and_neighbours_grow_together() {
        let mut ranges = Ranges::new(4096);
        let parts: Vec<u64> = [512, 256, 1024, 256, 512].map(|bytes| ranges.take("a", bytes).unwrap()).to_vec();
        assert_eq!(parts, [0, 512, 768, 1792, 2048]);
        assert_eq!((ranges.taken(), ranges.peak().bytes), (2560, 2560));
        for part in [0, 768] {
            ranges.give_back(part);
        }
        assert_eq!(ranges.take("b", 300), Some(0), "512 bytes are nearer to 300 than 1024 are");
        assert_eq!(ranges.take("b", 1), Some(768), "a part has at least 256 bytes");
        ranges.give_back(768);
        ranges.give_back(512);
        assert_eq!(ranges.take("b", 1280), Some(512), "two gaps that touch are one");
        assert_eq!(ranges.take("b", 4096), None);
        assert_eq!(ranges.peak().bytes, 2560, "what was refused changes nothing");
        assert_eq!(ranges.peak().names, BTreeMap::from([("a", 2560)]));
        assert_eq!(ranges.take("c", 1536), Some(2560));
        let names = BTreeMap::from([("a", 256 + 512), ("b", 512 + 1280), ("c", 1536)]);
        assert_eq!(*ranges.peak(), Peak { bytes: 4096, names });
        assert_eq!(ranges.take("c", 1), None);
        assert_eq!(Ranges::new(u64::MAX).take("huge", u64::MAX), None);
    }

    proptest! {
        /// A range of what another needed at most gives the same parts.
        #[test]
        fn the_capacity_changes_nothing(steps in proptest::collection::vec((any::<u8>(), 0u64..5000), 1..200)) {
            let run = |capacity: u64| {
                let mut ranges = Ranges::new(capacity);
                let (mut held, mut given) = (Vec::new(), Vec::new());
                for &(choice, bytes) in &steps {
                    if choice % 2 == 0 && !held.is_empty() {
                        ranges.give_back(held.swap_remove(choice as usize % held.len()));
                    } else {
                        held.push(ranges.take("part", bytes)?);
                        given.push(held[held.len() - 1]);
                    }
                }
                Some((given, ranges.peak().bytes))
            };
            let (given, peak) = run(u64::MAX).unwrap();
            prop_assert_eq!(run(peak), Some((given, peak)));
            prop_assert_eq!(run(peak - 256), None);
        }

        /// Parts never overlap or leave the range, and in the end one gap is all there is.
        #[test]
        fn parts_do_not_overlap(steps in proptest::collection::vec((any::<u8>(), 0u64..5000), 1..200)) {
            let mut ranges = Ranges::new(64 << 10);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (choice, bytes) in steps {
                if choice % 3 == 0 && !held.is_empty() {
                    let (offset, _) = held.swap_remove(choice as usize % held.len());
                    ranges.give_back(offset);
                } else if let Some(offset) = ranges.take("part", bytes) {
                    prop_assert!(offset % 256 == 0 && offset + bytes <= 64 << 10);
                    prop_assert!(held.iter().all(|&(other, len)| offset + bytes <= other || other + len <= offset));
                    held.push((offset, bytes.max(1).next_multiple_of(256)));
                }
                prop_assert_eq!(ranges.taken(), held.iter().map(|part| part.1).sum::<u64>());
                prop_assert!(ranges.peak().bytes >= ranges.taken());
            }
            held.iter().for_each(|&(offset, _)| ranges.give_back(offset));
            prop_assert_eq!((ranges.gaps.len(), ranges.taken()), (1, 0));
            prop_assert_eq!(ranges.take("all", 64 << 10), Some(0));
        }
    }
}
