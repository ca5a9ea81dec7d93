//! Models and data sets by their ids, from a hub on the loopback that behaves, and from one that does not.

use std::path::PathBuf;

use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use serde_json::{Value, json};

use crate::loopback::{Loopback, Reply, sha256};
use crate::sandbox::{Done, Sandbox, train};

const WEIGHTS: &str = "model.safetensors";
/// Variables that would lead elsewhere.
pub const UNSET: [&str; 15] = [
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
];

/// A sandbox, and a hub that has its model as `org/tiny`.
pub struct World {
    pub sandbox: Sandbox,
    pub hub: Loopback,
    /// Commit of the model
    pub commit: String,
}

impl World {
    pub fn new() -> Self {
        Self::of(Sandbox::new())
    }

    fn of(sandbox: Sandbox) -> Self {
        let hub = Loopback::new();
        // Files that are not read here stay where they are.
        let more: [(&str, &[u8]); 4] = [
            ("pytorch_model.bin", b"pickle"),
            ("README.md", b"# tiny"),
            ("original/consolidated.00.pth", b"twice"),
            ("onnx/model.onnx", b"graph"),
        ];
        let commit = hub.add_dir("models/org/tiny", &sandbox.path("model"), &more);
        Self { sandbox, hub, commit }
    }

    pub fn run_with(&self, line: &str, more: &[(&str, &str)]) -> Done {
        let home = self.sandbox.path("home").display().to_string();
        let (home, hub) = (home.as_str(), self.hub.address.as_str());
        let mut variables = vec![("HF_ENDPOINT", hub), ("HF_HOME", home), ("HOME", home)];
        variables.extend(UNSET.map(|name| (name, "")));
        variables.extend(more);
        self.sandbox.run_with(line, &variables)
    }

    pub fn run(&self, line: &str) -> Done {
        self.run_with(line, &[])
    }

    /// Trains a step on the model of the hub.
    fn train(&self, more: &str) -> Done {
        self.run(&train(&format!("--model org/tiny --max-steps 1 {more}")))
    }

    fn cache(&self, name: &str) -> PathBuf {
        self.sandbox.path("home/hub/models--org--tiny").join(name)
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        self.cache("snapshots").join(&self.commit).join(name)
    }

    fn weights(&self) -> Vec<u8> {
        self.sandbox.bytes("model/model.safetensors")
    }

    fn blob(&self) -> PathBuf {
        self.cache("blobs").join(sha256(&self.weights()))
    }

    /// Leaves the beginning of the weights, as by an earlier download.
    fn leave(&self, bytes: &[u8]) {
        std::fs::create_dir_all(self.cache("blobs")).unwrap();
        std::fs::write(self.blob().with_extension("incomplete"), bytes).unwrap();
    }

    /// The command ends with this status and words, and the cache holds nothing that would count as the weights.
    #[track_caller]
    fn ends_without_weights(&self, done: Done, status: i32, words: &[&str]) {
        done.ended(status, words);
        assert!(!self.blob().exists() && !self.snapshot(WEIGHTS).exists());
        assert!(!self.sandbox.path("out").exists());
    }
}

