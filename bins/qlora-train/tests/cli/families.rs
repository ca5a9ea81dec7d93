//! Families beside Llama, through the commands: what is trained, quantized and asked is one model.

use std::path::Path;

use qlora_train::arch::Arch;

use crate::sandbox::{Sandbox, train};

#[test]
fn a_model_of_each_family_is_trained_quantized_evaluated_and_asked() {
    let others = ["seed_oss", "olmo2", "olmo3", "phi3", "phi3-long", "gemma3"];
    for family in ["qwen2", "qwen3", "ministral3", "smollm3", "granite", "granitemoehybrid"].into_iter().chain(others) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(family);
        let arch = Arch::from_file(&golden.join("config.json")).unwrap();
        let sandbox = Sandbox::chat_of(Arch { max_position_embeddings: 64, ..arch });
        let model_type = sandbox.json("model/config.json")["model_type"].as_str().unwrap().to_owned();
        assert!(model_type.starts_with(family.split('-').next().unwrap()), "{model_type} {family}");
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
    }
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
    Sandbox::chat().refused(&train("--lora-target-modules qkv_proj"), &["qkv_proj", "\"llama\"", "q_proj, k_proj"]);
}
