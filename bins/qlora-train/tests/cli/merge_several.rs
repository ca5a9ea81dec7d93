//! `merge` of several adapters, of one with a weight, and the memory that it says.

use half::bf16;
use qlora_train::adapter::Adapter;
use qlora_train::arch::Arch;
use qlora_train::base::Checkpoint;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::files::tensor::TensorData;
use serde_json::json;

use crate::loopback::sha256;
use crate::sandbox::{Sandbox, assert_close};

/// Two adapters of other ranks, scales and layers.
fn trained() -> Sandbox {
    let sandbox = Sandbox::chat();
    sandbox.train_into("a", "--learning-rate 0.02 --chat-template chatml").ok();
    let more = "--lora-r 2 --lora-alpha 7 --use-rslora true --seed 9 --lora-target-modules q_proj,down_proj";
    sandbox.train_into("b", &format!("--learning-rate 0.02 --chat-template chatml {more}")).ok();
    sandbox
}

const TWO: &str = "--adapter first=a:0.7 --adapter b:-0.4";

#[test]
fn several_adapters_are_their_weighted_sum_rounded_once() {
    let sandbox = trained();
    let answer = sandbox.run(&format!("merge --json --model model {TWO} --output m")).json();
    assert_eq!(answer["adapter"], "first:0.7 + b:-0.4");
    let named = json!([
        {"name": "first", "directory": "a", "weight": 0.7}, {"name": "b", "directory": "b", "weight": -0.4}
    ]);
    assert_eq!(answer["adapters"], named);
    let [original, merged] = ["model", "m"].map(|dir| Checkpoint::open(&sandbox.path(dir)).unwrap());
    let loaded = ["a", "b"].map(|dir| Adapter::load(&sandbox.path(dir)).unwrap());
    let of_each = loaded.each_ref().map(|adapter| adapter.lora_pairs().unwrap());
    let (mut changed, mut both) = (0, 0);
    for name in original.names() {
        let (w, found) = (original.read_f32(name).unwrap(), merged.read(name).unwrap());
        let TensorData::Bf16(found) = &found.data else { panic!("{name} is not in bf16") };
        let module = name.trim_end_matches(".weight");
        let pairs: Vec<_> = of_each.iter().zip([0.7, -0.4]).filter_map(|(of, x)| Some((of.get(module)?, x))).collect();
        both += usize::from(pairs.len() == 2);
        let columns = original.shape(name).unwrap().last().copied().unwrap();
        for (at, (&w, found)) in w.iter().zip(found).enumerate() {
            let (row, column) = (at / columns, at % columns);
            let (mut expected, mut sizes, mut terms) = (f64::from(w), f64::from(w).abs(), 3);
            for (pair, weight) in &pairs {
                for k in 0..pair.r {
                    let product = f64::from(pair.b[row * pair.r + k]) * f64::from(pair.a[k * columns + column]);
                    let term = weight * f64::from(pair.scale) * product;
                    (expected, sizes) = (expected + term, sizes + term.abs());
                }
                terms += pair.r + 3;
            }
            if pairs.is_empty() {
                assert_eq!(*found, bf16::from_f32(w), "{name}");
                continue;
            }
            // Half a unit of bf16's 8 significant bits, and the rounding of scales and sums in f32.
            let half_unit = 2f64.powi(expected.abs().max(f64::MIN_POSITIVE).log2().floor() as i32 - 8);
            let limit = half_unit + terms as f64 * 2f64.powi(-24) * sizes;
            assert!((found.to_f64() - expected).abs() <= limit, "{name} {row} {column}: {found} for {expected}");
            changed += usize::from(*found != bf16::from_f32(w));
        }
    }
    assert!(changed > 1000 && both > 1, "{changed} {both}");
    // The files do not depend on the order, nor does the record, which names all.
    sandbox.run("merge --model model --adapter b:-0.4 --adapter a:0.7 --output turned").ok();
    for file in ["model.safetensors", "merge.json", "config.json"] {
        assert!(sandbox.bytes(&format!("m/{file}")) == sandbox.bytes(&format!("turned/{file}")), "{file}");
    }
    let record = sandbox.json("m/merge.json");
    let of = |dir: &str, weight: f64| {
        let hash = sha256(&sandbox.bytes(&format!("{dir}/adapter_model.safetensors")));
        json!({"directory": dir, "weight": weight, "sha256": hash})
    };
    let expected = json!([of("a", 0.7), of("b", -0.4)]);
    assert_eq!((&record["adapters"], &record["base_weights"]), (&expected, &json!("as stored")));
    assert_eq!(record["base"]["fingerprint"], original.fingerprint().unwrap());
    // `eval` adds them up too.
    let eval = |line: &str| {
        let line = format!("eval --json {line} --data rows.jsonl --quantization none --device cpu --compute f32");
        sandbox.run(&line).json()["loss"].as_f64().unwrap()
    };
    let [attached, merged] = [format!("--model model {TWO}"), "--model m".to_owned()].map(|line| eval(&line));
    assert_close(merged, attached, 2f64.powi(-8));
    let one = eval("--model model --adapter a");
    assert!((one - attached).abs() > 1e-3, "{one} {attached}");
}

