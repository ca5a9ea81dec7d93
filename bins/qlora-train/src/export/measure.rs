//! Measurements of the effect of merging: the loss on rows, and the divergence of the next tokens from those of the
//! trained model.

use std::rc::Rc;

use super::merge::{MergeBase, Merging};
use super::parts::Part;
use crate::backend::{Backend, Batch};
use crate::base::{Checkpoint, Rewrite};
use crate::config::{Quantization, Settings};
use crate::data::{MicroBatch, Row};
use crate::error::Result;
use crate::infer::{Adapters, InferenceJob, InferenceModel};
use crate::model::ModelSpec;
use crate::session::{Device, DeviceJob};
use qlora_kernels::nf4::Nf4Options;
use serde_json::{Value, json};

/// Bytes of the probabilities that models are compared by.
const MAX_BYTES: usize = 256 << 20;

/// A model that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub name: &'static str,
    /// Mean over supervised tokens, nats.
    pub loss: f64,
    /// Mean Kullback-Leibler divergence of the next token from that of the model that was trained, nats.
    pub kl: f64,
}

/// The models that are compared, the trained one first.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurements {
    pub models: Vec<Measured>,
    /// Supervised tokens that were measured.
    pub tokens: usize,
}

/// Names of the models.
mod name {
    pub const BASE_NF4: &str = "base in NF4";
    pub const BASE: &str = "base in 16 bits";
    pub const ADAPTER_NF4: &str = "adapter on NF4";
    pub const ADAPTER: &str = "adapter on 16 bits";
    pub const MERGED: &str = "merged into 16 bits";
    pub const MERGED_NF4: &str = "merged into dequantized NF4";
    pub const QUANTIZED: &str = "merged, quantized to NF4 again";
}

/// Weights of a model that is measured.
#[derive(Clone, Copy)]
enum Weights {
    /// The base's weights, stored or quantized, with the adapter beside them or without.
    Attached(bool),
    /// With the adapter in them.
    Merged(MergeBase),
}

struct Model {
    name: &'static str,
    weights: Weights,
    /// The linear weights are held in NF4.
    nf4: bool,
}

impl Measurements {
    fn of(&self, name: &str) -> Option<&Measured> {
        self.models.iter().find(|measured| measured.name == name)
    }

    /// A line for each model.
    pub fn lines(&self) -> Vec<String> {
        let width = self.models.iter().map(|measured| measured.name.len()).max().unwrap_or(0);
        let line = |(at, Measured { name, loss, kl }): (usize, &Measured)| match at {
            0 => format!("{name:width$}  loss {loss:.4}, as it was trained"),
            _ => format!("{name:width$}  loss {loss:.4}, KL {kl:.5} from the trained model"),
        };
        let head = format!("on {} supervised tokens:", self.tokens);
        std::iter::once(head).chain(self.models.iter().enumerate().map(line)).collect()
    }

    pub fn to_json(&self) -> Value {
        let model = |m: &Measured| json!({"name": m.name, "loss": m.loss, "kl": m.kl});
        json!({"tokens": self.tokens, "models": self.models.iter().map(model).collect::<Vec<_>>()})
    }

    /// A warning about quantizing the merged model again: rounding to 16 levels may undo what the adapter changed.
    pub fn warning(&self) -> Option<String> {
        let quantized = self.of(name::QUANTIZED)?;
        let base = self.of(name::BASE_NF4).or_else(|| self.of(name::BASE))?;
        (quantized.kl > base.kl / 2.0).then(|| {
            format!(
                "quantizing the merged model to NF4 again loses much of what the adapter changed: its next tokens are {:.5} \
                 nats from the trained model, those of the base {:.5}; serve it in 16 bits, or the adapter on its base",
                quantized.kl, base.kl
            )
        })
    }
}

