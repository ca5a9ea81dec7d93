use super::*;
use crate::arch::Arch;
use crate::base::synthetic::{Synthetic, tiny_arch};
use std::time::{Duration, Instant, SystemTime};

/// Large tensors of [`model`], each of a MiB.
const LARGE: usize = 6;
const MIB: u64 = 1 << 20;

/// Two layers whose MLPs have a MiB each in gate, up and down, beside small tensors.
fn model(shards: usize) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let config = Arch { intermediate_size: 8192, ..tiny_arch() };
    Synthetic { shards, ..Synthetic::new(config, 1) }.write(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

fn begin(checkpoint: &Checkpoint, threads: usize, room: u64) -> DigestsAhead {
    DigestsAhead::begin(checkpoint, threads, move || room).unwrap()
}

/// Names of the large tensors, in the order in which they are hashed.
fn names(ahead: &DigestsAhead) -> Vec<String> {
    ahead.shared.tensors.iter().map(|tensor| tensor.name.clone()).collect()
}

fn hashed(state: &State) -> usize {
    state.slots.iter().filter(|slot| matches!(slot, Slot::Hashed(_))).count()
}

fn until(ahead: &DigestsAhead, is_so: impl Fn(&State) -> bool) {
    let start = Instant::now();
    while !is_so(&ahead.shared.state()) {
        assert!(start.elapsed() < Duration::from_secs(60), "the threads stand still");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn digests_are_those_of_the_tensors_however_many_threads_hash_them() {
    for shards in [1, 3] {
        let (_dir, checkpoint) = model(shards);
        for threads in [0, 1, 4, 100] {
            let ahead = begin(&checkpoint, threads, u64::MAX);
            assert_eq!((ahead.threads(), names(&ahead).len()), (threads.clamp(1, LARGE), LARGE));
            assert_eq!(ahead.buffer_bytes(), (ahead.threads() * SCAN_BYTES) as u64);
            until(&ahead, |state| hashed(state) == LARGE);
            let mut found = 0;
            for name in checkpoint.names() {
                let Some(digest) = ahead.take(name) else {
                    assert!(checkpoint.shape(name).unwrap().iter().product::<usize>() < 1 << 19, "{name}");
                    continue;
                };
                assert_eq!(digest.unwrap(), checkpoint.digest(name).unwrap(), "{name}");
                assert!(ahead.take(name).is_none(), "{name}");
                found += 1;
            }
            assert_eq!(found, LARGE);
            assert_eq!(ahead.shared.state().ahead, 0);
            ahead.finish().unwrap();
        }
    }
}

/// A reader that waits for a tensor that is being hashed gets its digest; a reader that comes first hashes it itself.
#[test]
fn whoever_reads_a_tensor_gets_its_digest_or_nobody_hashes_it() {
    let (_dir, checkpoint) = model(1);
    for _ in 0..20 {
        let ahead = begin(&checkpoint, 2, u64::MAX);
        for name in names(&ahead) {
            let digest = ahead.take(&name);
            assert!(digest.is_none_or(|digest| digest.unwrap() == checkpoint.digest(&name).unwrap()), "{name}");
        }
        let state = ahead.shared.state();
        assert_eq!((state.ahead, hashed(&state)), (0, 0));
    }
}

#[test]
fn threads_are_no_further_ahead_than_there_is_room() {
    let (_dir, checkpoint) = model(1);
    for mib in [1, 2, 5] {
        let ahead = begin(&checkpoint, 4, mib * MIB);
        for (place, name) in names(&ahead).iter().enumerate() {
            let so_far = (mib as usize).min(LARGE - place);
            until(&ahead, |state| hashed(state) == so_far);
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(hashed(&ahead.shared.state()), so_far, "{name}");
            assert_eq!(ahead.shared.state().ahead, so_far as u64 * MIB, "{name}");
            assert!(ahead.take(name).is_some(), "{name}");
        }
    }
    // A tensor that is larger than the room is left to the reader.
    let ahead = begin(&checkpoint, 4, MIB - 1);
    until(&ahead, |state| state.next == LARGE);
    assert!(names(&ahead).iter().all(|name| ahead.take(name).is_none()));
}

/// Threads that wait for room, and those that are at work, end with whoever had them.
#[test]
fn threads_end_where_nobody_reads_on() {
    let (_dir, checkpoint) = model(1);
    for room in [MIB, u64::MAX] {
        for _ in 0..10 {
            drop(begin(&checkpoint, 3, room));
        }
        let ahead = begin(&checkpoint, 3, room);
        until(&ahead, |state| hashed(state) > 0);
        drop(ahead);
    }
}

#[test]
fn a_file_that_is_cut_off_is_named_with_the_tensor_and_one_that_was_written_to_is_named() {
    let (dir, checkpoint) = model(1);
    let path = dir.path().join("model.safetensors");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let whole = begin(&checkpoint, 2, u64::MAX);
    until(&whole, |state| hashed(state) == LARGE);
    file.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
    let error = whole.finish().unwrap_err().to_string();
    let told = "model.safetensors: was changed while its weights were in use: it was written to";
    assert!(error.contains(told) && !error.contains("bytes"), "{error}");

    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    let ahead = begin(&checkpoint, 2, u64::MAX);
    until(&ahead, |state| hashed(state) == LARGE);
    let names = names(&ahead);
    let digests: Vec<_> = names.iter().map(|name| ahead.take(name).unwrap()).collect();
    assert!(digests[0].is_ok(), "{:?}", digests[0]);
    let error = digests[LARGE - 1].as_ref().unwrap_err();
    let told = error.to_string();
    assert!(told.contains("model.safetensors") && told.contains(&names[LARGE - 1]), "{told}");
    assert!(told.contains("cannot be read (was the file changed?)") && !error.is_usage(), "{told}");
    assert!(ahead.finish().is_err());
}
