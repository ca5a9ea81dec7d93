//! The recipe of a base: how its linear weights were held while an adapter was trained on them, as its metadata keeps
//! it.

use std::fmt;

use qlora_kernels::nf4::NESTED_BLOCK_SIZE;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::refuse;

/// The JSON of [`metadata::QUANTIZATION`](super::metadata::QUANTIZATION):
/// `{"quant_type":"nf4","block_size":64,"double_quant":true,"nested_block_size":256}`, or `{"quant_type":"none"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "quant_type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Recipe {
    Nf4 {
        block_size: usize,
        double_quant: bool,
        /// Block size of the absmax, under double quantization
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nested_block_size: Option<usize>,
        /// Linear layers of a quantized checkpoint that are in 16 bits
        #[serde(default, skip_serializing_if = "is_zero")]
        skipped_modules: usize,
    },
    /// 16-bit weights
    None {},
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Recipe {
    pub const NONE: Self = Self::None {};

    pub fn nf4(block_size: usize, double_quant: bool, skipped_modules: usize) -> Self {
        let nested_block_size = double_quant.then_some(NESTED_BLOCK_SIZE);
        Self::Nf4 { block_size, double_quant, nested_block_size, skipped_modules }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are JSON")
    }

    /// Reads the metadata of an adapter; `source` is what errors call it. Earlier versions wrote the words of
    /// [`Display`](fmt::Display).
    pub fn from_metadata(source: &str, text: &str) -> Result<Self> {
        let what = || format!("{source}: metadata `{}`: found {text:?}", super::metadata::QUANTIZATION);
        if text.trim_start().starts_with('{') {
            return serde_json::from_str(text).usage_context(|| format!("{}, expected a quantization recipe", what()));
        }
        match Self::from_words(text) {
            Some(recipe) => Ok(recipe),
            None => refuse!(
                "{}, expected the JSON of a quantization recipe; say with --quantization how the base is to be held",
                what()
            ),
        }
    }

    fn from_words(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self::NONE);
        }
        let (rest, skipped) = match text.split_once("; ") {
            Some((rest, skipped)) => (rest, skipped.strip_suffix(" linear layers as they were")?.parse().ok()?),
            None => (text, 0),
        };
        let rest = rest.strip_prefix("nf4, block ")?;
        let (block_size, double_quant) = match rest.strip_suffix(", double quantization, block 256") {
            Some(block_size) => (block_size, true),
            None => (rest, false),
        };
        Some(Self::nf4(block_size.parse().ok()?, double_quant, skipped))
    }

    /// The settings that hold a base so.
    pub fn settings(&self) -> Vec<(String, String)> {
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        match self {
            Self::None {} => vec![setting("quantization", "none")],
            Self::Nf4 { block_size, double_quant, .. } => vec![
                setting("quantization", "nf4"),
                setting("nf4_block_size", &block_size.to_string()),
                setting("double_quant", &double_quant.to_string()),
            ],
        }
    }
}

/// For people: "nf4, block 64, double quantization, block 256".
impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::None {} => write!(f, "none"),
            Self::Nf4 { block_size, nested_block_size, skipped_modules, .. } => {
                write!(f, "nf4, block {block_size}")?;
                if let Some(nested) = nested_block_size {
                    write!(f, ", double quantization, block {nested}")?;
                }
                match skipped_modules {
                    0 => Ok(()),
                    n => write!(f, "; {n} linear layers as they were"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipes() -> [Recipe; 4] {
        [Recipe::NONE, Recipe::nf4(64, true, 0), Recipe::nf4(128, false, 0), Recipe::nf4(64, true, 2)]
    }

    #[test]
    fn a_recipe_reads_back_from_json_and_from_the_words_of_earlier_versions() {
        for recipe in recipes() {
            assert_eq!(Recipe::from_metadata("adapter", &recipe.to_json()).unwrap(), recipe);
            assert_eq!(Recipe::from_metadata("adapter", &recipe.to_string()).unwrap(), recipe);
        }
        let json = r#"{"quant_type":"nf4","block_size":64,"double_quant":true,"nested_block_size":256}"#;
        assert_eq!(recipes()[1].to_json(), json);
        assert_eq!(recipes()[0].to_json(), r#"{"quant_type":"none"}"#);
        // Earlier versions wrote words.
        for (words, recipe) in [
            ("none", Recipe::NONE),
            ("nf4, block 64, double quantization, block 256", Recipe::nf4(64, true, 0)),
            ("nf4, block 128; 3 linear layers as they were", Recipe::nf4(128, false, 3)),
        ] {
            assert_eq!(Recipe::from_metadata("adapter", words).unwrap(), recipe);
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_key() {
        for text in ["fp4", "", "nf4, block x", "{\"quant_type\":\"fp4\"}", "{\"quant_type\":\"none\",\"x\":1}", "{"] {
            let error = Recipe::from_metadata("out", text).unwrap_err().to_string();
            assert!(error.contains("out: metadata `qlora.quantization`"), "{error}");
        }
    }

    #[test]
    fn its_settings_hold_a_base_so() {
        let names = |recipe: &Recipe| recipe.settings().into_iter().map(|(_, value)| value).collect::<Vec<_>>();
        assert_eq!(names(&recipes()[2]), ["nf4", "128", "false"]);
        assert_eq!(names(&recipes()[0]), ["none"]);
    }
}
