//! AdaLoRA around an update: before it the gradients of A and E from that of E ∘ A, after it importance and cuts. All
//! of it is computed on the host, from values and gradients that are the same on all ranks.

use super::{Layer, Llama};
use crate::arch::Input;
use crate::backend::{Backend, Lora, RankFactors};
use crate::error::Result;
use crate::lora::adalora::{self, Importance, Phase};
use crate::lora::{AdaLora, ParamId, ParamKind};
use crate::report::status;
use std::sync::Arc;

/// Name of the work among the operations of a step
const NAME: &str = "AdaLoRA";

/// The low-rank terms, layer by layer.
fn terms<B: Backend>(layers: &mut [Layer<B>]) -> impl Iterator<Item = &mut Lora<B>> {
    let groups = layers.iter_mut().flat_map(|layer| layer.groups_mut());
    groups.flat_map(|group| group.segments.iter_mut()).filter_map(|segment| segment.lora.as_mut())
}

impl<B: Backend> Llama<B> {
    fn adalora(&self, b: &B) -> Option<AdaLora> {
        self.spec.lora.adalora.filter(|_| !b.is_dry_run())
    }

    /// Gives products E ∘ A to read.
    pub(super) fn refresh_products(&mut self, b: &mut B) -> Result<()> {
        if self.adalora(b).is_none() {
            return Ok(());
        }
        for lora in terms(&mut self.layers) {
            let Some(RankFactors { e, .. }) = &lora.factors else { continue };
            let mut values = b.param_values(&lora.a)?;
            adalora::scale_rows(&mut values, &b.param_values(e)?);
            b.set_operand(&mut lora.a, values)?;
        }
        Ok(())
    }

    /// Completes the gradients of a step: that of A, which is that of E ∘ A so far, becomes those of A and E, and
    /// orthogonality adds its own.
    pub(super) fn complete_gradients(&mut self, b: &mut B) -> Result<()> {
        let Some(settings) = self.adalora(b) else { return Ok(()) };
        let weight = settings.orth_reg_weight / (2 * self.spec.lora.terms.len()) as f64;
        for lora in terms(&mut self.layers) {
            let Some(RankFactors { e, .. }) = &mut lora.factors else { continue };
            let (values, mut gradient) = (b.param_values(&lora.a)?, b.gradient(&lora.a)?);
            let of_e = adalora::split_gradient(&values, &b.param_values(e)?, &mut gradient);
            b.restore_gradient(e, of_e)?;
            if weight > 0.0 {
                adalora::add_orthogonal_rows(&values, lora.r, weight, &mut gradient);
                let (values, mut of_b) = (b.param_values(&lora.b)?, b.gradient(&lora.b)?);
                adalora::add_orthogonal_columns(&values, lora.r, weight, &mut of_b);
                b.restore_gradient(&mut lora.b, of_b)?;
            }
            b.restore_gradient(&mut lora.a, gradient)?;
        }
        b.traced(NAME, None)
    }

    /// Counts importance and cuts triplets after the update of `step`, from 1 on, whose gradients were multiplied by
    /// `clip`.
    pub(super) fn cut_ranks(&mut self, b: &mut B, step: u64, clip: f32) -> Result<()> {
        let Some(settings) = self.adalora(b) else { return Ok(()) };
        let terms_of_spec = &self.spec.lora.terms;
        let triplets: usize = terms_of_spec.values().map(|term| term.r).sum();
        let phase = settings.phase(step, triplets, terms_of_spec.len());
        if matches!(phase, Phase::Count | Phase::Cut(_)) {
            let count = |importance: &mut Importance, b: &B, param: &B::Param| -> Result<()> {
                importance.count(&settings, &b.param_values(param)?, &b.gradient(param)?, clip);
                Ok(())
            };
            for lora in terms(&mut self.layers) {
                let Some(RankFactors { e, triplets }) = &mut lora.factors else { continue };
                count(&mut triplets.a, b, &lora.a)?;
                count(&mut triplets.b, b, &lora.b)?;
                count(&mut triplets.e, b, e)?;
            }
        }
        match phase {
            Phase::Count => {}
            Phase::Cut(budget) => {
                self.cut_to(b, budget)?;
            }
            Phase::Finalize(budget) => {
                let kept = self.cut_to(b, budget)?;
                let ranks: Vec<usize> =
                    kept.iter().map(|kept| kept.iter().map(|&x| x as usize).sum::<usize>()).collect();
                status!(
                    "AdaLoRA: {} of {triplets} ranks are left, {} to {} of a linear layer",
                    ranks.iter().sum::<usize>(),
                    ranks.iter().min().unwrap_or(&0),
                    ranks.iter().max().unwrap_or(&0)
                );
                let factors = terms(&mut self.layers).filter_map(|lora| lora.factors.as_mut());
                factors.zip(kept).for_each(|(factors, kept)| factors.triplets.finalize(kept));
            }
            Phase::Final => {
                for RankFactors { e, triplets } in terms(&mut self.layers).filter_map(|lora| lora.factors.as_mut()) {
                    keep(b, e, &triplets.kept)?;
                }
            }
        }
        b.traced(NAME, None)
    }

