//! Edges of the low-rank path: the dropout mask bit by bit, adapters that do not see each other, batches cut into
//! pieces, tiles, inputs with a seeded fault, bad operands.

use half::bf16;
use lab::device::{Tally, device, set_schedule};
use lab::low_rank::{Host, LowRank, LowRankPart, Output, factors};
use lab::operation::{Operation, run, verify};
use qlora_kernels::ops::linear::{Lora, Weight};
use qlora_kernels::ops::linear_backward::{Backward, SegmentBackward};
use qlora_kernels::ops::lora_down;
use qlora_kernels::ops::lora_gradients::{ForwardInputs, PairGradient, lora_gradients};

fn low_rank(m: usize, k: usize, parts: &[(usize, usize)]) -> LowRank {
    let parts = parts.iter().map(|&(n, r)| LowRankPart { n, r, pad: 0 }).collect();
    LowRank { m, k, pad_x: 0, parts, adapters: 0, dropout: 0.0, exact: false, given_t: true, seed: 9 }
}

fn identity(size: usize) -> Vec<bf16> {
    (0..size * size).map(|i| bf16::from_f32(f32::from(u8::from(i % (size + 1) == 0)))).collect()
}

/// With ones and identities S is the mask, and so is dA: both must be that of `rng::Dropout`, which the CPU trains
/// with.
#[test]
fn the_mask_is_that_of_philox_in_s_and_in_da() {
    let device = device();
    // The tensor cores' kernels, the gradients' alone, and the generic ones.
    for (size, p) in [(128, 0.3), (128, 0.999), (256, 0.5), (104, 0.1), (101, 0.3), (3, 0.5)] {
        let operation = LowRank { dropout: p, seed: size as u64, ..low_rank(size, size, &[(size, size)]) };
        let mut inputs = operation.inputs();
        inputs.x.fill(bf16::ONE);
        let part = &mut inputs.parts[0];
        (part.a, part.b, part.dy, part.scale) = (identity(size), identity(size), identity(size), 1.0);
        part.da.fill(0.0);
        let output = run(&device, &operation, &inputs);
        // The step in device memory, and another one as a parameter.
        let (forward, backward) = (inputs.forward, inputs.backward);
        inputs.step_on_device = forward.map(|dropout| dropout.dropout_step);
        for dropout in [&mut inputs.forward, &mut inputs.backward].into_iter().flatten() {
            dropout.dropout_step = !dropout.dropout_step;
        }
        assert!(run(&device, &operation, &inputs) == output, "{size}, p {p}: the step in device memory is not read");
        inputs.step_on_device = None;
        assert!(run(&device, &operation, &inputs) != output, "{size}, p {p}: any step draws the same mask");
        (inputs.forward, inputs.backward) = (forward, backward);
        let tokens: Vec<usize> = (0..size).collect();
        let mask = factors(inputs.forward.unwrap(), &tokens, size);
        let columns = operation.columns();
        for (i, &factor) in mask.iter().enumerate() {
            let (token, feature) = (i / size, i % size);
            let place = format!("token {token}, feature {feature} of {size}, p {p}");
            assert_eq!(output.s[token * columns + feature], bf16::from_f64(factor).to_bits(), "S: {place}");
            assert_eq!(f32::from_bits(output.da[0][i]), factor as f32, "dA: {place}");
        }
        assert!(mask.contains(&0.0), "nothing is dropped");
    }
}

/// The rows of S or T that are of `adapter`.
fn rows_of(matrix: &[u16], columns: usize, index: &[i32], adapter: i32) -> Vec<Vec<u16>> {
    matrix.chunks(columns).zip(index).filter(|(_, i)| **i == adapter).map(|(row, _)| row.to_vec()).collect()
}

