use super::super::launch::Way;
use super::*;
use crate::comm::Watched;
use qlora_kernels::device::Others;
use std::net::TcpListener;
use std::time::Instant;

const LONG: Duration = Duration::from_secs(20);
const TIMEOUTS: Timeouts = Timeouts { join: LONG, silence: LONG, stall: LONG };

/// Results of all ranks, each in a thread of its own.
fn ranks<T: Send>(world_size: usize, work: impl Fn(Tcp) -> T + Sync) -> Vec<T> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let join = |rank| {
        let address = "127.0.0.1".to_owned();
        let (launcher, local_rank, job) = ("torchrun", None, String::new());
        let (local_size, way) = (None, Way::Tcp);
        let launch = Launch { launcher, rank, world_size, local_rank, local_size, address, port, job, way };
        Tcp::join(&launch, "0.1.0", TIMEOUTS).unwrap()
    };
    let (join, work) = (&join, &work);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || work(join(rank)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Values whose sum depends on its order.
fn values(rank: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + rank * 104_729) % 1000) as f32 * 1.1f32.powi((i + rank) as i32 % 60)).collect()
}

#[test]
fn a_sum_is_in_the_order_of_the_ranks_and_the_same_bits_everywhere() {
    for (world_size, count) in [(2, 0), (2, 1), (3, 1000), (5, 300_001)] {
        let mut expected = (values(0, count), vec![0.1, 0.0]);
        for rank in 1..world_size {
            expected.0.iter_mut().zip(values(rank, count)).for_each(|(sum, x)| *sum += x);
            expected.1[0] += 0.1;
            expected.1[1] += rank as f64;
        }
        let sums = ranks(world_size, |mut comm| {
            let (mut gradients, mut totals) = (values(comm.rank(), count), vec![0.1, comm.rank() as f64]);
            comm.all_reduce_sum(&mut gradients, &mut totals).unwrap();
            let machine = comm.on_this_machine();
            assert_eq!((comm.world_size(), machine), (world_size, (comm.rank(), world_size)));
            assert!((0..world_size).all(|rank| comm.machine_of(rank) == 0));
            comm.leave(None).unwrap();
            (gradients, totals)
        });
        assert!(sums.iter().all(|sum| *sum == expected), "{world_size} ranks, {count} values");
    }
}

#[test]
fn every_rank_hears_what_all_of_them_give() {
    let all = ranks(3, |mut comm| {
        let own = vec![comm.rank() as u8; comm.rank() * 100_000];
        let gathered = comm.all_gather("numbers", &own).unwrap();
        let given = comm.broadcast("letter", vec![b'a' + comm.rank() as u8]).unwrap();
        comm.leave(None).unwrap();
        (gathered, given)
    });
    let expected: Vec<Vec<u8>> = (0..3).map(|rank| vec![rank as u8; rank * 100_000]).collect();
    assert!(all.iter().all(|(gathered, given)| *gathered == expected && given == b"a"));
}

/// Whichever rank errs, all end with its name and its reason.
#[test]
fn an_error_of_a_rank_ends_the_work_of_all() {
    for of in 0..3 {
        let errors = ranks(3, |mut comm| {
            if comm.rank() == of {
                comm.leave(Some(&Error::Refused("no such file".to_owned()))).unwrap();
                return None;
            }
            let error = comm.all_gather("anything", &[]).unwrap_err();
            Some((error.to_string(), error.exit_status()))
        });
        for (text, status) in errors.into_iter().flatten() {
            assert!(text.starts_with(&format!("rank {of} (")) && text.ends_with(": no such file"), "{text}");
            assert_eq!(status, 2);
        }
    }
}

#[test]
fn ranks_that_do_not_do_the_same_are_told_apart() {
    for others in [["one", "other"], ["other", "one"]] {
        let errors = ranks(2, |mut comm| comm.all_gather(others[comm.rank()], &[]).unwrap_err().to_string());
        assert!(errors.iter().all(|text| text.contains("rank 1 (") && text.contains("operation 1")), "{errors:?}");
    }
    let errors = ranks(2, |mut comm| {
        let mut gradients = vec![1.0; 4 + 2 * comm.rank()];
        comm.all_reduce_sum(&mut gradients, &mut []).unwrap_err().to_string()
    });
    assert!(errors.iter().all(|text| text.contains(" bytes to a sum, expected ")), "{errors:?}");
    assert_eq!(slices(7, 3), [0..3, 3..5, 5..7]);
    assert_eq!(slices(1, 3), [0..1, 1..1, 1..1]);
}

#[test]
fn a_rank_that_is_gone_is_named() {
    let errors = ranks(3, |mut comm| {
        if comm.rank() == 2 {
            return None;
        }
        Some(comm.all_gather("anything", &[]).unwrap_err().to_string())
    });
    for text in errors.into_iter().flatten() {
        assert!(text.starts_with("rank 2 (") && text.contains("is gone: its connection closed"), "{text}");
    }
}

#[test]
fn sums_beside_the_backward_pass_are_on_unless_they_are_off() {
    assert_eq!(
        [None, Some(""), Some("on"), Some(" off ")].map(|value| overlaps(value).unwrap()),
        [true, true, true, false]
    );
    let error = overlaps(Some("no")).unwrap_err();
    assert_eq!(error.to_string(), "environment variable QLORA_OVERLAP: found \"no\", expected \"on\" or \"off\"");
}

/// A GPU that adds up by itself asks whether all are there.
#[test]
fn a_rank_that_is_gone_is_told_to_whoever_asks() {
    let errors = ranks(2, |mut comm| {
        assert_eq!(comm.patience(), LONG);
        comm.check().unwrap();
        comm.all_gather("beginning", &[]).unwrap();
        if comm.rank() == 1 {
            return None;
        }
        let begun = Instant::now();
        loop {
            let mut watched = Watched::new(&mut comm);
            let found = Others::check(&mut watched);
            assert!(begun.elapsed() < LONG, "nothing is told");
            if let Err(error) = watched.explain(found.map_err(Error::from)) {
                return Some(error.to_string());
            }
        }
    });
    let error = errors[0].as_ref().unwrap();
    assert!(error.starts_with("rank 1 (") && error.contains("is gone: its connection closed"), "{error}");
}

#[test]
fn what_ranks_give_is_unpacked_as_it_was_packed() {
    let all = vec![vec![1, 2, 3], vec![], vec![4; 300]];
    let bytes = packed(&all);
    assert_eq!(unpacked(&bytes, 3).unwrap(), all);
    for cut in 0..bytes.len() {
        assert!(unpacked(&bytes[..cut], 3).is_err(), "{cut}");
    }
    assert!(unpacked(&[255; 16], 1).is_err());
}
