// The gradient of attention. With P = exp(S - lse), delta = rowsum(dO * O) and dS = P * (dO * V^T - delta) / sqrt(D):
// dV = P^T * dO, dK = dS^T * Q, dQ = dS * K.
//
// Kernels none of which adds into what another block writes, so that sums have one order and no block waits for
// another: delta; dK and dV with a block for 128 keys of one key head, which walks over the queries of the heads that
// share it; dQ with a block for 128 queries of one head, which walks over their keys. The price is that S and dP are
// computed twice: 7 products where 5 would do with an order that changes from run to run.
//
// Few tokens make few blocks for dK and dV, and unequal ones: the first keys are seen by most queries. So blocks with
// the most work start first; and below kBlocksOfKeys blocks the heads that share a key head are split among several,
// which leave f32 sums in the workspace, and a last kernel adds those in the order of the heads.
//
// The tiles are those of D <= 128; at D = 256 a block has 64 keys or queries, walks 16 at a time, and two warps share
// 16 rows: each computes their scores, and half of the columns of dK and dV, or dQ.
//
// dK, dV: a warp has 16 keys. S^T = K * Q^T, so that P^T and dS^T come out of the accumulators as the A operand of the
// second products. Shared memory: K, V [128, D] and two stages of Q, dO [32, D]: 96 KB at D = 128; 512 bytes of lse and
// delta, which come by asynchronous copies too (the first kernel lays them out for that), and 512 of the keys' ends.
// dQ: a warp has 16 queries, Q and dO in registers; two stages of K, V [32, D]: 32 KB, preceded by Q and dO in the same
// space. At D = 128 stand 2.9 instructions beside each matrix instruction (dQ: 2.5), 0.6 of them ldmatrix: the limit is
// shared memory, then the tensor cores. With a soft cap, a kernel of its own, dS has the factor 1 - tanh^2.
//
// A block, exactly (tests/cuda/launch_counts.rs, D = 64 and 128), with the next step in flight under all products. dK,
// dV: a barrier a step and one before; of each warp D matrix instructions, 5 D / 8 ldmatrix and 8 loads of 16 bytes a
// step that sees its keys; 640 D + 256 bytes in flight at first, with K and V, then 128 D + 256. dQ: a barrier a step
// and four before; 3 D / 4 matrix instructions and 3 D / 8 ldmatrix a step that the warp sees; 256 D bytes at most. By
// shared memory sm_86 holds 1 and 3 blocks at D = 128 (dK and dV; dQ), sm_90 2 and 6.
#include "attention/attention.cuh"

