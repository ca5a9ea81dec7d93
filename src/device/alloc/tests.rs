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

/// The order in which memory came into use leaves no trace in the hash of what is in use, and all in that of what
/// was given.
#[test]
fn hashes_tell_what_is_in_use_and_what_was_given() {
    let mut allocator = OffsetAllocator::new(8192);
    let empty = (allocator.state(), allocator.given());
    let held = [512, 256].map(|bytes| allocator.alloc("a", bytes).unwrap());
    let (state, given) = (allocator.state(), allocator.given());
    held.into_iter().for_each(|offset| allocator.free(offset));
    assert_eq!((allocator.state(), allocator.given()), (empty.0, given), "what is free again was given");
    allocator.forget_given();
    let mut states = vec![state, empty.0];
    let mut all = vec![given, empty.1];
    for (name, sizes) in [("a", [256, 512]), ("b", [512, 256]), ("a", [512, 512]), ("a", [512, 256])] {
        let held = sizes.map(|bytes| allocator.alloc(name, bytes).unwrap());
        states.push(allocator.state());
        all.push(allocator.given());
        held.into_iter().for_each(|offset| allocator.free(offset));
        allocator.forget_given();
    }
    assert_eq!((states.pop(), all.pop()), (Some(state), Some(given)));
    // An offset that was taken from the other end leaves the free middle elsewhere.
    let mut one = OffsetAllocator::new(512);
    let by_end = [MemoryEnd::Low, MemoryEnd::High].map(|end| {
        let offset = one.alloc_at(end, "a", 512).unwrap();
        let state = one.state();
        one.free(offset);
        (offset, state)
    });
    assert!(by_end[0].0 == by_end[1].0 && by_end[0].1 != by_end[1].1, "{by_end:?}");
    for hashes in [&mut states, &mut all] {
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 5);
    }
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
    // The first layer's rest keeps the gap below it from growing.
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
