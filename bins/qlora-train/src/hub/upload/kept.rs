//! The parts of a large file that the hub's store has taken, kept for a push that goes on after one that ended.
//!
//! The hub gives another place whenever it is asked, and the store puts together only parts of one place. So its
//! addresses are kept until the file is whole there. They are signed, anybody may put parts there, and only their owner
//! may read the file. Its first line is JSON; each line after it is the name (ETag) of a part, from the first on.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

/// Far above the addresses and names of as many parts as a store takes.
const MAX_BYTES: u64 = 64 << 20;

/// An upload in parts, as the hub gave a place for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// The hub, and the repository that the place is for
    pub hub: String,
    pub repository: String,
    /// Hash and bytes of the file, and bytes of a part
    pub sha256: String,
    pub size: u64,
    pub part: u64,
    /// Where each part goes
    pub places: Vec<String>,
    /// Where it is said that all are there
    pub complete: String,
    /// Names of the parts that were taken, from the first on
    #[serde(skip)]
    pub taken: Vec<String>,
}

impl Begun {
    /// Bytes of the parts that were taken.
    pub fn taken_bytes(&self) -> u64 {
        (self.taken.len() as u64).saturating_mul(self.part).min(self.size)
    }

    fn is_of_the_file_of(&self, other: &Self) -> bool {
        let of = |begun: &Self| (begun.hub.clone(), begun.repository.clone(), begun.sha256.clone(), begun.size);
        let parts = self.size.checked_div(self.part).map(|_| self.size.div_ceil(self.part));
        of(self) == of(other) && parts == Some(self.places.len() as u64) && self.taken.len() <= self.places.len()
    }

    /// Whether its store calls both one upload, wherever their addresses are signed anew.
    fn is_the_upload_of(&self, other: &Self) -> bool {
        let id = |begun: &Self| {
            let (path, query) = begun.places.first()?.split_once('?')?;
            let id = query.split('&').find_map(|pair| pair.strip_prefix("uploadId="))?;
            Some((path.to_owned(), id.to_owned()))
        };
        self.part == other.part && id(self).is_some() && id(self) == id(other)
    }
}

/// How an upload begins.
#[derive(Debug, PartialEq)]
pub(super) enum Beginning {
    New,
    /// Behind the parts of an earlier one
    GoesOn,
    /// Parts of an earlier one were taken, and are of no use.
    Again,
}

/// What is kept of the upload of one file. It is nobody else's as long as this lives.
#[derive(Default)]
pub(super) struct Kept {
    /// None: nothing can be kept, or another process sends the file too.
    file: Option<(PathBuf, File)>,
    begun: Option<Begun>,
    is_refused: bool,
}

impl Kept {
    /// That of a file, by its hash. What cannot be kept is sent again, which is no reason to fail.
    pub fn open(dir: Option<&Path>, sha256: &str) -> Self {
        let open = || -> io::Result<(PathBuf, File)> {
            let dir = dir.ok_or(ErrorKind::NotFound)?;
            std::fs::create_dir_all(dir)?;
            let path = dir.join(sha256);
            // No link leads elsewhere, and no pipe makes the process wait.
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(0o600).custom_flags(flags);
            let file = options.open(&path)?;
            if !file.metadata()?.is_file() || file.try_lock().is_err() {
                return Err(ErrorKind::WouldBlock.into());
            }
            Ok((path, file))
        };
        let mut kept = Self { file: open().ok(), ..Self::default() };
        kept.begun = kept.read();
        kept
    }

    fn read(&mut self) -> Option<Begun> {
        let (_, file) = self.file.as_mut()?;
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        let (place, names) = text.split_once('\n')?;
        let mut begun: Begun = serde_json::from_str(place).ok()?;
        // A line without an end was not written whole.
        begun.taken =
            names.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect();
        Some(begun)
    }

    /// The upload that is gone on with, where the hub gives this place for one.
    pub fn begin(&mut self, place: Begun) -> (Begun, Beginning) {
        let earlier =
            self.begun.take().filter(|earlier| earlier.is_of_the_file_of(&place) && !earlier.taken.is_empty());
        let (begun, beginning) = match earlier {
            Some(earlier) if earlier.is_the_upload_of(&place) => {
                (Begun { taken: earlier.taken, ..place }, Beginning::GoesOn)
            }
            Some(earlier) if !self.is_refused => (earlier, Beginning::GoesOn),
            Some(_) => (place, Beginning::Again),
            None => (place, Beginning::New),
        };
        self.is_refused = false;
        let mut lines = serde_json::to_string(&begun).unwrap_or_default() + "\n";
        begun.taken.iter().for_each(|name| lines += &format!("{name}\n"));
        self.clear();
        self.write(&lines);
        self.begun = Some(begun.clone());
        (begun, beginning)
    }

