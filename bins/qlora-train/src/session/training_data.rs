//! The rows of a run, read and checked, and the order in which they are trained on.

use super::Loaded;
use super::host::host_budget;
use super::untrained_tokens::warn_of_untrained_tokens;
use crate::config::{self, MixStrategy, Settings};
use crate::data::{
    self, Columns, DataFiles, DataOptions, Dataset, DatasetReport, Mix, MixOptions, Row, RowKind, Schedule,
    ScheduleOptions,
};
use crate::error::Result;
use crate::files::hash::hex;
use crate::refuse;
use crate::report::{count, status, status_lines, thousands};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::Arc;

/// The rows of a run and the order in which they are trained on.
pub struct TrainingData {
    pub rows: Vec<Row>,
    pub validation: Vec<Row>,
    /// Files that `Row::file` of a validation row indexes
    pub validation_files: Vec<PathBuf>,
    /// SHA-256 (hex) of each file of `data` and of `val_data`
    pub hashes: Vec<String>,
    pub validation_hashes: Vec<String>,
    /// SHA-256 (hex) over the tokens, labels, weights and tasks of all rows
    pub tokens_hash: String,
    /// What became of the rows of `data`
    pub report: DatasetReport,
    pub schedule: Schedule,
    /// Tokens of the longest batch.
    pub tokens: usize,
    /// Tokens of the longest row.
    pub longest: usize,
}

impl TrainingData {
    /// Reads and checks every row, and prints what became of them.
    pub fn load(settings: &Settings, loaded: &Loaded) -> Result<Self> {
        let options = data_options(settings, loaded);
        let training_options = training_options(settings, options.clone());
        let training = data::load_once(&settings.data, &|| loaded.open_tokenizer(), &training_options)?;
        status_lines!(training.report.lines_of_run());
        let (hashes, report) = (training.hashes.clone(), training.report.clone());
        let (validation_files, validation_hashes, rows, validation) = if settings.val_data.is_empty() {
            let (rows, validation) = split(settings, training)?;
            (settings.data.clone(), Vec::new(), rows, validation)
        } else {
            let options = validation_options(settings, options, &training.rows);
            let validation = data::load_once(&settings.val_data, &|| loaded.open_tokenizer(), &options)?;
            status_lines!(validation.report.validation_lines());
            (settings.val_data.clone(), validation.hashes, training.rows, validation.rows)
        };
        warn_of_untrained_tokens(loaded, rows.iter().chain(&validation))?;
        let schedule = schedule(settings, &rows)?;
        status_lines!(schedule.mix().line(&names(&settings.data)).into_iter().collect::<Vec<_>>());
        if let Some(packing) = schedule.packing() {
            status!("{packing}");
        }
        let longest = rows.iter().chain(&validation).map(Row::len).max().unwrap_or(0);
        Ok(Self {
            tokens: schedule.max_tokens().max(longest),
            tokens_hash: tokens_hash(&rows, &validation),
            rows,
            validation,
            validation_files,
            hashes,
            validation_hashes,
            report,
            schedule,
            longest,
        })
    }
}

fn tokens_hash(rows: &[Row], validation: &[Row]) -> String {
    let mut hash = Sha256::new();
    for part in [rows, validation] {
        hash.update(part.len().to_le_bytes());
        for Row { input_ids, labels, weights, file: _, line: _, task } in part {
            hash.update(input_ids.len().to_le_bytes());
            input_ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
            labels.iter().for_each(|label| hash.update(label.to_le_bytes()));
            weights.iter().for_each(|weight| hash.update(weight.to_le_bytes()));
            hash.update(weights.len().to_le_bytes());
            hash.update(task.as_deref().map_or(String::new(), |task| format!("{task:?}")));
        }
    }
    hex(hash.finalize())
}

/// Names of files, for people.
pub fn names(files: &[PathBuf]) -> Vec<String> {
    files.iter().map(|path| path.display().to_string()).collect()
}

