//! Memory of a run on a real model: what was planned is what the process comes to hold, saving and rows included.
//!
//! Measured is the anonymous memory of the process (`RssAnon`), every millisecond. `QLORA_FULL_GRID=1` runs all 35
//! settings; else four of them.

use std::path::{Path, PathBuf};

use qlora_kernels::rng::RngStream;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use serde_json::json;

use crate::sandbox::Sandbox;

/// Settings, and the file of rows that they are of.
const GRID: [(&str, &str); 35] = [
    ("rows", "--max-length 512 --save-steps 1 --lora-r 256 --use-rslora true --gradient-checkpointing true"),
    ("short", "--max-length 128 --save-steps 1"),
    ("many", "--max-length 128 --gradient-checkpointing true --lora-target-modules q_proj --lora-r 4"),
    ("array", "--max-length 128 --gradient-checkpointing true --lora-target-modules q_proj --lora-r 4"),
    ("rows", "--max-length 512 --save-steps 1"),
    ("rows", "--max-length 512 --save-steps 1 --lora-r 256 --use-rslora true"),
    ("rows", "--max-length 512 --save-steps 1 --lora-r 256"),
    ("rows", "--max-length 512 --save-steps 1 --lora-r 255 --use-rslora true --optim adamw_8bit"),
    ("rows", "--max-length 512 --save-steps 1 --lora-r 64 --optim adamw_8bit"),
    ("rows", "--max-length 512 --save-steps 1 --lora-r 1"),
    ("rows", "--max-length 512 --gradient-checkpointing true"),
    ("rows", "--max-length 512 --gradient-checkpointing true --lora-target-modules q_proj --lora-r 4"),
    ("rows", "--max-length 512 --gradient-checkpointing true --lora-r 128 --optim adamw_8bit --save-steps 1"),
    ("rows", "--max-length 512 --quantization none"),
    ("rows", "--max-length 512 --quantization none --gradient-checkpointing true --save-steps 1"),
    ("rows", "--max-length 512 --double-quant false --nf4-block-size 32"),
    ("rows", "--max-length 512 --nf4-block-size 4096"),
    ("rows", "--max-length 512 --lora-dropout 0.1 --save-steps 1"),
    ("rows", "--max-length 512 --packing false"),
    ("rows", "--max-length 512 --packing false --per-device-train-batch-size 2"),
    ("rows", "--max-length 512 --packing false --per-device-train-batch-size 2 --gradient-checkpointing true"),
    ("rows", "--max-length 512 --gradient-accumulation-steps 3 --gradient-checkpointing true"),
    ("rows", "--max-length 512 --val-set-size 4 --eval-steps 1 --save-steps 1 --load-best-model-at-end"),
    ("rows", "--max-length 512 --val-set-size 4 --eval-steps 1 --gradient-checkpointing true"),
    ("short", "--max-length 128"),
    ("short", "--max-length 128 --gradient-checkpointing true --save-steps 1"),
    ("short", "--max-length 128 --lora-r 256 --use-rslora true --save-steps 1"),
    ("short", "--max-length 128 --packing false --per-device-train-batch-size 8"),
    ("many", "--max-length 128 --gradient-checkpointing true --save-steps 1"),
    ("many", "--max-length 128 --packing false --per-device-train-batch-size 4"),
    ("many", "--max-length 128 --val-set-size 100 --lora-r 64 --optim adamw_8bit --save-steps 1"),
    ("rows", "--max-length 512 --gradient-checkpointing disk"),
    ("rows", "--max-length 512 --lm-head disk"),
    ("rows", "--max-length 512 --gradient-checkpointing disk --lm-head disk"),
    ("rows", "--max-length 512 --gradient-checkpointing disk --lm-head disk --lora-target-modules q_proj --lora-r 4"),
];

/// Share of the plan that a run holds at its peak, at least.
const LEAST: f64 = 0.95;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models/smollm2-135m-instruct")
}

/// Rows of exactly `length` tokens: every batch is as long as the longest.
fn write_rows(sandbox: &Sandbox, name: &str, rows: usize, length: usize) {
    let mut stream = RngStream::new(1, 3);
    let mut row =
        |_| json!({"input_ids": (0..length).map(|_| 100 + stream.below(40_000)).collect::<Vec<_>>()}).to_string();
    sandbox.write(&format!("{name}.jsonl"), &(0..rows).map(&mut row).collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_run_holds_what_was_planned() {
    let model = model();
    if !model.join("model.safetensors").is_file() {
        return println!("not run: {} is not there; `cargo xtask setup` fetches it", model.display());
    }
    let sandbox = Sandbox::on_disk(&Synthetic::new(tiny_arch(), 1));
    write_rows(&sandbox, "rows", 24, 512);
    write_rows(&sandbox, "short", 48, 128);
    let full = std::env::var_os("QLORA_FULL_GRID").is_some();
    // Enough for reading them to take more than the run does.
    write_rows(&sandbox, "many", 100_000, 128);
    // One JSON array of all rows.
    let rows = sandbox.read("many.jsonl").replace('\n', ",\n");
    sandbox.write("array.jsonl", &format!("[{rows}]"));
    let settings = if full { &GRID[..] } else { &GRID[..4] };
    let (mut beyond, mut ratios) = (Vec::new(), Vec::new());
    for (rows, more) in settings {
        let line = |command: &str| {
            let model = model.display();
            format!(
                "{command} --device cpu --model {model} --data {rows}.jsonl --output-dir out --max-steps 2 {more} --json"
            )
        };
        let plan = sandbox.run(&line("plan")).json();
        let planned = plan["host"]["peak_bytes"].as_u64().unwrap();
        // A busy machine lets a peak of milliseconds pass between two looks: looked at again, which can only show more.
        let (mut peak, mut looks) = (0, 0);
        while looks < 4 && (peak as f64) < LEAST * planned as f64 {
            let (done, measured) = sandbox.run_watched(&line("train"));
            done.ok();
            std::fs::remove_dir_all(sandbox.path("out")).unwrap();
            peak = peak.max(measured);
            looks += 1;
        }
        let (measured, ratio) = (peak, peak as f64 / planned as f64);
        println!("planned {:7.1} MiB, measured {:7.1} MiB, {ratio:.3}: {rows} {more}", mib(planned), mib(measured));
        ratios.push(ratio);
        if measured > planned {
            beyond.push(format!("{measured} of {planned}: {rows} {more}"));
        }
    }
    let (least, most) =
        ratios.iter().fold((f64::MAX, 0f64), |(least, most), &ratio| (least.min(ratio), most.max(ratio)));
    println!("{} settings, measured {least:.3} to {most:.3} of the plan", ratios.len());
    assert!(beyond.is_empty(), "{beyond:#?}");
    assert!(least >= LEAST, "a plan of more than 5% beyond what is held: {least:.3}");
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
