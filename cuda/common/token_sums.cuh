// Sums over tokens of the columns of bf16 matrices, for gradients of vectors: in f32, 256 tokens at a time.
//
// A block has 256 tokens of 16 vectors of columns, 16 threads a vector, of which each takes every 16th token in order.
// Their sums are added in order, to one of the block's 256 tokens, which goes to the workspace: [chunks, columns]. A
// second kernel adds those in order to what there is: the bits depend neither on the grid nor on how a batch is cut at
// multiples of 256 tokens. 16 neighbors read 256 bytes of a row; shared memory: 8 KB.
#pragma once

#include "common/rows.cuh"

constexpr int kSumTokens = 256;                     // of a block
constexpr int kSumRows = 16;                        // threads of a column
constexpr int kSumVectors = kRowThreads / kSumRows; // of a block
static_assert(kSumTokens % kSumRows == 0, "threads of a column have equally many tokens");

template <int V> constexpr size_t kTokenSumBytes = size_t(kRowThreads) * V * sizeof(float);

inline int64_t token_chunks(int64_t m) { return ceil_div(m, kSumTokens); }

// Blocks of m tokens by `columns` columns, V a vector.
inline int64_t token_sum_blocks(int64_t m, int64_t columns, int v) {
    return token_chunks(m) * ceil_div(columns, int64_t(kSumVectors) * v);
}

// One thread's part of a block's work.
template <int V> struct TokenSums {
    static constexpr int kColumns = kSumVectors * V; // of a block
    int64_t columns;                                 // of the matrix; a multiple of V
    int64_t first_column, column;                    // the block's, and this thread's
    int64_t chunk, token, end;                       // this thread's first token, and the chunk's end
    bool has_column;

    __device__ __forceinline__ TokenSums(int64_t m, int64_t columns) : columns(columns) {
        int64_t tiles = ceil_div(columns, kColumns);
        first_column = int64_t(blockIdx.x) % tiles * kColumns;
        chunk = int64_t(blockIdx.x) / tiles;
        column = first_column + int(threadIdx.x) % kSumVectors * V;
        token = chunk * kSumTokens + int(threadIdx.x) / kSumVectors;
        end = min(chunk * kSumTokens + kSumTokens, m);
        has_column = column < columns;
    }

    // partial[chunk, c] = finish(c, the sum of column c over the chunk). All threads call it, with 0 where they have no
    // column.
    template <typename Finish>
    __device__ __forceinline__ void store(const float (&sum)[V], float *partial, Finish finish) const {
        float *shared = reinterpret_cast<float *>(dynamic_shared()); // [kSumRows, kColumns]
#pragma unroll
        for (int j = 0; j < V; ++j) shared[int(threadIdx.x) * V + j] = sum[j];
        __syncthreads();
        int own = int(threadIdx.x);
        if (own >= kColumns || first_column + own >= columns) return;
        float total = shared[own];
        for (int row = 1; row < kSumRows; ++row) total = __fadd_rn(total, shared[row * kColumns + own]);
        partial[chunk * columns + first_column + own] = finish(first_column + own, total);
    }
};

// total[c] += partial[0, c], partial[1, c] and so on, in order.
int launch_add_token_sums(const float *partial, int64_t chunks, int64_t columns, float *total, qk_stream stream);
