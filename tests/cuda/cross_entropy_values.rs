//! Edges of the fused output layer and cross-entropy: no targets, targets of no token, numbers that are none, logits
//! that overflow, rows that must not see each other, bad operands.

use crate::cross_entropy::example;
use half::bf16;
use lab::cross_entropy::{Loss, Output, Targets};
use lab::device::{device, set_schedule};
use lab::operation::{Operation, run};
use qlora_kernels::ops::cross_entropy::{CrossEntropy, LossState, STATE_LEN, Shape, cross_entropy, workspace_bytes};

fn state(output: &Output) -> LossState {
    LossState::from_words(output.state)
}

/// Bits of a row's loss and gradient.
fn row(output: &Output, row: usize, h: usize) -> (u32, &[u16]) {
    (output.losses[row], &output.dhidden[row * h..][..h])
}

#[test]
fn tokens_without_a_target_have_no_loss_and_need_no_workspace() {
    let device = device();
    for (m, h) in [(70, 72), (0, 72), (5, 7)] {
        let none = Loss { m, h, targets: Targets::None, ..example() };
        let host = none.inputs();
        let output = run(&device, &none, &host);
        assert_eq!(state(&output), LossState { sum: 0.0, not_finite: None, supervised: 0 });
        assert!(output.losses.iter().all(|&bits| bits == 0) && output.dhidden.iter().all(|&bits| bits == 0));
        assert_eq!((output.losses.len(), output.dhidden.len()), (m, m * h));
        let shape = Shape { m, h, vocab: none.vocab, supervised: 0, chunk: 40 };
        assert_eq!(workspace_bytes(&shape, true), Ok(0));
    }
}

/// 1,024 tokens of a vocabulary of 128,256 and the width of a 70B; a plan asks for it before anything is allocated.
#[test]
fn the_workspace_does_not_grow_with_the_tokens() {
    let shape = Shape { m: 1 << 17, h: 8192, vocab: 128_256, supervised: 1 << 17, chunk: 1024 };
    let bytes = workspace_bytes(&shape, true).unwrap();
    assert!(bytes < 600_000_000, "{bytes}");
    assert_eq!(workspace_bytes(&Shape { m: 1 << 20, ..shape }, true), Ok(bytes));
    let more = workspace_bytes(&Shape { m: 1 << 20, supervised: 1 << 20, ..shape }, true).unwrap();
    assert_eq!(more - bytes, 4 * ((1 << 20) - (1 << 17)));
    assert!(workspace_bytes(&shape, false).unwrap() < 40_000_000);
    let error = workspace_bytes(&Shape { chunk: 0, ..shape }, true).unwrap_err().to_string();
    assert!(error.contains("QK_ERROR_SHAPE") && error.contains("chunks of 0"), "{error}");
}

/// The first is named, the others' bits stay.
#[test]
fn targets_of_no_token_are_found_by_their_row() {
    let device = device();
    let operation = example();
    let clean = run(&device, &operation, &operation.inputs());
    let rows: Vec<usize> =
        (0..operation.m).filter(|&row| operation.inputs().targets[row] >= 0).skip(3).step_by(20).collect();
    for bad in [333, 383, 384, i32::MAX] {
        let mut host = operation.inputs();
        rows.iter().for_each(|&row| host.targets[row] = bad);
        let output = run(&device, &operation, &host);
        operation.check(&host, &output, usize::MAX).unwrap();
        assert_eq!(state(&output).not_finite, Some(rows[0]), "{bad}");
        for other in (0..operation.m).filter(|row| !rows.contains(row)) {
            assert_eq!(row(&output, other, 72), row(&clean, other, 72), "{bad}, row {other}");
        }
    }
}

