//! A directory held open. Operations on names stay inside it, whatever becomes of its path, and follow no link in it:
//! `openat` and its kin, on a handle.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags, linkat, mkdirat, openat, renameat, statat,
    statx, unlinkat,
};
use rustix::io::{Errno, retry_on_intr};

/// Entries below each other at most: what this program writes has two levels.
const MAX_DEPTH: usize = 32;

/// The type of a directory entry; a link is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    /// A link, a pipe, a device
    Other,
}

impl Kind {
    fn of(found: FileType) -> Self {
        match found {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            _ => Kind::Other,
        }
    }
}

/// A handle on a directory, and the path it was opened by.
#[derive(Clone, Debug)]
pub(crate) struct Dir {
    handle: Arc<File>,
    path: PathBuf,
}

impl Dir {
    /// Opens the directory that `path` names, through links: the path is the user's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = retry_on_intr(|| openat(CWD, here, flags, Mode::empty()))?;
        Ok(Self { handle: Arc::new(handle.into()), path: path.to_owned() })
    }

    /// [`open`](Self::open), which creates the directory if it does not exist.
    pub fn create(path: &Path) -> io::Result<Self> {
        uninterrupted(|| std::fs::create_dir_all(path))?;
        Self::open(path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn handle(&self) -> &File {
        &self.handle
    }

    /// The path of a name in it, for messages.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// True if the path still leads to this directory: device and inode are unchanged.
    pub fn is_in_place(&self) -> io::Result<bool> {
        let here = if self.path.as_os_str().is_empty() { Path::new(".") } else { &self.path };
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let held = identity(uninterrupted(|| self.handle.metadata())?);
        match uninterrupted(|| std::fs::metadata(here)) {
            Ok(found) => Ok(identity(found) == held),
            Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// None: there is no such name.
    pub fn kind(&self, name: impl AsRef<OsStr>) -> io::Result<Option<Kind>> {
        match retry_on_intr(|| statat(&self.handle, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(found) => Ok(Some(Kind::of(FileType::from_raw_mode(found.st_mode)))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// True if the name stands for this opened file.
    pub fn is_file(&self, name: impl AsRef<OsStr>, file: &File) -> bool {
        let found = retry_on_intr(|| statat(&self.handle, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW));
        match (found, uninterrupted(|| file.metadata())) {
            (Ok(found), Ok(held)) => (found.st_dev, found.st_ino) == (held.dev(), held.ino()),
            _ => false,
        }
    }

    /// The names in it, sorted.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let read = || {
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::read_from(&self.handle)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(OsString::from_vec(name));
                }
            }
            Ok(names)
        };
        let mut names = retry_on_intr(read)?;
        names.sort();
        Ok(names)
    }

    /// A directory in it. Failed: a link.
    pub fn sub(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = retry_on_intr(|| openat(&self.handle, name.as_ref(), flags, Mode::empty()))?;
        Ok(Self { handle: Arc::new(handle.into()), path: self.path.join(name.as_ref()) })
    }

    /// Makes a directory in it. Failed: the name is taken.
    pub fn create_sub(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        retry_on_intr(|| mkdirat(&self.handle, name.as_ref(), Mode::from_raw_mode(0o777)))?;
        self.sub(name)
    }

    /// Makes a file to write. Failed: the name is taken, by a link too.
    pub fn create_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_with(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
    }

    /// Opens a file to read.
    pub fn open_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        // A pipe would make the process wait for a writer.
        self.open_with(name, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    /// Opens a file to read and to lock. NFS locks a file for one process alone only where that may write it.
    pub fn open_to_lock(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let open = |flags: OFlags| self.open_with(name.as_ref(), flags | OFlags::NONBLOCK);
        open(OFlags::RDWR).or_else(|_| open(OFlags::RDONLY))
    }

    /// Opens a file, which is made if need be, to write behind what it holds.
    pub fn append_to(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_with(name, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NONBLOCK)
    }

    fn open_with(&self, name: impl AsRef<OsStr>, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The mode of an ordinary new file: the umask decides who may read it.
        let open = || openat(&self.handle, name.as_ref(), flags, Mode::from_raw_mode(0o666));
        let file = File::from(retry_on_intr(open)?);
        if !uninterrupted(|| file.metadata())?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(file)
    }

    /// Makes a file without a name, which is gone if the process ends before [`link`](Self::link).
    pub fn create_nameless(&self) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        Ok(retry_on_intr(|| openat(&self.handle, ".", flags, Mode::from_raw_mode(0o666)))?.into())
    }

    /// Gives a nameless file its name. Failed: the name is taken.
    pub fn link(&self, file: &File, name: impl AsRef<OsStr>) -> io::Result<()> {
        let magic = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link = || linkat(CWD, &*magic, &self.handle, name.as_ref(), AtFlags::SYMLINK_FOLLOW);
        Ok(retry_on_intr(link)?)
    }

    /// Gives a file in it a second name. Failed: the name is taken, or the file system has one name for each file.
    pub fn link_name(&self, name: impl AsRef<OsStr>, second: impl AsRef<OsStr>) -> io::Result<()> {
        let link = || linkat(&self.handle, name.as_ref(), &self.handle, second.as_ref(), AtFlags::empty());
        Ok(retry_on_intr(link)?)
    }

    /// Renames within a file system; a file, a link or an empty directory of the new name is replaced.
    pub fn rename(&self, name: impl AsRef<OsStr>, to: &Dir, new: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(retry_on_intr(|| renameat(&self.handle, name.as_ref(), &to.handle, new.as_ref()))?)
    }

    /// Removes a file or a link. A missing name is no failure.
    pub fn remove_file(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        absent(retry_on_intr(|| unlinkat(&self.handle, name.as_ref(), AtFlags::empty())))
    }

    /// Removes an empty directory. A missing name is no failure.
    pub fn remove_empty(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        absent(retry_on_intr(|| unlinkat(&self.handle, name.as_ref(), AtFlags::REMOVEDIR)))
    }

    /// True if another file system, or another part of one, is mounted there: its content belongs elsewhere. Kernels
    /// before 5.8 cannot tell; that counts as no.
    pub fn is_mount(&self, name: impl AsRef<OsStr>) -> bool {
        let found =
            retry_on_intr(|| statx(&self.handle, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()));
        found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }

    /// Removes a name with everything below it; links are removed, their targets are not. Failed: a directory that is
    /// mounted there, of which nothing is removed. `removed` is called after each.
    pub fn remove_all(&self, name: impl AsRef<OsStr>, removed: &mut dyn FnMut()) -> io::Result<()> {
        self.remove_below(name.as_ref(), MAX_DEPTH, removed)
    }

    fn remove_below(&self, name: &OsStr, depth: usize, removed: &mut dyn FnMut()) -> io::Result<()> {
        match self.kind(name)? {
            None => return Ok(()),
            Some(Kind::Directory) => {
                let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("directories too deep"))?;
                if self.is_mount(name) {
                    let why = format!("{} is mounted there: unmount it first", self.join(name).display());
                    return Err(io::Error::new(ErrorKind::ResourceBusy, why));
                }
                let sub = self.sub(name)?;
                sub.names()?.iter().try_for_each(|below| sub.remove_below(below, depth, removed))?;
                self.remove_empty(name)?;
            }
            Some(_) => self.remove_file(name)?,
        }
        removed();
        Ok(())
    }

    /// Makes renames in it durable.
    pub fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

/// Retries a call of the standard library that a signal interrupted.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn absent(done: rustix::io::Result<()>) -> io::Result<()> {
    match done {
        Err(Errno::NOENT) => Ok(()),
        done => Ok(done?),
    }
}

/// Sixteen random hexadecimal digits.
pub(crate) fn unique() -> String {
    use std::hash::{BuildHasher, Hasher};
    // The keys of the hash are random for each process, and differ from one to the next.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests;
