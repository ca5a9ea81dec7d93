//! Large files, which the hub keeps apart from git: by the batch API of Git LFS, whole or in the parts that the hub
//! asks for.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::client::{Fault, header};
use super::kept::{Beginning, Begun, Kept};
use super::local::LocalFile;
use super::request::{LFS, Payload, Reply, Request, Sender};
use crate::report::{count, status, thousands};

/// Maximum number of requests for an address, which may have expired by the time it is used.
const MOST_ADDRESSES: usize = 3;
/// Maximum number of parts; no store accepts more.
const MOST_PARTS: u64 = 10_000;

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    size: u64,
    #[serde(default)]
    error: Option<ObjectError>,
    /// None: the hub has the bytes.
    #[serde(default)]
    actions: Option<Actions>,
}

#[derive(Deserialize)]
struct ObjectError {
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    /// For a file in parts: the size of a part, and the address of each by its number
    #[serde(default)]
    header: Option<Map<String, Value>>,
}

/// Sends the bytes of a file, unless the hub has them. False: it has them. `sent` gets every byte that is sent, and as
/// negative numbers bytes that no longer count.
pub(super) fn upload(
    sender: &Sender,
    revision: &str,
    file: &LocalFile,
    sent: &mut dyn FnMut(i64),
) -> Result<bool, Fault> {
    let mut kept = None;
    for address in 1..=MOST_ADDRESSES {
        let actions = place(sender, revision, file)?;
        let Some((action, check)) = actions.and_then(|actions| Some((actions.upload?, actions.verify))) else {
            Kept::remove(sender.uploads, file.sha256());
            return Ok(false);
        };
        let mut counted = 0;
        let mut count = |bytes| {
            counted += bytes;
            sent(bytes);
        };
        let reply = match parts(action.header.as_ref(), file.size()) {
            Ok(None) => put_whole(sender, &action, file, &mut count)?,
            Ok(Some(parts)) => {
                let kept = kept.get_or_insert_with(|| Kept::open(sender.uploads, file.sha256()));
                put_parts(sender, kept, begun(sender, &action, parts, file), file, &mut count)?
            }
            Err(why) => return Err(sender.lost(format!("{}: {why}", file.name()))),
        };
        match reply.status {
            200..300 => {
                verify(sender, check.as_ref(), file)?;
                return Ok(true);
            }
            400 | 403 | 404 | 410 if address < MOST_ADDRESSES => {
                sent(-counted);
                kept.iter_mut().for_each(Kept::refuse);
                status!("{}: the place for it answers {}; asking for another", file.name(), reply.status);
            }
            status => {
                kept.iter_mut().for_each(Kept::forget);
                let why = format!(
                    "{}: the place that the hub gives for it answers {status}; nothing was committed: run the command \
                     again, what the hub has by then is not sent again",
                    file.name()
                );
                return Err(sender.lost(why));
            }
        }
    }
    Err(sender.lost(format!("{}: none of the addresses that the hub gives accepts it", file.name())))
}

/// Name of the request for the place of a file, in messages.
const ASKING_PLACE: &str = "asking where a large file goes";

/// Address to upload a file to. None: the hub has its bytes.
fn place(sender: &Sender, revision: &str, file: &LocalFile) -> Result<Option<Actions>, Fault> {
    let json = json!({
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": [{"oid": file.sha256(), "size": file.size()}],
        "hash_algo": "sha256",
        "ref": {"name": revision},
    });
    let path = format!("{}.git/info/lfs/objects/batch", sender.name);
    chosen(sender, sender.post_json(&path, &json, ASKING_PLACE)?, file)
}

/// The hub's answer about one file. None: it has its bytes.
fn chosen(sender: &Sender, batch: Batch, file: &LocalFile) -> Result<Option<Actions>, Fault> {
    let found = batch.objects.into_iter().find(|object| object.oid == file.sha256() && object.size == file.size());
    let Some(object) = found else {
        return Err(sender.lost(format!("{ASKING_PLACE}: the hub answers for another file than {}", file.name())));
    };
    match object.error {
        Some(error) => {
            let message = sender.told(&error.message);
            Err(sender.lost(format!("the hub does not take {}: {message}", file.name())))
        }
        None => Ok(object.actions),
    }
}

