//! The choice of where weights and activations are and how batches are cut: what is predicted to take least time of
//! what fits.

use super::device::{Budget, Device};
use super::plan::{MemoryPlan, PlannedJob, StoredAs, plan};
use super::predicted::Speed;
use crate::backend::{Quantization, Residency};
use crate::config::{Checkpointing, HeadResidency, Settings, StateResidency, TokenTile, WeightResidency};
use crate::error::Result;
use crate::files::units::format_bytes;
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
    pub head: HeadResidency,
    pub states: StateResidency,
    pub token_tile: TokenTile,
}

impl Levers {
    pub fn of(settings: &Settings) -> Self {
        let Settings { gradient_checkpointing: checkpointing, weights, lm_head: head, token_tile, .. } = *settings;
        Self { checkpointing, weights, head, states: settings.optimizer_states, token_tile }
    }

    /// Everything left to the planner.
    pub const AUTO: Self = Self {
        checkpointing: Checkpointing::Auto,
        weights: WeightResidency::Auto,
        head: HeadResidency::Auto,
        states: StateResidency::Auto,
        token_tile: TokenTile::Auto,
    };

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

    /// Whether the optimizer's states wait in host memory, what takes least time first. Refused: `host` on the CPU,
    /// which has no other memory.
    pub fn states(self, device: &Device) -> Result<&'static [bool]> {
        match (self.states, device.is_cpu()) {
            (StateResidency::Host, true) => refuse!(
                "`optimizer_states`: found host, expected auto or resident: the CPU updates with states in the host's memory"
            ),
            (StateResidency::Host, false) => Ok(&[true]),
            (StateResidency::Auto, false) => Ok(&[false, true]),
            (StateResidency::Auto | StateResidency::Resident, _) => Ok(&[false]),
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

/// Places where each layer's linear weights and, last, the output layer may be: those that need least room elsewhere
/// first. Refused: a place that the device does not have, and where the weights or the output layer cannot be.
pub fn residencies(
    device: &Device,
    spec: &ModelSpec,
    levers: Levers,
    stored: &dyn Fn(&str) -> StoredAs,
) -> Result<Vec<Vec<Residency>>> {
    let heads = residencies_of_head(device, spec, levers.head)?;
    let layers = residencies_of_layers(device, spec, levers.weights, stored)?;
    let with_head = |layers: Vec<Residency>| heads.iter().map(move |&head| [&layers[..], &[head]].concat());
    Ok(layers.into_iter().flat_map(with_head).collect())
}

fn residencies_of_head(device: &Device, spec: &ModelSpec, head: HeadResidency) -> Result<&'static [Residency]> {
    match (head, device.is_cpu()) {
        (HeadResidency::Host, true) => refuse!(
            "`lm_head`: found host, expected auto or resident: the CPU computes with an output layer in the host's memory"
        ),
        (HeadResidency::Host, false) if !spec.head_may_wait() => refuse!(
            "`lm_head`: found host, expected auto or resident: an output layer of which anything is trained \
             (`modules_to_save`, `trainable_token_indices`) stays on the GPU"
        ),
        (HeadResidency::Host, false) => Ok(&[Residency::Pinned]),
        (HeadResidency::Auto, false) if spec.head_may_wait() => Ok(&[Residency::Device, Residency::Pinned]),
        (HeadResidency::Auto | HeadResidency::Resident, _) => Ok(&[Residency::Device]),
    }
}

fn residencies_of_layers(
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

/// Note for users on an output layer that waits in host memory: what that saves on the device, and what its copies
/// cost.
pub fn head_note(spec: &ModelSpec, stored: &dyn Fn(&str) -> StoredAs, planned: &MemoryPlan) -> Result<Option<String>> {
    if !spec.head_waits() {
        return Ok(None);
    }
    let (device, mut other) = (&planned.device, spec.clone());
    other.residency.truncate(spec.arch.num_layers);
    let resident = plan(device, &other, stored, PlannedJob::Train, planned.budget)?;
    let speed = Speed::of(device);
    let time = speed.step_seconds(spec, planned) / speed.step_seconds(&other, &resident) - 1.0;
    let saved = resident.peak_bytes().saturating_sub(planned.peak_bytes());
    Ok(Some(format!("lm_head: host (−{}, +{:.1}% time)", format_bytes(saved), 100.0 * time)))
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

    /// `fitting`, whose last `kept` layers keep their activations, with as many that do so as fit, and their number. A
    /// layer more takes more memory.
    fn keep_most(&self, mut fitting: Candidate, others: Activations, mut kept: usize) -> Result<(Candidate, usize)> {
        /// Neighbors of the guess that are tried before halving.
        const NEIGHBORS: usize = 3;
        let mut next = most_kept(&fitting, kept);
        let mut beyond = fitting.spec.arch.num_layers + 1;
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
        Ok((fitting, kept))
    }

    /// Seconds that a step takes at least when more layers than the last `kept` of this plan keep their activations:
    /// they save a part of their time, and inputs that wait in host memory are not copied.
    fn least_seconds(&self, from: &Candidate, kept: usize) -> f64 {
        let layers = from.spec.arch.num_layers;
        let activations = Activations::Recompute.keeping(kept, layers);
        let seconds = self.speed.step_seconds(&ModelSpec { activations, ..from.spec.clone() }, &from.plan);
        let more = (most_kept(from, kept) + 2).min(layers) - kept;
        seconds * (1.0 - RECOMPUTED * more as f64 / layers as f64)
    }
}

/// A guess at how many layers may keep their activations where the last `kept` do so: hardly ever too low.
fn most_kept(from: &Candidate, kept: usize) -> usize {
    let room = from.plan.budget.limit.saturating_sub(from.plan.peak_bytes());
    (kept as u64 + room / kept_bytes(&from.spec).max(1) + 1).min(from.spec.arch.num_layers as u64) as usize
}

/// Whether `other` has all that `one` has in host memory there too, and cuts batches alike: then `one` is no slower,
/// as long as the same layers keep their activations.
pub fn is_nearer(one: &ModelSpec, other: &ModelSpec) -> bool {
    let mut places = one.residency.iter().zip(&other.residency);
    one.token_tile == other.token_tile
        && (other.states_on_host || !one.states_on_host)
        && places.all(|(here, there)| *here == Residency::Device || here == there)
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
    let (places, states) = (residencies(device, spec, levers, stored)?, levers.states(device)?);
    if may_keep {
        // Nothing is faster.
        let (residency, token_tile) = (places[0].clone(), levers.tiles(spec.tokens)[0]);
        let base = ModelSpec { residency, token_tile, states_on_host: states[0], ..spec.clone() };
        let all = search.keeping(&base, Activations::Keep, 0)?;
        if all.plan.fits() {
            *spec = all.spec;
            return Ok(all.plan);
        }
    }
    let most = if may_keep { spec.arch.num_layers } else { 0 };
    // What fits, with what layers do, and how many keep their activations.
    let mut searched: Vec<(ModelSpec, Activations, usize)> = Vec::new();
    for residency in places {
        for token_tile in levers.tiles(spec.tokens) {
            let all = activations.iter().flat_map(|&others| states.iter().map(move |&on_host| (others, on_host)));
            for (others, states_on_host) in all {
                let base = ModelSpec { residency: residency.clone(), token_tile, states_on_host, ..spec.clone() };
                // More in host memory is of use only where more layers keep their activations.
                let nearer = searched.iter().filter(|(one, of, _)| *of == others && is_nearer(one, &base));
                let kept = nearer.map(|(.., kept)| kept + 1).max().unwrap_or(0);
                if kept > most {
                    continue;
                }
                let start = search.keeping(&base, others, kept)?;
                if !start.plan.fits() {
                    if least.as_ref().is_none_or(|least| start.plan.missing() < least.plan.missing()) {
                        least = Some(start);
                    }
                    continue;
                }
                let is_better = |seconds: f64| best.as_ref().is_none_or(|best| seconds < best.seconds);
                if may_keep && !is_better(search.least_seconds(&start, kept)) {
                    continue;
                }
                let (found, kept) = if may_keep { search.keep_most(start, others, kept)? } else { (start, kept) };
                if is_better(found.seconds) {
                    best = Some(found);
                }
                searched.push((base, others, kept));
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
    use crate::session::predicted::states_note;

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
            states_on_host: false,
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
        let disk = levers(WeightResidency::Disk);
        let refused = residencies(&device, &spec(), disk, &stored).unwrap_err().to_string();
        assert!(refused.contains("quantize"), "{refused}");
        let refused = residencies(&Device::unopened(0), &spec(), disk, &stored_in_nf4).unwrap_err().to_string();
        assert!(refused.contains("GPU"), "{refused}");
    }

    /// An output layer that is large beside what layers need waits where it does not fit, and costs its copy.
    #[test]
    fn an_output_layer_waits_in_host_memory_where_it_does_not_fit() {
        let device = Device::unopened(0);
        let arch = Arch { head_dim: 64, vocab_size: 4096, ..spec().arch };
        // Tokens that need as much in a layer as the output layer has.
        let spec = ModelSpec { arch, tokens: 3000, positions: 3000, ..spec() };
        let at = |head, limit| {
            let mut spec = spec.clone();
            let (checkpointing, weights) = (Checkpointing::On, WeightResidency::Resident);
            let states = StateResidency::Resident;
            let levers = Levers { checkpointing, weights, head, states, token_tile: TokenTile::Off };
            let plan = choose(&device, &mut spec, levers, &stored, budget(limit)).unwrap();
            (Speed::of(&device).step_seconds(&spec, &plan), spec, plan)
        };
        let [resident, host] = [HeadResidency::Resident, HeadResidency::Host].map(|head| at(head, 0));
        let (peak, least) = (resident.2.peak_bytes(), host.2.peak_bytes());
        assert!(!resident.1.head_waits() && host.1.head_waits() && least < peak, "{least} {peak}");
        // The device has them only while the loss is computed.
        let bytes = (2 * spec.arch.vocab_size * spec.arch.hidden_size) as u64;
        assert_eq!((resident.2.weights_on_host, host.2.weights_on_host), (0, bytes));
        assert!((host.0 - resident.0 - bytes as f64 / 16e9).abs() < 1e-9, "{} {}", host.0, resident.0);
        for (limit, waits) in [(u64::MAX, false), (peak, false), (peak - 1, true), (least, true)] {
            let (_, spec, plan) = at(HeadResidency::Auto, limit);
            assert!(plan.fits() && spec.head_waits() == waits, "{limit} of {peak} and {least}");
            assert_eq!(head_note(&spec, &stored, &plan).unwrap().is_some(), waits);
        }
        assert!(!at(HeadResidency::Auto, least - 1).2.fits() && !at(HeadResidency::Resident, peak - 1).2.fits());
        let note = head_note(&host.1, &stored, &host.2).unwrap().unwrap();
        let saved = format!("lm_head: host (−{}, +", format_bytes(peak - least));
        assert!(note.starts_with(&saved) && note.ends_with("% time)"), "{note}");
        // The embedding's rows are where they are in either case.
        let arch = Arch { tie_word_embeddings: true, ..spec.arch.clone() };
        let tied = ModelSpec { arch, ..spec.clone() };
        let levers = |head| Levers { head, ..Levers::AUTO };
        let [resident, host] = [HeadResidency::Resident, HeadResidency::Host].map(|head| {
            let mut spec = tied.clone();
            choose(&device, &mut spec, levers(head), &stored, budget(u64::MAX)).unwrap()
        });
        assert_eq!((host.host_bytes() - resident.host_bytes(), host.weights_on_host), (bytes, 0));
        // What is trained stays.
        let refused = |device: &Device, spec: &ModelSpec| {
            residencies(device, spec, levers(HeadResidency::Host), &stored).unwrap_err().to_string()
        };
        for module in ["lm_head", "model.embed_tokens"] {
            for is_whole in [true, false] {
                let mut trained = tied.clone();
                match is_whole {
                    true => _ = trained.lora.whole.insert(module.to_owned()),
                    false => _ = trained.lora.tokens.insert(module.to_owned(), vec![3, 5]),
                }
                let places = residencies(&device, &trained, Levers::AUTO, &stored).unwrap();
                assert!(places.iter().all(|place| place.last() == Some(&Residency::Device)), "{module}");
                assert!(refused(&device, &trained).contains("`modules_to_save`"), "{module}");
            }
        }
        assert!(refused(&Device::Cpu(Precision::F32), &spec).contains("the CPU computes"));
    }

    /// What is left out of the search would be no faster, whichever levers are set.
    #[test]
    fn the_fastest_of_all_that_fits_is_found() {
        const LAYERS: usize = 5;
        let device = Device::unopened(0);
        let arch = Arch { num_layers: LAYERS, hidden_size: 512, intermediate_size: 1792, ..spec().arch };
        let arch = Arch { num_heads: 8, num_kv_heads: 2, head_dim: 64, vocab_size: 128_000, ..arch };
        let lora = LoraSpec::uniform(&arch, &Projection::ALL, 64, 64.0, 0.0);
        let spec = ModelSpec { arch, lora, tokens: 6144, positions: 6144, ..spec() };
        let what = [false, true].map(|on_host| [Activations::Recompute, Activations::Offload].map(|of| (of, on_host)));
        for head in [HeadResidency::Auto, HeadResidency::Host] {
            let levers = Levers { head, ..Levers::AUTO };
            let (mut all, mut limits) = (Vec::new(), Vec::new());
            let places = residencies(&device, &spec, levers, &stored).unwrap();
            let tiles = levers.tiles(spec.tokens);
            for (residency, token_tile) in places.iter().flat_map(|place| tiles.iter().map(move |&tile| (place, tile)))
            {
                for &(others, states_on_host) in what.as_flattened() {
                    // A layer more takes more memory.
                    let mut bytes = 0;
                    for kept in 0..=LAYERS {
                        let (residency, activations) = (residency.clone(), others.keeping(kept, LAYERS));
                        let spec = ModelSpec { residency, activations, states_on_host, token_tile, ..spec.clone() };
                        let plan = plan(&device, &spec, &stored, PlannedJob::Train, budget(u64::MAX)).unwrap();
                        bytes = plan.peak_bytes().max(bytes);
                        all.push((bytes, Speed::of(&device).step_seconds(&spec, &plan)));
                        if spec.pinned_layers() == LAYERS && token_tile.is_none() && !states_on_host {
                            limits.push(bytes);
                        }
                    }
                }
            }
            assert!(limits.len() > LAYERS);
            for limit in limits {
                let fitting = all.iter().filter(|(bytes, _)| *bytes <= limit);
                let fastest = fitting.map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
                let mut spec = spec.clone();
                let plan = choose(&device, &mut spec, levers, &stored, budget(limit)).unwrap();
                let seconds = Speed::of(&device).step_seconds(&spec, &plan);
                assert!(plan.fits() && seconds <= fastest * (1.0 + 1e-9), "{head:?}, {limit}: {seconds} {fastest}");
            }
        }
    }

    /// States wait where they do not fit, and cost one copy each way at the same time.
    #[test]
    fn states_wait_in_host_memory_where_they_do_not_fit() {
        let device = Device::unopened(0);
        let arch = Arch { head_dim: 64, ..spec().arch };
        let lora = LoraSpec::uniform(&arch, &Projection::ALL, 64, 64.0, 0.0);
        let spec = ModelSpec { arch, lora, ..spec() };
        let at = |states, limit| {
            let mut spec = spec.clone();
            let (checkpointing, weights) = (Checkpointing::On, WeightResidency::Resident);
            let levers =
                Levers { checkpointing, weights, head: HeadResidency::Resident, states, token_tile: TokenTile::Off };
            let plan = choose(&device, &mut spec, levers, &stored, budget(limit)).unwrap();
            (Speed::of(&device).step_seconds(&spec, &plan), spec, plan)
        };
        let [resident, host] = [StateResidency::Resident, StateResidency::Host].map(|states| at(states, 0));
        let (peak, least) = (resident.2.peak_bytes(), host.2.peak_bytes());
        let (bytes, _) = host.1.paged_states().unwrap();
        assert!(resident.1.paged_states().is_none() && least + bytes / 2 < peak, "{least} {peak} {bytes}");
        assert!((host.0 - resident.0 - bytes as f64 / 16e9).abs() < 1e-9, "{} {}", host.0, resident.0);
        let pinned = host.2.host_bytes() - resident.2.host_bytes();
        assert!((bytes..bytes + bytes / 4).contains(&pinned), "{pinned} {bytes}");
        for (limit, waits) in [(u64::MAX, false), (peak, false), (peak - 1, true), (least, true)] {
            let (_, spec, plan) = at(StateResidency::Auto, limit);
            assert!(plan.fits() && spec.states_on_host == waits, "{limit} of {peak} and {least}");
            assert_eq!(states_note(&spec, limit).is_some(), waits);
        }
        assert!(!at(StateResidency::Auto, least - 1).2.fits() && !at(StateResidency::Resident, peak - 1).2.fits());
        // States that save hardly anything are not told of.
        let few = |of: &[Projection], r| {
            let lora = LoraSpec::uniform(&spec.arch, of, r, 1.0, 0.0);
            ModelSpec { lora, states_on_host: true, ..spec.clone() }
        };
        let (little, nothing) = (few(&Projection::ALL, 4), few(&[Projection::Q], 1));
        let (bytes, piece) = little.paged_states().unwrap();
        let saved = bytes - 2 * piece as u64;
        assert!((1000..1 << 20).contains(&saved), "{saved}");
        let told = [saved, saved + 1, 24 << 20].map(|part| states_note(&little, 1000 * part).is_some());
        assert_eq!((told, states_note(&nothing, 1)), ([true, false, false], None));
        let on_cpu = Levers { states: StateResidency::Host, ..Levers::AUTO }.states(&Device::Cpu(Precision::F32));
        assert!(on_cpu.unwrap_err().to_string().contains("the CPU updates"));
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
        assert!(running.contains("the run needs") && running.contains("(short by 1 byte)"), "{running}");
        assert!(running.contains("advice"), "{running}");
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
