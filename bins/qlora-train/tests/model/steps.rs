//! Steps of the optimizer: gone on with, of several ranks, and with weights of tokens.

use crate::spec;
use qlora_train::arch::Arch;
use qlora_train::backend::cpu::Cpu;
use qlora_train::backend::{Batch, Optimizer, OptimizerState, StateFormat};
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::comm::{Communicator, Signs, SingleProcess};
use qlora_train::lora::LoraKind;
use qlora_train::model::optimizer_step::{
    Accumulated, Hyperparameters, StepReport, accumulate, optimizer_step, update,
};
use qlora_train::model::{Llama, ModelSpec};
use trainer_lab::model::{Documents, Memory};
use trainer_lab::ranks::{Sums, of_ranks};

const HYPER: Hyperparameters = Hyperparameters {
    learning_rate_a: 1e-2,
    learning_rate_b: 1e-2,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    max_grad_norm: 0.5,
    ..Hyperparameters::NONE
};

/// The report of a step, with the gradients and the values after it.
type Stepped = (StepReport, Vec<Vec<f32>>, Vec<Vec<f32>>);

/// A step of all ranks over these batches, as one of them does it.
fn stepped(spec: &ModelSpec, comm: &mut dyn Communicator, accumulation: usize, batches: &[Batch]) -> Stepped {
    let mut cpu = Cpu::new(spec.run_shape());
    let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), 4));
    let mut model = Llama::build(&mut cpu, &mut memory, spec.clone(), &mut |_| ()).unwrap();
    let begun = Accumulated::default();
    let done = accumulate(&mut cpu, &mut model, comm, 3, accumulation, batches, begun, &Signs::default);
    let (done, signal) = done.unwrap();
    assert_eq!((done.micro_batches, signal), (batches.len(), None));
    let report = update(&mut cpu, &mut model, comm, &HYPER, 3, accumulation, 1.0, batches, done.loss).unwrap();
    let gradients = model.params_mut().into_iter().map(|(_, param)| cpu.gradient(param).unwrap()).collect();
    let values = model.param_values(&cpu).unwrap().into_iter().map(|(_, _, values)| values).collect();
    (report, gradients, values)
}

/// The results of `world` ranks for a step over `all`, each in a thread of its own, and their sums.
fn of_step(spec: &ModelSpec, world: usize, all: &[Batch], overlaps: bool) -> (Vec<Stepped>, Sums) {
    of_ranks(world, overlaps, |comm| stepped(spec, comm, all.len(), all))
}

/// Two updates, or one, a copy of values and states into a new model, and the other: the same bits. Tensors of both
/// kinds, as the small ones keep f32 states.
#[test]
fn values_and_states_that_are_put_back_continue_the_run() {
    let config = Arch { hidden_size: 576, intermediate_size: 1500, num_layers: 1, ..tiny_arch() };
    let documents = Documents::random(&[20, 11], config.vocab_size, 3);
    let hyper = Hyperparameters {
        learning_rate_a: 1e-3,
        learning_rate_b: 1e-2,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        max_grad_norm: 0.5,
    };
    for states in [StateFormat::F32, StateFormat::Blockwise8] {
        let mut spec = spec(config.clone(), 31);
        spec.states = states;
        let build = || {
            let mut cpu = Cpu::new(spec.run_shape());
            let mut memory = Memory::new(Synthetic::new(config.clone(), 5));
            let model = Llama::build(&mut cpu, &mut memory, spec.clone(), &mut |_| ()).unwrap();
            (cpu, model)
        };
        let step = |(cpu, model): &mut (Cpu, Llama<Cpu>), step: u64| {
            optimizer_step(cpu, model, &hyper, step, 1, 1.0, &[documents.batch()]).unwrap();
        };
        let snapshot = |(cpu, model): &mut (Cpu, Llama<Cpu>)| -> Vec<(Vec<f32>, OptimizerState)> {
            let params = model.params_mut().into_iter();
            params.map(|(_, p)| (cpu.param_values(p).unwrap(), cpu.optimizer_state(p).unwrap().unwrap())).collect()
        };
        let mut whole = build();
        step(&mut whole, 0);
        let middle = snapshot(&mut whole);
        let eight_bit = middle.iter().filter(|(_, s)| matches!(s, OptimizerState::Blockwise8 { .. })).count();
        assert_eq!(eight_bit > 0, states == StateFormat::Blockwise8);
        assert!(eight_bit < middle.len(), "no tensor is under 4,096 elements");
        step(&mut whole, 1);
        let mut resumed = build();
        for ((_, param), (values, state)) in resumed.1.params_mut().into_iter().zip(middle.clone()) {
            let short = resumed.0.restore(param, values[1..].to_vec(), state.clone()).unwrap_err().to_string();
            assert!(short.contains("expected") && short.contains("values"), "{short}");
            let other = OptimizerState::F32 { m: vec![0.0; 1], v: vec![0.0; values.len()] };
            let other = resumed.0.restore(param, values.clone(), other).unwrap_err().to_string();
            assert!(other.contains("f32 states of 1 and"), "{other}");
            resumed.0.restore(param, values, state).unwrap();
        }
        step(&mut resumed, 1);
        assert!(snapshot(&mut whole) == snapshot(&mut resumed), "{states:?}");
    }
}

