//! The choice of where weights and activations are and how batches are cut: what is predicted to take least time of
//! what fits.

use super::device::{Budget, Device};
use super::plan::{MemoryPlan, PlannedJob, StoredAs, plan};
use super::predicted::Speed;
use crate::backend::{Quantization, Residency};
use crate::config::{Checkpointing, Settings, TokenTile, WeightResidency};
use crate::error::Result;
use crate::model::{Activations, ModelSpec};
use crate::refuse;

/// Tiles that the planner tries, beside all tokens of a batch.
const TILES: [usize; 2] = [4096, 512];

/// Part of a step's time that recomputation is at most.
const RECOMPUTED: f64 = 0.5;

/// Parts that the layers are cut into: the weights of none, of the first and of both are tried in host memory.
const PARTS: usize = 2;

/// Settings that trade memory for time: the values of a run are the same whatever they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levers {
    pub checkpointing: Checkpointing,
    pub weights: WeightResidency,
    pub token_tile: TokenTile,
}

impl Levers {
    pub fn of(settings: &Settings) -> Self {
        let Settings { gradient_checkpointing: checkpointing, weights, token_tile, .. } = *settings;
        Self { checkpointing, weights, token_tile }
    }

    /// Everything left to the planner.
    pub const AUTO: Self =
        Self { checkpointing: Checkpointing::Auto, weights: WeightResidency::Auto, token_tile: TokenTile::Auto };

    /// What layers do that do not keep their activations, and whether some may keep them.
    pub fn activations(self, device: &Device) -> (&'static [Activations], bool) {
        match self.checkpointing {
            Checkpointing::Off => (&[Activations::Keep], false),
            Checkpointing::On => (&[Activations::Recompute], false),
            Checkpointing::Offload => (&[Activations::Offload], false),
            Checkpointing::Auto if device.is_cpu() => (&[Activations::Recompute], true),
            Checkpointing::Auto => (&[Activations::Recompute, Activations::Offload], true),
        }
    }

    /// The largest first.
    pub fn tiles(self, tokens: usize) -> Vec<Option<usize>> {
        match self.token_tile {
            TokenTile::Off => vec![None],
            TokenTile::Tokens(tile) => vec![Some(tile)],
            TokenTile::Auto => {
                let shorter = TILES.into_iter().filter(|&tile| tile < tokens).map(Some);
                std::iter::once(None).chain(shorter).collect()
            }
        }
    }
}

/// Places where each layer's linear weights may be, those that need least room elsewhere first. Refused: a place that
/// the device does not have, and `disk` where the weights cannot stay there.
pub fn residencies(
    device: &Device,
    spec: &ModelSpec,
    weights: WeightResidency,
    stored: &dyn Fn(&str) -> StoredAs,
) -> Result<Vec<Vec<Residency>>> {
    let arch = &spec.arch;
    let layers = arch.num_layers;
    let all = |residency| vec![residency; layers];
    let in_nf4 = |name: &str| matches!(stored(name).held, Some(Quantization::Nf4 { .. }));
    let mut names = (0..layers).flat_map(|layer| arch.names.all().map(move |of| arch.weight_name(layer, of)));
    match (weights, device.is_cpu()) {
        (WeightResidency::Resident, _) => Ok(vec![all(Residency::Device)]),
        (WeightResidency::Host, true) => refuse!(
            "`weights`: found host, expected resident or disk: the CPU computes with weights in the host's memory"
        ),
        (WeightResidency::Host, false) => Ok(vec![all(Residency::Pinned)]),
        (WeightResidency::Disk, false) => refuse!(
            "`weights`: found disk, expected auto, resident or host: a GPU takes the base weights from its own memory or \
             the host's; use `--device cpu` for a model that stays on disk"
        ),
        (WeightResidency::Disk, true) => match names.any(|name| in_nf4(&name)) {
            true => Ok(vec![all(Residency::Disk)]),
            false => refuse!(
                "`weights`: found disk, but the linear weights of the model are not stored in NF4, and others are not \
                 read again and again; write a copy in NF4 with `qlora-train quantize` and train on that, or leave it at \
                 auto"
            ),
        },
        (WeightResidency::Auto, true) => Ok(match names.any(|name| in_nf4(&name)) {
            true => vec![all(Residency::Device), all(Residency::Disk)],
            false => vec![all(Residency::Device)],
        }),
        (WeightResidency::Auto, false) => {
            let of = |pinned: usize| -> Vec<_> {
                let residency = |layer| if layer < pinned { Residency::Pinned } else { Residency::Device };
                (0..layers).map(residency).collect()
            };
            let mut places: Vec<_> = (0..=PARTS).map(|part| of((layers * part).div_ceil(PARTS))).collect();
            places.dedup();
            Ok(places)
        }
    }
}

