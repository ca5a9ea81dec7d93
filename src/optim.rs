//! AdamW (Loshchilov and Hutter 2019), the update of `torch.optim.AdamW`.

use crate::real::Real;

/// One tensor's settings for one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// The first update is 1.
    pub step: u64,
}

/// What an update computes with. Computed in f64, as PyTorch does, and rounded once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWScalars<T> {
    /// 1 − learning_rate · weight_decay
    pub decay: T,
    /// learning_rate / (1 − beta1^step)
    pub step_size: T,
    /// √(1 − beta2^step)
    pub root: T,
    pub beta1: T,
    /// 1 − beta1
    pub rest1: T,
    pub beta2: T,
    /// 1 − beta2
    pub rest2: T,
    pub epsilon: T,
}

impl AdamW {
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
