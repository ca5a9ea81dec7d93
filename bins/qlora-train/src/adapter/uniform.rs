//! Adapters of one rank and one alpha, for engines that do not read `rank_pattern` and `alpha_pattern`.

use super::{Adapter, LoraPair};
use crate::error::Result;
use crate::lora::{LoraSpec, ParamId};
use indexmap::IndexMap;

impl Adapter {
    /// The adapter as plain LoRA of one rank and one alpha that computes the same: A and B are padded with zeros to the
    /// largest rank. Where ranks, alphas or the formula of the scale have to change, B is multiplied by the scale and
    /// alpha is the rank. Errors as [`lora_pairs`](Self::lora_pairs).
    pub fn uniform(&self) -> Result<Self> {
        let mut uniform = self.clone();
        uniform.fold_rslora()?;
        let pairs = uniform.lora_pairs()?;
        let Some(r) = pairs.values().map(|pair| pair.r).max() else { return Ok(uniform) };
        let alike = |pair: &LoraPair| pair.r == r && pair.alpha == uniform.config.lora_alpha;
        let mut tensors = uniform.tensors.clone();
        let is_uniform = pairs.values().all(alike);
        if !is_uniform {
            for (module, pair) in &pairs {
                let (a, b) = padded(pair, r);
                tensors.insert(ParamId::a(module.as_str()).peft_key(), (vec![r, pair.k_in], a));
                tensors.insert(ParamId::b(module.as_str()).peft_key(), (vec![pair.n_out, r], b));
            }
            uniform.config.lora_alpha = r as f64;
        }
        uniform.tensors = tensors;
        uniform.config.r = r;
        uniform.config.rank_pattern = IndexMap::new();
        uniform.config.alpha_pattern = IndexMap::new();
        Ok(uniform)
    }
}

/// A `[r, k_in]` and scale · B `[n_out, r]`.
fn padded(pair: &LoraPair, r: usize) -> (Vec<f32>, Vec<f32>) {
    let mut a = pair.a.to_vec();
    a.resize(r * pair.k_in, 0.0);
    let scale = LoraSpec::scale(pair.alpha, pair.r, false);
    let mut b = vec![0.0; pair.n_out * r];
    for (to, from) in b.chunks_exact_mut(r).zip(pair.b.chunks_exact(pair.r)) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = (f64::from(*from) * scale) as f32);
    }
    (a, b)
}