#[test]
fn another_number_of_targets_than_was_said_makes_the_sum_nan() {
    let device = device();
    let operation = example();
    let host = operation.inputs();
    let clean = run(&device, &operation, &host);
    let last = host.targets.iter().rposition(|&target| target >= 0).unwrap();
    // The buffers are of one target less than there are then, and of one more.
    let none = host.targets.iter().position(|&target| target < 0).unwrap();
    for (at, target) in [(none, 5), (last, -1)] {
        let mut said = operation.upload(&device, &host).unwrap();
        let mut there = operation.inputs();
        there.targets[at] = target;
        said.targets = operation.upload(&device, &there).unwrap().targets;
        operation.launch(&mut said, device.stream()).unwrap();
        let output = operation.download(&device, &said).unwrap();
        let (found, computed) = (state(&output), host.supervised());
        assert!(found.sum.is_nan(), "{found:?}");
        if target < 0 {
            assert_eq!((found.not_finite, found.supervised), (None, computed - 1));
            assert_eq!(row(&output, last, 72), (0, [0; 72].as_slice()));
        } else {
            assert_eq!((found.not_finite, found.supervised), (Some(last), computed + 1));
        }
        for other in (0..operation.m).filter(|&other| other != at && other != last) {
            assert_eq!(row(&output, other, 72), row(&clean, other, 72), "row {other}");
        }
    }
}

/// In the row that has the value, every bit as before in the others; in the output layer, in all of them.
#[test]
fn nans_and_infinities_stay_in_their_row() {
    let device = device();
    for h in [72, 128] {
        let operation = Loss { h, ..example() };
        let clean = run(&device, &operation, &operation.inputs());
        let token = operation.inputs().targets.iter().rposition(|&target| target >= 0).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut host = operation.inputs();
            host.hidden[token * h + h - 1] = bf16::from_f32(bad);
            set_schedule(7);
            let output = run(&device, &operation, &host);
            let (loss, gradient) = row(&output, token, h);
            assert!(!f32::from_bits(loss).is_finite(), "{bad}: {}", f32::from_bits(loss));
            assert!(gradient.iter().all(|&bits| !bf16::from_bits(bits).is_finite()), "{bad}");
            let found = state(&output);
            assert!(found.sum.is_nan() && found.not_finite == Some(token), "{bad}: {found:?}");
            for other in (0..operation.m).filter(|&other| other != token) {
                assert_eq!(row(&output, other, h), row(&clean, other, h), "{bad}, row {other}");
            }
            let mut host = operation.inputs();
            host.head[332 * h] = bf16::from_f32(bad);
            let output = run(&device, &operation, &host);
            for (row, (&loss, &target)) in output.losses.iter().zip(&host.targets).enumerate() {
                let loss = f32::from_bits(loss);
                // A logit of minus infinity is a token without a probability, which does no harm but as a target.
                let harmless = !bad.is_nan() && target != 332 && host.logit(row, 332, h) == f64::NEG_INFINITY;
                assert_eq!(loss.is_finite(), target < 0 || harmless, "{bad}, row {row}: {loss}");
            }
        }
    }
}

/// One feature; logits of 10³⁰ either way, and beyond what f32 holds.
#[test]
fn huge_logits_do_not_overflow() {
    let device = device();
    let operation = Loss { m: 3, h: 64, vocab: 300, chunk: 2, targets: Targets::All, ..example() };
    let run_with = |x: f32, w: f32| {
        let mut host = operation.inputs();
        host.hidden.fill(bf16::ZERO);
        host.head.fill(bf16::ZERO);
        (0..3).for_each(|row| host.hidden[row * 64] = bf16::from_f32(x));
        // Token 299 has the largest logit, all others its negative.
        (0..300).for_each(|token| host.head[token * 64] = bf16::from_f32(if token == 299 { w } else { -w }));
        host.targets = vec![299, 0, 299];
        host.scale = 0.5;
        run(&device, &operation, &host)
    };
    for (x, w) in [(100.0, 80.0), (1e15, 1e15), (1e19, 1e19)] {
        let output = run_with(x, w);
        let logit = bf16::from_f32(x).to_f32() * bf16::from_f32(w).to_f32();
        let losses: Vec<f32> = output.losses.iter().map(|&bits| f32::from_bits(bits)).collect();
        assert_eq!(losses, [0.0, 2.0 * logit, 0.0]);
        assert_eq!((state(&output).sum, state(&output).not_finite), (2.0 * f64::from(logit), None));
        // Off by one whole token where it is wrong: 0.5 * (head[299] - head[0]).
        let gradient: Vec<f32> = (0..3).map(|row| bf16::from_bits(output.dhidden[row * 64]).to_f32()).collect();
        assert_eq!(gradient, [0.0, bf16::from_f32(w).to_f32(), 0.0]);
    }
    let found = state(&run_with(1e20, 1e20));
    assert!(found.sum.is_nan() && found.not_finite == Some(0), "{found:?}");
}

