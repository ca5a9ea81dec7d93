//! Several processes of a run: what they must have alike, and what rank 0 gives the others.

use super::identity::{Identity, micro_batches_of_step, result_settings};
use crate::backend::{Backend, OptimizerState};
use crate::bail_usage;
use crate::comm::agreement::agree;
use crate::comm::{Communicator, from_first, is_first};
use crate::config::Settings;
use crate::error::{Context, Result};
use crate::infer::questions::Questions;
use crate::model::Llama;
use crate::report::{status, thousands, warning};
use crate::session::{Device, Loaded};
use serde_json::{Map, Value};
use std::path::Path;

/// Settings that may differ between the ranks: places, whose contents are compared where they count, what only rank 0
/// writes, and how a machine is used.
const OF_A_RANK: [&str; 27] = [
    "model",
    "data",
    "val_data",
    "chat_template",
    "init_adapter",
    "sample_prompts",
    "output_dir",
    "overwrite_output_dir",
    "tokenized_cache",
    "quantized_cache",
    "resume_from_checkpoint",
    "logging_dir",
    "report",
    "report_to",
    "save_total_limit",
    "gradient_checkpointing",
    "scratch_dir",
    "weights",
    "lm_head",
    "optimizer_states",
    "token_tile",
    "cuda_graphs",
    "host_memory",
    "pinned_memory",
    "device_memory",
    "threads",
    "device",
];

/// Refuses ranks that were started with other settings than rank 0.
pub(super) fn check_same_settings(comm: &mut dyn Communicator, settings: &Settings) -> Result<()> {
    agree(comm, "settings", &settings_of_all(settings))
}

/// Settings that all ranks have alike, by their names in backticks.
pub(super) fn settings_of_all(settings: &Settings) -> Map<String, Value> {
    let Value::Object(all) = settings.to_json() else { return Map::new() };
    let of_all = all.into_iter().filter(|(name, _)| !OF_A_RANK.contains(&name.as_str()));
    of_all.map(|(name, value)| (format!("`{name}`"), value)).collect()
}

/// Name of a part of a run's identity in sentences.
pub(super) fn name_of_part(key: &str) -> String {
    match key {
        "data" | "val_data" | "init_adapter" | "chat_template" => format!("the contents of `{key}`"),
        "base_config" => "the model's config.json".to_owned(),
        "tokenizer" => "the model's tokenizer.json".to_owned(),
        "tokens" => "the tokens of its rows".to_owned(),
        "sums" => "how gradients are added up".to_owned(),
        _ => key.replace('_', " "),
    }
}

/// Name in sentences of what is asked of the model in a run, for samples and validation
pub(super) const ASKED: &str = "what is asked while it trains";
/// Name in sentences of the choice between CPU and GPU
pub(super) const KIND_OF_DEVICE: &str = "the kind of device";

pub(super) fn kind_of_device(device: &Device) -> &'static str {
    if device.is_cpu() { "cpu" } else { "cuda" }
}

/// Refuses ranks whose run would be another one than that of rank 0: its data, tokenizer, base or arithmetic differ.
pub(super) fn check_same_run(
    comm: &mut dyn Communicator,
    identity: &Identity,
    questions: &Questions,
    device: &Device,
) -> Result<()> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    let mut values = Map::new();
    let whole = serde_json::to_value(identity).context(|| "the run's identity".to_owned())?;
    for (key, value) in whole.as_object().into_iter().flatten() {
        match value {
            Value::Object(settings) if key == "settings" => {
                values.extend(settings.iter().map(|(name, value)| (format!("`{name}`"), value.clone())));
            }
            _ => {
                values.insert(name_of_part(key), value.clone());
            }
        }
    }
    values.insert(ASKED.to_owned(), questions.hash().into());
    values.insert(KIND_OF_DEVICE.to_owned(), kind_of_device(device).into());
    agree(comm, "run", &values)
}

/// Does `work` on the first process of each machine, and then on the others, which find what it has left.
pub(super) fn first_of_machine_first(
    comm: &mut dyn Communicator,
    what: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let is_first = comm.on_this_machine().0 == 0;
    let later = if is_first {
        work()?;
        None
    } else {
        Some(work)
    };
    if comm.world_size() > 1 {
        comm.all_gather(what, &[])?;
    }
    later.map_or(Ok(()), |work| work())
}

