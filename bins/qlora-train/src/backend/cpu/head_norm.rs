//! Norms of queries and keys in rows q‖k‖v, with their rotation.

use super::{bf16, elementwise};
use qlora_kernels::rope::RopeTable;
use qlora_kernels::shape::AttentionShape;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens whose inputs are rotated together where a gradient reads them so.
const ROTATED_TOGETHER: usize = 128;

/// Columns of the queries and of the keys in rows q‖k‖v.
pub fn normed_columns(shape: AttentionShape) -> [Range<usize>; 2] {
    [0..shape.out(), shape.out()..shape.out() + shape.kv_heads * shape.head_dim]
}

/// Elements of rows, with the operations on a row.
pub trait Element: Copy + Default + Send + Sync {
    fn norm_row(x: &[Self], weight: &[f32], eps: f32, y: &mut [Self]);
    /// Adds to dx.
    fn norm_backward_row(dy: &[Self], x: &[Self], weight: &[f32], eps: f32, dx: &mut [Self]);
    fn rotate(rows: &mut [Self], shape: AttentionShape, positions: &[u32], table: &RopeTable<f32>, inverse: bool);
}

impl Element for f32 {
    fn norm_row(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        elementwise::rms_norm_row(x, weight, eps, y);
    }
    fn norm_backward_row(dy: &[f32], x: &[f32], weight: &[f32], eps: f32, dx: &mut [f32]) {
        elementwise::rms_norm_backward_row(dy, x, weight, eps, dx);
    }
    fn rotate(rows: &mut [f32], shape: AttentionShape, positions: &[u32], table: &RopeTable<f32>, inverse: bool) {
        elementwise::rope(rows, shape, positions, table, inverse);
    }
}

impl Element for half::bf16 {
    fn norm_row(x: &[half::bf16], weight: &[f32], eps: f32, y: &mut [half::bf16]) {
        bf16::rows::rms_norm_row(x, weight, eps, y);
    }
    fn norm_backward_row(dy: &[half::bf16], x: &[half::bf16], weight: &[f32], eps: f32, dx: &mut [half::bf16]) {
        bf16::rows::rms_norm_backward_row(dy, x, weight, eps, dx);
    }
    fn rotate(
        rows: &mut [half::bf16],
        shape: AttentionShape,
        positions: &[u32],
        table: &RopeTable<f32>,
        inverse: bool,
    ) {
        bf16::rows::rope(rows, shape, positions, table, inverse);
    }
}

/// A rotation by the positions of the rows.
pub struct HeadRotation<'a> {
    pub positions: &'a [u32],
    pub table: &'a RopeTable<f32>,
    pub before_norm: bool,
}

pub struct HeadNorm<'a> {
    pub shape: AttentionShape,
    pub eps: f32,
    /// That of the queries and that of the keys, as wide as a head or as all of them
    pub weights: [&'a [f32]; 2],
    pub rotation: Option<HeadRotation<'a>>,
}

impl HeadNorm<'_> {
    fn rotate<T: Element>(&self, rows: &mut [T], before_norm: bool, inverse: bool) {
        if let Some(rotation) = self.rotation.as_ref().filter(|rotation| rotation.before_norm == before_norm) {
            T::rotate(rows, self.shape, rotation.positions, rotation.table, inverse);
        }
    }

    /// y = the rows of x with their queries and keys normalized and rotated.
    pub fn forward<T: Element>(&self, x: &[T], y: &mut [T]) {
        y.copy_from_slice(x);
        self.rotate(y, true, false);
        let reads_rotated = self.rotation.as_ref().is_some_and(|rotation| rotation.before_norm);
        self.each_part(y, x, |y, x, weight| {
            let rotated = if reads_rotated { Some(y.to_vec()) } else { None };
            T::norm_row(rotated.as_deref().unwrap_or(x), weight, self.eps, y);
        });
        self.rotate(y, false, false);
    }

    /// Turns the gradient of y into that of x.
    pub fn backward<T: Element>(&self, x: &[T], dy: &mut [T]) {
        self.rotate(dy, false, true);
        match self.rotation.as_ref().filter(|rotation| rotation.before_norm) {
            None => self.norm_backward(x, dy),
            Some(HeadRotation { positions, table, .. }) => {
                let values = ROTATED_TOGETHER * self.shape.qkv();
                let rows = x.chunks(values).zip(dy.chunks_mut(values)).zip(positions.chunks(ROTATED_TOGETHER));
                for ((x, dy), positions) in rows {
                    let mut x = x.to_vec();
                    T::rotate(&mut x, self.shape, positions, table, false);
                    self.norm_backward(&x, dy);
                }
            }
        }
        self.rotate(dy, true, true);
    }

    fn norm_backward<T: Element>(&self, x: &[T], dy: &mut [T]) {
        self.each_part(dy, x, |dx, x, weight| {
            let dy = dx.to_vec();
            dx.fill(T::default());
            T::norm_backward_row(&dy, x, weight, self.eps, dx);
        });
    }

    /// Calls `norm` with each part of the queries and keys of two buffers that is as wide as the weight for it, and
    /// with that weight: with each head, or with all queries and all keys.
    fn each_part<T: Element>(&self, to: &mut [T], from: &[T], norm: impl Fn(&mut [T], &[T], &[f32]) + Sync) {
        let (width, columns) = (self.shape.qkv(), normed_columns(self.shape));
        let rows = to.par_chunks_exact_mut(width).zip(from.par_chunks_exact(width)).with_min_len(16);
        rows.for_each(|(to, from)| {
            for (columns, weight) in columns.iter().zip(self.weights) {
                let (to, from) = (&mut to[columns.clone()], &from[columns.clone()]);
                let parts = to.chunks_exact_mut(weight.len()).zip(from.chunks_exact(weight.len()));
                parts.for_each(|(to, from)| norm(to, from, weight));
            }
        });
    }
}
