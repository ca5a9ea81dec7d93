//! `quantize`, and quantized models as the base of every other command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qlora_train::arch::Arch;
use qlora_train::base::Checkpoint;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::sandbox::{Sandbox, keys, train};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/checkpoint").join(name)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_file_is_the_one_that_transformers_and_bitsandbytes_dequantized() {
    let sandbox = Sandbox::new();
    let ours: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(golden("ours.json")).unwrap()).unwrap();
    assert_eq!(ours.len(), 3);
    for (variant, expected) in ours {
        let arguments: Vec<&str> = expected["arguments"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let base = golden("base");
        let line = format!("quantize --json --model {} --output {variant} {}", base.display(), arguments.join(" "));
        let answer = sandbox.run(&line).json();
        let found = hex(&sandbox.bytes(&format!("{variant}/model.safetensors")));
        assert_eq!(found, expected["file_sha256"].as_str().unwrap(), "{variant}");
        let checkpoint = Checkpoint::open(&sandbox.path(&variant)).unwrap();
        let dequantized = expected["dequantized"].as_object().unwrap();
        assert_eq!(answer["quantized"], dequantized.len());
        for (name, hashes) in dequantized {
            assert!(checkpoint.is_nf4(name), "{variant} {name}");
            let values = checkpoint.read_f32(name).unwrap();
            assert_eq!(hex(bytemuck::cast_slice(&values)), hashes["f32"].as_str().unwrap(), "{variant} {name}");
        }
    }
}

#[test]
fn a_key_that_is_not_used_is_named_once_by_the_file_that_has_it() {
    let sandbox = Sandbox::new();
    let mut config: Value = serde_json::from_str(&sandbox.read("model/config.json")).unwrap();
    config["mood"] = 7.into();
    sandbox.write("model/config.json", &config.to_string());
    for line in ["quantize --model model --output nf4", "plan --model model", "eval --model model --data rows.jsonl"] {
        let said = sandbox.run(line).ok().stderr;
        assert_eq!(said.matches("`mood`").count(), 1, "{line}: {said}");
        assert!(said.contains("model/config.json: not used, ") && !said.contains("partial"), "{line}: {said}");
    }
}

#[test]
fn a_run_on_the_quantized_model_is_the_run_on_the_original() {
    let sandbox = Sandbox::chat();
    for (i, (quantize, settings)) in
        [("", ""), ("--no-double-quant --nf4-block-size 128", "--double-quant false --nf4-block-size 128")]
            .into_iter()
            .enumerate()
    {
        let (nf4, a, b) = (format!("nf4-{i}"), format!("a-{i}"), format!("b-{i}"));
        let answer = sandbox.run(&format!("quantize --model model --output {nf4} --json {quantize}")).json();
        assert_eq!(
            keys(&answer),
            [
                "output",
                "quantized",
                "skipped",
                "files",
                "bytes",
                "original_bytes",
                "base",
                "block_size",
                "double_quant"
            ]
        );
        assert_eq!(sandbox.bytes(&format!("{nf4}/tokenizer.json")), sandbox.bytes("model/tokenizer.json"));
        sandbox.train_into(&a, settings).ok();
        let on_nf4 = sandbox.train_into(&b, &format!("--model {nf4}")).ok();
        let file = "adapter_model.safetensors";
        assert!(sandbox.bytes(&format!("{a}/{file}")) == sandbox.bytes(&format!("{b}/{file}")), "{file}");
        // Beside it the base is called what it was given as.
        for file in ["adapter_config.json", "README.md"] {
            let own = |out: &str, base: &str| {
                let text = sandbox.read(&format!("{out}/{file}"));
                text.replace(&format!("\"{base}\""), "BASE").replace(&format!("| Base | {base} |"), "BASE")
            };
            assert!(own(&a, "model").contains("BASE"), "{file}");
            assert_eq!(own(&a, "model"), own(&b, &nf4), "{file}");
        }
        let expected = if i == 0 { "nf4, block 64, double quantization" } else { "quantization: nf4, block 128\n" };
        assert!(on_nf4.stderr.contains(expected), "{}", on_nf4.stderr);
        // The base is one in either form: the adapter belongs to both, and the run's directory too.
        let eval = |model: &str, adapter: &str| {
            sandbox.run(&format!("eval --json --model {model} --adapter {adapter} --data rows.jsonl")).ok()
        };
        let on_quantized = eval(&nf4, &a);
        assert_eq!(on_quantized.stdout, eval("model", &b).stdout);
        assert!(!on_quantized.stderr.contains("warning"), "{}", on_quantized.stderr);
        sandbox.train_into(&a, &format!("--model {nf4}")).ok();
        let text = |model: &str| {
            sandbox
                .run(&format!("generate --json --model {model} --adapter {b} --prompt hello --max-new-tokens 4"))
                .ok()
        };
        assert_eq!(text(&nf4).stdout, text("model").stdout);
    }
    let warned = sandbox.run("eval --model nf4-1 --adapter a-0 --data rows.jsonl").ok();
    assert!(warned.stderr.contains("warning: the adapter was trained on a base quantized as nf4, block 64, double"));
    sandbox.refused(&train("--model nf4-1 --output-dir a-0"), &["a-0", "holds a different run"]);
}

