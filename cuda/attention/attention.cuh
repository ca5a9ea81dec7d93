// Tiles of rows in shared memory, their matrix fragments, and the keys that a query sees: shared by the attention
// kernels.
//
// A tile is `rows` tokens of one head, D wide, as D / 8 chunks of 16 bytes; chunk c of row r lies at c ^ (r % 8), so
// that the 8 rows of an ldmatrix fall into different banks. Rows of D = 96 lie as far apart as those of 128.
//
// Tiles of D = 256 are smaller, because shared memory is as large; and there the warps of a block share its rows by
// twos, each with half of the columns of what is summed, because 8 registers a column of 16 rows are too many.
#pragma once

#include "common/shared_tile.cuh"
#include "common/soft_cap.cuh"

constexpr int kAttentionWarps = 8;
constexpr int kAttentionThreads = kAttentionWarps * 32;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

constexpr int kRowsTokens = 32; // the queries of a step of the backward pass, or of two

// Tokens are counted in 32 bits, with room for a tile past the end.
constexpr int64_t kMaxTokens = INT32_MAX - 1024;

// The checked operand, by value.
struct AttentionView {
    const bf16 *qkv;             // [M, ldqkv]: H query heads, Hkv key heads, Hkv value heads, each D wide
    const uint32_t *cu_seqlens;  // [documents + 1]
    bf16 *out;                   // [M, ldout]
    float *lse;                  // [M, H]
    const bf16 *dout;            // [M, H * D]
    float2 *rows;                // [H, padded M]: lse * log2(e) and delta; zeros from token M on
    bf16 *dqkv;                  // [M, lddqkv]
    int64_t ldqkv, ldout, lddqkv;
    float4 *partial;             // [splits, Hkv, tiles, 2 / 8 of a thread's columns, threads]: sums of dK and
                                 // dV; NULL with one split
    int splits;                  // parts that the query heads of a key head are cut into for dK and dV
    int m, window;               // window: keys a query sees, itself included; INT32_MAX: all
    int documents, heads, kv_heads;
    float scale;                 // 1 / sqrt(D)
    float soft_cap;              // of scores; 0: none
    float to_tanh;               // with a soft cap: kTanhScale / (sqrt(D) * cap)

    // The place of a token and a head in `rows`: whole tiles of 32 tokens, so that any is whole 16-byte chunks.
    __host__ __device__ int64_t padded_m() const { return ceil_div(m, kRowsTokens) * kRowsTokens; }
    __host__ __device__ int64_t row_at(int64_t token, int64_t head) const { return head * padded_m() + token; }
};

// The first and one past the last token of the document of `token`, within the M tokens whatever cu_seqlens says.
struct Document { int first, end; };

__device__ __forceinline__ Document document_of(const AttentionView &view, int token) {
    int low = 0, high = view.documents - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (view.cu_seqlens[middle] <= uint32_t(token)) low = middle; else high = middle - 1;
    }
    return {int(min(view.cu_seqlens[low], uint32_t(token))),
            max(int(min(view.cu_seqlens[low + 1], uint32_t(view.m))), token + 1)};
}

// The first key that query `token` sees; the last is itself.
__device__ __forceinline__ int first_key(const AttentionView &view, int token) {
    int first = document_of(view, token).first;
    return token - first >= view.window ? token - view.window + 1 : first;
}

// With a soft cap scores q * k become tanh(q * k / (sqrt(D) * cap)), each times the factor of score_scale() an exponent
// of 2 as without one.
template <bool kCapped> __device__ __forceinline__ float score_scale(const AttentionView &view) {
    return kCapped ? view.soft_cap * kLog2e : view.scale * kLog2e;
}
template <int N> __device__ __forceinline__ void cap_scores(float (&s)[N][4], float to_tanh) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = tanh_scaled(s[n][i] * to_tanh);
}

