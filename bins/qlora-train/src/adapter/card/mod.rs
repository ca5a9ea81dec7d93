//! The model card, `README.md`: fields that the hub reads, the training data and its results, and how to use the
//! adapter.

mod markdown;
mod training;
mod usage;

use super::{Adapter, AdapterConfig, TargetModules, metadata};
use crate::hub::{License, is_hub_name};
use crate::report::{count, printable_json, thousands};
use indexmap::IndexMap;
use markdown::{code, inline, quoted, table};
use serde_json::Value;
use std::fmt::Display;
use usage::usage;

pub(crate) use training::{TrainedFile, Training};

/// By this line a card is known as ours and may be replaced.
pub(super) const MARK: &str = "<!-- written by qlora-train -->";
/// The learning curve, in a file beside the card
pub(crate) const CURVE: &str = "learning_curve.svg";
const HUB: &str = "https://huggingface.co";

/// The card of an adapter, and of the run that it is the result of, where that is known.
pub(super) fn model_card(adapter: &Adapter, training: Option<&Training>) -> String {
    card(adapter, training, training.is_some_and(|training| training.tokenizer))
}

/// The card of an adapter whose run is not known. `tokenizer`: the adapter's own tokenizer lies beside it.
pub(super) fn plain_card(adapter: &Adapter, tokenizer: bool) -> String {
    card(adapter, None, tokenizer)
}

fn card(adapter: &Adapter, training: Option<&Training>, tokenizer: bool) -> String {
    let config = &adapter.config;
    // The hub rejects a card whose base is not one of its own ids; a relative path can look like one.
    let recorded = adapter.metadata.get(metadata::BASE_NAME).map(String::as_str);
    let base = recorded.or(config.base_model_name_or_path.as_deref()).filter(|name| is_hub_name(name));
    let mut card = front_matter(base, config.revision.as_deref(), training);
    let checkpoint = training.and_then(|training| Some((training.steps, training.of_steps?)));
    let title =
        checkpoint.map(|(step, all)| format!(": checkpoint after step {} of {}", thousands(step), thousands(all)));
    card += &format!("\n{MARK}\n\n# LoRA adapter{}\n\n", title.unwrap_or_default());
    card += &table(facts(adapter, training));
    if let Some(training) = training {
        card += &results(training);
        card += &data(training);
    }
    card += &usage(config, base, training, tokenizer);
    if let Some(training) = training {
        card += &repeat(training);
    }
    card
}

/// The fields before the text. Every value is a name of the hub, a word of ours, or in quotes.
fn front_matter(base: Option<&str>, revision: Option<&str>, training: Option<&Training>) -> String {
    let mut front = String::from("---\n");
    let mut field = |name: &str, value: &str| front += &format!("{name}: {value}\n");
    if let Some(base) = base {
        field("base_model", base);
    }
    let data_sets = training.map(Training::data_sets).unwrap_or_default();
    if !data_sets.is_empty() {
        let ids: String = data_sets.iter().map(|id| format!("\n- {id}")).collect();
        field("datasets", ids.trim_end());
    }
    field("library_name", "peft");
    if let Some(license) = training.and_then(|training| training.license.as_ref()) {
        field("license", &quoted(&license.id));
        if let Some(name) = &license.name {
            field("license_name", &quoted(name));
        }
        if let Some(link) = link(license, base, revision) {
            field("license_link", &quoted(&link));
        }
    }
    field("pipeline_tag", "text-generation");
    let of_base = base.map_or(String::new(), |base| format!("\n- base_model:adapter:{base}"));
    field("tags", &format!("{of_base}\n- lora\n- transformers"));
    // A list begins in a line of its own.
    front.replace(": \n", ":\n") + "---\n"
}

/// Link to the text of a license: an address, or a file in the repository of the base.
fn link(license: &License, base: Option<&str>, revision: Option<&str>) -> Option<String> {
    let link = license.link.as_ref()?;
    if link.starts_with("https://") {
        return Some(link.clone());
    }
    let is_name = link.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) && !link.starts_with('.');
    let at = revision.filter(|revision| revision.chars().all(|c| c.is_ascii_alphanumeric())).unwrap_or("main");
    base.filter(|_| is_name).map(|base| format!("{HUB}/{base}/blob/{at}/{link}"))
}

