//! Traces of a step: how long each kind of operation takes, or the first value that is not finite.

use super::{Backend, BufferShape, Op, Output};
use crate::error::{Error, Result};
use std::ops::Range;

/// What is traced while a step runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TraceMode {
    #[default]
    Off,
    /// How long each operation takes.
    Times,
    /// The first value that is not finite ends the step with an error that names it.
    Values,
}

/// The part of a step that runs, for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Before the first layer
    #[default]
    Input,
    Layer(usize),
    /// After the last layer
    Output,
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Input => f.write_str("before the first layer"),
            Self::Layer(layer) => write!(f, "in layer {layer} (model.layers.{layer})"),
            Self::Output => f.write_str("after the last layer"),
        }
    }
}

/// What a backend has traced.
#[derive(Debug, Default)]
pub struct Trace {
    pub(super) mode: TraceMode,
    pub(super) scope: Scope,
    /// Names of the operations that an event was recorded after, in order.
    pub(super) kinds: Vec<&'static str>,
    /// FLOPs of all operations, whatever is traced.
    pub(super) flops: f64,
}

impl Trace {
    pub(super) fn restart(&mut self, mode: TraceMode) {
        self.mode = mode;
        self.kinds.clear();
    }

    /// Seconds by kind, in the order of their first, from those of each operation.
    pub(super) fn sums(&mut self, seconds: &[f64]) -> Vec<(&'static str, f64)> {
        let mut times: Vec<(&'static str, f64)> = Vec::new();
        for (kind, &seconds) in std::mem::take(&mut self.kinds).into_iter().zip(seconds) {
            match times.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, sum)) => *sum += seconds,
                None => times.push((kind, seconds)),
            }
        }
        times
    }
}

/// Row and column of the first value of `[rows, width]` that is not finite.
fn not_finite_at(values: &[f32], width: usize) -> Option<(usize, usize)> {
    let index = values.iter().position(|value| !value.is_finite())?;
    Some((index / width.max(1), index % width.max(1)))
}

/// Failed: a value that `op` wrote is not finite.
pub(super) fn check_outputs<B: Backend>(backend: &mut B, op: &Op<'_, B>, tokens: &Range<usize>) -> Result<()> {
    for (name, output) in op.outputs() {
        let place = match output {
            Output::Buffer(buffer) => {
                not_finite_at(&backend.values(buffer, tokens)?, buffer.width()).map(|(row, column)| {
                    let (batch, row) = (backend.batch(), tokens.start + row);
                    let document = batch.boundaries.partition_point(|&begin| begin as usize <= row).max(1) - 1;
                    let position = batch.positions.get(row).copied().unwrap_or(0);
                    format!(
                        "{name}, row {row} (position {position} of row {document} of the micro-batch), column {column}"
                    )
                })
            }
            Output::Gradient(param, columns) => not_finite_at(&backend.gradient(param)?, columns)
                .map(|(row, column)| format!("{name}, row {row}, column {column}")),
        };
        if let Some(place) = place {
            let scope = backend.trace().scope;
            return Err(Error::Failed(format!(
                "the first value that is not finite is {scope}, operation {}: {place}",
                op.name()
            )));
        }
    }
    Ok(())
}
