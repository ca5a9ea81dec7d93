//! Edges of the fused linear layer: tiles, no tokens, values that are no numbers, inputs with a seeded fault, bad
//! operands.

use half::bf16;
use lab::device::{device, set_schedule};
use lab::linear::{Host, Linear, Output, Part, SENTINEL, Values};
use lab::operation::{Operation, run, verify};
use qlora_kernels::nf4::Nf4Matrix;
use qlora_kernels::ops::linear::{Input, Lora, Segment, Weight};
use qlora_kernels::ops::linear_forward;

fn linear(m: usize, k: usize, part: Part) -> Linear {
    Linear::new(m, k, vec![part])
}

/// The large tiles need a large product; their sums are those of the small ones, which a slice of the tokens takes.
#[test]
fn a_token_does_not_depend_on_the_tile_that_it_falls_in() {
    let device = device();
    let part = Part { n: 3001, r: 16, bias: true, pad: 7 };
    for dense in [false, true] {
        let large = Linear { dense, ..linear(1000, 192, part.clone()) };
        let mut inputs = large.inputs();
        let whole = run(&device, &large, &inputs);
        let (first, tokens) = (333, 50);
        inputs.x = inputs.x[first * 192..(first + tokens) * 192].to_vec();
        let slice = run(&device, &Linear { m: tokens, ..large.clone() }, &inputs);
        let ldy = part.n + part.pad;
        assert!(whole.y[0][first * ldy..(first + tokens) * ldy] == slice.y[0][..], "dense {dense}");
        assert_eq!(whole.s[first * 16..(first + tokens) * 16], slice.s[..]);
    }
}

/// Wide weights take the wide tiles of few tokens, which nothing smaller reaches.
#[test]
fn few_tokens_by_a_wide_weight_are_within_their_rounding() {
    let device = device();
    for (dense, values) in
        [(false, Values::Ragged), (true, Values::Ragged), (false, Values::Exact), (true, Values::Exact)]
    {
        let part = Part { n: 4101, r: 12, bias: true, pad: 3 };
        let wide = Linear { dense, values, ..linear(5, 192, part) };
        verify(&device, &wide, 3, 2).unwrap_or_else(|what| panic!("dense {dense}, {values:?}: {what}"));
    }
}

#[test]
fn no_tokens_are_no_work() {
    let device = device();
    for (k, dense) in [(128, false), (128, true), (100, false)] {
        for given_s in [false, true] {
            let part = Part { n: 40, r: 12, bias: true, pad: 3 };
            let none = Linear { m: 0, dense, given_s, ..linear(0, k, part) };
            assert_eq!(run(&device, &none, &none.inputs()), Output { s: vec![], y: vec![vec![]] });
            // Buffers that are larger than M says stay as they are.
            let one = Linear { m: 1, ..none.clone() };
            let mut buffers = one.upload(&device, &one.inputs()).unwrap();
            if !given_s {
                none.launch(&mut buffers, device.stream()).unwrap();
                let output = one.download(&device, &buffers).unwrap();
                assert!(output.s.iter().chain(&output.y[0]).all(|&bits| bits == SENTINEL.to_bits()));
            }
        }
    }
}

/// IEEE rules in the token that has the value, every bit as before in the others, on every path.
#[test]
fn nans_and_infinities_of_x_stay_in_their_token() {
    let device = device();
    for (m, k, dense) in
        [(3, 192, false), (3, 192, true), (40, 192, false), (40, 192, true), (300, 192, false), (3, 100, false)]
    {
        let operation = Linear { dense, ..linear(m, k, Part { n: 70, r: 12, bias: true, pad: 2 }) };
        let clean = run(&device, &operation, &operation.inputs());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut inputs = operation.inputs();
            let token = m - 2;
            inputs.x[token * k + 65] = bf16::from_f32(bad);
            set_schedule(7);
            let found = run(&device, &operation, &inputs);
            operation.check(&inputs, &found, usize::MAX).unwrap_or_else(|what| panic!("M {m}, K {k}, {bad}: {what}"));
            for other in (0..m).filter(|&other| other != token) {
                assert_eq!(
                    found.y[0][other * 72..][..72],
                    clean.y[0][other * 72..][..72],
                    "M {m}, {bad}, token {other}"
                );
            }
        }
    }
}

