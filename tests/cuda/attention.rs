//! Attention and its gradient against the definition, over documents, grouped heads and windows, under every schedule.

use half::bf16;
use lab::attention::AttentionOperation;
use lab::device::{Tally, cases, device};
use lab::operation::{Operation, run, verify};
use proptest::prelude::*;
use proptest::sample;
use proptest::test_runner::{Config, TestRunner};
use qlora_kernels::ops::attention::{Attention, HEAD_DIMS, attention};
use qlora_kernels::shape::AttentionShape;

const SCHEDULES: u64 = 2;

fn operations(backward: bool) -> impl Strategy<Value = AttentionOperation> {
    // Groups of real models: 1 (Llama 2), 3 (Llama 3.2 3B), 4 (8B), 8 (70B); and others.
    let group = prop_oneof![Just(1usize), Just(3), Just(4), Just(8), 2usize..8];
    let shape = (1usize..3, group, sample::select(&HEAD_DIMS[..]), soft_caps()).prop_map(
        |(kv_heads, group, head_dim, soft_cap)| AttentionShape {
            heads: kv_heads * group,
            kv_heads,
            head_dim,
            soft_cap,
        },
    );
    let documents = prop_oneof![
        prop::collection::vec(0usize..90, 1..4),
        (100usize..270).prop_map(|len| vec![len]),
        prop::collection::vec(1usize..4, 10..40),
    ];
    let window = prop_oneof![2 => Just(None), 1 => (1usize..100).prop_map(Some)];
    let size = prop_oneof![Just(1.0f32), Just(4.0), Just(0.0)];
    (shape, documents, window, size, any::<u64>()).prop_map(move |(shape, mut documents, window, size, seed)| {
        if documents.iter().sum::<usize>() == 0 {
            documents.push(5);
        }
        AttentionOperation { shape, documents, window, backward, size, seed }
    })
}

/// Soft caps: the lowest is near the scores of every size, Gemma 2's above most.
pub fn soft_caps() -> impl Strategy<Value = Option<f32>> {
    prop_oneof![3 => Just(None), 1 => sample::select(&[0.5f32, 3.0, 50.0][..]).prop_map(Some)]
}

