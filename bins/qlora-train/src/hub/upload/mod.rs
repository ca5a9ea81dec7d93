//! A commit of files to a model of the hub, as Hugging Face's own client makes it.
//!
//! The hub is asked which files it has, and which it keeps apart from git; those are sent first, the rest goes with the
//! commit. Files that the hub has by their hash are not sent, nor are parts of a large file that its store has
//! accepted, so that an interrupted push resumes when it is run again. Nothing is visible before the commit, and the
//! commit has everything.

pub(super) mod fuzzing;
mod kept;
mod large;
mod local;
mod request;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::address::escaped;
use super::cache::Kind;
use super::client::{Client, Fault, Subject, TRIES, header, is_busy, pause, wait_to_ask_again};
use super::environment::Environment;
use super::listing::{Listing, is_commit};
use crate::bail_usage;
use crate::error::{Error, Result};
use crate::files::units::format_bytes;
use crate::report::{Bars, count, status};
use request::{Payload, Reply, Request, Sender};

pub use local::LocalFile;

/// Time without any progress that is accepted: the hub needs a while for a commit.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest file in a commit itself.
const MOST_IN_COMMIT: u64 = 32 << 20;
const UNKNOWN: &str =
    "whether it was committed is not known: run the command again, what the hub has by then is not sent again";
const NOTHING: &str = "nothing was committed: run the command again, what the hub has by then is not sent again";
/// Unit of progress.
const MB: u64 = 1_000_000;

/// An upload: the files and their destination.
pub struct Upload<'a> {
    /// `org/name`
    pub repository: &'a str,
    /// The branch that is committed to
    pub revision: &'a str,
    pub message: &'a str,
    /// Create repository and branch if they do not exist.
    pub create: bool,
    /// Upload only to a private repository
    pub private: bool,
    pub files: &'a [LocalFile],
}

/// Outcome for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// The repository has it, under this name and with these bytes.
    Unchanged,
    /// It is in the commit, and the hub had its bytes.
    Known,
    /// It is in the commit, and its bytes were sent.
    Sent,
}

impl FileState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Known => "known",
            Self::Sent => "sent",
        }
    }
}

/// A finished upload.
pub struct Pushed {
    pub commit: String,
    /// The page of the repository
    pub page: String,
    /// The repository was created
    pub created: bool,
    /// In the order of the files
    pub sent: Vec<FileState>,
}

/// The hub's answer about a repository.
enum Found {
    Here {
        listing: Listing,
        /// None: the hub does not say.
        private: Option<bool>,
    },
    /// It has no such branch.
    NoBranch,
    /// There is no such repository, or it may not be seen. With the hub's answer
    Nothing(Reply),
}

/// Commits files to a model of the hub.
///
/// Refused: without a token, or with one that may not write there; no such repository, if none is to be created; a
/// public repository, if a private one was requested. Failed: the hub cannot be reached, or gives another answer;
/// nothing was committed then, unless the message says that this is not known.
pub fn push(environment: &Environment, upload: &Upload) -> Result<Pushed> {
    let name = upload.repository;
    if let Some(variable) = environment.offline {
        bail_usage!("{name}: {variable} keeps the hub from being asked: unset it to push");
    }
    let client = Client::with_patience(environment, environment.timeout_or(PATIENCE)?)?;
    if client.token.is_none() {
        bail_usage!(
            "{name}: found no token to write with: set HF_TOKEN to one of the type `write` ({}/settings/tokens), or \
             run `hf auth login`",
            client.endpoint
        );
    }
    let subject = Subject { kind: Kind::Model, name: name.to_owned(), revision: upload.revision.to_owned() };
    let sender = Sender { client: &client, name, uploads: environment.uploads.as_deref() };
    Job { upload, subject, sender }.run().map_err(|fault| match fault {
        // The commit itself reports this in its own words.
        Fault::Broken(why) => Error::Failed(format!("{name}: {why}; {NOTHING}")),
        Fault::Final(error) => error,
    })
}

/// Name of the request for the modes of files, in messages.
const ASKING_MODES: &str = "asking how files are sent";

