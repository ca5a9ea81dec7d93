//! dX by a named row of the dispatch table, as an [`Operation`].

use super::linear::Linear;
use super::linear_dx::{Buffers, Host, LinearDx, Output, Row};
use super::operation::Operation;
use super::values::chosen;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::dispatch::{self, Dispatch};
use qlora_kernels::ops::linear_backward::Backward;
use qlora_kernels::ops::lora_dy_b;
use qlora_kernels::rng;

#[derive(Clone, Debug)]
pub struct DispatchedDx<'a> {
    /// Without adapters and dropout.
    pub dx: LinearDx,
    pub dispatch: Dispatch<'a>,
}

pub struct DispatchedBuffers {
    dx: Buffers,
    workspace: Buffer<bf16>,
}

impl DispatchedDx<'_> {
    /// Row `token` of dX in f64, from T as it was rounded, and the sum of the magnitudes of what is rounded on the way:
    /// every partial sum.
    fn row(&self, inputs: &Host, t: &[u16], token: usize) -> (Row, Vec<f64>) {
        let Linear { k, pad_x, .. } = self.dx.linear;
        let (mut row, mut rounded) = (Row(vec![(0.0, 0.0); k]), vec![0.0; k]);
        let mut round =
            |row: &Row| rounded.iter_mut().zip(&row.0).for_each(|(sum, (partial, _))| *sum += partial.abs());
        if self.dx.accumulate {
            row.add(bf16::ONE, inputs.dx[token * (k + pad_x)..][..k].iter().map(|dx| dx.to_f32()));
        }
        let mut t = t[token * self.dx.linear.columns()..].iter().map(|&bits| bf16::from_bits(bits));
        for ((part, host), dy) in self.dx.linear.parts.iter().zip(&inputs.parts).zip(&inputs.dy) {
            for n in 0..part.n {
                row.add(dy[token * (part.n + part.pad) + n], host.weight[n * k..][..k].iter().copied());
            }
            round(&row);
            for (j, t) in t.by_ref().take(part.r.next_multiple_of(8)).enumerate().filter(|&(j, _)| j < part.r) {
                row.add(t, host.a[j * k..][..k].iter().map(|a| a.to_f32()));
            }
            round(&row);
        }
        (row, rounded)
    }

    /// Check of the fused kernel, with every partial sum rounded.
    pub fn check_rounded(&self, inputs: &Host, output: &Output, most: usize) -> std::result::Result<(), String> {
        let linear = &self.dx.linear;
        let mut stream = rng::Stream::new(linear.seed, 5);
        let terms: usize = linear.parts.iter().map(|part| part.n + part.r + 1).sum();
        for token in
            chosen(linear.m, if most == usize::MAX { most } else { most.div_ceil(linear.k).max(2) }, &mut stream)
        {
            self.dx.check_t(inputs, &output.t, token)?;
            let (Row(row), rounded) = self.row(inputs, &output.t, token);
            let found = &output.dx[token * (linear.k + linear.pad_x)..];
            for (i, ((sum, magnitude), rounded)) in row.into_iter().zip(rounded).enumerate() {
                let found = f64::from(bf16::from_bits(found[i]).to_f32());
                let bound = 2f64.powi(-8) * rounded + (terms + 2) as f64 * 2f64.powi(-24) * magnitude + 1e-38;
                let error = (found - sum).abs();
                if error.is_nan() || error > bound {
                    return Err(format!("dX[{token}, {i}]: found {found}, expected {sum}, bound {bound}"));
                }
            }
        }
        Ok(())
    }
}

impl Operation for DispatchedDx<'_> {
    type Inputs = Host;
    type Buffers = DispatchedBuffers;
    type Output = Output;

    fn name(&self) -> String {
        format!("{} by {}", self.dx.name(), self.dispatch)
    }

    fn shape(&self) -> String {
        self.dx.shape()
    }

    fn flops(&self) -> f64 {
        self.dx.flops()
    }

    fn bytes(&self) -> f64 {
        self.dx.bytes()
    }

    fn inputs(&self) -> Host {
        self.dx.inputs()
    }

    fn upload(&self, device: &Device, inputs: &Host) -> Result<DispatchedBuffers> {
        let mut dx = self.dx.upload(device, inputs)?;
        let len = self.dx.with(&mut dx, |backward, segments, _, t, _| {
            let backward = Backward { t: Some(t.view()), ..backward };
            Ok(dispatch::dx_workspace_len(self.dispatch, &backward, segments))
        })?;
        Ok(DispatchedBuffers { dx, workspace: device.upload(&vec![bf16::NAN; len])? })
    }

    fn launch(&self, buffers: &mut DispatchedBuffers, stream: Stream) -> Result<()> {
        let DispatchedBuffers { dx, workspace } = buffers;
        self.dx.with(dx, |backward, segments, gradient, t, _| {
            let len = backward.m * self.dx.linear.columns();
            lora_dy_b(&backward, segments, t.view_mut().first(len), stream)?;
            let backward = Backward { t: Some(t.view().first(len)), ..backward };
            dispatch::dx(self.dispatch, &backward, segments, gradient, workspace.view_mut(), stream)
        })
    }

    fn download(&self, device: &Device, buffers: &DispatchedBuffers) -> Result<Output> {
        self.dx.download(device, &buffers.dx)
    }

    fn check(&self, inputs: &Host, output: &Output, most: usize) -> std::result::Result<(), String> {
        match self.dispatch {
            Dispatch::Fused => self.dx.check(inputs, output, most),
            Dispatch::DequantizeCublasLt(_) => self.check_rounded(inputs, output, most),
        }
    }
}
