//! Download of one file into the cache: it is written under another name, continues an earlier download, and is put in
//! place once its size and hash are right.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::address::Address;
use super::cache::Folder;
use super::client::{Client, Fault, Subject, TRIES, pause};
use super::hash::{BlobName, Hasher};
use super::listing;
use crate::error::{Context, Error, Result};
use crate::files::units::format_bytes;
use crate::report::{status, warning};

const BUFFER_BYTES: usize = 1 << 20;
/// Number of times that others may remove a lock file while it is being locked.
const MAX_LOCKS: usize = 100;
/// A connection that delivered fewer bytes counts as failed.
const PROGRESS_BYTES: u64 = 1 << 20;

/// Downloads a file of a commit and puts it into the snapshot. `progress` gets every byte, also those of an earlier
/// download, and bytes that are discarded again, as a negative number.
pub(super) fn download(
    client: &Client,
    subject: &Subject,
    folder: &Folder,
    commit: &str,
    file: &listing::File,
    progress: &mut dyn FnMut(i64),
) -> Result<()> {
    let address = client.file_address(subject, commit, &file.name)?;
    let (blob, size) = identify(client, subject, &address, file)?;
    let _lock = lock(folder, &blob, &file.name)?;
    let whole = folder.blob(&blob);
    // Another process may have been faster.
    if folder.has(commit, &file.name, Some(size)) {
        progress(size as i64);
        return Ok(());
    }
    if holds(&whole, &blob, size, &file.name) {
        progress(size as i64);
    } else {
        let mut part = Part::open(folder, &blob, size, &file.name)?;
        progress(part.have as i64);
        part.fill(client, subject, &address, progress)?;
        part.finish(&whole)?;
    }
    folder.link(commit, &file.name, &blob)
}

/// True if a blob is there and its bytes match its name: its writer may have been cut off.
fn holds(whole: &Path, blob: &BlobName, size: u64, name: &str) -> bool {
    if !std::fs::metadata(whole).is_ok_and(|found| found.is_file() && found.len() == size) {
        return false;
    }
    let hashed = || -> io::Result<BlobName> {
        let (mut file, mut hasher) = (File::open(whole)?, Hasher::new(blob, size));
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(read) => hasher.update(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    let is_right = hashed().is_ok_and(|found| found == *blob);
    if !is_right {
        status!("{name}: the cache has other bytes under its hash; downloading it again");
    }
    is_right
}

/// Hash and size of a file: from the listing, or from the hub's answer to a request for the file. Refused: a hub that
/// gives neither, so that nothing could be checked.
fn identify(client: &Client, subject: &Subject, address: &Address, file: &listing::File) -> Result<(BlobName, u64)> {
    if let (Some(blob), Some(size)) = (&file.blob, file.size) {
        return Ok((blob.clone(), size));
    }
    let answer = client.get(address, None, subject)?;
    match (file.blob.clone().or(answer.blob), file.size.or(answer.size)) {
        (Some(blob), Some(size)) => Ok((blob, size)),
        _ => Err(Error::Failed(format!(
            "{subject}: the hub gives no size or no hash of {}, by which the file could be checked",
            file.name
        ))),
    }
}

/// Keeps other processes, Hugging Face's own client among them, from writing the blob.
fn lock(folder: &Folder, blob: &BlobName, name: &str) -> Result<File> {
    let path = folder.lock(blob);
    let what = || format!("{}: the lock of a download cannot be taken", path.display());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).context(what)?;
    }
    for _ in 0..MAX_LOCKS {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).context(what)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                status!("{name}: another process downloads it; waiting");
                file.lock().context(what)?;
            }
            Err(TryLockError::Error(error)) => {
                warning!("{}: its file system has no locks ({error}): start no second download", path.display());
                return Ok(file);
            }
        }
        if is_at(&file, &path).context(what)? {
            return Ok(file);
        }
    }
    Err(Error::Failed(format!("{}: is removed again and again while a download is to lock it", path.display())))
}

/// True if a file still has its name: other clients remove a lock file when they are done, and a lock on a removed file
/// protects nothing.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A file that is not whole yet.
struct Part<'a> {
    /// Its name in the repository
    name: &'a str,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    blob: &'a BlobName,
    size: u64,
    have: u64,
    /// Bytes that were there before this process
    earlier: u64,
    /// The hub sends parts of files.
    ranges: bool,
}