#[test]
fn models_that_others_quantized_are_trained_evaluated_and_planned() {
    let sandbox = Sandbox::new();
    for variant in ["double", "bf16-storage", "f32-storage", "head"] {
        let model = golden(&format!("theirs-{variant}"));
        let model = model.display();
        let plan = sandbox.run(&format!("plan --json --model {model} --data rows.jsonl --max-length 64 --lora-r 4"));
        let plan = plan.json();
        let buffers = plan["buffers"].as_array().unwrap().iter();
        // Beside what the model takes there are the process's own memory and the copies of a save.
        let beside = |name: &str| name.starts_with("rows, tokenizer") || name.starts_with("saving");
        let own = buffers.filter(|buffer| !beside(buffer["name"].as_str().unwrap()));
        let planned: u64 = own.map(|buffer| buffer["bytes"].as_u64().unwrap()).sum();
        let answer = sandbox.train_into(variant, &format!("--model {model}")).json();
        assert_eq!(answer["peak_bytes"], planned, "{variant}");
        let eval = sandbox.run(&format!("eval --json --model {model} --adapter {variant} --data rows.jsonl")).json();
        assert!(eval["loss"].as_f64().unwrap() < 5.0, "{eval}");
    }
    assert!(
        sandbox.read("f32-storage/README.md").contains("double quantization, block 256; 4 linear layers as they were")
    );
}