/// Makes `gradient_accumulation_steps` that of all processes together. Returns what each was asked for.
pub(super) fn share_step(
    comm: &mut dyn Communicator,
    settings: &mut Settings,
    output: &Path,
    loaded: &Loaded,
    device: &Device,
) -> Result<usize> {
    let (asked, processes) = (settings.gradient_accumulation_steps, comm.world_size());
    let result_settings = result_settings(settings, loaded, device.arithmetic());
    let of_step = || Ok(micro_batches_of_step(settings, output, &result_settings, processes));
    let all = from_first(comm, "micro-batches", of_step)?;
    settings.gradient_accumulation_steps = all;
    let of_all = if all == 1 { "1 micro-batch".to_owned() } else { format!("{} micro-batches", thousands(all as u64)) };
    if all != asked.saturating_mul(processes) {
        status!(
            "gradient_accumulation_steps: a step keeps the {of_all} that the run began with, in {processes} process{} now",
            if processes == 1 { "" } else { "es" }
        );
    } else if processes > 1 {
        status!("{processes} processes: a step has {of_all} of all of them ({asked} of each)");
    }
    if all < processes {
        warning!("{} of {processes} processes have nothing to do: a step has {of_all}", processes - all);
    }
    Ok(asked)
}

/// Gives the trainable tensors, optimizer states and what ranks are cut by, as rank 0 restored them, to all ranks. A
/// gradient counts once: it stays with rank 0.
pub(super) fn share_restored<B: Backend>(
    comm: &mut dyn Communicator,
    backend: &mut B,
    model: &mut Llama<B>,
) -> Result<()> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    for (id, param) in model.params_mut() {
        let what = format!("{id}");
        let Some(state) = backend.optimizer_state(param)? else { continue };
        let values = shared(comm, &what, backend.param_values(param)?)?;
        let state = match state {
            OptimizerState::F32 { m, v } => {
                OptimizerState::F32 { m: shared(comm, &what, m)?, v: shared(comm, &what, v)? }
            }
            OptimizerState::Blockwise8 { m, m_absmax, v, v_absmax } => OptimizerState::Blockwise8 {
                m: shared(comm, &what, m)?,
                m_absmax: shared(comm, &what, m_absmax)?,
                v: shared(comm, &what, v)?,
                v_absmax: shared(comm, &what, v_absmax)?,
            },
        };
        if !is_first(comm) {
            backend.restore(param, values, state).context(|| format!("`{id}`, as rank 0 sent it"))?;
        }
        // Rank 0 waits: what arrives before it is asked for lies in memory.
        comm.all_gather("restored", &[])?;
    }
    for (id, part, len, values) in model.rank_values_mut() {
        let what = format!("{id}.{part}");
        let is_there = u8::from(!values.is_empty());
        let is_there = comm.broadcast(&what, if is_first(comm) { vec![is_there] } else { Vec::new() })?;
        if !is_first(comm) {
            *values = if is_there == [1] { vec![0.0; len] } else { Vec::new() };
        }
        *values = shared(comm, &what, std::mem::take(values))?;
        comm.all_gather("restored", &[])?;
    }
    model.refresh(backend)
}

/// Bytes of a tensor that are sent at a time: a message has a largest size
const PIECE: usize = 64 << 20;

/// Rank 0's values in the place of a rank's own.
fn shared<T: bytemuck::Pod>(comm: &mut dyn Communicator, what: &str, mut own: Vec<T>) -> Result<Vec<T>> {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut own);
    for piece in bytes.chunks_mut(PIECE) {
        let given = comm.broadcast(what, if is_first(comm) { piece.to_vec() } else { Vec::new() })?;
        if given.len() != piece.len() {
            bail_usage!("`{what}`: rank 0 sent {} bytes, expected {}", given.len(), piece.len());
        }
        piece.copy_from_slice(&given);
    }
    Ok(own)
}

#[cfg(test)]
mod tests;
