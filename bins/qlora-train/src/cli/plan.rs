//! `qlora-train plan`, and the plan of `bench`

use super::Answer;
use crate::backend::PlannedBuffer;
use crate::config::{Checkpointing, Purpose, Settings, SettingsArgs};
use crate::error::Result;
use crate::files::units::format_bytes;
use crate::model::ModelSpec;
use crate::report::trainable_line;
use crate::session::model_spec::{check_quantization, model_spec};
use crate::session::plan::StoredAs;
use crate::session::{Device, Loaded, TrainingData, plan};
use serde_json::json;
use std::fmt::Write;

pub fn run(args: &SettingsArgs) -> Result<Answer> {
    let settings = args.load()?;
    settings.validate(Purpose::Plan)?;
    let device = Device::choose_for_plan(&settings)?;
    let loaded = Loaded::open(&settings)?;
    let checkpoint = &loaded.checkpoint;
    check_quantization(&settings, checkpoint)?;
    let per_batch = settings.per_device_train_batch_size;
    // Without data the longest batch that the settings allow is planned.
    let (tokens, positions) = if settings.data.is_empty() {
        (per_batch * settings.max_length, settings.max_length)
    } else {
        let work = TrainingData::load(&settings, &loaded)?;
        (work.tokens, work.longest)
    };
    let spec = model_spec(&settings, checkpoint, tokens, positions);
    answer(&settings, &device, spec, &plan::stored_in(checkpoint), per_batch)
}

/// The plan of training with `spec`, in micro-batches of `rows` rows.
pub fn answer(
    settings: &Settings,
    device: &Device,
    mut spec: ModelSpec,
    stored: &dyn Fn(&str) -> StoredAs,
    rows: usize,
) -> Result<Answer> {
    let budget = device.budget_of_plan(settings)?;
    let checkpointing = settings.gradient_checkpointing;
    let plan = plan::choose(device, &mut spec, checkpointing, stored, budget)?;
    let max_length = plan::longest_row(device, &spec, checkpointing, stored, budget, rows)?;
    let tokens = spec.tokens;

    let mut suggestions = Vec::new();
    if !plan.fits() {
        match checkpointing {
            Checkpointing::Off => {
                suggestions.push("gradient_checkpointing: auto recomputes activations where they do not fit".to_owned())
            }
            Checkpointing::On if !device.is_cpu() => suggestions.push(
                "gradient_checkpointing: auto keeps layers' inputs in host memory where they do not fit".to_owned(),
            ),
            _ => (),
        }
        if max_length > 0 {
            suggestions.push(format!("max_length: {max_length} is the longest that fits"));
        } else {
            let short = if plan.peak_bytes() > budget.limit { device.memory_setting() } else { "host_memory" };
            suggestions.push(format!("no length fits: more {short} or a smaller model is needed"));
        }
        if rows > 1 {
            suggestions.push("per_device_train_batch_size: 1 with gradient_accumulation_steps".to_owned());
        }
    }
    let trainable = spec.lora_parameters();
    let mut text =
        trainable_line(trainable, spec.arch.num_parameters().unwrap_or(u64::MAX).saturating_add(trainable)) + "\n";
    for buffer in &plan.buffers {
        let _ = writeln!(text, "{:>12}  {}", format_bytes(buffer.bytes), buffer.name);
    }
    for buffer in &plan.on_host {
        let _ = writeln!(text, "{:>12}  {}, pinned in host memory", format_bytes(buffer.bytes), buffer.name);
    }
    let counts = spec.activation_counts();
    let activations = if counts.keep < counts.layers() { format!(" ({counts})") } else { String::new() };
    let verdict = |bytes: u64, limit: u64| if bytes <= limit { "fits" } else { "does not fit" };
    let _ = writeln!(
        text,
        "{:>12}  of {} in all for batches of {tokens} tokens{}: {} in {}",
        format_bytes(plan.peak_bytes()),
        plan.place(),
        activations,
        verdict(plan.peak_bytes(), budget.limit),
        format_bytes(budget.limit)
    );
    if !plan.on_host.is_empty() {
        let (pinned, limit) = (plan.host_bytes(), plan.host_limit);
        let _ = writeln!(
            text,
            "{:>12}  pinned in host memory in all: {} in {}",
            format_bytes(pinned),
            verdict(pinned, limit),
            format_bytes(limit)
        );
    }
    let _ = write!(text, "longest row that fits: {max_length} tokens");
    for suggestion in &suggestions {
        let _ = write!(text, "\nsuggestion: {suggestion}");
    }
    let place = if device.is_cpu() { "host" } else { "device" };
    let of = |place: &'static str| move |b: &PlannedBuffer| json!({"name": b.name, "place": place, "bytes": b.bytes});
    let buffers: Vec<_> = plan.buffers.iter().map(of(place)).chain(plan.on_host.iter().map(of("host"))).collect();
    let planned = json!({"budget_bytes": budget.limit, "peak_bytes": plan.peak_bytes()});
    let (on_device, on_host) = match device {
        Device::Cpu(_) => (json!({"budget_bytes": 0, "peak_bytes": 0}), planned),
        // Pinned; the rows and one matrix on its way come on top.
        Device::Cuda(_) => (planned, json!({"budget_bytes": plan.host_limit, "peak_bytes": plan.host_bytes()})),
    };
    Ok(Answer {
        text,
        json: json!({
            "fits": plan.fits(),
            "device": on_device,
            "host": on_host,
            "max_length": max_length,
            "step_seconds": null,
            "recompute": counts.keep < counts.layers(),
            "offload": counts.offload > 0,
            "activations": counts.to_json(),
            "flops_per_micro_batch": plan.flops,
            "buffers": buffers,
            "suggestions": suggestions,
        }),
    })
}
