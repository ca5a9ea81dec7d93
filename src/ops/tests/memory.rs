//! Device memory: parts of it, and what is written to it.

use super::super::adamw::GradientState;
use super::super::linear::{Lora, Weight};
use super::super::linear_backward::{Backward, SegmentBackward};
use super::super::lora_gradients::{ForwardInputs, PairGradient, workspace_bytes, workspace_bytes_of};
use crate::CudaError;
use crate::device::{
    Arena, Device, EventTimer, MemoryEnd, OffloadSlot, PinnedBuffer, ReadbackStaging, SharedPinned, UploadStaging,
};
use half::bf16;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

#[test]
fn buffers_are_made_overwritten_and_cleared() {
    let device = Device::open().unwrap();
    let mut buffer = device.zeros::<f32>(5).unwrap();
    assert_eq!(device.download(&buffer).unwrap(), [0.0; 5]);
    device.write(&mut buffer, &[1.0, 2.0]).unwrap();
    assert_eq!(device.download(&buffer).unwrap(), [1.0, 2.0, 0.0, 0.0, 0.0]);
    let error = device.write(&mut buffer, &[3.0; 6]).unwrap_err().to_string();
    assert!(error.contains("6 elements") && error.contains("buffer of 5"), "{error}");
    assert_eq!(device.download(&buffer).unwrap()[0], 1.0);
    device.clear(&mut buffer).unwrap();
    assert_eq!(device.download(&buffer).unwrap(), [0.0; 5]);
    let mut empty = device.zeros::<u8>(0).unwrap();
    device.write(&mut empty, &[]).unwrap();
    device.clear(&mut empty).unwrap();
    assert!(empty.is_empty() && device.download(&empty).unwrap().is_empty());
    assert!(Device::open_at(1_000).is_err());
}

#[test]
fn parts_begin_where_they_should_and_end_with_the_whole() {
    let device = Device::open().unwrap();
    let mut buffer = device.zeros::<f32>(2 * 10).unwrap();
    let view = buffer.view();
    let (skipped, address) = (view.skip(3), view.address());
    assert!(skipped.address() == address.wrapping_add(3) && skipped.len() == 17);
    assert!(view.skip(21).is_empty());
    let parts = buffer.view_mut().columns(&[3, 5, 2]);
    let found: Vec<_> = parts.iter().map(|part| (part.address().cast_const(), part.len())).collect();
    assert_eq!(found, [(address, 20), (address.wrapping_add(3), 17), (address.wrapping_add(8), 12)]);
}

#[test]
fn the_workspace_of_gradients_is_known_before_the_operands_and_grows_with_the_tokens() {
    let device = Device::open().unwrap();
    let (k, segments) = (128, [(24, 12), (64, 16)]);
    let mut last = 0;
    for m in [1, 256, 257, 900, 5_000] {
        let zeros = device.zeros::<bf16>(m.max(64) * 128).unwrap();
        let mut sums = device.zeros::<f32>(16 * 128 * 4).unwrap();
        let low_rank = zeros.view().first(m * 32);
        let operand = |(n, r): (usize, usize)| SegmentBackward {
            n,
            weight: Weight::Dense(zeros.view().first(n * k)),
            lora: Some(Lora {
                r,
                scale: 1.0,
                a: zeros.view().first(r * k),
                b: zeros.view().first(n * r),
                adapters: None,
            }),
            dy: zeros.view(),
            lddy: n,
        };
        let mut pairs: Vec<PairGradient> = Vec::new();
        let mut rest = sums.view_mut().columns(&[12 * 128, 24 * 12, 16 * 128, 64 * 16]).into_iter();
        for (n, r) in segments {
            let (da, db) = (rest.next().unwrap().first(r * k), rest.next().unwrap().first(n * r));
            pairs.push(PairGradient { da: Some(da), db: Some(db) });
        }
        let backward = Backward { m, k, t: Some(low_rank.into()), dropout: None };
        let inputs = ForwardInputs { x: zeros.view(), ldx: k, s: low_rank.into() };
        let expected = workspace_bytes(&backward, &segments.map(operand), &inputs, &mut pairs).unwrap();
        let found = workspace_bytes_of(m, k, &segments);
        assert_eq!(found, expected);
        assert!(found >= last, "{m} tokens");
        last = found;
    }
    assert!(last > 0);
}

