// A skinny product, 16 tokens by 8 * kTiles rows of a matrix a block: of the forward pass for M <= 16 (small_m.cu) and
// of S (lora/down.cu). 8 warps take every 8th tile of 64 features; their sums are added in warp order through shared
// memory (4 KB * kTiles), so that a result depends on K alone. Preconditions: K % 64 == 0, ldx % 8 == 0.
//
// Limit: the bytes of the matrix, as long as enough of them are under way. So a lane asks for what it needs of all its
// rows a tile before it multiplies, with no branch around a load: a row or token that is not there is the last one
// again, whose sums nobody reads.
#pragma once

#include "linear/linear.cuh"

namespace skinny {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTokens = 16;
constexpr int kTables = 16 + 256; // floats of shared memory: what the rows are decoded with

__device__ __forceinline__ Features load_features(const bf16 *row, int64_t first) {
    return features_of(load_as<uint4>(row + first), load_as<uint4>(row + first + 8));
}

// Rows of a bf16 matrix [rows, K].
struct DenseRows {
    using Raw = Features;
    const bf16 *matrix;
    int64_t k;
    __device__ __forceinline__ void prepare(float *) const {}
    __device__ __forceinline__ Raw load(int, int64_t row, int64_t tile, int lane) const {
        return load_features(matrix + row * k, tile * kTileK + lane * 16);
    }
    __device__ __forceinline__ Features decode(const Raw &raw, const float *) const { return raw; }
};

// Zeroes what dropout drops of 16 features from `first` on.
__device__ __forceinline__ void drop(Features &features, const DropoutView &dropout, uint32_t step, int64_t token,
                                     int64_t first) {
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
        uint32_t kept = dropout_kept(dropout, step, token, first / 4 + quad);
        features.pairs[2 * quad] &= (kept & 1) * 0xffffu | (kept >> 1 & 1) * 0xffff0000u;
        features.pairs[2 * quad + 1] &= (kept >> 2 & 1) * 0xffffu | (kept >> 3 & 1) * 0xffff0000u;
    }
}

// sums [16, 8 * kTiles] in shared memory: products of the block's tokens and rows.
template <int kTiles, bool kDropout = false, typename Rows>
__device__ __forceinline__ float *skinny_product(const LinearView &view, const Rows &rows, int64_t row0,
                                                 int64_t num_rows, int64_t token0) {
    constexpr int kColumns = 8 * kTiles;
    float *tables = reinterpret_cast<float *>(dynamic_shared()), *partial = tables + kTables;
    rows.prepare(tables);
    __syncthreads();
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const bf16 *x_g = view.x + min(token0 + g, view.m - 1) * view.ldx,
               *x_g8 = view.x + min(token0 + g + 8, view.m - 1) * view.ldx;
    int64_t tiles = view.k / kTileK;
    auto load_x = [&](const bf16 *row, int64_t tile) {
        return load_features(row, min(tile, tiles - 1) * kTileK + t * 16);
    };
    auto load_rows = [&](typename Rows::Raw(&raw)[kTiles], int64_t tile) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
            raw[j] = rows.load(j, min(row0 + 8 * j + g, num_rows - 1), min(tile, tiles - 1), t);
    };
    uint32_t step = kDropout ? view.dropout.step() : 0;
    float c[kTiles][4] = {};
    typename Rows::Raw next_rows[kTiles];
    load_rows(next_rows, warp);
    Features next = load_x(x_g, warp), next8 = load_x(x_g8, warp);
#pragma unroll 1
    for (int64_t tile = warp; tile < tiles; tile += kWarps) {
        Features a = next, a8 = next8;
        typename Rows::Raw now[kTiles];
#pragma unroll
        for (int j = 0; j < kTiles; ++j) now[j] = next_rows[j];
        load_rows(next_rows, tile + kWarps);
        next = load_x(x_g, tile + kWarps), next8 = load_x(x_g8, tile + kWarps);
        if constexpr (kDropout)
            if (view.dropout.active()) {
                drop(a, view.dropout, step, token0 + g, tile * kTileK + t * 16);
                drop(a8, view.dropout, step, token0 + g + 8, tile * kTileK + t * 16);
            }
#pragma unroll
        for (int j = 0; j < kTiles; ++j) mma_tile(c[j], a, a8, rows.decode(now[j], tables));
    }
    mma_wait();
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
    return kTables * sizeof(float) + size_t(kWarps) * kTokens * 8 * tiles * sizeof(float);
}

}  // namespace skinny
