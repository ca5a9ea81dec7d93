//! Requests to the hub: the token goes to the hub alone, redirects are followed one by one, waits and answers are
//! bounded, and errors say what to do.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::time::Duration;

use ureq::http::HeaderMap;
use ureq::{Agent, Body};

use super::address::{Address, escaped};
use super::cache::Kind;
use super::environment::{Environment, Token};
use super::hash::BlobName;
use super::listing::{Listing, MAX_LISTING_BYTES, is_commit};
use crate::error::{Error, Result};
use crate::report::{duration, status};

/// Maximum number of requests while the hub is busy, or connections are cut.
pub(super) const TRIES: u32 = 5;
/// Longest wait before one request.
const MAX_WAIT: Duration = Duration::from_secs(60);
pub(super) const MAX_REDIRECTS: usize = 5;
/// Maximum characters of a message from the hub
pub(super) const MAX_SAID: usize = 200;

/// A model or data set, and the revision that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub kind: Kind,
    pub name: String,
    pub revision: String,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The reason why a request failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection failed; a new one may work.
    Broken(String),
    Final(Error),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Broken(why) => Error::Failed(why),
            Fault::Final(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Final(error)
    }
}

/// An answer with a file, a part of it, or none because the part is beyond its end.
pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
    /// Name and size according to the hub, whichever server sends the file
    pub blob: Option<BlobName>,
    pub size: Option<u64>,
}

/// The value of a header. None: there is none, or it is no text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

impl Answer {
    /// Length of the body, if the headers give it.
    pub fn length(&self) -> Option<u64> {
        header(&self.headers, "content-length")?.trim().parse().ok()
    }

    /// First byte and size of the whole, where a part was sent.
    pub fn range(&self) -> Option<(u64, Option<u64>)> {
        let (range, size) = header(&self.headers, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        let (from, _) = range.split_once('-')?;
        Some((from.trim().parse().ok()?, size.trim().parse().ok()))
    }
}

/// The hub that the environment names.
pub(super) struct Client {
    pub agent: Agent,
    pub endpoint: Address,
    pub token: Option<Token>,
    patience: Duration,
}

impl Client {
    pub fn new(environment: &Environment) -> Result<Self> {
        Self::with_patience(environment, environment.timeout()?)
    }

    /// A client that gives a connection up when nothing moves on it for `patience`.
    pub fn with_patience(environment: &Environment, patience: Duration) -> Result<Self> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // They are followed here, so that the token goes nowhere else.
            .max_redirects(0)
            .user_agent(concat!("qlora-train/", env!("CARGO_PKG_VERSION")))
            // Every wait is bounded, however long the whole takes: a download may take hours, but not minutes without a
            // byte.
            .timeout_connect(Some(patience))
            .timeout_per_read(Some(patience))
            .timeout_per_write(Some(patience))
            .build();
        let agent = Agent::new_with_config(config);
        Ok(Self { agent, endpoint: environment.endpoint()?, token: environment.token()?, patience })
    }

    /// The files of a revision, and the commit that it stands for.
    pub fn listing(&self, subject: &Subject) -> Result<Listing, Fault> {
        match self.listing_once(subject) {
            Err(Fault::Broken(_)) => self.listing_once(subject),
            answered => answered,
        }
    }

    /// Address of the list of a revision's files.
    pub fn listing_address(&self, subject: &Subject) -> Result<Address, Fault> {
        let (api, revision) = (subject.kind.api(), escaped(&subject.revision, ""));
        self.address(&format!("api/{api}/{}/revision/{revision}?blobs=true", subject.name))
    }

