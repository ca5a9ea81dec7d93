//! A Llama with a frozen base and trainable low-rank terms, written once over [`Backend`].

mod cached;
pub mod generate;
pub mod optimizer_step;
mod step;

pub use cached::KvCache;

use crate::arch::{LlamaConfig, Module};
use crate::backend::dims::Dims;
use crate::backend::{Backend, LinearGroup, LinearGroupOf, Lora, LoraOf, Quantization, SegmentOf, StateFormat};
use crate::error::Result;
use crate::files::tensor::{StoredType, StoredWeight, Tensor16};
use qlora_kernels::reference::{AttentionShape, RopeTable};
use std::collections::BTreeMap;

/// The low-rank terms of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraSpec {
    /// (layer, module) → (r, scale); the scale is alpha / r, or alpha / √r with rsLoRA.
    pub terms: BTreeMap<(usize, Module), (usize, f32)>,
    /// Dropout on the low-rank path's input, [0, 1)
    pub dropout: f32,
    /// How the optimiser keeps its moments, where the terms are trained.
    pub states: StateFormat,
}

impl LoraSpec {
    /// The same rank and scale on `modules` of every layer; optimiser states in f32.
    pub fn uniform(config: &LlamaConfig, modules: &[Module], r: usize, scale: f32, dropout: f32) -> Self {
        let places = (0..config.num_layers).flat_map(|layer| modules.iter().map(move |&module| (layer, module)));
        Self { terms: places.map(|place| (place, (r, scale))).collect(), dropout, states: StateFormat::F32 }
    }
}

/// What is built, before any weight is read.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    pub config: LlamaConfig,
    pub quantization: Quantization,
    pub lora: LoraSpec,
    /// Whether the low-rank terms get gradients and optimiser states.
    pub trainable: bool,
    /// Keep only each layer's input and compute its activations again in the backward pass. Same bits, less memory.
    pub recompute: bool,
    /// Keep those inputs in host memory, where the device has memory of its own. Same bits.
    pub offload: bool,
    /// Tokens of the longest batch.
    pub tokens: usize,
    /// Tokens of the longest row.
    pub positions: usize,
    pub seed: u64,
}

impl ModelSpec {
    pub fn dims(&self) -> Dims {
        let c = &self.config;
        let mut groups: Vec<_> = (0..c.num_layers)
            .flat_map(|layer| GROUPS.map(|modules| (layer, modules)))
            .map(|(layer, modules)| {
                let n = modules.iter().map(|m| m.shape(c).0).sum::<usize>();
                let r = modules.iter().map(|&m| self.rank(layer, m)).sum::<usize>();
                (n, modules[0].shape(c).1, r)
            })
            .collect();
        groups.sort_unstable();
        groups.dedup();
        Dims {
            tokens: self.tokens,
            hidden: c.hidden_size,
            vocab: c.vocab_size,
            heads: c.num_heads,
            groups,
            dropout: self.trainable && self.lora.dropout > 0.0,
            training: self.trainable,
            offload: self.offload && self.recompute,
        }
    }

    fn rank(&self, layer: usize, module: Module) -> usize {
        self.lora.terms.get(&(layer, module)).map_or(0, |term| term.0)
    }

    /// Parameters of the low-rank terms: r·(N + K) each.
    pub fn lora_parameters(&self) -> u64 {
        let count = |(&(_, module), &(r, _)): (&(usize, Module), &(usize, f32))| {
            let (n, k) = module.shape(&self.config);
            (r * (n + k)) as u64
        };
        self.lora.terms.iter().map(count).sum()
    }
}

/// One trainable tensor's place: A `[r, K]` or B `[N, r]` of one linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamName {
    pub layer: usize,
    pub module: Module,
    pub factor: Factor,
}

/// Place, shape and values of one trainable tensor.
pub type ParamValues = (ParamName, [usize; 2], Vec<f32>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Factor {
    A,
    B,
}

impl std::fmt::Display for ParamName {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "model.layers.{}.{}.lora_{:?}.weight", self.layer, self.module.path(), self.factor)
    }
}

