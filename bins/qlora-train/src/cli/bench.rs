//! `qlora-train bench`

use super::answer::Answer;
use super::datasheet::peak_flops;
use super::world::World;
use crate::arch::shapes::shape;
use crate::backend::OpTime;
use crate::bail_usage;
use crate::bench::text::{MeasuredText, Text, bench as bench_text};
use crate::bench::{Measured, Shape, bench, stored_in_16_bits};
use crate::config::{Purpose, Settings};
use crate::error::{Context, Result};
use crate::files::units::format_bytes;
use crate::report::{count, printable, thousands};
use crate::session::planner::Levers;
use crate::session::predicted::step_seconds;
use crate::session::{Device, TransferBandwidth};
use clap::Args;
use qlora_kernels::device::{KERNELS, Kernels};
use serde_json::{Map, Value, json};
use std::fmt::Write;

#[derive(Args)]
pub struct BenchArgs {
    /// The name of a model whose shape is known, such as llama-3-8b, qwen3-8b or gemma-3-1b (an unknown name prints the
    /// list), a model's directory or the path of a config.json
    #[arg(long)]
    shape: String,
    /// Tokens of a row, or of a prompt [default: 2048, or what the model allows]
    #[arg(long)]
    seq: Option<usize>,
    /// Rows of a step, or prompts that are answered together
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Steps to time, after one untimed step, two with CUDA graphs; 0: a single step
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Measure text generation instead of training: answers of this many tokens, from the base alone or with adapters
    /// of rank --lora-r
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["steps", "optim", "gradient_checkpointing", "weights", "lm_head", "optimizer_states", "token_tile", "cuda_graphs", "plan"])]
    generate: Option<usize>,
    /// Rank of the adapters of all linear layers
    #[arg(long)]
    lora_r: Option<String>,
    /// nf4 or none
    #[arg(long)]
    quantization: Option<String>,
    /// adamw_8bit or adamw_torch
    #[arg(long)]
    optim: Option<String>,
    /// auto, true, false, offload or disk, which takes a file without a name in the working directory
    #[arg(long)]
    gradient_checkpointing: Option<String>,
    /// Place of the base weights: auto, resident or host
    #[arg(long)]
    weights: Option<String>,
    /// Place of the output layer: auto, resident or host
    #[arg(long)]
    lm_head: Option<String>,
    /// Place of AdamW's states between two updates: auto, resident, host or host_with_masters
    #[arg(long)]
    optimizer_states: Option<String>,
    /// Tokens that linear layers and MLP process at a time: auto, off or a multiple of 256 of at least 512
    #[arg(long)]
    token_tile: Option<String>,
    /// Launch of passes as CUDA graphs on a GPU: auto, on or off
    #[arg(long)]
    cuda_graphs: Option<String>,
    /// Device to compute on: auto, cpu, cuda or cuda:N
    #[arg(long)]
    device: Option<String>,
    /// Number format of the CPU's arithmetic: auto, f32 or bf16
    #[arg(long)]
    compute: Option<String>,
    /// Code for the linear layers on a GPU: auto, fused or dequantize
    #[arg(long)]
    linear: Option<String>,
    /// GPU memory that may be used in total, such as 44.4GiB
    #[arg(long)]
    device_memory: Option<String>,
    /// GPU to plan for, such as 4090 or l40s, instead of --device-memory
    #[arg(long, conflicts_with = "device_memory")]
    gpu: Option<String>,
    /// Host memory that may be used, such as 8GiB
    #[arg(long)]
    host_memory: Option<String>,
    /// Worker threads
    #[arg(long)]
    threads: Option<String>,
    /// Print the memory plan of the steps and do nothing; with `--device-memory` or `--gpu` no GPU is needed
    #[arg(long)]
    plan: bool,
    /// Seed of the weights and tokens
    #[arg(long)]
    seed: Option<String>,
}

