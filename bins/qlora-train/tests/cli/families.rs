//! Families beside Llama, through the commands: what is trained, quantized and asked is one model.

use std::path::Path;

use qlora_train::arch::Arch;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use crate::sandbox::{Sandbox, train};

#[test]
fn a_model_of_each_family_is_trained_quantized_evaluated_and_asked() {
    let first = ["llama", "mistral", "qwen2", "qwen3", "qwen3-window", "ministral3", "smollm3", "smollm3-window"];
    let others = ["granite", "granitemoehybrid", "seed_oss", "olmo2", "olmo3", "phi3", "phi3-long", "gemma2", "gemma3"];
    for family in first.into_iter().chain(others).chain(["hunyuan_v1_dense"]) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(family);
        let arch = Arch::from_file(&golden.join("config.json")).unwrap();
        let sandbox = Sandbox::chat_of(Arch { max_position_embeddings: 64, ..arch });
        let model_type = sandbox.json("model/config.json")["model_type"].as_str().unwrap().to_owned();
        assert!(model_type.starts_with(family.split('-').next().unwrap()), "{model_type} {family}");
        let plan = sandbox.run("plan --json --model model --data rows.jsonl --max-length 64").json();
        assert_eq!(plan["fits"], true, "{family}: {plan}");
        let losses = sandbox.run(&train("")).json();
        sandbox.run("quantize --model model --output nf4").ok();
        let evaluate = |model: &str, more: &str| {
            let line = format!("eval --json --model {model} --data rows.jsonl --max-length 64 {more}");
            sandbox.run(&line).json()["loss"].as_f64().unwrap()
        };
        let (before, after) = (evaluate("model", ""), evaluate("model", "--adapter out"));
        assert!(after < before, "{family}: {before} {after} {losses}");
        assert_eq!(evaluate("nf4", ""), before, "{family}");
        assert_eq!(evaluate("nf4", "--adapter out"), after, "{family}");
        let answer = |model: &str| {
            let line = format!("generate --json --model {model} --adapter out --prompt hello --max-new-tokens 4");
            sandbox.run(&line).ok().stdout
        };
        assert_eq!(answer("nf4"), answer("model"), "{family}");
        sandbox.run("check out --model model --for peft").ok();
        sandbox.run("merge --model model --adapter out --output merged").ok();
        let (merged, plain) =
            (evaluate("merged", "--quantization none"), evaluate("model", "--quantization none --adapter out"));
        println!("{family}: merged {merged}, with the adapter {plain}");
        assert!((merged - plain).abs() < 0.01, "{family}: {merged} {plain}");
    }
}

/// Puts the model of a sandbox inside one of transformers' larger classes, with tensors below `prefix`.
fn wrap(sandbox: &Sandbox, prefix: &str) {
    let text = sandbox.json("model/config.json");
    let whole = serde_json::json!({
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text,
        "vision_config": {"hidden_size": 8},
    });
    sandbox.write("model/config.json", &whole.to_string());
    let bytes = sandbox.bytes("model/model.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let inside = |name: &str| name.strip_prefix("model.").map_or(name.to_owned(), |rest| format!("{prefix}.{rest}"));
    let mut tensors: Vec<_> = file.tensors().into_iter().map(|(name, view)| (inside(&name), view)).collect();
    let image = [0u8; 8];
    tensors.push(("vision_tower.x".to_owned(), TensorView::new(Dtype::F32, vec![2], &image).unwrap()));
    std::fs::write(sandbox.path("model/model.safetensors"), serialize(tensors, None).unwrap()).unwrap();
}

/// The tensors of an adapter, without `prefix` before the layers.
fn adapter(sandbox: &Sandbox, dir: &str, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = sandbox.bytes(&format!("{dir}/adapter_model.safetensors"));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let own = |name: &str| name.strip_prefix(&format!("base_model.model.{prefix}.layers.")).unwrap().to_owned();
    let mut tensors: Vec<_> = file.tensors().iter().map(|(name, view)| (own(name), view.data().to_vec())).collect();
    tensors.sort();
    tensors
}

/// Trained, evaluated, quantized and merged, the text model inside a larger one is the one that it is alone. Its
/// adapter is named for the class that serves it.
#[test]
fn a_text_model_inside_a_larger_one_is_the_one_that_it_is_alone() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gemma3/config.json");
    let model = || Sandbox::chat_of(Arch::from_file(&golden).unwrap());
    let alone = model();
    alone.run(&train("")).ok();
    let loss = |sandbox: &Sandbox, line: &str| {
        sandbox.run(&format!("eval --json --data rows.jsonl --max-length 64 {line}")).json()["loss"].as_f64().unwrap()
    };
    let expected = loss(&alone, "--model model --adapter out");
    alone.run("merge --model model --adapter out --output merged").ok();
    for prefix in ["model.language_model", "language_model.model"] {
        let whole = model();
        wrap(&whole, prefix);
        let told = whole.run(&train("")).ok().stderr;
        assert!(told.contains("of a Gemma3ForConditionalGeneration, the text model is used"), "{told}");
        assert_eq!(adapter(&whole, "out", "model.language_model"), adapter(&alone, "out", "model"));
        let targets = whole.json("out/adapter_config.json")["target_modules"].as_str().unwrap().to_owned();
        assert!(targets.starts_with(r"model\.language_model\.layers\.(?:") && targets.contains("q_proj"), "{targets}");
        assert_eq!(loss(&whole, "--model model --adapter out"), expected);
        whole.run("check out --model model --for peft").ok();
        whole.run("quantize --model model --output nf4").ok();
        assert_eq!(whole.json("nf4/config.json")["architectures"], serde_json::json!(["Gemma3ForCausalLM"]));
        assert_eq!(loss(&whole, "--model nf4 --adapter out"), expected);
        whole.run("merge --model model --adapter out --output merged").ok();
        assert_eq!(whole.bytes("merged/model.safetensors"), alone.bytes("merged/model.safetensors"));
        let own = train("--output-dir own --adapter-architecture Gemma3ForCausalLM");
        whole.run(&own).ok();
        assert_eq!(adapter(&whole, "own", "model"), adapter(&alone, "out", "model"));
        assert_eq!(loss(&whole, "--model model --adapter own"), expected);
        let other = train("--output-dir x --adapter-architecture LlamaForCausalLM");
        whole.refused(&other, &["`adapter_architecture`", "Gemma3ForConditionalGeneration or Gemma3ForCausalLM"]);
    }
}