#[test]
fn a_gradient_state_is_read_from_its_words() {
    for (tensor, not_finite) in [(-1i32, None), (0, Some(0)), (448, Some(448))] {
        let words = [1.25f64.to_bits(), u64::from(tensor as u32) << 32 | u64::from(0.3f32.to_bits())];
        assert_eq!(GradientState::from_words(words), GradientState { norm: 1.25, scale: 0.3, not_finite });
    }
}

#[test]
fn an_arena_gives_out_what_was_planned_and_no_more() {
    let device = Device::open().unwrap();
    let arena = Arena::new(&device, 2048).unwrap();
    let mut first = arena.alloc::<f32>("first", 100).unwrap();
    let second = arena.alloc::<u8>("second", 1000).unwrap();
    device.write(&mut first, &[1.5; 100]).unwrap();
    assert_eq!(arena.used(), 512 + 1024);
    let error = arena.alloc::<u64>("third", 100).err().unwrap().to_string();
    assert!(error.contains("800 bytes of third") && error.contains("1536 of the 2048"), "{error}");
    drop(second);
    let third = arena.alloc::<u64>("third", 192).unwrap();
    assert_eq!(device.download(&first).unwrap(), [1.5; 100]);
    let peak = arena.peak();
    assert_eq!((peak.bytes, peak.names.get("third")), (2048, Some(&1536)));
    // The memory lives as long as its parts.
    drop(arena);
    assert_eq!(device.download(&first).unwrap().len() + device.download(&third).unwrap().len(), 292);
    let too_many = device.mem_info().unwrap().total + 4096;
    assert!(Arena::new(&device, too_many).is_err());
}

#[test]
fn buffers_from_both_ends_of_an_arena_do_not_touch() {
    let device = Device::open().unwrap();
    let arena = Arena::new(&device, 1024).unwrap();
    let filled = |end, len, value: u8| {
        let mut buffer = arena.alloc_at::<u8>(end, "part", len).unwrap();
        device.write(&mut buffer, &vec![value; len]).unwrap();
        buffer
    };
    let (low, high) = (filled(MemoryEnd::Low, 256, 1), filled(MemoryEnd::High, 300, 2));
    assert!(arena.alloc::<u8>("more", 257).is_err());
    let middle = filled(MemoryEnd::High, 256, 3);
    for (buffer, value) in [(&low, 1), (&high, 2), (&middle, 3)] {
        assert!(device.download(buffer).unwrap().iter().all(|byte| *byte == value));
    }
    drop(high);
    assert_eq!((arena.used(), arena.peak().bytes), (512, 1024));
    assert_eq!(device.download(&filled(MemoryEnd::High, 512, 4)).unwrap(), [4; 512]);
    assert_eq!(device.download(&middle).unwrap(), [3; 256]);
}

#[test]
fn a_planned_arena_counts_without_memory() {
    let arena = Arena::planned();
    let huge = arena.alloc::<f32>("huge", 1 << 40).unwrap();
    assert_eq!((huge.len(), arena.used()), (1 << 40, 4 << 40));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| huge.view().len())).is_err());
    drop(huge);
    assert_eq!((arena.used(), arena.peak().bytes), (0, 4 << 40));
}