/// Names and values of the card's table on the adapter itself.
fn facts(adapter: &Adapter, training: Option<&Training>) -> Vec<(String, String)> {
    let config = &adapter.config;
    let targets = match &config.target_modules {
        TargetModules::Pattern(pattern) => pattern.clone(),
        TargetModules::Names(names) => names.iter().cloned().collect::<Vec<_>>().join(", "),
    };
    let stored = |key: &str| adapter.metadata.get(key).cloned();
    let recorded = adapter.base_quantization("adapter").ok().flatten().map(|base| base.to_string());
    let held = recorded.or_else(|| stored(metadata::QUANTIZATION));
    let held = held.map(|held| if held == "none" { "not quantized".to_owned() } else { held });
    let license = training.and_then(|training| training.license.as_ref());
    let layers = |layers: &Vec<usize>| layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let rows = [
        ("Base", config.base_model_name_or_path.clone()),
        ("Base revision", config.revision.clone()),
        ("Base fingerprint", stored(metadata::BASE_FINGERPRINT)),
        ("License of the base", license.map(|license| license.name.as_ref().unwrap_or(&license.id).clone())),
        ("Base weights in training", held),
        ("Chat template (SHA-256)", stored(metadata::CHAT_TEMPLATE_SHA256)),
        ("Rank", Some(with_pattern(&config.r, &config.rank_pattern))),
        ("Alpha", Some(with_pattern(&config.lora_alpha, &config.alpha_pattern))),
        ("Magnitudes (DoRA)", config.use_dora.then(|| "one of each output".to_owned())),
        ("Dropout", Some(config.lora_dropout.to_string())),
        ("Target modules", Some(targets)),
        ("Modules trained whole", Some(config.modules_to_save.join(", ")).filter(|names| !names.is_empty())),
        ("Rows trained for single tokens", trained_rows(config)),
        ("Layers", config.layers_to_transform.as_ref().map(layers)),
        ("Trained parameters", training.map(|training| thousands(training.parameters))),
    ];
    rows.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Modules of which rows were trained for single tokens, with their number.
fn trained_rows(config: &AdapterConfig) -> Option<String> {
    let rows = |(module, tokens): (&String, &Vec<u32>)| format!("{} of {module}", tokens.len());
    let rows: Vec<String> = config.trainable_token_indices.iter().map(rows).collect();
    (!rows.is_empty()).then(|| rows.join(", "))
}

/// A value, and the modules that have another.
fn with_pattern<T: Display>(value: &T, pattern: &IndexMap<String, T>) -> String {
    let others: Vec<String> = pattern.iter().map(|(module, other)| format!("{other} for {module}")).collect();
    if others.is_empty() { value.to_string() } else { format!("{value}; {}", others.join(", ")) }
}

/// A number with at most `decimals` decimals.
fn decimal(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn results(training: &Training) -> String {
    let loss = |loss: f64| format!("{loss:.4}");
    let at = |(step, found): (u64, f64)| format!("{} at step {}", loss(found), thousands(step));
    let epochs = decimal(training.epochs, 2);
    let noun = if epochs == "1" { "epoch" } else { "epochs" };
    let all = training.of_steps.map(|all| format!(" of {}", thousands(all))).unwrap_or_default();
    let steps = format!("{}{all} ({epochs} {noun})", thousands(training.steps));
    let rows = [
        ("Optimizer steps", Some(steps)),
        ("Training loss, last in the log", training.logged.map(at)),
        ("Training loss, mean of the run", Some(loss(training.train_loss))),
        ("Validation loss", training.eval_loss.map(loss)),
        ("Validation perplexity", training.eval_loss.map(|loss| format!("{:.3}", loss.exp()))),
        ("Lowest validation loss", training.lowest.map(at)),
    ];
    let rows = rows.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let mut text = format!("\n## Results\n\nLosses are in nats per learned token.\n\n{}", table(rows));
    if training.curve {
        text += &format!("\n![Training and validation loss by optimizer step]({CURVE})\n");
    }
    text
}

fn data(training: &Training) -> String {
    let mut text = format!(
        "\n## Data\n\n{} to train on, {} for validation: {} tokens, of which {} are learned.\n",
        count(training.rows, "row"),
        thousands(training.validation_rows),
        thousands(training.tokens),
        thousands(training.learned_tokens)
    );
    text += "\n| rows of | SHA-256 |\n|---|---|\n";
    let validation = training.validation_files.iter().map(|file| (file, " (validation)"));
    for (file, of) in training.files.iter().map(|file| (file, "")).chain(validation) {
        text += &format!("| {}{of} | {} |\n", inline(&file.shown()), inline(&file.sha256));
    }
    text += &format!("| the tokens of all of them | {} |\n", inline(&training.tokens_hash));
    text
}

/// Section with the settings that train the same adapter again.
fn repeat(training: &Training) -> String {
    // JSON is YAML, and stays on its line.
    let line = |(name, value): (&String, &Value)| format!("{name}: {}\n", printable_json(&value.to_string()));
    let yaml: String = training.settings.iter().map(line).collect();
    let computed = training.arithmetic.as_ref().map(|what| format!(" It computed in {}.", inline(what)));
    let others = "with another number of processes the last bits differ";
    let sums = training.sums.as_ref().map(|sums| format!(" Gradients {}: {others}.", inline(sums)));
    let date = training.date.as_ref().map(|date| {
        let was = "The chat template writes the date, which was";
        format!(" {was} {} (UTC): on another day it makes other tokens.", inline(date))
    });
    let step = training.of_steps.map(|_| training.steps).filter(|step| *step > 0);
    let saved = step.map_or(String::new(), |step| format!(" --save-steps {step} --save-total-limit 0"));
    let place = step.map_or(String::new(), |step| format!("\nThe adapter is then in `adapter/checkpoint-{step}`.\n"));
    format!(
        "\n## To repeat it\n\nTrained by qlora-train {}.{}{}{} In `settings.yaml`, `path/to` stands for where files are \
         that are not on the hub.\n\n{}\n{}{place}",
        inline(&training.version),
        computed.unwrap_or_default(),
        sums.unwrap_or_default(),
        date.unwrap_or_default(),
        code("yaml", &yaml),
        code("sh", &format!("qlora-train train settings.yaml --output-dir adapter{saved}"))
    )
}

#[cfg(test)]
mod tests;
