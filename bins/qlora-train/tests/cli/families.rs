//! Families beside Llama, through the commands: what is trained, quantized and asked is one model.

use std::path::Path;

use qlora_train::arch::Arch;

use crate::sandbox::{Sandbox, train};

#[test]
fn a_model_of_each_family_is_trained_quantized_evaluated_and_asked() {
    for family in ["qwen2", "qwen3", "smollm3", "granite", "seed_oss", "olmo2", "olmo3"] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(family);
        let sandbox = Sandbox::chat_of(Arch::from_file(&golden.join("config.json")).unwrap());
        assert_eq!(sandbox.json("model/config.json")["model_type"], family);
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
