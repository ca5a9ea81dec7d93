//! Goals of the kernels, and the rows of a record that they are read from.

use super::format::Row;

/// One row of the page's table.
pub struct Goal {
    pub work: &'static str,
    pub goal: &'static str,
    pub figures: &'static [Figure],
}

/// One figure of a goal: the worst over the rows that have it.
pub struct Figure {
    pub what: &'static str,
    /// (value, where), of every row of a record that has it.
    pub values: fn(&[Row]) -> Vec<(f64, String)>,
    pub bound: Bound,
    pub unit: Unit,
    /// Wanted on GPUs with this in their names only.
    pub gpu: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// A share of 1
    Percent,
    /// In percent already
    PercentOnTop,
    TeraFlops,
    Gigabytes,
}

const fn figure(what: &'static str, values: fn(&[Row]) -> Vec<(f64, String)>, bound: Bound, unit: Unit) -> Figure {
    Figure { what, values, bound, unit, gpu: "" }
}

const FORWARD: &str = "forward NF4 + LoRA";
const DX: &str = "dX NF4 + LoRA";
const TENSOR_CORES: &str = "TensorCore";
const HOPPER: &str = "Hopper";

/// Figures of the rows of an operation (by the start of its name), on a path (any if empty), with M in a range.
fn of(
    rows: &[Row],
    operation: &str,
    path: &str,
    tokens: std::ops::RangeInclusive<usize>,
    value: fn(&Row) -> Option<f64>,
) -> Vec<(f64, String)> {
    let of_row = |row: &Row| {
        let is_of = row.operation.starts_with(operation) && tokens.contains(&row.m.unwrap_or(0));
        let is_path = path.is_empty() || row.path.as_deref() == Some(path);
        (is_of && is_path).then(|| Some((value(row)?, place(row)))).flatten()
    };
    rows.iter().filter_map(of_row).collect()
}

fn place(row: &Row) -> String {
    row.m.map_or_else(|| row.shape.clone(), |m| format!("{}, M {m}", row.shape))
}

/// Seconds at M 2 to 16 over those at M 1 of the same shape.
fn over_one_token(rows: &[Row]) -> Vec<(f64, String)> {
    let forward = |m: std::ops::RangeInclusive<usize>| of(rows, FORWARD, "", m, |row| Some(row.seconds));
    let shape = |place: &str| place.split(", M ").next().unwrap_or_default().to_owned();
    let ones = forward(1..=1);
    let ratio = |(seconds, place): (f64, String)| {
        let one = ones.iter().find(|one| shape(&one.1) == shape(&place))?;
        Some((seconds / one.0 - 1.0, place))
    };
    forward(2..=16).into_iter().filter_map(ratio).collect()
}

const MOST: usize = usize::MAX;

