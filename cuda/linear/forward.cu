// Y = X * W^T + S * B^T (+ bias) on tensor cores (mma.sync, sm_80 and up), W in NF4 or bf16, Y written once.
//
// Block: kM tokens by 32 * kWarps rows of W; each warp all kM tokens by its own 32 rows, so that a weight is
// dequantized once a block. Pipeline of kStages tiles of 64 features, by cp.async: X [kM, 64] bf16, codes [rows, 32
// bytes] (or W [rows, 64] bf16); the tile's absmax is decoded by one thread per row, a tile ahead of its use. S * B^T
// comes first, 16 ranks at a time, as further tiles of the same pipeline: S [kM, 16], B [rows, 16]. With an adapter
// index it precedes the pipeline, once for each adapter of the block's tokens, whose sums alone it changes.
//
// W is the A operand, 16 rows an instruction, and X the B operand, 8 tokens: a 16-byte load of one token is two whole B
// fragments, and pairs of dequantized weights are the A fragments' registers as they come. Lane (g, t) of a warp has
// weight rows 4g .. 4g + 3, rows g and g + 8 of two fragments: its sums are those of 4 neighboring outputs, an 8-byte
// store, and 8 lanes fill two sectors. bf16 weights, S and B come by ldmatrix as the instruction wants them.
//
// Shared memory: 16-byte chunks of X at chunk ^ (row & 1), code rows at row ^ (row / 4 & 3); beside bf16 weights, X at
// chunk ^ row % 8 and W at chunk ^ row / 4 % 8: no load conflicts (in small tiles of bf16 weights W is at chunk ^ row /
// 4 % 4, and its loads take twice as long). Copies of S and B conflict, 2 and 8 in a bank, once for 16 ranks. Largest:
// 76.9 KB (NF4), 97.1 KB (bf16). Preconditions: K % 64 == 0, ldx % 8 == 0, block size 64; M, N, r any. Limit (large
// tiles, NF4): issue slots, 3.5 beside each matrix instruction, of which dequantizing takes 2.3; with bf16 weights 1.1,
// and the matrix instructions are the limit.
//
// A block, exactly (tests/cuda/launch_counts.rs): of each warp kM matrix instructions a tile of features and kM / 4 a
// tile of ranks; a barrier a tile, and one for the tables beside NF4; under a tile's products kStages - 1 tiles are in
// flight, beside bf16 weights one fewer under the first quarter. Loads of shared memory, of a warp and tile: NF4 kM / 4
// of 16 bytes of X, one of 16 of absmax, 4 of 8 of codes and 65 of 4 of tables; bf16 kM / 4 + 8 ldmatrix. By shared
// memory a multiprocessor of sm_86 holds 2 blocks of small tiles and 1 of large; with bf16 weights 1 of either.
#include "common/shared_tile.cuh"
#include "linear/linear.cuh"

