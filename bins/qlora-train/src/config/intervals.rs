//! Intervals of saving and evaluating, and the checkpoint that a run resumes from.

use std::path::PathBuf;

use serde_json::Value as Json;

use super::types::{Reject, SettingValue, is_off};
use super::yaml::Value;

/// Interval of something that a run repeats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Every {
    Never,
    /// optimizer steps, at least 1
    Steps(u64),
    /// of all steps, 0 < share < 1
    Share(f64),
    /// At the end of each, and of the run.
    Epoch,
    /// This number of times in each epoch, evenly, the last at its end; and at the end of the run.
    PerEpoch(u64),
}

impl Every {
    /// Number of times in a run of `total` steps.
    pub fn times(self, total: u64, steps_per_epoch: u64) -> u64 {
        match self {
            Every::Never => 0,
            Every::Steps(steps) => total / steps.max(1),
            Every::Share(share) => total / ((share * total as f64).ceil() as u64).max(1),
            Every::Epoch => total.div_ceil(steps_per_epoch.max(1)),
            Every::PerEpoch(times) => {
                let within = within_epochs(times, total, steps_per_epoch);
                within + u64::from(total > 0 && within == within_epochs(times, total - 1, steps_per_epoch))
            }
        }
    }

    /// True if it happens after `done` of `total` steps.
    pub fn due(self, done: u64, total: u64, steps_per_epoch: u64) -> bool {
        match self {
            Every::Never => false,
            Every::Steps(steps) => done.is_multiple_of(steps.max(1)),
            Every::Share(share) => done.is_multiple_of(((share * total as f64).ceil() as u64).max(1)),
            Every::Epoch => done == total || done.is_multiple_of(steps_per_epoch.max(1)),
            Every::PerEpoch(times) => {
                let within = |done| within_epochs(times, done, steps_per_epoch);
                done == total || done > 0 && within(done) > within(done - 1)
            }
        }
    }
}

/// Times in the first `done` steps where each epoch has `times` of them; there are no more than its steps.
fn within_epochs(times: u64, done: u64, steps_per_epoch: u64) -> u64 {
    let steps = steps_per_epoch.max(1);
    (u128::from(done) * u128::from(times.min(steps)) / u128::from(steps)) as u64
}

impl SettingValue for Every {
    fn read(value: &Value) -> Result<Self, Reject> {
        if is_off(value) || matches!(value, Value::Int(-1)) {
            return Ok(Every::Never);
        }
        if matches!(value, Value::Str(s) if s.trim().eq_ignore_ascii_case("epoch")) {
            return Ok(Every::Epoch);
        }
        if let Value::Str(s) = value
            && let Some(times) = s.trim().strip_suffix(" per epoch")
        {
            return match times.trim().parse() {
                Ok(times @ 1..=1_000_000) => Ok(Every::PerEpoch(times)),
                _ => Err(Reject::Wrong),
            };
        }
        match f64::read(value)? {
            0.0 | -1.0 => Ok(Every::Never),
            share if share > 0.0 && share < 1.0 => Ok(Every::Share(share)),
            _ => u64::read(value).map(Every::Steps),
        }
    }
    fn json(&self) -> Json {
        match self {
            Every::Never => Json::from(0),
            Every::Steps(steps) => Json::from(*steps),
            Every::Share(share) => share.json(),
            Every::Epoch => Json::from("epoch"),
            Every::PerEpoch(times) => Json::from(format!("{times} per epoch")),
        }
    }
}

/// Starting point of a run.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Resume {
    #[default]
    No,
    /// The newest checkpoint of `output_dir`; the beginning where there is none.
    Latest,
    From(PathBuf),
}

impl SettingValue for Resume {
    const SWITCH: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        if matches!(value, Value::Str(s) if ["auto", "latest"].contains(&s.trim())) {
            return Ok(Resume::Latest);
        }
        if is_off(value) {
            return Ok(Resume::No);
        }
        match bool::read(value) {
            Ok(true) => Ok(Resume::Latest),
            Ok(false) => Ok(Resume::No),
            Err(_) => PathBuf::read(value).map(Resume::From),
        }
    }
    fn json(&self) -> Json {
        match self {
            Resume::No => Json::from(false),
            Resume::Latest => Json::from(true),
            Resume::From(path) => path.json(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_shares_and_epochs_fall_due() {
        let due = |every: Every| {
            let due = (1..=10).filter(|&done| every.due(done, 10, 4)).collect::<Vec<u64>>();
            assert_eq!(every.times(10, 4), due.len() as u64, "{every:?}");
            due
        };
        assert!(due(Every::Never).is_empty());
        assert_eq!(due(Every::Steps(3)), [3, 6, 9]);
        assert_eq!(due(Every::Share(0.25)), [3, 6, 9]);
        assert_eq!(due(Every::Share(1e-9)), (1..=10).collect::<Vec<_>>());
        assert_eq!(due(Every::Epoch), [4, 8, 10]);
        assert_eq!(due(Every::PerEpoch(1)), [4, 8, 10]);
        assert_eq!(due(Every::PerEpoch(2)), [2, 4, 6, 8, 10]);
        assert_eq!(due(Every::PerEpoch(3)), [2, 3, 4, 6, 7, 8, 10]);
        assert_eq!(due(Every::PerEpoch(9)), (1..=10).collect::<Vec<_>>());
        assert!(due(Every::Steps(11)).is_empty());
    }
}