impl BenchArgs {
    fn settings(&self) -> Result<Settings> {
        let values = [
            ("lora_r", &self.lora_r),
            ("quantization", &self.quantization),
            ("optim", &self.optim),
            ("gradient_checkpointing", &self.gradient_checkpointing),
            ("weights", &self.weights),
            ("lm_head", &self.lm_head),
            ("optimizer_states", &self.optimizer_states),
            ("token_tile", &self.token_tile),
            ("cuda_graphs", &self.cuda_graphs),
            ("device", &self.device),
            ("compute", &self.compute),
            ("linear", &self.linear),
            ("device_memory", &self.device_memory),
            ("gpu", &self.gpu),
            ("host_memory", &self.host_memory),
            ("threads", &self.threads),
            ("seed", &self.seed),
        ];
        let given = values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.as_ref()?.clone())));
        let settings = Settings::load(None, &given.collect::<Vec<_>>())?;
        settings.validate(Purpose::Bench)?;
        Ok(settings)
    }

    fn text(&self, answer: usize) -> Result<Text> {
        let Shape { config: arch, seq: prompt, batch: prompts, .. } = self.shape()?;
        let most = arch.max_position_embeddings - prompt;
        if !(2..=most).contains(&answer) {
            bail_usage!(
                "--generate: found {answer}, expected a number of tokens from 2 to {most}, after the prompt's {prompt}"
            );
        }
        Ok(Text { arch, prompt, prompts, answer, with_lora: self.lora_r.is_some() })
    }

    fn shape(&self) -> Result<Shape> {
        let config = shape(&self.shape)?;
        let most = config.max_position_embeddings;
        let seq = self.seq.unwrap_or_else(|| most.saturating_sub(self.generate.unwrap_or(0)).clamp(2, 2048));
        if !(2..=most).contains(&seq) {
            bail_usage!("--seq: found {seq}, expected a number of tokens from 2 to {most}");
        }
        for (name, value, least) in [("--batch", self.batch, 1), ("--steps", self.steps, 0)] {
            if !(least..=65_536).contains(&value) {
                bail_usage!("{name}: found {value}, expected a number from {least} to 65536");
            }
        }
        Ok(Shape { config, seq, batch: self.batch, steps: self.steps })
    }
}

const FORMULA: &str = "model FLOPs of a step = tokens · 4 · (parameters of the linear layers and lm_head) + rows · layers · 6 · seq² · \
    heads · head_dim: forward and the gradients of activations, causal attention, nothing that is recomputed";

