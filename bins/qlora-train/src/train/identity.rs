//! The identity of a run, gathered before the weights are read: everything, settings and contents, that decides its
//! result.
//!
//! The paths of model and data do not count, their contents do. Of the base these are its config.json as it was
//! understood and, where rows are text, its tokenizer and the chat template in use. Two bases that differ in their
//! weights only are told apart by the fingerprint, which is kept beside.

use crate::adapter::{ADAPTER_CONFIG, ADAPTER_MODEL};
use crate::config::Settings;
use crate::error::Result;
use crate::files::hash::{file_hash, hex};
use crate::files::json::shown;
use crate::refuse;
use crate::session::model_spec::effective_settings;
use crate::session::{Loaded, TrainingData};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Two runs with equal identities, on bases of equal fingerprints, give the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Every setting that changes results, less the paths of model and data, whose contents count.
    pub settings: Map<String, Value>,
    /// The base's config.json as it was understood.
    pub base_config: Value,
    /// Linear layers that a quantized base keeps as they were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_quantized: Vec<String>,
    /// SHA-256 (hex) of tokenizer.json; none where all rows are token ids.
    pub tokenizer: Option<String>,
    /// SHA-256 (hex) of the chat template's text.
    pub chat_template: Option<String>,
    /// SHA-256 (hex) of the files of the adapter that the run begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<String>,
    /// SHA-256 (hex) of each file.
    pub data: Vec<String>,
    pub val_data: Vec<String>,
}

impl Identity {
    /// SHA-256 (hex) over all of it.
    pub fn hash(&self) -> String {
        let mut settings: Vec<_> = self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        settings.sort();
        let Self { base_config, not_quantized, tokenizer, chat_template, init_adapter, data, val_data, .. } = self;
        let mut rest =
            format!("{base_config}\n{not_quantized:?}\n{tokenizer:?}\n{chat_template:?}\n{data:?}\n{val_data:?}\n");
        if let Some(hash) = init_adapter {
            rest = rest + hash + "\n";
        }
        hex(Sha256::digest(settings.join("\n") + "\n" + &rest))
    }

    /// The first thing in which `earlier`, which was recorded, differs from this run; none if they are the same.
    pub fn difference(&self, earlier: &Self) -> Option<String> {
        self.difference_but_for(earlier, &[])
    }

    /// [`difference`](Self::difference) to a run that this one may be the longer form of: their lengths do not count.
    pub fn difference_beyond_length(&self, earlier: &Self) -> Option<String> {
        self.difference_but_for(earlier, &["num_train_epochs", "max_steps"])
    }

    fn difference_but_for(&self, earlier: &Self, uncounted: &[&str]) -> Option<String> {
        let names = self.settings.keys().chain(earlier.settings.keys());
        for name in names.filter(|name| !uncounted.contains(&name.as_str())) {
            let (here, there) = (self.settings.get(name), earlier.settings.get(name));
            if here != there {
                let of = |value: Option<&Value>| value.map_or("nothing".to_owned(), shown);
                return Some(format!("`{name}` was {} and is {} now", of(there), of(here)));
            }
        }
        let parts = [
            (self.base_config == earlier.base_config, "the model's config.json"),
            (self.not_quantized == earlier.not_quantized, "which linear layers the base keeps unquantized"),
            (self.tokenizer == earlier.tokenizer, "the model's tokenizer.json"),
            (self.chat_template == earlier.chat_template, "the chat template"),
            (self.init_adapter == earlier.init_adapter, "the contents of `init_adapter`"),
            (self.data == earlier.data, "the contents of `data`"),
            (self.val_data == earlier.val_data, "the contents of `val_data`"),
        ];
        let (_, what) = parts.into_iter().find(|(same, _)| !same)?;
        Some(format!("{what} changed"))
    }
}

/// Settings that name a place; what is found there counts.
const PLACES: [&str; 6] = ["model", "revision", "data", "val_data", "chat_template", "init_adapter"];

pub fn run_identity(
    settings: &Settings,
    loaded: &Loaded,
    data: &TrainingData,
    arithmetic: Option<String>,
) -> Result<Identity> {
    let checkpoint = &loaded.checkpoint;
    let mut result_settings = effective_settings(settings, checkpoint).result_settings();
    result_settings.retain(|name, _| !PLACES.contains(&name.as_str()) && name != "compute");
    // What was asked for does not count, what it came to on this processor does.
    if let Some(arithmetic) = arithmetic {
        result_settings.insert("compute".to_owned(), arithmetic.into());
    }
    let tokenizer = match loaded.tokenizer() {
        Some(_) => Some(file_hash(&checkpoint.dir().join("tokenizer.json"))?),
        None => None,
    };
    let init_adapter = settings.init_adapter.as_deref().map(adapter_hash).transpose()?;
    Ok(Identity {
        init_adapter,
        settings: result_settings,
        base_config: checkpoint.arch().to_json("").into(),
        not_quantized: checkpoint.skipped_modules(),
        tokenizer,
        chat_template: loaded.tokenizer().and_then(|tokenizer| tokenizer.template_hash()),
        data: data.hashes.clone(),
        val_data: data.validation_hashes.clone(),
    })
}

/// SHA-256 (hex) of an adapter's files. Refused: they are not there.
fn adapter_hash(adapter: &Path) -> Result<String> {
    let mut hashes = Vec::new();
    for path in [ADAPTER_CONFIG, ADAPTER_MODEL].map(|name| adapter.join(name)) {
        if !path.is_file() {
            refuse!("`init_adapter`: {}: found no such file, expected that of an adapter", path.display());
        }
        hashes.push(file_hash(&path)?);
    }
    Ok(hex(Sha256::digest(hashes.concat())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_difference_is_named_and_every_one_changes_the_hash() {
        let settings = |seed: u64| json!({"lora_r": 4, "seed": seed}).as_object().unwrap().clone();
        let one = Identity {
            settings: settings(1),
            base_config: json!({"hidden_size": 8}),
            not_quantized: Vec::new(),
            tokenizer: None,
            chat_template: None,
            init_adapter: None,
            data: vec!["a".into()],
            val_data: Vec::new(),
        };
        assert_eq!(one.difference(&one.clone()), None);
        let others = [
            (Identity { settings: settings(2), ..one.clone() }, "`seed` was 2 and is 1 now"),
            (Identity { base_config: json!({}), ..one.clone() }, "config.json changed"),
            (Identity { not_quantized: vec!["q".into()], ..one.clone() }, "unquantized changed"),
            (Identity { tokenizer: Some("t".into()), ..one.clone() }, "tokenizer.json changed"),
            (Identity { chat_template: Some("t".into()), ..one.clone() }, "the chat template changed"),
            (Identity { init_adapter: Some("t".into()), ..one.clone() }, "the contents of `init_adapter` changed"),
            (Identity { data: vec!["b".into()], ..one.clone() }, "the contents of `data` changed"),
            (Identity { val_data: vec!["b".into()], ..one.clone() }, "the contents of `val_data` changed"),
            (Identity { settings: Map::new(), ..one.clone() }, "`lora_r` was nothing and is 4 now"),
        ];
        for (other, words) in others {
            let difference = one.difference(&other).unwrap();
            assert!(difference.contains(words), "{difference:?} lacks {words:?}");
            assert_ne!(other.hash(), one.hash(), "{words}");
        }
    }
}
