//! The choice of where weights and activations are and how batches are cut: what is predicted to take least time of
//! what fits.

mod search;

use super::device::{Budget, Device};
use super::plan::{MemoryPlan, PlannedJob, TensorStorage, plan};
use super::predicted::Speed;
use crate::backend::{OptimizerOnHost, Quantization, Residency};
use crate::bail_usage;
use crate::config::{Checkpointing, HeadResidency, Settings, StateResidency, TokenTile, WeightResidency};
use crate::error::Result;
use crate::files::units::format_bytes;
use crate::lora::LoraKind;
use crate::model::{Activations, ModelSpec};
pub use search::is_nearer;
use search::{Candidate, Search};

/// Tiles that the planner tries, beside all tokens of a batch.
const TILES: [usize; 2] = [4096, 512];

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
    let (activations, may_keep) = levers.activations(device);
    let (places, states) = (residencies(device, spec, levers, stored)?, levers.states(device)?);
    let bases = Bases { spec, tiles: levers.tiles(spec.tokens), states };
    let mut search = Search::new(device, spec, stored, budget, may_keep);
    // Nothing is faster than what keeps all.
    if !may_keep || !search.fits(&bases.first(&places[0]), Activations::Keep)? {
        for place in &places {
            for (base, others) in bases.of(place, activations) {
                search.look_at(base, others)?;
            }
            // On the CPU weights leave memory only where they must.
            if device.is_cpu() && search.has_found() {
                break;
            }
        }
        if !search.has_found() {
            search.look_at_hopeless()?;
        }
        let last_resort = if search.has_found() { &[] } else { levers.last_resort() };
        for (base, others) in places.iter().flat_map(|place| bases.of(place, last_resort)) {
            search.look_at_uniform(&base, others)?;
        }
    }
    let Candidate { spec: chosen, plan, .. } = search.into_best();
    *spec = chosen;
    Ok(plan)
}

/// Specs whose layers keep nothing yet: all ways to cut batches, with each place of the optimizer's memory.
struct Bases<'a> {
    spec: &'a ModelSpec,
    tiles: Vec<Option<usize>>,
    states: &'static [OptimizerOnHost],
}

impl Bases<'_> {
    fn base(&self, place: &[Residency], token_tile: Option<usize>, optimizer_on_host: OptimizerOnHost) -> ModelSpec {
        let (residency, activations) = (place.to_vec(), Vec::new());
        ModelSpec { residency, activations, token_tile, optimizer_on_host, ..self.spec.clone() }
    }

    /// The fastest with weights there.
    fn first(&self, place: &[Residency]) -> ModelSpec {
        self.base(place, self.tiles[0], self.states[0])
    }

    /// Those with weights there, each with every choice for the layers that do not keep their activations.
    fn of<'b>(
        &'b self,
        place: &'b [Residency],
        activations: &'static [Activations],
    ) -> impl Iterator<Item = (ModelSpec, Activations)> + 'b {
        let choices = activations.iter().flat_map(|&others| self.states.iter().map(move |&states| (others, states)));
        let all = self.tiles.iter().flat_map(move |&tile| choices.clone().map(move |choice| (tile, choice)));
        all.map(move |(tile, (others, states))| (self.base(place, tile, states), others))
    }
}

#[cfg(test)]
mod tests;
