//! The time of a step on cards, predicted from the kernels' machine code: nothing of it was measured.

use crate::backend::OpWork;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Units of each kind of operation a second, by card: `cargo xtask predict --write` makes the file.
const RATES: &str = include_str!("predicted.json");

#[derive(Deserialize)]
struct Rates {
    card: String,
    /// By the operation's name
    units_per_second: BTreeMap<String, f64>,
    /// Trainable parameters that are updated in a second
    updates_per_second: f64,
}

/// Seconds of a step of these operations on each card that is predicted. A card is left out for which one of them is
/// not known.
pub fn step_seconds(work: &[OpWork]) -> Vec<(String, f64)> {
    let cards: Vec<Rates> = serde_json::from_str(RATES).expect("the tool that writes the file writes JSON");
    let of_card = |rates: Rates| {
        let mut seconds = 0.0;
        for operation in work {
            let count = operation.count as f64;
            seconds += count * operation.units / rates.units_per_second.get(operation.name)?;
            seconds += count * operation.trained() as f64 / rates.updates_per_second;
        }
        Some((rates.card, seconds))
    };
    if work.is_empty() { Vec::new() } else { cards.into_iter().filter_map(of_card).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_the_sum_of_its_operations() {
        let linear = OpWork { name: "linear", count: 3, units: 1e12, ..OpWork::default() };
        let twice = OpWork { count: 6, ..linear.clone() };
        let (once, twice) = (step_seconds(std::slice::from_ref(&linear)), step_seconds(&[twice]));
        assert_eq!(once.len(), 6);
        for (once, twice) in once.iter().zip(&twice) {
            assert_eq!(once.0, twice.0);
            assert!(once.1 > 0.0 && (twice.1 / once.1 - 2.0).abs() < 1e-12);
        }
        // Every kind of operation that a step of any family has.
        let names = [
            "norm of q and k",
            "norm of q and k, backward",
            "embedding",
            "output layer and loss",
            "attention, backward",
        ];
        let all = names.map(|name| OpWork { name, count: 1, units: 1.0, ..OpWork::default() });
        assert_eq!(step_seconds(&all).len(), 6);
        let unknown = OpWork { name: "sorting", ..linear };
        assert!(step_seconds(&[unknown]).is_empty() && step_seconds(&[]).is_empty());
    }
}
