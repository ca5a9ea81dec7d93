use super::*;
use crate::backend::cpu::bf16::drawn::values;
use qlora_kernels::nf4::{Absmax, CODE};

/// Parts of vectors, blocks of nested scales that begin and end within them, every code, and a map of odd bytes.
#[test]
fn scales_are_those_of_the_matrix() {
    let (blocks, isa) = (1000usize, Isa::detect().unwrap_or(Isa::SCALAR));
    let map: Vec<f32> = values(256, 3).iter().map(|x| x.to_f32() * 0.123_456_79 + 1e-7).collect();
    for nested_block_size in [16, 64, 256, 4096] {
        let absmax = Absmax::DoubleQuantized {
            codes: (0..blocks).map(|i| (i * 151 + i / 256) as u8).collect(),
            nested_absmax: (0..blocks.div_ceil(nested_block_size)).map(|i| 0.3 + i as f32 * 0.17).collect(),
            nested_block_size,
            nested_map: Box::new(map.clone().try_into().unwrap()),
            offset: 0.037,
        };
        let matrix = Nf4Matrix::from_parts(blocks, 64, 64, CODE, vec![0; 32 * blocks], absmax).unwrap();
        for (first, count) in [(0, 1000), (3, 64), (250, 576), (255, 65), (1, 63), (999, 1), (16, 128), (936, 64)] {
            let mut found = vec![-1.0f32; count + 1];
            absmax_range(isa, &matrix, first, &mut found[..count]);
            let expected: Vec<u32> = (first..first + count).map(|block| matrix.absmax_at(block).to_bits()).collect();
            let (found, beyond) = found.split_at(count);
            assert_eq!(found.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected, "{first} {count}");
            assert_eq!(beyond, [-1.0]);
        }
    }
}
