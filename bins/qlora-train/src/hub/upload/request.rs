//! Requests of an upload: the token goes to the hub alone, a busy hub is asked again, answers are bounded, and errors
//! say what to do.

use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::SendBody;
use ureq::http::HeaderMap;

use super::super::address::Address;
use super::super::client::{Client, Fault, MAX_REDIRECTS, MAX_SAID, TRIES, header, is_busy, pause, wait_to_ask_again};
use super::super::environment::DEFAULT_ENDPOINT;
use super::local::LocalFile;
use crate::error::Error;
use crate::report::status;

/// JSON of Git LFS
pub(super) const LFS: &str = "application/vnd.git-lfs+json";
/// Limit far above any answer to an upload.
const MAX_ANSWER_BYTES: u64 = 4 << 20;

#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    Bytes(&'a [u8]),
    /// Bytes of a file, from the first to before the last
    Part(&'a LocalFile, u64, u64),
}

/// A request with something in it.
pub(super) struct Request<'a> {
    pub address: &'a Address,
    /// None: a file, which is uploaded with PUT.
    pub content_type: Option<&'a str>,
    /// The request carries the token
    pub as_user: bool,
    pub payload: Payload<'a>,
}

/// An answer, with its text.
pub(super) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: Vec<u8>,
}

impl Reply {
    pub fn is_done(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// A hub, and the repository that is written to.
pub(super) struct Sender<'a> {
    pub client: &'a Client,
    /// `org/name`
    pub name: &'a str,
    /// Folder for records of uploads in parts
    pub uploads: Option<&'a Path>,
}

impl Sender<'_> {
    /// Sends JSON to an address below the hub's, as the user. Failed: every answer but a good one.
    pub fn post_json<T: DeserializeOwned>(&self, path: &str, json: &Value, doing: &str) -> Result<T, Fault> {
        let reply = self.post(path, json)?;
        match reply.is_done() {
            true => self.read(&reply, doing),
            false => Err(Fault::Final(self.refusal(&reply, doing))),
        }
    }

    /// Sends JSON to an address below the hub's, as the user, until it is answered.
    pub fn post(&self, path: &str, json: &Value) -> Result<Reply, Fault> {
        let (address, bytes) = (self.client.address(path)?, json.to_string().into_bytes());
        let content_type = if path.ends_with("objects/batch") { LFS } else { "application/json" };
        let payload = Payload::Bytes(&bytes);
        let request = Request { address: &address, content_type: Some(content_type), as_user: true, payload };
        self.send(&request, &mut |_| ())
    }

    /// Sends until a hub that is not busy answers, over as many connections as it takes. `sent` gets every byte of a
    /// file, also those that are sent again.
    pub fn send(&self, request: &Request, sent: &mut dyn FnMut(i64)) -> Result<Reply, Fault> {
        let mut tries = 1;
        loop {
            let mut counted = 0;
            let answered = self.once(request, &mut |bytes| {
                counted += bytes;
                sent(bytes);
            });
            match answered {
                Ok(reply) if is_busy(reply.status) && tries < TRIES => {
                    sent(-counted);
                    wait_to_ask_again(self.name, reply.status, &reply.headers, tries)?;
                }
                Ok(reply) => return Ok(reply),
                Err(Fault::Broken(why)) if tries < TRIES => {
                    sent(-counted);
                    status!("{}: {why}; trying again", self.name);
                    std::thread::sleep(pause(tries));
                }
                Err(fault) => return Err(fault),
            }
            tries += 1;
        }
    }