/// The hub's answer about the modes of files.
#[derive(Deserialize)]
struct Modes {
    files: Vec<Asked>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    path: String,
    upload_mode: Mode,
    #[serde(default)]
    should_ignore: bool,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Lfs,
    Regular,
}

impl Modes {
    /// For each of the files, whether the hub keeps it apart from git. Failed: it says nothing of one, or would not
    /// have it.
    fn of(&self, sender: &Sender, files: &[&LocalFile]) -> Result<Vec<bool>, Fault> {
        let modes: BTreeMap<&str, &Asked> = self.files.iter().map(|asked| (asked.path.as_str(), asked)).collect();
        let kind = |file: &&LocalFile| {
            let name = file.name();
            let Some(asked) = modes.get(name) else {
                return Err(sender.lost(format!("{ASKING_MODES}: the hub says nothing of {name}")));
            };
            if asked.should_ignore {
                let why = "the repository's .gitignore leaves it out: remove that line there, without it the upload \
                           would not be whole";
                return Err(sender.lost(format!("{name}: {why}")));
            }
            // An empty file has nothing to store.
            let large = asked.upload_mode == Mode::Lfs && file.size() > 0;
            if !large && file.size() > MOST_IN_COMMIT {
                let size = format_bytes(file.size());
                let why = format!("{name}: the hub wants {size} in the commit itself, which is too much");
                return Err(sender.lost(why));
            }
            Ok(large)
        };
        files.iter().map(kind).collect()
    }
}

struct Job<'a> {
    upload: &'a Upload<'a>,
    subject: Subject,
    sender: Sender<'a>,
}

