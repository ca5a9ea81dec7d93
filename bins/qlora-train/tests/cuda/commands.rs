//! The commands with `--device cuda`, and the same with `--device cpu`.

use crate::sources::{config, small_config};
use qlora_kernels::rng::RngStream;
use qlora_train::arch::Arch;
use qlora_train::base::synthetic::Synthetic;
use serde_json::Value;
use std::fmt::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;
use trainer_lab::fixture;

/// A port that nobody listens at, below those that the system gives to connections.
pub fn free_port() -> u16 {
    let mut ports = (0..5_000).map(|number| 20_000 + (std::process::id() + number) as u16 % 5_000 * 2);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a port is free")
}

/// A directory with a tiny model and rows of token ids, in which the binary runs.
pub struct Directory(TempDir);

impl Directory {
    pub fn new() -> Self {
        Self::of(config())
    }

    /// [`new`](Self::new) with a smaller model, for comparisons of bytes, which depend on no size.
    pub fn small() -> Self {
        Self::of(Arch { vocab_size: config().vocab_size, ..small_config() })
    }

    fn of(arch: Arch) -> Self {
        let directory = Self(tempfile::tempdir().unwrap());
        Synthetic::new(arch, 1).write(&directory.path("model")).unwrap();
        let mut stream = RngStream::new(3, 3);
        let mut rows = String::new();
        for _ in 0..8 {
            let first = stream.below(200);
            // Each token follows from the one before, so that there is something to learn.
            let ids: Vec<u32> = (0..8 + stream.below(20)).map(|i| (first + 7 * i) % 211).collect();
            let _ = writeln!(rows, "{{\"input_ids\": {ids:?}}}");
        }
        std::fs::write(directory.path("rows.jsonl"), rows).unwrap();
        directory
    }

    /// A model with a tokenizer and a chat template, as `chat`.
    fn write_chat_model(&self) {
        let chat = Arch { vocab_size: fixture::VOCAB_SIZE, ..small_config() };
        Synthetic::new(chat, 1).write(&self.path("chat")).unwrap();
        fixture::write_json(&self.path("chat"), "tokenizer.json", &fixture::tokenizer_json());
        let tokenizer = fixture::tokenizer_config(Some(fixture::CHATML));
        fixture::write_json(&self.path("chat"), "tokenizer_config.json", &tokenizer);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn run(&self, line: &str) -> Output {
        self.run_with(line, &[])
    }

    /// With variables of the environment.
    pub fn run_with(&self, line: &str, variables: &[(&str, &str)]) -> Output {
        self.command(line, variables).output().unwrap()
    }

    pub fn command(&self, line: &str, variables: &[(&str, &str)]) -> Command {
        // Elsewhere than where it was built, the program is named.
        let program = std::env::var_os("QLORA_TRAIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_qlora-train").into());
        let mut command = Command::new(program);
        command.args(line.split_whitespace()).envs(variables.iter().copied());
        command.current_dir(self.0.path());
        command
    }

