//! Stored matrices that products read as bf16.

use super::dots;
use super::isa::Isa;
use super::layout;
use super::pairs::{Panel, WIDTH};
use half::bf16;
use std::ops::Range;

/// A stored matrix, read as bf16.
pub trait Stored: Sync {
    /// Writes columns `columns` of `row` to `out`.
    fn read(&self, isa: Isa, row: usize, columns: Range<usize>, out: &mut [bf16]);

    /// Columns `columns` of `row` where they lie, if that is as bf16 values.
    fn values(&self, _row: usize, _columns: Range<usize>) -> Option<&[bf16]> {
        None
    }

    /// Writes columns `columns` of rows `rows` to `panel`, two rows at a time, if there is a faster way than
    /// [`Self::read`]; returns how many rows those are, an even number.
    fn pair_rows(&self, _isa: Isa, _rows: Range<usize>, _columns: Range<usize>, _panel: Panel) -> usize {
        0
    }

    /// Brings what [`Self::read`] is soon going to read of `row` into the caches; it may be beyond the last.
    fn prefetch(&self, _row: usize, _columns: Range<usize>) {}

    /// Adds to `sums` the dot products of columns `columns` of each of `rows` with each row of `x`, at most
    /// [`dots::FEW`], without a copy of the rows where that is possible. The sums of a row of `x` lie [`WIDTH`] after
    /// those of the row before. `scratch` has the length that [`scratch_len`] gives.
    fn dots(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        x: &[&[bf16]],
        sums: &mut [f32],
        scratch: &mut [u32],
    ) {
        dots_of_copies(self, isa, rows, columns, x, sums, scratch);
    }
}

/// Scales that are looked up together.
pub const SCALES: usize = 2048;

/// Values of the scratch memory of [`Stored::dots`] over `steps` columns.
pub const fn scratch_len(steps: usize) -> usize {
    SCALES + (dots::FEW * steps).div_ceil(2)
}

/// [`Stored::dots`] with a copy of each row.
pub fn dots_of_copies<M: Stored + ?Sized>(
    matrix: &M,
    isa: Isa,
    rows: Range<usize>,
    columns: Range<usize>,
    x: &[&[bf16]],
    sums: &mut [f32],
    scratch: &mut [u32],
) {
    let values = &mut bytemuck::cast_slice_mut::<u32, bf16>(scratch)[..columns.len()];
    for (i, row) in rows.enumerate() {
        matrix.read(isa, row, columns.clone(), values);
        for (x, sums) in x.iter().zip(sums.chunks_mut(WIDTH)) {
            sums[i] += dots::dot(isa, x, values);
        }
    }
}

/// bf16 values in rows of `stride`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [bf16],
    pub stride: usize,
}

impl Stored for Rows<'_> {
    fn read(&self, _: Isa, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        out.copy_from_slice(&self.data[row * self.stride..][columns]);
    }

    fn values(&self, row: usize, columns: Range<usize>) -> Option<&[bf16]> {
        Some(&self.data[row * self.stride..][columns])
    }

    fn pair_rows(&self, isa: Isa, rows: Range<usize>, columns: Range<usize>, panel: Panel) -> usize {
        let (count, first) = (rows.len() / 2 * 2, rows.start * self.stride + columns.start);
        if count > 0 {
            layout::pair_rows(isa, &self.data[first..], self.stride, count, columns.len(), panel);
        }
        count
    }
}

/// The first `count` rows of a stored matrix; those beyond are zero, so that a contraction over them may be of an odd
/// length.
pub struct Limited<'a> {
    pub matrix: &'a dyn Stored,
    pub count: usize,
}

impl Stored for Limited<'_> {
    fn read(&self, isa: Isa, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        match row < self.count {
            true => self.matrix.read(isa, row, columns, out),
            false => out.fill(bf16::ZERO),
        }
    }

    fn values(&self, row: usize, columns: Range<usize>) -> Option<&[bf16]> {
        if row < self.count { self.matrix.values(row, columns) } else { None }
    }

    fn pair_rows(&self, isa: Isa, rows: Range<usize>, columns: Range<usize>, panel: Panel) -> usize {
        self.matrix.pair_rows(isa, rows.start.min(self.count)..rows.end.min(self.count), columns, panel)
    }
}
