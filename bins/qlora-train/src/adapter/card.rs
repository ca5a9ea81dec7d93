//! The model card, `README.md`: front matter that the hub reads, and what the adapter was trained on.

use super::{Adapter, TargetModules, metadata};
use crate::hub::is_hub_name;
use indexmap::IndexMap;
use std::fmt::Display;

/// By this line a card is known as ours and may be replaced.
pub(super) const MARK: &str = "<!-- written by qlora-train -->";

pub(super) fn model_card(adapter: &Adapter) -> String {
    let config = &adapter.config;
    let base = config.base_model_name_or_path.as_deref();
    // The hub rejects a card whose base is not one of its own ids; a relative path can look like one.
    let recorded = adapter.metadata.get(metadata::BASE_NAME).map(String::as_str);
    let hub_base = recorded.or(base).filter(|name| is_hub_name(name));
    let mut card = String::from("---\n");
    if let Some(base) = hub_base {
        card += &format!("base_model: {base}\n");
    }
    card += "library_name: peft\npipeline_tag: text-generation\ntags:\n";
    if let Some(base) = hub_base {
        card += &format!("- base_model:adapter:{base}\n");
    }
    card += &format!("- lora\n- transformers\n---\n\n{MARK}\n\n# LoRA adapter\n\n");

    let targets = match &config.target_modules {
        TargetModules::Pattern(pattern) => pattern.clone(),
        TargetModules::Names(names) => names.iter().cloned().collect::<Vec<_>>().join(", "),
    };
    let stored = |key: &str| adapter.metadata.get(key).cloned();
    let recipe = adapter.recipe("adapter").ok().flatten().map(|recipe| recipe.to_string());
    let rows = [
        ("Base", base.map(str::to_owned)),
        ("Base revision", config.revision.clone()),
        ("Base fingerprint", stored(metadata::BASE_FINGERPRINT)),
        ("Base weights in training", recipe.or_else(|| stored(metadata::QUANTIZATION))),
        ("Chat template (SHA-256)", stored(metadata::CHAT_TEMPLATE_SHA256)),
        ("Rank", Some(with_pattern(&config.r, &config.rank_pattern))),
        ("Alpha", Some(with_pattern(&config.lora_alpha, &config.alpha_pattern))),
        ("Magnitudes (DoRA)", config.use_dora.then(|| "one of each output".to_owned())),
        ("Dropout", Some(config.lora_dropout.to_string())),
        ("Target modules", Some(targets)),
        ("Modules trained whole", Some(config.modules_to_save.join(", ")).filter(|names| !names.is_empty())),
        (
            "Layers",
            config
                .layers_to_transform
                .as_ref()
                .map(|layers| layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
        ),
    ];
    card += "| | |\n|---|---|\n";
    for (name, value) in rows {
        if let Some(value) = value {
            card += &format!("| {name} | {} |\n", one_line(&value));
        }
    }
    if let Some(base) = hub_base {
        card += &format!(
            "\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
             model = AutoModelForCausalLM.from_pretrained(\"{base}\")\n\
             model = PeftModel.from_pretrained(model, \"path/to/this/adapter\")\n```\n"
        );
    }
    card
}

/// A value, and the modules that have another.
fn with_pattern<T: Display>(value: &T, pattern: &IndexMap<String, T>) -> String {
    let others: Vec<String> = pattern.iter().map(|(module, other)| format!("{other} for {module}")).collect();
    if others.is_empty() { value.to_string() } else { format!("{value}; {}", others.join(", ")) }
}

/// A value as a table cell holds it.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
