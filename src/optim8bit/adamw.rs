//! AdamW on 8-bit states.

use super::{BLOCK_SIZE, Quantizer};
use crate::optim::AdamW;

/// One update of `[n]` elements with gradient `gradient_scale · gradient`: the moments are dequantized, updated in f32
/// as
/// [`reference::adamw`](crate::reference::adamw) updates them, used for the new value, and quantized again.
///
/// `m` and `v` are `[n]` codes with `[ceil(n / 256)]` scales. A slice of whole blocks may be updated on its own: blocks
/// know nothing of each other.
pub fn adamw_blockwise(
    settings: &AdamW,
    gradient_scale: f32,
    gradient: &[f32],
    value: &mut [f32],
    m: &mut [u8],
    m_absmax: &mut [f32],
    v: &mut [u8],
    v_absmax: &mut [f32],
) {
    let n = value.len();
    assert!(gradient.len() == n && m.len() == n && v.len() == n, "gradient, values and states of one tensor");
    let blocks = n.div_ceil(BLOCK_SIZE);
    assert!(m_absmax.len() == blocks && v_absmax.len() == blocks, "a scale for every 256 elements");
    let scalars = settings.scalars::<f32>();
    let (signed, unsigned) = (Quantizer::signed(), Quantizer::unsigned());
    let (mut first, mut second) = ([0.0; BLOCK_SIZE], [0.0; BLOCK_SIZE]);
    let states = m.chunks_mut(BLOCK_SIZE).zip(m_absmax).zip(v.chunks_mut(BLOCK_SIZE).zip(v_absmax));
    let values = gradient.chunks(BLOCK_SIZE).zip(value.chunks_mut(BLOCK_SIZE));
    for ((gradient, value), ((m, m_absmax), (v, v_absmax))) in values.zip(states) {
        let (first, second) = (&mut first[..value.len()], &mut second[..value.len()]);
        signed.dequantize(m, *m_absmax, first);
        unsigned.dequantize(v, *v_absmax, second);
        scalars.update(gradient_scale, gradient, value, first, second);
        *m_absmax = signed.quantize(first, m);
        *v_absmax = unsigned.quantize(second, v);
    }
}
