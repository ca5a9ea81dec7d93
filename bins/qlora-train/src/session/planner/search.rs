//! The plans that are made to find the best: not all, as one rules out others.

use crate::arch::Projection;
use crate::backend::{Quantization, Residency};
use crate::error::Result;
use crate::model::{Activations, ModelSpec};
use crate::session::device::{Budget, Device};
use crate::session::plan::{MemoryPlan, PlannedJob, TensorStorage, plan};
use crate::session::predicted::{Speed, unpinned_seconds};

/// Part of a step's time that recomputation is at most.
const RECOMPUTED: f64 = 0.5;

/// A plan with the spec that it is of.
pub struct Candidate {
    pub spec: ModelSpec,
    pub plan: MemoryPlan,
    /// Predicted
    pub seconds: f64,
}

/// Plans of training that were made, with everything but the levers settled.
pub struct Search<'a> {
    device: &'a Device,
    stored: &'a dyn Fn(&str) -> TensorStorage,
    budget: Budget,
    /// True if layers may keep their activations.
    may_keep: bool,
    speed: Speed,
    /// Bytes of each layer's linear weights
    layer_bytes: Vec<u64>,
    tried: Vec<Tried>,
    /// Specs that fit, with the choice of the other layers and the number of layers that keep their activations
    searched: Vec<(ModelSpec, Activations, usize)>,
    hopeless: Vec<(ModelSpec, Activations)>,
    /// The fastest that fits
    best: Option<Candidate>,
    /// The smallest that does not fit
    least: Option<Candidate>,
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
    pub fn new(
        device: &'a Device,
        spec: &ModelSpec,
        stored: &'a dyn Fn(&str) -> TensorStorage,
        budget: Budget,
        may_keep: bool,
    ) -> Self {
        Self {
            device,
            stored,
            budget,
            may_keep,
            speed: Speed::of(device),
            layer_bytes: (0..spec.arch.num_layers).map(|layer| layer_bytes(spec, layer, stored)).collect(),
            tried: Vec::new(),
            searched: Vec::new(),
            hopeless: Vec::new(),
            best: None,
            least: None,
        }
    }

    pub fn has_found(&self) -> bool {
        self.best.is_some()
    }

    /// The fastest that fits, or else the smallest; something was looked at.
    pub fn into_best(self) -> Candidate {
        self.best.or(self.least).expect("at least one was tried")
    }

    fn is_better(&self, seconds: f64) -> bool {
        self.best.as_ref().is_none_or(|best| seconds < best.seconds)
    }

    fn add(&mut self, found: Candidate) {
        if found.plan.fits() {
            if self.is_better(found.seconds) {
                self.best = Some(found);
            }
        } else if self.least.as_ref().is_none_or(|least| found.plan.missing() < least.plan.missing()) {
            self.least = Some(found);
        }
    }

    /// True if `base` fits with the same choice for all layers; then that was looked at.
    pub fn fits(&mut self, base: &ModelSpec, all: Activations) -> Result<bool> {
        let found = self.keeping(base, all, 0)?;
        let fits = found.plan.fits();
        if fits {
            self.add(found);
        }
        Ok(fits)
    }

    /// Looks at `base`, whose layers keep nothing yet, with as many that keep their activations as fit.
    pub fn look_at(&mut self, base: ModelSpec, others: Activations) -> Result<()> {
        let most = if self.may_keep { base.arch.num_layers } else { 0 };
        // More in host memory is of use only where more layers keep their activations.
        let nearer = self.searched.iter().filter(|(one, of, _)| *of == others && is_nearer(one, &base));
        let kept = nearer.map(|(.., kept)| kept + 1).max().unwrap_or(0);
        if kept > most {
            return Ok(());
        }
        let fastest = self.best.as_ref().filter(|_| self.may_keep).map(|best| best.seconds);
        if self.is_hopeless(&base, others, kept, fastest) {
            self.hopeless.push((base, others));
            return Ok(());
        }
        let start = self.keeping(&base, others, kept)?;
        if !start.plan.fits() {
            self.add(start);
            return Ok(());
        }
        if self.may_keep && !self.is_better(self.least_seconds(&base, &start.plan, 0, kept)) {
            return Ok(());
        }
        let (found, kept) = if self.may_keep { self.keep_most(start, others, kept)? } else { (start, kept) };
        self.add(found);
        self.searched.push((base, others, kept));
        Ok(())
    }

    /// Looks at what was passed over: where nothing fits, one of these has least.
    pub fn look_at_hopeless(&mut self) -> Result<()> {
        for (base, others) in std::mem::take(&mut self.hopeless) {
            self.look_at_uniform(&base, others)?;
        }
        Ok(())
    }

    /// Looks at `base` with the same choice for all layers.
    pub fn look_at_uniform(&mut self, base: &ModelSpec, all: Activations) -> Result<()> {
        let found = self.keeping(base, all, 0)?;
        self.add(found);
        Ok(())
    }

    fn plan(&self, spec: ModelSpec) -> Result<Candidate> {
        let plan = plan(self.device, &spec, self.stored, PlannedJob::Train, self.budget)?;
        let seconds = self.speed.step_seconds(&spec, &plan);
        Ok(Candidate { spec, plan, seconds })
    }

    /// `base` with the last `kept` layers keeping their activations.
    pub fn keeping(&mut self, base: &ModelSpec, others: Activations, kept: usize) -> Result<Candidate> {
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
    pub fn least_seconds(&self, spec: &ModelSpec, plan: &MemoryPlan, more_room: u64, kept: usize) -> f64 {
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
