//! A hub on the loopback, of models and data sets in memory, which can be told to stall, cut, redirect and lie.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::loopback_hub::{Files, Headers, State, git_hash, is_large};
use crate::loopback_upload::written;

pub use crate::loopback_hub::{Reply, Request, sha256};

pub struct Loopback {
    pub address: String,
    state: Arc<State>,
}

impl Loopback {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::<State>::default();
        let served = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = served.clone();
                // A client that goes away ends its thread.
                std::thread::spawn(move || drop(serve(&state, stream)));
            }
        });
        Self { address, state }
    }

    /// Puts files under a revision and their commit, whose name is returned.
    pub fn add(&self, repository: &str, revision: &str, files: &[(&str, &[u8])]) -> String {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        self.state.put(repository, revision, files)
    }

    /// The commit of a revision and its files.
    pub fn files(&self, repository: &str, revision: &str) -> Option<(String, Files)> {
        self.state.revisions.lock().unwrap().get(&(repository.to_owned(), revision.to_owned())).cloned()
    }

    /// From now on large files are sent in parts of this many bytes.
    pub fn in_parts(&self, bytes: usize) {
        *self.state.part_size.lock().unwrap() = bytes;
    }

    pub fn is_private(&self, repository: &str) -> bool {
        self.state.private.lock().unwrap().contains(repository)
    }

    /// [`add`](Self::add) with the files of a directory and `more`.
    pub fn add_dir(&self, repository: &str, dir: &Path, more: &[(&str, &[u8])]) -> String {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let found: Vec<(String, Vec<u8>)> = entries
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
            .collect();
        let mut files: Vec<(&str, &[u8])> = found.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        files.extend(more);
        self.add(repository, "main", &files)
    }

    pub fn answer(&self, rule: impl Fn(&Request, usize) -> Option<Reply> + Send + Sync + 'static) {
        *self.state.rule.lock().unwrap() = Some(Box::new(rule));
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Requests whose path ends so.
    pub fn asked(&self, end: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path.ends_with(end)).collect()
    }

    pub fn forget(&self) {
        self.state.requests.lock().unwrap().clear();
    }
}

fn serve(state: &State, stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let words = lines.first().map_or("", String::as_str).split(' ').collect::<Vec<_>>();
    let [method, path, ..] = words[..] else { return Ok(()) };
    let header = |name: &str| {
        let found = lines.iter().skip(1).filter_map(|line| line.split_once(':'));
        found.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).next()
    };
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        range: header("range"),
        authorization: header("authorization"),
        body: Vec::new(),
    };
    let (at, nth) = {
        let mut requests = state.requests.lock().unwrap();
        requests.push(request.clone());
        (requests.len() - 1, requests.iter().filter(|earlier| earlier.path == request.path).count() - 1)
    };
    let reply = state.rule.lock().unwrap().as_ref().and_then(|rule| rule(&request, nth));
    let length: usize = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let taken = match reply {
        Some(Reply::Take(bytes) | Reply::Hang(bytes)) => bytes.min(length),
        _ => length,
    };
    request.body.resize(taken, 0);
    reader.read_exact(&mut request.body)?;
    if let Some(recorded) = state.requests.lock().unwrap().get_mut(at) {
        recorded.body.clone_from(&request.body);
    }
    match reply {
        Some(Reply::Take(_)) => Ok(()),
        Some(Reply::Hang(_)) => wait_for_the_end(&mut stream.try_clone()?),
        reply if request.method == "GET" => answer(state, &request, reply, stream),
        reply => answer_written(state, &request, reply, &header("host").unwrap_or_default(), stream),
    }
}

/// Says nothing until the client goes away, whatever it sends.
fn wait_for_the_end(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    // Sent bytes stay unread until the client has to wait too.
    std::thread::sleep(Duration::from_secs(3));
    stream.read(&mut [0]).map(|_| ())
}

/// Answers a request that wants something done.
fn answer_written(
    state: &State,
    request: &Request,
    reply: Option<Reply>,
    host: &str,
    mut stream: TcpStream,
) -> std::io::Result<()> {
    let (status, headers, bytes) = match reply {
        Some(Reply::Status(status, headers)) => (status, headers, Vec::new()),
        Some(Reply::Text(status, text)) => (status, Vec::new(), text.into_bytes()),
        Some(Reply::Bytes(bytes)) => (200, Vec::new(), bytes),
        reply => {
            let done = written(state, request, host);
            if matches!(reply, Some(Reply::Lose)) {
                return Ok(());
            }
            done.unwrap_or_else(|| (404, vec![("X-Error-Code", "RepoNotFound".to_owned())], Vec::new()))
        }
    };
    write_head(&mut stream, status, &headers, Some(bytes.len()))?;
    stream.write_all(&bytes)
}