    /// Cuts all but `budget` triplets. Returns for each term which are kept.
    fn cut_to(&mut self, b: &mut B, budget: usize) -> Result<Vec<Vec<f32>>> {
        let factors = terms(&mut self.layers).filter_map(|lora| Some((lora.r, lora.factors.as_ref()?)));
        let scores: Vec<Vec<f32>> = factors.map(|(r, factors)| factors.triplets.scores(r)).collect();
        let threshold = adalora::threshold(scores.concat(), budget);
        let kept: Vec<Vec<f32>> = scores.iter().map(|scores| adalora::kept(scores, threshold)).collect();
        for (factors, kept) in terms(&mut self.layers).filter_map(|lora| lora.factors.as_mut()).zip(&kept) {
            keep(b, &mut factors.e, kept)?;
        }
        Ok(kept)
    }

    /// E of a module's term, where ranks are cut.
    pub fn rank_factors(&self, module: &str) -> Option<&B::Param> {
        let (layer, projection) = self.spec.arch.find(module)?;
        let names = self.spec.arch.names;
        self.layers[layer].groups().into_iter().zip(Input::ALL).find_map(|(group, input)| {
            let at = names.of_input(input).position(|own| own == projection)?;
            group.segments[at].lora.as_ref()?.factors.as_ref().map(|factors| &factors.e)
        })
    }

    /// Values that the next cut follows from, beside the trainable tensors: of each tensor by their name, without those
    /// that are not there. None where ranks are not cut.
    pub fn rank_values(&self) -> Vec<(ParamId, &'static str, &[f32])> {
        let (mut all, names) = (Vec::new(), self.spec.arch.names);
        for (layer, block) in self.layers.iter().enumerate() {
            for (group, input) in block.groups().into_iter().zip(Input::ALL) {
                for (segment, projection) in group.segments.iter().zip(names.of_input(input)) {
                    let Some(Lora { factors: Some(factors), .. }) = &segment.lora else { continue };
                    let module: Arc<str> = self.spec.arch.module(layer, projection).into();
                    let values = factors.triplets.values().into_iter().filter(|(.., values)| !values.is_empty());
                    all.extend(values.map(|(kind, name, values)| (ParamId::new(module.clone(), kind), name, values)));
                }
            }
        }
        all
    }

    /// Destinations of the values of [`rank_values`](Self::rank_values), with the length of each, also where it is
    /// empty now.
    pub fn rank_values_mut(&mut self) -> Vec<(ParamId, &'static str, usize, &mut Vec<f32>)> {
        let (mut all, names) = (Vec::new(), self.spec.arch.names);
        for (layer, block) in self.layers.iter_mut().enumerate() {
            for (group, input) in block.groups_mut().into_iter().zip(Input::ALL) {
                let k = group.k;
                for (segment, projection) in group.segments.iter_mut().zip(names.of_input(input)) {
                    let n = segment.n;
                    let Some(Lora { r, factors: Some(factors), .. }) = &mut segment.lora else { continue };
                    let module: Arc<str> = self.spec.arch.module(layer, projection).into();
                    for (kind, name, values) in factors.triplets.values_mut() {
                        let len = match kind {
                            ParamKind::LoraA => *r * k,
                            ParamKind::LoraB => n * *r,
                            _ => *r,
                        };
                        all.push((ParamId::new(module.clone(), kind), name, len, values));
                    }
                }
            }
        }
        all
    }
}

/// Sets E of the triplets that are not kept to zero.
fn keep<B: Backend>(b: &mut B, e: &mut B::Param, kept: &[f32]) -> Result<()> {
    let mut values = b.param_values(e)?;
    values.iter_mut().zip(kept).filter(|(_, kept)| **kept == 0.0).for_each(|(value, _)| *value = 0.0);
    b.set_values(e, values)
}