/// Where the values of a model come from.
pub trait Source {
    /// How a tensor is stored.
    fn stored(&self, name: &str) -> StoredType;
    fn read(&mut self, name: &str) -> Result<Tensor16>;
    /// How a linear weight is held, where its source settles that: as a quantised checkpoint stores it. `None`: as
    /// [`ModelSpec::quantization`] says.
    fn held(&self, _name: &str) -> Option<Quantization> {
        None
    }
    /// A linear weight, in NF4 where the source stores it so.
    fn read_weight(&mut self, name: &str) -> Result<StoredWeight> {
        self.read(name).map(StoredWeight::Tensor)
    }
    /// Initial values of a trainable tensor of `len` values whose rows have `columns` values.
    fn lora(&mut self, name: ParamName, len: usize, columns: usize) -> Result<Vec<f32>>;
}

/// Linear layers that share their input. The index is the dropout site.
const GROUPS: [&[Module]; 4] =
    [&[Module::Q, Module::K, Module::V], &[Module::O], &[Module::Gate, Module::Up], &[Module::Down]];

struct Layer<B: Backend> {
    input_norm: B::Vector,
    qkv: LinearGroup<B>,
    o: LinearGroup<B>,
    post_attention_norm: B::Vector,
    gate_up: LinearGroup<B>,
    down: LinearGroup<B>,
}

impl<B: Backend> Layer<B> {
    /// In the order of [`GROUPS`].
    fn groups_mut(&mut self) -> [&mut LinearGroup<B>; 4] {
        [&mut self.qkv, &mut self.o, &mut self.gate_up, &mut self.down]
    }

