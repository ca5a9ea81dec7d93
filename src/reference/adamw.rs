//! AdamW (Loshchilov and Hutter 2019), the update of `torch.optim.AdamW`.

use super::Real;
use crate::optim::AdamW;

/// One update with gradient `gradient_scale · gradient` (the scale is the clipping factor).
pub fn adamw<T: Real>(
    settings: &AdamW,
    gradient_scale: T,
    gradient: &[T],
    value: &mut [T],
    first: &mut [T],
    second: &mut [T],
) {
    settings.scalars().update(gradient_scale, gradient, value, first, second);
}
