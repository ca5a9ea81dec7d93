//! `benches/records/steps/`: the output of `qlora-train bench --json` for whole training steps on GPUs.

use crate::folder::json_files_if_there;
use crate::format::{NOT_MEASURED, positive};
use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Figures of one run of `bench`; it prints more.
#[derive(Clone, Debug, Deserialize)]
pub struct Steps {
    pub shape: String,
    /// Tokens of a row; `batch`: rows
    pub seq: usize,
    pub batch: usize,
    pub lora_r: usize,
    /// Activations are computed again in the backward pass, from inputs in host memory where some are offloaded
    recompute: bool,
    offload: bool,
    /// Layers by what becomes of their activations: "keep", "recompute", "offload"
    pub activations: BTreeMap<String, usize>,
    pub levers: Levers,
    /// The code that computed the linear layers, a line each
    pub linear: Vec<String>,
    pub tokens_per_second: f64,
    /// The mean of the timed steps
    pub step_seconds: f64,
    /// Each kind of operation in one more step
    pub kernels: Vec<Kind>,
    /// Operations of a step with their shapes, as `qlora-train bench --plan --json` lists them
    pub operations: Vec<serde_json::Value>,
    /// Every step, those that were not timed too
    #[serde(default, rename = "steps")]
    pub reports: Vec<Report>,
    /// Seconds that the trainer's planner predicts for such a step, by card, with copies at 16 GB/s
    #[serde(default)]
    pub predicted_step_seconds: BTreeMap<String, f64>,
    /// Null where copies were not timed
    #[serde(default)]
    pub link: Option<Link>,
    mfu: Option<f64>,
    pub device: Memory,
    #[serde(default)]
    pub host: HostMemory,
    /// Null on a CPU, which has no place here.
    gpu: Option<String>,
    date: String,
    /// Facts of the bundle; null where it was built from the repository.
    pub built: Option<Built>,
    #[serde(skip)]
    pub file: String,
}

/// The plan's choices beside activations.
#[derive(Clone, Debug, Deserialize)]
pub struct Levers {
    /// "resident", "host" or "disk"
    pub weights: String,
    /// Layers whose weights wait in host memory
    pub pinned_layers: usize,
    pub lm_head: String,
    pub optimizer_states: String,
    /// Tokens that linear layers work on at one time; null: all
    pub token_tile: Option<usize>,
}

/// Seconds of all operations of one kind.
#[derive(Clone, Debug, Deserialize)]
pub struct Kind {
    pub name: String,
    pub seconds: f64,
}

/// The results of one step, to the bit.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Report {
    pub loss: f64,
    /// Norm of all gradients, before clipping
    pub grad_norm: f64,
}

/// Speed of copies between pinned host memory and the GPU.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Link {
    pub to_gpu_gb_per_s: f64,
    pub from_gpu_gb_per_s: f64,
}

/// The GPU's memory, as the driver says.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Memory {
    pub planned_bytes: u64,
    pub peak_bytes: u64,
    /// Limit of the memory that the run might take; null: all
    #[serde(default)]
    pub limit_bytes: Option<u64>,
}

/// The host's memory that the run needs beside its program.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct HostMemory {
    pub planned_bytes: u64,
    #[serde(default)]
    pub limit_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Built {
    kernels_hash: String,
}

impl Steps {
    pub fn gpu(&self) -> &str {
        self.gpu.as_deref().unwrap_or_default()
    }

    /// True if the kernels were those of this hash; none where the record does not say.
    pub fn is_of(&self, hash: &str) -> Option<bool> {
        self.built.as_ref().map(|built| built.kernels_hash == hash)
    }

    /// True if it had all of the GPU's memory and nothing waited in the host's.
    pub fn is_unlimited(&self) -> bool {
        let Levers { weights, lm_head, optimizer_states, token_tile, .. } = &self.levers;
        let are_here = [weights, lm_head, optimizer_states].iter().all(|place| *place == "resident");
        are_here && token_tile.is_none() && self.device.limit_bytes.is_none() && self.host.limit_bytes.is_none()
    }

    /// "llama-3-70b, 1 × 2048 tokens, r 16, 16 kept, 64 offloaded, weights of 40 in host memory, in 44.4 GiB"
    pub fn work(&self) -> String {
        let mut text = format!("{}, {} × {} tokens, r {}", self.shape, self.batch, self.seq, self.lora_r);
        for (key, word) in [("keep", "kept"), ("recompute", "recomputed"), ("offload", "offloaded")] {
            if let Some(layers) = self.activations.get(key).filter(|&&layers| layers > 0) {
                let _ = write!(text, ", {layers} {word}");
            }
        }
        let levers = &self.levers;
        match levers.weights.as_str() {
            "resident" => {}
            "host" => {
                let _ = write!(text, ", weights of {} in host memory", levers.pinned_layers);
            }
            place => {
                let _ = write!(text, ", weights: {place}");
            }
        }
        for (what, place) in [("lm_head", &levers.lm_head), ("optimizer states", &levers.optimizer_states)] {
            if place != "resident" {
                let _ = write!(text, ", {what}: {place}");
            }
        }
        if let Some(tile) = levers.token_tile {
            let _ = write!(text, ", tiles of {tile}");
        }
        for (limit, place) in [(self.device.limit_bytes, ""), (self.host.limit_bytes, " of the host's memory")] {
            if let Some(limit) = limit {
                let _ = write!(text, ", in {:.1} GiB{place}", limit as f64 / GIB);
            }
        }
        text
    }

