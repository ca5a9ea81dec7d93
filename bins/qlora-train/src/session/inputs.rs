//! What a run works on: the base, its rows, their order, and the model that the settings describe.

use super::Device;
use super::chat_template::open_tokenizer;
use crate::arch::{LlamaConfig, Module};
use crate::backend::{Quantization, StateFormat};
use crate::base::{Checkpoint, resolve_model};
use crate::config::{self, Settings};
use crate::data::{self, ChatTokenizer, Columns, DataFiles, DataOptions, Row, Schedule, ScheduleOptions};
use crate::error::Result;
use crate::model::{LoraSpec, ModelSpec};
use crate::refuse;
use crate::report::{status, warning};
use std::path::PathBuf;

/// Above this many parameters the CPU is only used when it is asked for.
const CPU_PARAMETERS: u64 = 3_000_000_000;

/// A base model with what its directory says about text.
pub struct Loaded {
    pub checkpoint: Checkpoint,
    /// None where all rows are token ids already.
    pub tokenizer: Option<ChatTokenizer>,
}

impl Loaded {
    /// Opens and checks the base, without its weights; its tokenizer too if any of `files` holds text.
    pub fn open(settings: &Settings, files: &[PathBuf]) -> Result<Self> {
        Self::open_for(settings, files, &[])
    }

    /// As [`open`](Self::open), with the chat template that these adapters were trained with.
    pub fn open_for(settings: &Settings, files: &[PathBuf], adapters: &[PathBuf]) -> Result<Self> {
        let arg = settings.model_path()?;
        let dir = resolve_model(&arg.to_string_lossy(), settings.revision.as_deref())?;
        let checkpoint = Checkpoint::open(&dir)?;
        for note in checkpoint.notes() {
            status!("{note}");
        }
        let tokenizer = match data::needs_tokenizer(files, &columns(settings))? {
            true => Some(open_tokenizer(settings, &checkpoint, adapters)?),
            false => None,
        };
        if let Some(tokenizer) = &tokenizer {
            status!("chat template: {}", tokenizer.template_origin());
        }
        Ok(Self { checkpoint, tokenizer })
    }

    /// Of the base alone. Opening it checked that the count fits 64 bits.
    pub fn parameters(&self) -> u64 {
        self.checkpoint.config().num_parameters().unwrap_or(u64::MAX)
    }

    /// Refuses a model that would keep a CPU busy for days, unless the CPU was asked for.
    pub fn check_size(&self, settings: &Settings, device: Device) -> Result<()> {
        let parameters = self.parameters();
        if device == Device::Cpu && settings.device.is_none() && parameters > CPU_PARAMETERS {
            refuse!(
                "the model has {:.1}B parameters, which takes very long on a CPU; say `--device cpu` if that is what you \
                 want",
                parameters as f64 / 1e9
            );
        }
        Ok(())
    }
}

/// Refuses 16-bit weights where the checkpoint holds NF4.
pub fn check_quantization(settings: &Settings, checkpoint: &Checkpoint) -> Result<()> {
    if settings.quantization == config::Quantization::Off && checkpoint.quantization().is_some() {
        refuse!(
            "`quantization`: found none, but the weights of {} are quantised already ({}); expected nf4, or the original \
             16-bit model",
            checkpoint.dir().display(),
            recipe(settings, checkpoint)
        );
    }
    Ok(())
}

/// The rows of a run and the order in which they are trained on.
pub struct Workload {
    pub rows: Vec<Row>,
    pub validation: Vec<Row>,
    /// What `Row::file` of a validation row counts.
    pub validation_files: Vec<PathBuf>,
    pub schedule: Schedule,
    /// Tokens of the longest batch.
    pub tokens: usize,
    /// Tokens of the longest row.
    pub longest: usize,
}