/// Bit for bit the result of a run in which all other rows have no adapter, and with whatever the others' rows and
/// matrices hold.
#[test]
fn an_adapters_rows_never_see_anothers() {
    let device = device();
    let tally = Tally::new("adapters alone", 1);
    // K of the tensor cores, of the gradients' kernel only, and odd.
    for (k, n, dropout, seed) in [(128, 72, 0.0, 1), (128, 72, 0.25, 2), (104, 40, 0.25, 3), (75, 33, 0.25, 4)] {
        let operation =
            LowRank { adapters: 3, dropout, seed, ..low_rank(600, k, &[(n, 16), (2 * n, 5), (n, 0), (n, 40)]) };
        let right = operation.inputs();
        let together = verify(&device, &operation, seed, 2).unwrap();
        for adapter in 0..3i32 {
            let mut alone = operation.inputs();
            alone.index.iter_mut().filter(|i| **i != adapter).for_each(|i| *i = -1);
            let mut poisoned = operation.inputs();
            let spoil = |host: &mut Host| {
                for (token, _) in right.index.iter().enumerate().filter(|(_, i)| **i != adapter) {
                    host.x[token * k..][..k].fill(bf16::NAN);
                    for part in &mut host.parts {
                        let n = part.dy.len() / operation.m;
                        part.dy[token * n..][..n].fill(bf16::INFINITY);
                    }
                }
                for part in &mut host.parts {
                    for matrix in [&mut part.a, &mut part.b] {
                        let (len, own) = (matrix.len() / 3, adapter as usize);
                        (0..3 * len).filter(|i| i / len != own).for_each(|i| matrix[i] = bf16::NAN);
                    }
                }
            };
            spoil(&mut poisoned);
            for (what, inputs) in [("others without an adapter", alone), ("others that are no numbers", poisoned)] {
                set_schedule(seed ^ adapter as u64);
                let found = run(&device, &operation, &inputs);
                let of = |output: &Output| {
                    let pair = |matrices: &[Vec<u32>]| -> Vec<Vec<u32>> {
                        let of = |matrix: &Vec<u32>| {
                            matrix[matrix.len() / 3 * adapter as usize..][..matrix.len() / 3].to_vec()
                        };
                        matrices.iter().map(of).collect()
                    };
                    let rows = |matrix: &[u16]| rows_of(matrix, operation.columns(), &right.index, adapter);
                    (rows(&output.s), rows(&output.t), pair(&output.da), pair(&output.db))
                };
                assert!(of(&found) == of(&together), "K {k}, adapter {adapter}, {what}");
                tally.case();
            }
        }
    }
}

fn s_of(operation: &LowRank, inputs: &Host) -> Vec<u16> {
    let device = device();
    let mut buffers = operation.upload(&device, inputs).unwrap();
    let done = operation.with(&mut buffers, |_, _, input, segments, _, (s, _)| {
        lora_down(input, segments, s.view_mut(), device.stream())
    });
    done.unwrap();
    operation.download(&device, &buffers).unwrap().s
}

/// Blocks of many tokens have all columns of S, up to 64, and those of few 16: the bits are the same, and those of each
/// segment alone.
#[test]
fn s_does_not_depend_on_the_columns_of_a_block() {
    let (m, few, k) = (2048, 40, 576);
    for ranks in [&[16usize, 16][..], &[16, 16, 16], &[8, 5, 8], &[64, 20, 0, 16]] {
        let parts: Vec<(usize, usize)> = ranks.iter().map(|&r| (8, r)).collect();
        let operation = low_rank(m, k, &parts);
        let columns = operation.columns();
        let mut inputs = operation.inputs();
        let whole = s_of(&operation, &inputs);
        inputs.x.truncate(few * k);
        assert_eq!(s_of(&low_rank(few, k, &parts), &inputs)[..], whole[..few * columns], "{ranks:?}");
        let mut first = 0;
        for (i, &r) in ranks.iter().enumerate().filter(|(_, r)| **r > 0) {
            let mut inputs = operation.inputs();
            let part = inputs.parts.remove(i);
            inputs.parts = vec![part];
            let alone = s_of(&low_rank(m, k, &[(8, r)]), &inputs);
            let own = r.next_multiple_of(8);
            let among: Vec<u16> = whole.chunks(columns).flat_map(|row| row[first..][..own].to_vec()).collect();
            assert!(alone == among, "segment {i} of {ranks:?}");
            assert!(alone.iter().any(|&bits| bits != 0));
            first += own;
        }
        assert_eq!(first, columns);
    }
}

