//! The bugs that are seeded into the fused output layer and cross-entropy.

use super::table::{Mutant, mutant};

const LOSS: &str = "cross_entropy::loss_and_gradient";

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "cross-entropy: dropped vocabulary tail",
        "loss/cross_entropy_logits.cu",
        "if (first_column + 8 * n + j < view.vocab) sum += expf",
        "if (first_column + 8 * n + j < view.vocab / 64 * 64) sum += expf",
        LOSS,
    ),
    mutant(
        "cross-entropy: vocabulary padded with logits of 0",
        "loss/cross_entropy_logits.cu",
        "if (first_column + 8 * n + j < view.vocab) sum += expf",
        "sum += expf",
        LOSS,
    ),
    mutant(
        "cross-entropy: removed barrier between stages",
        "loss/cross_entropy_logits.cu",
        "        __syncthreads();    // ... for everyone",
        "        // ... for everyone",
        LOSS,
    ),
    mutant(
        "cross-entropy: a loss summed without its weight",
        "loss/cross_entropy.cu",
        "loss *= double(view.weights[row]);",
        ";",
        LOSS,
    ),
    mutant(
        "cross-entropy: a gradient with the weight of another row",
        "loss/cross_entropy.cu",
        "__fmul_rn(view.gradient_scale, view.weights[source])",
        "__fmul_rn(view.gradient_scale, view.weights[row])",
        LOSS,
    ),
    mutant(
        "cross-entropy: a weight of 0 is supervised",
        "loss/cross_entropy.cuh",
        "targets[row] >= 0 && (weights == nullptr || weights[row] != 0.0f)",
        "targets[row] >= 0",
        LOSS,
    ),
    mutant(
        "cross-entropy: sums keep an old maximum",
        "loss/cross_entropy.cu",
        "__fmul_rn(sum, expf(largest - base))",
        "sum",
        LOSS,
    ),
    mutant(
        "cross-entropy: targets of the first chunk for all",
        "loss/cross_entropy.cuh",
        "rows[first + row]",
        "rows[row]",
        LOSS,
    ),
    mutant(
        "cross-entropy: logits overwritten before they are read",
        "loss/cross_entropy.cu",
        "        __syncthreads();\n        if (column >= view.vocab) continue;",
        "        if (column >= view.vocab) continue;",
        LOSS,
    ),
    mutant(
        "cross-entropy: every second pass over a row left out",
        "loss/cross_entropy.cu",
        "first < view.vocab; first += kRowThreads * 8",
        "first < view.vocab; first += kRowThreads * 16",
        "cross_entropy::large_vocabularies",
    ),
    mutant(
        "cross-entropy: only the first statistics of a row",
        "loss/cross_entropy.cu",
        "i < view.num_statistics; i += kRowThreads",
        "i < view.num_statistics && i < kRowThreads; i += kRowThreads",
        "cross_entropy::large_vocabularies",
    ),
    mutant(
        "cross-entropy: tokens without a target keep an old gradient",
        "loss/cross_entropy.cu",
        "if (view.is_supervised(row)) return;",
        "return;",
        LOSS,
    ),
    mutant(
        "cross-entropy: rows that are not finite looked for in the first rows only",
        "loss/cross_entropy.cu",
        "for (int i = 1; i < kScanWarps; ++i) bad = min(bad, firsts[i]);",
        "",
        "cross_entropy_values::many_tokens",
    ),
];