/// The first of `residencies` whose plan fits, set in `spec`; else the last of them, which takes least.
pub fn first_that_fits(
    spec: &mut ModelSpec,
    residencies: &[Vec<Residency>],
    mut plan: impl FnMut(&mut ModelSpec) -> Result<MemoryPlan>,
) -> Result<MemoryPlan> {
    let mut last = None;
    for residency in residencies {
        spec.residency.clone_from(residency);
        let planned = plan(spec)?;
        if planned.fits() {
            return Ok(planned);
        }
        last = Some(planned);
    }
    Ok(last.expect("weights have a place"))
}

/// A plan with the spec that it is of.
struct Candidate {
    spec: ModelSpec,
    plan: MemoryPlan,
    /// Predicted
    seconds: f64,
}

/// Plans of training, with everything but the levers settled.
struct Search<'a> {
    device: &'a Device,
    stored: &'a dyn Fn(&str) -> StoredAs,
    budget: Budget,
    speed: Speed,
}

impl Search<'_> {
    fn plan(&self, spec: ModelSpec) -> Result<Candidate> {
        let plan = plan(self.device, &spec, self.stored, PlannedJob::Train, self.budget)?;
        let seconds = self.speed.step_seconds(&spec, &plan);
        Ok(Candidate { spec, plan, seconds })
    }

    /// `base` with the last `kept` layers keeping their activations.
    fn keeping(&self, base: &ModelSpec, others: Activations, kept: usize) -> Result<Candidate> {
        let activations = others.keeping(kept, base.arch.num_layers);
        self.plan(ModelSpec { activations, ..base.clone() })
    }

    /// `none` with as many layers keeping their activations as fit. A layer more takes more memory.
    fn keep_most(&self, none: Candidate, others: Activations) -> Result<Candidate> {
        /// Neighbors of the guess that are tried before halving.
        const NEIGHBORS: usize = 3;
        let layers = none.spec.arch.num_layers;
        let mut next = most_kept(&none);
        let (mut fitting, mut kept, mut beyond) = (none, 0, layers + 1);
        for tries in 0.. {
            if beyond - kept == 1 {
                break;
            }
            let tried = if tries > NEIGHBORS { kept + (beyond - kept) / 2 } else { next.clamp(kept + 1, beyond - 1) };
            let candidate = self.keeping(&fitting.spec, others, tried)?;
            if candidate.plan.fits() {
                (fitting, kept, next) = (candidate, tried, tried + 1);
            } else {
                (beyond, next) = (tried, tried - 1);
            }
        }
        Ok(fitting)
    }
}

/// A guess at how many layers may keep their activations where none does so: hardly ever too low.
fn most_kept(none: &Candidate) -> usize {
    let room = none.plan.budget.limit.saturating_sub(none.plan.peak_bytes());
    (room / kept_bytes(&none.spec).max(1) + 1).min(none.spec.arch.num_layers as u64) as usize
}

/// Bytes that a layer keeps at least where it keeps its activations, beside its input.
fn kept_bytes(spec: &ModelSpec) -> u64 {
    let arch = &spec.arch;
    let heads = arch.num_heads * arch.head_dim;
    let qkv = heads + 2 * arch.num_kv_heads * arch.head_dim;
    // q‖k‖v, attention's output, the residual stream, gate and up, in 16 bits.
    2 * (spec.tokens * (qkv + heads + arch.hidden_size + 2 * arch.intermediate_size)) as u64
}

