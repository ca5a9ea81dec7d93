//! Time and cost of a run that is planned.

use serde_json::Value;

use crate::sandbox::{Sandbox, assert_close};

fn forecast(sandbox: &Sandbox, line: &str) -> Value {
    sandbox.run(&format!("plan --json {line}")).json()["forecast"].clone()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key}: {value}"))
}

#[test]
fn a_card_has_hours_and_a_price_of_its_predicted_steps() {
    let sandbox = Sandbox::new();
    let line =
        "--model llama-3-8b --max-length 2048 --max-steps 500 --gradient-accumulation-steps 2 --host-memory 256GiB";
    let plan = sandbox.run(&format!("plan --json {line} --gpu h100 --price-per-hour 2.5")).json();
    let found = &plan["forecast"];
    assert!(plan["step_seconds"].is_null(), "what is predicted was not measured");
    assert_eq!((found["machine"].as_str(), found["source"].as_str()), (Some("H100"), Some("predicted")));
    assert_close(number(found, "step_seconds"), 2.0 * number(&plan["predicted_step_seconds"], "H100"), 1e-9);
    assert_close(number(found, "hours"), 500.0 * number(found, "step_seconds") / 3600.0, 1e-9);
    assert_close(number(found, "cost"), 2.5 * number(found, "hours"), 1e-9);
    // Twice the steps, twice the hours; a card that is not predicted is no faster than its datasheet.
    let twice = forecast(&sandbox, &format!("{line} --gpu h100").replace("500", "1000"));
    assert_close(number(&twice, "hours"), 2.0 * number(found, "hours"), 1e-9);
    let of_datasheet = forecast(&sandbox, &format!("{line} --gpu h200"));
    assert_eq!(of_datasheet["source"], "datasheet");
    assert_close(number(&of_datasheet, "step_seconds"), 2.0 * number(&plan, "flops_per_micro_batch") / 989e12, 1e-9);
    assert!(number(&of_datasheet, "step_seconds") < number(found, "step_seconds"));
    let text = sandbox.run(&format!("plan {line} --gpu h100 --price-per-hour 2.5")).ok().stdout;
    for part in
        ["forecast, H100: ", "predicted, not measured", "500 steps of 2,048,000 tokens in all: ", "; at 2.5 an hour: "]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        forecast(&sandbox, "--model llama-3-8b --max-length 64 --gpu h100 --host-memory 256GiB").is_null(),
        "nothing says how many steps"
    );
}

/// Names as nvidia-smi prints them, and as people write them; the size chooses where there are two.
#[test]
fn a_card_is_known_by_its_names_and_the_size_of_its_memory() {
    let sandbox = Sandbox::new();
    let plan = |gpu: &str| {
        let mut command = sandbox.command("plan --json --model llama-3-8b --max-length 1024 --host-memory 64GiB");
        let done = command.args(["--gpu", gpu]).output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        let json: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{gpu}: {said}"));
        (number(&json["device"], "budget_bytes") / f64::from(1 << 30), said)
    };
    for (gpu, memory) in [
        ("NVIDIA GeForce RTX 4090", 23.5),
        ("rtx-4090", 23.5),
        ("A100 80GB", 79.1),
        ("NVIDIA A100-SXM4-40GB", 39.3),
        ("NVIDIA H100 80GB HBM3", 79.1),
        ("rtx 6000 ada", 44.4),
    ] {
        let (found, said) = plan(gpu);
        assert!((found - memory).abs() < 1e-6, "{gpu}: {found}");
        assert!(!said.contains("is taken") && !said.contains("no time is predicted"), "{gpu}: {said}");
    }
    let (found, said) = plan("a100");
    assert!(
        (found - 79.1).abs() < 1e-6 && said.contains("the A100 with 80 GB is taken; there is a100-40gb too"),
        "{said}"
    );
    let (found, said) = plan("NVIDIA L4");
    assert!((found - 21.9).abs() < 1e-6 && said.contains("no time is predicted for the L4"), "{said}");
    let on_cpu = "plan --model llama-3-8b --gpu 4090 --device cpu";
    sandbox.refused(on_cpu, &["`gpu`: found `4090`", "leave `device` out"]);
    // With this many rows of the greatest length that the model allows, attention has more products than 64 bits count.
    let rows = "--max-length 2 --per-device-train-batch-size 1000 --host-memory 64GiB";
    let plan = sandbox.run(&format!("plan --json --model llama-3-8b --gpu 4090 {rows}")).json();
    assert!(plan["fits"] == true && number(&plan, "max_length") >= 2.0, "{plan}");
    sandbox.refused("plan --model llama-3-8b --gpu 4090s", &["--gpu", "`4090s`", "l40s, l40", "4090 is nearest"]);
    sandbox.refused("plan --model llama-3-8b --gpu gh200", &["--gpu", "`gh200`", "--device-memory"]);
    let price =
        "plan --model llama-3-8b --max-length 64 --gpu h100 --max-steps 10 --price-per-hour 0.5 --host-memory 64GiB";
    let text = sandbox.run(price).ok().stdout;
    assert!(text.contains("; at 0.5 an hour: 0.0") && !text.contains("an hour: 0.00\n"), "{text}");
    // A run on a GPU refuses it too.
    for gpu in ["--gpu a100", "--device cuda --device-memory 40GiB"] {
        let line = format!("plan --model llama-3-8b {gpu} --compute f32");
        sandbox.refused(&line, &["`compute`: found f32", "expected bf16", "--device cpu"]);
    }
}

