// Logits Z = H * W^T of a chunk of tokens in f32, and of each row and 64 of its columns the maximum and the sum of
// exponentials (mma.sync, sm_80 and up). Z itself is stored only where a gradient is wanted. A soft cap is applied to
// the sums before anything is made of them.
//
// Block: 128 tokens by 256 rows of W, a warp 64 by 64 of them; tiles of 64 features by cp.async through a double
// buffer. A logit is one f32 sum over the features in order. Blocks of the same rows of W are neighbors, so that W
// leaves DRAM once a chunk. Shared memory: 96 KB, 16-byte chunks at chunk ^ row % 8. Preconditions: none on V; H % 8 !=
// 0 copies W element by element. Limit: 2 H FLOPs a logit on the tensor cores. Beside it stand 4 bytes stored and one
// exponential a logit.
#include "attention/attention.cuh"
#include "loss/cross_entropy.cuh"

namespace {

constexpr int kTokens = 128, kColumns = 256, kFeatures = 64, kThreads = 256;
constexpr int kWarpTokens = 64, kWarpColumns = kStatisticColumns;
constexpr size_t kStageBytes = Tile<kFeatures>::bytes(kTokens + kColumns), kSharedBytes = 2 * kStageBytes;
static_assert(kSharedBytes <= kMaxSharedBytes, "fits every card");
static_assert(kTokens / kWarpTokens * (kColumns / kWarpColumns) * 32 == kThreads, "the warps cover the tile");

// This thread's share of the copies of a bf16 matrix: 8 features of every 32nd row, 64 features further with each tile.
struct Cursor {
    static constexpr int kRows = kThreads / 8; // of the block at once
    static_assert(kRows % 8 == 0, "a thread's rows have the same swizzle");
    const bf16 *from;
    int64_t step;      // from row to row
    int rows, columns; // that are left, from this thread's on; zeros past them

    __device__ __forceinline__ static Cursor start(const bf16 *matrix, int64_t ld, int64_t first, int64_t rows,
                                                   int64_t columns) {
        int64_t row = first + int(threadIdx.x) / 8, column = int(threadIdx.x) % 8 * 8;
        return {matrix + row * ld + column, kRows * ld, int(rows - row), int(columns - column)};
    }

