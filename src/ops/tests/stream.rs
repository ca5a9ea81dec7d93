//! The stream of a device, which waits for no other. On an emulated device that is late, what is out of its order
//! shows.

use super::super::cublaslt::{CublasLt, Gemm};
use super::super::embedding;
use crate::device::{
    Arena, Buffer, Device, OffloadSlot, PinnedBuffer, ReadbackStaging, Stream, UploadStaging, emulation,
};
use half::bf16;

const H: usize = 8;

fn late() -> Device {
    emulation::run_late(true);
    let device = Device::open().unwrap();
    emulation::run_late(false);
    device
}

fn values(rows: &[f32]) -> Vec<bf16> {
    rows.iter().flat_map(|&row| [bf16::from_f32(row); H]).collect()
}

/// Rows 1 and 0 of a table of two.
struct Gather {
    device: Device,
    ids: Buffer<u32>,
    table: Buffer<bf16>,
    out: Buffer<bf16>,
}

impl Gather {
    fn new(device: Device) -> Self {
        let (ids, table) = (device.upload(&[1, 0]).unwrap(), device.upload(&values(&[3.0, 4.0])).unwrap());
        Self { ids, table, out: device.zeros(2 * H).unwrap(), device }
    }

    fn launch(&mut self) {
        let Self { device, ids, table, out } = self;
        embedding(ids.view(), table.view(), 2, H, 1.0, out.view_mut(), device.stream()).unwrap();
    }

    /// In the stream's order.
    fn found(&self) -> Vec<bf16> {
        self.device.download(&self.out).unwrap()
    }
}

/// A read that does not wait for the stream, as that of `cuMemcpyDtoH`: memory of the emulation is the host's.
fn read_now(buffer: &Buffer<bf16>) -> Vec<bf16> {
    let view = buffer.view();
    // SAFETY: the buffer's elements, which nothing writes meanwhile.
    unsafe { std::slice::from_raw_parts(view.address(), view.len()) }.to_vec()
}

/// A write that does not wait for the stream, as that of `cuMemcpyHtoD`.
fn write_now(buffer: &mut Buffer<bf16>, data: &[bf16]) {
    assert_eq!(data.len(), buffer.len());
    // SAFETY: as many elements, which nothing uses meanwhile.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), buffer.view_mut().address(), data.len()) };
}

#[test]
fn a_read_that_does_not_wait_for_the_stream_is_seen() {
    let mut gather = Gather::new(late());
    gather.launch();
    assert_eq!(read_now(&gather.out), values(&[0.0, 0.0]), "the kernel is not over");
    assert_eq!(gather.found(), values(&[4.0, 3.0]));
    assert_eq!(read_now(&gather.out), gather.found());
    // On a device that is not late it would be right by chance.
    let mut gather = Gather::new(Device::open().unwrap());
    gather.launch();
    assert_eq!(read_now(&gather.out), values(&[4.0, 3.0]));
}

#[test]
fn a_copy_that_does_not_wait_for_the_stream_is_seen() {
    let mut gather = Gather::new(late());
    gather.launch();
    write_now(&mut gather.table, &values(&[5.0, 6.0]));
    assert_eq!(gather.found(), values(&[6.0, 5.0]), "the kernel came after the copy");
    gather.launch();
    gather.device.write(&mut gather.table, &values(&[7.0, 8.0])).unwrap();
    assert_eq!(gather.found(), values(&[6.0, 5.0]), "the kernel came before the copy");
    gather.launch();
    gather.device.clear(&mut gather.table).unwrap();
    assert_eq!(gather.found(), values(&[8.0, 7.0]));
}

#[test]
fn work_on_the_default_stream_is_not_in_the_order_of_a_devices_own() {
    let mut gather = Gather::new(late());
    gather.device.clear(&mut gather.table).unwrap();
    let Gather { ids, table, out, .. } = &mut gather;
    embedding(ids.view(), table.view(), 2, H, 1.0, out.view_mut(), Stream::DEFAULT).unwrap();
    assert_eq!(gather.found(), values(&[4.0, 3.0]));
    assert_eq!(read_now(&gather.table), values(&[0.0, 0.0]));
}