/// Measures base, adapters and the merged models, one after the other, on as many rows as their probabilities have room
/// for. `adapters` are the same adapters as `parts`, for use on the base. `base`: the weights that are merged into;
/// `trained`: the weights that the adapters were trained on (`None`: 16 bits). `settings` are those of the model, its
/// device and its memory.
pub fn measure(
    settings: &Settings,
    checkpoint: &Checkpoint,
    parts: &[Part],
    adapters: &Adapters,
    base: MergeBase,
    trained: Option<Nf4Options>,
    rows: &[Row],
    device: &Device,
) -> Result<Measurements> {
    let rows = rows_that_fit(rows, checkpoint.arch().vocab_size);
    let stored_in_nf4 = checkpoint.quantization().is_some();
    let nf4 = trained.or(checkpoint.quantization()).unwrap_or(Nf4Options { block_size: 64, double_quant: true });
    let model = |name, weights, nf4| Model { name, weights, nf4 };
    let (attached, alone) = (Weights::Attached(true), Weights::Attached(false));
    let in_nf4 = [
        model(name::ADAPTER_NF4, attached, true),
        model(name::BASE_NF4, alone, true),
        model(name::MERGED_NF4, Weights::Merged(MergeBase::Nf4(nf4)), false),
    ];
    let in_16_bits = [
        model(name::ADAPTER, attached, false),
        model(name::BASE, alone, false),
        model(name::MERGED, Weights::Merged(MergeBase::Original), false),
    ];
    let mut models: Vec<Model> = match (stored_in_nf4, trained) {
        (true, _) => in_nf4.into_iter().collect(),
        (false, Some(_)) => in_nf4.into_iter().chain(in_16_bits).collect(),
        (false, None) => in_16_bits.into_iter().collect(),
    };
    models.push(model(name::QUANTIZED, Weights::Merged(base), true));
    let mut measured = Vec::new();
    let mut reference: Option<Rc<Vec<Vec<f32>>>> = None;
    let mut tokens = 0;
    for Model { name, weights, nf4: held } in models {
        let mut settings = settings.clone();
        settings.quantization = if held { Quantization::Nf4 } else { Quantization::None };
        (settings.nf4_block_size, settings.double_quant) = (nf4.block_size, nf4.double_quant);
        let mut merging = match weights {
            Weights::Attached(_) => None,
            Weights::Merged(base) => Some(Merging::new(checkpoint, parts, base, settings.allow_other_base)?),
        };
        let attached = matches!(weights, Weights::Attached(true));
        let adapters = if attached { adapters.clone() } else { Adapters::default() };
        let (rewrite, reference_now) = (merging.as_mut().map(|merging| merging as &mut dyn Rewrite), reference.clone());
        let job =
            Probabilities { settings, checkpoint, adapters, rewrite, rows: &rows, reference: reference_now, device };
        let (found, probabilities) = device.clone().run(job)?;
        tokens = found.tokens;
        measured.push(Measured { name, loss: found.loss, kl: found.kl });
        if reference.is_none() {
            reference = Some(Rc::new(probabilities));
        }
    }
    Ok(Measurements { models: measured, tokens })
}

/// The first rows, as many as their probabilities have room for; at least one.
fn rows_that_fit(rows: &[Row], vocab_size: usize) -> Vec<Row> {
    let mut left = MAX_BYTES / (4 * vocab_size);
    let mut fitting = Vec::new();
    for row in rows {
        let supervised = row.labels.iter().skip(1).filter(|&&label| label >= 0).count();
        if supervised > left && !fitting.is_empty() {
            break;
        }
        left = left.saturating_sub(supervised);
        fitting.push(row.clone());
    }
    fitting
}

struct Found {
    loss: f64,
    kl: f64,
    tokens: usize,
}

/// Logarithms of the probabilities of every next token at the supervised tokens of the rows, of one model.
struct Probabilities<'a> {
    settings: Settings,
    checkpoint: &'a Checkpoint,
    adapters: Adapters,
    rewrite: Option<&'a mut dyn Rewrite>,
    rows: &'a [Row],
    /// The probabilities of the trained model; `None`: this is the trained model.
    reference: Option<Rc<Vec<Vec<f32>>>>,
    device: &'a Device,
}

