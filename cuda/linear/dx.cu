// dX = mask(T * A) + dY * W (+ dX) on tensor cores (mma.sync, sm_80 and up), W in NF4 or bf16, all segments into the
// same accumulators, dX written once. T * A comes first, up to 64 ranks at a time (of adapters by an index, each one's
// for its own rows), then the mask on the accumulators, then dY * W, segment by segment: so the loop over N is the same
// with dropout and adapters.
//
// Block: kM tokens by 32 * kWarps columns; each warp all kM tokens by its own 32, so that a weight is dequantized once
// a block. The sum is over N: a tile is 64 rows of W. Pipeline of kStages tiles by cp.async: dY [kM, 64] bf16 and codes
// [64, columns / 2 bytes] (or W [64, columns] bf16); the tile's absmax, one per row and 64 columns, is decoded by one
// thread each, a tile ahead of its use.
//
// The transpose. Column g of a warp's j-th group of 8 is its column 4g + j: lane (g, t) reads 16 bits, 4 codes, of each
// of 4 rows a step, applies each row's absmax in f32, and packs rows n, n + 1 of a column as the instruction wants
// them. Its sums are then those of 8 neighboring columns.
//
// Shared memory: 16-byte chunks at chunk ^ row % 8 (bf16) and chunk ^ row / 2 % 4 (codes), so that no load conflicts.
// Largest: 76.1 KB (NF4), 97.1 KB (bf16). Preconditions: K % 64 == 0, lddy % 8 == 0, block size 64; M, N, r any. Limit
// (large tiles, NF4): issue slots, 3.9 beside each matrix instruction, of which dequantizing takes 2.3: 4.6 a weight
// (two to take out a code, its value, the product, half a conversion).
//
// A block without ranks, exactly (tests/cuda/launch_counts.rs): of each warp kM matrix instructions a tile; a barrier a
// tile, and for each segment one before it and one for the tables beside NF4; under a tile's products kStages - 1 tiles
// are in flight, one fewer under the first quarter. Loads of shared memory, of a warp and tile: kM / 4 ldmatrix; NF4 16
// of 2 bytes of codes, 8 of 8 of absmax and 64 of 4 of the code book; bf16 16 of 8. Blocks of a multiprocessor: as of
// the forward pass.
#include "linear/backward.cuh"