    fn groups(&self) -> [&LinearGroup<B>; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
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
    /// Reads and quantises one tensor at a time. `progress` is called after each layer with the number done.
    pub fn build(
        backend: &mut B,
        source: &mut dyn Source,
        spec: ModelSpec,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let c = spec.config.clone();
        backend.rope_table(spec.positions * (c.head_dim / 2), &mut || {
            RopeTable::new(c.head_dim, c.rope.theta, c.rope.scaling, spec.positions)
        })?;
        let embedding = table(backend, source, "embedding", "model.embed_tokens.weight", !c.tie_word_embeddings, &c)?;
        let mut layers = Vec::with_capacity(c.num_layers);
        for layer in 0..c.num_layers {
            layers.push(build_layer(backend, source, &spec, layer)?);
            progress(layer + 1);
        }
        let final_norm = vector(backend, source, "norms", "model.norm.weight", c.hidden_size)?;
        let head = match c.tie_word_embeddings {
            true => None,
            false => Some(table(backend, source, "lm_head", "lm_head.weight", false, &c)?),
        };
        let attention = AttentionShape { heads: c.num_heads, kv_heads: c.num_kv_heads, head_dim: c.head_dim };
        Ok(Self { spec, attention, embedding, layers, final_norm, head })
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Every trainable tensor, layer by layer in the order of [`Module::ALL`], A before B.
    pub fn params_mut(&mut self) -> Vec<(ParamName, &mut B::Param)> {
        let mut params = Vec::new();
        for (layer, block) in self.layers.iter_mut().enumerate() {
            for (group, modules) in block.groups_mut().into_iter().zip(GROUPS) {
                for (segment, &module) in group.segments.iter_mut().zip(modules) {
                    if let Some(lora) = &mut segment.lora {
                        params.push((ParamName { layer, module, factor: Factor::A }, &mut lora.a));
                        params.push((ParamName { layer, module, factor: Factor::B }, &mut lora.b));
                    }
                }
            }
        }
        params
    }

    /// Puts other low-rank terms on the same base. They are read from `source`; the base is not.
    pub fn replace_lora(&mut self, b: &mut B, source: &mut dyn Source, lora: LoraSpec) -> Result<()> {
        self.spec.lora = lora;
        for (layer, block) in self.layers.iter_mut().enumerate() {
            for (group, modules) in block.groups_mut().into_iter().zip(GROUPS) {
                for (segment, &module) in group.segments.iter_mut().zip(modules) {
                    if let Some(old) = segment.lora.take() {
                        b.free_param(old.a);
                        b.free_param(old.b);
                    }
                    segment.lora = build_lora(b, source, &self.spec, layer, module)?;
                }
                b.accept(&modules[0].weight_name(layer), group)?;
            }
        }
        Ok(())
    }

    /// Shape and values of every trainable tensor, in the order of [`Self::params_mut`].
    pub fn param_values(&self, backend: &B) -> Result<Vec<ParamValues>> {
        let mut values = Vec::new();
        for (layer, block) in self.layers.iter().enumerate() {
            for (group, modules) in block.groups().into_iter().zip(GROUPS) {
                for (segment, &module) in group.segments.iter().zip(modules) {
                    if let Some(lora) = &segment.lora {
                        let name = |factor| ParamName { layer, module, factor };
                        values.push((name(Factor::A), [lora.r, group.k], backend.param_values(&lora.a)?));
                        values.push((name(Factor::B), [segment.n, lora.r], backend.param_values(&lora.b)?));
                    }
                }
            }
        }
        Ok(values)
    }
}

fn vector<B: Backend>(
    backend: &mut B,
    source: &mut dyn Source,
    what: &'static str,
    name: &str,
    len: usize,
) -> Result<B::Vector> {
    backend.vector(what, len, &mut || source.read(name).map(Tensor16::into_f32))
}

fn table<B: Backend>(
    backend: &mut B,
    source: &mut dyn Source,
    what: &'static str,
    name: &str,
    gathered: bool,
    config: &LlamaConfig,
) -> Result<B::Table> {
    let stored = source.stored(name);
    backend.table(what, config.vocab_size, config.hidden_size, gathered, stored, &mut || source.read(name))
}

fn build_layer<B: Backend>(
    backend: &mut B,
    source: &mut dyn Source,
    spec: &ModelSpec,
    layer: usize,
) -> Result<Layer<B>> {
    let hidden = spec.config.hidden_size;
    let norm = |name: &str| format!("model.layers.{layer}.{name}.weight");
    let input_norm = vector(backend, source, "norms", &norm("input_layernorm"), hidden)?;
    let post_attention_norm = vector(backend, source, "norms", &norm("post_attention_layernorm"), hidden)?;
    let mut group = |site: usize| build_group(backend, source, spec, layer, site);
    Ok(Layer { input_norm, qkv: group(0)?, o: group(1)?, post_attention_norm, gate_up: group(2)?, down: group(3)? })
}

fn build_group<B: Backend>(
    backend: &mut B,
    source: &mut dyn Source,
    spec: &ModelSpec,
    layer: usize,
    site: usize,
) -> Result<LinearGroup<B>> {
    let mut segments = Vec::new();
    for &module in GROUPS[site] {
        let (n, k) = module.shape(&spec.config);
        let name = module.weight_name(layer);
        let stored = source.stored(&name);
        let quantization = source.held(&name).unwrap_or(spec.quantization);
        let weight = backend.weight(&name, n, k, quantization, stored, &mut || source.read_weight(&name))?;
        let bias = match module.has_bias(&spec.config) {
            true => Some(vector(backend, source, "biases", &module.bias_name(layer), n)?),
            false => None,
        };
        let lora = build_lora(backend, source, spec, layer, module)?;
        segments.push(SegmentOf { n, weight, bias, lora });
    }
    let k = GROUPS[site][0].shape(&spec.config).1;
    let group = LinearGroupOf { k, segments, site: (layer * 16 + site) as u32 };
    backend.accept(&GROUPS[site][0].weight_name(layer), &group)?;
    Ok(group)
}

fn build_lora<B: Backend>(
    backend: &mut B,
    source: &mut dyn Source,
    spec: &ModelSpec,
    layer: usize,
    module: Module,
) -> Result<Option<Lora<B>>> {
    let Some(&(r, scale)) = spec.lora.terms.get(&(layer, module)) else { return Ok(None) };
    let (n, k) = module.shape(&spec.config);
    let name = |factor| ParamName { layer, module, factor };
    let (a, b) = (name(Factor::A), name(Factor::B));
    let states = spec.trainable.then_some(spec.lora.states);
    Ok(Some(LoraOf {
        r,
        scale,
        a: backend.param(r * k, states, &mut || source.lora(a, r * k, k))?,
        b: backend.param(n * r, states, &mut || source.lora(b, n * r, r))?,
    }))
}
