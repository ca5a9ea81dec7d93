//! The bugs that are seeded into attention over a KV cache and into the logits of a few tokens.

use super::table::{Mutant, mutant};

const CACHE: &str = "attention_cache::attention_over_a_cache";
const LOGITS: &str = "attention_cache::logits_are";

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "cache: removed barrier before the keys are read",
        "attention/cache.cu",
        "    __syncthreads(); // queries and keys are here",
        "",
        CACHE,
    ),
    mutant(
        "cache: removed barrier before P takes the queries' place",
        "attention/cache.cu",
        "    __syncthreads(); // maxima are here, and everyone is done with the queries",
        "",
        CACHE,
    ),
    mutant(
        "cache: removed barrier before the values are read",
        "attention/cache.cu",
        "    __syncthreads(); // P, sums and values are here",
        "",
        CACHE,
    ),
    mutant(
        "cache: does not wait for the values",
        "attention/cache.cu",
        "    cp_async_wait<0>();\n    __syncthreads(); // P",
        "    __syncthreads(); // P",
        CACHE,
    ),
    mutant(
        "cache: a query sees the next key",
        "attention/cache.cu",
        "visible = min(position + 1, end) - key0",
        "visible = min(position + 2, end) - key0",
        CACHE,
    ),
    mutant("cache: a window ignored within a chunk", "attention/cache.cu", " & (column >= from)", "", CACHE),
    mutant(
        "cache: a window of one key more",
        "attention/cache.cu",
        "return position >= window ? position - window + 1 : 0;",
        "return position >= window ? position - window : 0;",
        CACHE,
    ),
    mutant(
        "cache: the chunk that a window begins in left out",
        "attention/cache.cu",
        "begin = valid ? int(view.first_key(position) / kChunk) : 0;",
        "begin = valid ? int((view.first_key(position) + kChunk - 1) / kChunk) : 0;",
        CACHE,
    ),
    mutant(
        "cache: columns beyond those of one turn of the warps left out",
        "attention/cache.cu",
        "column < D / 16; column += kAttentionWarps",
        "column < kAttentionWarps && column < D / 16; column += kAttentionWarps",
        CACHE,
    ),
    mutant(
        "cache: keys beyond the last query's are read",
        "attention/cache.cu",
        "shared.values().template load<kChunk>(cache, width, int64_t(view.kv_heads + kv_head) * D, 0, seen);",
        "shared.values().template load<kChunk>(cache, width, int64_t(view.kv_heads + kv_head) * D, 0, seen + 1);",
        CACHE,
    ),
    mutant(
        "cache: a document's tiles begin one too early",
        "attention/cache.cu",
        "return token * group / kTileQueries + document;",
        "return token * group / kTileQueries + (document + 1) / 2;",
        CACHE,
    ),
    mutant(
        "cache: the last chunk left out",
        "attention/cache.cu",
        "int(position / kChunk) + 1 : 0,",
        "int(position / kChunk) + (position < kChunk) : 0,",
        CACHE,
    ),
    mutant(
        "cache: chunks combined without their maxima",
        "attention/cache.cu",
        "exp2f(maxima[w] - largest);",
        "1.0f;",
        CACHE,
    ),
    mutant(
        "cache: removed barrier before the warps' sums are added",
        "attention/cache.cu",
        "    __syncthreads();\n\n    // With few chunks",
        "    // With few chunks",
        CACHE,
    ),
    mutant(
        "cache: a document's rows begin at another's",
        "attention/cache.cu",
        "int64_t row = int64_t(view.starts[low]) + view.positions[token];",
        "int64_t row = int64_t(view.starts[0]) + view.positions[token];",
        CACHE,
    ),
    mutant(
        "logits: the second eight tokens left out",
        "loss/logits.cu",
        "int token = g + i / 2 * 8;",
        "int token = g;",
        LOGITS,
    ),
    mutant(
        "logits: dropped tail of the features",
        "loss/logits.cu",
        "k - t * 16 < view.h; k += kTileK",
        "k - t * 16 + kTileK <= view.h; k += kTileK",
        LOGITS,
    ),
    mutant(
        "logits: writes one row too many",
        "loss/logits.cu",
        "if (token < view.count && row < view.vocab)",
        "if (token < view.count && row <= view.vocab)",
        LOGITS,
    ),
];