template <int D> struct Tile {
    static constexpr int kChunks = D / 8, kStride = (kChunks + 7) / 8 * 8; // of a row; from one row to the next
    bf16 *base;

    __host__ __device__ static constexpr size_t bytes(int rows) { return size_t(rows) * kStride * 8 * sizeof(bf16); }

    __device__ __forceinline__ bf16 *at(int row, int chunk) const {
        return base + (row * kStride + (chunk ^ (row & 7))) * 8;
    }

    // The tile from a column on that is a multiple of 64: what it has before lies at the ends of the rows.
    __device__ __forceinline__ Tile from(int column) const { return {base + column}; }

    // Starts copying rows first .. first + kRows of `matrix` [M, ld], columns column .. column + D; zeros from row m
    // on. By all threads of the block.
    template <int kRows>
    __device__ __forceinline__ void load(const bf16 *matrix, int64_t ld, int64_t column, int first, int m) const {
        using Loader = TileLoader<kRows, kStride, kAttentionThreads, 8>;
        int row = Loader::row(), chunk = Loader::chunk();
        if (kChunks < kStride && chunk >= kChunks) return;
        Loader::load(reinterpret_cast<unsigned char *>(at(row, chunk)),
                     matrix + int64_t(first + row) * ld + column + chunk * 8, ld * int64_t(sizeof(bf16)),
                     m - first - row);
    }

    // Chunk 2 step + half of a row whose number ends in the 3 bits of the lane's: `at`, written so that 4 offsets serve
    // all steps and the rest is a constant. (Registers are what limits these kernels.)
    __device__ __forceinline__ const bf16 *lane_at(int row, int half, int step) const {
        int lane = int(threadIdx.x) % 32;
        return base + (row * kStride + (half ^ (lane & 7) ^ (step % 4 * 2))) * 8 + step / 4 * 64;
    }

    // A [16 x 16]: rows row .. row + 15, columns 16 step .. . Here and below `row` is a multiple of 8.
    __device__ __forceinline__ void a(uint32_t (&fragment)[4], int row, int step) const {
        int lane = int(threadIdx.x) % 32;
        ldmatrix_x4(fragment, lane_at(row + lane % 16, lane / 16, step));
    }

    // B [16 x 16] of a product with the tile's transpose: its columns are rows row .. row + 15. Words 0, 1: the first 8
    // of them.
    __device__ __forceinline__ void b_of_rows(uint32_t (&fragment)[4], int row, int step) const {
        int lane = int(threadIdx.x) % 32;
        ldmatrix_x4(fragment, lane_at(row + lane / 16 * 8 + lane % 8, lane / 8 % 2, step));
    }

    // B [16 x 16] of a product with the tile itself: rows row .. row + 15, columns 16 pair .. . Words 0, 1: the first 8
    // columns.
    __device__ __forceinline__ void b(uint32_t (&fragment)[4], int row, int pair) const {
        int lane = int(threadIdx.x) % 32;
        ldmatrix_x4_trans(fragment, lane_at(row + lane / 8 % 2 * 8 + lane % 8, lane / 16, pair));
    }
};

// Calls `launch` with the head_dim as a type's constant `value`: the head_dims that are built.
template <int D> struct HeadDim { static constexpr int value = D; };
template <typename Launch> int with_head_dim(int64_t head_dim, Launch launch) {
    switch (head_dim) {
    case 64: return launch(HeadDim<64>());
    case 96: return launch(HeadDim<96>());
    case 128: return launch(HeadDim<128>());
    case 256: return launch(HeadDim<256>());
    default: return QK_ERROR_HEAD_DIM;
    }
}

// Calls `launch` with the head_dim and whether scores have a soft cap: kernels without one know nothing of it.
template <bool kCapped> struct SoftCapped { static constexpr bool value = kCapped; };
template <typename Launch> int with_head_dim_and_cap(int64_t head_dim, float soft_cap, Launch launch) {
    return with_head_dim(head_dim, [&](auto d) {
        return soft_cap > 0.0f ? launch(d, SoftCapped<true>()) : launch(d, SoftCapped<false>());
    });
}

// AttentionView::to_tanh
inline float to_tanh_of(int64_t head_dim, float soft_cap) {
    return soft_cap > 0.0f ? float(double(kTanhScale) / (sqrt(double(head_dim)) * double(soft_cap))) : 0.0f;
}

inline bool has_head_dim(int64_t head_dim) {
    return with_head_dim(head_dim, [](auto) { return int(QK_OK); }) == QK_OK;
}

// c[2 pair], c[2 pair + 1] += A * B, for a B fragment of 16 columns. mma_wait() comes before the first look at c.
__device__ __forceinline__ void mma_pair(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[4]) {
    uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_m16n8k16(c0, a, first);
    mma_m16n8k16(c1, a, second);
}

// Columns 16 step .. 16 step + 15 of an accumulator as an A fragment: the two layouts agree.
template <int N> __device__ __forceinline__ void a_of_accumulator(uint32_t (&a)[4], const float (&c)[N][4], int step) {
    a[0] = pack_bf16x2(c[2 * step][0], c[2 * step][1]);
    a[1] = pack_bf16x2(c[2 * step][2], c[2 * step][3]);
    a[2] = pack_bf16x2(c[2 * step + 1][0], c[2 * step + 1][1]);
    a[3] = pack_bf16x2(c[2 * step + 1][2], c[2 * step + 1][3]);
}

// Sums and maxima over the 4 lanes that share a row of an accumulator.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// The backward pass's layout of its workspace: `rows`, then, from `partial_at` on, the partial sums of dK and dV.
struct AttentionWorkspace {
    int splits;
    size_t partial_at, bytes;
};

AttentionWorkspace attention_backward_workspace(const AttentionView &view, int head_dim);

int launch_attention_backward(const AttentionView &view, int head_dim, qk_stream stream);
