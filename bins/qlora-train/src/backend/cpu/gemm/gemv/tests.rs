use super::*;
use crate::backend::cpu::elementwise::dot;
use crate::backend::cpu::gemm::pack::{Scaled, Stored};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};

fn values(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * seed).sin() * (1 + i % 7) as f32).collect()
}

impl Stored for Nf4Matrix {
    fn read(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
        crate::backend::cpu::gemm::nf4::read(self, rows, columns, out, stride);
    }

    fn nf4(&self) -> Option<&Nf4Matrix> {
        Some(self)
    }
}

/// A matrix whose codes are not looked at.
struct Dequantized<'a>(&'a Nf4Matrix);

impl Stored for Dequantized<'_> {
    fn read(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
        for (row, out) in rows.zip(out.chunks_mut(stride)) {
            self.0.dequantize_range(row * self.0.cols() + columns.start, &mut out[..columns.len()]);
        }
    }
}

#[test]
fn a_product_is_the_interleaved_sum_of_each_chunk_whatever_is_stored() {
    for (rows, n, k, block_size) in
        [(1, 40, 576, 64), (3, 9, 1536, 32), (2, 33, 96, 64), (4, 8, 8960, 128), (1, 5, 100, 64), (1, 70, 4096, 4096)]
    {
        let (x, weight, low) = (values(rows * k, 0.37), values(n * k, 0.11), values(n * 8, 0.7));
        let options = Nf4Options { block_size, double_quant: true };
        let matrix = Nf4Matrix::quantize(&weight, n, k, &options).unwrap();
        let (whole, s) = (matrix.dequantize(), values(rows * 8, 0.9));
        let b = Scaled { data: &low, stride: 8, factor: 1.0 };
        let other = Product::new(Left::Rows { data: &s, stride: 8 }, 8, Right::Turned(&b));
        let mut expected = vec![0.0f32; rows * n];
        for (row, column) in (0..rows).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let chunk = k.div_ceil(k.div_ceil(CHUNK));
            let out = &mut expected[row * n + column];
            for (i, (x, w)) in x[row * k..][..k].chunks(chunk).zip(whole[column * k..][..k].chunks(chunk)).enumerate() {
                *out = if i > 0 { *out + dot::<LANES>(x, w) } else { dot::<LANES>(x, w) };
            }
            *out += dot::<LANES>(&s[row * 8..][..8], &low[column * 8..][..8]);
        }
        let stored: [&dyn Stored; 2] = [&matrix, &Dequantized(&matrix)];
        for matrix in stored {
            let base = Product::new(Left::Rows { data: &x, stride: k }, k, Right::Turned(matrix));
            let mut out = vec![f32::NAN; rows * n];
            Dots::of(rows, &[base, other]).unwrap().multiply(&mut out, n, rows, 0..n, false);
            assert!(out == expected, "{rows} x {n} x {k}, blocks of {block_size}, codes: {}", matrix.nf4().is_some());
        }
    }
}
