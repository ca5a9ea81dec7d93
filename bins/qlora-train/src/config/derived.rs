//! Settings of a run once it is about to start: rates, warm-up, completeness, the record, and the hash that tells runs
//! apart.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

use super::answers::{BestMetric, SamplePrompts};
use super::datasets::may_hold_validation;
use super::enums::{MixStrategy, Preset, Scheduler};
use super::intervals::Every;
use super::lr_schedule;
use super::mixing::{OfEach, RowsOfEach};
use super::table::{Effect, SETTINGS, SettingInfo, Settings};
use super::types::{Reject, ValSet};
use super::yaml::Value;
use crate::bail_usage;
use crate::error::{Context, Result};

/// From this many parameters up the default learning rate is halved.
pub const LARGE_MODEL_PARAMETERS: u64 = 60_000_000_000;

/// Use of the settings, which decides which of them must be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// model, data, output_dir
    Train,
    /// model
    Plan,
    /// model, data
    Preview,
    /// Nothing: the model is random.
    Bench,
}

impl Settings {
    /// Ranges of every field (also of settings built in code) and what `purpose` needs.
    pub fn validate(&self, purpose: Purpose) -> Result<()> {
        for info in SETTINGS {
            let json = (info.get)(self);
            let found = Value::from(&json);
            if let Err(reject) = (info.set)(&mut self.clone(), &found) {
                match reject {
                    Reject::Because(sentence) => bail_usage!("`{}`: {sentence}", info.name),
                    _ => bail_usage!("`{}`: found {found}, expected {}", info.name, info.values),
                }
            }
        }
        if self.warmup_steps.is_some_and(|s| s != 0.0) && self.warmup_ratio != 0.0 {
            bail_usage!("`warmup_steps` stands in for `warmup_ratio`: found both, expected one of them");
        }
        if self.val_set_size != ValSet::Off && !self.val_data.is_empty() {
            bail_usage!("`val_set_size` stands in for `val_data`: found both, expected one of them");
        }
        if purpose == Purpose::Bench {
            return Ok(());
        }
        // An adapter that the run begins with knows its base.
        if self.init_adapter.is_none() {
            self.model_path()?;
        }
        self.check_mixing()?;
        if purpose != Purpose::Plan && self.data.is_empty() {
            bail_usage!("`data` is missing: give the training rows, `data: rows.jsonl` in YAML or `--data rows.jsonl`");
        }
        if purpose == Purpose::Train {
            self.output_path()?;
            self.check_evaluation()?;
        }
        Ok(())
    }

    /// Clears the settings for single entries of `data`, whose entries are now others.
    pub fn mix_nothing(&mut self) {
        (self.data_weights, self.interleave_probs) = (OfEach::NONE, OfEach::NONE);
        (self.data_max_samples, self.mix_strategy) = (OfEach::NONE, MixStrategy::Concat);
        self.data_rows = RowsOfEach::ALL;
    }

    /// Refuses settings that mix files without one number for each file.
    fn check_mixing(&self) -> Result<()> {
        let given = [
            ("data_weights", self.data_weights.0.len()),
            ("data_max_samples", self.data_max_samples.0.len()),
            ("interleave_probs", self.interleave_probs.0.len()),
            ("data_rows", self.data_rows.0.len()),
        ];
        for (name, numbers) in given.into_iter().filter(|(_, numbers)| *numbers > 0) {
            if numbers != self.data.len() {
                bail_usage!(
                    "`{name}`: found {numbers} numbers for {} entries of `data`, expected one for each",
                    self.data.len()
                );
            }
        }
        let (rows, entries) = (self.val_data_rows.0.len(), self.val_data.len());
        if rows > 0 && rows != entries {
            bail_usage!(
                "`val_data_rows`: found {rows} ranges for {entries} entries of `val_data`, expected one for each"
            );
        }
        let interleaves = self.mix_strategy != MixStrategy::Concat;
        if interleaves && (self.interleave_probs.0.is_empty() || !self.data_weights.0.is_empty() || !self.shuffle) {
            bail_usage!(
                "`mix_strategy`: found {}, which goes by `interleave_probs` alone, in an order that is drawn: give them, and \
                 neither `data_weights` nor `shuffle: false`",
                self.mix_strategy.name()
            );
        }
        if !interleaves && !self.interleave_probs.0.is_empty() {
            bail_usage!(
                "`interleave_probs` needs `mix_strategy: interleave_under` or `interleave_over`; `data_weights` says how often \
                 the rows of a file are trained on"
            );
        }
        Ok(())
    }

