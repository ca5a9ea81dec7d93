//! Checkpoints: configs, refusals, round trips, fingerprints and damaged files, on synthetic models.

mod ahead;
mod config;
mod corruption;
mod fingerprint;
mod quantized;
mod quantized_refusals;
mod refusals;
mod round_trip;

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use qlora_train::arch::{Arch, LayerArch, Projection, Rope, RopeScaling};
use qlora_train::base::synthetic::tiny_arch;
use qlora_train::files::tensor::StoredType;

/// Every file of a directory with its bytes.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().unwrap();
    entries.map(|entry| (name(&entry), std::fs::read(entry.path()).unwrap_or_default())).collect()
}

fn stored_types() -> impl Strategy<Value = StoredType> {
    prop_oneof![Just(StoredType::Bf16), Just(StoredType::F16), Just(StoredType::F32)]
}

fn ropes() -> impl Strategy<Value = Rope> {
    let llama3 = (1.0..32.0, 0.5..2.0, 3.0..8.0, 1..10_000usize).prop_map(
        |(factor, low_freq_factor, high_freq_factor, original_max_position_embeddings)| RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        },
    );
    let linear = (1.0..16.0).prop_map(|factor| RopeScaling::Linear { factor });
    let yarn = (1.0..32.0, 8.0..64.0, 0.5..4.0, 1..10_000usize, 0.5..2.0, any::<bool>()).prop_map(
        |(factor, beta_fast, beta_slow, original_max_position_embeddings, attention_factor, truncate)| {
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                attention_factor,
                truncate,
            }
        },
    );
    let scaling = prop_oneof![Just(RopeScaling::Default), linear, llama3, yarn];
    (1.5..1e6, scaling).prop_map(|(theta, scaling)| Rope::new(theta, scaling))
}

/// Small Llamas of odd sizes, with every option that changes the list of tensors.
fn configs() -> impl Strategy<Value = Arch> {
    let sizes = (3..40usize, 1..24usize, 1..24usize, 1..4usize, 1..4usize, 1..4usize, 1..5usize);
    let flags = any::<(bool, bool, bool)>();
    let tokens = (any::<bool>(), proptest::collection::vec(0..3u32, 0..3));
    (sizes, flags, ropes(), tokens, 1..4096usize).prop_map(
        |(sizes, (attention_bias, mlp_bias, tie_word_embeddings), rope, (bos, eos_token_ids), positions)| {
            let (vocab_size, hidden_size, intermediate_size, num_layers, num_kv_heads, group, half_head) = sizes;
            let attention = Projection::ATTENTION.into_iter().filter(|_| attention_bias);
            let mlp = Projection::MLP.into_iter().filter(|_| mlp_bias);
            Arch {
                vocab_size,
                hidden_size,
                intermediate_size,
                num_layers,
                num_heads: num_kv_heads * group,
                num_kv_heads,
                head_dim: 2 * half_head,
                layers: LayerArch::uniform(rope),
                biases: attention.chain(mlp).collect(),
                tie_word_embeddings,
                max_position_embeddings: positions,
                bos_token_id: bos.then_some(1),
                eos_token_ids,
                ..tiny_arch()
            }
        },
    )
}
