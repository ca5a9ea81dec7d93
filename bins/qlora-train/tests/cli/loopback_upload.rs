//! The side of the loopback hub that takes files: repositories, the batch API of large files, and commits.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::loopback_hub::{Files, Headers, Request, State, git_hash, is_large, sha256};

type Answer = (u16, Headers, Vec<u8>);

fn told(status: u16, json: &Value) -> Option<Answer> {
    Some((status, Vec::new(), json.to_string().into_bytes()))
}

/// Does what a request asks for. None: there is no such place.
pub fn written(state: &State, request: &Request, host: &str) -> Option<Answer> {
    let path = request.path.trim_start_matches('/');
    let json = || serde_json::from_slice::<Value>(&request.body).ok();
    match (request.method.as_str(), path) {
        ("POST", "api/repos/create") => create(state, &json()?),
        ("POST", "verify") => {
            let known = state.objects.lock().unwrap().contains_key(json()?["oid"].as_str()?);
            told(if known { 200 } else { 404 }, &json!({}))
        }
        ("POST", path) if path.starts_with("complete/") => complete(state, path.strip_prefix("complete/")?, &json()?),
        ("POST", path) if path.ends_with(".git/info/lfs/objects/batch") => batch(state, &json()?, host),
        ("POST", path) => {
            let (repository, rest) = path.strip_prefix("api/")?.match_indices('/').nth(2).map(|(at, _)| {
                let path = path.strip_prefix("api/").unwrap_or(path);
                (&path[..at], &path[at + 1..])
            })?;
            let (what, revision) = rest.split_once('/')?;
            let revision = revision.replace("%2F", "/");
            match what {
                "preupload" => preupload(state, repository, &revision, &json()?),
                "commit" => commit(state, repository, &revision, &request.body),
                "branch" => branch(state, repository, &revision),
                _ => None,
            }
        }
        ("PUT", path) => put(state, path.strip_prefix("storage/")?, &request.body),
        _ => None,
    }
}

fn create(state: &State, json: &Value) -> Option<Answer> {
    let name = format!("{}/{}", json["organization"].as_str()?, json["name"].as_str()?);
    let repository = format!("models/{name}");
    assert_eq!(json["type"], "model");
    if state.revisions.lock().unwrap().contains_key(&(repository.clone(), "main".to_owned())) {
        return told(409, &json!({"error": "You already created this model repo"}));
    }
    if json["visibility"] == "private" {
        state.private.lock().unwrap().insert(repository.clone());
    }
    let attributes = ".gitattributes".to_owned();
    state.put(&repository, "main", Files::from([(attributes, b"*.safetensors filter=lfs".to_vec())]));
    told(200, &json!({"url": format!("https://hub.example/{name}")}))
}

fn branch(state: &State, repository: &str, revision: &str) -> Option<Answer> {
    let main = state.revisions.lock().unwrap().get(&(repository.to_owned(), "main".to_owned())).cloned()?;
    state.put(repository, revision, main.1);
    told(200, &json!({}))
}

fn preupload(state: &State, repository: &str, revision: &str, json: &Value) -> Option<Answer> {
    state.revisions.lock().unwrap().get(&(repository.to_owned(), revision.to_owned()))?;
    let mode = |file: &Value| {
        let name = file["path"].as_str().unwrap();
        let sample = STANDARD.decode(file["sample"].as_str().unwrap()).unwrap();
        assert_eq!(sample.len() as u64, file["size"].as_u64().unwrap().min(512), "{name}");
        json!({"path": name, "uploadMode": if is_large(name) { "lfs" } else { "regular" }, "shouldIgnore": false})
    };
    let files: Vec<Value> = json["files"].as_array()?.iter().map(mode).collect();
    told(200, &json!({"files": files}))
}

