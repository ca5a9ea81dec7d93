//! Ranks that are threads, over a stand-in for a library.

use super::*;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};

const LONG: Duration = Duration::from_secs(20);

/// Ranks that are threads. Their data lies on a board until all have read it.
struct Threads {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    all_are_here: Arc<Barrier>,
    board: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Time that a broadcast takes
    delay: Duration,
}

impl Threads {
    fn world(size: usize, delay: Duration) -> Vec<Self> {
        let (all_are_here, board) = (Arc::new(Barrier::new(size)), Arc::new(Mutex::new(vec![Vec::new(); size])));
        let mut world: Vec<Self> = (0..size)
            .map(|rank| {
                let (all_are_here, board) = (all_are_here.clone(), board.clone());
                Self { rank, to: Vec::new(), from: Vec::new(), all_are_here, board, delay }
            })
            .collect();
        for to in 0..size {
            for from in 0..size {
                let (sender, receiver) = channel();
                world[from].to.push(sender);
                world[to].from.push(receiver);
            }
        }
        world
    }

    fn given(&self, own: &[u8]) -> Vec<Vec<u8>> {
        self.board.lock().unwrap()[self.rank] = own.to_vec();
        self.all_are_here.wait();
        let all = self.board.lock().unwrap().clone();
        self.all_are_here.wait();
        all
    }
}

impl Transport for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.to.len()
    }

    fn post(&mut self, to: usize, note: &[u8]) {
        assert!(note.len() < UNREAD / 2, "{} bytes", note.len());
        // One that is at its end hears no more.
        let _ = self.to[to].send(note.to_vec());
    }

    fn poll(&self, from: usize) -> Option<Vec<u8>> {
        self.from[from].try_recv().ok()
    }

    fn exchange(&mut self, own: &[f32], slices: &[Range<usize>], parts: &mut [f32]) {
        let mine = slices[self.rank].clone();
        let all = self.given(bytemuck::cast_slice(own));
        let of = |bytes: &Vec<u8>| bytemuck::pod_collect_to_vec::<u8, f32>(bytes)[mine.clone()].to_vec();
        parts.copy_from_slice(&all.iter().flat_map(of).collect::<Vec<f32>>());
    }

    fn spread(&mut self, own: &[f32], slices: &[Range<usize>], all: &mut [f32]) {
        for (bytes, slice) in self.given(bytemuck::cast_slice(own)).iter().zip(slices) {
            all[slice.clone()].copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, f32>(bytes));
        }
    }

    fn gather(&mut self, own: &[u8], lengths: &[usize], all: &mut [u8]) {
        let given = self.given(own);
        assert_eq!(given.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
        all.copy_from_slice(&given.concat());
    }

    fn broadcast(&mut self, bytes: &mut [u8]) {
        std::thread::sleep(self.delay);
        let given = self.given(bytes);
        bytes.copy_from_slice(&given[0]);
    }
}

/// A library may end only when nothing is left unread.
impl Drop for Threads {
    fn drop(&mut self) {
        let unread = self.from.iter().filter_map(|from| from.try_recv().ok()).count();
        assert!(unread == 0 || std::thread::panicking(), "{unread} notes are left unread");
    }
}

fn peer(rank: usize) -> Peer {
    Peer {
        host: "a".to_owned(),
        machine: if rank < 2 { "one" } else { "two" }.to_owned(),
        processors: "0-3".to_owned(),
        process: 4711,
    }
}

