//! The setting that names trackers.

use serde_json::Value as Json;

use super::types::{Reject, SettingValue, is_off};
use super::yaml::Value;

/// Trackers that receive the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportTo {
    pub tensorboard: bool,
    /// Names of trackers that nothing is written for
    pub others: Vec<&'static str>,
}

/// Trackers of transformers and others that this program does not support.
const OTHERS: [&str; 14] = [
    "wandb",
    "mlflow",
    "comet_ml",
    "trackio",
    "swanlab",
    "clearml",
    "neptune",
    "dvclive",
    "codecarbon",
    "azure_ml",
    "dagshub",
    "flyte",
    "kubeflow",
    "huggingface",
];

impl SettingValue for ReportTo {
    const LIST: bool = true;

    fn read(value: &Value) -> Result<Self, Reject> {
        if is_off(value) {
            return Ok(Self::default());
        }
        let items = match value {
            Value::List(items) => items.iter().map(String::read).collect::<Result<Vec<_>, _>>()?,
            one => vec![String::read(one)?],
        };
        let mut to = Self::default();
        for name in items.iter().flat_map(|item| item.split(',')).map(|name| name.trim().to_ascii_lowercase()) {
            match name.as_str() {
                "" | "none" => {}
                "all" | "tensorboard" => to.tensorboard = true,
                name => match OTHERS.iter().find(|other| **other == name) {
                    Some(other) if to.others.contains(other) => {}
                    Some(other) => to.others.push(other),
                    None => {
                        return Err(Reject::Because(format!(
                            "found `{}`, expected none, tensorboard, or all, or another tracker, which is then left out",
                            name.chars().take(80).collect::<String>().escape_debug()
                        )));
                    }
                },
            }
        }
        Ok(to)
    }

    fn json(&self) -> Json {
        let own = self.tensorboard.then_some("tensorboard");
        match own.into_iter().chain(self.others.iter().copied()).collect::<Vec<_>>() {
            names if names.is_empty() => Json::from("none"),
            names => Json::from(names),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Settings;

    fn report_to(yaml: &str) -> Result<(bool, Vec<&'static str>), String> {
        let settings = Settings::from_yaml(yaml, "run.yaml", &[]).map_err(|error| error.to_string())?;
        let again = Settings::from_yaml(&settings.to_yaml().unwrap(), "", &[]).unwrap();
        assert_eq!(again.report_to, settings.report_to, "{yaml}");
        Ok((settings.report_to.tensorboard, settings.report_to.others))
    }

    #[test]
    fn trackers_are_those_of_other_trainers_files() {
        for yaml in ["report_to: tensorboard", "report_to: [tensorboard]", "report_to: all", "use_tensorboard: true"] {
            assert_eq!(report_to(yaml), Ok((true, vec![])), "{yaml}");
        }
        for yaml in
            ["report_to: none", "report_to: [none]", "report_to: []", "report_to:", "use_tensorboard: false", "seed: 1"]
        {
            assert_eq!(report_to(yaml), Ok((false, vec![])), "{yaml}");
        }
        assert_eq!(report_to("report_to: [wandb, tensorboard, wandb]"), Ok((true, vec!["wandb"])));
        assert_eq!(report_to("report_to: wandb"), Ok((false, vec!["wandb"])));
        for (yaml, words) in [("report_to: tensorbord", "found `tensorbord`"), ("report_to: [1]", "write it in quotes")]
        {
            let error = report_to(yaml).unwrap_err();
            assert!(error.contains("run.yaml line 1: `report_to`") && error.contains(words), "{error}");
        }
    }
}
