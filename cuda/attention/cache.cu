// O = softmax(q * K^T / sqrt(D)) * V of new tokens over cached keys and values, split over the cache's length ("flash
// decoding").
//
// A tile is 16 queries of one document and one key head: the heads that share it, token by token, so that with grouped
// queries one new token fills much of a tensor-core tile. A block takes a tile and 128 cached rows: 8 warps have 16
// keys each for the scores, then D / 8 or D / 4 columns of O each, over all 128 keys. It leaves f32 sums, their maximum
// and normalizer; a second kernel combines those of a query in order. Document d's tiles begin at cu_seqlens[d] * group
// / 16 + d: no document has fewer than it needs, and nobody has to count those before. Shared memory: keys and values
// (512 D bytes), then queries and P in one place, maxima and sums (5 KB): 69 KB at D = 128. Limits, at decoding: the
// bytes of the cache, 4 Hkv D a row, each read once; beside them 8 (D + 2) a query and 128 rows. All copies of a block
// are under way before it waits for the keys. Many new tokens read the cache once per tile: a prompt of its own belongs
// into qk_attention.
#include "attention/attention.cuh"
#include "common/abi.cuh"

namespace {

constexpr int kTileQueries = 16;
// Keys of a chunk: 16 a warp.
__host__ __device__ constexpr int chunk_of(int64_t head_dim) { return head_dim > 128 ? 64 : 128; }
constexpr size_t kSliceBytes = size_t(64) << 20;
constexpr int64_t kMostChunks = 65535; // a grid has at most so many blocks along z

// The checked operand, by value.
struct CacheView {
    const bf16 *qkv;             // [M, ldqkv]
    const bf16 *cache;           // [rows, 2 * Hkv * D]
    const uint32_t *cu_seqlens;  // [documents + 1]
    const uint32_t *starts;      // [documents]
    const uint32_t *positions;   // [M]
    bf16 *out;                   // [M, ldout]
    float *sums;                 // [tiles of a slice, Hkv, chunks, 16, D]: not divided by the normalizer
    float2 *statistics;          // [tiles of a slice, Hkv, chunks, 16]: maximum in units of log2, sum of exponentials
    int64_t ldqkv, ldout, rows, max_seqlen;
    int64_t window;              // keys a query sees, itself included; INT64_MAX: all
    int m, documents, heads, kv_heads, group, chunks;
    float scale;                 // log2(e) / sqrt(D); with a soft cap log2(e) * cap
    float to_tanh;               // with a soft cap: kTanhScale / (sqrt(D) * cap)

    // The first key that the query of a position sees; the last is itself.
    __device__ __forceinline__ int64_t first_key(int64_t position) const {
        return position >= window ? position - window + 1 : 0;
    }

    __host__ __device__ int64_t first_tile(int64_t token, int64_t document) const {
        return token * group / kTileQueries + document;
    }
};

// The queries of a tile: `count` of them from `query` on, numbered within the document token by token.
struct Queries {
    int token;    // the document's first
    int query, count;
    int64_t start, position; // of the document in the cache; of its first new token

    __device__ __forceinline__ int token_of(const CacheView &view, int i) const {
        return token + (query + i) / view.group;
    }
    __device__ __forceinline__ int64_t position_of(const CacheView &view, int i) const {
        return position + (query + i) / view.group;
    }
    __device__ __forceinline__ int head_of(const CacheView &view, int kv_head, int i) const {
        return kv_head * view.group + (query + i) % view.group;
    }
};

__device__ __forceinline__ Queries queries_of(const CacheView &view, int64_t tile) {
    int low = 0, high = view.documents - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (view.first_tile(min(view.cu_seqlens[middle], uint32_t(view.m)), middle) <= tile)
            low = middle;
        else
            high = middle - 1;
    }
    int first = int(min(view.cu_seqlens[low], uint32_t(view.m))),
        end = int(min(view.cu_seqlens[low + 1], uint32_t(view.m)));
    int64_t query = (tile - view.first_tile(first, low)) * kTileQueries,
            left = int64_t(end - first) * view.group - query;
    if (left <= 0) return {};
    return {first, int(query), int(min(left, int64_t(kTileQueries))), int64_t(view.starts[low]),
            int64_t(view.positions[first])};
}

