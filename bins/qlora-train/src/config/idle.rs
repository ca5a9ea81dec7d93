//! Settings that were given although another one leaves them without effect.

use super::answers::SamplePrompts;
use super::enums::{Quantization, Scheduler};
use super::layer::Given;
use super::table::{SETTINGS, Settings};
use super::types::SettingValue;
use std::collections::BTreeMap;

/// Notes for the user on such settings, each with the cause, where they are not the defaults: a file may list every
/// setting. Those of a device are told once it is chosen.
pub(super) fn notes(settings: &Settings, given: &BTreeMap<&'static str, Given>) -> Vec<String> {
    let is_16_bit = settings.quantization == Quantization::None;
    let asks = settings.sample_prompts != SamplePrompts::None || settings.eval_answers > 0;
    let is_constant = settings.lr_scheduler_type == Scheduler::Constant;
    let is_zero = |name: &str| given.get(name).is_some_and(|given| f64::read(&given.value) == Ok(0.0));
    let (of_nf4, of_warmup) =
        ("`quantization: none` quantizes nothing", "`lr_scheduler_type: constant` has no warm-up");
    let is_default = |name: &str, given: &Given| {
        let (mut own, defaults) = (Settings::default(), Settings::default());
        SETTINGS.iter().find(|info| info.name == name).is_some_and(|info| {
            (info.set)(&mut own, &given.value).is_ok() && info.value_in(&own) == info.value_in(&defaults)
        })
    };
    [
        ("nf4_block_size", is_16_bit, of_nf4),
        ("double_quant", is_16_bit, of_nf4),
        ("eval_max_new_tokens", !asks, "neither `sample_prompts` nor `eval_answers` asks for answers"),
        ("warmup_ratio", is_constant && !is_zero("warmup_ratio"), of_warmup),
        ("warmup_steps", is_constant && !is_zero("warmup_steps"), of_warmup),
    ]
    .into_iter()
    .filter(|(_, is_idle, _)| *is_idle)
    .filter_map(|(name, _, cause)| Some((given.get(name).filter(|given| !is_default(name, given))?, cause)))
    .map(|(given, cause)| format!("{}: without effect here, as {cause}", given.place))
    .collect()
}

#[cfg(test)]
mod tests;