impl<'a> Part<'a> {
    /// The beginning that an earlier download left, or an empty file.
    fn open(folder: &Folder, blob: &'a BlobName, size: u64, name: &'a str) -> Result<Self> {
        let path = folder.partial(blob);
        let what = || format!("{}: cannot be written", path.display());
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).context(what)?;
        }
        // No link leads out of the cache, and no pipe makes the process wait.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).create(true).truncate(false).custom_flags(flags).open(&path);
        let file = file.context(what)?;
        let hasher = Hasher::new(blob, size);
        let mut part = Self { name, path, file, hasher, blob, size, have: 0, earlier: 0, ranges: true };
        part.read_earlier()?;
        Ok(part)
    }

    fn cannot_write(&self) -> String {
        format!("{}: cannot be written", self.path.display())
    }

    /// Hashes the bytes that are there; bytes beyond the file's size are discarded.
    fn read_earlier(&mut self) -> Result<()> {
        let what = self.cannot_write();
        let found = self.file.metadata().context(|| what.clone())?;
        if !found.is_file() {
            return Err(Error::Failed(format!("{what}: found something that is not a regular file")));
        }
        if found.len() > self.size {
            return self.restart().map(|_| ());
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = match self.file.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.context(|| what.clone())?,
            };
            if read == 0 {
                break;
            }
            self.hasher.update(&buffer[..read]);
            self.have += read as u64;
        }
        self.earlier = self.have;
        Ok(())
    }

    /// Starts over with an empty file. Returns the number of discarded bytes.
    fn restart(&mut self) -> Result<u64> {
        let what = self.cannot_write();
        self.file.set_len(0).context(|| what.clone())?;
        self.file.seek(SeekFrom::Start(0)).context(|| what)?;
        (self.hasher, self.earlier) = (Hasher::new(self.blob, self.size), 0);
        Ok(std::mem::take(&mut self.have))
    }

    /// Downloads the missing bytes, over as many connections as it takes, and checks the whole.
    fn fill(
        &mut self,
        client: &Client,
        subject: &Subject,
        address: &Address,
        progress: &mut dyn FnMut(i64),
    ) -> Result<()> {
        let mut failures = 0;
        loop {
            let before = self.have;
            match self.append(client, subject, address, progress) {
                Ok(()) if self.is_right() => return Ok(()),
                // The earlier bytes may not have been this file's.
                Ok(()) if self.earlier > 0 => {
                    status!("{}: the rest of an earlier download belongs to another file; starting over", self.name);
                    let thrown = self.restart()?;
                    progress(-(thrown as i64));
                }
                Ok(()) => return Err(self.wrong()),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Broken(why)) => {
                    failures = if self.have >= before + PROGRESS_BYTES { 1 } else { failures + 1 };
                    if failures == TRIES {
                        return Err(Error::Failed(format!(
                            "{}: {why}; {} of {} are kept, and the next start resumes there",
                            self.name,
                            format_bytes(self.have),
                            format_bytes(self.size)
                        )));
                    }
                    status!("{}: {why}; going on after {}", self.name, format_bytes(self.have));
                    std::thread::sleep(pause(failures));
                }
            }
        }
    }

    /// One connection: appends its bytes.
    fn append(
        &mut self,
        client: &Client,
        subject: &Subject,
        address: &Address,
        progress: &mut dyn FnMut(i64),
    ) -> Result<(), Fault> {
        if self.have == self.size {
            return Ok(());
        }
        let from = Some(self.have).filter(|have| *have > 0 && self.ranges);
        let mut answer = client.get(address, from, subject)?;
        let continues = answer.status == 206 && answer.range().is_some_and(|(first, _)| Some(first) == from);
        if !continues && self.have > 0 {
            progress(-(self.restart()? as i64));
        }
        if answer.status == 416 || (answer.status == 206 && !continues) {
            self.ranges = false;
            return Err(Fault::Broken(format!("{} has no such part of the file", address.host())));
        }
        let whole = match answer.status {
            206 => answer.range().and_then(|(_, size)| size),
            _ => answer.length(),
        };
        if let Some(found) = whole.filter(|found| *found != self.size) {
            return Err(self.of_size(found).into());
        }
        let mut body = answer.body.as_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = match body.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Broken(client.cause(&error))),
                Ok(read) => read,
            };
            if read == 0 {
                break;
            }
            if self.have + read as u64 > self.size {
                let found = self.have + read as u64;
                self.restart()?;
                return Err(self.of_size(found).into());
            }
            self.file.write_all(&buffer[..read]).context(|| self.cannot_write())?;
            self.hasher.update(&buffer[..read]);
            self.have += read as u64;
            progress(read as i64);
        }
        match self.have == self.size {
            true => Ok(()),
            false => Err(Fault::Broken("the connection was cut".to_owned())),
        }
    }

    fn of_size(&self, found: u64) -> Error {
        Error::Failed(format!(
            "{}: the hub sends {found} bytes, its listing says {}: nothing of it is used; try again later, or another \
             mirror (HF_ENDPOINT)",
            self.name, self.size
        ))
    }

    /// True if the bytes have the hash that names them.
    fn is_right(&mut self) -> bool {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(self.blob, self.size));
        hasher.finish() == *self.blob
    }

    fn wrong(&self) -> Error {
        // Wrong bytes would stay wrong in every later attempt.
        let removed = std::fs::remove_file(&self.path);
        let kept = if removed.is_err() { format!(" (remove {})", self.path.display()) } else { String::new() };
        Error::Failed(format!(
            "{}: the hub sends other bytes than its listing names, which has the {}: nothing of it is used{kept}; try \
             again, or another mirror (HF_ENDPOINT)",
            self.name, self.blob
        ))
    }

    /// Puts the whole file in its place.
    fn finish(self, whole: &Path) -> Result<()> {
        let put = || {
            self.file.sync_all()?;
            std::fs::rename(&self.path, whole)
        };
        put().context(|| format!("{}: cannot be put in place", whole.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_counts_by_its_bytes_and_a_lock_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        let mut hasher = Hasher::new(&BlobName::Git(String::new()), 6);
        hasher.update(b"hello\n");
        let blob = hasher.finish();
        for (bytes, expected) in [(&b"hello\n"[..], true), (b"hellO\n", false), (b"hello", false), (b"", false)] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(holds(&path, &blob, 6, "x"), expected, "{bytes:?}");
        }
        assert!(!holds(dir.path(), &blob, 6, "x") && !holds(&dir.path().join("gone"), &blob, 6, "x"));
        let file = File::open(&path).unwrap();
        assert!(is_at(&file, &path).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(!is_at(&file, &path).unwrap(), "it is gone");
        std::fs::write(&path, "another").unwrap();
        assert!(!is_at(&file, &path).unwrap(), "another one has its name");
    }
}