template <int D> struct CacheShared {
    unsigned char *bytes;
    static constexpr int kChunk = chunk_of(D);
    static constexpr size_t kKeys = Tile<D>::bytes(kChunk),
                            kQueries = Tile<(D > kChunk ? D : kChunk)>::bytes(kTileQueries);
    static constexpr size_t kBytes = 2 * kKeys + kQueries + 2 * kAttentionWarps * kTileQueries * sizeof(float);
    static_assert(kBytes <= kMaxSharedBytes && kChunk <= 16 * kAttentionWarps, "a warp has 16 keys");
    __device__ __forceinline__ Tile<D> keys() const { return {reinterpret_cast<bf16 *>(bytes)}; }
    __device__ __forceinline__ Tile<D> values() const { return {reinterpret_cast<bf16 *>(bytes + kKeys)}; }
    __device__ __forceinline__ Tile<D> queries() const { return {reinterpret_cast<bf16 *>(bytes + 2 * kKeys)}; }
    // [16, keys], over the queries.
    __device__ __forceinline__ Tile<kChunk> p() const { return {reinterpret_cast<bf16 *>(bytes + 2 * kKeys)}; }
    // [warps, 16]
    __device__ __forceinline__ float *maxima() const { return reinterpret_cast<float *>(bytes + 2 * kKeys + kQueries); }
    __device__ __forceinline__ float *sums() const { return maxima() + kAttentionWarps * kTileQueries; }
};

// grid: (tiles of the slice, Hkv, chunks)
template <int D, bool kCapped>
__global__ void __launch_bounds__(kAttentionThreads, 4) attention_cache(CacheView view, int64_t first_tile) {
    constexpr int kChunk = chunk_of(D), kKeyWarps = kChunk / 16; // warps that have keys
    CacheShared<D> shared = {dynamic_shared()};
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, kv_head = int(blockIdx.y), chunk = int(blockIdx.z);
    Queries queries = queries_of(view, first_tile + blockIdx.x);
    if (queries.count == 0) return;
    // The last query sees furthest, the first one earliest; what lies beyond either is neither read nor looked at.
    int64_t key0 = int64_t(chunk) * kChunk,
            end = min(queries.position_of(view, queries.count - 1) + 1, view.rows - queries.start);
    if (key0 >= end || key0 + kChunk <= view.first_key(queries.position)) return;
    int seen = int(min(end - key0, int64_t(kChunk)));

    int64_t width = int64_t(view.kv_heads) * 2 * D;
    const bf16 *cache = view.cache + (queries.start + key0) * width;
    for (int i = int(threadIdx.x); i < kTileQueries * (D / 8); i += kAttentionThreads) {
        int row = i / (D / 8), piece = i % (D / 8), query = min(row, queries.count - 1);
        const bf16 *from =
            view.qkv + queries.token_of(view, query) * view.ldqkv + int64_t(queries.head_of(view, kv_head, query)) * D;
        cp_async_16(shared.queries().at(row, piece), from + piece * 8, row < queries.count);
    }
    shared.keys().template load<kChunk>(cache, width, int64_t(kv_head) * D, 0, seen);
    cp_async_commit();
    shared.values().template load<kChunk>(cache, width, int64_t(view.kv_heads + kv_head) * D, 0, seen);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads(); // queries and keys are here

    float s[2][4] = {};
    if (warp * 16 < seen) {
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            uint32_t q[4], k[4];
            shared.queries().a(q, 0, step);
            shared.keys().b_of_rows(k, warp * 16, step);
            mma_pair(s[0], s[1], q, k);
        }
        mma_wait();
    }
    // This lane's two queries. One past the tile's sees what the last one sees; nobody reads what comes of it.
    int row[2] = {lane / 4, lane / 4 + 8};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int64_t position = queries.position_of(view, min(row[i], queries.count - 1)),
                visible = min(position + 1, end) - key0, from = view.first_key(position) - key0;
        float largest = -INFINITY;
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int j = 2 * i; j < 2 * i + 2; ++j) {
                int column = warp * 16 + 8 * n + lane % 4 * 2 + j % 2;
                float score = kCapped ? tanh_scaled(s[n][j] * view.to_tanh) : s[n][j];
                s[n][j] = (column < visible) & (column >= from) ? score * view.scale : -INFINITY;
                largest = fmaxf(largest, s[n][j]);
            }
        largest = row_max(largest);
        if (lane % 4 == 0) shared.maxima()[warp * kTileQueries + row[i]] = largest;
    }
    __syncthreads(); // maxima are here, and everyone is done with the queries

    Tile<kChunk> p = shared.p();
    float largest[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        largest[i] = -INFINITY;
#pragma unroll
        for (int w = 0; w < kKeyWarps; ++w)
            largest[i] = fmaxf(largest[i], shared.maxima()[w * kTileQueries + row[i]]);
        // A query that sees no key of this chunk: every exponential is to be 0, not NaN.
        float base = largest[i] == -INFINITY ? 0.0f : largest[i], sum = 0.0f;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            float low = exp2f(s[n][2 * i] - base), high = exp2f(s[n][2 * i + 1] - base);
            sum += low + high;
            if (kKeyWarps == kAttentionWarps || warp < kKeyWarps)
                store_as<uint32_t>(p.at(row[i], 2 * warp + n) + lane % 4 * 2, pack_bf16x2(low, high));
        }
        sum = row_sum(sum);
        if (lane % 4 == 0) shared.sums()[warp * kTileQueries + row[i]] = sum;
    }
    cp_async_wait<0>();
    __syncthreads(); // P, sums and values are here

    int64_t part = (int64_t(blockIdx.x) * view.kv_heads + kv_head) * view.chunks + chunk;
    for (int column = warp; column < D / 16; column += kAttentionWarps) {
        float o[2][4] = {};
        for (int step = 0; step < kChunk / 16 && step * 16 < seen; ++step) {
            uint32_t a[4], v[4];
            p.a(a, 0, step);
            shared.values().b(v, step * 16, column);
            mma_pair(o[0], o[1], a, v);
        }
        mma_wait();
        float *to = view.sums + part * kTileQueries * D + column * 16 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int n = 0; n < 2; ++n)
                if (row[i] < queries.count)
                    store_as<float2>(to + row[i] * D + 8 * n, make_float2(o[n][2 * i], o[n][2 * i + 1]));
    }
    if (warp == 0 && lane % 4 == 0)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < kKeyWarps; ++w) sum += shared.sums()[w * kTileQueries + row[i]];
            if (row[i] < queries.count) view.statistics[part * kTileQueries + row[i]] = make_float2(largest[i], sum);
        }
}

