//! Forward passes over new tokens only: the keys and values of earlier ones are kept.

use super::Llama;
use crate::backend::{Backend, Batch};
use crate::error::Result;
use qlora_kernels::device::MemoryEnd;

/// Keys and values of every layer, a row for each token of the longest batch.
pub struct KvCache<B: Backend> {
    layers: Vec<B::Buffer>,
}

/// The cache as one pass sees it.
pub(super) struct Past<'a, B: Backend> {
    pub layers: &'a mut [B::Buffer],
    pub view: View<'a>,
}

#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// `[documents]`: the cache's row of position 0
    pub starts: &'a [u32],
    /// Every document begins with this batch, which therefore holds all that attention sees.
    pub fresh: bool,
}

impl<B: Backend> Llama<B> {
    /// Makes room for the needs of text of up to `rows` rows side by side beside a cache: before the cache, and before
    /// the passes allocate.
    pub fn reserve_text(&self, b: &mut B, rows: usize) -> Result<()> {
        b.reserve_text(self.attention, rows)
    }

    /// An empty cache with as many rows as the longest batch has tokens.
    pub fn cache(&self, b: &mut B) -> Result<KvCache<B>> {
        self.cache_of(b, b.capacity())
    }

    /// An empty cache of `rows` rows.
    pub fn cache_of(&self, b: &mut B, rows: usize) -> Result<KvCache<B>> {
        let width = 2 * self.attention.kv_heads * self.attention.head_dim;
        let layers =
            self.layers.iter().map(|_| b.alloc_at(MemoryEnd::High, "KV cache", rows, width)).collect::<Result<_>>()?;
        Ok(KvCache { layers })
    }

    /// Logits `[vocab]` of the named tokens of a batch that continues what the cache holds. Row `starts[d] + p` of the
    /// cache belongs to position p of the batch's document d: the documents' rows must not overlap, and all positions
    /// below the batch's own must have been in earlier batches.
    pub fn logits_cached(
        &self,
        b: &mut B,
        batch: &Batch,
        cache: &mut KvCache<B>,
        starts: &[u32],
        tokens: &[usize],
    ) -> Result<Vec<Vec<f32>>> {
        assert_eq!(starts.len() + 1, batch.boundaries.len(), "a start for each document");
        let fresh = batch.boundaries.windows(2).all(|w| w[0] == w[1] || batch.positions[w[0] as usize] == 0);
        let past = Past { layers: &mut cache.layers, view: View { starts, fresh } };
        self.logits_after(b, batch, Some(past), tokens)
    }
}
