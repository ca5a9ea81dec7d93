//! Settings of what a run answers while it trains: prompts of the user's, and the figure that it is judged by.

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

/// Figure of an evaluation by which a run is judged.
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

    /// Whether it is a figure of answers.
    pub fn is_of_answers(self) -> bool {
        self != Self::Loss
    }

    /// Whether more is better.
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

/// Whether a setting is none, or a regular expression.
pub fn is_pattern(pattern: &Option<String>) -> bool {
    pattern.as_ref().is_none_or(|pattern| Regex::new(pattern).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn a_text_is_a_file_and_a_list_holds_prompts() {
        let of = |yaml: &str| Settings::from_yaml(yaml, "f", &[]).map(|settings| settings.sample_prompts);
        assert_eq!(of("sample_prompts: p.txt").unwrap(), SamplePrompts::File("p.txt".into()));
        let listed = of("sample_prompts:\n- hello\n- {prompt: 'who?', reference: me}").unwrap();
        let prompt = |prompt: &str, reference: Option<&str>| SamplePrompt {
            prompt: prompt.to_owned(),
            reference: reference.map(str::to_owned),
        };
        assert_eq!(listed, SamplePrompts::Listed(vec![prompt("hello", None), prompt("who?", Some("me"))]));
        assert_eq!(SamplePrompts::read(&Value::from(&listed.json())).unwrap(), listed);
        assert_eq!(of("sample_prompts: []").unwrap(), SamplePrompts::None);
        for (yaml, words) in [
            ("sample_prompts: [{reference: me}]", "without `prompt`"),
            ("sample_prompts: [{prompt: a, answer: b}]", "`answer`"),
            ("sample_prompts: ['  ']", "expected prompts"),
            ("sample_prompts: [7]", "quotes"),
        ] {
            let error = of(yaml).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("sample_prompts"), "{error}");
        }
    }

    #[test]
    fn a_metric_has_two_names_and_a_direction() {
        let of = |text: &str| BestMetric::read(&Value::text(text));
        for metric in BestMetric::ALL {
            let short = metric.name().strip_prefix("eval_").unwrap();
            assert_eq!((of(metric.name()), of(short)), (Ok(metric), Ok(metric)));
            assert_eq!(metric.is_better(2.0, 1.0), metric != BestMetric::Loss);
            assert!(!metric.is_better(1.0, 1.0));
        }
        assert_eq!(of("bleu"), Err(Reject::Wrong));
    }
}
