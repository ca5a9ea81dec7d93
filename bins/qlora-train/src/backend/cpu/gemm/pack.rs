//! Panels of a right operand from what is stored: NF4 codes, 16-bit weights, f32 matrices.

use super::bf16_rows::Bf16Rows;
use super::simd::vectorized;
use crate::backend::cpu::operands::{CpuWeight, Dense, Matrix};
use qlora_kernels::nf4::Nf4Matrix;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256;
use std::ops::Range;

/// Rows that are read before they are turned over.
const BAND: usize = 16;
/// Steps that are read of them: half of the nearest cache, or less.
const STEPS: usize = 256;
const FEW_STEPS: usize = 64;

/// A stored matrix, read as f32.
pub trait Stored: Sync {
    /// Writes columns `columns` of rows `rows` to `out`, `stride` values from one row to the next.
    fn read(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize);

    /// The codes, if these are what is stored.
    fn nf4(&self) -> Option<&Nf4Matrix> {
        None
    }

    /// The rows, if they are stored in bf16.
    fn bf16(&self) -> Option<Bf16Rows<'_>> {
        None
    }
}

/// Writes columns `steps` of rows `rows` transposed: each column as a row of `panel`, `width` values apart.
pub fn turn(matrix: &dyn Stored, steps: Range<usize>, rows: Range<usize>, panel: &mut [f32], width: usize) {
    // Setting the memory to zero would take most of the time of a small matrix.
    match steps.len() {
        ..=FEW_STEPS => turn_by(&mut [0.0; BAND * FEW_STEPS], FEW_STEPS, matrix, steps, rows, panel, width),
        _ => turn_by(&mut [0.0; BAND * STEPS], STEPS, matrix, steps, rows, panel, width),
    }
}

/// [`turn`] by bands of [`BAND`] rows and of `length` steps.
fn turn_by(
    band: &mut [f32],
    length: usize,
    matrix: &dyn Stored,
    steps: Range<usize>,
    rows: Range<usize>,
    panel: &mut [f32],
    width: usize,
) {
    for row in rows.clone().step_by(BAND) {
        let part = row..(row + BAND).min(rows.end);
        for start in steps.clone().step_by(length) {
            let count = length.min(steps.end - start);
            matrix.read(part.clone(), start..start + count, band, length);
            let out = &mut panel[(start - steps.start) * width + row - rows.start..];
            if part.len() < BAND || !turn_band(band, length, count, out, width) {
                for (j, out) in out.chunks_mut(width).take(count).enumerate() {
                    (0..part.len()).for_each(|i| out[i] = band[i * length + j]);
                }
            }
        }
    }
}

impl Stored for CpuWeight {
    fn read(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
        match self {
            CpuWeight::Nf4(matrix) => super::nf4::read(matrix, rows, columns, out, stride),
            CpuWeight::OnDisk(weight) => {
                weight.with(|matrix| super::nf4::read(matrix, rows, columns, out, stride));
            }
            CpuWeight::Dense(dense) => dense.read(rows, columns, out, stride),
            CpuWeight::Unread => unreachable!("a dry run computes nothing"),
        }
    }

    fn nf4(&self) -> Option<&Nf4Matrix> {
        match self {
            CpuWeight::Nf4(matrix) => Some(matrix),
            CpuWeight::OnDisk(_) | CpuWeight::Dense(_) | CpuWeight::Unread => None,
        }
    }

    fn bf16(&self) -> Option<Bf16Rows<'_>> {
        match self {
            CpuWeight::Dense(dense) => dense.bf16(),
            CpuWeight::Nf4(_) | CpuWeight::OnDisk(_) | CpuWeight::Unread => None,
        }
    }
}

impl Stored for Dense {
    fn read(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
        read_dense(self, rows, columns, out, stride);
    }

    fn bf16(&self) -> Option<Bf16Rows<'_>> {
        self.values_in_bf16().map(|values| Bf16Rows::of(values, self.cols))
    }
}

impl Stored for Matrix<'_> {
    fn bf16(&self) -> Option<Bf16Rows<'_>> {
        match self {
            Matrix::Dense(dense) => dense.bf16(),
            // Rows of its own are in f32.
            Matrix::F32 { .. } | Matrix::Rows(_) => None,
        }
    }

    fn read(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
        match *self {
            Matrix::Dense(dense) => dense.read(rows, columns, out, stride),
            Matrix::F32 { data, cols, .. } => read_scaled(data, cols, 1.0, rows, columns, out, stride),
            Matrix::Rows(own) => {
                own.dense.read(rows.clone(), columns.clone(), out, stride);
                let mut rest = rows.clone();
                rest.start = own.next_own(&rest);
                while let Some(values) = own.own(rest.start).filter(|_| !rest.is_empty()) {
                    let to = &mut out[(rest.start - rows.start) * stride..][..columns.len()];
                    to.copy_from_slice(&values[columns.clone()]);
                    rest.start += 1;
                    rest.start = own.next_own(&rest);
                }
            }
        }
    }
}

vectorized! {
    fn read_dense<'a>(matrix: &'a Dense, rows: Range<usize>, columns: Range<usize>, out: &'a mut [f32], stride: usize) {
        for (row, out) in rows.zip(out.chunks_mut(stride)) {
            matrix.widen(row * matrix.cols + columns.start, &mut out[..columns.len()]);
        }
    }
}

/// `[_, stride]`, times `factor`.
pub struct Scaled<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub factor: f32,
}

impl Stored for Scaled<'_> {
    fn read(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
        read_scaled(self.data, self.stride, self.factor, rows, columns, out, stride);
    }
}

