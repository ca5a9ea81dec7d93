//! Layers' inputs between the forward pass and the backward pass: in memory, or in a scratch file.
//!
//! A thread writes an input while the next layer computes, and reads it back while the layer above it does. Beside what
//! layers work on, one input is in memory: the one on its way.

use super::aligned::Aligned;
use super::memory::{CpuBuffer, HostMemory, Value};
use crate::backend::BufferShape;
use crate::backend::input_file::{InputFile, Values};
use crate::error::Result;
use std::rc::Rc;

impl Values for Aligned<f32> {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(self)
    }
}

/// A buffer that waits for the backward pass.
pub enum CpuOffloaded {
    InMemory(CpuBuffer),
    OnDisk(InputOnDisk),
}

/// An input in the scratch file.
pub struct InputOnDisk {
    place: u64,
    /// Bytes of the rows that the batch has
    bytes: usize,
    tokens: usize,
    width: usize,
    value: Value,
    /// The buffer that it is read into, once that has begun
    coming: Option<CpuBuffer>,
}

/// The scratch file, and what is on its way to it.
pub struct Inputs {
    memory: Rc<HostMemory>,
    pub file: InputFile<Aligned<f32>>,
    leaving: Option<CpuBuffer>,
}

impl Inputs {
    pub fn new(memory: Rc<HostMemory>) -> Self {
        Self { file: InputFile::new(memory.is_dry_run()), memory, leaving: None }
    }

    /// Begins to write the rows of the first `tokens` tokens, once the input before is written.
    pub fn keep_on_disk(&mut self, mut buffer: CpuBuffer, tokens: usize) -> Result<CpuOffloaded> {
        self.wait_write()?;
        let (all, width, value) = (buffer.tokens().len(), buffer.width(), buffer.value());
        let place = self.file.place(value.bytes(all * width))?;
        let bytes = value.bytes(tokens * width);
        if !self.memory.is_dry_run() {
            self.file.write(place, buffer.take_data(), bytes)?;
        }
        self.leaving = Some(buffer);
        Ok(CpuOffloaded::OnDisk(InputOnDisk { place, bytes, tokens: all, width, value, coming: None }))
    }

    /// Waits for the input that is being written, and gives its memory back.
    pub fn wait_write(&mut self) -> Result<()> {
        match self.leaving.take() {
            Some(mut buffer) if !self.memory.is_dry_run() => buffer.put_data(self.file.finish()?),
            _ => {}
        }
        Ok(())
    }

    /// Begins to read an input.
    pub fn prefetch(&mut self, offloaded: CpuOffloaded) -> Result<CpuOffloaded> {
        let input = match offloaded {
            CpuOffloaded::OnDisk(input) if input.coming.is_none() => input,
            other => return Ok(other),
        };
        self.wait_write()?;
        let mut buffer = self.memory.buffer("residual stream", input.tokens, input.width, input.value);
        if !self.memory.is_dry_run() {
            self.file.read(input.place, buffer.take_data(), input.bytes)?;
        }
        Ok(CpuOffloaded::OnDisk(InputOnDisk { coming: Some(buffer), ..input }))
    }

    pub fn wait(&mut self, offloaded: CpuOffloaded) -> Result<CpuBuffer> {
        match self.prefetch(offloaded)? {
            CpuOffloaded::InMemory(buffer) => Ok(buffer),
            CpuOffloaded::OnDisk(InputOnDisk { place, coming, .. }) => {
                let mut buffer = coming.expect("its reading has begun");
                if !self.memory.is_dry_run() {
                    buffer.put_data(self.file.finish()?);
                }
                self.file.free(place);
                Ok(buffer)
            }
        }
    }
}
