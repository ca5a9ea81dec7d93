//! Advice where a run does not fit: settings that make it fit, and the longest row for which there is memory.

use super::device::{Budget, Device};
use super::plan::{self, MAX_BATCH_TOKENS, MemoryPlan, PlannedJob, TensorStorage, plan};
use super::planner::{Levers, choose, head_note, is_nearer, residencies};
use super::predicted::states_note;
use crate::config::Checkpointing;
use crate::error::Result;
use crate::model::{Activations, ModelSpec};

/// Settings that hold back a run where they are not auto.
const ALL: &str = "gradient_checkpointing, weights, lm_head, optimizer_states and token_tile";

/// A run of training that is asked about, and the memory there is for it.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub device: &'a Device,
    pub spec: &'a ModelSpec,
    pub levers: Levers,
    pub stored: &'a dyn Fn(&str) -> TensorStorage,
    pub budget: Budget,
    /// Rows of a micro-batch
    pub rows: usize,
}

/// Settings that hold back a run which does not fit, each with what auto makes of it; all of them, where one alone does
/// not do. Values do not change.
fn levers_that_fit(run: &Asked) -> Result<Vec<String>> {
    let Asked { device, spec, levers, stored, budget, .. } = *run;
    let Levers { checkpointing, weights, head, states, token_tile } = Levers::AUTO;
    let free = [
        ("gradient_checkpointing", Levers { checkpointing, ..levers }),
        ("weights", Levers { weights, ..levers }),
        ("lm_head", Levers { head, ..levers }),
        ("optimizer_states", Levers { states, ..levers }),
        ("token_tile", Levers { token_tile, ..levers }),
        (ALL, Levers::AUTO),
    ];
    let mut found = Vec::new();
    for (name, freed) in free {
        // All together only if none does alone.
        if freed == levers || (freed == Levers::AUTO && !found.is_empty()) {
            continue;
        }
        let mut spec = spec.clone();
        let plan = choose(device, &mut spec, freed, stored, budget)?;
        if !plan.fits() {
            continue;
        }
        let activations = Some(spec.activation_counts()).filter(|counts| counts.keep < counts.layers());
        let activations = activations.map(|counts| counts.to_string());
        let head = head_note(&spec, stored, &plan)?;
        let states = states_note(&spec, budget.limit);
        let notes = [activations, spec.tile_note(), spec.weights_note(), head, states];
        let notes: Vec<String> = notes.into_iter().flatten().collect();
        let notes = if notes.is_empty() { String::new() } else { format!(": {}", notes.join("; ")) };
        found.push(format!("{name}: auto fits{notes}"));
    }
    Ok(found)
}

/// Changes that would make a run fit that does not: settings, then the longest row, or the memory that is missing for
/// any.
pub fn suggestions(run: &Asked, longest: usize) -> Result<Vec<String>> {
    let Asked { device, spec, levers, stored, budget, rows } = *run;
    let mut found = levers_that_fit(run)?;
    // With those that were just named, more may fit.
    let as_given = if levers == Levers::AUTO { "" } else { "with the settings as they are, " };
    // A row of one token has nothing to predict.
    if longest > 1 {
        found.push(format!("{as_given}max_length: {longest} is the longest that fits"));
        return Ok(found);
    }
    let mut least = ModelSpec { tokens: 2 * rows, positions: 2, ..spec.clone() };
    let least = choose(device, &mut least, levers, stored, budget)?;
    let short = if least.peak_bytes() > budget.limit { device.memory_setting() } else { "host_memory" };
    let missing = plan::shortage(least.missing());
    found.push(format!("{as_given}no length fits: {missing} more {short} at least, or a smaller model, is needed"));
    Ok(found)
}

/// Refuses a run of training that does not fit, with what would make it fit.
pub fn refuse_unless_it_fits(plan: &MemoryPlan, run: &Asked) -> Result<()> {
    if plan.fits() {
        return Ok(());
    }
    let longest = longest_row(run)?;
    let found = suggestions(run, longest)?.join("; ");
    // If no length fits, another length is no help.
    let lower = match (longest > 1, run.rows > 1) {
        (true, _) => "Lower max_length or per_device_train_batch_size, leave",
        (false, true) => "Lower per_device_train_batch_size, leave",
        (false, false) => "Leave",
    };
    let advice = format!("{lower} {ALL} at auto ({found})");
    plan::refuse_unless_it_fits(plan, run.spec.tokens, &advice)
}

