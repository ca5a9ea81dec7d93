// Causal attention O = softmax(Q * K^T / sqrt(D)) * V without the M x M matrix (Dao et al. 2022), for documents laid
// end to end that do not see each other, grouped queries and an optional sliding window.
//
// A block takes 128 queries of one head, a warp 16 of them; keys and values come in tiles of 64 (32 at D = 256) through
// a double buffer. Scores are computed and kept in f32, exponentiated with base 2; P is rounded to bf16 for P * V while
// its row sums are not. The blocks with the most keys start first. Shared memory: two stages of K and V, 512 D bytes
// (64 KB at D = 128); the queries pass through it into registers. Limit: 4 D FLOPs a score on the tensor cores; beside
// each matrix instruction stand 3.8 others (D = 128), most of them the softmax. Scores with a soft cap are a kernel of
// their own, with an exponential and a reciprocal more a score.
//
// A block, exactly (tests/cuda/launch_counts.rs, D = 64 and 128): a barrier a step, and two for the queries; of each
// warp D matrix instructions and D / 2 ldmatrix a step that it sees, with the next step's keys and values in flight
// under all of them: one group, 256 D bytes. By shared memory sm_86 holds 1 block at D = 128 and 3 at D = 64, sm_90 3
// and 6.
#include "attention/attention.cuh"
#include "common/abi.cuh"

namespace {

constexpr int kQueries = 128;

template <int D> struct Shared {
    unsigned char *bytes;
    static constexpr int kKeys = D > 128 ? 32 : 64; // of a step
    __device__ __forceinline__ Tile<D> keys(int stage) const {
        return {reinterpret_cast<bf16 *>(bytes + size_t(2 * stage) * Tile<D>::bytes(kKeys))};
    }
    __device__ __forceinline__ Tile<D> values(int stage) const {
        return {reinterpret_cast<bf16 *>(bytes + size_t(2 * stage + 1) * Tile<D>::bytes(kKeys))};
    }
    static constexpr size_t kBytes = 4 * Tile<D>::bytes(kKeys);
    static_assert(kBytes >= Tile<D>::bytes(kQueries) && kBytes <= kMaxSharedBytes, "the queries pass through it");
};

// grid: heads, fastest, times tiles of queries, from the last, which has the most keys, to the first.
template <int D, bool kCapped> __global__ void __launch_bounds__(kAttentionThreads) attention(AttentionView view) {
    constexpr int kKeys = Shared<D>::kKeys;
    Shared<D> shared = {dynamic_shared()};
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, head = int(blockIdx.x % unsigned(view.heads));
    int tile = int((gridDim.x - 1 - blockIdx.x) / unsigned(view.heads));
    int first = tile * kQueries, last = min(first + kQueries, view.m) - 1;
    int64_t kv_head = head / (view.heads / view.kv_heads), query_column = int64_t(head) * D;
    int64_t key_column = (view.heads + kv_head) * D, value_column = key_column + int64_t(view.kv_heads) * D;

    // All of the block's queries, through the space that the keys take later.
    uint32_t q[D / 16][4];
    Tile<D> queries = shared.keys(0);
    queries.template load<kQueries>(view.qkv, view.ldqkv, query_column, first, view.m);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < D / 16; ++step) queries.a(q[step], warp * 16, step);
    __syncthreads();

    // This lane's two rows of the warp's 16. A row past M sees what the last token sees; it is never written.
    int row[2] = {first + warp * 16 + lane / 4, first + warp * 16 + lane / 4 + 8}, from[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) from[i] = first_key(view, min(row[i], view.m - 1));
    int warp_first = first + warp * 16, warp_from = __shfl_sync(~0u, from[1], 31);

