//! `merge`: the weights that it writes, and what it refuses.

use std::process::Stdio;
use std::time::Duration;

use half::bf16;
use qlora_train::adapter::Adapter;
use qlora_train::arch::Arch;
use qlora_train::base::Checkpoint;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::files::tensor::{StoredType, TensorData};

use crate::sandbox::{Sandbox, assert_close};

const MERGE: &str = "merge --json --model model --adapter out";

fn trained() -> Sandbox {
    let sandbox = Sandbox::chat();
    sandbox.train_into("out", "--learning-rate 0.02 --chat-template chatml").ok();
    sandbox
}

#[test]
fn merged_weights_are_the_sum_rounded_once() {
    let sandbox = trained();
    sandbox.run("quantize --model model --output nf4").ok();
    let bases = [("model", "", "bf16"), ("model", "--base nf4", "nf4"), ("nf4", "", "nf4")];
    for (i, (base, more, held)) in bases.into_iter().enumerate() {
        let line = format!("merge --json --model {base} --adapter out --output m{i} {more}");
        let answer = sandbox.run(&line).json();
        let of = if held == "nf4" { "nf4" } else { "model" };
        let original = Checkpoint::open(&sandbox.path(of)).unwrap();
        let merged = Checkpoint::open(&sandbox.path(&format!("m{i}"))).unwrap();
        let adapter = Adapter::load(&sandbox.path("out")).unwrap();
        let pairs = adapter.lora_pairs().unwrap();
        assert_eq!((&answer["base_weights"], &answer["changed"]), (&held.into(), &pairs.len().into()));
        assert!(merged.quantization().is_none());
        let mut changed = 0;
        for name in original.names() {
            let (w, found) = (original.read_f32(name).unwrap(), merged.read(name).unwrap());
            let TensorData::Bf16(found) = &found.data else { panic!("{name} is not in bf16") };
            let pair = pairs.get(name.trim_end_matches(".weight"));
            for (j, (&w, found)) in w.iter().zip(found).enumerate() {
                let Some(pair) = pair else {
                    assert_eq!(*found, bf16::from_f32(w), "{name}");
                    continue;
                };
                let (row, column) = (j / pair.k_in, j % pair.k_in);
                let terms = (0..pair.r)
                    .map(|k| f64::from(pair.b[row * pair.r + k]) * f64::from(pair.a[k * pair.k_in + column]));
                let terms: Vec<f64> = terms.map(|term| term * f64::from(pair.scale)).collect();
                let expected = f64::from(w) + terms.iter().sum::<f64>();
                // Half a unit of bf16's 8 significant bits, and the rounding of the sum in f32.
                let sizes = f64::from(w).abs() + terms.iter().map(|term| term.abs()).sum::<f64>();
                let half_unit = 2f64.powi(expected.abs().max(f64::MIN_POSITIVE).log2().floor() as i32 - 8);
                let limit = half_unit + (pair.r + 3) as f64 * 2f64.powi(-24) * sizes;
                let found = found.to_f64();
                assert!((found - expected).abs() <= limit, "{name} {row} {column}: {found} for {expected}");
                changed += usize::from(found != bf16::from_f32(w).to_f64());
            }
        }
        assert!(changed > 1000, "{changed}");
    }
    assert_eq!(sandbox.bytes("m1/model.safetensors"), sandbox.bytes("m2/model.safetensors"));
    assert!(sandbox.json("m2/config.json").get("quantization_config").is_none());
    assert_eq!(sandbox.bytes("m0/tokenizer_config.json"), sandbox.bytes("out/tokenizer_config.json"));
    let attached = sandbox.eval("--data rows.jsonl --adapter out --quantization none");
    let alone = sandbox.eval("--data rows.jsonl --quantization none");
    let merged = sandbox.run("eval --model m0 --json --data rows.jsonl --quantization none").json()["loss"].as_f64();
    assert_close(merged.unwrap(), attached, 2f64.powi(-8));
    assert!((alone - attached).abs() > 0.05, "{alone} {attached}");
}

