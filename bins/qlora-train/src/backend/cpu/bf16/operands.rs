//! Weights, tables and groups of the CPU backend, as the products in bf16 take them.

use super::dots;
use super::isa::Isa;
use super::linear::{LowRank, Rounded, Segment, padded};
use super::pairs::{Panel, WIDTH};
use super::rows::{round, round_row};
use super::stored::{Rows, Stored, dots_of_copies};
use crate::backend::LinearGroup;
use crate::backend::cpu::Cpu;
use crate::backend::cpu::operands::{CpuWeight, Dense, Matrix};
use crate::files::tensor::TensorData;
use half::bf16;
use std::ops::Range;

impl Stored for CpuWeight {
    fn read(&self, isa: Isa, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        match self {
            CpuWeight::Nf4(matrix) => matrix.read(isa, row, columns, out),
            CpuWeight::OnDisk(weight) => weight.with(|matrix| matrix.read(isa, row, columns, out)),
            CpuWeight::Dense(dense) => Stored::read(dense, isa, row, columns, out),
            CpuWeight::Unread => unreachable!("nothing is computed in a dry run"),
        }
    }

    fn values(&self, row: usize, columns: Range<usize>) -> Option<&[bf16]> {
        match self {
            CpuWeight::Dense(dense) => dense.values(row, columns),
            CpuWeight::Nf4(_) | CpuWeight::OnDisk(_) | CpuWeight::Unread => None,
        }
    }

    fn pair_rows(&self, isa: Isa, rows: Range<usize>, columns: Range<usize>, panel: Panel) -> usize {
        match self {
            CpuWeight::Nf4(matrix) => matrix.pair_rows(isa, rows, columns, panel),
            CpuWeight::OnDisk(weight) => weight.with(|matrix| matrix.pair_rows(isa, rows, columns, panel)),
            CpuWeight::Dense(dense) => dense.pair_rows(isa, rows, columns, panel),
            CpuWeight::Unread => unreachable!("nothing is computed in a dry run"),
        }
    }

    fn prefetch(&self, row: usize, columns: Range<usize>) {
        match self {
            CpuWeight::Nf4(matrix) => matrix.prefetch(row, columns),
            CpuWeight::Dense(_) | CpuWeight::OnDisk(_) | CpuWeight::Unread => {}
        }
    }

    fn dots(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        x: &[&[bf16]],
        sums: &mut [f32],
        scratch: &mut [u32],
    ) {
        match self {
            CpuWeight::Nf4(matrix) => matrix.dots(isa, rows, columns, x, sums, scratch),
            CpuWeight::OnDisk(weight) => weight.with(|matrix| matrix.dots(isa, rows, columns, x, sums, scratch)),
            CpuWeight::Dense(dense) => dense.dots(isa, rows, columns, x, sums, scratch),
            CpuWeight::Unread => unreachable!("nothing is computed in a dry run"),
        }
    }
}

impl Stored for Dense {
    fn read(&self, _: Isa, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        let first = row * self.cols + columns.start;
        let range = first..first + out.len();
        match &self.tensor.data {
            TensorData::Bf16(values) => out.copy_from_slice(&values[range]),
            TensorData::F16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, x)| *out = round(x.to_f32()));
            }
            TensorData::F32(values) => round_row(&values[range], out),
        }
    }

    fn values(&self, row: usize, columns: Range<usize>) -> Option<&[bf16]> {
        match &self.tensor.data {
            TensorData::Bf16(values) => Some(&values[row * self.cols..][columns]),
            TensorData::F16(_) | TensorData::F32(_) => None,
        }
    }

    fn pair_rows(&self, isa: Isa, rows: Range<usize>, columns: Range<usize>, panel: Panel) -> usize {
        match &self.tensor.data {
            TensorData::Bf16(data) => Rows { data, stride: self.cols }.pair_rows(isa, rows, columns, panel),
            TensorData::F16(_) | TensorData::F32(_) => 0,
        }
    }

    fn dots(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        x: &[&[bf16]],
        sums: &mut [f32],
        scratch: &mut [u32],
    ) {
        if let TensorData::Bf16(values) = &self.tensor.data {
            let values = &values[rows.start * self.cols + columns.start..];
            for (x, sums) in x.iter().zip(sums.chunks_mut(WIDTH)) {
                dots::dots(isa, values, self.cols, x, &mut sums[..rows.len()]);
            }
            return;
        }
        dots_of_copies(self, isa, rows, columns, x, sums, scratch);
    }
}

impl Stored for Matrix<'_> {
    fn read(&self, isa: Isa, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        match *self {
            Matrix::Dense(dense) => Stored::read(dense, isa, row, columns, out),
            Matrix::F32 { data, rows, cols } => Rounded { data, rows, columns: cols }.read(isa, row, columns, out),
            Matrix::Rows(rows) => match rows.own(row) {
                Some(values) => round_row(&values[columns], out),
                None => Stored::read(rows.dense, isa, row, columns, out),
            },
        }
    }

    fn values(&self, row: usize, columns: Range<usize>) -> Option<&[bf16]> {
        match *self {
            Matrix::Dense(dense) => dense.values(row, columns),
            Matrix::F32 { .. } => None,
            Matrix::Rows(rows) if rows.own(row).is_some() => None,
            Matrix::Rows(rows) => rows.dense.values(row, columns),
        }
    }

    fn pair_rows(&self, isa: Isa, rows: Range<usize>, columns: Range<usize>, panel: Panel) -> usize {
        match *self {
            Matrix::Dense(dense) => dense.pair_rows(isa, rows, columns, panel),
            Matrix::F32 { .. } => 0,
            // Up to the first row of its own; from there on row by row.
            Matrix::Rows(own) => own.dense.pair_rows(isa, rows.start..own.next_own(&rows), columns, panel),
        }
    }

    fn dots(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        x: &[&[bf16]],
        sums: &mut [f32],
        scratch: &mut [u32],
    ) {
        match *self {
            Matrix::Dense(dense) => dense.dots(isa, rows, columns, x, sums, scratch),
            Matrix::F32 { .. } => dots_of_copies(self, isa, rows, columns, x, sums, scratch),
            Matrix::Rows(own) => {
                let mut rest = rows.clone();
                while !rest.is_empty() {
                    let stored = rest.start..own.next_own(&rest);
                    let of_stored = &mut sums[rest.start - rows.start..];
                    own.dense.dots(isa, stored.clone(), columns.clone(), x, of_stored, scratch);
                    if stored.end == rest.end {
                        break;
                    }
                    rest.start = stored.end + 1;
                    let of_own = &mut sums[stored.end - rows.start..];
                    dots_of_copies(self, isa, stored.end..rest.start, columns.clone(), x, of_own, scratch);
                }
            }
        }
    }
}

/// The width of S and T.
pub fn low_rank_columns(group: &LinearGroup<Cpu>) -> usize {
    group.segments.iter().filter_map(|s| s.lora.as_ref()).map(|lora| lora.pairs() * padded(lora.r)).sum()
}

/// The segments of a group whose values are only read.
pub fn segments(group: &LinearGroup<Cpu>) -> Vec<Segment<'_>> {
    let segments = group.segments.iter().map(|segment| Segment {
        n: segment.n,
        weight: &*segment.weight,
        bias: segment.bias.as_ref().map(|bias| &bias[..]),
        lora: segment.lora.as_ref().map(|lora| LowRank {
            r: lora.r,
            scale: lora.scale,
            scales: lora.several.as_ref().map(|several| &several.scales[..]),
            a: lora.a.operand(),
            b: &lora.b.value,
        }),
    });
    segments.collect()
}
