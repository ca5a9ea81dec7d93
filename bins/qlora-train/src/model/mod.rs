//! A Llama with a frozen base, trainable low-rank terms and modules that are trained whole or in some rows, written
//! once over [`Backend`].

mod activations;
mod adalora;
mod beside;
mod block;
mod block_backward;
mod buckets;
mod cached;
pub mod generate;
pub mod optimizer_step;
mod prompts;
mod reduction;
mod step;
mod tiles;
mod whole;

pub use activations::{ActivationCounts, Activations};
pub use cached::KvCache;
pub use prompts::Prompts;

use crate::arch::{Arch, BranchNorms, Input, Projection, Rope};
use crate::backend::run_shape::{LinearRows, RunShape};
use crate::backend::{
    Backend, LinearGroup, Lora, Magnitude, MaybeTrained, OptimizerOnHost, Paging, Quantization, RankFactors, Residency,
    Segment, SeveralPairs, StateFormat,
};
use crate::base::{Nf4OnDisk, RowsOnDisk};
use crate::error::{Error, Result};
use crate::files::tensor::{HostTensor, StoredType, WeightSource};
use crate::lora::adalora::Triplets;
use crate::lora::{LoraKind, LoraSpec, ParamId};
use qlora_kernels::nf4::Nf4Options;
use qlora_kernels::rope::RopeTable;
use qlora_kernels::shape::AttentionShape;
use std::sync::Arc;

/// Description of a model, before any weight is read.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    pub arch: Arch,
    pub quantization: Quantization,
    pub lora: LoraSpec,
    /// The low-rank terms get gradients and optimizer states.
    pub trainable: bool,
    /// Format of the optimizer's moments, where the terms are trained.
    pub states: StateFormat,
    /// Optimizer memory that waits in pinned host memory, beside a GPU, and comes to it in pieces in each update.
    pub optimizer_on_host: OptimizerOnHost,
    /// Activations of each layer; a layer beyond them keeps its activations.
    pub activations: Vec<Activations>,
    /// Place of each layer's linear weights, and after the last layer's that of the output layer; layers beyond the
    /// list are on the device. Linear weights on disk are those that a source holds in NF4. An output layer that is
    /// pinned or on disk is one that [may wait](Self::head_may_wait).
    pub residency: Vec<Residency>,
    /// Tokens that linear layers and MLP work on at one time: a multiple of
    /// [`TokenTile::STEP`](crate::config::TokenTile::STEP), at least its shortest. `None`: all of a batch.
    pub token_tile: Option<usize>,
    /// Tokens of the longest batch.
    pub tokens: usize,
    /// Tokens of the longest row.
    pub positions: usize,
    /// Prompts that are answered between the steps of training; batches and rows have room for them, see
    /// [`Self::with_prompts`].
    pub prompts: Prompts,
    pub seed: u64,
}

impl ModelSpec {
    /// A model that is not trained, with all weights on the device, for a row of `tokens` tokens.
    pub fn new(lora: LoraSpec, arch: Arch, quantization: Quantization, tokens: usize) -> Self {
        Self {
            arch,
            quantization,
            lora,
            trainable: false,
            states: StateFormat::F32,
            optimizer_on_host: OptimizerOnHost::default(),
            activations: Vec::new(),
            residency: Vec::new(),
            token_tile: None,
            tokens,
            positions: tokens,
            prompts: Prompts::default(),
            seed: 0,
        }
    }

    /// With room in batches and rows for the prompts of a run, and their answers.
    pub fn with_prompts(self, prompts: Prompts) -> Self {
        let longest = prompts.longest();
        Self { tokens: self.tokens.max(longest), positions: self.positions.max(longest), prompts, ..self }
    }

    pub fn run_shape(&self) -> RunShape {
        let c = &self.arch;
        let mut groups: Vec<_> = (0..c.num_layers)
            .flat_map(|layer| Input::ALL.map(|input| (layer, input)))
            .map(|(layer, input)| {
                let n = c.names.of_input(input).map(|p| p.shape(c).0).sum::<usize>();
                let r = c.names.of_input(input).map(|p| self.rank(layer, p)).sum::<usize>();
                (n, input.width(c), r)
            })
            .collect();
        groups.sort_unstable();
        groups.dedup();
        RunShape {
            tokens: self.tokens,
            tile: self.tile(),
            hidden: c.hidden_size,
            vocab: c.vocab_size,
            heads: c.num_heads,
            kv_heads: c.num_kv_heads,
            head_dim: c.head_dim,
            groups,
            dropout: self.trainable && self.lora.dropout > 0.0,
            adapters_by_row: !self.lora.by_row.is_empty(),
            training: self.trainable,
            trains_head: self.trainable && (self.trains_head() || self.head_rows() > 0),
            head_rows: if self.trainable { self.head_rows() } else { 0 },
            head_on_disk: self.head_on_disk(),
            linear: LinearRows::default(),
            graphs: false,
            paging: self.paging(),
            reads_stream: c.names.norms().any(|norms| norms.input.is_none()),
        }
    }