namespace {

constexpr int kTileN = 64;
constexpr int kTablesBytes = 272 * int(sizeof(float));

template <int kM_, int kWarps_, int kStages_, bool kDense_> struct Config {
    static constexpr int kM = kM_, kWarps = kWarps_, kStages = kStages_;
    static constexpr bool kDense = kDense_;
    static constexpr int kK = 32 * kWarps, kThreads = 32 * kWarps;
    static constexpr int kDyBytes = kM * kTileN * int(sizeof(bf16));
    static constexpr int kRowBytes = kK * int(sizeof(bf16)), kCodeRowBytes = kK / 2; // of a tile of W or A, of codes
    static constexpr int kWBytes = kTileN * (kDense ? kRowBytes : kCodeRowBytes);
    static constexpr int kStageBytes = kDyBytes + kWBytes + (kDense ? 0 : kThreads * int(sizeof(float)));
    static constexpr int kLowRankBytes = kDyBytes + kTileN * kRowBytes; // T and A, over the stages
    static constexpr int kPipelineBytes = kStages * kStageBytes > kLowRankBytes ? kStages * kStageBytes : kLowRankBytes;
    static constexpr size_t kSharedBytes = kTablesBytes + kPipelineBytes;
    static_assert(kSharedBytes <= kMaxSharedBytes, "fits every card");
    static_assert(kStages >= 2 && kM % 32 == 0, "a tile ahead, whole fragments");
    static_assert(kK / 64 * kTileN == kThreads, "one thread decodes each absmax of a tile");
};

static_assert(Config<kSmallTokens, kSmallColumns / 32, 3, true>::kSharedBytes + 1024 == kSmallDenseBytes,
              "what TileTimes are chosen by");

// Offset in bytes of a 16-byte chunk in a tile with rows of `row_bytes`, swizzled.
__device__ __forceinline__ int bf16_offset(int row, int chunk, int row_bytes) {
    return row * row_bytes + (chunk ^ (row & 7)) * 16;
}
__device__ __forceinline__ int code_offset(int row, int chunk, int row_bytes) {
    return row * row_bytes + (chunk ^ (row >> 1 & 3)) * 16;
}

// Fragments of 16 rows and a warp's 32 columns: [group j of 8 columns].
struct Columns {
    uint32_t pairs[4][2];
};

__device__ __forceinline__ uint32_t low_halves(uint32_t first, uint32_t second) {
    return (first & 0xffffu) | second << 16;
}
__device__ __forceinline__ uint32_t high_halves(uint32_t first, uint32_t second) {
    return first >> 16 | (second & 0xffff0000u);
}

// One block's place and its pipeline.
template <typename C> struct Tile {
    const BackwardView &view;
    uint32_t m0, k0; // unsigned, so that no register holds their sign; M and K are less than 2^31
    float sums[C::kM / 16][4][4]; // [16 tokens][8 columns]

    // Their addresses are constants: functions rather than members, which would take registers.
    __device__ __forceinline__ static float *codebook() { return reinterpret_cast<float *>(dynamic_shared()); } // [16]
    __device__ __forceinline__ static float *nested_map() { return codebook() + 16; }                          // [256]
    __device__ __forceinline__ static unsigned char *stages() { return dynamic_shared() + kTablesBytes; }
    __device__ __forceinline__ static float *scales(unsigned char *stage) {
        return reinterpret_cast<float *>(stage + C::kDyBytes + C::kWBytes);
    }
    __device__ __forceinline__ unsigned char *after(unsigned char *stage) const {
        return stage + C::kStageBytes == stages() + C::kStages * C::kStageBytes ? stages() : stage + C::kStageBytes;
    }

    // Starts copying `columns` (at most 64) of kM rows from m0 on of a bf16 matrix [M, stride]; what is past them
    // becomes zero. Not unrolled: the addresses of more chunks at once take registers that large tiles do not have.
    __device__ __forceinline__ void fetch_tokens(unsigned char *tile, const bf16 *matrix, int64_t stride,
                                                 int columns) const {
#pragma unroll 1
        for (int i = threadIdx.x; i < C::kM * 8; i += C::kThreads) {
            int row = i / 8, chunk = i % 8;
            int left = m0 + row < uint32_t(view.m) ? columns - chunk * 8 : 0;
            int bytes = left >= 8 ? 16 : left > 0 ? left * 2 : 0;
            cp_async_partial(tile + bf16_offset(row, chunk, 128),
                             bytes > 0 ? matrix + int64_t(m0 + row) * stride + chunk * 8 : matrix, bytes);
        }
    }

    // fetch_tokens() for 64 rows of this block's columns; row_at(row) is a row's first element, or NULL for zeros.
    template <typename RowAt>
    __device__ __forceinline__ void fetch_columns(unsigned char *tile, const bf16 *any, RowAt row_at) const {
        constexpr int kChunks = C::kRowBytes / 16;
#pragma unroll 1
        for (int i = threadIdx.x; i < kTileN * kChunks; i += C::kThreads) {
            int row = i / kChunks, chunk = i % kChunks;
            const bf16 *from = row_at(row);
            bool valid = from != nullptr && k0 + chunk * 8 < uint32_t(view.k);
            cp_async_16(tile + bf16_offset(row, chunk, C::kRowBytes), valid ? from + k0 + chunk * 8 : any, valid);
        }
    }

    // This thread's share of the copies of a segment's tiles; it moves on by a tile with each.
    struct Cursor {
        const bf16 *dy;         // its chunk of its first row of dY
        const unsigned char *w; // its chunk of its first row of W
        int64_t block, at;      // row-major block of its absmax, and where that lies
        int left;               // rows of W from the first of the tile to copy on; 0 and below where none are
    };

    static constexpr int kWChunks = (C::kDense ? C::kRowBytes : C::kCodeRowBytes) / 16; // of a row of W in a tile
    static constexpr int kWRows = C::kThreads / kWChunks;                               // that the block copies at once
    static constexpr int kDyRows = C::kThreads / 8;
    static_assert(kDyRows % 8 == 0 && kWRows % 8 == 0, "a thread's rows have the same swizzle");

    __device__ __forceinline__ Cursor start(const BackwardSegment &segment) const {
        int64_t row = threadIdx.x / kWChunks, chunk = threadIdx.x % kWChunks, scale_row = threadIdx.x % kTileN,
                scale_column = k0 / 64 + threadIdx.x / kTileN;
        Cursor cursor = {segment.dy + int64_t(m0 + threadIdx.x / 8) * segment.lddy + threadIdx.x % 8 * 8, nullptr, 0,
                         0, int(segment.n)};
        if constexpr (C::kDense) {
            cursor.w = reinterpret_cast<const unsigned char *>(segment.dense + row * view.k + k0 + chunk * 8);
        } else {
            cursor.w = segment.nf4.codes + (row * view.k + k0) / 2 + chunk * 16;
            cursor.block = scale_row * (view.k / 64) + scale_column;
            cursor.at = segment.nf4.transposed ? scale_column * segment.n + scale_row : cursor.block;
        }
        return cursor;
    }

    // Starts copying a tile, but for `left`. Rows past N: zeros of dY, so that W does not matter there.
    __device__ __forceinline__ void fetch(const BackwardSegment &segment, Cursor &cursor, unsigned char *to) const {
        int64_t left = view.m - m0 - threadIdx.x / 8;
        int rows = left < C::kM ? int(left) : C::kM, columns = cursor.left - int(threadIdx.x % 8 * 8);
        int bytes = columns >= 8 ? 16 : columns > 0 ? columns * 2 : 0;
        unsigned char *dy = to + bf16_offset(threadIdx.x / 8, threadIdx.x % 8, 128);
#pragma unroll
        for (int i = 0; i < C::kM / kDyRows; ++i)
            cp_async_partial(dy + i * kDyRows * 128, cursor.dy + i * kDyRows * segment.lddy,
                             i * kDyRows < rows ? bytes : 0);
        constexpr int kPerChunk = C::kDense ? 8 : 32; // columns
        int row = threadIdx.x / kWChunks, chunk = threadIdx.x % kWChunks;
        int w_rows = k0 + chunk * kPerChunk < uint32_t(view.k) ? cursor.left - row : 0;
        unsigned char *w =
            to + C::kDyBytes +
            (C::kDense ? bf16_offset(row, chunk, C::kRowBytes) : code_offset(row, chunk, C::kCodeRowBytes));
        int64_t row_bytes = C::kDense ? view.k * 2 : view.k / 2;
#pragma unroll
        for (int i = 0; i < kTileN / kWRows; ++i)
            cp_async_16(w + i * kWRows * kWChunks * 16, cursor.w + i * kWRows * row_bytes, i * kWRows < w_rows);
        cursor.dy += kTileN;
        cursor.w += kTileN * row_bytes;
    }

    // The scale of this thread's row and 64 columns in a tile, in two halves so that the first's loads are under way
    // while a tile is computed.
    struct Scale {
        float factor; // nested absmax, or the absmax itself
        int code;
    };
    __device__ __forceinline__ Scale load_scale(const Nf4View &w, Cursor &cursor) const {
        bool valid = int(threadIdx.x % kTileN) < cursor.left && k0 + threadIdx.x / kTileN * 64 < uint32_t(view.k);
        int64_t at = valid ? cursor.at : 0,
                block = valid ? cursor.block : 0; // else any: it meets zeros of dY, or columns past K
        cursor.at += w.transposed ? kTileN : kTileN * (view.k / 64);
        cursor.block += kTileN * (view.k / 64);
        if (w.absmax != nullptr) return {w.absmax[at], 0};
        return {w.nested_absmax[block / QK_NESTED_BLOCK], w.absmax_codes[at]};
    }
    __device__ __forceinline__ void store_scale(const Nf4View &w, unsigned char *to, Scale scale, float offset) const {
        scales(to)[threadIdx.x] =
            w.absmax != nullptr ? scale.factor : __fadd_rn(__fmul_rn(nested_map()[scale.code], scale.factor), offset);
    }

    // 16 rows of a bf16 tile, from 16 * step on.
    __device__ __forceinline__ Columns load_columns(const unsigned char *tile, int step) const {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
        Columns columns;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint2 rows[2];
#pragma unroll
            for (int i = 0; i < 2; ++i)
                rows[i] = load_as<uint2>(
                    tile + bf16_offset(16 * step + 8 * half + 2 * t + i, warp * 4 + g / 2, C::kRowBytes) + g % 2 * 8);
            columns.pairs[0][half] = low_halves(rows[0].x, rows[1].x);
            columns.pairs[1][half] = high_halves(rows[0].x, rows[1].x);
            columns.pairs[2][half] = low_halves(rows[0].y, rows[1].y);
            columns.pairs[3][half] = high_halves(rows[0].y, rows[1].y);
        }
        return columns;
    }

