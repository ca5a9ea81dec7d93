//! Attention over a KV cache against the definition, over documents with any past, under every schedule; and the logits
//! that the next token is chosen by.

use super::attention::soft_caps;
use super::property::checked;
use half::bf16;
use lab::attention_cache::{CacheOperation, Output};
use lab::device::device;
use lab::logits::LogitsOperation;
use lab::operation::{Operation, run, verify};
use proptest::prelude::*;
use proptest::sample;
use qlora_kernels::ops::attention::HEAD_DIMS;
use qlora_kernels::ops::attention_cache::{NewTokens, Shape};
use qlora_kernels::ops::logits::{OutputLayer, logits};
use qlora_kernels::ops::{attention_cache, attention_cache_append};
use qlora_kernels::reference;
use qlora_kernels::shape::AttentionShape;

const SCHEDULES: u64 = 3;

fn operations() -> impl Strategy<Value = CacheOperation> {
    let shape = (1usize..3, 1usize..6, sample::select(&HEAD_DIMS[..]), soft_caps()).prop_map(
        |(kv_heads, group, head_dim, soft_cap)| AttentionShape {
            heads: kv_heads * group,
            kv_heads,
            head_dim,
            soft_cap,
        },
    );
    let documents = prop_oneof![
        // Decoding: one new token each; some documents have ended.
        prop::collection::vec((0usize..300, 0usize..2), 1..8),
        // Prompts, or the next turns.
        prop::collection::vec((0usize..140, 0usize..40), 1..4),
        (380usize..530, 1usize..4).prop_map(|document| vec![document]),
        (Just(0usize), 120usize..150).prop_map(|document| vec![document]),
    ];
    let size = prop_oneof![Just(1.0f32), Just(4.0), Just(0.0)];
    let window = prop_oneof![2 => Just(None), 2 => (1usize..300).prop_map(Some), 1 => (1usize..20).prop_map(Some)];
    (shape, documents, window, 0usize..3, 0usize..300, size, any::<u64>()).prop_map(
        |(shape, mut documents, window, gap, room, size, seed)| {
            if documents.iter().all(|(_, new)| *new == 0) {
                documents.push((3, 1));
            }
            CacheOperation { shape, documents, window, gap, room, size, seed }
        },
    )
}

/// Besides the drawn cases, several documents of which some have more queries than a tile, and one has none.
#[test]
fn attention_over_a_cache_is_within_its_rounding() {
    let plain = [(64, None, None), (64, Some(70), None), (96, None, None), (256, Some(70), None)];
    let with_caps = HEAD_DIMS.map(|head_dim| (head_dim, Some(70), Some(0.7)));
    for (head_dim, window, soft_cap) in plain.into_iter().chain(with_caps) {
        let shape = AttentionShape { head_dim, soft_cap, ..example().shape };
        let operation = CacheOperation { shape, window, ..example() };
        verify(&device(), &operation, operation.seed, SCHEDULES).unwrap();
    }
    checked("attention over a cache", SCHEDULES, 40, operations(), |operation| operation.seed);
}

#[test]
fn logits_are_within_the_rounding_of_f32() {
    let operations = (1usize..40, prop_oneof![1usize..200, Just(64), Just(192)], 1usize..200, any::<u64>())
        .prop_flat_map(|(m, h, vocab, seed)| {
            let tokens = prop::collection::vec(0..m as u32, 0..36);
            tokens.prop_map(move |tokens| LogitsOperation { m, h, vocab, tokens, seed })
        });
    checked("logits", SCHEDULES, 60, operations, |operation| operation.seed);
}

fn example() -> CacheOperation {
    let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim: 64, soft_cap: None };
    CacheOperation {
        shape,
        documents: vec![(200, 1), (0, 9), (127, 2), (31, 0), (260, 7)],
        window: None,
        gap: 1,
        room: 90,
        size: 2.0,
        seed: 3,
    }
}

fn out_of(operation: &CacheOperation, output: &Output, tokens: std::ops::Range<usize>) -> Vec<u16> {
    let width = operation.shape.out();
    output.out[tokens.start * width..tokens.end * width].to_vec()
}

