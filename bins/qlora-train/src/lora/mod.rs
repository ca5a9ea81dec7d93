//! Trainable tensors as data: the low-rank terms of linear layers with kind, rank and scale, and the modules that are
//! trained in full beside them, or in the rows of some tokens. The model, the memory plan, the exported adapter, a
//! resumed run and the model card follow from one [`LoraSpec`].

pub mod adalora;
mod param_id;
pub mod start;

pub use adalora::AdaLora;
pub use param_id::{ParamId, ParamKind};

use crate::arch::{Arch, Projection};
use crate::config::InitLora;
use std::collections::{BTreeMap, BTreeSet};

/// The trainable tensors of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraSpec {
    /// Module, such as "model.layers.0.self_attn.q_proj" → its term
    pub terms: BTreeMap<String, LoraTerm>,
    /// The scale is alpha / √r (rsLoRA), not alpha / r.
    pub rslora: bool,
    /// Dropout on the low-rank path's input, [0, 1)
    pub dropout: f64,
    /// Initial values of the terms.
    pub init: InitLora,
    /// AdaLoRA: terms have a factor for each rank, B · diag(E) · A, and ranks are pruned. None: ranks stay.
    pub adalora: Option<AdaLora>,
    /// Modules that are trained whole (`modules_to_save`): embedding, output layer, norms. Where the output layer is
    /// the embedding, both are named.
    pub whole: BTreeSet<String>,
    /// Embedding or output layer → tokens whose rows alone are trained, in order, each once
    /// (`trainable_token_indices`). Where the output layer is the embedding, the embedding is named alone.
    pub tokens: BTreeMap<String, Vec<u32>>,
    /// Embedding and output layer have values of their own, although they are one tensor in the base.
    pub untied: bool,
    /// Adapters of which each row uses one, by number; the terms then have the largest rank of each module. Empty: one
    /// adapter for all rows
    pub by_row: Vec<LoraSpec>,
}

/// The low-rank term of one linear layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraTerm {
    pub kind: LoraKind,
    pub r: usize,
    pub alpha: f64,
}

/// The formula of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraKind {
    /// y += scale · (x · Aᵀ) · Bᵀ
    Lora,
    /// DoRA: y = m / ‖W + scale · B · A‖ ∘ x · (W + scale · B · A)ᵀ, with norms of rows that no gradient goes through
    Dora,
}

impl LoraTerm {
    pub fn lora(r: usize, alpha: f64) -> Self {
        Self { kind: LoraKind::Lora, r, alpha }
    }
}

impl LoraSpec {
    /// The factor of a term: alpha / r, or alpha / √r with rsLoRA.
    pub fn scale(alpha: f64, r: usize, rslora: bool) -> f64 {
        let r = r as f64;
        alpha / if rslora { r.sqrt() } else { r }
    }

    /// One rank and alpha on `projections` of every layer.
    pub fn uniform(arch: &Arch, projections: &[Projection], r: usize, alpha: f64, dropout: f64) -> Self {
        let modules = (0..arch.num_layers).flat_map(|layer| projections.iter().map(move |&p| arch.module(layer, p)));
        let terms = modules.map(|module| (module, LoraTerm::lora(r, alpha))).collect();
        Self { terms, dropout, ..Self::default() }
    }

    /// The terms of the written adapter. If training changed the base, they have twice the rank: the present terms, and
    /// the initial ones with the opposite sign. Scales stay the same except for AdaLoRA, whose terms become plain LoRA.
    pub fn exported(&self) -> Self {
        let mut exported = Self { init: InitLora::Random, adalora: None, ..self.clone() };
        if self.init.changes_base() {
            let factor = if self.rslora { 2f64.sqrt() } else { 2.0 };
            exported.terms.values_mut().for_each(|term| (term.r, term.alpha) = (2 * term.r, factor * term.alpha));
        }
        exported
    }

    /// True if terms have magnitudes of their own.
    pub fn is_dora(&self) -> bool {
        self.terms.values().any(|term| term.kind == LoraKind::Dora)
    }

    /// Adapters of which each row uses one. They are plain LoRA: modules that are trained in full would apply to all
    /// rows.
    pub fn of_rows(by_row: Vec<Self>) -> Self {
        let mut terms: BTreeMap<String, LoraTerm> = BTreeMap::new();
        for (module, term) in by_row.iter().flat_map(|adapter| &adapter.terms) {
            let r = terms.get(module).map_or(term.r, |other| other.r.max(term.r));
            terms.insert(module.clone(), LoraTerm::lora(r, r as f64));
        }
        Self { terms, by_row, ..Self::default() }
    }

    /// The scale of a module's term in each of the adapters that rows choose from; 0 where it has none.
    pub fn scales_of_rows(&self, module: &str) -> Vec<f32> {
        self.by_row.iter().map(|adapter| adapter.of(module).map_or(0.0, |(_, scale)| scale)).collect()
    }

