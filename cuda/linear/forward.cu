// Y = X * W^T + S * B^T (+ bias) on tensor cores (mma.sync, sm_80 and up), W in NF4 or bf16, Y written once.
//
// Block: kM tokens by 32 * kWarps rows of W; each warp all kM tokens by its own 32 rows, so that a weight is
// dequantized once a block. Pipeline of kStages tiles of 64 features, by cp.async: X [kM, 64] bf16, codes [rows, 32
// bytes] (or W [rows, 64] bf16); the tile's absmax is decoded by one thread per row, a tile ahead of its use. Then S *
// B^T, 64 ranks at a time, into the same accumulators; with an adapter index once for each adapter of the block's
// tokens, whose sums alone it changes.
//
// Shared memory: 16-byte chunks of X (and of bf16 rows) at chunk ^ (row & 1), code rows at row ^ (row & 8) / 4, so that
// no load conflicts. Lane (g, t) of a warp takes weight row 8 * (g / 2) + 2 * j + g % 2 as column g of its j-th group
// of 8: its sums are then those of 8 neighboring outputs, one 16-byte store. Largest: 76.9 KB (NF4), 96.1 KB (bf16).
// Preconditions: K % 64 == 0, ldx % 8 == 0, block size 64; M, N, r any.
#include "linear/linear.cuh"