/// A scale that is infinite, and one that is no number: whatever multiplies it follows IEEE.
#[test]
fn a_weight_block_that_is_not_finite_stays_in_its_row() {
    let device = device();
    for (m, bad) in [(3, f32::NAN), (40, f32::NAN), (3, f32::INFINITY), (40, f32::INFINITY)] {
        let operation = Linear { dense: true, ..linear(m, 128, Part { n: 70, r: 0, bias: false, pad: 0 }) };
        let mut inputs = operation.inputs();
        inputs.parts[0].weight[33 * 128 + 7] = bad;
        let found = run(&device, &operation, &inputs);
        operation.check(&inputs, &found, usize::MAX).unwrap();
    }
}

/// The results of a kernel with a bug, made by changed inputs, must turn the check red: in the bounded cases and in the
/// exact ones, on every path.
#[test]
fn faults_brought_about_through_the_inputs_are_seen() {
    let device = device();
    for (m, values) in [(3, Values::Ragged), (3, Values::Exact), (40, Values::Ragged), (40, Values::Exact)] {
        let operation = Linear { values, seed: 11, ..linear(m, 320, Part { n: 40, r: 12, bias: true, pad: 0 }) };
        let right = operation.inputs();
        verify(&device, &operation, 1, 1).expect("right inputs pass");
        let seen = |what: &str, change: &dyn Fn(&mut Host)| {
            let mut wrong = operation.inputs();
            change(&mut wrong);
            let output = run(&device, &operation, &wrong);
            assert!(operation.check(&right, &output, usize::MAX).is_err(), "{what} is not seen: M {m}, {values:?}");
        };
        seen("a swapped nibble", &|host| {
            let nf4 = host.parts[0].nf4.take().unwrap();
            let codes = nf4.codes().iter().map(|byte| byte.rotate_left(4)).collect();
            host.parts[0].nf4 =
                Some(Nf4Matrix::from_parts(40, 320, 64, *nf4.code(), codes, nf4.absmax().clone()).unwrap());
        });
        seen("a dropped tile of K", &|host| {
            host.x.chunks_mut(320).for_each(|row| row[256..].fill(bf16::ZERO));
        });
        seen("a wrong stride of B", &|host| {
            let b = host.parts[0].b.clone();
            host.parts[0].b = (0..40 * 12).map(|i| b[(i / 12 * 16 + i % 12).min(b.len() - 1)]).collect();
        });
        seen("a dropped rank", &|host| (0..40).for_each(|n| host.parts[0].b[n * 12 + 11] = bf16::ZERO));
    }
}

#[test]
fn bad_operands_are_errors_that_say_what_was_expected() {
    let device = device();
    let buffer = |len: usize| device.upload(&vec![bf16::ZERO; len]).unwrap();
    let (x, w, a, b, mut y, mut none) =
        (buffer(4 * 64), buffer(8 * 64), buffer(2 * 64), buffer(8 * 2), buffer(4 * 8), buffer(0));
    let mut attempt = |m: usize, k: usize, n: usize, r: usize, ldy: usize| {
        let lora = Some(Lora { r, scale: 1.0, a: a.view(), b: b.view(), adapters: None });
        let mut segments = [Segment { n, weight: Weight::Dense(w.view()), lora, bias: None, y: y.view_mut(), ldy }];
        let input = Input { m, k, x: x.view(), ldx: k, s: None, dropout: None };
        linear_forward(&input, &mut segments, none.view_mut(), device.stream()).unwrap_err().to_string()
    };
    assert!(attempt(4, 64, 8, 2, 8).contains("the workspace has 0 elements, expected at least 32"));
    assert!(attempt(5, 64, 8, 2, 8).contains("x has 256 elements, expected at least 5 rows of 64, 64 apart"));
    assert!(attempt(4, 64, 7, 2, 8).contains("the weight has 512 elements, expected 448"));
    assert!(attempt(4, 64, 8, 3, 8).contains("A has 128 elements, expected 192"));
    assert!(attempt(4, 64, 8, 300, 8).contains("the LoRA rank is 300, expected 1 to 256"));
    assert!(attempt(4, 64, 8, 2, 7).contains("y has a stride of 7, expected at least 8"));
}