namespace {

constexpr int owned(int64_t head_dim) { return head_dim > 128 ? 64 : 128; } // keys or queries of a block

template <int D> struct Share {
    static constexpr int kOwned = owned(D), kWalked = D > 128 ? 16 : 32; // kWalked: queries or keys of a step
    static constexpr int kRowWarps = kOwned / 16, kParts = kAttentionWarps / kRowWarps; // warps that share 16 rows
    static constexpr int kColumns = D / kParts; // of dK and dV, or dQ, that a warp sums
    static_assert(kRowsTokens % kWalked == 0 && kColumns % 16 == 0 && (kParts == 1 || kColumns % 64 == 0),
                  "a step's lse and delta are whole chunks, a part's columns whole periods of the tile");
    // The first of the warp's 16 rows within the block's, and of its columns.
    __device__ __forceinline__ static int row() { return int(threadIdx.x) / 32 % kRowWarps * 16; }
    __device__ __forceinline__ static int column() {
        return kParts == 1 ? 0 : int(threadIdx.x) / 32 / kRowWarps * kColumns;
    }
};

// About two for every multiprocessor of the larger cards. A block's partial sums are 2 * 128 * D floats (64 of 256),
// and there are never twice as many blocks, however long the batch.
constexpr int64_t kBlocksOfKeys = 256;

// ---- lse and delta ----

template <int D> __global__ void __launch_bounds__(kAttentionThreads) attention_delta(AttentionView view) {
    int64_t index = int64_t(blockIdx.x) * kAttentionWarps + threadIdx.x / 32;  // token * H + head
    int64_t token = index / view.heads, head = index % view.heads;
    if (token >= view.padded_m()) return;
    int lane = int(threadIdx.x) % 32;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < (D + 63) / 64; ++i) {
        int column = i * 64 + lane * 2;
        if ((token >= view.m) | (column >= D)) continue;
        uint32_t dout = load_as<uint32_t>(view.dout + index * D + column);
        uint32_t out = load_as<uint32_t>(view.out + token * view.ldout + head * D + column);
        sum += low_float(dout) * low_float(out) + high_float(dout) * high_float(out);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (lane == 0)
        view.rows[view.row_at(token, head)] = make_float2(token < view.m ? view.lse[index] * kLog2e : 0.0f, sum);
}

// ---- dK and dV ----

template <int D> struct KeyShared {
    unsigned char *bytes;
    static constexpr int kOwned = Share<D>::kOwned, kWalked = Share<D>::kWalked;
    static constexpr size_t kStage = 2 * Tile<D>::bytes(kWalked), kStages = 2 * Tile<D>::bytes(kOwned),
                            kRows = kStages + 2 * kStage, kEnds = kRows + 2 * kWalked * sizeof(float2);
    static constexpr size_t kBytes = kEnds + kOwned * sizeof(int);
    static_assert(kBytes <= kMaxSharedBytes, "two stages beside the keys and values");
    __device__ __forceinline__ Tile<D> tile(size_t offset) const { return {reinterpret_cast<bf16 *>(bytes + offset)}; }
    __device__ __forceinline__ Tile<D> keys() const { return tile(0); }
    __device__ __forceinline__ Tile<D> values() const { return tile(Tile<D>::bytes(kOwned)); }
    __device__ __forceinline__ Tile<D> queries(int stage) const { return tile(kStages + stage * kStage); }
    __device__ __forceinline__ Tile<D> dout(int stage) const {
        return tile(kStages + stage * kStage + Tile<D>::bytes(kWalked));
    }
    // lse * log2(e) and delta [32]
    __device__ __forceinline__ float2 *rows(int stage) const {
        return reinterpret_cast<float2 *>(bytes + kRows) + stage * kWalked;
    }
    // [128]: one past the last query that sees each key. (In registers they would be two too many.)
    __device__ __forceinline__ int *ends() const { return reinterpret_cast<int *>(bytes + kEnds); }
};

// Address of a thread's sums over a split's block of keys, for 2 / 8 of its columns, dK's before dV's. In both grids x
// is the key head and z the tile of keys.
template <int D> __device__ __forceinline__ float4 *partial_sums(const AttentionView &view, int split) {
    int64_t block = (int64_t(split) * gridDim.x + blockIdx.x) * gridDim.z + blockIdx.z;
    return view.partial + block * (2 * Share<D>::kColumns / 8) * kAttentionThreads + threadIdx.x;
}

// Writes four elements of dK or dV, as the accumulators of 8 columns have them: two of each of a thread's two keys.
// `first` is the warp's first key.
__device__ __forceinline__ void write_keys(const AttentionView &view, int first, int64_t column, const float (&sums)[4],
                                           float scale) {
    int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int row = first + lane / 4 + 8 * i;
        if (row >= view.m) continue;
        store_as<uint32_t>(view.dqkv + int64_t(row) * view.lddqkv + column + lane % 4 * 2,
                           pack_bf16x2(sums[2 * i] * scale, sums[2 * i + 1] * scale));
    }
}

