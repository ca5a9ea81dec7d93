//! Files and output of train, eval and plan.

use qlora_train::adapter::{Adapter, metadata};
use qlora_train::arch::Projection;
use qlora_train::base::Checkpoint;

use crate::sandbox::{Sandbox, assert_close, keys, train};

#[test]
fn a_run_leaves_an_adapter_its_card_and_its_records() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("val.jsonl", 4, 2);
    let answer = sandbox.train("--val-data val.jsonl --max-steps 30").json();
    let fields = ["steps", "train_loss", "eval_loss", "tokens_per_second", "peak_bytes", "weights_read", "adapter"];
    assert_eq!(keys(&answer), fields);
    assert_eq!(answer["steps"], 30);
    assert_eq!(answer["adapter"], "out");
    assert!(answer["tokens_per_second"].as_f64().unwrap() > 0.0);

    let expected = [
        ".lock",
        "README.md",
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
        "learning_curve.svg",
        "metrics.jsonl",
        "report.html",
        "report.json",
        "run.json",
        "trainer_state.json",
    ];
    assert_eq!(sandbox.names("out"), expected);

    let metrics = sandbox.lines("out/metrics.jsonl");
    let state = sandbox.json("out/trainer_state.json");
    assert_eq!(state["log_history"].as_array().unwrap(), &metrics);
    assert_eq!((&state["global_step"], &state["max_steps"]), (&30.into(), &30.into()));
    assert_eq!(metrics.len(), 31, "30 steps and the validation");
    let (first, last) = (metrics[0]["loss"].as_f64().unwrap(), metrics[29]["loss"].as_f64().unwrap());
    assert!(last < first - 0.3, "the loss falls on an easy task: {first} to {last}");
    assert_eq!(metrics[30]["eval_loss"], answer["eval_loss"]);
    let mean = metrics[..30].iter().map(|m| m["loss"].as_f64().unwrap()).sum::<f64>() / 30.0;
    assert!((mean - answer["train_loss"].as_f64().unwrap()).abs() < 0.5);

    let run = sandbox.json("out/run.json");
    assert_eq!(keys(&run), ["identity", "base", "version", "settings", "finished", "owned"]);
    assert_eq!(run["settings"]["learning_rate"], 0.01);
    let adapter = Adapter::load(&sandbox.path("out")).unwrap();
    let fingerprint = Checkpoint::open(&sandbox.path("model")).unwrap().fingerprint().unwrap();
    assert_eq!(adapter.base_fingerprint(), Some(fingerprint.as_str()));
    assert_eq!(run["base"]["fingerprint"], fingerprint.as_str());
    assert_eq!(
        adapter.metadata[metadata::QUANTIZATION],
        r#"{"quant_type":"nf4","block_size":64,"double_quant":true,"nested_block_size":256}"#
    );
    let pairs = adapter.lora_pairs().unwrap();
    assert_eq!(pairs.len(), 2 * Projection::ALL.len());
    assert!(pairs.values().all(|pair| pair.r == 4 && pair.b.iter().any(|&b| b != 0.0)));
}

#[test]
fn records_are_ordinary_files() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    sandbox.train("").ok();
    sandbox.write("ordinary", "");
    let mode = |name: &str| std::fs::metadata(sandbox.path(name)).unwrap().permissions().mode();
    for name in ["run.json", "metrics.jsonl", "trainer_state.json", "adapter_config.json"] {
        assert_eq!(mode(&format!("out/{name}")), mode("ordinary"), "{name}");
    }
}

#[test]
fn people_are_told_base_parameters_rates_and_what_was_left_out() {
    let sandbox = Sandbox::new();
    let long: Vec<u32> = (0..90).collect();
    sandbox.write("rows.jsonl", &format!("{}\n{{\"input_ids\":{long:?}}}\n", sandbox.read("rows.jsonl")));
    let done = sandbox.train("--loraplus-lr-ratio 4").ok();
    for part in [
        "base: model (model); quantization: nf4, block 64, double quantization, block 256",
        "trainable params: 8,192 || all params: ",
        "learning rates: 1e-2 for A, 4e-2 for B; 6 steps",
        "1 row left out: longer than max_length 64 (the longest has 90 tokens)",
        "training 6/6 loss ",
    ] {
        assert!(done.stderr.contains(part), "{:?} lacks {part:?}", done.stderr);
    }
    let text = sandbox.run("eval --model model --adapter out --data rows.jsonl").ok().stdout;
    assert!(text.starts_with("loss ") && text.contains("perplexity"), "{text}");
}