    float o[D / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    float scale = score_scale<kCapped>(view);
    int begin = first_key(view, first) / kKeys * kKeys;
    auto load = [&](int key, int stage) {
        shared.keys(stage).template load<kKeys>(view.qkv, view.ldqkv, key_column, key, view.m);
        shared.values(stage).template load<kKeys>(view.qkv, view.ldqkv, value_column, key, view.m);
        cp_async_commit();
    };
    load(begin, 0);
    int stage = 0;
    for (int key = begin; key <= last; key += kKeys, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (key + kKeys <= last) load(key + kKeys, stage ^ 1);
        if (key > warp_first + 15) continue;

        float s[kKeys / 8][4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; ++step)
#pragma unroll
            for (int pair = 0; pair < kKeys / 16; ++pair) {
                uint32_t b[4];
                shared.keys(stage).b_of_rows(b, pair * 16, step);
                mma_pair(s[2 * pair], s[2 * pair + 1], q[step], b);
            }
        mma_wait();
        if constexpr (kCapped) cap_scores(s, view.to_tanh);
        if (!(key + kKeys - 1 <= warp_first && key >= warp_from)) { // one branch for all of the warp's scores
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int column = key + 8 * n + lane % 4 * 2 + i % 2;
                    bool seen = (column <= row[i / 2]) & (column >= from[i / 2]);
                    s[n][i] = seen ? s[n][i] : -INFINITY;
                }
        }

#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float tile_max = -INFINITY;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) tile_max = fmaxf(tile_max, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
            float new_max = fmaxf(max[i], row_max(tile_max));
            // A row that has seen no key yet has a maximum of minus infinity: every exponential is to be 0, not NaN.
            // The scale is positive, so that it waits for the exponent, where it is a fused multiply-add.
            float base = new_max == -INFINITY ? 0.0f : new_max * scale,
                  shrink = exp2_approx(fmaf(max[i], scale, -base)), tile_sum = 0.0f;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
                for (int j = 2 * i; j < 2 * i + 2; ++j) {
                    s[n][j] = exp2_approx(fmaf(s[n][j], scale, -base));
                    tile_sum += s[n][j];
                }
            sum[i] = sum[i] * shrink + tile_sum;
            max[i] = new_max;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) o[n][2 * i] *= shrink, o[n][2 * i + 1] *= shrink;
        }
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
            uint32_t p[4];
            a_of_accumulator(p, s, step);
#pragma unroll
            for (int pair = 0; pair < D / 16; ++pair) {
                uint32_t b[4];
                shared.values(stage).b(b, step * 16, pair);
                mma_pair(o[2 * pair], o[2 * pair + 1], p, b);
            }
        }
        mma_wait();
    }

#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float total = row_sum(sum[i]);
        if (row[i] >= view.m) continue;
        float inverse = __fdiv_rn(1.0f, total);
        bf16 *out = view.out + int64_t(row[i]) * view.ldout + query_column + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
            store_as<uint32_t>(out + 8 * n, pack_bf16x2(o[n][2 * i] * inverse, o[n][2 * i + 1] * inverse));
        if (lane % 4 == 0) view.lse[int64_t(row[i]) * view.heads + head] = (max[i] * scale + log2f(total)) * kLn2;
    }
}