// grid: key heads, splits, tiles of keys, from the first, which most queries see, to the last.
template <int D, bool kCapped>
__global__ void __launch_bounds__(kAttentionThreads) attention_backward_keys(AttentionView view) {
    constexpr int kOwned = Share<D>::kOwned, kWalked = Share<D>::kWalked, kColumns = Share<D>::kColumns;
    KeyShared<D> shared = {dynamic_shared()};
    int lane = int(threadIdx.x) % 32, warp_row = Share<D>::row(), part = Share<D>::column();
    int group = view.heads / view.kv_heads;
    int kv_head = int(blockIdx.x), split = int(blockIdx.y);
    int first_head = kv_head * group + split * group / view.splits,
        end_head = kv_head * group + (split + 1) * group / view.splits;
    int first = int(blockIdx.z) * kOwned, last = min(first + kOwned, view.m) - 1;
    int64_t key_column = int64_t(view.heads + kv_head) * D, value_column = key_column + int64_t(view.kv_heads) * D;
    shared.keys().template load<kOwned>(view.qkv, view.ldqkv, key_column, first, view.m);
    shared.values().template load<kOwned>(view.qkv, view.ldqkv, value_column, first, view.m);

    // The queries that see a key: from the key itself to its end. Ends grow with the key: the warp's first key has the
    // least, its last the greatest. A key past M has that of the last; it is never written.
    if (threadIdx.x < kOwned) {
        int key = min(first + int(threadIdx.x), last), end = document_of(view, key).end;
        shared.ends()[threadIdx.x] = end - key > view.window ? key + view.window : end;
    }
    __syncthreads();
    int begin = first / kWalked * kWalked, stop = shared.ends()[kOwned - 1], warp_first = first + warp_row;
    const int *ends = shared.ends() + warp_row; // of the warp's keys

    float dk[kColumns / 8][4] = {}, dv[kColumns / 8][4] = {};
    float scale = score_scale<kCapped>(view);
    auto load = [&](int query, int head, int stage) {
        shared.queries(stage).template load<kWalked>(view.qkv, view.ldqkv, int64_t(head) * D, query, view.m);
        shared.dout(stage).template load<kWalked>(view.dout, int64_t(view.heads) * D, int64_t(head) * D, query, view.m);
        if (threadIdx.x < kWalked / 2) {
            int row = 2 * int(threadIdx.x);
            cp_async_16(shared.rows(stage) + row, view.rows + view.row_at(query + row, head), true);
        }
        cp_async_commit();
    };
    load(begin, first_head, 0);
    int stage = 0;
    for (int head = first_head; head < end_head; ++head)
        for (int query = begin; query < stop; query += kWalked, stage ^= 1) {
            cp_async_wait<0>();
            __syncthreads();
            if (query + kWalked < stop) load(query + kWalked, head, stage ^ 1);
            else if (head + 1 < end_head) load(begin, head + 1, stage ^ 1);
            if (query + kWalked <= warp_first || query >= ends[15]) continue;

            // One product after the other: both at once need more registers than there are.
            float s[kWalked / 8][4] = {}, dp[kWalked / 8][4] = {};
#pragma unroll
            for (int step = 0; step < D / 16; ++step) {
                uint32_t k[4];
                shared.keys().a(k, warp_row, step);
#pragma unroll
                for (int pair = 0; pair < kWalked / 16; ++pair) {
                    uint32_t b[4];
                    shared.queries(stage).b_of_rows(b, pair * 16, step);
                    mma_pair(s[2 * pair], s[2 * pair + 1], k, b);
                }
            }
#pragma unroll
            for (int step = 0; step < D / 16; ++step) {
                uint32_t v[4];
                shared.values().a(v, warp_row, step);
#pragma unroll
                for (int pair = 0; pair < kWalked / 16; ++pair) {
                    uint32_t b[4];
                    shared.dout(stage).b_of_rows(b, pair * 16, step);
                    mma_pair(dp[2 * pair], dp[2 * pair + 1], v, b);
                }
            }
            mma_wait();
            // lse * log2(e) and delta of two queries: read twice, as they would take registers that there are not.
            const float4 *rows = reinterpret_cast<const float4 *>(shared.rows(stage)) + lane % 4;
#pragma unroll
            for (int n = 0; n < kWalked / 8; ++n) {
                float4 row = load_as<float4>(rows + 4 * n);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if constexpr (kCapped) {
                        s[n][i] = tanh_scaled(s[n][i] * view.to_tanh);
                        dp[n][i] = (dp[n][i] - (i % 2 ? row.w : row.y)) * soft_cap_slope(s[n][i]);
                    }
                    s[n][i] = exp2_approx(fmaf(s[n][i], scale, i % 2 ? -row.z : -row.x));
                }
            }
            if (!(query >= warp_first + 15 && query + kWalked <= ends[0])) { // one branch for all of the warp's scores
                int row[2] = {warp_first + lane / 4, warp_first + lane / 4 + 8};
                int end[2] = {ends[lane / 4], ends[lane / 4 + 8]};
#pragma unroll
                for (int n = 0; n < kWalked / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        int token = query + 8 * n + lane % 4 * 2 + i % 2;
                        bool seen = (token >= row[i / 2]) & (token < end[i / 2]);
                        s[n][i] = seen ? s[n][i] : 0.0f;
                    }
            }
#pragma unroll
            for (int n = 0; n < kWalked / 8; ++n) {
                float4 row = kCapped ? float4{} : load_as<float4>(rows + 4 * n);
#pragma unroll
                for (int i = 0; i < 4; ++i) dp[n][i] = s[n][i] * (dp[n][i] - (i % 2 ? row.w : row.y));
            }
#pragma unroll
            for (int step = 0; step < kWalked / 16; ++step) {
                uint32_t p[4];
                a_of_accumulator(p, s, step);
#pragma unroll
                for (int pair = 0; pair < kColumns / 16; ++pair) {
                    uint32_t b[4];
                    shared.dout(stage).from(part).b(b, step * 16, pair);
                    mma_pair(dv[2 * pair], dv[2 * pair + 1], p, b);
                }
            }
#pragma unroll
            for (int step = 0; step < kWalked / 16; ++step) {
                uint32_t ds[4];
                a_of_accumulator(ds, dp, step);
#pragma unroll
                for (int pair = 0; pair < kColumns / 16; ++pair) {
                    uint32_t b[4];
                    shared.queries(stage).from(part).b(b, step * 16, pair);
                    mma_pair(dk[2 * pair], dk[2 * pair + 1], ds, b);
                }
            }
            mma_wait();
        }

    if (view.splits > 1) {
        float4 *to = partial_sums<D>(view, split);
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
            to[n * kAttentionThreads] = {dk[n][0], dk[n][1], dk[n][2], dk[n][3]};
            to[(kColumns / 8 + n) * kAttentionThreads] = {dv[n][0], dv[n][1], dv[n][2], dv[n][3]};
        }
        return;
    }
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
        write_keys(view, warp_first, key_column + part + 8 * n, dk[n], view.scale);
        write_keys(view, warp_first, value_column + part + 8 * n, dv[n], 1.0f);
    }
}

