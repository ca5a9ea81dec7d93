//! Rows of single tokens (`trainable_token_indices`) from settings to what other programs load.

use crate::sandbox::Sandbox;
use qlora_train::adapter::Adapter;
use qlora_train::arch::Arch;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use serde_json::json;

const ROWS: &str = "--data rows.jsonl --max-length 64 --compute f32 --quantization none";

/// A line of a run with settings of its own, in `name`.yaml.
fn settings(sandbox: &Sandbox, name: &str, lines: &str) -> String {
    sandbox.write(&format!("{name}.yaml"), &format!("compute: f32\nquantization: none\nlora_r: 4\n{lines}"));
    let rows = "--data rows.jsonl --max-length 64 --learning-rate 0.01 --allow all --max-steps 6";
    format!("train --json {name}.yaml --model model {rows}")
}

/// A model, and the settings and the tensor keys of the rows that are trained of it.
fn cases() -> [(Sandbox, &'static str, Vec<&'static str>); 2] {
    [
        (
            Sandbox::chat_of(Arch { tie_word_embeddings: true, ..tiny_arch() }),
            "trainable_token_indices: [9, 4, 5]\noptim: adamw_torch\n",
            vec!["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"],
        ),
        (
            Sandbox::chat(),
            "trainable_token_indices: {embed_tokens: [4, 5], lm_head: [5, 7]}\n",
            vec![
                "base_model.model.lm_head.token_adapter.trainable_tokens_delta",
                "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            ],
        ),
    ]
}

/// Rows go from settings to every command that takes an adapter, and nothing but them is in its file.
#[test]
fn rows_are_evaluated_merged_and_served_where_they_can_be() {
    for (sandbox, lines, keys) in cases() {
        let line = settings(&sandbox, "cfg", lines);
        let told = sandbox.run(&format!("{line} --output-dir out")).ok().stderr;
        assert!(told.contains("rows of model.embed_tokens for single tokens"), "{told}");
        let plan = sandbox.run(&line.replace("train --json", "plan")).ok().stdout;
        assert!(plan.contains("rows of single tokens"), "{plan}");
        let adapter = Adapter::load(&sandbox.path("out")).unwrap();
        let rows: Vec<&str> = adapter.tensors.keys().map(String::as_str).filter(|key| !key.contains("lora_")).collect();
        assert_eq!(rows, keys);
        let tied = keys.len() == 1;
        let config = sandbox.json("out/adapter_config.json");
        let expected = if tied { json!([4, 5, 9]) } else { json!({"embed_tokens": [4, 5], "lm_head": [5, 7]}) };
        assert_eq!(config["trainable_token_indices"], expected);
        assert!(sandbox.bytes("out/adapter_model.safetensors").len() < 45_000, "no table is in it");
        // A plain adapter after it, and the base, are as they are alone.
        let plain = settings(&sandbox, "plain", "");
        sandbox.run(&format!("{plain} --output-dir plain")).ok();
        let (own, other) =
            (sandbox.eval(&format!("--adapter out {ROWS}")), sandbox.eval(&format!("--adapter plain {ROWS}")));
        let base = sandbox.eval(ROWS);
        assert!(own < base && own != other, "{own} {other} {base}");
        let all = sandbox.run(&format!("eval --json --model model --adapter out --adapter plain --with-base {ROWS}"));
        let all = all.json();
        let losses: Vec<f64> =
            all["adapters"].as_array().unwrap().iter().map(|one| one["loss"].as_f64().unwrap()).collect();
        assert_eq!(losses, [own, other]);
        assert_eq!(all["base"]["loss"].as_f64(), Some(base));
        // bf16 rounds what is merged once.
        let merged = sandbox.run("merge --json --model model --adapter out --output merged").json();
        assert_eq!(merged["token_rows"], if tied { 3 } else { 4 });
        let merged = sandbox.run(&format!("eval --json --model merged {ROWS}")).json()["loss"].as_f64().unwrap();
        assert!((merged - own).abs() * 5.0 < base - own, "{merged} {own} {base}");
        let verdicts = sandbox.run("check --json out --model model");
        let verdicts: serde_json::Value = serde_json::from_str(&verdicts.stdout).unwrap();
        let reasons: Vec<String> =
            verdicts["engines"].as_array().unwrap().iter().map(|engine| engine["reasons"].to_string()).collect();
        assert_eq!(reasons[0], "[]");
        assert!(reasons[1..].iter().all(|reason| reason.contains("trainable_token_indices")), "{reasons:?}");
        sandbox
            .refused("export gguf --lora --model model --adapter out --output-dir gguf", &["single tokens", "--lora"]);
        let told = sandbox.run("export uniform --adapter out --output-dir uniform").ok().stderr;
        assert!(told.contains("warning: uniform: the adapter has rows of single tokens too"), "{told}");
        // A run that begins with it trains the same rows.
        let words = ["`init_adapter`", "the run trains 7 of model.embed_tokens", "leave out `trainable_token_indices`"];
        sandbox
            .run(&format!("{plain} --trainable-token-indices 7 --init-adapter out --output-dir other"))
            .ended(2, &words);
        sandbox.run(&format!("{line} --init-adapter out --output-dir more")).ok();
        let more = sandbox.eval(&format!("--adapter more {ROWS}"));
        assert!(more < own, "{more} {own}");
    }
}

#[test]
fn a_run_with_rows_goes_on_where_it_stopped() {
    for (sandbox, lines, _) in cases() {
        let more = "save_steps: 3\nuse_rslora: true\n";
        let line = settings(&sandbox, "cfg", &format!("{}{more}", lines.replace("adamw_torch", "adamw_8bit")));
        sandbox.run(&format!("{line} --output-dir whole")).ok();
        sandbox.run(&format!("{line} --output-dir again --resume-from-checkpoint whole/checkpoint-3")).ok();
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            assert!(sandbox.bytes(&format!("whole/{name}")) == sandbox.bytes(&format!("again/{name}")), "{name}");
        }
        // Other rows are another run.
        let other = sandbox.run(&format!("{line} --output-dir whole --trainable-token-indices 4,6"));
        other.ended(2, &["trainable_token_indices"]);
    }
}