#[test]
fn rows_beyond_the_models_positions_are_warned_of() {
    let sandbox = Sandbox::new();
    let long: Vec<u32> = (0..300).map(|i| i % 96).collect();
    sandbox.write("rows.jsonl", &format!("{{\"input_ids\":{long:?}}}"));
    let done = sandbox.train("--max-length 512 --max-steps 1 --allow few_steps").ok();
    assert!(done.stderr.contains("warning: the longest row has 300 tokens, the model was made for 256"), "{done:?}");
    let answer: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(answer["tokens_per_second"], serde_json::Value::Null, "one step gives no rate");
    assert_eq!(answer["eval_loss"], serde_json::Value::Null);
}

#[test]
fn eval_of_the_adapter_gives_the_eval_loss_of_its_run_and_the_base_another() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("val.jsonl", 5, 2);
    let trained = sandbox.train("--val-data val.jsonl --max-steps 20").json()["eval_loss"].as_f64().unwrap();
    let with = sandbox.eval("--adapter out --data val.jsonl");
    let without = sandbox.eval("--data val.jsonl");
    assert_close(with, trained, 1e-6);
    assert!(with < without - 0.1, "{with} {without}");
    // Rows that are held back from the data are neither trained on nor lost.
    let held = sandbox.train("--val-set-size 3 --output-dir held").ok();
    assert!(held.stderr.contains("9 rows to train on, 3 held back for validation"), "{}", held.stderr);
}

#[test]
fn eval_reports_its_fields_over_all_files_given() {
    let sandbox = Sandbox::new();
    sandbox.write_rows("more.jsonl", 3, 5);
    let one = sandbox.run("eval --model model --data rows.jsonl --json").json();
    let other = sandbox.run("eval --model model --data more.jsonl --json").json();
    let both = sandbox.run("eval --model model --data rows.jsonl --data more.jsonl --json").json();
    assert_eq!(keys(&one), ["loss", "perplexity", "tokens"]);
    let sum = |key: &dyn Fn(&serde_json::Value) -> f64| key(&one) + key(&other);
    let tokens = |v: &serde_json::Value| v["tokens"].as_f64().unwrap();
    let loss = |v: &serde_json::Value| v["loss"].as_f64().unwrap();
    assert_eq!(tokens(&both), sum(&tokens));
    assert_close(loss(&both), sum(&|v| loss(v) * tokens(v)) / tokens(&both), 1e-6);
    assert_close(both["perplexity"].as_f64().unwrap(), loss(&both).exp(), 1e-12);
}

#[test]
fn the_plan_is_the_run() {
    let sandbox = Sandbox::new();
    for more in ["", "--gradient-checkpointing", "--quantization none --lora-dropout 0.1", "--packing false"] {
        let plan = sandbox.run(&train(more).replacen("train", "plan", 1)).json();
        assert_eq!(&keys(&plan)[..6], ["fits", "device", "host", "max_length", "step_seconds", "recompute"]);
        assert_eq!(
            (keys(&plan["host"]), keys(&plan["device"])),
            (vec!["budget_bytes", "peak_bytes"], keys(&plan["host"]))
        );
        assert_eq!(plan["fits"], true);
        assert!(plan["step_seconds"].is_null());
        // A prediction is of GPUs.
        assert_eq!(plan["predicted_step_seconds"], serde_json::json!({}));
        assert_eq!(plan["max_length"], 256, "the model's positions");
        let buffers = plan["buffers"].as_array().unwrap();
        assert!(buffers.iter().all(|buffer| keys(buffer) == ["name", "place", "bytes"]));
        let sum: u64 = buffers.iter().map(|buffer| buffer["bytes"].as_u64().unwrap()).sum();
        assert_eq!(plan["host"]["peak_bytes"], sum);
        let out = format!("out{}", more.len());
        let run = sandbox.train(&format!("{more} --output-dir {out}")).json();
        // The process's own memory and the copies of a save come on top of what the model takes.
        let beside = ["rows, tokenizer and program", "saving, a tensor at a time"].map(|name| {
            let line = buffers.iter().find(|buffer| buffer["name"] == name);
            line.and_then(|line| line["bytes"].as_u64()).filter(|bytes| *bytes > 0).unwrap()
        });
        assert_eq!(run["peak_bytes"], sum - beside.iter().sum::<u64>(), "{more}");
    }
}

