//! The choice of where weights and activations are and how batches are cut: what is predicted to take least time of
//! what fits.

use super::device::{Budget, Device};
use super::plan::{MemoryPlan, PlannedJob, TensorStorage, plan};
use super::predicted::{Speed, unpinned_seconds};
use crate::arch::Projection;
use crate::backend::{OptimizerOnHost, Quantization, Residency};
use crate::bail_usage;
use crate::config::{Checkpointing, HeadResidency, Settings, StateResidency, TokenTile, WeightResidency};
use crate::error::Result;
use crate::files::units::format_bytes;
use crate::lora::LoraKind;
use crate::model::{Activations, ModelSpec};

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

    /// Those of weights that are drawn, or changed on their way: they are in no file as they are used. Refused: an
    /// output layer that is to stay on disk.
    pub fn without_files(self, device: &Device) -> Result<Self> {
        match (self.head, device.is_cpu()) {
            (HeadResidency::Disk, is_cpu) => bail_usage!(
                "`lm_head`: found disk, expected auto{} resident{}: these weights are in no file as they are used",
                if is_cpu { " or" } else { "," },
                if is_cpu { "" } else { " or host" }
            ),
            (HeadResidency::Auto, true) => Ok(Self { head: HeadResidency::Resident, ..self }),
            _ => Ok(self),
        }
    }

    /// Choices for layers that do not keep their activations; and true if some layers may keep them.
    pub fn activations(self, device: &Device) -> (&'static [Activations], bool) {
        match self.checkpointing {
            Checkpointing::Off => (&[Activations::Keep], false),
            Checkpointing::On => (&[Activations::Recompute], false),
            Checkpointing::Offload => (&[Activations::Offload], false),
            Checkpointing::Disk => (&[Activations::Disk], false),
            Checkpointing::Auto if device.is_cpu() => (&[Activations::Recompute], true),
            Checkpointing::Auto => (&[Activations::Recompute, Activations::Offload], true),
        }
    }

    /// Choices for all layers that are taken only where nothing else fits: a disk wears by writing.
    pub fn last_resort(self) -> &'static [Activations] {
        if self.checkpointing == Checkpointing::Auto { &[Activations::Disk] } else { &[] }
    }

    /// Choices of optimizer memory that waits in host memory, the fastest first. Refused: anything on the CPU, which
    /// has no other memory.
    pub fn states(self, device: &Device) -> Result<&'static [OptimizerOnHost]> {
        use OptimizerOnHost::{Nothing, States, StatesAndMasters};
        match (self.states, device.is_cpu()) {
            (StateResidency::Host | StateResidency::HostWithMasters, true) => bail_usage!(
                "`optimizer_states`: found {}, expected auto or resident: the CPU updates with states in the host's memory",
                self.states.name()
            ),
            (StateResidency::Host, false) => Ok(&[States]),
            (StateResidency::HostWithMasters, false) => Ok(&[StatesAndMasters]),
            (StateResidency::Auto, false) => Ok(&[Nothing, States, StatesAndMasters]),
            (StateResidency::Auto | StateResidency::Resident, _) => Ok(&[Nothing]),
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
    stored: &dyn Fn(&str) -> TensorStorage,
) -> Result<Vec<Vec<Residency>>> {
    let heads = residencies_of_head(device, spec, levers.head, stored)?;
    let layers = residencies_of_layers(device, spec, levers.weights, stored)?;
    let both = |layers: &[Residency], head: Residency| [layers, &[head]].concat();
    Ok(match device.is_cpu() {
        // Long rows read an output layer more often than the layers.
        true => heads.iter().flat_map(|&head| layers.iter().map(move |layers| both(layers, head))).collect(),
        false => layers.iter().flat_map(|layers| heads.iter().map(move |&head| both(layers, head))).collect(),
    })
}

