//! `qlora-train eval`

use super::answer::Answer;
use super::eval_answers::{self, AnswersArgs};
use super::model_args::{Chosen, ModelArgs};
use crate::backend::Backend;
use crate::bail_usage;
use crate::comm::{Communicator, SingleProcess};
use crate::config::{Settings, TooLong, ValSet, path_from_home};
use crate::data::{self, DataOptions, Rows};
use crate::error::Result;
use crate::infer::by_row::evaluate_by_row;
use crate::infer::evaluate::{Evaluation, Part, evaluate};
use crate::infer::{Adapters, InferenceJob, InferenceModel};
use crate::model::ModelSpec;
use crate::report::{Bars, printable, status_lines};
use crate::session::host::set_threads;
use crate::session::training_data::{
    data_options, find_files, split, training_options, validation_options, validation_rows,
};
use crate::session::untrained_tokens::{rows_of_adapters, warn_of_untrained};
use crate::session::{Device, DeviceJob, Loaded};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Rows: JSONL, JSON or Parquet files, or ids of data sets on the hub; repeat the flag for the loss over all of
    /// them and over each [default: the validation rows of the settings file, or its training rows]
    #[arg(long, required_unless_present = "config", value_parser = path_from_home())]
    data: Vec<PathBuf>,
    /// Each row names its adapter under `adapter` (no name: the base alone), and a batch may mix adapters. The loss is
    /// reported for all rows and for each adapter, instead of for each task
    #[arg(long)]
    adapter_by_row: bool,
    /// Evaluate the base alone too, after the adapters, to show what they changed
    #[arg(long)]
    with_base: bool,
    /// Maximum number of tokens in a row [default: 2048, or that of the settings file]
    #[arg(long)]
    max_length: Option<usize>,
    /// Treatment of longer rows: error, drop or truncate [default: error, or that of the settings file]
    #[arg(long)]
    too_long: Option<String>,
    /// Treatment of rows that cannot be read: error, or skip and count them
    #[arg(long)]
    on_bad_row: Option<String>,
    /// Column of the rows that holds the prompt
    #[arg(long)]
    prompt_column: Option<String>,
    /// Column of the rows that holds the answer
    #[arg(long)]
    completion_column: Option<String>,
    /// Column of the rows that holds the turns
    #[arg(long)]
    messages_column: Option<String>,
    /// Key of a turn's role, if it is not role or from
    #[arg(long)]
    role_key: Option<String>,
    /// Key of a turn's content, if it is not content or value
    #[arg(long)]
    content_key: Option<String>,
    /// Other names for roles in the turns, such as user=customer,assistant=agent
    #[arg(long)]
    roles: Option<String>,
    /// Column of the rows that holds the text
    #[arg(long)]
    text_column: Option<String>,
    #[command(flatten)]
    answers: AnswersArgs,
}

impl EvalArgs {
    /// The settings with the arguments of this command.
    fn settings(&self, mut settings: Settings) -> Result<Settings> {
        if let Some(max_length) = self.max_length {
            settings.max_length = max_length;
        }
        match &self.too_long {
            Some(given) => {
                settings.too_long = Settings::load(None, &[("too_long".to_owned(), given.clone())])?.too_long
            }
            None if self.model.config.is_none() => settings.too_long = TooLong::Error,
            None => (),
        }
        self.set_row_settings(&mut settings)?;
        if !self.data.is_empty() {
            settings.data = self.data.clone();
            settings.mix_nothing();
            (settings.val_data, settings.val_set_size) = (Vec::new(), ValSet::Off);
        }
        if settings.data.is_empty() && settings.val_data.is_empty() {
            bail_usage!(
                "`data` is missing: give the rows, `data: rows.jsonl` in the settings file or `--data rows.jsonl`"
            );
        }
        find_files(&mut settings)?;
        // All given rows are evaluated, whatever else their folder holds.
        if !self.data.is_empty() {
            settings.val_data = Vec::new();
        }
        Ok(settings)
    }

    /// Sets the given settings on how rows are read.
    fn set_row_settings(&self, settings: &mut Settings) -> Result<()> {
        let given = [
            ("on_bad_row", &self.on_bad_row),
            ("prompt_column", &self.prompt_column),
            ("completion_column", &self.completion_column),
            ("messages_column", &self.messages_column),
            ("role_key", &self.role_key),
            ("content_key", &self.content_key),
            ("roles", &self.roles),
            ("text_column", &self.text_column),
        ];
        for (name, value) in given {
            let Some(value) = value else { continue };
            let read = Settings::load(None, &[(name.to_owned(), value.clone())])?;
            match name {
                "on_bad_row" => settings.on_bad_row = read.on_bad_row,
                "prompt_column" => settings.prompt_column = read.prompt_column,
                "completion_column" => settings.completion_column = read.completion_column,
                "messages_column" => settings.messages_column = read.messages_column,
                "role_key" => settings.role_key = read.role_key,
                "content_key" => settings.content_key = read.content_key,
                "roles" => settings.roles = read.roles,
                _ => settings.text_column = read.text_column,
            }
        }
        Ok(())
    }
}