#[test]
fn a_model_is_downloaded_once_and_its_commit_is_recorded() {
    let world = World::new();
    let done = world.train("").ok();
    assert!(done.stderr.contains("org/tiny at") && done.stderr.contains("downloading"), "{done:#?}");
    // The layout of the hub's own client.
    assert_eq!(std::fs::read_to_string(world.cache("refs/main")).unwrap(), world.commit);
    let link = std::fs::read_link(world.snapshot(WEIGHTS)).unwrap();
    assert_eq!(link, PathBuf::from(format!("../../blobs/{}", sha256(&world.weights()))));
    assert_eq!(std::fs::read(world.snapshot(WEIGHTS)).unwrap(), world.weights());
    assert!(std::fs::read_dir(world.cache("blobs")).unwrap().all(|e| e.unwrap().path().extension().is_none()));
    for unread in ["pytorch_model.bin", "consolidated.00.pth", "model.onnx", "README.md"] {
        assert!(world.hub.asked(unread).is_empty(), "{unread}");
    }
    let config = world.sandbox.json("out/adapter_config.json");
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&json!("org/tiny"), &json!(world.commit)));
    assert_eq!(world.sandbox.json("out/run.json")["base"]["revision"], json!(world.commit));

    // The hub is asked for a branch, but not for a commit.
    world.hub.forget();
    world.train("--output-dir again").ok();
    assert_eq!(world.hub.requests().len(), 1, "{:?}", world.hub.requests());
    world.hub.forget();
    world.run(&train(&format!("--model org/tiny@{} --output-dir third --max-steps 1", world.commit))).ok();
    // The adapter knows its base and the commit.
    world.run("eval --adapter out --data rows.jsonl").ok();
    world.run_with("eval --model org/tiny --data rows.jsonl", &[("HF_HUB_OFFLINE", "1")]).ok();
    assert!(world.hub.requests().is_empty(), "{:?}", world.hub.requests());
    world.sandbox.assert_same_result("out", "again");
}

#[test]
fn a_plan_needs_the_config_alone_and_a_run_every_shard() {
    let world = World::of(Sandbox::of(&Synthetic { shards: 3, ..Synthetic::new(tiny_arch(), 1) }));
    let plan: Value = world.run("plan --json --model org/tiny --max-length 64").json();
    assert!(plan["host"]["peak_bytes"].as_u64().unwrap() > 0);
    assert!(world.hub.asked(".safetensors").is_empty() && world.hub.asked("index.json").is_empty());
    let own: Value = world.run("plan --json --model model --max-length 64").json();
    assert_eq!(plan["fits"], own["fits"]);
    world.train("").ok();
    assert_eq!(world.hub.asked(".safetensors").len(), 3);
    // A shard that is gone is fetched again, and refused where it must not be.
    let shard = world.snapshot("model-00002-of-00003.safetensors");
    let blob = std::fs::canonicalize(&shard).unwrap();
    std::fs::remove_file(&blob).unwrap();
    let line = format!("eval --model org/tiny@{} --data rows.jsonl", world.commit);
    world.run_with(&line, &[("HF_HUB_OFFLINE", "1")]).ended(2, &["model-00002-of-00003", "HF_HUB_OFFLINE"]);
    world.hub.forget();
    world.run(&line).ok();
    assert_eq!(world.hub.requests().len(), 1);
    assert!(blob.is_file());
}

#[test]
fn a_path_wins_over_an_id_and_paths_ask_nobody() {
    let world = World::new();
    world.run(&train("--max-steps 1 --output-dir local")).ok();
    std::fs::create_dir(world.sandbox.path("org")).unwrap();
    std::fs::rename(world.sandbox.path("model"), world.sandbox.path("org/tiny")).unwrap();
    world.train("").ok();
    let paths =
        ["--model nowhere", "--model ./org/none", "--model /org/none", "--model a/b/c", "--data rows/gone.jsonl"];
    // A folder that is there makes a path of what could be an id.
    for line in paths.into_iter().chain(["--model org/gone", "--data org/gone"]) {
        world.run(&train(&format!("--output-dir nowhere {line}"))).ended(2, &[]);
    }
    assert!(world.hub.requests().is_empty(), "{:?}", world.hub.requests());
}

#[test]
fn a_download_that_was_cut_goes_on_where_it_ended() {
    let world = World::new();
    let half = world.weights().len() / 2;
    world.hub.answer(move |request, nth| (request.path.ends_with(WEIGHTS) && nth == 0).then_some(Reply::Cut(half)));
    let done = world.train("").ok();
    assert!(done.stderr.contains("the connection was cut; going on after"), "{done:#?}");
    let ranges: Vec<_> = world.hub.asked(WEIGHTS).into_iter().map(|request| request.range).collect();
    assert_eq!(ranges, [None, Some(format!("bytes={half}-"))]);
}

