//! The first value of a step that is not finite.

use super::{BufferShape, Compute, Op, Output};
use crate::error::{Error, Result};
use std::ops::Range;

/// Row and column of the first value of `[rows, width]` that is not finite.
fn not_finite_at(values: &[f32], width: usize) -> Option<(usize, usize)> {
    let index = values.iter().position(|value| !value.is_finite())?;
    Some((index / width.max(1), index % width.max(1)))
}

/// Failed: a value that `op` wrote is not finite.
pub(super) fn check_outputs<B: Compute>(backend: &mut B, op: &Op<'_, B>, tokens: &Range<usize>) -> Result<()> {
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
