//! Trainable tensors as data: which linear layers have a low-rank term, of what kind, rank and scale, and which modules
//! are trained whole beside them, or in the rows of some tokens. The model, the memory plan, the exported adapter, a
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
    /// What the terms begin with.
    pub init: InitLora,
    /// AdaLoRA: terms have a factor for each rank, B · diag(E) · A, and ranks are cut. None: they stay.
    pub adalora: Option<AdaLora>,
    /// Modules that are trained whole (`modules_to_save`): embedding, output layer, norms. Where the output layer is
    /// the embedding, both are named.
    pub whole: BTreeSet<String>,
    /// Embedding or output layer → tokens whose rows alone are trained, in order, each once
    /// (`trainable_token_indices`). Where the output layer is the embedding, the embedding is named alone.
    pub tokens: BTreeMap<String, Vec<u32>>,
    /// Embedding and output layer have values of their own, although they are one tensor in the base.
    pub untied: bool,
    /// Adapters of which each row takes one, by number; the terms then have the largest rank of each module. Empty: one
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

/// What a term computes.
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

    /// The terms of the adapter that is written: on a base that was changed, twice the ranks hold the terms of now and,
    /// with the other sign, those of the start. The scales stay, but for that of AdaLoRA, whose terms become plain.
    pub fn exported(&self) -> Self {
        let mut exported = Self { init: InitLora::Random, adalora: None, ..self.clone() };
        if self.init.changes_base() {
            let factor = if self.rslora { 2f64.sqrt() } else { 2.0 };
            exported.terms.values_mut().for_each(|term| (term.r, term.alpha) = (2 * term.r, factor * term.alpha));
        }
        exported
    }

    /// Whether terms have magnitudes of their own.
    pub fn is_dora(&self) -> bool {
        self.terms.values().any(|term| term.kind == LoraKind::Dora)
    }

    /// Adapters of which each row takes one. They are plain LoRA: what is trained whole would be that of all rows.
    pub fn of_rows(by_row: Vec<Self>) -> Self {
        let mut terms: BTreeMap<String, LoraTerm> = BTreeMap::new();
        for (module, term) in by_row.iter().flat_map(|adapter| &adapter.terms) {
            let r = terms.get(module).map_or(term.r, |other| other.r.max(term.r));
            terms.insert(module.clone(), LoraTerm::lora(r, r as f64));
        }
        Self { terms, by_row, ..Self::default() }
    }

    /// The scale of a module's term in each adapter of which rows take one; 0 where it has none.
    pub fn scales_of_rows(&self, module: &str) -> Vec<f32> {
        self.by_row.iter().map(|adapter| adapter.of(module).map_or(0.0, |(_, scale)| scale)).collect()
    }

    /// Name of something that it holds beside plain LoRA; none: nothing.
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

    /// Whether all terms have one rank and one alpha.
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
        let whole =
            arch.other_modules().into_iter().filter(move |(module, _)| self.whole.contains(module) && one(module));
        let rows = self.tokens.values().map(|tokens| tokens.len() * arch.hidden_size);
        terms.flatten().chain(whole.map(|(_, shape)| shape.iter().product())).chain(rows)
    }

    /// Bytes of importance, by which ranks are cut: two numbers for each value of A, B and E.
    pub fn importance_bytes(&self, arch: &Arch) -> u64 {
        8 * self.cut_lengths(arch).sum::<u64>()
    }

    /// Bytes of the host's memory that cutting ranks takes: importance, and values and gradients of one term at a time.
    pub fn rank_bytes(&self, arch: &Arch) -> u64 {
        self.importance_bytes(arch) + 16 * self.cut_lengths(arch).max().unwrap_or(0)
    }

    /// Values of A, B and E of each term whose ranks are cut.
    fn cut_lengths(&self, arch: &Arch) -> impl Iterator<Item = u64> {
        let terms = self.terms.iter().filter(|_| self.adalora.is_some());
        terms.filter_map(|(module, term)| {
            let (n, k) = arch.find(module)?.1.shape(arch);
            Some((term.r * (n + k + 1)) as u64)
        })
    }

    /// Whether a module is the output layer and one tensor with the embedding.
    pub fn shares_embedding(&self, arch: &Arch, module: &str) -> bool {
        arch.tie_word_embeddings && !self.untied && module == arch.names.head_module()
    }

    /// Whether what embeds tokens, or the norm that reads it, is trained: gradients are needed down to there.
    pub fn trains_input(&self, arch: &Arch) -> bool {
        let norm = arch.names.attention_norms.input.map(|norm| arch.layer_tensor(0, norm));
        let of_norm = norm.as_deref().and_then(|norm| norm.strip_suffix(".weight"));
        let embedding = arch.names.embedding_module();
        let trains_embedding = self.whole.contains(embedding) || self.tokens.contains_key(embedding);
        trains_embedding || of_norm.is_some_and(|norm| self.whole.contains(norm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::synthetic::tiny_arch;

    #[test]
    fn the_scale_is_alpha_over_r_or_over_its_root() {
        assert_eq!(LoraSpec::scale(32.0, 16, false), 2.0);
        assert_eq!(LoraSpec::scale(32.0, 16, true), 8.0);
        let mut spec = LoraSpec::uniform(&tiny_arch(), &[Projection::Q], 8, 4.0, 0.0);
        assert_eq!(spec.of("model.layers.1.self_attn.q_proj"), Some((8, 0.5)));
        assert_eq!(spec.of("model.layers.1.self_attn.k_proj"), None);
        spec.rslora = true;
        assert_eq!(spec.of("model.layers.1.self_attn.q_proj"), Some((8, (4.0 / 8f64.sqrt()) as f32)));
    }

    #[test]
    fn what_is_exported_of_a_changed_base_has_twice_the_rank_and_the_scale() {
        for rslora in [false, true] {
            let init = InitLora::Olora;
            let spec = LoraSpec { init, rslora, ..LoraSpec::uniform(&tiny_arch(), &[Projection::Q], 8, 4.0, 0.0) };
            let (exported, module) = (spec.exported(), "model.layers.1.self_attn.q_proj");
            let ((r, scale), (own, expected)) = (exported.of(module).unwrap(), spec.of(module).unwrap());
            assert_eq!((r, own), (16, 8));
            assert!((scale / expected - 1.0).abs() < 1e-6, "{scale} {expected}");
            assert_eq!(exported.exported(), exported);
        }
    }

    #[test]
    fn the_scale_of_adalora_is_exported_as_that_of_lora() {
        let settings = AdaLora {
            target_r: 2,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_steps: None,
        };
        let spec = LoraSpec::uniform(&tiny_arch(), &[Projection::Q], 12, 24.0, 0.0);
        let spec = LoraSpec { adalora: Some(settings), ..spec };
        let module = "model.layers.1.self_attn.q_proj";
        assert_eq!(spec.of(module), Some((12, (24.0 / (12.0 + 1e-5)) as f32)));
        assert_eq!(spec.exported().of(module), Some((12, 2.0)));
        assert!((AdaLora::scale_over_lora(12) * 2.0 - AdaLora::scale(24.0, 12)).abs() < 1e-15);
        let len = 12 * (64 + 64 + 1);
        assert_eq!(spec.rank_bytes(&tiny_arch()), 8 * 2 * len + 16 * len);
        assert_eq!((spec.importance_bytes(&tiny_arch()), spec.exported().rank_bytes(&tiny_arch())), (16 * len, 0));
        assert_eq!(spec.lengths(&tiny_arch()).take(3).collect::<Vec<_>>(), [12 * 64, 64 * 12, 12]);
    }

    #[test]
    fn adapters_of_rows_have_the_largest_rank_of_each_module_and_their_own_scales() {
        let arch = tiny_arch();
        let of = |projections: &[Projection], r, alpha| LoraSpec::uniform(&arch, projections, r, alpha, 0.1);
        let rows = LoraSpec::of_rows(vec![of(&[Projection::Q], 8, 4.0), of(&[Projection::Q, Projection::Up], 2, 6.0)]);
        let [q, up] = [Projection::Q, Projection::Up].map(|projection| arch.module(1, projection));
        assert_eq!((rows.of(&q), rows.of(&up)), (Some((8, 1.0)), Some((2, 1.0))));
        assert_eq!((rows.scales_of_rows(&q), rows.scales_of_rows(&up)), (vec![0.5, 3.0], vec![0.0, 3.0]));
        assert_eq!((rows.dropout, rows.terms.len(), rows.beside_plain_lora()), (0.0, 2 * arch.num_layers, None));
        let mut other = of(&[Projection::Q], 8, 4.0);
        other.tokens = [("model.embed_tokens".to_owned(), vec![3])].into();
        assert!(other.beside_plain_lora().unwrap().contains("trainable_token_indices"));
    }

    #[test]
    fn lengths_are_those_of_a_and_b() {
        let arch = tiny_arch();
        let spec = LoraSpec::uniform(&arch, &[Projection::Down], 3, 1.0, 0.0);
        let terms = [3 * 128, 64 * 3].repeat(2);
        assert_eq!(spec.lengths(&arch).collect::<Vec<_>>(), terms);
        let whole = ["lm_head", "model.embed_tokens", "model.norm"].map(str::to_owned).into();
        let spec = LoraSpec { whole, ..spec };
        let table = arch.vocab_size * 64;
        assert_eq!(spec.lengths(&arch).collect::<Vec<_>>()[4..], [table, 64, table]);
        let tied = Arch { tie_word_embeddings: true, ..arch };
        assert_eq!(spec.lengths(&tied).collect::<Vec<_>>()[4..], [table, 64]);
        let untied = LoraSpec { untied: true, ..spec };
        assert_eq!(untied.lengths(&tied).count(), 4 + 3);
        let tokens = [("model.embed_tokens".to_owned(), vec![3, 5, 9])].into();
        let rows = LoraSpec { tokens, ..LoraSpec::default() };
        assert_eq!(rows.lengths(&tied).collect::<Vec<_>>(), [3 * 64]);
        assert!(rows.trains_input(&tied));
    }

    #[test]
    fn gradients_go_down_to_what_is_trained() {
        let arch = tiny_arch();
        for (module, expected) in [
            ("model.embed_tokens", true),
            ("model.layers.0.input_layernorm", true),
            ("model.layers.0.post_attention_layernorm", false),
            ("model.layers.1.input_layernorm", false),
            ("lm_head", false),
        ] {
            let spec = LoraSpec { whole: [module.to_owned()].into(), ..LoraSpec::default() };
            assert_eq!(spec.trains_input(&arch), expected, "{module}");
        }
    }
}