pub const GOALS: [Goal; 9] = [
    Goal {
        work: "quantize, dequantize",
        goal: "dequantize at ≥ 85% of the copy bandwidth",
        figures: &[figure(
            "dequantize",
            |rows| of(rows, "dequantize", "", 0..=0, |row| row.share_of_copy),
            Bound::AtLeast(0.85),
            Unit::Percent,
        )],
    },
    Goal {
        work: "forward, few tokens",
        goal: "M = 1: ≥ 65% of the copy bandwidth at 28672×8192; M ≤ 16 within 10% of M = 1",
        figures: &[
            figure(
                "M 1",
                |rows| {
                    let mut found = of(rows, FORWARD, "", 1..=1, |row| row.share_of_copy);
                    found.retain(|(_, place)| place.starts_with("gate 28672×8192"));
                    found
                },
                Bound::AtLeast(0.65),
                Unit::Percent,
            ),
            figure("M ≤ 16 over M 1", over_one_token, Bound::AtMost(0.10), Unit::Percent),
        ],
    },
    Goal {
        work: "forward + LoRA, mma.sync",
        goal: "within 5% of the same kernel on bf16 weights; ≥ 480 TFLOP/s on an H100 at M ≥ 4096",
        figures: &[
            figure(
                "of the speed on bf16 weights",
                |rows| of(rows, FORWARD, TENSOR_CORES, 17..=MOST, |row| row.over_bf16_weights),
                Bound::AtLeast(0.95),
                Unit::Percent,
            ),
            Figure {
                gpu: "H100",
                ..figure(
                    "M ≥ 4096",
                    |rows| of(rows, FORWARD, TENSOR_CORES, 4096..=MOST, |row| row.tflops),
                    Bound::AtLeast(480.0),
                    Unit::TeraFlops,
                )
            },
        ],
    },
    Goal {
        work: "forward + LoRA, Hopper path",
        goal: "≥ 80 / 90 / 95% of cuBLAS on bf16 without LoRA at M = 512 / 1024 / ≥ 2048",
        figures: &[
            figure(
                "M 512",
                |rows| of(rows, FORWARD, HOPPER, 512..=512, |row| row.over_cublaslt),
                Bound::AtLeast(0.80),
                Unit::Percent,
            ),
            figure(
                "M 1024",
                |rows| of(rows, FORWARD, HOPPER, 1024..=1024, |row| row.over_cublaslt),
                Bound::AtLeast(0.90),
                Unit::Percent,
            ),
            figure(
                "M ≥ 2048",
                |rows| of(rows, FORWARD, HOPPER, 2048..=MOST, |row| row.over_cublaslt),
                Bound::AtLeast(0.95),
                Unit::Percent,
            ),
        ],
    },
    Goal {
        work: "dX + LoRA",
        goal: "≥ 85 / 90 / 95% of cuBLAS on bf16 without LoRA at M = 1024 / 2048 / ≥ 4096",
        figures: &[
            figure(
                "M 1024",
                |rows| of(rows, DX, "", 1024..=1024, |row| row.over_cublaslt),
                Bound::AtLeast(0.85),
                Unit::Percent,
            ),
            figure(
                "M 2048",
                |rows| of(rows, DX, "", 2048..=2048, |row| row.over_cublaslt),
                Bound::AtLeast(0.90),
                Unit::Percent,
            ),
            figure(
                "M ≥ 4096",
                |rows| of(rows, DX, "", 4096..=MOST, |row| row.over_cublaslt),
                Bound::AtLeast(0.95),
                Unit::Percent,
            ),
        ],
    },
    Goal {
        work: "LoRA on top, per group of the forward pass",
        goal: "≤ 4% over the same without at M ≥ 2048, X·Aᵀ included",
        figures: &[figure(
            "on top",
            |rows| of(rows, FORWARD, "", 2048..=MOST, |row| row.lora_percent),
            Bound::AtMost(4.0),
            Unit::PercentOnTop,
        )],
    },
    Goal {
        work: "attention backward, head_dim 128",
        goal: "≥ 220 TFLOP/s (mma.sync)",
        figures: &[figure(
            "",
            |rows| of(rows, "attention backward", "", 0..=MOST, |row| row.tflops),
            Bound::AtLeast(220.0),
            Unit::TeraFlops,
        )],
    },
    Goal {
        work: "loss over a vocabulary of 128k",
        goal: "≤ 0.6 GB beside inputs and outputs at any length",
        figures: &[figure(
            "",
            |rows| of(rows, "loss", "", 0..=MOST, |row| row.transient_bytes),
            Bound::AtMost(0.6e9),
            Unit::Gigabytes,
        )],
    },
    Goal {
        work: "8-bit AdamW, 207 M parameters",
        goal: "≥ 85% of the copy bandwidth (18 bytes a parameter)",
        figures: &[figure(
            "",
            |rows| of(rows, "AdamW update, 8-bit", "", 0..=0, |row| row.share_of_copy),
            Bound::AtLeast(0.85),
            Unit::Percent,
        )],
    },
];