fn batch(state: &State, json: &Value, host: &str) -> Option<Answer> {
    assert_eq!((&json["operation"], &json["hash_algo"]), (&json!("upload"), &json!("sha256")));
    let (known, part) = (state.objects.lock().unwrap(), *state.part_size.lock().unwrap());
    let place = |object: &Value| {
        let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
        if known.contains_key(oid) {
            return object.clone();
        }
        let verify = json!({"href": format!("http://{host}/verify")});
        let upload = match part {
            0 => json!({"href": format!("http://{host}/storage/{oid}")}),
            part => {
                // Each is an upload of its own, as in stores of files.
                let mut uploads = state.uploads.lock().unwrap();
                let upload = format!("uploadId={uploads}");
                *uploads += 1;
                let at = |number: usize| {
                    (format!("{number:05}"), json!(format!("http://{host}/storage/{oid}/{number}?{upload}")))
                };
                let mut header: Map<String, Value> = (1..=size.div_ceil(part)).map(at).collect();
                header.insert("chunk_size".to_owned(), part.to_string().into());
                json!({"href": format!("http://{host}/complete/{oid}?{upload}"), "header": header})
            }
        };
        json!({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
    };
    let objects: Vec<Value> = json["objects"].as_array()?.iter().map(place).collect();
    told(200, &json!({"transfer": "basic", "objects": objects}))
}

fn put(state: &State, path: &str, bytes: &[u8]) -> Option<Answer> {
    let Some((oid, number)) = path.split_once('/') else {
        if sha256(bytes) != path {
            return told(400, &json!({"error": "other bytes than were announced"}));
        }
        state.objects.lock().unwrap().insert(path.to_owned(), bytes.to_vec());
        return Some((200, Vec::new(), Vec::new()));
    };
    let (number, upload) = number.split_once('?')?;
    let number: usize = number.parse().ok()?;
    state.parts.lock().unwrap().insert((format!("{oid}?{upload}"), number), bytes.to_vec());
    Some((200, vec![("ETag", format!("\"{}\"", git_hash(bytes)))], Vec::new()))
}

/// Puts the parts of an upload together that the client names.
fn complete(state: &State, upload: &str, json: &Value) -> Option<Answer> {
    let (oid, _) = upload.split_once('?')?;
    assert_eq!(json["oid"], oid);
    let sent = state.parts.lock().unwrap();
    let mut whole = Vec::new();
    for (at, part) in json["parts"].as_array()?.iter().enumerate() {
        let bytes = sent.get(&(upload.to_owned(), at + 1))?;
        let expected = json!({"partNumber": at + 1, "etag": format!("\"{}\"", git_hash(bytes))});
        assert_eq!(*part, expected);
        whole.extend(bytes);
    }
    put(state, oid, &whole)
}

fn commit(state: &State, repository: &str, revision: &str, body: &[u8]) -> Option<Answer> {
    let key = (repository.to_owned(), revision.to_owned());
    let (_, mut files) = state.revisions.lock().unwrap().get(&key).cloned()?;
    let lines: Vec<Value> =
        String::from_utf8(body.to_vec()).ok()?.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["key"], "header");
    let mut added = BTreeMap::new();
    for line in &lines[1..] {
        let (value, name) = (&line["value"], line["value"]["path"].as_str()?.to_owned());
        let bytes = match line["key"].as_str()? {
            "file" => STANDARD.decode(value["content"].as_str()?).ok()?,
            "lfsFile" => {
                let oid = value["oid"].as_str()?;
                let Some(bytes) = state.objects.lock().unwrap().get(oid).cloned() else {
                    return told(400, &json!({"error": format!("no object {oid}")}));
                };
                assert_eq!((&value["algo"], value["size"].as_u64()), (&json!("sha256"), Some(bytes.len() as u64)));
                bytes
            }
            other => return told(400, &json!({"error": format!("{other} is no operation")})),
        };
        assert!(added.insert(name, bytes).is_none(), "twice");
    }
    files.extend(added);
    let commit = state.put(repository, revision, files);
    told(200, &json!({"success": true, "commitOid": commit, "commitUrl": "https://hub.example/commit"}))
}
