//! The hub of the loopback: what it holds, what it was asked, and what it is told to answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Names and values.
pub type Headers = Vec<(&'static str, String)>;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With the query
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// The body as far as it was read; a rule sees none of it.
    pub body: Vec<u8>,
}

/// An answer in place of the truth.
pub enum Reply {
    /// A status and headers, without a body
    Status(u16, Headers),
    /// A status with a text
    Text(u16, String),
    /// A status 200 with these bytes
    Bytes(Vec<u8>),
    /// The truth, of which so many bytes arrive before the connection ends
    Cut(usize),
    /// The truth, of which so many bytes arrive before nothing more does
    Stall(usize),
    /// The whole file, whatever part was asked for
    Whole,
    /// Nothing: so many bytes of what is sent are read before the connection ends.
    Take(usize),
    /// Nothing: so many bytes of what is sent are read, then no more.
    Hang(usize),
    /// Nothing, after what was asked for is done
    Lose,
}

/// The files of a commit
pub type Files = BTreeMap<String, Vec<u8>>;
/// Gives the answer to a request, the n-th (from 0) of its path.
pub type Rule = Box<dyn Fn(&Request, usize) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
pub struct State {
    /// (kind/org/name, revision) → commit and files
    pub revisions: Mutex<BTreeMap<(String, String), (String, Files)>>,
    /// SHA-256 → bytes of large files that were sent
    pub objects: Mutex<Files>,
    /// Those of large files that are sent in parts: SHA-256 with the upload, and number
    pub parts: Mutex<BTreeMap<(String, usize), Vec<u8>>>,
    /// Uploads in parts that a place was given for
    pub uploads: Mutex<usize>,
    /// Bytes of a part; 0: files are sent as a whole.
    pub part_size: Mutex<usize>,
    /// Repositories that not everybody may read
    pub private: Mutex<BTreeSet<String>>,
    pub requests: Mutex<Vec<Request>>,
    pub rule: Mutex<Option<Rule>>,
}

impl State {
    /// Puts files under a revision and their commit, whose name is returned.
    pub fn put(&self, repository: &str, revision: &str, files: Files) -> String {
        let all: Vec<String> = files.iter().map(|(name, bytes)| format!("{name} {}", sha256(bytes))).collect();
        let commit = git_hash(all.join("\n").as_bytes());
        let mut revisions = self.revisions.lock().unwrap();
        for revision in [revision, commit.as_str()] {
            revisions.insert((repository.to_owned(), revision.to_owned()), (commit.clone(), files.clone()));
        }
        commit
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn git_hash(bytes: &[u8]) -> String {
    hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// True if the hub keeps a file apart from git.
pub fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".parquet")
}