    /// One request, and those on the same host that its redirects lead to.
    pub fn once(&self, request: &Request, sent: &mut dyn FnMut(i64)) -> Result<Reply, Fault> {
        let client = self.client;
        let mut at = request.address.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut builder = match request.content_type {
                // A request in the format of Git LFS is answered in the same format.
                Some(LFS) => client.agent.post(at.as_str()).header("content-type", LFS).header("accept", LFS),
                Some(content_type) => client.agent.post(at.as_str()).header("content-type", content_type),
                None => client.agent.put(at.as_str()),
            };
            let is_hub = request.as_user && at.is_same_origin(&client.endpoint);
            if let Some(token) = client.token.as_ref().filter(|_| is_hub) {
                builder = builder.header("authorization", token.header());
            }
            let answered = match request.payload {
                Payload::Bytes(bytes) => builder.send(bytes),
                Payload::Part(file, from, to) => {
                    // Without a length the bytes would be sent in chunks, which stores of files do not take.
                    let builder = builder.header("content-length", (to - from).to_string());
                    builder.send(SendBody::from_reader(&mut file.piece(from, to, &mut *sent)))
                }
            };
            let broken = |why: String| Fault::Broken(format!("{}: {why}", at.host()));
            let response = answered.map_err(|error| broken(client.failure(&error)))?;
            let (parts, body) = response.into_parts();
            let (status, headers) = (parts.status.as_u16(), parts.headers);
            if let Some(location) = header(&headers, "location").filter(|_| matches!(status, 307 | 308)) {
                let next = at.join(location).filter(|next| next.is_same_origin(&at));
                let Some(next) = next else { return Err(self.lost(format!("{} redirects elsewhere", at.host()))) };
                at = next;
                continue;
            }
            let mut text = Vec::new();
            let read = body.into_reader().take(MAX_ANSWER_BYTES).read_to_end(&mut text);
            read.map_err(|error| broken(client.cause(&error)))?;
            return Ok(Reply { status, headers, text });
        }
        Err(self.lost(format!("{} redirects more than {MAX_REDIRECTS} times", request.address.host())))
    }

    pub fn lost(&self, why: String) -> Fault {
        Fault::Final(Error::Failed(format!("{}: {why}", self.name)))
    }

    /// [`refusal`](Self::refusal) as a failure, for requests after work was done.
    pub fn lost_for(&self, reply: &Reply, doing: &str) -> Fault {
        Fault::Final(Error::Failed(self.refusal(reply, doing).to_string()))
    }

    /// The content of an answer. Failed: it cannot be read.
    pub fn read<T: DeserializeOwned>(&self, reply: &Reply, doing: &str) -> Result<T, Fault> {
        let host = self.client.endpoint.host();
        serde_json::from_slice(&reply.text)
            .map_err(|_| self.lost(format!("{doing}: the hub ({host}) gives an unexpected answer")))
    }

    /// An address that the hub gives. Failed: it is no address, or one without encryption although the hub's has it.
    pub fn given_address(&self, href: &str) -> Result<Address, Fault> {
        let hub = &self.client.endpoint;
        // A mirror passes on what the hub says.
        let own = href.strip_prefix(DEFAULT_ENDPOINT).filter(|rest| rest.starts_with('/'));
        let text = own.map_or_else(|| href.to_owned(), |rest| format!("{hub}{rest}"));
        match Address::parse(&text) {
            Some(address) if hub.is_encrypted() && !address.is_encrypted() => {
                Err(self.lost(format!("{} gives an address of {} without encryption", hub.host(), address.host())))
            }
            Some(address) => Ok(address),
            None => Err(self.lost(format!("{} gives something that is no web address", hub.host()))),
        }
    }

    /// The hub's own message in an answer.
    fn said(&self, reply: &Reply) -> String {
        let json: Option<Value> = serde_json::from_slice(&reply.text).ok();
        let of = |key: &str| json.as_ref()?.get(key)?.as_str().map(str::to_owned);
        let said = header(&reply.headers, "x-error-message").map(str::to_owned).or(of("error")).or(of("message"));
        self.told(said.unwrap_or_default().trim())
    }

    /// A message from the hub, shortened, without the token, which it may repeat.
    pub fn told(&self, said: &str) -> String {
        let said = self.client.token.as_ref().map_or_else(|| said.to_owned(), |token| token.taken_out_of(said));
        said.chars().take(MAX_SAID).collect()
    }

    /// An answer in words, with the hub's own message.
    pub fn answers(&self, reply: &Reply, doing: &str) -> String {
        let (hub, said) = (self.client.endpoint.host(), self.said(reply));
        let gap = if said.is_empty() { "" } else { ": " };
        format!("{}: {doing}: the hub ({hub}) answers {}{gap}{said}", self.name, reply.status)
    }

    /// The error for an answer other than success, with advice.
    pub fn refusal(&self, reply: &Reply, doing: &str) -> Error {
        let (name, hub, status) = (self.name, &self.client.endpoint, reply.status);
        let answers = self.answers(reply, doing);
        let org = name.split('/').next().unwrap_or(name);
        match status {
            401 => Error::Refused(format!(
                "{answers}; the token is not valid, or not any more: make one of the type `write` at \
                 {hub}/settings/tokens, and set HF_TOKEN to it or run `hf auth login`"
            )),
            403 => Error::Refused(format!(
                "{answers}; the token may not do that: it needs the type `write`, or if it is fine-grained, write \
                 access to the contents and settings of the repositories of {org} ({hub}/settings/tokens), and its \
                 account has to be allowed to write to {org}"
            )),
            404 => Error::Refused(format!(
                "{answers}; there is no such model, or the token may not see it: check its name, or give --create"
            )),
            400 | 413 | 422 => Error::Failed(format!("{answers}; nothing was committed")),
            _ => Error::Failed(format!(
                "{answers}; nothing was committed: run the command again later, what the hub has by then is not sent \
                 again"
            )),
        }
    }
}