/// The longest row that fits, as many to a micro-batch as the run takes; 0 if none does. One token more does not fit in
/// the way to hold things that has least on the device, nor in others that have more room on the host; a length some
/// percent beyond may: gaps between buffers come and go as these grow.
pub fn longest_row(run: &Asked) -> Result<usize> {
    let Asked { device, spec, levers, stored, budget, rows } = *run;
    let layers = spec.arch.num_layers;
    let end = spec.arch.max_position_embeddings.min(MAX_BATCH_TOKENS / rows.max(1));
    let (activations, _) = levers.activations(device);
    let keep: &[Activations] = if levers.checkpointing == Checkpointing::Auto { &[Activations::Keep] } else { &[] };
    // The shortest tile takes least memory for a long row, and none for a short one.
    let mut tiles = levers.tiles(usize::MAX);
    tiles.drain(1..tiles.len().saturating_sub(1).max(1));
    let mut longest = 0;
    let all: Vec<&Activations> = keep.iter().chain(activations).chain(levers.last_resort()).rev().collect();
    // Ways to hold things that the device has no room for at a token more, while the host has.
    let mut too_large: Vec<(ModelSpec, Activations)> = Vec::new();
    let (places, states) = (residencies(device, spec, levers, stored)?, levers.states(device)?);
    let places = places.iter().rev().flat_map(|place| states.iter().rev().map(move |&on_host| (place, on_host)));
    for (residency, optimizer_on_host) in places {
        for (others, &token_tile) in all.iter().flat_map(|&others| {
            let each = move |tile| (others, tile);
            tiles.iter().rev().map(each)
        }) {
            let (activations, residency) = (others.keeping(0, layers), residency.clone());
            let way = ModelSpec { activations, residency, optimizer_on_host, token_tile, ..spec.clone() };
            let takes_more = |(other, theirs): &(ModelSpec, Activations)| {
                // Few states take less than the pieces that they would come in.
                let (here, there) = (way.paging(), other.paging());
                let before = here.map_or(0, |paging| paging.bytes);
                let are_many = there.is_none_or(|paging| paging.bytes > before + 4 * paging.piece as u64);
                let is_nearer = is_nearer(&way, other) && (are_many || here == there);
                is_nearer && on_device(*others) >= on_device(*theirs)
            };
            if too_large.iter().any(takes_more) {
                continue;
            }
            let mut is_host_short = false;
            let mut room = |length: usize| -> Result<i128> {
                let spec = ModelSpec { tokens: length * rows, positions: length, ..way.clone() };
                let plan = plan(device, &spec, stored, PlannedJob::Train, budget)?;
                is_host_short |= plan.host_bytes() > plan.host_limit;
                Ok(plan.room())
            };
            // Another way to hold things is of use if one token more fits.
            longest = last_with_room(longest, end, &mut room)?;
            if longest == end {
                return Ok(end);
            }
            if !is_host_short {
                too_large.push((way, *others));
            }
        }
    }
    Ok(longest)
}

/// Order of a layer's choices: by the share of its activations that the device holds.
fn on_device(activations: Activations) -> u8 {
    match activations {
        Activations::Keep => 2,
        Activations::Recompute => 1,
        Activations::Offload | Activations::Disk => 0,
    }
}

/// The last of `found..=end` that has room, which falls as the length grows; `found` if none beyond it has. Room falls
/// nearly in a line, so that the next guess is where the line through the two nearest ends; every third one halves.
fn last_with_room(mut found: usize, end: usize, room: &mut impl FnMut(usize) -> Result<i128>) -> Result<usize> {
    let mut beyond = end.max(found) + 1;
    let (mut left, mut missing) = (None, None);
    let mut next = found + 1;
    for tries in 0.. {
        if beyond - found == 1 {
            break;
        }
        match room(next)? {
            bytes if bytes >= 0 => (found, left) = (next, Some(bytes)),
            bytes => (beyond, missing) = (next, Some(bytes)),
        }
        let between = beyond - found;
        let step = match (left, missing) {
            (Some(left), Some(missing)) if tries % 3 != 2 => (left * between as i128 / (left - missing)) as usize,
            // The first line is from one end to the other.
            (_, None) if tries == 0 => between - 1,
            _ => between / 2,
        };
        next = found + step.clamp(1, (between - 1).max(1));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