    /// An error that says what is wrong with it.
    fn check(&self) -> Result<(), String> {
        let gpu = self.gpu();
        if gpu.is_empty() || gpu.contains("emulation") {
            return Err(format!("gpu is {gpu:?}, expected the name of a GPU"));
        }
        positive("tokens_per_second", self.tokens_per_second)?;
        positive("step_seconds", self.step_seconds)?;
        if self.kernels.is_empty() || self.operations.is_empty() {
            return Err("kernels or operations are empty, expected those of a step".to_owned());
        }
        // Few launches may take less than the clock tells.
        match self.kernels.iter().find(|kind| !(0.0..f64::INFINITY).contains(&kind.seconds)) {
            Some(Kind { name, seconds }) => {
                Err(format!("seconds of {name:?} is {seconds}, expected a number from 0 on"))
            }
            None => Ok(()),
        }
    }
}

/// All of them, newest first. An error names the file and what is wrong with it.
pub fn read(dir: &Path) -> Result<Vec<Steps>> {
    let mut all = Vec::new();
    for path in json_files_if_there(dir)? {
        let shown = path.display();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
        let mut steps: Steps =
            serde_json::from_str(&text).with_context(|| format!("{shown} is not of `qlora-train bench --json`"))?;
        steps.check().map_err(|problem| anyhow!("{shown}: {problem}"))?;
        steps.file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        all.push(steps);
    }
    all.sort_by(|a, b| (&b.date, &a.file).cmp(&(&a.date, &b.file)));
    Ok(all)
}

/// A goal of a whole step.
struct Goal {
    work: &'static str,
    goal: &'static str,
    shape: &'static str,
    seq: std::ops::RangeInclusive<usize>,
    /// Figures of runs that save as much memory as they can with weights on the GPU; false: of those that save none
    sparing: bool,
    /// The figure of one run, and whether it meets the goal; none without a goal.
    figure: fn(&Steps) -> (String, Option<bool>),
}

pub(crate) const GIB: f64 = (1u64 << 30) as f64;

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
            let is_of = match goal.sparing {
                true => steps.offload && steps.levers.weights == "resident",
                false => steps.is_unlimited(),
            };
            is_of && steps.shape == goal.shape && goal.seq.contains(&steps.seq)
        };
        for steps in all.iter().filter(of_goal) {
            let key = (&steps.gpu, steps.seq, steps.batch, steps.lora_r, steps.recompute, steps.offload);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let (figure, met) = (goal.figure)(steps);
            let met = met.map_or("", |met| if met { ", met" } else { ", missed" });
            let old = match steps.is_of(hash) {
                Some(true) => "",
                Some(false) => "; **the kernels have changed since**",
                None => "; of which kernels is not known",
            };
            let gpu = steps.gpu();
            cells.push(format!(
                "{gpu}: {figure} ([{} tokens, r {}{}](../benches/records/steps/{}){met}{old})",
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
        let cell = if cells.is_empty() { NOT_MEASURED.to_owned() } else { cells.join("<br>") };
        let _ = writeln!(text, "| {} | {} | {cell} |", goal.work, goal.goal);
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn put(dir: &Path, name: &str, change: impl Fn(&mut serde_json::Value)) {
        let mut value = made();
        change(&mut value);
        fs::write(dir.join(name), value.to_string()).unwrap();
    }

    /// A run as `qlora-train bench --json` prints it.
    pub(crate) fn made() -> serde_json::Value {
        serde_json::json!({
            "shape": "llama-3-70b", "seq": 2048, "batch": 1, "lora_r": 16, "recompute": true, "offload": true, "tokens_per_second": 1400.0, "mfu": 0.5,
            "device": {"planned_bytes": 43u64 << 30, "peak_bytes": 42u64 << 30}, "gpu": "NVIDIA H100",
            "step_seconds": 1.5, "kernels": [{"name": "linear", "seconds": 1.25, "share": 1.0}],
            "operations": [{"name": "linear"}], "activations": {"keep": 0, "recompute": 0, "offload": 80},
            "levers": {"weights": "resident", "pinned_layers": 0, "lm_head": "resident", "optimizer_states": "resident",
                       "token_tile": null},
            "linear": ["qkv, N 10240, K 8192, forward: fused"],
            "date": "2025-01-01T00:00:00Z", "built": {"kernels_hash": "now", "commit": null},
        })
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
        // A record of another mode: it has a speed, and none of the memory goals' figures.
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
        // Limits and levers have a table of their own.
        put(dir.path(), "streamed.json", |value| value["levers"]["weights"] = "host".into());
        put(dir.path(), "limited.json", |value| {
            value["offload"] = false.into();
            value["device"]["limit_bytes"] = (44u64 << 30).into();
        });
        let text = rows(&read(dir.path()).unwrap(), "now");
        assert!(!text.contains("streamed.json") && !text.contains("limited.json"), "{text}");
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
        let less_than_none = serde_json::json!([{"name": "linear", "seconds": -1.0}]);
        for (key, bad) in [
            ("gpu", serde_json::Value::Null),
            ("tokens_per_second", 0.0.into()),
            ("seq", "x".into()),
            ("step_seconds", (-1.0).into()),
            ("kernels", less_than_none),
            ("operations", serde_json::json!([])),
        ] {
            let dir = tempfile::tempdir().unwrap();
            put(dir.path(), "bad.json", |value| value[key] = bad.clone());
            let error = format!("{:#}", read(dir.path()).unwrap_err());
            assert!(error.contains("bad.json"), "{key}: {error}");
        }
    }
}