/// Published weights in FP8 are named by config.json, within a larger class too, before there is a weight to read.
#[test]
fn weights_in_fp8_are_refused_by_name() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    for config in ["ministral3/config.json", "wrapped/ministral3/config.json"] {
        let sandbox = Sandbox::chat();
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(golden.join(config)).unwrap()).unwrap();
        config["quantization_config"] = serde_json::json!({
            "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        });
        sandbox.write("model/config.json", &config.to_string());
        std::fs::remove_file(sandbox.path("model/model.safetensors")).unwrap();
        let words = ["model/config.json", "`quant_method`", "\"fp8\"", "use the original 16-bit model"];
        for line in [&train(""), "quantize --model model --output nf4", "eval --model model --data rows.jsonl"] {
            sandbox.refused(line, &words);
        }
    }
}

/// A tensor of the text model is there once, by whichever of its names.
#[test]
fn two_tensors_that_are_one_of_the_text_model_are_refused_with_both_names() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gemma3/config.json");
    let whole = Sandbox::chat_of(Arch::from_file(&golden).unwrap());
    wrap(&whole, "model.language_model");
    let bytes = whole.bytes("model/model.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file.tensors();
    let names = ["model.language_model.norm.weight", "language_model.model.norm.weight"];
    let norm = file.tensor(names[0]).unwrap();
    tensors.push((names[1].to_owned(), norm));
    std::fs::write(whole.path("model/model.safetensors"), serialize(tensors, None).unwrap()).unwrap();
    whole.refused(&train(""), &["model.safetensors", names[0], names[1], "`model.norm.weight`", "remove the one"]);
}

/// A list of targets that names parts of a fused tensor is refused, with the names that the family has; so is the
/// reverse.
#[test]
fn targets_that_a_family_does_not_have_are_refused() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/phi3/config.json");
    let phi = Sandbox::chat_of(Arch::from_file(&golden).unwrap());
    let names = "qkv_proj, o_proj, gate_up_proj, down_proj";
    for listed in ["o_proj,q_proj", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"] {
        let line = train(&format!("--lora-target-modules {listed}"));
        phi.refused(&line, &["`lora_target_modules`", "q_proj", "\"phi3\"", names, "one tensor"]);
    }
    phi.run(&train("--lora-target-modules gate_up_proj,qkv_proj")).ok();
    let config = phi.json("out/adapter_config.json");
    assert_eq!(config["target_modules"], serde_json::json!(["gate_up_proj", "qkv_proj"]));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/granitemoehybrid/config.json");
    let granite = Sandbox::chat_of(Arch::from_file(&golden).unwrap());
    let line = train("--lora-target-modules q_proj,gate_proj");
    granite.refused(&line, &["gate_proj", "input_linear, output_linear, as gate and up are one tensor there"]);
    granite.run(&train("--lora-target-modules q_proj,input_linear")).ok();
    Sandbox::chat().refused(&train("--lora-target-modules qkv_proj"), &["qkv_proj", "\"llama\"", "q_proj, k_proj"]);
}
