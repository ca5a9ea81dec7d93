// A skinny product, 16 tokens by 8 * kTiles rows of a matrix a block: of the forward pass for M <= 16 (small_m.cu) and
// of S (lora/down.cu). 8 warps take every 8th tile of 64 features; their sums are added in warp order through shared
// memory (4 KB * kTiles), so that a result depends on K alone. Preconditions: K % 64 == 0, ldx % 8 == 0.
#pragma once

#include "linear/linear.cuh"

namespace skinny {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTokens = 16;

__device__ __forceinline__ Features load_features(const bf16 *row, int64_t first, bool valid) {
    if (!valid) return {};
    const uint4 *from = reinterpret_cast<const uint4 *>(row + first);
    return features_of(from[0], from[1]);
}

// Rows of a bf16 matrix [rows, K].
struct DenseRows {
    const bf16 *matrix;
    int64_t k;
    __device__ __forceinline__ Features load(int, int64_t row, int64_t tile, int lane, const float *) const {
        return load_features(matrix + row * k, tile * kTileK + lane * 16, true);
    }
};

// Zeroes what dropout drops of 16 features from `first` on.
__device__ __forceinline__ void drop(Features &features, const DropoutView &dropout, int64_t token, int64_t first) {
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
        uint32_t kept = dropout_kept(dropout, token, first / 4 + quad);
        features.pairs[2 * quad] &= (kept & 1) * 0xffffu | (kept >> 1 & 1) * 0xffff0000u;
        features.pairs[2 * quad + 1] &= (kept >> 2 & 1) * 0xffffu | (kept >> 3 & 1) * 0xffff0000u;
    }
}

// sums [16, 8 * kTiles] in shared memory: products of the block's tokens and rows. `codebook` is shared memory of 16
// floats before it.
template <int kTiles, bool kDropout = false, typename Rows>
__device__ __forceinline__ float *skinny_product(const LinearView &view, const Rows &rows, int64_t row0,
                                                 int64_t num_rows, int64_t token0) {
    constexpr int kColumns = 8 * kTiles;
    float *codebook = reinterpret_cast<float *>(dynamic_shared()), *partial = codebook + 32;
    if (threadIdx.x < 16) codebook[threadIdx.x] = nf4_code(threadIdx.x);
    __syncthreads();
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const bf16 *x_g = view.x + (token0 + g) * view.ldx, *x_g8 = x_g + 8 * view.ldx;
    bool valid_g = token0 + g < view.m, valid_g8 = token0 + g + 8 < view.m;
    float c[kTiles][4] = {};
#pragma unroll 2
    for (int64_t tile = warp; tile < view.k / kTileK; tile += kWarps) {
        Features a = load_features(x_g, tile * kTileK + t * 16, valid_g),
                 a8 = load_features(x_g8, tile * kTileK + t * 16, valid_g8);
        if constexpr (kDropout)
            if (view.dropout.active()) {
                drop(a, view.dropout, token0 + g, tile * kTileK + t * 16);
                drop(a8, view.dropout, token0 + g + 8, tile * kTileK + t * 16);
            }
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
            int64_t row = row0 + 8 * j + g;
            mma_tile(c[j], a, a8, row < num_rows ? rows.load(j, row, tile, t, codebook) : Features{});
        }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            partial[(warp * kTokens + g + i / 2 * 8) * kColumns + 8 * j + 2 * t + i % 2] = c[j][i];
    __syncthreads();
    for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
        float sum = partial[i];
        for (int w = 1; w < kWarps; ++w) sum += partial[w * kTokens * kColumns + i];
        partial[i] = sum; // only this thread touches these
    }
    __syncthreads();
    return partial;
}

constexpr size_t shared_bytes(int tiles) {
    return 32 * sizeof(float) + size_t(kWarps) * kTokens * 8 * tiles * sizeof(float);
}

}  // namespace skinny
