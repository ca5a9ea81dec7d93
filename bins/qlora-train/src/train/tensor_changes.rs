//! Changes of what was trained beside the low-rank terms: whole modules, and rows of single tokens.

use crate::backend::Backend;
use crate::base::Checkpoint;
use crate::error::Result;
use crate::lora::{ParamId, ParamKind};
use crate::model::Llama;
use crate::run_report::TensorChange;

/// Values of the base that are read at one time.
const PIECE: usize = 1 << 20;

/// The change of each tensor from the base's. One tensor is in memory at a time, and of the base a piece. Tensors that
/// the base stores in NF4 are left out.
pub(super) fn tensor_changes<B: Backend>(
    backend: &B,
    model: &Llama<B>,
    checkpoint: &Checkpoint,
) -> Result<Vec<TensorChange>> {
    let mut changes = Vec::new();
    for (id, shape, param) in model.params() {
        let rows = match id.kind() {
            ParamKind::Whole => None,
            ParamKind::Tokens => model.spec().lora.tokens.get(id.module()),
            _ => continue,
        };
        let values = model.stored_values(backend, &id, param)?;
        let columns = shape.last().copied().unwrap_or(1);
        let name = stored_name(model, &id);
        if let Some((norm, base)) = norms(checkpoint, &name, rows.map(|rows| (&rows[..], columns)), &values)? {
            let relative = (base > 0.0).then(|| norm / base);
            let rows = rows.map(|rows| rows.len() as u64);
            changes.push(TensorChange { module: id.module().to_owned(), rows, norm, relative });
        }
    }
    Ok(changes)
}

/// The name of the base's tensor that a trained one began with. A base with one tensor for both tables stores it as the
/// embedding.
fn stored_name<B: Backend>(model: &Llama<B>, id: &ParamId) -> String {
    let arch = &model.spec().arch;
    match arch.tie_word_embeddings && id.module() == arch.names.head_module() {
        true => arch.names.embedding.to_owned(),
        false => format!("{}.weight", id.module()),
    }
}

/// The norm of the change of values from those of the base, and that of the base's: of the whole tensor, or of these
/// rows, with the number of their columns. None: it is stored in NF4.
fn norms(
    checkpoint: &Checkpoint,
    name: &str,
    rows: Option<(&[u32], usize)>,
    values: &[f32],
) -> Result<Option<(f64, f64)>> {
    let (mut apart, mut own) = (0.0f64, 0.0f64);
    let mut add = |values: &[f32], base: &[f32]| {
        for (&value, &base) in values.iter().zip(base) {
            apart += (f64::from(value) - f64::from(base)).powi(2);
            own += f64::from(base).powi(2);
        }
    };
    match rows {
        Some((rows, columns)) => {
            let Some(base) = checkpoint.read_rows_f32(name, rows)? else { return Ok(None) };
            values.chunks(columns).zip(&base).for_each(|(values, base)| add(values, base));
        }
        None => {
            for (piece, values) in values.chunks(PIECE).enumerate() {
                let first = piece * PIECE;
                let base = checkpoint.read_range_f32(name, first..first + values.len())?;
                let Some(base) = base else { return Ok(None) };
                add(values, &base);
            }
        }
    }
    Ok(Some((apart.sqrt(), own.sqrt())))
}

#[cfg(test)]
mod tests;