// out of one query: warps take every 8th chunk, their sums are added in warp order. grid: (tiles of the slice, Hkv, 16)
template <int D>
__global__ void __launch_bounds__(kAttentionThreads) attention_cache_combine(CacheView view, int64_t first_tile) {
    constexpr int kChunk = chunk_of(D), kColumns = D / 32;
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, kv_head = int(blockIdx.y), query = int(blockIdx.z);
    Queries queries = queries_of(view, first_tile + blockIdx.x);
    if (query >= queries.count) return;
    float *shared = reinterpret_cast<float *>(dynamic_shared()); // [warps, D] sums, [warps] maxima, [warps] normalizers
    float *maxima = shared + kAttentionWarps * D, *totals = maxima + kAttentionWarps;
    int64_t position = queries.position_of(view, query),
            parts = (int64_t(blockIdx.x) * view.kv_heads + kv_head) * view.chunks;
    bool valid = position < view.max_seqlen && queries.start + position < view.rows;
    int chunks = valid ? int(position / kChunk) + 1 : 0, begin = valid ? int(view.first_key(position) / kChunk) : 0;

    float o[kColumns] = {}, max = -INFINITY, total = 0.0f;
    const float2 *statistics = view.statistics + parts * kTileQueries + query;
    for (int chunk = begin + warp; chunk < chunks; chunk += kAttentionWarps)
        max = fmaxf(max, statistics[int64_t(chunk) * kTileQueries].x);
#pragma unroll 4
    for (int chunk = begin + warp; chunk < chunks; chunk += kAttentionWarps) {
        float2 statistic = statistics[int64_t(chunk) * kTileQueries];
        float weight = exp2f(statistic.x - max);
        const float *sums = view.sums + ((parts + chunk) * kTileQueries + query) * D + lane;
        total = fmaf(statistic.y, weight, total);
#pragma unroll
        for (int i = 0; i < kColumns; ++i) o[i] = fmaf(sums[32 * i], weight, o[i]);
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) shared[warp * D + lane + 32 * i] = o[i];
    if (lane == 0) maxima[warp] = max, totals[warp] = total;
    __syncthreads();

    // With few chunks some warps had none: their maximum is minus infinity and their weight 0.
    float largest = -INFINITY, sum = 0.0f, value = 0.0f;
    for (int w = 0; w < kAttentionWarps; ++w) largest = fmaxf(largest, maxima[w]);
    int column = int(threadIdx.x);
    if (column >= D) return;
    for (int w = 0; w < kAttentionWarps; ++w) {
        float weight = maxima[w] == -INFINITY ? 0.0f : exp2f(maxima[w] - largest);
        sum = fmaf(totals[w], weight, sum);
        value = fmaf(shared[w * D + column], weight, value);
    }
    bf16 *to = view.out + int64_t(queries.token_of(view, query)) * view.ldout;
    to += int64_t(queries.head_of(view, kv_head, query)) * D;
    to[column] = to_bf16(valid ? __fdiv_rn(value, sum) : __uint_as_float(0x7fc00000u));
}

