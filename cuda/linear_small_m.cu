// Two uses of one skinny product, 16 tokens by 8 * kTiles weight rows a block:
//   Y = X * W^T + S * B^T (+ bias) for M <= 16: each weight is read once, straight from global memory into registers;
//   S = bf16(scale * dropout(X) * A^T) for any M: r is small, X is read once per 8 * kTiles rows of A.
// 8 warps take every 8th tile of 64 features; their sums are added in warp order through shared memory (4 KB * kTiles), so that a result
// depends on K alone. Preconditions: K % 64 == 0, ldx % 8 == 0, block size 64.
#include "by_tokens.cuh"
#include "linear.cuh"

namespace {

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

// One row of A for each group of 8, this lane's; NULL: none.
template <int kTiles> struct LowRankRows {
    const bf16 *rows[kTiles];
    __device__ __forceinline__ Features load(int j, int64_t, int64_t tile, int lane, const float *) const {
        return load_features(rows[j], tile * kTileK + lane * 16, rows[j] != nullptr);
    }
};

struct Nf4Rows {
    Nf4View weight;
    __device__ __forceinline__ Features load(int, int64_t row, int64_t tile, int lane, const float *codebook) const {
        int64_t block = row * (weight.k / kTileK) + tile, at = weight.transposed ? tile * weight.n + row : block;
        uint2 codes = *reinterpret_cast<const uint2 *>(weight.codes + block * (kTileK / 2) + lane * 8);
        return dequantize16(codes, codebook, weight.absmax_at(at, block));
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

// sums [16, 8 * kTiles] in shared memory: products of the block's tokens and rows. `codebook` is shared memory of 16 floats before it.
template <int kTiles, bool kDropout = false, typename Rows>
__device__ __forceinline__ float *skinny_product(const LinearView &view, const Rows &rows, int64_t row0, int64_t num_rows, int64_t token0) {
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
        Features a = load_features(x_g, tile * kTileK + t * 16, valid_g), a8 = load_features(x_g8, tile * kTileK + t * 16, valid_g8);
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
        for (int i = 0; i < 4; ++i) partial[(warp * kTokens + g + i / 2 * 8) * kColumns + 8 * j + 2 * t + i % 2] = c[j][i];
    __syncthreads();
    for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
        float sum = partial[i];
        for (int w = 1; w < kWarps; ++w) sum += partial[w * kTokens * kColumns + i];
        partial[i] = sum; // only this thread touches these
    }
    __syncthreads();
    return partial;
}

constexpr size_t shared_bytes(int tiles) { return 32 * sizeof(float) + size_t(kWarps) * kTokens * 8 * tiles * sizeof(float); }

template <int kTiles, bool dense> __global__ void __launch_bounds__(kThreads) linear_small_m(LinearView view) {
    constexpr int kColumns = 8 * kTiles;
    int64_t tile = blockIdx.x;
    const SegmentView &segment = view.segments[view.segment_of(tile, kColumns, false)];
    int64_t n0 = tile * kColumns;
    float *sums = dense ? skinny_product<kTiles>(view, DenseRows{segment.dense, view.k}, n0, segment.n, 0)
                        : skinny_product<kTiles>(view, Nf4Rows{segment.nf4}, n0, segment.n, 0);
    for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
        int64_t token = i / kColumns, n = n0 + i % kColumns;
        if (token >= view.m || n >= segment.n) continue;
        float sum = sums[i];
        int adapter = segment.r > 0 ? segment.adapter(token) : -1, r = adapter >= 0 ? segment.r : 0;
        const bf16 *b = segment.b + (adapter * segment.n + n) * segment.r;
#pragma unroll 1
        for (int j = 0; j < r; ++j) sum = fmaf(to_float(view.s[token * view.lds + segment.s_column + j]), to_float(b[j]), sum);
        if (segment.bias != nullptr) sum += to_float(segment.bias[n]);
        segment.y[token * segment.ldy + n] = to_bf16(sum);
    }
}

constexpr int kRankTiles = 2;

// grid: (tiles of all A's, ceil(M / 16))
__global__ void __launch_bounds__(kThreads) lora_down(LinearView view, bf16 *s, int64_t first_token) {
    constexpr int kColumns = 8 * kRankTiles;
    int64_t tile = blockIdx.x, token0 = first_token + int64_t(blockIdx.y) * kTokens;
    const SegmentView &segment = view.segments[view.segment_of(tile, kColumns, true)];
    int64_t row0 = tile * kColumns;
    float *sums = skinny_product<kRankTiles>(view, DenseRows{segment.a, view.k}, row0, segment.r, token0);
    for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
        int64_t token = token0 + i / kColumns, row = row0 + i % kColumns;
        if (token < view.m && row < (segment.r + 7) / 8 * 8) // padding columns are zero, also where X has a NaN or an infinity
            s[token * view.lds + segment.s_column + row] = to_bf16(row < segment.r ? segment.scale_of(0) * sums[i] : 0.0f);
    }
}

