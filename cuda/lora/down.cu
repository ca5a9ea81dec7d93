// S = bf16(scale * dropout(X) * A^T) [M, columns], for any M, of all segments in one launch, in rows of any stride.
//
// Block: 16 tokens by 2, 4, 6 or 8 groups of 8 columns of S, of whichever segments they are (skinny.cuh); with adapters
// of one segment. A column's sum is the same in all of them. Limit: X from DRAM, and the L2, from which a
// block reads 2 * K bytes for each of its tokens and columns. So X is read once for up to 64 columns: 16 tokens read
// 128 * K bytes for 16 ranks each of q, k and v, where a block for each segment would read 192 * K, and 96 * K, not
// 128 * K, of gate and up. Few tokens have narrow blocks, so that there is one for each multiprocessor. Preconditions
// of the fast kernels: K % 64 == 0, ldx % 8 == 0. Other shapes take a thread for each element.
#include "common/grid_y.cuh"
#include "linear/skinny.cuh"

namespace {

using namespace skinny;

constexpr int kGenericThreads = 256;

// One row of A for each group of 8, this lane's.
template <int kTiles> struct LowRankRows {
    using Raw = Features;
    const bf16 *rows[kTiles];
    __device__ __forceinline__ void prepare(float *) const {}
    __device__ __forceinline__ Raw load(int j, int64_t, int64_t tile, int lane) const {
        return load_features(rows[j], tile * kTileK + lane * 16);
    }
    __device__ __forceinline__ Features decode(const Raw &raw, const float *) const { return raw; }
};

// The segment that has a column of S. 8 columns from a multiple of 8 on are of one.
__device__ __forceinline__ const SegmentView &segment_with(const LinearView &view, int64_t column) {
    int i = 0;
    while (i + 1 < view.num_segments && column >= view.segments[i + 1].s_column) ++i;
    return view.segments[i];
}

// grid: (tiles of all columns of S, ceil(M / 16))
template <int kTiles>
__global__ void __launch_bounds__(kThreads) lora_down(LinearView view, bf16 *s, int64_t first_token) {
    constexpr int kColumns = 8 * kTiles;
    int64_t column0 = int64_t(blockIdx.x) * kColumns, token0 = first_token + int64_t(blockIdx.y) * kTokens;
    LowRankRows<kTiles> rows;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
        // Past the last column: the last one again, as nobody reads its sums.
        int64_t column = min(column0 + 8 * j, view.columns - 8);
        const SegmentView &segment = segment_with(view, column);
        int64_t rank = min(column - segment.s_column + threadIdx.x % 32 / 4, int64_t(segment.r - 1));
        rows.rows[j] = segment.a + rank * view.k;
    }
    float *sums = skinny_product<kTiles>(view, rows, 0, kColumns, token0);
    for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
        int64_t token = token0 + i / kColumns, column = column0 + i % kColumns;
        if (token >= view.m || column >= view.columns) continue;
        const SegmentView &segment = segment_with(view, column);
        // Padding columns are zero, also where X has a NaN or an infinity.
        bool padding = column - segment.s_column >= segment.r;
        s[token * view.lds + column] = to_bf16(padding ? 0.0f : segment.scale_of(0) * sums[i]);
    }
}

constexpr int kMaskedTiles = 8;

