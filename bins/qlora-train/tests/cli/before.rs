//! Adapters that the trainer wrote at commit 94fb919, before its parts were taken apart and put together anew, against
//! those that it writes now: the same bytes in every tensor, and the same adapter_config.json.
//!
//! `QLORA_WRITE_ADAPTERS=BINARY cargo nextest run -p qlora-train --test cli -E 'test(before)'` writes the files with
//! another binary. That is for a change that is meant to change results; its commit says why.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::sandbox::{Sandbox, train};

/// Names and settings of the runs. Together they take every path of the CPU's step that settings choose between.
const RUNS: [(&str, &str); 7] = [
    ("plain", "--packing false"),
    ("dropout_packing", "--lora-target-modules q_proj,v_proj,down_proj --lora-dropout 0.1 --packing true"),
    // At rank 64 the tensors of down_proj are large enough for 8-bit states, those of k_proj are not.
    (
        "adamw_8bit",
        "--lora-target-modules down_proj,k_proj --lora-r 64 --optim adamw_8bit --gradient-accumulation-steps 2 \
         --per-device-train-batch-size 2 --packing false --max-grad-norm 0.05 --weight-decay 0.1",
    ),
    (
        "loraplus_rslora",
        "--lora-target-modules o_proj,up_proj --lora-r 8 --use-rslora true --loraplus-lr-ratio 16 \
         --learning-rate 1e-3 --optim adamw_torch",
    ),
    ("recompute", "--lora-target-modules v_proj,gate_proj --gradient-checkpointing true --lora-dropout 0.05"),
    ("unquantized", "--lora-target-modules k_proj,up_proj --quantization none --lr-scheduler-type linear"),
    ("chat", "--lora-target-modules q_proj,down_proj --data chat.jsonl --val-set-size 0 --num-train-epochs 2"),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters")
}

/// The vectors that the CPU backend works with here. Their width and whether a product and a sum are rounded once
/// decide the last bits.
fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if ["f", "bw", "cd", "dq", "vl"].iter().all(|part| avx512(part)) {
            return "x86-64-v4";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "x86-64-v3";
        }
    }
    std::env::consts::ARCH
}

#[cfg(target_arch = "x86_64")]
fn avx512(part: &str) -> bool {
    match part {
        "f" => is_x86_feature_detected!("avx512f"),
        "bw" => is_x86_feature_detected!("avx512bw"),
        "cd" => is_x86_feature_detected!("avx512cd"),
        "dq" => is_x86_feature_detected!("avx512dq"),
        _ => is_x86_feature_detected!("avx512vl"),
    }
}

/// Type, shape and little-endian bytes of every tensor.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(bytes: &[u8]) -> Tensors {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensor = |(name, view): (String, safetensors::tensor::TensorView)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn values(bytes: &[u8]) -> impl Iterator<Item = f64> {
    bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
}

/// Largest distance of a tensor from the one of before, in units of how far Adam may have moved it: a step moves an
/// element by about the learning rate, whatever its gradient.
fn distance(before: &Tensors, now: &Tensors, moved: f64) -> f64 {
    let of = |name: &String| {
        let (before, now) = (&before[name].2, &now[name].2);
        let squares: f64 = values(before).zip(values(now)).map(|(a, b)| (a - b).powi(2)).sum();
        squares.sqrt() / (moved * (before.len() as f64 / 4.0).sqrt())
    };
    before.keys().map(of).fold(0.0, f64::max)
}

