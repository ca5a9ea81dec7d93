//! dX by a named row of the dispatch table, as an [`Operation`].

use super::linear_dx::{Buffers, Host, LinearDx, Output};
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::dispatch::{self, Dispatch};
use qlora_kernels::ops::linear_backward::Backward;
use qlora_kernels::ops::lora_dy_b;

#[derive(Clone, Debug)]
pub struct DispatchedDx<'a> {
    /// Without adapters; with dropout only by the fused kernels.
    pub dx: LinearDx,
    pub dispatch: Dispatch<'a>,
}

pub struct DispatchedBuffers {
    dx: Buffers,
    workspace: Buffer<bf16>,
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
            let backward = Backward { t: Some(t.view().into()), ..backward };
            Ok(dispatch::dx_workspace_len(self.dispatch, &backward, segments))
        })?;
        Ok(DispatchedBuffers { dx, workspace: device.upload(&vec![bf16::NAN; len])? })
    }

    fn launch(&self, buffers: &mut DispatchedBuffers, stream: Stream) -> Result<()> {
        let DispatchedBuffers { dx, workspace } = buffers;
        self.dx.with(dx, |backward, segments, gradient, t, _| {
            let len = backward.m * self.dx.linear.columns();
            lora_dy_b(&backward, segments, t.view_mut().first(len), stream)?;
            let backward = Backward { t: Some(t.view().first(len).into()), ..backward };
            dispatch::dx(self.dispatch, &backward, segments, gradient, workspace.view_mut(), stream)
        })
    }

    fn download(&self, device: &Device, buffers: &DispatchedBuffers) -> Result<Output> {
        self.dx.download(device, &buffers.dx)
    }

    /// By the bound of the fused kernels: both rows round once, and the bound is that of any order of sums.
    fn check(&self, inputs: &Host, output: &Output, most: usize) -> std::result::Result<(), String> {
        self.dx.check(inputs, output, most)
    }
}
