//! Names of the settings that a user gave; the others have their defaults.

use std::collections::BTreeSet;

/// Names of settings. They do not count when settings are compared.
#[derive(Clone, Debug, Default)]
pub struct GivenNames {
    names: BTreeSet<&'static str>,
    /// alpha / r, where that was given and alpha follows from the rank
    pub(super) scale: Option<f64>,
}

impl GivenNames {
    pub(super) fn add(&mut self, names: impl IntoIterator<Item = &'static str>) {
        self.names.extend(names);
    }

    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

impl PartialEq for GivenNames {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Settings;
    use serde_json::json;

    #[test]
    fn a_scale_that_was_given_is_that_of_the_rank_that_is_taken() {
        let own = [("lora_r", json!(32)), ("lora_alpha", json!(8.0))];
        for (file, alpha, told) in [
            ("lora_parameters: {scale: 20.0}", 640.0, &["lora_r 32", "lora_alpha 640"][..]),
            ("lora_parameters: {rank: 4, scale: 20.0}", 80.0, &[]),
            ("lora_r: 4", 8.0, &["lora_alpha 8"]),
        ] {
            let mut settings = Settings::from_yaml(file, "cfg.yaml", &[]).unwrap();
            assert_eq!(settings.take_where_not_given("adapter", &own).unwrap(), told, "{file}");
            assert_eq!(settings.lora_alpha, alpha, "{file}");
        }
    }
}
