//! `qlora-train plan`

use super::Answer;
use crate::config::memory::format_bytes;
use crate::config::{Checkpointing, Device, Purpose, SettingsArgs};
use crate::error::Result;
use crate::refuse;
use crate::report::trainable_line;
use crate::train::inputs::{check_quantization, model_spec};
use crate::train::{Loaded, Workload, memory};
use serde_json::json;
use std::fmt::Write;

pub fn run(args: &SettingsArgs) -> Result<Answer> {
    let settings = args.load()?;
    settings.validate(Purpose::Plan)?;
    if let Some(Device::Cuda(_)) = settings.device {
        refuse!("`device`: found cuda, but plan counts the memory of a run on the CPU only; expected cpu or auto");
    }
    let files: Vec<_> = settings.data.iter().chain(&settings.val_data).cloned().collect();
    let loaded = Loaded::open(&settings, &files)?;
    let checkpoint = &loaded.checkpoint;
    check_quantization(&settings, checkpoint)?;
    let per_batch = settings.per_device_train_batch_size;
    // Without data the longest batch that the settings allow is planned.
    let (tokens, positions) = if settings.data.is_empty() {
        (per_batch * settings.max_length, settings.max_length)
    } else {
        let work = Workload::load(&settings, &loaded)?;
        (work.tokens, work.longest)
    };
    let mut spec = model_spec(&settings, checkpoint, tokens, positions);
    // A given size may be that of another machine.
    let budget = settings.host_memory.map_or_else(|| memory::host_budget(None), |bytes| bytes.0);
    let stored = memory::stored_in(checkpoint);
    let checkpointing = settings.gradient_checkpointing;
    let plan = memory::choose(&mut spec, checkpointing, &stored, budget)?;
    let max_length = memory::longest_row(&spec, checkpointing, &stored, budget, per_batch)?;

    let mut suggestions = Vec::new();
    if !plan.fits() {
        if checkpointing == Checkpointing::Off {
            suggestions.push("gradient_checkpointing: auto recomputes activations where they do not fit".to_owned());
        }
        if max_length > 0 {
            suggestions.push(format!("max_length: {max_length} is the longest that fits"));
        } else {
            suggestions.push("no length fits: more host_memory or a smaller model is needed".to_owned());
        }
        if per_batch > 1 {
            suggestions.push("per_device_train_batch_size: 1 with gradient_accumulation_steps".to_owned());
        }
    }
    let trainable = spec.lora_parameters();
    let mut text = trainable_line(trainable, loaded.parameters().saturating_add(trainable)) + "\n";
    for buffer in &plan.buffers {
        let _ = writeln!(text, "{:>12}  {}", format_bytes(buffer.bytes), buffer.name);
    }
    let verdict = if plan.fits() { "fits" } else { "does not fit" };
    let _ = write!(
        text,
        "{:>12}  in all, on the CPU, for batches of {tokens} tokens{}: {verdict} in {}\nlongest row that fits: \
         {max_length} tokens",
        format_bytes(plan.peak_bytes),
        if spec.recompute { " (activations recomputed)" } else { "" },
        format_bytes(budget)
    );
    for suggestion in &suggestions {
        let _ = write!(text, "\nsuggestion: {suggestion}");
    }
    let buffers: Vec<_> =
        plan.buffers.iter().map(|b| json!({"name": b.name, "place": "host", "bytes": b.bytes})).collect();
    Ok(Answer {
        text,
        json: json!({
            "fits": plan.fits(),
            "device": {"budget_bytes": 0, "peak_bytes": 0},
            "host": {"budget_bytes": plan.budget_bytes, "peak_bytes": plan.peak_bytes},
            "max_length": max_length,
            "step_seconds": null,
            "recompute": spec.recompute,
            "flops_per_micro_batch": plan.flops,
            "buffers": buffers,
            "suggestions": suggestions,
        }),
    })
}
