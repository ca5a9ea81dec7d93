//! Goals from the roofline, and which predictions miss them. A miss that is known is listed with the figure at which it
//! was found: it may not grow worse, and goes from the list once the goal is met. A goal that is not listed is met.

use crate::cards::{Card, card};
use crate::launches::{Kernels, Launch, predict};
use crate::operations::{Operation, adamw, dequantize};
use crate::steps::{PlannedStep, Products, memory_of, step};
use anyhow::{Context, Result};

/// The bound that a figure has to keep, from below or from above.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    /// True if `value` is worse than `before` by more than [`MARGIN`].
    fn is_worse(self, value: f64, before: f64) -> bool {
        match self {
            Self::AtLeast(_) => value < before * (1.0 - MARGIN),
            Self::AtMost(_) => value > before * (1.0 + MARGIN),
        }
    }
}

/// Share by which a known miss may be worse than its listed figure: two builds of one source differ by less.
const MARGIN: f64 = 0.03;

/// A figure that a goal is about.
#[derive(Clone, Debug)]
pub struct Judged {
    pub goal: &'static str,
    pub card: &'static str,
    pub value: f64,
    pub bound: Bound,
}

/// A miss that is known: goal, card, the figure when it was found.
pub type Miss = (&'static str, &'static str, f64);

pub const KNOWN_MISSES: &[Miss] = &[
    ("forward NF4: share of the tensor cores", "A6000", 0.78),
    ("dX NF4: share of the tensor cores", "A6000", 0.83),
    ("dX NF4: instructions beside each HMMA", "A6000", 3.89),
    ("attention: share of the tensor cores", "A6000", 0.80),
    ("dK, dV, 2,048 tokens: multiprocessors busy", "A6000", 0.93),
    ("forward NF4: share of the tensor cores", "L40S", 0.78),
    ("dX NF4: share of the tensor cores", "L40S", 0.83),
    ("dX NF4: instructions beside each HMMA", "L40S", 3.89),
    ("attention: share of the tensor cores", "L40S", 0.80),
    (FEW_TOKENS, "H100", 0.32),
    (ADAMW, "H100", 0.76),
    (STEP_8B, "A6000", 2368.0),
    (STEP_8B, "L40S", 4836.0),
    (STEP_8B, "H100", 6981.0),
    (STEP_70B, "A6000", 245.0),
    (STEP_70B, "L40S", 522.0),
    (STEP_70B, "H100", 901.0),
];

/// Goals and their figures on the cards that they are for.
pub fn judged(kernels: &Kernels, steps: &[PlannedStep]) -> Result<Vec<Judged>> {
    let mut all = Vec::new();
    for name in ["A6000", "L40S"] {
        let card = known(name)?;
        let mut add = |goal, value, bound| all.push(Judged { goal, card: card.name, value, bound });
        for (operation, tensor, others, busy) in TENSOR {
            for (index, launch) in operation.of_70b(4096).launches(kernels, card).unwrap_or_default().iter().enumerate()
            {
                let found = predict(kernels, launch, card)?;
                let Some(share) = found.tensor_share else { continue };
                // The two kernels of the backward pass have a goal each.
                let names = if index > 1 { &operation.names().1 } else { &operation.names().0 };
                add(names[0], share, Bound::AtLeast(*tensor));
                if let (Some(most), Some(value)) = (others, found.others_per_matrix) {
                    add(names[1], value, Bound::AtMost(*most));
                }
                if let Some(least) = busy {
                    let short = operation.of_70b(2048).launches(kernels, card).unwrap_or_default();
                    add(names[2], predict(kernels, &short[index], card)?.busy, Bound::AtLeast(*least));
                }
            }
        }
    }
    for name in ["A6000", "L40S", "H100"] {
        let card = known(name)?;
        let mut add = |goal, value, bound| all.push(Judged { goal, card: card.name, value, bound });
        let seconds = |operation: Operation| -> Result<(f64, f64)> {
            let launches = operation.launches(kernels, card).unwrap_or_default();
            let launch = launches.first().context("an operation without a launch")?;
            Ok((predict(kernels, launch, card)?.seconds, launch.bytes))
        };
        let few = |tokens| {
            let segments = vec![[28672, 0]];
            Operation { name: "linear".into(), count: 1, tokens, k: 8192, segments, ..Operation::default() }
        };
        let (one, bytes) = seconds(few(1))?;
        let (sixteen, _) = seconds(few(16))?;
        add(FEW_TOKENS, bytes / one / card.copy_bandwidth(), Bound::AtLeast(0.65));
        add(SIXTEEN_TOKENS, sixteen / one - 1.0, Bound::AtMost(0.10));
        let share = |launch: Launch| -> Result<f64> {
            Ok(launch.bytes / predict(kernels, &launch, card)?.seconds / card.copy_bandwidth())
        };
        add(DEQUANTIZE, share(dequantize(28672.0 * 8192.0))?, Bound::AtLeast(0.85));
        add(ADAMW, share(adamw(card, 207.1e6))?, Bound::AtLeast(0.85));
    }
    for (goal, shape, name, least) in STEPS {
        let card = known(name)?;
        let memory = memory_of(card);
        let planned = steps.iter().find(|step| step.shape == *shape && step.tokens == 2048 && step.memory == memory);
        let planned = planned.with_context(|| format!("no step of {shape} is planned for {memory}"))?;
        let predicted = step(kernels, planned, card, Products::Fused)?;
        let value = planned.tokens as f64 / predicted.seconds;
        all.push(Judged { goal, card: card.name, value, bound: Bound::AtLeast(*least) });
    }
    Ok(all)
}

