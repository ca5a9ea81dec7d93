//! AdamW (Loshchilov and Hutter 2019), the update of `torch.optim.AdamW`.

use crate::real::Real;

/// One tensor's settings for one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Step size η
    pub learning_rate: f64,
    /// Decay of the first moment, in [0, 1)
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1)
    pub beta2: f64,
    /// Added to the root of the second moment
    pub epsilon: f64,
    /// Share of a value that is taken off, times the learning rate
    pub weight_decay: f64,
    /// The first update is 1.
    pub step: u64,
}

/// The scalars of an update, computed in f64, as PyTorch does, and rounded once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWScalars<T> {
    /// 1 − learning_rate · weight_decay
    pub decay: T,
    /// learning_rate / (1 − beta1^step)
    pub step_size: T,
    /// √(1 − beta2^step)
    pub root: T,
    /// Decay of the first moment
    pub beta1: T,
    /// 1 − beta1
    pub rest1: T,
    /// Decay of the second moment
    pub beta2: T,
    /// 1 − beta2
    pub rest2: T,
    /// Added to the root of the second moment
    pub epsilon: T,
}

impl AdamW {
    /// The scalars of this update, each rounded once from f64.
    pub fn scalars<T: Real>(&self) -> AdamWScalars<T> {
        let step = self.step as f64;
        AdamWScalars {
            decay: T::of(1.0 - self.learning_rate * self.weight_decay),
            step_size: T::of(self.learning_rate / (1.0 - self.beta1.powf(step))),
            root: T::of((1.0 - self.beta2.powf(step)).sqrt()),
            beta1: T::of(self.beta1),
            rest1: T::of(1.0 - self.beta1),
            beta2: T::of(self.beta2),
            rest2: T::of(1.0 - self.beta2),
            epsilon: T::of(self.epsilon),
        }
    }
}

impl<T: Real> AdamWScalars<T> {
    /// One update with gradient `gradient_scale · gradient`; all slices have one length. Every operation rounds on its
    /// own, in the order written: the f32 result is that of the CUDA kernel, bit for bit.
    pub fn update(&self, gradient_scale: T, gradient: &[T], value: &mut [T], first: &mut [T], second: &mut [T]) {
        for i in 0..value.len() {
            let g = gradient_scale * gradient[i];
            first[i] = self.beta1 * first[i] + self.rest1 * g;
            second[i] = self.beta2 * second[i] + self.rest2 * g * g;
            value[i] =
                value[i] * self.decay - self.step_size * first[i] / (second[i].sqrt() / self.root + self.epsilon);
        }
    }
}
