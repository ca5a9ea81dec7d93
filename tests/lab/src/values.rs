//! Numbers that the linear layer's operations are tested on, and the choice of outputs that are checked.

use qlora_kernels::nf4::{Absmax, CODE, Nf4Matrix, dynamic_map_signed};
use qlora_kernels::rng;

pub fn integers(len: usize, most: u32, stream: &mut rng::RngStream) -> Vec<f32> {
    (0..len).map(|_| stream.below(2 * most + 1) as f32 - most as f32).collect()
}

/// Random codes under random scales, double-quantized.
pub fn random_codes(n: usize, k: usize, stream: &mut rng::RngStream) -> Nf4Matrix {
    let mut bytes = |len: usize| -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(4)).flat_map(|_| stream.next_u32().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    };
    let blocks = n * k / 64;
    let absmax = Absmax::DoubleQuantized {
        codes: bytes(blocks),
        nested_absmax: bytes(blocks.div_ceil(256)).into_iter().map(|byte| 1.0 / f32::from(byte).max(1.0)).collect(),
        nested_map: Box::new(*dynamic_map_signed()),
        nested_block_size: 256,
        offset: 1.5,
    };
    Nf4Matrix::from_parts(n, k, 64, CODE, bytes(n * k / 2), absmax).unwrap()
}

/// Indices of `count`, about `most`: the first and the last among them.
pub fn chosen(count: usize, most: usize, stream: &mut rng::RngStream) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    let mut indices = vec![0, count - 1];
    indices.extend((2..most).map(|_| stream.below(count as u32) as usize));
    indices
}
