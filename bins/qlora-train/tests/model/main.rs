//! The model on the CPU backend against the f64 oracle, against its own plan, and in steps of one process and of many.

mod oracle;
mod steps;

use qlora_train::arch::Arch;
use qlora_train::backend::Quantization;
use qlora_train::lora::LoraSpec;
use qlora_train::model::ModelSpec;

fn spec(config: Arch, tokens: usize) -> ModelSpec {
    let lora = LoraSpec::uniform(&config, &config.names.all().collect::<Vec<_>>(), 3, 2.1, 0.0);
    ModelSpec { trainable: true, seed: 11, ..ModelSpec::new(lora, config, Quantization::NF4, tokens) }
}
