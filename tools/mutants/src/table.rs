//! The bugs that are seeded into the real kernels. A new operation gets an entry for each thing that its kernels could
//! get wrong.

/// One bug: text of a file of `cuda/`, which must be there exactly once, and what takes its place.
pub struct Mutant {
    pub what: &'static str,
    pub file: &'static str,
    pub find: &'static str,
    pub replace: &'static str,
    /// The tests of `tests/cuda` that must turn red, by a part of their names.
    pub test: &'static str,
}

pub const fn mutant(
    what: &'static str,
    file: &'static str,
    find: &'static str,
    replace: &'static str,
    test: &'static str,
) -> Mutant {
    Mutant { what, file, find, replace, test }
}

const TENSOR_CORES: &str = "linear::tensor_core_path";
const SMALL_M: &str = "linear::small_m_path";
const GENERIC: &str = "linear::generic_path";
const DENSE: &str = "linear::dense_tensor_core_path";
const DX: &str = "linear_dx::dx_on_tensor_cores";
const DENSE_DX: &str = "linear_dx::dense_dx_on_tensor_cores";
const LOW_RANK: &str = "low_rank::gradients_on_tensor_cores";
const ADAMW: &str = "adamw::updates";
const ATTENTION: &str = "attention::attention_is_within";
const ATTENTION_BACKWARD: &str = "attention::attention_gradients";

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "forward: removed barrier between stages",
        "linear/forward.cu",
        "            __syncthreads(); // ... for everyone",
        "            // ... for everyone",
        TENSOR_CORES,
    ),
    mutant(
        "forward: removed barrier before the low-rank tiles",
        "linear/forward.cu",
        "__syncthreads(); // everyone is done with what lies here",
        "",
        TENSOR_CORES,
    ),
    mutant(
        "forward: removed wait for a stage's copies",
        "linear/forward.cu",
        "cp_async_wait<C::kStages - 2>();",
        "",
        TENSOR_CORES,
    ),
    mutant(
        "forward: waits for one copy too few",
        "linear/forward.cu",
        "cp_async_wait<C::kStages - 2>();",
        "cp_async_wait<C::kStages - 1>();",
        DENSE,
    ),
    mutant(
        "forward: stages beyond shared memory",
        "linear/forward.cu",
        "stages + tile % C::kStages * C::kStageBytes",
        "stages + tile % (C::kStages + 1) * C::kStageBytes",
        TENSOR_CORES,
    ),
    mutant(
        "forward: writes one output too many",
        "linear/forward.cu",
        "if (n + j < segment.n)\n                            y[j] =",
        "if (n + j <= segment.n)\n                            y[j] =",
        TENSOR_CORES,
    ),
    mutant(
        "forward: dropped K tail",
        "linear/forward.cu",
        "int64_t tiles = view.k / kTileK;",
        "int64_t tiles = (view.k - 1) / kTileK;",
        TENSOR_CORES,
    ),
    mutant(
        "forward: wrong stride of B's rows",
        "linear/forward.cu",
        "const bf16 *b = segment.b + (adapter * segment.n + n0) * r + first;",
        "const bf16 *b = segment.b + (adapter * segment.n + n0) * ((r + 7) / 8 * 8) + first;",
        TENSOR_CORES,
    ),
    mutant(
        "forward: ranks past the first tile dropped",
        "linear/forward.cu",
        "for (int first = 0; first < r; first += kTileK) {",
        "for (int first = 0; first < r && first < kTileK; first += kTileK) {",
        TENSOR_CORES,
    ),
    mutant(
        "forward: nested absmax of the first block for all",
        "linear/forward.cu",
        "w.nested_absmax[block / QK_NESTED_BLOCK]",
        "w.nested_absmax[0]",
        TENSOR_CORES,
    ),
    mutant(
        "fused kernels: swapped nibbles",
        "linear/linear.cuh",
        "__fmul_rn(codebook[byte >> 4 & 15], absmax), __fmul_rn(codebook[byte & 15], absmax)",
        "__fmul_rn(codebook[byte & 15], absmax), __fmul_rn(codebook[byte >> 4 & 15], absmax)",
        TENSOR_CORES,
    ),
    mutant(
        "M to 16: barrier that half of a block skips",
        "linear/skinny.cuh",
        "__syncthreads();\n    int warp = threadIdx.x / 32,",
        "if (threadIdx.x < kThreads / 2) __syncthreads();\n    int warp = threadIdx.x / 32,",
        SMALL_M,
    ),
    mutant(
        "M to 16: removed barrier before the warps' sums are added",
        "linear/skinny.cuh",
        "__syncthreads();\n    for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {\n        float sum = partial[i];",
        "for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {\n        float sum = partial[i];",
        SMALL_M,
    ),
    mutant(
        "M to 16: dropped K tail",
        "linear/skinny.cuh",
        "tile < view.k / kTileK; tile += kWarps",
        "tile < (view.k - 1) / kTileK; tile += kWarps",
        SMALL_M,
    ),
    mutant(
        "M to 16: wrong stride of B's rows",
        "linear/small_m.cu",
        "(adapter * segment.n + n) * segment.r;",
        "(adapter * segment.n + n) * (segment.r + 1);",
        SMALL_M,
    ),
    mutant(
        "M to 16: writes one token too many",
        "linear/small_m.cu",
        "if (token >= view.m || n >= segment.n) continue;\n        float sum",
        "if (token > view.m || n >= segment.n) continue;\n        float sum",
        SMALL_M,
    ),
    mutant(
        "S: padding columns not written",
        "lora/down.cu",
        "row < (segment.r + 7) / 8 * 8)",
        "row < segment.r)",
        SMALL_M,
    ),
    mutant(
        "odd shapes: dropped K tail",
        "linear/forward_generic.cu",
        "for (int64_t k = 0; k < view.k; ++k) {\n        int64_t i = n * view.k + k;",
        "for (int64_t k = 0; k + 1 < view.k; ++k) {\n        int64_t i = n * view.k + k;",
        GENERIC,
    ),
    mutant("dequantize: swapped nibbles", "nf4/dequantize.cu", "(i % 2 ? 0 : 4)", "(i % 2 ? 4 : 0)", "nf4::dequantiz"),
    mutant(
        "dequantize: removed barrier after the codebook",
        "nf4/dequantize.cu",
        "    __syncthreads();\n    int64_t first",
        "    int64_t first",
        "nf4::dequantiz",
    ),
    mutant(
        "quantize: swapped nibbles",
        "nf4/quantize.cu",
        "uint8_t(high << 4 | low)",
        "uint8_t(low << 4 | high)",
        "nf4::quantizing",
    ),
    mutant(
        "quantize: removed barrier in the mean",
        "nf4/quantize.cu",
        "        __syncthreads();\n        if (thread < half)",
        "        if (thread < half)",
        "nf4::quantizing",
    ),
    mutant(
        "quantize: ragged last element dropped",
        "nf4/quantize.cu",
        "i + 1 < end ? nf4_encode(",
        "i + 2 < end ? nf4_encode(",
        "nf4::quantizing",
    ),
    mutant("transpose: removed barrier", "nf4/absmax_transpose.cu", "    __syncthreads();\n", "", "nf4::"),
    mutant("dX: dropped N tail", "linear/dx.cu", "left > 0; left -= kTileN", "left >= kTileN; left -= kTileN", DX),
    mutant(
        "dX: removed barrier between stages",
        "linear/dx.cu",
        "            __syncthreads(); // ... for everyone",
        "            // ... for everyone",
        DX,
    ),
    mutant(
        "dX: waits for one copy too few",
        "linear/dx.cu",
        "cp_async_wait<C::kStages - 2>();",
        "cp_async_wait<C::kStages - 1>();",
        DENSE_DX,
    ),
    mutant(
        "dX: absmax indexed as if it were not transposed",
        "linear/dx.cu",
        "segment.nf4.transposed ? scale_column * segment.n + scale_row : cursor.block",
        "cursor.block",
        DX,
    ),
    mutant(
        "dX: another mask than the forward pass's",
        "linear/dx.cu",
        "column() / 4 + draw % 2",
        "column() / 4 + 1 - draw % 2",
        DX,
    ),
    mutant(
        "dX: forgets what it accumulates into",
        "linear/dx.cu",
        "if (whole) old = *reinterpret_cast<const uint4 *>(dx);",
        "",
        DX,
    ),
    mutant(
        "dX: an adapter's ranks for every token",
        "linear/dx.cu",
        "own >> (2 * i + c / 2) & 1 ? sum[c] : sums[i][j][c]",
        "sum[c]",
        "linear_dx_values::rows_of_an_adapter",
    ),
    mutant(
        "T: scale applied twice",
        "lora/dy_b.cu",
        "segment.scale_of(adapter) * sum : 0.0f",
        "segment.scale_of(adapter) * segment.scale_of(adapter) * sum : 0.0f",
        LOW_RANK,
    ),
    mutant(
        "T: removed barrier before the warps' sums are added",
        "lora/dy_b.cu",
        "        __syncthreads();\n        for (int i",
        "        for (int i",
        LOW_RANK,
    ),
    mutant(
        "LoRA gradients: another mask than the forward pass's",
        "lora/gradients.cu",
        "uint32_t(column / 4) + 2 * j + g / 4",
        "uint32_t(column / 4) + 2 * j + 1 - g / 4",
        LOW_RANK,
    ),
    mutant(
        "LoRA gradients: removed barrier between stages",
        "lora/gradients.cu",
        "        __syncthreads(); // ... for everyone",
        "        // ... for everyone",
        LOW_RANK,
    ),
    mutant(
        "LoRA gradients: the last chunk of tokens dropped",
        "lora/gradients.cu",
        "for (int stage = 0; now.chunk < last;",
        "for (int stage = 0; now.chunk + 1 < last;",
        LOW_RANK,
    ),
    mutant("AdamW: a tensor's rate ignored", "optim/adamw.cu", "view.rates[entry.rate]", "view.rates[0]", ADAMW),
    mutant("AdamW: removed barrier after the maps", "optim/adamw.cu", "        __syncthreads();\n", "", ADAMW),
    mutant(
        "AdamW: gradients are not clipped",
        "optim/adamw.cu",
        "scale = view.gradient_state->scale;",
        "",
        "adamw::a_rate_that_is_ignored",
    ),
    mutant(
        "attention: a query sees the next key",
        "attention/forward.cu",
        "column <= row[i / 2] &&",
        "column <= row[i / 2] + 1 &&",
        ATTENTION,
    ),
    mutant(
        "attention: windows and documents ignored within a tile",
        "attention/forward.cu",
        " && column >= from[i / 2]",
        "",
        ATTENTION,
    ),
    mutant(
        "attention: removed barrier between stages",
        "attention/forward.cu",
        "        __syncthreads();\n        if (key + kKeys <= last)",
        "        if (key + kKeys <= last)",
        ATTENTION,
    ),
    mutant(
        "attention: sums keep an old maximum",
        "attention/forward.cu",
        "sum[i] * shrink + tile_sum",
        "sum[i] + tile_sum",
        ATTENTION,
    ),
    mutant(
        "attention backward: removed barrier between stages",
        "attention/backward.cu",
        "            __syncthreads();\n            if (query + kWalked < stop)",
        "            if (query + kWalked < stop)",
        ATTENTION_BACKWARD,
    ),
    mutant(
        "attention backward: a query head left out",
        "attention/backward.cu",
        "head < (kv_head + 1) * group; ++head",
        "head + 1 < (kv_head + 1) * group; ++head",
        ATTENTION_BACKWARD,
    ),
    mutant(
        "norm backward: without what lies along x",
        "llama/rms_norm.cu",
        " - along_x * x.v[j]",
        "",
        "layer::norm_gradients",
    ),
    mutant(
        "norm backward: forgets what it accumulates into",
        "llama/rms_norm.cu",
        "if (norm.accumulate) dx = Vector<V>::load(norm.dx + row + i);",
        "",
        "layer::norm_gradients",
    ),
    mutant(
        "norm of heads: keys with the weight of queries",
        "llama/head_norm.cu",
        "head < norm.heads ? norm.q_weight : norm.k_weight",
        "norm.q_weight",
        "layer::norms_of_heads",
    ),
    mutant(
        "norm of heads: sums over a whole warp",
        "llama/head_norm.cu",
        "lane_sums(squares, g_dot_x, norm.lanes)",
        "lane_sums(squares, g_dot_x, 32)",
        "layer::norms_of_heads",
    ),
    mutant(
        "norm of heads, backward: values as if they had a norm",
        "llama/head_norm.cu",
        "result.v[j] = is_value ? copied : normed;",
        "result.v[j] = backward ? normed : is_value ? copied : normed;",
        "layer::gradients_of_norms_of_heads",
    ),
    mutant(
        "rotary embedding: the inverse turns as forward",
        "llama/rope.cu",
        "args.inverse != 0 ? -1.0f : 1.0f",
        "1.0f",
        "layer::rotary",
    ),
];
