//! dX of the loss: a sum over a vocabulary of tokens is thousands of chained accumulations in one f32. Tensor cores
//! truncate where they align addends, so that errors of one sign add up; the emulation rounds to nearest and cannot
//! show it. All terms are positive here, which is the worst case for such a drift.

use half::bf16;
use lab::device::{Tally, device, set_schedule};
use lab::linear::{Linear, Part, Values};
use lab::linear_dx::LinearDx;
use lab::operation::{Operation, run};

/// Llama 3's vocabulary on a GPU; on the host, where nothing truncates, as much as takes seconds.
const N: usize = if cfg!(kernels = "cuda") { 128_256 } else { 4096 };
const M: usize = 64;
const K: usize = 128;
/// The share of the result that a GPU may lose: half a unit of the last place of bf16, as more would change the stored
/// value. Truncation that keeps one or two bits below f32's last place, of 8 or 16 products at a time, comes to 0.9e-3
/// to 1.6e-3 over this many positive terms (computed on the host; a GPU's number of bits is not documented).
const TRUNCATED: f64 = if cfg!(kernels = "cuda") { 1.0 / 512.0 } else { 0.0 };

#[test]
fn dx_over_a_vocabulary_does_not_drift() {
    let tally = Tally::new("dX over a vocabulary", 1);
    let part = Part { n: N, r: 0, bias: false, pad: 0 };
    let operation = LinearDx {
        linear: Linear { dense: true, values: Values::RandomCodes, seed: 70, ..Linear::new(M, K, vec![part]) },
        accumulate: false,
        dropout: None,
    };
    let mut inputs = operation.inputs();
    // Sums of this many terms are all alike. Rows and columns that grow spread them over two octaves, so that bf16
    // rounds them up as often as down.
    let grown = |value: f32, at: usize, of: usize| bf16::from_f32(value.abs() * (1.0 + at as f32 / of as f32));
    for (token, row) in inputs.dy[0].chunks_mut(N).enumerate() {
        row.iter_mut().for_each(|dy| *dy = grown(dy.to_f32(), token, M));
    }
    for row in inputs.parts[0].weight.chunks_mut(K) {
        row.iter_mut().enumerate().for_each(|(column, weight)| *weight = grown(*weight, column, K).to_f32());
    }
    set_schedule(70);
    let output = run(&device(), &operation, &inputs);
    operation.check(&inputs, &output, usize::MAX).unwrap();

    let mut expected = vec![0.0_f64; M * K];
    let weights: Vec<f64> = inputs.parts[0].weight.iter().map(|&weight| f64::from(weight)).collect();
    for (row, dy) in expected.chunks_mut(K).zip(inputs.dy[0].chunks(N)) {
        for (weights, dy) in weights.chunks(K).zip(dy) {
            let dy = dy.to_f64();
            row.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += dy * weight);
        }
    }
    let errors = output.dx.iter().zip(&expected).map(|(&bits, sum)| bf16::from_bits(bits).to_f64() / sum - 1.0);
    let drift = errors.sum::<f64>() / (M * K) as f64;
    // bf16 rounds each result by 2^-9 of it at most, and the mean of all results by their standard deviation, of which
    // four are allowed; f32 rounds to nearest, each of the sums by 2^-24 at most, to both sides.
    let most = TRUNCATED + 4.0 * 2.0_f64.powi(-9) / (3.0 * (M * K) as f64).sqrt() + N as f64 * 2.0_f64.powi(-28);
    println!("dX over {N} tokens of a vocabulary: drift {drift:+.2e}, at most {most:.2e}");
    assert!(drift.abs() <= most, "{drift:+.2e}, at most {most:.2e}");
    tally.case();
}
