//! Attention over a KV cache as an [`Operation`]: append, then attention, against the definition in f64 over each
//! document's whole length. Rows that no document has reached yet are NaN in the cache.

use super::attention::AttentionOperation;
use super::device::to_bf16;
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::attention_cache::{NewTokens, Shape};
use qlora_kernels::ops::{attention_cache, attention_cache_append};
use qlora_kernels::rng;
use qlora_kernels::shape::AttentionShape;

#[derive(Clone, Debug)]
pub struct CacheOperation {
    pub shape: AttentionShape,
    /// Tokens that the cache has, and new ones, of every document; either may be none.
    pub documents: Vec<(usize, usize)>,
    /// A query sees this many keys at most.
    pub window: Option<usize>,
    /// Rows of the cache before the first document, between two, and after the last.
    pub gap: usize,
    /// Tokens by which documents may get longer than the longest of these.
    pub room: usize,
    /// Queries and keys are uniform in (-size, size).
    pub size: f32,
    pub seed: u64,
}

pub struct Host {
    /// q‖k‖v of the new tokens.
    pub qkv: Vec<bf16>,
    /// With the earlier tokens' rows.
    pub cache: Vec<bf16>,
    pub boundaries: Vec<u32>,
    pub starts: Vec<u32>,
    pub positions: Vec<u32>,
    expected_cache: Vec<bf16>,
    pub expected: Vec<(f64, f64)>,
}

pub struct Buffers {
    qkv: Buffer<bf16>,
    cache: Buffer<bf16>,
    boundaries: Buffer<u32>,
    starts: Buffer<u32>,
    positions: Buffer<u32>,
    out: Buffer<bf16>,
    workspace: Buffer<u8>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub out: Vec<u16>,
    pub cache: Vec<u16>,
}

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|value| value.to_bits()).collect()
}

impl CacheOperation {
    pub fn new_tokens(&self) -> usize {
        self.documents.iter().map(|(_, new)| new).sum()
    }

    fn longest(&self) -> usize {
        self.documents.iter().map(|(past, new)| past + new).max().unwrap_or(0).max(1) + self.room
    }

    pub fn kernel_shape(&self) -> Shape {
        let (m, documents) = (self.new_tokens(), self.documents.len());
        Shape { attention: self.shape, m, documents, longest: self.longest() }
    }

    /// Pairs of a new query and a cached row that it sees, and cached rows that are seen.
    fn seen(&self) -> (f64, f64) {
        let window = self.window.unwrap_or(usize::MAX);
        let of = |&(past, new): &(usize, usize)| (1..=new).map(|i| window.min(past + i)).sum::<usize>();
        // The first new token sees the earliest of the rows.
        let seen = |&(past, new): &(usize, usize)| past.min(window - 1) + new;
        let rows = self.documents.iter().filter(|(_, new)| *new > 0).map(seen).sum::<usize>();
        (self.documents.iter().map(of).sum::<usize>() as f64, rows as f64)
    }
}

impl Operation for CacheOperation {
    type Inputs = Host;
    type Buffers = Buffers;
    type Output = Output;

    fn name(&self) -> String {
        "attention over a cache".into()
    }

    fn shape(&self) -> String {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let (new, rows) = (self.new_tokens(), self.seen().1);
        format!("{new} tokens, {rows} cached rows, {heads}/{kv_heads} heads of {head_dim}")
    }

    fn flops(&self) -> f64 {
        4.0 * self.seen().0 * self.shape.out() as f64
    }

    /// The cached rows read, new rows read and written, out written. Partial results for the kernel's second pass count
    /// for nothing.
    fn bytes(&self) -> f64 {
        let width = attention_cache::width(self.shape);
        let row = self.shape.qkv() + 2 * width + self.shape.out();
        2.0 * (self.seen().1 * width as f64 + (self.new_tokens() * row) as f64)
    }

