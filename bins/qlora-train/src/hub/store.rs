//! A model or data set at a revision: its commit, its files in the caches, and the download of missing files.

use std::cell::OnceCell;
use std::collections::HashMap;

use super::cache::{Folder, Kind};
use super::client::{Client, Fault, Subject};
use super::commits::short;
use super::download::download;
use super::environment::{Environment, shown};
use super::id::HubId;
use super::listing::{File, Listing, is_commit};
use crate::bail_usage;
use crate::error::{Error, Result};
use crate::files::units::format_bytes;
use crate::report::{Bars, count, detail, status, warning};

pub(super) struct Store<'a> {
    environment: &'a Environment,
    subject: Subject,
    /// The requested revision, if a recorded commit overrides it
    asked: String,
    /// In each of the caches
    folders: Vec<Folder>,
    client: OnceCell<Client>,
}

/// The commit of a revision, in the cache or on the hub.
pub(super) struct Found {
    pub commit: String,
    /// Its files. None: the cache has the commit, but it is not known whether it is complete.
    pub listing: Option<Listing>,
}

impl<'a> Store<'a> {
    pub fn new(environment: &'a Environment, kind: Kind, id: &HubId) -> Self {
        let asked = id.revision_or_main().to_owned();
        let recorded = environment.recorded_commit(kind, &id.name, &asked);
        let revision = recorded.map_or_else(|| asked.clone(), str::to_owned);
        let folders = environment.roots.iter().map(|root| Folder::new(root, kind, &id.name)).collect();
        let subject = Subject { kind, name: id.name.clone(), revision };
        Self { environment, subject, asked, folders, client: OnceCell::new() }
    }

    pub fn name(&self) -> &str {
        &self.subject.name
    }

    pub fn is_offline(&self) -> bool {
        self.environment.offline.is_some()
    }

    fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = Client::new(self.environment)?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Finds the commit of the revision: the recorded one; or the cache's, if the revision is a commit, or the hub must
    /// not be asked or does not answer; otherwise the hub's. Refused: neither has it.
    pub fn find(&self) -> Result<Found> {
        let Subject { kind, name, revision } = &self.subject;
        let follows = *revision != self.asked;
        let found = self.find_revision().map_err(|error| match follows {
            true => error.usage_hint(|| {
                format!(
                    "it is the commit of `{}` on which the run began; choose another output_dir to begin anew",
                    self.asked
                )
            }),
            false => error,
        })?;
        if self.environment.meet(*kind, name, &self.asked, &found.commit) && follows {
            status!("{name}: commit {} of `{}`, on which the run began", short(revision), self.asked);
        }
        Ok(found)
    }

    fn find_revision(&self) -> Result<Found> {
        let revision = &self.subject.revision;
        let mut cached = None;
        for folder in &self.folders {
            if let Some(commit) = folder.commit_of(revision)? {
                cached = Some((folder, commit));
                break;
            }
        }
        let of_cache = |(folder, commit): (&Folder, String)| {
            let mut kept = std::iter::once(folder).chain(&self.folders);
            Found { listing: kept.find_map(|folder| folder.listing(&commit)), commit }
        };
        let is_fixed = cached.as_ref().is_some_and(|(folder, _)| folder.names_commit(revision));
        if let Some(cached) = cached.take_if(|_| is_fixed || self.is_offline()) {
            return Ok(of_cache(cached));
        }
        if self.is_offline() {
            return Err(self.not_cached());
        }
        match (self.client()?.listing(&self.subject), cached) {
            (Ok(listing), _) => Ok(Found { commit: listing.commit.clone(), listing: Some(listing) }),
            (Err(fault), Some(cached)) => {
                let why = match fault {
                    Fault::Broken(why) => format!("the hub cannot be asked ({why})"),
                    Fault::Final(error) if error.is_usage() => format!("the hub does not give it ({error})"),
                    Fault::Final(error) => format!("the hub cannot be asked ({error})"),
                };
                warning!(
                    "{}: {why}; the commit {} of the cache is used, as {revision} was when it was downloaded",
                    self.subject,
                    short(&cached.1)
                );
                Ok(of_cache(cached))
            }
            (Err(Fault::Broken(why)), None) => {
                let (name, missing) = (&self.subject, self.subject.kind.missing());
                Err(Error::Failed(format!("{name}: {missing}, and the hub cannot be asked: {why}")))
            }
            (Err(Fault::Final(error)), None) => Err(error),
        }
    }

    /// The files of a commit, from the hub.
    pub fn ask(&self, commit: &str) -> Result<Listing> {
        let subject = Subject { revision: commit.to_owned(), ..self.subject.clone() };
        self.client()?.listing(&subject).map_err(|fault| match fault {
            Fault::Broken(why) => Error::Failed(format!("{subject}: the hub cannot be asked: {why}")),
            Fault::Final(error) => error,
        })
    }

    fn not_cached(&self) -> Error {
        let Subject { kind, name, revision } = &self.subject;
        let variable = self.environment.offline.unwrap_or_default();
        let places: Vec<_> = self.folders.iter().map(Folder::path).collect();
        let (local, repository) = match kind {
            Kind::Model => (kind.missing().to_owned(), ""),
            Kind::DataSet => (format!("cannot open: {}", kind.missing()), "--repo-type dataset "),
        };
        let at = if revision == "main" { String::new() } else { format!(" --revision {revision}") };
        Error::Refused(format!(
            "{name}: {local}, and no snapshot of revision {revision:?} in the local Hugging Face cache (looked in {}); \
             {variable} keeps the hub from being asked: unset it, or use `hf download {repository}{name}{at}` where \
             there is a network",
            shown(&places)
        ))
    }

