//! The bugs that are seeded into gradients of some rows of a table, and into the rows that are put in one.

use super::table::{Mutant, mutant};

const OF_EMBEDDING: &str = "token_rows::gradients_of_rows_of_the_embedding";
const OF_HEAD: &str = "token_rows::gradients_of_rows_of_the_output_layer";
const REPLACED: &str = "token_rows::replaced_rows";

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "embedding, backward of some rows: another id's gradient in the next row",
        "llama/embedding_backward.cu",
        "return first < num_rows && rows[first] == id ? first : -1;",
        "return first < num_rows ? first : -1;",
        OF_EMBEDDING,
    ),
    mutant(
        "embedding, backward of some rows: the row itself passed over",
        "llama/embedding_backward.cu",
        "if (rows[middle] < id) first = middle + 1;",
        "if (rows[middle] <= id) first = middle + 1;",
        OF_EMBEDDING,
    ),
    mutant(
        "embedding, backward of some rows: where the whole table has them",
        "llama/embedding_backward.cu",
        "if (rows == nullptr) return id;",
        "if (rows == nullptr || id < num_rows) return id;",
        OF_EMBEDDING,
    ),
    mutant(
        "cross-entropy, some rows of the output layer: the first ones",
        "loss/cross_entropy.cu",
        "int64_t(view.head_rows[i])",
        "i",
        OF_HEAD,
    ),
    mutant(
        "cross-entropy, some rows of the output layer: tokens half a row apart",
        "loss/cross_entropy.cu",
        "reinterpret_cast<const bf16 *>(view.logits + row * view.ldz)",
        "reinterpret_cast<const bf16 *>(view.logits) + row * view.ldz",
        OF_HEAD,
    ),
    mutant(
        "cross-entropy, some rows of the output layer: one that no table has is read",
        "loss/cross_entropy.cu",
        "column < view.vocab ? dz[column] : to_bf16(0.0f)",
        "dz[column]",
        OF_HEAD,
    ),
    mutant(
        "cross-entropy, some rows of the output layer: before their logits are picked",
        "loss/cross_entropy.cu",
        "    if (view.num_head_rows > 0)\n        if (int error = launch(pick_columns",
        "    if (view.num_head_rows < 0)\n        if (int error = launch(pick_columns",
        OF_HEAD,
    ),
    mutant(
        "replaced rows: one behind the other",
        "llama/replace_rows.cu",
        "bf16 *to = table + id * h;",
        "bf16 *to = table + int64_t(blockIdx.x) * h;",
        REPLACED,
    ),
    mutant(
        "replaced rows: their first elements",
        "llama/replace_rows.cu",
        "i < h; i += kThreads * V",
        "i < h && i < kThreads * V; i += kThreads * V",
        REPLACED,
    ),
];
