//! Arguments for sampling and stopping, of `generate` and `chat`.

use clap::Args;

use crate::model::generate::Sampling;
use crate::report::warning;

#[derive(Args)]
pub(super) struct SamplingArgs {
    /// Sampling temperature: 0 takes the most likely token, 1 samples the model's own probabilities
    #[arg(long, alias = "temp", default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,
    /// Sample only from this many of the most likely tokens; 0: from all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample only from the most likely tokens whose probabilities add up to this
    #[arg(long, default_value_t = 1.0, value_parser = top_p)]
    top_p: f32,
    /// Above 1, tokens that occur in the prompt or the answer become less likely; 1: off
    #[arg(long, alias = "repeat-penalty", default_value_t = 1.0, value_parser = repetition_penalty)]
    repetition_penalty: f32,
    /// Text that ends an answer and is not part of it, instead of the stop_strings of generation_config.json; repeat
    /// the flag for several. Answers are then printed whole, not token by token
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// Seed of sampling: the same seed gives the same text
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

impl SamplingArgs {
    pub fn sampling(&self) -> Sampling {
        let Self { temperature, top_k, top_p, repetition_penalty, seed, .. } = *self;
        Sampling { temperature, top_k, top_p, repetition_penalty, seed }
    }

    /// Names the arguments that have no effect because nothing is sampled.
    pub fn warn_of_unused(&self) {
        let given = [("--top-k", self.top_k > 0), ("--top-p", self.top_p < 1.0)];
        for (name, _) in given.into_iter().filter(|(_, given)| *given && self.temperature == 0.0) {
            warning!("{name}: nothing is sampled without a --temperature above 0");
        }
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    let value = text.parse().map_err(|_| "expected a number")?;
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err("expected 0 to 100".to_owned()) }
}

fn top_p(text: &str) -> Result<f32, String> {
    let value = text.parse().map_err(|_| "expected a number")?;
    if value > 0.0 && value <= 1.0 { Ok(value) } else { Err("expected a number above 0, at most 1".to_owned()) }
}

fn repetition_penalty(text: &str) -> Result<f32, String> {
    let value = text.parse().map_err(|_| "expected a number")?;
    if (0.01..=100.0).contains(&value) { Ok(value) } else { Err("expected 0.01 to 100".to_owned()) }
}
