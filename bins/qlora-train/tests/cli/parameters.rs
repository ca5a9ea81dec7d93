//! Parameter counts of real models against the figures that PEFT prints for them; no weights are needed.

use qlora_train::arch::{Arch, Projection};
use qlora_train::base::synthetic::tiny_arch;
use qlora_train::lora::LoraSpec;
use qlora_train::model::ModelSpec;
use qlora_train::report::trainable_line;

fn spec(config: Arch, modules: &[Projection]) -> ModelSpec {
    let lora = LoraSpec::uniform(&config, modules, 16, 32.0, 0.0);
    ModelSpec { trainable: true, ..ModelSpec::new(lora, config, qlora_train::backend::Quantization::None, 1) }
}

fn line(spec: &ModelSpec) -> String {
    let trainable = spec.trained_parameters();
    trainable_line(trainable, spec.arch.num_parameters().unwrap() + trainable)
}

#[test]
fn llama_3_1_8b_on_all_linears() {
    let config = Arch {
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14_336,
        num_layers: 32,
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        ..tiny_arch()
    };
    assert_eq!(
        line(&spec(config, &Projection::ALL)),
        "trainable params: 41,943,040 || all params: 8,072,204,288 || trainable%: 0.5196"
    );
}

#[test]
fn llama_7b_on_the_attention_projections() {
    let config = Arch {
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_layers: 32,
        num_heads: 32,
        num_kv_heads: 32,
        head_dim: 128,
        ..tiny_arch()
    };
    let spec = spec(config, &[Projection::Q, Projection::K, Projection::V, Projection::O]);
    assert_eq!(line(&spec), "trainable params: 16,777,216 || all params: 6,755,192,832 || trainable%: 0.2484");
}