    /// True if there are rows that validation works on, or the data may turn out to have some.
    pub fn has_validation(&self) -> bool {
        let chosen = self.val_set_size != ValSet::Off || !self.val_data.is_empty();
        chosen || self.data.iter().any(|path| may_hold_validation(path))
    }

    /// Clears `eval_steps` if there are no validation rows and nothing depends on evaluations. Returns whether it did.
    pub fn leave_out_evaluations(&mut self) -> bool {
        let is_needed = self.is_judged() || self.metric_for_best_model != BestMetric::Loss;
        let without = self.eval_steps != Every::Never && !self.has_validation() && !self.answers() && !is_needed;
        if without {
            self.eval_steps = Every::Never;
        }
        without
    }

    /// True if the run generates answers during training.
    fn answers(&self) -> bool {
        self.sample_prompts != SamplePrompts::None || self.eval_answers > 0
    }

    /// True if evaluations affect the run's result.
    fn is_judged(&self) -> bool {
        self.early_stopping_patience.0.is_some() || self.load_best_model_at_end
    }

    /// Refuses early stopping and best checkpoints without the evaluations, rows and answers that they need.
    fn check_evaluation(&self) -> Result<()> {
        let metric = self.metric_for_best_model;
        let wanted = [
            ("early_stopping_patience", self.early_stopping_patience.0.is_some()),
            ("load_best_model_at_end", self.load_best_model_at_end),
            ("metric_for_best_model", metric != BestMetric::Loss),
        ];
        let wanted: Vec<&str> = wanted.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        if let (Some(name), Every::Never) = (wanted.first(), self.eval_steps) {
            bail_usage!("`{name}` needs evaluations on the way: give `eval_steps` as well");
        }
        if self.eval_answers > 0 && !self.has_validation() {
            bail_usage!("`eval_answers` needs rows to ask: give `val_data` or `val_set_size` as well");
        }
        if self.eval_steps != Every::Never && !self.has_validation() && !self.answers() {
            bail_usage!(
                "`eval_steps` needs rows to evaluate on: give `val_data` or `val_set_size` as well, or `sample_prompts` \
                 to answer"
            );
        }
        if let (Some(name), false, false) = (wanted.first(), self.has_validation(), metric.is_of_answers()) {
            bail_usage!(
                "`{name}` goes by the validation loss, which needs rows: give `val_data` or `val_set_size` as well, or a \
                 `metric_for_best_model` of answers"
            );
        }
        if metric.is_of_answers() && !self.answers() {
            bail_usage!(
                "`metric_for_best_model`: found {}, which needs answers: give `eval_answers`, or `sample_prompts` with \
                 references, as well",
                metric.name()
            );
        }
        if metric == BestMetric::Match && self.answer_match.is_none() {
            bail_usage!("`metric_for_best_model`: found {}, which needs `answer_match` as well", metric.name());
        }
        if self.answer_match.is_some() && !self.answers() {
            bail_usage!("`answer_match` needs answers: give `eval_answers` or `sample_prompts` as well");
        }
        if self.greater_is_better.is_some_and(|given| given != metric.rises()) {
            bail_usage!(
                "`greater_is_better`: found {}, expected {} or nothing: of {} {} is better",
                !metric.rises(),
                metric.rises(),
                metric.name(),
                if metric.rises() { "more" } else { "less" }
            );
        }
        Ok(())
    }

    pub fn model_path(&self) -> Result<&Path> {
        match &self.model {
            Some(model) if !model.trim().is_empty() => Ok(Path::new(model)),
            _ => bail_usage!("`model` is missing: give the base model, `model: PATH` in YAML or `--model PATH`"),
        }
    }

    pub fn output_path(&self) -> Result<&Path> {
        match &self.output_dir {
            Some(dir) => Ok(dir),
            None => bail_usage!(
                "`output_dir` is missing: say where the adapter goes, `output_dir: PATH` in YAML or `--output-dir PATH`"
            ),
        }
    }

    /// Peak learning rate of A in a model of `parameters`: as given, or 2e-4 (1e-4 from 60B up), halved by the preset
    /// `loraplus`.
    pub fn learning_rate_for(&self, parameters: u64) -> f64 {
        let default = if parameters >= LARGE_MODEL_PARAMETERS { 1e-4 } else { 2e-4 };
        let preset = if self.preset == Some(Preset::Loraplus) { 0.5 } else { 1.0 };
        self.learning_rate.unwrap_or(default * preset)
    }

    /// Peak learning rates (A, B).
    pub fn learning_rates_for(&self, parameters: u64) -> (f64, f64) {
        let a = self.learning_rate_for(parameters);
        (a, a * self.loraplus_lr_ratio)
    }

