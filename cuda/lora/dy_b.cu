// T = bf16(scale * dY * B) [M, columns]: a product over N, which is long, with r columns, which are few.
//
// Limit: reading dY, once for every 64 ranks of a segment (16 where r % 8 != 0), and B from L2, once for every
// 32 or 16 tokens. Block: 32 tokens by 64 ranks, or 16 by 16, of one segment; 8 warps take every 8th tile of 64
// features, straight from global memory into registers, and their sums are added in warp order through shared memory
// (64 or 8 KB): a result depends on N alone, not on the tiling. Fragments: lane t takes features 16t .. 16t + 15 of a
// tile of both operands (linear/linear.cuh), lane g kRankTiles ranks next to each other, each of another group of 8: a
// row of B is one load a lane, and two rows' ranks make the pairs of features that the instruction wants. Preconditions
// of the fast kernel: N % 8 == 0, lddy % 8 == 0 for every segment; r and M any (an odd r loads its ranks one by one).
// Other shapes take one thread per element.
#include "common/grid_y.cuh"
#include "linear/backward.cuh"

namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

__device__ __forceinline__ int padded_rank(const BackwardSegment &segment) { return (segment.r + 7) / 8 * 8; }

// 16 features of one row of dY from `first` on; what is past N is zero.
__device__ __forceinline__ Features load_gradient(const bf16 *row, int64_t first, int64_t n, bool valid) {
    const bf16 *from = row + first;
    uint4 zero = make_uint4(0, 0, 0, 0);
    return features_of(valid && first < n ? load_as<uint4>(from) : zero,
                       valid && first + 8 < n ? load_as<uint4>(from + 8) : zero);
}

template <int kRankTiles> struct alignas(2 * kRankTiles) Ranks {
    uint32_t pairs[kRankTiles / 2];
};

// kRankTiles ranks of one row of B, `count` of which exist. kWhole: r is a multiple of kRankTiles, and one load takes
// them all.
template <int kRankTiles, bool kWhole>
__device__ __forceinline__ Ranks<kRankTiles> load_ranks(const bf16 *row, int count) {
    Ranks<kRankTiles> ranks = {};
    if constexpr (!kWhole) {
#pragma unroll
        for (int i = 0; i < kRankTiles; ++i)
            if (i < count) ranks.pairs[i / 2] |= uint32_t(reinterpret_cast<const uint16_t *>(row)[i]) << (i % 2 * 16);
    } else if (count > 0) {
        ranks = load_as<Ranks<kRankTiles>>(row);
    }
    return ranks;
}

// grid: (tiles of the ranks of all segments, tiles of tokens). kSlabs: of 16 tokens; kRankTiles: of 8 ranks.
template <int kSlabs, int kRankTiles, bool kWhole>
__global__ void __launch_bounds__(kThreads, kRankTiles == 2 ? 2 : 1)
    lora_dy_b(BackwardView view, bf16 *t_matrix, int64_t first_token) {
    constexpr int kTokens = 16 * kSlabs, kColumns = 8 * kRankTiles;
    static_assert(kRankTiles == 2 || kRankTiles == 8, "one load a row");
    int64_t tile = blockIdx.x, token0 = first_token + int64_t(blockIdx.y) * kTokens;
    int64_t end = min(token0 + kTokens, view.m);
    int number = 0;
    for (; number + 1 < view.num_segments; ++number) {
        int64_t tiles = ceil_div(view.segments[number].r, kColumns);
        if (tile < tiles) break;
        tile -= tiles;
    }
    const BackwardSegment &segment = view.segments[number];
    float *partial = reinterpret_cast<float *>(dynamic_shared());
    int rank0 = int(tile) * kColumns, warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    int ranks = segment.r - rank0 - kRankTiles * g; // of this lane, if positive
    const bf16 *dy = segment.dy + (token0 + g) * segment.lddy;
    for (int adapter = 0; adapter < segment.num_adapters; ++adapter) {
        if (segment.adapter_index != nullptr && !segment.any_has(adapter, token0, kTokens, end)) continue;
        const bf16 *b = segment.b + adapter * segment.n * segment.r + rank0 + kRankTiles * g;
        float c[kSlabs][kRankTiles][4] = {};
#pragma unroll 2
        for (int64_t feature0 = warp * kTileK + 16 * t; feature0 < segment.n + 16 * t; feature0 += kWarps * kTileK) {
            Features a[kSlabs][2];
#pragma unroll
            for (int i = 0; i < 2 * kSlabs; ++i)
                a[i / 2][i % 2] =
                    load_gradient(dy + 8 * i * segment.lddy, feature0, segment.n, token0 + g + 8 * i < end);
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                Ranks<kRankTiles> rows[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int64_t n = feature0 + 4 * step + i;
                    rows[i] = load_ranks<kRankTiles, kWhole>(b + n * segment.r, n < segment.n ? ranks : 0);
                }
#pragma unroll
                for (int j = 0; j < kRankTiles; ++j) {
                    uint32_t pairs[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        uint32_t low = rows[2 * i].pairs[j / 2], high = rows[2 * i + 1].pairs[j / 2];
                        pairs[i] = j % 2 == 0 ? (low & 0xffffu) | high << 16 : low >> 16 | (high & 0xffff0000u);
                    }
#pragma unroll
                    for (int i = 0; i < kSlabs; ++i) {
                        uint32_t tokens[4] = {a[i][0].pairs[2 * step], a[i][1].pairs[2 * step],
                                              a[i][0].pairs[2 * step + 1], a[i][1].pairs[2 * step + 1]};
                        mma_m16n8k16(c[i][j], tokens, pairs);
                    }
                }
            }
        }
        mma_wait();
#pragma unroll
        for (int i = 0; i < kSlabs; ++i)
#pragma unroll
            for (int j = 0; j < kRankTiles; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    partial[(warp * kTokens + 16 * i + g + e / 2 * 8) * kColumns + kRankTiles * (2 * t + e % 2) + j] =
                        c[i][j][e];
        __syncthreads();
        for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
            int64_t token = token0 + i / kColumns;
            int rank = rank0 + i % kColumns;
            if (token >= end || rank >= padded_rank(segment) || segment.adapter(token) != adapter) continue;
            float sum = partial[i];
            for (int w = 1; w < kWarps; ++w) sum += partial[w * kTokens * kColumns + i];
            // Padding columns are zero, also where dY has a NaN or an infinity.
            t_matrix[token * view.ldt + segment.s_column + rank] =
                to_bf16(rank < segment.r ? segment.scale_of(adapter) * sum : 0.0f);
        }
        __syncthreads(); // before the next adapter's sums
    }
    if (segment.adapter_index == nullptr) return;
    for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
        int64_t token = token0 + i / kColumns;
        int rank = rank0 + i % kColumns;
        if (token < end && rank < padded_rank(segment) && segment.adapter(token) < 0)
            t_matrix[token * view.ldt + segment.s_column + rank] = to_bf16(0.0f);
    }
}