    fn inputs(&self) -> Host {
        let mut stream = rng::RngStream::new(self.seed, 21);
        let (width, qkv_width, out) = (attention_cache::width(self.shape), self.shape.qkv(), self.shape.out());
        let tokens: usize = self.documents.iter().map(|(past, new)| past + new).sum();
        let rows = tokens + self.gap * (self.documents.len() + 1) + self.documents.len();
        let mut cache = vec![bf16::NAN; rows * width];
        let mut expected_cache = cache.clone();
        let (mut qkv, mut boundaries, mut starts, mut positions) = (Vec::new(), vec![0], Vec::new(), Vec::new());
        let mut expected = Vec::new();
        // A row of room between two documents even without a gap: it must not be read.
        let mut start = self.gap;
        for &(past, new) in &self.documents {
            let len = past + new;
            let numbers = (0..len * qkv_width).map(|_| (stream.uniform() * 2.0 - 1.0) * self.size);
            let whole = to_bf16(&numbers.collect::<Vec<f32>>());
            for (position, row) in whole.chunks(qkv_width).enumerate() {
                let at = (start + position) * width;
                expected_cache[at..][..width].copy_from_slice(&row[out..]);
                if position < past {
                    cache[at..][..width].copy_from_slice(&row[out..]);
                }
            }
            let Self { shape, window, size, seed, .. } = *self;
            let alone = AttentionOperation { shape, documents: vec![len], window, backward: false, size, seed };
            // Sums of a chunk, of the chunks of a warp, of the warps.
            expected.extend_from_slice(&alone.forward(&whole, 3).0[past * out..]);
            qkv.extend_from_slice(&whole[past * qkv_width..]);
            positions.extend(past as u32..len as u32);
            boundaries.push(positions.len() as u32);
            starts.push(start as u32);
            start += len + 1 + self.gap;
        }
        Host { qkv, cache, boundaries, starts, positions, expected_cache, expected }
    }

    fn upload(&self, device: &Device, host: &Host) -> Result<Buffers> {
        let workspace = attention_cache::workspace_bytes(&self.kernel_shape())?;
        Ok(Buffers {
            qkv: device.upload(&host.qkv)?,
            cache: device.upload(&host.cache)?,
            boundaries: device.upload(&host.boundaries)?,
            starts: device.upload(&host.starts)?,
            positions: device.upload(&host.positions)?,
            out: device.upload(&vec![bf16::NAN; self.new_tokens() * self.shape.out()])?,
            workspace: device.upload(&vec![0xffu8; workspace])?,
        })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        let Buffers { qkv, cache, boundaries, starts, positions, out, workspace } = buffers;
        let new = NewTokens {
            shape: self.kernel_shape(),
            qkv: qkv.view(),
            boundaries: boundaries.view(),
            starts: starts.view(),
            positions: positions.view(),
            window: self.window,
        };
        attention_cache_append(&new, cache.view_mut(), stream)?;
        attention_cache(&new, cache.view(), out.view_mut(), workspace.view_mut(), stream)
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Output> {
        let (out, cache) = (device.download(&buffers.out)?, device.download(&buffers.cache)?);
        Ok(Output { out: bits(&out), cache: bits(&cache) })
    }

    fn check(&self, host: &Host, output: &Output, _: usize) -> std::result::Result<(), String> {
        let width = attention_cache::width(self.shape);
        let expected = bits(&host.expected_cache);
        if let Some(i) = (0..expected.len()).find(|&i| output.cache[i] != expected[i]) {
            return Err(format!("row {} of the cache, column {}: not the token's", i / width, i % width));
        }
        for (i, (&found, &(expected, bound))) in output.out.iter().zip(&host.expected).enumerate() {
            let found = bf16::from_bits(found).to_f64();
            if (found - expected).abs() > bound + 1e-38 || found.is_nan() {
                let (token, column) = (i / self.shape.out(), i % self.shape.out());
                return Err(format!(
                    "token {token}, column {column}: found {found}, expected {expected}, bound {bound}"
                ));
            }
        }
        Ok(())
    }
}