namespace {

constexpr int kRowBytes = kTileK * int(sizeof(bf16)); // of a bf16 tile
constexpr int kCodeBytes = kTileK / 2;                // of a tile of codes
constexpr int kTablesBytes = 272 * int(sizeof(float));

template <int kM_, int kWarps_, int kStages_, bool kDense_> struct Config {
    static constexpr int kM = kM_, kWarps = kWarps_, kStages = kStages_;
    static constexpr bool kDense = kDense_;
    static constexpr int kN = 32 * kWarps, kThreads = 32 * kWarps;
    static constexpr int kXBytes = kM * kRowBytes;
    static constexpr int kWBytes = kN * (kDense ? kRowBytes : kCodeBytes);
    static constexpr int kStageBytes = kXBytes + kWBytes + (kDense ? 0 : kN * int(sizeof(float)));
    static constexpr int kLowRankBytes = (kM + kN) * kRowBytes; // S and B, over the stages
    static constexpr int kPipelineBytes = kStages * kStageBytes > kLowRankBytes ? kStages * kStageBytes : kLowRankBytes;
    static constexpr size_t kSharedBytes = kTablesBytes + kPipelineBytes;
    static_assert(kSharedBytes <= kMaxSharedBytes, "fits every card");
    static_assert(kStages >= 2 && kM % 16 == 0, "a tile ahead, whole fragments");
};

__device__ __forceinline__ int row_offset(int row, int chunk) { return row * kRowBytes + (chunk ^ (row & 1)) * 16; }
__device__ __forceinline__ int code_offset(int row) { return (row ^ (row >> 3 & 1) << 1) * kCodeBytes; }

// The 16 features of lane t of one row of a bf16 tile.
__device__ __forceinline__ Features load_row(const unsigned char *tile, int row, int t) {
    return features_of(*reinterpret_cast<const uint4 *>(tile + row_offset(row, 2 * t)),
                       *reinterpret_cast<const uint4 *>(tile + row_offset(row, 2 * t + 1)));
}

// Starts copying `columns` (at most 64, whole chunks) of kRows rows of a bf16 matrix; rows from `rows` on and other
// chunks become zero.
template <int kRows, int kThreads>
__device__ __forceinline__ void fetch_rows(unsigned char *tile, const bf16 *matrix, int64_t stride, int64_t rows,
                                           int columns) {
#pragma unroll
    for (int i = threadIdx.x; i < kRows * 8; i += kThreads) {
        int row = i / 8, chunk = i % 8;
        bool valid = row < rows && chunk * 8 < columns;
        cp_async_16(tile + row_offset(row, chunk), valid ? matrix + row * stride + chunk * 8 : matrix, valid);
    }
}

// fetch_rows() for rows that no 16-byte load can read: r % 8 != 0.
template <int kRows, int kThreads>
__device__ __forceinline__ void copy_rows(unsigned char *tile, const bf16 *matrix, int64_t stride, int64_t rows,
                                          int columns) {
    for (int i = threadIdx.x; i < kRows * kTileK; i += kThreads) {
        int row = i / kTileK, column = i % kTileK;
        bf16 value = row < rows && column < columns ? matrix[row * stride + column] : to_bf16(0.0f);
        *reinterpret_cast<bf16 *>(tile + row_offset(row, column / 8) + column % 8 * 2) = value;
    }
}

// One block's place and its pipeline.
template <typename C> struct Tile {
    const LinearView &view;
    const SegmentView &segment;
    int64_t m0, n0;
    float *codebook, *nested_map; // [16], [256]
    unsigned char *stages;
    float sums[C::kM / 16][4][4]; // [16 tokens][8 rows of W]

    __device__ __forceinline__ unsigned char *stage(int64_t tile) const {
        return stages + tile % C::kStages * C::kStageBytes;
    }
    __device__ __forceinline__ float *absmax(int64_t tile) const {
        return reinterpret_cast<float *>(stage(tile) + C::kXBytes + C::kWBytes);
    }

    __device__ __forceinline__ void fetch(int64_t tile) {
        unsigned char *to = stage(tile);
        fetch_rows<C::kM, C::kThreads>(to, view.x + m0 * view.ldx + tile * kTileK, view.ldx, view.m - m0, kTileK);
        to += C::kXBytes;
        if constexpr (C::kDense) {
            fetch_rows<C::kN, C::kThreads>(to, segment.dense + n0 * view.k + tile * kTileK, view.k, segment.n - n0,
                                           kTileK);
        } else {
#pragma unroll
            for (int i = threadIdx.x; i < C::kN * 2; i += C::kThreads) {
                int row = i / 2, chunk = i % 2;
                bool valid = n0 + row < segment.n;
                int64_t at = ((n0 + row) * view.k + tile * kTileK) / 2 + chunk * 16;
                cp_async_16(to + code_offset(row) + chunk * 16, segment.nf4.codes + (valid ? at : 0), valid);
            }
        }
    }

    // The scale of this thread's row in a tile, in two halves so that the first's loads are under way while a tile is
    // computed.
    struct Scale {
        float factor; // nested absmax, or the absmax itself
        int code;
    };
    __device__ __forceinline__ Scale load_scale(int64_t tile) const {
        const Nf4View &w = segment.nf4;
        int64_t row = n0 + threadIdx.x, blocks = view.k / kTileK;
        if (row >= segment.n) return {0.0f, 127};
        int64_t block = row * blocks + tile, at = w.transposed ? tile * w.n + row : block;
        if (w.absmax != nullptr) return {w.absmax[at], 0};
        return {w.nested_absmax[block / QK_NESTED_BLOCK], w.absmax_codes[at]};
    }
    __device__ __forceinline__ void store_scale(int64_t tile, Scale scale, float offset) {
        bool plain = segment.nf4.absmax != nullptr;
        absmax(tile)[threadIdx.x] =
            plain ? scale.factor : __fadd_rn(__fmul_rn(nested_map[scale.code], scale.factor), offset);
    }

    __device__ __forceinline__ int weight_row(int j) const {
        int g = threadIdx.x % 32 / 4;
        return threadIdx.x / 32 * 32 + g / 2 * 8 + 2 * j + g % 2;
    }

    // sums += x tile times the four groups of rows.
    __device__ __forceinline__ void multiply(const unsigned char *x, const Features (&w)[4]) {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < C::kM / 16; ++i) {
            Features x_g = load_row(x, 16 * i + g, t), x_g8 = load_row(x, 16 * i + g + 8, t);
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_tile(sums[i][j], x_g, x_g8, w[j]);
        }
    }

