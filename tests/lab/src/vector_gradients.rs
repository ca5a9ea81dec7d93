//! Gradients of norms' weights and of an embedding's rows as [`Operation`]s, against `reference` on the same bf16
//! inputs: those of norms in f64 within their roundings, those of rows in f32 bit for bit, as their order is that of
//! the tokens.

use super::device::to_bf16;
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::norm_gradient::workspace_bytes;
use qlora_kernels::ops::{NormGradient, embedding_backward, norm_gradient};
use qlora_kernels::{reference, rng};

const EPS: f32 = 1e-5;

fn numbers(stream: &mut rng::RngStream, len: usize) -> Vec<f32> {
    (0..len).map(|_| stream.uniform() * 2.0 - 1.0).collect()
}

/// Rows of `column` elements, the parts, and `tail` elements.
#[derive(Clone, Debug)]
pub struct NormGradients {
    pub m: usize,
    pub parts: usize,
    pub width: usize,
    pub column: usize,
    pub tail: usize,
    pub seed: u64,
}

pub struct NormHost {
    /// `[m, ld]`
    dy: Vec<bf16>,
    /// `[m, ld]`
    x: Vec<bf16>,
    /// `[width]`, before it is added to
    dweight: Vec<f32>,
}

pub struct NormBuffers {
    dy: Buffer<bf16>,
    x: Buffer<bf16>,
    dweight: Buffer<f32>,
    workspace: Buffer<u8>,
}

impl NormGradients {
    fn ld(&self) -> usize {
        self.column + self.parts * self.width + self.tail
    }

    /// All parts of a matrix, one behind the other.
    fn parts_of(&self, matrix: &[bf16]) -> Vec<f64> {
        let rows = matrix.chunks(self.ld());
        rows.flat_map(|row| &row[self.column..][..self.parts * self.width]).map(|x| x.to_f64()).collect()
    }
}

impl Operation for NormGradients {
    type Inputs = NormHost;
    type Buffers = NormBuffers;
    /// Bits of f32
    type Output = Vec<u32>;

    fn name(&self) -> String {
        "gradient of a norm's weight".into()
    }

    fn shape(&self) -> String {
        format!("{}×{}×{}", self.m, self.parts, self.width)
    }

    fn flops(&self) -> f64 {
        0.0
    }

    fn bytes(&self) -> f64 {
        3.0 * (2 * self.m * self.parts * self.width) as f64
    }

    fn inputs(&self) -> NormHost {
        let mut stream = rng::RngStream::new(self.seed, 23);
        let len = self.m * self.ld();
        let (dy, x) = (to_bf16(&numbers(&mut stream, len)), to_bf16(&numbers(&mut stream, len)));
        NormHost { dy, x, dweight: numbers(&mut stream, self.width) }
    }

    fn upload(&self, device: &Device, host: &NormHost) -> Result<NormBuffers> {
        let bytes = workspace_bytes(self.m, self.parts, self.width);
        Ok(NormBuffers {
            dy: device.upload(&host.dy)?,
            x: device.upload(&host.x)?,
            dweight: device.upload(&host.dweight)?,
            workspace: device.upload(&vec![0xffu8; bytes])?,
        })
    }

    fn launch(&self, buffers: &mut NormBuffers, stream: Stream) -> Result<()> {
        let NormBuffers { dy, x, dweight, workspace } = buffers;
        let Self { m, parts, column, .. } = *self;
        let norm =
            NormGradient { m, parts, column, ld: self.ld(), lddy: self.ld(), eps: EPS, dy: dy.view(), x: x.view() };
        norm_gradient(&norm, dweight.view_mut(), workspace.view_mut(), stream)
    }

    fn download(&self, device: &Device, buffers: &NormBuffers) -> Result<Vec<u32>> {
        Ok(device.download(&buffers.dweight)?.into_iter().map(f32::to_bits).collect())
    }

