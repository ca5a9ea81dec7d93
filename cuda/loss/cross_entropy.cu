// Output layer and softmax cross-entropy, losses and the gradient of the hidden states, a chunk of supervised tokens at
// a time:
//   rows      one block: which tokens are supervised, in order; only those are computed
//   gather    their hidden states, H padded to 64
//   logits    Z = H * W^T in f32, statistics of each row and 64 columns (loss/cross_entropy_logits.cu)
//   softmax   a block a row: its loss, and dZ = scale * weight * (softmax(Z) - onehot) as bf16 over Z. A soft cap has
//             been applied to Z; dZ then has the factor 1 - (Z / cap)^2
//   dW        where it is wanted, += dZ^T * gathered hidden states, by the kernel of LoRA's gradients, of which the
//             vocabulary is the ranks: 2 V H FLOPs a token, 8 V H bytes a chunk beside them. Of R rows alone: their
//             columns of dZ are picked first, 4 R bytes a token, and are the ranks
//   dX        dZ * W by the linear layer's kernel for bf16 weights, over the gathered hidden states; then scattered
//   sum       one block: the loss over all tokens, 256 at a time, in f64
//
// Why f32 logits in memory. bf16 would round a logit near 16 by up to 2^-4, and so its probability by 6%. Recomputing Z
// for the gradient costs 2 H FLOPs a logit (H = 8192: 16384, 24 ps at 670 TFLOP/s); keeping it 8 bytes, dZ 4 (3.6 ps
// at 3.35 TB/s): even at H = 2048 less. For all M tokens that would be M * V * 4 bytes, for a chunk of 1,024 it is 0.5
// GB at V = 128256. W is read twice a chunk: 2 * 2 V H bytes beside 4 C V H FLOPs, so 1,024 FLOPs a byte at C = 1024
// and compute bound from C = 256 on. Not measured on a GPU.
#include "common/abi.cuh"
#include "lora/gradients.cuh"
#include "loss/cross_entropy.cuh"

