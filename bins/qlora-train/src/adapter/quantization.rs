//! The record of how a base was quantized when an adapter was trained on it: JSON in the adapter's metadata.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Quantization of a base's linear weights. The first three fields have the names and values of the settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantizationRecord {
    /// nf4 or none
    pub quantization: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nf4_block_size: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub double_quant: Option<bool>,
    /// Linear layers of a quantized base that are stored as they were
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unquantized_layers: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl QuantizationRecord {
    /// None: text that is no such record.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("names and numbers serialize")
    }

    /// Names and values of the settings that quantize a base in this way.
    pub fn settings(&self) -> Vec<(String, String)> {
        let values = [
            ("quantization", Some(self.quantization.clone())),
            ("nf4_block_size", self.nf4_block_size.map(|size| size.to_string())),
            ("double_quant", self.double_quant.map(|double| double.to_string())),
        ];
        values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

/// "nf4, block 64, double quantization; 2 linear layers as they were"
impl fmt::Display for QuantizationRecord {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.quantization)?;
        if let Some(size) = self.nf4_block_size {
            write!(f, ", block {size}")?;
        }
        if self.double_quant == Some(true) {
            f.write_str(", double quantization")?;
        }
        match self.unquantized_layers {
            0 => Ok(()),
            layers => write!(f, "; {layers} linear layers as they were"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_is_said_in_words() {
        let nf4 = |double_quant, unquantized_layers| QuantizationRecord {
            quantization: "nf4".to_owned(),
            nf4_block_size: Some(128),
            double_quant: Some(double_quant),
            unquantized_layers,
        };
        let none = QuantizationRecord {
            quantization: "none".to_owned(),
            nf4_block_size: None,
            double_quant: None,
            unquantized_layers: 0,
        };
        for (record, json, words) in [
            (
                nf4(true, 2),
                r#"{"quantization":"nf4","nf4_block_size":128,"double_quant":true,"unquantized_layers":2}"#,
                "nf4, block 128, double quantization; 2 linear layers as they were",
            ),
            (nf4(false, 0), r#"{"quantization":"nf4","nf4_block_size":128,"double_quant":false}"#, "nf4, block 128"),
            (none, r#"{"quantization":"none"}"#, "none"),
        ] {
            assert_eq!(record.to_json(), json);
            assert_eq!(QuantizationRecord::parse(json), Some(record.clone()));
            assert_eq!(record.to_string(), words);
        }
        let settings = nf4(false, 2).settings();
        let expected = [("quantization", "nf4"), ("nf4_block_size", "128"), ("double_quant", "false")];
        assert!(settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(expected));
        assert_eq!(QuantizationRecord::parse("nf4, block 64"), None);
    }
}
