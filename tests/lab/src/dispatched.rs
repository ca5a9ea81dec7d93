//! The linear layer by a named row of the dispatch table, as an [`Operation`].

use super::linear::{Buffers, Host, Linear, Output};
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::dispatch::{self, Dispatch};
use qlora_kernels::ops::linear::Input;
use qlora_kernels::ops::lora_down;
use qlora_kernels::rng;

#[derive(Clone, Debug)]
pub struct Dispatched<'a> {
    pub linear: Linear,
    pub dispatch: Dispatch<'a>,
}

pub struct DispatchedBuffers {
    linear: Buffers,
    workspace: Buffer<bf16>,
}

impl Dispatched<'_> {
    /// Check of the fused kernel, with the base product rounded once more before the low-rank term is added.
    pub fn check_rounded(&self, inputs: &Host, output: &Output, most: usize) -> std::result::Result<(), String> {
        let Linear { m, k, pad_x, .. } = self.linear;
        let columns = self.linear.columns();
        let mut stream = rng::Stream::new(self.linear.seed, 4);
        let mut column = 0;
        for (part, (host, y)) in self.linear.parts.iter().zip(inputs.parts.iter().zip(&output.y)) {
            for _ in 0..most.min(256) {
                let (token, n) = (stream.below(m as u32) as usize, stream.below(part.n as u32) as usize);
                let x = &inputs.x[token * (k + pad_x)..][..k];
                let (mut base, mut magnitude) = (0.0, 0.0);
                for (x, w) in x.iter().zip(&host.weight[n * k..]) {
                    let product = f64::from(x.to_f32()) * f64::from(*w);
                    (base, magnitude) = (base + product, magnitude + product.abs());
                }
                if part.bias {
                    base += f64::from(host.bias[n].to_f32());
                }
                let mut sum = base;
                for j in 0..part.r {
                    let s = f64::from(bf16::from_bits(output.s[token * columns + column + j]).to_f32());
                    let term = s * f64::from(host.b[n * part.r + j].to_f32());
                    (sum, magnitude) = (sum + term, magnitude + term.abs());
                }
                let found = f64::from(bf16::from_bits(y[token * (part.n + part.pad) + n]).to_f32());
                let terms = (k + part.r + 1) as f64;
                let bound = 2f64.powi(-8) * (sum.abs() + base.abs()) + terms * 2f64.powi(-24) * magnitude + 1e-38;
                let error = (found - sum).abs();
                if error.is_nan() || error > bound {
                    return Err(format!("Y[{token}, {n}]: found {found}, expected {sum}, bound {bound}"));
                }
            }
            column += part.r.next_multiple_of(8);
        }
        Ok(())
    }
}

impl Operation for Dispatched<'_> {
    type Inputs = Host;
    type Buffers = DispatchedBuffers;
    type Output = Output;

    fn name(&self) -> String {
        format!("{} by {}", self.linear.name(), self.dispatch)
    }

    fn shape(&self) -> String {
        self.linear.shape()
    }

    fn flops(&self) -> f64 {
        self.linear.flops()
    }

    fn bytes(&self) -> f64 {
        self.linear.bytes()
    }

    fn inputs(&self) -> Host {
        self.linear.inputs()
    }

    fn upload(&self, device: &Device, inputs: &Host) -> Result<DispatchedBuffers> {
        let mut linear = self.linear.upload(device, inputs)?;
        let len = self
            .linear
            .with(&mut linear, |input, segments, _, _| Ok(dispatch::workspace_len(self.dispatch, &input, segments)))?;
        Ok(DispatchedBuffers { linear, workspace: device.upload(&vec![bf16::NAN; len])? })
    }

    fn launch(&self, buffers: &mut DispatchedBuffers, stream: Stream) -> Result<()> {
        let DispatchedBuffers { linear, workspace } = buffers;
        let columns = self.linear.columns();
        self.linear.with(linear, |input, segments, s, _| {
            let len = self.linear.m * columns;
            lora_down(&input, segments, s.view_mut().first(len), stream)?;
            let input = Input { s: Some(s.view().first(len)), ..input };
            dispatch::forward(self.dispatch, &input, segments, workspace.view_mut(), stream)
        })
    }

    fn download(&self, device: &Device, buffers: &DispatchedBuffers) -> Result<Output> {
        self.linear.download(device, &buffers.linear)
    }

    fn check(&self, inputs: &Host, output: &Output, most: usize) -> std::result::Result<(), String> {
        match self.dispatch {
            Dispatch::Fused => self.linear.check(inputs, output, most),
            Dispatch::DequantizeCublasLt(_) => self.check_rounded(inputs, output, most),
        }
    }
}