    /// Name of a part that is more than plain LoRA; none: there is no such part.
    pub fn beside_plain_lora(&self) -> Option<&'static str> {
        if self.is_dora() {
            return Some("DoRA magnitudes");
        }
        match (self.whole.is_empty(), self.tokens.is_empty()) {
            (false, _) => Some("whole modules (`modules_to_save`)"),
            (_, false) => Some("rows of single tokens (`trainable_token_indices`)"),
            _ => None,
        }
    }

    /// True if all terms have one rank and one alpha.
    pub fn is_uniform(&self) -> bool {
        let mut terms = self.terms.values();
        let first = terms.next();
        terms.all(|term| Some(term) == first)
    }

    /// Rank and scale of a module's term, if it has one.
    pub fn of(&self, module: &str) -> Option<(usize, f32)> {
        let term = self.terms.get(module)?;
        let scale = match self.adalora {
            Some(_) => AdaLora::scale(term.alpha, term.r),
            None => Self::scale(term.alpha, term.r, self.rslora),
        };
        Some((term.r, scale as f32))
    }

    /// Elements of every trainable tensor: A `[r, K]`, B `[N, r]`, DoRA's m `[N]` and AdaLoRA's E `[r]` of each term,
    /// then the whole modules and the rows of single tokens. A module that `arch` does not have is left out.
    pub fn lengths<'a>(&'a self, arch: &'a Arch) -> impl Iterator<Item = usize> + 'a {
        let terms = self.terms.iter().filter_map(|(module, term)| {
            let (n, k) = arch.find(module)?.1.shape(arch);
            let magnitude = (term.kind == LoraKind::Dora).then_some(n);
            let e = self.adalora.map(|_| term.r);
            Some([term.r * k, n * term.r].into_iter().chain(magnitude).chain(e))
        });
        let one = |module: &String| !self.shares_embedding(arch, module);
        let whole = self.whole_modules(arch).into_iter().filter(move |(module, _)| one(module));
        let rows = self.tokens.values().map(|tokens| tokens.len() * arch.hidden_size);
        terms.flatten().chain(whole.map(|(_, shape)| shape.iter().product())).chain(rows)
    }

    /// Elements of those trainable tensors that operations read in f32: DoRA's m, and the weights of norms.
    pub fn lengths_in_f32<'a>(&'a self, arch: &'a Arch) -> impl Iterator<Item = usize> + 'a {
        let with_magnitude = self.terms.iter().filter(|(_, term)| term.kind == LoraKind::Dora);
        let magnitudes = with_magnitude.filter_map(move |(module, _)| Some(arch.find(module)?.1.shape(arch).0));
        let norms = self.whole_modules(arch).into_iter().filter(|(_, shape)| shape.len() == 1);
        magnitudes.chain(norms.map(|(_, shape)| shape[0]))
    }

    /// Modules that are trained whole, with their shapes. A planner asks for them hundreds of times: hardly ever are
    /// there any, and a model has hundreds of others.
    fn whole_modules(&self, arch: &Arch) -> Vec<(String, Vec<usize>)> {
        let others = if self.whole.is_empty() { Vec::new() } else { arch.other_modules() };
        others.into_iter().filter(|(module, _)| self.whole.contains(module)).collect()
    }

    /// Bytes of importance, by which ranks are pruned: two numbers for each value of A, B and E.
    pub fn importance_bytes(&self, arch: &Arch) -> u64 {
        8 * self.cut_lengths(arch).sum::<u64>()
    }

    /// Bytes of host memory for pruning ranks: importance, and values and gradients of one term at a time.
    pub fn rank_bytes(&self, arch: &Arch) -> u64 {
        self.importance_bytes(arch) + 16 * self.cut_lengths(arch).max().unwrap_or(0)
    }

    /// Values of A, B and E of each term whose ranks are pruned.
    fn cut_lengths(&self, arch: &Arch) -> impl Iterator<Item = u64> {
        let terms = self.terms.iter().filter(|_| self.adalora.is_some());
        terms.filter_map(|(module, term)| {
            let (n, k) = arch.find(module)?.1.shape(arch);
            Some((term.r * (n + k + 1)) as u64)
        })
    }

    /// True if a module is the output layer and one tensor with the embedding.
    pub fn shares_embedding(&self, arch: &Arch, module: &str) -> bool {
        arch.tie_word_embeddings && !self.untied && module == arch.names.head_module()
    }

    /// True if the embedding, or the norm that reads it, is trained: gradients are needed down to there.
    pub fn trains_input(&self, arch: &Arch) -> bool {
        let norm = arch.names.attention_norms.input.map(|norm| arch.layer_tensor(0, norm));
        let of_norm = norm.as_deref().and_then(|norm| norm.strip_suffix(".weight"));
        let embedding = arch.names.embedding_module();
        let trains_embedding = self.whole.contains(embedding) || self.tokens.contains_key(embedding);
        trains_embedding || of_norm.is_some_and(|norm| self.whole.contains(norm))
    }
}

#[cfg(test)]
mod tests;
