use super::*;

fn half(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}

#[test]
fn q4_1_takes_low_nibbles_first_then_high_nibbles() {
    let mut block = [half(0.5), half(-2.0)].concat();
    block.extend((0..16u8).map(|i| i | (15 - i) << 4));
    let values = GgmlType::Q4_1.to_f32(&block);
    let expected: Vec<f32> = (0..16).chain((0..16).rev()).map(|q| 0.5 * q as f32 - 2.0).collect();
    assert_eq!(values, expected);
}

#[test]
fn q8_0_values_are_signed() {
    let mut block = half(0.25).to_vec();
    block.extend((0..32).map(|i| (i * 8 - 128) as i8 as u8));
    let values = GgmlType::Q8_0.to_f32(&block);
    let expected: Vec<f32> = (0..32).map(|i| 0.25 * (i * 8 - 128) as f32).collect();
    assert_eq!(values, expected);
}

#[test]
fn f16_and_f32_are_read_as_they_are() {
    assert_eq!(GgmlType::F16.to_f32(&[half(1.5), half(-0.125)].concat()), [1.5, -0.125]);
    assert_eq!(GgmlType::F32.to_f32(&0.1f32.to_le_bytes()), [0.1]);
}

#[test]
fn byte_lengths_follow_the_blocks_and_ragged_rows_are_refused() {
    assert_eq!(GgmlType::Q4_1.byte_length(&[3, 64]).unwrap(), 3 * 2 * 20);
    assert_eq!(GgmlType::Q8_0.byte_length(&[3, 64]).unwrap(), 3 * 2 * 34);
    assert_eq!(GgmlType::F16.byte_length(&[5, 3]).unwrap(), 30);
    assert!(GgmlType::Q4_1.byte_length(&[64, 16]).is_err());
    assert!(GgmlType::F32.byte_length(&[usize::MAX, 2]).is_err());
    assert!(GgmlType::F32.byte_length(&[]).is_err());
    assert!(GgmlType::from_code(2).is_err());
    let (plain, blocks) = ([GgmlType::F32, GgmlType::F16, GgmlType::Bf16], [GgmlType::Q4_1, GgmlType::Q5_0]);
    let others = [GgmlType::Q8_0, GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K];
    for kind in plain.into_iter().chain(blocks).chain(others) {
        assert_eq!(GgmlType::from_code(kind.code()).unwrap(), kind);
    }
}

#[test]
fn rows_stored_for_interleaved_rope_return_to_their_place() {
    let (heads, head_dim, columns) = (3, 8, 2);
    let original: Vec<f32> = (0..heads * head_dim * columns).map(|i| i as f32).collect();
    // llama.cpp's own direction: [heads, 2, head_dim/2] becomes [heads, head_dim/2, 2].
    let mut stored = Vec::new();
    for head in 0..heads {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                let row = head * head_dim + half * head_dim / 2 + pair;
                stored.extend_from_slice(&original[row * columns..(row + 1) * columns]);
            }
        }
    }
    assert_ne!(stored, original);
    let rows = (0..heads * head_dim).map(|row| interleaved_row(row, head_dim) * columns);
    assert_eq!(stored, rows.flat_map(|at| original[at..at + columns].to_vec()).collect::<Vec<_>>());
    assert_eq!(undo_interleaved_rows(&stored, heads, columns), original);
}

#[test]
fn bf16_rounds_to_nearest_with_ties_to_even() {
    let cases = [(0x3f80_8000u32, 0x3f80u16), (0x3f81_8000, 0x3f82), (0x3f80_8001, 0x3f81), (0x3f80_7fff, 0x3f80)];
    for (bits, expected) in cases {
        assert_eq!(to_bf16_bytes(&[f32::from_bits(bits)]), expected.to_le_bytes(), "{bits:#x}");
    }
}
