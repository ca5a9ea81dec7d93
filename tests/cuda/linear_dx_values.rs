//! Edges of dX: tiles, no tokens, values that are no numbers, adapters that must not see each other, inputs with a
//! seeded fault, bad operands.

use half::bf16;
use lab::device::{cases, device, set_schedule};
use lab::linear::{Linear, Part, SENTINEL, Values};
use lab::linear_dx::{Host, LinearDx, Output};
use lab::operation::{Operation, run, verify};
use qlora_kernels::nf4::{Absmax, Nf4Matrix};
use qlora_kernels::ops::linear::{Dropout, Lora, Weight};
use qlora_kernels::ops::linear_backward::{Backward, SegmentBackward};
use qlora_kernels::ops::linear_dx;
use qlora_kernels::ops::linear_dx::InputGradient;

fn part(n: usize, r: usize) -> Part {
    Part { n, r, bias: false, pad: n.next_multiple_of(8) - n }
}

fn operation(m: usize, k: usize, parts: Vec<Part>) -> LinearDx {
    LinearDx { linear: Linear::new(m, k, parts), accumulate: false, dropout: None }
}

fn with(operation: &LinearDx, change: impl FnOnce(&mut Linear)) -> LinearDx {
    let mut operation = operation.clone();
    change(&mut operation.linear);
    operation
}

/// The large tiles need a large product; their sums are those of the small ones, which a slice of the tokens takes.
#[test]
fn a_tokens_dx_does_not_depend_on_the_tile_that_it_falls_in() {
    let device = device();
    let k = 3072 - 64;
    let mask =
        Some(Dropout { p: 0.3, seed: 3, dropout_id: 18, dropout_step: 7, first_token: 100, step_on_device: None });
    for dense in [false, true] {
        for (adapters, dropout) in [(0, None), (0, mask), (2, mask)] {
            let mut large = operation(1000, k, vec![part(70, 16), part(9, 5)]);
            (large.linear.dense, large.linear.adapters, large.accumulate, large.dropout) =
                (dense, adapters, true, dropout);
            let mut inputs = large.inputs();
            let whole = run(&device, &large, &inputs);
            let (first, tokens) = (333, 50);
            let rows = |values: &[bf16], width: usize| values[first * width..(first + tokens) * width].to_vec();
            inputs.dx = rows(&inputs.dx, k);
            (inputs.dy[0], inputs.dy[1]) = (rows(&inputs.dy[0], 72), rows(&inputs.dy[1], 16));
            if adapters > 0 {
                inputs.index = inputs.index[first..first + tokens].to_vec();
            }
            let mut small = with(&large, |linear| linear.m = tokens);
            small.dropout = dropout.map(|dropout| Dropout { first_token: 100 + first as u64, ..dropout });
            let slice = run(&device, &small, &inputs);
            let is_equal = whole.dx[first * k..(first + tokens) * k] == slice.dx[..];
            assert!(is_equal, "dense {dense}, adapters {adapters}, {dropout:?}");
            small.check(&inputs, &slice, 3 * k).unwrap();
        }
    }
}

#[test]
fn no_tokens_are_no_dx() {
    let device = device();
    for (k, dense) in [(128, false), (128, true), (100, false)] {
        let none = with(&operation(0, k, vec![part(40, 12)]), |linear| linear.dense = dense);
        assert_eq!(run(&device, &none, &none.inputs()), Output { t: vec![], dx: vec![] });
        // Buffers that are larger than M says stay as they are.
        let one = with(&none, |linear| linear.m = 1);
        let mut buffers = one.upload(&device, &one.inputs()).unwrap();
        none.launch(&mut buffers, device.stream()).unwrap();
        let output = one.download(&device, &buffers).unwrap();
        assert!(output.t.iter().chain(&output.dx).all(|&bits| bits == SENTINEL.to_bits()));
    }
}

/// IEEE rules in the token that has the value, every bit as before in the others, on both paths.
#[test]
fn nans_and_infinities_of_dy_stay_in_their_token() {
    let device = device();
    for (m, k, dense) in [(3, 192, false), (40, 192, true), (200, 192, false), (3, 100, false)] {
        let mut operation = with(&operation(m, k, vec![part(70, 12), part(5, 0)]), |linear| linear.dense = dense);
        operation.dropout =
            Some(Dropout { p: 0.5, seed: 1, dropout_id: 2, dropout_step: 3, first_token: 4, step_on_device: None });
        let clean = run(&device, &operation, &operation.inputs());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut inputs = operation.inputs();
            let token = m - 2;
            inputs.dy[0][token * 72 + 65] = bf16::from_f32(bad);
            set_schedule(7);
            let found = run(&device, &operation, &inputs);
            operation.check(&inputs, &found, usize::MAX).unwrap_or_else(|what| panic!("M {m}, K {k}, {bad}: {what}"));
            for other in (0..m).filter(|&other| other != token) {
                assert_eq!(found.dx[other * k..][..k], clean.dx[other * k..][..k], "M {m}, {bad}, token {other}");
            }
        }
    }
}

