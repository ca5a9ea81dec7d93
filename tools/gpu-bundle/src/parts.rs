//! Executables in parts, of which those that several executables have travel once. The kernels' code for GPUs is most
//! of each of them, nvcc has compressed it, and in all of them it is the same bytes: for every `.cu` file a piece, its
//! fat binary.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use tools_support::command::check;

/// The beginning of a fat binary: its magic number, version 1, and 16, the bytes of this header. Its last 8 bytes are
/// the number of bytes that follow it.
const HEAD: [u8; 8] = [0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0];
const HEADER: usize = 16;
/// A fat binary begins at a multiple of this.
const ALIGNMENT: usize = 8;

/// Places of the fat binaries in an executable, in their order.
fn fat_binaries(executable: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(header) = executable.get(at..at + HEADER) {
        let end = header.strip_prefix(&HEAD).and_then(|length| {
            let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
            (at + HEADER).checked_add(length).filter(|&end| end <= executable.len())
        });
        at = match end {
            Some(end) => {
                found.push(at..end);
                end.next_multiple_of(ALIGNMENT)
            }
            None => at + ALIGNMENT,
        };
    }
    found
}

/// The parts of all executables of a bundle.
pub struct Parts {
    bundle: PathBuf,
    names: HashMap<Vec<u8>, String>,
}

impl Parts {
    /// None yet, of the bundle in this folder. Errors: folders cannot be made.
    pub fn new(bundle: &Path) -> Result<Self> {
        for name in ["bin", "parts"] {
            let dir = bundle.join(name);
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(Self { bundle: bundle.to_owned(), names: HashMap::new() })
    }

    /// Writes `bin/NAME.parts`, the list from which `run` makes the executable, and the parts that are new.
    pub fn pack(&mut self, executable: &[u8], name: &str) -> Result<()> {
        let shared = fat_binaries(executable);
        let inner = shared.iter().flat_map(|place| [place.start, place.end]);
        let cuts: Vec<usize> = std::iter::once(0).chain(inner).chain([executable.len()]).collect();
        let mut list = String::new();
        for cut in cuts.windows(2).filter(|cut| cut[0] < cut[1]) {
            list.push_str(&self.name_of(&executable[cut[0]..cut[1]])?);
            list.push('\n');
        }
        let path = self.bundle.join("bin").join(format!("{name}.parts"));
        fs::write(&path, list).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The name of the file that has these bytes, compressed.
    fn name_of(&mut self, part: &[u8]) -> Result<String> {
        if let Some(name) = self.names.get(part) {
            return Ok(name.clone());
        }
        let number = self.names.len().to_string();
        let path = self.bundle.join("parts").join(&number);
        fs::write(&path, part).with_context(|| format!("cannot write {}", path.display()))?;
        let mut gzip = Command::new("gzip");
        gzip.args(["--force", "--best", "--no-name"]).arg(&path);
        check(gzip).context("gzip makes the executables small")?;
        let name = format!("{number}.gz");
        self.names.insert(part.to_owned(), name.clone());
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fat_binary(value: u8, length: usize) -> Vec<u8> {
        [&HEAD[..], &(length as u64).to_le_bytes(), &vec![value; length]].concat()
    }

    #[test]
    fn fat_binaries_are_found_where_they_begin_and_end() {
        let (one, other) = (fat_binary(1, 24), fat_binary(2, 16));
        let executable = [&[7; 16][..], &one, &other, &[8; 24]].concat();
        assert_eq!(fat_binaries(&executable), [16..56, 56..88]);
        // One that would end after the file is none, nor is one at another place.
        assert!(fat_binaries(&executable[..50]).is_empty());
        assert!(fat_binaries(&executable[4..30]).is_empty());
        assert!(fat_binaries(&[&HEAD[..], &[0xff; 8]].concat()).is_empty() && fat_binaries(&[]).is_empty());
    }

    #[test]
    fn what_two_executables_have_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut parts = Parts::new(dir.path()).unwrap();
        let shared = fat_binary(1, 24);
        parts.pack(&[&[7; 16][..], &shared, b"one"].concat(), "one").unwrap();
        parts.pack(&[&shared[..], &fat_binary(3, 8), b"other"].concat(), "other").unwrap();
        let list = |name: &str| fs::read_to_string(dir.path().join("bin").join(name)).unwrap();
        assert_eq!(list("one.parts"), "0.gz\n1.gz\n2.gz\n");
        assert_eq!(list("other.parts"), "1.gz\n3.gz\n4.gz\n");
        assert_eq!(fs::read_dir(dir.path().join("parts")).unwrap().count(), 5);
    }
}