/// Besides the drawn cases, windows of few keys, in which one key more or less shows, and of more keys than a tile has.
fn checked(name: &'static str, most: u32, backward: bool) {
    let tally = Tally::new(name, SCHEDULES);
    let device = device();
    let few = AttentionShape { heads: 6, kv_heads: 2, head_dim: 64, soft_cap: None };
    // The other widths take shapes whose key heads have splits, and whole and ragged tiles.
    let of = |head_dim| AttentionShape { heads: 3, kv_heads: 1, head_dim, soft_cap: None };
    let capped = |shape, cap| AttentionShape { soft_cap: Some(cap), ..shape };
    let plain = [(few, Some(5)), (few, Some(70)), (of(96), None), (of(256), None), (of(256), Some(20))];
    let with_caps = HEAD_DIMS.map(|head_dim| (capped(of(head_dim), 0.7), None));
    for (shape, window) in plain.into_iter().chain(with_caps).chain([(capped(few, 2.0), Some(70))]) {
        let documents = vec![70, 3, 90];
        let operation = AttentionOperation { shape, documents, window, backward, size: 1.0, seed: 5 };
        verify(&device, &operation, operation.seed, SCHEDULES).unwrap();
        tally.case();
    }
    let mut runner = TestRunner::new(Config { cases: cases(most), failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&operations(backward), |operation| {
        verify(&device, &operation, operation.seed, SCHEDULES).map_err(TestCaseError::fail)?;
        tally.case();
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn attention_is_within_its_rounding() {
    checked("attention", 24, false);
}

#[test]
fn attention_gradients_are_within_their_rounding() {
    checked("attention backward", 20, true);
}

/// Key heads enough that their query heads need no splits, or too few splits for one each: one block then walks over
/// the heads of a group.
#[test]
fn key_heads_enough_to_fill_a_gpu() {
    let (device, tally) = (device(), Tally::new("attention backward, many key heads", 1));
    for (kv_heads, group) in [(256, 2), (128, 3), (100, 5)] {
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim: 64, soft_cap: None };
        let operation =
            AttentionOperation { shape, documents: vec![7, 30], window: None, backward: true, size: 2.0, seed: 9 };
        verify(&device, &operation, 5, 1).unwrap_or_else(|what| panic!("{kv_heads} key heads of {group}: {what}"));
        tally.case();
    }
}

/// One token, which sees itself alone: dV is the sum of dO over the heads, and the numbers make the order of the sum
/// show.
#[test]
fn dk_and_dv_are_sums_in_the_order_of_the_heads() {
    let device = device();
    for heads in [3usize, 8] {
        let shape = AttentionShape { heads, kv_heads: 1, head_dim: 64, soft_cap: None };
        let operation =
            AttentionOperation { shape, documents: vec![1], window: None, backward: true, size: 1.0, seed: 1 };
        let mut inputs = operation.inputs();
        let of_head = |head: usize| match head {
            0 => 2f32.powi(40),
            1 => -(2f32.powi(40)),
            head => head as f32,
        };
        for (head, dout) in inputs.dout.chunks_mut(64).enumerate() {
            dout.fill(bf16::from_f32(of_head(head)));
        }
        let expected = bf16::from_f32((0..heads).map(of_head).fold(0.0, |sum, dout| sum + dout));
        let found = run(&device, &operation, &inputs).values;
        assert!(found[(heads + 1) * 64..].iter().all(|&bits| bits == expected.to_bits()), "{heads} heads");
    }
}

fn example(backward: bool) -> AttentionOperation {
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 64, soft_cap: None };
    AttentionOperation { shape, documents: vec![70, 3, 90], window: Some(40), backward, size: 2.0, seed: 3 }
}

/// The results of a kernel with a wrong mask, a wrong head or a dropped tile must turn the check red.
#[test]
fn the_check_sees_wrong_masks_heads_and_tiles() {
    let device = device();
    for backward in [false, true] {
        let right = example(backward);
        let inputs = right.inputs();
        assert_eq!(right.check(&inputs, &run(&device, &right, &inputs), usize::MAX), Ok(()));
        let capped = |cap| AttentionShape { soft_cap: Some(cap), ..right.shape };
        let wrong = [
            AttentionOperation { shape: capped(2.0), ..right.clone() },
            AttentionOperation { documents: vec![73, 90], ..right.clone() },
            AttentionOperation { documents: vec![70, 4, 89], ..right.clone() },
            AttentionOperation { window: Some(41), ..right.clone() },
            AttentionOperation { window: None, ..right.clone() },
        ];
        for wrong in wrong {
            // Another mask over these numbers.
            let output = run(&device, &wrong, &wrong.inputs());
            assert!(right.check(&inputs, &output, usize::MAX).is_err(), "{wrong:?}");
        }
        let mut swapped = right.inputs();
        swapped.qkv.chunks_mut(right.shape.qkv()).for_each(|row| row[..128].rotate_left(64));
        assert!(right.check(&inputs, &run(&device, &right, &swapped), usize::MAX).is_err(), "heads exchanged");
        let mut dropped = right.inputs();
        let width = right.shape.qkv();
        dropped.qkv[159 * width + 128..160 * width].fill(bf16::ZERO);
        assert!(right.check(&inputs, &run(&device, &right, &dropped), usize::MAX).is_err(), "a key dropped");
    }
}

/// A cap that is left out, or another one, is seen.
#[test]
fn the_check_sees_another_soft_cap() {
    let device = device();
    for backward in [false, true] {
        let with = |soft_cap| {
            let operation = example(backward);
            AttentionOperation { shape: AttentionShape { soft_cap, ..operation.shape }, ..operation }
        };
        let right = with(Some(1.5));
        let inputs = right.inputs();
        let seen = |soft_cap| right.check(&inputs, &run(&device, &with(soft_cap), &inputs), usize::MAX).is_err();
        assert_eq!([Some(1.5), None, Some(1.6), Some(1.4)].map(seen), [false, true, true, true]);
    }
}

/// Attention never looks at another document, whose values may be NaN.
#[test]
fn documents_do_not_see_each_other() {
    let device = device();
    let operation = example(false);
    let inputs = operation.inputs();
    let clean = run(&device, &operation, &inputs);
    let mut spoiled = operation.inputs();
    let width = operation.shape.qkv();
    spoiled.qkv[70 * width..73 * width].fill(bf16::from_f32(1e30));
    let output = run(&device, &operation, &spoiled);
    let out = operation.shape.out();
    assert!(output.values[..70 * out] == clean.values[..70 * out], "the document before");
    assert!(output.values[73 * out..] == clean.values[73 * out..], "the document after");
    assert!(output.values[70 * out..73 * out] != clean.values[70 * out..73 * out]);
}

#[test]
fn other_head_dims_and_bad_shapes_are_named_errors() {
    let device = device();
    let capped = |head_dim: usize, heads: usize, kv_heads: usize, window, soft_cap| {
        let shape = AttentionShape { heads, kv_heads, head_dim, soft_cap };
        let qkv = device.upload(&vec![bf16::ONE; 3 * shape.qkv()]).unwrap();
        let boundaries = device.upload(&[0u32, 3]).unwrap();
        let mut out = device.upload(&vec![bf16::ONE; 3 * shape.out()]).unwrap();
        let mut lse = device.upload(&vec![0.0f32; 3 * heads]).unwrap();
        let input = Attention { shape, m: 3, qkv: qkv.view(), boundaries: boundaries.view(), window };
        let result = attention(&input, out.view_mut(), lse.view_mut(), device.stream());
        result.map_err(|error| error.to_string())
    };
    let call = |head_dim, heads, kv_heads, window| capped(head_dim, heads, kv_heads, window, None);
    assert_eq!(call(64, 2, 1, None), Ok(()));
    assert_eq!(capped(64, 2, 1, None, Some(50.0)), Ok(()));
    for cap in [0.0, -1.0, f32::INFINITY, f32::NAN] {
        assert!(capped(64, 2, 1, None, Some(cap)).unwrap_err().contains("a soft cap of"), "{cap}");
    }
    assert!(call(80, 2, 1, None).unwrap_err().contains("QK_ERROR_HEAD_DIM"));
    assert!(call(64, 3, 2, None).unwrap_err().contains("QK_ERROR_SHAPE"));
    assert!(call(64, 2, 1, Some(0)).unwrap_err().contains("window"));
}