impl Job<'_> {
    fn run(&self) -> Result<Pushed, Fault> {
        let (name, files) = (self.upload.repository, self.upload.files);
        let (found, created) = self.repository()?;
        let has = |file: &LocalFile| {
            let there = found.find(file.name()).and_then(|there| there.blob.as_ref());
            there.is_some_and(|blob| file.is(blob))
        };
        let mut sent: Vec<FileState> =
            files.iter().map(|file| if has(file) { FileState::Unchanged } else { FileState::Sent }).collect();
        let page = format!("{}/{name}", self.sender.client.endpoint);
        let changed: Vec<usize> = (0..files.len()).filter(|&at| sent[at] == FileState::Sent).collect();
        if changed.is_empty() {
            return Ok(Pushed { commit: found.commit, page, created, sent });
        }
        let is_large = self.kinds(&changed)?;
        self.send_large(&changed, &is_large, &mut sent)?;
        for &at in &changed {
            files[at].check_unchanged()?;
        }
        let commit = self.commit(&changed, &is_large)?;
        Ok(Pushed { commit, page, created, sent })
    }

    /// The files that the branch has, and whether the repository was made.
    fn repository(&self) -> Result<(Listing, bool), Fault> {
        let Upload { repository, revision, create, private, .. } = *self.upload;
        let mut created = false;
        let mut found = self.look()?;
        if let (Found::Nothing(_), true) = (&found, create) {
            created = self.create()?;
            found = self.look()?;
        }
        if let (Found::NoBranch, true) = (&found, create) {
            self.create_branch()?;
            found = self.look()?;
        }
        match found {
            // A public repository is refused before anything is sent.
            Found::Here { private: said, .. } if private && said != Some(true) => {
                let made = if created { "was made, but " } else { "" };
                let refused = format!(
                    "{repository}: {made}the hub does not say that it is private: nothing was sent; make it private on \
                     its page, or leave --private out"
                );
                Err(Fault::Final(Error::Refused(refused)))
            }
            Found::Here { listing, .. } => Ok((listing, created)),
            Found::NoBranch => Err(Fault::Final(Error::Refused(format!(
                "{repository}: has no branch {revision:?}; --create makes it, and --revision names another"
            )))),
            Found::Nothing(reply) => Err(Fault::Final(self.sender.refusal(&reply, "looking for it"))),
        }
    }

    fn look(&self) -> Result<Found, Fault> {
        let looked = match self.look_once() {
            Err(Fault::Broken(_)) => self.look_once(),
            looked => looked,
        };
        looked.map_err(|fault| match fault {
            Fault::Broken(why) => self.sender.lost(format!("the hub cannot be asked: {why}")),
            fault => fault,
        })
    }

    fn look_once(&self) -> Result<Found, Fault> {
        #[derive(Deserialize)]
        struct Visibility {
            private: Option<bool>,
        }
        let client = self.sender.client;
        let answer = client.ask(&client.listing_address(&self.subject)?, None, &self.subject)?;
        let (status, headers) = (answer.status, answer.headers.clone());
        let text = client.listing_bytes(answer, &self.subject)?;
        match status {
            200 => {
                let private = serde_json::from_slice(&text).ok().and_then(|found: Visibility| found.private);
                Ok(Found::Here { listing: Listing::of_answer(&text, &self.subject.name)?, private })
            }
            404 if header(&headers, "x-error-code") == Some("RevisionNotFound") => Ok(Found::NoBranch),
            404 => Ok(Found::Nothing(Reply { status, headers, text })),
            _ => Err(Fault::Final(self.sender.refusal(&Reply { status, headers, text }, "looking for it"))),
        }
    }

    /// Makes the repository. False: somebody else was faster.
    fn create(&self) -> Result<bool, Fault> {
        let doing = "making it";
        let (org, name) = self.upload.repository.split_once('/').unwrap_or(("", self.upload.repository));
        let mut json = json!({"name": name, "organization": org, "type": "model"});
        if self.upload.private {
            json["visibility"] = "private".into();
        }
        let reply = self.sender.post("api/repos/create", &json)?;
        match reply.status {
            200..300 => {
                status!("{}: made{}", self.upload.repository, if self.upload.private { ", private" } else { "" });
                Ok(true)
            }
            409 => Ok(false),
            _ => Err(Fault::Final(self.sender.refusal(&reply, doing))),
        }
    }

    fn create_branch(&self) -> Result<(), Fault> {
        let path = format!("api/models/{}/branch/{}", self.subject.name, escaped(&self.subject.revision, ""));
        let reply = self.sender.post(&path, &json!({}))?;
        match reply.status {
            200..300 | 409 => Ok(()),
            _ => Err(Fault::Final(self.sender.refusal(&reply, "making the branch"))),
        }
    }

    /// For each of the files, whether the hub keeps it apart from git.
    fn kinds(&self, changed: &[usize]) -> Result<Vec<bool>, Fault> {
        let files: Vec<&LocalFile> = changed.iter().map(|&at| &self.upload.files[at]).collect();
        let mut asked = Vec::new();
        for file in &files {
            let sample = STANDARD.encode(file.sample()?);
            asked.push(json!({"path": file.name(), "sample": sample, "size": file.size()}));
        }
        let revision = escaped(&self.subject.revision, "");
        let path = format!("api/models/{}/preupload/{revision}", self.subject.name);
        let modes: Modes = self.sender.post_json(&path, &json!({"files": asked}), ASKING_MODES)?;
        modes.of(&self.sender, &files)
    }

    fn send_large(&self, changed: &[usize], is_large: &[bool], sent: &mut [FileState]) -> Result<(), Fault> {
        let numbers: Vec<usize> =
            changed.iter().zip(is_large).filter(|(_, is_large)| **is_large).map(|(&at, _)| at).collect();
        let total: u64 = numbers.iter().map(|&at| self.upload.files[at].size()).sum();
        if total == 0 {
            return Ok(());
        }
        let what = (count(numbers.len() as u64, "large file"), format_bytes(total));
        status!("{}: uploading {}, {}", self.upload.repository, what.0, what.1);
        let mut bar = Bars::new("uploading", total.div_ceil(MB));
        let mut done = 0;
        for at in numbers {
            let file = &self.upload.files[at];
            let message = format!("MB {}", file.name());
            let mut progress = |bytes: i64| {
                done += bytes;
                bar.set(done.max(0) as u64 / MB, message.clone());
            };
            if !large::upload(&self.sender, &self.subject.revision, file, &mut progress)? {
                progress(file.size() as i64);
                sent[at] = FileState::Known;
                status!("{}: the hub has its bytes already", file.name());
            }
        }
        bar.finish();
        Ok(())
    }

    /// Makes the commit, and returns its name. A hub whose answer is lost is asked whether the commit is there.
    fn commit(&self, changed: &[usize], is_large: &[bool]) -> Result<String, Fault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            commit_oid: String,
        }
        let doing = "committing";
        let lines = self.commit_lines(changed, is_large)?;
        let revision = escaped(&self.subject.revision, "");
        let address = self.sender.client.address(&format!("api/models/{}/commit/{revision}", self.subject.name))?;
        let content_type = Some("application/x-ndjson");
        let payload = Payload::Bytes(lines.as_bytes());
        let request = Request { address: &address, content_type, as_user: true, payload };
        let mut tries = 1;
        loop {
            let answered = self.sender.once(&request, &mut |_| ());
            let named = answered.as_ref().ok().filter(|reply| reply.is_done()).and_then(|reply| {
                let Answer { commit_oid } = self.sender.read(reply, doing).ok()?;
                is_commit(&commit_oid).then_some(commit_oid)
            });
            if let Some(commit) = named {
                return Ok(commit);
            }
            // The hub may have made the commit, whatever it answered.
            let is_unknown = match &answered {
                Ok(reply) => reply.is_done() || (is_busy(reply.status) && reply.status != 429),
                Err(fault) => matches!(fault, Fault::Broken(_)),
            };
            if is_unknown && let Some(commit) = self.commit_there(changed) {
                return Ok(commit);
            }
            match answered {
                Ok(reply) if reply.is_done() => {
                    return Err(self.sender.lost(format!("{doing}: the hub names no commit; {UNKNOWN}")));
                }
                Ok(reply) if is_busy(reply.status) && tries < TRIES => {
                    let waited = wait_to_ask_again(self.sender.name, reply.status, &reply.headers, tries);
                    waited.map_err(|fault| match fault {
                        Fault::Final(error) if is_unknown => Fault::Final(Error::Failed(format!("{error}; {UNKNOWN}"))),
                        fault => fault,
                    })?;
                }
                // Another commit at the same moment
                Ok(reply) if matches!(reply.status, 409 | 412) && tries < TRIES => {
                    status!("{}: somebody else commits to it; trying again", self.sender.name);
                    std::thread::sleep(pause(tries));
                }
                // The hub may still be working on it.
                Ok(reply) if is_unknown => {
                    let answers = self.sender.answers(&reply, doing);
                    return Err(Fault::Final(Error::Failed(format!("{answers}; {UNKNOWN}"))));
                }
                // The work had begun.
                Ok(reply) => return Err(self.sender.lost_for(&reply, doing)),
                Err(Fault::Broken(why)) if tries < TRIES => {
                    status!("{}: {why}; trying again", self.sender.name);
                    std::thread::sleep(pause(tries));
                }
                Err(Fault::Broken(why)) => {
                    return Err(self.sender.lost(format!("{doing}: {why}; {UNKNOWN}")));
                }
                Err(fault) => return Err(fault),
            }
            tries += 1;
        }
    }

    /// The commit of the branch, if it has every file that was to be committed.
    fn commit_there(&self, changed: &[usize]) -> Option<String> {
        let Ok(Found::Here { listing, .. }) = self.look_once() else { return None };
        let has = |file: &LocalFile| listing.find(file.name())?.blob.as_ref().map(|blob| file.is(blob));
        changed.iter().all(|&at| has(&self.upload.files[at]) == Some(true)).then_some(listing.commit)
    }

    /// The commit in lines of JSON: its message, then each file, whole or by its hash.
    fn commit_lines(&self, changed: &[usize], is_large: &[bool]) -> Result<String, Fault> {
        let said = json!({"summary": self.upload.message, "description": ""});
        let mut lines = json!({"key": "header", "value": said}).to_string() + "\n";
        for (&at, is_large) in changed.iter().zip(is_large) {
            let file = &self.upload.files[at];
            let (key, value): (&str, Value) = match is_large {
                true => {
                    let of = (file.name(), file.sha256(), file.size());
                    ("lfsFile", json!({"path": of.0, "algo": "sha256", "oid": of.1, "size": of.2}))
                }
                false => {
                    let content = STANDARD.encode(file.bytes()?);
                    ("file", json!({"content": content, "path": file.name(), "encoding": "base64"}))
                }
            };
            lines += &(json!({"key": key, "value": value}).to_string() + "\n");
        }
        Ok(lines)
    }
}
