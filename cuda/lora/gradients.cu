// dA += T^T * dropout(X) [r, K] and dB += dY^T * S [N, r], both as small^T [ranks, tokens] * big [tokens, columns] on
// tensor cores.
//
// Limit: reading X and dY, which happens once a launch for up to 64 ranks of a product (of all segments
// together for X, of each for dY), and again for every 64 more. Block: 128 columns of big by up to 64 ranks, over all
// tokens; each of 4 warps takes 32 columns. Pipeline of 4 stages of 32 tokens by cp.async. Both operands have tokens as
// rows, so that ldmatrix.trans makes both fragments. Rows of other adapters are never read: both operands get zeros.
//
// Sums: 256 tokens in the order of the matrix instructions, from zero; then this sum is added to what there is. Where
// the tiles do not fill the multiprocessors, blocks take groups of such chunks, leave their sums in the workspace, and
// a second kernel adds them in order: the same additions, so that the bits depend neither on that nor on how a batch is
// cut at multiples of 256 tokens. Shared memory: 36 to 48 KB; 16-byte chunks of a row are exchanged by row so that
// ldmatrix does not conflict.
//
// A block of one adapter, exactly (tests/cuda/launch_counts.rs): a barrier for 32 tokens; of each warp 8 matrix
// instructions and 2 ldmatrix a tile of 16 ranks, and 4 ldmatrix, with 3 stages in flight, each of 8,192 bytes and
// 1,024 a tile of ranks. By shared memory sm_86 holds 2 blocks, sm_90 6 (16 ranks) to 4 (64).
#include "lora/gradients.cuh"

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kColumns = 32 * kWarps; // of a block
constexpr int kStep = 32;             // tokens of a stage
constexpr int kStages = 4;
constexpr int kBigBytes = kStep * kColumns * int(sizeof(bf16));

constexpr int kMaxRanks = 64; // of a block

__host__ __device__ constexpr int small_bytes(int rank_tiles) { return kStep * rank_tiles * 16 * int(sizeof(bf16)); }
constexpr size_t shared_bytes(int rank_tiles) { return size_t(kStages) * (kBigBytes + small_bytes(rank_tiles)); }
static_assert(shared_bytes(4) <= kMaxSharedBytes, "fits every card");

// The tiling of a launch, beside the view.
struct Tiling {
    uint32_t chunks_per_block; // a group of chunks: blockIdx.y
    float *partial; // chunk sums, NULL where one group is all: [tiles, chunks, 4 * rank tiles, threads] of float4
};

__device__ __forceinline__ int big_offset(int row, int chunk) { return row * kColumns * 2 + (chunk ^ (row & 7)) * 16; }

// Rows of 2, 4 or 8 chunks.
template <int kRankTiles> __device__ __forceinline__ int small_offset(int row, int chunk) {
    constexpr int kChunks = 2 * kRankTiles;
    return row * kChunks * 16 + (chunk ^ (row / (8 / kChunks) & (kChunks - 1))) * 16;
}