namespace {

constexpr int kRowThreads = 256;
constexpr int kScanThreads = 1024, kScanWarps = kScanThreads / 32;
constexpr int kSumTokens = 256; // of one sum of losses

__device__ __forceinline__ bool is_finite(double x) { return x - x == 0.0; }

// One block. rows, state->supervised, and the losses of what is not computed: 0 where not supervised, NaN beyond
// `supervised`.
__global__ void __launch_bounds__(kScanThreads) supervised_rows(CrossEntropyView view) {
    int *counts = reinterpret_cast<int *>(dynamic_shared()); // [2][warps]
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, before = 0, round = 0;
    for (int64_t first = 0; first < view.m; first += kScanThreads, round ^= 1) {
        int64_t row = first + threadIdx.x;
        bool has = row < view.m && view.is_supervised(row);
        unsigned ballot = __ballot_sync(~0u, has);
        int *of_round = counts + round * kScanWarps;
        int below = 0, all = 0;
        for (int bit = 0; bit < 32; ++bit) {
            int one = int(ballot >> bit & 1u);
            all += one;
            below += bit < lane ? one : 0;
        }
        if (lane == 0) of_round[warp] = all;
        __syncthreads(); // the other round's counts are free after it
        int total = 0;
        for (int i = 0; i < kScanWarps; ++i) {
            if (i < warp) below += of_round[i];
            total += of_round[i];
        }
        int at = before + below;
        if (has && at < view.supervised) view.rows[at] = int(row);
        if (row < view.m && !has) view.losses[row] = 0.0f;
        if (has && at >= view.supervised) view.losses[row] = NAN;
        before += total;
    }
    for (int64_t at = before + int64_t(threadIdx.x); at < view.supervised; at += kScanThreads) view.rows[at] = -1;
    if (threadIdx.x == 0) view.state->supervised = uint32_t(before);
}

// Rows of H elements between [M, H] and the gathered [chunk, padded_h]. A block a row.
template <bool kScatter, int V>
__global__ void __launch_bounds__(kRowThreads) copy_rows(CrossEntropyView view, int64_t chunk_first) {
    int row = view.rows[chunk_first + blockIdx.x];
    if (row < 0 && kScatter) return;
    bf16 *gathered = view.gathered + int64_t(blockIdx.x) * view.padded_h;
    int64_t from = row * view.h;
    for (int64_t i = int64_t(threadIdx.x) * V; i < view.padded_h; i += kRowThreads * V) {
        bool there = row >= 0 && i < view.h;
        if constexpr (kScatter) {
            if (!there) continue;
            if constexpr (V == 8)
                store_as<uint4>(view.dhidden + from + i, load_as<uint4>(gathered + i));
            else view.dhidden[from + i] = gathered[i];
        } else if constexpr (V == 8) {
            store_as<uint4>(gathered + i, there ? load_as<uint4>(view.hidden + from + i) : make_uint4(0, 0, 0, 0));
        } else {
            gathered[i] = there ? view.hidden[from + i] : to_bf16(0.0f);
        }
    }
}

// The gradient of rows that are not supervised. A block a row.
template <int V> __global__ void __launch_bounds__(kRowThreads) clear_rows(CrossEntropyView view) {
    int64_t row = blockIdx.x;
    if (view.is_supervised(row)) return;
    for (int64_t i = int64_t(threadIdx.x) * V; i < view.h; i += kRowThreads * V) {
        if constexpr (V == 8) store_as<uint4>(view.dhidden + row * view.h + i, make_uint4(0, 0, 0, 0));
        else view.dhidden[row * view.h + i] = to_bf16(0.0f);
    }
}

// The largest of some logits, and the sum of exponentials of what each is below it.
struct Statistic {
    float largest, sum;
    __device__ __forceinline__ Statistic and_(Statistic other) const {
        float both = fmaxf(largest, other.largest), base = both == -INFINITY ? 0.0f : both;
        return {both,
                __fadd_rn(__fmul_rn(sum, expf(largest - base)), __fmul_rn(other.sum, expf(other.largest - base)))};
    }
};

constexpr size_t kSoftmaxBytes = kRowThreads / 32 * sizeof(float2);

// A block a row of the chunk: the loss, and, with a gradient, dZ over Z. A thread takes 8 columns; the 256 of a block
// are read before any of theirs is written, and what is written lies before what is still to be read.
template <bool kCapped>
__global__ void __launch_bounds__(kRowThreads) softmax_rows(CrossEntropyView view, int64_t chunk_first) {
    float2 *of_warps = reinterpret_cast<float2 *>(dynamic_shared());
    int64_t row = blockIdx.x;
    int source = view.rows[chunk_first + row];
    if (source < 0) return;
    int target = view.targets[source];

    Statistic all = {-INFINITY, 0.0f};
    for (int64_t i = threadIdx.x; i < view.num_statistics; i += kRowThreads) {
        float2 next = view.statistics[row * view.num_statistics + i];
        all = all.and_({next.x, next.y});
    }
    for (int lanes = 16; lanes > 0; lanes /= 2)
        all = all.and_({__shfl_xor_sync(~0u, all.largest, lanes), __shfl_xor_sync(~0u, all.sum, lanes)});
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = make_float2(all.largest, all.sum);
    __syncthreads();
    all = {-INFINITY, 0.0f};
    for (int i = 0; i < kRowThreads / 32; ++i) all = all.and_({of_warps[i].x, of_warps[i].y});

    bool known = target < view.vocab;
    if (threadIdx.x == 0)
        view.losses[source] = known ? __fadd_rn(logf(all.sum), __fadd_rn(all.largest, -view.target_logits[row])) : NAN;
    if (view.logits == nullptr) return;
    float *z = view.logits + row * view.ldz;
    bf16 *dz = reinterpret_cast<bf16 *>(z);
    float to_tanh = kCapped ? __fdiv_rn(1.0f, view.soft_cap) : 0.0f;
    float inverse = known ? __fdiv_rn(1.0f, all.sum) : NAN;
    float weight = view.weights == nullptr ? view.gradient_scale : __fmul_rn(view.gradient_scale, view.weights[source]);
    for (int64_t first = 0; first < view.vocab; first += kRowThreads * 8) {
        int64_t column = first + int64_t(threadIdx.x) * 8;
        float4 low = {}, high = {};
        if (column < view.vocab) {
            low = load_as<float4>(z + column);
            high = load_as<float4>(z + column + 4);
        }
        __syncthreads();
        if (column >= view.vocab) continue;
        float p[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            float slope = kCapped ? soft_cap_slope(p[j] * to_tanh) : 1.0f;
            p[j] = __fmul_rn(expf(p[j] - all.largest), inverse);
            if (column + j == target) p[j] = __fadd_rn(p[j], -1.0f);
            p[j] = __fmul_rn(p[j], weight);
            if constexpr (kCapped) p[j] = __fmul_rn(p[j], slope);
        }
        store_as<uint4>(dz + column, make_uint4(pack_bf16x2(p[0], p[1]), pack_bf16x2(p[2], p[3]),
                                                pack_bf16x2(p[4], p[5]), pack_bf16x2(p[6], p[7])));
    }
}

// picked = the columns of dZ that are of the output layer's wanted rows. A block a row of the chunk.
__global__ void __launch_bounds__(kRowThreads) pick_columns(CrossEntropyView view) {
    int64_t row = blockIdx.x;
    const bf16 *dz = reinterpret_cast<const bf16 *>(view.logits + row * view.ldz);
    bf16 *picked = view.picked + row * view.ld_picked;
    for (int64_t i = threadIdx.x; i < view.ld_picked; i += kRowThreads) {
        int64_t column = i < view.num_head_rows ? int64_t(view.head_rows[i]) : view.vocab;
        picked[i] = column < view.vocab ? dz[column] : to_bf16(0.0f);
    }
}

constexpr size_t kSumBytes = kScanWarps * sizeof(double) + kScanWarps * sizeof(int);

// One block; a warp sums 256 tokens: of a lane every 32nd in order, then of the lanes by a butterfly.
__global__ void __launch_bounds__(kScanThreads) loss_sum(CrossEntropyView view) {
    double *sums = reinterpret_cast<double *>(dynamic_shared());
    int *firsts = reinterpret_cast<int *>(sums + kScanWarps);
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, bad = INT32_MAX;
    double total = 0.0;
    for (int64_t first = 0; first < view.m; first += kScanWarps * kSumTokens) {
        double sum = 0.0;
        for (int i = 0; i < kSumTokens / 32; ++i) {
            int64_t row = first + warp * kSumTokens + i * 32 + lane;
            if (row >= view.m) break;
            double loss = view.losses[row];
            // Exact: two 24-bit factors. Weights where nothing is supervised are not read, and may be anything.
            if (view.weights != nullptr && view.is_supervised(row)) loss *= double(view.weights[row]);
            if (!is_finite(loss)) bad = min(bad, int(row));
            sum = __dadd_rn(sum, loss);
        }
        for (int lanes = 16; lanes > 0; lanes /= 2) sum = __dadd_rn(sum, __shfl_xor_sync(~0u, sum, lanes));
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        if (threadIdx.x == 0)
            for (int i = 0; i < kScanWarps; ++i) total = __dadd_rn(total, sums[i]);
        __syncthreads();
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) bad = min(bad, __shfl_xor_sync(~0u, bad, lanes));
    if (lane == 0) firsts[warp] = bad;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < kScanWarps; ++i) bad = min(bad, firsts[i]);
    bool as_said = view.state->supervised == uint32_t(view.supervised);
    view.state->sum = bad < INT32_MAX || !as_said ? double(NAN) : total;
    view.state->row = bad < INT32_MAX ? bad : -1;
}