    /// The text of a listing.
    pub fn listing_bytes(&self, answer: Answer, subject: &Subject) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        let read = answer.body.into_reader().take(MAX_LISTING_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|error| Fault::Broken(format!("{}: {}", self.endpoint.host(), self.cause(&error))))?;
        if bytes.len() as u64 > MAX_LISTING_BYTES {
            let why = format!("{subject}: the hub's list of files is longer than {MAX_LISTING_BYTES} bytes");
            return Err(Fault::Final(Error::Failed(why)));
        }
        Ok(bytes)
    }

    fn listing_once(&self, subject: &Subject) -> Result<Listing, Fault> {
        let answer = self.get(&self.listing_address(subject)?, None, subject)?;
        let bytes = self.listing_bytes(answer, subject)?;
        let listing = Listing::of_answer(&bytes, &subject.name)?;
        if is_commit(&subject.revision) && listing.commit != subject.revision {
            let why =
                format!("{subject}: the hub answers with the commit {}, expected {}", listing.commit, subject.revision);
            return Err(Fault::Final(Error::Failed(why)));
        }
        Ok(listing)
    }

    /// Address of a file of a commit.
    pub fn file_address(&self, subject: &Subject, commit: &str, file: &str) -> Result<Address, Fault> {
        self.address(&format!("{}{}/resolve/{commit}/{}", subject.kind.route(), subject.name, escaped(file, "/")))
    }

    pub fn address(&self, path: &str) -> Result<Address, Fault> {
        let text = format!("{}/{path}", self.endpoint);
        Address::parse(&text).ok_or_else(|| Fault::Final(Error::Failed(format!("{text}: is no address"))))
    }

    /// Requests a file, or the rest of it after its first bytes. A busy hub is asked again.
    pub fn get(&self, address: &Address, from: Option<u64>, subject: &Subject) -> Result<Answer, Fault> {
        let answer = self.ask(address, from, subject)?;
        match answer.status {
            200 | 206 | 416 => Ok(answer),
            _ => Err(Fault::Final(self.refusal(&answer, subject))),
        }
    }

    /// [`get`](Self::get) that returns any answer of a hub that is not busy, also an error.
    pub fn ask(&self, address: &Address, from: Option<u64>, subject: &Subject) -> Result<Answer, Fault> {
        let mut tries = 1;
        loop {
            let answer = self.follow(address, from, subject)?;
            if tries == TRIES || !is_busy(answer.status) {
                return Ok(answer);
            }
            wait_to_ask_again(&subject.name, answer.status, &answer.headers, tries)?;
            tries += 1;
        }
    }

    /// One request, and those that its redirects lead to.
    fn follow(&self, address: &Address, from: Option<u64>, subject: &Subject) -> Result<Answer, Fault> {
        let lost = |why: String| Fault::Final(Error::Failed(format!("{subject}: {why}")));
        let mut at = address.clone();
        let (mut blob, mut size): (Option<BlobName>, Option<u64>) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(at.as_str()).header("accept-encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| at.is_same_origin(&self.endpoint)) {
                request = request.header("authorization", token.header());
            }
            if let Some(from) = from {
                request = request.header("range", format!("bytes={from}-"));
            }
            let sent = request.call();
            let response = sent.map_err(|error| Fault::Broken(format!("{}: {}", at.host(), self.failure(&error))))?;
            let (parts, body) = response.into_parts();
            let (status, headers) = (parts.status.as_u16(), parts.headers);
            let named = header(&headers, "x-linked-etag").or(header(&headers, "etag"));
            blob = blob.or_else(|| named.and_then(BlobName::of_etag));
            size = size.or_else(|| header(&headers, "x-linked-size")?.trim().parse().ok());
            let location = header(&headers, "location").filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308));
            let Some(location) = location else {
                let mut answer = Answer { status, headers, body, blob, size };
                answer.size = answer.size.or(answer.length().filter(|_| status == 200));
                return Ok(answer);
            };
            let Some(next) = at.join(location) else {
                return Err(lost(format!("{} redirects to something that is no web address", at.host())));
            };
            if at.is_encrypted() && !next.is_encrypted() {
                return Err(lost(format!("{} redirects to {} without encryption", at.host(), next.host())));
            }
            at = next;
        }
        Err(lost(format!("{} redirects more than {MAX_REDIRECTS} times", address.host())))
    }

    /// The meaning of an answer without a file, and what to do.
    fn refusal(&self, answer: &Answer, subject: &Subject) -> Error {
        let said = |name: &str| header(&answer.headers, name).unwrap_or_default().chars().take(MAX_SAID).collect();
        let (code, message): (String, String) = (said("x-error-code"), said("x-error-message"));
        let Subject { kind, name, revision } = subject;
        let (noun, status, host) = (kind.noun(), answer.status, self.endpoint.host());
        let page = format!("{}/{}{name}", self.endpoint, kind.route());
        let missing = format!("{name}: {}, and the hub ({host}) answers {status}", kind.missing());
        let has_token = self.token.is_some();
        let set_token = "set HF_TOKEN to a token that may, or run `hf auth login`";
        let gated = format!("{name}: is gated ({status}): accept its terms at {page}");
        let text = match (status, code.as_str()) {
            (401 | 403, "GatedRepo") if has_token => format!("{gated}, by the account of the token"),
            (401 | 403, "GatedRepo") => format!("{gated}, and set HF_TOKEN to a token of that account"),
            (404, "RevisionNotFound") => {
                format!("{name}: the hub ({host}) has no revision {revision:?} of this {noun} (404)")
            }
            (404, "EntryNotFound") => format!("{name}: the hub ({host}) lists a file that it does not have (404)"),
            (401, _) if has_token => {
                format!("{missing}: the token is not valid, or there is no {noun} of this name that it may read")
            }
            (401, _) => {
                format!("{missing}: there is no {noun} of this name, or not everybody may read it: {set_token}")
            }
            (403, _) => format!("{missing}: the token may not read this {noun}: {set_token}"),
            (404, _) => format!("{missing}: there is no {noun} of this name, or no revision {revision:?} of it"),
            _ => {
                let gap = if message.is_empty() { "" } else { ": " };
                let said = format!("answers {status}{gap}{message}");
                return Error::Failed(format!("{name}: the hub ({host}) {said}; try again later"));
            }
        };
        Error::Refused(text)
    }

    /// The reason why a request failed, in words.
    pub fn failure(&self, error: &ureq::Error) -> String {
        match error {
            ureq::Error::Timeout(ureq::Timeout::PerWrite) => {
                format!("nothing was taken for {} s", self.patience.as_secs_f64())
            }
            ureq::Error::Timeout(_) => format!("nothing came for {} s", self.patience.as_secs_f64()),
            ureq::Error::HostNotFound => "no such host; is there a network?".to_owned(),
            ureq::Error::Io(error) => self.cause(error),
            other => other.to_string(),
        }
    }

    /// The reason why a connection ended.
    pub fn cause(&self, error: &io::Error) -> String {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
            Some(ureq::Error::Io(_)) | None if error.kind() == ErrorKind::UnexpectedEof => {
                "the connection was cut".to_owned()
            }
            Some(inner) => self.failure(inner),
            None => error.to_string(),
        }
    }
}