#[test]
fn a_download_of_an_earlier_process_goes_on_where_it_ended() {
    let world = World::new();
    let half = world.weights().len() / 2;
    world.leave(&world.weights()[..half]);
    world.train("").ok();
    let ranges: Vec<_> = world.hub.asked(WEIGHTS).into_iter().map(|request| request.range).collect();
    assert_eq!(ranges, [Some(format!("bytes={half}-"))]);
    assert_eq!(std::fs::read(world.blob()).unwrap(), world.weights());
}

#[test]
fn what_an_earlier_process_left_is_checked() {
    for (left, requests) in [
        // Other bytes, all of them, more than all, and none
        (vec![7; 1000], 2),
        (World::new().weights(), 0),
        (vec![7; 10_000_000], 1),
        (Vec::new(), 1),
    ] {
        let world = World::new();
        world.leave(&left);
        world.train("").ok();
        assert_eq!(world.hub.asked(WEIGHTS).len(), requests, "{} bytes", left.len());
        assert_eq!(std::fs::read(world.blob()).unwrap(), world.weights());
    }
}

/// A blob counts by its bytes, whoever wrote it.
#[test]
fn a_blob_that_is_there_is_checked() {
    let mut other = World::new().weights();
    *other.last_mut().unwrap() ^= 1;
    for (left, requests) in [(other, 1), (World::new().weights(), 0)] {
        let world = World::new();
        std::fs::create_dir_all(world.cache("blobs")).unwrap();
        std::fs::write(world.blob(), left).unwrap();
        world.train("").ok();
        assert_eq!(world.hub.asked(WEIGHTS).len(), requests);
        assert_eq!(std::fs::read(world.blob()).unwrap(), world.weights());
    }
}

/// A license goes with a model where the hub gives it, and without it the model is whole.
#[test]
fn a_license_that_is_missing_is_no_reason_to_refuse() {
    let world = World::new();
    let license: [(&str, &[u8]); 1] = [("LICENSE", b"terms")];
    let commit = world.hub.add_dir("models/org/licensed", &world.sandbox.path("model"), &license);
    let file = world.sandbox.path("home/hub/models--org--licensed/snapshots").join(&commit).join("LICENSE");
    let line = |out: &str| train(&format!("--model org/licensed@{commit} --max-steps 1 --output-dir {out}"));
    world.hub.answer(|request, _| request.path.ends_with("LICENSE").then(|| Reply::Status(403, Vec::new())));
    world.run(&line("without")).ok();
    assert!(!file.exists());
    world.hub.answer(|_, _| None);
    world.hub.forget();
    world.run_with(&line("offline"), &[("HF_HUB_OFFLINE", "1")]).ok();
    assert!(!file.exists() && world.hub.requests().is_empty());
    world.run(&line("with")).ok();
    assert_eq!(std::fs::read(&file).unwrap(), b"terms");
    assert_eq!(world.hub.requests().len(), 1, "{:?}", world.hub.requests());
}

#[test]
fn a_hub_without_parts_of_files_sends_them_whole() {
    let world = World::new();
    world.leave(&world.weights()[..1000]);
    world.hub.answer(|request, _| request.path.ends_with(WEIGHTS).then_some(Reply::Whole));
    world.train("").ok();
    assert_eq!(std::fs::read(world.blob()).unwrap(), world.weights());
    // A hub that refuses the part is asked for the whole file.
    let world = World::new();
    world.leave(&world.weights()[..1000]);
    let refuse = |request: &crate::loopback::Request, _| {
        (request.path.ends_with(WEIGHTS) && request.range.is_some()).then(|| Reply::Status(416, Vec::new()))
    };
    world.hub.answer(refuse);
    world.train("").ok();
    assert_eq!(std::fs::read(world.blob()).unwrap(), world.weights());
}

