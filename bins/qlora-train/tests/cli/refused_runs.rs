//! Settings and machines that a run is refused for.

use crate::sandbox::{Sandbox, train};

#[test]
fn unknown_settings_name_the_nearest_known_one() {
    let sandbox = Sandbox::new();
    sandbox.refused(&train("--lora-rnk 8"), &["`--lora-rnk` is not a known setting", "`--lora-rank`"]);
    sandbox.refused("plan --model model --xyzzy 8", &["`--xyzzy` is not a known setting", "`--help` lists them"]);
    sandbox.refused("preview --learnig-rate 8", &["`--learnig-rate`", "`--learning-rate`"]);
    sandbox.write("config.yaml", "model: model\nlora_rnk: 8\n");
    sandbox.refused("train config.yaml", &["config.yaml line 2: `lora_rnk` is not a known setting", "`lora_rank`"]);
}

#[test]
fn values_out_of_range_or_place() {
    let sandbox = Sandbox::new();
    for (flags, words) in [
        ("--lora-r 0", &["`--lora-r`: found `0`", "from 1 to 256"][..]),
        ("--learning-rate nan", &["`--learning-rate`", "above 0"]),
        ("--lora-target-modules lm_head", &["`lm_head`", "q_proj"]),
        ("--lr-scheduler-type wavy", &["`wavy`", "cosine"]),
        ("--quantization int3", &["`int3`", "nf4 or none"]),
        ("--neftune-noise-alpha 5", &["`--neftune-noise-alpha`", "not supported yet"]),
        ("--save-strategy best", &["`--save-strategy`", "`best`", "not supported yet"]),
        ("--eval-steps 2", &["`eval_steps`", "needs rows", "val_set_size"]),
        ("--early-stopping-patience 2 --val-set-size 2", &["`early_stopping_patience`", "give `eval_steps`"]),
        ("--load-best-model-at-end --val-set-size 2", &["`load_best_model_at_end`", "give `eval_steps`"]),
        ("--device tpu", &["`tpu`", "cpu"]),
        ("--threads 0", &["`--threads`", "from 1"]),
        ("--val-data v.jsonl --val-set-size 2", &["val_set_size", "val_data", "keep one"]),
    ] {
        sandbox.refused(&train(flags), words);
    }
    for (line, word) in [
        ("train --data rows.jsonl --output-dir out", "`model` is missing"),
        ("train --model model --output-dir out", "`data` is missing"),
        ("train --model model --data rows.jsonl", "`output_dir` is missing"),
        ("preview --model model", "`data` is missing"),
        ("eval --model model --data rows.jsonl --threads 0", "`--threads`"),
        ("eval --model model --data rows.jsonl --max-length 1", "max_length is 1"),
    ] {
        sandbox.refused(line, &[word]);
    }
    let processors = std::thread::available_parallelism().unwrap().get();
    if processors < 16 {
        let most = format!("at most {}", 256 * processors);
        sandbox.refused(&train("--threads 4096"), &["`threads`: found 4096", &most]);
    }
}

#[test]
fn too_little_host_memory() {
    let sandbox = Sandbox::new();
    // Another length is no advice where none fits.
    let words = ["of host memory", "128.0 KiB may be used", "the largest parts are", "host_memory", "no length fits"];
    sandbox.refused(&train("--host-memory 128KiB"), &[&words[..], &[". Leave gradient_checkpointing"]].concat());
    let rows = "--packing false --per-device-train-batch-size 2";
    let words = ["no length fits", ". Lower per_device_train_batch_size, leave gradient_checkpointing"];
    sandbox.refused(&train(&format!("--host-memory 128KiB {rows}")), &words);
    sandbox.refused("eval --model model --data rows.jsonl --host-memory 64KiB", &["64.0 KiB may be used"]);
}

#[test]
fn sizes_beyond_any_machine_are_refused_and_not_tried() {
    let sandbox = Sandbox::new();
    let line = "plan --model model --max-length 16777216 --per-device-train-batch-size 65536";
    sandbox.refused(line, &["a batch could hold 1099511627776 tokens", "lower max_length"]);
    sandbox.refused(
        "generate --model model --prompt x --max-new-tokens 4294967295",
        // The prompt is not tokenized before the model is known to have a tokenizer.
        &["model/tokenizer.json"],
    );
    let chat = Sandbox::chat();
    chat.refused(
        "generate --model model --prompt x --max-new-tokens 4294967295",
        &["the model has 256 positions", "lower --max-new-tokens"],
    );
}

/// A model of this size never trains on the CPU by chance. Its weights are a hole in a file.
#[test]
fn a_large_model_trains_on_the_cpu_only_when_told_to() {
    use qlora_train::base::synthetic::tiny_arch;
    use std::io::Write;
    let sandbox = Sandbox::new();
    let config = qlora_train::arch::Arch {
        vocab_size: 2000,
        hidden_size: 1_000_000,
        intermediate_size: 2,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 2,
        num_layers: 1,
        ..tiny_arch()
    };
    trainer_lab::fixture::write_json(&sandbox.path("model"), "config.json", &config.to_json("bfloat16").into());
    let (mut header, mut end) = (serde_json::Map::new(), 0usize);
    for (name, shape) in config.tensors() {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name, serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}));
    }
    let text = serde_json::Value::from(header).to_string();
    let mut file = std::fs::File::create(sandbox.path("model/model.safetensors")).unwrap();
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_len(8 + text.len() as u64 + end as u64).unwrap();
    drop(file);
    let words = &["4.0B parameters", "--device cpu"];
    for line in [&train(""), "eval --model model --data rows.jsonl"] {
        // Not `refused`: that would read eight gigabytes of nothing.
        sandbox.run(line).ended(2, words);
        assert!(!sandbox.path("out").exists());
    }
    // It may not fit here; it is still planned.
    let plan = sandbox.run("plan --model model --json --max-length 8");
    assert!(matches!(plan.status, Some(0 | 1)) && plan.stdout.contains("\"fits\""), "{plan:#?}");
}
