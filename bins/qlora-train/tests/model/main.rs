//! The model on the CPU backend against the f64 oracle, against its own plan, and in steps of one process and of many.

mod oracle;
mod steps;

use qlora_train::arch::Arch;
use qlora_train::backend::{Quantization, StateFormat};
use qlora_train::lora::LoraSpec;
use qlora_train::model::ModelSpec;

fn spec(config: Arch, tokens: usize) -> ModelSpec {
    ModelSpec {
        lora: LoraSpec::uniform(&config, &config.names.all().collect::<Vec<_>>(), 3, 2.1, 0.0),
        arch: config,
        quantization: Quantization::Nf4 { block_size: 64, double_quant: true },
        trainable: true,
        states: StateFormat::F32,
        activations: Vec::new(),
        optimizer_on_host: Default::default(),
        residency: Vec::new(),
        token_tile: None,
        tokens,
        positions: tokens,
        prompts: Default::default(),
        seed: 11,
    }
}
