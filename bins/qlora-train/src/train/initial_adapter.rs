//! The adapter that a run begins with.

use crate::adapter::Adapter;
use crate::bail_usage;
use crate::config::Settings;
use crate::error::{Context, Result};
use crate::lora::{LoraSpec, LoraTerm};
use crate::model::ModelSpec;
use crate::report::{count, status};
use crate::session::Loaded;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The adapter that a run begins with, with the run's alphas. Refused: other ranks or layers than the run's.
pub(crate) fn initial_adapter(path: &Path, settings: &Settings, loaded: &Loaded, spec: &ModelSpec) -> Result<Adapter> {
    let what = || path.display().to_string();
    let mut adapter = Adapter::load(path)?;
    adapter.check_shapes(loaded.checkpoint.arch(), loaded.checkpoint.base_name()).context(what)?;
    let own = adapter.lora_spec().context(what)?;
    let ranks = |lora: &LoraSpec| {
        lora.terms.iter().map(|(module, term)| (module.clone(), term.r, term.kind)).collect::<Vec<_>>()
    };
    if spec.lora.init.changes_base() {
        bail_usage!(
            "`init_adapter`: found {}, but `init_lora_weights` says what the run begins with; leave one of them out",
            path.display()
        );
    }
    let has = |lora: &LoraSpec| {
        let ranks: BTreeSet<usize> = lora.terms.values().map(|term| term.r).collect();
        let (ranks, s): (Vec<String>, _) =
            (ranks.iter().map(usize::to_string).collect(), if ranks.len() == 1 { "" } else { "s" });
        let dora = if lora.is_dora() { " with magnitudes (DoRA)" } else { "" };
        format!("rank{s} {} on {}{dora}", ranks.join(", "), count(lora.terms.len() as u64, "linear layer"))
    };
    if ranks(&own) != ranks(&spec.lora) {
        let (theirs, ours) = (has(&own), has(&spec.lora));
        let which = if theirs == ours { first_other(&own, &spec.lora) } else { String::new() };
        bail_usage!(
            "`init_adapter`: {} has {theirs}, the run has {ours}{which}; {}",
            path.display(),
            leave_out(settings, &others(&own, &spec.lora))
        );
    }
    let untied = own.untied && loaded.checkpoint.arch().tie_word_embeddings;
    if own.whole != spec.lora.whole || untied {
        let named = |whole: &BTreeSet<String>| match whole.is_empty() {
            true => "none".to_owned(),
            false => whole.iter().cloned().collect::<Vec<_>>().join(", "),
        };
        bail_usage!(
            "`init_adapter`: {} holds whole weights of {}{}, the run trains {}; {}",
            path.display(),
            named(&own.whole),
            if untied { ", with an output layer of its own beside the embedding" } else { "" },
            named(&spec.lora.whole),
            leave_out(settings, &["modules_to_save"])
        );
    }
    if own.tokens != spec.lora.tokens {
        let named = |tokens: &BTreeMap<String, Vec<u32>>| match tokens.is_empty() {
            true => "none".to_owned(),
            false => {
                tokens.iter().map(|(module, of)| format!("{} of {module}", listed(of))).collect::<Vec<_>>().join(", ")
            }
        };
        bail_usage!(
            "`init_adapter`: {} holds rows of tokens {}, the run trains {}; {}",
            path.display(),
            named(&own.tokens),
            named(&spec.lora.tokens),
            leave_out(settings, &["trainable_token_indices"])
        );
    }
    if adapter.rescale(&spec.lora).context(what)? {
        status!(
            "{}: has another scale (alpha, use_rslora) than the run: its B is multiplied to keep what it computes",
            path.display()
        );
    }
    Ok(adapter)
}

/// Settings by which the run may have other terms than the adapter.
fn others(own: &LoraSpec, run: &LoraSpec) -> Vec<&'static str> {
    let differ = |of: &dyn Fn(&LoraTerm, &LoraTerm) -> bool| {
        own.terms.iter().any(|(module, term)| run.terms.get(module).is_some_and(|other| of(term, other)))
    };
    let mut names = Vec::new();
    if !own.terms.keys().eq(run.terms.keys()) {
        names.extend(["lora_target_modules", "layers_to_transform"]);
    }
    if differ(&|one, other| one.r != other.r) {
        names.extend(["lora_r", "rank_pattern"]);
    }
    if differ(&|one, other| one.kind != other.kind) {
        names.push("use_dora");
    }
    names
}

/// The first linear layer that has another term in the run than in the adapter, where their counts do not tell them
/// apart.
fn first_other(own: &LoraSpec, run: &LoraSpec) -> String {
    let of = |lora: &LoraSpec, module: &str| lora.terms.get(module).map(|term| (term.r, term.kind));
    let mut modules = own.terms.keys().chain(run.terms.keys());
    let Some(module) = modules.find(|module| of(own, module) != of(run, module)) else { return String::new() };
    let told = |lora: &LoraSpec| of(lora, module).map_or("none".to_owned(), |(r, _)| format!("rank {r}"));
    format!(", not on the same ones ({module}: {} in the adapter, {} in the run)", told(own), told(run))
}

/// Advice where the run trains something else than the adapter by some of these settings: those that were given.
fn leave_out(settings: &Settings, names: &[&str]) -> String {
    let given: Vec<String> =
        names.iter().filter(|name| settings.given.has(name)).map(|name| format!("`{name}`")).collect();
    match given.is_empty() {
        true => format!("give its {}", names.join(", ")),
        false => format!("leave out {}: what the adapter has is taken then", given.join(" and ")),
    }
}

/// The first of these tokens, for a message.
fn listed(tokens: &[u32]) -> String {
    const MOST: usize = 8;
    let first = tokens.iter().take(MOST).map(u32::to_string).collect::<Vec<_>>().join(", ");
    if tokens.len() > MOST { format!("{first}, … ({})", tokens.len()) } else { first }
}
