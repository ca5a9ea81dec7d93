//! Magnitudes, and the gradients of what is trained beside low-rank terms: magnitudes, norms' weights, rows of an
//! embedding and the output layer. Against `reference`, under every schedule, on real widths and on odd ones.

use crate::property::checked;
use half::bf16;
use lab::cross_entropy::{HeadLoss, Loss, Targets, Values};
use lab::device::device;
use lab::magnitude_norms::MagnitudeNorms;
use lab::magnitudes::{Direction, Magnitudes};
use lab::operation::{Operation, run, verify};
use lab::vector_gradients::{EmbeddingGradients, NormGradients};
use proptest::prelude::*;
use qlora_kernels::nf4::Nf4Options;
use qlora_kernels::ops::nf4::Layout;
use qlora_kernels::ops::{self, Magnitude, NormGradient, OutputGradient};

const SCHEDULES: u64 = 2;

/// Tokens of less than a chunk of 256, and of several.
fn tokens() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1usize..40, 2 => 200usize..600]
}

/// Widths of Llama's layers, and widths on and off the vector's 8.
fn widths() -> impl Strategy<Value = usize> {
    let real = proptest::sample::select(vec![576usize, 1024, 1536, 2048, 4096]);
    prop_oneof![2 => real, 1 => 1usize..200, 1 => (1usize..60).prop_map(|n| 8 * n)]
}

fn magnitudes(directions: &'static [Direction]) -> impl Strategy<Value = Magnitudes> {
    let pad = prop_oneof![Just(0usize), Just(8), 1usize..20];
    let direction = proptest::sample::select(directions);
    (tokens(), widths(), pad, any::<bool>(), direction, any::<u64>())
        .prop_map(|(m, n, pad, bias, direction, seed)| Magnitudes { m, n, pad, bias, direction, seed })
}

#[test]
fn magnitudes_are_within_their_rounding() {
    checked("magnitudes", SCHEDULES, 24, magnitudes(&[Direction::Forward]), |operation| operation.seed);
}

#[test]
fn gradients_of_magnitudes_are_within_their_rounding() {
    use Direction::{Backward, BackwardOfOutput, BackwardWithout};
    // Every direction with and without a bias, on both kernels and over several chunks, however few cases are drawn.
    for direction in [Backward, BackwardOfOutput, BackwardWithout] {
        for (m, n, pad, bias) in [(520, 136, 8, true), (300, 37, 3, false)] {
            let operation = Magnitudes { m, n, pad, bias, direction, seed: 4 };
            verify(&device(), &operation, 4, SCHEDULES).unwrap();
        }
    }
    let directions = magnitudes(&[Backward, BackwardOfOutput, BackwardWithout]);
    checked("magnitudes backward", SCHEDULES, 24, directions, |operation| operation.seed);
}

/// NF4 with the fast kernels and without, and bf16; ranks of few tokens and of more.
fn norms() -> impl Strategy<Value = MagnitudeNorms> {
    let nf4 = |block_size, double_quant, layout| Some((Nf4Options { block_size, double_quant }, layout));
    let weights = prop_oneof![
        Just(None),
        Just(nf4(64, true, Layout::Transposed)),
        Just(nf4(64, false, Layout::RowMajor)),
        Just(nf4(128, true, Layout::RowMajor)),
    ];
    let widths = prop_oneof![
        3 => (1usize..6).prop_map(|k| 64 * k),
        2 => proptest::sample::select(vec![576usize, 2048, 4096]),
        1 => (1usize..20).prop_map(|k| 8 * k),
        1 => 3usize..100,
    ];
    let (n, r) = (1usize..80, prop_oneof![1usize..=16, 17usize..40]);
    (n, widths, r, weights, prop_oneof![Just(0.5f32), Just(2.0)], any::<u64>()).prop_map(
        |(n, k, r, nf4, scale, seed)| {
            // Blocks that straddle rows have no transposed layout.
            let nf4 = nf4.map(|(options, layout)| {
                (options, if k.is_multiple_of(options.block_size) { layout } else { Layout::RowMajor })
            });
            MagnitudeNorms { n, k, r, nf4, scale, seed }
        },
    )
}

#[test]
fn norms_of_magnitudes_are_within_their_rounding() {
    let double = Nf4Options { block_size: 64, double_quant: true };
    // Whatever is drawn below: real widths in both kinds of weights, and a width off the vector.
    for (k, nf4) in
        [(2048, Some((double, Layout::Transposed))), (2048, None), (77, Some((double, Layout::RowMajor))), (77, None)]
    {
        let operation = MagnitudeNorms { n: 48, k, r: 16, nf4, scale: 2.0, seed: 3 };
        verify(&device(), &operation, 3, SCHEDULES).unwrap();
    }
    checked("norms of magnitudes", SCHEDULES, 24, norms(), |operation| operation.seed);
}