// One block's place: a tile of one product for one adapter.
template <int kRankTiles> struct Tile {
    const GradientsView &view;
    const GradientProduct *product;
    int64_t column0;
    const int32_t *index;   // the product's adapter_index
    uint32_t tokens, chunks;
    int adapter, rank0, rank_tiles; // of 16, what there is of kRankTiles
    const bf16 *big, *small; // at this thread's column of token 0, and ...
    int big_to, small_to;    // ... where it goes in a stage
    bool has_column, has_rank;
    int big_lane, small_lane; // where ldmatrix reads a lane's rows

    __device__ __forceinline__ Tile(const GradientsView &view, int64_t number) : view(view) {
        for (int i = 0;; ++i) {
            product = &view.products[i];
            int64_t tiles =
                ceil_div(product->columns, kColumns) * ceil_div(product->ranks, 16 * kRankTiles) * product->adapters;
            if (number < tiles || i + 1 == view.num_products) break;
            number -= tiles;
        }
        int64_t tiles = ceil_div(product->columns, kColumns), rank_blocks = ceil_div(product->ranks, 16 * kRankTiles);
        column0 = number % tiles * kColumns;
        rank0 = int(number / tiles % rank_blocks) * 16 * kRankTiles;
        adapter = int(number / tiles / rank_blocks);
        rank_tiles = min((product->ranks - rank0 + 15) / 16, kRankTiles);
        index = product->adapter_index;
        tokens = uint32_t(view.m);
        chunks = uint32_t(ceil_div(view.m, kChunkTokens));

        int row = threadIdx.x / (kColumns / 8), chunk = threadIdx.x % (kColumns / 8);
        big = product->big + column0 + chunk * 8;
        big_to = big_offset(row, chunk);
        has_column = column0 + chunk * 8 < product->columns;
        row = threadIdx.x / (2 * kRankTiles), chunk = threadIdx.x % (2 * kRankTiles);
        small = product->small + rank0 + chunk * 8;
        small_to = kBigBytes + small_offset<kRankTiles>(row, chunk);
        has_rank = rank0 + chunk * 8 < product->ranks;
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        big_lane = big_offset(lane / 8 % 2 * 8 + lane % 8, 4 * warp + lane / 16);
        small_lane = kBigBytes + small_offset<kRankTiles>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }

    __device__ __forceinline__ bool takes(uint32_t token) const {
        return token < tokens && (index == nullptr || index[token] == adapter);
    }

    // The first chunk from `chunk` on that has a token of this adapter. Called by whole warps.
    __device__ __forceinline__ uint32_t next_chunk(uint32_t chunk, uint32_t last) const {
        if (index == nullptr) return chunk;
        for (; chunk < last; ++chunk) {
            int found = 0;
            for (uint32_t i = threadIdx.x % 32; i < kChunkTokens; i += 32) found |= takes(chunk * kChunkTokens + i);
            if (__ballot_sync(~0u, found) != 0) break;
        }
        return chunk;
    }

    // Starts copying tokens token0 .. token0 + 31: each thread the same chunk of every kRows-th row, from pointers that
    // only the token moves.
    __device__ __forceinline__ void fetch(unsigned char *stage, uint32_t token0) const {
        constexpr int kBigChunks = kColumns / 8, kBigRows = kThreads / kBigChunks;
        uint32_t token = token0 + threadIdx.x / kBigChunks;
        const bf16 *from = big + token * product->ld;
#pragma unroll
        for (int row = 0; row < kStep; row += kBigRows)
            cp_async_16(stage + big_to + row * kColumns * 2, from + row * product->ld,
                        has_column && takes(token + row));
        constexpr int kSmallChunks = 2 * kRankTiles, kSmallRows = kThreads / kSmallChunks;
        static_assert(kSmallRows % 8 == 0, "rows that a thread copies are exchanged alike");
        token = token0 + threadIdx.x / kSmallChunks;
        from = small + token * product->lds;
#pragma unroll
        for (int row = 0; row < kStep; row += kSmallRows)
            if (kSmallRows <= kStep || threadIdx.x < kStep * kSmallChunks)
                cp_async_16(stage + small_to + row * kSmallChunks * 16, from + row * product->lds,
                            has_rank && takes(token + row));
    }

    // Zeroes what dropout drops of two fragments of tokens token0 .. token0 + 15 by the warp's 32 columns. The 4 lanes
    // of a quad of features draw for one token each of the 4 that they all hold, and exchange what they drew.
    __device__ __forceinline__ void drop(uint32_t (&big)[2][4], uint32_t dropout_step, uint32_t token0,
                                         int64_t column) const {
        int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        uint32_t own = token0 + 2 * t + (g & 1) + (g & 2) * 4, bits = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            bits |= dropout_kept(view.dropout, dropout_step, own, uint32_t(column / 4) + 2 * j + g / 4) << (4 * j);
        uint32_t kept[4]; // of tokens 2t, 2t + 1, 2t + 8, 2t + 9
#pragma unroll
        for (int i = 0; i < 4; ++i) kept[i] = __shfl_sync(~0u, bits, (lane & 16) + 4 * i + t) >> (g % 4);
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                uint32_t low = kept[2 * i] >> (4 * j) & 1, high = kept[2 * i + 1] >> (4 * j) & 1;
                big[j / 2][j % 2 * 2 + i] &= low * 0xffffu | high * 0xffff0000u;
            }
    }

    template <bool kDropout>
    __device__ __forceinline__ void multiply(float (&sums)[kRankTiles][4][4], const unsigned char *stage,
                                             uint32_t dropout_step, uint32_t token0) const {
#pragma unroll
        for (int step = 0; step < kStep / 16; ++step) {
            uint32_t columns[2][4]; // [16 columns][of 8 columns: tokens 2t, 2t + 1; tokens 2t + 8, 2t + 9]
#pragma unroll
            for (int j = 0; j < 2; ++j)
                ldmatrix_x4_trans(columns[j], stage + (big_lane ^ 32 * j) + 16 * step * kColumns * 2);
            if constexpr (kDropout)
                if (product->dropped) drop(columns, dropout_step, token0 + 16 * step, column0 + threadIdx.x / 32 * 32);
#pragma unroll
            for (int i = 0; i < kRankTiles; ++i) {
                if (i >= rank_tiles) break;
                uint32_t ranks[4];
                ldmatrix_x4_trans(ranks, stage + (small_lane ^ 32 * i) + 16 * step * kRankTiles * 32);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    uint32_t pairs[2] = {columns[j / 2][j % 2 * 2], columns[j / 2][j % 2 * 2 + 1]};
                    mma_m16n8k16(sums[i][j], ranks, pairs);
                }
            }
        }
        mma_wait();
    }

    // Calls use(element of the matrix, its sum).
    template <typename Use> __device__ __forceinline__ void for_each(float (&totals)[kRankTiles][4][4], Use use) const {
        int lane = threadIdx.x % 32;
        int64_t first = column0 + threadIdx.x / 32 * 32 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kRankTiles; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                GradientProduct::Row row = product->row(rank0 + 16 * i + 8 * half + lane / 4, adapter);
                if (row.out == nullptr) continue;
#pragma unroll
                for (int j = 0; j < 4; ++j)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        int64_t column = first + 8 * j + e;
                        if (column < product->columns) use(row.out[column * row.stride], totals[i][j][2 * half + e]);
                    }
            }
    }
    __device__ __forceinline__ void load(float (&totals)[kRankTiles][4][4]) const {
        for_each(totals, [](float &element, float &total) { total = element; });
    }
    __device__ __forceinline__ void store(float (&totals)[kRankTiles][4][4]) const {
        for_each(totals, [](float &element, float &total) { element = total; });
    }

    __device__ __forceinline__ float4 *partial(const Tiling &tiling, uint32_t chunk) const {
        return reinterpret_cast<float4 *>(tiling.partial) +
               (int64_t(blockIdx.x) * chunks + chunk) * 4 * kRankTiles * kThreads + threadIdx.x;
    }
};