impl Workload {
    /// Reads and checks every row, and prints what became of them.
    pub fn load(settings: &Settings, loaded: &Loaded) -> Result<Self> {
        let (rows, validation) = load_rows(settings, loaded)?;
        let validation_files = match settings.val_data.is_empty() {
            true => settings.data.clone(),
            false => settings.val_data.clone(),
        };
        let schedule = schedule(settings, &rows)?;
        if let Some(packing) = schedule.packing() {
            status!("{packing}");
        }
        let longest = rows.iter().chain(&validation).map(Row::len).max().unwrap_or(0);
        let positions = loaded.checkpoint.config().max_position_embeddings;
        if longest > positions {
            warning!("the longest row has {longest} tokens, the model was made for {positions} at most");
        }
        Ok(Self { tokens: schedule.max_tokens().max(longest), rows, validation, validation_files, schedule, longest })
    }
}

/// The columns of prompt and completion that the settings name.
fn columns(settings: &Settings) -> Columns {
    Columns { prompt: settings.prompt_column.clone(), completion: settings.completion_column.clone() }
}

/// Puts the files in place of the patterns and folders that the settings name. A folder's files for validation are taken
/// where none are given.
pub fn find_files(settings: &mut Settings) -> Result<()> {
    let found = DataFiles::find(&settings.data)?;
    settings.data = found.training;
    let chosen = !settings.val_data.is_empty() || settings.val_set_size != config::ValSet::Off;
    settings.val_data = if chosen { DataFiles::find(&settings.val_data)?.training } else { found.validation };
    Ok(())
}

/// How rows are read for this model.
pub fn data_options(settings: &Settings, loaded: &Loaded) -> DataOptions {
    DataOptions {
        max_length: settings.max_length,
        too_long: settings.too_long,
        on_bad_row: settings.on_bad_row,
        columns: columns(settings),
        prompt_completion: settings.prompt_completion,
        vocab_size: loaded.checkpoint.config().vocab_size,
        eos_token_ids: loaded.checkpoint.config().eos_token_ids.clone(),
    }
}

/// Training and validation rows.
fn load_rows(settings: &Settings, loaded: &Loaded) -> Result<(Vec<Row>, Vec<Row>)> {
    let options = data_options(settings, loaded);
    let training = data::load(&settings.data, loaded.tokenizer.as_ref(), &options)?;
    status!("{}", training.report);
    if !settings.val_data.is_empty() {
        let validation = data::load(&settings.val_data, loaded.tokenizer.as_ref(), &options)?;
        status!("validation: {}", validation.report);
        return Ok((training.rows, validation.rows));
    }
    let val_set_size = match settings.val_set_size {
        config::ValSet::Off => return Ok((training.rows, Vec::new())),
        config::ValSet::Share(share) => share,
        config::ValSet::Count(rows) => rows as f64,
    };
    let (rows, validation) = training.split(val_set_size, settings.seed)?;
    status!("{} rows to train on, {} held back for validation", rows.len(), validation.len());
    Ok((rows, validation))
}

pub fn schedule(settings: &Settings, rows: &[Row]) -> Result<Schedule> {
    Schedule::new(
        rows.iter().map(Row::len).collect(),
        ScheduleOptions {
            per_device_train_batch_size: settings.per_device_train_batch_size,
            gradient_accumulation_steps: settings.gradient_accumulation_steps,
            num_train_epochs: settings.num_train_epochs,
            max_steps: settings.max_steps.0.map(|steps| steps as u64),
            packing: settings.packing,
            max_length: settings.max_length,
            seed: settings.seed,
        },
    )
}

/// The linear layers that get an adapter, in the order of [`Module::ALL`].
pub fn target_modules(settings: &Settings) -> Vec<Module> {
    Module::ALL.into_iter().filter(|module| settings.lora_target_modules.contains(module.name())).collect()
}

/// The model that the settings describe, for batches of `tokens` and rows of `positions` tokens.
pub fn model_spec(settings: &Settings, checkpoint: &Checkpoint, tokens: usize, positions: usize) -> ModelSpec {
    let quantization = quantization(settings, checkpoint);
    model_spec_of(settings, checkpoint.config(), quantization, tokens, positions)
}