    /// Fills in the defaults that depend on the model, so that record and hash hold numbers. Call it before either.
    pub fn resolve(&mut self, parameters: u64) {
        self.learning_rate = Some(self.learning_rate_for(parameters));
    }

    /// Warm-up steps of a run of `total_steps`: fewer than that, so that a short run trains at all (the first step of a
    /// warm-up has rate 0).
    pub fn warmup_steps_of(&self, total_steps: usize) -> usize {
        let steps = match self.warmup_steps {
            _ if self.lr_scheduler_type == Scheduler::Constant => 0,
            Some(steps) if steps >= 1.0 => steps as usize,
            Some(ratio) if ratio > 0.0 => lr_schedule::warmup_steps(None, ratio, total_steps),
            _ => lr_schedule::warmup_steps(None, self.warmup_ratio, total_steps),
        };
        steps.min(total_steps.saturating_sub(1))
    }

    /// Learning rate of A at optimizer step `step` (0 is the first) over its peak; the same for B.
    pub fn lr_factor(&self, step: usize, total_steps: usize) -> f64 {
        lr_schedule::factor(self.lr_scheduler_type, step, self.warmup_steps_of(total_steps), total_steps)
    }

    /// All settings by their own names, in the table's order. [`Settings::load`] reads them back to the same.
    pub fn to_json(&self) -> Json {
        Json::Object(SETTINGS.iter().map(|info| (info.name.to_owned(), (info.get)(self))).collect::<Map<_, _>>())
    }

    /// [`Settings::to_json`] as a settings file.
    pub fn to_yaml(&self) -> Result<String> {
        serde_saphyr::to_string(&self.to_json()).context(|| "the settings cannot be written as YAML".into())
    }

    /// Every setting that can change results, by name. `eval_steps` is one of them where evaluations affect the run,
    /// and so are the settings of answers where answers do.
    pub fn result_settings(&self) -> Map<String, Json> {
        const OF_ANSWERS: [&str; 4] = ["sample_prompts", "eval_answers", "eval_max_new_tokens", "answer_match"];
        let (judged, default) = (self.is_judged(), Settings::default());
        let by_answers = judged && self.metric_for_best_model.is_of_answers();
        let counts = |info: &&SettingInfo| match info.effect {
            Effect::Results => true,
            Effect::ResultsIfSet => (info.get)(self) != (info.get)(&default),
            Effect::RunOnly => (judged && info.name == "eval_steps") || (by_answers && OF_ANSWERS.contains(&info.name)),
        };
        SETTINGS.iter().filter(counts).map(|info| (info.name.to_owned(), (info.get)(self))).collect()
    }

    /// SHA-256 (hex) over every setting that can change results, by name; neither their order nor how they were
    /// spelled matters. Paths of model and data count as text: their contents have fingerprints of their own.
    pub fn result_hash(&self) -> String {
        let mut lines: Vec<String> =
            self.result_settings().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        if self.learning_rate.is_none() {
            // The preset matters only through the default rate; the ratio it sets is already in the settings.
            lines.push(format!("learning_rate.default={:e}\n", self.learning_rate_for(0)));
        }
        lines.sort();
        let digest = Sha256::digest(lines.concat().as_bytes());
        digest.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// A settings file to begin with: every setting with its help, the defaults as comments.
pub fn commented_yaml() -> String {
    let mut text = String::from(
        "# Settings of a run: `qlora-train train THIS_FILE`. A line that begins with # holds the default.\n\n",
    );
    let mut group = "";
    for info in SETTINGS {
        if info.group() != group {
            group = info.group();
            let _ = writeln!(text, "# ---- {group} ----\n");
        }
        let _ = writeln!(text, "# {}\n# ({})", info.help, info.values);
        let default = (info.get)(&Settings::default());
        let _ = match info.name {
            "model" => writeln!(text, "model: path/to/model\n"),
            "data" => writeln!(text, "data: rows.jsonl\n"),
            "output_dir" => writeln!(text, "output_dir: out\n"),
            name if default.is_null() || default == Json::Array(Vec::new()) => {
                writeln!(text, "# {name}:   # default: {}\n", info.default)
            }
            name => writeln!(text, "# {name}: {}\n", info.default),
        };
    }
    text
}

/// The table of settings in docs/settings.md, in Markdown.
pub fn settings_markdown() -> String {
    let mut table =
        String::from("| setting | default | accepted | what it does | other names |\n|---|---|---|---|---|\n");
    for info in SETTINGS {
        let names = info.aliases.iter().map(|alias| format!("`{alias}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} | {names} |",
            info.name,
            info.default,
            info.values,
            info.help.replace('|', "\\|")
        );
    }
    table
}