#[test]
fn one_without_a_weight_is_merged_as_ever_and_a_weight_scales_it() {
    let sandbox = trained();
    let bytes = |line: &str, out: &str| {
        sandbox.run(&format!("merge --model model {line} --output {out}")).ok();
        sandbox.bytes(&format!("{out}/model.safetensors"))
    };
    let alone = bytes("--adapter a", "alone");
    assert!(alone == bytes("--adapter a:1", "one") && alone == bytes("--adapter a:1 --adapter b:0", "zero"));
    assert!(bytes("--adapter a --adapter b", "two") == bytes("--adapter a:1 --adapter b:1", "ones"));
    // Two halves are one.
    let halves = bytes("--adapter a:0.5 --adapter a:0.5", "halves");
    let [alone, halves] = [("alone", alone), ("halves", halves)].map(|(dir, bytes)| {
        assert!(!bytes.is_empty());
        Checkpoint::open(&sandbox.path(dir)).unwrap()
    });
    for name in alone.names() {
        for (x, y) in alone.read_f32(name).unwrap().iter().zip(halves.read_f32(name).unwrap()) {
            assert!((x - y).abs() <= 2f32.powi(-7) * x.abs() + 1e-7, "{name}: {x} {y}");
        }
    }
}

#[test]
fn what_merging_the_sum_changes_is_measured_with_the_sum_attached() {
    let sandbox = trained();
    let more = "--data chat.jsonl --device cpu --compute f32";
    let answer = sandbox.run(&format!("merge --json --model model {TWO} --output m {more}")).json();
    let loss = |name: &str| {
        let models = answer["measured"]["models"].as_array().unwrap();
        models.iter().find(|model| model["name"] == name).unwrap()["loss"].as_f64().unwrap()
    };
    for (name, line) in [
        ("adapter on NF4", format!("--quantization nf4 {TWO}")),
        ("adapter on 16 bits", format!("--quantization none {TWO}")),
        ("base in NF4", "--quantization nf4".to_owned()),
    ] {
        assert_close(loss(name), sandbox.eval(&format!("{line} {more}")), 1e-5);
    }
    assert!((loss("adapter on NF4") - loss("base in NF4")).abs() > 1e-3);
    assert_close(loss("merged into dequantized NF4"), loss("adapter on NF4"), 1e-2);
}