/// Ids that come by pinned memory which is used again at once, results that leave the same way, and rows of a table
/// that was away in between.
#[test]
fn copies_beside_the_stream_are_in_its_order() {
    let device = late();
    let arena = Arena::new(&device, 4 << 10).unwrap();
    let mut upload = UploadStaging::new(&device, 2).unwrap();
    let mut readback = ReadbackStaging::new(&device, 2 * H).unwrap();
    let mut slot = OffloadSlot::new(&device, 2 * H).unwrap();
    let mut gather = Gather::new(device);
    let mut found = Vec::new();
    for round in 0..9 {
        let rows = values(&[round as f32, 100.0 + round as f32]);
        let mut table = arena.alloc("table", 2 * H).unwrap();
        gather.device.write(&mut table, &rows).unwrap();
        slot.offload(table).unwrap();
        slot.wait_offload().unwrap();
        slot.prefetch(arena.alloc("table", 2 * H).unwrap()).unwrap();
        for ids in [[0, 1], [1, 1], [1, 0]] {
            upload.upload(&ids, &mut gather.ids).unwrap();
        }
        gather.table = slot.wait_prefetch().unwrap();
        gather.launch();
        // Given back while the kernel that reads it waits.
        drop(std::mem::take(&mut gather.table));
        readback.read_back(&gather.out).unwrap();
        gather.device.clear(&mut gather.out).unwrap();
        found.push(readback.wait().unwrap().to_vec());
    }
    let expected: Vec<_> = (0..9).map(|round| values(&[100.0 + round as f32, round as f32])).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_buffer_that_is_freed_is_there_for_what_was_queued() {
    let mut gather = Gather::new(late());
    gather.launch();
    drop((std::mem::take(&mut gather.table), std::mem::take(&mut gather.ids)));
    assert_eq!(gather.found(), values(&[4.0, 3.0]));
}

#[test]
fn a_product_of_the_library_is_in_the_order_of_its_stream() {
    let mut gather = Gather::new(late());
    let identity: Vec<bf16> = (0..H * H).map(|at| bf16::from_f32(f32::from(u8::from(at % (H + 1) == 0)))).collect();
    let (w, mut y) = (gather.device.upload(&identity).unwrap(), gather.device.zeros::<bf16>(2 * H).unwrap());
    gather.launch();
    let gemm = Gemm {
        m: 2,
        n: H,
        k: H,
        x: gather.out.view(),
        ldx: H,
        w: w.view(),
        ldw: H,
        k_by_n: false,
        bias: None,
        y: y.view_mut(),
        ldy: H,
        accumulate: false,
    };
    CublasLt::open().unwrap().gemm(gemm, gather.device.stream()).unwrap();
    assert_eq!(read_now(&y), values(&[0.0, 0.0]));
    assert_eq!(gather.device.download(&y).unwrap(), values(&[4.0, 3.0]));
}

#[test]
fn a_kernel_that_fails_is_told_by_the_call_that_waits_for_it() {
    let mut gather = Gather::new(late());
    emulation::lose(emulation::launches() + 1, 719);
    gather.launch();
    let error = gather.device.download(&gather.out).unwrap_err();
    emulation::lose(u64::MAX, 0);
    assert!(error.is_lost() && error.to_string() == "the work on the GPU: a launch failed (719)", "{error}");
    gather.launch();
    assert_eq!(gather.found(), values(&[4.0, 3.0]));
}

/// An array comes after the work that used its memory before, and before the work that reads it there; either wait is
/// missed.
#[test]
fn an_array_in_pinned_memory_comes_in_the_order_of_the_stream() {
    use emulation::Forgotten;
    for forgotten in [None, Some(Forgotten::OfCompute), Some(Forgotten::OfCopies)] {
        let device = late();
        let (mut copy, mut seen) = (device.zeros::<u8>(200).unwrap(), device.zeros::<u8>(200).unwrap());
        let before = device.upload(&[9u8; 200]).unwrap();
        // Last, so that its copies are waited for first.
        let mut array = PinnedBuffer::new(&device, &[3u8; 200]).unwrap();
        emulation::forget(forgotten);
        let mut is_right = true;
        for _ in 0..4 {
            device.repeat(&mut copy, &before, 0).unwrap();
            array.copy_to(&mut copy).unwrap();
            device.repeat(&mut seen, &copy, 0).unwrap();
            is_right &= device.download(&seen).unwrap() == [3; 200];
        }
        emulation::forget(None);
        assert_eq!(is_right, forgotten.is_none(), "{forgotten:?}");
    }
}