/// Norms of whole rows, and of heads of q and of k between other columns.
fn norm_gradients() -> impl Strategy<Value = NormGradients> {
    let rows = widths().prop_map(|width| (1usize, width, 0usize, 0usize));
    let heads = proptest::sample::select(vec![64usize, 128, 96, 24, 7]);
    let heads = (1usize..9, heads, 0usize..5, 0usize..4)
        .prop_map(|(parts, width, before, after)| (parts, width, before * width, after * width));
    (tokens(), prop_oneof![rows, heads], any::<u64>())
        .prop_map(|(m, (parts, width, column, tail), seed)| NormGradients { m, parts, width, column, tail, seed })
}

#[test]
fn gradients_of_weights_of_norms_are_within_their_rounding() {
    for (m, parts, width, column, tail) in [(520, 1, 2048, 0, 0), (300, 2, 128, 384, 256), (270, 3, 7, 5, 2)] {
        let operation = NormGradients { m, parts, width, column, tail, seed: 6 };
        verify(&device(), &operation, 6, SCHEDULES).unwrap();
    }
    checked("gradients of norms", SCHEDULES, 24, norm_gradients(), |operation| operation.seed);
}

#[test]
fn gradients_of_the_embedding_are_those_of_its_tokens_in_order() {
    let vocab = prop_oneof![1usize..20, 20usize..500];
    let widths = prop_oneof![Just(64usize), Just(576), Just(2048), Just(4096), 1usize..300];
    let scale = prop_oneof![Just(1.0f32), Just(0.3)];
    let operations = (prop_oneof![1usize..40, 250usize..600], widths, vocab, scale, any::<u64>()).prop_map(
        |(m, h, vocab, scale, seed)| {
            // A block a token and 2,048 columns: not too many.
            let h = if m > 40 { h.min(300) } else { h };
            EmbeddingGradients { m, h, vocab, scale, seed }
        },
    );
    // Whatever is drawn: more tokens than a block looks at together, of few ids.
    for (h, vocab) in [(72, 3), (13, 40)] {
        let operation = EmbeddingGradients { m: 700, h, vocab, scale: 0.7, seed: 8 };
        verify(&device(), &operation, 8, SCHEDULES).unwrap();
    }
    checked("embedding backward", SCHEDULES, 20, operations, |operation| operation.seed);
}

fn losses() -> impl Strategy<Value = HeadLoss> {
    let h = prop_oneof![3 => (1usize..4).prop_map(|n| 64 * n), 1 => (1usize..20).prop_map(|n| 8 * n), 1 => 1usize..90];
    let sizes = (prop_oneof![1usize..20, 100usize..200], h, prop_oneof![1usize..40, 200usize..500]);
    let targets = prop_oneof![2 => Just(Targets::Some), 1 => Just(Targets::All), 1 => Just(Targets::Unknown)];
    let values =
        prop_oneof![Just(Values::Random { size: 1.0 }), Just(Values::Random { size: 8.0 }), Just(Values::Exact)];
    let chunk = prop_oneof![1usize..80, Just(256usize), Just(1 << 40)];
    let soft_cap = prop_oneof![3 => Just(None), 1 => Just(Some(2.0f32))];
    (sizes, targets, chunk, any::<bool>(), values, soft_cap, any::<u64>()).prop_map(
        |((m, h, vocab), targets, chunk, weighted, values, soft_cap, seed)| {
            let (chunk, soft_cap) = (chunk.max(m / 8), soft_cap.filter(|_| values != Values::Exact));
            let loss = Loss { m, h, vocab, chunk, targets, gradient: true, weighted, values, soft_cap, seed };
            HeadLoss { loss, rows: None }
        },
    )
}

fn head_loss(m: usize, h: usize, vocab: usize, chunk: usize) -> HeadLoss {
    let (targets, values) = (Targets::Some, Values::Random { size: 2.0 });
    let loss = Loss { m, h, vocab, chunk, targets, gradient: true, weighted: true, values, soft_cap: None, seed: 12 };
    HeadLoss { loss, rows: None }
}

#[test]
fn gradients_of_the_output_layer_are_within_their_rounding() {
    checked("loss of a trained output layer", SCHEDULES, 24, losses(), |operation| operation.loss.seed);
}

/// The loss's other results have the bits that they have without this gradient; and no bit depends on chunks of
/// multiples of 256, of both kernels.
#[test]
fn gradients_of_the_output_layer_do_not_depend_on_chunks() {
    let device = device();
    for (h, vocab) in [(72, 333), (37, 50)] {
        let whole = head_loss(1300, h, vocab, 1 << 40);
        let inputs = whole.inputs();
        assert!(inputs.supervised() > 512);
        let output = verify(&device, &whole, 12, SCHEDULES).unwrap();
        let plain = run(&device, &whole.loss, &inputs);
        assert!(output.loss == plain, "the loss without the gradient of the output layer");
        for chunk in [256, 512] {
            let other = head_loss(1300, h, vocab, chunk);
            assert!(run(&device, &other, &inputs) == output, "chunks of {chunk} of width {h}");
        }
    }
}

/// An output layer with enough tiles that no sums over tokens go to the workspace.
#[test]
fn gradients_of_a_larger_output_layer_are_within_their_rounding() {
    verify(&device(), &head_loss(100, 256, 3500, 256), 12, 1).unwrap();
}

