//! Low-rank terms as data: which linear layers have one, of what kind, rank and scale. The model, the memory plan, the
//! exported adapter, a resumed run and the model card follow from one [`LoraSpec`].

mod param_id;

pub use param_id::{ParamId, ParamKind};

use crate::arch::{Arch, Projection};
use std::collections::BTreeMap;

/// The low-rank terms of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraSpec {
    /// Module, such as "model.layers.0.self_attn.q_proj" → its term
    pub terms: BTreeMap<String, LoraTerm>,
    /// The scale is alpha / √r (rsLoRA), not alpha / r.
    pub rslora: bool,
    /// Dropout on the low-rank path's input, [0, 1)
    pub dropout: f64,
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
        Self { terms, rslora: false, dropout }
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
        Some((term.r, Self::scale(term.alpha, term.r, self.rslora) as f32))
    }

    /// Elements of A `[r, K]` and of B `[N, r]` of every term. A module that `arch` does not have is left out.
    pub fn lengths<'a>(&'a self, arch: &'a Arch) -> impl Iterator<Item = [usize; 2]> + 'a {
        self.terms.iter().filter_map(|(module, term)| {
            let (n, k) = arch.find(module)?.1.shape(arch);
            Some([term.r * k, n * term.r])
        })
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
    fn lengths_are_those_of_a_and_b() {
        let arch = tiny_arch();
        let spec = LoraSpec::uniform(&arch, &[Projection::Down], 3, 1.0, 0.0);
        assert_eq!(spec.lengths(&arch).collect::<Vec<_>>(), [[3 * 128, 64 * 3]; 2]);
    }
}