// dK and dV from the partial sums. grid: key heads, dK or dV, tiles of keys
template <int D> __global__ void __launch_bounds__(kAttentionThreads, 4) attention_backward_add(AttentionView view) {
    constexpr int kColumns = Share<D>::kColumns;
    bool is_value = blockIdx.y != 0;
    int64_t column =
        int64_t(view.heads + (is_value ? view.kv_heads : 0) + int(blockIdx.x)) * D + Share<D>::column();
    int first = int(blockIdx.z) * Share<D>::kOwned + Share<D>::row();
#pragma unroll 2
    for (int n = 0; n < kColumns / 8; ++n) {
        float sums[4] = {};
        for (int split = 0; split < view.splits; ++split) { // in the order of the heads
            float4 part = partial_sums<D>(view, split)[(n + (is_value ? kColumns / 8 : 0)) * kAttentionThreads];
            sums[0] += part.x, sums[1] += part.y, sums[2] += part.z, sums[3] += part.w;
        }
        write_keys(view, first, column + 8 * n, sums, is_value ? 1.0f : view.scale);
    }
}

// ---- dQ ----

template <int D> struct QueryShared {
    unsigned char *bytes;
    static constexpr int kOwned = Share<D>::kOwned, kWalked = Share<D>::kWalked;
    static constexpr size_t kStage = 2 * Tile<D>::bytes(kWalked);
    // Q or dO of all the block's rows passes through the stages.
    static constexpr size_t kBytes = 2 * kStage;
    static_assert(kBytes >= Tile<D>::bytes(kOwned), "the stages hold one matrix of the block's rows");
    __device__ __forceinline__ Tile<D> tile(size_t offset) const { return {reinterpret_cast<bf16 *>(bytes + offset)}; }
    __device__ __forceinline__ Tile<D> rows() const { return tile(0); }
    __device__ __forceinline__ Tile<D> keys(int stage) const { return tile(stage * kStage); }
    __device__ __forceinline__ Tile<D> values(int stage) const {
        return tile(stage * kStage + Tile<D>::bytes(kWalked));
    }
};