    fn check(&self, host: &NormHost, output: &Vec<u32>, _: usize) -> std::result::Result<(), String> {
        let (dy, x) = (self.parts_of(&host.dy), self.parts_of(&host.x));
        let absolute = |values: &[f64]| values.iter().map(|x| x.abs()).collect::<Vec<f64>>();
        let before: Vec<f64> = host.dweight.iter().map(|&x| x.into()).collect();
        let (mut expected, mut magnitude) = (before.clone(), absolute(&before));
        reference::rms_norm_gradient(&dy, &x, EPS.into(), &mut expected);
        reference::rms_norm_gradient(&absolute(&dy), &absolute(&x), EPS.into(), &mut magnitude);
        // The mean of squares, of a lane's elements and of 32 lanes; the terms of a thread, 16 threads and the chunks.
        let roundings = self.width.div_ceil(32) + 24 + 16 * self.parts + 20 + self.m.div_ceil(256);
        for (i, &bits) in output.iter().enumerate() {
            let (found, bound) = (f64::from(f32::from_bits(bits)), roundings as f64 * 2f64.powi(-24) * magnitude[i]);
            let right = (found - expected[i]).abs() <= bound;
            if !right {
                return Err(format!("element {i}: found {found}, expected {}, bound {bound}", expected[i]));
            }
        }
        Ok(())
    }
}

/// Few of the `vocab` ids are those of most tokens; one of nine is none of the table.
#[derive(Clone, Debug)]
pub struct EmbeddingGradients {
    pub m: usize,
    pub h: usize,
    pub vocab: usize,
    pub scale: f32,
    pub seed: u64,
}

pub struct EmbeddingHost {
    pub ids: Vec<u32>,
    /// `[m, h]`
    pub dout: Vec<bf16>,
    /// `[vocab, h]`, before it is added to
    pub dtable: Vec<f32>,
}

pub struct EmbeddingBuffers {
    ids: Buffer<u32>,
    dout: Buffer<bf16>,
    dtable: Buffer<f32>,
}

impl Operation for EmbeddingGradients {
    type Inputs = EmbeddingHost;
    type Buffers = EmbeddingBuffers;
    /// Bits of f32
    type Output = Vec<u32>;

    fn name(&self) -> String {
        "embedding backward".into()
    }

    fn shape(&self) -> String {
        format!("{}×{}, vocabulary {}", self.m, self.h, self.vocab)
    }

    fn flops(&self) -> f64 {
        0.0
    }

    /// No two tokens are of one id here.
    fn bytes(&self) -> f64 {
        (10 * self.m * self.h) as f64
    }

    fn inputs(&self) -> EmbeddingHost {
        let mut stream = rng::RngStream::new(self.seed, 24);
        let mut id = || match stream.below(9) {
            0 => self.vocab as u32 + stream.below(3),
            1..=4 => stream.below(self.vocab.min(4) as u32),
            _ => stream.below(self.vocab as u32),
        };
        let ids = (0..self.m).map(|_| id()).collect();
        let dout = to_bf16(&numbers(&mut stream, self.m * self.h));
        EmbeddingHost { ids, dout, dtable: numbers(&mut stream, self.vocab * self.h) }
    }

    fn upload(&self, device: &Device, host: &EmbeddingHost) -> Result<EmbeddingBuffers> {
        Ok(EmbeddingBuffers {
            ids: device.upload(&host.ids)?,
            dout: device.upload(&host.dout)?,
            dtable: device.upload(&host.dtable)?,
        })
    }

    fn launch(&self, buffers: &mut EmbeddingBuffers, stream: Stream) -> Result<()> {
        let EmbeddingBuffers { ids, dout, dtable } = buffers;
        let Self { h, vocab, scale, .. } = *self;
        embedding_backward(ids.view(), dout.view(), vocab, h, scale, dtable.view_mut(), stream)
    }

    fn download(&self, device: &Device, buffers: &EmbeddingBuffers) -> Result<Vec<u32>> {
        Ok(device.download(&buffers.dtable)?.into_iter().map(f32::to_bits).collect())
    }

    fn check(&self, host: &EmbeddingHost, output: &Vec<u32>, _: usize) -> std::result::Result<(), String> {
        let dout: Vec<f32> = host.dout.iter().map(|x| x.to_f32()).collect();
        let mut expected = host.dtable.clone();
        reference::embedding_backward(&dout, &host.ids, self.scale, &mut expected, self.h);
        let differs = output.iter().zip(&expected).position(|(&bits, expected)| bits != expected.to_bits());
        let Some(i) = differs else { return Ok(()) };
        let (row, column, found) = (i / self.h, i % self.h, f32::from_bits(output[i]));
        Err(format!("row {row}, column {column}: found {found}, expected {}", expected[i]))
    }
}