constexpr int kAppendThreads = 256;

// 16 bytes a thread. grid: parts of a row and then tokens, flat
__global__ void __launch_bounds__(kAppendThreads) attention_cache_append(CacheView view, bf16 *cache, int64_t width) {
    int64_t i = int64_t(blockIdx.x) * kAppendThreads + threadIdx.x, pieces = width / 8;
    if (i >= view.m * pieces) return;
    int token = int(i / pieces);
    int64_t column = i % pieces * 8;
    int low = 0, high = view.documents - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (view.cu_seqlens[middle] <= uint32_t(token)) low = middle; else high = middle - 1;
    }
    int64_t row = int64_t(view.starts[low]) + view.positions[token];
    if (row >= view.rows) return;
    const bf16 *from = view.qkv + token * view.ldqkv + int64_t(view.heads) * (width / (2 * view.kv_heads)) + column;
    store_as<uint4>(cache + row * width + column, load_as<uint4>(from));
}

// Shapes, which is all that the size of the workspace depends on.
int check_shape(const qk_attention_cache_args *caller, qk_attention_cache_args *args, CacheView *view) {
    if (int error = read_struct(caller, args)) return error;
    if (args->m < 0 || args->m > kMaxTokens || args->documents < 1 || args->documents > kMaxTokens)
        return QK_ERROR_SHAPE;
    if (args->kv_heads < 1 || args->heads < 1 || args->heads > 65535 || args->heads % args->kv_heads != 0)
        return QK_ERROR_SHAPE;
    if (!has_head_dim(args->head_dim)) return QK_ERROR_HEAD_DIM;
    if (!is_soft_cap(args->soft_cap)) return QK_ERROR_VALUE;
    int64_t chunk = chunk_of(args->head_dim);
    if (args->window < 0 || args->max_seqlen < 1 || args->max_seqlen > kMostChunks * chunk) return QK_ERROR_SHAPE;
    if (args->rows < 1 || args->rows > int64_t(UINT32_MAX)) return QK_ERROR_SHAPE;
    int64_t width = int64_t(args->heads + 2 * args->kv_heads) * args->head_dim;
    if (args->ldqkv < width || args->ldqkv % 8 != 0) return QK_ERROR_SHAPE;
    // Queries of one key head, and pieces of the appended rows, are counted in 31 bits.
    int64_t group = args->heads / args->kv_heads, pieces = int64_t(args->kv_heads) * 2 * args->head_dim / 8;
    if (args->m > kMaxTokens / group || args->m > int64_t(INT32_MAX) * kAppendThreads / pieces) return QK_ERROR_SHAPE;
    *view = {};
    view->m = int(args->m);
    view->documents = int(args->documents);
    view->heads = int(args->heads);
    view->kv_heads = int(args->kv_heads);
    view->group = int(group);
    view->chunks = int(ceil_div(args->max_seqlen, chunk));
    view->max_seqlen = args->max_seqlen;
    view->window = args->window == 0 ? INT64_MAX : args->window;
    view->rows = args->rows;
    view->ldqkv = args->ldqkv;
    return QK_OK;
}

// Pointers that both functions use.
int check(const qk_attention_cache_args *caller, qk_attention_cache_args *args, CacheView *view) {
    if (int error = check_shape(caller, args, view)) return error;
    if (args->m == 0) return QK_OK;
    if (args->qkv == nullptr || args->cache == nullptr || args->cu_seqlens == nullptr || args->starts == nullptr ||
        args->positions == nullptr)
        return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args->qkv, 16) || !is_aligned(args->cache, 16)) return QK_ERROR_ALIGNMENT;
    if (!is_aligned(args->cu_seqlens, 4) || !is_aligned(args->starts, 4) || !is_aligned(args->positions, 4))
        return QK_ERROR_ALIGNMENT;
    view->qkv = static_cast<const bf16 *>(args->qkv);
    view->cache = static_cast<const bf16 *>(args->cache);
    view->cu_seqlens = args->cu_seqlens;
    view->starts = args->starts;
    view->positions = args->positions;
    view->scale = args->soft_cap > 0.0f ? kLog2e * args->soft_cap
                                        : float(double(kLog2e) / sqrt(double(args->head_dim)));
    view->to_tanh = to_tanh_of(args->head_dim, args->soft_cap);
    return QK_OK;
}