fn known(name: &str) -> Result<&'static Card> {
    card(name).with_context(|| format!("no card {name}"))
}

const FEW_TOKENS: &str = "forward, M = 1, 28672×8192: share of the copy bandwidth";
const SIXTEEN_TOKENS: &str = "forward, M = 16: time over that of M = 1";
const DEQUANTIZE: &str = "dequantize: share of the copy bandwidth";
const ADAMW: &str = "8-bit AdamW, 207 M parameters: share of the copy bandwidth";

/// Products with goals of their own.
enum Product {
    Forward,
    Dx,
    Attention,
    AttentionBackward,
}

/// Least share of the tensor cores; most instructions beside each HMMA; least share of busy multiprocessors
/// at 2,048 tokens.
type TensorGoal = (Product, f64, Option<f64>, Option<f64>);

const TENSOR: &[TensorGoal] = &[
    (Product::Forward, 0.85, Some(3.6), None),
    (Product::Dx, 0.85, Some(3.6), None),
    (Product::Attention, 0.81, None, Some(0.95)),
    (Product::AttentionBackward, 0.78, None, Some(0.95)),
];

type Names = [&'static str; 3];

impl Product {
    /// At the shapes of a 70B.
    fn of_70b(&self, tokens: usize) -> Operation {
        let of = |name: &str| Operation { name: name.into(), count: 1, tokens, ..Operation::default() };
        let linear = |name| Operation { k: 8192, segments: vec![[28672, 16], [28672, 16]], ..of(name) };
        let attention = |name| Operation { heads: [64, 8, 128], ..of(name) };
        match self {
            Self::Forward => linear("linear"),
            Self::Dx => linear("linear, backward"),
            Self::Attention => attention("attention"),
            Self::AttentionBackward => attention("attention, backward"),
        }
    }

    /// The names of its figures, and of the second kernel's where it has two.
    fn names(&self) -> (Names, Names) {
        let one = |names: Names| (names, names);
        match self {
            Self::Forward => {
                one(["forward NF4: share of the tensor cores", "forward NF4: instructions beside each HMMA", ""])
            }
            Self::Dx => one(["dX NF4: share of the tensor cores", "dX NF4: instructions beside each HMMA", ""]),
            Self::Attention => {
                one(["attention: share of the tensor cores", "", "attention, 2,048 tokens: multiprocessors busy"])
            }
            Self::AttentionBackward => (
                ["dK, dV: share of the tensor cores", "", "dK, dV, 2,048 tokens: multiprocessors busy"],
                ["dQ: share of the tensor cores", "", "dQ, 2,048 tokens: multiprocessors busy"],
            ),
        }
    }
}

const STEP_8B: &str = "Llama 3 8B, 2,048 tokens: tokens/s, fused";
const STEP_70B: &str = "Llama 3 70B, 2,048 tokens: tokens/s, fused";

const STEPS: &[(&str, &str, &str, f64)] = &[
    (STEP_8B, "llama-3-8b", "A6000", 2600.0),
    (STEP_8B, "llama-3-8b", "L40S", 5500.0),
    (STEP_8B, "llama-3-8b", "H100", 10_200.0),
    (STEP_70B, "llama-3-70b", "A6000", 250.0),
    (STEP_70B, "llama-3-70b", "L40S", 540.0),
    (STEP_70B, "llama-3-70b", "H100", 1300.0),
];

/// Faults, one line each.
pub fn findings(judged: &[Judged], misses: &[Miss]) -> Vec<String> {
    let mut findings = Vec::new();
    for Judged { goal, card, value, bound } in judged {
        let listed = misses.iter().find(|(of, on, _)| of == goal && on == card).map(|miss| miss.2);
        match (bound.is_met(*value), listed) {
            (true, Some(_)) => {
                findings.push(format!("{goal} on {card}: {value:.3} meets its goal; take it from the known misses"))
            }
            (false, None) => findings.push(format!("{goal} on {card}: {value:.3} misses its goal ({bound:?})")),
            (false, Some(before)) if bound.is_worse(*value, before) => {
                findings
                    .push(format!("{goal} on {card}: {value:.3} is worse than the known miss of {before} ({bound:?})"));
            }
            _ => {}
        }
    }
    for (goal, card, _) in misses {
        if !judged.iter().any(|judged| judged.goal == *goal && judged.card == *card) {
            findings.push(format!("{goal} on {card}: a known miss of no goal"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_or_its_miss_is_known_and_grows_no_worse() {
        let judged = |value| vec![Judged { goal: "g", card: "c", value, bound: Bound::AtLeast(0.85) }];
        assert_eq!(findings(&judged(0.85), &[]), Vec::<String>::new());
        assert!(findings(&judged(0.84), &[])[0].contains("misses its goal"));
        assert_eq!(findings(&judged(0.79), &[("g", "c", 0.80)]), Vec::<String>::new());
        assert!(findings(&judged(0.77), &[("g", "c", 0.80)])[0].contains("is worse"));
        assert!(findings(&judged(0.90), &[("g", "c", 0.80)])[0].contains("take it from"));
        assert!(findings(&[], &[("g", "c", 0.80)])[0].contains("of no goal"));
        let most = |value| vec![Judged { goal: "g", card: "c", value, bound: Bound::AtMost(3.6) }];
        assert_eq!(findings(&most(3.6), &[]), Vec::<String>::new());
        assert!(findings(&most(4.2), &[("g", "c", 4.0)])[0].contains("is worse"));
    }
}
