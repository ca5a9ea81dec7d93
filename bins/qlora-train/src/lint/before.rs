//! Checks of a run before its first step.

use super::facts::Facts;
use crate::report::{count, thousands};

/// Fewer steps than this give a warning.
const FEW_STEPS: u64 = 50;

pub fn few_steps(facts: &Facts) -> Option<String> {
    let data = facts.data.as_ref()?;
    // A user who sets max_steps knows the number.
    let few = data.total_steps < FEW_STEPS && !data.steps_are_given;
    few.then(|| format!("{} may be too few to change the model", count(data.total_steps, "step")))
}

pub fn learning_rate(facts: &Facts) -> Option<String> {
    let (a, b) = (facts.learning_rate_a, facts.learning_rate_b);
    match (a, b) {
        (a, _) if a < 5e-5 => Some(format!("a learning rate of {a:e} is low for LoRA")),
        (a, _) if a > 1e-3 => Some(format!("a learning rate of {a:e} is high for LoRA")),
        (_, b) if b > 2e-2 => Some(format!("a learning rate of {b:e} for B is high, also for LoRA+")),
        _ => None,
    }
}

pub fn alpha(facts: &Facts) -> Option<String> {
    let some = if facts.terms.len() > 1 { " in some linear layers" } else { "" };
    let (formula, most) = if facts.use_rslora { ("alpha / √r", 16.0) } else { ("alpha / r", 4.0) };
    facts.terms.iter().find_map(|&(rank, alpha, scale)| {
        let what = match scale {
            scale if scale < 0.5 => "small: the adapters count for little",
            scale if scale > most => "large: steps overshoot",
            _ => return None,
        };
        Some(format!(
            "lora_alpha {alpha} at lora_r {rank}{some} gives a scale {formula} of {scale:.2}, which is {what}"
        ))
    })
}

pub fn attention_only(facts: &Facts) -> Option<String> {
    const ATTENTION: [&str; 5] = ["q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"];
    let only = !facts.targets.is_empty() && facts.targets.iter().all(|name| ATTENTION.contains(&name.as_str()));
    only.then(|| format!("only attention gets adapters ({}), and the MLP none", facts.targets.join(", ")))
}

pub fn rank_for_rows(facts: &Facts) -> Option<String> {
    let rows = facts.data.as_ref()?.rows;
    let r = facts.terms.iter().map(|(r, ..)| *r).max().filter(|r| rows < 1000 && *r > 16)?;
    Some(format!("lora_r {r} is much for {}", count(rows as u64, "row")))
}

pub fn adapter_capacity(facts: &Facts) -> Option<String> {
    let tokens = facts.data.as_ref()?.supervised_tokens as u64;
    let beyond = facts.lora_parameters > 0 && tokens > facts.lora_parameters.saturating_mul(2);
    beyond.then(|| {
        format!(
            "{} tokens to learn are more than adapters of {} parameters hold (about 2 bits each)",
            thousands(tokens),
            thousands(facts.lora_parameters)
        )
    })
}

pub fn large_batch(facts: &Facts) -> Option<String> {
    let data = facts.data.as_ref().filter(|data| data.steps_per_epoch > 1)?;
    let rows = data.rows as f64 / data.steps_per_epoch as f64;
    (rows > 64.0).then(|| format!("an optimizer step learns from about {rows:.0} rows at once"))
}

pub fn small_model_in_4_bits(facts: &Facts) -> Option<String> {
    let small = facts.is_nf4 && facts.parameters < 1_000_000_000;
    small.then(|| format!("the base has {} parameters and is held in NF4", parameters(facts.parameters)))
}

/// A count of parameters as in names of models, small ones in full.
fn parameters(n: u64) -> String {
    match n {
        100_000_000.. => format!("{:.3}B", n as f64 / 1e9),
        1_000_000.. => format!("{:.1}M", n as f64 / 1e6),
        _ => thousands(n),
    }
}

pub fn max_length(facts: &Facts) -> Option<String> {
    let (data, length) = (facts.data.as_ref()?, facts.max_length);
    // Packs may be longer: positions begin anew with each row.
    if data.longest > facts.positions {
        let (longest, positions) = (data.longest, facts.positions);
        return Some(format!("the longest row has {longest} tokens, the model was made for {positions} at most"));
    }
    let packs = data.packs.filter(|&packs| packs <= 3 && data.rows >= 10 * packs)?;
    let (rows, packs) = (count(data.rows as u64, "row"), count(packs as u64, "pack"));
    Some(format!("{rows} fit into {packs} of max_length {length}, so that an epoch has hardly a step"))
}

pub fn open_turns(facts: &Facts) -> Option<String> {
    let rows = facts.data.as_ref()?.open_ended;
    (rows > 0).then(|| {
        format!(
            "in {} an answer or a text ends without an end-of-turn token that is learned, so the model will not learn to stop",
            count(rows as u64, "row")
        )
    })
}

pub fn foreign_template(facts: &Facts) -> Option<String> {
    let marks = &facts.data.as_ref()?.foreign_marks;
    let (some, more) = (&marks[..marks.len().min(4)], if marks.len() > 4 { ", …" } else { "" });
    (!marks.is_empty())
        .then(|| format!("the chat template writes {}{more}, which are no tokens of the tokenizer", some.join(", ")))
}

pub fn one_validation_row(facts: &Facts) -> Option<String> {
    let one = facts.data.as_ref()?.validation_rows == 1;
    one.then(|| "there is one row for validation: its loss says little".to_owned())
}

pub fn duplicates(facts: &Facts) -> Option<String> {
    let data = facts.data.as_ref()?;
    let many = data.duplicates * 20 > data.rows;
    many.then(|| {
        let (same, rows) = (thousands(data.duplicates as u64), count(data.rows as u64, "row"));
        format!("{same} of {rows} are the same as another one before them")
    })
}

pub fn validation_overlap(facts: &Facts) -> Option<String> {
    let data = facts.data.as_ref().filter(|data| data.overlap > 0)?;
    let (same, rows) = (thousands(data.overlap as u64), count(data.validation_rows as u64, "validation row"));
    Some(format!("{same} of {rows} are trained on too"))
}
