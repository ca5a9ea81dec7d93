use super::super::drawn::values;
use super::*;

#[test]
fn rows_of_tokens_are_transposed_whatever_their_number_and_width() {
    for (tokens, columns, row_stride) in [(1, 16, 16), (2, 5, 9), (33, 64, 70), (64, 80, 80), (63, 300, 301)] {
        let stride = 32;
        let data = values(tokens * row_stride, 8);
        for isa in [Isa::avx512_bf16().unwrap_or(Isa::SCALAR), Isa::SCALAR] {
            let (mut out, mut band) = (vec![7u32; columns * stride], vec![bf16::NAN; LANES * 2 * PAIRS]);
            transpose(isa, Rows { data: &data, stride: row_stride }, tokens, columns, &mut out, stride, &mut band);
            let out: &[bf16] = bytemuck::cast_slice(&out);
            for column in 0..columns {
                for token in 0..tokens.next_multiple_of(2) {
                    let expected = if token < tokens { data[token * row_stride + column] } else { bf16::ZERO };
                    assert_eq!(out[column * 2 * stride + token], expected, "{isa:?}, {tokens} x {columns}");
                }
            }
        }
    }
}
