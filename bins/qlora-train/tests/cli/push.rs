//! `push`: an adapter as a commit on a hub of the loopback that takes files, and on one that does not.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::hub::UNSET;
use crate::loopback::{Loopback, Reply, Request, sha256};
use crate::sandbox::{Done, Sandbox, keys};

const MINE: &str = "models/org/mine";
const TENSORS: &str = "adapter_model.safetensors";
const PUSH: &str = "push out --to org/mine --json";
/// An empty repository
const ATTRIBUTES: [(&str, &[u8]); 1] = [(".gitattributes", b"*.safetensors filter=lfs")];
const BATCH: &str = "objects/batch";
const COMMIT: &str = "/commit/main";
/// Files of a run that others need
const PUBLISHED: [&str; 5] =
    ["README.md", "SHA256SUMS", "adapter_config.json", "adapter_model.safetensors", "learning_curve.svg"];

/// A sandbox with a finished run, and a hub.
struct World {
    sandbox: Sandbox,
    hub: Loopback,
}

impl World {
    /// With an empty repository.
    fn new() -> Self {
        let world = Self::without_repository();
        world.hub.add(MINE, "main", &ATTRIBUTES);
        world
    }

    fn without_repository() -> Self {
        let sandbox = Sandbox::new();
        sandbox.train("--save-steps 2 --max-steps 3").ok();
        Self { sandbox, hub: Loopback::new() }
    }

    /// With the same run, and another hub as [`new`](Self::new) has it.
    fn renewed(self) -> Self {
        let hub = Loopback::new();
        hub.add(MINE, "main", &ATTRIBUTES);
        Self { hub, ..self }
    }

    fn run_with(&self, line: &str, more: &[(&str, &str)]) -> Done {
        let home = self.sandbox.path("home").display().to_string();
        let (home, hub) = (home.as_str(), self.hub.address.as_str());
        let mut variables: Vec<(&str, &str)> = UNSET.map(|name| (name, "")).into();
        variables.extend([("HF_ENDPOINT", hub), ("HF_HOME", home), ("HOME", home), ("HF_TOKEN", "hf_secret")]);
        variables.extend(more);
        let done = self.sandbox.run_with(line, &variables);
        assert!(!done.stdout.contains("hf_secret") && !done.stderr.contains("hf_secret"), "{done:#?}");
        done
    }

    fn push(&self) -> Done {
        self.run_with(PUSH, &[])
    }

    /// Answers in place of the truth to the first of these requests, as often as it says.
    fn fail(&self, method: &'static str, part: &'static str, times: usize, reply: fn() -> Reply) {
        self.hub.answer(move |request, nth| {
            (request.method == method && request.path.contains(part) && nth < times).then(reply)
        });
    }

    fn sent(&self, method: &str, part: &str) -> Vec<Request> {
        let mut requests = self.hub.requests();
        requests.retain(|request| request.method == method && request.path.contains(part));
        requests
    }

    /// The files of the repository's main branch.
    fn there(&self) -> BTreeMap<String, Vec<u8>> {
        self.hub.files(MINE, "main").map(|(_, files)| files).unwrap_or_default()
    }

    /// Everything that is published is there, byte for byte.
    #[track_caller]
    fn assert_arrived(&self) {
        let there = self.there();
        let names: Vec<&str> = there.keys().map(String::as_str).filter(|name| *name != ".gitattributes").collect();
        assert_eq!(names, PUBLISHED);
        for name in PUBLISHED {
            assert!(there[name] == self.sandbox.bytes(&format!("out/{name}")), "{name} differs");
        }
    }

    #[track_caller]
    fn ends_without_commit(&self, done: Done, status: i32, words: &[&str]) {
        done.ended(status, words);
        assert!(self.there().keys().all(|name| name == ".gitattributes"), "{:?}", self.there().keys());
    }
}

/// Answers of a hub that is busy.
fn busy(status: u16, seconds: &str) -> Reply {
    Reply::Status(status, vec![("Retry-After", seconds.to_owned())])
}