// grid: (tiles of all products, groups of chunks)
template <int kRankTiles, bool kDropout>
__global__ void __launch_bounds__(kThreads, kRankTiles == 1   ? 4
                                            : kRankTiles == 2 ? 3
                                                              : 2) lora_gradients(GradientsView view, Tiling tiling) {
    constexpr int kStageBytes = kBigBytes + small_bytes(kRankTiles);
    Tile<kRankTiles> tile(view, blockIdx.x);
    uint32_t first = blockIdx.y * tiling.chunks_per_block, last = min(first + tiling.chunks_per_block, tile.chunks);
    float factor = kDropout && tile.product->dropped ? view.dropout.scale : 1.0f;
    uint32_t dropout_step = kDropout ? view.dropout.step() : 0;
    float totals[kRankTiles][4][4] = {}, sums[kRankTiles][4][4] = {};
    if (tiling.partial == nullptr) tile.load(totals);

    struct Place { // of a stage's tokens
        uint32_t chunk, token;
    };
    auto place = [](uint32_t chunk) { return Place{chunk, chunk * kChunkTokens}; };
    auto ends_chunk = [&](Place at) {
        return at.token % kChunkTokens == kChunkTokens - kStep || at.token + kStep >= tile.tokens;
    };
    auto after = [&](Place at) {
        return ends_chunk(at) ? place(tile.next_chunk(at.chunk + 1, last)) : Place{at.chunk, at.token + kStep};
    };
    Place next = place(tile.next_chunk(first, last)), now = next;
#pragma unroll 1 // once a block
    for (int stage = 0; stage < kStages - 1; ++stage) {
        if (next.chunk < last) {
            tile.fetch(dynamic_shared() + stage * kStageBytes, next.token);
            next = after(next);
        }
        cp_async_commit();
    }
    for (int stage = 0; now.chunk < last; stage = (stage + 1) % kStages) {
        cp_async_wait<kStages - 2>(); // this stage is here ...
        __syncthreads(); // ... for everyone, and everyone is done with the one before, which is next to fill
        if (next.chunk < last) {
            tile.fetch(dynamic_shared() + (stage + kStages - 1) % kStages * kStageBytes, next.token);
            next = after(next);
        }
        cp_async_commit();
        tile.template multiply<kDropout>(sums, dynamic_shared() + stage * kStageBytes, dropout_step, now.token);
        if (ends_chunk(now)) {
            float4 *partial = tiling.partial == nullptr ? nullptr : tile.partial(tiling, now.chunk);
#pragma unroll
            for (int i = 0; i < kRankTiles; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float(&sum)[4] = sums[i][j];
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        sum[e] = __fmul_rn(factor, sum[e]);
                        totals[i][j][e] = __fadd_rn(totals[i][j][e], sum[e]);
                    }
                    if (partial != nullptr) partial[(4 * i + j) * kThreads] = float4{sum[0], sum[1], sum[2], sum[3]};
#pragma unroll
                    for (int e = 0; e < 4; ++e) sum[e] = 0.0f;
                }
        }
        now = after(now);
    }
    if (tiling.partial == nullptr) tile.store(totals);
}