    /// Tokens that a tile has room for.
    pub fn tile(&self) -> usize {
        self.token_tile.map_or(self.tokens, |tile| tile.min(self.tokens))
    }

    pub fn activations_of(&self, layer: usize) -> Activations {
        self.activations.get(layer).copied().unwrap_or_default()
    }

    pub fn residency_of(&self, layer: usize) -> Residency {
        self.residency.get(layer).copied().unwrap_or_default()
    }

    /// True if weights of layers stay on disk.
    pub fn is_streamed(&self) -> bool {
        (0..self.arch.num_layers).any(|layer| self.residency_of(layer) == Residency::Disk)
    }

    /// Layers whose weights are in pinned host memory.
    pub fn pinned_layers(&self) -> usize {
        (0..self.arch.num_layers).filter(|&layer| self.residency_of(layer) == Residency::Pinned).count()
    }

    /// Optimizer memory that comes from the host in each update; none: all of it is on the device.
    pub fn paging(&self) -> Option<Paging> {
        let has_masters = self.optimizer_on_host == OptimizerOnHost::StatesAndMasters;
        if !self.trainable || self.optimizer_on_host == OptimizerOnHost::Nothing {
            return None;
        }
        let states: u64 = self.lora.lengths(&self.arch).map(|len| self.states.bytes(len)).sum();
        let masters = match has_masters {
            true => self.trained_parameters() - self.lora.lengths_in_f32(&self.arch).sum::<usize>() as u64,
            false => 0,
        };
        Some(Paging::new(states + 4 * masters, has_masters))
    }

    /// Note for users on weights that wait outside of the device.
    pub fn weights_note(&self) -> Option<String> {
        let (pinned, layers) = (self.pinned_layers(), self.arch.num_layers);
        match pinned {
            _ if self.is_streamed() => Some("the base weights stay on disk, two layers in memory".to_owned()),
            0 => None,
            _ if pinned == layers => Some("the base weights wait in host memory, two layers on the GPU".to_owned()),
            _ => Some(format!("the base weights of {pinned} of {layers} layers wait in host memory")),
        }
    }

    /// Note for users on an output layer that waits in host memory, or stays on disk.
    pub fn head_note(&self) -> Option<String> {
        if self.head_on_disk() {
            let (lora, embedding) = (&self.lora, self.arch.names.embedding_module());
            let is_trained = lora.whole.contains(embedding) || lora.tokens.contains_key(embedding);
            let stay = if is_trained { "lm_head stays" } else { "embedding and lm_head stay" };
            return Some(format!("{stay} on disk, two parts of lm_head in memory"));
        }
        self.head_waits().then(|| "lm_head waits in host memory, and is copied to the GPU where it is used".to_owned())
    }

    /// Note for users on a batch that is cut into tiles.
    pub fn tile_note(&self) -> Option<String> {
        let tile = self.token_tile.filter(|&tile| tile < self.tokens)?;
        Some(format!("linear layers and MLP on {tile} tokens at a time"))
    }

    pub fn activation_counts(&self) -> ActivationCounts {
        ActivationCounts::of((0..self.arch.num_layers).map(|layer| self.activations_of(layer)))
    }

    fn rank(&self, layer: usize, projection: Projection) -> usize {
        self.lora.terms.get(&self.arch.module(layer, projection)).map_or(0, |term| term.r)
    }

    /// True if the output layer is among the modules that are trained whole.
    fn trains_head(&self) -> bool {
        self.lora.whole.contains(self.arch.names.head_module())
    }

    /// Trained parameters: r·(N + K) of each low-rank term, and those of modules that are trained whole.
    pub fn trained_parameters(&self) -> u64 {
        self.lora.lengths(&self.arch).map(|len| len as u64).sum()
    }
}

/// Name, shape and values of one trainable tensor.
pub type ParamValues = (ParamId, Vec<usize>, Vec<f32>);