size_t tile_bytes(const CacheView &view, int64_t head_dim) {
    return size_t(view.kv_heads) * size_t(view.chunks) * kTileQueries *
           (size_t(head_dim) * sizeof(float) + sizeof(float2));
}

// Tiles that the workspace has room for at a time, at least 1 and at most all.
int64_t slice_tiles(const CacheView &view, int64_t head_dim) {
    int64_t all = view.first_tile(view.m, view.documents), most = int64_t(kSliceBytes / tile_bytes(view, head_dim));
    return most < 1 ? 1 : most < all ? most : all;
}

size_t bytes_of(const CacheView &view, int64_t head_dim) {
    return view.m == 0 ? 0 : size_t(slice_tiles(view, head_dim)) * tile_bytes(view, head_dim);
}

template <int D, bool kCapped> int launch_cache(CacheView view, float *workspace, qk_stream stream) {
    int64_t all = view.first_tile(view.m, view.documents), slice = slice_tiles(view, D),
            parts = slice * view.kv_heads * view.chunks * kTileQueries;
    view.statistics = reinterpret_cast<float2 *>(workspace);
    view.sums = workspace + 2 * parts;
    constexpr size_t combined = (kAttentionWarps * D + 2 * kAttentionWarps) * sizeof(float);
    for (int64_t first = 0; first < all; first += slice) {
        unsigned tiles = unsigned(all - first < slice ? all - first : slice), kv_heads = unsigned(view.kv_heads);
        dim3 by_chunk(tiles, kv_heads, unsigned(view.chunks)), by_query(tiles, kv_heads, kTileQueries),
            block(kAttentionThreads);
        int error = launch(attention_cache<D, kCapped>, by_chunk, block, CacheShared<D>::kBytes, stream, view, first);
        if (error) return error;
        error = launch(attention_cache_combine<D>, by_query, block, combined, stream, view, first);
        if (error) return error;
    }
    return QK_OK;
}

}  // namespace

extern "C" int qk_attention_cache_append(const qk_attention_cache_args *caller, qk_stream stream) {
    qk_attention_cache_args args;
    CacheView view;
    if (int error = check(caller, &args, &view)) return error;
    if (view.m == 0) return QK_OK;
    int64_t width = int64_t(args.kv_heads) * 2 * args.head_dim;
    dim3 grid(unsigned(ceil_div(view.m * (width / 8), kAppendThreads)));
    return launch(attention_cache_append, grid, dim3(kAppendThreads), 0, stream, view, static_cast<bf16 *>(args.cache),
                  width);
}

extern "C" int qk_attention_cache_workspace_size(const qk_attention_cache_args *caller, size_t *bytes) {
    qk_attention_cache_args args;
    CacheView view;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = check_shape(caller, &args, &view)) return error;
    *bytes = bytes_of(view, args.head_dim);
    return QK_OK;
}

extern "C" int qk_attention_cache(const qk_attention_cache_args *caller, void *workspace, size_t workspace_bytes,
                                  qk_stream stream) {
    qk_attention_cache_args args;
    CacheView view;
    if (int error = check(caller, &args, &view)) return error;
    if (view.m == 0) return QK_OK;
    view.ldout = args.ldout != 0 ? args.ldout : int64_t(args.heads) * args.head_dim;
    if (view.ldout < int64_t(args.heads) * args.head_dim) return QK_ERROR_SHAPE;
    if (args.out == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.out, 16)) return QK_ERROR_ALIGNMENT;
    if (int error = check_workspace(workspace, workspace_bytes, bytes_of(view, args.head_dim))) return error;
    view.out = static_cast<bf16 *>(args.out);
    float *scratch = static_cast<float *>(workspace);
    return with_head_dim_and_cap(args.head_dim, args.soft_cap, [&](auto d, auto capped) {
        return launch_cache<decltype(d)::value, decltype(capped)::value>(view, scratch, stream);
    });
}