#[test]
fn arrays_come_and_go_beside_the_stream() {
    let device = Device::open().unwrap();
    let (mut upload, mut readback) =
        (UploadStaging::new(&device, 6).unwrap(), ReadbackStaging::new(&device, 4).unwrap());
    let (mut buffer, mut timer) = (device.zeros::<u32>(4).unwrap(), EventTimer::new(&device).unwrap());
    assert!(readback.wait().unwrap().is_empty());
    for round in 0..20u32 {
        timer.record().unwrap();
        upload.upload(&[round; 3], &mut buffer).unwrap();
        readback.read_back(&buffer).unwrap();
        assert_eq!(readback.wait().unwrap(), [round, round, round, 0]);
    }
    assert!(upload.upload(&[0; 5], &mut buffer).is_err(), "the buffer has room for 4");
    assert!(ReadbackStaging::new(&device, 3).unwrap().read_back(&buffer).is_err());
    let seconds = timer.elapsed().unwrap();
    assert!(seconds.len() == 19 && seconds.iter().all(|seconds| *seconds >= 0.0), "{seconds:?}");
    assert!(timer.elapsed().unwrap().is_empty());
}

#[test]
fn errors_that_end_the_use_of_a_gpu_are_told_from_others() {
    let status = |code| CudaError::Status {
        operation: "dx",
        shape: String::new(),
        code,
        name: String::new(),
        detail: String::new(),
    };
    assert!([700, 716, 719, 214].into_iter().all(|code| status(code).is_lost()));
    assert!([-3, 2, 9, 1].into_iter().all(|code| !status(code).is_lost()));
    assert!(!CudaError::Device("no GPU".into()).is_lost());
}

#[test]
fn buffers_leave_for_the_host_and_come_back() {
    let device = Device::open().unwrap();
    let arena = Arena::new(&device, 4 << 10).unwrap();
    let mut slots: Vec<OffloadSlot<f32>> = (0..3).map(|_| OffloadSlot::new(&device, 100).unwrap()).collect();
    for round in 0..3 {
        for (index, slot) in slots.iter_mut().enumerate() {
            let mut buffer = arena.alloc("value", 100).unwrap();
            device.write(&mut buffer, &[(10 * round + index) as f32; 100]).unwrap();
            slot.offload(buffer).unwrap();
        }
        assert_eq!(arena.used(), 3 * 512, "buffers on their way are kept");
        slots.iter_mut().for_each(|slot| slot.wait_offload().unwrap());
        assert_eq!(arena.used(), 0);
        for (index, slot) in slots.iter_mut().enumerate().rev() {
            slot.prefetch(arena.alloc("value", 100).unwrap()).unwrap();
            let buffer = slot.wait_prefetch().unwrap();
            assert_eq!(device.download(&buffer).unwrap(), [(10 * round + index) as f32; 100]);
        }
    }
    assert!(slots[0].offload(arena.alloc("value", 99).unwrap()).is_err());
}

/// One buffer that takes turns between slots: it has the next one's values only when its own have left, whichever
/// copies are made at once and whichever only when they are waited for.
#[test]
fn a_buffer_that_is_taken_back_is_used_again_after_its_copy() {
    for copies_before in 0..2 {
        let device = Device::open().unwrap();
        let mut other = device.zeros::<u8>(1).unwrap();
        let mut staging = UploadStaging::new(&device, 1).unwrap();
        (0..copies_before).for_each(|_| staging.upload(&[1], &mut other).unwrap());
        let mut slots: Vec<OffloadSlot<u32>> = (0..4).map(|_| OffloadSlot::new(&device, 9).unwrap()).collect();
        for (slot, first) in slots.iter_mut().zip(0..) {
            assert_eq!(slot.values().unwrap(), [0; 9]);
            slot.set(2, &[first; 7]).unwrap();
        }
        let mut buffer = device.zeros::<u32>(9).unwrap();
        for (slot, first) in slots.iter_mut().zip(0..) {
            slot.prefetch(buffer).unwrap();
            buffer = slot.wait_prefetch().unwrap();
            assert_eq!(device.download(&buffer).unwrap(), [0, 0, first, first, first, first, first, first, first]);
            device.write(&mut buffer, &[first + 10; 9]).unwrap();
            slot.offload(buffer).unwrap();
            buffer = slot.take_offloaded().unwrap();
        }
        for (slot, first) in slots.iter().zip(0..) {
            assert_eq!(slot.values().unwrap(), [first + 10; 9], "{copies_before}");
        }
    }
}

