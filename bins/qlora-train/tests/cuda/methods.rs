//! DoRA and modules that are trained whole, against the CPU backend: as other runs are, by what rounding to bf16
//! explains (`training.rs`), and as commands.

use crate::commands::Directory;
use crate::planning::{planned, steps};
use crate::runs::{Apart, HYPER, Trained, short_micro_batches, train_short};
use crate::sources::{
    config, memory, on_device, small_config, spec, with_fused_projections, with_norms_after, with_norms_around,
};
use crate::training::{Bounds, on_cpu, on_cuda};
use lab::device::{Tally, set_schedule};
use qlora_train::arch::{Arch, Projection, QkNorm};
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{Batch, Memory as _, Optimizer, Quantization, Residency, StateFormat};
use qlora_train::lora::{LoraKind, ParamKind};
use qlora_train::model::optimizer_step::{Hyperparameters, optimizer_step};
use qlora_train::model::{Activations, Llama, ModelSpec};
use trainer_lab::model::Documents;

/// Magnitudes beside every low-rank term. One layer has none.
fn dora(arch: Arch) -> ModelSpec {
    let mut spec = spec(arch);
    spec.lora.dropout = 0.0;
    spec.lora.terms.values_mut().for_each(|term| term.kind = LoraKind::Dora);
    spec
}

/// The modules whose names end so, beside the low-rank terms.
fn whole(arch: Arch, ends: &[&str]) -> ModelSpec {
    let mut spec = spec(arch);
    let modules = spec.arch.other_modules().into_iter().map(|(module, _)| module);
    spec.lora.whole = modules.filter(|module| ends.iter().any(|end| module.ends_with(end))).collect();
    assert!(!spec.lora.whole.is_empty());
    spec
}

#[track_caller]
pub fn is_within_bounds(what: &str, spec: &ModelSpec, steps: u64) -> (Trained, Bounds) {
    let expected = on_cpu(spec, steps);
    let bounds = Bounds::measure(spec, steps, &expected);
    bounds.check(what, &Apart::of(&on_cuda(spec, steps), &expected));
    (expected, bounds)
}

/// Weights in NF4 and in 16 bits, with biases, ranks of up to 16 tokens of a forward pass and of more.
#[test]
fn magnitudes_give_the_cpu_backends_losses_and_gradients() {
    let tally = Tally::new("training, magnitudes", 1);
    let nf4 = |block_size, double_quant| Quantization::Nf4 { block_size, double_quant };
    let biased = Arch { biases: Projection::ALL.into(), ..config() };
    for (what, arch, quantization, steps) in [
        ("magnitudes", config(), nf4(64, true), 4),
        ("magnitudes, 16-bit weights, biases", biased.clone(), Quantization::None, 1),
        ("magnitudes, blocks of 128, biases", biased, nf4(128, false), 1),
        ("magnitudes, fused projections", with_fused_projections(config()), nf4(64, true), 1),
    ] {
        let spec = ModelSpec { quantization, activations: Vec::new(), ..dora(arch) };
        let (expected, _) = is_within_bounds(what, &spec, steps);
        let magnitudes = expected.gradients.iter().filter(|(id, _)| id.kind() == ParamKind::Magnitude);
        assert_eq!(magnitudes.count(), spec.lora.terms.len());
        tally.case();
    }
}

/// Another scale of one term, which is one of its norms too, is far outside of the bounds.
#[test]
fn the_bounds_see_another_scale_of_a_term_with_magnitudes() {
    let spec = ModelSpec { activations: Vec::new(), ..dora(config()) };
    let (expected, bounds) = is_within_bounds("magnitudes", &spec, 1);
    let mut scaled = spec.clone();
    let module = scaled.arch.module(1, Projection::Down);
    scaled.lora.terms.entry(module).and_modify(|term| term.alpha /= 2.0);
    assert!(bounds.share(&Apart::of(&on_cuda(&scaled, 1), &expected)) > 2.0);
}

#[test]
fn whole_modules_give_the_cpu_backends_losses_and_gradients() {
    let tally = Tally::new("training, whole modules", 1);
    let all: &[&str] = &["embed_tokens", "lm_head", "norm"];
    let tied = |arch: Arch| Arch { tie_word_embeddings: true, ..arch };
    for (what, arch, ends, steps) in [
        ("all modules", Arch { qk_norm: QkNorm::Head, ..config() }, all, 2),
        ("the output layer", config(), &["lm_head"][..], 1),
        ("the embedding", config(), &["embed_tokens"][..], 1),
        ("all modules, tied tables", tied(config()), all, 1),
        ("norms of rotated heads", Arch { qk_norm: QkNorm::HeadRotated, ..config() }, &["norm"][..], 1),
        ("norms of all queries, after branches", with_norms_after(config()), &["norm"][..], 1),
        ("norms around branches, a scaled embedding", tied(with_norms_around(config())), all, 1),
    ] {
        let spec = ModelSpec { activations: Vec::new(), ..whole(arch, ends) };
        let (expected, _) = is_within_bounds(what, &spec, steps);
        let shares = usize::from(spec.arch.tie_word_embeddings && spec.lora.whole.contains("lm_head"));
        let gradients = expected.gradients.iter().filter(|(id, _)| id.kind() == ParamKind::Whole);
        assert_eq!(gradients.count(), spec.lora.whole.len() - shares, "{what}");
        tally.case();
    }
}

