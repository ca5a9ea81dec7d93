//! Frames that go over a connection between two ranks: a header of fixed length, a label and bytes.

use std::io::{self, ErrorKind, Read, Write};

/// First bytes of every frame. A peer without them is no process of this program.
const MAGIC: [u8; 4] = *b"QLR1";
const HEADER: usize = 32;
const MAX_LABEL: usize = 1 << 10;
/// Bytes that are read or written between two signs of life
const PIECE: usize = 1 << 18;

/// Meaning of a frame
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Request to join, or its answer
    Join = 1,
    /// Part of an operation
    Data = 2,
    /// A sign of life
    Alive = 3,
    /// Reason why the run ends
    Abort = 4,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frame {
    pub kind: Kind,
    /// Number of the operation
    pub number: u64,
    /// Subject of the operation
    pub label: String,
    pub bytes: Vec<u8>,
}

/// Writes a frame whose bytes are those of all `parts`.
pub(super) fn write(to: &mut impl Write, kind: Kind, number: u64, label: &str, parts: &[&[u8]]) -> io::Result<()> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&(kind as u32).to_le_bytes());
    header[8..16].copy_from_slice(&number.to_le_bytes());
    header[16..24].copy_from_slice(&(length as u64).to_le_bytes());
    header[24..].copy_from_slice(&(label.len() as u64).to_le_bytes());
    // One packet for a small frame.
    let mut start = [&header[..], label.as_bytes()].concat();
    let small = length <= PIECE;
    if small {
        start.extend(parts.iter().copied().flatten());
    }
    to.write_all(&start)?;
    if !small {
        parts.iter().flat_map(|part| part.chunks(PIECE)).try_for_each(|piece| to.write_all(piece))?;
    }
    to.flush()
}

/// Reads a frame of at most `limit` bytes; `heard` is called whenever some of it arrived.
pub(super) fn read(from: &mut impl Read, limit: u64, heard: &dyn Fn()) -> io::Result<Frame> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    heard();
    let number = |at: usize| header[at..at + 8].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    let invalid = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
    if header[..4] != MAGIC {
        return Err(invalid("found bytes that are not of this program"));
    }
    let kinds = [Kind::Join, Kind::Data, Kind::Alive, Kind::Abort];
    let kind = kinds.into_iter().find(|kind| header[4..8] == (*kind as u32).to_le_bytes());
    let kind = kind.ok_or_else(|| invalid("found a message of an unknown kind"))?;
    let (length, label_length) = (number(16), number(24));
    if length > limit || label_length > MAX_LABEL as u64 {
        return Err(invalid("found a message that is too long"));
    }
    let mut label = vec![0; label_length as usize];
    from.read_exact(&mut label)?;
    let label = String::from_utf8(label).map_err(|_| invalid("found a message without a readable name"))?;
    let mut bytes = Vec::new();
    // A length is believed as far as bytes arrive.
    while (bytes.len() as u64) < length {
        let start = bytes.len();
        let piece = (length - start as u64).min(PIECE as u64) as usize;
        bytes.resize(start + piece, 0);
        from.read_exact(&mut bytes[start..])?;
        heard();
    }
    Ok(Frame { kind, number: number(8), label, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(bytes: &[u8]) -> io::Result<Frame> {
        read(&mut &bytes[..], 1 << 20, &|| ())
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        for length in [0, 1, PIECE, PIECE + 1, 3 * PIECE] {
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let (one, other) = bytes.split_at(length / 3);
            let mut wire = Vec::new();
            write(&mut wire, Kind::Data, 7, "gradients", &[one, other]).unwrap();
            let frame = Frame { kind: Kind::Data, number: 7, label: "gradients".to_owned(), bytes };
            assert_eq!(read_all(&wire).unwrap(), frame);
            for cut in [0, 3, HEADER - 1, HEADER + 2, wire.len() - 1] {
                assert!(read_all(&wire[..cut.min(wire.len() - 1)]).is_err(), "{cut}");
            }
        }
    }

    #[test]
    fn bytes_of_another_program_are_told_from_frames() {
        let mut wire = Vec::new();
        write(&mut wire, Kind::Alive, 0, "", &[]).unwrap();
        for (at, value) in [(0, b'G'), (3, b'2'), (4, 9), (20, 1), (28, 1)] {
            let mut other = wire.clone();
            other[at] = value;
            assert_eq!(read_all(&other).unwrap_err().kind(), ErrorKind::InvalidData, "byte {at}");
        }
        assert!(read_all(b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\n\r\n").is_err());
    }
}
