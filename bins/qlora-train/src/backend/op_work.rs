//! The work of an operation in numbers, from which its speed on a card is predicted.

use super::op::twice_the_keys;
use super::{BufferShape, Op, Operands, TableShape};
use serde::Serialize;

/// The work of an operation, by its kind and shapes. What does not apply to it is 0 or empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OpWork {
    pub name: &'static str,
    /// How often a step does just this
    pub count: usize,
    pub tokens: usize,
    /// K, of linear layers; H, of the output layer; I, of the gradient of SwiGLU
    pub k: usize,
    /// N and r of each linear layer of the group
    pub segments: Vec<[usize; 2]>,
    /// H, Hkv and D
    pub heads: [usize; 3],
    /// Keys that a query of attention sees at most, where that is fewer than the tokens
    pub window: usize,
    pub vocab: usize,
    /// Values that are read and written for each token, where it is not products that take the time
    pub values: usize,
    /// Multiply-adds or values of all tokens, whichever takes the time: what a rate is of
    pub units: f64,
}

impl OpWork {
    pub fn of<B: Operands + ?Sized>(op: &Op<'_, B>, tokens: usize) -> Self {
        let mut work = Self { name: op.name(), count: 1, tokens, ..Self::default() };
        match op {
            Op::Embed { out, .. } => work.values = 2 * out.width(),
            Op::RmsNorm { x, .. } => work.values = 2 * x.width(),
            Op::AddRmsNorm { x, .. } => work.values = 4 * x.width(),
            Op::RmsNormAdd { x, .. } => work.values = 3 * x.width(),
            Op::RmsNormBackward { x, accumulate, .. } => work.values = (3 + usize::from(*accumulate)) * x.width(),
            Op::LoraDown { group, .. }
            | Op::Linear { group, .. }
            | Op::LoraDyB { group, .. }
            | Op::LinearDx { group, .. } => {
                (work.k, work.segments) = (group.k, group.work());
            }
            Op::LoraGradients { group, .. } => (work.k, work.segments) = (group.k, group.work()),
            Op::HeadNorm { shape, .. } => (work.heads, work.values) = (heads(*shape), 2 * shape.qkv()),
            Op::HeadNormBackward { shape, .. } => (work.heads, work.values) = (heads(*shape), 3 * shape.qkv()),
            Op::Rope { shape, .. } => {
                (work.heads, work.values) = (heads(*shape), 2 * (shape.heads + shape.kv_heads) * shape.head_dim);
            }
            Op::Attention { shape, window, .. } | Op::AttentionBackward { shape, window, .. } => {
                (work.heads, work.window) = (heads(*shape), window.filter(|&window| window < tokens).unwrap_or(0));
            }
            Op::AppendToCache { shape, .. } | Op::AttentionOverCache { shape, .. } => work.heads = heads(*shape),
            Op::Swiglu { out, .. } => work.values = 3 * out.width(),
            Op::SwigluBackward { dout, out, .. } => {
                (work.k, work.values) = (dout.width(), (5 + usize::from(out.is_some())) * dout.width());
            }
            Op::CrossEntropy { x, head, .. } | Op::Logits { x, head, .. } => {
                (work.k, work.vocab) = (x.width(), head.vocab());
            }
            Op::TrainedCrossEntropy { x, head, .. } => (work.k, work.vocab) = (x.width(), head.vocab()),
            Op::Magnitude { group, .. } => work.values = 2 * group.n(),
            Op::MagnitudeBackward { group, .. } => work.values = 3 * group.n(),
            Op::EmbedBackward { dout, .. } => work.values = 3 * dout.width(),
            Op::NormGradient { x, .. } => work.values = 2 * x.width(),
            Op::HeadNormGradients { shape, .. } => (work.heads, work.values) = (heads(*shape), 2 * shape.qkv()),
        }
        work.units = work.units();
        if let Op::TrainedCrossEntropy { head, .. } = op {
            // A third product beside the logits and the gradient of hidden states: for all rows, or for some.
            work.units *= 1.0 + 0.5 * head.trained_rows() as f64 / head.vocab() as f64;
        }
        work
    }

    fn units(&self) -> f64 {
        let [heads, _, head_dim] = self.heads;
        let n: usize = self.segments.iter().map(|[n, _]| n).sum();
        let of_token = match self.name {
            "linear" | "linear, backward" => self.k * n,
            // Bound by the rows that they read.
            "LoRA X·Aᵀ" => self.k,
            "LoRA dY·B" => n,
            "LoRA gradients" => self.k + n,
            "attention" | "attention, backward" => {
                twice_the_keys(self.tokens, Some(self.window).filter(|&window| window > 0)) * heads * head_dim
            }
            _ if self.vocab > 0 => self.k * self.vocab,
            _ => self.values,
        };
        // More than 64 bits hold where many rows of a micro-batch are as long as the model allows.
        self.tokens as f64 * of_token as f64
    }

    /// Parameters that an update changes, of an operation that makes their gradients.
    pub fn trained(&self) -> usize {
        let makes_gradients = self.name == "LoRA gradients";
        self.segments.iter().filter(|_| makes_gradients).map(|[n, r]| r * (n + self.k)).sum()
    }

    /// Whether both do the same, however often.
    fn is_same(&self, other: &Self) -> bool {
        let Self { name, count: _, tokens, k, segments, heads, window, vocab, values, units } = self;
        let of_shape = (*tokens, *k, *heads, *window) == (other.tokens, other.k, other.heads, other.window);
        let of_values = (*vocab, *values, *units) == (other.vocab, other.values, other.units);
        of_shape && of_values && *name == other.name && *segments == other.segments
    }

    /// Adds one more operation to what a step does.
    pub fn add_to(self, all: &mut Vec<Self>) {
        match all.iter_mut().find(|other| self.is_same(other)) {
            Some(other) => other.count += self.count,
            None => all.push(self),
        }
    }
}

fn heads(shape: qlora_kernels::shape::AttentionShape) -> [usize; 3] {
    [shape.heads, shape.kv_heads, shape.head_dim]
}