/// Magnitudes and whole modules at once.
pub fn both(num_layers: usize) -> ModelSpec {
    let arch = Arch { num_layers, qk_norm: QkNorm::Head, ..small_config() };
    let mut spec = dora(arch.clone());
    spec.lora.whole = whole(arch, &["embed_tokens", "lm_head", "norm"]).lora.whole;
    spec
}

#[test]
fn every_schedule_and_place_gives_the_same_bits() {
    use Activations::{Keep, Offload, Recompute};
    let run = |seed, activations: &[Activations], residency: &[Residency]| {
        set_schedule(seed);
        let (activations, residency) = (activations.to_vec(), residency.to_vec());
        let spec = ModelSpec { activations, residency, states: StateFormat::Blockwise8, ..both(3) };
        train_short(&mut on_device(&spec), &mut memory(&spec.arch), &spec, 2)
    };
    let first = run(0, &[Recompute; 3], &[]);
    assert!(first.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
    use Residency::{Device, Pinned};
    for (seed, activations, residency) in [
        (1, [Keep; 3], &[][..]),
        (7, [Offload, Recompute, Keep], &[][..]),
        (2, [Recompute; 3], &[Pinned; 3][..]),
        (3, [Keep; 3], &[Device, Pinned, Device][..]),
    ] {
        assert!(first == run(seed, &activations, residency), "{activations:?} {residency:?}");
    }
}

/// After an update the norms are those that a new model finds with the same values, and they are others than before.
#[test]
fn norms_follow_the_terms() {
    let spec = dora(small_config());
    let hyper = Hyperparameters { learning_rate_a: 0.1, learning_rate_b: 0.1, ..HYPER };
    let documents = short_micro_batches(spec.arch.vocab_size);
    let batches: Vec<Batch> = documents.iter().map(Documents::batch).collect();
    let build = || {
        let mut cuda = on_device(&spec);
        let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
        (cuda, model)
    };
    let (mut cuda, mut model) = build();
    optimizer_step(&mut cuda, &mut model, &hyper, 0, 2, 1.0, &batches).unwrap();
    let (mut other, mut put_back) = build();
    for ((_, from), (_, to)) in model.params_mut().into_iter().zip(put_back.params_mut()) {
        let state = cuda.optimizer_state(from).unwrap().unwrap();
        other.restore(to, cuda.param_values(from).unwrap(), state).unwrap();
    }
    let stale = put_back.loss(&mut other, &batches[0]).unwrap();
    put_back.refresh(&mut other).unwrap();
    let expected = put_back.loss(&mut other, &batches[0]).unwrap();
    assert_eq!(model.loss(&mut cuda, &batches[0]).unwrap().to_bits(), expected.to_bits());
    assert_ne!(stale.to_bits(), expected.to_bits());
}

#[test]
fn a_run_takes_what_was_planned() {
    for (activations, quantization, residency) in [
        (Activations::Keep, Quantization::NF4, Vec::new()),
        (Activations::Recompute, Quantization::None, Vec::new()),
        (Activations::Offload, Quantization::NF4, vec![Residency::Pinned; 4]),
    ] {
        let spec = ModelSpec { activations: vec![activations; 4], quantization, residency, ..both(4) };
        let bytes = planned(&spec);
        let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, bytes).unwrap();
        steps(&mut cuda, &spec);
        assert_eq!(cuda.bytes(), bytes, "{activations:?} {quantization:?}");
    }
}

/// From settings to an adapter that is gone on with, and evaluated on the GPU and on the CPU.
#[test]
fn commands_take_magnitudes_and_whole_modules() {
    let directory = Directory::small();
    for (name, more) in [("dora", "--use-dora true"), ("whole", "--modules-to-save embed_tokens,lm_head,norm")] {
        let line = |out: &str, more: &str| {
            format!(
                "train --json --model model --data rows.jsonl --max-length 64 --lora-r 8 --learning-rate 3e-3 --max-steps 4 \
                 --save-steps 2 --device cuda --output-dir {out} {more}"
            )
        };
        directory.done(&line(name, more));
        let again = format!("{name}-again");
        directory.done(&line(&again, &format!("{more} --resume-from-checkpoint {name}/checkpoint-2")));
        let adapter = |run: &str| std::fs::read(directory.path(run).join("adapter_model.safetensors")).unwrap();
        assert!(adapter(name) == adapter(&again), "{name}");
        let eval = |more: &str| {
            let line = format!("eval --json --model model --data rows.jsonl --max-length 64 {more}");
            directory.done(&line).0["loss"].as_f64().unwrap()
        };
        let [cuda, cpu] =
            ["cuda", "cpu --compute f32"].map(|device| eval(&format!("--adapter {name} --device {device}")));
        assert!((cuda / cpu - 1.0).abs() < 1e-2, "{name}: {cuda} on the GPU, {cpu} on the CPU");
        assert!(cuda < eval("--device cuda"), "{name}: nothing was learned");
    }
}
