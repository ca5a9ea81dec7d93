//! Bases and adapters that are refused, through the binary: exit status 2, one sentence, nothing written.

use half::bf16;
use qlora_train::arch::Arch;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::sandbox::{Sandbox, train};

fn sharded() -> Sandbox {
    Sandbox::of(&Synthetic { shards: 3, ..Synthetic::new(tiny_arch(), 1) })
}

const SHARD: &str = "model/model-00002-of-00003.safetensors";
const INDEX: &str = "model/model.safetensors.index.json";

fn edit_json(sandbox: &Sandbox, name: &str, change: impl FnOnce(&mut Value)) {
    let mut value = sandbox.json(name);
    change(&mut value);
    sandbox.write(name, &value.to_string());
}

/// Rewrites one tensor of `model/model.safetensors`.
fn edit_tensor(sandbox: &Sandbox, name: &str, change: impl Fn(&mut Dtype, &mut Vec<usize>, &mut Vec<u8>)) {
    let path = "model/model.safetensors";
    let bytes = sandbox.bytes(path);
    let mut tensors: Vec<_> = safetensors::SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    let tensor = tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap();
    change(&mut tensor.1, &mut tensor.2, &mut tensor.3);
    let views =
        tensors.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    std::fs::write(sandbox.path(path), safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_missing_or_truncated_shard() {
    let sandbox = sharded();
    let shard = sandbox.bytes(SHARD);
    std::fs::remove_file(sandbox.path(SHARD)).unwrap();
    sandbox.refused(&train(""), &[SHARD, "found no such file", "expected a shard", "download it"]);
    std::fs::write(sandbox.path(SHARD), &shard[..shard.len() - 1]).unwrap();
    sandbox.refused(&train(""), &[SHARD, "truncated, download it again"]);
    std::fs::write(sandbox.path(SHARD), &shard[..20]).unwrap();
    sandbox.refused(&train(""), &[SHARD, "truncated"]);
    std::fs::write(sandbox.path(SHARD), &shard).unwrap();
    sandbox.train("").ok();
}

#[test]
fn an_index_that_names_a_file_outside_its_directory() {
    for outside in ["../rows.safetensors", "/etc/model.safetensors"] {
        let sandbox = sharded();
        edit_json(&sandbox, INDEX, |index| index["weight_map"]["model.norm.weight"] = json!(outside));
        sandbox.refused(&train(""), &[INDEX, "`model.norm.weight`", outside, "expected a file inside the directory"]);
    }
}

#[test]
fn tensors_of_a_wrong_type_shape_or_value() {
    const NAME: &str = "model.layers.1.mlp.up_proj.weight";
    let sandbox = Sandbox::new();
    edit_tensor(&sandbox, NAME, |dtype, _, _| *dtype = Dtype::I16);
    sandbox.refused(&train(""), &["model/model.safetensors", NAME, "found dtype I16", "expected BF16, F16 or F32"]);
    edit_tensor(&sandbox, NAME, |dtype, shape, _| (*dtype, *shape) = (Dtype::BF16, vec![64, 128]));
    sandbox.refused(&train(""), &[NAME, "found shape [64, 128]", "expected [128, 64]"]);
}

#[test]
fn weights_that_are_not_finite() {
    for (name, value) in [
        ("model.layers.1.self_attn.o_proj.weight", f32::NAN),
        ("model.embed_tokens.weight", f32::INFINITY),
        ("model.layers.0.input_layernorm.weight", f32::NEG_INFINITY),
        ("lm_head.weight", f32::NAN),
    ] {
        let sandbox = Sandbox::new();
        edit_tensor(&sandbox, name, |_, _, data| {
            data[2 * 7..2 * 8].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
        });
        let words = ["model/model.safetensors", name, &format!("found {value} at row "), "expected finite numbers"];
        for quantization in ["nf4", "none"] {
            sandbox.refused(&train(&format!("--quantization {quantization}")), &words);
        }
        sandbox.refused("eval --model model --data rows.jsonl", &words);
    }
}

/// Base models hold rows for the marks of their instruct versions.
#[test]
fn marks_that_the_base_never_learned_are_named() {
    let row = 2 * 64;
    let at = |id: usize| id * row..(id + 1) * row;
    // <|im_start|> is zero, <|im_end|> is <|eot|>, which nothing writes.
    let zero = |data: &mut Vec<u8>| data[at(261)].fill(0);
    let equal = |data: &mut Vec<u8>| data.copy_within(at(263), 262 * row);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let sandbox = Sandbox::chat();
        let train = train("--data chat.jsonl --max-steps 1");
        let preview = "preview --model model --data chat.jsonl";
        assert!(!sandbox.run(preview).ok().stderr.contains("never learned"));
        edit_tensor(&sandbox, name, |_, _, data| (zero(data), equal(data)).0);
        let generate = "generate --model model --max-new-tokens 1 --prompt hello";
        for line in [&train, preview, "eval --model model --data chat.jsonl", generate] {
            let told = sandbox.run(line).ok().stderr;
            let warnings: Vec<&str> = told.lines().filter(|line| line.starts_with("warning: the base never")).collect();
            let words = [name, "\"<|im_start|>\" (zero)", "\"<|im_end|>\" (that of \"<|eot|>\")", "instruct version"];
            assert!(warnings.len() == 1 && words.iter().all(|word| warnings[0].contains(word)), "{line}: {told}");
            assert!(!warnings[0].contains("<eos>"), "{told}");
        }
        // Rows that hold no mark need none.
        let told = sandbox.run("eval --model model --data rows.jsonl").ok().stderr;
        assert!(!told.contains("never learned"), "{told}");
    }
}

#[test]
fn an_output_layer_of_its_own_under_a_tie_is_told_and_used() {
    let sandbox = Sandbox::new();
    let loss = sandbox.eval("--data rows.jsonl");
    edit_json(&sandbox, "model/config.json", |config| config["tie_word_embeddings"] = json!(true));
    let done = sandbox.run("eval --model model --data rows.jsonl --json").ok();
    let words = ["warning: model: config.json ties `lm_head.weight`", "other values", "transformers 5"];
    assert!(words.iter().all(|word| done.stderr.contains(word)), "{}", done.stderr);
    assert_eq!(done.json()["loss"].as_f64(), Some(loss));
    // The reverse: neither tied nor there.
    let tied = Sandbox::of(&Synthetic::new(Arch { tie_word_embeddings: true, ..tiny_arch() }, 1));
    tied.run("eval --model model --data rows.jsonl").ok();
    edit_json(&tied, "model/config.json", |config| config["tie_word_embeddings"] = json!(false));
    tied.refused(&train(""), &["`lm_head.weight`", "found nothing", "set `tie_word_embeddings`"]);
}

#[test]
fn models_of_another_kind() {
    for (key, value, words) in [
        (
            "model_type",
            json!("gpt2"),
            &["`model_type`", "\"gpt2\"", "LayerNorm", "the nearest of these is \"llama\""][..],
        ),
        ("model_type", json!("qwen3_moe"), &["a mixture of experts, the nearest of these is \"qwen3\""]),
        (
            "architectures",
            json!(["MistralForCausalLM"]),
            &["`architectures`", "MistralForCausalLM", "LlamaForCausalLM"],
        ),
        (
            "rope_parameters",
            json!({"rope_type": "proportional", "rope_theta": 1e4, "factor": 4}),
            &["rope_type", "\"proportional\"", "llama3"],
        ),
        (
            "rope_parameters",
            json!({"rope_type": "longrope", "rope_theta": 1e4, "factor": 4}),
            &["rope_parameters", "`short_factor`", "a list of numbers"][..],
        ),
        ("hidden_act", json!("gelu"), &["`hidden_act`", "silu"]),
    ] {
        let sandbox = Sandbox::new();
        edit_json(&sandbox, "model/config.json", |config| config[key] = value);
        sandbox.refused(&train(""), &[&["model/config.json", "expected"], words].concat());
        sandbox.refused("plan --model model", words);
    }
}

#[test]
fn places_without_a_model() {
    let sandbox = Sandbox::new();
    sandbox.refused(&train("--model nowhere"), &["nowhere: found no such directory"]);
    sandbox.refused(&train("--model org/name"), &["org/name", "hf download org/name"]);
    std::fs::create_dir(sandbox.path("models")).unwrap();
    sandbox.refused(&train("--model models/llama"), &["models/llama: found no such directory", "models/llama@main"]);
    sandbox.refused(&train("--data models/rows"), &["models/rows: found no such file", "models/rows@main"]);
    sandbox.refused(&train("--model rows.jsonl"), &["rows.jsonl: found a file"]);
    sandbox.refused(&train("--revision v2"), &["model", "only for a hub id"]);
    // A setting of many files that names no other weights.
    let told = sandbox.run(&train("--revision main")).ok().stderr;
    assert!(told.contains("a directory has no revisions, so `revision: main` is left out"), "{told}");
}

#[test]
fn adapters_of_another_base() {
    let sandbox = Sandbox::new();
    sandbox.train("").ok();
    let eval = "eval --model model --adapter out --data rows.jsonl";
    sandbox.run(eval).ok();
    Synthetic::new(tiny_arch(), 2).write(&sandbox.path("model")).unwrap();
    sandbox.refused(eval, &["qlora.base_fingerprint", "trained on other weights", "load the base"]);
    let mut config = tiny_arch();
    config.intermediate_size = 96;
    Synthetic::new(config, 1).write(&sandbox.path("model")).unwrap();
    sandbox.refused(eval, &["adapter: gate_proj of layer 0", "128 x 64", "96 x 64"]);
    sandbox.refused(&eval.replace("--adapter out", "--adapter model"), &["model: is a model, not an adapter"]);
}

#[test]
fn an_adapter_without_a_fingerprint_is_used_with_a_warning() {
    let sandbox = Sandbox::new();
    sandbox.train("").ok();
    let mut adapter = qlora_train::adapter::Adapter::load(&sandbox.path("out")).unwrap();
    adapter.metadata.clear();
    adapter.save(&sandbox.path("foreign")).unwrap();
    let done = sandbox.run("eval --model model --adapter foreign --data rows.jsonl --json").ok();
    assert!(done.stderr.contains("warning: the adapter records no fingerprint"), "{}", done.stderr);
    assert_eq!(done.stdout, sandbox.run("eval --model model --adapter out --data rows.jsonl --json").ok().stdout);
}