    // multiply() for the tokens of one adapter alone, whatever the other tokens' S and this adapter's B hold.
    __device__ __forceinline__ void multiply_own(const unsigned char *x, const Features (&w)[4], int adapter) {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < C::kM / 16; ++i) {
            int64_t token = m0 + 16 * i + g;
            bool own = token < view.m && segment.adapter(token) == adapter,
                 own8 = token + 8 < view.m && segment.adapter(token + 8) == adapter;
            Features x_g = load_row(x, 16 * i + g, t), x_g8 = load_row(x, 16 * i + g + 8, t);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float sum[4] = {sums[i][j][0], sums[i][j][1], sums[i][j][2], sums[i][j][3]};
                mma_tile(sum, x_g, x_g8, w[j]);
#pragma unroll
                for (int c = 0; c < 4; ++c) sums[i][j][c] = (c < 2 ? own : own8) ? sum[c] : sums[i][j][c];
            }
        }
    }

    __device__ __forceinline__ void load_dense(Features (&w)[4], const unsigned char *rows) const {
#pragma unroll
        for (int j = 0; j < 4; ++j) w[j] = load_row(rows, weight_row(j), threadIdx.x % 4);
    }

    __device__ __forceinline__ void multiply_dense(const unsigned char *x, const unsigned char *rows) {
        Features w[4];
        load_dense(w, rows);
        multiply(x, w);
    }

    __device__ __forceinline__ void multiply_nf4(int64_t tile) {
        const unsigned char *x = stage(tile), *codes = x + C::kXBytes;
        Features w[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int row = weight_row(j);
            uint2 packed = *reinterpret_cast<const uint2 *>(codes + code_offset(row) + threadIdx.x % 4 * 8);
            w[j] = dequantize16(packed, codebook, absmax(tile)[row]);
        }
        multiply(x, w);
    }

    __device__ __forceinline__ void base() {
        int64_t tiles = view.k / kTileK;
        const bool nf4 = !C::kDense;
        float offset = nf4 && segment.nf4.offset != nullptr ? *segment.nf4.offset : 0.0f;
        Scale scale = {0.0f, 0};
#pragma unroll
        for (int tile = 0; tile < C::kStages - 1; ++tile) {
            if (tile < tiles) {
                fetch(tile);
                if constexpr (nf4) store_scale(tile, load_scale(tile), offset);
            }
            cp_async_commit();
        }
        if constexpr (nf4)
            if (C::kStages - 1 < tiles) scale = load_scale(C::kStages - 1);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            cp_async_wait<C::kStages - 2>(); // this tile is here ...
            __syncthreads(); // ... for everyone, and everyone is done with the one before, whose stage is next to fill
            int64_t next = tile + C::kStages - 1;
            if (next < tiles) {
                fetch(next);
                if constexpr (nf4) store_scale(next, scale, offset);
            }
            cp_async_commit();
            if constexpr (nf4) {
                if (next + 1 < tiles) scale = load_scale(next + 1);
                multiply_nf4(tile);
            } else {
                multiply_dense(stage(tile), stage(tile) + C::kXBytes);
            }
        }
    }

    // sums += S * B^T with one adapter's B; for its own tokens alone, or for all.
    template <bool own> __device__ __forceinline__ void ranks(int adapter) {
        unsigned char *s_tile = stages, *b_tile = stages + C::kXBytes;
        int r = segment.r;
        for (int first = 0; first < r; first += kTileK) {
            int ranks = r - first;
            cp_async_wait<0>();
            __syncthreads(); // everyone is done with what lies here
            fetch_rows<C::kM, C::kThreads>(s_tile, view.s + m0 * view.lds + segment.s_column + first, view.lds,
                                           view.m - m0, (ranks + 7) / 8 * 8);
            const bf16 *b = segment.b + (adapter * segment.n + n0) * r + first;
            if (r % 8 == 0) fetch_rows<C::kN, C::kThreads>(b_tile, b, r, segment.n - n0, ranks);
            else copy_rows<C::kN, C::kThreads>(b_tile, b, r, segment.n - n0, ranks);
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();
            Features w[4];
            load_dense(w, b_tile);
            if constexpr (own) multiply_own(s_tile, w, adapter);
            else multiply(s_tile, w);
        }
    }

    __device__ __forceinline__ void low_rank() {
        if (segment.adapter_index == nullptr) return ranks<false>(0);
#pragma unroll 1
        for (int adapter = 0; adapter < segment.num_adapters; ++adapter)
            if (segment.any_has(adapter, m0, C::kM, view.m)) ranks<true>(adapter);
    }

    __device__ __forceinline__ void write() {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        int64_t n = n0 + threadIdx.x / 32 * 32 + 8 * t;
        float bias[8];
#pragma unroll
        for (int i = 0; i < 8; ++i)
            bias[i] = segment.bias != nullptr && n + i < segment.n ? to_float(segment.bias[n + i]) : 0.0f;
        bool whole = n + 8 <= segment.n && segment.ldy % 8 == 0;
#pragma unroll
        for (int i = 0; i < C::kM / 16; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int64_t token = m0 + 16 * i + 8 * half + g;
                if (token >= view.m) continue;
                bf16 *y = segment.y + token * segment.ldy + n;
                uint32_t packed[4];
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    packed[j] =
                        pack_bf16x2(sums[i][j][2 * half] + bias[2 * j], sums[i][j][2 * half + 1] + bias[2 * j + 1]);
                if (whole) {
                    *reinterpret_cast<uint4 *>(y) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
                } else {
#pragma unroll
                    for (int j = 0; j < 8; ++j)
                        if (n + j < segment.n)
                            y[j] = to_bf16(j % 2 ? high_float(packed[j / 2]) : low_float(packed[j / 2]));
                }
            }
    }
};