    // load_columns() of a tile of codes.
    __device__ __forceinline__ Columns dequantize_columns(const unsigned char *codes, const float *scales,
                                                          int step) const {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
        Columns columns;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int row = 16 * step + 8 * half + 2 * t;
            float2 scale = load_as<float2>(scales + warp / 2 * kTileN + row);
            float weights[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint32_t word =
                    load_as<uint16_t>(codes + code_offset(row + i, warp, C::kCodeRowBytes) + g * 2);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    uint32_t code = word >> (j / 2 * 8 + (j % 2 ? 0 : 4)) & 15;
                    weights[i][j] = __fmul_rn(load_as<float>(codebook() + code), i == 0 ? scale.x : scale.y);
                }
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) columns.pairs[j][half] = pack_bf16x2(weights[0][j], weights[1][j]);
        }
        return columns;
    }

    // The fragment of tokens 16 * i on and columns 16 * step on of a [kM, 64] tile.
    __device__ __forceinline__ void load_tokens(uint32_t (&a)[4], const unsigned char *tile, int i, int step) const {
        int lane = threadIdx.x % 32;
        ldmatrix_x4(a, tile + bf16_offset(16 * i + lane % 16, 2 * step + lane / 16, 128));
    }

    __device__ __forceinline__ void multiply(const unsigned char *tokens, int step, const Columns &columns) {
#pragma unroll
        for (int i = 0; i < C::kM / 16; ++i) {
            uint32_t a[4];
            load_tokens(a, tokens, i, step);
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_m16n8k16(sums[i][j], a, columns.pairs[j]);
        }
        mma_wait();
    }

    // Bit i: the tile's token 32 * i + lane is the adapter's.
    __device__ __forceinline__ uint32_t own_tokens(const LoraView &lora, int adapter) const {
        uint32_t own = 0;
#pragma unroll 1
        for (int bit = 0; bit < C::kM / 32; ++bit) {
            uint32_t row = m0 + 32 * bit + threadIdx.x % 32;
            own |= (row < uint32_t(view.m) && lora.adapter(row) == adapter ? 1u : 0u) << bit;
        }
        return own;
    }

    // multiply() for an adapter's tokens alone, whatever the other rows of T hold and its A. Each step votes anew: a
    // mask for each row that lives from step to step takes registers that large tiles do not have.
    __device__ __forceinline__ void multiply_own(const unsigned char *tokens, int step, const Columns &columns,
                                                 uint32_t own) {
        uint32_t bits[C::kM / 32]; // bit 8 * j: of token 32 * i + 8 * j + g
#pragma unroll
        for (int i = 0; i < C::kM / 32; ++i) bits[i] = __ballot_sync(~0u, own >> i & 1) >> threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < C::kM / 16; ++i) {
            uint32_t a[4];
            load_tokens(a, tokens, i, step);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float sum[4] = {sums[i][j][0], sums[i][j][1], sums[i][j][2], sums[i][j][3]};
                mma_m16n8k16(sum, a, columns.pairs[j]);
                mma_wait();
#pragma unroll
                for (int c = 0; c < 4; ++c)
                    sums[i][j][c] = bits[i / 2] >> (16 * (i % 2) + 8 * (c / 2)) & 1 ? sum[c] : sums[i][j][c];
            }
        }
    }

    // sums += columns first .. end of T (multiples of 8) times the rows of A that belong to them: those of all
    // segments, or, if `own` is not NULL, of one segment's adapter, for that adapter's rows alone (own_tokens()). There
    // are few: at most QK_MAX_SEGMENTS * QK_MAX_R.
    __device__ __forceinline__ void ranks(int first, int end, const BackwardSegment *own, int adapter,
                                          uint32_t own_bits) {
        unsigned char *t_tile = stages(), *a_tile = stages() + C::kDyBytes;
        for (; first < end; first += kTileN) {
            cp_async_wait<0>();
            __syncthreads(); // everyone is done with what lies here
            fetch_tokens(t_tile, view.t + first, view.ldt, end - first);
            fetch_columns(a_tile, view.t, [&](int row) -> const bf16 * {
                int column = first + row;
                if (column >= end) return nullptr;
                int i = 0;
                while (i + 1 < view.num_segments && column >= int(view.segments[i + 1].s_column)) ++i;
                const BackwardSegment &segment = own != nullptr ? *own : view.segments[i];
                int rank = column - int(segment.s_column);
                return rank < segment.r ? segment.a + (int64_t(adapter) * segment.r + rank) * view.k : nullptr;
            });
            cp_async_commit();
            cp_async_wait<0>();
            __syncthreads();
            int left = end - first < kTileN ? end - first : kTileN;
#pragma unroll 1
            for (int step = 0; step * 16 < left; ++step) {
                Columns columns = load_columns(a_tile, step);
                if (own != nullptr) multiply_own(t_tile, step, columns, own_bits);
                else multiply(t_tile, step, columns);
            }
        }
    }

    __device__ __forceinline__ void low_rank() {
        if (!view.has_adapters()) return ranks(0, int(view.columns), nullptr, 0, 0);
#pragma unroll 1
        for (int i = 0; i < view.num_segments; ++i) {
            const BackwardSegment &segment = view.segments[i];
#pragma unroll 1
            for (int adapter = 0; adapter < segment.num_adapters; ++adapter) {
                uint32_t own = own_tokens(segment, adapter);
                if (__ballot_sync(~0u, own != 0) == 0) continue; // in all warps
                int first = int(segment.s_column);
                ranks(first, first + (segment.r + 7) / 8 * 8, &segment, adapter, own);
            }
        }
    }

    __device__ __forceinline__ uint32_t column() const {
        return k0 + threadIdx.x / 32 * 32 + threadIdx.x % 4 * 8;
    } // the first of this lane's 8
    __device__ __forceinline__ uint32_t token(int i, int half) const {
        return m0 + 16 * i + 8 * half + threadIdx.x % 32 / 4;
    }

    // Dropout of what the accumulators hold. 32 elements at a time as bits, so that the numbers need few registers.
    __device__ __forceinline__ void mask() {
        uint32_t step = view.dropout.step();
#pragma unroll
        for (int pair = 0; pair < C::kM / 32; ++pair) {
            uint32_t kept = 0;
#pragma unroll 1
            for (int draw = 0; draw < 8; ++draw) { // 16 tokens, half, quad of columns
                uint32_t row = token(2 * pair + draw / 4, draw / 2 % 2);
                kept |= dropout_kept(view.dropout, step, row, column() / 4 + draw % 2) << 4 * draw;
            }
#pragma unroll
            for (int bit = 0; bit < 32; ++bit) {
                float &sum = sums[2 * pair + bit / 16][bit % 4][2 * (bit / 8 % 2) + bit / 4 % 2];
                uint32_t all_or_none = 0u - (kept >> bit & 1u); // zero also where the sum is no number
                sum = __uint_as_float(__float_as_uint(__fmul_rn(sum, view.dropout.scale)) & all_or_none);
            }
        }
    }

    __device__ __forceinline__ void base(const BackwardSegment &segment) {
        const Nf4View &w = segment.nf4;
        const bool nf4 = !C::kDense;
        cp_async_wait<0>();
        __syncthreads(); // everyone is done with what lies in the stages, and with the tables
        float offset = 0.0f;
        if constexpr (nf4) {
            if (w.nested_map != nullptr) {
                offset = *w.offset;
                for (int i = threadIdx.x; i < 256; i += C::kThreads) nested_map()[i] = w.nested_map[i];
            }
            __syncthreads();
        }
        Cursor cursor = start(segment);
        Scale scale = {0.0f, 0};
        unsigned char *current = stages(), *next = stages();
#pragma unroll
        for (int i = 0; i < C::kStages - 1; ++i, next += C::kStageBytes) {
            if (cursor.left > 0) {
                if constexpr (nf4) store_scale(w, next, load_scale(w, cursor), offset);
                fetch(segment, cursor, next);
            }
            cp_async_commit();
            cursor.left -= kTileN;
        }
        if constexpr (nf4)
            if (cursor.left > 0) scale = load_scale(w, cursor);
#pragma unroll 1
        while (cursor.left > -(C::kStages - 1) * kTileN) { // as many tiles ahead of the one that is multiplied
            cp_async_wait<C::kStages - 2>(); // this tile is here ...
            __syncthreads(); // ... for everyone, and everyone is done with the one before, whose stage is next to fill
            const unsigned char *weights = current + C::kDyBytes;
#pragma unroll
            for (int step = 0; step < kTileN / 16; ++step) {
                if constexpr (nf4) multiply(current, step, dequantize_columns(weights, scales(current), step));
                else multiply(current, step, load_columns(weights, step));
                if (step > 0) continue;
                // The next copies under the products, not before them.
                if (cursor.left > 0) {
                    fetch(segment, cursor, next);
                    if constexpr (nf4) store_scale(w, next, scale, offset);
                }
                cp_async_commit();
                cursor.left -= kTileN;
                if constexpr (nf4)
                    if (cursor.left > 0) scale = load_scale(w, cursor);
            }
            next = current; // everyone is done with it behind the next barrier
            current = after(current);
        }
    }

    __device__ __forceinline__ void write() {
        if (column() >= uint32_t(view.k)) return;
        bool whole = view.lddx % 8 == 0;
#pragma unroll
        for (int i = 0; i < C::kM / 16; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (token(i, half) >= uint32_t(view.m)) continue;
                bf16 *dx = view.dx + int64_t(token(i, half)) * view.lddx + column();
                float row[8];
#pragma unroll
                for (int j = 0; j < 8; ++j) row[j] = sums[i][j % 4][2 * half + j / 4];
                uint32_t packed[4];
                if (view.accumulate) {
                    uint4 old = {};
                    if (whole) old = load_as<uint4>(dx);
                    uint32_t pairs[4] = {old.x, old.y, old.z, old.w};
#pragma unroll
                    for (int j = 0; j < 8; ++j)
                        row[j] = __fadd_rn(!whole  ? to_float(dx[j])
                                           : j % 2 ? high_float(pairs[j / 2])
                                                   : low_float(pairs[j / 2]),
                                           row[j]);
                }
#pragma unroll
                for (int j = 0; j < 4; ++j) packed[j] = pack_bf16x2(row[2 * j], row[2 * j + 1]);
                if (whole) {
                    store_as<uint4>(dx, make_uint4(packed[0], packed[1], packed[2], packed[3]));
                } else {
#pragma unroll
                    for (int j = 0; j < 8; ++j)
                        dx[j] = to_bf16(j % 2 ? high_float(packed[j / 2]) : low_float(packed[j / 2]));
                }
            }
    }
};