// Adds the chunk sums in order. grid: tiles of all products
template <int kRankTiles> __global__ void __launch_bounds__(kThreads, 4) add_chunks(GradientsView view, Tiling tiling) {
    Tile<kRankTiles> tile(view, blockIdx.x);
    float totals[kRankTiles][4][4] = {};
    tile.load(totals);
    for (uint32_t chunk = tile.next_chunk(0, tile.chunks); chunk < tile.chunks;
         chunk = tile.next_chunk(chunk + 1, tile.chunks)) {
        const float4 *partial = tile.partial(tiling, chunk);
#pragma unroll
        for (int i = 0; i < kRankTiles; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                float4 sum = partial[(4 * i + j) * kThreads];
                float(&total)[4] = totals[i][j];
                total[0] = __fadd_rn(total[0], sum.x), total[1] = __fadd_rn(total[1], sum.y);
                total[2] = __fadd_rn(total[2], sum.z), total[3] = __fadd_rn(total[3], sum.w);
            }
    }
    tile.store(totals);
}

// Cut of a launch into blocks, from the shapes alone.
struct Cut {
    int rank_tiles;       // of a block, of 16: 1, 2 or 4
    int64_t tiles, groups, chunks_per_block;
    size_t partial_bytes; // 0: one group
};

Cut cut(const GradientsView &view) {
    int most = 0;
    for (int i = 0; i < view.num_products; ++i) most = view.products[i].ranks > most ? view.products[i].ranks : most;
    Cut cut = {most <= 16 ? 1 : most <= 32 ? 2 : kMaxRanks / 16, 0, 1, 0, 0};
    for (int i = 0; i < view.num_products; ++i) {
        const GradientProduct &product = view.products[i];
        cut.tiles +=
            ceil_div(product.columns, kColumns) * ceil_div(product.ranks, 16 * cut.rank_tiles) * product.adapters;
    }
    // Below this many blocks a larger card has idle multiprocessors; at twice that they are busy.
    constexpr int64_t kFew = 96;
    int64_t chunks = ceil_div(view.m, kChunkTokens);
    if (cut.tiles > 0 && cut.tiles < kFew) cut.groups = min(min(ceil_div(2 * kFew, cut.tiles), chunks), int64_t(65535));
    cut.chunks_per_block = ceil_div(chunks, cut.groups);
    cut.groups = ceil_div(chunks, cut.chunks_per_block);
    if (cut.groups > 1)
        cut.partial_bytes = size_t(cut.tiles * chunks) * (16 * cut.rank_tiles * kColumns * sizeof(float));
    return cut;
}

template <int kRankTiles>
int launch_tiles(const GradientsView &view, const Cut &cut, float *partial, qk_stream stream) {
    Tiling tiling = {uint32_t(cut.chunks_per_block), partial};
    dim3 grid(unsigned(cut.tiles), unsigned(cut.groups));
    auto kernel = view.dropout.active() ? lora_gradients<kRankTiles, true> : lora_gradients<kRankTiles, false>;
    if (int error = launch(kernel, grid, dim3(kThreads), shared_bytes(kRankTiles), stream, view, tiling)) return error;
    return partial == nullptr
               ? QK_OK
               : launch(add_chunks<kRankTiles>, dim3(unsigned(cut.tiles)), dim3(kThreads), 0, stream, view, tiling);
}

}  // namespace

size_t gradients_workspace_bytes(const GradientsView &view) { return cut(view).partial_bytes; }

int launch_lora_gradients(const GradientsView &view, void *workspace, qk_stream stream) {
    Cut cut = ::cut(view);
    if (cut.tiles > INT32_MAX) return QK_ERROR_SHAPE;
    float *partial = cut.partial_bytes > 0 ? static_cast<float *>(workspace) : nullptr;
    switch (cut.rank_tiles) {
    case 1: return launch_tiles<1>(view, cut, partial, stream);
    case 2: return launch_tiles<2>(view, cut, partial, stream);
    default: return launch_tiles<4>(view, cut, partial, stream);
    }
}
