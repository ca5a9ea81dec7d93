// The checked operand of the fused linear layer, by value; matrix fragments and dequantization.
//
// The K permutation. A tile is 64 features deep: 4 steps of mma.m16n8k16. Lane t = lane % 4 takes features 16t .. 16t +
// 15 of it, 4 for each step, of X and of the weight alike (a sum does not care which feature is called which): a row's
// 16 codes are one 8-byte load, dequantized where the instruction wants them, and X's 16 features are two 16-byte
// loads. No weight goes through shared memory after dequantizing.
#pragma once

#include "common/philox.cuh"
#include "linear/choice.cuh"
#include "nf4/nf4.cuh"

constexpr int kTileK = 64; // one block of 64 weights: one absmax per row and tile

// A kernel's view of a qk_lora, by value; all zero without one.
struct LoraView {
    const bf16 *a, *b;            // [num_adapters, r, K], [num_adapters, n, r]
    const int32_t *adapter_index; // [M], or NULL: adapter 0 for all rows
    const float *scales;          // [num_adapters], or NULL: scale
    float scale;
    int r;                        // 0 without LoRA
    int num_adapters;

    // The adapter of a row; -1: none.
    __device__ __forceinline__ int adapter(int64_t row) const {
        if (adapter_index == nullptr) return 0;
        int index = adapter_index[row];
        return index >= 0 && index < num_adapters ? index : -1;
    }
    // True if any of `rows` rows from `first` on, of m, has it: the same answer in all warps. All lanes ask.
    __device__ __forceinline__ bool any_has(int of_adapter, int64_t first, int rows, int64_t m) const {
        bool has = false;
        for (int64_t row = first + threadIdx.x % 32; row < first + rows && row < m; row += 32)
            has |= adapter(row) == of_adapter;
        return __ballot_sync(~0u, has) != 0;
    }
    __device__ __forceinline__ float scale_of(int adapter) const { return scales != nullptr ? scales[adapter] : scale; }
};

struct SegmentView : LoraView {
    Nf4View nf4;
    const bf16 *dense;   // [n, K], or NULL: nf4
    const bf16 *bias;    // [n] or NULL
    bf16 *y;             // [M, ldy]
    int64_t n, ldy;
    int64_t s_column;    // where this segment's part of S begins
};

struct LinearView {
    const bf16 *x;       // [M, ldx]
    const bf16 *s;       // [M, lds], lds a multiple of 8; NULL without LoRA
    bf16 *room;          // where S may follow X's columns, in rows of ldx; NULL: nowhere
    int64_t m, k, ldx, lds;
    int64_t columns;     // of S: each segment's r rounded up to 8
    DropoutView dropout; // of S
    int num_segments;
    SegmentView segments[QK_MAX_SEGMENTS];

    __host__ __device__ bool has_adapters() const {
        for (int i = 0; i < num_segments; ++i)
            if (segments[i].adapter_index != nullptr) return true;
        return false;
    }

    // The segment of tile `tile` when each has ceil(rows / tile_rows) tiles; `tile` becomes the number within it.
    // `ranks`: rows are those of A, otherwise those of the weight.
    __host__ __device__ int segment_of(int64_t &tile, int tile_rows, bool ranks) const {
        int segment = 0;
        for (; segment + 1 < num_segments; ++segment) {
            int64_t tiles = ceil_div(ranks ? segments[segment].r : segments[segment].n, tile_rows);
            if (tile < tiles) break;
            tile -= tiles;
        }
        return segment;
    }

    int64_t tiles(int tile_rows, bool ranks) const {
        int64_t sum = 0;
        for (int i = 0; i < num_segments; ++i) sum += ceil_div(ranks ? segments[i].r : segments[i].n, tile_rows);
        return sum;
    }
};

// The tile of the output that a block has, of tiles_m tiles of tokens by gridDim.x / tiles_m tiles of columns.
// Neighbors share a tile of columns, so that its weights leave DRAM once; but within groups of at most kGroupTiles
// tiles of tokens, as equal as they can be: the blocks that run at one time then share both operands. Of a long batch
// they would else be one column of tiles, and X would come from DRAM again for each.
constexpr int kGroupTiles = 16;

struct TilePlace { int m, n; };

__device__ __forceinline__ TilePlace tile_place(int tiles_m) {
    int tiles_n = int(gridDim.x) / tiles_m, block = int(blockIdx.x);
    int groups = (tiles_m + kGroupTiles - 1) / kGroupTiles, size = (tiles_m + groups - 1) / groups;
    int group = block / (size * tiles_n), first = group * size, within = block - first * tiles_n;
    int here = min(size, tiles_m - first);
    return {first + within % here, within / here};
}

// Checks an operand and turns it into a view: QK_OK or the error.
int linear_view(const qk_linear_args *linear, LinearView *view);

// Checks a LoRA pair and turns it into a view: QK_OK or the error.
int lora_view(const qk_lora *lora, LoraView *view);

// The stride of S or T that a call gives, 0 for that of its columns: QK_OK or the error.
int low_rank_stride(int64_t given, int64_t columns, int64_t *stride);

inline int64_t round_up_8(int64_t value) { return (value + 7) / 8 * 8; }

// Launchers, one per kernel file. The view is valid and m >= 1.
// lora_down writes rows that are lds apart, as the view has it.
int launch_lora_down(const LinearView &view, bf16 *s, qk_stream stream);
int launch_lora_down_generic(const LinearView &view, bf16 *s, qk_stream stream);
int launch_lora_down_of_any(const LinearView &view, bf16 *s, qk_stream stream); // whichever of the two serves
int launch_linear_tensor_core(const LinearView &view, const LinearChoice &choice, qk_stream stream);
int launch_linear_small_m(const LinearView &view, const LinearChoice &choice, qk_stream stream);
int launch_linear_generic(const LinearView &view, qk_stream stream);

// 16 features of one row as bf16 pairs: for step s of a tile, words 2s and 2s + 1.
struct Features {
    uint32_t pairs[8];
};

__device__ __forceinline__ Features features_of(uint4 low, uint4 high) {
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

// 8 bytes of codes to weights: product in f32, one rounding, as everywhere. `codebook` is in shared memory: 16 floats
// in 16 banks.
__device__ __forceinline__ Features dequantize16(uint2 codes, const float *codebook, float absmax) {
    Features weights;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        uint32_t byte = (i < 4 ? codes.x : codes.y) >> (i % 4 * 8);
        weights.pairs[i] = pack_bf16x2(__fmul_rn(load_as<float>(codebook + (byte >> 4 & 15)), absmax),
                                       __fmul_rn(load_as<float>(codebook + (byte & 15)), absmax));
    }
    return weights;
}

// Adds one tile: 16 tokens (rows g and g + 8 of x) by 8 weight rows. mma_wait() comes before the first look at c.
__device__ __forceinline__ void mma_tile(float (&c)[4], const Features &x_g, const Features &x_g8, const Features &w) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        uint32_t a[4] = {x_g.pairs[2 * step], x_g8.pairs[2 * step], x_g.pairs[2 * step + 1], x_g8.pairs[2 * step + 1]};
        uint32_t b[2] = {w.pairs[2 * step], w.pairs[2 * step + 1]};
        mma_m16n8k16(c, a, b);
    }
}