// grid: heads, fastest, times tiles of queries, from the last, which has the most keys, to the first.
template <int D, bool kCapped>
__global__ void __launch_bounds__(kAttentionThreads) attention_backward_queries(AttentionView view) {
    constexpr int kOwned = Share<D>::kOwned, kWalked = Share<D>::kWalked, kColumns = Share<D>::kColumns;
    QueryShared<D> shared = {dynamic_shared()};
    int lane = int(threadIdx.x) % 32, head = int(blockIdx.x % unsigned(view.heads));
    int warp_row = Share<D>::row(), part = Share<D>::column();
    int tile = int((gridDim.x - 1 - blockIdx.x) / unsigned(view.heads));
    int first = tile * kOwned, last = min(first + kOwned, view.m) - 1;
    int64_t kv_head = head / (view.heads / view.kv_heads), query_column = int64_t(head) * D;
    int64_t key_column = (view.heads + kv_head) * D, value_column = key_column + int64_t(view.kv_heads) * D;

    uint32_t q[D / 16][4], dout[D / 16][4];
    auto through_shared = [&](uint32_t (&fragments)[D / 16][4], const bf16 *matrix, int64_t ld) {
        shared.rows().template load<kOwned>(matrix, ld, query_column, first, view.m);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int step = 0; step < D / 16; ++step) shared.rows().a(fragments[step], warp_row, step);
        __syncthreads();
    };
    through_shared(q, view.qkv, view.ldqkv);
    through_shared(dout, view.dout, int64_t(view.heads) * D);

    int row[2] = {first + warp_row + lane / 4, first + warp_row + lane / 4 + 8}, from[2];
    float lse[2], delta[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int token = min(row[i], view.m - 1);
        from[i] = first_key(view, token);
        float2 lse_and_delta = view.rows[view.row_at(token, head)];
        lse[i] = lse_and_delta.x, delta[i] = lse_and_delta.y;
    }
    int warp_first = first + warp_row, warp_from = __shfl_sync(~0u, from[1], 31);

    float dq[kColumns / 8][4] = {};
    float scale = score_scale<kCapped>(view);
    int begin = first_key(view, first) / kWalked * kWalked;
    auto load = [&](int key, int stage) {
        shared.keys(stage).template load<kWalked>(view.qkv, view.ldqkv, key_column, key, view.m);
        shared.values(stage).template load<kWalked>(view.qkv, view.ldqkv, value_column, key, view.m);
        cp_async_commit();
    };
    load(begin, 0);
    int stage = 0;
    for (int key = begin; key <= last; key += kWalked, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (key + kWalked <= last) load(key + kWalked, stage ^ 1);
        if (key > warp_first + 15) continue;

        float s[kWalked / 8][4] = {}, dp[kWalked / 8][4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; ++step)
#pragma unroll
            for (int pair = 0; pair < kWalked / 16; ++pair) {
                uint32_t b[4];
                shared.keys(stage).b_of_rows(b, pair * 16, step);
                mma_pair(s[2 * pair], s[2 * pair + 1], q[step], b);
            }
#pragma unroll
        for (int step = 0; step < D / 16; ++step)
#pragma unroll
            for (int pair = 0; pair < kWalked / 16; ++pair) {
                uint32_t b[4];
                shared.values(stage).b_of_rows(b, pair * 16, step);
                mma_pair(dp[2 * pair], dp[2 * pair + 1], dout[step], b);
            }
        mma_wait();
#pragma unroll
        for (int n = 0; n < kWalked / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if constexpr (kCapped) {
                    s[n][i] = tanh_scaled(s[n][i] * view.to_tanh);
                    dp[n][i] = (dp[n][i] - delta[i / 2]) * soft_cap_slope(s[n][i]);
                }
                s[n][i] = exp2_approx(fmaf(s[n][i], scale, -lse[i / 2]));
            }
        if (!(key + kWalked - 1 <= warp_first && key >= warp_from)) { // one branch for all of the warp's scores
#pragma unroll
            for (int n = 0; n < kWalked / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int column = key + 8 * n + lane % 4 * 2 + i % 2;
                    bool seen = (column <= row[i / 2]) & (column >= from[i / 2]);
                    s[n][i] = seen ? s[n][i] : 0.0f;
                }
        }
#pragma unroll
        for (int n = 0; n < kWalked / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) dp[n][i] = s[n][i] * (dp[n][i] - (kCapped ? 0.0f : delta[i / 2]));
#pragma unroll
        for (int step = 0; step < kWalked / 16; ++step) {
            uint32_t ds[4];
            a_of_accumulator(ds, dp, step);
#pragma unroll
            for (int pair = 0; pair < kColumns / 16; ++pair) {
                uint32_t b[4];
                shared.keys(stage).from(part).b(b, step * 16, pair);
                mma_pair(dq[2 * pair], dq[2 * pair + 1], ds, b);
            }
        }
        mma_wait();
    }