    /// The answer, and what went to standard error.
    pub fn done(&self, line: &str) -> (Value, String) {
        let output = self.run(line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{line}\n{errors}");
        (serde_json::from_slice(&output.stdout).unwrap(), errors)
    }

    pub fn train(&self, more: &str) -> String {
        self.done(&train(more)).1
    }

    /// The loss of every step.
    pub fn losses(&self, run: &str) -> Vec<f64> {
        let metrics = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let entries = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        entries.filter_map(|entry| entry["loss"].as_f64()).collect()
    }
}

/// Four steps, with a checkpoint after two.
pub fn train(more: &str) -> String {
    format!(
        "train --json --model model --data rows.jsonl --max-length 64 --lora-r 24 --lora-dropout 0.1 --learning-rate 1e-2 --max-steps 4 \
         --save-steps 2 --gradient-accumulation-steps 2 {more}"
    )
}

#[test]
fn a_run_that_is_gone_on_with_from_its_checkpoint_gives_the_same_adapter() {
    let directory = Directory::small();
    directory.train("--output-dir whole --device cuda");
    directory.train("--output-dir resumed --device cuda --resume-from-checkpoint whole/checkpoint-2");
    let adapter = |run: &str| std::fs::read(directory.path(run).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("resumed"));
}

/// A run in the bf16 of a GPU does not go on in f32, nor the other way round: not from a checkpoint, and not by itself
/// in the same place, where nobody may notice that no GPU answers.
#[test]
fn a_run_does_not_go_on_on_another_kind_of_device() {
    let directory = Directory::small();
    for (out, began, now) in [("gpu", "cuda", "cpu --compute f32"), ("cpu", "cpu --compute f32", "cuda")] {
        directory.train(&format!("--output-dir {out} --device {began}"));
        for more in [
            format!("--output-dir other --resume-from-checkpoint {out}/checkpoint-2 --device {now}"),
            format!("--output-dir {out} --resume-from-checkpoint true --device {now}"),
        ] {
            let output = directory.run(&train(&more));
            let errors = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{more}: {errors}");
            for words in ["different run: arithmetic (", "f32 on the CPU", "bf16 by the fused kernels of a GPU"] {
                assert!(errors.contains(words), "{more}: {words:?} in {errors}");
            }
        }
        assert!(!directory.path("other").exists());
    }
    // With nothing asked for, a CPU takes the arithmetic of the record: that of a GPU is not its own.
    let output = directory.run(&train("--output-dir gpu --resume-from-checkpoint true --device cpu"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && !errors.contains("as the run in gpu began"), "{errors}");
}

/// Each process has a model of its own on the device, and sums go by host memory. Each has one micro-batch of a step,
/// so that the sum is in the order of one process.
#[test]
fn two_processes_train_as_one_with_as_much_accumulation() {
    let directory = Directory::small();
    let line = |out: &str| {
        let line = train(&format!("--output-dir {out} --device cuda --val-set-size 2 --eval-steps 1"));
        line.replace("--max-steps 4", "--max-steps 2")
    };
    directory.done(&line("alone"));
    let line = line("two").replace("--gradient-accumulation-steps 2", "--gradient-accumulation-steps 1");
    let port = free_port().to_string();
    let rank = |rank: &str| {
        let mut variables = vec![("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank), ("MASTER_PORT", &port)];
        // One GPU serves both.
        variables.extend([("MASTER_ADDR", "127.0.0.1"), ("CUDA_VISIBLE_DEVICES", "0"), ("QLORA_JOIN_SECONDS", "60")]);
        directory.run_with(&line, &variables)
    };
    let all = std::thread::scope(|scope| {
        let other = scope.spawn(|| rank("1"));
        [rank("0"), other.join().unwrap()]
    });
    for output in all {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(directory.losses("two"), directory.losses("alone"));
    let adapter = |run: &str| std::fs::read(directory.path(run).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("two") == adapter("alone"));
}

/// Random weights of the model's shape, whose steps take what was planned.
#[test]
fn steps_on_random_weights_are_measured() {
    let directory = Directory::new();
    let line = "bench --json --shape model/config.json --seq 30 --batch 2 --steps 2 --lora-r 8 --device cuda";
    for more in ["", "--quantization none --optim adamw_torch"] {
        let (found, _) = directory.done(&format!("{line} {more}"));
        let seconds = |value: &Value| value.as_f64().unwrap();
        assert!(
            seconds(&found["tokens_per_second"]) > 0.0 && (seconds(&found["loss"]) - 211f64.ln()).abs() < 0.5,
            "{found}"
        );
        assert!(found["device"]["planned_bytes"].as_u64().unwrap() > 0 && found["gpu"].is_string(), "{found}");
        let kernels = found["kernels"].as_array().unwrap();
        for name in ["linear", "linear, backward", "LoRA X·Aᵀ", "LoRA gradients", "attention, backward", "optimizer"]
        {
            let of_name = |kernel: &&Value| kernel["name"] == name && seconds(&kernel["seconds"]) > 0.0;
            assert!(kernels.iter().any(|kernel| of_name(&kernel)), "{name}: {found}");
        }
    }
}

/// Losses and norms of random weights tell of every lever that it changes no bit, also where a model is too large to be
/// read.
#[test]
fn levers_leave_the_steps_on_random_weights_as_they_are() {
    let directory = Directory::small();
    let line = "bench --json --shape model/config.json --seq 24 --steps 1 --lora-r 8 --device cuda";
    let of = |levers: &str| directory.done(&format!("{line} {levers}")).0;
    let resident = "--gradient-checkpointing false --weights resident --lm-head resident --optimizer-states resident";
    let expected = of(resident);
    assert_eq!(expected["steps"].as_array().unwrap().len(), 3);
    for levers in [
        "--gradient-checkpointing true",
        "--gradient-checkpointing offload",
        "--gradient-checkpointing disk",
        "--weights host",
        "--lm-head host",
        "--optimizer-states host",
        "--optimizer-states host_with_masters",
        "--gradient-checkpointing offload --weights host --lm-head host --optimizer-states host",
        "--gradient-checkpointing disk --weights host --lm-head host --optimizer-states host",
        "--gradient-checkpointing offload --weights host --lm-head host --optimizer-states host_with_masters",
    ] {
        let found = of(levers);
        assert_eq!(found["steps"], expected["steps"], "{levers}");
        let bytes = |key: &str| found["device"][key].as_u64().unwrap();
        assert!(bytes("peak_bytes") <= bytes("planned_bytes"), "{levers}: {found}");
    }
}

#[test]
fn what_a_gpu_does_not_do_is_refused_by_name() {
    let directory = Directory::new();
    for (line, words) in [
        ("generate --model model --prompt x --device cuda:99", ["`device`", "cuda:99"]),
        ("plan --model model --device cuda:99", ["`device`", "cuda:99"]),
        ("eval --model model --data rows.jsonl --device cuda:99", ["`device`", "cuda:99"]),
    ] {
        let output = directory.run(line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(words.iter().all(|word| errors.contains(word)), "{errors}");
    }
}

/// Drawn and most likely tokens, one prompt and several, with adapters one after the other: what the device answers is
/// what it answers again, alone or beside others. How near the logits are to those of the CPU is tested where they can
/// be seen.
#[test]
fn text_is_made_on_the_device() {
    let directory = Directory::small();
    directory.write_chat_model();
    for (adapter, rank) in [("a", 8), ("b", 40)] {
        directory.done(&format!(
            "train --json --model chat --data rows.jsonl --output-dir {adapter} --max-length 64 --lora-r {rank} --seed {rank} \
             --learning-rate 3e-2 --max-steps 2 --device cuda"
        ));
    }
    let texts = |more: &str| -> Vec<String> {
        let line = format!("generate --json --model chat --prompt hello --max-new-tokens 8 --device cuda {more}");
        let (answer, errors) = directory.done(&line);
        assert!(errors.contains("device: cuda:0, "), "{errors}");
        let completions = answer["completions"].as_array().unwrap();
        completions.iter().map(|completion| completion["text"].as_str().unwrap().to_owned()).collect()
    };
    for more in ["", "--temperature 1 --seed 5"] {
        let alone = ["a", "b"].map(|adapter| texts(&format!("{more} --adapter {adapter}")));
        // After two steps the most likely tokens may be the same.
        assert!(more.is_empty() || alone[0] != alone[1], "{more}: the adapters are to differ");
        let both = texts(&format!("{more} --adapter b --adapter a --adapter b"));
        assert_eq!(both, [&alone[1][..], &alone[0], &alone[1]].concat(), "{more}");
    }
    let drawn = texts("--temperature 1 --seed 5 --prompt who --prompt hello");
    let one = texts("--temperature 1 --seed 5");
    assert_eq!((drawn.len(), &drawn[0]), (3, &one[0]));
    assert_ne!(drawn[0], drawn[2], "prompts draw from streams of their own");
    assert_ne!(texts("--temperature 1 --seed 6"), one);
    assert_eq!(texts("--temperature 0 --seed 6"), texts(""));
}

/// The arena of a run that answers while it trains has the room that its plan says, and not a byte of the run changes.
#[test]
fn answers_while_a_run_trains_change_no_bit_of_it_and_are_what_generate_says() {
    let directory = Directory::small();
    directory.write_chat_model();
    std::fs::write(directory.path("prompts.txt"), "hello\nwho are you, and what do you do all day long?\n").unwrap();
    // Texts, so that the tokenizer and its template are recorded in both.
    let row = |at: usize| serde_json::json!({"text": format!("hello {} there", "who ".repeat(at))}).to_string();
    std::fs::write(directory.path("texts.jsonl"), (1..9).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let run = |out: &str, more: &str| {
        directory.done(&format!(
            "train --json --model chat --data texts.jsonl --output-dir {out} --max-length 64 --lora-r 8 --lora-dropout 0.1 \
             --learning-rate 1e-1 --max-steps 4 --save-steps 2 --device cuda {more}"
        ));
    };
    // With the longer prompt more tokens than a batch of rows has.
    const NEW: usize = 20;
    let said = |adapter: &str| -> Vec<String> {
        let line = format!("generate --json --model chat --prompts prompts.txt --max-new-tokens {NEW} --device cuda");
        let (said, _) = directory.done(&format!("{line} {adapter}"));
        let texts = said["completions"].as_array().unwrap().iter();
        texts.map(|one| one["text"].as_str().unwrap().trim().to_owned()).collect()
    };
    let untrained = said("");
    let file = |name: &str| std::fs::read(directory.path(name)).unwrap();
    for (name, more) in [("plain", ""), ("recomputed", "--gradient-checkpointing true --per-device-train-batch-size 2")]
    {
        let with = format!("{name}-with");
        run(name, more);
        run(&with, &format!("{more} --sample-prompts prompts.txt --eval-steps 2 --eval-max-new-tokens {NEW}"));
        for written in ["adapter_model.safetensors", "checkpoint-4/optimizer.safetensors"] {
            assert!(file(&format!("{name}/{written}")) == file(&format!("{with}/{written}")), "{name}: {written}");
        }
        assert_eq!(directory.losses(name), directory.losses(&with));
        let metrics = String::from_utf8(file(&format!("{with}/metrics.jsonl"))).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let answered: Vec<Value> = lines.filter(|line| !line["samples"].is_null()).collect();
        assert_eq!(answered.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2, 4], "{name}");
        let logged = |at: usize| -> Vec<String> {
            let samples = answered[at]["samples"].as_array().unwrap();
            samples.iter().map(|sample| sample["answer"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(logged(0), untrained, "{name}");
        assert_eq!(logged(2), said(&format!("--adapter {with}")), "{name}");
        assert_ne!(logged(0), logged(2), "{name}: four steps are to change what is said");
    }
}
