//! A tensor in pieces that threads read ahead of whoever takes them.

use super::{Checkpoint, StoredTensor};
use crate::error::{Context, Error, Result};
use crate::files::tensor::{HostTensor, PIECE, WeightSource};
use std::sync::mpsc::sync_channel;

/// Threads that read, pieces in turn: one that copies from the system's cache of files is slower than a fast disk.
const READERS: usize = 2;
/// Pieces of each that wait to be taken.
const AHEAD: usize = 2;

impl Checkpoint {
    /// [`read`](Self::read) in pieces of [`PIECE`] elements, of which the last may have fewer: `take` gets them in
    /// order. An error of it ends the reading.
    pub fn read_pieces(&self, name: &str, take: &mut dyn FnMut(HostTensor) -> Result<()>) -> Result<()> {
        let StoredTensor::Dense(file, info) = self.find(name)? else {
            return take(self.read_weight(name).map(WeightSource::into_tensor)?);
        };
        let (file, len) = (&self.files[*file], info.shape.iter().product::<usize>());
        let readers = READERS.min(len.div_ceil(PIECE));
        std::thread::scope(|scope| {
            let mut pieces = Vec::with_capacity(readers);
            for reader in 0..readers {
                let (sender, read) = sync_channel(AHEAD);
                pieces.push(read);
                let run = move || {
                    for first in (reader * PIECE..len).step_by(readers * PIECE) {
                        let piece = file.read_range(name, info, first..len.min(first + PIECE), |_| ());
                        let is_last = piece.is_err();
                        // Nobody takes it where the piece before was refused.
                        if sender.send(piece).is_err() || is_last {
                            break;
                        }
                    }
                };
                let thread = std::thread::Builder::new().name("read-weights".to_owned());
                thread
                    .spawn_scoped(scope, run)
                    .context(|| "a thread that reads weights cannot be started".to_owned())?;
            }
            for number in 0..len.div_ceil(PIECE) {
                let piece = pieces[number % readers].recv();
                take(piece.map_err(|_| Error::Failed(format!("tensor `{name}`: was not read to its end")))??)?;
            }
            Ok(())
        })
    }
}
