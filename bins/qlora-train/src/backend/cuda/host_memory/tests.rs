use super::*;
use HostMemory::{Pageable, Pinned};

const MIB: u64 = 1 << 20;

/// Makes a buffer where the system pins `room` bytes in all; returns its kind.
fn made(arrays: &HostArrays, name: &str, mib: u64, size: Size, room: &Cell<u64>) -> Result<HostMemory> {
    let make = |kind: HostMemory| -> qlora_kernels::Result<HostMemory> {
        if kind == Pinned {
            let left = room.get().checked_sub(mib * MIB);
            room.set(left.ok_or_else(|| CudaError::Device("no more".into()))?);
        }
        Ok(kind)
    };
    arrays.make(name, mib * MIB, size, Some(make)).map(|made| made.expect("it was to be made"))
}

fn lines(arrays: &HostArrays) -> Vec<(String, u64)> {
    arrays.lines().into_iter().map(|line| (line.name, line.bytes / MIB)).collect()
}

/// A dry run counts what the run does.
#[test]
fn what_is_large_is_pinned_within_the_limit() {
    let buffers: [(&str, u64, Size); 6] = [
        ("table", 50, Size::InPlace),
        ("layers", 100, Size::Large),
        ("layers", 100, Size::Large),
        ("rates", 9, Size::Small),
        ("inputs", 30, Size::Large),
        ("inputs", 1, Size::Large),
    ];
    let expected = |limit: Option<u64>| -> Vec<HostMemory> {
        let mut pinned = 0;
        let kind = |&(_, mib, size): &(&str, u64, Size)| {
            let fits = limit.is_none_or(|limit| pinned + mib + SMALL / MIB <= limit);
            let kind = if size != Size::Large || fits { Pinned } else { Pageable };
            pinned += if kind == Pinned { mib } else { 0 };
            kind
        };
        buffers.iter().map(kind).collect()
    };
    for limit in [None, Some(0), Some(213), Some(214), Some(313), Some(314), Some(323), Some(353), Some(354)] {
        let [run, dry_run] = [(), ()].map(|()| HostArrays::default());
        let mut kinds = Vec::new();
        for arrays in [&run, &dry_run] {
            arrays.pin_at_most(limit.map(|mib| mib * MIB));
        }
        for &(name, mib, size) in &buffers {
            kinds.push(made(&run, name, mib, size, &Cell::new(u64::MAX)).unwrap());
            let none: Option<fn(HostMemory) -> qlora_kernels::Result<()>> = None;
            assert_eq!(dry_run.make(name, mib * MIB, size, none).unwrap(), None);
        }
        assert_eq!(kinds, expected(limit), "{limit:?}");
        assert_eq!(lines(&run), lines(&dry_run), "{limit:?}");
        assert_eq!(lines(&run).iter().map(|line| line.1).sum::<u64>(), 290, "{limit:?}");
    }
    let not_pinned = |limit| expected(limit).iter().filter(|&&kind| kind == Pageable).count();
    assert_eq!([None, Some(0), Some(213), Some(214), Some(314)].map(not_pinned), [0, 4, 2, 3, 2]);
}

#[test]
fn what_the_system_refuses_to_pin_is_not_pinned_and_neither_is_what_is_large_and_comes_later() {
    let (arrays, room) = (HostArrays::default(), Cell::new(120 * MIB));
    let make = |name: &str, mib, size| made(&arrays, name, mib, size, &room).unwrap();
    assert_eq!(make("layers", 100, Size::Large), Pinned);
    assert_eq!(make("layers", 100, Size::Large), Pageable);
    assert_eq!(make("rates", 8, Size::Small), Pinned);
    // There would be room for it, which is left to what is small.
    assert_eq!(make("inputs", 5, Size::Large), Pageable);
    assert_eq!(make("pieces", 12, Size::Small), Pinned);
    assert_eq!(make("pieces", 1, Size::Small), Pageable);
    let expected = [
        ("layers", "", 100),
        ("layers", NOT_PINNED, 100),
        ("pieces", "", 12),
        ("rates", "", 8),
        ("inputs", NOT_PINNED, 5),
        ("pieces", NOT_PINNED, 1),
    ];
    assert_eq!(lines(&arrays), expected.map(|(name, end, mib)| (format!("{name}{end}"), mib)));
}

#[test]
fn what_is_read_in_place_is_pinned_or_refused_and_a_lost_gpu_is_told_as_such() {
    let (arrays, room) = (HostArrays::default(), Cell::new(10 * MIB));
    assert_eq!(made(&arrays, "embedding", 10, Size::InPlace, &room).unwrap(), Pinned);
    let error = made(&arrays, "embedding", 10, Size::InPlace, &room).unwrap_err().to_string();
    for words in ["embedding: the GPU reads its 10.0 MiB", "no more", ".wslconfig"] {
        assert!(error.contains(words), "{error}");
    }
    let lost = |kind: HostMemory| -> qlora_kernels::Result<HostMemory> {
        assert_eq!(kind, Pinned, "it was tried again");
        Err(CudaError::Driver { what: "memory".into(), code: 719, text: "gone".into() })
    };
    for size in [Size::Small, Size::Large, Size::InPlace] {
        let error = HostArrays::default().make("layers", MIB, size, Some(lost)).unwrap_err().to_string();
        assert!(error.contains("719") && error.contains("for layers"), "{error}");
    }
}