pub fn run(args: &EvalArgs) -> Result<Answer> {
    let Chosen { settings, adapters } = args.model.choose()?;
    let adapters = if args.adapter_by_row { adapters.by_row()? } else { adapters };
    let settings = args.settings(settings)?;
    set_threads(settings.threads)?;
    let device = Device::choose(&settings)?;
    let mut loaded = Loaded::open_for(&settings, &adapters.dirs)?;
    let device = device.for_model(&settings, loaded.checkpoint.arch());
    loaded.check_size(&settings, &device)?;
    let by_adapter = adapters.is_by_row();
    let mut options = DataOptions { by_adapter, ..data_options(&settings, &loaded) };
    let files = if settings.val_data.is_empty() { &settings.data } else { &settings.val_data }.clone();
    let read = |files: &[PathBuf], options: &DataOptions| data::load_once(files, &|| loaded.open_tokenizer(), options);
    // The rows that the run of the settings file evaluates, which leaves out those that it trains on.
    if settings.deduplicate && !settings.val_data.is_empty() && !settings.data.is_empty() {
        let training = read(&settings.data, &training_options(&settings, options.clone()))?;
        options = validation_options(&settings, options, &training.rows);
    }
    options = match settings.val_data.is_empty() {
        true => training_options(&settings, options),
        false => validation_rows(&settings, options),
    };
    let mut dataset = read(&files, &options)?;
    if by_adapter {
        // The names that it counts are those of adapters, which the result has.
        dataset.report.tasks = 0;
    }
    status_lines!(dataset.report.lines());
    // Those that the run of the settings file held back.
    let held_out = settings.val_set_size != ValSet::Off;
    let rows = Rows::from(dataset.rows);
    let rows = if held_out { split(&settings, rows)?.1 } else { rows };
    if by_adapter {
        (0..rows.len()).try_for_each(|row| adapters.number(rows.task(row)).map(drop))?;
    }
    warn_of_untrained(&loaded, &rows_of_adapters(&adapters.dirs), rows.ids())?;
    loaded.use_quantized(&settings)?;
    if args.answers.is_asked() {
        return eval_answers::run(&args.answers, settings, adapters, loaded, &rows, args.with_base, device);
    }
    device.clone().run(Evaluate { with_base: args.with_base, files, settings, adapters, loaded, rows, device })
}

struct Evaluate {
    with_base: bool,
    /// The files or ids of `--data`, or those of the settings file.
    files: Vec<PathBuf>,
    settings: Settings,
    adapters: Adapters,
    loaded: Loaded,
    rows: Rows,
    device: Device,
}

impl DeviceJob for Evaluate {
    type Output = Answer;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Answer> {
        let Self { with_base, files, settings, adapters, loaded, rows, device } = self;
        let longest = rows.lengths().max().unwrap_or(0);
        // Short rows share a batch; a small data set needs no more than its own tokens.
        let tokens = longest.max(settings.max_length.min(rows.lengths().sum()));
        let mut model = InferenceModel::load(
            &settings,
            &loaded.checkpoint,
            &adapters,
            InferenceJob::Loss,
            tokens,
            longest,
            &device,
            build,
        )?;
        let evaluate = |model: &mut InferenceModel<B>| -> Result<Evaluation> {
            let mut bar = Bars::new("evaluating", rows.len() as u64);
            let mut done = 0;
            let mut go_on = |_: &mut dyn Communicator, evaluated: usize| {
                done += evaluated as u64;
                bar.set(done, String::new());
                Ok(true)
            };
            let (backend, alone) = (&mut model.backend, &mut SingleProcess);
            let evaluation = evaluate(backend, &model.model, &rows, &files, tokens, alone, &mut go_on)?;
            bar.finish();
            Ok(evaluation.expect("it was not stopped"))
        };
        let (with_base, passes) = (with_base && !adapters.is_empty(), adapters.passes());
        let mut text = Vec::new();
        let mut json = if adapters.is_by_row() {
            let mut bar = Bars::new("evaluating", rows.len() as u64);
            let mut done = 0;
            let mut go_on = |evaluated: usize| {
                done += evaluated as u64;
                bar.set(done, String::new());
            };
            let (backend, llama) = (&mut model.backend, &model.model);
            let (evaluation, parts) = evaluate_by_row(backend, llama, &rows, &files, &adapters, tokens, &mut go_on)?;
            bar.finish();
            text.push(evaluation.to_string());
            text.extend(parts.iter().map(|part| format!("  adapter {part}")));
            let mut json = evaluation.to_json();
            json["adapters"] = parts.iter().map(Part::to_json).collect();
            json
        } else if passes.len() < 2 && !with_base {
            let evaluation = evaluate(&mut model)?;
            return Ok(Answer { text: evaluation.to_string(), json: evaluation.to_json() });
        } else {
            let mut answers = Vec::new();
            for (index, name) in passes.into_iter().flatten().enumerate() {
                if index > 0 {
                    model.activate_adapter(&loaded.checkpoint, index)?;
                }
                let evaluation = evaluate(&mut model)?;
                text.push(format!("{}: {evaluation}", printable(&name)));
                let mut json = evaluation.to_json();
                json["adapter"] = name.into();
                answers.push(json);
            }
            json!({"adapters": answers})
        };
        if with_base {
            model.remove_adapter(&loaded.checkpoint)?;
            let evaluation = evaluate(&mut model)?;
            text.push(format!("base: {evaluation}"));
            json["base"] = evaluation.to_json();
        }
        Ok(Answer { text: text.join("\n"), json })
    }
}