/// A file in memory with these bytes.
fn in_memory(bytes: &[u8], seals: SealFlags) -> File {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

/// Two devices that read what a third one wrote, each by a mapping of its own, again and again and side by side.
#[test]
fn memory_of_several_processes_is_prefetched_by_each_and_written_by_none() {
    let bytes: Vec<u8> = (0..3000u32).map(|i| (i * 7 % 251) as u8).collect();
    let file = in_memory(&bytes, SealFlags::SHRINK);
    let devices = [Device::open().unwrap(), Device::open().unwrap()];
    let arenas = devices.each_ref().map(|device| Arena::new(device, 8 << 10).unwrap());
    let memory = devices.each_ref().map(|device| Rc::new(SharedPinned::new(device, &file, bytes.len()).unwrap()));
    let parts = [(0, 1000), (1024, 1500), (2560, 440)];
    let slot = |memory: &Rc<SharedPinned>, (first, len)| OffloadSlot::<u8>::shared(memory, first, len).unwrap();
    let mut slots = memory.each_ref().map(|memory| parts.map(|part| slot(memory, part)));
    for _ in 0..3 {
        for (slots, arena) in slots.iter_mut().zip(&arenas) {
            for (slot, (_, len)) in slots.iter_mut().zip(parts) {
                slot.prefetch(arena.alloc("part", len).unwrap()).unwrap();
            }
        }
        for (slots, device) in slots.iter_mut().zip(&devices) {
            for (slot, (first, len)) in slots.iter_mut().zip(parts) {
                let buffer = slot.wait_prefetch().unwrap();
                assert!(device.download(&buffer).unwrap() == bytes[first..first + len], "{first}");
            }
        }
    }
    // Bytes that are written later, by whoever has the file, are the same memory.
    file.write_all_at(&[200; 10], 1024).unwrap();
    slots[1][1].prefetch(arenas[1].alloc("part", 1500).unwrap()).unwrap();
    let buffer = slots[1][1].wait_prefetch().unwrap();
    assert_eq!(devices[1].download(&buffer).unwrap()[..10], [200; 10]);
    let error = slots[0][0].offload(arenas[0].alloc("part", 1000).unwrap()).unwrap_err().to_string();
    assert!(error.contains("is not written by a device"), "{error}");
    // Memory that a slot still reads from stays until the slot is gone.
    drop(memory);
    slots[0][2].prefetch(arenas[0].alloc("part", 440).unwrap()).unwrap();
    let buffer = slots[0][2].wait_prefetch().unwrap();
    assert!(devices[0].download(&buffer).unwrap() == bytes[2560..]);
}

#[test]
fn a_file_that_could_be_cut_or_is_too_short_is_not_mapped() {
    let device = Device::open().unwrap();
    let refused = |file: &File, bytes: usize| SharedPinned::new(&device, file, bytes).err().unwrap().to_string();
    let error = refused(&in_memory(&[1; 100], SealFlags::GROW), 100);
    assert!(error.contains("100 bytes") && error.contains("not sealed against shrinking"), "{error}");
    let sealed = in_memory(&[1; 100], SealFlags::SHRINK);
    assert!(refused(&sealed, 101).contains("it has 100") && refused(&sealed, 0).contains("it has 100"));
    // One of a disk has no seals.
    let error = refused(&File::open(std::env::current_exe().unwrap()).unwrap(), 10);
    assert!(error.contains("cannot be mapped"), "{error}");
    let memory = Rc::new(SharedPinned::new(&device, &sealed, 100).unwrap());
    for (first, len) in [(0, 101), (100, 1), (usize::MAX, 1)] {
        let error = OffloadSlot::<u8>::shared(&memory, first, len).err().unwrap().to_string();
        assert!(error.contains("which has 100"), "{error}");
    }
    assert!(OffloadSlot::<f32>::shared(&memory, 2, 4).err().unwrap().to_string().contains("begins no element"));
    assert!(OffloadSlot::<f32>::shared(&memory, 4, 24).is_ok());
}

/// An array that stays on the host, read by a kernel.
#[test]
fn the_device_reads_pinned_memory_in_place() {
    let device = Device::open().unwrap();
    let values: Vec<bf16> = (0..6 * 8).map(|i| bf16::from_f32(i as f32)).collect();
    let table = PinnedBuffer::new(&device, &values).unwrap();
    let (ids, mut out) = (device.upload(&[5u32, 0, 5]).unwrap(), device.zeros::<bf16>(3 * 8).unwrap());
    super::super::embedding(ids.view(), table.view(), 6, 8, 1.0, out.view_mut(), device.stream()).unwrap();
    assert_eq!(device.download(&out).unwrap(), [&values[40..], &values[..8], &values[40..]].concat());
}

/// An array that comes to memory which a kernel used before, is read there by the next one, and leaves it to a third.
#[test]
fn an_array_in_pinned_memory_is_copied_in_the_order_of_the_stream() {
    let device = Device::open().unwrap();
    let arena = Arena::new(&device, 1 << 10).unwrap();
    let values: Vec<bf16> = (0..6 * 8).map(|i| bf16::from_f32(i as f32)).collect();
    let mut table = PinnedBuffer::new(&device, &values).unwrap();
    let (ids, mut out) = (device.upload(&[5u32, 0, 5]).unwrap(), device.zeros::<bf16>(3 * 8).unwrap());
    for _ in 0..3 {
        let mut copy = arena.alloc::<bf16>("copy", 6 * 8).unwrap();
        device.clear(&mut copy).unwrap();
        table.copy_to(&mut copy).unwrap();
        super::super::embedding(ids.view(), copy.view(), 6, 8, 1.0, out.view_mut(), device.stream()).unwrap();
        drop(copy);
        let mut other = arena.alloc::<bf16>("other", 6 * 8).unwrap();
        device.clear(&mut other).unwrap();
        assert_eq!(device.download(&out).unwrap(), [&values[40..], &values[..8], &values[40..]].concat());
        assert!(device.download(&other).unwrap().iter().all(|value| *value == bf16::ZERO));
    }
    for len in [47, 49] {
        assert!(table.copy_to(&mut arena.alloc("other", len).unwrap()).is_err(), "{len} of 48");
    }
    // A part of a file, as every process that has it copies it.
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_bits().to_ne_bytes()).collect();
    let file = in_memory(&bytes, SealFlags::SHRINK);
    let memory = Rc::new(SharedPinned::new(&device, &file, bytes.len()).unwrap());
    let mut part = PinnedBuffer::<bf16>::shared(&memory, 16, 40).unwrap();
    let mut copy = arena.alloc("copy", 40).unwrap();
    part.copy_to(&mut copy).unwrap();
    assert_eq!(device.download(&copy).unwrap(), values[8..]);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| part.view().len())).is_err());
}

#[test]
fn a_pattern_is_repeated_over_a_buffer() {
    let device = Device::open().unwrap();
    let (pattern, mut buffer) = (device.upload(&[1u8, 2, 3]).unwrap(), device.zeros::<u8>(8).unwrap());
    device.repeat(&mut buffer, &pattern, 2).unwrap();
    assert_eq!(device.download(&buffer).unwrap(), [3, 1, 2, 3, 1, 2, 3, 1]);
    assert!(device.repeat(&mut buffer, &pattern, 3).is_err());
    let mut empty = device.zeros::<u8>(0).unwrap();
    device.repeat(&mut empty, &pattern, 0).unwrap();
}
