//! The rows of a run, read and checked, and the order in which they are trained on.

use super::Loaded;
use super::host::share;
use super::model_spec::lora_spec;
use super::untrained_tokens::warn_of_untrained;
use crate::bail_usage;
use crate::config::{self, MixStrategy, RowsOfEach, Settings};
use crate::data::{
    self, Columns, DataFiles, DataOptions, Dataset, DatasetReport, Mix, MixOptions, Row, RowKind, Rows, Schedule,
    ScheduleOptions, TokenCache, TokenizedRows,
};
use crate::error::Result;
use crate::files::hash::hex;
use crate::hub::{Environment, Slice};
use crate::report::{count, detail, status, status_lines, thousands};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The rows of a run and the order in which they are trained on.
pub struct TrainingData {
    pub rows: Rows,
    pub validation: Rows,
    /// Files that `Row::file` of a validation row indexes
    pub validation_files: Vec<PathBuf>,
    /// SHA-256 (hex) of each file of `data` and of `val_data`
    pub hashes: Vec<String>,
    pub validation_hashes: Vec<String>,
    /// SHA-256 (hex) over the tokens, labels, weights and tasks of all rows
    pub tokens_hash: String,
    /// All that became of the rows of `data`
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
        let cache = settings.tokenized_cache.as_ref().map(|dir| TokenCache {
            dir: dir.clone(),
            of: loaded.tokenizer_source(),
            clock: loaded.clock(),
        });
        let read = |files: &[PathBuf], options: &DataOptions, known: Option<&Rows>| -> Result<Dataset<Rows>> {
            let open = || loaded.open_tokenizer();
            let TokenizedRows { dataset, said } = data::load_tokenized(files, &open, options, known, cache.as_ref())?;
            status_lines!(said);
            Ok(dataset)
        };
        let Dataset { hashes, rows, report } = read(&settings.data, &training_options, None)?;
        status_lines!(report.lines_of_run());
        let (validation_files, validation_hashes, rows, validation) = if settings.val_data.is_empty() {
            let (rows, validation) = split(settings, rows)?;
            (settings.data.clone(), Vec::new(), rows, validation)
        } else {
            // A row that is trained on says little of what was learned.
            let known = settings.deduplicate.then_some(&rows);
            let validation = read(&settings.val_data, &validation_rows(settings, options), known)?;
            status_lines!(validation.report.validation_lines());
            (settings.val_data.clone(), validation.hashes, rows, validation.rows)
        };
        // Faults of the terms are reported when the model is planned.
        let trained = lora_spec(settings, loaded.checkpoint.arch()).unwrap_or_default();
        warn_of_untrained(loaded, &trained, rows.ids().chain(validation.ids()))?;
        let (lengths, files) = (rows.lengths().collect(), (0..rows.len()).map(|row| rows.file(row)).collect());
        let schedule = schedule_of(settings, lengths, files)?;
        status_lines!(schedule.mix().line(&names(&settings.data)).into_iter().collect::<Vec<_>>());
        if let Some(packing) = schedule.packing() {
            status!("{packing}");
        }
        let longest = rows.lengths().chain(validation.lengths()).max().unwrap_or(0);
        Ok(Self {
            tokens: schedule.max_tokens().max(longest),
            tokens_hash: kept_tokens_hash(settings, &rows, &validation)?,
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

/// The hash of all tokens, kept beside rows that are kept.
fn kept_tokens_hash(settings: &Settings, rows: &Rows, validation: &Rows) -> Result<String> {
    let (Some(dir), Some(training)) = (&settings.tokenized_cache, rows.digest()) else {
        return tokens_hash(rows, validation);
    };
    if validation.digest().is_none() && !validation.is_empty() {
        return tokens_hash(rows, validation);
    }
    let parts = match settings.val_set_size {
        config::ValSet::Off => None,
        share => Some((share, settings.seed)),
    };
    let key = format!("tokens of {training} {:?} {parts:?}", validation.digest());
    if let Some(hash) = data::recall(dir, &key) {
        return Ok(hash);
    }
    let hash = tokens_hash(rows, validation)?;
    if let Err(error) = data::remember(dir, &key, &hash) {
        detail!("the next start computes the hash of the tokens again: {error}");
    }
    Ok(hash)
}

fn tokens_hash(rows: &Rows, validation: &Rows) -> Result<String> {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for part in [rows, validation] {
        hash.update(part.len().to_le_bytes());
        for row in part.iter() {
            let row = row?;
            let Row { input_ids, labels, weights, file: _, line: _, task } = &*row;
            bytes.clear();
            bytes.extend(input_ids.len().to_le_bytes());
            input_ids.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
            labels.iter().for_each(|label| bytes.extend(label.to_le_bytes()));
            weights.iter().for_each(|weight| bytes.extend(weight.to_le_bytes()));
            bytes.extend(weights.len().to_le_bytes());
            hash.update(&bytes);
            hash.update(task.as_deref().map_or(String::new(), |task| format!("{task:?}")));
        }
    }
    Ok(hex(hash.finalize()))
}

/// Names of files, for people.
pub fn names(files: &[PathBuf]) -> Vec<String> {
    files.iter().map(|path| path.display().to_string()).collect()
}

/// Puts the files in place of the patterns and folders that the settings name, each with the numbers of its entry. A
/// folder's files for validation are taken where none are chosen. Refused: a share for an entry of several files.
pub fn find_files(settings: &mut Settings) -> Result<()> {
    find_files_by(settings, &Environment::read())
}

/// Finds files as [`find_files`] does, with the caches, the hub and the recorded commits of `environment`.
pub fn find_files_by(settings: &mut Settings, environment: &Environment) -> Result<()> {
    let (mut training, mut validation, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    let mut rows = Vec::new();
    for (entry, path) in settings.data.iter().enumerate() {
        let mut found = DataFiles::find_by(std::slice::from_ref(path), environment)?;
        (found.training, rows) = with_rows("data_rows", &settings.data_rows, entry, path, found.training, rows)?;
        if found.training.len() != 1 && !settings.interleave_probs.0.is_empty() {
            bail_usage!(
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
    settings.data_rows = of_some(rows);
    let chosen = !settings.val_data.is_empty() || settings.val_set_size != config::ValSet::Off;
    if !chosen {
        settings.val_data = validation;
        return Ok(());
    }
    let (mut files, mut rows) = (Vec::new(), Vec::new());
    for (entry, path) in settings.val_data.iter().enumerate() {
        let found = DataFiles::find_by(std::slice::from_ref(path), environment)?.training;
        let cut;
        (cut, rows) = with_rows("val_data_rows", &settings.val_data_rows, entry, path, found, rows)?;
        files.extend(cut);
    }
    (settings.val_data, settings.val_data_rows) = (files, of_some(rows));
    Ok(())
}

/// The files of an entry of which rows are meant, and `rows` with theirs. Refused: rows in the setting and in the id.
fn with_rows(
    setting: &str,
    given: &RowsOfEach,
    entry: usize,
    path: &Path,
    files: Vec<PathBuf>,
    mut rows: Vec<Slice>,
) -> Result<(Vec<PathBuf>, Vec<Slice>)> {
    let meant = match (given.0.get(entry).copied().filter(|rows| *rows != Slice::ALL), data::asked_rows(path)?) {
        (Some(given), Some(asked)) => bail_usage!(
            "`{setting}`: found [{given}] for {}, which has rows [{asked}] of its own: keep one of them",
            path.display()
        ),
        (given, asked) => given.or(asked).unwrap_or(Slice::ALL),
    };
    let (files, own): (Vec<_>, Vec<_>) = data::cut(path, files, meant)?.into_iter().unzip();
    rows.extend(own);
    Ok((files, rows))
}

/// Rows of each file. None are said where all are meant.
fn of_some(rows: Vec<Slice>) -> RowsOfEach {
    if rows.iter().all(|rows| *rows == Slice::ALL) { RowsOfEach::ALL } else { RowsOfEach(rows) }
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
    )
    .turn_keys(settings.role_key.as_deref(), settings.content_key.as_deref())
    .roles(settings.roles.pairs());
    // The template of Alpaca rows says what they are, beside the texts that others made of them.
    match settings.chat_template.as_deref() {
        Some("alpaca") => columns.meaning(RowKind::Alpaca),
        _ => columns,
    }
}

/// Options for reading rows for this model.
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
        rows_of_each: Vec::new(),
        memory: share(settings.host_memory.map(|bytes| bytes.0), loaded.processes_here()),
        deduplicate: settings.deduplicate,
        known_rows: Arc::default(),
        by_adapter: false,
    }
}

/// Options for reading the rows of `data`.
pub fn training_options(settings: &Settings, options: DataOptions) -> DataOptions {
    let max_samples_of_each = settings.data_max_samples.0.clone();
    DataOptions { max_samples_of_each, rows_of_each: settings.data_rows.0.clone(), ..options }
}

/// Options with the rows of `val_data` that are read.
pub fn validation_rows(settings: &Settings, options: DataOptions) -> DataOptions {
    DataOptions { rows_of_each: settings.val_data_rows.0.clone(), ..options }
}

/// Options for reading the rows of `val_data`: a row that is trained on too says little of the learning.
pub fn validation_options(settings: &Settings, options: DataOptions, training: &[Row]) -> DataOptions {
    let known_rows = if settings.deduplicate { Arc::new(data::identities(training)) } else { Arc::default() };
    DataOptions { known_rows, ..options }
}

/// Training rows, and the rows held back for validation.
pub fn split(settings: &Settings, rows: Rows) -> Result<(Rows, Rows)> {
    let val_set_size = match settings.val_set_size {
        config::ValSet::Off => return Ok((rows, Rows::default())),
        config::ValSet::Share(share) => share,
        config::ValSet::Count(rows) => rows as f64,
    };
    let (rows, validation) = rows.split(val_set_size, settings.seed)?;
    let training = count(rows.len() as u64, "row");
    status!("{training} to train on, {} held back for validation", thousands(validation.len() as u64));
    Ok((rows, validation))
}

pub fn schedule(settings: &Settings, rows: &[Row]) -> Result<Schedule> {
    schedule_of(settings, rows.iter().map(Row::len).collect(), rows.iter().map(|row| row.file).collect())
}

/// The schedule of rows of these lengths, of these files.
fn schedule_of(settings: &Settings, lengths: Vec<usize>, files: Vec<usize>) -> Result<Schedule> {
    Schedule::mixed(lengths, mix_of(settings, files), schedule_options(settings))
}

/// The rows of an epoch.
pub fn mix(settings: &Settings, rows: &[Row]) -> Mix {
    mix_of(settings, rows.iter().map(|row| row.file).collect())
}

fn mix_of(settings: &Settings, files: Vec<usize>) -> Mix {
    let options = match settings.mix_strategy {
        MixStrategy::Concat if settings.data_weights.0.iter().all(|weight| *weight == 1.0) => {
            return Mix::all(files.len());
        }
        MixStrategy::Concat => MixOptions::Weights(settings.data_weights.0.clone()),
        strategy => MixOptions::Shares {
            of_each: settings.interleave_probs.0.clone(),
            over: strategy == MixStrategy::InterleaveOver,
        },
    };
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