#[test]
fn a_tokens_result_does_not_depend_on_the_other_tokens() {
    let device = device();
    // Widths that copy 16 bytes at a time, and that do not.
    for (h, gradient) in [(72, true), (71, true), (72, false), (71, false)] {
        let large = Loss { m: 300, h, gradient, ..example() };
        let mut host = large.inputs();
        let whole = run(&device, &large, &host);
        let (first, tokens) = (131, 40);
        host.hidden = host.hidden[first * h..(first + tokens) * h].to_vec();
        host.targets = host.targets[first..first + tokens].to_vec();
        let slice = run(&device, &Loss { m: tokens, ..large }, &host);
        assert_eq!(whole.losses[first..first + tokens], slice.losses, "H {h}");
        let rows = if gradient { first * h..(first + tokens) * h } else { 0..0 };
        assert!(whole.dhidden[rows] == slice.dhidden, "H {h}");
    }
}

#[test]
fn weights_of_one_are_no_weights() {
    let device = device();
    for gradient in [true, false] {
        let operation = Loss { gradient, ..example() };
        let mut host = operation.inputs();
        let without = run(&device, &operation, &host);
        host.weights = Some(vec![1.0; operation.m]);
        assert_eq!(run(&device, &operation, &host), without, "gradient {gradient}");
    }
}

#[test]
fn a_weight_of_zero_is_no_target_and_weights_without_a_target_are_not_read() {
    let device = device();
    for h in [72, 71] {
        let operation = Loss { h, weighted: true, ..example() };
        let mut host = operation.inputs();
        let weighted = run(&device, &operation, &host);
        let weights = host.weights.clone().unwrap();
        let zeros = (0..operation.m).filter(|&row| weights[row] == 0.0 && host.targets[row] >= 0).count();
        assert!(zeros > 3, "{zeros}");
        for (row, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight == 0.0) {
            assert_eq!(weight, 0.0);
            host.targets[row] = -1;
        }
        assert_eq!(run(&device, &operation, &host), weighted);
        let unread = (0..operation.m).filter(|&row| host.targets[row] < 0);
        unread.for_each(|row| host.weights.as_mut().unwrap()[row] = f32::NAN);
        assert_eq!(run(&device, &operation, &host), weighted);
    }
}

/// A weight of 2 is the loss twice; the losses themselves are not weighted.
#[test]
fn a_weight_scales_the_sum_and_the_gradient_of_its_token_alone() {
    let device = device();
    let operation = example();
    let mut host = operation.inputs();
    let clean = run(&device, &operation, &host);
    let token = host.targets.iter().position(|&target| target >= 0).unwrap();
    let mut weights = vec![1.0; operation.m];
    weights[token] = -2.0;
    host.weights = Some(weights.clone());
    let output = run(&device, &operation, &host);
    assert_eq!(output.losses, clean.losses);
    let loss = f64::from(f32::from_bits(clean.losses[token]));
    assert!((state(&output).sum - (state(&clean).sum - 3.0 * loss)).abs() <= 1e-9);
    for other in 0..operation.m {
        let (_, found) = row(&output, other, 72);
        let (_, unweighted) = row(&clean, other, 72);
        let factor = if other == token { -2.0 } else { 1.0 };
        let expected = unweighted.iter().map(|&bits| bf16::from_bits(bits).to_f32() * factor);
        assert!(found.iter().zip(expected).all(|(&bits, x)| bf16::from_bits(bits).to_f32() == x), "row {other}");
    }
    for bad in [f32::NAN, f32::INFINITY] {
        weights[token] = bad;
        host.weights = Some(weights.clone());
        let found = state(&run(&device, &operation, &host));
        assert!(found.sum.is_nan() && found.not_finite == Some(token), "{bad}: {found:?}");
    }
}

