//! The work of an operation in numbers, from which its speed on a card is predicted.

use super::{BufferShape, Op, Operands, TableShape};
use serde::Serialize;

/// The work of an operation, by its kind and shapes. What does not apply to it is 0 or empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OpWork {
    pub name: &'static str,
    /// How often a step does just this
    pub count: usize,
    pub tokens: usize,
    /// K, of linear layers; H, of the output layer
    pub k: usize,
    /// N and r of each linear layer of the group
    pub segments: Vec<[usize; 2]>,
    /// H, Hkv and D
    pub heads: [usize; 3],
    pub vocab: usize,
    /// Values that are read and written for each token, where it is not products that take the time
    pub values: usize,
}

impl OpWork {
    pub fn of<B: Operands + ?Sized>(op: &Op<'_, B>, tokens: usize) -> Self {
        let mut work = Self { name: op.name(), count: 1, tokens, ..Self::default() };
        match op {
            Op::Embed { out, .. } => work.values = 2 * out.width(),
            Op::RmsNorm { x, .. } => work.values = 2 * x.width(),
            Op::AddRmsNorm { x, .. } => work.values = 4 * x.width(),
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
            Op::Attention { shape, .. }
            | Op::AttentionBackward { shape, .. }
            | Op::AppendToCache { shape, .. }
            | Op::AttentionOverCache { shape, .. } => work.heads = heads(*shape),
            Op::Swiglu { out, .. } => work.values = 3 * out.width(),
            Op::SwigluBackward { dout, .. } => work.values = 5 * dout.width(),
            Op::CrossEntropy { x, head, .. } | Op::Logits { x, head, .. } => {
                (work.k, work.vocab) = (x.width(), head.vocab());
            }
        }
        work
    }

    /// Adds one more operation to what a step does.
    pub fn add_to(self, all: &mut Vec<Self>) {
        let is_same = |other: &&mut Self| Self { count: self.count, ..(**other).clone() } == self;
        match all.iter_mut().find(is_same) {
            Some(other) => other.count += self.count,
            None => all.push(self),
        }
    }
}

fn heads(shape: qlora_kernels::shape::AttentionShape) -> [usize; 3] {
    [shape.heads, shape.kv_heads, shape.head_dim]
}
