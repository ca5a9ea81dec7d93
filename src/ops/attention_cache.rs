//! Attention of new tokens over keys and values of earlier ones. Formula: [`crate::reference::attention`]
//! over each document's whole length, of which only the new tokens' rows are computed.

use super::attention::{HEAD_DIMS, soft_cap_of, window_of};
use super::check::Operation;
use super::rows::RowsMut;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::shape::AttentionShape;
use crate::sys;
use half::bf16;
use std::ptr::{null, null_mut};

/// Rows of the cache that are summed apart from the others.
fn chunk(head_dim: usize) -> usize {
    if head_dim > 128 { 64 } else { 128 }
}

/// The largest [`Shape::longest`] of heads of this width.
pub fn max_longest(head_dim: usize) -> usize {
    65_535 * chunk(head_dim)
}

/// The shape that decides the size of the workspace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// `head_dim` is one of [`HEAD_DIMS`].
    pub attention: AttentionShape,
    /// M, new tokens
    pub m: usize,
    /// Documents of the batch.
    pub documents: usize,
    /// More than every position, at most [`max_longest`]. No bit of the result depends on it.
    pub longest: usize,
}

/// The next tokens of some documents, and where the cache has those before them.
#[derive(Clone, Copy, Debug)]
pub struct NewTokens<'a> {
    /// Heads, new tokens and documents.
    pub shape: Shape,
    /// `[m, qkv]`: H queries, Hkv keys and Hkv values of D each, rotated
    pub qkv: View<'a, bf16>,
    /// `[documents + 1]`, ascending from 0 to m
    pub boundaries: View<'a, u32>,
    /// `[documents]`: the row of the cache of position 0; documents' rows do not overlap
    pub starts: View<'a, u32>,
    /// `[m]`, ascending by 1 within a document
    pub positions: View<'a, u32>,
    /// A query sees this many keys at most, itself included. Appending knows no window.
    pub window: Option<usize>,
}

/// Elements of a row of the cache: Hkv keys, Hkv values.
pub fn width(shape: AttentionShape) -> usize {
    2 * shape.kv_heads * shape.head_dim
}

/// Bytes of workspace of [`attention_cache`]. They do not depend on the batch's values; with more tokens or documents
/// they are at least as many.
pub fn workspace_bytes(shape: &Shape) -> Result<usize> {
    /// Queries of a tile, and bytes of the tiles that are computed at a time if they are many.
    const TILE: usize = 16;
    const SLICE_BYTES: usize = 64 << 20;
    let operation = shape.operation("attention_cache_workspace_size");
    shape.describe(&operation)?;
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape.attention;
    // An f32 result of every query and of every chunk of the cache, with two floats beside.
    let chunks = shape.longest.div_ceil(chunk(head_dim));
    let tile_bytes = operation.size(&[kv_heads, chunks, TILE, (head_dim + 2) * size_of::<f32>()])?;
    let tiles = operation.size(&[shape.m, heads / kv_heads])? / TILE + shape.documents;
    Ok(if shape.m == 0 { 0 } else { (SLICE_BYTES / tile_bytes).clamp(1, tiles) * tile_bytes })
}

/// `out` `[m, H·D]` = attention of the new queries over rows `starts[d]` to `starts[d] + position` of `cache` `[rows,
/// width]`, or the last `window` of them, which [`attention_cache_append`](super::attention_cache_append()) has
/// written. A query whose position is not below `longest`, or beyond the cache, gives NaN. `workspace` has at least
/// [`workspace_bytes`].
pub fn attention_cache<'a>(
    new: &NewTokens<'_>,
    cache: View<'_, bf16>,
    out: impl Into<RowsMut<'a>>,
    workspace: ViewMut<'_, u8>,
    stream: Stream,
) -> Result<()> {
    let ((operation, args), out) = (check("attention_cache", new, cache.len())?, out.into());
    let ldout = out.check(&operation, "out", new.shape.m, new.shape.attention.out())?;
    let (needed, found) = (workspace_bytes(&new.shape)?, workspace.len());
    operation.check(found >= needed, || format!("the workspace has {found} bytes, expected at least {needed}"))?;
    let (cache, out) = (cache.address().cast_mut().cast(), out.view.address().cast());
    let args = sys::qk_attention_cache_args { cache, out, ldout, ..args };
    // SAFETY: every length was checked against the shape; `args` is read before the return. The values of boundaries,
    // starts and positions are the caller's: a kernel reads no row that is beyond the cache, which it only reads.
    operation.status(unsafe { call!(qk_attention_cache(&args, workspace.address().cast(), found, stream.as_raw())) })
}

