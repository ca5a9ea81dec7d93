//! The bugs that are seeded into how tiles lie in shared memory: what the counters see, most of it where results stay
//! right.

use super::table::{Mutant, mutant};

const FORWARD: &str = "counters::tiles_of_the_forward";
const DX: &str = "counters::tiles_of_dx";
const ATTENTION: &str = "counters::tiles_of_attention";

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "forward: rows of codes that meet in their banks",
        "linear/forward.cu",
        "(row ^ (row >> 2 & 3)) * kCodeBytes",
        "row * kCodeBytes",
        FORWARD,
    ),
    mutant(
        "dx: rows of codes that meet in their banks",
        "linear/dx.cu",
        "(chunk ^ (row >> 1 & 3)) * 16",
        "chunk * 16",
        DX,
    ),
    mutant("dx: tokens that meet in their banks", "linear/dx.cu", "(chunk ^ (row & 7)) * 16", "chunk * 16", DX),
    mutant(
        "attention: rows that meet in their banks",
        "attention/attention.cuh",
        "half ^ (lane & 7) ^ (step % 4 * 2)",
        "half ^ (step % 4 * 2)",
        ATTENTION,
    ),
];