#[test]
fn a_run_here_is_measured_and_counts_its_rows_and_evaluations() {
    let sandbox = Sandbox::new();
    let line = "--model model --data rows.jsonl --device cpu --compute f32 --max-length 64 --packing false --allow all";
    let plan = sandbox.run(&format!("plan --json {line} --num-train-epochs 3 --measure")).json();
    let found = &plan["forecast"];
    assert_eq!((found["source"].as_str(), found["steps"].as_u64()), (Some("measured"), Some(36)));
    let rows = sandbox.lines("rows.jsonl");
    let tokens: usize = rows.iter().map(|row| row["input_ids"].as_array().unwrap().len()).sum();
    assert_eq!(number(found, "tokens"), 3.0 * tokens as f64);
    assert!(number(found, "step_seconds") > 0.0 && number(found, "evaluation_seconds") == 0.0, "{found}");
    assert_eq!(plan["step_seconds"], found["step_seconds"]);
    assert_close(number(found, "hours"), 36.0 * number(found, "step_seconds") / 3600.0, 1e-9);
    let with = forecast(&sandbox, &format!("{line} --val-data rows.jsonl --eval-steps 6 --price-per-hour 1 --measure"));
    assert_eq!(with["steps"], 12);
    assert!(number(&with, "evaluation_seconds") > 0.0 && number(&with, "cost") > 0.0, "{with}");
}

#[test]
fn a_forecast_that_cannot_be_made_is_refused() {
    let sandbox = Sandbox::new();
    for (line, words) in [
        (
            "--model llama-3-8b --max-length 64 --host-memory 256GiB --gpu h100 --price-per-hour 2",
            &["--data", "--max-steps"][..],
        ),
        ("--model model --device cpu --max-steps 9 --price-per-hour 2", &["--price-per-hour", "--measure"]),
        (
            "--model llama-3-8b --max-length 64 --host-memory 256GiB --device cuda --device-memory 24GiB --max-steps 9 \
             --price-per-hour 2",
            &["--gpu"],
        ),
        (
            "--model llama-3-8b --max-length 64 --host-memory 256GiB --gpu h100 --max-steps 9 --measure",
            &["--measure", "GPU"],
        ),
        ("--model model --device cpu --measure", &["--data", "--max-steps"]),
        (
            "--model model --device cpu --max-steps 9 --measure --lm-head resident --host-memory 1MiB",
            &["--measure", "host memory"],
        ),
        (
            "--model model --device cpu --max-steps 9 --measure --gradient-checkpointing disk",
            &["--measure", "layers' inputs of this run are on disk", "`--gradient-checkpointing true`"],
        ),
    ] {
        sandbox.refused(&format!("plan {line}"), words);
    }
    let words = ["--price-per-hour", "no time is predicted for the RTX A5000"];
    sandbox.refused(
        "plan --model llama-3-8b --max-length 64 --host-memory 256GiB --gpu a5000 --max-steps 9 --price-per-hour 2",
        &words,
    );
    let wrong = sandbox.run("plan --model model --price-per-hour free");
    assert!(wrong.status == Some(2) && wrong.stderr.contains("2.49"), "{wrong:#?}");
}