#[test]
fn rows_that_cannot_be_trained_are_refused_by_name() {
    let sandbox = Sandbox::new();
    for (lines, words) in [
        ("trainable_token_indices: [96]", ["found token 96", "from 0 to 95"]),
        ("trainable_token_indices: {q_proj: [1]}", ["`q_proj` has no row for each token", "embed_tokens or lm_head"]),
        ("trainable_token_indices: [a]", ["`trainable_token_indices`", "expected ids of tokens"]),
        ("trainable_token_indices: {embed_tokens: [1], model.embed_tokens: [2]}", ["named twice", "keep one"]),
        (
            "trainable_token_indices: [1]\nmodules_to_save: [embed_tokens]",
            ["model.embed_tokens is trained whole", "keep one of the two"],
        ),
    ] {
        let line = settings(&sandbox, "cfg", &format!("{lines}\n"));
        sandbox.run(&format!("{line} --output-dir out")).ended(2, &words);
    }
    let tied = Sandbox::of(&Synthetic::new(Arch { tie_word_embeddings: true, ..tiny_arch() }, 1));
    let line = settings(&tied, "cfg", "trainable_token_indices: {lm_head: [1]}\n");
    tied.run(&format!("{line} --output-dir out")).ended(2, &["one tensor with embed_tokens"]);
    assert!(!sandbox.path("out").exists() && !tied.path("out").exists());
    // Ids may be given one by one, and the config of an adapter has to be that of its tensors.
    let line = settings(&sandbox, "cfg", "peft_trainable_token_indices: [7]\n");
    sandbox.run(&format!("{line} --trainable-token-indices 5 --trainable-token-indices 4,3 --output-dir out")).ok();
    let mut config = sandbox.json("out/adapter_config.json");
    assert_eq!(config["trainable_token_indices"], json!([3, 4, 5]));
    for (value, words) in [
        (json!([3, 4]), ["trainable_tokens_delta", "expected 2 rows"]),
        (json!(null), ["trainable_tokens_delta", "single tokens"]),
        (json!({"embed_tokens": [3, 4, 5], "lm_head": [1]}), ["lm_head.token_adapter", "found no tensor"]),
    ] {
        config["trainable_token_indices"] = value;
        sandbox.write("out/adapter_config.json", &config.to_string());
        sandbox.refused("eval --model model --adapter out --data rows.jsonl", &words);
    }
    // No program has rows for the first; of the others the reason is the config.
    for (value, words) in [
        (json!([3, 4, 96]), "names token 96, the embedding of the base has 96 rows"),
        (json!([3, 3, 4]), "found [3,3,4], expected null, a list of token ids, each once"),
        (json!([3, 4, -1]), "found [3,4,-1], expected null, a list of token ids"),
    ] {
        config["trainable_token_indices"] = value;
        sandbox.write("out/adapter_config.json", &config.to_string());
        let done = sandbox.run("check --json out --model model --for peft");
        let answer: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        let reasons = answer["engines"][0]["reasons"].as_array().unwrap();
        assert_eq!((done.status, reasons.len()), (Some(1), 1), "{reasons:?}");
        assert!(reasons[0].as_str().unwrap().contains(words), "{reasons:?} lacks {words}");
    }
}
