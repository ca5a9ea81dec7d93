//! Host memory of the CPU backend: a pool of buffers, and what is held by name.

use super::aligned::Aligned;
use crate::backend::{BufferShape, PlannedBuffer};
use crate::error::Result;
use half::bf16;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

/// Buffers of a run; in a dry run, the count of those that it would hold.
pub struct HostMemory {
    dry_run: bool,
    usage: RefCell<Usage>,
    /// Buffers that were freed, by length, with the name they were made under; they are handed out again before
    /// new ones are made.
    pool: RefCell<Pool>,
}

/// Buffers by length.
type Pool = HashMap<usize, Vec<(&'static str, Aligned<f32>)>>;

#[derive(Default)]
struct Usage {
    held: Sizes,
    peak: Sizes,
}

/// Bytes by name.
#[derive(Clone, Default)]
struct Sizes {
    names: BTreeMap<&'static str, u64>,
    bytes: u64,
}

impl HostMemory {
    pub fn new(dry_run: bool) -> Rc<Self> {
        Rc::new(Self { dry_run, usage: RefCell::default(), pool: RefCell::default() })
    }

    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    fn alloc(&self, name: &'static str, bytes: u64) {
        let Usage { held, peak } = &mut *self.usage.borrow_mut();
        *held.names.entry(name).or_default() += bytes;
        held.bytes += bytes;
        if held.bytes > peak.bytes {
            peak.clone_from(held);
        }
    }

    fn free(&self, name: &'static str, bytes: u64) {
        let held = &mut self.usage.borrow_mut().held;
        *held.names.get_mut(name).expect("it was taken") -= bytes;
        held.bytes -= bytes;
    }

    /// Counts `value` as `bytes` of `name` until it is dropped.
    pub fn hold<T>(self: &Rc<Self>, name: &'static str, bytes: u64, value: T) -> Held<T> {
        self.alloc(name, bytes);
        Held { value, memory: self.clone(), name, bytes }
    }

    /// Bytes at the peak.
    pub fn bytes(&self) -> u64 {
        self.usage.borrow().peak.bytes
    }

    /// The buffers at the peak, by name.
    pub fn planned(&self) -> Vec<PlannedBuffer> {
        let usage = self.usage.borrow();
        PlannedBuffer::lines(usage.peak.names.iter().filter(|line| *line.1 > 0).map(|(&name, &bytes)| (name, bytes)))
    }

    /// Frees the buffers that nobody uses.
    pub fn trim(&self) {
        for (len, pooled) in self.pool.borrow_mut().drain() {
            for (name, _) in pooled {
                self.free(name, len as u64 * 4);
            }
        }
    }

    pub(super) fn buffer(self: &Rc<Self>, name: &'static str, tokens: usize, width: usize, value: Value) -> CpuBuffer {
        let len = value.words(tokens * width);
        let pooled = self.pool.borrow_mut().get_mut(&len).and_then(Vec::pop);
        let (name, data) = pooled.unwrap_or_else(|| {
            self.alloc(name, len as u64 * 4);
            (name, if self.dry_run { Aligned::default() } else { Aligned::zeros(len) })
        });
        CpuBuffer { data, value, name, first: 0, tokens, width, memory: self.clone() }
    }
}

/// A value whose memory is counted.
pub struct Held<T> {
    value: T,
    memory: Rc<HostMemory>,
    name: &'static str,
    bytes: u64,
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.memory.free(self.name, self.bytes);
    }
}

/// The type of a buffer's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    F32,
    Bf16,
}

impl Value {
    /// Bytes of the words that hold `values` values.
    pub(super) fn bytes(self, values: usize) -> usize {
        4 * self.words(values)
    }

    /// f32 words that hold `values` values.
    fn words(self, values: usize) -> usize {
        match self {
            Value::F32 => values,
            Value::Bf16 => values.div_ceil(2),
        }
    }
}

/// `[tokens, width]`, which goes back to the pool when it is dropped. Empty in a dry run.
pub struct CpuBuffer {
    /// f32 values, or as many words as hold the bf16 ones
    data: Aligned<f32>,
    value: Value,
    name: &'static str,
    first: usize,
    tokens: usize,
    width: usize,
    memory: Rc<HostMemory>,
}

impl CpuBuffer {
    pub(super) fn rows(&self, tokens: &Range<usize>) -> Result<&[f32]> {
        debug_assert_eq!(self.value, Value::F32, "{}", self.name);
        Ok(&self.data[self.elements(tokens)?])
    }

    pub(super) fn rows_mut(&mut self, tokens: &Range<usize>) -> Result<&mut [f32]> {
        debug_assert_eq!(self.value, Value::F32, "{}", self.name);
        let elements = self.elements(tokens)?;
        Ok(&mut self.data[elements])
    }

    pub(super) fn rows16(&self, tokens: &Range<usize>) -> Result<&[bf16]> {
        Ok(&self.all16()[self.elements(tokens)?])
    }

    pub(super) fn rows16_mut(&mut self, tokens: &Range<usize>) -> Result<&mut [bf16]> {
        let elements = self.elements(tokens)?;
        Ok(&mut self.all16_mut()[elements])
    }

    pub(super) fn all16(&self) -> &[bf16] {
        debug_assert_eq!(self.value, Value::Bf16, "{}", self.name);
        bytemuck::cast_slice(&self.data)
    }

    pub(super) fn all16_mut(&mut self) -> &mut [bf16] {
        debug_assert_eq!(self.value, Value::Bf16, "{}", self.name);
        bytemuck::cast_slice_mut(&mut self.data)
    }

    pub(super) fn value(&self) -> Value {
        self.value
    }

    /// Takes the values away, for a thread that reads or writes them.
    pub(super) fn take_data(&mut self) -> Aligned<f32> {
        std::mem::take(&mut self.data)
    }

    pub(super) fn put_data(&mut self, data: Aligned<f32>) {
        self.data = data;
    }

    /// All rows, whatever they are of.
    pub(super) fn all(&self) -> &[f32] {
        &self.data
    }

    pub(super) fn all_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl BufferShape for CpuBuffer {
    fn tokens(&self) -> Range<usize> {
        self.first..self.first + self.tokens
    }

    fn width(&self) -> usize {
        self.width
    }

    fn move_to(&mut self, first: usize) {
        self.first = first;
    }
}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        // A stale value that is read anyway must not go unnoticed.
        if cfg!(debug_assertions) {
            self.data.fill(f32::NAN);
        }
        let data = std::mem::take(&mut self.data);
        let len = self.value.words(self.tokens * self.width);
        // Values that were taken away and not returned are gone.
        if data.len() < len && !self.memory.is_dry_run() {
            return self.memory.free(self.name, len as u64 * 4);
        }
        self.memory.pool.borrow_mut().entry(len).or_default().push((self.name, data));
    }
}
