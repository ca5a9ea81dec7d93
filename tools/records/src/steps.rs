//! `benches/records/steps/`: what `qlora-train bench --json` printed of whole training steps on GPUs.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Figures of one run of `bench`; it prints more.
#[derive(Clone, Debug, Deserialize)]
pub struct Steps {
    shape: String,
    seq: usize,
    batch: usize,
    lora_r: usize,
    /// Whether activations are computed again in the backward pass, and from inputs in host memory
    recompute: bool,
    offload: bool,
    tokens_per_second: f64,
    mfu: Option<f64>,
    device: Memory,
    /// Null on a CPU, which has no place here.
    gpu: Option<String>,
    date: String,
    /// Facts of the bundle; null where it was built from the repository.
    built: Option<Built>,
    #[serde(skip)]
    file: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Memory {
    planned_bytes: u64,
    peak_bytes: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Built {
    kernels_hash: String,
}

/// All of them, newest first. An error names the file and what is wrong with it.
pub fn read(dir: &Path) -> Result<Vec<Steps>> {
    let mut all = Vec::new();
    if !dir.exists() {
        return Ok(all);
    }
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let shown = path.display();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
        let mut steps: Steps =
            serde_json::from_str(&text).with_context(|| format!("{shown} is not of `qlora-train bench --json`"))?;
        let gpu = steps.gpu.as_deref().unwrap_or("");
        ensure!(!gpu.is_empty() && !gpu.contains("emulation"), "{shown}: gpu is {gpu:?}, expected the name of a GPU");
        ensure!(steps.tokens_per_second > 0.0, "{shown}: tokens_per_second is {}", steps.tokens_per_second);
        steps.file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        all.push(steps);
    }
    all.sort_by(|a, b| (&b.date, &a.file).cmp(&(&a.date, &b.file)));
    Ok(all)
}

/// What is wanted of a whole step.
struct Goal {
    work: &'static str,
    goal: &'static str,
    shape: &'static str,
    seq: std::ops::RangeInclusive<usize>,
    /// Figures of runs that save memory as far as they can, and of no others
    sparing: bool,
    /// Said of one run: the figure, and whether it is as wanted, where something is.
    figure: fn(&Steps) -> (String, Option<bool>),
}

const GIB: f64 = (1u64 << 30) as f64;

fn speed(steps: &Steps) -> String {
    let mfu = steps.mfu.map_or(String::new(), |mfu| format!(" ({:.0}% of the peak)", 100.0 * mfu));
    format!("{:.0} tokens/s{mfu}", steps.tokens_per_second)
}

fn memory(steps: &Steps, most: f64) -> (String, Option<bool>) {
    let (peak, planned) = (steps.device.peak_bytes as f64 / GIB, steps.device.planned_bytes as f64 / GIB);
    (format!("{peak:.1} GiB, {planned:.1} planned"), Some(peak <= most))
}

const GOALS: [Goal; 4] = [
    Goal {
        work: "training steps of a Llama 3 70B, 2k to 4k tokens",
        goal: "≥ 1,300 tokens/s on an H100",
        shape: "llama-3-70b",
        seq: 2048..=4096,
        sparing: false,
        figure: |steps| {
            let wanted = steps.gpu.as_ref().is_some_and(|gpu| gpu.contains("H100"));
            (speed(steps), wanted.then_some(steps.tokens_per_second >= 1300.0))
        },
    },
    Goal {
        work: "training steps of a Llama 3 8B",
        goal: "none set",
        shape: "llama-3-8b",
        seq: 1..=usize::MAX,
        sparing: false,
        figure: |steps| (speed(steps), None),
    },
    Goal {
        work: "GPU memory of a 70B, context included, 2,048 tokens",
        goal: "≤ 39 GiB",
        shape: "llama-3-70b",
        seq: 2048..=2048,
        sparing: true,
        figure: |steps| memory(steps, 39.0),
    },
    Goal {
        work: "GPU memory of a 70B, context included, 8,192 tokens",
        goal: "≤ 41 GiB",
        shape: "llama-3-70b",
        seq: 8192..=8192,
        sparing: true,
        figure: |steps| memory(steps, 41.0),
    },
];

/// Rows of the table, of the newest run of each GPU and length; `hash` is that of the kernels as they are.
pub fn rows(all: &[Steps], hash: &str) -> String {
    let mut text = String::new();
    for goal in &GOALS {
        let mut cells: Vec<String> = Vec::new();
        let mut seen = Vec::new();
        let of_goal = |steps: &&Steps| {
            steps.shape == goal.shape && goal.seq.contains(&steps.seq) && (steps.offload || !goal.sparing)
        };
        for steps in all.iter().filter(of_goal) {
            let key = (&steps.gpu, steps.seq, steps.batch, steps.lora_r, steps.recompute, steps.offload);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let (figure, met) = (goal.figure)(steps);
            let met = met.map_or("", |met| if met { ", met" } else { ", missed" });
            let old = match &steps.built {
                Some(built) if built.kernels_hash == hash => "",
                Some(_) => "; **the kernels have changed since**",
                None => "; of which kernels is not known",
            };
            let gpu = steps.gpu.as_deref().unwrap_or_default();
            cells.push(format!(
                "{gpu}: {figure} ([{} tokens, r {}{}](benches/records/steps/{}){met}{old})",
                steps.seq * steps.batch,
                steps.lora_r,
                match (steps.recompute, steps.offload) {
                    (true, true) => ", recomputed from host memory",
                    (true, false) => ", recomputed",
                    _ => "",
                },
                steps.file
            ));
        }
        cells.sort();
        let cell = if cells.is_empty() { super::table::NOTHING.to_owned() } else { cells.join("<br>") };
        let _ = writeln!(text, "| {} | {} | {cell} |", goal.work, goal.goal);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, name: &str, change: impl Fn(&mut serde_json::Value)) {
        let mut value = serde_json::json!({
            "shape": "llama-3-70b", "seq": 2048, "batch": 1, "lora_r": 16, "recompute": true, "offload": true, "tokens_per_second": 1400.0, "mfu": 0.5,
            "device": {"planned_bytes": 43u64 << 30, "peak_bytes": 42u64 << 30}, "gpu": "NVIDIA H100", "kernels": [],
            "date": "2025-01-01T00:00:00Z", "built": {"kernels_hash": "now", "commit": null},
        });
        change(&mut value);
        fs::write(dir.join(name), value.to_string()).unwrap();
    }

    #[test]
    fn the_newest_run_of_each_gpu_and_length_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            rows(&read(&dir.path().join("none")).unwrap(), "now").matches("| not measured on a GPU |").count(),
            4
        );
        put(dir.path(), "a.json", |_| ());
        put(dir.path(), "b.json", |value| {
            value["date"] = "2025-01-02T00:00:00Z".into();
            value["tokens_per_second"] = 1200.0.into();
        });
        // A record of another mode: told of as to speed, and none of the memory goals'.
        put(dir.path(), "kept.json", |value| {
            value["offload"] = false.into();
            value["recompute"] = false.into();
        });
        put(dir.path(), "c.json", |value| {
            value["seq"] = 8192.into();
            value["gpu"] = "NVIDIA L40S".into();
            value["device"]["peak_bytes"] = (40u64 << 30).into();
            value["built"]["kernels_hash"] = "before".into();
        });
        let text = rows(&read(dir.path()).unwrap(), "now");
        assert!(
            text.contains(
                "| NVIDIA H100: 1200 tokens/s (50% of the peak) ([2048 tokens, r 16, recomputed from host memory]("
            ),
            "{text}"
        );
        assert!(text.contains("steps/b.json), missed) |") && !text.contains("a.json"), "{text}");
        assert!(text.contains("42.0 GiB, 43.0 planned") && text.contains("missed"), "{text}");
        assert!(
            text.contains("NVIDIA L40S: 40.0 GiB") && text.contains("c.json), met; **the kernels have changed since**")
        );
        assert_eq!(text.matches("| not measured on a GPU |").count(), 1, "{text}");
        assert_eq!(text.matches("1400 tokens/s (50% of the peak) ([2048 tokens, r 16](").count(), 1, "{text}");
        assert_eq!(text.matches("kept.json").count(), 1, "{text}");
    }

    #[test]
    fn a_run_that_is_none_of_a_gpu_is_an_error_that_names_its_file() {
        for (key, bad) in [("gpu", serde_json::Value::Null), ("tokens_per_second", 0.0.into()), ("seq", "x".into())] {
            let dir = tempfile::tempdir().unwrap();
            put(dir.path(), "bad.json", |value| value[key] = bad.clone());
            let error = format!("{:#}", read(dir.path()).unwrap_err());
            assert!(error.contains("bad.json"), "{key}: {error}");
        }
    }
}
