//! `qlora-train eval`

use super::answer::Answer;
use super::model_args::ModelArgs;
use crate::backend::Backend;
use crate::config::{Settings, TooLong};
use crate::data::{self, DataFiles, DataOptions, Dataset};
use crate::error::Result;
use crate::infer::evaluate::evaluate;
use crate::infer::{InferenceJob, InferenceModel};
use crate::model::ModelSpec;
use crate::report::{Bars, status};
use crate::session::host::set_threads;
use crate::session::{Device, DeviceJob, Loaded};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Rows: JSONL, JSON or Parquet files; repeated, the loss is over all of them, and over each
    #[arg(long, required = true)]
    data: Vec<PathBuf>,
    /// Longer rows are refused
    #[arg(long, default_value_t = 2048)]
    max_length: usize,
}

pub fn run(args: &EvalArgs) -> Result<Answer> {
    let settings = args.model.settings()?;
    set_threads(settings.threads)?;
    let device = Device::choose(&settings)?;
    let loaded = Loaded::open_for(&settings, &args.model.adapter)?;
    loaded.check_size(&settings, &device)?;
    let options = DataOptions {
        max_length: args.max_length,
        too_long: TooLong::Error,
        vocab_size: loaded.checkpoint.arch().vocab_size,
        eos_token_ids: loaded.checkpoint.arch().eos_token_ids.clone(),
        columns: crate::session::columns(&settings),
        max_samples: settings.max_samples.0,
        ..DataOptions::default()
    };
    let files = DataFiles::find(&args.data)?.training;
    let dataset = data::load_once(&files, &|| loaded.open_tokenizer(), &options)?;
    status!("{}", dataset.report);
    device.clone().run(Evaluate { args, files, settings, loaded, dataset, device })
}

struct Evaluate<'a> {
    args: &'a EvalArgs,
    /// What `--data` means.
    files: Vec<PathBuf>,
    settings: Settings,
    loaded: Loaded,
    dataset: Dataset,
    device: Device,
}

impl DeviceJob for Evaluate<'_> {
    type Output = Answer;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Answer> {
        let Self { args, files, settings, loaded, dataset, device } = self;
        let longest = dataset.report.longest;
        // Short rows share a batch; a small data set needs no more than its own tokens.
        let tokens = longest.max(args.max_length.min(dataset.report.tokens));
        let adapters = args.model.adapters();
        let adapters = &adapters[..];
        let mut model = InferenceModel::load(
            &settings,
            &loaded.checkpoint,
            adapters,
            InferenceJob::Loss,
            tokens,
            longest,
            &device,
            build,
        )?;
        let (mut text, mut answers) = (Vec::new(), Vec::new());
        for index in 0..adapters.len().max(1) {
            if index > 0 {
                model.activate_adapter(&loaded.checkpoint, index)?;
            }
            let mut bar = Bars::new("evaluating", dataset.rows.len() as u64);
            let mut done = 0;
            let mut go_on = |rows| {
                done += rows as u64;
                bar.set(done, String::new());
                true
            };
            let (backend, rows) = (&mut model.backend, &dataset.rows);
            let evaluation = evaluate(backend, &model.model, rows, &files, tokens, &mut go_on)?;
            let evaluation = evaluation.expect("it was not stopped");
            bar.finish();
            if adapters.len() < 2 {
                return Ok(Answer { text: evaluation.to_string(), json: evaluation.to_json() });
            }
            let name = adapters[index].display().to_string();
            text.push(format!("{name}: {evaluation}"));
            let mut json = evaluation.to_json();
            json["adapter"] = name.into();
            answers.push(json);
        }
        Ok(Answer { text: text.join("\n"), json: json!({"adapters": answers}) })
    }
}