/// A copy in NF4 that says nothing of its original, as other programs write them.
fn foreign_copy(sandbox: &Sandbox) {
    sandbox.run("quantize --model model --output-dir foreign").ok();
    let path = sandbox.path("foreign/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = file.iter().collect();
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

#[test]
fn an_adapter_goes_on_another_form_of_its_base_where_that_is_asked_for() {
    let sandbox = Sandbox::new();
    foreign_copy(&sandbox);
    sandbox.train_into("on16", "--max-steps 4").ok();
    sandbox.train_into("on4", "--max-steps 4 --model foreign").ok();
    for (model, adapter) in [("foreign", "on16"), ("model", "on4")] {
        let own = if model == "model" { "foreign" } else { "model" };
        let line = |model: &str| format!("eval --json --model {model} --adapter {adapter} --data rows.jsonl");
        let words = ["another form of this model", "rounded otherwise", "--allow-other-base"];
        sandbox.refused(&line(model), &words);
        let expected = sandbox.run(&line(own)).json()["loss"].as_f64().unwrap();
        let done = sandbox.run(&(line(model) + " --allow-other-base")).ok();
        assert!(done.stderr.contains("warning: adapter: it was trained on another form"), "{done:#?}");
        // It is quantized by the same rules here, so that nothing is rounded otherwise.
        assert!((done.json()["loss"].as_f64().unwrap() - expected).abs() < 1e-6, "{model}");
        let begin = format!("--model {model} --init-adapter {adapter} --max-steps 1 --output-dir next-{model}");
        sandbox.refused(&train(&begin), &["another form of this model"]);
        let done = sandbox.train(&format!("{begin} --allow-other-base")).ok();
        assert!(done.stderr.contains("another form of this model"), "{done:#?}");
    }
    // An adapter of another model is refused with or without the flag.
    Synthetic::new(tiny_arch(), 2).write(&sandbox.path("other")).unwrap();
    let line = "eval --json --model other --adapter on16 --data rows.jsonl";
    sandbox.refused(line, &["trained on other weights", "--allow-other-base"]);
    let done = sandbox.run(&format!("{line} --allow-other-base")).ok();
    assert!(done.stderr.contains("warning: adapter: it was trained on other weights"), "{done:#?}");
}

#[test]
fn an_adapter_names_its_base_as_it_was_given() {
    let sandbox = Sandbox::new();
    let absolute = sandbox.path("model").display().to_string();
    let mut config = sandbox.json("model/config.json");
    config["_name_or_path"] = "org/what-this-was-made-of".into();
    sandbox.write("model/config.json", &config.to_string());
    for (out, model) in [("a", "model"), ("b", "./model/"), ("c", absolute.as_str())] {
        sandbox.train_into(out, &format!("--model {model} --max-steps 1")).ok();
        assert_eq!(sandbox.json(&format!("{out}/adapter_config.json"))["base_model_name_or_path"], model);
        // No word about the name where the weights are known to be the same.
        let done = sandbox.run(&format!("eval --model model --adapter {out} --data rows.jsonl")).ok();
        assert!(!done.stderr.contains("warning"), "{done:#?}");
    }
}

#[test]
fn the_name_and_revision_of_the_original_are_kept() {
    let sandbox = Sandbox::new();
    let snapshot = sandbox.path("hub/models--org--tiny/snapshots/abc123");
    Synthetic::new(Arch { num_layers: 1, ..tiny_arch() }, 1).write(&snapshot).unwrap();
    let run = |line: &str| {
        let output = sandbox.command(line).env("HF_HUB_CACHE", sandbox.path("hub")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run("quantize --model org/tiny --revision abc123 --output nf4");
    sandbox.train_into("out", "--model nf4").ok();
    let config = sandbox.json("out/adapter_config.json");
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&"org/tiny".into(), &"abc123".into()));
    assert!(!sandbox.read("nf4/config.json").contains(&*sandbox.path("").to_string_lossy()));
}

#[test]
fn what_cannot_be_quantized_or_used_so_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.run("quantize --model model --output nf4").ok();
    let again = "quantize --model model --output nf4";
    sandbox.refused(again, &["nf4: found a directory that is not empty", "choose another"]);
    sandbox.refused("quantize --model nf4 --output new", &["nf4: found a model that is already quantized"]);
    sandbox.refused("quantize --model nowhere --output new", &["nowhere: found no such directory"]);
    let with = |more: &str| format!("quantize --model model --output new {more}");
    sandbox.refused(&with("--nf4-block-size 48"), &["--nf4-block-size", "found 48", "power of two from 32 to 4096"]);
    sandbox.refused(&with("--max-shard-size five"), &["--max-shard-size", "\"five\"", "5GB"]);
    sandbox.refused(&with("--llm-int8-skip-modules w_proj"), &["llm_int8_skip_modules", "\"w_proj\"", "down_proj"]);
    let none = &["`quantization`", "found none", "already quantized", "original 16-bit model"];
    sandbox.refused(&train("--model nf4 --quantization none"), none);
    sandbox.refused("plan --model nf4 --quantization none", none);
    sandbox.refused("eval --model nf4 --quantization none --data rows.jsonl", none);
    // Changed after it was quantized.
    let mut bytes = sandbox.bytes("nf4/model.safetensors");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(sandbox.path("nf4/model.safetensors"), bytes).unwrap();
    sandbox.refused(&train("--model nf4"), &["nf4", "changed after the model was quantized", "quantize it again"]);
}
