//! A directory with a tiny model and rows, in which the binary runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use qlora_kernels::rng::RngStream;
use qlora_train::arch::Arch;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::files::failpoint::VARIABLE;
use serde_json::{Value, json};
use tempfile::TempDir;

use trainer_lab::fixture;

/// Learns fast, in a fraction of a second.
const TRAIN: [(&str, &str); 9] = [
    ("--model", "model"),
    ("--data", "rows.jsonl"),
    ("--output-dir", "out"),
    ("--max-length", "64"),
    ("--lora-r", "4"),
    ("--learning-rate", "1e-2"),
    ("--max-steps", "6"),
    ("--seed", "42"),
    // Far from what lints call good.
    ("--allow", "all"),
];

/// `train` with those of [`TRAIN`] that `more` does not give itself, and `more`.
pub fn train(more: &str) -> String {
    let given = |name: &str| more.split_whitespace().any(|word| word == name);
    let defaults = TRAIN.iter().filter(|(name, _)| !given(name)).map(|(name, value)| format!(" {name} {value}"));
    format!("train --json{} {more}", defaults.collect::<String>())
}

pub struct Sandbox(TempDir);

/// Result of a finished process.
#[derive(Debug)]
pub struct Done {
    /// None: ended by a signal.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, Some(0), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn json(self) -> Value {
        let done = self.ok();
        assert_eq!(done.stdout.lines().count(), 1, "{done:#?}");
        serde_json::from_str(&done.stdout).unwrap()
    }

    /// Exit status, nothing on standard output, and one sentence at the end of standard error that holds every word.
    #[track_caller]
    pub fn ended(self, status: i32, words: &[&str]) {
        assert_eq!(self.status, Some(status), "{self:#?}");
        // Under --json the error is an object.
        if !self.stdout.is_empty() {
            let told: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{self:#?}"));
            assert_eq!(told["error"]["exit_status"], status, "{self:#?}");
            let message = told["error"]["message"].as_str().unwrap_or_default();
            assert!(self.stderr.contains(message.lines().next().unwrap_or("error")), "{self:#?}");
        }
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{self:#?}");
        // Below it stands at most the line of the settings file that it is about.
        let below = self.stderr.lines().skip_while(|line| *line != errors[0]).skip(1);
        assert!(below.into_iter().all(|line| line.contains('|')), "{self:#?}");
        for word in words {
            assert!(errors[0].contains(word), "{:?} lacks {word:?}", errors[0]);
        }
    }
}

impl Sandbox {
    /// `model/` of 96 tokens and `rows.jsonl` of token ids.
    pub fn new() -> Self {
        Self::of(&Synthetic::new(tiny_arch(), 1))
    }

    pub fn of(model: &Synthetic) -> Self {
        Self::of_in(&in_memory(), model)
    }

    /// [`of`](Self::of) on a disk, for runs that write much or are about disks.
    pub fn on_disk(model: &Synthetic) -> Self {
        Self::of_in(&std::env::temp_dir(), model)
    }

    fn of_in(dir: &Path, model: &Synthetic) -> Self {
        let sandbox = Self(tempfile::tempdir_in(dir).unwrap());
        model.write(&sandbox.path("model")).unwrap();
        sandbox.write_rows("rows.jsonl", 12, 1);
        sandbox
    }

    /// [`new`](Self::new) with a byte-level tokenizer and a ChatML template; `chat.jsonl` holds conversations.
    pub fn chat() -> Self {
        Self::chat_of(tiny_arch())
    }

    pub fn chat_of(arch: Arch) -> Self {
        let config = Arch { vocab_size: fixture::VOCAB_SIZE, ..arch };
        let sandbox = Self::of(&Synthetic::new(config, 1));
        let model = sandbox.path("model");
        fixture::write_json(&model, "tokenizer.json", &fixture::tokenizer_json());
        fixture::write_json(&model, "tokenizer_config.json", &fixture::tokenizer_config(Some(fixture::CHATML)));
        let row = |question: &str, answer: &str| {
            json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
                .to_string()
        };
        sandbox.write("chat.jsonl", &[row("hello", "world"), row("who", "me")].join("\n"));
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    /// The lines of a JSONL file.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        self.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Rows of 8 to 15 tokens that count upwards from a random token: easy to learn, the first four unsupervised.
    pub fn write_rows(&self, name: &str, rows: usize, seed: u64) {
        let mut stream = RngStream::new(seed, 7);
        let mut row = |_| {
            let (start, length) = (3 + stream.below(20), 8 + stream.below(8));
            let ids: Vec<u32> = (start..start + length).collect();
            let labels: Vec<i64> = ids.iter().map(|&id| if id < start + 4 { -100 } else { id.into() }).collect();
            json!({"input_ids": ids, "labels": labels}).to_string()
        };
        self.write(name, &(0..rows).map(&mut row).collect::<Vec<_>>().join("\n"));
    }

    /// The binary in this directory, with the words of `line` as arguments.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qlora-train"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).stdin(Stdio::null());
        command.env_remove(VARIABLE).env("HF_HOME", self.path("no-cache")).env_remove("HF_HUB_CACHE");
        // No test asks a hub of others.
        command.env("HF_HUB_OFFLINE", "1");
        command
    }

    /// With variables of the environment, of which those without a value are taken away.
    pub fn run_with(&self, line: &str, variables: &[(&str, &str)]) -> Done {
        let mut command = self.command(line);
        for (name, value) in variables {
            match value.is_empty() {
                true => command.env_remove(name),
                false => command.env(name, value),
            };
        }
        finish(&mut command)
    }

    pub fn run(&self, line: &str) -> Done {
        finish(&mut self.command(line))
    }

    /// With the most anonymous memory that the process held, looked at every millisecond.
    pub fn run_watched(&self, line: &str) -> (Done, u64) {
        let file = |name: &str| File::create(self.path(name)).unwrap();
        let mut child = self.command(line).stdout(file("stdout")).stderr(file("stderr")).spawn().unwrap();
        let mut peak = 0;
        let status = loop {
            peak = peak.max(anonymous(child.id()).unwrap_or(0));
            match child.try_wait().unwrap() {
                Some(status) => break status.code(),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        (Done { status, stdout: self.read("stdout"), stderr: self.read("stderr") }, peak)
    }

    /// With something going wrong at a fault point.
    pub fn run_at_fault(&self, line: &str, fault: &str) -> Done {
        finish(self.command(line).env(VARIABLE, fault))
    }

    pub fn train(&self, more: &str) -> Done {
        self.run(&train(more))
    }

    pub fn train_into(&self, out: &str, more: &str) -> Done {
        self.train(&format!("--output-dir {out} {more}"))
    }

    /// The loss of `eval`.
    #[track_caller]
    pub fn eval(&self, line: &str) -> f64 {
        self.run(&format!("eval --model model --json {line}")).json()["loss"].as_f64().unwrap()
    }

    /// The command is refused with exit status 2 and all of `words`, and no file appeared or changed.
    #[track_caller]
    pub fn refused(&self, line: &str, words: &[&str]) {
        let before = self.files();
        self.run(line).ended(2, words);
        assert!(self.files() == before, "something was written: {:?}", self.files().keys());
    }

    /// The names in a directory, sorted.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(dir)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The lines of a run's metrics, less the speed, which is the only thing that two equal runs differ in.
    pub fn metrics(&self, out: &str) -> Vec<Value> {
        without_speed(self.lines(&format!("{out}/metrics.jsonl")))
    }

    /// Two finished runs left the same adapter and the same log.
    #[track_caller]
    pub fn assert_same_result(&self, one: &str, other: &str) {
        for name in ["adapter_model.safetensors", "adapter_config.json", "README.md"] {
            assert!(self.bytes(&format!("{one}/{name}")) == self.bytes(&format!("{other}/{name}")), "{name} differs");
        }
        assert_eq!(self.metrics(one), self.metrics(other));
        let state = |out: &str| {
            let mut state = self.json(&format!("{out}/trainer_state.json"));
            let history = state["log_history"].as_array_mut().unwrap();
            *history = without_speed(std::mem::take(history));
            state
        };
        assert_eq!(state(one), state(other));
    }

    /// Every file and directory below, with its bytes.
    pub fn files(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut files = BTreeMap::new();
        collect(self.0.path(), &mut files);
        files
    }
}

/// A file system in memory, where there is one with room: a disk's answers take most of the time of runs that save.
fn in_memory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let has_room = rustix::fs::statvfs(memory).is_ok_and(|found| found.f_bavail * found.f_frsize >= 4 << 30);
    if has_room { memory.to_owned() } else { std::env::temp_dir() }
}

/// Bytes of anonymous memory of a process now.
fn anonymous(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn finish(command: &mut Command) -> Done {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn without_speed(mut lines: Vec<Value>) -> Vec<Value> {
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        ["tokens_per_second", "seconds", "memory_bytes"].iter().for_each(|name| drop(line.remove(*name)));
    }
    lines
}

fn collect(dir: &Path, files: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        files.insert(path.clone(), if kind.is_file() { Some(std::fs::read(&path).unwrap()) } else { None });
        if kind.is_dir() {
            collect(&path, files);
        }
    }
}

#[track_caller]
pub fn assert_close(a: f64, b: f64, relative: f64) {
    assert!((a - b).abs() <= relative * b.abs(), "{a} and {b} differ by more than {relative}");
}

/// The keys of a JSON object, in its order.
pub fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}
