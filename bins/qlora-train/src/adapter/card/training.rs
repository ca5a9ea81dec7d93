//! The run that trained an adapter, as the card reports it: nothing here depends on where and how fast it ran, and no
//! path of the machine is part of it.

use serde_json::{Map, Value};

use crate::hub::{DataSetFile, License};

/// Facts about a run for its card.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Training {
    /// Version of this program
    pub version: String,
    pub steps: u64,
    /// Steps of the whole run, where the adapter is that of a checkpoint
    pub of_steps: Option<u64>,
    pub epochs: f64,
    /// Trained parameters
    pub parameters: u64,
    /// Mean over the learned tokens of all steps
    pub train_loss: f64,
    /// Step and loss of a checkpoint's last entry of the log
    pub logged: Option<(u64, f64)>,
    /// Loss of the validation rows, by the adapter that was written
    pub eval_loss: Option<f64>,
    /// Step and loss of the best evaluation
    pub lowest: Option<(u64, f64)>,
    pub rows: u64,
    pub validation_rows: u64,
    pub tokens: u64,
    pub learned_tokens: u64,
    pub files: Vec<TrainedFile>,
    pub validation_files: Vec<TrainedFile>,
    /// SHA-256 over the tokens of all rows
    pub tokens_hash: String,
    /// Number format and instructions that the run computed with
    pub arithmetic: Option<String>,
    /// Day (UTC) that the chat template wrote, if it writes one
    pub date: Option<String>,
    /// Number of processes that added up their gradients, and the way; none for one process
    pub sums: Option<String>,
    /// Settings that decide the result and are not as they are by default
    pub settings: Map<String, Value>,
    /// License of the base
    pub license: Option<License>,
    /// True if the tokenizer lies beside the adapter
    pub tokenizer: bool,
    /// True if the base can be written as GGUF
    pub gguf: bool,
    /// True if the learning curve lies beside the card
    pub curve: bool,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TrainedFile {
    pub sha256: String,
    /// None: a file of the machine, whose name is nobody's business.
    pub origin: Option<DataSetFile>,
}

impl TrainedFile {
    pub fn shown(&self) -> String {
        match &self.origin {
            Some(DataSetFile { id, commit, file }) => format!("{id} at {commit}, {file}"),
            None => "a local file".to_owned(),
        }
    }
}

impl Training {
    /// Ids of the data sets, each once.
    pub fn data_sets(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = Vec::new();
        for origin in self.files.iter().chain(&self.validation_files).filter_map(|file| file.origin.as_ref()) {
            if !ids.contains(&origin.id.as_str()) {
                ids.push(&origin.id);
            }
        }
        ids
    }
}
