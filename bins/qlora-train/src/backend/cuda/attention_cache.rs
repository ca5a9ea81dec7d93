//! Keys and values of earlier tokens on the device.

use super::Cuda;
use super::batch::BatchMemory;
use super::cache::{CacheMemory, NAME};
use super::operands::CudaBuffer;
use crate::error::{Error, Result};
use qlora_kernels::device::Buffer;
use qlora_kernels::ops::attention_cache::{NewTokens, Shape};
use qlora_kernels::ops::{attention_cache, attention_cache_append};
use qlora_kernels::shape::AttentionShape;

impl Cuda {
    /// Puts the documents' `starts` on the device, once for all layers, and makes sure of the workspace. Failed: a
    /// document that does not fit the cache's rows.
    pub(super) fn reserve_cache(&mut self, shape: AttentionShape, starts: &[u32]) -> Result<()> {
        let given = self.batch_documents.len();
        assert_eq!(starts.len(), given, "a start for each document of the batch");
        let with_tokens =
            (0..given).filter(|&document| self.batch_documents[document]).map(|document| starts[document]);
        let starts: Vec<u32> = with_tokens.collect();
        for (&start, bounds) in starts.iter().zip(self.batch.boundaries.windows(2)) {
            let (last, rows) = (self.batch.positions[bounds[1] as usize - 1], self.dims.tokens);
            if start as usize + last as usize >= rows {
                return Err(Error::Failed(format!(
                    "position {last} of the row that begins at {start} of the KV cache is beyond its {rows} rows"
                )));
            }
        }
        self.reserve_attention(shape, starts.len())?;
        if self.cache.uploaded != starts {
            self.cache.uploaded.clear();
            self.memory.write(&mut self.cache.starts, &starts)?;
            self.cache.uploaded = starts;
        }
        Ok(())
    }

    /// Room for the longest batches of a run, of up to `documents` documents. It must not grow between two of them,
    /// where no plan knows the memory around it.
    pub(super) fn reserve_attention(&mut self, attention: AttentionShape, documents: usize) -> Result<()> {
        let shape = Shape { attention, m: self.dims.tokens, documents, longest: self.longest() };
        let needed = attention_cache::workspace_bytes(&shape)?;
        if self.cache.workspace.len() < needed {
            self.cache.workspace = self.memory.alloc(NAME, 0)?;
            self.cache.workspace = self.memory.alloc(NAME, needed)?;
        }
        if self.cache.starts.len() < documents {
            self.cache.uploaded.clear();
            self.cache.starts = self.memory.alloc(NAME, documents)?;
        }
        Ok(())
    }

    /// Every batch of a run has room for rows as long as the rotation angles reach.
    fn longest(&self) -> usize {
        self.ropes.first().map_or(1, |rope| rope.positions)
    }

    fn cache_shape(&self, attention: AttentionShape) -> Shape {
        let documents = self.batch.boundaries.len() - 1;
        Shape { attention, m: self.batch.tokens(), documents, longest: self.longest() }
    }

    pub(super) fn append_to_cache(
        &mut self,
        qkv: &CudaBuffer,
        shape: AttentionShape,
        cache: &mut CudaBuffer,
    ) -> Result<()> {
        let new = new_tokens(self.cache_shape(shape), qkv, &self.on_device, &self.cache.starts)?;
        Ok(attention_cache_append(&new, cache.all_mut(), self.memory.stream())?)
    }

    pub(super) fn attention_over_cache(
        &mut self,
        qkv: &CudaBuffer,
        cache: &CudaBuffer,
        shape: AttentionShape,
        window: Option<usize>,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        let shape = self.cache_shape(shape);
        let CacheMemory { starts, workspace, .. } = &mut self.cache;
        let new = NewTokens { window, ..new_tokens(shape, qkv, &self.on_device, starts)? };
        let out = out.apart_mut(&(0..shape.m))?;
        Ok(attention_cache(&new, cache.all(), out, workspace.view_mut(), self.memory.stream())?)
    }
}

/// Fields one by one: the workspace is written while these are read.
fn new_tokens<'a>(
    shape: Shape,
    qkv: &'a CudaBuffer,
    batch: &'a BatchMemory,
    starts: &'a Buffer<u32>,
) -> Result<NewTokens<'a>> {
    Ok(NewTokens {
        shape,
        qkv: qkv.rows(&(0..shape.m))?,
        boundaries: batch.boundaries.view().first(shape.documents + 1),
        starts: starts.view().first(shape.documents),
        positions: batch.positions.view().first(shape.m),
        window: None,
    })
}
