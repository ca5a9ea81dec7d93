// The gradient of RMSNorm's weight: dweight += sum over tokens and parts of dy * (x * rho), rho = 1 / sqrt(mean(x^2) +
// eps) of the part. A row has one part, or one a head. Two kernels and the sum of what the second leaves:
//   inverse_rms_of_parts  rho of every part: a warp a part
//   norm_gradient         blocks of 256 tokens by 16 vectors of columns (common/token_sums.cuh); a thread takes every
//                         16th token, and of each all parts in order
//
// Limit: bytes of DRAM, 6 an element, as x is read twice. Shared memory: 8 KB. Widths, strides and a first column off 8
// go element by element.
#include "common/abi.cuh"
#include "common/token_sums.cuh"

namespace {

struct NormGradient {
    const bf16 *dy, *x; // [M, lddy], [M, ld], from the first part on
    float *rho;         // [M, parts]
    int64_t m, parts, width, ld, lddy;
    float eps;
};

template <int V> __global__ void __launch_bounds__(kRowThreads) inverse_rms_of_parts(NormGradient norm) {
    int64_t index = (int64_t(blockIdx.x) * kRowThreads + threadIdx.x) / 32;
    int lane = int(threadIdx.x) % 32;
    // Warps beyond the last part read nothing.
    int64_t width = index < norm.m * norm.parts ? norm.width : 0;
    const bf16 *x = norm.x + index / norm.parts * norm.ld + index % norm.parts * norm.width;
    float squares = 0.0f;
    for (int64_t i = int64_t(lane) * V; i < width; i += 32 * V) {
        Vector<V> values = Vector<V>::load(x + i);
#pragma unroll
        for (int j = 0; j < V; ++j) squares = fmaf(values.v[j], values.v[j], squares);
    }
    squares = lane_sum(squares);
    if (width > 0 && lane == 0) norm.rho[index] = inverse_rms(squares, width, norm.eps);
}

template <int V>
__global__ void __launch_bounds__(kRowThreads) norm_gradient(NormGradient norm, float *partial /* [chunks, width] */) {
    TokenSums<V> at(norm.m, norm.width);
    float sums[V] = {};
    for (int64_t token = at.token; at.has_column && token < at.end; token += kSumRows) {
        const float *rho = norm.rho + token * norm.parts;
        int64_t i = token * norm.ld + at.column, j = token * norm.lddy + at.column;
#pragma unroll 4
        for (int64_t part = 0; part < norm.parts; ++part, i += norm.width, j += norm.width) {
            Vector<V> x = Vector<V>::load(norm.x + i), dy = Vector<V>::load(norm.dy + j);
#pragma unroll
            for (int v = 0; v < V; ++v) sums[v] = fmaf(dy.v[v], __fmul_rn(x.v[v], rho[part]), sums[v]);
        }
    }
    at.store(sums, partial, [](int64_t, float sum) { return sum; });
}

int64_t lddy_of(const qk_norm_gradient_args &args) { return args.lddy != 0 ? args.lddy : args.ld; }

int check_shape(const qk_norm_gradient_args &args) {
    if (args.m < 0 || args.m > INT32_MAX || args.parts < 1 || args.parts > 65535 || args.width < 1 ||
        args.width > INT32_MAX || args.column < 0 || args.column > INT32_MAX)
        return QK_ERROR_SHAPE;
    if (args.ld < args.column + args.parts * args.width || lddy_of(args) < args.column + args.parts * args.width)
        return QK_ERROR_SHAPE;
    bool fits = ceil_div(args.m * args.parts, kRowThreads / 32) <= INT32_MAX &&
                token_sum_blocks(args.m, args.width, 1) <= INT32_MAX;
    if (!fits) return QK_ERROR_SHAPE;
    return args.eps > 0.0f ? QK_OK : QK_ERROR_VALUE;
}

// rho, then the sums of chunks.
size_t workspace_bytes(const qk_norm_gradient_args &args) {
    return size_t(args.m * args.parts + token_chunks(args.m) * args.width) * sizeof(float);
}

}  // namespace

extern "C" int qk_norm_gradient_workspace_size(const qk_norm_gradient_args *caller, size_t *bytes) {
    qk_norm_gradient_args args;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = read_struct(caller, &args)) return error;
    if (int error = check_shape(args)) return error;
    *bytes = workspace_bytes(args);
    return QK_OK;
}

extern "C" int qk_norm_gradient(const qk_norm_gradient_args *caller, void *workspace, size_t bytes, qk_stream stream) {
    qk_norm_gradient_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (int error = check_shape(args)) return error;
    if (args.m == 0) return QK_OK;
    if (args.dy == nullptr || args.x == nullptr || args.dweight == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.dy, 16) || !is_aligned(args.x, 16)) return QK_ERROR_ALIGNMENT;
    if (!is_aligned(args.dweight, sizeof(float))) return QK_ERROR_ALIGNMENT;
    if (int error = check_workspace(workspace, bytes, workspace_bytes(args))) return error;
    float *rho = static_cast<float *>(workspace), *partial = rho + args.m * args.parts;
    NormGradient norm = {static_cast<const bf16 *>(args.dy) + args.column,
                         static_cast<const bf16 *>(args.x) + args.column,
                         rho,
                         args.m,
                         args.parts,
                         args.width,
                         args.ld,
                         lddy_of(args),
                         args.eps};
    bool vector = is_vector(args.width) && is_vector(args.ld) && is_vector(norm.lddy) && is_vector(args.column);
    unsigned of_parts = unsigned(ceil_div(args.m * args.parts, kRowThreads / 32));
    if (int error = launch(vector ? inverse_rms_of_parts<8> : inverse_rms_of_parts<1>, dim3(of_parts),
                           dim3(kRowThreads), 0, stream, norm))
        return error;
    unsigned blocks = unsigned(token_sum_blocks(args.m, args.width, vector ? 8 : 1));
    if (int error = launch(vector ? norm_gradient<8> : norm_gradient<1>, dim3(blocks), dim3(kRowThreads),
                           vector ? kTokenSumBytes<8> : kTokenSumBytes<1>, stream, norm, partial))
        return error;
    return launch_add_token_sums(partial, token_chunks(args.m), args.width, args.dweight, stream);
}