    // Starts copying the next tile. Not kWhole: rows that do not begin at multiples of 16 bytes.
    template <int kTileRows, bool kWhole> __device__ __forceinline__ void fetch(Tile<kFeatures> tile) {
        bf16 *to = tile.at(int(threadIdx.x) / 8, int(threadIdx.x) % 8);
        const bf16 *source = from;
        int left = columns > 0 ? rows : 0;
#pragma unroll
        for (int i = 0; i < kTileRows; i += kRows, source += step) {
            if constexpr (kWhole) {
                cp_async_16(to + i * kFeatures, source, i < left);
            } else {
#pragma unroll 1
                for (int j = 0; j < 8; ++j) to[i * kFeatures + j] = i < left && j < columns ? source[j] : to_bf16(0.0f);
            }
        }
        from += kFeatures;
        columns -= kFeatures;
    }
};

template <bool kWhole, bool kStore, bool kCapped>
__global__ void __launch_bounds__(kThreads, 1)
    cross_entropy_logits(CrossEntropyView view, int64_t chunk_first, int tokens) {
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    int tiles_m = int(ceil_div(tokens, kTokens)), m0 = int(blockIdx.x) % tiles_m * kTokens;
    int64_t n0 = int64_t(blockIdx.x) / tiles_m * kColumns;
    int warp_m = warp % 2 * kWarpTokens, warp_n = warp / 2 * kWarpColumns;
    auto hidden = [](int stage) {
        return Tile<kFeatures>{reinterpret_cast<bf16 *>(dynamic_shared() + stage * kStageBytes)};
    };
    auto head = [](int stage) {
        return Tile<kFeatures>{reinterpret_cast<bf16 *>(dynamic_shared() + stage * kStageBytes) + kTokens * kFeatures};
    };
    Cursor hidden_at = Cursor::start(view.gathered, view.padded_h, m0, tokens, view.padded_h),
           head_at = Cursor::start(view.head, view.h, n0, view.vocab, view.h);
    auto fetch = [&](int stage) {
        hidden_at.template fetch<kTokens, true>(hidden(stage));
        head_at.template fetch<kColumns, kWhole>(head(stage));
        cp_async_commit();
    };

    float sums[kWarpTokens / 16][kWarpColumns / 8][4] = {};
    fetch(0);
    int stage = 0;
#pragma unroll 1
    for (int left = int(view.padded_h); left > 0; left -= kFeatures, stage ^= 1) {
        cp_async_wait<0>(); // this tile is here ...
        __syncthreads();    // ... for everyone, and everyone is done with the one before
#pragma unroll
        for (int step = 0; step < kFeatures / 16; ++step) {
            uint32_t a[kWarpTokens / 16][4];
#pragma unroll
            for (int i = 0; i < kWarpTokens / 16; ++i) hidden(stage).a(a[i], warp_m + 16 * i, step);
#pragma unroll
            for (int pair = 0; pair < kWarpColumns / 16; ++pair) {
                uint32_t b[4];
                head(stage).b_of_rows(b, warp_n + 16 * pair, step);
#pragma unroll
                for (int i = 0; i < kWarpTokens / 16; ++i) mma_pair(sums[i][2 * pair], sums[i][2 * pair + 1], a[i], b);
            }
            if (step == 0 && left > kFeatures) fetch(stage ^ 1); // under the products, not before them
        }
        mma_wait();
    }

    if constexpr (kCapped) {
        float to_tanh = __fdiv_rn(kTanhScale, view.soft_cap);
#pragma unroll
        for (int i = 0; i < kWarpTokens / 16; ++i)
#pragma unroll
            for (int n = 0; n < kWarpColumns / 8; ++n)
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][n][j] = view.soft_cap * tanh_scaled(sums[i][n][j] * to_tanh);
    }
    // A lane has 16 columns of each of its 8 rows, column(n, j) = n0 + warp_n + 8 n + lane % 4 * 2 + j.
    int64_t first_column = n0 + warp_n + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kWarpTokens / 16; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int row = m0 + warp_m + 16 * i + 8 * half + lane / 4;
            int target = row < tokens ? view.target(chunk_first, row) : -1;
            float largest = -INFINITY, sum = 0.0f;
#pragma unroll
            for (int n = 0; n < kWarpColumns / 8; ++n)
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    int64_t column = first_column + 8 * n + j;
                    float z = sums[i][n][2 * half + j];
                    if (column < view.vocab) largest = fmaxf(largest, z);
                    if (column == target) view.target_logits[row] = z;
                }
            largest = row_max(largest);
            // If no logit is above minus infinity, every exponential has to be 0, not NaN.
            float base = largest == -INFINITY ? 0.0f : largest;
#pragma unroll
            for (int n = 0; n < kWarpColumns / 8; ++n)
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    if (first_column + 8 * n + j < view.vocab) sum += expf(sums[i][n][2 * half + j] - base);
            sum = row_sum(sum);
            if (row >= tokens) continue;
            if (lane % 4 == 0 && n0 + warp_n < view.vocab)
                view.statistics[row * view.num_statistics + (n0 + warp_n) / kStatisticColumns] =
                    make_float2(largest, sum);
            if constexpr (kStore) {
                float *to = view.logits + row * view.ldz + first_column;
#pragma unroll
                for (int n = 0; n < kWarpColumns / 8; ++n)
                    if (first_column + 8 * n < view.ldz)
                        store_as<float2>(to + 8 * n, make_float2(sums[i][n][2 * half], sums[i][n][2 * half + 1]));
            }
        }
}

template <bool kWhole> auto kernel_of(const CrossEntropyView &view) {
    bool store = view.logits != nullptr;
    return view.soft_cap > 0.0f
               ? store ? cross_entropy_logits<kWhole, true, true> : cross_entropy_logits<kWhole, false, true>
               : store ? cross_entropy_logits<kWhole, true, false> : cross_entropy_logits<kWhole, false, false>;
}

}  // namespace

int launch_cross_entropy_logits(const CrossEntropyView &view, int64_t first, int tokens, qk_stream stream) {
    int64_t blocks = ceil_div(tokens, kTokens) * ceil_div(view.vocab, kColumns);
    auto kernel = view.h % 8 == 0 ? kernel_of<true>(view) : kernel_of<false>(view);
    return launch(kernel, dim3(unsigned(blocks)), dim3(kThreads), kSharedBytes, stream, view, first, tokens);
}