/// Ranks that take a step's micro-batches in turn make the step of one process that has all of them, dropout masks
/// included, also where some have fewer or none. Where no rank has more than one, the sums are the same: the same bits.
/// Otherwise every term of a gradient is rounded about as often in another order: each rounding is at most 2⁻²⁴ of a
/// term, and 1e-5 of a tensor's largest gradient is 170 of them.
#[test]
fn a_step_of_several_ranks_is_the_step_of_one_process() {
    for (lengths, world) in [(&[10, 10][..], 2), (&[9, 17, 5, 3], 2), (&[9, 17, 5, 3], 3), (&[12, 7], 4)] {
        let mut spec = spec(tiny_arch(), 64);
        spec.lora.dropout = 0.2;
        let row = |(seed, &length): (usize, &usize)| Documents::random(&[length], spec.arch.vocab_size, seed as u64);
        let rows: Vec<Documents> = lengths.iter().enumerate().map(row).collect();
        let all: Vec<Batch> = rows.iter().map(Documents::batch).collect();
        let (whole, gradients, values) = stepped(&spec, &mut SingleProcess, all.len(), &all);
        let (ranks, _) = of_step(&spec, world, &all, true);
        assert!(ranks.iter().all(|rank| *rank == ranks[0]), "the ranks agree");
        let (report, of_ranks, values_of_ranks) = &ranks[0];
        assert_eq!((report.tokens, report.supervised), (whole.tokens, whole.supervised));
        assert!((report.loss - whole.loss).abs() <= 1e-12 * whole.loss.abs());
        if lengths.len() <= world {
            assert!(*of_ranks == gradients, "gradients");
            assert!(*values_of_ranks == values && report.grad_norm == whole.grad_norm, "values");
        }
        for (found, expected) in of_ranks.iter().zip(&gradients) {
            let largest = expected.iter().fold(0.0f32, |a, g| a.max(g.abs()));
            let apart = found.iter().zip(expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(apart <= 1e-5 * largest, "{apart} of {largest}");
        }
        // Without the others' micro-batches it is another step.
        let (_, of_one, _) = stepped(&spec, &mut SingleProcess, all.len(), &all[..1]);
        assert!(of_one != gradients);
    }
}

/// Sums of buckets that begin while the layers below compute leave the bits of those that follow the backward pass: in
/// one process and several, with one micro-batch of each and with three, also where some have fewer or none in the last
/// round; with magnitudes, and with modules that are trained whole.
#[test]
fn sums_beside_the_backward_pass_give_the_bits_of_those_after_it() {
    let plain = spec(tiny_arch(), 64);
    let mut others = plain.clone();
    others.lora.terms.values_mut().for_each(|term| term.kind = LoraKind::Dora);
    let whole = ["model.embed_tokens", "model.layers.1.input_layernorm", "model.norm", "lm_head"];
    others.lora.whole.extend(whole.map(str::to_owned));
    for (spec, world, rows) in [
        (&plain, 1, 1),
        (&plain, 1, 3),
        (&plain, 2, 2),
        (&plain, 2, 6),
        (&plain, 2, 5),
        (&plain, 3, 3),
        (&plain, 3, 9),
        (&plain, 3, 7),
        (&plain, 3, 2),
        (&others, 2, 5),
    ] {
        let row = |row: usize| Documents::random(&[5 + 4 * row], spec.arch.vocab_size, row as u64);
        let rows: Vec<Documents> = (0..rows).map(row).collect();
        let all: Vec<Batch> = rows.iter().map(Documents::batch).collect();
        let (after, sums_after) = of_step(spec, world, &all, false);
        let (beside, sums) = of_step(spec, world, &all, true);
        assert!(after.iter().chain(&beside).all(|rank| *rank == after[0]), "{world} ranks, {} rows", all.len());
        assert!(after[0].1.iter().all(|gradient| gradient.iter().any(|&g| g != 0.0)), "all gradients are there");
        if world == 1 {
            assert_eq!((sums_after, sums), (Sums { beside: 0, all: 0 }, Sums { beside: 0, all: 0 }));
            assert!(beside[0] == stepped(spec, &mut SingleProcess, all.len(), &all));
        } else {
            assert_eq!((sums_after.beside, sums.beside, sums.all), (0, sums.all, sums_after.all));
            assert!(sums.all >= 6 * world, "a tiny model has several buckets a layer: {sums:?}");
        }
    }
}

/// A step that was stopped within, in one process, goes on in several.
#[test]
fn a_step_that_was_stopped_in_one_process_goes_on_in_several() {
    let spec = spec(tiny_arch(), 64);
    let rows: Vec<Documents> = (0..5).map(|seed| Documents::random(&[9], spec.arch.vocab_size, seed)).collect();
    let all: Vec<Batch> = rows.iter().map(Documents::batch).collect();
    let whole = stepped(&spec, &mut SingleProcess, all.len(), &all);
    let build = || {
        let mut cpu = Cpu::new(spec.run_shape());
        let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), 4));
        let model = Llama::build(&mut cpu, &mut memory, spec.clone(), &mut |_| ()).unwrap();
        (cpu, model)
    };
    let (mut cpu, mut model) = build();
    let stop = || Signs { signal: Some(15), ..Signs::default() };
    let comm = &mut SingleProcess;
    let begun = Accumulated::default();
    let (mut done, signal) = accumulate(&mut cpu, &mut model, comm, 3, 5, &all, begun, &stop).unwrap();
    assert_eq!((done.micro_batches, signal), (1, Some(15)));
    (done, _) = accumulate(&mut cpu, &mut model, comm, 3, 5, &all, done, &stop).unwrap();
    (done, _) = accumulate(&mut cpu, &mut model, comm, 3, 5, &all, done, &stop).unwrap();
    assert_eq!(done.micro_batches, 3);
    let gradients: Vec<Vec<f32>> = model.params_mut().into_iter().map(|(_, p)| cpu.gradient(p).unwrap()).collect();
    let (losses, _) = of_ranks(2, true, |comm| {
        let (mut cpu, mut model) = build();
        for ((_, param), gradient) in model.params_mut().into_iter().zip(&gradients) {
            cpu.restore_gradient(param, gradient.clone()).unwrap();
        }
        let on = accumulate(&mut cpu, &mut model, comm, 3, 5, &all, done, &Signs::default);
        let (done, _) = on.unwrap();
        update(&mut cpu, &mut model, comm, &HYPER, 3, 5, 1.0, &all, done.loss).unwrap().loss
    });
    for loss in losses {
        assert!((loss - whole.0.loss).abs() <= 1e-12 * whole.0.loss.abs(), "{loss} {}", whole.0.loss);
    }
}

