//! AdamW (Loshchilov and Hutter 2019), the update of `torch.optim.AdamW`.

use super::Real;

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

/// One update with gradient `gradient_scale · gradient` (the scale is the clipping factor).
pub fn adamw<T: Real>(
    settings: &AdamW,
    gradient_scale: T,
    gradient: &[T],
    value: &mut [T],
    first: &mut [T],
    second: &mut [T],
) {
    // The scalars of the update are computed in f64, as PyTorch does, and rounded once.
    let step = settings.step as f64;
    let correction1 = 1.0 - settings.beta1.powf(step);
    let correction2 = 1.0 - settings.beta2.powf(step);
    let decay = T::of(1.0 - settings.learning_rate * settings.weight_decay);
    let step_size = T::of(settings.learning_rate / correction1);
    let root = T::of(correction2.sqrt());
    let (beta1, beta2) = (T::of(settings.beta1), T::of(settings.beta2));
    let (rest1, rest2) = (T::of(1.0 - settings.beta1), T::of(1.0 - settings.beta2));
    let epsilon = T::of(settings.epsilon);
    for i in 0..value.len() {
        let g = gradient_scale * gradient[i];
        first[i] = beta1 * first[i] + rest1 * g;
        second[i] = beta2 * second[i] + rest2 * g * g;
        value[i] = value[i] * decay - step_size * first[i] / (second[i].sqrt() / root + epsilon);
    }
}