// grid: tiles of tokens times tiles of columns, in the order of tile_place().
template <typename C> __global__ void __launch_bounds__(C::kThreads, 1) linear_dx(BackwardView view) {
    TilePlace place = tile_place(int(ceil_div(view.m, C::kM)));
    Tile<C> tile = {view, uint32_t(place.m) * C::kM, uint32_t(place.n) * C::kK, {}};
    if (!C::kDense && threadIdx.x < 16)
        tile.codebook()[threadIdx.x] = nf4_code(threadIdx.x); // barriers before the first use
    tile.low_rank();
    if (view.dropout.active() && view.columns > 0) tile.mask();
#pragma unroll 1
    for (int i = 0; i < view.num_segments; ++i) tile.base(view.segments[i]);
    tile.write();
}

template <typename C> int launch_tiles(const BackwardView &view, qk_stream stream) {
    int64_t blocks = ceil_div(view.m, C::kM) * ceil_div(view.k, C::kK);
    if (blocks > INT32_MAX) return QK_ERROR_SHAPE;
    return launch(linear_dx<C>, dim3(unsigned(blocks)), dim3(C::kThreads), C::kSharedBytes, stream, view);
}

template <bool dense> int launch_dx(const BackwardView &view, const LinearChoice &choice, qk_stream stream) {
    if (choice.tokens == kSmallTokens)
        return launch_tiles<Config<kSmallTokens, kSmallColumns / 32, 3, dense>>(view, stream);
    return launch_tiles<Config<kLargeTokens, kLargeColumns / 32, dense ? 2 : 3, dense>>(view, stream);
}

}  // namespace

int launch_linear_dx_tensor_core(const BackwardView &view, const LinearChoice &choice, qk_stream stream) {
    return choice.dense ? launch_dx<true>(view, choice, stream) : launch_dx<false>(view, choice, stream);
}
