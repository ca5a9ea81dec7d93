//! Writes the logits of a model with an adapter, for comparison with other programs:
//! `cargo run --release -p qlora-train --example logits -- MODEL ADAPTER ROWS.jsonl OUT.safetensors`
//!
//! The base is not quantized and everything is computed in f32. OUT holds `input_ids.N` (I64) and `logits.N` (F32) for
//! the first four rows; tests/golden/check_adapter.py reads it.

use qlora_train::backend::Batch;
use qlora_train::backend::cpu::{Cpu, Precision};
use qlora_train::config::{Settings, TooLong};
use qlora_train::data::{DataOptions, MicroBatch, load_once};
use qlora_train::error::{Context, Error, Result};
use qlora_train::infer::{Adapters, InferenceJob, InferenceModel};
use qlora_train::model::ModelSpec;
use qlora_train::session::{Device, Loaded};
use safetensors::{Dtype, tensor::TensorView};
use std::path::Path;

const ROWS: usize = 4;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, rows, out] = &arguments[..] else {
        return Err(Error::Refused("expected MODEL ADAPTER ROWS.jsonl OUT.safetensors".to_owned()));
    };
    let settings =
        Settings::load(None, &[("model".to_owned(), model.clone()), ("quantization".to_owned(), "none".to_owned())])?;
    let base = Loaded::open(&settings)?;
    let vocab_size = base.checkpoint.arch().vocab_size;
    let options = DataOptions {
        max_length: 2048,
        too_long: TooLong::Error,
        vocab_size,
        eos_token_ids: Vec::new(),
        ..DataOptions::default()
    };
    let mut rows = load_once(&[rows.into()], &|| base.open_tokenizer(), &options)?.rows;
    rows.truncate(ROWS);
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let build = |spec: &ModelSpec, _| Ok(Cpu::new(spec.run_shape()));
    let (adapters, job) = (Adapters::one_by_one(vec![adapter.into()]), InferenceJob::Loss);
    let mut loaded = InferenceModel::load(
        &settings,
        &base.checkpoint,
        &adapters,
        job,
        longest,
        longest,
        &Device::Cpu(Precision::F32),
        build,
    )?;
    let mut tensors = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let batch = MicroBatch::new([row]);
        let all: Vec<usize> = (0..row.len()).collect();
        let logits = loaded.model.logits(&mut loaded.backend, &Batch::from(&batch), &all)?;
        let ids: Vec<u8> = row.input_ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
        let values: Vec<u8> = logits.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((format!("input_ids.{index}"), Dtype::I64, vec![row.len()], ids));
        tensors.push((format!("logits.{index}"), Dtype::F32, vec![row.len(), vocab_size], values));
    }
    let views: Vec<(String, TensorView)> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.clone(), view))
        })
        .collect::<std::result::Result<_, _>>()
        .context(|| out.clone())?;
    safetensors::serialize_to_file(views, None, Path::new(out)).context(|| out.clone())
}