// Parts of the workspace, one after the other at multiples of 256 bytes.
struct Parts {
    unsigned char *base;
    size_t used;
    template <typename T> T *take(int64_t count) {
        size_t at = used;
        used += (size_t(count) * sizeof(T) + 255) / 256 * 256;
        return base == nullptr ? nullptr : reinterpret_cast<T *>(base + at);
    }
};

// dhead += dZ^T * gathered, of this many tokens of a chunk.
GradientsView head_gradient(const CrossEntropyView &view, int64_t tokens) {
    GradientsView gradients = {};
    gradients.m = tokens;
    gradients.num_products = 1;
    GradientProduct &product = gradients.products[0];
    product.big = view.gathered;
    product.small = reinterpret_cast<const bf16 *>(view.logits);
    product.ld = view.padded_h;
    product.lds = 2 * view.ldz;
    product.columns = view.h;
    product.adapters = 1;
    product.ranks = int(view.ldz);
    product.num_outputs = 1;
    product.outputs[0] = {view.dhead, 0, int(view.vocab)};
    if (view.num_head_rows > 0) {
        product.small = view.picked;
        product.lds = view.ld_picked;
        product.ranks = int(view.ld_picked);
        product.outputs[0].r = int(view.num_head_rows);
    }
    return gradients;
}

