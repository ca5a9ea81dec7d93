//! Place of the cache, address of the hub, and token, from the variables that Hugging Face's own client reads.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address::Address;
use super::cache::Kind;
use super::commits::HubCommit;
use crate::bail_usage;
use crate::error::Result;
use crate::files::regular::read_at_most;

const ENDPOINT: &str = "HF_ENDPOINT";
pub(super) const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const TIMEOUT: &str = "HF_HUB_DOWNLOAD_TIMEOUT";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_SECONDS: (f64, f64) = (0.05, 3600.0);
/// Variables for the token; the first that is set counts.
const TOKENS: [&str; 2] = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
/// Variables that each forbid requests to the hub.
const OFFLINE: [&str; 3] = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"];
/// Limit on a token file; a token has some 40 characters.
const MAX_TOKEN_BYTES: u64 = 4096;

/// A secret that is sent in one header and used nowhere else.
#[derive(Clone)]
pub(super) struct Token(String);

impl Token {
    fn of(text: &str, place: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if !text.chars().all(|c| c.is_ascii_graphic()) {
            bail_usage!("{place}: found characters that no token has; expected one line, as the hub shows it");
        }
        Ok((!text.is_empty()).then(|| Self(text.to_owned())))
    }

    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// A text from a hub with the token removed, which it may repeat.
    pub fn taken_out_of(&self, text: &str) -> String {
        text.replace(&self.0, "…")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The variables, as text.
pub struct Environment {
    /// Folders of caches, the most specific setting first; downloads go into the first.
    pub(super) roots: Vec<PathBuf>,
    /// The variable that keeps the hub from being asked
    pub(super) offline: Option<&'static str>,
    endpoint: Option<String>,
    timeout: Option<String>,
    /// The token, and the variable that it is from
    token: Option<(&'static str, String)>,
    token_files: Vec<PathBuf>,
    /// Folder for the state of unfinished uploads
    pub(super) uploads: Option<PathBuf>,
    /// Recorded commits of revisions, which override the hub
    recorded: Vec<HubCommit>,
    /// Revisions that were resolved
    met: RefCell<Vec<HubCommit>>,
}

impl Environment {
    /// The environment of this process.
    pub fn read() -> Self {
        Self::of(|name| std::env::var_os(name))
    }

    /// Caches in these folders, and no hub.
    pub fn offline(roots: &[PathBuf]) -> Self {
        Self { roots: roots.to_vec(), offline: Some(OFFLINE[0]), ..Self::of(|_| None) }
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = set("HOME").map(PathBuf::from);
        // A shell leaves `~` in quotes as it is.
        let path = |name: &str| {
            let path = PathBuf::from(set(name)?);
            let below = path.strip_prefix("~").ok().and_then(|rest| Some(home.as_ref()?.join(rest)));
            Some(below.unwrap_or(path))
        };
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
        let is_on = |name: &str| {
            text(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_uppercase().as_str()))
        };
        let homes: Vec<PathBuf> = [
            path("HF_HOME"),
            path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")),
            home.as_ref().map(|home| home.join(".cache/huggingface")),
        ]
        .into_iter()
        .flatten()
        .collect();
        let own = [path("HF_HUB_CACHE"), path("HUGGINGFACE_HUB_CACHE")].into_iter().flatten();
        let mut roots: Vec<PathBuf> = own.chain(homes.iter().map(|home| home.join("hub"))).collect();
        roots.dedup();
        let token = TOKENS.into_iter().find_map(|name| Some((name, text(name)?)));
        let silent = token.is_none() && is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        let of_home = homes.first().map(|home| home.join("token"));
        let token_files = path("HF_TOKEN_PATH").or(of_home).into_iter().filter(|_| !silent).collect();
        Self {
            roots,
            offline: OFFLINE.into_iter().find(|name| is_on(name)),
            endpoint: text(ENDPOINT),
            timeout: text(TIMEOUT),
            token,
            token_files,
            uploads: homes.first().map(|home| home.join("qlora-train/uploads")),
            recorded: Vec::new(),
            met: RefCell::default(),
        }
    }

    /// This environment with recorded commits, which override the present commits of their branches and tags.
    pub fn following(self, recorded: Vec<HubCommit>) -> Self {
        Self { recorded: recorded.into_iter().filter(HubCommit::is_valid).collect(), ..self }
    }

    /// The branches and tags that were resolved so far, each once, with their commits.
    pub fn commits(&self) -> Vec<HubCommit> {
        self.met.borrow().clone()
    }

    pub(super) fn recorded_commit(&self, kind: Kind, name: &str, revision: &str) -> Option<&str> {
        self.recorded.iter().find_map(|recorded| recorded.of(kind, name, revision))
    }

    /// Notes a revision that was resolved. False: it was noted before.
    pub(super) fn meet(&self, kind: Kind, name: &str, revision: &str, commit: &str) -> bool {
        let mut met = self.met.borrow_mut();
        let is_new = !met.iter().any(|earlier| earlier.of(kind, name, revision).is_some());
        if is_new && revision != commit {
            met.push(HubCommit::new(kind, name, revision, commit));
        }
        is_new
    }

    /// The hub. Refused: a value that is no address.
    pub(super) fn endpoint(&self) -> Result<Address> {
        let text = self.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT).trim().trim_end_matches('/');
        match Address::parse(text) {
            Some(address) => Ok(address),
            // A password is not shown.
            None if text.contains('@') => bail_usage!(
                "{ENDPOINT}: found an address with a name or a password in it, expected one without, such as \
                 {DEFAULT_ENDPOINT}; the token says who asks"
            ),
            None => {
                bail_usage!("{ENDPOINT}: found {text:?}, expected the address of a hub, such as {DEFAULT_ENDPOINT}")
            }
        }
    }

    /// Time that a hub may stay silent.
    pub(super) fn timeout(&self) -> Result<Duration> {
        self.timeout_or(DEFAULT_TIMEOUT)
    }

    /// [`timeout`](Self::timeout) with another default.
    pub(super) fn timeout_or(&self, default: Duration) -> Result<Duration> {
        let Some(text) = self.timeout.as_deref() else { return Ok(default) };
        let (least, most) = TIMEOUT_SECONDS;
        match text.trim().parse::<f64>() {
            Ok(seconds) if (least..=most).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
            _ => bail_usage!("{TIMEOUT}: found {text:?}, expected seconds from {least} to {most}"),
        }
    }

    /// The token for the hub. Refused: an invalid token, or a token file that cannot be read.
    pub(super) fn token(&self) -> Result<Option<Token>> {
        if let Some((name, text)) = &self.token {
            return Token::of(text, name);
        }
        let Some(file) = self.token_files.iter().find(|file| file.is_file()) else { return Ok(None) };
        let name = file.display().to_string();
        let Some(bytes) = read_at_most(file, MAX_TOKEN_BYTES)? else {
            bail_usage!("{name}: found more than {MAX_TOKEN_BYTES} bytes, expected a token of the hub");
        };
        Token::of(&String::from_utf8_lossy(&bytes), &name)
    }
}

/// The first folder of the hub's cache that is there.
pub fn hub_cache() -> Option<PathBuf> {
    Environment::read().roots.into_iter().find(|root| root.is_dir())
}

/// The places, for a message.
pub(super) fn shown(places: &[PathBuf]) -> String {
    let shown: Vec<String> = places.iter().map(|path| Path::display(path).to_string()).collect();
    if shown.is_empty() { "nowhere: neither HF_HOME nor HOME is set".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests;