fn answer(state: &State, request: &Request, reply: Option<Reply>, mut stream: TcpStream) -> std::io::Result<()> {
    let found = truth(state, &request.path);
    let (bytes, headers) = match (&reply, found) {
        (Some(Reply::Status(status, headers)), _) => return write_head(&mut stream, *status, headers, Some(0)),
        (Some(Reply::Text(status, text)), _) => {
            write_head(&mut stream, *status, &[], Some(text.len()))?;
            return stream.write_all(text.as_bytes());
        }
        (Some(Reply::Bytes(bytes)), _) => (bytes.clone(), Vec::new()),
        (_, Some(found)) => found,
        (_, None) => return write_head(&mut stream, 404, &[("X-Error-Code", "RepoNotFound".to_owned())], Some(0)),
    };
    let number = |range: &str| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok();
    let asked = request.range.as_deref().and_then(number);
    let from = asked.filter(|_| !matches!(reply, Some(Reply::Whole | Reply::Bytes(_))));
    if from.is_some_and(|from: usize| from >= bytes.len()) {
        return write_head(&mut stream, 416, &[], Some(0));
    }
    let (status, mut headers) = (if from.is_some() { 206 } else { 200 }, headers);
    if let Some(from) = from {
        headers.push(("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())));
    }
    let part = &bytes[from.unwrap_or(0)..];
    write_head(&mut stream, status, &headers, Some(part.len()))?;
    match reply {
        Some(Reply::Cut(at)) => stream.write_all(&part[..at.min(part.len())]),
        Some(Reply::Stall(at)) => {
            stream.write_all(&part[..at.min(part.len())])?;
            // Until the client goes away.
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.read(&mut [0]).map(|_| ())
        }
        _ => stream.write_all(part),
    }
}

fn write_head(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&'static str, String)],
    length: Option<usize>,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} -\r\nConnection: close\r\n");
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    if let Some(length) = length {
        head += &format!("Content-Length: {length}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())
}

/// The listing or the file that a path names, and headers that say more of it.
fn truth(state: &State, path: &str) -> Option<(Vec<u8>, Headers)> {
    let path = path.split('?').next()?;
    let revisions = state.revisions.lock().unwrap();
    if let Some(rest) = path.strip_prefix("/api/") {
        let (repository, revision) = rest.split_once("/revision/")?;
        let (commit, files) = revisions.get(&(repository.to_owned(), revision.replace("%2F", "/")))?;
        let siblings: Vec<Value> = files.iter().map(|(name, bytes)| sibling(name, bytes)).collect();
        let private = state.private.lock().unwrap().contains(repository);
        let card = files.get("README.md").map(|card| String::from_utf8_lossy(card)).unwrap_or_default();
        let license = card.lines().find_map(|line| line.strip_prefix("license: "));
        let card = json!({"license": license});
        let listing = json!({"sha": commit, "private": private, "siblings": siblings, "cardData": card});
        return Some((listing.to_string().into_bytes(), Vec::new()));
    }
    let (repository, file) = path.strip_prefix('/')?.split_once("/resolve/")?;
    let (commit, name) = file.split_once('/')?;
    let kind = if repository.starts_with("datasets/") { "" } else { "models/" };
    let (_, files) = revisions.get(&(format!("{kind}{repository}"), commit.to_owned()))?;
    let bytes = files.get(name)?.clone();
    let etag = if is_large(name) { sha256(&bytes) } else { git_hash(&bytes) };
    let headers = vec![("ETag", format!("\"{etag}\"")), ("X-Linked-Size", bytes.len().to_string())];
    Some((bytes, headers))
}

fn sibling(name: &str, bytes: &[u8]) -> Value {
    let mut sibling = json!({"rfilename": name, "size": bytes.len(), "blobId": git_hash(bytes)});
    if is_large(name) {
        sibling["lfs"] = json!({"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
        sibling["blobId"] = git_hash(b"pointer").into();
    }
    sibling
}