bool has_fast_head_gradient(const CrossEntropyView &view) { return view.h % 8 == 0; }

// Checks the shape and fills what follows from it.
int check_shape(const qk_cross_entropy_args *caller, qk_cross_entropy_args *args, CrossEntropyView *view) {
    *view = {};
    if (int error = read_struct(caller, args)) return error;
    if (args->m < 0 || args->m > INT32_MAX || args->h < 1 || args->h > INT32_MAX - 64 || args->vocab < 1 ||
        args->vocab > INT32_MAX - 256)
        return QK_ERROR_SHAPE;
    if (args->supervised < 0 || args->supervised > args->m || args->chunk < 1) return QK_ERROR_SHAPE;
    if (args->num_head_rows < 0 || args->num_head_rows > args->vocab) return QK_ERROR_SHAPE;
    if (!(args->gradient_scale - args->gradient_scale == 0.0f) || !is_soft_cap(args->soft_cap)) return QK_ERROR_VALUE;
    view->chunk = args->chunk < args->supervised ? args->chunk : args->supervised;
    view->h = args->h;
    view->vocab = args->vocab;
    view->padded_h = ceil_div(args->h, 64) * 64;
    view->ldz = ceil_div(args->vocab, 8) * 8;
    view->num_statistics = ceil_div(args->vocab, kStatisticColumns);
    view->num_head_rows = args->num_head_rows;
    view->ld_picked = ceil_div(args->num_head_rows, 8) * 8;
    view->dhidden = static_cast<bf16 *>(args->dhidden);
    view->dhead = args->dhead;
    view->m = int(args->m);
    view->supervised = int(args->supervised);
    view->gradient_scale = args->gradient_scale;
    view->soft_cap = args->soft_cap;
    // Blocks of a launch are counted in 31 bits. (So are the logits' bytes in 47.)
    bool fits = ceil_div(view->chunk, 64) * ceil_div(args->vocab, 128) <= INT32_MAX &&
                ceil_div(view->chunk, 64) * ceil_div(args->h, 128) <= INT32_MAX;
    if (view->dhead != nullptr) fits = fits && ceil_div(args->h * view->ldz, kRowThreads) <= INT32_MAX;
    return fits ? QK_OK : QK_ERROR_SHAPE;
}

// Memory of an operand.
struct Range {
    uintptr_t first;
    uint64_t bytes;
    Range(const void *base, uint64_t bytes)
        : first(reinterpret_cast<uintptr_t>(base)), bytes(base == nullptr ? 0 : bytes) {}
    bool overlaps(const Range &other) const {
        return bytes > 0 && other.bytes > 0 && first < other.first + other.bytes && other.first < first + bytes;
    }
};