/// All but `cache` and `out`, for a cache of `len` elements.
pub(super) fn check(
    name: &'static str,
    new: &NewTokens<'_>,
    len: usize,
) -> Result<(Operation, sys::qk_attention_cache_args)> {
    let Shape { attention, m, documents, .. } = new.shape;
    let operation = new.shape.operation(name);
    let described = new.shape.describe(&operation)?;
    operation.length("qkv", new.qkv.len(), operation.size(&[m, attention.qkv()])?)?;
    operation.length("the boundaries", new.boundaries.len(), documents + 1)?;
    operation.length("the starts", new.starts.len(), documents)?;
    operation.length("the positions", new.positions.len(), m)?;
    let width = width(attention);
    operation.check(len > 0 && len.is_multiple_of(width), || {
        format!("the cache has {len} elements, expected rows of {width}, at least one")
    })?;
    let args = sys::qk_attention_cache_args {
        cu_seqlens: new.boundaries.address(),
        starts: new.starts.address(),
        positions: new.positions.address(),
        qkv: new.qkv.address().cast(),
        rows: operation.dimension("the cache", len / width)?,
        window: window_of(&operation, new.window)?,
        ..described
    };
    Ok((operation, args))
}

impl Shape {
    pub(super) fn operation(&self, name: &'static str) -> Operation {
        let Self { attention: AttentionShape { heads, kv_heads, head_dim, .. }, m, documents, longest } = self;
        let shape = format!(
            "M {m} of {documents} documents up to {longest} long, {heads} heads of {head_dim}, {kv_heads} key and value heads"
        );
        Operation { name, shape }
    }

    /// Without any operand.
    pub(super) fn describe(&self, operation: &Operation) -> Result<sys::qk_attention_cache_args> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.attention;
        let small = |what: &str, value: usize| {
            let fits = u32::try_from(value).ok().filter(|&value| (1..=65_535).contains(&value));
            fits.ok_or_else(|| operation.argument(format!("{what} is {value}, expected 1 to 65535")))
        };
        let most = max_longest(head_dim);
        operation.check((1..=most).contains(&self.longest), || {
            format!("the longest document is {}, expected 1 to {most}", self.longest)
        })?;
        operation.status(if HEAD_DIMS.contains(&head_dim) { sys::QK_OK } else { sys::QK_ERROR_HEAD_DIM })?;
        let (heads, kv_heads, head_dim) = (small("H", heads)?, small("Hkv", kv_heads)?, small("head_dim", head_dim)?);
        let whole = heads.is_multiple_of(kv_heads) && self.documents > 0;
        operation.status(if whole { sys::QK_OK } else { sys::QK_ERROR_SHAPE })?;
        Ok(sys::qk_attention_cache_args {
            struct_size: size_of::<sys::qk_attention_cache_args>() as u32,
            head_dim,
            heads,
            kv_heads,
            m: operation.dimension("M", self.m)?,
            documents: operation.dimension("documents", self.documents)?,
            cu_seqlens: null(),
            starts: null(),
            positions: null(),
            max_seqlen: operation.dimension("the longest document", self.longest)?,
            rows: 1,
            qkv: null(),
            ldqkv: operation.dimension("the row", self.attention.qkv())?,
            cache: null_mut(),
            out: null_mut(),
            window: 0,
            soft_cap: soft_cap_of(operation, self.attention.soft_cap)?,
            reserved: 0,
            ldout: 0,
        })
    }
}
