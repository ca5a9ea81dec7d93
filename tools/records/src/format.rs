//! A file of `benches/records/`: the measurements of one run on one GPU.

use serde::{Deserialize, Serialize};

/// The cell of a table that no record fills.
pub const NOT_MEASURED: &str = "not measured on a GPU";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// UTC, for example "2025-01-31 23:59".
    pub date: String,
    pub gpu: String,
    pub driver: Option<String>,
    /// CUDA version that the driver supports, for example "13.0".
    pub cuda: String,
    pub nvcc: Option<String>,
    pub cublaslt: Option<String>,
    pub commit: Option<String>,
    /// Hash of the kernels' sources: `source::kernels_hash`.
    pub kernels_hash: String,
    pub multiprocessors: usize,
    pub l2_bytes: usize,
    pub memory_bytes: usize,
    /// Speed of a plain copy in the same run, read and written bytes counted.
    pub copy_gb_per_s: f64,
    /// "quick" or "full"
    pub mode: String,
    pub method: String,
    /// Measurements that failed, with the reason.
    pub not_measured: Vec<String>,
    pub rows: Vec<Row>,
}

/// One operation at one shape. Fields that do not apply to it are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Row {
    pub operation: String,
    pub shape: String,
    /// M, tokens
    #[serde(skip_serializing_if = "Option::is_none")]
    pub m: Option<usize>,
    /// The code that ran, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seconds of one launch.
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tflops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gb_per_s: Option<f64>,
    /// Share of the copy bandwidth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_of_copy: Option<f64>,
    /// Seconds of dequantize + cuBLASLt, with the low-rank term, over these: above 1 ours is faster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_dequantize_cublaslt: Option<f64>,
    /// Seconds of cuBLASLt on bf16 weights, without a low-rank term, over these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_cublaslt: Option<f64>,
    /// Seconds of the kernel on bf16 weights over these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_bf16_weights: Option<f64>,
    /// Extra time of the low-rank term, in percent of the layer without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_percent: Option<f64>,
    /// Device memory beside inputs and outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transient_bytes: Option<f64>,
}

/// The name of the file of a run on a GPU.
pub(crate) fn file_name(date: &str, gpu: &str) -> String {
    let words = gpu.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let gpu = words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-");
    format!("{}-{gpu}.json", date.replace(' ', "-").replace(':', ""))
}

/// An error if a date is none, or a name not that of a GPU.
pub(crate) fn check_run(date: &str, gpu: &str) -> Result<(), String> {
    let shape: String = date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    if shape != "0000-00-00 00:00" {
        return Err(format!("date is {date:?}, expected for example \"2025-01-31 23:59\""));
    }
    if gpu.is_empty() || gpu.contains("emulation") {
        return Err(format!("gpu is {gpu:?}, expected the name of a GPU"));
    }
    Ok(())
}

pub(crate) fn positive(what: &str, value: f64) -> Result<(), String> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(format!("{what} is {value}, expected a number above 0")),
    }
}

impl Record {
    /// The name of its file.
    pub fn file_name(&self) -> String {
        file_name(&self.date, &self.gpu)
    }

    /// An error that describes the first fault.
    pub fn check(&self) -> Result<(), String> {
        check_run(&self.date, &self.gpu)?;
        if self.kernels_hash.len() != 64 || !self.kernels_hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("kernels_hash is {:?}, expected 64 hexadecimal digits", self.kernels_hash));
        }
        positive("copy_gb_per_s", self.copy_gb_per_s)?;
        for (index, row) in self.rows.iter().enumerate() {
            positive(&format!("rows[{index}].seconds"), row.seconds)?;
            let same = |other: &&Row| (&other.operation, &other.shape, other.m) == (&row.operation, &row.shape, row.m);
            if row.operation.is_empty() || self.rows[..index].iter().any(|other| same(&other)) {
                let Row { operation, shape, m, .. } = row;
                return Err(format!(
                    "rows[{index}] has no operation, or one that is there before: {operation:?} {shape:?} {m:?}"
                ));
            }
        }
        Ok(())
    }
}