#[test]
fn a_hub_that_says_nothing_is_given_up_and_asked_again() {
    let world = World::new();
    world.hub.answer(|request, nth| (request.path.ends_with(WEIGHTS) && nth == 0).then_some(Reply::Stall(5000)));
    let line = train("--model org/tiny --max-steps 1");
    let done = world.run_with(&line, &[("HF_HUB_DOWNLOAD_TIMEOUT", "1")]).ok();
    assert!(done.stderr.contains("nothing came for 1 s; going on after"), "{done:#?}");
    assert_eq!(world.hub.asked(WEIGHTS)[1].range.as_deref(), Some("bytes=5000-"));
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let (world, other) = (World::new(), Loopback::new());
    let (elsewhere, weights) = (other.address.clone(), world.weights());
    other.answer(move |_, _| Some(Reply::Bytes(weights.clone())));
    world.hub.answer(move |request, _| {
        let location = match request.path.as_str() {
            path if path.ends_with(WEIGHTS) => format!("{elsewhere}{path}"),
            // To the hub itself, as where a model was renamed.
            path if path.ends_with("config.json") && !path.contains("moved") => format!("{path}?moved=config.json"),
            _ => return None,
        };
        Some(Reply::Status(302, vec![("Location", location)]))
    });
    let line = train("--model org/tiny --max-steps 1");
    let done = world.run_with(&line, &[("HF_TOKEN", "hf_secret")]).ok();
    assert!(!done.stderr.contains("hf_secret") && !done.stdout.contains("hf_secret"));
    let sent = |hub: &Loopback| hub.requests().into_iter().map(|request| request.authorization).collect::<Vec<_>>();
    let tokens = sent(&world.hub);
    assert!(tokens.iter().all(|token| token.as_deref() == Some("Bearer hf_secret")), "{tokens:?}");
    assert_eq!(sent(&other), [None::<String>]);
    for file in world.sandbox.files().values().flatten() {
        assert!(!file.windows(9).any(|bytes| bytes == b"hf_secret"));
    }
}

#[test]
fn redirects_end_and_lead_to_the_web() {
    for (location, words) in [
        ("/org/tiny/again", "redirects more than 5 times"),
        ("file:///etc/passwd", "no web address"),
        ("", "no web address"),
    ] {
        let world = World::new();
        world.hub.answer(move |_, _| Some(Reply::Status(302, vec![("Location", location.to_owned())])));
        world.ends_without_weights(world.train(""), 1, &["org/tiny", words]);
    }
}

#[test]
fn what_the_hub_refuses_says_what_to_do() {
    let code = |code: &str| vec![("X-Error-Code", code.to_owned())];
    let token = ("HF_TOKEN", "hf_x");
    for (status, headers, token, words) in [
        (401, code("RepoNotFound"), None, ["found no such directory", "set HF_TOKEN"]),
        (401, code("RepoNotFound"), Some(token), ["the token is not valid", "no model of this name"]),
        (401, code("GatedRepo"), None, ["is gated", "accept its terms at"]),
        (403, code("GatedRepo"), Some(token), ["is gated", "by the account of the token"]),
        (403, Vec::new(), Some(token), ["answers 403", "may not read"]),
        (404, code("RepoNotFound"), None, ["found no such directory", "no model of this name"]),
        (404, code("RevisionNotFound"), None, ["no revision", "\"main\""]),
    ] {
        let world = World::new();
        let before = world.sandbox.files();
        world.hub.answer(move |_, _| Some(Reply::Status(status, headers.clone())));
        let done = world.run_with(&train("--model org/tiny"), &Vec::from_iter(token));
        world.ends_without_weights(done, 2, &words);
        assert!(world.sandbox.files() == before, "{status}: something was written");
    }
    // A file that is refused later is reported too.
    let world = World::new();
    world.hub.answer(move |request, _| request.path.ends_with(WEIGHTS).then(|| Reply::Status(403, Vec::new())));
    world.ends_without_weights(world.train(""), 2, &["org/tiny", "answers 403"]);
}