/// The source of a model's values.
pub trait Source {
    /// Storage of a tensor.
    fn stored(&self, name: &str) -> StoredType;
    fn read(&mut self, name: &str) -> Result<HostTensor>;
    /// Format in which a linear weight is resident, where its source decides it: as a quantized checkpoint stores it.
    /// `None`: as [`ModelSpec::quantization`] says.
    fn resident_as(&self, _name: &str) -> Option<Quantization> {
        None
    }
    /// A linear weight, in NF4 where the source stores it so.
    fn read_weight(&mut self, name: &str) -> Result<WeightSource> {
        self.read(name).map(WeightSource::Tensor)
    }
    /// A linear weight that may come in pieces, as [`ReadPieces`](crate::backend::ReadPieces) has it.
    fn read_in_pieces(&mut self, name: &str, take: &mut dyn FnMut(WeightSource) -> Result<()>) -> Result<()> {
        take(self.read_weight(name)?)
    }
    /// The embedding or the output layer, which stays in its file; asked only of one that is stored in 16 or 32 bits.
    fn rows_on_disk(&mut self, name: &str) -> Result<RowsOnDisk> {
        Err(Error::Failed(format!("{name}: is not in a file")))
    }
    /// A linear weight that stays in its file; asked only of one that is [resident](Self::resident_as) in NF4.
    fn on_disk(&mut self, name: &str) -> Result<Nf4OnDisk> {
        Err(Error::Failed(format!("{name}: is not in a file")))
    }
    /// The magnitudes of an adapter's term; none of a new one, which begins with the norms of the weight's rows.
    fn magnitude(&mut self, _module: &str) -> Option<Vec<f32>> {
        None
    }
    /// The weight of a module that is whole: that of an adapter where there is one, otherwise the base's.
    fn whole(&mut self, name: &str) -> Result<HostTensor> {
        self.read(name)
    }
    /// Rows of single tokens that an adapter holds of embedding or output layer, `[tokens, H]` in the order of the
    /// spec; none of a new one, which begins with those of the base.
    fn token_rows(&mut self, _module: &str) -> Option<Vec<f32>> {
        None
    }
    /// Called when all weights are read, before any is used: returns when other processes have read theirs, where that
    /// matters.
    fn all_read(&mut self) -> Result<()> {
        Ok(())
    }
    /// Initial values of a trainable tensor of `len` values whose rows have `columns` values; of several adapters one
    /// after the other.
    fn lora(&mut self, id: &ParamId, len: usize, columns: usize) -> Result<Vec<f32>>;
}

struct Layer<B: Backend> {
    attention_norms: BranchNorms<B::Vector>,
    qkv: LinearGroup<B>,
    /// Norm weights of queries and of keys, where the family normalizes them.
    qk_norm: Option<[B::Vector; 2]>,
    /// Keys that a query sees, where they are fewer than all before it.
    window: Option<usize>,
    /// The number of its rotation angles; `None`: queries and keys are not rotated.
    rope: Option<usize>,
    o: LinearGroup<B>,
    mlp_norms: BranchNorms<B::Vector>,
    gate_up: LinearGroup<B>,
    down: LinearGroup<B>,
}

impl<B: Backend> Layer<B> {
    /// In the order of [`Input::ALL`].
    fn groups_mut(&mut self) -> [&mut LinearGroup<B>; 4] {
        [&mut self.qkv, &mut self.o, &mut self.gate_up, &mut self.down]
    }

    fn groups(&self) -> [&LinearGroup<B>; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }

    fn has_magnitudes(&self) -> bool {
        self.groups().into_iter().any(LinearGroup::has_magnitudes)
    }
}

pub struct Llama<B: Backend> {
    spec: ModelSpec,
    attention: AttentionShape,
    embedding: B::Table,
    layers: Vec<Layer<B>>,
    final_norm: B::Vector,
    /// `None`: the embedding serves as output layer.
    head: Option<B::Table>,
}

