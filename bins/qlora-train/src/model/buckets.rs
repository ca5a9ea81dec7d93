//! The gradients of a model in buckets, each of which is one sum over the ranks of a run.

use super::Llama;
use crate::backend::Backend;
use crate::error::Result;
use std::ops::Range;

/// Called after the backward pass of each layer, the last one first, with the layer's number: its gradients are final.
pub(super) type AfterLayer<'a, B> = &'a mut dyn FnMut(&mut B, &mut Llama<B>, usize) -> Result<()>;

/// All trainable tensors in buckets, in the order in which their gradients are final. A bucket ends with the tensor by
/// which it is full. There is a last one in any case, with which the loss goes.
pub(super) struct Buckets(Vec<Bucket>);

/// Trainable tensors that follow each other.
struct Bucket {
    tensors: Range<usize>,
    /// Values of their gradients
    values: usize,
    /// The layer after which all of them are final; none: some are outside of all layers
    layer: Option<usize>,
}

impl Buckets {
    /// `full`: values from which on a bucket is.
    pub fn of<B: Backend>(backend: &B, model: &mut Llama<B>, full: usize) -> Self {
        let mut tensors: Vec<(Option<usize>, usize)> = Vec::new();
        for layer in (0..model.layers.len()).rev() {
            let own = model.tensors(layer..layer + 1, false);
            tensors.extend(own.iter().map(|param| (Some(layer), backend.gradient_len(param))));
        }
        let outside = model.tensors(0..0, true);
        tensors.extend(outside.iter().map(|param| (None, backend.gradient_len(param))));
        let from = |first: usize| Bucket { tensors: first..first, values: 0, layer: None };
        let (count, mut all, mut filling) = (tensors.len(), Vec::new(), from(0));
        for (at, (layer, values)) in tensors.into_iter().enumerate() {
            filling = Bucket { tensors: filling.tensors.start..at + 1, values: filling.values + values, layer };
            if filling.values >= full && at + 1 < count {
                all.push(std::mem::replace(&mut filling, from(at + 1)));
            }
        }
        all.push(filling);
        Self(all)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn is_last(&self, at: usize) -> bool {
        at + 1 == self.count()
    }

    /// Number of the first buckets that are final once `layer` is done. The last one waits for the loss.
    pub fn final_after(&self, layer: usize) -> usize {
        let is_final = |bucket: &&Bucket| bucket.layer.is_some_and(|last| last >= layer);
        self.0[..self.count() - 1].iter().take_while(is_final).count()
    }

    /// The tensors of a bucket.
    pub fn tensors<'a, B: Backend>(&self, model: &'a mut Llama<B>, at: usize) -> Vec<&'a mut B::Param> {
        let Range { start, end } = self.0[at].tensors.clone();
        let layers = 0..model.layers.len();
        model.tensors(layers, true).into_iter().skip(start).take(end - start).collect()
    }

    /// The gradients of a bucket, one after the other.
    pub fn read<B: Backend>(&self, backend: &B, model: &mut Llama<B>, at: usize) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(self.0[at].values);
        for param in self.tensors(model, at) {
            values.extend(backend.gradient(param)?);
        }
        Ok(values)
    }

    /// Puts `values` in the place of what [`read`](Self::read) gave.
    pub fn put_back<B: Backend>(&self, backend: &mut B, model: &mut Llama<B>, at: usize, values: &[f32]) -> Result<()> {
        let mut rest = values;
        for param in self.tensors(model, at) {
            let (own, others) = rest.split_at(backend.gradient_len(param));
            backend.restore_gradient(param, own.to_vec())?;
            rest = others;
        }
        Ok(())
    }
}