impl DeviceJob for Probabilities<'_> {
    type Output = (Found, Vec<Vec<f32>>);

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Self::Output> {
        let Self { settings, checkpoint, adapters, rewrite, rows, reference, device } = self;
        let longest = rows.iter().map(Row::len).max().unwrap_or(0);
        let mut loaded = InferenceModel::load_rewritten(
            &settings,
            checkpoint,
            &adapters,
            rewrite,
            InferenceJob::Loss,
            longest,
            longest,
            device,
            build,
        )?;
        let (mut loss, mut kl, mut tokens, mut kept) = (0.0, 0.0, 0, Vec::new());
        for row in rows {
            let batch = MicroBatch::new([row]);
            let supervised: Vec<usize> = (0..row.len()).filter(|&at| batch.targets[at] >= 0).collect();
            let logits = loaded.model.logits(&mut loaded.backend, &Batch::from(&batch), &supervised)?;
            for (at, mut logits) in supervised.into_iter().zip(logits) {
                to_log_probabilities(&mut logits);
                loss -= f64::from(logits[batch.targets[at] as usize]);
                if let Some(reference) = &reference {
                    kl += divergence(&reference[tokens], &logits);
                } else {
                    kept.push(logits);
                }
                tokens += 1;
            }
        }
        let mean = |sum: f64| sum / tokens.max(1) as f64;
        let (loss, kl) = (mean(loss), mean(kl));
        if !loss.is_finite() || !kl.is_finite() {
            let what = "the loss is not finite: the adapter or the base diverged".to_owned();
            return Err(crate::error::Error::Failed(what));
        }
        Ok((Found { loss, kl, tokens }, kept))
    }
}

fn to_log_probabilities(logits: &mut [f32]) {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, &x| largest.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    let log_sum = f64::from(largest) + sum.ln();
    logits.iter_mut().for_each(|x| *x = (f64::from(*x) - log_sum) as f32);
}

/// The Kullback-Leibler divergence of `other` from `reference`, both logarithms of probabilities.
fn divergence(reference: &[f32], other: &[f32]) -> f64 {
    let term = |(&p, &q): (&f32, &f32)| f64::from(p).exp() * (f64::from(p) - f64::from(q));
    reference.iter().zip(other).map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_formula() {
        let of = |logits: [f32; 3]| {
            let mut values = logits.to_vec();
            to_log_probabilities(&mut values);
            values
        };
        let (even, other) = (of([5.0; 3]), of([0.0, 2f32.ln(), 0.0]));
        assert!((f64::from(even[0]) + 3f64.ln()).abs() < 1e-6);
        // The divergence of 1/3 each from 1/4, 1/2, 1/4: (2 · ln(4/3) + ln(2/3)) / 3.
        let expected = (2.0 * (4f64 / 3.0).ln() + (2f64 / 3.0).ln()) / 3.0;
        assert!((divergence(&even, &other) - expected).abs() < 1e-6 && divergence(&even, &even).abs() < 1e-9);
    }

    #[test]
    fn quantizing_again_is_warned_of_where_the_change_is_lost() {
        let of = |kl: f64| {
            let model = |name, kl| Measured { name, loss: 1.0, kl };
            let models = vec![model(name::ADAPTER_NF4, 0.0), model(name::BASE_NF4, 0.4), model(name::QUANTIZED, kl)];
            Measurements { models, tokens: 9 }
        };
        assert_eq!(of(0.1).warning(), None);
        assert!(of(0.3).warning().unwrap().contains("0.30000 nats"));
        assert_eq!(
            of(0.1).lines()[3],
            "merged, quantized to NF4 again  loss 1.0000, KL 0.10000 from the trained model"
        );
    }
}