/// Results of all ranks, each in a thread of its own, and why their processes were ended.
fn ranks<R: Send>(
    world: Vec<Threads>,
    stall: Duration,
    work: impl Fn(Meeting<Threads>) -> R + Sync,
) -> (Vec<R>, Vec<String>) {
    let ended = Arc::new(Mutex::new(Vec::new()));
    let (work, ends) = (&work, &ended);
    let results = std::thread::scope(|scope| {
        let one = |transport: Threads| {
            scope.spawn(move || {
                let ends = ends.clone();
                let end = move |failure: &Failure| ends.lock().unwrap().push(failure.message.clone());
                let mut comm = Meeting::new(transport, None, true, stall, Watchdog::start(end).unwrap());
                comm.introduce(&peer(comm.rank()), "0.1.0").unwrap();
                work(comm)
            })
        };
        let threads: Vec<_> = world.into_iter().map(one).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let ended = ended.lock().unwrap().clone();
    (results, ended)
}

fn world(size: usize) -> Vec<Threads> {
    Threads::world(size, Duration::ZERO)
}

#[test]
fn a_sum_over_a_library_is_in_the_order_of_the_ranks() {
    let given = |rank: usize, count: usize| -> Vec<f32> {
        (0..count).map(|at| ((at * 7919 + rank * 104_729) % 1000) as f32 * 1.1f32.powi(at as i32 % 60)).collect()
    };
    for (size, count) in [(2, 0), (2, 1), (3, 1000), (4, 1)] {
        let mut expected = (given(0, count), vec![0.1, 0.0]);
        for rank in 1..size {
            expected.0.iter_mut().zip(given(rank, count)).for_each(|(sum, x)| *sum += x);
            expected.1[0] += 0.1;
            expected.1[1] += rank as f64;
        }
        let (sums, ended) = ranks(world(size), LONG, |mut comm| {
            let (mut gradients, mut totals) = (given(comm.rank(), count), vec![0.1, comm.rank() as f64]);
            comm.beside().unwrap().all_reduce_sum(&mut gradients, &mut totals).unwrap();
            comm.all_reduce_sum(&mut [], &mut []).unwrap();
            comm.leave(None).unwrap();
            (gradients, totals)
        });
        assert!(sums.iter().all(|sum| *sum == expected), "{size} ranks, {count} values");
        assert!(ended.is_empty(), "{ended:?}");
    }
}

#[test]
fn every_rank_has_what_all_of_them_give_and_knows_where_they_are() {
    let (all, ended) = ranks(world(3), LONG, |mut comm| {
        let gathered = comm.all_gather("numbers", &vec![comm.rank() as u8; comm.rank() * 1000]).unwrap();
        assert_eq!(comm.all_gather("nothing", &[]).unwrap(), vec![Vec::<u8>::new(); 3]);
        let given = comm.broadcast("letter", vec![b'a' + comm.rank() as u8; 1 + comm.rank()]).unwrap();
        assert_eq!([0, 1, 2].map(|rank| comm.machine_of(rank)), [0, 0, 2]);
        let places = (comm.on_this_machine(), comm.on_these_processors(), comm.machines());
        assert_eq!(places, [((0, 2), 2, 2), ((1, 2), 2, 2), ((0, 1), 1, 2)][comm.rank()]);
        assert_eq!(comm.name_of(2), "rank 2 (a, process 4711)");
        comm.leave(Some(&Error::Interrupted(15))).unwrap();
        (gathered, given)
    });
    let expected: Vec<Vec<u8>> = (0..3).map(|rank| vec![rank as u8; rank * 1000]).collect();
    assert!(all.iter().all(|(gathered, given)| *gathered == expected && given == b"a"));
    assert!(ended.is_empty(), "{ended:?}");
}

/// Whichever rank errs, all end with its name and its reason, whatever they were at, and no note is left.
#[test]
fn an_error_of_a_rank_ends_all_over_a_library() {
    for of in 0..3 {
        let (errors, ended) = ranks(world(3), LONG, |mut comm| {
            for time in 0..5 {
                // The others may be at the next operation already, or at their end.
                if comm.rank() == of && time == 3 {
                    let error = Error::Refused("no such file".to_owned());
                    comm.leave(Some(&error)).unwrap();
                    return None;
                }
                if let Err(error) = comm.broadcast("anything", vec![1; 10]) {
                    assert_eq!(comm.check().unwrap_err().to_string(), error.to_string());
                    assert_eq!(comm.patience(), LONG);
                    let said = (error.to_string(), error.exit_status());
                    comm.leave(Some(&error)).unwrap();
                    return Some(said);
                }
            }
            panic!("the others went on");
        });
        assert_eq!(errors.iter().flatten().count(), 2);
        for (text, status) in errors.into_iter().flatten() {
            assert!(text.starts_with(&format!("rank {of} (")) && text.ends_with(": no such file"), "{text}");
            assert_eq!(status, 2);
        }
        assert!(ended.is_empty(), "{ended:?}");
    }
}

/// A rank whose GPU adds up polls the others meanwhile. It passes on their reason to end unchanged, not as its own.
#[test]
fn a_rank_that_asks_hears_of_an_end_and_passes_it_on_under_its_name() {
    let (errors, ended) = ranks(world(3), LONG, |mut comm| {
        comm.check().unwrap();
        comm.all_gather("beginning", &[]).unwrap();
        if comm.rank() == 1 {
            comm.leave(Some(&Error::Refused("no such file".to_owned()))).unwrap();
            return None;
        }
        // Rank 2 has heard rank 0 before it asks.
        while comm.rank() == 2 && comm.notes.borrow().last[0].is_none() {
            comm.look();
            std::thread::yield_now();
        }
        let error = loop {
            match comm.check() {
                Ok(()) => std::thread::yield_now(),
                Err(error) => break error,
            }
        };
        assert_eq!(comm.check().unwrap_err().to_string(), error.to_string());
        let said = (error.to_string(), error.exit_status());
        comm.leave(Some(&error)).unwrap();
        Some(said)
    });
    assert_eq!(errors.iter().flatten().count(), 2);
    for (text, status) in errors.into_iter().flatten() {
        assert_eq!((text.as_str(), status), ("rank 1 (a, process 4711) ended the run: no such file", 2));
    }
    assert!(ended.is_empty(), "{ended:?}");
}

#[test]
fn an_end_that_not_all_come_to_is_an_error() {
    let (errors, _) = ranks(world(2), LONG, |comm| match comm.rank() {
        0 => comm.leave(None).unwrap_err().to_string(),
        _ => {
            comm.fail::<()>(Failure::new(1, "x".repeat(100_000))).unwrap_err();
            comm.leave(Some(&Error::Failed("no memory".to_owned()))).map(|()| String::new()).unwrap()
        }
    });
    assert_eq!(errors, ["x".repeat(REASON), String::new()]);
}

#[test]
fn ranks_of_which_one_does_something_else_are_told_apart() {
    let (errors, _) = ranks(world(2), LONG, |mut comm| {
        let error = comm.all_gather(["one", "other"][comm.rank()], &[]).unwrap_err();
        comm.leave(Some(&error)).unwrap();
        error.to_string()
    });
    let expected = "rank 1 (a, process 4711) is at operation 2 (other), rank 0 (a, process 4711) at 2 (one)";
    assert!(errors[0].starts_with(expected) && errors[1].starts_with("rank 0 ("), "{errors:?}");
    let (errors, _) = ranks(world(2), LONG, |mut comm| {
        let mut gradients = vec![1.0; 4 + 2 * comm.rank()];
        let error = comm.all_reduce_sum(&mut gradients, &mut []).unwrap_err();
        comm.leave(Some(&error)).unwrap();
        error.to_string()
    });
    assert!(errors[0].contains("rank 1 (") && errors[0].contains("gave 6 numbers to a sum, expected 4"));
}

/// Ranks that wait say who is missing, and end their processes if it never comes.
#[test]
fn a_rank_that_does_not_come_is_named_and_ends_the_others() {
    let (_, ended) = ranks(world(3), Duration::from_secs(1), |mut comm| {
        if comm.rank() == 1 {
            // Long after the others have given up; they had come to the first.
            std::thread::sleep(LAST_WORDS + Duration::from_secs(2));
            comm.all_gather("anything", &[]).unwrap();
            let error = comm.all_gather("more", &[]).unwrap_err();
            return comm.leave(Some(&error)).unwrap();
        }
        let error = comm.all_gather("anything", &[]).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("rank 1 (a, process 4711) did not come to the others (anything)"), "{text}");
        comm.leave(Some(&error)).unwrap();
    });
    assert_eq!(ended.len(), 2, "{ended:?}");
    assert!(ended.iter().all(|why| why.starts_with("rank 1 (") && why.contains("for 1 s")), "{ended:?}");
}

#[test]
fn an_operation_that_does_not_end_ends_the_process() {
    let world = Threads::world(2, Duration::from_millis(1500));
    let (_, ended) = ranks(world, Duration::from_millis(500), |mut comm| {
        comm.broadcast("letter", vec![1]).unwrap();
        comm.leave(None).unwrap();
    });
    assert_eq!(ended.len(), 2, "{ended:?}");
    assert!(ended.iter().all(|why| why.contains("(letter)") && why.contains("within 0.75 s")), "{ended:?}");
}
