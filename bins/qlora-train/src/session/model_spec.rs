//! The model that the settings describe, and how a base's weights are held.

use crate::adapter::QuantizationRecord;
use crate::arch::{LlamaConfig, Module};
use crate::backend::{Quantization, StateFormat};
use crate::base::Checkpoint;
use crate::config::{self, Settings};
use crate::error::Result;
use crate::model::{LoraSpec, ModelSpec};
use crate::refuse;

/// Refuses 16-bit weights where the checkpoint holds NF4.
pub fn check_quantization(settings: &Settings, checkpoint: &Checkpoint) -> Result<()> {
    if settings.quantization == config::Quantization::Off && checkpoint.quantization().is_some() {
        refuse!(
            "`quantization`: found none, but the weights of {} are already quantized ({}); expected nf4, or the original \
             16-bit model",
            checkpoint.dir().display(),
            quantization_record(settings, checkpoint)
        );
    }
    Ok(())
}

/// The linear layers that get an adapter, in the order of [`Module::ALL`].
pub fn target_modules(settings: &Settings) -> Vec<Module> {
    Module::ALL.into_iter().filter(|module| settings.lora_target_modules.contains(module.name())).collect()
}

/// The model that the settings describe, for batches of `tokens` and rows of `positions` tokens.
pub fn model_spec(settings: &Settings, checkpoint: &Checkpoint, tokens: usize, positions: usize) -> ModelSpec {
    let quantization = quantization(settings, checkpoint);
    model_spec_of(settings, checkpoint.config(), quantization, tokens, positions)
}

/// The model that the settings describe, for a base of this shape.
pub fn model_spec_of(
    settings: &Settings,
    config: &LlamaConfig,
    quantization: Quantization,
    tokens: usize,
    positions: usize,
) -> ModelSpec {
    let r = settings.lora_r;
    let divisor = if settings.use_rslora { (r as f64).sqrt() } else { r as f64 };
    let scale = (settings.lora_alpha / divisor) as f32;
    let dropout = settings.lora_dropout as f32;
    let mut lora = LoraSpec::uniform(config, &target_modules(settings), r, scale, dropout);
    lora.states = match settings.optim {
        config::Optim::Adamw => StateFormat::F32,
        config::Optim::Adamw8bit => StateFormat::Blockwise8,
    };
    ModelSpec {
        config: config.clone(),
        quantization,
        lora,
        trainable: true,
        recompute: false,
        offload: false,
        tokens,
        positions,
        seed: settings.seed,
    }
}

/// Quantization of the frozen linear weights: as a quantized checkpoint stores them, else as the settings say.
pub fn quantization(settings: &Settings, checkpoint: &Checkpoint) -> Quantization {
    of_settings(&effective_settings(settings, checkpoint))
}

/// The settings with the block size and double quantization of a quantized checkpoint.
pub fn effective_settings(settings: &Settings, checkpoint: &Checkpoint) -> Settings {
    let mut effective = settings.clone();
    if let Some(options) = checkpoint.quantization() {
        effective.quantization = config::Quantization::Nf4;
        (effective.nf4_block_size, effective.double_quant) = (options.block_size, options.double_quant);
    }
    effective
}

/// Quantization of the frozen linear weights by the settings.
pub fn of_settings(settings: &Settings) -> Quantization {
    match settings.quantization {
        config::Quantization::Nf4 => {
            Quantization::Nf4 { block_size: settings.nf4_block_size, double_quant: settings.double_quant }
        }
        config::Quantization::Off => Quantization::None,
    }
}

/// How the base is quantized, for people and for the adapter's metadata.
pub fn quantization_record(settings: &Settings, checkpoint: &Checkpoint) -> QuantizationRecord {
    let unquantized_layers = checkpoint.skipped_modules().len();
    match quantization(settings, checkpoint) {
        Quantization::Nf4 { block_size, double_quant } => QuantizationRecord {
            quantization: "nf4".to_owned(),
            nf4_block_size: Some(block_size),
            double_quant: Some(double_quant),
            unquantized_layers,
        },
        Quantization::None => QuantizationRecord {
            quantization: "none".to_owned(),
            nf4_block_size: None,
            double_quant: None,
            unquantized_layers,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_a_record_quantize_alike() {
        for (quantization, block, double) in [("none", "64", "true"), ("nf4", "64", "true"), ("nf4", "128", "false")] {
            let given = [("quantization", quantization), ("nf4_block_size", block), ("double_quant", double)];
            let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let settings = Settings::load(None, &given).unwrap();
            let record = QuantizationRecord {
                quantization: quantization.to_owned(),
                nf4_block_size: (quantization == "nf4").then(|| block.parse().unwrap()),
                double_quant: (quantization == "nf4").then(|| double.parse().unwrap()),
                unquantized_layers: 0,
            };
            let again = Settings::load(None, &record.settings()).unwrap();
            assert_eq!(of_settings(&again), of_settings(&settings));
        }
    }
}
