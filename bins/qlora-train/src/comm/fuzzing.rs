//! Entry points for the fuzz targets to the code that reads the bytes of other ranks.

use super::failure::Failure;
use super::tcp::{packed, unpacked};
use super::wire::{self, Kind};
use super::{link, rendezvous};

/// Reads frames one after the other. Each must be written back as it was read, which checks all its parts.
pub fn frames(bytes: &[u8]) -> usize {
    let (mut rest, mut count) = (bytes, 0);
    loop {
        let begun = rest;
        let Ok(frame) = wire::read(&mut rest, link::MAX_MESSAGE, &|| ()) else { return count };
        let mut again = Vec::new();
        let (one, other) = frame.bytes.split_at(frame.bytes.len() / 2);
        // Memory takes whatever is written to it.
        let _ = wire::write(&mut again, frame.kind, frame.number, &frame.label, &[one, other]);
        assert_eq!(again, begun[..begun.len() - rest.len()]);
        if frame.kind == Kind::Abort
            && let Ok(failure) = serde_json::from_slice::<Failure>(&frame.bytes)
        {
            assert_eq!(failure.error().to_string(), failure.message);
        }
        count += 1;
    }
}

/// Lets processes join rank 0 of four, each with its introduction on a line, and reads the answer as the others do.
/// Returns the number of processes that were accepted.
pub fn meeting(lines: &[u8]) -> usize {
    let mut words = Vec::new();
    for line in lines.split(|&byte| byte == b'\n') {
        let _ = wire::write(&mut words, Kind::Join, 0, "", &[line]);
        let _ = rendezvous::welcomed(line);
    }
    // The bytes without the frames, too.
    let _ = rendezvous::taken(lines);
    let taken = rendezvous::taken(&words);
    assert!(taken < 4);
    taken
}

/// The bytes that each of `ranks` gave, as rank 0 sends them on.
pub fn gathered(bytes: &[u8], ranks: usize) -> Option<Vec<Vec<u8>>> {
    let all = unpacked(bytes, ranks).ok()?;
    assert!(bytes.starts_with(&packed(&all)));
    Some(all)
}