pub fn run(args: &BenchArgs) -> Result<Answer> {
    let settings = args.settings()?;
    let shape = args.shape()?;
    if args.plan {
        let device = Device::choose_for_plan(&settings, args.gpu.as_deref())?.for_model(&settings, &shape.config);
        // Random weights are in no file.
        let lm_head = Levers::of(&settings).without_files(&device)?.head;
        let settings = Settings { lm_head, ..settings };
        return super::plan::answer(
            &settings,
            &device,
            shape.spec(&settings)?,
            &stored_in_16_bits,
            shape.batch,
            World::ALONE,
            &|_, _| Ok(None),
        );
    }
    if let Some(answer) = args.generate {
        return text(args, &settings, args.text(answer)?);
    }
    let (seq, tokens, flops) = (shape.seq, shape.tokens(), shape.flops());
    let measured = bench(&settings, shape)?;
    let Measured { plan, spec, seconds, loss, reports, kinds, linear, .. } = &measured;
    let Measured { cpu_peak_flops, device_bytes, host_bytes, link, .. } = &measured;
    let step = seconds.iter().sum::<f64>() / seconds.len() as f64;
    let speed = tokens as f64 / step;
    let gpu = plan.device.gpu();
    let predicted = if gpu.is_some() { step_seconds(spec, plan) } else { Vec::new() };
    let predicted: Map<_, _> = predicted.into_iter().map(|(card, seconds)| (card, json!(seconds))).collect();
    let peak = gpu.as_deref().and_then(peak_flops).or(*cpu_peak_flops);
    let peak_is = if gpu.is_some() { "dense bf16" } else { "measured: this processor's tiles in their nearest cache" };
    let mfu = peak.map(|peak| flops / step / peak);
    let all: f64 = kinds.iter().map(|kind| kind.seconds).sum();
    let mut sorted = kinds.clone();
    sorted.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));

    let counts = spec.activation_counts();
    let activations = if counts.keep < counts.layers() { format!(", {counts}") } else { String::new() };
    let mut text = format!(
        "{}, {} of {} tokens, r {}, {}{}\n{} tokens/s: {step:.4} s a step (mean of {}, {:.4} to {:.4}), loss {loss:.4}\n",
        printable(&args.shape),
        count(args.batch as u64, "row"),
        thousands(seq as u64),
        settings.lora_r,
        gpu.as_deref().unwrap_or("CPU"),
        activations,
        format_number(speed),
        seconds.len(),
        seconds.iter().copied().fold(f64::INFINITY, f64::min),
        seconds.iter().copied().fold(0.0, f64::max),
    );
    let _ = writeln!(
        text,
        "{:.2} TFLOP/s of model FLOPs{}\n{FORMULA}",
        flops / step / 1e12,
        match (mfu, peak) {
            (Some(mfu), Some(peak)) => format!(", {:.1}% of {:.3} ({peak_is})", 100.0 * mfu, peak / 1e12),
            _ => String::new(),
        }
    );
    let taken = device_bytes.map_or(String::new(), |bytes| format!(", {} taken on the GPU", format_bytes(bytes)));
    let host = host_bytes.map_or("not known".to_owned(), format_bytes);
    let _ = writeln!(
        text,
        "{}: {} planned{taken}; peak host memory of the process {host}, pages of files included",
        plan.place(),
        format_bytes(plan.peak_bytes())
    );
    for row in linear {
        let _ = writeln!(text, "linear layers: {row}");
    }
    let _ = write!(text, "{:<24}{:>12}{:>8}{:>12}{:>10}", "operation", "ms a step", "share", "GFLOP/s", "of peak");
    for OpTime { name, seconds, flops } in &sorted {
        let _ = write!(text, "\n{name:<24}{:>12.3}{:>7.1}%", 1e3 * seconds, 100.0 * seconds / all);
        if *flops > 0.0 {
            let _ = write!(text, "{:>12.1}", flops / seconds / 1e9);
            let _ = peak.map(|peak| write!(text, "{:>9.1}%", 100.0 * flops / seconds / peak));
        }
    }
    let kernels: Vec<Value> = sorted
        .iter()
        .map(|OpTime { name, seconds, flops }| {
            json!({"name": name, "seconds": seconds, "share": seconds / all, "flops": flops,
                   "share_of_peak": peak.filter(|_| *flops > 0.0).map(|peak| flops / seconds / peak)})
        })
        .collect();
    Ok(Answer {
        text,
        json: json!({
            "tokens_per_second": speed,
            "step_seconds": step,
            "step_seconds_each": seconds,
            "mfu": mfu,
            "model_flops_per_step": flops,
            "peak_flops": peak,
            "loss": loss,
            "steps": reports.iter().map(|of| json!({"loss": of.loss, "grad_norm": of.grad_norm})).collect::<Vec<_>>(),
            "device": {
                "planned_bytes": if gpu.is_some() { json!(plan.peak_bytes()) } else { json!(0) },
                "peak_bytes": device_bytes.unwrap_or(0),
                "limit_bytes": settings.device_memory.map(|bytes| bytes.0),
            },
            "host": {
                "planned_bytes": if gpu.is_none() { json!(plan.peak_bytes()) } else { json!(plan.host_bytes()) },
                "peak_bytes": host_bytes,
                "limit_bytes": settings.host_memory.map(|bytes| bytes.0),
            },
            "link": link.map(|TransferBandwidth { to_device, from_device }| {
                json!({"to_gpu_gb_per_s": to_device / 1e9, "from_gpu_gb_per_s": from_device / 1e9})
            }),
            "predicted_step_seconds": predicted,
            "kernels": kernels,
            "linear": linear,
            "operations": plan.work,
            "levers": super::plan::chosen_levers(spec),
            "gpu": gpu,
            "driver": driver(),
            "shape": args.shape,
            "seq": seq,
            "batch": args.batch,
            "lora_r": settings.lora_r,
            "quantization": if spec.quantization == crate::backend::Quantization::None { "none" } else { "nf4" },
            "recompute": counts.keep < counts.layers(),
            "offload": counts.offload > 0,
            "activations": counts.to_json(),
            "built": built()?,
            "date": jiff::Timestamp::now().to_string(),
        }),
    })
}