/// Rows of one adapter are, bit for bit, those of a run in which all other rows have none: whatever the others'
/// adapters hold.
#[test]
fn rows_of_an_adapter_never_see_another() {
    let device = device();
    for seed in 0..u64::from(cases(6)) {
        for (m, k, dense) in [(5, 192, false), (90, 192, false), (60, 128, true), (20, 100, false)] {
            let shape = with(&operation(m, k, vec![part(70, 20), part(33, 70)]), |linear| {
                (linear.dense, linear.adapters, linear.seed) = (dense, 3, seed);
            });
            let mut inputs = shape.inputs();
            let together = run(&device, &shape, &inputs);
            shape.check(&inputs, &together, usize::MAX).unwrap();
            let index = inputs.index.clone();
            for own in 0..3 {
                inputs.index = index.iter().map(|&adapter| if adapter == own { own } else { -1 }).collect();
                let alone = run(&device, &shape, &inputs);
                let tokens: Vec<usize> = (0..m).filter(|&token| index[token] == own).collect();
                for &token in &tokens {
                    assert_eq!(
                        together.dx[token * k..][..k],
                        alone.dx[token * k..][..k],
                        "adapter {own}, token {token}"
                    );
                }
                // Another adapter that is no number leaves them as they are too.
                let mut broken = shape.inputs();
                let other = (own as usize + 1) % 3;
                for (part, host) in shape.linear.parts.iter().zip(&mut broken.parts) {
                    host.a[other * part.r * k..][..part.r * k].fill(bf16::NAN);
                    host.b[other * part.n * part.r..][..part.n * part.r].fill(bf16::INFINITY);
                }
                let beside_broken = run(&device, &shape, &broken);
                for &token in &tokens {
                    assert_eq!(together.dx[token * k..][..k], beside_broken.dx[token * k..][..k], "token {token}");
                }
            }
        }
    }
}

/// In large tiles too, which need a large product.
#[test]
fn rows_of_a_large_tile_never_see_an_adapter_that_is_not_theirs() {
    let device = device();
    let k = 3072 - 64;
    let shape = with(&operation(1000, k, vec![part(9, 5)]), |linear| linear.adapters = 3);
    let mut inputs = shape.inputs();
    let clean = run(&device, &shape, &inputs);
    inputs.parts[0].a[5 * k..10 * k].fill(bf16::NAN);
    let beside_broken = run(&device, &shape, &inputs);
    for (token, &adapter) in inputs.index.iter().enumerate() {
        let is_equal = clean.dx[token * k..][..k] == beside_broken.dx[token * k..][..k];
        assert_eq!(is_equal, adapter != 1, "token {token}, adapter {adapter}");
    }
}

/// The results of a kernel with a bug, made by changed inputs, must turn the check red: in the bounded cases and in the
/// exact ones, on both paths.
#[test]
fn faults_of_dx_brought_about_through_the_inputs_are_seen() {
    let device = device();
    for (k, values) in [(320, Values::Ragged), (320, Values::Exact), (100, Values::Ragged), (100, Values::Exact)] {
        let mut operation = with(&operation(40, k, vec![part(70, 12), part(24, 8)]), |linear| {
            (linear.values, linear.seed, linear.block_size) = (values, 11, if k == 100 { 32 } else { 64 });
            (linear.transposed, linear.double_quant) = (false, false);
        });
        operation.dropout =
            Some(Dropout { p: 0.5, seed: 1, dropout_id: 2, dropout_step: 3, first_token: 4, step_on_device: None });
        operation.accumulate = true;
        let right = operation.inputs();
        verify(&device, &operation, 1, 1).expect("right inputs pass");
        let seen = |what: &str, changed: &LinearDx, change: &dyn Fn(&mut Host)| {
            let mut wrong = operation.inputs();
            change(&mut wrong);
            let output = run(&device, changed, &wrong);
            assert!(operation.check(&right, &output, usize::MAX).is_err(), "{what} is not seen: K {k}, {values:?}");
        };
        let rebuilt = |host: &mut Host, change: &dyn Fn(Vec<u8>, Vec<f32>) -> (Vec<u8>, Vec<f32>)| {
            let nf4 = host.parts[0].nf4.take().unwrap();
            let Absmax::F32(absmax) = nf4.absmax().clone() else { panic!("without double quantization") };
            let (codes, absmax) = change(nf4.codes().to_vec(), absmax);
            let size = nf4.block_size();
            host.parts[0].nf4 =
                Some(Nf4Matrix::from_parts(70, k, size, *nf4.code(), codes, Absmax::F32(absmax)).unwrap());
        };
        seen("a dropped N tail", &operation, &|host| {
            host.dy[0].chunks_mut(72).for_each(|row| row[64..70].fill(bf16::ZERO));
        });
        seen("a dropped segment", &operation, &|host| host.dy[1].chunks_mut(24).for_each(|row| row.fill(bf16::ZERO)));
        seen("rows n and n + 1 exchanged", &operation, &|host| {
            host.dy[0].chunks_mut(72).for_each(|row| row.swap(6, 7));
        });
        seen("a transposed absmax index", &operation, &|host| {
            rebuilt(host, &|codes, absmax| {
                let columns = absmax.len() / 70;
                let transposed = (0..absmax.len()).map(|i| match i {
                    i if i < 70 * columns => absmax[i % 70 * columns + i / 70],
                    i => absmax[i],
                });
                (codes, transposed.collect())
            });
        });
        seen("a swapped nibble", &operation, &|host| {
            rebuilt(host, &|codes, absmax| (codes.iter().map(|byte| byte.rotate_left(4)).collect(), absmax));
        });
        // T is right, and the low-rank term has the scale once more.
        seen("a scale applied twice", &operation, &|host| {
            let scale = host.parts[0].scales[0];
            host.parts[0].a.iter_mut().for_each(|a| *a = bf16::from_f32(a.to_f32() * scale));
        });
        seen("a dropped rank", &operation, &|host| host.parts[0].a[11 * k..12 * k].fill(bf16::ZERO));
        let other = |dropout_step| LinearDx {
            dropout: operation.dropout.map(|dropout| Dropout { dropout_step, ..dropout }),
            ..operation.clone()
        };
        seen("another mask", &other(9), &|_| ());
        seen("no mask", &LinearDx { dropout: None, ..operation.clone() }, &|_| ());
        seen("dX overwritten", &LinearDx { accumulate: false, ..operation.clone() }, &|_| ());
    }
}