#[test]
fn a_busy_hub_is_asked_again_and_not_for_ever() {
    for status in [429, 503] {
        let world = World::new();
        let soon = || vec![("Retry-After", "0".to_owned())];
        world.hub.answer(move |_, nth| (nth == 0).then(|| Reply::Status(status, soon())));
        world.train("").ok();
    }
    let world = World::new();
    world.hub.answer(|_, _| Some(Reply::Status(429, vec![("Retry-After", "0".to_owned())])));
    world.ends_without_weights(world.train(""), 1, &["answers 429", "try again later"]);
    assert_eq!(world.hub.requests().len(), 5);
    let world = World::new();
    world.hub.answer(|_, _| Some(Reply::Status(429, vec![("Retry-After", "7200".to_owned())])));
    world.ends_without_weights(world.train(""), 1, &["asks to wait 2h00m"]);
}

#[test]
fn bytes_that_the_listing_does_not_name_are_not_used() {
    let world = World::new();
    let mut wrong = world.weights();
    *wrong.last_mut().unwrap() ^= 1;
    let (short, long) = (wrong[1..].to_vec(), [&wrong[..], b"x"].concat());
    for (bytes, words) in [
        (wrong, "sends other bytes than its listing names"),
        (short, "its listing says"),
        (long, "its listing says"),
        (Vec::new(), "its listing says"),
    ] {
        let world = World::new();
        world.hub.answer(move |request, _| request.path.ends_with(WEIGHTS).then(|| Reply::Bytes(bytes.clone())));
        world.ends_without_weights(world.train(""), 1, &[WEIGHTS, words]);
        // Wrong bytes are no beginning of the right ones.
        world.hub.answer(|_, _| None);
        world.train("").ok();
    }
    // A small file is checked by its hash of git.
    let world = World::new();
    let config = String::from_utf8(world.sandbox.bytes("model/config.json")).unwrap();
    let other = config.replacen("96", "95", 1);
    assert_ne!(other, config);
    world.hub.answer(move |request, _| {
        request.path.ends_with("/config.json").then(|| Reply::Bytes(other.clone().into_bytes()))
    });
    world.ends_without_weights(world.train(""), 1, &["config.json", "sends other bytes"]);
}

#[test]
fn listings_that_lie_are_refused() {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let listing = |name: &str| json!({"sha": commit, "siblings": [{"rfilename": name}]}).to_string();
    let huge = vec![b' '; 33 << 20];
    for (bytes, status, words) in [
        (listing("../config.json").into_bytes(), 2, "inside the repository"),
        (listing("/etc/config.json").into_bytes(), 2, "inside the repository"),
        (listing("a\u{1b}[31m").into_bytes(), 2, "inside the repository"),
        (json!({"sha": "../..", "siblings": []}).to_string().into_bytes(), 2, "names the commit"),
        (b"<html>login</html>".to_vec(), 1, "no list of files"),
        (huge, 1, "longer than"),
    ] {
        let world = World::new();
        let before = world.sandbox.files();
        world.hub.answer(move |request, _| request.path.starts_with("/api/").then(|| Reply::Bytes(bytes.clone())));
        world.ends_without_weights(world.train(""), status, &["org/tiny", words]);
        assert!(world.sandbox.files() == before, "{words}: something was written");
    }
}

#[test]
fn without_a_hub_the_cache_is_used_and_told() {
    let world = World::new();
    let nobody = ("HF_ENDPOINT", "http://127.0.0.1:9");
    let line = train("--model org/tiny --max-steps 1");
    world.run_with(&line, &[nobody]).ended(1, &["127.0.0.1:9"]);
    world.run_with(&line, &[("HF_HUB_OFFLINE", "1")]).ended(2, &["HF_HUB_OFFLINE", "hf download org/tiny"]);
    assert!(world.hub.requests().is_empty());
    world.train("").ok();
    let again = train("--model org/tiny --max-steps 1 --output-dir again");
    let done = world.run_with(&again, &[nobody]).ok();
    assert!(done.stderr.contains("warning") && done.stderr.contains("the hub cannot be asked"), "{done:#?}");
    world.run_with(&line, &[("HF_ENDPOINT", "not an address")]).ended(2, &["HF_ENDPOINT"]);
}