impl<B: Backend> Llama<B> {
    /// Reads and quantizes one tensor at a time. `progress` is called after each layer with the number done.
    pub fn build(
        backend: &mut B,
        source: &mut dyn Source,
        spec: ModelSpec,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let c = spec.arch.clone();
        let ropes = c.ropes();
        let mut tables = Vec::with_capacity(ropes.len());
        for rope in &ropes {
            let (rotated, scale) = (rope.rotary_dim(c.head_dim), c.multipliers.rope_scale(c.head_dim));
            tables.push(backend.rope_table(spec.positions, rotated / 2, &mut || {
                RopeTable::scaled(rotated, rope.theta, rope.scaling.clone(), spec.positions, scale)
            })?);
        }
        let table_of = |rope: &Rope| ropes.iter().position(|other| other == rope).map(|index| tables[index]);
        let embedding = spec.embedding(backend, source)?;
        let mut layers = Vec::with_capacity(c.num_layers);
        for layer in 0..c.num_layers {
            let table = c.layer(layer).rope.as_ref().and_then(table_of);
            backend.begin_layer(spec.residency_of(layer));
            let mut built = build_layer(backend, source, &spec, layer, table)?;
            if spec.residency_of(layer) == Residency::Pinned {
                backend.pin_weights(built.groups_mut())?;
            }
            layers.push(built);
            progress(layer + 1);
        }
        let final_norm = spec.norm(backend, source, c.names.final_norm, c.hidden_size)?;
        let head = spec.head(backend, source)?;
        let attention = AttentionShape {
            heads: c.num_heads,
            kv_heads: c.num_kv_heads,
            head_dim: c.head_dim,
            soft_cap: c.attention_soft_cap,
        };
        let mut model = Self { spec, attention, embedding, layers, final_norm, head };
        source.all_read()?;
        backend.weights_loaded()?;
        model.refresh(backend)?;
        // Now: a run that goes on from a checkpoint answers after steps, and one from the beginning before them.
        let at_once = model.spec.prompts.most_at_once(backend.capacity());
        model.reserve_text(backend, at_once)?;
        Ok(model)
    }

