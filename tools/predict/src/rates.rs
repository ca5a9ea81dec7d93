//! Rates for the trainer's plans: units of each kind of operation that a card does in a second, over all planned steps.

use crate::cards::{CARDS, Card};
use crate::launches::{Kernels, predict};
use crate::operations::Operation;
use crate::steps::{PlannedStep, Products, memory_of, step};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Rates {
    card: &'static str,
    units_per_second: BTreeMap<String, f64>,
    updates_per_second: f64,
}

/// The file that the trainer includes.
pub fn file(kernels: &Kernels, steps: &[PlannedStep]) -> Result<String> {
    let rates = CARDS.iter().map(|card| of_card(kernels, steps, card)).collect::<Result<Vec<_>>>()?;
    Ok(serde_json::to_string_pretty(&rates)? + "\n")
}

/// Operations that the planned steps do not have: the norms of queries and keys of a Qwen3.
fn of_other_families() -> [Operation; 4] {
    let operations = [
        ("norm of q and k", 2),
        ("norm of q and k, backward", 3),
        ("norm and rotation of q and k", 2),
        ("norm and rotation of q and k, backward", 3),
    ];
    operations.map(|(name, passes)| {
        let (tokens, values) = (4096, passes * (32 + 2 * 8) * 128);
        let (name, heads, units) = (name.to_owned(), [32, 8, 128], (tokens * values) as f64);
        Operation { name, count: 1, tokens, heads, values, units, ..Operation::default() }
    })
}

fn of_card(kernels: &Kernels, steps: &[PlannedStep], card: &'static Card) -> Result<Rates> {
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let (mut updates, mut seconds) = (0.0, 0.0);
    for planned in steps.iter().filter(|step| step.memory == memory_of(card) && step.fits) {
        for operation in &planned.operations {
            let count = operation.count as f64;
            let sum = sums.entry(operation.name.clone()).or_default();
            sum.0 += count * operation.units;
            for launch in operation.launches(kernels, card).unwrap_or_default() {
                sum.1 += count * predict(kernels, &launch, card)?.seconds;
            }
        }
        let predicted = step(kernels, planned, card, Products::Fused)?;
        updates += predicted.trained as f64;
        seconds += predicted.kinds.iter().filter(|(kind, _)| kind == "optimizer").map(|(_, time)| time).sum::<f64>();
    }
    for operation in of_other_families() {
        let mut time = 0.0;
        for launch in operation.launches(kernels, card).unwrap_or_default() {
            time += predict(kernels, &launch, card)?.seconds;
        }
        sums.insert(operation.name.clone(), (operation.units, time));
    }
    // Four digits: the rest is noise in a prediction.
    let rate = |units: f64, seconds: f64| {
        let rate = units / seconds;
        let digit = 10_f64.powi(rate.log10().floor() as i32 - 3);
        (rate / digit).round() * digit
    };
    let units_per_second = sums.into_iter().map(|(name, (units, time))| (name, rate(units, time))).collect();
    Ok(Rates { card: card.name, units_per_second, updates_per_second: rate(updates, seconds) })
}