    /// The cache that has this commit, complete or not.
    pub fn folder_with(&self, commit: &str) -> Option<&Folder> {
        self.folders.iter().find(|folder| folder.snapshot(commit).is_dir())
    }

    /// Makes sure that one cache has all of these files, and returns it. Refused: they are missing, and the hub must
    /// not be asked; there is no room for them.
    pub fn ensure(&self, listing: &Listing, names: &[String]) -> Result<&Folder> {
        let commit = &listing.commit;
        let by_name: HashMap<&str, &File> = listing.files.iter().map(|file| (file.name.as_str(), file)).collect();
        let files: Vec<&File> = names.iter().filter_map(|name| by_name.get(name.as_str()).copied()).collect();
        let lacks = |folder: &Folder, file: &File| !folder.has(commit, &file.name, file.size);
        if let Some(folder) = self.folders.iter().find(|folder| !files.iter().any(|&file| lacks(folder, file))) {
            return Ok(folder);
        }
        let Some(folder) = self.folders.first() else {
            bail_usage!("{}: found no place for downloads, expected HF_HOME or HOME to be set", self.subject);
        };
        let missing: Vec<&File> = files.into_iter().filter(|&file| lacks(folder, file)).collect();
        if let Some(variable) = self.environment.offline {
            bail_usage!(
                "{}: the cache lacks {} of commit {} ({}); {variable} keeps the hub from being asked: unset it",
                self.subject,
                some(&missing),
                short(commit),
                folder.path().display()
            );
        }
        // The listing is kept first, so that an interrupted download can be recognized.
        self.keep(folder, listing);
        self.download(folder, commit, &missing)?;
        Ok(folder)
    }

    /// Keeps a listing, if it is not there yet.
    fn keep(&self, folder: &Folder, listing: &Listing) {
        if folder.listing(&listing.commit).is_none()
            && let Err(error) = folder.keep_listing(listing)
        {
            detail!("{}: {error}", self.subject);
        }
    }

    /// Downloads an optional file, if this folder is the one for downloads and lacks it.
    pub fn ensure_beside(&self, folder: &Folder, listing: &Listing, name: &str) {
        let is_own = self.folders.first().is_some_and(|first| std::ptr::eq(first, folder));
        let Some(file) = listing.find(name).filter(|_| is_own && !self.is_offline()) else { return };
        if !folder.has(&listing.commit, name, file.size)
            && let Err(error) = self.download(folder, &listing.commit, &[file])
        {
            detail!("{name}: {error}");
        }
    }

    fn download(&self, folder: &Folder, commit: &str, files: &[&File]) -> Result<()> {
        let total = files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.size.unwrap_or(0)));
        let place = folder.path();
        self.check_room(folder, files)?;
        status!(
            "{} at {}: downloading {}, {}, into {}",
            self.subject,
            short(commit),
            count(files.len() as u64, "file"),
            format_bytes(total),
            place.display()
        );
        let client = self.client()?;
        let mut bar = Bars::new("downloading", total.div_ceil(MB));
        let mut done = 0_i64;
        for file in files {
            let message = format!("MB {}", file.name);
            download(client, &self.subject, folder, commit, file, &mut |bytes| {
                done += bytes;
                bar.set(done.max(0) as u64 / MB, message.clone());
            })?;
        }
        bar.finish();
        Ok(())
    }

    /// Refuses a download that the disk has no room for.
    fn check_room(&self, folder: &Folder, files: &[&File]) -> Result<()> {
        let begun = |file: &File| {
            let partial = file.blob.as_ref().map(|blob| folder.partial(blob));
            partial.and_then(|path| std::fs::metadata(path).ok()).map_or(0, |found| found.len())
        };
        let needed = files
            .iter()
            .fold(0_u64, |sum, file| sum.saturating_add(file.size.unwrap_or(0).saturating_sub(begun(file))));
        let place = folder.path();
        let Some(existing) = place.ancestors().find(|path| path.is_dir()) else { return Ok(()) };
        let Ok(status) = rustix::fs::statvfs(existing) else { return Ok(()) };
        let free = status.f_bavail.saturating_mul(status.f_frsize);
        // Some network file systems do not report it.
        if status.f_blocks > 0 && needed > free {
            bail_usage!(
                "{}: {} are to be downloaded into {}, where {} are free: make room, or set HF_HOME to another place",
                self.subject,
                format_bytes(needed),
                place.display(),
                format_bytes(free)
            );
        }
        Ok(())
    }

    /// Keeps the hub's answer once the files are there, so that the next run need not ask. A cache that cannot be
    /// written works without it.
    pub fn keep_answer(&self, folder: &Folder, listing: &Listing) {
        if self.is_offline() {
            return;
        }
        self.keep(folder, listing);
        let revision = &self.subject.revision;
        let stale = !is_commit(revision)
            && revision != &listing.commit
            && folder.commit_of(revision).ok().flatten().as_ref() != Some(&listing.commit);
        if stale && let Err(error) = folder.write_reference(revision, &listing.commit) {
            detail!("{error}");
        }
    }
}

/// Unit of progress.
const MB: u64 = 1_000_000;

/// The names of files, for a message.
fn some(files: &[&File]) -> String {
    let names: Vec<&str> = files.iter().take(3).map(|file| file.name.as_str()).collect();
    let more = files.len() - names.len();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", names.join(", "))
}