    /// Brings up to date what follows from the trainable tensors, after they have changed.
    pub fn refresh(&mut self, b: &mut B) -> Result<()> {
        self.refresh_products(b)?;
        b.refresh_rows(&mut self.embedding)?;
        self.head.as_mut().map_or(Ok(()), |head| b.refresh_rows(head))?;
        let mut layers = self.layers.iter_mut().filter(|layer| layer.has_magnitudes()).peekable();
        while let Some(layer) = layers.next() {
            b.wait_weights(layer.groups())?;
            // Those of the next layer come while this one computes.
            layers.peek().map_or(Ok(()), |next| b.prefetch_weights(next.groups()))?;
            for group in layer.groups_mut().into_iter().filter(|group| group.has_magnitudes()) {
                b.refresh_magnitudes(group)?;
            }
        }
        Ok(())
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Every trainable tensor: layer by layer in the order of [`Projection`], A before B before E, then whole modules
    /// and the rows of single tokens.
    pub fn params_mut(&mut self) -> Vec<(ParamId, &mut B::Param)> {
        let (mut params, mut whole) = (Vec::new(), Vec::new());
        let arch = &self.spec.arch;
        let named = |name: &str, param| Some((ParamId::of_weight(name), param?));
        let of_table = |name: &str| self.spec.of_table(name).0;
        whole.extend(self.embedding.param_mut().map(|param| (of_table(arch.names.embedding), param)));
        for (layer, block) in self.layers.iter_mut().enumerate() {
            let (groups, norms) = block.parts_mut(arch, layer);
            for (group, input) in groups.into_iter().zip(Input::ALL) {
                for (segment, projection) in group.segments.iter_mut().zip(arch.names.of_input(input)) {
                    if let Some(lora) = &mut segment.lora {
                        let module: Arc<str> = arch.module(layer, projection).into();
                        params.push((ParamId::a(module.clone()), &mut lora.a));
                        params.push((ParamId::b(module.clone()), &mut lora.b));
                        let factors = lora.factors.as_mut();
                        params.extend(factors.map(|factors| (ParamId::e(module.clone()), &mut factors.e)));
                        let magnitude = lora.magnitude.as_mut();
                        params.extend(magnitude.map(|magnitude| (ParamId::magnitude(module), &mut magnitude.m)));
                    }
                }
            }
            whole.extend(norms.into_iter().filter_map(|(name, norm)| named(&name, norm.param_mut())));
        }
        whole.extend(named(arch.names.final_norm, self.final_norm.param_mut()));
        let head = self.head.as_mut().and_then(|head| head.param_mut());
        whole.extend(head.map(|param| (of_table(arch.names.head), param)));
        params.extend(whole);
        params
    }

    /// Puts other low-rank terms on the same base, and other whole modules in it. They are read from `source`; of the
    /// base are only modules that were replaced before.
    pub fn replace_lora(&mut self, b: &mut B, source: &mut dyn Source, lora: LoraSpec) -> Result<()> {
        let before = std::mem::replace(&mut self.spec.lora, lora);
        self.replace_whole(b, source, &before)?;
        let names = self.spec.arch.names;
        for (layer, block) in self.layers.iter_mut().enumerate() {
            if self.spec.lora.is_dora() {
                // Norms of the weights' rows are computed.
                b.wait_weights(block.groups())?;
            }
            for (group, input) in block.groups_mut().into_iter().zip(Input::ALL) {
                for (segment, projection) in group.segments.iter_mut().zip(names.of_input(input)) {
                    // Its memory first.
                    segment.lora = None;
                    segment.lora = build_lora(b, source, &self.spec, layer, projection, &segment.weight)?;
                }
                b.prepare_group(&self.spec.arch.first_weight(layer, input), group)?;
            }
        }
        self.refresh(b)
    }

    /// Shape and values of every trainable tensor, in the order of [`Self::params_mut`].
    pub fn param_values(&self, backend: &B) -> Result<Vec<ParamValues>> {
        let values = |(id, shape, param)| Ok((id, shape, backend.param_values(param)?));
        self.params().into_iter().map(values).collect()
    }

    /// Name, shape and place of every trainable tensor, in the order of [`Self::params_mut`].
    pub fn params(&self) -> Vec<(ParamId, Vec<usize>, &B::Param)> {
        let (mut params, mut whole) = (Vec::new(), Vec::new());
        let arch = &self.spec.arch;
        let one = |name: &str, shape: Vec<usize>, param| Some((ParamId::of_weight(name), shape, param?));
        let of_table = |name: &str, param: Option<_>| {
            let (id, shape) = self.spec.of_table(name);
            param.map(|param| (id, shape, param))
        };
        whole.extend(of_table(arch.names.embedding, self.embedding.param()));
        for (layer, block) in self.layers.iter().enumerate() {
            for (group, input) in block.groups().into_iter().zip(Input::ALL) {
                for (segment, projection) in group.segments.iter().zip(self.spec.arch.names.of_input(input)) {
                    if let Some(lora) = &segment.lora {
                        let module: Arc<str> = self.spec.arch.module(layer, projection).into();
                        let (a, b) = (ParamId::a(module.clone()), ParamId::b(module.clone()));
                        params.push((a, vec![lora.r, group.k], &lora.a));
                        params.push((b, vec![segment.n, lora.r], &lora.b));
                        let factors = lora.factors.as_ref();
                        params.extend(factors.map(|factors| (ParamId::e(module.clone()), vec![lora.r], &factors.e)));
                        let magnitude = lora.magnitude.as_ref();
                        params.extend(
                            magnitude.map(|magnitude| (ParamId::magnitude(module), vec![segment.n], &magnitude.m)),
                        );
                    }
                }
            }
            for (name, len, norm) in block.norms(arch, layer) {
                whole.extend(one(&name, vec![len], norm.param()));
            }
        }
        whole.extend(one(arch.names.final_norm, vec![arch.hidden_size], self.final_norm.param()));
        whole.extend(self.head.as_ref().and_then(|head| of_table(arch.names.head, head.param())));
        params.extend(whole);
        params
    }
}

fn build_layer<B: Backend>(
    backend: &mut B,
    source: &mut dyn Source,
    spec: &ModelSpec,
    layer: usize,
    rope: Option<usize>,
) -> Result<Layer<B>> {
    let arch = &spec.arch;
    let mut norm = |name: &str, len| spec.norm(backend, source, &arch.layer_tensor(layer, name), len);
    let mut around = |names: BranchNorms<&str>| {
        let mut norm = |name: Option<&str>| name.map(|name| norm(name, arch.hidden_size)).transpose();
        Ok::<_, Error>(BranchNorms { input: norm(names.input)?, output: norm(names.output)? })
    };
    let (attention_norms, mlp_norms) = (around(arch.names.attention_norms)?, around(arch.names.mlp_norms)?);
    let qk_norm = match arch.qk_norms() {
        Some([(q, q_len), (k, k_len)]) => Some([norm(q, q_len)?, norm(k, k_len)?]),
        None => None,
    };
    let mut group = |input| build_group(backend, source, spec, layer, input);
    Ok(Layer {
        attention_norms,
        qkv: group(Input::Attention)?,
        qk_norm,
        window: arch.layer(layer).window,
        rope,
        o: group(Input::Heads)?,
        mlp_norms,
        gate_up: group(Input::Mlp)?,
        down: group(Input::Activated)?,
    })
}

fn build_group<B: Backend>(
    backend: &mut B,
    source: &mut dyn Source,
    spec: &ModelSpec,
    layer: usize,
    input: Input,
) -> Result<LinearGroup<B>> {
    let arch = &spec.arch;
    let mut segments = Vec::new();
    for projection in arch.names.of_input(input) {
        let (n, k) = projection.shape(arch);
        let name = arch.weight_name(layer, projection);
        let stored = source.stored(&name);
        let resident_as = source.resident_as(&name);
        let quantization = resident_as.unwrap_or(spec.quantization);
        let weight = match (resident_as, quantization) {
            (Some(Quantization::Nf4 { .. }), _) if spec.residency_of(layer) == Residency::Disk => {
                backend.weight_on_disk(&name, n, k, quantization, layer, &mut || source.on_disk(&name))?
            }
            (None, Quantization::Nf4 { block_size, double_quant }) if backend.quantizes() => {
                let options = Nf4Options { block_size, double_quant };
                backend.quantized(&name, n, k, &options, &mut |take| source.read_in_pieces(&name, take))?
            }
            _ => backend.weight(&name, n, k, quantization, stored, &mut || source.read_weight(&name))?,
        };
        let bias = match arch.biases.contains(&projection) {
            true => {
                let name = arch.bias_name(layer, projection);
                Some(backend.vector("biases", n, &mut || source.read(&name).map(HostTensor::into_f32))?)
            }
            false => None,
        };
        let lora = build_lora(backend, source, spec, layer, projection, &weight)?;
        segments.push(Segment { n, weight, bias, lora });
    }
    let names: Vec<&str> = arch.names.of_input(input).map(|projection| arch.names.short(projection)).collect();
    let group = LinearGroup {
        k: input.width(arch),
        segments,
        dropout_id: (layer * 16 + input as usize) as u32,
        label: names.join(", "),
    };
    backend.prepare_group(&arch.first_weight(layer, input), &group)?;
    Ok(group)
}

fn build_lora<B: Backend>(
    backend: &mut B,
    source: &mut dyn Source,
    spec: &ModelSpec,
    layer: usize,
    projection: Projection,
    weight: &B::Weight,
) -> Result<Option<Lora<B>>> {
    let module: Arc<str> = spec.arch.module(layer, projection).into();
    let Some((r, scale)) = spec.lora.of(&module) else { return Ok(None) };
    let (n, k) = projection.shape(&spec.arch);
    let (a, b) = (ParamId::a(module.clone()), ParamId::b(module));
    let states = spec.trainable.then_some(spec.states);
    let (pair, name) = ([a, b], spec.arch.weight_name(layer, projection));
    let magnitude = match spec.lora.terms.get(pair[0].module()).map(|term| term.kind) {
        Some(LoraKind::Dora) => {
            let squares = backend.row_squares(&name, weight, n, k)?;
            // Those of the weight alone, as B begins with zeros.
            let norms: Vec<f32> = squares.iter().map(|square| square.sqrt()).collect();
            let own = source.magnitude(pair[0].module());
            Some(Magnitude {
                m: backend.param_in_f32(n, states, &mut || Ok(own.as_ref().unwrap_or(&norms).clone()))?,
                squares: backend.vector("DoRA norms", n, &mut || Ok(squares.clone()))?,
                norms: backend.vector("DoRA norms", n, &mut || Ok(norms.clone()))?,
            })
        }
        _ => None,
    };
    let [a, b] = &pair;
    let several = match spec.lora.by_row.len() {
        0 => None,
        count => {
            let scales = spec.lora.scales_of_rows(a.module());
            let scales = backend.vector("scales of adapters", count, &mut || Ok(scales.clone()))?;
            Some(SeveralPairs { count, scales })
        }
    };
    let pairs = several.as_ref().map_or(1, |several| several.count);
    let (a_len, b_len) = (pairs * r * k, pairs * n * r);
    let mut lora = Lora {
        r,
        scale,
        a: backend.param(a_len, states, &mut || source.lora(a, a_len, k))?,
        b: backend.param(b_len, states, &mut || source.lora(b, b_len, r))?,
        several,
        magnitude,
        factors: None,
    };
    if spec.lora.adalora.is_some() {
        let e = ParamId::e(a.module());
        let e = backend.param(r, states, &mut || source.lora(&e, r, 1))?;
        backend.prepare_operand(&mut lora.a, a_len);
        lora.factors = Some(RankFactors { e, triplets: Triplets::default() });
    }
    Ok(Some(lora))
}
