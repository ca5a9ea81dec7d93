// The checked operand of the fused output layer and cross-entropy, by value, and its launchers.
#pragma once

#include "common/soft_cap.cuh"

constexpr int kStatisticColumns = 64; // logits that one maximum and sum of exponentials are of

// The checked operand and the workspace, by value. A chunk is at most `chunk` supervised tokens; its rows are numbered
// from 0.
struct CrossEntropyView {
    const bf16 *hidden, *head;  // [M, H], [V, H]
    const int32_t *targets;     // [M]
    float *losses;              // [M]
    qk_loss_state *state;       // [1]
    bf16 *dhidden;              // [M, H], or NULL
    float *dhead;               // [V, H], or [num_head_rows, H], or NULL
    const uint32_t *head_rows;  // [num_head_rows], or NULL: all V
    int64_t h, vocab, chunk;
    int64_t padded_h;           // H rounded up to 64
    int64_t ldz;                // V rounded up to 8
    int64_t num_statistics;     // of a row: ceil(V / 64)
    int64_t num_head_rows;      // whose gradient alone is wanted, or 0
    int64_t ld_picked;          // num_head_rows rounded up to 8
    const float *weights;       // [M], or NULL: 1 each
    int m, supervised;
    float gradient_scale;
    float soft_cap;             // of logits; 0: none

    int32_t *rows;              // [supervised]: the rows of hidden that are supervised, in order; -1 past the last
    bf16 *gathered;             // [chunk, padded_h]: those rows of hidden, zeros past H; later their gradient
    float2 *statistics; // [chunk, num_statistics]: largest logit, sum of exponentials of what the others are below it
    float *target_logits;       // [chunk]
    float
        *logits; // [chunk, ldz], then their bf16 gradient over it at the same row stride in bytes; NULL without dhidden
    bf16 *picked;               // [chunk, ld_picked]: columns head_rows of that gradient, zeros past them; or nothing
    void *head_sums;            // sums over tokens of the gradient of a small output layer, or nothing

    // True if a row is computed.
    __device__ __forceinline__ bool is_supervised(int64_t row) const {
        return targets[row] >= 0 && (weights == nullptr || weights[row] != 0.0f);
    }

    // The target of a row of the chunk that starts at `first`; -1: none.
    __device__ __forceinline__ int target(int64_t first, int64_t row) const {
        int at = rows[first + row];
        return at < 0 ? -1 : targets[at];
    }
};

// Logits of `tokens` supervised tokens from `first` on: statistics, target_logits and, unless NULL, logits.
int launch_cross_entropy_logits(const CrossEntropyView &view, int64_t first, int tokens, qk_stream stream);
