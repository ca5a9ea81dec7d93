//! Measurements on GPUs beside the predictions of the same work, from the files of `benches/records`.

use crate::cards::{CARDS, Card, OTHERS};
use crate::launches::{Kernels, Launch, predict};
use crate::operations::{Operation, adamw, dequantize};
use anyhow::Result;
use records::format::{Record, Row};

/// One row of a record, and what was predicted.
#[derive(Debug, PartialEq)]
pub struct Compared {
    pub card: &'static str,
    pub work: String,
    /// Seconds; none of work that the predictor does not know
    pub predicted: Option<f64>,
    pub measured: f64,
}

/// The card that a record is of.
pub fn card_of(gpu: &str) -> Option<&'static Card> {
    CARDS.iter().chain(OTHERS.iter()).find(|card| gpu.contains(card.in_records))
}

/// The rank of the benches' LoRA pairs.
const RANK: usize = 16;

/// An operation whose other fields are still to be set.
fn operation(name: &str, tokens: usize, k: usize) -> Operation {
    Operation { name: name.to_owned(), count: 1, tokens, k, ..Operation::default() }
}

/// Both numbers of `gate 28672×8192`, and the word before them.
fn sizes(text: &str) -> Option<(&str, usize, usize)> {
    let (name, sizes) = text.rsplit_once(' ').unwrap_or(("", text));
    let (rows, columns) = sizes.split_once('×')?;
    Some((name, rows.parse().ok()?, columns.parse().ok()?))
}

