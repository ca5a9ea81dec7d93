//! The linear layer by a named row of the dispatch table, as an [`Operation`].

use super::linear::{Buffers, Host, Linear, Output, SENTINEL};
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::dispatch::{self, Dispatch};
use qlora_kernels::ops::linear::{Input, Segment};
use qlora_kernels::ops::lora_down;

#[derive(Clone, Debug)]
pub struct Dispatched<'a> {
    pub linear: Linear,
    pub dispatch: Dispatch<'a>,
    /// The outputs of all parts are columns of one matrix, as those of q, k and v are; their pads are 0.
    pub side_by_side: bool,
}

pub struct DispatchedBuffers {
    linear: Buffers,
    workspace: Buffer<bf16>,
    /// `[m, Σ n]`, or empty
    y: Buffer<bf16>,
}

impl Dispatched<'_> {
    fn widths(&self) -> Vec<usize> {
        self.linear.parts.iter().map(|part| part.n).collect()
    }

    /// Σ n, or 0 where the outputs lie apart.
    fn width(&self) -> usize {
        if self.side_by_side { self.widths().iter().sum() } else { 0 }
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
        let y = device.upload(&vec![SENTINEL; self.linear.m * self.width()])?;
        Ok(DispatchedBuffers { linear, workspace: device.upload(&vec![bf16::NAN; len])?, y })
    }

    fn launch(&self, buffers: &mut DispatchedBuffers, stream: Stream) -> Result<()> {
        let DispatchedBuffers { linear, workspace, y } = buffers;
        let (widths, ldy) = (self.widths(), self.width());
        let columns = self.linear.columns();
        self.linear.with(linear, |input, segments, s, _| {
            let len = self.linear.m * columns;
            lora_down(&input, segments, s.view_mut().first(len), stream)?;
            let input = Input { s: Some(s.view().first(len).into()), ..input };
            if !self.side_by_side {
                return dispatch::forward(self.dispatch, &input, segments, workspace.view_mut(), stream);
            }
            let columns = y.view_mut().columns(&widths);
            let mut joined = Vec::with_capacity(widths.len());
            for (of, y) in segments.iter().zip(columns) {
                joined.push(Segment { n: of.n, weight: of.weight, lora: of.lora, bias: of.bias, y, ldy });
            }
            dispatch::forward(self.dispatch, &input, &mut joined, workspace.view_mut(), stream)
        })
    }

    fn download(&self, device: &Device, buffers: &DispatchedBuffers) -> Result<Output> {
        let mut output = self.linear.download(device, &buffers.linear)?;
        if self.side_by_side {
            let (all, ldy, mut column) = (device.download(&buffers.y)?, self.width(), 0);
            for (y, n) in output.y.iter_mut().zip(self.widths()) {
                *y = all.chunks(ldy).flat_map(|row| row[column..][..n].iter().map(|y| y.to_bits())).collect();
                column += n;
            }
        }
        Ok(output)
    }

    /// By the bound of the fused kernels: both rows round once, and the bound is that of any order of sums.
    fn check(&self, inputs: &Host, output: &Output, most: usize) -> std::result::Result<(), String> {
        self.linear.check(inputs, output, most)
    }
}
