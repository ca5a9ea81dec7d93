//! A stand-in for the library in the emulation: products on the host, each sum in f32 and in order, rounded once.

use super::gemm::Gemm;
use crate::device::{Buffer, Device, Stream};
use crate::error::Result;
use half::bf16;
use half::slice::HalfFloatSliceExt;

/// In place of a number.
const VERSION: &str = "on the host";

/// Stands for a handle of the library. What it computes is what a GPU would, but for the order of sums.
pub struct CublasLt {
    /// Not used, and held as the library holds it.
    _own_workspace: Option<Buffer<u8>>,
}

impl std::fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CublasLt(on the host)")
    }
}

impl CublasLt {
    /// A stand-in, which is always there.
    pub fn open() -> Result<Self> {
        Ok(Self { _own_workspace: None })
    }

    /// A stand-in that keeps the workspace as the library does.
    pub fn with_workspace(own_workspace: Buffer<u8>) -> Result<Self> {
        Ok(Self { _own_workspace: Some(own_workspace) })
    }

    /// True: a stand-in is always there.
    pub fn is_present() -> bool {
        true
    }

    /// Nothing: there is no code to load.
    pub fn load(_: &Device) -> Result<String> {
        Ok(VERSION.into())
    }

    /// Words in place of a version.
    pub fn version(&self) -> String {
        VERSION.into()
    }

    /// None: there is one way.
    pub fn algorithms(&self) -> Vec<String> {
        Vec::new()
    }

    /// Queues the product, after checks of every length and stride.
    pub fn gemm(&self, gemm: Gemm<'_>, stream: Stream) -> Result<()> {
        gemm.check()?;
        let Gemm { m, n, k, x, ldx, w, ldw, k_by_n, bias, y, ldy, accumulate } = gemm;
        if m == 0 {
            return Ok(());
        }
        let parts = ((x.address(), x.len()), (w.address(), w.len()), (y.address(), y.len()));
        let bias = bias.map(|bias| (bias.address(), bias.len()));
        stream.run(move || {
            let (x, w, y) = parts;
            // SAFETY: memory of the emulation is the host's, and stays until the work on it is done, in the order of
            // the stream. The views have as many elements, and that of y is the only one of its own.
            let (x, w, y) = unsafe {
                (
                    std::slice::from_raw_parts(x.0, x.1),
                    std::slice::from_raw_parts(w.0, w.1),
                    std::slice::from_raw_parts_mut(y.0, y.1),
                )
            };
            // SAFETY: as above.
            let bias = bias.map(|bias| unsafe { std::slice::from_raw_parts(bias.0, bias.1) });
            // [k, n]
            let mut factors = vec![0.0; k * n];
            for (i, factors) in factors.chunks_exact_mut(n).enumerate() {
                match k_by_n {
                    true => w[i * ldw..][..n].convert_to_f32_slice(factors),
                    false => factors.iter_mut().enumerate().for_each(|(j, factor)| *factor = w[j * ldw + i].to_f32()),
                }
            }
            let mut sums = vec![0.0f32; n];
            for token in 0..m {
                let (x, y) = (&x[token * ldx..][..k], &mut y[token * ldy..][..n]);
                sums.fill(0.0);
                for (x, factors) in x.iter().zip(factors.chunks_exact(n)) {
                    let x = x.to_f32();
                    sums.iter_mut().zip(factors).for_each(|(sum, factor)| *sum += x * factor);
                }
                for (j, (y, sum)) in y.iter_mut().zip(&sums).enumerate() {
                    let bias = bias.map_or(0.0, |bias| bias[j].to_f32());
                    let before = if accumulate { y.to_f32() } else { 0.0 };
                    *y = bf16::from_f32(sum + bias + before);
                }
            }
        });
        Ok(())
    }
}