/// Puts the files in place of the patterns and folders that the settings name, each with the numbers of its entry. A
/// folder's files for validation are taken where none are chosen. Refused: a share for an entry of several files.
pub fn find_files(settings: &mut Settings) -> Result<()> {
    let (mut training, mut validation, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for (entry, path) in settings.data.iter().enumerate() {
        let found = DataFiles::find(std::slice::from_ref(path))?;
        if found.training.len() != 1 && !settings.interleave_probs.0.is_empty() {
            refuse!(
                "`interleave_probs`: {} stands for {}, expected one: a share is of one file; name the files one by one",
                path.display(),
                count(found.training.len() as u64, "file")
            );
        }
        entries.resize(entries.len() + found.training.len(), entry);
        training.extend(found.training);
        validation.extend(found.validation);
    }
    fn expand<T: Copy>(numbers: &mut Vec<T>, entries: &[usize]) {
        *numbers = entries.iter().filter_map(|&entry| numbers.get(entry).copied()).collect();
    }
    expand(&mut settings.data_weights.0, &entries);
    expand(&mut settings.data_max_samples.0, &entries);
    settings.data = training;
    let chosen = !settings.val_data.is_empty() || settings.val_set_size != config::ValSet::Off;
    settings.val_data = if chosen { DataFiles::find(&settings.val_data)?.training } else { validation };
    Ok(())
}

/// Columns that the settings name.
pub fn columns(settings: &Settings) -> Columns {
    let columns = Columns::new(
        settings.prompt_column.as_deref(),
        settings.completion_column.as_deref(),
        settings.input_column.as_deref(),
        settings.system_column.as_deref(),
        settings.messages_column.as_deref(),
        settings.text_column.as_deref(),
    );
    // The template of Alpaca rows says what they are, beside the texts that others made of them.
    match settings.chat_template.as_deref() {
        Some("alpaca") => columns.meaning(RowKind::Alpaca),
        _ => columns,
    }
}

/// How rows are read for this model.
pub fn data_options(settings: &Settings, loaded: &Loaded) -> DataOptions {
    DataOptions {
        max_length: settings.max_length,
        too_long: settings.too_long,
        on_bad_row: settings.on_bad_row,
        prompt_completion: settings.prompt_completion,
        vocab_size: loaded.checkpoint.arch().vocab_size,
        eos_token_ids: loaded.checkpoint.arch().eos_token_ids.clone(),
        columns: columns(settings),
        max_samples: settings.max_samples.0,
        max_samples_of_each: Vec::new(),
        memory: host_budget(settings.host_memory.map(|bytes| bytes.0)),
        deduplicate: settings.deduplicate,
        known_rows: Arc::default(),
    }
}

/// How the rows of `data` are read.
pub fn training_options(settings: &Settings, options: DataOptions) -> DataOptions {
    DataOptions { max_samples_of_each: settings.data_max_samples.0.clone(), ..options }
}

/// How the rows of `val_data` are read: a row that is trained on says little of what was learned.
pub fn validation_options(settings: &Settings, options: DataOptions, training: &[Row]) -> DataOptions {
    let known_rows = if settings.deduplicate { Arc::new(data::identities(training)) } else { Arc::default() };
    DataOptions { known_rows, ..options }
}

/// Training rows, and the rows held back for validation.
pub fn split(settings: &Settings, training: Dataset) -> Result<(Vec<Row>, Vec<Row>)> {
    let val_set_size = match settings.val_set_size {
        config::ValSet::Off => return Ok((training.rows, Vec::new())),
        config::ValSet::Share(share) => share,
        config::ValSet::Count(rows) => rows as f64,
    };
    let (rows, validation) = training.split(val_set_size, settings.seed)?;
    let training = count(rows.len() as u64, "row");
    status!("{training} to train on, {} held back for validation", thousands(validation.len() as u64));
    Ok((rows, validation))
}

pub fn schedule(settings: &Settings, rows: &[Row]) -> Result<Schedule> {
    Schedule::mixed(rows.iter().map(Row::len).collect(), mix(settings, rows), schedule_options(settings))
}

/// The rows of an epoch.
pub fn mix(settings: &Settings, rows: &[Row]) -> Mix {
    let options = match settings.mix_strategy {
        MixStrategy::Concat if settings.data_weights.0.iter().all(|weight| *weight == 1.0) => {
            return Mix::all(rows.len());
        }
        MixStrategy::Concat => MixOptions::Weights(settings.data_weights.0.clone()),
        strategy => MixOptions::Shares {
            of_each: settings.interleave_probs.0.clone(),
            over: strategy == MixStrategy::InterleaveOver,
        },
    };
    let files: Vec<usize> = rows.iter().map(|row| row.file).collect();
    Mix::new(&files, &options, settings.seed)
}

pub fn schedule_options(settings: &Settings) -> ScheduleOptions {
    ScheduleOptions {
        per_device_train_batch_size: settings.per_device_train_batch_size,
        gradient_accumulation_steps: settings.gradient_accumulation_steps,
        num_train_epochs: settings.num_train_epochs,
        max_steps: settings.max_steps.0.map(|steps| steps as u64),
        packing: settings.packing,
        max_length: settings.max_length,
        shuffle: settings.shuffle,
        seed: settings.seed,
    }
}
