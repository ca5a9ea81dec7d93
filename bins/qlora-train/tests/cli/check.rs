//! `check`: engines that take an adapter, and why others do not.

use qlora_train::adapter::Adapter;
use qlora_train::arch::Arch;
use qlora_train::base::Checkpoint;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::lora::ParamId;
use serde_json::{Value, json};

use crate::sandbox::Sandbox;

fn trained() -> Sandbox {
    let sandbox = Sandbox::chat();
    sandbox.train_into("out", "--learning-rate 0.02").ok();
    sandbox
}

/// Exit status, and for each engine the reasons to refuse the adapter.
fn check(sandbox: &Sandbox, line: &str) -> (Option<i32>, Vec<(String, Vec<String>)>) {
    let done = sandbox.run(&format!("check --json {line}"));
    let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:#?}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let reasons = |engine: &Value| engine["reasons"].as_array().unwrap().iter().map(text).collect::<Vec<_>>();
    let engines: Vec<_> =
        answer["engines"].as_array().unwrap().iter().map(|engine| (text(&engine["name"]), reasons(engine))).collect();
    assert_eq!(answer["accepts"] == true, engines.iter().all(|(_, reasons)| reasons.is_empty()));
    assert_eq!(done.status, Some(if answer["accepts"] == true { 0 } else { 1 }), "{done:#?}");
    (done.status, engines)
}

#[test]
fn an_adapter_of_a_run_is_accepted_with_the_commands_that_serve_it() {
    let sandbox = trained();
    let (status, engines) = check(&sandbox, "out --model model");
    let names: Vec<&str> = engines.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((status, names), (Some(0), vec!["peft", "vllm", "sglang", "llamacpp"]), "{engines:?}");
    let (_, asked) = check(&sandbox, "out --model model --for llama.cpp,vllm");
    assert_eq!(asked.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["vllm", "llamacpp"]);
    let told = sandbox.run("check out --model model").ok().stdout;
    for part in [
        "vllm: accepts it\n  vllm serve model --enable-lora --lora-modules adapter=out\n",
        "--lora-paths adapter=out",
        "export gguf --model model --adapter out --output-dir OUT --lora",
        "PeftModel.from_pretrained(",
    ] {
        assert!(told.contains(part), "{told} lacks {part}");
    }
    // Rank 24 takes the next size that there is, and another template than the base's goes along.
    sandbox.train_into("wide", "--lora-r 24 --chat-template alpaca --data chat.jsonl --max-length 256").ok();
    let told = sandbox.run("check wide --model model --for vllm").ok().stdout;
    assert!(told.contains("--max-lora-rank 32") && told.contains("--chat-template wide/chat_template.jinja"), "{told}");
}

#[test]
fn what_an_engine_reads_otherwise_is_a_reason() {
    let sandbox = trained();
    let config = sandbox.json("out/adapter_config.json");
    let with = |key: &str, value: Value| {
        let mut changed = config.clone();
        changed[key] = value;
        sandbox.write("out/adapter_config.json", &changed.to_string());
        let (_, engines) = check(&sandbox, "out --model model");
        engines.into_iter().map(|(_, reasons)| reasons.join(" ")).collect::<Vec<_>>()
    };
    for (key, value, words) in [
        ("use_rslora", json!(true), ["", "", "use_rslora", ""]),
        ("alpha_pattern", json!({"q_proj": 3}), ["", "alpha_pattern", "alpha_pattern", ""]),
        ("use_dora", json!(true), ["", "DoRA", "DoRA", "DoRA"]),
        ("bias", json!("all"), ["", "biases", "biases", "bias"]),
        ("init_lora_weights", json!("pissa_niter_4"), ["", "pissa_niter_4", "", "init_lora_weights"]),
        ("modules_to_save", json!(["lm_head"]), ["", "modules_to_save", "modules_to_save", "modules_to_save"]),
        (
            "trainable_token_indices",
            json!([3]),
            ["", "trainable_token_indices", "trainable_token_indices", "trainable_token_indices"],
        ),
        ("peft_type", json!("IA3"), ["", "LoRA only", "LoRA only", "IA3"]),
    ] {
        let reasons = with(key, value);
        for (found, word) in reasons.iter().zip(words) {
            assert!(found.contains(word) && found.is_empty() == word.is_empty(), "{key}: {reasons:?}");
        }
    }
}

#[test]
fn what_hits_no_module_or_changes_nothing_is_refused_by_every_engine() {
    let sandbox = trained();
    let adapter = Adapter::load(&sandbox.path("out")).unwrap();
    let all_say = |dir: &str, word: &str| {
        let (status, engines) = check(&sandbox, &format!("{dir} --model model"));
        assert_eq!(status, Some(1));
        for (name, reasons) in engines {
            assert!(reasons.iter().any(|reason| reason.contains(word)), "{name}: {reasons:?} lacks {word}");
        }
    };
    let mut zero = adapter.clone();
    for (key, (_, values)) in &mut zero.tensors {
        if key.contains("lora_B") {
            values.fill(0.0);
        }
    }
    zero.save(&sandbox.path("zero")).unwrap();
    all_say("zero", "changes nothing");
    let mut missing = adapter.clone();
    for id in [ParamId::a("model.layers.7.mlp.up_proj"), ParamId::b("model.layers.7.mlp.up_proj")] {
        let (shape, values) = adapter.tensor(&id_of_layer_0(&id)).unwrap().clone();
        missing.insert(&id, [shape[0], shape[1]], values);
    }
    missing.save(&sandbox.path("missing")).unwrap();
    all_say("missing", "model.layers.7.mlp.up_proj.lora_A.weight, and 1 more: of no module of the base");
    let mut bytes = sandbox.bytes("out/adapter_model.safetensors");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(sandbox.path("out/adapter_model.safetensors"), bytes).unwrap();
    std::fs::remove_file(sandbox.path("out/SHA256SUMS")).unwrap();
    all_say("out", "NaN");
    sandbox.refused("check none --model model", &["none", "adapter_config.json"]);
    sandbox.refused("check out --model nowhere", &["nowhere"]);
}

