// The gradient of attention. With P = exp(S - lse), delta = rowsum(dO * O) and dS = P * (dO * V^T - delta) / sqrt(D):
// dV = P^T * dO, dK = dS^T * Q, dQ = dS * K.
//
// Three kernels, none of which adds into what another block writes, so that sums have one order and no block waits for
// another: delta; dK and dV with a block for 128 keys of one key head, which walks over the queries of all heads that
// share it; dQ with a block for 128 queries of one head, which walks over their keys. The price is that S and dP are
// computed twice: 7 products where 5 would do with an order that changes from run to run.
//
// dK, dV: a warp has 16 keys. S^T = K * Q^T, so that P^T and dS^T come out of the accumulators as the A operand of the
// second products. Shared memory: K, V [128, D] and two stages of Q, dO [32, D]: 96 KB at D = 128, and 512 bytes of lse
// and delta. dQ: a warp has 16 queries, Q and dO in registers; two stages of K, V [32, D]: 32 KB, preceded by Q and dO
// in the same space.
#include "attention/attention.cuh"

namespace {

constexpr int kOwned = 128;  // keys or queries of a block
constexpr int kWalked = 32;  // queries or keys of a step

// ---- delta ----

template <int D> __global__ void __launch_bounds__(kAttentionThreads) attention_delta(AttentionView view) {
    int64_t index = int64_t(blockIdx.x) * kAttentionWarps + threadIdx.x / 32;  // token * H + head
    if (index >= int64_t(view.m) * view.heads) return;
    int lane = int(threadIdx.x) % 32;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 64; ++i) {
        int64_t at = index * D + i * 64 + lane * 2;
        uint32_t dout = *reinterpret_cast<const uint32_t *>(view.dout + at),
                 out = *reinterpret_cast<const uint32_t *>(view.out + at);
        sum += low_float(dout) * low_float(out) + high_float(dout) * high_float(out);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (lane == 0) view.delta[index] = sum;
}

// ---- dK and dV ----

template <int D> struct KeyShared {
    unsigned char *bytes;
    static constexpr size_t kStage = 2 * Tile<D>::bytes(kWalked), kStages = 2 * Tile<D>::bytes(kOwned),
                            kRows = kStages + 2 * kStage;
    static constexpr size_t kBytes = kRows + 2 * 2 * kWalked * sizeof(float);
    __device__ __forceinline__ Tile<D> tile(size_t offset) const { return {reinterpret_cast<bf16 *>(bytes + offset)}; }
    __device__ __forceinline__ Tile<D> keys() const { return tile(0); }
    __device__ __forceinline__ Tile<D> values() const { return tile(Tile<D>::bytes(kOwned)); }
    __device__ __forceinline__ Tile<D> queries(int stage) const { return tile(kStages + stage * kStage); }
    __device__ __forceinline__ Tile<D> dout(int stage) const {
        return tile(kStages + stage * kStage + Tile<D>::bytes(kWalked));
    }
    // lse * log2(e) [32], then delta [32]
    __device__ __forceinline__ float *rows(int stage) const {
        return reinterpret_cast<float *>(bytes + kRows) + stage * 2 * kWalked;
    }
};

template <int D> __global__ void __launch_bounds__(kAttentionThreads) attention_backward_keys(AttentionView view) {
    KeyShared<D> shared = {dynamic_shared()};
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, kv_head = int(blockIdx.y),
        group = view.heads / view.kv_heads;
    int first = int(blockIdx.x) * kOwned, last = min(first + kOwned, view.m) - 1;
    int64_t key_column = int64_t(view.heads + kv_head) * D, value_column = key_column + int64_t(view.kv_heads) * D;
    shared.keys().load(view.qkv, view.ldqkv, key_column, first, kOwned, view.m);
    shared.values().load(view.qkv, view.ldqkv, value_column, first, kOwned, view.m);

    // The queries that see this lane's two keys: from the key itself to `end`.
    int row[2] = {first + warp * 16 + lane / 4, first + warp * 16 + lane / 4 + 8}, end[2];
    auto end_of = [&](int key) {
        int end = document_of(view, key).end;
        return end - key > view.window ? key + view.window : end;
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) end[i] = row[i] < view.m ? end_of(row[i]) : 0;
    int begin = first / kWalked * kWalked, stop = end_of(last);
    // Document ends grow with the key: the warp's first key has the least, its last the greatest.
    int warp_first = first + warp * 16, warp_end = __shfl_sync(~0u, end[0], 0),
        warp_stop = end_of(min(warp_first + 15, view.m - 1));

    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    float scale = view.scale * kLog2e;
    auto load = [&](int query, int head, int stage) {
        shared.queries(stage).load(view.qkv, view.ldqkv, int64_t(head) * D, query, kWalked, view.m);
        shared.dout(stage).load(view.dout, int64_t(view.heads) * D, int64_t(head) * D, query, kWalked, view.m);
        cp_async_commit();
        if (threadIdx.x < kWalked) {
            int token = query + int(threadIdx.x);
            bool valid = token < view.m;
            shared.rows(stage)[threadIdx.x] = valid ? view.lse[int64_t(token) * view.heads + head] * kLog2e : 0.0f;
            shared.rows(stage)[kWalked + threadIdx.x] = valid ? view.delta[int64_t(token) * view.heads + head] : 0.0f;
        }
    };
    load(begin, kv_head * group, 0);
    int stage = 0;
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head)
        for (int query = begin; query < stop; query += kWalked, stage ^= 1) {
            cp_async_wait<0>();
            __syncthreads();
            if (query + kWalked < stop) load(query + kWalked, head, stage ^ 1);
            else if (head + 1 < (kv_head + 1) * group) load(begin, head + 1, stage ^ 1);
            if (query + kWalked <= warp_first || query >= warp_stop) continue;

            // One product after the other: both at once need more registers than there are.
            float s[kWalked / 8][4] = {}, dp[kWalked / 8][4] = {};
#pragma unroll
            for (int step = 0; step < D / 16; ++step) {
                uint32_t k[4];
                shared.keys().a(k, warp * 16, step);
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
                shared.values().a(v, warp * 16, step);
#pragma unroll
                for (int pair = 0; pair < kWalked / 16; ++pair) {
                    uint32_t b[4];
                    shared.dout(stage).b_of_rows(b, pair * 16, step);
                    mma_pair(dp[2 * pair], dp[2 * pair + 1], v, b);
                }
            }
            bool all_see = query >= warp_first + 15 && query + kWalked <= warp_end;
            const float *rows = shared.rows(stage);
#pragma unroll
            for (int n = 0; n < kWalked / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int column = 8 * n + lane % 4 * 2 + i % 2;
                    int token = query + column;
                    bool seen = all_see || (token >= row[i / 2] && token < end[i / 2]);
                    float p = seen ? exp2f(s[n][i] * scale - rows[column]) : 0.0f;
                    s[n][i] = p;
                    dp[n][i] = p * (dp[n][i] - rows[kWalked + column]);
                }
#pragma unroll
            for (int step = 0; step < kWalked / 16; ++step) {
                uint32_t p[4];
                a_of_accumulator(p, s, step);
#pragma unroll
                for (int pair = 0; pair < D / 16; ++pair) {
                    uint32_t b[4];
                    shared.dout(stage).b(b, step * 16, pair);
                    mma_pair(dv[2 * pair], dv[2 * pair + 1], p, b);
                }
            }
#pragma unroll
            for (int step = 0; step < kWalked / 16; ++step) {
                uint32_t ds[4];
                a_of_accumulator(ds, dp, step);
#pragma unroll
                for (int pair = 0; pair < D / 16; ++pair) {
                    uint32_t b[4];
                    shared.queries(stage).b(b, step * 16, pair);
                    mma_pair(dk[2 * pair], dk[2 * pair + 1], ds, b);
                }
            }
        }

#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (row[i] >= view.m) continue;
        bf16 *out = view.dqkv + int64_t(row[i]) * view.ldqkv + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            *reinterpret_cast<uint32_t *>(out + key_column + 8 * n) =
                pack_bf16x2(dk[n][2 * i] * view.scale, dk[n][2 * i + 1] * view.scale);
            *reinterpret_cast<uint32_t *>(out + value_column + 8 * n) = pack_bf16x2(dv[n][2 * i], dv[n][2 * i + 1]);
        }
    }
}