#[test]
fn a_full_disk_or_a_kill_in_the_middle_leaves_no_model() {
    let sandbox = trained();
    let before = sandbox.files();
    let line = format!("{MERGE} --output m --max-shard-size 20KB");
    for place in ["write/model-00001-of-00012.safetensors:1", "write/model-00005-of-00012.safetensors:1"] {
        let done = sandbox.run_at_fault(&line, &format!("{place}:full"));
        done.ended(1, &["cannot be written", "No space left"]);
        assert!(sandbox.files() == before, "{place}");
    }
    let killed = sandbox.run_at_fault(&line, "tensor:7");
    assert_eq!(killed.status, None);
    assert!(!sandbox.path("m").exists() && sandbox.files() != before);
    // The next process removes what that one has left.
    sandbox.run(&line).ok();
    let left: Vec<_> = sandbox.files().into_keys().filter(|path| !before.contains_key(path)).collect();
    assert!(left.iter().all(|path| path.starts_with(sandbox.path("m"))), "{left:?}");
    Checkpoint::open(&sandbox.path("m")).unwrap();
}

#[test]
fn a_merged_weight_keeps_the_type_of_the_base() {
    for stored in [StoredType::F16, StoredType::F32] {
        let sandbox = Sandbox::of(&Synthetic { stored, ..Synthetic::new(tiny_arch(), 1) });
        sandbox.train_into("out", "--learning-rate 0.02").ok();
        sandbox.run(&format!("{MERGE} --output m")).ok();
        let (original, merged) = (sandbox.path("model"), sandbox.path("m"));
        let [original, merged] = [original, merged].map(|dir| Checkpoint::open(&dir).unwrap());
        assert_eq!(sandbox.json("m/config.json")["dtype"], stored.torch_name());
        let adapter = Adapter::load(&sandbox.path("out")).unwrap();
        let pairs = adapter.lora_pairs().unwrap();
        let mut changed = 0;
        for name in original.names() {
            assert_eq!(merged.stored_type(name), Some(stored), "{name}");
            let (w, found) = (original.read_f32(name).unwrap(), merged.read_f32(name).unwrap());
            let Some(pair) = pairs.get(name.trim_end_matches(".weight")) else {
                assert_eq!(found, w, "{name}");
                continue;
            };
            for (j, (w, found)) in w.iter().zip(&found).enumerate() {
                let (row, column) = (j / pair.k_in, j % pair.k_in);
                let terms = (0..pair.r).map(|k| f64::from(pair.b[row * pair.r + k] * pair.a[k * pair.k_in + column]));
                let expected = f64::from(*w) + f64::from(pair.scale) * terms.sum::<f64>();
                // Half a unit of f16's 11 significant bits or of its smallest step; f32 has the rounding of the sum.
                let limit = match stored {
                    StoredType::F16 => 2f64.powi(-11) * expected.abs() + 2f64.powi(-25),
                    _ => 0.0,
                };
                let off = (f64::from(*found) - expected).abs();
                assert!(off <= limit + 1e-6 * (expected.abs() + 0.1), "{name} {j}: {found} for {expected}");
                changed += usize::from(found != w);
            }
        }
        assert!(changed > 1000, "{changed}");
    }
}

/// Anonymous memory that a command comes to hold at most.
fn peak_bytes(sandbox: &Sandbox, line: &str) -> u64 {
    let mut child = sandbox.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut most = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let held = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = held.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
        most = most.max(kib << 10);
        match child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success(), "{line}");
                return most;
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

#[test]
fn merge_and_export_hold_one_matrix_at_a_time() {
    let arch = Arch { hidden_size: 512, intermediate_size: 2048, num_layers: 12, num_heads: 32, ..tiny_arch() };
    let sandbox = Sandbox::chat_of(arch);
    sandbox.train_into("out", "--max-steps 1 --lora-r 2 --weights resident").ok();
    let model = Checkpoint::open(&sandbox.path("model")).unwrap().stored_bytes();
    assert!(model > 80_000_000, "{model}");
    for line in
        [format!("{MERGE} --output m"), "export gguf --model model --adapter out --output g --type q8_0".to_owned()]
    {
        // A matrix of 512 x 2048 in f32 is 4 MiB; it is there as it is stored, in f32, summed and encoded.
        let peak = peak_bytes(&sandbox, &line);
        assert!(peak < 45 << 20, "{line}: {peak} of a model of {model}");
    }
}