/// A snapshot that another client made names its files by links alone.
#[test]
fn a_snapshot_of_another_client_is_taken_as_it_is() {
    let world = World::of(Sandbox::chat());
    let snapshot = world.snapshot("");
    std::fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    std::fs::rename(world.sandbox.path("model"), &snapshot).unwrap();
    let line = |revision: &str| train(&format!("--model org/tiny{revision} --max-steps 1"));
    world.run(&line(&format!("@{}", world.commit))).ok();
    assert!(world.hub.requests().is_empty(), "{:?}", world.hub.requests());
    // By the branch the hub is asked which commit it is, and has nothing more to send.
    world.run(&train("--model org/tiny --max-steps 1 --output-dir again")).ok();
    assert_eq!(world.hub.requests().len(), 1);
}

#[test]
fn two_processes_download_a_file_once() {
    let world = World::new();
    let done: Vec<Done> = std::thread::scope(|scope| {
        let runs = ["a", "b"].map(|out| {
            let line = train(&format!("--model org/tiny --max-steps 1 --output-dir {out}"));
            let world = &world;
            scope.spawn(move || world.run(&line))
        });
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for done in done {
        done.ok();
    }
    assert_eq!(world.hub.asked(WEIGHTS).len(), 1);
}

/// Rows of token ids, one a line, numbered from `from`.
pub fn lines(world: &World, from: usize, to: usize) -> Vec<u8> {
    let rows = world.sandbox.read("rows.jsonl");
    rows.lines().skip(from).take(to - from).map(|line| format!("{line}\n")).collect::<String>().into_bytes()
}

#[test]
fn a_data_set_is_downloaded_by_split_and_rows() {
    let world = World::new();
    let (first, second, test) = (lines(&world, 0, 5), lines(&world, 5, 9), lines(&world, 9, 12));
    let card = b"---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---
# Rows
";
    let files: [(&str, &[u8]); 5] = [
        ("README.md", card),
        ("data/train-00000-of-00002.jsonl", &first),
        ("data/train-00001-of-00002.jsonl", &second),
        ("data/test-00000-of-00001.jsonl", &test),
        ("data/picture.png", b"png"),
    ];
    let commit = world.hub.add("datasets/org/rows", "main", &files);
    let tokens = |out: &str| world.sandbox.json(&format!("{out}/run.json"))["identity"]["tokens"].clone();
    let local = |name: &str, from: usize, to: usize| {
        world.sandbox.write(&format!("{name}.jsonl"), &String::from_utf8(lines(&world, from, to)).unwrap());
        world.run(&train(&format!("--max-steps 1 --data {name}.jsonl --output-dir {name}"))).ok();
        tokens(name)
    };
    let hub = |part: &str, out: &str| {
        world.run(&train(&format!("--max-steps 1 --data org/rows{part} --output-dir {out}"))).ok();
        tokens(out)
    };
    assert_eq!(hub(":train", "train"), local("local-train", 0, 9));
    let run = world.sandbox.json("train/run.json");
    let file = run["settings"]["data"][1].as_str().unwrap();
    assert!(file.contains(&format!("datasets--org--rows/snapshots/{commit}/data/train-00001")), "{run}");
    assert!(world.hub.asked("png").is_empty() && world.hub.asked("test-00000-of-00001.jsonl").is_empty());
    assert_eq!(hub(":train[:7]", "seven"), local("local-seven", 0, 7));
    assert_eq!(hub(":train[6:8]", "two"), local("local-two", 6, 8));
    assert_eq!(hub(":data/train-00000*", "one"), local("local-one", 0, 5));
    assert_eq!(hub(":test", "test"), local("local-test", 9, 12));
    // Without a part, the split for tests is validated on.
    world.run(&train("--max-steps 1 --data org/rows --output-dir both")).ok();
    let run = world.sandbox.json("both/run.json");
    assert!(run["settings"]["val_data"][0].as_str().unwrap().contains("data/test-00000"), "{run}");
    // By the commit nobody is asked.
    world.hub.forget();
    hub(&format!("@{commit}:train[:50%]"), "half");
    assert!(world.hub.requests().is_empty(), "{:?}", world.hub.requests());
    assert_eq!(tokens("half"), local("local-half", 0, 4));
    let loss = |line: &str| world.run(&format!("eval --json --model model {line}")).json()["loss"].clone();
    assert_eq!(loss("--data org/rows:test[1:]"), loss("--data org/rows:test[1:3]"));
    for (part, words) in [
        (":valid", ["no part \"valid\"", "train"]),
        (":train[9:]", ["[9:]", "has no rows"]),
        (":train[x:]", ["[x:]", "[:1000]"]),
        ("@v9", ["revision", "\"v9\""]),
    ] {
        world.run(&train(&format!("--data org/rows{part} --output-dir nowhere"))).ended(2, &words);
    }
    let missing = world.run(&train("--data org/none --output-dir nowhere"));
    missing.ended(2, &["org/none: found no such file or folder", "no data set of this name"]);
}

#[test]
fn a_data_set_that_was_not_downloaded_whole_is_not_used() {
    let world = World::new();
    let (first, second) = (lines(&world, 0, 5), lines(&world, 5, 9));
    let files: [(&str, &[u8]); 2] = [("train_a.jsonl", &first), ("train_b.jsonl", &second)];
    let commit = world.hub.add("datasets/org/rows", "main", &files);
    world.hub.answer(|request, _| request.path.ends_with("train_b.jsonl").then(|| Reply::Status(403, Vec::new())));
    let line = train("--max-steps 1 --data org/rows");
    world.run(&line).ended(2, &["org/rows", "403"]);
    // The branch was not taken over, so that there is nothing to fall back to.
    let offline = [("HF_HUB_OFFLINE", "1")];
    world.run_with(&line, &offline).ended(2, &["org/rows: cannot open", "hf download --repo-type dataset org/rows"]);
    // By the commit, what is missing is known.
    let fixed = train(&format!("--max-steps 1 --data org/rows@{commit}"));
    world.run_with(&fixed, &offline).ended(2, &["the cache lacks train_b.jsonl", "HF_HUB_OFFLINE"]);
    world.hub.answer(|_, _| None);
    world.run(&line).ok();
    world.hub.forget();
    let again = train("--max-steps 1 --data org/rows --output-dir again");
    world.run_with(&again, &offline).ok();
    assert!(world.hub.requests().is_empty());
}

#[test]
fn rows_that_the_hub_made_of_a_data_set_stand_in_for_its_own() {
    let world = World::new();
    let rows = lines(&world, 0, 5);
    let script: [(&str, &[u8]); 1] = [("rows.py", b"import os")];
    world.hub.add("datasets/org/script", "main", &script);
    let line = train("--max-steps 1 --data org/script");
    world.run(&line).ended(2, &["org/script", "refs/convert/parquet", "which would have been taken first"]);
    let converted: [(&str, &[u8]); 1] = [("default/train/0000.jsonl", &rows)];
    world.hub.add("datasets/org/script", "refs/convert/parquet", &converted);
    let done = world.run(&line).ok();
    assert!(done.stderr.contains("looking for the hub's own conversion"), "{done:#?}");
    let partial: [(&str, &[u8]); 1] = [("default/partial-train/0000.jsonl", &rows)];
    world.hub.add("datasets/org/script", "refs/convert/parquet", &partial);
    let asked = train("--max-steps 1 --data org/script:default/partial-train --output-dir nowhere");
    world.run(&asked).ended(2, &["of its first rows only"]);
}