// True if something that is written overlaps another operand; dhidden may be hidden itself.
bool overlapping(const qk_cross_entropy_args *args, const void *workspace, size_t workspace_bytes) {
    uint64_t m = uint64_t(args->m), row = uint64_t(args->h) * sizeof(bf16);
    uint64_t head_rows = uint64_t(args->num_head_rows > 0 ? args->num_head_rows : args->vocab);
    const Range written[] = {{workspace, workspace_bytes},
                             {args->state, sizeof *args->state},
                             {args->losses, m * sizeof(float)},
                             {args->dhidden, m * row},
                             {args->dhead, head_rows * 2 * row}};
    const Range read[] = {{args->head, uint64_t(args->vocab) * row},
                          {args->targets, m * sizeof(int32_t)},
                          {args->weights, m * sizeof(float)},
                          {args->hidden, m * row},
                          {args->head_rows, head_rows * sizeof(uint32_t)}};
    for (int i = 0; i < 5; ++i) {
        for (int j = 0; j < i; ++j)
            if (written[i].overlaps(written[j])) return true;
        for (const Range &other : read)
            if (written[i].overlaps(other) && !(&other == &read[3] && i == 3 && args->dhidden == args->hidden))
                return true;
    }
    return false;
}

size_t place(CrossEntropyView *view, void *workspace) {
    Parts parts = {static_cast<unsigned char *>(workspace), 0};
    view->rows = parts.take<int32_t>(view->supervised);
    view->gathered = parts.take<bf16>(view->chunk * view->padded_h);
    view->statistics = parts.take<float2>(view->chunk * view->num_statistics);
    view->target_logits = parts.take<float>(view->chunk);
    if (view->dhidden != nullptr) view->logits = parts.take<float>(view->chunk * view->ldz);
    if (view->dhead != nullptr) view->picked = parts.take<bf16>(view->chunk * view->ld_picked);
    bool sums = view->dhead != nullptr && has_fast_head_gradient(*view) && view->chunk > 0;
    if (sums) {
        size_t bytes = gradients_workspace_bytes(head_gradient(*view, view->chunk));
        view->head_sums = parts.take<unsigned char>(int64_t(bytes));
    }
    return parts.used;
}

// Checks everything, and fills the view with its parts of the workspace.
int check(const qk_cross_entropy_args *caller, void *workspace, size_t workspace_bytes, CrossEntropyView *view) {
    qk_cross_entropy_args own, *args = &own;
    if (int error = check_shape(caller, args, view)) return error;
    if (args->head == nullptr || args->state == nullptr) return QK_ERROR_NULL_POINTER;
    if (args->dhead != nullptr && args->dhidden == nullptr) return QK_ERROR_NULL_POINTER;
    if ((args->head_rows == nullptr) != (args->num_head_rows == 0)) return QK_ERROR_NULL_POINTER;
    if (args->head_rows != nullptr && args->dhead == nullptr) return QK_ERROR_NULL_POINTER;
    if (args->m > 0 && (args->hidden == nullptr || args->targets == nullptr || args->losses == nullptr))
        return QK_ERROR_NULL_POINTER;
    for (const void *matrix : {args->hidden, args->head, static_cast<const void *>(args->dhidden)})
        if (!is_aligned(matrix, 16)) return QK_ERROR_ALIGNMENT;
    if (!is_aligned(args->targets, 4) || !is_aligned(args->weights, 4) || !is_aligned(args->losses, 4) ||
        !is_aligned(args->state, 8) || !is_aligned(args->dhead, 4) || !is_aligned(args->head_rows, 4))
        return QK_ERROR_ALIGNMENT;
    view->hidden = static_cast<const bf16 *>(args->hidden);
    view->head = static_cast<const bf16 *>(args->head);
    view->targets = args->targets;
    view->weights = args->weights;
    view->losses = args->losses;
    view->state = args->state;
    view->head_rows = args->head_rows;
    if (int error = check_workspace(workspace, workspace_bytes, place(view, workspace))) return error;
    return overlapping(args, workspace, workspace_bytes) ? QK_ERROR_OVERLAP : QK_OK;
}