int check(const qk_attention_args *caller, qk_attention_args *args, AttentionView *view) {
    if (int error = read_struct(caller, args)) return error;
    if (args->m < 0 || args->m > kMaxTokens || args->documents < 1 || args->documents > INT32_MAX || args->window < 0)
        return QK_ERROR_SHAPE;
    if (args->kv_heads < 1 || args->heads < 1 || args->heads > 65535 || args->heads % args->kv_heads != 0)
        return QK_ERROR_SHAPE;
    if (!has_head_dim(args->head_dim)) return QK_ERROR_HEAD_DIM;
    if (!is_soft_cap(args->soft_cap)) return QK_ERROR_VALUE;
    int64_t width = int64_t(args->heads + 2 * args->kv_heads) * args->head_dim;
    if (args->ldqkv < width || args->ldqkv % 8 != 0) return QK_ERROR_SHAPE;
    int64_t out_width = int64_t(args->heads) * args->head_dim;
    int64_t ldout = args->ldout != 0 ? args->ldout : out_width, lddqkv = args->lddqkv != 0 ? args->lddqkv : args->ldqkv;
    if (ldout < out_width || ldout % 8 != 0 || lddqkv < width || lddqkv % 8 != 0) return QK_ERROR_SHAPE;
    *view = {};
    if (args->m == 0) return QK_OK;
    if (args->qkv == nullptr || args->cu_seqlens == nullptr || args->out == nullptr || args->lse == nullptr)
        return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args->qkv, 16) || !is_aligned(args->out, 16)) return QK_ERROR_ALIGNMENT;
    if (!is_aligned(args->cu_seqlens, 4) || !is_aligned(args->lse, 4)) return QK_ERROR_ALIGNMENT;
    view->qkv = static_cast<const bf16 *>(args->qkv);
    view->cu_seqlens = args->cu_seqlens;
    view->out = static_cast<bf16 *>(args->out);
    view->lse = args->lse;
    view->m = int(args->m);
    view->ldqkv = args->ldqkv;
    view->ldout = ldout;
    view->lddqkv = lddqkv;
    view->window = args->window == 0 || args->window > INT32_MAX ? INT32_MAX : int(args->window);
    view->documents = int(args->documents);
    view->heads = int(args->heads);
    view->kv_heads = int(args->kv_heads);
    view->scale = float(1.0 / sqrt(double(args->head_dim)));
    view->soft_cap = args->soft_cap;
    view->to_tanh = to_tanh_of(args->head_dim, args->soft_cap);
    return QK_OK;
}

template <int D, bool kCapped> int launch_forward(const AttentionView &view, qk_stream stream) {
    int64_t blocks = ceil_div(view.m, kQueries) * view.heads;
    if (blocks > INT32_MAX) return QK_ERROR_SHAPE;
    dim3 grid = dim3(unsigned(blocks)), block = dim3(kAttentionThreads);
    return launch(attention<D, kCapped>, grid, block, Shared<D>::kBytes, stream, view);
}

}  // namespace

extern "C" int qk_attention(const qk_attention_args *caller, qk_stream stream) {
    qk_attention_args args;
    AttentionView view;
    if (int error = check(caller, &args, &view)) return error;
    if (view.m == 0) return QK_OK;
    return with_head_dim_and_cap(args.head_dim, args.soft_cap, [&](auto d, auto capped) {
        return launch_forward<decltype(d)::value, decltype(capped)::value>(view, stream);
    });
}

extern "C" int qk_attention_backward_workspace_size(const qk_attention_args *caller, size_t *bytes) {
    qk_attention_args args;
    AttentionView view;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = check(caller, &args, &view)) return error;
    *bytes = attention_backward_workspace(view, int(args.head_dim)).bytes;
    return QK_OK;
}

extern "C" int qk_attention_backward(const qk_attention_args *caller, void *workspace, size_t workspace_bytes,
                                     qk_stream stream) {
    qk_attention_args args;
    AttentionView view;
    if (int error = check(caller, &args, &view)) return error;
    if (view.m == 0) return QK_OK;
    if (args.dout == nullptr || args.dqkv == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.dout, 16) || !is_aligned(args.dqkv, 16)) return QK_ERROR_ALIGNMENT;
    AttentionWorkspace needed = attention_backward_workspace(view, int(args.head_dim));
    if (int error = check_workspace(workspace, workspace_bytes, needed.bytes)) return error;
    view.dout = static_cast<const bf16 *>(args.dout);
    view.dqkv = static_cast<bf16 *>(args.dqkv);
    view.rows = static_cast<float2 *>(workspace);
    view.splits = needed.splits;
    if (needed.splits > 1)
        view.partial = reinterpret_cast<float4 *>(static_cast<unsigned char *>(workspace) + needed.partial_at);
    return launch_attention_backward(view, int(args.head_dim), stream);
}
