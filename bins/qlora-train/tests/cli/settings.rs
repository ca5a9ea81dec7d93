//! Every setting that shapes a run, through the binary.

use qlora_train::adapter::Adapter;
use qlora_train::arch::Projection;
use qlora_train::config::{Scheduler, lr_schedule};
use serde_json::Value;

use crate::sandbox::{Sandbox, assert_close};

fn column(sandbox: &Sandbox, out: &str, key: &str) -> Vec<f64> {
    sandbox.lines(&format!("{out}/metrics.jsonl")).iter().filter_map(|line| line[key].as_f64()).collect()
}

fn adapter_bytes(sandbox: &Sandbox, out: &str) -> Vec<u8> {
    sandbox.bytes(&format!("{out}/adapter_model.safetensors"))
}

#[test]
fn what_must_not_change_a_result_changes_no_bit() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("rows.jsonl", 40, 1);
    let base = "--lora-dropout 0.1 --gradient-accumulation-steps 2 --threads 1 --gradient-checkpointing false";
    sandbox.train_into("base", base).ok();
    let without_speed = |out: &str| {
        let mut lines = sandbox.lines(&format!("{out}/metrics.jsonl"));
        for line in &mut lines {
            let line = line.as_object_mut().unwrap();
            ["tokens_per_second", "seconds", "memory_bytes"].iter().for_each(|name| drop(line.remove(*name)));
        }
        lines
    };
    for (i, (from, to)) in [
        ("", ""),
        ("--threads 1", "--threads 2"),
        ("--threads 1", "--threads 5"),
        ("--gradient-checkpointing false", "--gradient-checkpointing true"),
        ("--gradient-checkpointing false", "--logging-steps 1"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("out{i}");
        sandbox.train_into(&out, &base.replace(from, to)).ok();
        assert!(adapter_bytes(&sandbox, &out) == adapter_bytes(&sandbox, "base"), "{to}");
        assert_eq!(without_speed(&out), without_speed("base"), "{to}");
    }
    sandbox.train_into("seed", &format!("{base} --seed 7")).ok();
    assert!(adapter_bytes(&sandbox, "seed") != adapter_bytes(&sandbox, "base"));
}

#[test]
fn the_first_step_is_logged_where_it_is_asked_for() {
    let sandbox = Sandbox::new();
    for (out, more, steps) in [
        ("asked", "--logging-steps 4 --logging-first-step true", &[1.0, 4.0, 6.0][..]),
        ("not", "--logging-steps 4", &[4.0, 6.0]),
        ("off", "--logging-steps 4 --logging-first-step false", &[4.0, 6.0]),
        ("each", "--logging-steps 2 --logging-first-step", &[1.0, 2.0, 4.0, 6.0]),
    ] {
        sandbox.train_into(out, more).ok();
        let lines = sandbox.lines(&format!("{out}/metrics.jsonl"));
        let losses = lines.iter().filter(|line| line["loss"].is_number());
        let found: Vec<f64> = losses.filter_map(|line| line["step"].as_f64()).collect();
        assert_eq!(found, steps, "{more}");
    }
    let bytes = adapter_bytes(&sandbox, "not");
    assert!(adapter_bytes(&sandbox, "asked") == bytes, "what is logged changes no result");
}

#[test]
fn a_batch_of_four_is_four_accumulated_batches_of_one() {
    let sandbox = Sandbox::new();
    let batch = "--packing false --per-device-train-batch-size";
    sandbox.train_into("whole", &format!("{batch} 4 --gradient-accumulation-steps 1")).ok();
    sandbox.train_into("parts", &format!("{batch} 1 --gradient-accumulation-steps 4")).ok();
    let (whole, parts) = (column(&sandbox, "whole", "loss"), column(&sandbox, "parts", "loss"));
    assert_eq!(whole.len(), 6);
    whole.iter().zip(&parts).for_each(|(a, b)| assert_close(*a, *b, 1e-5));
    // The rows differ in length, so a mean of the batches' means would show.
    let (whole, parts) = (column(&sandbox, "whole", "grad_norm"), column(&sandbox, "parts", "grad_norm"));
    whole.iter().zip(&parts).for_each(|(a, b)| assert_close(*a, *b, 1e-3));
}

