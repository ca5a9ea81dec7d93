//! AdaLoRA on the CUDA backend, against the CPU backend by what rounding to bf16 explains (`training.rs`), and ranks
//! that are cut there.

use crate::commands::Directory;
use crate::methods::is_within_bounds;
use crate::planning::{planned, steps};
use crate::runs::{HYPER, short_micro_batches, train_short};
use crate::sources::{config, memory, on_device, small_config, spec};
use lab::device::{Tally, set_schedule};
use qlora_train::adapter::Adapter;
use qlora_train::arch::Arch;
use qlora_train::backend::cpu::{Cpu, Isa, Precision};
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{Backend, Batch, Memory as _, StateFormat};
use qlora_train::error::Result;
use qlora_train::files::tensor::{HostTensor, StoredType};
use qlora_train::lora::adalora::scale_rows;
use qlora_train::lora::{AdaLora, LoraSpec, ParamId, ParamKind};
use qlora_train::model::optimizer_step::optimizer_step;
use qlora_train::model::{Activations, Llama, ModelSpec, Source};
use std::collections::BTreeMap;
use trainer_lab::model::{Documents, Memory};

const RANK: usize = 24;
const TARGET: usize = 7;

/// Ranks that are cut after the first and the second of three steps; none, without a number of steps.
pub fn adalora(arch: Arch, total_steps: Option<u64>) -> ModelSpec {
    let mut spec = spec(arch);
    spec.lora.terms.values_mut().for_each(|term| (term.r, term.alpha) = (RANK, 18.0));
    spec.lora.adalora = Some(AdaLora {
        target_r: TARGET,
        tinit: 0,
        tfinal: 1,
        delta_t: 1,
        beta1: 0.85,
        beta2: 0.85,
        orth_reg_weight: 0.5,
        total_steps,
    });
    ModelSpec { activations: Vec::new(), ..spec }
}

/// E begins with random numbers here, so that A and B have gradients from the first step on.
#[test]
fn factors_of_ranks_give_the_cpu_backends_losses_and_gradients() {
    let tally = Tally::new("training, factors of ranks", 1);
    let spec = adalora(config(), None);
    let (expected, _) = is_within_bounds("factors of ranks", &spec, 2);
    let factors = expected.gradients.iter().filter(|(id, _)| id.kind() == ParamKind::LoraE);
    assert_eq!(factors.count(), spec.lora.terms.len());
    tally.case();
}

/// A base with terms of these values.
struct Given {
    memory: Memory,
    values: BTreeMap<ParamId, Vec<f32>>,
}

impl Source for Given {
    fn stored(&self, name: &str) -> StoredType {
        self.memory.stored(name)
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        self.memory.read(name)
    }

    fn lora(&mut self, id: &ParamId, _len: usize, _columns: usize) -> Result<Vec<f32>> {
        Ok(self.values[id].clone())
    }
}