vectorized! {
    fn read_scaled<'a>(
        data: &'a [f32],
        from_stride: usize,
        factor: f32,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &'a mut [f32],
        stride: usize,
    ) {
        for (row, out) in rows.zip(out.chunks_mut(stride)) {
            let values = &data[row * from_stride..][columns.clone()];
            out.iter_mut().zip(values).for_each(|(out, x)| *out = factor * x);
        }
    }
}

/// Writes the first `length` columns of 16 rows, `stride` values apart, as rows of 16 values, `width` apart. False
/// where the processor lacks the vectors for it.
fn turn_band(band: &[f32], stride: usize, length: usize, out: &mut [f32], width: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        simd.vectorize(Turn { simd, band, stride, length, out, width });
        return true;
    }
    turn_in_halves(band, stride, length, out, width)
}

/// [`turn_band`] in vectors of 8 values.
fn turn_in_halves(band: &[f32], stride: usize, length: usize, out: &mut [f32], width: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        simd.vectorize(TurnInHalves { simd, band, stride, length, out, width });
        return true;
    }
    let _ = (band, stride, length, out, width);
    false
}

#[cfg(target_arch = "x86_64")]
struct Turn<'a> {
    simd: pulp::x86::V4,
    band: &'a [f32],
    stride: usize,
    length: usize,
    out: &'a mut [f32],
    width: usize,
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let v = self.simd.avx512f;
        for start in (0..self.length).step_by(BAND) {
            let rows: [pulp::f32x16; BAND] = std::array::from_fn(|i| {
                pulp::cast(*self.band[i * self.stride + start..].first_chunk::<BAND>().expect("inside"))
            });
            let rows = rows.map(pulp::cast::<_, std::arch::x86_64::__m512>);
            // Four rounds, each of which exchanges one bit of the row's number with one of the column's.
            let mut a = rows;
            for i in 0..8 {
                a[2 * i] = v._mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                a[2 * i + 1] = v._mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            let mut b = a;
            for i in 0..4 {
                for j in 0..2 {
                    let (x, y) = (v._mm512_castps_pd(a[4 * i + j]), v._mm512_castps_pd(a[4 * i + j + 2]));
                    b[4 * i + 2 * j] = v._mm512_castpd_ps(v._mm512_unpacklo_pd(x, y));
                    b[4 * i + 2 * j + 1] = v._mm512_castpd_ps(v._mm512_unpackhi_pd(x, y));
                }
            }
            // b[4i + c] holds, in its quarter q, columns 4q + c of rows 4i .. 4i + 4.
            for c in 0..4 {
                let low = v._mm512_shuffle_f32x4::<0x88>(b[c], b[4 + c]);
                let high = v._mm512_shuffle_f32x4::<0x88>(b[8 + c], b[12 + c]);
                let low_odd = v._mm512_shuffle_f32x4::<0xDD>(b[c], b[4 + c]);
                let high_odd = v._mm512_shuffle_f32x4::<0xDD>(b[8 + c], b[12 + c]);
                let columns = [
                    (c, v._mm512_shuffle_f32x4::<0x88>(low, high)),
                    (8 + c, v._mm512_shuffle_f32x4::<0xDD>(low, high)),
                    (4 + c, v._mm512_shuffle_f32x4::<0x88>(low_odd, high_odd)),
                    (12 + c, v._mm512_shuffle_f32x4::<0xDD>(low_odd, high_odd)),
                ];
                for (column, values) in columns {
                    if start + column < self.length {
                        let out = &mut self.out[(start + column) * self.width..][..BAND];
                        out.copy_from_slice(&pulp::cast::<_, [f32; BAND]>(values));
                    }
                }
            }
        }
    }
}

/// [`Turn`] in squares of 8 values a side.
#[cfg(target_arch = "x86_64")]
struct TurnInHalves<'a> {
    simd: pulp::x86::V3,
    band: &'a [f32],
    stride: usize,
    length: usize,
    out: &'a mut [f32],
    width: usize,
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for TurnInHalves<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        const SIDE: usize = 8;
        let v = self.simd.avx;
        for (start, half) in (0..self.length).step_by(SIDE).flat_map(|start| [(start, 0), (start, SIDE)]) {
            let rows: [__m256; SIDE] = std::array::from_fn(|i| {
                pulp::cast(*self.band[(half + i) * self.stride + start..].first_chunk::<SIDE>().expect("inside"))
            });
            // Three rounds, as there.
            let mut a = rows;
            for i in 0..4 {
                a[2 * i] = v._mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                a[2 * i + 1] = v._mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            let mut b = a;
            for i in 0..2 {
                for j in 0..2 {
                    let (x, y) = (v._mm256_castps_pd(a[4 * i + j]), v._mm256_castps_pd(a[4 * i + j + 2]));
                    b[4 * i + 2 * j] = v._mm256_castpd_ps(v._mm256_unpacklo_pd(x, y));
                    b[4 * i + 2 * j + 1] = v._mm256_castpd_ps(v._mm256_unpackhi_pd(x, y));
                }
            }
            // b[4i + c] holds, in its half h, column 4h + c of rows 4i .. 4i + 4.
            for c in 0..4 {
                let columns = [
                    (c, v._mm256_permute2f128_ps::<0x20>(b[c], b[4 + c])),
                    (4 + c, v._mm256_permute2f128_ps::<0x31>(b[c], b[4 + c])),
                ];
                for (column, values) in columns {
                    if start + column < self.length {
                        let out = &mut self.out[(start + column) * self.width + half..][..SIDE];
                        out.copy_from_slice(&pulp::cast::<_, [f32; SIDE]>(values));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