#[test]
fn the_first_step_has_the_loss_of_the_base_quantized_or_not() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("rows.jsonl", 4, 1);
    let mut losses = Vec::new();
    for (out, quantization) in [("four-bits", "nf4"), ("sixteen-bits", "none")] {
        sandbox.train_into(out, &format!("--quantization {quantization}")).ok();
        let first = column(&sandbox, out, "loss")[0];
        let base = sandbox.eval(&format!("--data rows.jsonl --quantization {quantization}"));
        assert_close(first, base, 1e-6);
        losses.push(first);
    }
    assert!((losses[0] - losses[1]).abs() > 1e-6, "{losses:?}");
    let adapter = Adapter::load(&sandbox.path("sixteen-bits")).unwrap();
    assert_eq!(adapter.metadata["qlora.quantization"], r#"{"quant_type":"none"}"#);
    sandbox.train_into("plain", "--double-quant false --nf4-block-size 128").ok();
    let mut plain = Adapter::load(&sandbox.path("plain")).unwrap();
    let recipe = r#"{"quant_type":"nf4","block_size":128,"double_quant":false}"#;
    assert_eq!(plain.metadata["qlora.quantization"], recipe);
    // The base is quantized as the adapter records it, unless a flag says otherwise.
    let loss = sandbox.eval("--data rows.jsonl --adapter plain");
    assert!((sandbox.eval("--data rows.jsonl --adapter plain --quantization none") - loss).abs() > 1e-6);
    plain.metadata.insert("qlora.quantization".into(), "fp4".into());
    plain.save(&sandbox.path("unknown")).unwrap();
    let words = ["unknown: metadata `qlora.quantization`", "\"fp4\"", "--quantization"];
    sandbox.refused("eval --model model --data rows.jsonl --adapter unknown", &words);
}

#[test]
fn rslora_is_folded_and_means_the_same_when_it_is_loaded() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("val.jsonl", 4, 2);
    let more = "--use-rslora --lora-alpha 3 --val-data val.jsonl --max-steps 20";
    let eval_loss = sandbox.train_into("rs", more).json()["eval_loss"].as_f64().unwrap();
    assert_eq!(sandbox.json("rs/adapter_config.json")["use_rslora"], false);
    let adapter = Adapter::load(&sandbox.path("rs")).unwrap();
    assert!(adapter.lora_pairs().unwrap().values().all(|pair| pair.scale == 3.0 / 2.0), "alpha / √4");
    assert_close(sandbox.eval("--adapter rs --data val.jsonl"), eval_loss, 1e-5);
    let plain = sandbox.train_into("plain", &more.replace("--use-rslora ", "")).json();
    assert!((plain["eval_loss"].as_f64().unwrap() - eval_loss).abs() > 1e-4);
}

#[test]
fn only_the_target_modules_get_an_adapter() {
    let sandbox = Sandbox::new();
    sandbox.train("--lora-target-modules v_proj,q_proj").ok();
    let config = sandbox.json("out/adapter_config.json");
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "v_proj"]));
    let adapter = Adapter::load(&sandbox.path("out")).unwrap();
    let places: Vec<String> = adapter.lora_pairs().unwrap().into_keys().collect();
    let expected = [0, 1].map(|l| ["q", "v"].map(|name| format!("model.layers.{l}.self_attn.{name}_proj"))).concat();
    assert_eq!(places, expected);
}

#[test]
fn dropout_changes_the_run_and_not_the_evaluation() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("val.jsonl", 4, 2);
    let dropped = sandbox.train_into("dropped", "--lora-dropout 0.5 --val-data val.jsonl").json();
    let plain = sandbox.train_into("plain", "--val-data val.jsonl").json();
    assert_ne!(dropped["train_loss"], plain["train_loss"]);
    assert_eq!(sandbox.json("dropped/adapter_config.json")["lora_dropout"], 0.5);
    assert_close(sandbox.eval("--adapter dropped --data val.jsonl"), dropped["eval_loss"].as_f64().unwrap(), 1e-6);
}

#[test]
fn every_schedule_is_followed_at_both_rates() {
    let sandbox = Sandbox::new();
    for (name, kind, warmup) in [
        ("constant", Scheduler::Constant, 0),
        ("constant_with_warmup", Scheduler::ConstantWithWarmup, 3),
        ("linear", Scheduler::Linear, 3),
        ("cosine", Scheduler::Cosine, 3),
    ] {
        let steps = if warmup > 0 { format!("--warmup-steps {warmup}") } else { String::new() };
        let more = format!("--max-steps 10 --loraplus-lr-ratio 8 --lr-scheduler-type {name} {steps}");
        sandbox.train_into(name, &more).ok();
        let (a, b) = (column(&sandbox, name, "learning_rate"), column(&sandbox, name, "learning_rate_b"));
        assert_eq!((a.len(), b.len()), (10, 10));
        for step in 0..10 {
            let factor = lr_schedule::factor(kind, step, warmup, 10);
            assert!((a[step] - 1e-2 * factor).abs() < 1e-12, "{name} step {step}: {}", a[step]);
            assert!((b[step] - 8e-2 * factor).abs() < 1e-12, "{name} step {step}: {}", b[step]);
        }
    }
}

#[test]
fn a_warm_up_longer_than_the_run_is_told() {
    let sandbox = Sandbox::new();
    for (out, more, told) in [
        ("long", "--warmup-steps 40", true),
        ("whole", "--warmup-steps 6", true),
        ("short", "--warmup-steps 5", false),
        ("constant", "--warmup-steps 40 --lr-scheduler-type constant", false),
    ] {
        let said = sandbox.train_into(out, more).ok().stderr;
        assert_eq!(said.contains("but the run has 6 steps, so that 5 of them warm up"), told, "{more}: {said}");
    }
    assert_eq!(column(&sandbox, "long", "learning_rate"), column(&sandbox, "short", "learning_rate"));
}