namespace {

constexpr int kRowBytes = kTileK * int(sizeof(bf16)); // of a bf16 tile
constexpr int kCodeBytes = kTileK / 2;                // of a tile of codes
constexpr int kRanks = 16;                            // of a tile of S and B
constexpr int kRankBytes = kRanks * int(sizeof(bf16));
constexpr int kTablesBytes = 272 * int(sizeof(float));

// kPlain: without an adapter index, which would cost the large tiles registers that they do not have; so they are.
template <int kM_, int kWarps_, int kStages_, bool kDense_, bool kPlain_> struct Config {
    static constexpr int kM = kM_, kWarps = kWarps_, kStages = kStages_;
    static constexpr bool kDense = kDense_, kPlain = kPlain_;
    static constexpr int kN = 32 * kWarps, kThreads = 32 * kWarps;
    static constexpr int kXBytes = kM * kRowBytes;
    static constexpr int kWBytes = kN * (kDense ? kRowBytes : kCodeBytes);
    static constexpr int kStageBytes = kXBytes + kWBytes + (kDense ? 0 : kN * int(sizeof(float)));
    static constexpr size_t kSharedBytes = kTablesBytes + kStages * kStageBytes;
    static_assert(kM * kRankBytes <= kXBytes && kN * kRankBytes <= kWBytes, "16 ranks of S and B fit in a stage");
    static_assert(kSharedBytes <= kMaxSharedBytes, "fits every card");
    static_assert(kStages >= 2 && kM % 16 == 0, "a tile ahead, whole fragments");
    static_assert(kPlain || kM == kSmallTokens, "registers");

    // Offsets in bytes of a 16-byte chunk of a token and of a row of W in their tiles, and the rows after which the
    // exchange of chunks repeats.
    static constexpr int kTokenPeriod = kDense ? 8 : 2, kRowPeriod = kDense ? kThreads / 8 : 16;
    __device__ __forceinline__ static int token_offset(int row, int chunk) {
        return row * kRowBytes + (chunk ^ (row & (kTokenPeriod - 1))) * 16;
    }
    __device__ __forceinline__ static int weight_offset(int row, int chunk) {
        return kDense ? row * kRowBytes + (chunk ^ (row >> 2 & (kRowPeriod / 4 - 1))) * 16
                      : (row ^ (row >> 2 & 3)) * kCodeBytes + chunk * 16;
    }
};

static_assert(Config<kSmallTokens, kSmallColumns / 32, 3, true, true>::kSharedBytes + 1024 == kSmallDenseBytes,
              "what TileTimes are chosen by");

// Offset in bytes of a 16-byte chunk of a token's ranks, and of a row's of B: 8 neighboring tokens, and every fourth of
// 32 rows, are the 8 rows of an ldmatrix.
__device__ __forceinline__ int token_rank_offset(int token, int chunk) {
    return token / 8 * 256 + chunk * 128 + token % 8 * 16;
}
__device__ __forceinline__ int row_rank_offset(int row, int chunk) {
    return row / 32 * 1024 + row % 4 * 256 + chunk * 128 + row / 4 % 8 * 16;
}

// One block's place and its pipeline.
template <typename C> struct Tile {
    const LinearView &view;
    const SegmentView &segment;
    int64_t m0, n0;
    float *codebook, *nested_map; // [16], [256]
    unsigned char *stages;
    float sums[C::kM / 8][2][4]; // [8 tokens][16 rows of W]

    using Tokens = TileLoader<C::kM, 8, C::kThreads, C::kTokenPeriod>;                // of X
    using Weights = TileLoader<C::kN, C::kDense ? 8 : 2, C::kThreads, C::kRowPeriod>; // of W, bf16 or codes
    using TokenRanks = TileLoader<C::kM, 2, C::kThreads, 8>;                          // of S
    using RowRanks = TileLoader<C::kN, 2, C::kThreads, 32>;                           // of B

    __device__ __forceinline__ unsigned char *after(unsigned char *stage) const {
        return stage + C::kStageBytes == stages + C::kStages * C::kStageBytes ? stages : stage + C::kStageBytes;
    }

    // This thread's share of the copies of the tiles; it moves on by a tile with each.
    struct Cursor {
        const bf16 *x;          // its chunk of its first token
        const unsigned char *w; // its chunk of its first row of W
        int tokens, rows;       // that are left, from its own on
    };

    __device__ __forceinline__ Cursor start() const {
        int64_t token = m0 + Tokens::row(), row = n0 + Weights::row();
        const unsigned char *w = C::kDense ? reinterpret_cast<const unsigned char *>(segment.dense + row * view.k)
                                           : segment.nf4.codes + row * view.k / 2;
        return {view.x + token * view.ldx + Tokens::chunk() * 8, w + Weights::chunk() * 16, int(view.m - token),
                int(segment.n - row)};
    }

    __device__ __forceinline__ void fetch(Cursor &cursor, unsigned char *to) const {
        Tokens::load(to + C::token_offset(Tokens::row(), Tokens::chunk()), cursor.x, view.ldx * int64_t(sizeof(bf16)),
                     cursor.tokens);
        Weights::load(to + C::kXBytes + C::weight_offset(Weights::row(), Weights::chunk()), cursor.w,
                      C::kDense ? view.k * 2 : view.k / 2, cursor.rows);
        cursor.x += kTileK;
        cursor.w += C::kDense ? kRowBytes : kCodeBytes;
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
    __device__ __forceinline__ void store_scale(unsigned char *stage, Scale scale, float offset) const {
        bool plain = segment.nf4.absmax != nullptr;
        float absmax = plain ? scale.factor
                             : __fadd_rn(__fmul_rn(load_as<float>(nested_map + scale.code), scale.factor), offset);
        store_as<float>(stage + C::kXBytes + C::kWBytes + threadIdx.x * sizeof(float), absmax);
    }

    // The first of this lane's four rows in the block's tile of W.
    __device__ __forceinline__ static int weight_row() { return threadIdx.x / 32 * 32 + threadIdx.x % 32 / 4 * 4; }

    // sums += W times the tile of tokens, both as ldmatrix finds them: 16 features, or ranks, of which token_at(row,
    // chunk) and row_at(row, chunk) are the addresses. `own`: for the tokens of one adapter alone, whatever the other
    // tokens' S and this adapter's B hold.
    template <bool own, typename TokenAt, typename RowAt>
    __device__ __forceinline__ void multiply_step(TokenAt token_at, RowAt row_at, int adapter) {
        int lane = threadIdx.x % 32;
        uint32_t rows[2][4];
#pragma unroll
        for (int a = 0; a < 2; ++a)
            ldmatrix_x4(rows[a],
                        row_at(int(threadIdx.x) / 32 * 32 + lane % 8 * 4 + 2 * a + lane / 8 % 2, lane / 16));
#pragma unroll
        for (int i = 0; i < C::kM / 8; i += 2) {
            uint32_t tokens[4];
            ldmatrix_x4(tokens, token_at(8 * i + lane / 16 * 8 + lane % 8, lane / 8 % 2));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const uint32_t b[2] = {tokens[2 * half], tokens[2 * half + 1]};
#pragma unroll
                for (int a = 0; a < 2; ++a) {
                    float(&sum)[4] = sums[i + half][a];
                    if constexpr (own) {
                        float next[4] = {sum[0], sum[1], sum[2], sum[3]};
                        mma_m16n8k16(next, rows[a], b);
                        mma_wait();
#pragma unroll
                        for (int c = 0; c < 4; ++c) {
                            int64_t token = m0 + 8 * (i + half) + lane % 4 * 2 + c % 2;
                            bool takes = token < view.m && segment.adapter(token) == adapter;
                            sum[c] = takes ? next[c] : sum[c];
                        }
                    } else {
                        mma_m16n8k16(sum, rows[a], b);
                    }
                }
            }
        }
        mma_wait();
    }

    // sums += W times a stage's tokens, as codes: lane t has features 16t .. 16t + 15 of a row, and of a token.
    __device__ __forceinline__ void multiply_nf4(const unsigned char *stage) {
        const unsigned char *codes = stage + C::kXBytes;
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        float4 absmax = load_as<float4>(codes + C::kWBytes + weight_row() * sizeof(float));
        const float scales[4] = {absmax.x, absmax.y, absmax.z, absmax.w};
        uint2 packed[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            packed[j] = load_as<uint2>(codes + C::weight_offset(weight_row() + j, 0) + t * 8);
        Features w[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) w[j] = dequantize16(packed[j], codebook, scales[j]);
#pragma unroll
        for (int half = 0; half < 2; ++half) // a 16-byte chunk of each token: two steps
#pragma unroll
            for (int i = 0; i < C::kM / 8; ++i) {
                uint4 chunk = load_as<uint4>(stage + C::token_offset(8 * i + g, 2 * t + half));
                const uint32_t b[2][2] = {{chunk.x, chunk.y}, {chunk.z, chunk.w}};
#pragma unroll
                for (int step = 0; step < 2; ++step)
#pragma unroll
                    for (int a = 0; a < 2; ++a) {
                        const uint32_t *low = w[2 * a].pairs + 4 * half + 2 * step,
                                       *high = w[2 * a + 1].pairs + 4 * half + 2 * step;
                        const uint32_t rows[4] = {low[0], high[0], low[1], high[1]};
                        mma_m16n8k16(sums[i][a], rows, b[step]);
                    }
            }
        mma_wait();
    }

    // `copies` starts the next copies: under the products, not before them; with codes, whose dequantization the tensor
    // cores wait for anyway, before it, as any other place costs a register too many.
    template <typename Copies> __device__ __forceinline__ void multiply(const unsigned char *stage, Copies copies) {
        if constexpr (C::kDense) {
#pragma unroll
            for (int step = 0; step < kTileK / 16; ++step) {
                multiply_step<false>(
                    [&](int row, int chunk) { return stage + C::token_offset(row, 2 * step + chunk); },
                    [&](int row, int chunk) { return stage + C::kXBytes + C::weight_offset(row, 2 * step + chunk); },
                    0);
                if (step == 0) copies();
            }
        } else {
            copies();
            multiply_nf4(stage);
        }
    }

    // Starts copying ranks first .. first + 15 of S and of one adapter's B; what is past r becomes zero.
    __device__ __forceinline__ void fetch_ranks(int adapter, int first, unsigned char *to) const {
        int r = segment.r, left = r - first, token = TokenRanks::row(), row = RowRanks::row();
        // S is padded to whole chunks.
        TokenRanks::load(to + token_rank_offset(token, TokenRanks::chunk()),
                         view.s + (m0 + token) * view.lds + segment.s_column + first + TokenRanks::chunk() * 8,
                         view.lds * int64_t(sizeof(bf16)),
                         TokenRanks::chunk() * 8 < left ? int(view.m - m0 - token) : 0);
        const bf16 *b = segment.b + (adapter * segment.n + n0) * r + first;
        unsigned char *tile = to + C::kXBytes;
        if (r % 8 == 0) {
            RowRanks::load(tile + row_rank_offset(row, RowRanks::chunk()),
                           b + int64_t(row) * r + RowRanks::chunk() * 8, r * int64_t(sizeof(bf16)),
                           RowRanks::chunk() * 8 < left ? int(segment.n - n0 - row) : 0);
        } else { // rows that no 16-byte load can read
#pragma unroll 1
            for (int i = threadIdx.x; i < C::kN * kRanks; i += C::kThreads) {
                int row = i / kRanks, rank = i % kRanks;
                bf16 value = n0 + row < segment.n && rank < left ? b[int64_t(row) * r + rank] : to_bf16(0.0f);
                store_as<bf16>(tile + row_rank_offset(row, rank / 8) + rank % 8 * 2, value);
            }
        }
    }

    // sums += B times 16 ranks of S.
    template <bool own> __device__ __forceinline__ void multiply_ranks(const unsigned char *stage, int adapter) {
        multiply_step<own>([&](int token, int chunk) { return stage + token_rank_offset(token, chunk); },
                           [&](int row, int chunk) { return stage + C::kXBytes + row_rank_offset(row, chunk); },
                           adapter);
    }

    // sums += S * B^T for each adapter of the block's tokens, as many tiles of ranks at a time as there are stages.
    __device__ __forceinline__ void low_rank() {
        if constexpr (!C::kPlain) {
#pragma unroll 1
            for (int adapter = 0; adapter < (segment.r > 0 ? segment.num_adapters : 0); ++adapter) {
                if (!segment.any_has(adapter, m0, C::kM, view.m)) continue;
#pragma unroll 1
                for (int first = 0; first < segment.r; first += C::kStages * kRanks) {
                    int count = min((segment.r - first + kRanks - 1) / kRanks, C::kStages);
                    __syncthreads(); // everyone is done with what lies here
                    for (int i = 0; i < count; ++i)
                        fetch_ranks(adapter, first + i * kRanks, stages + i * C::kStageBytes);
                    cp_async_commit();
                    cp_async_wait<0>();
                    __syncthreads();
                    for (int i = 0; i < count; ++i) multiply_ranks<true>(stages + i * C::kStageBytes, adapter);
                }
            }
            __syncthreads(); // before the pipeline's first copies
        }
    }

    // sums += S * B^T + X * W^T, in one pipeline: tiles of ranks, then tiles of features.
    __device__ __forceinline__ void pipeline() {
        int tiles = int(view.k / kTileK), rank_tiles = C::kPlain ? (segment.r + kRanks - 1) / kRanks : 0;
        const bool nf4 = !C::kDense;
        float offset = nf4 && segment.nf4.offset != nullptr ? *segment.nf4.offset : 0.0f;
        Scale scale = {0.0f, 0};
        Cursor cursor = start();
        unsigned char *current = stages, *next = stages;
        auto fetch_either = [&](int tile) {
            if (tile < rank_tiles) {
                fetch_ranks(0, tile * kRanks, next);
            } else if (tile < rank_tiles + tiles) {
                fetch(cursor, next);
                if constexpr (nf4) store_scale(next, load_scale(tile - rank_tiles), offset);
            }
            cp_async_commit();
            next = after(next);
        };
#pragma unroll 1
        for (int tile = 0; tile < C::kStages - 1; ++tile) fetch_either(tile);
#pragma unroll 1
        for (int tile = 0; tile < rank_tiles; ++tile, current = after(current)) {
            cp_async_wait<C::kStages - 2>(); // this tile is here ...
            __syncthreads(); // ... for the whole block, which is done with the one before, whose stage is next to fill
            fetch_either(tile + C::kStages - 1);
            multiply_ranks<false>(current, 0);
        }
        if constexpr (nf4)
            if (C::kStages - 1 < tiles) scale = load_scale(C::kStages - 1);
#pragma unroll 1
        for (int ahead = C::kStages - 1; ahead < tiles + C::kStages - 1; ++ahead) {
            cp_async_wait<C::kStages - 2>(); // this tile is here ...
            __syncthreads(); // ... for everyone, and everyone is done with the one before, whose stage is next to fill
            multiply(current, [&] {
                if (ahead < tiles) {
                    fetch(cursor, next);
                    if constexpr (nf4) store_scale(next, scale, offset);
                }
                cp_async_commit();
                if constexpr (nf4)
                    if (ahead + 1 < tiles) scale = load_scale(ahead + 1);
            });
            current = after(current);
            next = after(next);
        }
    }

    __device__ __forceinline__ void write() {
        int64_t n = n0 + weight_row();
        float bias[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            bias[i] = segment.bias != nullptr && n + i < segment.n ? to_float(segment.bias[n + i]) : 0.0f;
        bool whole = n + 4 <= segment.n && segment.ldy % 4 == 0;
#pragma unroll
        for (int i = 0; i < C::kM / 8; ++i)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                int64_t token = m0 + 8 * i + threadIdx.x % 4 * 2 + e;
                if (token >= view.m) continue;
                bf16 *y = segment.y + token * segment.ldy + n;
                uint32_t packed[2];
#pragma unroll
                for (int a = 0; a < 2; ++a)
                    packed[a] = pack_bf16x2(sums[i][a][e] + bias[2 * a], sums[i][a][2 + e] + bias[2 * a + 1]);
                if (whole) {
                    store_as<uint2>(y, make_uint2(packed[0], packed[1]));
                } else {
#pragma unroll
                    for (int j = 0; j < 4; ++j)
                        if (n + j < segment.n)
                            y[j] = to_bf16(j % 2 ? high_float(packed[j / 2]) : low_float(packed[j / 2]));
                }
            }
    }
};

// grid: tiles of tokens times tiles of all segments' rows, in the order of tile_place().
template <typename C> __global__ void __launch_bounds__(C::kThreads, 1) linear_forward(LinearView view) {
    TilePlace place = tile_place(int(ceil_div(view.m, C::kM)));
    int64_t tile_n = place.n;
    const SegmentView &segment = view.segments[view.segment_of(tile_n, C::kN, false)];
    float *codebook = reinterpret_cast<float *>(dynamic_shared());
    Tile<C> tile = {view,     segment,       int64_t(place.m) * C::kM,         tile_n * C::kN,
                    codebook, codebook + 16, dynamic_shared() + kTablesBytes, {}};
    if constexpr (!C::kDense) {
        if (threadIdx.x < 16) codebook[threadIdx.x] = nf4_code(threadIdx.x);
        if (segment.nf4.nested_map != nullptr)
            for (int i = threadIdx.x; i < 256; i += C::kThreads) tile.nested_map[i] = segment.nf4.nested_map[i];
        __syncthreads();
    }
    tile.low_rank();
    tile.pipeline();
    tile.write();
}

template <typename C> int launch_tiles(const LinearView &view, qk_stream stream) {
    int64_t blocks = ceil_div(view.m, C::kM) * view.tiles(C::kN, false);
    if (blocks > INT32_MAX) return QK_ERROR_SHAPE;
    return launch(linear_forward<C>, dim3(unsigned(blocks)), dim3(C::kThreads), C::kSharedBytes, stream, view);
}

template <bool dense> int launch_linear(const LinearView &view, const LinearChoice &choice, qk_stream stream) {
    constexpr int kWarps = kSmallColumns / 32;
    if (choice.masked) return launch_tiles<Config<kSmallTokens, kWarps, 3, dense, false>>(view, stream);
    if (choice.tokens == kSmallTokens) return launch_tiles<Config<kSmallTokens, kWarps, 3, dense, true>>(view, stream);
    return launch_tiles<Config<kLargeTokens, kLargeColumns / 32, dense ? 2 : 3, dense, true>>(view, stream);
}

}  // namespace

int launch_linear_tensor_core(const LinearView &view, const LinearChoice &choice, qk_stream stream) {
    return choice.dense ? launch_linear<true>(view, choice, stream) : launch_linear<false>(view, choice, stream);
}
