//! Norms, rotary embedding, SwiGLU and the embedding against `reference`, under every schedule, on widths that
//! vectorize and that do not.

use crate::property;
use half::bf16;
use lab::device::{device, to_bf16};
use lab::layer::{HeadNorms, Kind, Layer, Turn};
use lab::operation::{Operation, verify};
use proptest::prelude::*;
use qlora_kernels::ops::{self, HeadNorm, HeadRotation, Residual, RopeTable};
use qlora_kernels::shape::AttentionShape;
use qlora_kernels::shape::GateActivation::{self, GeluTanh, Silu};

const SCHEDULES: u64 = 2;

fn checked(name: &'static str, kinds: impl Strategy<Value = Kind>, widths: impl Strategy<Value = usize>) {
    let layers = (kinds, 1usize..20, widths, any::<u64>());
    let layers = layers.prop_map(|(kind, m, width, seed)| Layer { kind, m, width, seed });
    property::checked(name, SCHEDULES, 32, layers, |layer| layer.seed);
}

/// Widths on and off the vector's 8.
fn widths(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1usize..most, (1usize..most / 8).prop_map(|groups| groups * 8)]
}

#[test]
fn norms_are_within_their_rounding() {
    let kinds = prop_oneof![Just(Kind::Norm), Just(Kind::AddNorm), Just(Kind::AddNormInPlace), Just(Kind::NormAfter)];
    checked("rms_norm", kinds, widths(5000));
}

#[test]
fn norm_gradients_are_within_their_rounding() {
    checked("rms_norm backward", any::<bool>().prop_map(|accumulate| Kind::NormBackward { accumulate }), widths(5000));
}

/// Heads of which a warp takes several, and of which every lane takes several groups; rows on and off the vector; with
/// a rotation behind the norm or before it, and without one.
fn head_norms(name: &'static str, kind: fn(HeadNorms) -> Kind) {
    // Both kernels, both widths of a norm and all rotations, of whole heads and of parts, however few cases are drawn
    // below.
    let turned = |kept| [false, true].map(|before_norm| Some(Turn { before_norm, kept }));
    for whole in [false, true] {
        let cases = [(7, vec![None]), (64, [&[None], &turned(0)[..], &turned(32)].concat()), (24, turned(6).to_vec())];
        for (width, turn) in
            cases.into_iter().flat_map(|(width, turns)| turns.into_iter().map(move |turn| (width, turn)))
        {
            let kind = kind(HeadNorms { heads: 2, kv_heads: 1, whole, turn });
            verify(&device(), &Layer { kind, m: 5, width, seed: 1 }, 1, SCHEDULES).unwrap();
        }
    }
    let kinds = |turn: BoxedStrategy<Option<Turn>>| {
        (1usize..4, 1usize..4, any::<bool>(), turn).prop_map(move |(kv_heads, per_kv, whole, turn)| {
            kind(HeadNorms { heads: kv_heads * per_kv, kv_heads, whole, turn })
        })
    };
    let widths = || prop_oneof![Just(64usize), Just(128), Just(256), (1usize..129).prop_map(|n| 8 * n)];
    checked(name, kinds(Just(None).boxed()), prop_oneof![1usize..70, widths()]);
    let turn = any::<bool>().prop_map(|before_norm| Some(Turn { before_norm, kept: 0 }));
    checked(name, kinds(turn.boxed()), prop_oneof![(1usize..35).prop_map(|half| 2 * half), widths()]);
}

#[test]
fn norms_of_heads_are_within_their_rounding() {
    head_norms("head_norm", Kind::HeadNorm);
}

#[test]
fn gradients_of_norms_of_heads_are_within_their_rounding() {
    head_norms("head_norm backward", Kind::HeadNormBackward);
}

#[test]
fn rotary_embedding_is_within_its_rounding() {
    // A part of each head, on the vector and off it, however few cases are drawn below.
    for (width, kept) in [(128, 32), (24, 6)] {
        let kind = Kind::Rope { heads: 3, pad: 8, kept, inverse: false };
        verify(&device(), &Layer { kind, m: 5, width, seed: 1 }, 1, SCHEDULES).unwrap();
    }
    let kinds = (1usize..6, prop_oneof![Just(0usize), 1usize..20], any::<bool>())
        .prop_map(|(heads, pad, inverse)| Kind::Rope { heads, pad, kept: 0, inverse });
    checked("rope", kinds, prop_oneof![(1usize..70).prop_map(|half| 2 * half), Just(64), Just(128)]);
}

fn activations() -> impl Strategy<Value = GateActivation> {
    prop_oneof![Just(Silu), Just(GeluTanh)]
}

#[test]
fn swiglu_is_within_its_rounding() {
    checked("swiglu", activations().prop_map(Kind::Swiglu), widths(1000));
}

#[test]
fn swiglu_gradients_are_within_their_rounding() {
    let kinds = (activations(), any::<bool>());
    let kinds = kinds.prop_map(|(activation, recompute)| Kind::SwigluBackward { activation, recompute });
    checked("swiglu backward", kinds, widths(1000));
}