/// Weights of 1 change no bit; a weight of 0 is a target that is not there; a weight of 2 is half the total twice.
#[test]
fn weights_of_one_and_of_zero_change_no_bit() {
    let spec = spec(tiny_arch(), 64);
    let plain = Documents::random(&[20, 13], spec.arch.vocab_size, 1);
    let step = |documents: &Documents| stepped(&spec, &mut SingleProcess, 1, &[documents.batch()]);
    let expected = step(&plain);
    let with = |weight: fn(usize) -> f32| {
        let mut documents = Documents::random(&[20, 13], spec.arch.vocab_size, 1);
        documents.weights = Some((0..33).map(weight).collect());
        documents
    };
    assert!(step(&with(|_| 1.0)) == expected);
    let twice = step(&with(|_| 2.0));
    assert!(twice.1 == expected.1 && twice.0.loss == expected.0.loss && twice.0.supervised == expected.0.supervised);
    let half = with(|token| if token % 2 == 0 { 1.0 } else { 0.0 });
    let targets: Vec<i32> =
        plain.batch().targets.iter().enumerate().map(|(i, &t)| if i % 2 == 0 { t } else { -100 }).collect();
    let without = Batch { targets: &targets, ..plain.batch() };
    assert!(step(&half) == stepped(&spec, &mut SingleProcess, 1, &[without]));
    assert!(step(&half).1 != expected.1);
}

#[test]
fn weights_that_make_no_sense_end_the_step_with_their_place() {
    let spec = spec(tiny_arch(), 64);
    for (weight, words) in
        [(f32::NAN, "token 3 of a batch has a weight of NaN"), (-1.0, "add up to"), (0.0, "no token")]
    {
        let mut documents = Documents::random(&[20], spec.arch.vocab_size, 1);
        documents.weights =
            Some((0..20).map(|token| if weight.is_nan() && token != 3 { 1.0 } else { weight }).collect());
        let mut cpu = Cpu::new(spec.run_shape());
        let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), 4));
        let mut model = Llama::build(&mut cpu, &mut memory, spec.clone(), &mut |_| ()).unwrap();
        let batch = [documents.batch()];
        let error = optimizer_step(&mut cpu, &mut model, &HYPER, 0, 1, 1.0, &batch).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