template <int kSlabs, int kRankTiles, bool kWhole>
int launch_tiles(const BackwardView &view, bf16 *t, qk_stream stream) {
    constexpr int kTokens = 16 * kSlabs;
    constexpr size_t kSharedBytes = size_t(kWarps) * kTokens * 8 * kRankTiles * sizeof(float);
    static_assert(kSharedBytes <= kMaxSharedBytes, "fits every card");
    int64_t tiles = 0;
    for (int i = 0; i < view.num_segments; ++i) tiles += ceil_div(view.segments[i].r, 8 * kRankTiles);
    return by_tokens(ceil_div(view.m, kTokens), [&](int64_t first, unsigned token_tiles) {
        dim3 grid(unsigned(tiles), token_tiles);
        return launch(lora_dy_b<kSlabs, kRankTiles, kWhole>, grid, dim3(kThreads), kSharedBytes, stream, view, t,
                      first * kTokens);
    });
}

// grid: (1, M, segments); a thread per column of T, padding included, features in order.
__global__ void __launch_bounds__(kThreads) lora_dy_b_generic(BackwardView view, bf16 *t, int64_t first_token) {
    const BackwardSegment &segment = view.segments[blockIdx.z];
    int rank = threadIdx.x;
    int64_t token = first_token + blockIdx.y;
    if (rank >= padded_rank(segment)) return;
    int adapter = segment.adapter(token);
    float sum = 0.0f;
    if (rank < segment.r && adapter >= 0) {
        const bf16 *b = segment.b + adapter * segment.n * segment.r;
        for (int64_t n = 0; n < segment.n; ++n)
            sum = fmaf(to_float(segment.dy[token * segment.lddy + n]), to_float(b[n * segment.r + rank]), sum);
        sum = __fmul_rn(segment.scale_of(adapter), sum);
    }
    t[token * view.ldt + segment.s_column + rank] = to_bf16(sum);
}

}  // namespace

int launch_lora_dy_b(const BackwardView &view, bf16 *t, qk_stream stream) {
    bool fast = true;
    int most = 0, together = 0; // the largest r; all of them, or-ed: what divides it divides each
    for (int i = 0; i < view.num_segments; ++i) {
        const BackwardSegment &segment = view.segments[i];
        fast &= segment.r == 0 || (segment.n % 8 == 0 && segment.lddy % 8 == 0);
        most = segment.r > most ? segment.r : most;
        together |= segment.r;
    }
    if (fast && most > 16 && together % 8 == 0) return launch_tiles<2, 8, true>(view, t, stream);
    if (fast)
        return together % 2 == 0 ? launch_tiles<1, 2, true>(view, t, stream)
                                 : launch_tiles<1, 2, false>(view, t, stream);
    return by_tokens(view.m, [&](int64_t first, unsigned tokens) {
        return launch(lora_dy_b_generic, dim3(1, tokens, unsigned(view.num_segments)), dim3(kThreads), 0, stream, view,
                      t, first);
    });
}
