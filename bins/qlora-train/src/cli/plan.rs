//! `qlora-train plan`

use super::Answer;
use crate::backend::plan::PlannedBuffer;
use crate::config::memory::format_bytes;
use crate::config::{Checkpointing, Purpose, SettingsArgs};
use crate::error::Result;
use crate::report::trainable_line;
use crate::train::inputs::{check_quantization, model_spec};
use crate::train::{Device, Loaded, Workload, memory};
use serde_json::json;
use std::fmt::Write;

pub fn run(args: &SettingsArgs) -> Result<Answer> {
    let settings = args.load()?;
    settings.validate(Purpose::Plan)?;
    let device = Device::choose_for_plan(&settings)?;
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
    let budget = device.budget_of_plan(&settings)?;
    let stored = memory::stored_in(checkpoint);
    let checkpointing = settings.gradient_checkpointing;
    let plan = memory::choose(device, &mut spec, checkpointing, &stored, budget)?;
    let max_length = memory::longest_row(device, &spec, checkpointing, &stored, budget, per_batch)?;

    let mut suggestions = Vec::new();
    if !plan.fits() {
        if checkpointing == Checkpointing::Off {
            suggestions.push("gradient_checkpointing: auto recomputes activations where they do not fit".to_owned());
        }
        if max_length > 0 {
            suggestions.push(format!("max_length: {max_length} is the longest that fits"));
        } else {
            suggestions.push(format!("no length fits: more {} or a smaller model is needed", device.memory_setting()));
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
    for buffer in &plan.on_host {
        let _ = writeln!(text, "{:>12}  {}, pinned in host memory", format_bytes(buffer.bytes), buffer.name);
    }
    let verdict = if plan.fits() { "fits" } else { "does not fit" };
    let _ = write!(
        text,
        "{:>12}  of {} in all for batches of {tokens} tokens{}: {verdict} in {}\nlongest row that fits: \
         {max_length} tokens",
        format_bytes(plan.peak_bytes()),
        plan.place(),
        match (spec.recompute, spec.offload) {
            (true, true) => " (activations recomputed, from inputs in host memory)",
            (true, false) => " (activations recomputed)",
            _ => "",
        },
        format_bytes(budget.limit)
    );
    for suggestion in &suggestions {
        let _ = write!(text, "\nsuggestion: {suggestion}");
    }
    let place = if device == Device::Cpu { "host" } else { "device" };
    let of = |place: &'static str| move |b: &PlannedBuffer| json!({"name": b.name, "place": place, "bytes": b.bytes});
    let buffers: Vec<_> = plan.buffers.iter().map(of(place)).chain(plan.on_host.iter().map(of("host"))).collect();
    let planned = json!({"budget_bytes": budget.limit, "peak_bytes": plan.peak_bytes()});
    let (on_device, on_host) = match device {
        Device::Cpu => (json!({"budget_bytes": 0, "peak_bytes": 0}), planned),
        // Pinned; the rows and one matrix on its way come on top.
        #[cfg(any(feature = "cuda", feature = "emulation"))]
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
            "recompute": spec.recompute,
            "offload": spec.offload,
            "flops_per_micro_batch": if plan.flops > 0.0 { json!(plan.flops) } else { json!(null) },
            "buffers": buffers,
            "suggestions": suggestions,
        }),
    })
}
