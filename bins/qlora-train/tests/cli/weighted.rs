//! Weights of rows: the loss is the sum of weight x loss, divided by the sum of the weights.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, assert_close};

/// The rows of `rows.jsonl` with a weight each.
fn weighted(sandbox: &Sandbox, name: &str, weight: impl Fn(usize) -> Value) {
    let rows = sandbox.lines("rows.jsonl").into_iter().enumerate().map(|(at, mut row)| {
        row["weight"] = weight(at);
        row.to_string()
    });
    sandbox.write(name, &rows.collect::<Vec<_>>().join("\n"));
}

const RUN: &str = "--packing false --per-device-train-batch-size 3 --gradient-accumulation-steps 2 --val-set-size 2";

#[test]
fn weights_that_are_all_equal_change_no_bit() {
    let sandbox = Sandbox::new();
    sandbox.train_into("plain", RUN).ok();
    for (name, weight) in [("one", 1.0), ("half", 0.5), ("four", 4.0)] {
        weighted(&sandbox, "weighted.jsonl", |_| json!(weight));
        let done = sandbox.train_into(name, &format!("{RUN} --data weighted.jsonl")).ok();
        assert_eq!(done.stderr.contains("12 rows with weights of their own"), weight != 1.0, "{}", done.stderr);
        let file = "adapter_model.safetensors";
        assert!(sandbox.bytes(&format!("{name}/{file}")) == sandbox.bytes(&format!("plain/{file}")), "{name}");
        assert_eq!(sandbox.metrics(name), sandbox.metrics("plain"), "{name}");
    }
}

#[test]
fn a_row_of_weight_two_is_learned_as_two_rows_of_weight_one() {
    let sandbox = Sandbox::new();
    weighted(&sandbox, "weighted.jsonl", |at| json!(if at == 3 { 2 } else { 1 }));
    let rows = sandbox.read("rows.jsonl");
    sandbox.write("twice.jsonl", &format!("{rows}\n{}", rows.lines().nth(3).unwrap()));
    let run = |out: &str, data: &str| {
        sandbox.train_into(out, &format!("{data} --max-length 512 --num-train-epochs 4 --max-steps 4")).json()
    };
    let (one, two) = (run("one", "--data weighted.jsonl"), run("two", "--data twice.jsonl"));
    assert_close(one["train_loss"].as_f64().unwrap(), two["train_loss"].as_f64().unwrap(), 1e-5);
    let plain = run("plain", "")["train_loss"].as_f64().unwrap();
    assert!((one["train_loss"].as_f64().unwrap() - plain).abs() > 1e-4, "the weight counts");
}

#[test]
fn how_a_step_is_split_changes_no_loss() {
    let sandbox = Sandbox::new();
    weighted(&sandbox, "weighted.jsonl", |at| json!(0.1 + at as f64));
    let run = |out: &str, more: &str| {
        let line = format!("--data weighted.jsonl --packing false --max-steps 2 --lora-dropout 0 {more}");
        sandbox.train_into(out, &line).ok();
        let lines = sandbox.lines(&format!("{out}/metrics.jsonl"));
        lines.iter().filter_map(|line| line["loss"].as_f64()).collect::<Vec<f64>>()
    };
    let whole = run("whole", "--per-device-train-batch-size 12 --gradient-accumulation-steps 1");
    let parts = run("parts", "--per-device-train-batch-size 1 --gradient-accumulation-steps 12");
    assert_eq!((whole.len(), parts.len()), (2, 2));
    whole.iter().zip(&parts).for_each(|(one, other)| assert_close(*one, *other, 1e-5));
}

/// The figure by hand, from the loss of each row alone.
#[test]
fn eval_divides_the_weighted_losses_by_the_weights() {
    let sandbox = Sandbox::new();
    let weight = |at: usize| [0.25, 0.0, 3.0, 1.0][at % 4];
    weighted(&sandbox, "weighted.jsonl", |at| json!(weight(at)));
    let (mut losses, mut weights, mut tokens) = (0.0, 0.0, 0);
    for (at, row) in sandbox.lines("rows.jsonl").iter().enumerate().filter(|(at, _)| weight(*at) > 0.0) {
        sandbox.write("alone.jsonl", &row.to_string());
        let alone = sandbox.run("eval --model model --json --data alone.jsonl").json();
        let supervised = alone["tokens"].as_f64().unwrap();
        losses += weight(at) * supervised * alone["loss"].as_f64().unwrap();
        weights += weight(at) * supervised;
        tokens += alone["tokens"].as_u64().unwrap();
    }
    let found = sandbox.run("eval --model model --json --data weighted.jsonl").json();
    assert_eq!(found["tokens"], tokens);
    assert_close(found["loss"].as_f64().unwrap(), losses / weights, 1e-6);
    assert!((sandbox.eval("--data rows.jsonl") - losses / weights).abs() > 1e-4, "the weights count");
}

#[test]
fn preview_shows_them() {
    let sandbox = Sandbox::new();
    sandbox.write("few.jsonl", "{\"input_ids\": [5, 6, 7, 8], \"weight\": [1, 1, 0.5, 0]}");
    let text = sandbox.run("preview --model model --data few.jsonl").ok().stdout;
    assert!(text.contains("<5> ⟦<6>⟧ ⟦<7>⟧×0.5 <8>"), "{text}");
    let json = sandbox.run("preview --model model --data few.jsonl --json").json();
    assert_eq!((&json["rows"][0]["weights"], &json["counts"]["weighted"]), (&json!([1.0, 1.0, 0.5, 1.0]), &json!(1)));
}