/// A batch cut at multiples of 256 tokens and added up in order gives the bits of the whole.
#[test]
fn sums_over_tokens_do_not_depend_on_how_a_batch_is_cut() {
    let (device, (m, n)) = (device(), (700usize, 72usize));
    let mut stream = qlora_kernels::rng::RngStream::new(5, 1);
    let mut numbers = |len: usize| (0..len).map(|_| stream.uniform() * 2.0 - 1.0).collect::<Vec<f32>>();
    let matrix = |values: Vec<f32>| device.upload(&lab::device::to_bf16(&values)).unwrap();
    let (x, dy) = (matrix(numbers(m * n)), matrix(numbers(m * n)));
    let vector = |values: Vec<f32>| device.upload(&values).unwrap();
    let (magnitude, norms, before) = (vector(numbers(n)), vector(vec![0.75; n]), numbers(n));
    let mut room = device.upload(&vec![0u8; ops::norm_gradient::workspace_bytes(m, 1, n)]).unwrap();
    let layer = Magnitude { magnitude: magnitude.view(), norms: norms.view(), bias: None };
    let mut of_cuts = |cuts: &[usize]| {
        let (mut of_norm, mut of_magnitude) = (device.upload(&before).unwrap(), device.upload(&before).unwrap());
        let mut z = device.upload(&device.download(&x).unwrap()).unwrap();
        for cut in cuts.windows(2) {
            let (first, tokens) = (cut[0] * n, cut[1] - cut[0]);
            let (x, dy) = (x.view().skip(first).first(tokens * n), dy.view().skip(first).first(tokens * n));
            let norm = NormGradient { m: tokens, parts: 1, column: 0, ld: n, lddy: n, eps: 1e-5, dy, x };
            ops::norm_gradient(&norm, of_norm.view_mut(), room.view_mut(), device.stream()).unwrap();
            let z = z.view_mut().skip(first).first(tokens * n);
            let output = OutputGradient { m: tokens, n, dy, lddy: n, z, ldz: n };
            let wanted = Some(of_magnitude.view_mut());
            ops::magnitude_backward(Some(&layer), output, wanted, room.view_mut(), device.stream()).unwrap();
        }
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        let z: Vec<u16> = device.download(&z).unwrap().into_iter().map(bf16::to_bits).collect();
        (bits(device.download(&of_norm).unwrap()), bits(device.download(&of_magnitude).unwrap()), z)
    };
    let whole = of_cuts(&[0, m]);
    assert!(of_cuts(&[0, 256, m]) == whole && of_cuts(&[0, 512, m]) == whole);
    assert!(of_cuts(&[0, 100, m]) != whole, "cut elsewhere the sums are others");
}

/// The results of a kernel with a bug must turn the checks red.
#[test]
fn the_checks_see_wrong_results() {
    let device = device();
    for direction in [Direction::Forward, Direction::Backward] {
        let right = Magnitudes { m: 9, n: 40, pad: 0, bias: true, direction, seed: 1 };
        let output = run(&device, &right, &right.inputs());
        assert_eq!(right.check(&right.inputs(), &output, usize::MAX), Ok(()));
        let mut bad = output.clone();
        bad.y[17] ^= 4;
        assert!(right.check(&right.inputs(), &bad, usize::MAX).is_err());
        let mut bad = output.clone();
        bad.dmagnitude[3] ^= 1 << 14;
        assert!(right.check(&right.inputs(), &bad, usize::MAX).is_err());
        // A bias that is left out.
        let wrong = Magnitudes { bias: false, ..right.clone() };
        assert!(wrong.check(&wrong.inputs(), &output, usize::MAX).is_err(), "{direction:?}");
    }
    let double = Nf4Options { block_size: 64, double_quant: true };
    let right = MagnitudeNorms { n: 16, k: 128, r: 8, nf4: Some((double, Layout::Transposed)), scale: 0.5, seed: 2 };
    let output = run(&device, &right, &right.inputs());
    assert_eq!(right.check(&right.inputs(), &output, usize::MAX), Ok(()));
    for scale in [0.25, 1.0] {
        let wrong = MagnitudeNorms { scale, ..right.clone() };
        assert!(wrong.check(&wrong.inputs(), &output, usize::MAX).is_err(), "a scale of {scale}");
    }
    let right = NormGradients { m: 20, parts: 2, width: 16, column: 8, tail: 8, seed: 3 };
    let mut output = run(&device, &right, &right.inputs());
    assert_eq!(right.check(&right.inputs(), &output, usize::MAX), Ok(()));
    output[5] ^= 1 << 16;
    assert!(right.check(&right.inputs(), &output, usize::MAX).is_err());
    let right = head_loss(40, 24, 50, 256);
    let mut output = run(&device, &right, &right.inputs());
    assert_eq!(right.check(&right.inputs(), &output, usize::MAX), Ok(()));
    output.dhead[7] ^= 1 << 23;
    assert!(right.check(&right.inputs(), &output, usize::MAX).is_err());
}
