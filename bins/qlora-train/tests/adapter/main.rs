//! Adapters: files as PEFT writes them, round trips, rsLoRA folding, refusals, and which base they belong to.

mod base;
mod files;
mod fold;
mod refusals;
mod weighted_sum;

use std::collections::BTreeMap;

use proptest::prelude::*;
use qlora_kernels::rng::RngStream;
use qlora_train::adapter::{Adapter, AdapterConfig, BaseQuantization, Provenance};
use qlora_train::arch::{Arch, Projection};
use qlora_train::base::synthetic::tiny_arch;
use qlora_train::base::{BaseFingerprint, BaseName};
use qlora_train::lora::{LoraSpec, ParamId};

fn base() -> BaseName {
    BaseName { name: "org/tiny-llama".into(), revision: Some("0123abc".into()), is_hub: true }
}

/// A base of which both fingerprints begin so, that of the tensors that quantizing leaves ends otherwise.
fn fingerprint(digits: &str) -> BaseFingerprint {
    BaseFingerprint { whole: digits.repeat(32), unquantized: digits.repeat(31) + "00" }
}

fn provenance() -> Provenance {
    Provenance {
        base: base(),
        base_fingerprint: fingerprint("ab"),
        quantization: BaseQuantization::nf4(64, false, 0),
        chat_template_sha256: Some("cd".repeat(32)),
    }
}

/// Random values for `modules` of every layer of the tiny Llama.
fn adapter(r: usize, alpha: f64, modules: &[Projection], seed: u64) -> Adapter {
    let llama = tiny_arch();
    let lora = LoraSpec::uniform(&llama, modules, r, alpha, 0.05);
    let mut adapter = Adapter::new(AdapterConfig::new(&base(), &llama, &lora), &provenance());
    let mut stream = RngStream::new(seed, 0);
    let mut matrix = |rows: usize, columns: usize| (0..rows * columns).map(|_| stream.uniform() - 0.5).collect();
    for layer in 0..llama.num_layers {
        for &module in modules {
            let (n_out, k_in) = module.shape(&llama);
            let path = llama.module(layer, module);
            adapter.insert(&ParamId::a(path.as_str()), [r, k_in], matrix(r, k_in));
            adapter.insert(&ParamId::b(path), [n_out, r], matrix(n_out, r));
        }
    }
    adapter
}

/// Any choice of linears but none.
fn module_lists() -> impl Strategy<Value = Vec<Projection>> {
    prop::sample::subsequence(Projection::ALL.to_vec(), 1..=7)
}

/// `scale · B · A` of every pair, in f64.
fn updates(adapter: &Adapter) -> BTreeMap<String, Vec<f64>> {
    let pairs = adapter.lora_pairs().unwrap();
    let update = |pair: &qlora_train::adapter::LoraPair| {
        let at = |row: usize, column: usize| -> f64 {
            let term = |i: usize| f64::from(pair.b[row * pair.r + i]) * f64::from(pair.a[i * pair.k_in + column]);
            f64::from(pair.scale) * (0..pair.r).map(term).sum::<f64>()
        };
        (0..pair.n_out).flat_map(|row| (0..pair.k_in).map(move |column| (row, column))).map(|(r, c)| at(r, c)).collect()
    };
    pairs.iter().map(|(module, pair)| (module.clone(), update(pair))).collect()
}

fn with_layers(num_layers: usize) -> Arch {
    Arch { num_layers, ..tiny_arch() }
}