/// After three steps as many triplets are left as are to be, and products compute with A and E as plain LoRA does with
/// their product.
fn cuts<B: Backend>(what: &str, build: impl Fn(&ModelSpec) -> B) {
    let spec = adalora(small_config(), Some(3));
    let documents = short_micro_batches(spec.arch.vocab_size);
    let batches: Vec<Batch> = documents.iter().map(Documents::batch).collect();
    let mut backend = build(&spec);
    let mut model = Llama::build(&mut backend, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
    for step in 0..3 {
        optimizer_step(&mut backend, &mut model, &HYPER, step, 2, 1.0, &batches).unwrap();
    }
    let values = model.param_values(&backend).unwrap().into_iter().map(|(id, _, values)| (id, values));
    let (factors, mut pairs): (BTreeMap<ParamId, Vec<f32>>, BTreeMap<ParamId, Vec<f32>>) =
        values.partition(|(id, _)| id.kind() == ParamKind::LoraE);
    let left = factors.values().flatten().filter(|&&e| e != 0.0).count();
    assert_eq!(left, TARGET * spec.lora.terms.len(), "{what}");
    for (id, e) in &factors {
        scale_rows(pairs.get_mut(&ParamId::a(id.module())).unwrap(), e);
    }
    let loss = model.loss(&mut backend, &batches[0]).unwrap();
    drop((model, backend));

    let mut lora = LoraSpec { adalora: None, ..spec.lora.clone() };
    for (module, term) in &mut lora.terms {
        let (r, scale) = spec.lora.of(module).unwrap();
        term.alpha = AdaLora::scale(term.alpha, r) * r as f64;
        assert_eq!((LoraSpec::scale(term.alpha, r, false) as f32).to_bits(), scale.to_bits(), "{module}");
    }
    let plain = ModelSpec { lora, ..spec.clone() };
    let mut backend = build(&plain);
    let mut source = Given { memory: memory(&spec.arch), values: pairs };
    let model = Llama::build(&mut backend, &mut source, plain, &mut |_| ()).unwrap();
    assert_eq!(model.loss(&mut backend, &batches[0]).unwrap().to_bits(), loss.to_bits(), "{what}");
}

#[test]
fn products_read_what_is_left_of_the_ranks() {
    let tally = Tally::new("ranks that are cut", 1);
    cuts("on the device", on_device);
    cuts("on the CPU", |spec| Cpu::new(spec.run_shape()));
    cuts("on the CPU in bf16", |spec| Cpu::with_precision(spec.run_shape(), Precision::Bf16(Isa::SCALAR)));
    tally.case();
}

/// Ranks are cut by the same numbers under any schedule, wherever activations are.
#[test]
fn every_schedule_cuts_the_same_ranks() {
    use Activations::{Keep, Offload, Recompute};
    let run = |seed, activations: &[Activations]| {
        set_schedule(seed);
        let (activations, states) = (activations.to_vec(), StateFormat::Blockwise8);
        let spec = ModelSpec { activations, states, ..adalora(small_config(), Some(3)) };
        train_short(&mut on_device(&spec), &mut memory(&spec.arch), &spec, 3)
    };
    let first = run(0, &[Recompute; 2]);
    for (seed, activations) in [(1, [Keep; 2]), (7, [Offload, Recompute])] {
        assert!(first == run(seed, &activations), "{activations:?}");
    }
}

#[test]
fn a_run_takes_what_was_planned() {
    let spec = adalora(small_config(), None);
    let bytes = planned(&spec);
    let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, bytes).unwrap();
    steps(&mut cuda, &spec);
    assert_eq!(cuda.bytes(), bytes);
}

/// From settings to an adapter of plain LoRA that is gone on with, before the last cut and after it, and evaluated on
/// the GPU and on the CPU.
#[test]
fn commands_cut_ranks() {
    let directory = Directory::small();
    let line = |out: &str, more: &str| {
        format!(
            "train --json --model model --data rows.jsonl --max-length 64 --lora-r 8 --use-adalora --target-r 3 --tinit 1 \
             --tfinal 1 --learning-rate 2e-2 --max-steps 4 --save-steps 1 --save-total-limit 0 --device cuda \
             --output-dir {out} {more}"
        )
    };
    directory.done(&line("out", ""));
    let bytes = |run: &str| std::fs::read(directory.path(run).join("adapter_model.safetensors")).unwrap();
    for step in [2, 3] {
        let again = format!("again{step}");
        directory.done(&line(&again, &format!("--resume-from-checkpoint out/checkpoint-{step}")));
        assert!(bytes("out") == bytes(&again), "{again}");
    }
    let adapter = Adapter::load(&directory.path("out")).unwrap();
    let pairs = adapter.lora_pairs().unwrap();
    let ranks = pairs.values().map(|pair| pair.a.chunks(pair.k_in).filter(|row| row.iter().any(|&x| x != 0.0)).count());
    assert_eq!(ranks.sum::<usize>(), 3 * pairs.len());
    let eval = |device: &str| {
        let line =
            format!("eval --json --model model --data rows.jsonl --max-length 64 --adapter out --device {device}");
        directory.done(&line).0["loss"].as_f64().unwrap()
    };
    let (cuda, cpu) = (eval("cuda"), eval("cpu --compute f32"));
    assert!((cuda / cpu - 1.0).abs() < 1e-2, "{cuda} on the GPU, {cpu} on the CPU");
}
