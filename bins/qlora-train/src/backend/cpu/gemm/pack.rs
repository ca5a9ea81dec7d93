//! Panels of a right operand from what is stored: NF4 codes, 16-bit weights, f32 matrices.

use super::CHUNK;
use super::simd::vectorized;
use crate::backend::cpu::operands::{CpuWeight, Dense, Matrix};
use std::ops::Range;

/// Rows that are read before they are turned over.
const BAND: usize = 16;

/// A stored matrix, read as f32.
pub trait Stored: Sync {
    /// Writes columns `columns` of rows `rows` to `out`, `stride` values from one row to the next.
    fn read(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize);
}

/// Writes columns `steps` of rows `rows` transposed: each column as a row of `panel`, `width` values apart.
pub fn turn(matrix: &dyn Stored, steps: Range<usize>, rows: Range<usize>, panel: &mut [f32], width: usize) {
    let mut band = [0.0; BAND * CHUNK];
    for row in rows.clone().step_by(BAND) {
        let part = row..(row + BAND).min(rows.end);
        matrix.read(part.clone(), steps.clone(), &mut band, CHUNK);
        let out = &mut panel[row - rows.start..];
        if part.len() < BAND || !turn_band(&band, steps.len(), out, width) {
            for (j, out) in out.chunks_mut(width).take(steps.len()).enumerate() {
                (0..part.len()).for_each(|i| out[i] = band[i * CHUNK + j]);
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
}

impl Stored for Dense {
    fn read(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
        read_dense(self, rows, columns, out, stride);
    }
}

impl Stored for Matrix<'_> {
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

/// Writes the first `length` columns of `band` `[16, CHUNK]` as rows of 16 values, `width` apart. False where the
/// processor lacks the vectors for it.
fn turn_band(band: &[f32; BAND * CHUNK], length: usize, out: &mut [f32], width: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        simd.vectorize(Turn { simd, band, length, out, width });
        return true;
    }
    let _ = (band, length, out, width);
    false
}

#[cfg(target_arch = "x86_64")]
struct Turn<'a> {
    simd: pulp::x86::V4,
    band: &'a [f32; BAND * CHUNK],
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
                pulp::cast(*self.band[i * CHUNK + start..].first_chunk::<BAND>().expect("inside"))
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
