//! Lines that a run says of itself before its first step.

use super::checkpoints;
use crate::backend::Quantization;
use crate::config::Settings;
use crate::data::Schedule;
use crate::error::Result;
use crate::files::units::format_bytes;
use crate::lora::LoraKind;
use crate::model::ModelSpec;
use crate::report::{count, detail, status, trainable_line, warning};
use crate::session::Loaded;
use crate::session::disk::{self, DiskPlan};
use crate::session::model_spec::base_quantization;
use crate::session::plan::MemoryPlan;
use crate::session::predicted::{states_note, unpinned_note};
use std::path::Path;

/// Prints the size of a checkpoint and the free space, less `taken_bytes`, which files beside the output take. Refused:
/// no room for one.
pub(super) fn check_disk(
    settings: &Settings,
    loaded: &Loaded,
    spec: &ModelSpec,
    schedule: &Schedule,
    output: &Path,
    taken_bytes: u64,
) -> Result<()> {
    let existing = checkpoints::list(output)?.len() as u64;
    let (steps, per_epoch) = (schedule.total_steps(), schedule.steps_per_epoch());
    let plan = DiskPlan::new(settings, spec, loaded.checkpoint.dir(), steps, per_epoch, existing);
    let Some(free) = disk::free_bytes(output).map(|free| free.saturating_sub(taken_bytes)) else { return Ok(()) };
    let warning = plan.check(free, output)?;
    status!("disk: {} a checkpoint, {} free", format_bytes(plan.checkpoint_bytes), format_bytes(free));
    if let Some(warning) = warning {
        warning!("{warning}");
    }
    Ok(())
}

pub(super) fn print_run(
    settings: &Settings,
    loaded: &Loaded,
    spec: &ModelSpec,
    plan: &MemoryPlan,
    schedule: &Schedule,
) {
    let checkpoint = &loaded.checkpoint;
    let (base, parameters) = (checkpoint.base_name(), loaded.parameters());
    let revision = base.revision.as_ref().map_or(String::new(), |revision| format!(" at revision {revision}"));
    status!(
        "base: {}{revision} ({}); quantization: {}",
        base.name,
        checkpoint.dir().display(),
        base_quantization(settings, checkpoint)
    );
    let trainable = spec.trained_parameters();
    status!("{}", trainable_line(trainable, parameters.saturating_add(trainable)));
    if !spec.lora.is_uniform() {
        status!(
            "ranks or alphas differ (rank_pattern, alpha_pattern): PEFT and llama.cpp take them, vLLM and SGLang serve one \
             of each; `qlora-train export uniform` writes such an adapter"
        );
    }
    if spec.lora.is_dora() {
        // Each layer with magnitudes is computed once more in the backward pass.
        let more: f64 = spec
            .lora
            .terms
            .iter()
            .filter(|(_, term)| term.kind == LoraKind::Dora)
            .filter_map(|(module, term)| {
                let (n, k) = spec.arch.find(module)?.1.shape(&spec.arch);
                Some(2.0 * (spec.tokens * (n * k + n * term.r)) as f64)
            })
            .sum();
        status!(
            "DoRA: linear layers are computed once more in the backward pass, {:.0} % more work, and the norms of their rows \
             after each step; vLLM, SGLang and llama.cpp serve it merged only",
            100.0 * more / (plan.flops - more).max(1.0)
        );
    }
    if let Some(adalora) = &spec.lora.adalora {
        let last = adalora.last_cut().unwrap_or_default();
        let first = (adalora.tinit / adalora.delta_t + 1).saturating_mul(adalora.delta_t).min(last);
        status!(
            "AdaLoRA: ranks are cut by their importance from step {first} to step {last}, until {} of each linear layer are \
             left on the mean; importance takes {} of host memory; the adapter is written as plain LoRA",
            adalora.target_r,
            format_bytes(spec.lora.rank_bytes(&spec.arch))
        );
    }
    if spec.lora.init.changes_base() {
        status!(
            "the adapters begin with directions of the weights (init_lora_weights) and train on a base less these; the adapter \
             is written for the base as it is, of twice the rank{}",
            match spec.quantization {
                Quantization::None => "",
                _ => ": loaded on that in NF4, it answers as trained but for the rounding of the weights",
            }
        );
    }
    if !spec.lora.whole.is_empty() {
        status!(
            "trained whole beside the adapters: {}; in f32, with a gradient and optimizer states as large as they are. The \
             adapter holds all of them; vLLM, SGLang and llama.cpp serve it merged only",
            spec.lora.whole.iter().cloned().collect::<Vec<_>>().join(", ")
        );
    }
    if !spec.lora.tokens.is_empty() {
        let rows =
            |(module, tokens): (&String, &Vec<u32>)| format!("{} of {module}", count(tokens.len() as u64, "row"));
        status!(
            "trained beside the adapters: {} for single tokens (trainable_token_indices); vLLM, SGLang and llama.cpp serve the \
             adapter merged only",
            spec.lora.tokens.iter().map(rows).collect::<Vec<_>>().join(", ")
        );
    }
    let (a, b) = settings.learning_rates_for(parameters);
    let rates =
        if a == b { format!("learning rate: {a:e}") } else { format!("learning rates: {a:e} for A, {b:e} for B") };
    let steps = schedule.total_steps();
    status!("{rates}; {}", count(steps, "step"));
    let warmup = settings.warmup_steps_of(steps as usize);
    if let Some(asked) = settings.warmup_steps.filter(|asked| *asked > warmup as f64 && warmup > 0) {
        warning!(
            "warmup_steps: found {asked}, but the run has {}, so that {warmup} of them warm up",
            count(steps, "step")
        );
    }
    let (planned, limit) = (format_bytes(plan.peak_bytes()), format_bytes(plan.budget.limit));
    let counts = spec.activation_counts();
    let activations = if counts.keep < counts.layers() { format!("; {counts}") } else { String::new() };
    let notes = [spec.tile_note(), spec.weights_note(), spec.head_note(), states_note(spec, plan.budget.limit)];
    let notes: String = notes.iter().flatten().map(|note| format!("; {note}")).collect();
    status!("{}: {planned} planned, {limit} may be used{activations}{notes}", plan.place());
    if !plan.on_host.is_empty() {
        let (all, pinned) = (plan.host_bytes(), plan.pinned_bytes());
        let of_it = if pinned < all { format!("{} of it ", format_bytes(pinned)) } else { String::new() };
        let (all, limit) = (format_bytes(all), format_bytes(plan.host_limit));
        status!("host memory: {all} planned beside the GPU, {of_it}pinned; {limit} may be used");
    }
    for note in plan.sharing_note().into_iter().chain(unpinned_note(plan)) {
        status!("{note}");
    }
    for buffer in plan.buffers.iter().chain(&plan.on_host).chain(&plan.on_disk) {
        detail!("{:>12}  {}", format_bytes(buffer.bytes), buffer.name);
    }
}
