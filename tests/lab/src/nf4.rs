//! Quantize and dequantize as [`Operation`]s, against `qlora_kernels::nf4`, bit for bit.

use super::device::{to_bf16, weights};
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::nf4::{Absmax, Nf4Matrix, Nf4Options, dynamic_map_signed};
use qlora_kernels::ops::nf4::{AbsmaxMut, Float, Layout};
use qlora_kernels::ops::{nf4_dequantize, nf4_quantize};
use qlora_kernels::weights::Nf4Weight;

/// f32 and bf16 from f32, and bits for comparison.
pub trait Number: Float + std::fmt::Debug {
    const NAME: &str;
    fn of(value: f32) -> Self;
    fn f32(self) -> f32;
}

impl Number for f32 {
    const NAME: &str = "f32";
    fn of(value: f32) -> Self {
        value
    }
    fn f32(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    const NAME: &str = "bf16";
    fn of(value: f32) -> Self {
        to_bf16(&[value])[0]
    }
    fn f32(self) -> f32 {
        self.to_f32()
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn bytes(n: usize, k: usize, options: &Nf4Options) -> f64 {
    Nf4Matrix::bytes_for(n, k, options) as f64
}

fn shape(n: usize, k: usize, options: &Nf4Options) -> String {
    let Nf4Options { block_size, double_quant } = options;
    format!("{n}×{k}, block {block_size}{}", if *double_quant { ", double" } else { "" })
}

/// `[n, k]` of `T` to NF4.
#[derive(Clone, Debug)]
pub struct Quantize<T> {
    pub n: usize,
    pub k: usize,
    pub options: Nf4Options,
    pub weight: Vec<T>,
}

impl<T: Number> Quantize<T> {
    pub fn random(n: usize, k: usize, options: Nf4Options, seed: u64) -> Self {
        Self { n, k, options, weight: weights(n * k, seed).into_iter().map(T::of).collect() }
    }
}

pub struct QuantizeBuffers<T: Number> {
    weight: Buffer<T>,
    map: Buffer<f32>,
    codes: Buffer<u8>,
    absmax: Buffer<f32>,
    absmax_codes: Buffer<u8>,
    nested: Buffer<f32>,
    offset: Buffer<f32>,
}

/// Codes, absmax in f32, and the second level: its codes, absmax and offset.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    pub codes: Vec<u8>,
    pub absmax: Vec<u32>,
    pub second: Option<(Vec<u8>, Vec<u32>, u32)>,
}

impl<T: Number> Operation for Quantize<T> {
    type Inputs = ();
    type Buffers = QuantizeBuffers<T>;
    type Output = Quantized;

    fn name(&self) -> String {
        format!("quantize {}", T::NAME)
    }

    fn shape(&self) -> String {
        shape(self.n, self.k, &self.options)
    }

    fn flops(&self) -> f64 {
        0.0
    }

    fn bytes(&self) -> f64 {
        (self.n * self.k * size_of::<T>()) as f64 + bytes(self.n, self.k, &self.options)
    }

    fn inputs(&self) {}

    fn upload(&self, device: &Device, (): &()) -> Result<Self::Buffers> {
        let blocks = (self.n * self.k).div_ceil(self.options.block_size);
        Ok(QuantizeBuffers {
            weight: device.upload(&self.weight)?,
            map: device.upload(dynamic_map_signed().as_slice())?,
            codes: device.upload(&vec![0xEE; (self.n * self.k).div_ceil(2)])?,
            absmax: device.upload(&vec![f32::NAN; blocks])?,
            absmax_codes: device.upload(&vec![0xEE; blocks])?,
            nested: device.upload(&vec![f32::NAN; blocks.div_ceil(256)])?,
            offset: device.upload(&[f32::NAN])?,
        })
    }

    fn launch(&self, buffers: &mut Self::Buffers, stream: Stream) -> Result<()> {
        let absmax = buffers.absmax.view_mut();
        let out = if self.options.double_quant {
            AbsmaxMut::DoubleQuantized {
                absmax,
                nested_map: buffers.map.view(),
                codes: buffers.absmax_codes.view_mut(),
                nested_absmax: buffers.nested.view_mut(),
                offset: buffers.offset.view_mut(),
            }
        } else {
            AbsmaxMut::F32(absmax)
        };
        let (weight, codes) = (buffers.weight.view(), buffers.codes.view_mut());
        nf4_quantize(weight, self.n, self.k, self.options.block_size, codes, out, stream)
    }

    fn download(&self, device: &Device, buffers: &Self::Buffers) -> Result<Quantized> {
        let second = if self.options.double_quant {
            let offset = device.download(&buffers.offset)?[0].to_bits();
            Some((device.download(&buffers.absmax_codes)?, bits(&device.download(&buffers.nested)?), offset))
        } else {
            None
        };
        let (codes, absmax) = (device.download(&buffers.codes)?, bits(&device.download(&buffers.absmax)?));
        Ok(Quantized { codes, absmax, second })
    }

    /// All of it, as the second level depends on every block.
    fn check(&self, (): &(), output: &Quantized, _: usize) -> std::result::Result<(), String> {
        let weight: Vec<f32> = self.weight.iter().map(|w| w.f32()).collect();
        let plain = Nf4Options { double_quant: false, ..self.options };
        let matrix = Nf4Matrix::quantize(&weight, self.n, self.k, &self.options).map_err(|error| error.to_string())?;
        let plain = Nf4Matrix::quantize(&weight, self.n, self.k, &plain).map_err(|error| error.to_string())?;
        let Absmax::F32(absmax) = plain.absmax() else { return Err("asked for f32 absmax".into()) };
        let second = match matrix.absmax() {
            Absmax::F32(_) => None,
            Absmax::DoubleQuantized { codes, nested_absmax, offset, .. } => {
                Some((codes.clone(), bits(nested_absmax), offset.to_bits()))
            }
        };
        let different = [
            ("codes", output.codes != matrix.codes()),
            ("absmax", output.absmax != bits(absmax)),
            ("the second level", output.second != second),
        ];
        match different.iter().find(|(_, different)| *different) {
            Some((what, _)) => Err(format!("{what} of {} differ from the reference", self.shape())),
            None => Ok(()),
        }
    }
}

/// NF4 `[n, k]` to `T`.
#[derive(Clone, Debug)]
pub struct Dequantize<T> {
    pub matrix: Nf4Matrix,
    pub layout: Layout,
    pub out: std::marker::PhantomData<T>,
}

impl<T> Dequantize<T> {
    pub fn new(matrix: Nf4Matrix, layout: Layout) -> Self {
        Self { matrix, layout, out: std::marker::PhantomData }
    }
}

impl<T: Number> Operation for Dequantize<T> {
    type Inputs = ();
    type Buffers = (Nf4Weight, Buffer<T>);
    type Output = Vec<u32>;

    fn name(&self) -> String {
        format!("dequantize {}", T::NAME)
    }

    fn shape(&self) -> String {
        let double_quant = matches!(self.matrix.absmax(), Absmax::DoubleQuantized { .. });
        let options = Nf4Options { block_size: self.matrix.block_size(), double_quant };
        shape(self.matrix.rows(), self.matrix.cols(), &options)
    }

    fn flops(&self) -> f64 {
        0.0
    }

    fn bytes(&self) -> f64 {
        (self.matrix.bytes() + self.matrix.len() * size_of::<T>()) as f64
    }

    fn inputs(&self) {}

    fn upload(&self, device: &Device, (): &()) -> Result<Self::Buffers> {
        let out = device.upload(&vec![T::of(f32::NAN); self.matrix.len()])?;
        Ok((Nf4Weight::upload(device, &self.matrix, self.layout)?, out))
    }

    fn launch(&self, (weight, out): &mut Self::Buffers, stream: Stream) -> Result<()> {
        nf4_dequantize(&weight.view(), out.view_mut(), stream)
    }

    fn download(&self, device: &Device, (_, out): &Self::Buffers) -> Result<Vec<u32>> {
        Ok(device.download(out)?.into_iter().map(|w| w.f32().to_bits()).collect())
    }

    fn check(&self, (): &(), output: &Vec<u32>, _: usize) -> std::result::Result<(), String> {
        let expected = self.matrix.dequantize();
        match (0..expected.len()).find(|&i| output[i] != T::of(expected[i]).f32().to_bits()) {
            Some(i) => {
                Err(format!("element {i}: found {}, expected {}", f32::from_bits(output[i]), T::of(expected[i]).f32()))
            }
            None => Ok(()),
        }
    }
}