constexpr int kMaskedTiles = 8;

// S where rows differ in what they see: dropout, adapters. The 16 tokens' X is masked once for all columns of S, up to 64; with adapters a
// block's columns are of one segment, and the product is made for each adapter that one of its tokens has.
// grid: (tiles of all columns of S, or of each segment's with adapters; ceil(M / 16))
__global__ void __launch_bounds__(kThreads, 1) lora_down_masked(LinearView view, bf16 *s, int64_t first_token) {
    constexpr int kColumns = 8 * kMaskedTiles;
    int64_t tile = blockIdx.x, token0 = first_token + int64_t(blockIdx.y) * kTokens, end = min(token0 + kTokens, view.m);
    bool adapters = view.has_adapters();
    const SegmentView *only = adapters ? &view.segments[view.segment_of(tile, kColumns, true)] : nullptr;
    int64_t column0 = (adapters ? only->s_column : 0) + tile * kColumns;
    int64_t columns = min((adapters ? only->s_column + (only->r + 7) / 8 * 8 : view.lds) - column0, int64_t(kColumns));
    auto segment_with = [&](int64_t column) -> const SegmentView & {
        int i = 0;
        while (i + 1 < view.num_segments && column >= view.segments[i + 1].s_column) ++i;
        return view.segments[i];
    };
    float kept = view.dropout.active() ? view.dropout.scale : 1.0f;
    int count = adapters ? only->num_adapters : 1;
    for (int adapter = 0; adapter < count; ++adapter) {
        if (adapters && only->adapter_index != nullptr && !only->any_has(adapter, token0, kTokens, end)) continue;
        LowRankRows<kMaskedTiles> rows;
#pragma unroll
        for (int j = 0; j < kMaskedTiles; ++j) {
            int64_t column = column0 + 8 * j + threadIdx.x % 32 / 4;
            const SegmentView &segment = segment_with(column);
            int64_t rank = column - segment.s_column;
            bool there = column < column0 + columns && rank < segment.r;
            rows.rows[j] = there ? segment.a + (int64_t(adapter) * segment.r + rank) * view.k : nullptr;
        }
        float *sums = skinny_product<kMaskedTiles, true>(view, rows, 0, kColumns, token0);
        for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
            int64_t token = token0 + i / kColumns, column = column0 + i % kColumns;
            if (token >= end || i % kColumns >= columns) continue;
            const SegmentView &segment = segment_with(column);
            if (segment.adapter(token) != adapter) continue;
            bool padding = column - segment.s_column >= segment.r;
            s[token * view.lds + column] = to_bf16(padding ? 0.0f : __fmul_rn(segment.scale_of(adapter), __fmul_rn(kept, sums[i])));
        }
        __syncthreads(); // before the next adapter's sums
    }
    if (!adapters) return;
    for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
        int64_t token = token0 + i / kColumns;
        if (token < end && i % kColumns < columns && only->adapter(token) < 0) s[token * view.lds + column0 + i % kColumns] = to_bf16(0.0f);
    }
}

template <int kTiles, bool dense> int launch_small_m(const LinearView &view, qk_stream stream) {
    return launch(linear_small_m<kTiles, dense>, dim3(unsigned(view.tiles(8 * kTiles, false))), dim3(kThreads), shared_bytes(kTiles), stream, view);
}

}  // namespace

int launch_linear_small_m(const LinearView &view, qk_stream stream) {
    // Enough blocks for every multiprocessor first, then fewer readings of X.
    bool wide = view.tiles(32, false) >= 128, dense = view.segments[0].dense != nullptr;
    if (wide) return dense ? launch_small_m<4, true>(view, stream) : launch_small_m<4, false>(view, stream);
    return dense ? launch_small_m<1, true>(view, stream) : launch_small_m<1, false>(view, stream);
}

int launch_lora_down(const LinearView &view, bf16 *s, qk_stream stream) {
    bool masked = view.dropout.active() || view.has_adapters();
    int64_t tiles = view.tiles(8 * (masked ? kMaskedTiles : kRankTiles), true);
    if (masked && !view.has_adapters()) tiles = ceil_div(view.lds, 8 * kMaskedTiles);
    return by_tokens(ceil_div(view.m, kTokens), [&](int64_t first, unsigned token_tiles) {
        return launch(masked ? lora_down_masked : lora_down, dim3(unsigned(tiles), token_tiles), dim3(kThreads),
                      shared_bytes(masked ? kMaskedTiles : kRankTiles), stream, view, s, first * kTokens);
    });
}