/// Reads the hub's answer about the place of a file as [`upload`] does, and sends nothing. None: the file is not sent,
/// or as a whole.
pub(super) fn read_place(sender: &Sender, answer: &Reply, file: &LocalFile) -> Result<Option<Begun>, Fault> {
    let actions = chosen(sender, sender.read(answer, ASKING_PLACE)?, file)?;
    let Some(action) = actions.and_then(|actions| actions.upload) else { return Ok(None) };
    sender.given_address(&action.href)?;
    let parts = parts(action.header.as_ref(), file.size()).map_err(|why| sender.lost(why))?;
    Ok(parts.map(|parts| begun(sender, &action, parts, file)))
}

/// Size of the parts, and the address of each. None: the file is uploaded as a whole. Errors: parts that do not make
/// the file.
fn parts(header: Option<&Map<String, Value>>, size: u64) -> Result<Option<(u64, Vec<String>)>, String> {
    let Some(header) = header else { return Ok(None) };
    let Some(part) = header.get("chunk_size") else { return Ok(None) };
    let part = part.as_u64().or_else(|| part.as_str()?.trim().parse().ok()).filter(|part| *part > 0);
    let Some(part) = part else { return Err("the hub asks for parts of no size".to_owned()) };
    let mut numbered: Vec<(u64, String)> =
        header.iter().filter_map(|(key, value)| Some((key.parse::<u64>().ok()?, value.as_str()?.to_owned()))).collect();
    numbered.sort();
    let wanted = size.div_ceil(part);
    if wanted > MOST_PARTS {
        return Err(format!("the hub asks for {}, expected at most {}", count(wanted, "part"), thousands(MOST_PARTS)));
    }
    if !numbered.iter().map(|(number, _)| *number).eq(1..=wanted) {
        let (given, part, size) = (count(numbered.len() as u64, "part"), count(part, "byte"), count(size, "byte"));
        return Err(format!("the hub gives places for {given} of {part}, the file has {size}"));
    }
    Ok(Some((part, numbered.into_iter().map(|(_, href)| href).collect())))
}

/// Uploads a file as a whole.
fn put_whole(sender: &Sender, action: &Action, file: &LocalFile, sent: &mut dyn FnMut(i64)) -> Result<Reply, Fault> {
    put(sender, &action.href, file, (0, file.size()), sent)
}

fn put(
    sender: &Sender,
    href: &str,
    file: &LocalFile,
    (from, to): (u64, u64),
    sent: &mut dyn FnMut(i64),
) -> Result<Reply, Fault> {
    let address = sender.given_address(href)?;
    // The address is signed, so that the upload needs no token.
    let request =
        Request { address: &address, content_type: None, as_user: false, payload: Payload::Part(file, from, to) };
    sender.send(&request, sent)
}

/// The upload of a file in parts at the place that the hub gives.
fn begun(sender: &Sender, action: &Action, (part, places): (u64, Vec<String>), file: &LocalFile) -> Begun {
    Begun {
        hub: sender.client.endpoint.to_string(),
        repository: sender.name.to_owned(),
        sha256: file.sha256().to_owned(),
        size: file.size(),
        part,
        places,
        complete: action.href.clone(),
        taken: Vec::new(),
    }
}

