//! rsLoRA expressed as plain LoRA. SGLang and llama.cpp compute alpha / r whatever `use_rslora` says, so the written
//! adapter must not depend on it: alpha / √r = (alpha · √r) / r.

use super::{Adapter, LoraPair};
use crate::error::Result;
use crate::lora::{LoraSpec, ParamId};

impl Adapter {
    /// Turns rsLoRA into plain LoRA that computes the same; other adapters stay as they are.
    ///
    /// With one rank and alpha throughout and alpha · √r a whole number, alpha becomes that (exact). Otherwise B is
    /// multiplied by √r, one f32 rounding per element. Errors as [`lora_pairs`](Self::lora_pairs), with nothing
    /// changed.
    pub fn fold_rslora(&mut self) -> Result<()> {
        if !self.config.use_rslora {
            return Ok(());
        }
        let ranks: Vec<(String, usize)> =
            self.lora_pairs()?.into_iter().map(|(module, pair)| (module, pair.r)).collect();
        let (config, multiplies) = self.config.folded();
        for (module, r) in ranks.into_iter().filter(|_| multiplies) {
            if let Some((_, b)) = self.tensors.get_mut(&ParamId::b(module).peft_key()) {
                multiply_b(b, r);
            }
        }
        self.config = config;
        Ok(())
    }
}

/// B of a linear of rank r, whose scale alpha / √r is written as alpha / r.
pub(super) fn multiply_b(b: &mut [f32], r: usize) {
    multiply(b, (r as f64).sqrt());
}

fn multiply(b: &mut [f32], factor: f64) {
    b.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
}

impl Adapter {
    /// Gives its terms the alphas of `lora`, whose terms have the same ranks: B is multiplied so that what is computed
    /// stays. Returns whether anything changed.
    pub fn rescale(&mut self, lora: &LoraSpec) -> Result<bool> {
        let scale_of = |r, alpha, rslora| LoraSpec::scale(alpha, r, rslora);
        let own = self.config.use_rslora;
        let scales = |(module, pair): (String, LoraPair)| {
            let term = lora.terms.get(&module)?;
            let factor = scale_of(pair.r, pair.alpha, own) / scale_of(term.r, term.alpha, lora.rslora);
            Some((module, term.alpha, factor))
        };
        let factors: Vec<_> = self.lora_pairs()?.into_iter().filter_map(scales).collect();
        let changed = factors.iter().any(|(_, _, factor)| *factor != 1.0);
        for (module, _, factor) in factors.iter().filter(|(_, _, factor)| *factor != 1.0) {
            if let Some((_, b)) = self.tensors.get_mut(&ParamId::b(module.as_str()).peft_key()) {
                multiply(b, *factor);
            }
        }
        self.config.use_rslora = lora.rslora;
        self.config.alpha_pattern =
            factors.into_iter().map(|(module, alpha, _)| (format!("^{module}"), alpha)).collect();
        Ok(changed)
    }
}

impl super::AdapterConfig {
    /// The config without rsLoRA, and whether B has to be multiplied by √r for it to compute the same.
    pub(super) fn folded(&self) -> (Self, bool) {
        let uniform = self.rank_pattern.is_empty() && self.alpha_pattern.is_empty();
        let plain = Self { use_rslora: false, ..self.clone() };
        match self.folded_alpha().filter(|_| uniform) {
            _ if !self.use_rslora => (plain, false),
            Some(lora_alpha) => (Self { lora_alpha, ..plain }, false),
            None => (plain, true),
        }
    }

    /// alpha · √r where it is a whole number: √r is whole or irrational, so only for r a square.
    fn folded_alpha(&self) -> Option<f64> {
        let root = self.r.isqrt();
        let alpha = self.lora_alpha * root as f64;
        (root * root == self.r && alpha.fract() == 0.0).then_some(alpha)
    }
}
