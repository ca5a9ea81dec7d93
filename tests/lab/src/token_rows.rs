//! Rows of single tokens of an embedding as [`Operation`]s: their gradients, and writing them into a table. Both have
//! the bits of `reference` and of a plain copy.

use super::device::to_bf16;
use super::operation::Operation;
use super::vector_gradients::{EmbeddingGradients, EmbeddingHost};
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::{embedding_backward_of_rows, replace_rows};
use qlora_kernels::{reference, rng};

/// Different numbers below `below`, ascending; `count` of them, or all.
pub fn rows(count: usize, below: usize, seed: u64) -> Vec<u32> {
    let mut stream = rng::RngStream::new(seed, 25);
    let mut left = count.min(below);
    let mut rows = Vec::with_capacity(left);
    for row in 0..below {
        if (stream.below((below - row) as u32) as usize) < left {
            rows.push(row as u32);
            left -= 1;
        }
    }
    rows
}

/// The gradient of an embedding, of these rows alone.
#[derive(Clone, Debug)]
pub struct EmbeddingRows {
    pub of: EmbeddingGradients,
    /// Ascending
    pub rows: Vec<u32>,
}

impl EmbeddingRows {
    /// Those rows of a table `[vocab, h]`.
    pub fn wanted<T: Copy>(&self, table: &[T]) -> Vec<T> {
        let h = self.of.h;
        self.rows.iter().flat_map(|&row| &table[row as usize * h..][..h]).copied().collect()
    }
}

pub struct RowBuffers {
    ids: Buffer<u32>,
    dout: Buffer<bf16>,
    rows: Buffer<u32>,
    drows: Buffer<f32>,
}

impl Operation for EmbeddingRows {
    type Inputs = EmbeddingHost;
    type Buffers = RowBuffers;
    /// Bits of f32
    type Output = Vec<u32>;

    fn name(&self) -> String {
        "embedding backward of some rows".into()
    }

    fn shape(&self) -> String {
        format!("{}, {} rows", self.of.shape(), self.rows.len())
    }

    fn flops(&self) -> f64 {
        0.0
    }

    fn bytes(&self) -> f64 {
        (8 * self.rows.len() * self.of.h) as f64
    }

    fn inputs(&self) -> EmbeddingHost {
        self.of.inputs()
    }

    fn upload(&self, device: &Device, host: &EmbeddingHost) -> Result<RowBuffers> {
        Ok(RowBuffers {
            ids: device.upload(&host.ids)?,
            dout: device.upload(&host.dout)?,
            rows: device.upload(&self.rows)?,
            drows: device.upload(&self.wanted(&host.dtable))?,
        })
    }

    fn launch(&self, buffers: &mut RowBuffers, stream: Stream) -> Result<()> {
        let RowBuffers { ids, dout, rows, drows } = buffers;
        let EmbeddingGradients { h, vocab, scale, .. } = self.of;
        embedding_backward_of_rows(ids.view(), dout.view(), rows.view(), vocab, h, scale, drows.view_mut(), stream)
    }

    fn download(&self, device: &Device, buffers: &RowBuffers) -> Result<Vec<u32>> {
        Ok(device.download(&buffers.drows)?.into_iter().map(f32::to_bits).collect())
    }

    fn check(&self, host: &EmbeddingHost, output: &Vec<u32>, _: usize) -> std::result::Result<(), String> {
        let (h, dout) = (self.of.h, host.dout.iter().map(|x| x.to_f32()).collect::<Vec<f32>>());
        let mut expected = self.wanted(&host.dtable);
        reference::embedding_backward_of_rows(&dout, &host.ids, &self.rows, self.of.scale, &mut expected, h);
        let differs = output.iter().zip(&expected).position(|(&bits, expected)| bits != expected.to_bits());
        let Some(i) = differs else { return Ok(()) };
        let (row, column, found) = (self.rows[i / h], i % h, f32::from_bits(output[i]));
        Err(format!("row {row}, column {column}: found {found}, expected {}", expected[i]))
    }
}

/// Rows that take the place of some of a table.
#[derive(Clone, Debug)]
pub struct ReplacedRows {
    pub h: usize,
    pub vocab: usize,
    /// In any order; one of them perhaps none of the table
    pub rows: Vec<u32>,
    pub seed: u64,
}

pub struct ReplacedHost {
    /// `[rows, h]`
    values: Vec<bf16>,
    /// `[vocab, h]`
    table: Vec<bf16>,
}

pub struct ReplacedBuffers {
    rows: Buffer<u32>,
    values: Buffer<bf16>,
    table: Buffer<bf16>,
}

impl Operation for ReplacedRows {
    type Inputs = ReplacedHost;
    type Buffers = ReplacedBuffers;
    /// Bits of bf16
    type Output = Vec<u16>;

    fn name(&self) -> String {
        "replaced rows".into()
    }

    fn shape(&self) -> String {
        format!("{} of {}×{}", self.rows.len(), self.vocab, self.h)
    }

    fn flops(&self) -> f64 {
        0.0
    }

    fn bytes(&self) -> f64 {
        (4 * self.rows.len() * self.h) as f64
    }

    fn inputs(&self) -> ReplacedHost {
        let mut stream = rng::RngStream::new(self.seed, 26);
        let mut numbers = |rows: usize| -> Vec<f32> { (0..rows * self.h).map(|_| stream.uniform() - 0.5).collect() };
        let (mut values, table) = (to_bf16(&numbers(self.rows.len())), to_bf16(&numbers(self.vocab)));
        // Bits are kept, whatever they are.
        values[0] = bf16::from_bits(0xffc1);
        ReplacedHost { values, table }
    }

    fn upload(&self, device: &Device, host: &ReplacedHost) -> Result<ReplacedBuffers> {
        let (values, table) = (device.upload(&host.values)?, device.upload(&host.table)?);
        Ok(ReplacedBuffers { rows: device.upload(&self.rows)?, values, table })
    }

    fn launch(&self, buffers: &mut ReplacedBuffers, stream: Stream) -> Result<()> {
        let ReplacedBuffers { rows, values, table } = buffers;
        replace_rows(rows.view(), values.view(), self.vocab, self.h, table.view_mut(), stream)
    }

    fn download(&self, device: &Device, buffers: &ReplacedBuffers) -> Result<Vec<u16>> {
        Ok(device.download(&buffers.table)?.into_iter().map(bf16::to_bits).collect())
    }

    fn check(&self, host: &ReplacedHost, output: &Vec<u16>, _: usize) -> std::result::Result<(), String> {
        let mut expected: Vec<u16> = host.table.iter().map(|x| x.to_bits()).collect();
        for (&row, values) in self.rows.iter().zip(host.values.chunks_exact(self.h)) {
            if let Some(to) = expected.chunks_exact_mut(self.h).nth(row as usize) {
                to.iter_mut().zip(values).for_each(|(to, x)| *to = x.to_bits());
            }
        }
        match output.iter().zip(&expected).position(|(found, expected)| found != expected) {
            None => Ok(()),
            Some(i) => Err(format!(
                "row {}, column {}: found {:#06x}, expected {:#06x}",
                i / self.h,
                i % self.h,
                output[i],
                expected[i]
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_as_many_as_asked_for_and_ascend() {
        for (count, below) in [(1, 1), (3, 40), (40, 40), (50, 40)] {
            let rows = rows(count, below, 7);
            assert_eq!(rows.len(), count.min(below));
            assert!(rows.windows(2).all(|pair| pair[0] < pair[1]) && rows.iter().all(|&row| (row as usize) < below));
        }
    }
}