/// A graph that is replayed finds the step of its mask there.
#[test]
fn the_step_of_dxs_mask_may_be_in_device_memory() {
    let device = device();
    for (m, k) in [(3, 192), (200, 192), (1000, 3072), (3, 100)] {
        let step_on_device = None;
        let dropout = |dropout_step| {
            Some(Dropout { p: 0.5, seed: 1, dropout_id: 2, dropout_step, first_token: 4, step_on_device })
        };
        let of_step = |step| LinearDx { dropout: dropout(step), ..operation(m, k, vec![part(70, 12)]) };
        let (by_value, other) = (of_step(3), of_step(9));
        let expected = run(&device, &by_value, &by_value.inputs());
        let on_device = Host { step_on_device: Some(3), ..other.inputs() };
        assert!(run(&device, &other, &on_device) == expected, "{m} × {k}: the step in device memory is not read");
        assert!(run(&device, &other, &other.inputs()) != expected, "{m} × {k}: any step draws the same mask");
    }
}

#[test]
fn bad_operands_of_dx_are_errors_that_say_what_was_expected() {
    let device = device();
    let buffer = |len: usize| device.upload(&vec![bf16::ZERO; len]).unwrap();
    let (dy, w, a, b, mut gradient, mut none) =
        (buffer(4 * 8), buffer(8 * 64), buffer(2 * 64), buffer(8 * 2), buffer(4 * 64), buffer(0));
    let mut attempt = |m: usize, n: usize, r: usize, lddx: usize, p: f32| {
        let lora = Some(Lora { r, scale: 1.0, a: a.view(), b: b.view(), adapters: None });
        let segments = [SegmentBackward { n, weight: Weight::Dense(w.view()), lora, dy: dy.view(), lddy: 8 }];
        let dropout =
            Some(Dropout { p, seed: 0, dropout_id: 0, dropout_step: 0, first_token: 0, step_on_device: None });
        let backward = Backward { m, k: 64, t: None, dropout };
        let gradient = InputGradient { dx: gradient.view_mut(), lddx, accumulate: false };
        linear_dx(&backward, &segments, gradient, none.view_mut(), device.stream()).unwrap_err().to_string()
    };
    assert!(attempt(4, 8, 2, 64, 0.0).contains("the workspace has 0 elements, expected at least 32"));
    assert!(attempt(5, 8, 2, 64, 0.0).contains("dy has 32 elements, expected at least 5 rows of 8, 8 apart"));
    assert!(attempt(4, 7, 2, 64, 0.0).contains("the weight has 512 elements, expected 448"));
    assert!(attempt(4, 8, 3, 64, 0.0).contains("A has 128 elements, expected 192"));
    assert!(attempt(4, 8, 2, 63, 0.0).contains("dx has a stride of 63, expected at least 64"));
    assert!(attempt(4, 8, 2, 64, 1.0).contains("dropout is 1, expected at least 0 and less than 1"));
}