#[test]
fn what_merging_changes_is_measured_on_rows() {
    let sandbox = trained();
    sandbox.run("quantize --model model --output nf4").ok();
    let line = format!("{MERGE} --output m --data chat.jsonl --device cpu --compute f32");
    let answer = sandbox.run(&line).json();
    let measured: Vec<(&str, f64, f64)> = answer["measured"]["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| (model["name"].as_str().unwrap(), model["loss"].as_f64().unwrap(), model["kl"].as_f64().unwrap()))
        .collect();
    let names: Vec<&str> = measured.iter().map(|(name, ..)| *name).collect();
    let expected = [
        "adapter on NF4",
        "base in NF4",
        "merged into dequantized NF4",
        "adapter on 16 bits",
        "base in 16 bits",
        "merged into 16 bits",
        "merged, quantized to NF4 again",
    ];
    assert_eq!(names, expected);
    let of = |name: &str| *measured.iter().find(|(own, ..)| *own == name).unwrap();
    assert_eq!(of("adapter on NF4").2, 0.0);
    // `eval` has these losses too.
    let eval = |more: &str| sandbox.eval(&format!("--data chat.jsonl --device cpu --compute f32 {more}"));
    for (name, more) in [
        ("adapter on NF4", "--adapter out --quantization nf4"),
        ("base in NF4", "--quantization nf4"),
        ("adapter on 16 bits", "--adapter out --quantization none"),
        ("base in 16 bits", "--quantization none"),
    ] {
        assert_close(of(name).1, eval(more), 1e-5);
    }
    let of_file = sandbox.run("eval --json --model m --data chat.jsonl --device cpu --compute f32 --quantization none");
    assert_close(of("merged into 16 bits").1, of_file.json()["loss"].as_f64().unwrap(), 1e-5);
    // Merging into what was trained on rounds once; the base is far away.
    let (merged, base) = (of("merged into dequantized NF4").2, of("base in NF4").2);
    assert!(merged < 1e-3 && base > 20.0 * merged, "{measured:?}");
    // A base in NF4 has no 16 bits.
    let of_nf4 = sandbox.run("merge --json --model nf4 --adapter out --output n --data chat.jsonl").json();
    assert_eq!(of_nf4["measured"]["models"].as_array().unwrap().len(), 4);
    sandbox.refused(&format!("{MERGE} --output x --data none.jsonl"), &["none.jsonl"]);
}

#[test]
fn shards_are_bounded_and_indexed() {
    let sandbox = trained();
    let answer = sandbox.run(&format!("{MERGE} --output whole")).json();
    let sharded = sandbox.run(&format!("{MERGE} --output shards --max-shard-size 20KB")).json();
    assert!(answer["files"] == 1 && sharded["files"].as_u64().unwrap() > 2, "{sharded}");
    let [whole, shards] = ["whole", "shards"].map(|dir| Checkpoint::open(&sandbox.path(dir)).unwrap());
    for name in whole.names() {
        assert_eq!(whole.read(name).unwrap(), shards.read(name).unwrap(), "{name}");
    }
}

#[test]
fn what_cannot_be_merged_is_refused_and_nothing_is_left() {
    let sandbox = trained();
    let other = qlora_train::arch::Arch { vocab_size: 99, ..qlora_train::base::synthetic::tiny_arch() };
    qlora_train::base::synthetic::Synthetic::new(other, 2).write(&sandbox.path("other")).unwrap();
    sandbox.refused("merge --model other --adapter out --output new", &["fingerprint", "--allow-other-base"]);
    sandbox.refused("merge --model model --adapter out --output out", &["out", "not empty"]);
    sandbox.refused("merge --model model --adapter none --output new", &["none", "no such directory", "adapter"]);
    sandbox.run("quantize --model model --output nf4").ok();
    sandbox.refused("merge --model nf4 --adapter out --output new --base bf16", &["--base nf4", "16-bit"]);
    let mut bytes = sandbox.bytes("out/adapter_model.safetensors");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(sandbox.path("out/adapter_model.safetensors"), bytes).unwrap();
    std::fs::remove_file(sandbox.path("out/SHA256SUMS")).unwrap();
    sandbox.refused(&format!("{MERGE} --output new"), &["NaN", "finite"]);
}
