//! The adapter that a run begins with.

use crate::adapter::Adapter;
use crate::error::{Context, Result};
use crate::lora::LoraSpec;
use crate::model::ModelSpec;
use crate::refuse;
use crate::report::{count, status};
use crate::session::Loaded;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The adapter that a run begins with, with the run's alphas. Refused: other ranks or layers than the run's.
pub(crate) fn initial_adapter(path: &Path, loaded: &Loaded, spec: &ModelSpec) -> Result<Adapter> {
    let what = || path.display().to_string();
    let mut adapter = Adapter::load(path)?;
    adapter.check_shapes(loaded.checkpoint.arch(), loaded.checkpoint.base_name()).context(what)?;
    let own = adapter.lora_spec().context(what)?;
    let ranks = |lora: &LoraSpec| {
        lora.terms.iter().map(|(module, term)| (module.clone(), term.r, term.kind)).collect::<Vec<_>>()
    };
    if spec.lora.init.changes_base() {
        refuse!(
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
        refuse!(
            "`init_adapter`: {} has {}, the run has {}; give its lora_r, lora_target_modules and use_dora",
            path.display(),
            has(&own),
            has(&spec.lora)
        );
    }
    let untied = own.untied && loaded.checkpoint.arch().tie_word_embeddings;
    if own.whole != spec.lora.whole || untied {
        let named = |whole: &BTreeSet<String>| match whole.is_empty() {
            true => "none".to_owned(),
            false => whole.iter().cloned().collect::<Vec<_>>().join(", "),
        };
        refuse!(
            "`init_adapter`: {} holds whole weights of {}{}, the run trains {}; give its modules_to_save",
            path.display(),
            named(&own.whole),
            if untied { ", with an output layer of its own beside the embedding" } else { "" },
            named(&spec.lora.whole)
        );
    }
    if own.tokens != spec.lora.tokens {
        let named = |tokens: &BTreeMap<String, Vec<u32>>| match tokens.is_empty() {
            true => "none".to_owned(),
            false => {
                tokens.iter().map(|(module, of)| format!("{} of {module}", listed(of))).collect::<Vec<_>>().join(", ")
            }
        };
        refuse!(
            "`init_adapter`: {} holds rows of tokens {}, the run trains {}; give its trainable_token_indices",
            path.display(),
            named(&own.tokens),
            named(&spec.lora.tokens)
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

/// The first of these tokens, for a message.
fn listed(tokens: &[u32]) -> String {
    const MOST: usize = 8;
    let first = tokens.iter().take(MOST).map(u32::to_string).collect::<Vec<_>>().join(", ");
    if tokens.len() > MOST { format!("{first}, … ({})", tokens.len()) } else { first }
}