#[test]
fn a_plan_without_data_takes_the_longest_batch_and_says_when_it_does_not_fit() {
    let sandbox = Sandbox::new();
    let line = "plan --model model --max-length 256 --per-device-train-batch-size 8 --json";
    let roomy = sandbox.run(line).json();
    let peak = roomy["host"]["peak_bytes"].as_u64().unwrap();
    let tight = sandbox.run(&format!("{line} --host-memory {}", peak - 1)).json();
    assert_eq!((&tight["fits"], &tight["token_tile"]), (&true.into(), &512.into()), "tiles make room");
    let tight = sandbox.run(&format!("{line} --host-memory {} --token-tile off", peak - 1)).json();
    assert_eq!((&tight["fits"], &tight["recompute"]), (&true.into(), &true.into()), "recomputing makes room");
    // Room for rows of 64 tokens at least, and not for the longest.
    let short = line.replace("--max-length 256", "--max-length 64 --gradient-checkpointing true");
    let budget = sandbox.run(&short).json()["host"]["peak_bytes"].as_u64().unwrap();
    // The exit status says it too.
    let plan = |line: &str| {
        let done = sandbox.run(line);
        let plan: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(done.status, Some(i32::from(plan["fits"] == false)), "{done:#?}");
        plan
    };
    let refused = plan(&format!("{line} --host-memory {budget}"));
    assert_eq!(refused["fits"], false);
    let longest = refused["max_length"].as_u64().unwrap();
    assert!((64..256).contains(&longest), "{longest}");
    assert!(refused["suggestions"].as_array().unwrap().iter().any(|s| s.as_str().unwrap().contains("max_length")));
    let fits = |length: u64| {
        let line = line.replace("--max-length 256", &format!("--max-length {length} --host-memory {budget}"));
        plan(&line)["fits"] == true
    };
    assert!(fits(longest) && !fits(longest + 1), "{longest}");
    let none = plan(&format!("{line} --host-memory 1KiB"));
    assert_eq!(none["max_length"], 0);
}

#[test]
fn rows_are_read_once_so_that_they_may_come_from_a_pipe() {
    let sandbox = Sandbox::chat();
    let train_from = |data: &str, out: &str| train(&format!("--data {data} --output-dir {out}"));
    sandbox.run(&train_from("chat.jsonl", "file")).ok();
    assert!(std::process::Command::new("mkfifo").arg(sandbox.path("pipe")).status().unwrap().success());
    let (pipe, text) = (sandbox.path("pipe"), sandbox.bytes("chat.jsonl"));
    let writer = std::thread::spawn(move || std::fs::write(pipe, text).unwrap());
    sandbox.run(&train_from("pipe", "piped")).ok();
    writer.join().unwrap();
    sandbox.assert_same_result("piped", "file");
    assert_eq!(sandbox.json("piped/run.json")["identity"], sandbox.json("file/run.json")["identity"]);
}

#[test]
fn a_gpu_is_planned_for_in_every_build_by_the_name_of_model_and_gpu() {
    let sandbox = Sandbox::new();
    let of = |line: &str| {
        let done = sandbox.run(line);
        (done.status, serde_json::from_str::<serde_json::Value>(&done.stdout).unwrap())
    };
    let (status, plan) = of("plan --json --model llama-3-8b --gpu 4090 --max-length 1024 --host-memory 64GiB");
    assert_eq!((status, &plan["fits"]), (Some(0), &true.into()), "{plan}");
    assert_eq!(plan["device"]["budget_bytes"], 25_232_932_864u64);
    let groups: Vec<&str> = plan["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!(groups, ["weights", "adapters", "optimizer", "activations", "workspace", "other"]);
    let total: u64 = plan["groups"].as_array().unwrap().iter().map(|g| g["bytes"].as_u64().unwrap()).sum();
    assert_eq!(total, plan["device"]["peak_bytes"]);
    assert_eq!(plan["lm_head"], "resident");
    // Vocabulary and width in 16 bits.
    let line = "plan --model llama-3-8b --gpu 4090 --max-length 1024 --host-memory 64GiB --lm-head host";
    let (_, plan) = of(&format!("{line} --json"));
    let waiting = plan["buffers"].as_array().unwrap().iter().find(|line| line["name"] == "lm_head in host memory");
    assert_eq!(plan["lm_head"], "host");
    assert_eq!(waiting.unwrap()["bytes"], 2u64 * 128_256 * 4096);
    let text = sandbox.run(line).stdout;
    assert!(text.contains("lm_head: host (−") && text.contains("% time): the same result"), "{text}");
    sandbox.refused(
        "plan --model model --device cpu --lm-head host",
        &["`lm_head`: found host", "auto, resident or disk"],
    );
    let line = "plan --json --model llama-3-70b --gpu 4090 --max-length 1024 --host-memory 64GiB";
    let (status, plan) = of(&format!("{line} --weights resident"));
    assert_eq!((status, &plan["fits"]), (Some(1), &false.into()), "{plan}");
    let missing = plan["suggestions"].to_string();
    let none = "with the settings as they are, no length fits: ";
    for words in [none, "more device_memory at least", "weights: auto fits", "wait in host memory"] {
        assert!(missing.contains(words), "{words}: {missing}");
    }
    // The choice of auto.
    let (status, plan) = of(line);
    assert_eq!((status, &plan["weights"], &plan["pinned_layers"]), (Some(0), &"host".into(), &40.into()), "{plan}");
    assert!(plan["max_length"].as_u64() > Some(1024), "{plan}");
}
