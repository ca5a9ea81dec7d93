//! Advice where a run does not fit: settings that make it fit, and the longest row for which there is memory.

use super::device::{Budget, Device};
use super::plan::{self, MAX_BATCH_TOKENS, MemoryPlan, PlannedJob, StoredAs, plan};
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
    pub stored: &'a dyn Fn(&str) -> StoredAs,
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

/// What would make a run fit that does not: settings, then the longest row, or how much memory is missing for any.
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
    // Where no length fits, another length is no help.
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
    // Ways to hold things that the device has no room for at a token more, while the host has.
    let mut too_large: Vec<(ModelSpec, Activations)> = Vec::new();
    let (places, states) = (residencies(device, spec, levers, stored)?, levers.states(device)?);
    let places = places.iter().rev().flat_map(|place| states.iter().rev().map(move |&on_host| (place, on_host)));
    for (residency, states_on_host) in places {
        for (others, &token_tile) in keep.iter().chain(activations).rev().flat_map(|others| {
            let each = move |tile| (others, tile);
            tiles.iter().rev().map(each)
        }) {
            let (activations, residency) = (others.keeping(0, layers), residency.clone());
            let way = ModelSpec { activations, residency, states_on_host, token_tile, ..spec.clone() };
            let takes_more = |(other, theirs): &(ModelSpec, Activations)| {
                // Few states take less than the pieces that they would come in.
                let are_many = other.paged_states().is_none_or(|(bytes, piece)| bytes > 4 * piece as u64);
                let is_nearer = is_nearer(&way, other) && (way.states_on_host || are_many);
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

/// How much of a layer's activations the device has: the order of what layers may do.
fn on_device(activations: Activations) -> u8 {
    match activations {
        Activations::Keep => 2,
        Activations::Recompute => 1,
        Activations::Offload => 0,
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
mod tests {
    use super::*;
    use crate::arch::{Arch, Projection};
    use crate::backend::{Quantization, StateFormat};
    use crate::base::synthetic::tiny_arch;
    use crate::config::{HeadResidency, StateResidency, TokenTile, WeightResidency};
    use crate::files::tensor::StoredType;
    use crate::lora::LoraSpec;
    use proptest::prelude::*;

    /// Pieces that few states come in take more of the device than these.
    #[test]
    fn few_states_on_the_device_leave_room_for_longer_rows() {
        let device = Device::unopened(0);
        let arch = Arch { num_layers: 9, head_dim: 64, ..tiny_arch() };
        let mut spec = ModelSpec {
            lora: LoraSpec::uniform(&arch, &[Projection::Q, Projection::K], 1, 1.0, 0.0),
            arch,
            quantization: Quantization::Nf4 { block_size: 64, double_quant: true },
            trainable: true,
            states: StateFormat::F32,
            activations: Vec::new(),
            states_on_host: false,
            residency: Vec::new(),
            token_tile: None,
            tokens: 100,
            positions: 100,
            prompts: Default::default(),
            seed: 0,
        };
        let stored = |_: &str| StoredAs { dtype: StoredType::Bf16, held: None };
        let budget =
            |limit| Budget { limit, in_use: 0, in_use_name: "", read_bytes: 0, host_limit: u64::MAX, sharers: 1 };
        let levers = |states| {
            let (checkpointing, weights) = (Checkpointing::On, WeightResidency::Resident);
            Levers { checkpointing, weights, head: HeadResidency::Resident, states, token_tile: TokenTile::Off }
        };
        let waiting = choose(&device, &mut spec, levers(StateResidency::Host), &stored, budget(0)).unwrap();
        let limit = budget(waiting.peak_bytes());
        let longest = |states| {
            let (device, spec, levers, stored) = (&device, &spec, levers(states), &stored);
            longest_row(&Asked { device, spec, levers, stored, budget: limit, rows: 1 }).unwrap()
        };
        let [host, resident, auto] =
            [StateResidency::Host, StateResidency::Resident, StateResidency::Auto].map(longest);
        assert!(host < resident && host < auto && auto < 256, "{host} {resident} {auto}");
    }

    /// The answer, and how often room was asked for.
    fn search(found: usize, end: usize, room: impl Fn(usize) -> i128) -> (usize, usize) {
        let mut tries = 0;
        let mut counted = |length| {
            tries += 1;
            Ok(room(length))
        };
        (last_with_room(found, end, &mut counted).unwrap(), tries)
    }

    #[test]
    fn a_line_is_followed_to_its_end() {
        let line = |length: usize| 44_400_000_000 - 241_731 * length as i128;
        let (longest, tries) = search(0, 1 << 20, line);
        assert_eq!(longest, 44_400_000_000 / 241_731);
        assert!(tries <= 6, "{tries}");
        assert_eq!(search(longest, 1 << 20, line), (longest, 1), "nothing beyond it fits");
        assert_eq!(search(0, 100, line), (100, 2), "all fit");
        assert_eq!(search(0, 100, |_| -1), (0, 1), "none fits");
        assert_eq!(search(0, 0, line), (0, 0), "there is no length");
    }

    proptest! {
        #[test]
        fn the_last_with_room_is_found(
            steps in proptest::collection::vec(0i128..1_000_000, 1..300),
            start in 0i128..150_000_000,
        ) {
            let falling = steps.iter().scan(start, |room, step| {
                *room -= step;
                Some(*room)
            });
            let rooms: Vec<i128> = falling.collect();
            let (found, tries) = search(0, rooms.len(), |length| rooms[length - 1]);
            prop_assert_eq!(found, rooms.iter().take_while(|&&room| room >= 0).count());
            // Halving alone takes 9, and it is every third.
            prop_assert!(tries <= 3 * 9 + 2, "{} tries for {} lengths", tries, rooms.len());
        }
    }
}