/// The same for a base of this shape.
pub fn model_spec_of(
    settings: &Settings,
    config: &LlamaConfig,
    quantization: Quantization,
    tokens: usize,
    positions: usize,
) -> ModelSpec {
    let r = settings.lora_r;
    let divisor = if settings.use_rslora { (r as f64).sqrt() } else { r as f64 };
    let scale = (settings.lora_alpha / divisor) as f32;
    let dropout = settings.lora_dropout as f32;
    let mut lora = LoraSpec::uniform(config, &target_modules(settings), r, scale, dropout);
    lora.states = match settings.optim {
        config::Optim::Adamw => StateFormat::F32,
        config::Optim::Adamw8bit => StateFormat::Blockwise8,
    };
    ModelSpec {
        config: config.clone(),
        quantization,
        lora,
        trainable: true,
        recompute: false,
        offload: false,
        tokens,
        positions,
        seed: settings.seed,
    }
}

/// How the frozen linear weights are held: as a quantised checkpoint stores them, else as the settings say.
pub fn quantization(settings: &Settings, checkpoint: &Checkpoint) -> Quantization {
    of_settings(&held_settings(settings, checkpoint))
}

/// The settings with the block size and double quantisation of a quantised checkpoint.
pub fn held_settings(settings: &Settings, checkpoint: &Checkpoint) -> Settings {
    let mut held = settings.clone();
    if let Some(options) = checkpoint.quantization() {
        held.quantization = config::Quantization::Nf4;
        (held.nf4_block_size, held.double_quant) = (options.block_size, options.double_quant);
    }
    held
}

/// How the settings say that the frozen linear weights are held.
pub fn of_settings(settings: &Settings) -> Quantization {
    match settings.quantization {
        config::Quantization::Nf4 => {
            Quantization::Nf4 { block_size: settings.nf4_block_size, double_quant: settings.double_quant }
        }
        config::Quantization::Off => Quantization::None,
    }
}

/// The quantisation recipe in words, for people and for the adapter's metadata.
pub fn recipe(settings: &Settings, checkpoint: &Checkpoint) -> String {
    let recipe = recipe_of(quantization(settings, checkpoint));
    match checkpoint.skipped_modules().len() {
        0 => recipe,
        skipped => format!("{recipe}; {skipped} linear layers as they were"),
    }
}

fn recipe_of(quantization: Quantization) -> String {
    match quantization {
        Quantization::Nf4 { block_size, double_quant: true } => {
            format!("nf4, block {block_size}, double quantisation, block 256")
        }
        Quantization::Nf4 { block_size, double_quant: false } => format!("nf4, block {block_size}"),
        Quantization::None => "none".to_owned(),
    }
}

/// The settings that a recipe in an adapter's metadata stands for: what [`recipe`] wrote, read back. Nothing for words
/// that it does not write.
pub fn recipe_settings(recipe: &str) -> Vec<(String, String)> {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    if recipe == "none" {
        return vec![setting("quantization", "none")];
    }
    let whole = recipe.split_once("; ").map_or(recipe, |(recipe, _)| recipe);
    let Some(rest) = whole.strip_prefix("nf4, block ") else { return Vec::new() };
    let (block, double) = match rest.split_once(", double quantisation") {
        Some((block, _)) => (block, "true"),
        None => (rest, "false"),
    };
    vec![setting("quantization", "nf4"), setting("nf4_block_size", block), setting("double_quant", double)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_reads_back_as_the_settings_it_was_written_from() {
        for (quantization, block, double) in [("none", 64, true), ("nf4", 64, true), ("nf4", 128, false)] {
            let settings = Settings::load(
                None,
                &[
                    ("quantization".to_owned(), quantization.to_owned()),
                    ("nf4_block_size".to_owned(), block.to_string()),
                    ("double_quant".to_owned(), double.to_string()),
                ],
            )
            .unwrap();
            let recipe = recipe_of(of_settings(&settings));
            for recipe in [recipe.clone(), format!("{recipe}; 2 linear layers as they were")] {
                if recipe.starts_with("nf4") || !recipe.contains(';') {
                    let again = Settings::load(None, &recipe_settings(&recipe)).unwrap();
                    assert_eq!(of_settings(&again), of_settings(&settings));
                }
            }
        }
        assert!(recipe_settings("fp4").is_empty());
    }
}