/// The number that follows a word.
fn after(text: &str, word: &str) -> Option<usize> {
    text.split_once(word)?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Rows of the weights of a bench's group, by its name, and the rank of each.
fn segments(group: &str, n: usize, rank: usize) -> Vec<[usize; 2]> {
    match group {
        // Llama 3 70B: 64 heads of queries, 8 of keys, 8 of values.
        "qkv" => vec![[n / 10 * 8, rank], [n / 10, rank], [n / 10, rank]],
        "gate-up" => vec![[n / 2, rank]; 2],
        _ => vec![[n, rank]],
    }
}

/// The trainer's operations that a row measures together. None: no prediction is made of it.
fn operations_of(row: &Row) -> Option<Vec<Operation>> {
    let (name, shape) = (row.operation.as_str(), row.shape.as_str());
    let product = |names: &[&str], rank: usize| {
        let (group, n, k) = sizes(shape)?;
        let m = row.m?;
        let of = |name: &&str| Operation { segments: segments(group, n, rank), ..operation(name, m, k) };
        Some(names.iter().map(of).collect::<Vec<_>>())
    };
    // "gate-up 57344×8192, M 4096"
    let low_rank = |name: &str| {
        let (group, m) = shape.split_once(", M ")?;
        let (group, n, k) = sizes(group)?;
        // A row with a mask has ", dropout" behind the number, and another kernel.
        Some(vec![Operation { segments: segments(group, n, RANK), ..operation(name, m.parse().ok()?, k) }])
    };
    // "2048×8192", of which `halves` halves are read and written.
    let moves = |name: &str, halves: usize| {
        let (_, m, width) = sizes(shape)?;
        Some(vec![Operation { values: halves * width / 2, ..operation(name, m, width / 2) }])
    };
    let heads = || {
        let (queries, rest) = shape.split_once(", ")?.1.split_once('/')?;
        Some([queries.parse().ok()?, rest.split(' ').next()?.parse().ok()?, after(rest, "heads of ")?])
    };
    if row.path.as_deref() == Some("Hopper") {
        return None;
    }
    match name {
        "forward NF4" => product(&["linear"], 0),
        "forward NF4 + LoRA" => product(&["LoRA X·Aᵀ", "linear"], RANK),
        "dX NF4" => product(&["linear, backward"], 0),
        "dX NF4 + LoRA" => product(&["LoRA dY·B", "linear, backward"], RANK),
        "S = X·Aᵀ" => low_rank("LoRA X·Aᵀ"),
        "T = dY·B" => low_rank("LoRA dY·B"),
        "LoRA gradients" => low_rank("LoRA gradients"),
        "attention" => Some(vec![Operation { heads: heads()?, ..operation("attention", row.m?, 0) }]),
        "attention backward" => {
            Some(vec![Operation { heads: heads()?, ..operation("attention, backward", row.m?, 0) }])
        }
        "loss" => {
            let (h, vocab) = (after(shape, "H ")?, after(shape, "vocabulary ")?);
            Some(vec![Operation { vocab, ..operation("output layer and loss", row.m?, h) }])
        }
        "rms_norm" => moves("norm", 4),
        "add + rms_norm" => moves("norm", 8),
        "rms_norm backward" => moves("norm, backward", 8),
        "head_norm" => moves("norm of q and k", 4),
        "head_norm + rope" => moves("norm and rotation of q and k", 4),
        "head_norm + rope backward" => moves("norm and rotation of q and k, backward", 6),
        "rope" => moves("rotary embedding", 4),
        "swiglu" => moves("SwiGLU", 3),
        "swiglu backward" => moves("SwiGLU, backward", 5),
        _ => None,
    }
}

/// The launches that a row measures together. None: no prediction is made of it.
fn launches_of(row: &Row, kernels: &Kernels, card: &Card) -> Option<Vec<Launch>> {
    match row.operation.as_str() {
        "dequantize bf16" => {
            let (_, n, k) = sizes(row.shape.split(',').next()?)?;
            Some(vec![dequantize((n * k) as f64)])
        }
        "AdamW update, 8-bit states" => {
            // "1120 tensors, 207.1 M elements"
            let millions = row.shape.split_once("tensors, ")?.1.split(' ').next()?.parse::<f64>().ok()?;
            Some(vec![adamw(card, 1e6 * millions)])
        }
        _ => {
            let mut all = Vec::new();
            for operation in operations_of(row)? {
                all.extend(operation.launches(kernels, card)?);
            }
            Some(all)
        }
    }
}

/// The distance of a measurement from its prediction, either way: the logarithm of their ratio. Without a prediction it
/// is -1, less than any other.
pub fn apart(measured: f64, predicted: Option<f64>) -> f64 {
    predicted.map_or(-1.0, |predicted| (measured / predicted).ln().abs())
}

/// All rows of the records of cards that are predicted, those that are farthest from their predictions first.
pub fn compared(kernels: &Kernels, records: &[Record]) -> Result<Vec<Compared>> {
    let mut all = Vec::new();
    for record in records {
        let Some(card) = card_of(&record.gpu) else { continue };
        for row in &record.rows {
            let mut predicted = None;
            if let Some(launches) = launches_of(row, kernels, card) {
                let mut seconds = 0.0;
                for launch in launches {
                    seconds += predict(kernels, &launch, card)?.seconds;
                }
                predicted = Some(seconds);
            }
            // Some shapes name the tokens.
            let tokens = row.m.filter(|_| !row.shape.contains("tokens")).map_or(String::new(), |m| format!(", M {m}"));
            let work = format!("{}, {}{tokens}", row.operation, row.shape);
            all.push(Compared { card: card.name, work, predicted, measured: row.seconds });
        }
    }
    all.sort_by(|a, b| apart(b.measured, b.predicted).total_cmp(&apart(a.measured, a.predicted)));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(operation: &str, shape: &str, m: Option<usize>, path: Option<&str>) -> Row {
        Row {
            operation: operation.into(),
            shape: shape.into(),
            m,
            path: path.map(str::to_owned),
            seconds: 1e-3,
            ..Row::default()
        }
    }

    fn names(row: &Row) -> Vec<String> {
        operations_of(row).unwrap_or_default().into_iter().map(|operation| operation.name).collect()
    }

    #[test]
    fn rows_of_predicted_work_are_told_from_the_others() {
        let gate_up = row("forward NF4 + LoRA", "gate-up 57344×8192", Some(4096), Some("TensorCore"));
        let found = operations_of(&gate_up).unwrap();
        assert_eq!(names(&gate_up), ["LoRA X·Aᵀ", "linear"]);
        assert_eq!((found[1].tokens, found[1].k), (4096, 8192));
        assert_eq!(found[1].segments, [[28672, 16], [28672, 16]]);
        let plain = operations_of(&row("dX NF4", "qkv 10240×8192", Some(64), None)).unwrap();
        assert_eq!((plain.len(), &plain[0].segments[..]), (1, &[[8192, 0], [1024, 0], [1024, 0]][..]));
        assert_eq!(names(&row("dX NF4 + LoRA", "k 1024×8192", Some(64), None)), ["LoRA dY·B", "linear, backward"]);
        for unknown in [
            row("forward NF4 + LoRA", "k 1024×8192", Some(64), Some("Hopper")),
            row("forward NF4 + LoRA", "k 1024×8192", None, None),
            row("quantize bf16", "8192×1024, block 64", None, None),
            row("LoRA gradients", "o 8192×8192, M 1024, dropout", None, None),
            row("loss without a gradient", "2048 tokens, H 8192, vocabulary 128256, chunks of 1024", Some(2048), None),
        ] {
            assert_eq!(names(&unknown), Vec::<String>::new(), "{unknown:?}");
        }
        assert_eq!(card_of("NVIDIA H100 80GB HBM3").unwrap().name, "H100");
        let (h100, h200) = (card_of("NVIDIA H100 PCIe").unwrap(), card_of("NVIDIA H200").unwrap());
        assert_eq!((h200.name, h200.matrix_flops()), ("H200", h100.matrix_flops()));
        assert!(h200.copy_bandwidth() > 1.4 * h100.copy_bandwidth());
        assert!(card_of("NVIDIA B200").is_none());
    }

    #[test]
    fn shapes_of_every_bench_are_read() {
        let one = |operation: &str, shape: &str, m| operations_of(&row(operation, shape, m, None)).unwrap().remove(0);
        let found = one("LoRA gradients", "down 8192×28672, M 1024", None);
        assert_eq!((found.tokens, found.k, found.segments[0]), (1024, 28672, [8192, 16]));
        let found = one("attention backward", "2048 tokens, 64/8 heads of 128", Some(2048));
        assert_eq!((found.name.as_str(), found.tokens, found.heads), ("attention, backward", 2048, [64, 8, 128]));
        let found = one("loss", "2048 tokens, H 8192, vocabulary 128256, chunks of 1024", Some(2048));
        assert_eq!((found.k, found.vocab), (8192, 128_256));
        // Counted as in a step of the trainer: a norm of a sum reads and writes four rows of H, SwiGLU three of I.
        assert_eq!(one("add + rms_norm", "2048×8192", None).values, 4 * 8192);
        let found = one("swiglu backward", "512×57344", None);
        assert_eq!((found.tokens, found.values, found.k), (512, 5 * 28672, 28672));
    }
}
