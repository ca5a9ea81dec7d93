//! Checkpoints in NF4: what `quantize` writes reads back as the original quantized on the spot, and what transformers
//! and bitsandbytes wrote (`tests/golden/checkpoint`) dequantizes as it does there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_train::arch::Arch;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::base::{Checkpoint, QuantizeOptions, quantize};
use qlora_train::files::tensor::WeightSource;
use sha2::{Digest, Sha256};

use super::{configs, contents, stored_types};
use trainer_lab::assert_refused::assert_refused;

pub(super) fn options(block_size: usize, double_quant: bool) -> QuantizeOptions {
    QuantizeOptions { nf4: Nf4Options { block_size, double_quant }, skip_modules: vec![], max_shard_bytes: 1 << 30 }
}

/// A quantized model of one layer in an empty directory.
pub(super) fn write(dir: &Path, options: &QuantizeOptions) {
    let original = tempfile::tempdir().unwrap();
    Synthetic::new(Arch { num_layers: 1, ..tiny_arch() }, 1).write(original.path()).unwrap();
    quantize(&Checkpoint::open(original.path()).unwrap(), dir, options, &mut |_| Ok(())).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_reads_back_as_the_original_quantized(
        config in configs(),
        seed: u64,
        stored in stored_types(),
        block in 5..9u32,
        double_quant: bool,
        skip in prop_oneof![Just(None), Just(Some("v_proj")), Just(Some("model.layers.0"))],
        max_shard_bytes in 1..20_000u64,
    ) {
        let (original, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let model = Synthetic { stored, ..Synthetic::new(config, seed) };
        model.write(original.path()).unwrap();
        std::fs::write(original.path().join("tokenizer.json"), "{}").unwrap();
        let before = Checkpoint::open(original.path()).unwrap();
        let output = scratch.path().join("quantized");
        let options = QuantizeOptions {
            skip_modules: skip.map(str::to_owned).into_iter().collect(),
            max_shard_bytes,
            ..options(1 << block, double_quant)
        };
        let done = quantize(&before, &output, &options, &mut |_| Ok(())).unwrap();

        let after = Checkpoint::open(&output).unwrap();
        for (name, shape) in model.config.tensors() {
            let tensor = model.tensor(&name, &shape);
            let module = name.trim_end_matches(".weight");
            let skipped = skip.is_some_and(|skip| module.ends_with(skip) || module.starts_with(&format!("{skip}.")));
            let weight = after.read_weight(&name).unwrap();
            if name.ends_with("_proj.weight") && !skipped {
                let expected = Nf4Matrix::quantize(&tensor.to_f32(), shape[0], shape[1], &options.nf4).unwrap();
                prop_assert_eq!(after.read_f32(&name).unwrap(), expected.dequantize());
                prop_assert_eq!(weight, WeightSource::Nf4(expected));
            } else {
                prop_assert_eq!(weight, WeightSource::Tensor(tensor));
            }
        }
        // If everything is skipped, nothing records the quantization options.
        prop_assert_eq!(after.quantization(), (done.quantized > 0).then_some(options.nf4));
        if done.quantized > 0 {
            prop_assert_eq!(after.skipped_modules(), done.skipped);
        }
        prop_assert_eq!(after.fingerprint().unwrap(), before.fingerprint().unwrap());
        prop_assert_eq!(after.base_name(), before.base_name());
        prop_assert_eq!(after.arch(), before.arch());
        prop_assert_eq!(after.stored_bytes(), done.bytes);
        let files = contents(&output);
        prop_assert_eq!(&files["tokenizer.json"][..], b"{}");
        prop_assert_eq!(files.keys().filter(|name| name.ends_with(".safetensors")).count(), done.files);
        // Nothing but the directory is left.
        prop_assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/checkpoint")
}

#[test]
fn checkpoints_of_transformers_and_bitsandbytes_dequantize_as_they_do_there() {
    type Hashes = BTreeMap<String, BTreeMap<String, String>>;
    let text = std::fs::read(golden().join("theirs.json")).unwrap();
    let variants: BTreeMap<String, Hashes> = serde_json::from_slice(&text).unwrap();
    assert_eq!(variants.len(), 4);
    for (variant, hashes) in variants {
        let checkpoint = Checkpoint::open(&golden().join(format!("theirs-{variant}"))).unwrap();
        let quantized: Vec<&str> = checkpoint.names().filter(|name| checkpoint.is_nf4(name)).collect();
        assert_eq!(quantized, hashes.keys().collect::<Vec<_>>(), "{variant}");
        let double_quant = variant != "bf16-storage";
        assert_eq!(checkpoint.quantization(), Some(Nf4Options { block_size: 64, double_quant }), "{variant}");
        assert!(checkpoint.original().is_none());
        for (name, expected) in &hashes {
            let WeightSource::Nf4(matrix) = checkpoint.read_weight(name).unwrap() else { panic!("{name}") };
            assert_eq!(hex(bytemuck::cast_slice(&matrix.dequantize())), expected["f32"], "{variant} {name}");
            assert_eq!(hex(bytemuck::cast_slice(&matrix.dequantize_bf16())), expected["rounded"], "{variant} {name}");
            assert_eq!(checkpoint.read(name).unwrap().into_f32(), matrix.dequantize());
        }
    }
    let skipped = Checkpoint::open(&golden().join("theirs-f32-storage")).unwrap().skipped_modules();
    let of_mlp = ["gate", "up", "down"].map(|name| format!("model.layers.1.mlp.{name}_proj"));
    assert_eq!(skipped, [&["model.layers.0.self_attn.q_proj".to_owned()][..], &of_mlp].concat());
    assert!(Checkpoint::open(&golden().join("theirs-head")).unwrap().is_nf4("lm_head.weight"));
}

#[test]
fn a_changed_weight_or_record_is_noticed_by_the_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &options(64, true));
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let original = Checkpoint::open(dir.path()).unwrap().original().unwrap().clone();
    let mut changed = whole.clone();
    // The file ends with the codes of down_proj, its 128 absmax and its quant_state of 256 bytes.
    changed[whole.len() - 256 - 128 - 1] ^= 1;
    std::fs::write(&path, changed).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_refused(checkpoint.fingerprint(), &["changed after the model was quantized", "quantize it again"]);

    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(whole[8..header].to_vec()).unwrap();
    for (from, to, words) in [
        (&original.quantized_fingerprint, "0".repeat(64), &["expected 00000000", "quantize it again"][..]),
        (&original.fingerprint, "x".repeat(64), &["`qlora.base_fingerprint`", "64 hex digits"]),
    ] {
        let edited = [&whole[..8], text.replace(from.as_str(), &to).as_bytes(), &whole[header..]].concat();
        std::fs::write(&path, edited).unwrap();
        assert_refused(Checkpoint::open(dir.path()).and_then(|checkpoint| checkpoint.fingerprint()), words);
    }
}