fn states(answer: &Value) -> BTreeMap<&str, &str> {
    let files = answer["files"].as_array().unwrap();
    files.iter().map(|file| (file["name"].as_str().unwrap(), file["state"].as_str().unwrap())).collect()
}

#[test]
fn an_adapter_arrives_as_one_commit_byte_for_byte() {
    let world = World::new();
    let done = world.run_with(&format!("{PUSH} --message First"), &[]);
    assert!(done.stderr.contains("not sent: checkpoint-2, metrics.jsonl, report.html"), "{done:#?}");
    let answer = done.json();
    world.assert_arrived();
    let fields = ["repository", "revision", "commit", "url", "created", "files", "bytes_sent"];
    assert_eq!(keys(&answer), fields);
    assert_eq!(answer["commit"], json!(world.hub.files(MINE, "main").unwrap().0));
    assert_eq!(
        (&answer["url"], &answer["created"]),
        (&json!(format!("{}/org/mine", world.hub.address)), &json!(false))
    );
    assert!(states(&answer).values().all(|state| *state == "sent"), "{answer}");
    let there = world.there();
    for file in answer["files"].as_array().unwrap() {
        let bytes = &there[file["name"].as_str().unwrap()];
        assert_eq!((&file["size"], &file["sha256"]), (&json!(bytes.len()), &json!(sha256(bytes))));
    }
    // The large file apart from the commit, and the token where it belongs.
    let lines = String::from_utf8(world.sent("POST", COMMIT)[0].body.clone()).unwrap();
    assert!(lines.starts_with(r#"{"key":"header","value":{"summary":"First","description":""}}"#), "{lines}");
    assert_eq!(lines.lines().filter(|line| line.contains("lfsFile")).count(), 1);
    assert_eq!(world.sent("PUT", "/storage/")[0].body, world.sandbox.bytes(&format!("out/{TENSORS}")));
    for request in world.hub.requests() {
        let expected = (!request.path.starts_with("/storage/")).then(|| "Bearer hf_secret".to_owned());
        assert_eq!(request.authorization, expected, "{} {}", request.method, request.path);
    }
    // The downloaded files match the sent ones.
    let sums = String::from_utf8(world.there()["SHA256SUMS"].clone()).unwrap();
    assert_eq!(sums.lines().count(), PUBLISHED.len() - 1);
    // Again there is nothing to do, and nothing is asked but what is there.
    world.hub.forget();
    let again = world.push().json();
    assert!(states(&again).values().all(|state| *state == "unchanged"), "{again}");
    assert_eq!((&again["commit"], &again["bytes_sent"]), (&answer["commit"], &json!(0)));
    assert!(world.hub.requests().iter().all(|request| request.method == "GET"));
    // Only what changed goes along.
    world.sandbox.write("out/README.md", "---\nlicense: mit\n---\n# Mine\n");
    let edited = world.push().json();
    let sent: Vec<&str> =
        states(&edited).into_iter().filter(|(_, state)| *state == "sent").map(|(name, _)| name).collect();
    assert_eq!(sent, ["README.md", "SHA256SUMS"]);
    let sums = String::from_utf8(world.there()["SHA256SUMS"].clone()).unwrap();
    let line = format!("{}  README.md", sha256(&world.sandbox.bytes("out/README.md")));
    assert!(sums.lines().any(|found| found == line), "{sums}");
}

#[test]
fn a_dry_run_tells_what_would_go_and_asks_nobody() {
    let world = World::new();
    let before = world.sandbox.files();
    for variables in [&[][..], &[("HF_TOKEN", ""), ("HF_HUB_OFFLINE", "1")]] {
        let answer = world.run_with(&format!("{PUSH} --dry-run"), variables).json();
        assert_eq!(keys(&answer), ["repository", "revision", "dry_run", "files", "bytes"]);
        let files = answer["files"].as_array().unwrap();
        let mut names: Vec<&str> = files.iter().map(|file| file["name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, PUBLISHED);
        for file in files {
            let bytes = world.sandbox.bytes(&format!("out/{}", file["name"].as_str().unwrap()));
            assert_eq!((&file["size"], &file["sha256"]), (&json!(bytes.len()), &json!(sha256(&bytes))));
        }
        let total: u64 = files.iter().map(|file| file["size"].as_u64().unwrap()).sum();
        assert_eq!(answer["bytes"], total);
    }
    let told = world.run_with("push out --to org/mine --dry-run", &[]).ok().stdout;
    assert!(told.contains(TENSORS) && told.contains("5 files") && told.contains("nothing was sent"), "{told}");
    assert!(world.hub.requests().is_empty() && world.sandbox.files() == before);
}

#[test]
fn a_large_file_goes_in_parts_where_the_hub_asks_for_them() {
    let world = World::new();
    let size = world.sandbox.bytes(&format!("out/{TENSORS}")).len();
    world.hub.in_parts(size / 3);
    let parts = size.div_ceil(size / 3);
    // One part breaks, one is not taken at first.
    world.hub.answer(move |request, nth| match (request.method.as_str(), nth) {
        ("PUT", 0) if request.path.contains("/2?") => Some(Reply::Take(500)),
        ("PUT", 0) if request.path.contains("/3?") => Some(busy(500, "0")),
        _ => None,
    });
    let done = world.push();
    assert!(done.stderr.contains("trying again") && done.stderr.contains("answers 500"), "{done:#?}");
    done.ok();
    world.assert_arrived();
    // The others were sent once.
    assert_eq!(world.sent("PUT", "/storage/").len(), parts + 2);
    assert_eq!(world.sent("POST", "/complete/").len(), 1);
    assert!(world.sent("PUT", "/storage/").iter().all(|part| part.body.len() <= size / 3));
}

/// A world after a push of a file in this many parts that ended at the third.
fn cut_at_the_third_part() -> (World, usize) {
    let world = World::new();
    let size = world.sandbox.bytes(&format!("out/{TENSORS}")).len();
    world.hub.in_parts(size / 4);
    world.hub.answer(|request, _| request.path.contains("/3?").then_some(Reply::Take(10)));
    world.ends_without_commit(world.push(), 1, &["org/mine", "nothing was committed", "run the command again"]);
    world.hub.answer(|_, _| None);
    world.hub.forget();
    (world, size.div_ceil(size / 4))
}

#[test]
fn parts_that_were_taken_are_not_sent_again() {
    let (world, parts) = cut_at_the_third_part();
    let done = world.push().ok();
    assert!(done.stderr.contains(&format!("{TENSORS}: going on behind 2 of {parts} parts")), "{done:#?}");
    world.assert_arrived();
    let sent = world.sent("PUT", "/storage/");
    let paths: Vec<&str> = sent.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths.len(), parts - 2, "{paths:?}");
    assert!(paths.iter().all(|path| path.ends_with("?uploadId=0")), "{paths:?}");
    // The record of the upload is no longer needed.
    let kept = world.sandbox.path("home/qlora-train/uploads");
    assert!(std::fs::read_dir(kept).unwrap().next().is_none());
}

#[test]
fn a_file_whose_earlier_places_are_too_old_is_sent_whole() {
    let (world, parts) = cut_at_the_third_part();
    let too_old = || Reply::Text(403, "<Error>Request has expired</Error>".to_owned());
    world.hub.answer(move |request, _| request.path.contains("uploadId=0").then(too_old));
    let done = world.push().ok();
    for words in ["asking for another", "the hub begins anew, and all of it is sent again"] {
        assert!(done.stderr.contains(words), "{done:#?}");
    }
    world.assert_arrived();
    let sent = world.sent("PUT", "/storage/");
    assert_eq!(sent.iter().filter(|request| !request.path.contains("uploadId=0")).count(), parts);
    assert_eq!(sent.len(), parts + 1);
}

#[test]
fn a_connection_that_breaks_or_says_nothing_is_tried_again() {
    let replies: [fn() -> Reply; 4] = [|| Reply::Take(10), || Reply::Hang(10), || busy(429, "0"), || busy(503, "0")];
    let is_tried_again = |method: &'static str, part: &'static str| {
        let mut world = World::new();
        // Only silence is waited for: on a busy machine an answer may take a while.
        for (reply, seconds) in replies.into_iter().zip(["60", "2", "60", "60"]) {
            world = world.renewed();
            world.fail(method, part, 1, reply);
            world.run_with(PUSH, &[("HF_HUB_DOWNLOAD_TIMEOUT", seconds)]).ok();
            world.assert_arrived();
            assert_eq!(world.sent(method, part).len(), 2, "{method} {part}");
        }
    };
    // All of them wait at the same time.
    std::thread::scope(|scope| {
        for (method, part) in [("POST", "/preupload/"), ("POST", BATCH), ("PUT", "/storage/"), ("POST", COMMIT)] {
            scope.spawn(move || is_tried_again(method, part));
        }
    });
}

#[test]
fn a_hub_that_stays_busy_is_given_up_and_what_came_of_it_is_told() {
    let mut world = World::new();
    let (nothing, unknown) = ("nothing was committed", "whether it was committed is not known");
    for (method, part, words) in
        [("POST", "/preupload/", nothing), ("PUT", "/storage/", nothing), ("POST", COMMIT, unknown)]
    {
        world = world.renewed();
        world.fail(method, part, 100, || busy(500, "0"));
        world.ends_without_commit(world.push(), 1, &["org/mine", "answers 500", words, "run the command again"]);
        assert_eq!(world.sent(method, part).len(), 5, "{part}");
        world = world.renewed();
        world.fail(method, part, 100, || busy(429, "7200"));
        world.ends_without_commit(world.push(), 1, &["answers 429 and asks to wait 2h00m"]);
        assert_eq!(world.sent(method, part).len(), 1, "{part}");
    }
    world = world.renewed();
    world.fail("POST", COMMIT, 100, || busy(503, "7200"));
    world.ends_without_commit(world.push(), 1, &["answers 503 and asks to wait 2h00m", unknown]);
    // One whose connections all break
    world = world.renewed();
    world.fail("PUT", "/storage/", 100, || Reply::Take(10));
    world.ends_without_commit(world.push(), 1, &["org/mine", "127.0.0.1", nothing, "run the command again"]);
    assert_eq!(world.sent("PUT", "/storage/").len(), 5);
}

#[test]
fn a_push_that_ended_goes_on_with_what_the_hub_has() {
    let world = World::new();
    world.fail("POST", COMMIT, 100, || busy(500, "0"));
    world.ends_without_commit(world.push(), 1, &["committing", "is not sent again"]);
    world.hub.answer(|_, _| None);
    world.hub.forget();
    let answer = world.push().json();
    world.assert_arrived();
    assert!(world.sent("PUT", "").is_empty(), "the bytes are known");
    assert_eq!((states(&answer)[TENSORS], states(&answer)["README.md"]), ("known", "sent"));
}

#[test]
fn a_commit_whose_answer_is_lost_is_looked_for() {
    let world = World::new();
    world.fail("POST", COMMIT, 1, || Reply::Lose);
    let answer = world.push().json();
    world.assert_arrived();
    assert_eq!(answer["commit"], json!(world.hub.files(MINE, "main").unwrap().0));
    assert_eq!(world.sent("POST", COMMIT).len(), 1, "not committed twice");
    // Somebody else commits at the same moment.
    let world = world.renewed();
    world.fail("POST", COMMIT, 1, || Reply::Text(409, json!({"error": "conflict"}).to_string()));
    let done = world.push().ok();
    assert!(done.stderr.contains("somebody else commits"), "{done:#?}");
    world.assert_arrived();
}

#[test]
fn what_the_hub_refuses_says_what_to_do() {
    let said = |status: u16, text: &str| Reply::Text(status, json!({"error": text}).to_string());
    let mut world = World::new();
    for (method, part, status, exit, words) in [
        ("GET", "/revision/", 401, 2, ["the token is not valid", "/settings/tokens"]),
        ("POST", "/preupload/", 401, 2, ["the token is not valid", "hf auth login"]),
        ("POST", "/preupload/", 403, 2, ["the token may not do that", "type `write`"]),
        ("POST", BATCH, 403, 2, ["fine-grained", "repositories of org"]),
        ("POST", COMMIT, 403, 1, ["committing", "the token may not do that"]),
        ("POST", COMMIT, 400, 1, ["answers 400: a word of the hub", "nothing was committed"]),
        ("POST", COMMIT, 413, 1, ["answers 413", "nothing was committed"]),
        ("PUT", "/storage/", 403, 1, ["the place that the hub gives for it answers 403", TENSORS]),
    ] {
        world = world.renewed();
        world.hub.answer(move |request, _| {
            (request.method == method && request.path.contains(part)).then(|| said(status, "a word of the hub"))
        });
        world.ends_without_commit(world.push(), exit, &words);
    }
    // The hub may repeat the token, `run_with` looks for it.
    world = world.renewed();
    world.hub.answer(move |request, _| (request.method == "POST").then(|| said(403, "Bearer hf_secret is bad")));
    world.ends_without_commit(world.push(), 2, &["Bearer … is bad"]);
    // Nobody is asked without a token, or where nobody is to be asked.
    world = world.renewed();
    let done = world.run_with(PUSH, &[("HF_TOKEN", "")]);
    world.ends_without_commit(done, 2, &["found no token", "set HF_TOKEN", "hf auth login"]);
    let done = world.run_with(PUSH, &[("HF_HUB_OFFLINE", "1")]);
    world.ends_without_commit(done, 2, &["HF_HUB_OFFLINE keeps the hub from being asked"]);
    assert!(world.hub.requests().is_empty());
    let done = world.run_with(PUSH, &[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    world.ends_without_commit(done, 1, &["org/mine: the hub cannot be asked", "127.0.0.1:9"]);
    // The token of `hf auth login`
    std::fs::create_dir_all(world.sandbox.path("home")).unwrap();
    world.sandbox.write("home/token", "hf_of_file\n");
    world.run_with(PUSH, &[("HF_TOKEN", "")]).ok();
    assert_eq!(world.sent("POST", COMMIT)[0].authorization.as_deref(), Some("Bearer hf_of_file"));
}

#[test]
fn an_address_that_is_too_old_is_asked_for_again() {
    let world = World::new();
    world.fail("PUT", "/storage/", 1, || Reply::Text(403, "<Error>Request has expired</Error>".to_owned()));
    let done = world.push().ok();
    assert!(done.stderr.contains("asking for another"), "{done:#?}");
    world.assert_arrived();
    assert_eq!(world.sent("POST", BATCH).len(), 2);
}

#[test]
fn answers_that_are_none_are_told() {
    let oid = "0".repeat(64);
    let other = json!({"objects": [{"oid": oid, "size": 3}]}).to_string();
    let refused = |sandbox: &Sandbox| {
        let bytes = sandbox.bytes(&format!("out/{TENSORS}"));
        let error = json!({"code": 422, "message": "too large for you"});
        json!({"objects": [{"oid": sha256(&bytes), "size": bytes.len(), "error": error}]}).to_string()
    };
    let mut world = World::new();
    let modes = |mode: &str| json!({"files": [{"path": "README.md", "uploadMode": mode}]}).to_string();
    for (part, text, words) in [
        ("/preupload/", "<html>".to_owned(), "gives an unexpected answer"),
        ("/preupload/", modes("regular"), "the hub says nothing of adapter_"),
        ("/preupload/", modes("carrier pigeon"), "gives an unexpected answer"),
        (BATCH, "{}".to_owned(), "gives an unexpected answer"),
        (BATCH, other, "answers for another file"),
        (BATCH, String::new(), "too large for you"),
        (COMMIT, "{}".to_owned(), "whether it was committed is not known"),
        (COMMIT, json!({"commitOid": "../.."}).to_string(), "names no commit"),
    ] {
        world = world.renewed();
        let text = if text.is_empty() { refused(&world.sandbox) } else { text };
        world.hub.answer(move |request, _| {
            (request.method == "POST" && request.path.contains(part)).then(|| Reply::Bytes(text.clone().into_bytes()))
        });
        world.ends_without_commit(world.push(), 1, &["org/mine", words]);
    }
}

#[test]
fn a_repository_is_made_where_that_is_asked_for() {
    let world = World::without_repository();
    world.push().ended(2, &["org/mine", "answers 404", "--create"]);
    let answer = world.run_with(&format!("{PUSH} --create"), &[]).json();
    assert_eq!(answer["created"], true);
    assert!(!world.hub.is_private(MINE));
    world.assert_arrived();
    // It is there now, and everybody may read it.
    let answer = world.run_with(&format!("{PUSH} --create"), &[]).json();
    assert_eq!(answer["created"], false);
    world.sandbox.write("out/README.md", "---\nlicense: mit\n---\n# Secret\n");
    world
        .run_with(&format!("{PUSH} --private"), &[])
        .ended(2, &["does not say that it is private", "nothing was sent"]);
    assert!(!String::from_utf8_lossy(&world.there()["README.md"]).contains("Secret"));
    let world = World::without_repository();
    world.run_with(&format!("{PUSH} --create --private"), &[]).ok();
    assert!(world.hub.is_private(MINE));
    world.assert_arrived();
    world.run_with(&format!("{PUSH} --private"), &[]).ok();
    // Without the right to make one
    let world = World::without_repository();
    world.fail("POST", "/repos/create", 1, || Reply::Text(403, json!({"error": "no"}).to_string()));
    world.run_with(&format!("{PUSH} --create"), &[]).ended(2, &["making it", "answers 403: no", "type `write`"]);
}

#[test]
fn another_branch_is_committed_to_and_made_where_that_is_asked_for() {
    let world = World::new();
    let missing = || Reply::Status(404, vec![("X-Error-Code", "RevisionNotFound".to_owned())]);
    world.fail("GET", "/revision/dev", 1, missing);
    world.run_with(&format!("{PUSH} --revision dev"), &[]).ended(2, &["has no branch \"dev\"", "--create"]);
    world.hub.forget();
    world.run_with(&format!("{PUSH} --revision dev --create"), &[]).ok();
    let files = world.hub.files(MINE, "dev").unwrap().1;
    assert!(PUBLISHED.iter().all(|name| files.contains_key(*name)), "{:?}", files.keys());
    assert!(!world.there().contains_key(TENSORS));
}

#[test]
fn what_is_not_whole_is_refused_before_anybody_is_asked() {
    let world = World::new();
    let file = format!("out/{TENSORS}");
    let whole = world.sandbox.bytes(&file);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    std::fs::write(world.sandbox.path(&file), flipped).unwrap();
    world.push().ended(2, &[TENSORS, "the file changed after it was written"]);
    std::fs::write(world.sandbox.path("elsewhere"), &whole).unwrap();
    std::fs::remove_file(world.sandbox.path(&file)).unwrap();
    std::os::unix::fs::symlink(world.sandbox.path("elsewhere"), world.sandbox.path(&file)).unwrap();
    world.push().ended(2, &[TENSORS, "found a link"]);
    for (line, words) in [
        ("push model --to org/mine", ["is a model", "not an adapter"]),
        ("push nowhere --to org/mine", ["nowhere", "no such directory"]),
        ("push out --to mine", ["--to", "org/name"]),
        ("push out --to org/mine --revision ../x", ["revision", "expected a branch"]),
    ] {
        world.run_with(line, &[]).ended(2, &words);
    }
    let mut message = world.sandbox.command("push out --to org/mine --message");
    let output = message.arg("two\nlines").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    // A run that was killed is not finished; its checkpoint is an adapter.
    let killed = world.sandbox.run_at_fault(&crate::sandbox::train("--output-dir cut --save-steps 2"), "step:3");
    assert_eq!(killed.status, None);
    world.run_with("push cut --to org/mine", &[]).ended(2, &["cut", "found no such file"]);
    assert!(world.hub.requests().is_empty(), "{:?}", world.hub.requests());
    world.run_with("push cut/checkpoint-2 --to org/mine", &[]).ok();
    let there = world.there();
    for name in ["optimizer.safetensors", "run_state.json", "trainer_state.json"] {
        assert!(!there.contains_key(name), "{name}");
    }
    assert!(there[TENSORS] == world.sandbox.bytes(&format!("cut/checkpoint-2/{TENSORS}")));
}