#[test]
fn loraplus_changes_b_faster() {
    let sandbox = Sandbox::new();
    let one_step = "--max-steps 1 --lr-scheduler-type constant";
    sandbox.train_into("plain", one_step).ok();
    sandbox.train_into("plus", &format!("{one_step} --loraplus-lr-ratio 4")).ok();
    let (plain, plus) = (Adapter::load(&sandbox.path("plain")).unwrap(), Adapter::load(&sandbox.path("plus")).unwrap());
    for (place, pair) in plain.lora_pairs().unwrap() {
        let other = plus.lora_pairs().unwrap()[&place];
        assert_eq!(pair.a, other.a, "with B zero A has no gradient");
        for (b, other) in pair.b.iter().zip(other.b) {
            assert_close(f64::from(*other), 4.0 * f64::from(*b), 1e-5);
        }
    }
}

#[test]
fn a_settings_file_and_flags_that_win_over_it() {
    let sandbox = Sandbox::new();
    sandbox.write("config.yaml", "model: model\ndatasets: [{path: rows.jsonl}]\noutput_dir: out\nlora: {rank: 8}\n");
    let answer = sandbox.run("train config.yaml --max-steps 2 --lora-r 2 --json").json();
    assert_eq!(answer["steps"], 2);
    assert_eq!(sandbox.json("out/adapter_config.json")["r"], 2);
}

#[test]
fn weights_in_every_form_and_a_tied_head_train() {
    use qlora_train::arch::Arch;
    use qlora_train::base::synthetic::{Synthetic, tiny_arch};
    use qlora_train::files::tensor::StoredType;
    let config = Arch { tie_word_embeddings: true, biases: Projection::ALL.into(), num_kv_heads: 1, ..tiny_arch() };
    for (stored, shards, v4) in [(StoredType::F16, 3, true), (StoredType::F32, 1, false)] {
        let sandbox = Sandbox::of(&Synthetic { stored, shards, v4, ..Synthetic::new(config.clone(), 3) });
        let answer: Value = sandbox.train("--val-set-size 0.2").json();
        assert!(answer["eval_loss"].as_f64().unwrap() < 5.0, "{answer}");
    }
}

#[test]
fn conversations_are_trained_on_with_the_models_template() {
    let sandbox = Sandbox::chat();
    let done = sandbox.train("--data chat.jsonl").ok();
    assert!(done.stderr.contains("chat template: "), "{}", done.stderr);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(sandbox.bytes(&format!("out/{name}")), sandbox.bytes(&format!("model/{name}")));
    }
    let adapter = Adapter::load(&sandbox.path("out")).unwrap();
    assert_eq!(adapter.metadata["qlora.chat_template_sha256"].len(), 64);
    let answer = sandbox
        .run("generate --model model --adapter out --prompt hello --prompt who --max-new-tokens 4 --json")
        .json();
    let completions = answer["completions"].as_array().unwrap();
    assert_eq!(completions.len(), 2);
    assert_eq!(completions[1]["prompt"], "who");
}

/// No shell has seen the paths of a settings file.
#[test]
fn the_home_of_the_user_is_known_in_settings_files() {
    let sandbox = Sandbox::new();
    sandbox.write("run.yaml", "model: ~/model\ndata: ~/rows.jsonl\noutput_dir: ~/out\nmax_length: 64\nmax_steps: 1\n");
    let run = |line: &str| {
        let output = sandbox.command(line).env("HOME", sandbox.path("")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run("train run.yaml");
    let base = sandbox.json("out/adapter_config.json")["base_model_name_or_path"].clone();
    assert_eq!(base, *sandbox.path("model").display().to_string());
    run("eval run.yaml");
    run("quantize --model ~/model --output-dir nf4");
}

/// A share of 0.3 is every third of ten steps; the last is logged always.
#[test]
fn a_share_of_the_steps_is_logged() {
    let sandbox = Sandbox::new();
    sandbox.train("--max-steps 10 --logging-steps 0.3").ok();
    let steps: Vec<u64> = sandbox.lines("out/metrics.jsonl").iter().filter_map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, [3, 6, 9, 10]);
}

/// A plan of a model that is known by its name needs no files of it; rows cannot be read without its tokenizer.
#[test]
fn a_shape_is_planned_by_its_name() {
    let sandbox = Sandbox::new();
    let plan = sandbox.run("plan --model llama-3.2-1b --gpu 4090 --json").json();
    assert_eq!(plan["device"]["budget_bytes"].as_f64().map(|bytes| (bytes / 1e9).round()), Some(25.0), "{plan}");
    let same = sandbox.run("bench --shape llama-3.2-1b --gpu 4090 --plan --json").json();
    assert_eq!(same["device"]["budget_bytes"], plan["device"]["budget_bytes"]);
    sandbox.refused("plan --model llama-3.2-1b --gpu 4090 --data rows.jsonl", &["names a shape", "leave the data out"]);
}
