//! Evaluation on the way: its rhythm, the best checkpoint, and an early end.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, assert_close};

/// The rows to train on count upwards; these count downwards, so that learning the ones makes the others worse.
fn opposite(sandbox: &Sandbox) {
    let row = |start: u32| {
        let ids: Vec<u32> = (start..start + 10).rev().collect();
        json!({"input_ids": ids}).to_string()
    };
    sandbox.write("opposite.jsonl", &(5..20).map(row).collect::<Vec<_>>().join("\n"));
}

fn eval_losses(sandbox: &Sandbox, out: &str) -> Vec<(u64, f64)> {
    let lines = sandbox.lines(&format!("{out}/metrics.jsonl"));
    lines.iter().filter_map(|line| Some((line["step"].as_u64()?, line["eval_loss"].as_f64()?))).collect()
}

#[test]
fn the_validation_rows_are_evaluated_every_so_many_steps_and_at_the_end() {
    let sandbox = Sandbox::new();
    let steps = |out: &str, more: &str| {
        sandbox.train_into(out, &format!("--max-steps 7 --val-set-size 3 {more}")).ok();
        eval_losses(&sandbox, out).into_iter().map(|(step, _)| step).collect::<Vec<_>>()
    };
    assert_eq!(steps("never", ""), [7]);
    assert_eq!(steps("three", "--eval-steps 3"), [3, 6, 7]);
    assert_eq!(steps("one", "--eval-strategy steps --eval-steps 1"), (1..=7).collect::<Vec<_>>());
    assert_eq!(steps("share", "--eval-steps 0.5"), [4, 7]);
    // 9 rows in batches of 4: three steps an epoch.
    assert_eq!(steps("epoch", "--eval-strategy epoch --packing false --per-device-train-batch-size 4"), [3, 6, 7]);
    let bytes = |out: &str| sandbox.bytes(&format!("{out}/adapter_model.safetensors"));
    assert!(bytes("never") == bytes("one"), "evaluating changes no bit of the adapter");
}

#[test]
fn the_best_checkpoint_is_kept_and_its_adapter_is_the_result_if_asked_for() {
    let sandbox = Sandbox::new();
    opposite(&sandbox);
    let line = "--max-steps 10 --val-data opposite.jsonl --eval-steps 2 --save-steps 3 --save-total-limit 1 \
                --warmup-steps 3";
    let best = sandbox.train_into("best", &format!("{line} --load-best-model-at-end")).json();
    let last = sandbox.train_into("last", line).json();
    let losses = eval_losses(&sandbox, "last");
    assert_eq!(eval_losses(&sandbox, "best"), losses);
    let (step, lowest) = losses.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(step < 10, "{losses:?}: the rows are made to get worse");
    assert_eq!(best["eval_loss"], lowest);
    assert_eq!(last["eval_loss"], losses.last().unwrap().1);
    for out in ["best", "last"] {
        let state = sandbox.json(&format!("{out}/trainer_state.json"));
        assert_eq!(state["best_metric"], lowest);
        assert_eq!(state["best_model_checkpoint"], format!("checkpoint-{step}"));
        let names = sandbox.names(out);
        let kept: Vec<&String> = names.iter().filter(|name| name.starts_with("checkpoint")).collect();
        assert_eq!(kept, [&format!("checkpoint-{step}"), "checkpoint-9"], "the best and the newest");
    }
    assert_close(sandbox.eval("--adapter best --data opposite.jsonl"), lowest, 1e-6);
    let name = "adapter_model.safetensors";
    assert!(sandbox.bytes(&format!("best/{name}")) == sandbox.bytes(&format!("last/checkpoint-{step}/{name}")));
    assert!(sandbox.bytes(&format!("last/{name}")) != sandbox.bytes(&format!("best/{name}")));
}

#[test]
fn a_run_ends_when_the_validation_loss_no_longer_falls() {
    let sandbox = Sandbox::new();
    opposite(&sandbox);
    let line = "--max-steps 60 --val-data opposite.jsonl --eval-steps 2 --early-stopping-patience 3 --warmup-steps 3 \
                --save-steps 4";
    let done = sandbox.train(line).ok();
    assert!(done.stderr.contains("3 evaluations without a validation loss below"), "{}", done.stderr);
    let losses = eval_losses(&sandbox, "out");
    let lowest = losses.iter().map(|loss| loss.1).fold(f64::INFINITY, f64::min);
    let at = losses.iter().position(|loss| loss.1 == lowest).unwrap();
    assert_eq!(at, losses.len() - 4, "{losses:?}");
    let (last, _) = *losses.last().unwrap();
    assert!(last < 60, "{losses:?}");
    let answer: Value = done.json();
    assert_eq!((&answer["steps"], &answer["eval_loss"]), (&last.into(), &losses.last().unwrap().1.into()));
    // Patience outlives an interruption.
    let killed = sandbox
        .run_at_fault(&crate::sandbox::train(&format!("--output-dir other {line}")), &format!("step:{}", last - 1));
    assert_eq!(killed.status, None);
    sandbox.train_into("other", &format!("{line} --resume-from-checkpoint")).ok();
    sandbox.assert_same_result("other", "out");
}

#[test]
fn several_validation_files_have_losses_of_their_own() {
    let sandbox = Sandbox::new();
    opposite(&sandbox);
    sandbox.write_rows("val.jsonl", 6, 4);
    let answer = sandbox.train("--val-data val.jsonl --val-data opposite.jsonl --eval-steps 3").json();
    let metrics = sandbox.lines("out/metrics.jsonl");
    let lines: Vec<&Value> = metrics.iter().filter(|line| !line["eval_loss"].is_null()).collect();
    assert_eq!(lines.len(), 2);
    let files = lines[1]["eval_file_losses"].as_object().unwrap();
    let tokens = |file: &str| {
        let eval = sandbox.run(&format!("eval --model model --adapter out --data {file} --json")).json();
        assert_close(files[file].as_f64().unwrap(), eval["loss"].as_f64().unwrap(), 1e-6);
        eval["tokens"].as_f64().unwrap()
    };
    let (val, opposite) = (tokens("val.jsonl"), tokens("opposite.jsonl"));
    let of = |file: &str| files[file].as_f64().unwrap();
    let mean = (of("val.jsonl") * val + of("opposite.jsonl") * opposite) / (val + opposite);
    assert_close(answer["eval_loss"].as_f64().unwrap(), mean, 1e-6);
}