/// The results of a kernel with a wrong place, mask, head or a lost chunk must turn the check red.
#[test]
fn the_check_sees_wrong_places_masks_heads_and_chunks() {
    let device = device();
    let right = example();
    let inputs = right.inputs();
    assert_eq!(right.check(&inputs, &run(&device, &right, &inputs), usize::MAX), Ok(()));
    let red = |what: &str, change: &dyn Fn(&mut lab::attention_cache::Host)| {
        let mut changed = right.inputs();
        change(&mut changed);
        let output = run(&device, &right, &changed);
        assert!(right.check(&inputs, &output, usize::MAX).is_err(), "{what}");
    };
    red("a position too early", &|host| host.positions[0] -= 1);
    red("another document's rows", &|host| host.starts[0] = host.starts[4]);
    red("heads exchanged", &|host| host.qkv.chunks_mut(640).for_each(|row| row[..128].rotate_left(64)));
    let start = inputs.starts[4] as usize;
    let chunk = (start + 128) * 256..(start + 256) * 256;
    red("a chunk lost", &|host| host.cache[chunk.clone()].fill(bf16::ZERO));
}

/// The expected values are those of the reference's attention over the whole documents.
#[test]
fn the_expected_values_are_the_references() {
    for window in [None, Some(7)] {
        let operation = CacheOperation { documents: vec![(0, 40)], window, gap: 0, ..example() };
        let host = operation.inputs();
        let qkv: Vec<f64> = host.qkv.iter().map(|x| x.to_f64()).collect();
        let (mut out, mut lse) = (vec![0.0; 40 * operation.shape.out()], vec![0.0; 40 * operation.shape.heads]);
        reference::attention(&qkv, &[0, 40], operation.shape, window, &mut out, &mut lse);
        let apart = out.iter().zip(&host.expected).map(|(a, (b, _))| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-12, "{apart}");
    }
}

/// Results have equal bits for any rest of the batch, any limit on the documents' lengths, and any place of the rows.
#[test]
fn a_document_is_answered_as_it_would_be_alone() {
    let device = device();
    let all = example();
    let inputs = all.inputs();
    let together = run(&device, &all, &inputs);
    let (width, row) = (attention_cache::width(all.shape), all.shape.qkv());
    for (document, &(past, new)) in all.documents.iter().enumerate().filter(|(_, (_, new))| *new > 0) {
        let alone = CacheOperation { documents: vec![(past, new)], gap: 0, room: 0, ..all.clone() };
        let mut host = alone.inputs();
        let (start, first) = (inputs.starts[document] as usize, inputs.boundaries[document] as usize);
        host.cache[..past * width].copy_from_slice(&inputs.cache[start * width..(start + past) * width]);
        host.qkv.copy_from_slice(&inputs.qkv[first * row..(first + new) * row]);
        let output = run(&device, &alone, &host);
        assert!(output.out == out_of(&all, &together, first..first + new), "document {document}");
    }
}

/// Tokens one by one have the results that they have together.
#[test]
fn tokens_appended_one_by_one_give_what_a_prompt_gives() {
    let device = device();
    let all = CacheOperation { documents: vec![(120, 12)], gap: 0, ..example() };
    let inputs = all.inputs();
    let together = run(&device, &all, &inputs);
    let (row, mut cache) = (all.shape.qkv(), inputs.cache.clone());
    for i in 0..12 {
        let one = CacheOperation { documents: vec![(120 + i, 1)], ..all.clone() };
        let mut host = one.inputs();
        host.cache = cache;
        host.qkv.copy_from_slice(&inputs.qkv[i * row..(i + 1) * row]);
        let output = run(&device, &one, &host);
        assert!(output.out == out_of(&all, &together, i..i + 1), "token {i}");
        cache = output.cache.into_iter().map(bf16::from_bits).collect();
    }
}

/// Many tiles of a long cache do not fit the workspace at once.
#[test]
fn a_workspace_is_used_several_times() {
    let device = device();
    let shape = AttentionShape { heads: 16, kv_heads: 8, head_dim: 128, soft_cap: None };
    // 17 tiles with 64 MiB for 15 of them, though no document is as long as it may get.
    let operation =
        CacheOperation { shape, documents: vec![(10, 130)], window: None, gap: 0, room: 8000, size: 1.0, seed: 5 };
    let bytes = attention_cache::workspace_bytes(&operation.kernel_shape()).unwrap();
    let tile = 8 * 64 * 16 * (128 + 2) * 4;
    assert_eq!(bytes, 15 * tile);
    verify(&device, &operation, 1, 1).unwrap();
}

