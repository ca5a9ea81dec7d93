//! The fused output layer and cross-entropy against the definition, under every schedule, on shapes with and without
//! remainders.

use crate::property::checked_and;
use half::bf16;
use lab::cross_entropy::{Host, Loss, Output, Targets, Values};
use lab::device::device;
use lab::operation::{Operation, run, verify};
use proptest::prelude::*;
use qlora_kernels::ops::cross_entropy::LossState;
use qlora_kernels::reference::linear_cross_entropy;

const SCHEDULES: u64 = 2;

fn operations(
    sizes: impl Strategy<Value = (usize, usize, usize)>,
    values: impl Strategy<Value = Values>,
) -> impl Strategy<Value = Loss> {
    let targets = prop_oneof![2 => Just(Targets::Some), 1 => Just(Targets::All), 1 => Just(Targets::Unknown)];
    let chunk = prop_oneof![1usize..80, Just(128usize), Just(1 << 40)];
    // Below the logits of large hidden states, and above those of all others.
    let soft_cap = prop_oneof![3 => Just(None), 1 => Just(Some(2.0f32)), 1 => Just(Some(30.0))];
    (sizes, targets, chunk, prop::bool::weighted(0.8), any::<bool>(), values, soft_cap, any::<u64>()).prop_map(
        |((m, h, vocab), targets, chunk, gradient, weighted, values, soft_cap, seed)| {
            // A launch a chunk: not too many.
            let chunk = chunk.max(m / 8);
            let soft_cap = soft_cap.filter(|_| values != Values::Exact);
            Loss { m, h, vocab, chunk, targets, gradient, weighted, values, soft_cap, seed }
        },
    )
}

/// Widths whose gradient is of the tensor cores, that copy 16 bytes at a time, and that do neither.
fn sizes() -> impl Strategy<Value = (usize, usize, usize)> {
    let h = prop_oneof![3 => (1usize..4).prop_map(|n| 64 * n), 1 => (1usize..20).prop_map(|n| 8 * n), 1 => 1usize..150];
    (prop_oneof![1usize..20, 100usize..200], h, prop_oneof![1usize..40, 200usize..700])
}

/// Every case also in one chunk, or in two: no bit depends on it.
fn checked(name: &'static str, most: u32, operations: impl Strategy<Value = Loss>) {
    let seed = |operation: &Loss| operation.seed;
    checked_and(name, SCHEDULES, most, operations, seed, |device, operation, output| {
        let chunk = if operation.chunk < operation.m { operation.m } else { operation.m.div_ceil(2) };
        let other = Loss { chunk, ..operation.clone() };
        prop_assert!(run(device, &other, &other.inputs()) == *output, "chunks of {chunk} give other bits");
        Ok(())
    });
}

fn random() -> impl Strategy<Value = Values> {
    prop_oneof![Just(1.0f32), Just(0.01), Just(8.0)].prop_map(|size| Values::Random { size })
}

#[test]
fn loss_and_gradient_are_within_their_rounding() {
    checked("cross-entropy", 40, operations(sizes(), random()));
}

#[test]
fn gradients_that_no_sum_rounds_are_exact() {
    checked("cross-entropy, exact", 24, operations(sizes(), Just(Values::Exact)));
}

/// More logits than the softmax takes in one pass (2,048), more statistics than it has threads (16,384 logits).
#[test]
fn large_vocabularies_are_as_small_ones() {
    let sizes = (1usize..5, prop_oneof![Just(64usize), 1usize..30], 17_000usize..40_000);
    checked("cross-entropy, large vocabularies", 6, operations(sizes, prop_oneof![random(), Just(Values::Exact)]));
}

pub fn example() -> Loss {
    let values = Values::Random { size: 2.0 };
    let (targets, weighted) = (Targets::Some, false);
    Loss { m: 70, h: 72, vocab: 333, chunk: 40, targets, gradient: true, weighted, values, soft_cap: None, seed: 3 }
}

/// Besides the drawn cases, rows of several statistics: their maxima near each other, and so far apart that one is all.
#[test]
fn loss_and_gradient_of_several_statistics_are_within_their_rounding() {
    for size in [0.5, 2.0, 8.0] {
        let operation = Loss { values: Values::Random { size }, ..example() };
        verify(&device(), &operation, operation.seed, SCHEDULES).unwrap();
    }
}