/// Trains and returns the answer of the command.
fn run(sandbox: &Sandbox, binary: Option<&Path>, settings: &str) -> Value {
    let line = train(settings);
    // Earlier versions computed in f32 where `compute` was not given.
    let Some(binary) = binary else { return sandbox.run(&format!("{line} --compute f32")).json() };
    let output = Command::new(binary).args(line.split_whitespace()).current_dir(sandbox.path(".")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sandbox_of(name: &str) -> Sandbox {
    if name == "chat" { Sandbox::chat() } else { Sandbox::new() }
}

#[test]
fn the_adapters_are_those_of_before_byte_for_byte() {
    if let Some(binary) = std::env::var_os("QLORA_WRITE_ADAPTERS") {
        return write(Path::new(&binary));
    }
    let record: Value = serde_json::from_slice(&std::fs::read(folder().join("runs.json")).unwrap()).unwrap();
    let made_with = record["instructions"].as_str().unwrap();
    let exact = made_with == instructions();
    for (name, settings) in RUNS {
        let expected = &record["runs"][name];
        assert_eq!(expected["settings"], settings, "{name}: the adapter was made with other settings");
        let sandbox = sandbox_of(name);
        let answer = run(&sandbox, None, settings);
        let config: Value =
            serde_json::from_slice(&std::fs::read(folder().join(format!("{name}.json"))).unwrap()).unwrap();
        assert_eq!(sandbox.json("out/adapter_config.json"), config, "{name}");
        let before = tensors(&std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap());
        let now = tensors(&sandbox.bytes("out/adapter_model.safetensors"));
        let shapes = |tensors: &Tensors| tensors.iter().map(|(n, t)| (n.clone(), t.0, t.1.clone())).collect::<Vec<_>>();
        assert_eq!(shapes(&now), shapes(&before), "{name}");
        if exact {
            let different: Vec<&String> = before.keys().filter(|key| now[*key].2 != before[*key].2).collect();
            assert!(different.is_empty(), "{name}: other bytes in {different:?}");
            assert_eq!(answer["train_loss"], expected["train_loss"], "{name}");
            println!("{name}: {} tensors byte for byte ({made_with})", before.len());
        } else {
            // Sums in another order. The comparison with PEFT, whose sums are in another order too, asks for a cosine
            // of 0.9999 between the changes: a distance of 0.0141 of their length.
            let rate = expected["learning_rate"].as_f64().unwrap();
            let distance = distance(&before, &now, rate * expected["steps"].as_f64().unwrap());
            println!(
                "{name}: {} tensors within {distance:.1e} of the way, made with {made_with}, trained with {}: not \
                 compared byte for byte",
                before.len(),
                instructions()
            );
            assert!(distance <= 0.0141, "{name}: {distance}");
            let (now, before) = (answer["train_loss"].as_f64().unwrap(), expected["train_loss"].as_f64().unwrap());
            assert!((now / before - 1.0).abs() <= 1e-3, "{name}: training loss {now}, was {before}");
        }
    }
}

fn write(binary: &Path) {
    std::fs::create_dir_all(folder()).unwrap();
    let mut runs = serde_json::Map::new();
    for (name, settings) in RUNS {
        let sandbox = sandbox_of(name);
        let answer = run(&sandbox, Some(binary), settings);
        for (from, to) in [("adapter_model.safetensors", "safetensors"), ("adapter_config.json", "json")] {
            std::fs::copy(sandbox.path("out").join(from), folder().join(format!("{name}.{to}"))).unwrap();
        }
        let words: Vec<&str> = settings.split_whitespace().collect();
        let rate = words.iter().position(|word| *word == "--learning-rate").map_or("1e-2", |at| words[at + 1]);
        let ratio = if name.starts_with("loraplus") { 16.0 } else { 1.0 };
        runs.insert(
            name.to_owned(),
            json!({
                "settings": settings,
                "steps": answer["steps"],
                "learning_rate": rate.parse::<f64>().unwrap() * ratio,
                "train_loss": answer["train_loss"],
            }),
        );
    }
    let record = json!({"instructions": instructions(), "runs": runs});
    let text = serde_json::to_string_pretty(&record).unwrap() + "\n";
    std::fs::write(folder().join("runs.json"), text).unwrap();
}

/// The comparison is worth something only if it sees a small change: another seed, and one value's last bit.
#[test]
fn a_changed_value_before_or_now_is_noticed() {
    let bytes = std::fs::read(folder().join("plain.safetensors")).unwrap();
    let before = tensors(&bytes);
    let mut now = before.clone();
    let first = now.values_mut().next().unwrap();
    first.2[0] ^= 1;
    assert!(now != before && distance(&before, &now, 0.06) < 1e-5);
    let sandbox = Sandbox::new();
    sandbox.train("--packing false --seed 43").ok();
    let other = tensors(&sandbox.bytes("out/adapter_model.safetensors"));
    assert!(distance(&before, &other, 0.06) > 0.1, "{}", distance(&before, &other, 0.06));
}