/// Settles where weights are, what every layer's activations do and how batches are cut: what is predicted to take
/// least time of what fits, unless the settings say otherwise; where nothing fits, what takes least memory. More memory
/// never makes a run slower by the prediction: it leaves more to choose from.
pub fn choose(
    device: &Device,
    spec: &mut ModelSpec,
    levers: Levers,
    stored: &dyn Fn(&str) -> StoredAs,
    budget: Budget,
) -> Result<MemoryPlan> {
    let search = Search { device, stored, budget, speed: Speed::of(device) };
    let (activations, may_keep) = levers.activations(device);
    let mut best: Option<Candidate> = None;
    let mut least: Option<Candidate> = None;
    let places = residencies(device, spec, levers.weights, stored)?;
    if may_keep {
        // Nothing is faster.
        let (residency, token_tile) = (places[0].clone(), levers.tiles(spec.tokens)[0]);
        let base = ModelSpec { residency, token_tile, ..spec.clone() };
        let all = search.keeping(&base, Activations::Keep, 0)?;
        if all.plan.fits() {
            *spec = all.spec;
            return Ok(all.plan);
        }
    }
    for residency in places {
        let mut candidates = Vec::new();
        for token_tile in levers.tiles(spec.tokens) {
            for &others in activations {
                let base = ModelSpec { residency: residency.clone(), token_tile, ..spec.clone() };
                let none = search.keeping(&base, others, 0)?;
                if none.plan.fits() {
                    candidates.push((none, others));
                } else if least.as_ref().is_none_or(|least| none.plan.missing() < least.plan.missing()) {
                    least = Some(none);
                }
            }
        }
        for (none, others) in candidates {
            // Layers that keep their activations save a part of their time.
            let kept = (most_kept(&none) + 2).min(none.spec.arch.num_layers) as f64;
            let saved = if may_keep { RECOMPUTED * kept / none.spec.arch.num_layers as f64 } else { 0.0 };
            let is_better = |seconds: f64| best.as_ref().is_none_or(|best| seconds < best.seconds);
            if !is_better(none.seconds * (1.0 - saved)) {
                continue;
            }
            let found = if may_keep { search.keep_most(none, others)? } else { none };
            if is_better(found.seconds) {
                best = Some(found);
            }
        }
        // On the CPU weights leave memory only where they must.
        if device.is_cpu() && best.is_some() {
            break;
        }
    }
    let Candidate { spec: chosen, plan, .. } = best.or(least).expect("at least one was tried");
    *spec = chosen;
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;
    use crate::arch::Projection;
    use crate::backend::StateFormat;
    use crate::backend::cpu::Precision;
    use crate::base::synthetic::tiny_arch;
    use crate::files::tensor::StoredType;
    use crate::lora::LoraSpec;
    use crate::session::advice::{Asked, longest_row};
    use crate::session::plan::refuse_unless_it_fits;

    const LAYERS: usize = 9;

    fn spec() -> ModelSpec {
        let config = Arch { num_layers: LAYERS, ..tiny_arch() };
        ModelSpec {
            lora: LoraSpec::uniform(&config, &Projection::ALL, 4, 4.0, 0.0),
            arch: config,
            quantization: Quantization::Nf4 { block_size: 64, double_quant: true },
            trainable: true,
            states: StateFormat::F32,
            activations: Vec::new(),
            residency: Vec::new(),
            token_tile: None,
            tokens: 500,
            positions: 500,
            prompts: Default::default(),
            seed: 0,
        }
    }

    fn stored(_name: &str) -> StoredAs {
        StoredAs { dtype: StoredType::Bf16, held: None }
    }

    fn budget(limit: u64) -> Budget {
        Budget { limit, in_use: 0, in_use_name: "", read_bytes: 0, host_limit: u64::MAX, sharers: 1 }
    }

    fn bytes(activations: Activations, kept: usize) -> u64 {
        let spec = ModelSpec { activations: activations.keeping(kept, LAYERS), ..spec() };
        plan(&Device::Cpu(Precision::F32), &spec, &stored, PlannedJob::Train, budget(u64::MAX)).unwrap().peak_bytes()
    }

    fn stored_in_nf4(_name: &str) -> StoredAs {
        let held = Quantization::Nf4 { block_size: 64, double_quant: true };
        StoredAs { dtype: StoredType::Bf16, held: Some(held) }
    }

    /// Weights are left on disk where there is not the memory for them, and only there.
    #[test]
    fn weights_stay_on_disk_where_they_do_not_fit() {
        let device = Device::Cpu(Precision::F32);
        let at = |weights, limit| {
            let mut spec = spec();
            let levers = Levers { weights, ..Levers::AUTO };
            let plan = choose(&device, &mut spec, levers, &stored_in_nf4, budget(limit)).unwrap();
            (spec.is_streamed(), plan.fits(), plan.peak_bytes())
        };
        let (_, _, resident) = at(WeightResidency::Resident, 0);
        let (streamed, _, disk) = at(WeightResidency::Disk, 0);
        assert!(streamed && disk < resident, "{disk} {resident}");
        for (limit, expected) in [(u64::MAX, false), (resident, false), (resident - 1, true), (disk, true)] {
            let (streamed, fits, peak) = at(WeightResidency::Auto, limit);
            assert!(fits && streamed == expected && peak <= limit, "{limit}: {streamed} {fits} {peak}");
        }
        assert!(!at(WeightResidency::Auto, disk - 1).1);
        assert!(!at(WeightResidency::Resident, resident - 1).1);
        let levers = |weights| Levers { weights, ..Levers::AUTO };
        let mut short = ModelSpec { tokens: 200, positions: 200, ..spec() };
        let least = choose(&device, &mut short, levers(WeightResidency::Disk), &stored_in_nf4, budget(0)).unwrap();
        let limit = budget(least.peak_bytes());
        let longest = |weights| {
            let (device, spec, levers) = (&device, &short, levers(weights));
            longest_row(&Asked { device, spec, levers, stored: &stored_in_nf4, budget: limit, rows: 1 }).unwrap()
        };
        assert_eq!(longest(WeightResidency::Auto), 200);
        assert!(longest(WeightResidency::Resident) < 200);
        let weights = WeightResidency::Disk;
        let refused = residencies(&device, &spec(), weights, &stored).unwrap_err().to_string();
        assert!(refused.contains("quantize"), "{refused}");
        let refused = residencies(&Device::unopened(0), &spec(), weights, &stored_in_nf4).unwrap_err().to_string();
        assert!(refused.contains("GPU"), "{refused}");
    }

    /// The peak is that of reading the rows, where it is the higher one, and then only less to read helps.
    #[test]
    fn reading_counts_where_it_takes_more_than_the_run() {
        let spec = ModelSpec { activations: Activations::Recompute.keeping(0, LAYERS), ..spec() };
        let at = |limit, read_bytes| {
            let budget = Budget { read_bytes, ..budget(limit) };
            plan(&Device::Cpu(Precision::F32), &spec, &stored, PlannedJob::Train, budget).unwrap()
        };
        let run = at(u64::MAX, 0).peak_bytes();
        for (read, peak) in [(0, run), (run, run), (run + 1, run + 1), (3 * run, 3 * run)] {
            let plan = at(u64::MAX, read);
            let sum: u64 = plan.buffers.iter().map(|buffer| buffer.bytes).sum();
            assert_eq!((plan.peak_bytes(), sum), (peak, peak), "{read}");
            assert!(at(peak, read).fits() && !at(peak - 1, read).fits(), "{read}");
        }
        let refused = |limit, read| refuse_unless_it_fits(&at(limit, read), 500, "advice").unwrap_err().to_string();
        let (reading, running) = (refused(2 * run, 3 * run), refused(run - 1, 0));
        assert!(reading.contains("reading the tokenizer and the rows takes"), "{reading}");
        assert!(running.contains("the run needs") && running.contains("advice"), "{running}");
    }

    /// With every amount of memory the planner keeps as many of the last layers as fit, and computes the others again.
    #[test]
    fn as_many_layers_keep_their_activations_as_fit() {
        let (most, least) = (bytes(Activations::Keep, 0), bytes(Activations::Recompute, 0));
        assert!(least < most, "{least} {most}");
        let mut flops = f64::INFINITY;
        for kept in [0, 1, 4, LAYERS - 1, LAYERS] {
            let limit = bytes(Activations::Recompute, kept);
            let mut spec = spec();
            let plan = choose(&Device::Cpu(Precision::F32), &mut spec, Levers::AUTO, &stored, budget(limit)).unwrap();
            let counts = spec.activation_counts();
            assert!(plan.fits() && plan.peak_bytes() == limit && counts.keep >= kept, "{kept}: {counts}");
            assert!(spec.activations[LAYERS - counts.keep..].iter().all(|&layer| layer == Activations::Keep));
            if counts.keep < LAYERS {
                assert!(bytes(Activations::Recompute, counts.keep + 1) > limit, "{counts}");
            }
            assert!(plan.flops < flops || counts.keep == 1, "{kept}: {} {flops}", plan.flops);
            flops = plan.flops;
        }
        let mut spec = spec();
        let refused =
            choose(&Device::Cpu(Precision::F32), &mut spec, Levers::AUTO, &stored, budget(least - 1)).unwrap();
        assert!(!refused.fits() && refused.peak_bytes() == least);
    }

    /// Every budget gets a plan that is within it, or one that does not fit; of two that fit, the one with more memory
    /// is no slower, whichever memory it has more of.
    #[test]
    fn no_plan_exceeds_its_budget_and_more_memory_never_makes_a_run_slower() {
        const STEPS: u64 = 4;
        for (device, tokens) in
            [(Device::Cpu(Precision::F32), 1500), (Device::unopened(0), 700), (Device::unopened(0), 3000)]
        {
            let arch = Arch { head_dim: 64, ..spec().arch };
            let spec = ModelSpec { arch, tokens, positions: tokens, ..spec() };
            let planned = |limit, host_limit| {
                let (mut spec, budget) = (spec.clone(), Budget { host_limit, ..budget(limit) });
                let plan = choose(&device, &mut spec, Levers::AUTO, &stored_in_nf4, budget).unwrap();
                let seconds = Speed::of(&device).step_seconds(&spec, &plan);
                (plan, seconds)
            };
            let (most, least) = (planned(u64::MAX, u64::MAX).0, planned(0, u64::MAX).0);
            assert!(most.fits() && least.peak_bytes() < most.peak_bytes() * 2 / 3);
            let steps = |least: u64, most: u64| (0..=STEPS).map(move |i| least + (most - least) * i / STEPS);
            let limits: Vec<u64> = steps(least.peak_bytes() * 9 / 10, most.peak_bytes()).collect();
            let host_limits: Vec<u64> = steps(most.host_bytes(), least.host_bytes().max(most.host_bytes())).collect();
            let mut fitting = 0;
            let mut shorter_host = vec![f64::INFINITY; limits.len()];
            for &host_limit in &host_limits {
                let mut shorter_device = f64::INFINITY;
                for (&limit, shorter_host) in limits.iter().zip(&mut shorter_host) {
                    let (plan, seconds) = planned(limit, host_limit);
                    if !plan.fits() {
                        assert!(shorter_device.is_infinite() && shorter_host.is_infinite(), "{limit} {host_limit}");
                        continue;
                    }
                    assert!(plan.peak_bytes() <= limit && plan.host_bytes() <= host_limit, "{limit} {host_limit}");
                    assert!(seconds <= shorter_device && seconds <= *shorter_host, "{limit} {host_limit}: {seconds}");
                    (shorter_device, *shorter_host) = (seconds, seconds);
                    fitting += 1;
                }
            }
            assert!(fitting > limits.len() * host_limits.len() / 3, "{fitting}");
        }
    }
}