fn residencies_of_head(
    device: &Device,
    spec: &ModelSpec,
    head: HeadResidency,
    stored: &dyn Fn(&str) -> TensorStorage,
) -> Result<&'static [Residency]> {
    let is_dense = |name: &str| !matches!(stored(name).resident_as, Some(Quantization::Nf4 { .. }));
    let may_stay = || spec.head_may_wait() && spec.tables().into_iter().all(is_dense);
    match (head, device.is_cpu()) {
        (HeadResidency::Host, true) => bail_usage!(
            "`lm_head`: found host, expected auto, resident or disk: the CPU computes with an output layer in the host's \
             memory"
        ),
        (HeadResidency::Disk, false) => bail_usage!(
            "`lm_head`: found disk, expected auto, resident or host: a GPU takes the output layer from its own memory or \
             the host's"
        ),
        (HeadResidency::Disk, true) if !spec.head_may_wait() => bail_usage!(
            "`lm_head`: found disk, expected auto or resident: an output layer of which anything is trained \
             (`modules_to_save`, `trainable_token_indices`) stays in memory"
        ),
        (HeadResidency::Disk, true) if !may_stay() => bail_usage!(
            "`lm_head`: found disk, but embedding or output layer are stored in NF4, and only rows in 16 or 32 bits are \
             read again and again: leave it at auto"
        ),
        (HeadResidency::Disk, true) => Ok(&[Residency::Disk]),
        (HeadResidency::Auto, true) if may_stay() => Ok(&[Residency::Device, Residency::Disk]),
        (HeadResidency::Host, false) if !spec.head_may_wait() => bail_usage!(
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
    stored: &dyn Fn(&str) -> TensorStorage,
) -> Result<Vec<Vec<Residency>>> {
    let arch = &spec.arch;
    let layers = arch.num_layers;
    let all = |residency| vec![residency; layers];
    let in_nf4 = |name: &str| matches!(stored(name).resident_as, Some(Quantization::Nf4 { .. }));
    let mut names = (0..layers).flat_map(|layer| arch.names.all().map(move |of| arch.weight_name(layer, of)));
    let may_stay = names.any(|name| in_nf4(&name));
    // Another file of a base that is in none in NF4 yet would not do either.
    let is_read = |module: &str| !may_stay || in_nf4(&format!("{module}.weight"));
    let needs_norms = spec.lora.terms.iter().any(|(module, term)| term.kind == LoraKind::Dora && is_read(module));
    match (weights, device.is_cpu()) {
        (WeightResidency::Resident, _) => Ok(vec![all(Residency::Device)]),
        (WeightResidency::Host, true) => bail_usage!(
            "`weights`: found host, expected resident or disk: the CPU computes with weights in the host's memory"
        ),
        (WeightResidency::Host, false) => Ok(vec![all(Residency::Pinned)]),
        (WeightResidency::Disk, false) => bail_usage!(
            "`weights`: found disk, expected auto, resident or host: a GPU takes the base weights from its own memory or \
             the host's; use `--device cpu` for a model that stays on disk"
        ),
        (WeightResidency::Disk, true) if needs_norms => bail_usage!(
            "`weights`: found disk, expected auto or resident: DoRA (`use_dora`) takes the norms of the weights' rows, which \
             would be read again and again"
        ),
        (WeightResidency::Disk, true) if spec.quantization == Quantization::None => bail_usage!(
            "`weights`: found disk, expected auto or resident: the base is held in 16 bits (`quantization: none`), and only \
             weights in NF4 are read again and again"
        ),
        (WeightResidency::Disk, true) if spec.lora.init.changes_base() => bail_usage!(
            "`weights`: found disk, expected auto or resident: the base is changed as it is loaded (`init_lora_weights`), and \
             is in no file as it is used"
        ),
        (WeightResidency::Disk, true) => match may_stay {
            true => Ok(vec![all(Residency::Disk)]),
            false => bail_usage!(
                "`weights`: found disk, but the linear weights of the model are not stored in NF4, and others are not \
                 read again and again; set `quantized_cache`, which keeps a copy in NF4, write one with `qlora-train \
                 quantize`, or leave it at auto"
            ),
        },
        (WeightResidency::Auto, true) => Ok(match may_stay && !needs_norms {
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

/// Note for users on an output layer that is elsewhere than on the device: of one in host memory what that saves on the
/// device, and what its copies cost.
pub fn head_note(
    spec: &ModelSpec,
    stored: &dyn Fn(&str) -> TensorStorage,
    planned: &MemoryPlan,
) -> Result<Option<String>> {
    if !spec.head_waits() {
        return Ok(spec.head_note());
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
    stored: &'a dyn Fn(&str) -> TensorStorage,
    budget: Budget,
    speed: Speed,
    /// Bytes of each layer's linear weights
    layer_bytes: Vec<u64>,
    tried: Vec<Tried>,
}

/// A plan that was made, of what has `bytes_elsewhere` elsewhere than on the device.
struct Tried {
    spec: ModelSpec,
    others: Activations,
    kept: usize,
    plan: MemoryPlan,
    bytes_elsewhere: u64,
}

impl<'a> Search<'a> {
    fn new(device: &'a Device, spec: &ModelSpec, stored: &'a dyn Fn(&str) -> TensorStorage, budget: Budget) -> Self {
        let layer_bytes = (0..spec.arch.num_layers).map(|layer| layer_bytes(spec, layer, stored)).collect();
        Self { device, stored, budget, speed: Speed::of(device), layer_bytes, tried: Vec::new() }
    }

    fn plan(&self, spec: ModelSpec) -> Result<Candidate> {
        let plan = plan(self.device, &spec, self.stored, PlannedJob::Train, self.budget)?;
        let seconds = self.speed.step_seconds(&spec, &plan);
        Ok(Candidate { spec, plan, seconds })
    }

    /// `base` with the last `kept` layers keeping their activations.
    fn keeping(&mut self, base: &ModelSpec, others: Activations, kept: usize) -> Result<Candidate> {
        let activations = others.keeping(kept, base.arch.num_layers);
        let found = self.plan(ModelSpec { activations, ..base.clone() })?;
        let (spec, plan, bytes_elsewhere) = (found.spec.clone(), found.plan.clone(), self.bytes_elsewhere(base));
        self.tried.push(Tried { spec, others, kept, plan, bytes_elsewhere });
        Ok(found)
    }

    /// Bytes that a run has elsewhere than on the device, of those that a choice of places moves.
    fn bytes_elsewhere(&self, spec: &ModelSpec) -> u64 {
        let is_elsewhere = |at: usize| spec.residency.get(at).is_some_and(|&place| place != Residency::Device);
        let layers = self.layer_bytes.iter().enumerate().filter(|(layer, _)| is_elsewhere(*layer));
        let head = if is_elsewhere(self.layer_bytes.len()) { spec.head_bytes() } else { 0 };
        layers.map(|(_, bytes)| bytes).sum::<u64>() + head + spec.paging().map_or(0, |paging| paging.bytes)
    }

    /// True if `base`, whose layers keep nothing yet, needs no plan: one of what has less elsewhere says that it does
    /// not fit with its last `kept` layers keeping their activations, or takes at least `best` seconds. Twice the bytes
    /// that move may be free then: gaps between buffers come and go.
    fn is_hopeless(&self, base: &ModelSpec, others: Activations, kept: usize, best: Option<f64>) -> bool {
        let elsewhere = self.bytes_elsewhere(base);
        let is_like = |one: &&Tried| one.others == others && one.kept <= kept && is_nearer(&one.spec, base);
        self.tried.iter().filter(is_like).any(|Tried { plan, kept, bytes_elsewhere, .. }| {
            let room = 2 * elsewhere.saturating_sub(*bytes_elsewhere);
            let is_too_large = plan.peak_bytes().saturating_sub(plan.budget.limit) > room;
            is_too_large || best.is_some_and(|best| self.least_seconds(base, plan, room, *kept) >= best)
        })
    }

    /// `fitting`, whose last `kept` layers keep their activations, with as many that do so as fit, and their number. A
    /// layer more takes more memory.
    fn keep_most(
        &mut self,
        mut fitting: Candidate,
        others: Activations,
        mut kept: usize,
    ) -> Result<(Candidate, usize)> {
        /// Neighbors of the guess that are tried before halving.
        const NEIGHBORS: usize = 3;
        let mut next = most_kept(&fitting.spec, &fitting.plan, 0, kept);
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

    /// Seconds that a step of `spec`, whose layers copy no inputs, takes at least when more layers than the last `kept`
    /// of this plan keep their activations, and `more_room` bytes are free: they save a part of their time, and inputs
    /// that wait in host memory, pinned or not, are not copied.
    fn least_seconds(&self, spec: &ModelSpec, plan: &MemoryPlan, more_room: u64, kept: usize) -> f64 {
        let layers = spec.arch.num_layers;
        let seconds = self.speed.step_seconds(spec, plan) - unpinned_seconds(plan);
        let more = (most_kept(spec, plan, more_room, kept) + 2).min(layers) - kept;
        seconds * (1.0 - RECOMPUTED * more as f64 / layers as f64)
    }
}

/// A guess at the number of layers that may keep their activations where the last `kept` of this plan do so and
/// `more_room` bytes are free: hardly ever too low.
fn most_kept(spec: &ModelSpec, plan: &MemoryPlan, more_room: u64, kept: usize) -> usize {
    let room = plan.budget.limit.saturating_add(more_room).saturating_sub(plan.peak_bytes());
    (kept as u64 + room / kept_bytes(spec).max(1) + 1).min(spec.arch.num_layers as u64) as usize
}

/// True if `other` has in host memory all that `one` has there, and cuts batches alike: then `one` is no slower, as
/// long as the same layers keep their activations.
pub fn is_nearer(one: &ModelSpec, other: &ModelSpec) -> bool {
    let mut places = one.residency.iter().zip(&other.residency);
    one.token_tile == other.token_tile
        && other.optimizer_on_host >= one.optimizer_on_host
        && places.all(|(here, there)| *here == Residency::Device || here == there)
}

/// Bytes of a layer's linear weights as they are held.
fn layer_bytes(spec: &ModelSpec, layer: usize, stored: &dyn Fn(&str) -> TensorStorage) -> u64 {
    let arch = &spec.arch;
    let bytes = |projection: Projection| {
        let (n, k) = projection.shape(arch);
        let weights = (n * k) as u64;
        let held = stored(&arch.weight_name(layer, projection)).resident_as;
        match held.unwrap_or(spec.quantization) {
            Quantization::Nf4 { block_size, double_quant } => {
                weights / 2 + weights / block_size as u64 * if double_quant { 1 } else { 4 }
            }
            Quantization::None => 2 * weights,
        }
    };
    arch.names.all().map(bytes).sum()
}

/// Bytes that a layer keeps at least where it keeps its activations, beside its input.
fn kept_bytes(spec: &ModelSpec) -> u64 {
    let arch = &spec.arch;
    let heads = arch.num_heads * arch.head_dim;
    let qkv = heads + 2 * arch.num_kv_heads * arch.head_dim;
    // q‖k‖v, attention's output, the residual stream, gate and up, in 16 bits.
    2 * (spec.tokens * (qkv + heads + arch.hidden_size + 2 * arch.intermediate_size)) as u64
}

/// Decides where weights are, what every layer's activations do and how batches are cut: what is predicted to take
/// least time of what fits, unless the settings say otherwise; where nothing fits, what takes least memory. More memory
/// never makes a run slower by the prediction, as it leaves more to choose from, but in two cases: where anything else
/// fits, no input is written to disk, and on the CPU no weight leaves memory that may stay, even if that were faster.
pub fn choose(
    device: &Device,
    spec: &mut ModelSpec,
    levers: Levers,
    stored: &dyn Fn(&str) -> TensorStorage,
    budget: Budget,
) -> Result<MemoryPlan> {
    let mut search = Search::new(device, spec, stored, budget);
    let (activations, may_keep) = levers.activations(device);
    let mut best: Option<Candidate> = None;
    let mut least: Option<Candidate> = None;
    let (places, states) = (residencies(device, spec, levers, stored)?, levers.states(device)?);
    if may_keep {
        // Nothing is faster.
        let (residency, token_tile) = (places[0].clone(), levers.tiles(spec.tokens)[0]);
        let base = ModelSpec { residency, token_tile, optimizer_on_host: states[0], ..spec.clone() };
        let all = search.keeping(&base, Activations::Keep, 0)?;
        if all.plan.fits() {
            *spec = all.spec;
            return Ok(all.plan);
        }
    }
    let most = if may_keep { spec.arch.num_layers } else { 0 };
    // Specs that fit, with the choice of the other layers and the number of layers that keep their activations.
    let mut searched: Vec<(ModelSpec, Activations, usize)> = Vec::new();
    let mut hopeless: Vec<(ModelSpec, Activations)> = Vec::new();
    for residency in &places {
        for token_tile in levers.tiles(spec.tokens) {
            let all = activations.iter().flat_map(|&others| states.iter().map(move |&on_host| (others, on_host)));
            for (others, optimizer_on_host) in all {
                let (residency, activations) = (residency.clone(), Vec::new());
                let base = ModelSpec { residency, activations, token_tile, optimizer_on_host, ..spec.clone() };
                // More in host memory is of use only where more layers keep their activations.
                let nearer = searched.iter().filter(|(one, of, _)| *of == others && is_nearer(one, &base));
                let kept = nearer.map(|(.., kept)| kept + 1).max().unwrap_or(0);
                if kept > most {
                    continue;
                }
                let fastest = best.as_ref().filter(|_| may_keep).map(|best| best.seconds);
                if search.is_hopeless(&base, others, kept, fastest) {
                    hopeless.push((base, others));
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
                if may_keep && !is_better(search.least_seconds(&base, &start.plan, 0, kept)) {
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
    // One of these has least where nothing fits.
    let hopeless = if best.is_none() { hopeless } else { Vec::new() };
    for (base, others) in hopeless {
        let found = search.keeping(&base, others, 0)?;
        if found.plan.fits() {
            if best.as_ref().is_none_or(|best| found.seconds < best.seconds) {
                best = Some(found);
            }
        } else if least.as_ref().is_none_or(|least| found.plan.missing() < least.plan.missing()) {
            least = Some(found);
        }
    }
    let tiles = levers.tiles(spec.tokens);
    let last_resort = if best.is_none() { levers.last_resort() } else { &[] };
    for &others in last_resort {
        let ways = places.iter().flat_map(|place| tiles.iter().map(move |&tile| (place, tile)));
        for ((residency, token_tile), &optimizer_on_host) in ways.flat_map(|way| states.iter().map(move |s| (way, s))) {
            let base = ModelSpec { residency: residency.clone(), token_tile, optimizer_on_host, ..spec.clone() };
            let found = search.keeping(&base, others, 0)?;
            if found.plan.fits() {
                if best.as_ref().is_none_or(|best| found.seconds < best.seconds) {
                    best = Some(found);
                }
            } else if least.as_ref().is_none_or(|least| found.plan.missing() < least.plan.missing()) {
                least = Some(found);
            }
        }
    }
    let Candidate { spec: chosen, plan, .. } = best.or(least).expect("at least one was tried");
    *spec = chosen;
    Ok(plan)
}

#[cfg(test)]
mod tests;