// S where rows differ in what they see: dropout, adapters. The 16 tokens' X is masked once for all columns of S, up to
// 64; with adapters a block's columns are of one segment, and the product is made for each adapter that one of its
// tokens has. grid: (tiles of all columns of S, or of each segment's with adapters; ceil(M / 16))
__global__ void __launch_bounds__(kThreads, 1) lora_down_masked(LinearView view, bf16 *s, int64_t first_token) {
    constexpr int kColumns = 8 * kMaskedTiles;
    int64_t tile = blockIdx.x, token0 = first_token + int64_t(blockIdx.y) * kTokens,
            end = min(token0 + kTokens, view.m);
    bool adapters = view.has_adapters();
    const SegmentView *only = adapters ? &view.segments[view.segment_of(tile, kColumns, true)] : nullptr;
    int64_t column0 = (adapters ? only->s_column : 0) + tile * kColumns;
    int64_t last = adapters ? only->s_column + (only->r + 7) / 8 * 8 : view.columns;
    int64_t columns = min(last - column0, int64_t(kColumns));
    float kept = view.dropout.active() ? view.dropout.scale : 1.0f;
    int count = adapters ? only->num_adapters : 1;
    for (int adapter = 0; adapter < count; ++adapter) {
        if (adapters && only->adapter_index != nullptr && !only->any_has(adapter, token0, kTokens, end)) continue;
        LowRankRows<kMaskedTiles> rows;
#pragma unroll
        for (int j = 0; j < kMaskedTiles; ++j) {
            int64_t column = column0 + 8 * j + threadIdx.x % 32 / 4;
            const SegmentView &segment = segment_with(view, column);
            int64_t rank = column - segment.s_column;
            bool there = column < column0 + columns && rank < segment.r;
            // Past the last rank: any row of K elements, as nobody reads its sums.
            rows.rows[j] = there ? segment.a + (int64_t(adapter) * segment.r + rank) * view.k : view.x;
        }
        float *sums = skinny_product<kMaskedTiles, true>(view, rows, 0, kColumns, token0);
        for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
            int64_t token = token0 + i / kColumns, column = column0 + i % kColumns;
            if (token >= end || i % kColumns >= columns) continue;
            const SegmentView &segment = segment_with(view, column);
            if (segment.adapter(token) != adapter) continue;
            bool padding = column - segment.s_column >= segment.r;
            s[token * view.lds + column] =
                to_bf16(padding ? 0.0f : __fmul_rn(segment.scale_of(adapter), __fmul_rn(kept, sums[i])));
        }
        __syncthreads(); // before the next adapter's sums
    }
    if (!adapters) return;
    for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
        int64_t token = token0 + i / kColumns;
        if (token < end && i % kColumns < columns && only->adapter(token) < 0)
            s[token * view.lds + column0 + i % kColumns] = to_bf16(0.0f);
    }
}

// grid: (1, M, segments); a thread per column of S, padding included.
__global__ void __launch_bounds__(kGenericThreads) lora_down_generic(LinearView view, bf16 *s, int64_t first_token) {
    const SegmentView &segment = view.segments[blockIdx.z];
    int row = threadIdx.x;
    int64_t token = first_token + blockIdx.y;
    if (row >= (segment.r + 7) / 8 * 8) return;
    int adapter = segment.adapter(token);
    float sum = 0.0f;
    if (row < segment.r && adapter >= 0) {
        const bf16 *x = view.x + token * view.ldx, *a = segment.a + (int64_t(adapter) * segment.r + row) * view.k;
        bool drops = view.dropout.active();
        uint32_t kept = 0, step = view.dropout.step();
        for (int64_t k = 0; k < view.k; ++k) {
            if (drops && k % 4 == 0) kept = dropout_kept(view.dropout, step, token, k / 4);
            if (!drops || (kept >> (k % 4) & 1) != 0) sum = fmaf(to_float(x[k]), to_float(a[k]), sum);
        }
        sum = __fmul_rn(segment.scale_of(adapter), drops ? __fmul_rn(view.dropout.scale, sum) : sum);
    }
    s[token * view.lds + segment.s_column + row] = to_bf16(sum);
}

// Groups of 8 columns of S that a block has: as many as there are, up to 8, or as leave enough blocks.
int tiles_of_columns(const LinearView &view) {
    constexpr int kMostTiles = 8;
    int64_t groups = view.columns / 8, token_tiles = ceil_div(view.m, kTokens), parts = ceil_div(groups, kMostTiles);
    while (2 * parts < groups && token_tiles * parts < kBlocksOfWideTiles) ++parts;
    return int(ceil_div(groups, 2 * parts)) * 2;
}

}  // namespace

int launch_lora_down(const LinearView &view, bf16 *s, qk_stream stream) {
    bool masked = view.dropout.active() || view.has_adapters();
    int tiles = masked ? kMaskedTiles : tiles_of_columns(view);
    int64_t blocks = view.has_adapters() ? view.tiles(8 * tiles, true) : ceil_div(view.columns, 8 * tiles);
    auto kernel = masked       ? lora_down_masked
                  : tiles == 2 ? lora_down<2>
                  : tiles == 4 ? lora_down<4>
                  : tiles == 6 ? lora_down<6>
                               : lora_down<8>;
    return by_tokens(ceil_div(view.m, kTokens), [&](int64_t first, unsigned token_tiles) {
        return launch(kernel, dim3(unsigned(blocks), token_tiles), dim3(kThreads), shared_bytes(tiles), stream, view, s,
                      first * kTokens);
    });
}

int launch_lora_down_generic(const LinearView &view, bf16 *s, qk_stream stream) {
    return by_tokens(view.m, [&](int64_t first, unsigned tokens) {
        return launch(lora_down_generic, dim3(1, tokens, unsigned(view.num_segments)), dim3(kGenericThreads), 0, stream,
                      view, s, first);
    });
}