/// Prompts read and answers written, beside the speed of the memory that the weights are read from.
fn text(args: &BenchArgs, settings: &Settings, text: Text) -> Result<Answer> {
    let (prompt, prompts) = (text.prompt, text.prompts);
    let measured = bench_text(settings, text)?;
    let MeasuredText { plan, spec, prompt_seconds, seconds, kinds, weight_bytes, read_bandwidth, host_bytes } =
        &measured;
    let token = seconds.iter().sum::<f64>() / seconds.len() as f64;
    let (reading, writing) = ((prompts * prompt) as f64 / prompt_seconds, prompts as f64 / token);
    let bandwidth = *weight_bytes as f64 / token;
    let share = read_bandwidth.map(|most| bandwidth / most);
    let lora = if args.lora_r.is_some() { format!("r {}", settings.lora_r) } else { "no adapter".to_owned() };
    let mut shown = format!(
        "{}, {} of {} tokens, {lora}, {}\n{} tokens/s read, {} tokens/s written: {:.3} ms a token (mean of {}, {:.3} to {:.3})\n",
        args.shape,
        count(prompts as u64, "prompt"),
        thousands(prompt as u64),
        plan.device.gpu().as_deref().unwrap_or("CPU"),
        format_number(reading),
        format_number(writing),
        1e3 * token,
        seconds.len(),
        1e3 * seconds.iter().copied().fold(f64::INFINITY, f64::min),
        1e3 * seconds.iter().copied().fold(0.0, f64::max),
    );
    let of_memory = match (share, read_bandwidth) {
        (Some(share), Some(most)) => {
            format!(", {:.1}% of {:.1} (measured: all threads read memory)", 100.0 * share, most / 1e9)
        }
        _ => String::new(),
    };
    let _ = writeln!(
        shown,
        "{:.2} GB/s of weights, {} a token{of_memory}\n{}: {} planned; peak host memory of the process {}, pages of files \
         included",
        bandwidth / 1e9,
        format_bytes(*weight_bytes),
        plan.place(),
        format_bytes(plan.peak_bytes()),
        host_bytes.map_or("not known".to_owned(), format_bytes),
    );
    let all: f64 = kinds.iter().map(|kind| kind.seconds).sum();
    let _ = write!(shown, "{:<24}{:>12}{:>8}", "operation", "ms a token", "share");
    for OpTime { name, seconds, .. } in kinds {
        let _ = write!(shown, "\n{name:<24}{:>12.3}{:>7.1}%", 1e3 * seconds, 100.0 * seconds / all);
    }
    let operations: Vec<Value> = kinds
        .iter()
        .map(|OpTime { name, seconds, .. }| json!({"name": name, "seconds": seconds, "share": seconds / all}))
        .collect();
    Ok(Answer {
        text: shown,
        json: json!({
            "prompt_tokens_per_second": reading,
            "tokens_per_second": writing,
            "token_seconds": token,
            "token_seconds_each": seconds,
            "weight_bytes": weight_bytes,
            "read_bandwidth": read_bandwidth,
            "share_of_bandwidth": share,
            "operations": operations,
            "gpu": plan.device.gpu(),
            "driver": driver(),
            "shape": args.shape,
            "prompt": prompt,
            "prompts": prompts,
            "lora_r": args.lora_r.as_ref().map(|_| settings.lora_r),
            "quantization": if spec.quantization == crate::backend::Quantization::None { "none" } else { "nf4" },
            "planned_bytes": plan.peak_bytes(),
            "host_peak_bytes": host_bytes,
            "built": built()?,
            "date": jiff::Timestamp::now().to_string(),
        }),
    })
}

fn format_number(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { thousands(value.round() as u64) }
}

/// None where no GPU can be used.
fn driver() -> Option<String> {
    qlora_kernels::device::driver_version().filter(|_| KERNELS == Kernels::Cuda)
}

/// Build record of the bundle for a GPU machine (the file that `QLORA_BUILT` names); null outside a bundle.
fn built() -> Result<Value> {
    let Some(path) = std::env::var_os("QLORA_BUILT") else { return Ok(Value::Null) };
    let shown = std::path::Path::new(&path).display().to_string();
    let text = std::fs::read_to_string(&path).context(|| format!("QLORA_BUILT, {shown}"))?;
    serde_json::from_str(&text).context(|| format!("QLORA_BUILT, {shown}"))
}