/// Micro-batches of 256 tokens, added up in order, are the whole batch, bit for bit; so the order of the sums is that
/// of the chunks.
#[test]
fn a_batch_cut_at_chunks_gives_the_same_bits() {
    let device = device();
    for (k, n) in [(136, 80), (50, 21)] {
        for adapters in [0, 2] {
            let operation = LowRank { dropout: 0.2, adapters, ..low_rank(700, k, &[(n, 12), (n, 70)]) };
            let inputs = operation.inputs();
            let whole = run(&device, &operation, &inputs);
            let mut gradients: Vec<(Vec<f32>, Vec<f32>)> =
                inputs.parts.iter().map(|part| (part.da.clone(), part.db.clone())).collect();
            for (first, m) in [(0, 256), (256, 256), (512, 188)] {
                let piece = LowRank { m, ..operation.clone() };
                let mut host = operation.inputs();
                host.x = host.x[first * k..][..m * k].to_vec();
                host.index = host.index[first..][..m].to_vec();
                for dropout in [&mut host.forward, &mut host.backward].into_iter().flatten() {
                    dropout.first_token += first as u64;
                }
                for (part, (da, db)) in host.parts.iter_mut().zip(&gradients) {
                    part.dy = part.dy[first * n..][..m * n].to_vec();
                    (part.da, part.db) = (da.clone(), db.clone());
                }
                let found = run(&device, &piece, &host);
                let columns = operation.columns();
                assert_eq!(found.s[..], whole.s[first * columns..][..m * columns]);
                assert_eq!(found.t[..], whole.t[first * columns..][..m * columns]);
                let floats = |bits: &[u32]| bits.iter().map(|&bits| f32::from_bits(bits)).collect();
                gradients = found.da.iter().zip(&found.db).map(|(da, db)| (floats(da), floats(db))).collect();
            }
            for (i, (da, db)) in gradients.iter().enumerate() {
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(bits(da) == whole.da[i] && bits(db) == whole.db[i], "K {k}, adapters {adapters}, segment {i}");
            }
        }
    }
}

/// Many columns give one block all tokens; few give each a group of chunks, whose sums a second kernel adds. The bits
/// are the same.
#[test]
fn a_gradient_does_not_depend_on_how_many_columns_there_are() {
    let device = device();
    let (m, n) = (600, 97 * 128);
    let wide = LowRank { seed: 4, ..low_rank(m, 8, &[(n, 8)]) };
    let mut inputs = wide.inputs();
    let found = run(&device, &wide, &inputs);
    let (first, columns) = (128 * 40 + 8, 160);
    let part = &mut inputs.parts[0];
    part.dy = (0..m * columns).map(|i| part.dy[i / columns * n + first + i % columns]).collect();
    (part.b, part.db) = (part.b[first * 8..][..columns * 8].to_vec(), part.db[first * 8..][..columns * 8].to_vec());
    let slice = run(&device, &low_rank(m, 8, &[(columns, 8)]), &inputs);
    assert!(found.db[0][first * 8..][..columns * 8] == slice.db[0][..]);
}

#[test]
fn no_tokens_leave_the_gradients_as_they_are() {
    let device = device();
    for (k, n) in [(128, 40), (75, 33)] {
        for given_t in [false, true] {
            let none = LowRank { dropout: 0.5, given_t, ..low_rank(0, k, &[(n, 12)]) };
            let inputs = none.inputs();
            let output = run(&device, &none, &inputs);
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!((&output.da[0], &output.db[0]), (&bits(&inputs.parts[0].da), &bits(&inputs.parts[0].db)));
        }
    }
}

