//! Measurements on GPUs beside the predictions of the same work, from the files of `benches/records`.

use crate::cards::{CARDS, Card};
use crate::launches::{Kernels, predict};
use crate::operations::Operation;
use anyhow::Result;
use records::format::{Record, Row};

/// One row of a record, and what was predicted.
#[derive(Debug, PartialEq)]
pub struct Compared {
    pub card: &'static str,
    pub work: String,
    pub predicted: f64,
    pub measured: f64,
}

/// The card that a record is of.
pub fn card_of(gpu: &str) -> Option<&'static Card> {
    CARDS.iter().find(|card| gpu.contains(card.in_records))
}

/// The operation that a row measures, where it is one that is predicted: the fused forward and dX of one layer.
fn operation_of(row: &Row) -> Option<Operation> {
    let name = match row.operation.as_str() {
        operation if operation.starts_with("forward NF4") => "linear",
        operation if operation.starts_with("dX NF4") => "linear, backward",
        _ => return None,
    };
    if row.path.as_deref() == Some("Hopper") {
        return None;
    }
    // "gate 28672×8192"
    let (n, k) = row.shape.rsplit(' ').next()?.split_once('×')?;
    let segments = vec![[n.parse().ok()?, 16]];
    Some(Operation {
        name: name.to_owned(),
        count: 1,
        tokens: row.m?,
        k: k.parse().ok()?,
        segments,
        heads: [0; 3],
        window: 0,
        vocab: 0,
        values: 0,
        units: 0.0,
    })
}

/// All rows of the records that a prediction stands beside.
pub fn compared(kernels: &Kernels, records: &[Record]) -> Result<Vec<Compared>> {
    let mut all = Vec::new();
    for record in records {
        let Some(card) = card_of(&record.gpu) else { continue };
        for row in &record.rows {
            let Some(operation) = operation_of(row) else { continue };
            let mut predicted = 0.0;
            for launch in operation.launches(kernels, card).unwrap_or_default() {
                predicted += predict(kernels, &launch, card)?.seconds;
            }
            let work = format!("{}, {}, M {}", row.operation, row.shape, operation.tokens);
            all.push(Compared { card: card.name, work, predicted, measured: row.seconds });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_predicted_work_are_told_from_the_others() {
        let row = |operation: &str, shape: &str, m, path: Option<&str>| Row {
            operation: operation.into(),
            shape: shape.into(),
            m,
            path: path.map(str::to_owned),
            seconds: 1e-3,
            ..Row::default()
        };
        let found =
            operation_of(&row("forward NF4 + LoRA", "gate 28672×8192", Some(4096), Some("TensorCore"))).unwrap();
        assert_eq!((found.name.as_str(), found.k, &found.segments[..]), ("linear", 8192, &[[28672, 16]][..]));
        assert!(operation_of(&row("dX NF4 + LoRA", "8192×1024", Some(64), None)).is_some());
        assert!(operation_of(&row("forward NF4 + LoRA", "8192×1024", Some(64), Some("Hopper"))).is_none());
        assert!(operation_of(&row("quantize", "8192×1024", None, None)).is_none());
        assert_eq!(card_of("NVIDIA H100 80GB HBM3").unwrap().name, "H100");
        assert!(card_of("NVIDIA B200").is_none());
    }
}
