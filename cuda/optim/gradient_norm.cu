// The L2 norm over the gradients of all tensors, the factor that clips it, and the first tensor that is not finite. Two
// launches:
//   partials: the sum of squares of each chunk of 4096 elements; a square of f32 is exact in f64, and no sum of them
//   overflows, so a
//             partial is not finite exactly if a gradient of its chunk is not
//   state:    one block of threads over all partials; norm = sqrt(sum), scale = min(1, max_norm / (norm + 1e-6))
// Everything is f64 and in one fixed order: of a lane's 16 elements, of the lanes by a butterfly, of the warps; thread
// t of the second launch takes partials t, t + 1024, ... in order, then a tree over threads. No atomics. Shared memory:
// 64 bytes and 12 KB. Limit: memory traffic, 4 bytes an element; two f64 operations an element are less than that on
// cards with 1/64 of the f32 rate. Not measured on a GPU.
#include "common/abi.cuh"
#include "common/access.cuh"
#include "optim/adamw.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kOfWarp = QK_ADAMW_CHUNK / kWarps;
constexpr int kStateThreads = 1024;
static_assert(kOfWarp % 128 == 0, "a warp takes 128 elements at a time");

__global__ void __launch_bounds__(kThreads) gradient_partials(AdamWView view, double *partials /* [chunks] */) {
    double *sums = reinterpret_cast<double *>(dynamic_shared());
    int chunk = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const AdamWEntry entry = view.entries[view.chunk_tensor[chunk]];
    int64_t first = (chunk - entry.first_chunk) * QK_ADAMW_CHUNK + warp * kOfWarp;
    double sum = 0.0;
#pragma unroll
    for (int part = 0; part < kOfWarp; part += 128) {
        int64_t at = first + part + lane * 4;
        float4 four = {0.0f, 0.0f, 0.0f, 0.0f};
        if (at + 4 <= entry.n) {
            four = load_as<float4>(entry.gradient + at);
        } else {
            if (at < entry.n) four.x = entry.gradient[at];
            if (at + 1 < entry.n) four.y = entry.gradient[at + 1];
            if (at + 2 < entry.n) four.z = entry.gradient[at + 2];
        }
        const float of_lane[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) sum = __dadd_rn(sum, __dmul_rn(double(of_lane[i]), double(of_lane[i])));
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) sum = __dadd_rn(sum, __shfl_xor_sync(~0u, sum, lanes));
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < kWarps; ++i) sum = __dadd_rn(sum, sums[i]);
    partials[chunk] = sum;
}

__device__ __forceinline__ bool is_finite(double x) { return x - x == 0.0; }

__global__ void __launch_bounds__(kStateThreads) gradient_state(AdamWView view, const double *partials, double max_norm,
                                                                qk_gradient_state *state) {
    double *sums = reinterpret_cast<double *>(dynamic_shared());
    int *bad = reinterpret_cast<int *>(sums + kStateThreads);
    int thread = threadIdx.x, first = INT32_MAX;
    double sum = 0.0;
    for (int chunk = thread; chunk < view.chunks; chunk += kStateThreads) {
        double partial = partials[chunk];
        if (!is_finite(partial)) first = min(first, chunk);
        sum = __dadd_rn(sum, partial);
    }
    sums[thread] = sum, bad[thread] = first;
    for (int half = kStateThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread >= half) continue;
        sums[thread] = __dadd_rn(sums[thread], sums[thread + half]);
        bad[thread] = min(bad[thread], bad[thread + half]);
    }
    if (thread != 0) return;
    double norm = __dsqrt_rn(sums[0]), factor = __ddiv_rn(max_norm, __dadd_rn(norm, 1e-6));
    state->norm = norm;
    state->scale = max_norm > 0.0 && factor < 1.0 ? float(factor) : 1.0f;
    state->tensor = bad[0] < INT32_MAX ? int32_t(view.chunk_tensor[bad[0]]) : -1;
}

size_t partial_bytes(const AdamWView &view) { return size_t(view.chunks) * sizeof(double); }

}  // namespace

extern "C" int qk_gradient_norm_workspace_size(const qk_adamw_args *adamw, size_t *bytes) {
    AdamWView view;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    int status = adamw_view(adamw, false, &view);
    if (status == QK_OK) *bytes = partial_bytes(view);
    return status;
}

extern "C" int qk_gradient_norm(const qk_adamw_args *adamw, double max_norm, qk_gradient_state *state, void *workspace,
                                size_t workspace_bytes, qk_stream stream) {
    AdamWView view;
    int status = adamw_view(adamw, false, &view);
    if (status != QK_OK) return status;
    if (state == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(state, 8)) return QK_ERROR_ALIGNMENT;
    if (!(max_norm >= 0.0)) return QK_ERROR_VALUE;
    if (int error = check_workspace(workspace, workspace_bytes, partial_bytes(view))) return error;
    double *partials = static_cast<double *>(workspace);
    status = launch(gradient_partials, dim3(unsigned(view.chunks)), dim3(kThreads), kWarps * sizeof(double), stream,
                    view, partials);
    if (status != QK_OK) return status;
    return launch(gradient_state, dim3(1), dim3(kStateThreads), kStateThreads * (sizeof(double) + sizeof(int)), stream,
                  view, partials, max_norm, state);
}