/// The results of a kernel with a bug, made by changed inputs, must turn the check red: in the bounded cases and in the
/// exact ones, on both paths.
#[test]
fn faults_brought_about_through_the_inputs_are_seen() {
    let device = device();
    for (k, n, exact) in [(128, 72, false), (128, 72, true), (75, 33, false), (75, 33, true)] {
        let operation = LowRank { exact, dropout: 0.5, adapters: 2, seed: 11, ..low_rank(300, k, &[(n, 12), (n, 24)]) };
        let right = operation.inputs();
        verify(&device, &operation, 1, 1).expect("right inputs pass");
        let seen = |what: &str, change: &dyn Fn(&mut Host)| {
            let mut wrong = operation.inputs();
            change(&mut wrong);
            let output = run(&device, &operation, &wrong);
            assert!(operation.check(&right, &output, usize::MAX).is_err(), "{what} is not seen: K {k}, exact {exact}");
        };
        // The last token that has an adapter goes missing in one of the sums over tokens; S and T stay right.
        let last = right.index.iter().rposition(|&i| (0..2).contains(&i)).unwrap();
        let whole = run(&device, &operation, &right);
        for da in [true, false] {
            let mut short = operation.inputs();
            short.index[last] = -1;
            let short = run(&device, &operation, &short);
            let mut spliced = whole.clone();
            if da {
                spliced.da = short.da
            } else {
                spliced.db = short.db
            }
            assert!(operation.check(&right, &spliced, usize::MAX).is_err(), "a dropped token, dA {da}: K {k}, {exact}");
        }
        seen("a dropped tail of tokens", &|host| host.parts[1].dy[last * n..].fill(bf16::ZERO));
        seen("a mask that differs between forward and backward", &|host| {
            host.backward.as_mut().unwrap().dropout_step ^= 1
        });
        seen("a mask that starts at another token", &|host| host.backward.as_mut().unwrap().first_token += 1);
        seen("no dropout in the backward pass", &|host| host.backward = None);
        seen("a scale applied twice", &|host| host.scales.iter_mut().for_each(|scale| *scale *= *scale));
        seen("an adapter's scale for another", &|host| host.scales[0] *= 2.0);
        seen("a token with its neighbor's adapter", &|host| {
            let at = host.index.windows(2).position(|pair| pair[0] != pair[1]).unwrap();
            host.index[at] = host.index[at + 1];
        });
        seen("a transposed B", &|host| {
            let b = host.parts[0].b.clone();
            host.parts[0].b =
                (0..2 * n * 12).map(|i| b[i / (n * 12) * n * 12 + i % 12 * n + i % (n * 12) / 12]).collect();
        });
        seen("gradients that are overwritten", &|host| host.parts[0].da.fill(0.0));
    }
}

#[test]
fn bad_operands_are_errors_that_say_what_was_expected() {
    let device = device();
    let buffer = |len: usize| device.upload(&vec![bf16::ZERO; len]).unwrap();
    let (x, w, a, b, dy, s) = (buffer(4 * 64), buffer(8 * 64), buffer(2 * 64), buffer(16), buffer(32), buffer(32));
    let (mut da, mut db) = (device.upload(&[0.0f32; 128]).unwrap(), device.upload(&[0.0f32; 16]).unwrap());
    let mut none = device.upload::<u8>(&[]).unwrap();
    let mut attempt = |k: usize, r: usize, pair: bool, s_len: usize, count: usize| {
        let lora = pair.then_some(Lora { r, scale: 1.0, a: a.view(), b: b.view(), adapters: None });
        let segment = SegmentBackward { n: 8, weight: Weight::Dense(w.view()), lora, dy: dy.view(), lddy: 8 };
        let backward = Backward { m: 4, k, t: None, dropout: None };
        let s = device.upload(&vec![bf16::ZERO; s_len]).unwrap();
        let inputs = ForwardInputs { x: x.view(), ldx: k, s: s.view().into() };
        let mut gradients = vec![PairGradient { da: Some(da.view_mut()), db: Some(db.view_mut()) }];
        gradients.truncate(count);
        lora_gradients(&backward, &[segment], &inputs, &mut gradients, none.view_mut(), device.stream())
            .unwrap_err()
            .to_string()
    };
    let has = |error: String, expected: &str| assert!(error.contains(expected), "{error}");
    has(attempt(64, 2, true, 32, 1), "the workspace has 0 bytes, expected at least 64");
    has(attempt(64, 2, true, 32, 0), "0 pairs of gradients, expected one for each of 1 segments");
    has(attempt(64, 2, false, 0, 1), "segment 0 has no LoRA pair");
    has(attempt(64, 2, true, 31, 1), "s has 31 elements, expected 32");
    has(attempt(64, 300, true, 32, 1), "the LoRA rank is 300, expected 1 to 256");
    assert_eq!(s.view().len(), 32);
}