#[test]
fn adapters_that_cannot_be_added_up_are_refused() {
    let sandbox = trained();
    let refused = |adapters: &str, words: &[&str]| {
        sandbox.refused(&format!("merge --model model {adapters} --output new"), words);
    };
    refused("--adapter a:nan --adapter b", &["a:nan", "finite"]);
    refused("--adapter a --adapter b:-inf", &["b:-inf", "finite"]);
    refused("--adapter a:1e300 --adapter b", &["a: ", "scale of inf", "weight"]);
    refused("--adapter a:0", &["--adapter: found weights that are all 0"]);
    refused("--adapter a:0 --adapter b:-0.0", &["--adapter: found weights that are all 0"]);
    refused("--adapter x=a --adapter x=b", &["\"x\" twice", "NAME=DIR"]);
    refused("--adapter a:", &["--adapter a:: found no weight after the colon", "a:0.5"]);
    refused("--adapter a:0.5 --adapter none:0.5", &["none", "no such directory"]);
    for (name, more, word) in [
        ("dora", "--use-dora true", "DoRA"),
        ("whole", "--modules-to-save lm_head", "modules_to_save"),
        ("rows", "--trainable-token-indices 5,6", "trainable_token_indices"),
    ] {
        sandbox.train_into(name, &format!("--learning-rate 0.02 --chat-template chatml {more}")).ok();
        refused(&format!("--adapter a --adapter {name}"), &[&format!("{name}: holds"), word, "alone"]);
        refused(&format!("--adapter {name}:0.5"), &[&format!("{name}: holds"), word]);
        sandbox.run(&format!("merge --model model --adapter {name} --output {name}-merged")).ok();
    }
    // Each is on a base of its own, which is found before a weight is read.
    let model = sandbox.path("model");
    let config = Arch { vocab_size: Checkpoint::open(&model).unwrap().arch().vocab_size, ..tiny_arch() };
    Synthetic::new(config, 2).write(&sandbox.path("other")).unwrap();
    sandbox.train_into("c", "--model other --learning-rate 0.02").ok();
    refused("--adapter a --adapter c", &["c: was trained on another base than a", "fingerprint", "--allow-other-base"]);
    sandbox.refused("merge --adapter a:0.5 --adapter c:0.5 --output new", &["another base"]);
    let told = sandbox.run("merge --model model --adapter a --adapter c --output both --allow-other-base").ok().stderr;
    assert!(told.contains("c: adapter: it was trained on other weights"), "{told}");
    // There is no one NF4 of adapters that were trained on two.
    sandbox.train_into("sixteen", "--quantization none --learning-rate 0.02 --chat-template chatml").ok();
    refused(
        "--adapter a --adapter sixteen --base nf4",
        &["sixteen: was trained on a base held otherwise", "--base bf16"],
    );
    sandbox.run("merge --model model --adapter a --adapter sixteen --output sixteens --base bf16").ok();
}

#[test]
fn tokenizer_files_that_differ_are_told() {
    let sandbox = trained();
    sandbox.write("b/chat_template.jinja", "{{ messages[0].content }}");
    sandbox.write("a/chat_template.jinja", "{{ messages }}");
    let answer = sandbox.run("merge --json --model model --adapter b --adapter a --output m").json();
    let warnings = answer["warnings"].to_string();
    assert!(warnings.contains("a/chat_template.jinja: differs from b/chat_template.jinja"), "{warnings}");
    assert_eq!(sandbox.read("m/chat_template.jinja"), "{{ messages[0].content }}");
}

#[test]
fn the_memory_that_is_said_before_is_not_exceeded() {
    let arch = Arch { hidden_size: 512, intermediate_size: 2048, num_layers: 12, num_heads: 32, ..tiny_arch() };
    let sandbox = Sandbox::chat_of(arch);
    for (name, seed) in [("a", 1), ("b", 2)] {
        sandbox.train_into(name, &format!("--max-steps 1 --lora-r 2 --weights resident --seed {seed}")).ok();
    }
    let values = |dir: &str| -> usize {
        let adapter = Adapter::load(&sandbox.path(dir)).unwrap();
        adapter.tensors.values().map(|(_, values)| values.len()).sum()
    };
    let elements = 512 * 2048;
    for (i, (line, adapters, largest)) in [
        ("--adapter a", values("a"), 6 * elements),
        ("--adapter a:0.5 --adapter b:0.5", values("a") + values("b"), 6 * elements),
        // Codes and scales of NF4 beside it.
        ("--adapter a --base nf4", values("a"), 6 * elements + elements * 5 / 8),
    ]
    .into_iter()
    .enumerate()
    {
        let (done, peak) = sandbox.run_watched(&format!("merge --json --model model {line} --output m{i}"));
        assert!(done.stderr.contains("memory: "), "{}", done.stderr);
        let memory = &done.json()["memory"];
        assert_eq!(memory["largest_bytes"], largest, "{memory}");
        assert_eq!(memory["adapters_bytes"], 4 * adapters, "{memory}");
        assert!(memory["largest"].as_str().unwrap().contains(".mlp."), "{memory}");
        assert!(memory["bytes"].as_u64().unwrap() >= peak, "{line}: {peak}, {memory}");
        // The process's other memory is far below the stated amount.
        assert!(peak < (largest + 4 * adapters + (16 << 20)) as u64, "{line}: {peak}, {memory}");
    }
}

#[test]
fn less_memory_than_merging_takes_is_refused_before_it_begins() {
    let sandbox = trained();
    let line = |limit: &str| format!("merge --model model --adapter a --output new --host-memory {limit}");
    sandbox.refused(&line("20MiB"), &["merging takes up to", "20.0 MiB", "--host-memory"]);
    sandbox.refused(&line("much"), &["much", "8GiB"]);
    sandbox.run(&line("1GiB")).ok();
}
