//! The bugs that are seeded into magnitudes and into gradients of magnitudes, norms' weights and tables.

use super::table::{Mutant, mutant};

const NORMS: &str = "trained::norms_of_magnitudes";
const FORWARD: &str = "trained::magnitudes_are";
const BACKWARD: &str = "trained::gradients_of_magnitudes";
const OF_NORMS: &str = "trained::gradients_of_weights_of_norms";
const OF_EMBEDDING: &str = "trained::gradients_of_the_embedding";
const OF_HEAD: &str = "trained::gradients_of_the_output_layer";

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "squares of rows: weights as they are before they are rounded",
        "lora/magnitude_norms.cu",
        "float w = to_float(to_bf16(__fmul_rn(code, absmax)));",
        "float w = __fmul_rn(code, absmax);",
        NORMS,
    ),
    mutant(
        "squares of rows: the first block's absmax for all",
        "lora/magnitude_norms.cu",
        "            float absmax = weight.block_absmax((row + i) >> weight.block_shift);\n            uint32_t",
        "            float absmax = weight.block_absmax(row >> weight.block_shift);\n            uint32_t",
        NORMS,
    ),
    mutant(
        "norms of magnitudes: what the low-rank term adds, once instead of twice",
        "lora/magnitude_norms.cu",
        "2.0f * args.scale",
        "args.scale",
        NORMS,
    ),
    mutant(
        "norms of magnitudes: the last rank left out",
        "lora/magnitude_norms.cu",
        "for (int i = 0; i < of.r; ++i)",
        "for (int i = 0; i + 1 < of.r; ++i)",
        NORMS,
    ),
    mutant(
        "magnitudes: the bias multiplied too",
        "lora/magnitude.cu",
        "__fadd_rn(y.v[j], -of.bias.v[j]), of.bias.v[j])",
        "y.v[j], 0.0f)",
        FORWARD,
    ),
    mutant(
        "magnitudes: a row of zeros divided by",
        "lora/magnitude.cu",
        "norms.v[j] == 0.0f ? 0.0f : __fdiv_rn(magnitude.v[j], norms.v[j])",
        "__fdiv_rn(magnitude.v[j], norms.v[j])",
        FORWARD,
    ),
    mutant(
        "magnitudes, backward: their gradient with the bias",
        "lora/magnitude.cu",
        "__fadd_rn(z.v[j], -of.bias.v[j]), sums[j])",
        "z.v[j], sums[j])",
        BACKWARD,
    ),
    mutant(
        "magnitudes, backward: their gradient not divided by the norm",
        "lora/magnitude.cu",
        "norm == 0.0f ? 0.0f : __fdiv_rn(sum, norm)",
        "norm == 0.0f ? 0.0f : sum",
        BACKWARD,
    ),
    mutant(
        "magnitudes, backward: a layer without them gets nothing",
        "lora/magnitude.cu",
        "of.factor.v[j] = 1.0f;",
        "of.factor.v[j] = 0.0f;",
        BACKWARD,
    ),
    mutant(
        "sums over tokens: removed barrier",
        "common/token_sums.cuh",
        "        __syncthreads();\n        int own",
        "        int own",
        BACKWARD,
    ),
    mutant(
        "sums over tokens: the first thread of a column alone",
        "common/token_sums.cuh",
        "for (int row = 1; row < kSumRows; ++row)",
        "for (int row = 1; row < 1; ++row)",
        BACKWARD,
    ),
    mutant(
        "sums over tokens: the last token left out",
        "common/token_sums.cuh",
        "end = min(chunk * kSumTokens + kSumTokens, m);",
        "end = min(chunk * kSumTokens + kSumTokens, m - 1);",
        OF_NORMS,
    ),
    mutant(
        "sums over tokens: the last chunk left out",
        "common/token_sums.cu",
        "chunk < chunks; ++chunk",
        "chunk + 1 < chunks; ++chunk",
        OF_NORMS,
    ),
    mutant(
        "sums over tokens: what was there is forgotten",
        "common/token_sums.cu",
        "float sum = total[column];",
        "float sum = 0.0f;",
        BACKWARD,
    ),
    mutant(
        "gradient of a norm's weight: of the input as it is",
        "llama/norm_gradient.cu",
        "__fmul_rn(x.v[v], rho[part])",
        "x.v[v]",
        OF_NORMS,
    ),
    mutant(
        "gradient of a norm's weight: one root for all parts",
        "llama/norm_gradient.cu",
        "const float *rho = norm.rho + token * norm.parts;",
        "const float *rho = norm.rho + token;",
        OF_NORMS,
    ),
    mutant(
        "gradient of a norm's weight: parts from the first column on",
        "llama/norm_gradient.cu",
        "static_cast<const bf16 *>(args.x) + args.column",
        "static_cast<const bf16 *>(args.x)",
        OF_NORMS,
    ),
    mutant(
        "embedding, backward: every token adds for all of its id",
        "llama/embedding_backward.cu",
        "if (is_first && other != token) return; // the whole block",
        "",
        OF_EMBEDDING,
    ),
    mutant(
        "embedding, backward: tokens of the first 256 only",
        "llama/embedding_backward.cu",
        "first < of.m; first += kRowThreads, round ^= 1",
        "first < kRowThreads; first += kRowThreads, round ^= 1",
        OF_EMBEDDING,
    ),
    mutant(
        "embedding, backward: removed barrier",
        "llama/embedding_backward.cu",
        "__syncthreads(); // the other round's are free after it",
        "",
        OF_EMBEDDING,
    ),
    mutant(
        "embedding, backward: rows as they are",
        "llama/embedding_backward.cu",
        "__fmul_rn(of.scale, dout.v[j])",
        "dout.v[j]",
        OF_EMBEDDING,
    ),
    mutant(
        "cross-entropy: the output layer's gradient of hidden states' gradients",
        "loss/cross_entropy.cu",
        "    if (int error = launch_gradient(view, tokens, stream)) return error;\n    return launch_copy<true>",
        "    if (int error = launch_gradient(view, tokens, stream)) return error;\n    if (view.dhead != nullptr)\n        \
         if (int error = launch_head_gradient(view, tokens, stream)) return error;\n    return launch_copy<true>",
        OF_HEAD,
    ),
    mutant(
        "cross-entropy: the output layer's gradient by rows of half the logits",
        "loss/cross_entropy.cu",
        "product.lds = 2 * view.ldz;",
        "product.lds = view.ldz;",
        OF_HEAD,
    ),
];