/// True if an HTTP status means that the request may be repeated.
pub(super) fn is_busy(status: u16) -> bool {
    matches!(status, 429 | 500..=599)
}

/// Waits until a busy hub may be asked again: as long as it asks for, or longer each time. Failed: it asks for a longer
/// wait than the limit.
pub(super) fn wait_to_ask_again(what: &str, status: u16, headers: &HeaderMap, tries: u32) -> Result<(), Fault> {
    let wait = asked_wait(headers).unwrap_or(pause(tries));
    if wait > MAX_WAIT {
        let asks = duration(wait);
        let why = format!("{what}: the hub answers {status} and asks to wait {asks}; try again then");
        return Err(Fault::Final(Error::Failed(why)));
    }
    status!("{what}: the hub answers {status}; asking again");
    std::thread::sleep(wait);
    Ok(())
}

/// Seconds that the hub asks to wait.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    header(headers, "retry-after")?.trim().parse().ok().map(Duration::from_secs)
}

/// A wait that doubles from half a second on, and from a twentieth of that in a build for tests, whose hubs are on this
/// machine.
pub(super) fn pause(tries: u32) -> Duration {
    let first = if cfg!(feature = "failpoints") { 25 } else { 500 };
    Duration::from_millis(first) * 2_u32.saturating_pow(tries.saturating_sub(1)).min(16)
}