#[test]
fn outputs_and_options_that_are_refused_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    Synthetic::new(tiny_arch(), 1).write(&model).unwrap();
    let checkpoint = Checkpoint::open(&model).unwrap();
    let refused = |output: &Path, options: &QuantizeOptions, words: &[&str]| {
        let before = contents(dir.path());
        assert_refused(quantize(&checkpoint, output, options, &mut |_| Ok(())), words);
        assert_eq!(contents(dir.path()), before);
    };
    let fine = options(64, true);
    refused(&model, &fine, &["model", "not empty", "choose another"]);
    std::fs::write(dir.path().join("file"), "x").unwrap();
    refused(&dir.path().join("file"), &fine, &["file", "not a directory"]);
    refused(&dir.path().join("file/inside"), &fine, &["file/inside", "cannot be made"]);
    for entry in ["nothing", "", "(", "model.layers.7", "embed_tokens"] {
        let options = QuantizeOptions { skip_modules: vec![entry.to_owned()], ..fine.clone() };
        refused(&dir.path().join("new"), &options, &["llm_int8_skip_modules", &format!("{entry:?}"), "down_proj"]);
    }
    // An empty directory is taken, a quantized model is not quantized again.
    let output = dir.path().join("empty");
    std::fs::create_dir(&output).unwrap();
    quantize(&checkpoint, &output, &fine, &mut |_| Ok(())).unwrap();
    let again = Checkpoint::open(&output).unwrap();
    assert_refused(quantize(&again, &dir.path().join("new"), &fine, &mut |_| Ok(())), &["empty", "already quantized"]);
    assert!(!dir.path().join("new").exists());
}

#[test]
fn a_weight_that_is_not_finite_is_refused_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    Synthetic::new(tiny_arch(), 1).write(&model).unwrap();
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
    let checkpoint = Checkpoint::open(&model).unwrap();
    let output = dir.path().join("new");
    assert_refused(quantize(&checkpoint, &output, &options(64, true), &mut |_| Ok(())), &["lm_head.weight", "NaN"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the model");
}