/// Uploads each part after those that were accepted before, and reports that all are there. A part whose connection
/// breaks is sent again alone. Returns the answer to the last request, or to the first that was not accepted.
fn put_parts(
    sender: &Sender,
    kept: &mut Kept,
    place: Begun,
    file: &LocalFile,
    sent: &mut dyn FnMut(i64),
) -> Result<Reply, Fault> {
    let (begun, beginning) = kept.begin(place);
    sent(begun.taken_bytes() as i64);
    let Begun { part: size, places, complete, taken, .. } = begun;
    match beginning {
        Beginning::New => {}
        Beginning::GoesOn => {
            let all = count(places.len() as u64, "part");
            status!("{}: going on behind {} of {all}, which were taken before", file.name(), taken.len());
        }
        Beginning::Again => status!("{}: the hub begins anew, and all of it is sent again", file.name()),
    }
    let name = |at: usize, etag: &str| json!({"partNumber": at + 1, "etag": etag});
    let mut done: Vec<Value> = taken.iter().enumerate().map(|(at, etag)| name(at, etag)).collect();
    for (at, href) in places.iter().enumerate().skip(taken.len()) {
        let from = at as u64 * size;
        let reply = put(sender, href, file, (from, (from + size).min(file.size())), sent)?;
        if !reply.is_done() {
            return Ok(reply);
        }
        let Some(etag) = header(&reply.headers, "etag").filter(|etag| !etag.is_empty()) else {
            return Err(sender.lost(format!("{}: part {} was taken without a name (ETag)", file.name(), at + 1)));
        };
        kept.take(etag);
        done.push(name(at, etag));
    }
    let address = sender.given_address(&complete)?;
    let json = json!({"oid": file.sha256(), "parts": done}).to_string();
    let payload = Payload::Bytes(json.as_bytes());
    let request = Request { address: &address, content_type: Some(LFS), as_user: false, payload };
    let reply = sender.send(&request, &mut |_| ())?;
    if reply.is_done() {
        kept.forget();
    }
    Ok(reply)
}

/// Asks the hub whether it has the sent bytes, if it offers that.
fn verify(sender: &Sender, action: Option<&Action>, file: &LocalFile) -> Result<(), Fault> {
    let Some(action) = action else { return Ok(()) };
    let address = sender.given_address(&action.href)?;
    let json = json!({"oid": file.sha256(), "size": file.size()}).to_string();
    let payload = Payload::Bytes(json.as_bytes());
    let request = Request { address: &address, content_type: Some(LFS), as_user: true, payload };
    let reply = sender.send(&request, &mut |_| ())?;
    match reply.is_done() {
        true => Ok(()),
        false => Err(Fault::Final(sender.refusal(&reply, &format!("checking {}", file.name())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_in_order_and_make_the_file() {
        let of = |header: Value, size: u64| parts(header.as_object(), size);
        assert_eq!(parts(None, 5), Ok(None));
        assert_eq!(of(json!({"authorization": "x"}), 5), Ok(None));
        let texts = |places: &[&str]| places.iter().map(|place| (*place).to_owned()).collect::<Vec<_>>();
        let given = json!({"chunk_size": "2", "00002": "b", "00001": "a", "3": "c", "x": "y"});
        assert_eq!(of(given.clone(), 5), Ok(Some((2, texts(&["a", "b", "c"])))));
        assert_eq!(of(given.clone(), 6), Ok(Some((2, texts(&["a", "b", "c"])))));
        for (header, size) in [
            (given.clone(), 4),
            (given, 7),
            (json!({"chunk_size": 0}), 5),
            (json!({"chunk_size": "many", "1": "a"}), 5),
            (json!({"chunk_size": 5, "2": "a"}), 5),
            (json!({"chunk_size": 5, "1": 7}), 5),
            (json!({"chunk_size": 1, "1": "a"}), u64::MAX),
        ] {
            assert!(of(header.clone(), size).is_err(), "{header} {size}");
        }
        let many: Map<String, Value> = (1..=10_001).map(|part| (part.to_string(), json!("a"))).collect();
        let mut many = Value::from(many);
        many["chunk_size"] = json!(1);
        assert_eq!(of(many, 10_001), Err("the hub asks for 10,001 parts, expected at most 10,000".to_owned()));
        let one = of(json!({"chunk_size": 1, "1": "a"}), 2);
        assert_eq!(one, Err("the hub gives places for 1 part of 1 byte, the file has 2 bytes".to_owned()));
    }
}
