//! Adapter methods from settings to what other programs load.

use crate::sandbox::Sandbox;
use qlora_train::adapter::Adapter;
use serde_json::json;

/// A file of settings with lines of its own.
fn settings(sandbox: &Sandbox, name: &str, lines: &str) -> String {
    let file = format!("{name}.yaml");
    sandbox.write(&file, lines);
    format!(
        "train --json {file} --model model --data rows.jsonl --max-length 64 --learning-rate 0.02 --allow all --max-steps 6"
    )
}

const PATTERNS: &str = "lora_r: 4\nlora_alpha: 8\nrank_pattern: {v_proj: 2, 'layers\\.1\\.mlp\\..*': 6}\n\
                        alpha_pattern: {q_proj: 16, 'layers\\.1\\.mlp\\..*': 3}\nlora_dropout: 0.1\n";

/// An adapter of many ranks is evaluated, merged and checked as any other, and its uniform copy computes the same.
#[test]
fn patterns_are_one_truth_from_settings_to_the_engines() {
    let sandbox = Sandbox::chat();
    let line = settings(&sandbox, "cfg", PATTERNS);
    let told = sandbox.run(&format!("{line} --output-dir out")).ok().stderr;
    assert!(told.contains("export uniform"), "{told}");
    let lora = Adapter::load(&sandbox.path("out")).unwrap().lora_spec().unwrap();
    let term = |module: &str| (lora.terms[module].r, lora.terms[module].alpha);
    assert_eq!(term("model.layers.1.self_attn.v_proj"), (2, 8.0));
    assert_eq!(term("model.layers.0.self_attn.q_proj"), (4, 16.0));
    assert_eq!(term("model.layers.1.mlp.up_proj"), (6, 3.0));
    // Flags in another spelling give the finished run.
    let flags = "--lora-rank-pattern v_proj=2 --rank-pattern layers\\.1\\.mlp\\..*=6 --alpha-pattern q_proj=16 \
                 --lora-alpha-pattern layers\\.1\\.mlp\\..*=3 --lora-r 4 --lora-alpha 8 --lora-dropout 0.1";
    let line = settings(&sandbox, "empty", "model: model\n");
    let again = sandbox.run(&format!("{line} {flags} --output-dir out")).ok();
    assert!(again.stderr.contains("this run is finished"), "{}", again.stderr);
    sandbox.run(&format!("{line} {flags} --output-dir out --lora-r 5")).ended(2, &["lora_r"]);

    let reasons = |dir: &str| {
        let done = sandbox.run(&format!("check --json {dir} --model model"));
        let answer: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        let list = answer["engines"].as_array().unwrap().clone();
        list.into_iter().map(|engine| engine["reasons"].to_string()).collect::<Vec<_>>()
    };
    let of_out = reasons("out");
    for (found, words) in of_out.iter().zip(["[]", "export uniform", "rank_pattern", "[]"]) {
        assert!(found.contains(words), "{of_out:?}");
    }
    let answer = sandbox.run("export uniform --json --adapter out --output-dir uniform").json();
    assert_eq!((&answer["r"], &answer["lora_alpha"]), (&json!(6), &json!(6.0)));
    assert_eq!(reasons("uniform"), ["[]"; 4]);
    assert!(sandbox.names("uniform").contains(&"tokenizer.json".to_owned()));
    sandbox.refused("export uniform --adapter out --output-dir uniform", &["uniform", "expected"]);
    let loss = |adapter: &str| sandbox.run(&format!("eval --json {adapter} --data rows.jsonl --max-length 64")).json();
    let (own, uniform) = (loss("--adapter out --model model"), loss("--adapter uniform --model model"));
    let (own, uniform) = (own["loss"].as_f64().unwrap(), uniform["loss"].as_f64().unwrap());
    assert!((own - uniform).abs() < 1e-6 * own, "{own} {uniform}");
    sandbox.run("merge --model model --adapter out --output merged").ok();
    sandbox.run("merge --model model --adapter uniform --output merged-uniform").ok();
    let base = sandbox.bytes("model/model.safetensors");
    let (merged, of_uniform) =
        (sandbox.bytes("merged/model.safetensors"), sandbox.bytes("merged-uniform/model.safetensors"));
    assert_ne!(base, merged);
    let differ = merged.iter().zip(&of_uniform).filter(|(a, b)| a != b).count();
    assert!(merged.len() == of_uniform.len() && differ * 100 < merged.len(), "{differ} bytes differ");
}

#[test]
fn a_run_with_patterns_goes_on_where_it_stopped() {
    let sandbox = Sandbox::new();
    let line =
        settings(&sandbox, "cfg", &format!("{PATTERNS}use_rslora: true\nsave_steps: 3\nlayers_to_transform: [1]\n"));
    sandbox.run(&format!("{line} --output-dir whole")).ok();
    sandbox.run(&format!("{line} --output-dir again --resume-from-checkpoint whole/checkpoint-3")).ok();
    for name in ["adapter_model.safetensors", "adapter_config.json"] {
        assert!(sandbox.bytes(&format!("whole/{name}")) == sandbox.bytes(&format!("again/{name}")), "{name}");
    }
    let config = sandbox.json("whole/adapter_config.json");
    assert_eq!(config["layers_to_transform"], json!([1]));
    assert!(sandbox.read("whole/README.md").contains("| Layers | 1 |"));
}

#[test]
fn patterns_and_layers_that_the_model_has_not_are_refused_by_name() {
    let sandbox = Sandbox::new();
    for (lines, words) in [
        ("rank_pattern: {lm_head: 4}", ["`rank_pattern`", "`lm_head` matches no module"]),
        ("alpha_pattern: {'(q_proj': 4}", ["`alpha_pattern`", "no regular expression"]),
        ("lora_target_modules: [q_proj]\nrank_pattern: {v_proj: 4}", ["`rank_pattern`", "`v_proj` matches no module"]),
        ("layers_to_transform: [1, 2]", ["`layers_to_transform`: found 2", "from 0 to 1"]),
        ("rank_pattern: {q_proj: 400}", ["`rank_pattern`", "from 1 to 256"]),
        ("rank_pattern: {q_proj: many}", ["`q_proj`", "expected a number"]),
        ("alpha_pattern: [q_proj]", ["`alpha_pattern`", "expected names of modules"]),
        ("layers_to_transform: last", ["`layers_to_transform`", "numbers of layers"]),
    ] {
        for command in ["train", "plan"] {
            let line = settings(&sandbox, "cfg", &format!("{lines}\n")).replace("train --json", command);
            let out = if command == "train" { " --output-dir out" } else { "" };
            sandbox.run(&format!("{line}{out}")).ended(2, &words);
        }
    }
    assert!(!sandbox.path("out").exists());
}
