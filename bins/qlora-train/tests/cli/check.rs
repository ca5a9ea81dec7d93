//! `check`: engines that take an adapter, and why others do not.

use qlora_train::adapter::Adapter;
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
    all_say("out", "NaN");
    sandbox.refused("check none --model model", &["none", "adapter_config.json"]);
    sandbox.refused("check out --model nowhere", &["nowhere"]);
}

fn id_of_layer_0(id: &ParamId) -> ParamId {
    ParamId::new(id.module().replace("layers.7", "layers.0"), id.kind())
}
