use crate::device::{Arena, Buffer, Device, ReadbackStaging, SideStream, emulation};
use crate::error::{CudaError, Result};
use crate::ops::embedding;
use half::bf16;

const H: usize = 8;

fn opened(is_late: bool) -> Device {
    emulation::run_late(is_late);
    let device = Device::open().unwrap();
    emulation::run_late(false);
    device
}

fn values(rows: &[f32]) -> Vec<bf16> {
    rows.iter().flat_map(|&row| [bf16::from_f32(row); H]).collect()
}

/// Rows of a table of two, in an arena whose addresses are fixed.
struct Gather {
    device: Device,
    arena: Arena,
    ids: Buffer<u32>,
    table: Buffer<bf16>,
    out: Buffer<bf16>,
}

impl Gather {
    fn new(is_late: bool) -> Self {
        let device = opened(is_late);
        let arena = Arena::with_fixed_addresses(&device, 16 << 10).unwrap();
        let (ids, table) = (arena.alloc("ids", 2).unwrap(), arena.alloc("table", 2 * H).unwrap());
        let out = arena.alloc("out", 2 * H).unwrap();
        let mut gather = Self { device, arena, ids, table, out };
        gather.device.write(&mut gather.table, &values(&[3.0, 4.0])).unwrap();
        gather.set([0, 1]);
        gather
    }

    fn set(&mut self, ids: [u32; 2]) {
        self.device.write(&mut self.ids, &ids).unwrap();
    }

    /// Through memory that is there for a while; cleared before.
    fn launch(&mut self) {
        let mut through = self.arena.alloc("through", 2 * H).unwrap();
        self.device.clear(&mut self.out).unwrap();
        let (ids, table) = (self.ids.view(), self.table.view());
        embedding(ids, table, 2, H, 1.0, through.view_mut(), self.device.stream()).unwrap();
        self.device.repeat(&mut self.out, &through, 0).unwrap();
    }

    fn found(&self) -> Vec<bf16> {
        self.device.download(&self.out).unwrap()
    }
}

#[test]
fn a_graph_does_its_work_again_with_what_is_there_then() {
    for is_late in [false, true] {
        let mut gather = Gather::new(is_late);
        gather.launch();
        assert_eq!(gather.found(), values(&[3.0, 4.0]));
        let launches = emulation::launches();
        gather.set([1, 1]);
        gather.device.begin_capture().unwrap();
        gather.launch();
        let graph = gather.device.end_capture().unwrap();
        assert_eq!(gather.found(), values(&[3.0, 4.0]), "nothing was done while it was recorded");
        assert_eq!((graph.nodes(), emulation::launches()), (3, launches));
        for (times, (ids, rows)) in (1..).zip([([1, 1], [4.0, 4.0]), ([1, 0], [4.0, 3.0]), ([0, 0], [3.0, 3.0])]) {
            gather.set(ids);
            // SAFETY: the arena has its memory, and no buffer of it is in other use.
            unsafe { graph.launch() }.unwrap();
            assert_eq!(gather.found(), values(&rows));
            assert_eq!(emulation::launches(), launches + times, "one launch of a kernel in each");
        }
        // Launches are launched again, and a recording does not end with another's work.
        gather.set([0, 1]);
        gather.launch();
        assert_eq!(gather.found(), values(&[3.0, 4.0]));
    }
}

/// Memory that is elsewhere when a graph is launched is not what the graph uses: what the state of an arena is for.
#[test]
fn a_graph_uses_the_addresses_that_it_was_recorded_with() {
    let mut gather = Gather::new(false);
    let state = gather.arena.state();
    gather.device.begin_capture().unwrap();
    gather.launch();
    let graph = gather.device.end_capture().unwrap();
    assert_eq!(gather.arena.state(), state);
    let before = std::mem::replace(&mut gather.ids, gather.arena.alloc("ids", 2).unwrap());
    assert_ne!(gather.arena.state(), state);
    gather.set([1, 1]);
    // SAFETY: the arena has its memory, and the ids that were there first are held still.
    unsafe { graph.launch() }.unwrap();
    assert_eq!(gather.found(), values(&[3.0, 4.0]), "it reads the ids that were there first");
    drop(before);
}

#[test]
fn work_beside_the_stream_is_recorded_where_both_wait_for_each_other() {
    for is_late in [false, true] {
        let mut gather = Gather::new(is_late);
        let mut side = SideStream::new(&gather.device).unwrap();
        let mut record = |gather: &mut Gather, joins: bool| {
            let Gather { device, arena, ids, table, out } = gather;
            let mut through = arena.alloc::<bf16>("through", 2 * H).unwrap();
            device.begin_capture().unwrap();
            device.clear(&mut through).unwrap();
            side.fork().unwrap();
            let stream = side.wait_fork().unwrap();
            embedding(ids.view(), table.view(), 2, H, 1.0, through.view_mut(), stream).unwrap();
            if joins {
                side.join().unwrap();
            }
            device.repeat(out, &through, 0).unwrap();
            device.end_capture()
        };
        let error = record(&mut gather, false).err().unwrap().to_string();
        assert!(error.contains("has not joined it"), "{error}");
        let graph = record(&mut gather, true).unwrap();
        for (ids, rows) in [([1, 0], [4.0, 3.0]), ([1, 1], [4.0, 4.0])] {
            gather.set(ids);
            // SAFETY: the arena has its memory, and no buffer of it is in other use.
            unsafe { graph.launch() }.unwrap();
            assert_eq!(gather.found(), values(&rows), "late: {is_late}");
        }
    }
}

/// Everything that CUDA refuses of a stream that is recorded; what comes after is as if nothing had been recorded.
#[test]
fn what_cannot_be_recorded_is_an_error() {
    type Ask = fn(&mut Gather, &mut ReadbackStaging<bf16>) -> Result<()>;
    let all: [(Ask, &str); 7] = [
        (|gather, _| gather.device.synchronize(), "the host waits for it"),
        (|gather, _| gather.device.download(&gather.out).map(drop), "the host waits for it"),
        (|gather, _| gather.device.write(&mut gather.ids, &[1, 1]), "the host waits for it"),
        (|gather, _| gather.device.upload(&[1u32]).map(drop), "memory is allocated"),
        (|gather, _| gather.device.begin_capture(), "it is recorded already"),
        (|gather, readback| readback.read_back(&gather.out), "a copy beside it waits for it"),
        (
            |gather, _| {
                let mut side = SideStream::new(&gather.device)?;
                side.fork()?;
                side.wait_fork()?;
                Err(CudaError::Device("a stream that is recorded: the stream beside it has not joined it".into()))
            },
            "has not joined it",
        ),
    ];
    for is_late in [false, true] {
        for (ask, words) in all {
            let mut gather = Gather::new(is_late);
            let mut readback = ReadbackStaging::new(&gather.device, 2 * H).unwrap();
            gather.device.begin_capture().unwrap();
            let error = ask(&mut gather, &mut readback).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(gather.device.end_capture().err(), Some(error), "{words}");
            gather.launch();
            assert_eq!(gather.found(), values(&[3.0, 4.0]), "{words}");
        }
    }
    let error = opened(false).end_capture().err().unwrap().to_string();
    assert_eq!(error, "no stream is recorded");
}
