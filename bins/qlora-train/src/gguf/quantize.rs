//! Values in the types of ggml, rounded as llama.cpp's own quantization rounds them.

use super::ggml::GgmlType;
use super::k_quants;
use half::{bf16, f16};

/// Appends whole blocks in the type `kind`. A block with a value that is too large for the type gets an infinite scale.
///
/// Panics: `values` is not a whole number of blocks, or the type is only read.
pub fn encode(kind: GgmlType, values: &[f32], out: &mut Vec<u8>) {
    assert!(values.len().is_multiple_of(kind.block_size()), "{} values in {}", values.len(), kind.name());
    let blocks = values.chunks(kind.block_size());
    match kind {
        GgmlType::F32 => values.iter().for_each(|x| out.extend(x.to_le_bytes())),
        GgmlType::F16 => values.iter().for_each(|&x| out.extend(f16::from_f32(x).to_le_bytes())),
        GgmlType::Bf16 => values.iter().for_each(|&x| out.extend(bf16::from_f32(x).to_le_bytes())),
        GgmlType::Q5_0 => blocks.for_each(|block| k_quants::encode_q5_0(block, out)),
        GgmlType::Q8_0 => blocks.for_each(|block| q8_0(block, out)),
        GgmlType::Q4K => blocks.for_each(|block| k_quants::encode_with_minimums(block, 4, out)),
        GgmlType::Q5K => blocks.for_each(|block| k_quants::encode_with_minimums(block, 5, out)),
        GgmlType::Q6K => blocks.for_each(|block| k_quants::encode_q6_k(block, out)),
        GgmlType::Q4_1 => panic!("Q4_1 is only read"),
    }
}

/// d = max |x| / 127 as f16; each value is the nearest multiple of the unrounded d, halves away from zero.
fn q8_0(block: &[f32], out: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let d = largest / 127.0;
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(kind: GgmlType, values: &[f32]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(kind, values, &mut out);
        out
    }

    #[test]
    fn q8_0_is_the_nearest_multiple_of_the_scale() {
        let mut block = [0.0f32; 32];
        // The scale is 2: halves are rounded away from zero.
        (block[0], block[1], block[2], block[3], block[4]) = (-254.0, 3.0, -3.0, 0.99, 5.0);
        let bytes = encoded(GgmlType::Q8_0, &block);
        assert_eq!(bytes[..2], f16::from_f32(2.0).to_le_bytes());
        assert_eq!(bytes[2..8], [-127i8, 2, -2, 0, 3, 0].map(|q| q as u8));
        assert_eq!(encoded(GgmlType::Q8_0, &[0.0; 32]), [0; 34]);
    }

    #[test]
    fn what_is_written_is_read_back_within_half_a_step() {
        let values: Vec<f32> = (0..96).map(|i| ((i * 37) % 61) as f32 * 0.031 - 0.9).collect();
        for (kind, step) in
            [(GgmlType::F32, 0.0), (GgmlType::F16, 1e-3), (GgmlType::Bf16, 8e-3), (GgmlType::Q8_0, 8e-3)]
        {
            let bytes = encoded(kind, &values);
            assert_eq!(bytes.len(), kind.byte_length(&[96]).unwrap());
            let read = kind.to_f32(&bytes);
            let off = values.iter().zip(&read).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off <= step / 2.0, "{}: {off}", kind.name());
        }
        assert!(GgmlType::F16.to_f32(&encoded(GgmlType::F16, &[1e5]))[0].is_infinite());
    }
}