/// One bit of a number, which stays finite: only the sum beside the adapter tells.
#[test]
fn an_adapter_that_its_own_sums_call_damaged_is_refused_by_whoever_reads_it() {
    let sandbox = trained();
    let (file, sums) = (sandbox.path("out/adapter_model.safetensors"), sandbox.path("out/SHA256SUMS"));
    // Saved by this program, the sums are those of what was saved.
    let mut adapter = Adapter::load(&sandbox.path("out")).unwrap();
    adapter.tensors.values_mut().for_each(|(_, values)| values[0] = 0.5);
    adapter.save(&sandbox.path("out")).unwrap();
    assert_eq!(Adapter::load(&sandbox.path("out")).unwrap().tensors, adapter.tensors);
    let mut bytes = sandbox.bytes("out/adapter_model.safetensors");
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let lines = [
        "check out --model model",
        "merge --model model --adapter out --output x",
        "export uniform --adapter out --output-dir x",
        "export gguf --model model --adapter out --output x",
        "generate --model model --adapter out --prompt hi",
    ];
    let words = ["safetensors: found a SHA-256 of", "the file changed after it was written", "remove out/SHA256SUMS"];
    for line in lines {
        sandbox.refused(line, &words);
    }
    std::fs::remove_file(&sums).unwrap();
    sandbox.run(lines[0]).ok();
    // Without a line of the tensors nothing is known of them.
    sandbox.write("out/SHA256SUMS", "00  other\n");
    sandbox.run(lines[0]).ok();
    std::fs::remove_file(&sums).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&sums).status().unwrap().success());
    let refused = Adapter::load(&sandbox.path("out")).unwrap_err().to_string();
    assert!(refused.contains("SHA256SUMS: found a pipe, expected a file"), "{refused}");
}

#[test]
fn with_the_base_at_hand_the_logits_have_to_move() {
    let sandbox = trained();
    let answer = sandbox.run("check out --json --model model --logits").json();
    let logits = &answer["logits"];
    let of = |key: &str| logits[key].as_f64().unwrap();
    assert!(of("largest_change") > 0.1 && of("largest") > 0.0 && of("tokens") == 8.0, "{logits}");
    let told = sandbox.run("check out --model model --for peft --logits").ok().stdout;
    let line = format!("logits: of a prompt of 8 tokens moved by up to {:.4}", of("largest_change"));
    assert!(told.starts_with(&line) && told.contains("\npeft: accepts it"), "{told}");
    assert!(sandbox.run("check out --json --model model").json()["logits"].is_null());

    // A thousandth of the change moves them less.
    let mut half = Adapter::load(&sandbox.path("out")).unwrap();
    half.config.lora_alpha *= 1e-3;
    half.save(&sandbox.path("small")).unwrap();
    let small = sandbox.run("check small --json --model model --logits").json()["logits"]["largest_change"].clone();
    let small = small.as_f64().unwrap();
    assert!(small > 0.0 && small < of("largest_change") / 20.0, "{small} {logits}");

    // A change that is lost beside the weights' own outputs.
    half.config.lora_alpha = 1e-30;
    half.save(&sandbox.path("lost")).unwrap();
    let (status, engines) = check(&sandbox, "lost --model model --logits");
    assert_eq!(status, Some(1));
    for (name, reasons) in engines {
        assert!(reasons.iter().any(|reason| reason.contains("are those of the base")), "{name}: {reasons:?}");
    }
    assert_eq!(check(&sandbox, "lost --model model").0, Some(0));

    // Rows of single tokens count, which the prompt has.
    sandbox.train_into("rows", "--learning-rate 0.02 --trainable-token-indices 5 --lora-target-modules q_proj").ok();
    let tokens = sandbox.run("check rows --json --model model --logits --for peft").json()["logits"]["tokens"].clone();
    assert_eq!(tokens, 9);

    let other = Arch { vocab_size: Checkpoint::open(&sandbox.path("model")).unwrap().arch().vocab_size, ..tiny_arch() };
    Synthetic::new(other, 2).write(&sandbox.path("other")).unwrap();
    sandbox.refused("check out --model other --logits", &["fingerprint", "--allow-other-base"]);
    sandbox.run("check out --model other --logits --allow-other-base").ok();
    sandbox.refused("check out --model model --logits --host-memory 1MiB", &["memory"]);
}

fn id_of_layer_0(id: &ParamId) -> ParamId {
    ParamId::new(id.module().replace("layers.7", "layers.0"), id.kind())
}
