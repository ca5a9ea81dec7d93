//! Records of a run for its report, beside `run.json`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One logged step, as transformers writes it in `log_history`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    pub step: u64,
    pub epoch: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_loss: Option<f64>,
    /// Validation loss of each file, where there are several
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_file_losses: Option<BTreeMap<String, f64>>,
    /// Validation loss of each task, where there are several
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_task_losses: Option<BTreeMap<String, f64>>,
    /// Shares of answers that have references, from 0 to 1
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_exact_match: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_contains: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_match: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_rouge_l: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub samples: Option<Vec<Sample>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grad_norm: Option<f64>,
    /// Norm of the gradients of all A, and of all B, at some of the steps
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grad_norm_a: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grad_norm_b: Option<f64>,
    /// Learning rate of A
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub learning_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub learning_rate_b: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens_per_second: Option<f64>,
    /// Seconds since this process began to train.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub num_input_tokens_seen: Option<u64>,
    /// Memory held on the device of the run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_bytes: Option<u64>,
}

impl LogEntry {
    /// An entry without values.
    pub fn new(step: u64, epoch: f64) -> Self {
        Self { step, epoch, ..Self::default() }
    }
}

/// A prompt and what the model answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub prompt: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reference: Option<String>,
    pub answer: String,
}

/// Result of a finished run, kept in `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    pub steps: u64,
    /// Mean over the supervised tokens of the whole run.
    pub train_loss: f64,
    /// Validation loss of the adapter that was written
    pub eval_loss: Option<f64>,
    /// Non-padding tokens over the steps after the first; None where there was only one.
    pub tokens_per_second: Option<f64>,
    pub peak_bytes: u64,
}

/// `report.json`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// Words of the command that started or resumed the run
    pub command: Vec<String>,
    /// "cpu, 2 threads"
    pub device: String,
    /// Quantization of the base
    pub quantization: String,
    /// Parameters of the base, and of the adapters
    pub parameters: u64,
    pub trainable: u64,
    pub total_steps: u64,
    pub warnings: Vec<Warning>,
    pub data: DataDetails,
    pub memory: MemoryDetails,
    /// Seconds of each kind of operation in one step
    pub operations: Vec<(String, f64)>,
    pub modules: Vec<ModuleChange>,
    pub tensors: Vec<TensorChange>,
}

/// A warning of a lint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    /// Steps done; 0: before the first
    pub step: u64,
    pub name: String,
    pub message: String,
}

/// Rows of a run, with those that were left out or changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataDetails {
    pub files: Vec<String>,
    pub rows: usize,
    pub validation_rows: usize,
    pub tokens: usize,
    pub supervised_tokens: usize,
    pub max_length: usize,
    /// Rows that were left out or changed, with the reason
    pub left_out: Vec<(String, usize)>,
    /// Shortest and longest length, rows
    pub lengths: Vec<(usize, usize, usize)>,
    pub chat_template: Option<String>,
    pub packing: Option<String>,
    /// Rows as text, in pieces that are learned or not
    pub examples: Vec<Vec<(String, bool)>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryDetails {
    /// "host memory" or "GPU memory"
    pub place: String,
    pub planned: u64,
    pub limit: u64,
    pub buffers: Vec<(String, u64)>,
}

/// Change of one linear layer by its adapter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModuleChange {
    pub module: String,
    /// Frobenius norm of scale · B · A
    pub norm: f64,
    /// `norm` divided by the norm of the base's weight, where it is known
    #[serde(default)]
    pub relative: Option<f64>,
    /// Singular values of scale · B · A, the largest first
    pub singular_values: Vec<f64>,
}

/// Change of a tensor that was trained beside the low-rank terms, whole or in the rows of some tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TensorChange {
    pub module: String,
    /// Number of tokens whose rows were trained; none: the whole tensor was
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rows: Option<u64>,
    /// Frobenius norm of the values less those of the base
    pub norm: f64,
    /// `norm` divided by the norm of the base's values, where these are not all zero
    #[serde(default)]
    pub relative: Option<f64>,
}

impl ModuleChange {
    /// Ranks that carry `share` of the squared norm.
    pub fn ranks_for(&self, share: f64) -> usize {
        let total: f64 = self.singular_values.iter().map(|value| value * value).sum();
        let mut sum = 0.0;
        let enough = self.singular_values.iter().position(|value| {
            sum += value * value;
            sum >= share * total
        });
        if total == 0.0 { 0 } else { enough.map_or(self.singular_values.len(), |at| at + 1) }
    }
}