/// More tokens than one pass over rows or losses takes.
#[test]
fn many_tokens_are_counted_and_summed() {
    let device = device();
    let many = Loss { m: 9001, h: 8, vocab: 3, chunk: 5000, gradient: false, ..example() };
    let host = many.inputs();
    let output = run(&device, &many, &host);
    many.check(&host, &output, usize::MAX).unwrap();
    // The sum's order, as the interface tells it: 256 rows each, and of those every 32nd, then pairs of lanes.
    let losses: Vec<f64> = output.losses.iter().map(|&bits| f32::from_bits(bits).into()).collect();
    let of_256 = |losses: &[f64]| {
        let mut lanes: Vec<f64> = (0..32).map(|lane| losses.iter().skip(lane).step_by(32).sum()).collect();
        while lanes.len() > 1 {
            let (low, high) = lanes.split_at(lanes.len() / 2);
            lanes = low.iter().zip(high).map(|(low, high)| low + high).collect();
        }
        lanes[0]
    };
    assert_eq!(state(&output).sum, losses.chunks(256).map(of_256).sum::<f64>());
    let mut host = many.inputs();
    host.targets[8000..8010].fill(3);
    assert_eq!(state(&run(&device, &many, &host)).not_finite, Some(8000));
}

#[test]
fn wrong_lengths_and_a_small_workspace_are_refused_with_the_operation_and_the_shape() {
    let device = device();
    let shape = Shape { m: 2, h: 8, vocab: 5, supervised: 1, chunk: 128 };
    let call = |hidden: usize,
                head: usize,
                targets: usize,
                losses: usize,
                dhidden: usize,
                short: usize,
                gradient_scale: f32,
                soft_cap: Option<f32>| {
        let ones = |len: usize| device.upload(&vec![bf16::ONE; len]).unwrap();
        let (hidden, head, mut dhidden) = (ones(hidden), ones(head), ones(dhidden));
        let targets = device.upload(&vec![-1i32; targets]).unwrap();
        let mut losses = device.upload(&vec![0.0f32; losses]).unwrap();
        let mut state = device.upload(&[0u64; STATE_LEN]).unwrap();
        let bytes = workspace_bytes(&shape, true).unwrap();
        let mut workspace = device.upload(&vec![0u8; bytes - short]).unwrap();
        let (hidden, head, targets) = (hidden.view(), head.view(), targets.view());
        let input = CrossEntropy { shape, gradient_scale, hidden, head, targets, weights: None, soft_cap };
        let (dhidden, workspace) = (Some(dhidden.view_mut()), workspace.view_mut());
        let result = cross_entropy(&input, losses.view_mut(), state.view_mut(), dhidden, workspace, device.stream());
        result.map_err(|error| error.to_string())
    };
    assert_eq!(call(16, 40, 2, 2, 16, 0, 1.0, None), Ok(()));
    for (result, what) in [
        (call(15, 40, 2, 2, 16, 0, 1.0, None), "hidden has 15 elements, expected 16"),
        (call(16, 48, 2, 2, 16, 0, 1.0, None), "the output layer has 48 elements, expected 40"),
        (call(16, 40, 3, 2, 16, 0, 1.0, None), "the targets has 3 elements, expected 2"),
        (call(16, 40, 2, 1, 16, 0, 1.0, None), "losses has 1 elements, expected 2"),
        (call(16, 40, 2, 2, 8, 0, 1.0, None), "dhidden has 8 elements, expected 16"),
        (call(16, 40, 2, 2, 16, 1, 1.0, None), "the workspace has"),
        (call(16, 40, 2, 2, 16, 0, f32::NAN, None), "QK_ERROR_VALUE"),
        (call(16, 40, 2, 2, 16, 0, 1.0, Some(0.0)), "a soft cap of 0"),
    ] {
        let error = result.unwrap_err();
        let named = "cross_entropy of M 2 (1 supervised), H 8, vocabulary 5, chunks of 128";
        assert!(error.contains(named) && error.contains(what), "{error}");
    }
}
