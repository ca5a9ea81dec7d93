//! Lints of a run that trains: each warns once, also of a run that was resumed.

use super::record::LogEntry;
use crate::config::Settings;
use crate::lint::{self, Finding, History, ModuleGradients};
use std::collections::BTreeSet;

pub(super) struct Watch {
    allowed: Vec<&'static str>,
    losses: Vec<(u64, f64)>,
    validation: Vec<(u64, f64)>,
    total_steps: u64,
    told: BTreeSet<String>,
}

impl Watch {
    /// `history`: what an earlier process logged, and was warned of; `told`: what else it was warned of, by name.
    pub fn new<'a>(
        settings: &Settings,
        history: &[LogEntry],
        told: impl Iterator<Item = &'a str>,
        total_steps: u64,
    ) -> Self {
        let (losses, validation) = (Vec::new(), Vec::new());
        let allowed = settings.allow.names().to_vec();
        let mut watch = Self { allowed, losses, validation, total_steps, told: told.map(str::to_owned).collect() };
        for entry in history {
            watch.log(entry);
        }
        watch
    }

    /// Warnings on the newest entry.
    pub fn log(&mut self, entry: &LogEntry) -> Vec<Finding> {
        self.losses.extend(entry.loss.map(|loss| (entry.step, loss)));
        self.validation.extend(entry.eval_loss.map(|loss| (entry.step, loss)));
        let Self { losses, validation, total_steps, .. } = self;
        let found = lint::during(&History { losses, validation, total_steps: *total_steps }, &self.allowed);
        self.new_of(found)
    }

    pub fn gradients(&mut self, gradients: &ModuleGradients) -> Vec<Finding> {
        let found = lint::gradients(gradients, &self.allowed);
        self.new_of(found)
    }

    fn new_of(&mut self, found: Vec<Finding>) -> Vec<Finding> {
        found.into_iter().filter(|finding| self.told.insert(finding.name.to_owned())).collect()
    }
}

/// True if the gradients of all adapters are looked at after `step` steps: 10, 20, 50, 100, 200 …
pub(super) fn is_measured(step: u64) -> bool {
    let mut step = step;
    while step >= 100 && step.is_multiple_of(10) {
        step /= 10;
    }
    [10, 20, 50].contains(&step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_warning_is_given_once_and_not_again_after_a_resume() {
        let entry = |step: u64, loss: f64| LogEntry { loss: Some(loss), ..LogEntry::new(step, 0.0) };
        let settings = Settings::default();
        let mut watch = Watch::new(&settings, &[], std::iter::empty(), 1000);
        let mut history: Vec<LogEntry> = (1..20).map(|step| entry(step, 2.0)).collect();
        assert!(history.iter().all(|entry| watch.log(entry).is_empty()));
        history.push(entry(20, 9.0));
        assert_eq!(watch.log(&history[19])[0].name, "loss_spike");
        assert_eq!(watch.log(&entry(21, 9.0)), []);
        let none = std::iter::empty;
        assert_eq!(Watch::new(&settings, &history, none(), 1000).log(&entry(21, 9.0)), []);
        let told = Watch::new(&settings, &history[..19], ["loss_spike"].into_iter(), 1000).log(&history[19]);
        assert_eq!(told, [], "an earlier process was warned of it");
        let quiet = Settings::from_yaml("allow: loss_spike", "", &[]).unwrap();
        assert_eq!(Watch::new(&quiet, &history[..19], none(), 1000).log(&history[19]), []);
    }

    #[test]
    fn gradients_are_looked_at_ever_more_seldom() {
        let measured: Vec<u64> = (0..=5000).filter(|&step| is_measured(step)).collect();
        assert_eq!(measured, [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]);
    }
}
