//! Short runs on any backend, and how far apart two of them are.

use crate::sources::TOKENS;
use qlora_train::backend::{Backend, Batch};
use qlora_train::lora::ParamId;
use qlora_train::model::optimizer_step::{Hyperparameters, optimizer_step};
use qlora_train::model::{Llama, ModelSpec, Source};
use trainer_lab::model::Documents;

pub const HYPER: Hyperparameters = Hyperparameters {
    learning_rate_a: 1e-3,
    learning_rate_b: 4e-3,
    weight_decay: 0.01,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    max_grad_norm: 1.0,
};

type Values = Vec<(ParamId, Vec<f32>)>;

/// Results of a run of some steps.
#[derive(Clone, PartialEq)]
pub struct Trained {
    /// Loss of every step.
    pub losses: Vec<f64>,
    /// Norm of the gradients of every step, before clipping.
    pub norms: Vec<f64>,
    /// Gradients of the first step.
    pub gradients: Values,
    /// Changes of the trainable tensors in the steps.
    pub moved: Values,
}

/// Two micro-batches a step, of packed documents.
pub fn micro_batches(vocab: usize) -> [Documents; 2] {
    let of = |lengths: &[usize], seed| Documents::random(lengths, vocab, seed);
    assert_eq!(37 + 20 + 6 + 1, TOKENS);
    [of(&[37, 20, 6, 1], 1), of(&[50, 9], 2)]
}

pub fn train<B: Backend>(backend: &mut B, source: &mut dyn Source, spec: &ModelSpec, steps: u64) -> Trained {
    let micro_batches = micro_batches(spec.arch.vocab_size);
    let batches: Vec<Batch> = micro_batches.iter().map(Documents::batch).collect();
    train_on(backend, source, spec, steps, &batches)
}

/// Two micro-batches of as few tokens as the kernels of long batches take, for comparisons of bits.
pub fn short_micro_batches(vocab: usize) -> [Documents; 2] {
    let of = |lengths: &[usize], seed| Documents::random(lengths, vocab, seed);
    [of(&[12, 7, 1], 1), of(&[10, 9], 2)]
}

/// [`train`] on [`short_micro_batches`].
pub fn train_short<B: Backend>(backend: &mut B, source: &mut dyn Source, spec: &ModelSpec, steps: u64) -> Trained {
    let micro_batches = short_micro_batches(spec.arch.vocab_size);
    train_on(backend, source, spec, steps, &micro_batches.each_ref().map(Documents::batch))
}

/// Trains on these micro-batches.
pub fn train_on<B: Backend>(
    backend: &mut B,
    source: &mut dyn Source,
    spec: &ModelSpec,
    steps: u64,
    batches: &[Batch],
) -> Trained {
    train_each(backend, source, spec, &HYPER, &vec![batches; steps as usize])
}

/// Trains a step on each of these lists of micro-batches.
pub fn train_each<B: Backend>(
    backend: &mut B,
    source: &mut dyn Source,
    spec: &ModelSpec,
    hyper: &Hyperparameters,
    steps: &[&[Batch]],
) -> Trained {
    let mut model = Llama::build(backend, source, spec.clone(), &mut |_| ()).unwrap();
    let start = model.param_values(backend).unwrap();
    let (mut losses, mut norms, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
    for (step, batches) in steps.iter().enumerate() {
        let report = optimizer_step(backend, &mut model, hyper, step as u64, batches.len(), 1.0, batches).unwrap();
        losses.push(report.loss);
        norms.push(report.grad_norm);
        if step == 0 {
            let params = model.params_mut().into_iter();
            gradients = params.map(|(name, param)| (name, backend.gradient(param).unwrap())).collect();
        }
    }
    let end = model.param_values(backend).unwrap();
    let change = |(from, to): (&[f32], &[f32])| from.iter().zip(to).map(|(from, to)| to - from).collect();
    let moved =
        start.iter().zip(&end).map(|((name, _, from), (_, _, to))| (name.clone(), change((from, to)))).collect();
    Trained { losses, norms, gradients, moved }
}

fn length(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// ‖found − expected‖ / ‖expected‖ of every tensor.
fn tensors_apart(found: &Values, expected: &Values) -> Vec<f64> {
    assert_eq!(found.len(), expected.len());
    let mut distances = Vec::with_capacity(found.len());
    for ((name, found), (expected_name, expected)) in found.iter().zip(expected) {
        assert!(name == expected_name && found.len() == expected.len());
        let differences = found.iter().zip(expected).map(|(a, b)| f64::from(a - b));
        distances.push(length(differences) / length(expected.iter().map(|&x| f64::from(x))));
    }
    distances
}

/// ‖found − expected‖ / ‖expected‖ of all tensors as one.
fn together_apart(found: &Values, expected: &Values) -> f64 {
    let values =
        |of: &Values| of.iter().flat_map(|(_, values)| values.iter().map(|&x| f64::from(x))).collect::<Vec<_>>();
    let (found, expected) = (values(found), values(expected));
    length(found.iter().zip(&expected).map(|(a, b)| a - b)) / length(expected.into_iter())
}

/// Distance of one run from another.
#[derive(Clone, Debug)]
pub struct Apart {
    /// Largest distance of a step's loss, absolute.
    pub losses: Vec<f64>,
    /// Distance of every step's norm, relative.
    pub norms: Vec<f64>,
    /// Distance of every trainable tensor's gradient, relative.
    pub gradients: Vec<f64>,
    /// Distance of how far every tensor moved, relative.
    pub moved: Vec<f64>,
    /// The distance of all tensors as one.
    pub moved_in_all: f64,
}

impl Apart {
    pub fn of(found: &Trained, expected: &Trained) -> Self {
        let steps = |found: &[f64], expected: &[f64]| found.iter().zip(expected).map(|(a, b)| (a - b).abs()).collect();
        let mut norms: Vec<f64> = steps(&found.norms, &expected.norms);
        norms.iter_mut().zip(&expected.norms).for_each(|(apart, norm)| *apart /= norm);
        Self {
            losses: steps(&found.losses, &expected.losses),
            norms,
            gradients: tensors_apart(&found.gradients, &expected.gradients),
            moved: tensors_apart(&found.moved, &expected.moved),
            moved_in_all: together_apart(&found.moved, &expected.moved),
        }
    }
}

/// Root of the mean square.
pub fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt()
}

/// Infinity if one is not a number, which is within no bound.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().map(|value| if value.is_nan() { f64::INFINITY } else { *value }).fold(0.0, f64::max)
}
