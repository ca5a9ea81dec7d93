//! The quantization of a base's linear weights while an adapter was trained on them, as the adapter's metadata records
//! it.

use std::fmt;

use qlora_kernels::nf4::NESTED_BLOCK_SIZE;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};

/// The JSON of [`metadata::QUANTIZATION`](super::metadata::QUANTIZATION):
/// `{"quant_type":"nf4","block_size":64,"double_quant":true,"nested_block_size":256}`, or `{"quant_type":"none"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "quant_type", rename_all = "lowercase", deny_unknown_fields)]
pub enum BaseQuantization {
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

impl BaseQuantization {
    pub const NONE: Self = Self::None {};

    pub fn nf4(block_size: usize, double_quant: bool, skipped_modules: usize) -> Self {
        let nested_block_size = double_quant.then_some(NESTED_BLOCK_SIZE);
        Self::Nf4 { block_size, double_quant, nested_block_size, skipped_modules }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are JSON")
    }

    /// Reads the metadata of an adapter; `source` is what errors call it.
    pub fn from_metadata(source: &str, text: &str) -> Result<Self> {
        serde_json::from_str(text).usage_context(|| {
            format!(
                "{source}: metadata `{}`: found {text:?}, expected the JSON of a quantization; choose the \
                 quantization of the base with --quantization",
                super::metadata::QUANTIZATION
            )
        })
    }

    /// The settings that quantize a base in this way.
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
impl fmt::Display for BaseQuantization {
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

    fn all() -> [BaseQuantization; 4] {
        [
            BaseQuantization::NONE,
            BaseQuantization::nf4(64, true, 0),
            BaseQuantization::nf4(128, false, 0),
            BaseQuantization::nf4(64, true, 2),
        ]
    }

    #[test]
    fn a_quantization_reads_back_from_json() {
        for quantization in all() {
            assert_eq!(BaseQuantization::from_metadata("adapter", &quantization.to_json()).unwrap(), quantization);
        }
        let json = r#"{"quant_type":"nf4","block_size":64,"double_quant":true,"nested_block_size":256}"#;
        assert_eq!(all()[1].to_json(), json);
        assert_eq!(all()[0].to_json(), r#"{"quant_type":"none"}"#);
    }

    #[test]
    fn other_texts_are_refused_with_the_key() {
        for text in
            ["fp4", "", "none", "nf4, block 64", "{\"quant_type\":\"fp4\"}", "{\"quant_type\":\"none\",\"x\":1}", "{"]
        {
            let error = BaseQuantization::from_metadata("out", text).unwrap_err().to_string();
            assert!(error.contains("out: metadata `qlora.quantization`"), "{error}");
        }
    }

    #[test]
    fn its_settings_hold_a_base_so() {
        let names = |quantization: &BaseQuantization| {
            quantization.settings().into_iter().map(|(_, value)| value).collect::<Vec<_>>()
        };
        assert_eq!(names(&all()[2]), ["nf4", "128", "false"]);
        assert_eq!(names(&all()[0]), ["none"]);
    }
}