// grid: tiles of tokens, fastest, times tiles of all segments' rows: neighbors share weights.
template <typename C> __global__ void __launch_bounds__(C::kThreads, 1) linear_forward(LinearView view) {
    int64_t tiles_m = ceil_div(view.m, C::kM), tile_n = blockIdx.x / tiles_m;
    const SegmentView &segment = view.segments[view.segment_of(tile_n, C::kN, false)];
    float *codebook = reinterpret_cast<float *>(dynamic_shared());
    Tile<C> tile = {view,     segment,       blockIdx.x % tiles_m * C::kM,    tile_n * C::kN,
                    codebook, codebook + 16, dynamic_shared() + kTablesBytes, {}};
    if constexpr (!C::kDense) {
        if (threadIdx.x < 16) codebook[threadIdx.x] = nf4_code(threadIdx.x);
        if (segment.nf4.nested_map != nullptr)
            for (int i = threadIdx.x; i < 256; i += C::kThreads) tile.nested_map[i] = segment.nf4.nested_map[i];
        __syncthreads();
    }
    tile.base();
    tile.low_rank();
    tile.write();
}

template <typename C> int launch_tiles(const LinearView &view, qk_stream stream) {
    int64_t blocks = ceil_div(view.m, C::kM) * view.tiles(C::kN, false);
    if (blocks > INT32_MAX) return QK_ERROR_SHAPE;
    return launch(linear_forward<C>, dim3(unsigned(blocks)), dim3(C::kThreads), C::kSharedBytes, stream, view);
}

template <bool dense> int launch_linear(const LinearView &view, const LinearChoice &choice, qk_stream stream) {
    using Large = Config<kLargeTokens, kLargeColumns / 32, dense ? 2 : 3, dense>;
    using Small = Config<kSmallTokens, kSmallColumns / 32, dense ? 3 : 4, dense>;
    return choice.tokens == kLargeTokens ? launch_tiles<Large>(view, stream) : launch_tiles<Small>(view, stream);
}

}  // namespace

int launch_linear_tensor_core(const LinearView &view, const LinearChoice &choice, qk_stream stream) {
    return choice.dense ? launch_linear<true>(view, choice, stream) : launch_linear<false>(view, choice, stream);
}