#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (row[i] >= view.m) continue;
        bf16 *out = view.dqkv + int64_t(row[i]) * view.lddqkv + query_column + part + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n)
            store_as<uint32_t>(out + 8 * n, pack_bf16x2(dq[n][2 * i] * view.scale, dq[n][2 * i + 1] * view.scale));
    }
}

template <int D, bool kCapped> int launch_all(const AttentionView &view, qk_stream stream) {
    dim3 threads(kAttentionThreads);
    int64_t tiles = ceil_div(view.m, Share<D>::kOwned), warps = ceil_div(view.padded_m() * view.heads, kAttentionWarps);
    if (warps > INT32_MAX || tiles > 65535 || tiles * view.heads > INT32_MAX) return QK_ERROR_SHAPE;
    if (int error = launch(attention_delta<D>, dim3(unsigned(warps)), threads, 0, stream, view)) return error;
    dim3 key_blocks(unsigned(view.kv_heads), unsigned(view.splits), unsigned(tiles));
    auto keys = attention_backward_keys<D, kCapped>;
    if (int error = launch(keys, key_blocks, threads, KeyShared<D>::kBytes, stream, view)) return error;
    dim3 add_blocks(key_blocks.x, 2, key_blocks.z);
    if (view.splits > 1)
        if (int error = launch(attention_backward_add<D>, add_blocks, threads, 0, stream, view)) return error;
    return launch(attention_backward_queries<D, kCapped>, dim3(unsigned(tiles * view.heads)), threads,
                  QueryShared<D>::kBytes, stream, view);
}

}  // namespace

AttentionWorkspace attention_backward_workspace(const AttentionView &view, int head_dim) {
    if (view.m == 0) return {};
    int64_t tiles = ceil_div(view.m, owned(head_dim)), group = view.heads / view.kv_heads, most = 0;
    auto splits = [&](int64_t tiles) {
        int64_t wanted = ceil_div(kBlocksOfKeys, tiles * view.kv_heads);
        return wanted < group ? wanted : group;
    };
    // The most that any batch of up to m tokens needs: the workspace of the longest serves every one.
    for (int64_t t = 1; t <= tiles && t <= kBlocksOfKeys; ++t) {
        int64_t blocks = splits(t) > 1 ? splits(t) * t * view.kv_heads : 0;
        most = blocks > most ? blocks : most;
    }
    size_t rows = size_t(view.padded_m()) * size_t(view.heads) * sizeof(float2);
    size_t partial = size_t(most) * size_t(owned(head_dim)) * 2 * size_t(head_dim) * sizeof(float);
    return {int(splits(tiles)), rows, rows + partial};
}

int launch_attention_backward(const AttentionView &view, int head_dim, qk_stream stream) {
    return with_head_dim_and_cap(head_dim, view.soft_cap, [&](auto d, auto capped) {
        return launch_all<decltype(d)::value, decltype(capped)::value>(view, stream);
    });
}