/// The results of a kernel with a bug must turn the check red.
#[test]
fn the_check_sees_wrong_results() {
    let device = device();
    let norms = |whole, turn| HeadNorms { heads: 2, kv_heads: 1, whole, turn };
    let turn = |before_norm| Some(Turn { before_norm, kept: 8 });
    let kinds = [
        Kind::AddNorm,
        Kind::NormBackward { accumulate: true },
        Kind::HeadNorm(norms(false, None)),
        Kind::HeadNormBackward(norms(true, turn(true))),
        Kind::Rope { heads: 2, pad: 3, kept: 0, inverse: false },
        Kind::SwigluBackward { activation: Silu, recompute: true },
    ];
    for kind in kinds {
        let operation = Layer { kind, m: 3, width: 40, seed: 9 };
        let inputs = operation.inputs();
        let good = lab::operation::run(&device, &operation, &inputs);
        assert_eq!(operation.check(&inputs, &good, usize::MAX), Ok(()));
        // The inputs of another run: a mask, a row or a term that is left out shows at least as much.
        let other = Layer { seed: 10, ..operation.clone() };
        assert!(other.check(&other.inputs(), &good, usize::MAX).is_err(), "{kind:?}");
        for i in [0, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            // Two units in the last place of bf16.
            bad[i] ^= 2;
            assert!(operation.check(&inputs, &bad, usize::MAX).is_err(), "{kind:?}, element {i}");
        }
    }
    let rope = |inverse| Kind::Rope { heads: 2, pad: 3, kept: 0, inverse };
    let norm = |whole, turn| Kind::HeadNorm(norms(whole, turn));
    // The results of one kind, on the inputs that it shares with the other.
    for (wrong, right) in [
        (rope(true), rope(false)),
        (Kind::Swiglu(Silu), Kind::Swiglu(GeluTanh)),
        (norm(true, None), norm(false, None)),
        (norm(false, turn(true)), norm(false, turn(false))),
        (norm(false, None), norm(false, turn(false))),
    ] {
        let [wrong, right] = [wrong, right].map(|kind| Layer { kind, m: 3, width: 40, seed: 9 });
        let output = lab::operation::run(&device, &wrong, &wrong.inputs());
        assert!(right.check(&right.inputs(), &output, usize::MAX).is_err(), "{right:?}");
    }
}

#[test]
fn embedding_copies_rows_times_a_scale_and_marks_unknown_ids() {
    let device = device();
    for (h, scale) in [(1usize, 1.0f32), (7, 12.3), (8, 1.0), (576, -0.7), (1031, 1.0)] {
        let (vocab, ids) = (50usize, [0u32, 49, 7, 50, 7, u32::MAX]);
        let table: Vec<bf16> = to_bf16(&(0..vocab * h).map(|i| i as f32).collect::<Vec<_>>());
        let (device_ids, device_table) = (device.upload(&ids).unwrap(), device.upload(&table).unwrap());
        let mut out = device.upload(&vec![bf16::ONE; ids.len() * h]).unwrap();
        ops::embedding(device_ids.view(), device_table.view(), vocab, h, scale, out.view_mut(), device.stream())
            .unwrap();
        let out = device.download(&out).unwrap();
        for (row, &id) in out.chunks(h).zip(&ids) {
            match table.chunks(h).nth(id as usize) {
                Some(expected) => {
                    let expected: Vec<bf16> = expected.iter().map(|x| bf16::from_f32(x.to_f32() * scale)).collect();
                    assert_eq!(row, expected);
                }
                None => assert!(row.iter().all(|x| x.is_nan()), "id {id}"),
            }
        }
    }
}

#[test]
fn a_position_beyond_the_table_becomes_nan() {
    let device = device();
    let mut x = device.upload(&[bf16::ONE; 16]).unwrap();
    let positions = device.upload(&[1u32, 2]).unwrap();
    let (cosines, sines) = (device.upload(&[1.0f32; 8]).unwrap(), device.upload(&[0.0f32; 8]).unwrap());
    let table = RopeTable { half: 4, cosines: cosines.view(), sines: sines.view() };
    ops::rope(x.view_mut(), 8, 1, 8, positions.view(), table, false, device.stream()).unwrap();
    let x = device.download(&x).unwrap();
    assert!(x[..8].iter().all(|&x| x == bf16::ONE) && x[8..].iter().all(|x| x.is_nan()), "{x:?}");
    // Rotations of q and k; v is not rotated.
    let (x, weight) = (device.upload(&[bf16::ONE; 48]).unwrap(), device.upload(&[1.0f32; 8]).unwrap());
    for before_norm in [false, true] {
        let mut y = device.upload(&[bf16::ZERO; 48]).unwrap();
        let input = HeadNorm {
            shape: AttentionShape { heads: 1, kv_heads: 1, head_dim: 8, soft_cap: None },
            eps: 1e-5,
            x: x.view(),
            q_weight: weight.view(),
            k_weight: weight.view(),
            rotation: Some(HeadRotation { positions: positions.view(), table, before_norm }),
        };
        ops::head_norm(input, y.view_mut(), device.stream()).unwrap();
        let y = device.download(&y).unwrap();
        let (known, unknown) = (&y[..24], &y[24..]);
        assert!(known.iter().all(|&y| y == bf16::ONE) && unknown[..16].iter().all(|y| y.is_nan()), "{y:?}");
        assert!(unknown[16..].iter().all(|&y| y == bf16::ONE), "{y:?}");
    }
}

#[test]
fn wrong_lengths_are_refused_with_the_operation_and_the_shape() {
    let device = device();
    let x = device.upload(&[bf16::ONE; 24]).unwrap();
    let weight = device.upload(&[1.0f32; 8]).unwrap();
    let mut y = device.upload(&[bf16::ONE; 16]).unwrap();
    let result = ops::rms_norm(Residual::Plain(x.view()), weight.view(), 1e-5, y.view_mut(), device.stream());
    let error = result.unwrap_err().to_string();
    assert!(error.contains("rms_norm") && error.contains("M 2, H 8") && error.contains("24"), "{error}");
    let mut out = device.upload(&[bf16::ONE; 24]).unwrap();
    let result = ops::rms_norm(Residual::Plain(x.view()), weight.view(), 0.0, out.view_mut(), device.stream());
    assert!(result.unwrap_err().to_string().contains("QK_ERROR_VALUE"));
}
