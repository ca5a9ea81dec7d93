//! Settings that give a run the same LoRA terms as an adapter.

use super::config::{AdapterConfig, TargetModules};
use super::kind::{ADAPTER_CONFIG, check_adapter};
use super::locate::recorded;
use crate::files::json::read_object;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Names and values of the settings that make the same terms as those of an adapter. None: no adapter can be read
/// there; loading its weights gives the error.
///
/// They are those of its run, if that left a record and its terms are written as they were trained, otherwise those of
/// adapter_config.json, into which rsLoRA is folded.
pub fn lora_settings(adapter: &Path) -> Option<Vec<(&'static str, Value)>> {
    check_adapter(adapter).ok()?;
    let path = adapter.join(ADAPTER_CONFIG);
    let config = AdapterConfig::read(&path, &read_object(&path).ok()?).ok()?;
    let mut settings = vec![
        ("lora_r", json!(config.r)),
        ("lora_alpha", json!(config.lora_alpha)),
        ("use_rslora", json!(config.use_rslora)),
        ("use_dora", json!(config.use_dora)),
        ("lora_target_modules", targets(&config)),
        ("layers_to_transform", json!(config.layers_to_transform.clone().unwrap_or_default())),
        ("rank_pattern", json!(config.rank_pattern)),
        ("alpha_pattern", json!(config.alpha_pattern)),
        ("modules_to_save", json!(config.modules_to_save)),
        ("trainable_token_indices", json!(config.trainable_token_indices)),
    ];
    // AdaLoRA computes no magnitudes.
    if !config.use_dora {
        settings.push(("lora_dropout", json!(config.lora_dropout)));
    }
    let run = recorded(adapter, "/settings").filter(|run| {
        let begins_with_weights = run["init_lora_weights"].as_str().is_some_and(|init| init != "true");
        !begins_with_weights && run["use_adalora"] != true
    });
    for (name, value) in &mut settings {
        if let Some(of_run) = run.as_ref().and_then(|run| run.get(*name)) {
            *value = of_run.clone();
        }
    }
    Some(settings)
}

/// The modules of an adapter: their names, or a regular expression for whole paths.
fn targets(config: &AdapterConfig) -> Value {
    let excluded = config.exclude_modules.as_ref().map(expression);
    match (&config.target_modules, excluded) {
        (TargetModules::Names(names), None) if !names.iter().any(|name| name.contains('.')) => json!(names),
        (TargetModules::Pattern(pattern), None) => json!(pattern),
        (targets, excluded) => {
            let but = excluded.map_or(String::new(), |excluded| format!("(?!{excluded}$)"));
            json!(format!("{but}{}", expression(targets)))
        }
    }
}

/// A regular expression for the whole paths of these modules. PEFT finds names by the ends of paths.
fn expression(modules: &TargetModules) -> String {
    let any = |names: &BTreeSet<String>| names.iter().map(|name| regex::escape(name)).collect::<Vec<_>>().join("|");
    match modules {
        TargetModules::Names(names) => format!(r"(?:.*\.)?(?:{})", any(names)),
        TargetModules::Pattern(pattern) if pattern == "all-linear" => r".*\.layers\..*".to_owned(),
        TargetModules::Pattern(pattern) => format!("(?:{pattern})"),
    }
}

#[cfg(test)]
mod tests;
