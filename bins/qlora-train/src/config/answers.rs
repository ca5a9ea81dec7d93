//! Settings of a run's answers during training: the user's prompts, and the metric of the best checkpoint.

use std::path::PathBuf;

use regex::Regex;
use serde_json::{Value as Json, json};

use super::types::{Reject, SettingValue, is_unset};
use super::yaml::Value;

/// Prompts that a run answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum SamplePrompts {
    #[default]
    None,
    File(PathBuf),
    Listed(Vec<SamplePrompt>),
}

/// A prompt that the settings hold.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplePrompt {
    pub prompt: String,
    /// Answer that is shown beside the model's
    pub reference: Option<String>,
}

impl SamplePrompt {
    fn read(value: &Value) -> Result<Self, Reject> {
        let wrong = |found: &dyn std::fmt::Display| {
            Reject::Because(format!(
                "found {found} in the list, expected prompts: texts, or sections of `prompt` and `reference`"
            ))
        };
        let Value::Map(entries) = value else {
            return match String::read(value)? {
                text if text.trim().is_empty() => Err(wrong(value)),
                prompt => Ok(Self { prompt, reference: None }),
            };
        };
        let (mut prompt, mut reference) = (None, None);
        for entry in entries {
            match entry.key.as_str() {
                "prompt" => prompt = Some(String::read(&entry.value)?),
                "reference" => reference = Option::<String>::read(&entry.value)?,
                other => return Err(wrong(&format!("the key `{}`", other.escape_debug()))),
            }
        }
        match prompt.filter(|prompt| !prompt.trim().is_empty()) {
            Some(prompt) => Ok(Self { prompt, reference }),
            None => Err(wrong(&"a section without `prompt`")),
        }
    }
}

impl SettingValue for SamplePrompts {
    fn read(value: &Value) -> Result<Self, Reject> {
        match value {
            value if is_unset(value) => Ok(Self::None),
            Value::List(items) if items.is_empty() => Ok(Self::None),
            Value::List(items) => items.iter().map(SamplePrompt::read).collect::<Result<_, _>>().map(Self::Listed),
            value => PathBuf::read(value).map(Self::File),
        }
    }

    fn json(&self) -> Json {
        match self {
            Self::None => Json::Null,
            Self::File(path) => path.json(),
            Self::Listed(prompts) => prompts
                .iter()
                .map(|SamplePrompt { prompt, reference }| match reference {
                    None => Json::from(prompt.as_str()),
                    Some(reference) => json!({"prompt": prompt, "reference": reference}),
                })
                .collect(),
        }
    }
}

/// Metric of an evaluation that selects the best checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BestMetric {
    #[default]
    Loss,
    ExactMatch,
    Contains,
    Match,
    RougeL,
}

impl BestMetric {
    const ALL: [Self; 5] = [Self::Loss, Self::ExactMatch, Self::Contains, Self::Match, Self::RougeL];

    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "eval_loss",
            Self::ExactMatch => "eval_exact_match",
            Self::Contains => "eval_contains",
            Self::Match => "eval_match",
            Self::RougeL => "eval_rouge_l",
        }
    }

    pub fn in_words(self) -> &'static str {
        match self {
            Self::Loss => "validation loss",
            Self::ExactMatch => "share of exact matches",
            Self::Contains => "share of answers that contain the reference",
            Self::Match => "share of answers that match by answer_match",
            Self::RougeL => "mean ROUGE-L",
        }
    }

    /// True if it is a score of answers.
    pub fn is_of_answers(self) -> bool {
        self != Self::Loss
    }

    /// True if more is better.
    pub fn rises(self) -> bool {
        self.is_of_answers()
    }

    pub fn is_better(self, value: f64, than: f64) -> bool {
        if self.rises() { value > than } else { value < than }
    }
}

impl SettingValue for BestMetric {
    fn read(value: &Value) -> Result<Self, Reject> {
        if is_unset(value) {
            return Ok(Self::Loss);
        }
        let Value::Str(text) = value else { return Err(Reject::Wrong) };
        let text = text.trim().to_ascii_lowercase();
        let is = |metric: &Self| metric.name() == text || metric.name().strip_prefix("eval_") == Some(&text);
        Self::ALL.into_iter().find(is).ok_or(Reject::Wrong)
    }

    fn json(&self) -> Json {
        self.name().into()
    }
}

/// True if a setting is none, or a regular expression.
pub fn is_pattern(pattern: &Option<String>) -> bool {
    pattern.as_ref().is_none_or(|pattern| Regex::new(pattern).is_ok())
}

#[cfg(test)]
mod tests;