    /// The next part was taken, under this name.
    pub fn take(&mut self, name: &str) {
        self.write(&format!("{name}\n"));
        if let Some(begun) = &mut self.begun {
            begun.taken.push(name.to_owned());
        }
    }

    /// The store does not take what comes next.
    pub fn refuse(&mut self) {
        self.is_refused = true;
        // All parts are there, and are not the file.
        self.begun.take_if(|begun| begun.taken.len() == begun.places.len());
    }

    /// Nothing of it is needed any more.
    pub fn forget(&mut self) {
        self.begun = None;
        if let Some((path, _)) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Removes what is kept of a file that the hub has whole.
    pub fn remove(dir: Option<&Path>, sha256: &str) {
        let _ = dir.map(|dir| std::fs::remove_file(dir.join(sha256)));
    }

    fn clear(&mut self) {
        if self.file.as_ref().is_some_and(|(_, file)| file.set_len(0).is_err()) {
            self.file = None;
        }
    }

    /// Half a line would be read as none, and what follows it as something else.
    fn write(&mut self, text: &str) {
        if self.file.as_mut().is_some_and(|(_, file)| file.write_all(text.as_bytes()).is_err()) {
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(id: u32, signature: &str) -> Begun {
        let places = (1..=3).map(|part| format!("https://s/o?part={part}&uploadId={id}&x={signature}")).collect();
        let texts = ["https://hub", "org/mine", "ab"].map(str::to_owned);
        let [hub, repository, sha256] = texts;
        let (complete, taken) = (format!("https://hub/complete?{id}&{signature}"), Vec::new());
        Begun { hub, repository, sha256, size: 5, part: 2, places, complete, taken }
    }

    #[test]
    fn an_upload_goes_on_until_its_store_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Kept::open(Some(dir.path()), "ab");
        let mut kept = open();
        assert_eq!(kept.begin(place(1, "a")), (place(1, "a"), Beginning::New));
        kept.take("\"one\"");
        // Another process that sends the same file keeps nothing.
        assert!(open().file.is_none());
        drop(kept);
        let with_one = |place: Begun| Begun { taken: vec!["\"one\"".to_owned()], ..place };
        let (begun, beginning) = open().begin(place(2, "b"));
        assert_eq!((&begun, beginning), (&with_one(place(1, "a")), Beginning::GoesOn));
        assert_eq!(begun.taken_bytes(), 2);
        // One upload with addresses that are signed anew
        let mut kept = open();
        assert_eq!(kept.begin(place(1, "c")), (with_one(place(1, "c")), Beginning::GoesOn));
        kept.refuse();
        assert_eq!(kept.begin(place(1, "d")), (with_one(place(1, "d")), Beginning::GoesOn));
        kept.refuse();
        assert_eq!(kept.begin(place(2, "e")), (place(2, "e"), Beginning::Again));
        // Parts that are all there and do not make the file are of no use.
        ["1", "2", "3"].iter().for_each(|name| kept.take(name));
        kept.refuse();
        assert_eq!(kept.begin(place(2, "f")), (place(2, "f"), Beginning::New));
        kept.forget();
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }

    #[test]
    fn what_is_not_of_the_file_or_not_whole_is_not_gone_on_with() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ab");
        let line = serde_json::to_string(&place(1, "a")).unwrap();
        let begins = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Kept::open(Some(dir.path()), "ab").begin(place(2, "b"))
        };
        // The second name was not written whole.
        let (begun, beginning) = begins(&format!("{line}\none\ntw"));
        assert_eq!((begun.taken, beginning), (vec!["one".to_owned()], Beginning::GoesOn));
        for text in [
            String::new(),
            "{}\n".to_owned(),
            line.clone(),
            format!("{line}\none\ntwo\nthree\nfour\n"),
            format!("{}\none\n", line.replace("org/mine", "org/yours")),
            format!("{}\none\n", line.replace("\"size\":5", "\"size\":50")),
            format!("{}\none\n", line.replace("\"part\":2", "\"part\":0")),
        ] {
            assert_eq!(begins(&text), (place(2, "b"), Beginning::New), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        Kept::open(Some(dir.path()), "ab").begin(place(1, "a"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // Where nothing can be kept everything is sent.
        let mut kept = Kept::open(None, "ab");
        assert_eq!(kept.begin(place(1, "a")).1, Beginning::New);
        kept.take("one");
        kept.forget();
    }
}