/// Positions beyond `longest`, or beyond the cache: NaN there, nothing written elsewhere, and the others unchanged.
#[test]
fn places_beyond_the_cache_give_nan_and_write_nothing() {
    let device = device();
    let operation = example();
    let inputs = operation.inputs();
    let right = run(&device, &operation, &inputs);
    for (position, start) in [(200, u32::MAX), (u32::MAX, 1), (1000, 1)] {
        let mut host = operation.inputs();
        (host.positions[0], host.starts[0]) = (position, start);
        let output = run(&device, &operation, &host);
        assert!(out_of(&operation, &output, 0..1).iter().all(|&x| bf16::from_bits(x).is_nan()), "{position} {start}");
        assert!(out_of(&operation, &output, 1..19) == out_of(&operation, &right, 1..19), "{position} {start}");
        let width = attention_cache::width(operation.shape);
        let own = (1 + 200) * width..(1 + 201) * width;
        assert!(output.cache[own.clone()].iter().all(|&x| bf16::from_bits(x).is_nan()));
        assert!(
            output.cache[..own.start] == right.cache[..own.start] && output.cache[own.end..] == right.cache[own.end..]
        );
    }
}

#[test]
fn other_shapes_are_named_errors() {
    let device = device();
    let windowed = |head_dim: usize, heads: usize, kv_heads: usize, longest: usize, rows: usize, window| {
        let attention = AttentionShape { heads, kv_heads, head_dim, soft_cap: None };
        let qkv = device.upload(&vec![bf16::ONE; 3 * attention.qkv()]).unwrap();
        let [boundaries, starts] = [[0u32, 3].as_slice(), &[0]].map(|values| device.upload(values).unwrap());
        let positions = device.upload(&[0u32, 1, 2]).unwrap();
        let mut cache = device.upload(&vec![bf16::ONE; rows]).unwrap();
        let mut out = device.upload(&vec![bf16::ONE; 3 * attention.out()]).unwrap();
        let mut workspace = device.upload(&vec![0u8; 1 << 16]).unwrap();
        let shape = Shape { attention, m: 3, documents: 1, longest };
        let (qkv, boundaries) = (qkv.view(), boundaries.view());
        let new = NewTokens { shape, qkv, boundaries, starts: starts.view(), positions: positions.view(), window };
        let stream = device.stream();
        attention_cache_append(&new, cache.view_mut(), stream)
            .and_then(|()| attention_cache(&new, cache.view(), out.view_mut(), workspace.view_mut(), stream))
            .map_err(|error| error.to_string())
    };
    let call = |head_dim, heads, kv_heads, longest, rows| windowed(head_dim, heads, kv_heads, longest, rows, None);
    assert_eq!(call(64, 2, 1, 3, 3 * 128), Ok(()));
    assert_eq!(windowed(64, 2, 1, 3, 3 * 128, Some(usize::MAX / 2)), Ok(()));
    assert!(windowed(64, 2, 1, 3, 3 * 128, Some(0)).unwrap_err().contains("window"));
    assert!(call(80, 2, 1, 3, 3 * 160).unwrap_err().contains("QK_ERROR_HEAD_DIM"));
    assert!(call(64, 3, 2, 3, 3 * 256).unwrap_err().contains("QK_ERROR_SHAPE"));
    assert!(call(64, 2, 1, 0, 3 * 128).unwrap_err().contains("longest document is 0"));
    assert!(call(64, 2, 1, 1 << 30, 3 * 128).unwrap_err().contains("longest document"));
    assert!(call(64, 2, 1, 3, 100).unwrap_err().contains("expected rows of 128"));
    assert!(call(64, 2, 1, 3, 0).unwrap_err().contains("at least one"));
    assert!(call(64, 0, 1, 3, 128).unwrap_err().contains("H is 0"));
    assert!(call(64, 2, 1, 100_000, 3 * 128).unwrap_err().contains("the workspace has 65536 bytes"));

    let (hidden, head) = (device.upload(&[bf16::ONE; 16]).unwrap(), device.upload(&[bf16::ONE; 24]).unwrap());
    let mut output = device.upload(&[0.0f32; 3]).unwrap();
    let layer = OutputLayer { m: 2, h: 8, vocab: 3, hidden: hidden.view(), head: head.view() };
    let mut call = |tokens: &[u32], vocab: usize| {
        let layer = OutputLayer { vocab, ..layer };
        logits(&layer, tokens, &mut [output.view_mut()], device.stream()).map_err(|error| error.to_string())
    };
    assert_eq!(call(&[1], 3), Ok(()));
    assert!(call(&[2], 3).unwrap_err().contains("token 2"));
    assert!(call(&[0, 1], 3).unwrap_err().contains("1 outputs for 2 tokens"));
    assert!(call(&[1], 4).unwrap_err().contains("the output layer has 24 elements, expected 32"));
}
