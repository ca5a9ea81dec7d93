//! Copies through host memory that is not pinned, where a system pins less than it has.

use crate::device::{
    Arena, Device, HostMemory, OffloadSlot, PinnedBuffer, ReadbackStaging, RoundTrip, UploadStaging, emulation,
};
use HostMemory::{Pageable, Pinned};

/// A device that pins at most `limit` bytes.
fn device(limit: u64, is_late: bool) -> Device {
    emulation::run_late(is_late);
    emulation::pin_at_most(limit);
    let device = Device::open().unwrap();
    emulation::run_late(false);
    emulation::pin_at_most(u64::MAX);
    device
}

/// Values after their way to the device and back, and off it and on it again, each way twice.
fn copied(device: &Device, kind: HostMemory) -> Vec<Vec<f32>> {
    const LEN: usize = 300;
    let arena = Arena::new(device, 16 << 10).unwrap();
    let mut upload = UploadStaging::<f32>::new_in(device, LEN, kind).unwrap();
    let mut readback = ReadbackStaging::<f32>::new_in(device, LEN, kind).unwrap();
    let mut slots = [0, 1].map(|_| OffloadSlot::<f32>::new_in(device, LEN, kind).unwrap());
    let mut trip = RoundTrip::new_in(device, 64, kind).unwrap();
    let table: Vec<f32> = (0..LEN).map(|at| at as f32 + 0.5).collect();
    let mut table = PinnedBuffer::new_in(device, &table, kind).unwrap();
    let mut found = Vec::new();
    for round in 0..2 {
        for (number, slot) in slots.iter_mut().enumerate() {
            let mut buffer = arena.alloc("value", LEN).unwrap();
            device.clear(&mut buffer).unwrap();
            upload.upload(&[(10 * round + number) as f32; LEN - 1], &mut buffer).unwrap();
            readback.read_back(&buffer).unwrap();
            slot.offload(buffer).unwrap();
            found.push(readback.wait().unwrap().to_vec());
        }
        slots.iter_mut().for_each(|slot| slot.wait_offload().unwrap());
        // The next allocation is in their place.
        let mut other = arena.alloc("other", LEN).unwrap();
        table.copy_to(&mut other).unwrap();
        found.push(device.download(&other).unwrap());
        drop(other);
        for slot in &mut slots {
            found.push(slot.values().unwrap().to_vec());
            slot.prefetch(arena.alloc("value", LEN).unwrap()).unwrap();
            let buffer = slot.wait_prefetch().unwrap();
            found.push(device.download(&buffer).unwrap());
            trip.begin(vec![buffer]).unwrap();
            let values = trip.values(true).unwrap().unwrap();
            trip.put_back(&values.iter().map(|value| 3.0 * value).collect::<Vec<_>>()).unwrap();
            found.extend(trip.finish().unwrap().iter().map(|buffer| device.download(buffer).unwrap()));
        }
    }
    found
}

#[test]
fn values_are_those_of_pinned_memory_where_none_can_be_pinned() {
    let expected = copied(&device(u64::MAX, false), Pinned);
    assert_eq!((expected.len(), expected[0][..2].to_vec(), expected[0][299]), (18, vec![0.0, 0.0], 0.0));
    assert_eq!((expected[1][0], expected[2][7], expected[8][3]), (1.0, 7.5, 3.0));
    for is_late in [false, true] {
        assert_eq!(copied(&device(0, is_late), Pageable), expected, "{is_late}");
        assert_eq!(copied(&device(u64::MAX, is_late), Pinned), expected, "{is_late}");
    }
}

#[test]
fn a_device_pins_as_much_as_its_system_lets_it() {
    let device = device(100, false);
    let slot = OffloadSlot::<u8>::new(&device, 60).unwrap();
    let refused = OffloadSlot::<u8>::new(&device, 41).err().unwrap();
    assert!(refused.to_string().contains("41 bytes of pinned host memory") && !refused.is_lost(), "{refused}");
    assert!(OffloadSlot::<u8>::new(&device, 40).is_ok());
    drop(slot);
    assert!(OffloadSlot::<u8>::new(&device, 100).is_ok());
    assert!(PinnedBuffer::new(&device, &[0u8; 101]).is_err());
    // A device does not read in place what is not pinned.
    let table = PinnedBuffer::new_in(&device, &[1u8; 101], Pageable).unwrap();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| table.view().len())).is_err());
}
