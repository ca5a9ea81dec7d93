//! Event files of TensorBoard: records of TFRecord (length, masked CRC-32C of the length, data, masked CRC-32C of the
//! data), each an `Event` in the wire format of protocol buffers.

use super::records::LogEntry;
use crate::files::dir::Dir;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Suffix of our files, which distinguishes them from others'.
pub const SUFFIX: &str = ".qlora-train";
const PREFIX: &str = "events.out.tfevents.";

/// True if a file of this name is one of ours.
pub fn is_own(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// An event file that grows.
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// A new file in `dir`. When a run resumes, TensorBoard drops the values of earlier files for steps after `step`.
    pub(crate) fn create(dir: &Dir, step: u64) -> io::Result<Self> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
        let (now, process) = (now(), std::process::id());
        let name = format!("{PREFIX}{:010}.{host}.{process}.{:06}{SUFFIX}", now as u64, (now.fract() * 1e6) as u64);
        let mut events = Self { file: dir.create_file(&name)?, path: dir.join(name) };
        events.write(&event(0, &[(3, Field::Bytes(b"brain.Event:2"))]))?;
        // SessionLog { status: START }
        let start = message(&[(1, Field::Varint(1))]);
        events.write(&event(step + 1, &[(7, Field::Bytes(&start))]))?;
        Ok(events)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The figures of an entry, as transformers names them.
    pub fn log(&mut self, entry: &LogEntry) -> io::Result<()> {
        let scalars = scalars(entry);
        if scalars.is_empty() {
            return Ok(());
        }
        let values: Vec<Vec<u8>> = scalars
            .iter()
            .map(|(tag, value)| message(&[(1, Field::Bytes(tag.as_bytes())), (2, Field::Float(*value as f32))]))
            .collect();
        let summary: Vec<(u64, Field)> = values.iter().map(|value| (1, Field::Bytes(value))).collect();
        self.write(&event(entry.step, &[(5, Field::Bytes(&message(&summary)))]))
    }

    /// One record in one call, so that a process that is killed leaves whole ones.
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let parts = [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()];
        self.file.write_all(&parts.concat())
    }
}

/// Tags and values of an entry.
fn scalars(entry: &LogEntry) -> Vec<(String, f64)> {
    let train = [
        ("train/loss", entry.loss),
        ("train/grad_norm", entry.grad_norm),
        ("train/grad_norm_a", entry.grad_norm_a),
        ("train/grad_norm_b", entry.grad_norm_b),
        ("train/learning_rate", entry.learning_rate),
        ("train/learning_rate_b", entry.learning_rate_b.filter(|b| Some(*b) != entry.learning_rate)),
        ("train/tokens_per_second", entry.tokens_per_second),
        ("train/epoch", entry.loss.map(|_| entry.epoch)),
        ("eval/loss", entry.eval_loss),
        ("eval/exact_match", entry.eval_exact_match),
        ("eval/contains", entry.eval_contains),
        ("eval/match", entry.eval_match),
        ("eval/rouge_l", entry.eval_rouge_l),
    ];
    let mut scalars: Vec<(String, f64)> =
        train.into_iter().filter_map(|(tag, value)| Some((tag.to_owned(), value?))).collect();
    for (kind, parts) in [("file", &entry.eval_file_losses), ("task", &entry.eval_task_losses)] {
        let parts = parts.iter().flatten();
        scalars.extend(parts.map(|(name, loss)| (format!("eval/loss/{kind}/{name}"), *loss)));
    }
    scalars
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

enum Field<'a> {
    Varint(u64),
    Double(f64),
    Float(f32),
    Bytes(&'a [u8]),
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn message(fields: &[(u64, Field)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, field) in fields {
        let kind = match field {
            Field::Varint(_) => 0,
            Field::Double(_) => 1,
            Field::Bytes(_) => 2,
            Field::Float(_) => 5,
        };
        varint(number << 3 | kind, &mut bytes);
        match field {
            Field::Varint(value) => varint(*value, &mut bytes),
            Field::Double(value) => bytes.extend(value.to_le_bytes()),
            Field::Float(value) => bytes.extend(value.to_le_bytes()),
            Field::Bytes(data) => {
                varint(data.len() as u64, &mut bytes);
                bytes.extend(*data);
            }
        }
    }
    bytes
}

/// An `Event` with the present time, the step, and `what` as its content.
fn event(step: u64, what: &[(u64, Field)]) -> Vec<u8> {
    let mut bytes = message(&[(1, Field::Double(now())), (2, Field::Varint(step))]);
    bytes.extend(message(what));
    bytes
}

/// The CRC of Castagnoli.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests;