template <bool kScatter> int launch_copy(const CrossEntropyView &view, int64_t first, int tokens, qk_stream stream) {
    auto kernel = view.h % 8 == 0 ? copy_rows<kScatter, 8> : copy_rows<kScatter, 1>;
    return launch(kernel, dim3(unsigned(tokens)), dim3(kRowThreads), 0, stream, view, first);
}

// gathered = dZ * W.
int launch_gradient(const CrossEntropyView &view, int tokens, qk_stream stream) {
    BackwardView dx = {};
    dx.dx = view.gathered;
    dx.lddx = view.padded_h;
    dx.m = tokens;
    dx.k = view.h;
    dx.num_segments = 1;
    BackwardSegment &segment = dx.segments[0];
    segment.dense = view.head;
    segment.dy = reinterpret_cast<const bf16 *>(view.logits);
    segment.lddy = 2 * view.ldz;
    segment.n = view.vocab;
    LinearChoice choice = choose_dx(dx);
    return choice.path == QK_PATH_TENSOR_CORE ? launch_linear_dx_tensor_core(dx, choice, stream)
                                              : launch_linear_dx_generic(dx, stream);
}

int launch_head_gradient(const CrossEntropyView &view, int tokens, qk_stream stream) {
    if (view.num_head_rows > 0)
        if (int error = launch(pick_columns, dim3(unsigned(tokens)), dim3(kRowThreads), 0, stream, view)) return error;
    GradientsView gradients = head_gradient(view, tokens);
    return has_fast_head_gradient(view) ? launch_lora_gradients(gradients, view.head_sums, stream)
                                        : launch_lora_gradients_generic(gradients, stream);
}

int launch_chunk(const CrossEntropyView &view, int64_t first, int tokens, qk_stream stream) {
    if (int error = launch_copy<false>(view, first, tokens, stream)) return error;
    if (int error = launch_cross_entropy_logits(view, first, tokens, stream)) return error;
    auto softmax = view.soft_cap > 0.0f ? softmax_rows<true> : softmax_rows<false>;
    if (int error = launch(softmax, dim3(unsigned(tokens)), dim3(kRowThreads), kSoftmaxBytes, stream, view, first))
        return error;
    if (view.dhidden == nullptr) return QK_OK;
    // The gathered rows are there until dX is written over them.
    if (view.dhead != nullptr)
        if (int error = launch_head_gradient(view, tokens, stream)) return error;
    if (int error = launch_gradient(view, tokens, stream)) return error;
    return launch_copy<true>(view, first, tokens, stream);
}

}  // namespace

extern "C" int qk_cross_entropy_workspace_size(const qk_cross_entropy_args *caller, size_t *bytes) {
    qk_cross_entropy_args args;
    CrossEntropyView view;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = check_shape(caller, &args, &view)) return error;
    *bytes = place(&view, nullptr);
    return QK_OK;
}

extern "C" int qk_cross_entropy(const qk_cross_entropy_args *args, void *workspace, size_t workspace_bytes,
                                qk_stream stream) {
    CrossEntropyView view;
    if (int error = check(args, workspace, workspace_bytes, &view)) return error;
    if (int error = launch(supervised_rows, dim3(1), dim3(kScanThreads), 2 * kScanWarps * sizeof(int), stream, view))
        return error;
    if (view.dhidden != nullptr && view.m > 0) {
        auto clear = view.h % 8 == 0 ? clear_rows<8> : clear_rows<1>;
        if (int error = launch(clear, dim3(unsigned(view.m)), dim3(kRowThreads), 0, stream, view)) return error;
    }
    for (int64_t first = 0; first < view.supervised; first += view.chunk) {
        int64_t left = view.supervised - first;
        if (int error = launch_chunk(view, first, int(left < view.chunk ? left : view.chunk), stream)) return error;
    }
    return launch(loss_sum, dim3(1), dim3(kScanThreads), kSumBytes, stream, view);
}
