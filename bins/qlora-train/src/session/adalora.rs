//! AdaLoRA by the settings, and what it is not computed with.

use crate::bail_usage;
use crate::config::{InitLora, Settings};
use crate::error::Result;
use crate::lora::AdaLora;

/// The settings of AdaLoRA, which cuts ranks; none: ranks stay. Refused: settings that do not work beside it, and
/// settings of it without it.
pub(super) fn settings_of(settings: &Settings) -> Result<Option<AdaLora>> {
    let none = Settings::default();
    if !settings.use_adalora {
        let own = [
            ("target_r", settings.target_r != none.target_r),
            ("tinit", settings.tinit != none.tinit),
            ("tfinal", settings.tfinal != none.tfinal),
            ("delta_t", settings.delta_t != none.delta_t),
            ("adalora_beta1", settings.adalora_beta1 != none.adalora_beta1),
            ("adalora_beta2", settings.adalora_beta2 != none.adalora_beta2),
            ("orth_reg_weight", settings.orth_reg_weight != none.orth_reg_weight),
        ];
        if let Some((name, _)) = own.into_iter().find(|(_, given)| *given) {
            bail_usage!("`{name}` is one of AdaLoRA: give `use_adalora: true` as well, or leave it out");
        }
        return Ok(None);
    }
    let beside = [
        ("use_dora", settings.use_dora, "magnitudes and cut ranks are not computed together; keep one of the two"),
        ("use_rslora", settings.use_rslora, "its scale is alpha / r; expected false"),
        (
            "init_lora_weights",
            settings.init_lora_weights != InitLora::Random,
            "A and B begin with normal numbers and a factor of zero between them; expected true",
        ),
        (
            "rank_pattern",
            !settings.rank_pattern.0.is_empty(),
            "ranks begin alike and are cut by importance; leave it out",
        ),
        ("alpha_pattern", !settings.alpha_pattern.0.is_empty(), "all have one scale, as in PEFT; leave it out"),
        (
            "init_adapter",
            settings.init_adapter.is_some(),
            "an adapter of LoRA has no factors of its ranks to go on with; leave it out",
        ),
    ];
    if let Some((name, _, why)) = beside.into_iter().find(|(_, given, _)| *given) {
        bail_usage!("`{name}` is not computed with `use_adalora`: {why}");
    }
    if settings.target_r >= settings.lora_r {
        bail_usage!(
            "`target_r`: found {}, expected less than `lora_r`, the rank {} that every linear layer begins with",
            settings.target_r,
            settings.lora_r
        );
    }
    Ok(Some(AdaLora {
        target_r: settings.target_r,
        tinit: settings.tinit as u64,
        tfinal: settings.tfinal as u64,
        delta_t: settings.delta_t as u64,
        beta1: settings.adalora_beta1,
        beta2: settings.adalora_beta2,
        orth_reg_weight: settings.orth_reg_weight,
        total_steps: None,
    }))
}

/// Refuses a run that has no steps to cut ranks in. The last cut goes by the importance of steps before it.
pub(super) fn check_steps(adalora: &AdaLora, steps: u64) -> Result<()> {
    let AdaLora { tinit, tfinal, .. } = *adalora;
    if steps <= tinit.max(1).saturating_add(tfinal) {
        bail_usage!(
            "`use_adalora`: the run has {steps} step{}, expected more than `tinit` ({tinit}, counted as 1 at least) and \
             `tfinal` ({tfinal}) together: ranks are cut between them",
            if steps == 1 { "" } else { "s" }
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
