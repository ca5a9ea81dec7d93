//! rsLoRA expressed as plain LoRA. SGLang and llama.cpp compute alpha / r whatever `use_rslora` says, so what is
//! written must not depend on it: alpha / √r = (alpha · √r) / r.

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
        let uniform = self.config.rank_pattern.is_empty() && self.config.alpha_pattern.is_empty();
        match self.config.folded_alpha() {
            Some(alpha) if uniform => self.config.lora_alpha = alpha,
            _ => {
                for (module, r) in ranks {
                    let factor = (r as f64).sqrt();
                    if let Some((_, b)) = self.tensors.get_mut(&ParamId::b(module).peft_key()) {
                        b.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
                    }
                }
            }
        }
        self.config.use_rslora = false;
        Ok(())
    }
}

impl Adapter {
    /// Gives its terms the alphas of `lora`, whose terms have the same ranks: B is multiplied so that what is computed
    /// stays. Returns whether anything had to be.
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
                b.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
            }
        }
        self.config.use_rslora = lora.rslora;
        self.config.alpha_pattern =
            factors.into_iter().map(|(module, alpha, _)| (format!("^{module}"), alpha)).collect();
        Ok(changed)
    }
}

impl super::AdapterConfig {
    /// alpha · √r where it is a whole number: √r is whole or irrational, so only for r a square.
    fn folded_alpha(&self) -> Option<f64> {
        let root = self.r.isqrt();
        let alpha = self.lora_alpha * root as f64;
        (root * root == self.r && alpha.fract() == 0.0).then_some(alpha)
    }
}