/// Besides the drawn cases, a cap with and without a gradient, of widths that copy 16 bytes at a time and that do not.
#[test]
fn losses_of_capped_logits_are_within_their_rounding() {
    for (h, soft_cap, gradient) in
        [(64, 3.0, true), (72, 30.0, true), (37, 3.0, true), (72, 3.0, false), (37, 3.0, false)]
    {
        let operation = Loss { h, soft_cap: Some(soft_cap), gradient, weighted: true, ..example() };
        verify(&device(), &operation, operation.seed, SCHEDULES).unwrap();
    }
}

/// The definition that these checks use is the reference, in loss and gradient.
#[test]
fn the_definition_is_the_reference() {
    let random = example().values;
    for (values, weighted, soft_cap) in
        [(random, false, None), (random, true, None), (Values::Exact, true, None), (random, false, Some(3.0))]
    {
        let loss = Loss { values, weighted, soft_cap, ..example() };
        let host = loss.inputs();
        let weights: Option<Vec<f64>> = host.weights.as_ref().map(|w| w.iter().map(|&w| w.into()).collect());
        let f64s = |values: &[bf16]| values.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let (x, w) = (f64s(&host.hidden), f64s(&host.head));
        let (scale, mut dx) = (f64::from(host.scale), vec![f64::NAN; x.len()]);
        let (targets, weights) = (&host.targets, weights.as_deref());
        let sum = linear_cross_entropy(&x, &w, targets, weights, scale, soft_cap, Some(&mut dx), loss.h);
        let expected: Vec<_> = (0..loss.m).map(|row| host.expected(row, loss.h)).collect();
        let own = |row: usize| scale * f64::from(host.weight(row)) * expected[row].0.0;
        let (own, all): (f64, f64) =
            (0..loss.m).fold((0.0, 0.0), |(sum, all), row| (sum + own(row), all + own(row).abs()));
        assert!((sum - own).abs() <= 1e-12 * all, "{sum}, {own}");
        for (dx, (own, bound)) in dx.iter().zip(expected.iter().flat_map(|(_, gradient)| gradient)) {
            // The kernels multiply scale and weight in f32.
            assert!(
                (dx - own).abs() <= 1e-12 + f64::from(u8::from(weighted)) * 2f64.powi(-23) * own.abs(),
                "{dx}, {own}"
            );
            assert!(
                values == Values::Exact || *bound <= 0.005 * (1.0 + own.abs()),
                "a bound of {bound} checks nothing"
            );
        }
    }
}

/// The results of a kernel with a bug must turn the check red.
#[test]
fn the_check_sees_wrong_results() {
    let device = device();
    for values in [example().values, Values::Exact] {
        let right = Loss { values, ..example() };
        let host = right.inputs();
        let good = run(&device, &right, &host);
        assert_eq!(right.check(&host, &good, usize::MAX), Ok(()));
        let with = |change: &dyn Fn(&mut Host)| {
            let mut host = right.inputs();
            change(&mut host);
            run(&device, &right, &host)
        };
        let row = host.targets.iter().position(|&target| target >= 0).unwrap();
        let mut wrong: Vec<(&str, Output)> = vec![
            ("another target", with(&|host| host.targets[row] = (host.targets[row] + 1) % 333)),
            ("a target too few", with(&|host| host.targets[row] = -1)),
            ("another scale", with(&|host| host.scale *= 1.02)),
            ("a soft cap", with(&|host| host.soft_cap = Some(30.0))),
            // A token that every row gives a probability.
            ("a token of the vocabulary left out", {
                let token = (0..333).find(|token| host.head[token * 72].to_f32() > -100.0).unwrap();
                with(&|host| host.head[token * 72..][..72].fill(bf16::from_f32(-1e4)))
            }),
        ];
        for bit in [20, 51] {
            let mut other = good.clone();
            other.state[0] ^= 1 << bit;
            wrong.push(("a bit of the sum", other));
        }
        let mut other = good.clone();
        other.losses[row] ^= 1 << 12;
        wrong.push(("a bit of a loss", other));
        let mut other = good.clone();
        other.dhidden[row * 72 + 71] ^= if values == Values::Exact { 1 } else { 8 };
        wrong.push(("a bit of the gradient", other));
        for (what, wrong) in wrong {
            assert!(right.check(&host, &wrong, usize::MAX).is_err(), "{values:?}: {what}");
        }
        let state = LossState::from_words(good.state);
        assert_eq!((state.not_finite, state.supervised), (None, host.supervised()));
    }
}