// ---- dQ ----

template <int D> struct QueryShared {
    unsigned char *bytes;
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

template <int D> __global__ void __launch_bounds__(kAttentionThreads) attention_backward_queries(AttentionView view) {
    QueryShared<D> shared = {dynamic_shared()};
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, head = int(blockIdx.y);
    int first = int(gridDim.x - 1 - blockIdx.x) * kOwned, last = min(first + kOwned, view.m) - 1;
    int64_t kv_head = head / (view.heads / view.kv_heads), query_column = int64_t(head) * D;
    int64_t key_column = (view.heads + kv_head) * D, value_column = key_column + int64_t(view.kv_heads) * D;

    uint32_t q[D / 16][4], dout[D / 16][4];
    auto through_shared = [&](uint32_t (&fragments)[D / 16][4], const bf16 *matrix, int64_t ld) {
        shared.rows().load(matrix, ld, query_column, first, kOwned, view.m);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int step = 0; step < D / 16; ++step) shared.rows().a(fragments[step], warp * 16, step);
        __syncthreads();
    };
    through_shared(q, view.qkv, view.ldqkv);
    through_shared(dout, view.dout, int64_t(view.heads) * D);

    int row[2] = {first + warp * 16 + lane / 4, first + warp * 16 + lane / 4 + 8}, from[2];
    float lse[2], delta[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int token = min(row[i], view.m - 1);
        from[i] = first_key(view, token);
        lse[i] = view.lse[int64_t(token) * view.heads + head] * kLog2e;
        delta[i] = view.delta[int64_t(token) * view.heads + head];
    }
    int warp_first = first + warp * 16, warp_from = __shfl_sync(~0u, from[1], 31);

    float dq[D / 8][4] = {};
    float scale = view.scale * kLog2e;
    int begin = first_key(view, first) / kWalked * kWalked;
    auto load = [&](int key, int stage) {
        shared.keys(stage).load(view.qkv, view.ldqkv, key_column, key, kWalked, view.m);
        shared.values(stage).load(view.qkv, view.ldqkv, value_column, key, kWalked, view.m);
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
        bool all_seen = key + kWalked - 1 <= warp_first && key >= warp_from;
#pragma unroll
        for (int n = 0; n < kWalked / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int column = key + 8 * n + lane % 4 * 2 + i % 2;
                bool seen = all_seen || (column <= row[i / 2] && column >= from[i / 2]);
                float p = seen ? exp2f(s[n][i] * scale - lse[i / 2]) : 0.0f;
                dp[n][i] = p * (dp[n][i] - delta[i / 2]);
            }
#pragma unroll
        for (int step = 0; step < kWalked / 16; ++step) {
            uint32_t ds[4];
            a_of_accumulator(ds, dp, step);
#pragma unroll
            for (int pair = 0; pair < D / 16; ++pair) {
                uint32_t b[4];
                shared.keys(stage).b(b, step * 16, pair);
                mma_pair(dq[2 * pair], dq[2 * pair + 1], ds, b);
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (row[i] >= view.m) continue;
        bf16 *out = view.dqkv + int64_t(row[i]) * view.ldqkv + query_column + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
            *reinterpret_cast<uint32_t *>(out + 8 * n) =
                pack_bf16x2(dq[n][2 * i] * view.scale, dq[n][2 * i + 1] * view.scale);
    }
}

template <int D> int launch_all(const AttentionView &view, qk_stream stream) {
    int64_t rows = int64_t(view.m) * view.heads;
    unsigned tiles = unsigned(ceil_div(view.m, kOwned));
    if (int error = launch(attention_delta<D>, dim3(unsigned(ceil_div(rows, kAttentionWarps))), dim3(kAttentionThreads),
                           0, stream, view))
        return error;
    if (int error = launch(attention_backward_keys<D>, dim3(tiles, unsigned(view.kv_heads)), dim3(kAttentionThreads),
                           KeyShared<D>::kBytes, stream, view))
        return error;
    return launch(attention_backward_queries<D>, dim3(tiles, unsigned(view.heads)), dim3(kAttentionThreads),
                  QueryShared<D>::kBytes, stream, view);
}

}  // namespace

int launch_attention_backward(const AttentionView &view, int head_dim, qk_stream stream) {
    if (ceil_div(int64_t(view.m) * view.heads, kAttentionWarps) > INT32_MAX) return QK_ERROR_SHAPE;
    return head_dim == 64 ? launch_all<64>(view, stream) : launch_all<128>(view, stream);
}
