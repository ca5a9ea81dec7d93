// RMSNorm with the residual add before it, or after it: s = bf16(x + delta), y = weight * (s * rho), rho = 1 /
// sqrt(mean(s^2) + eps), or y = residual + bf16(that); and its gradient dx (+)= rho * g - x * rho^3 * (g . x) / H with
// g = weight * dy.
//
// One block a row; a thread takes every 256th group of 8 elements. The second pass reads the row again, from the
// caches: the bytes of DRAM are those of x, delta, sum and y (8 H a row with the add), which is what limits it.
#include "common/abi.cuh"
#include "common/rows.cuh"

namespace {

struct Norm {
    const bf16 *x, *delta;  // [M, H]; delta may be NULL
    const float *weight;    // [H]
    bf16 *sum, *y;          // [M, H], [M, ldy]; sum is NULL with delta
    const bf16 *residual;   // [M, H]: what the rounded norm is added to, or NULL
    int64_t h, ldy;
    float eps;
};

// Six blocks a multiprocessor leave it 42 registers: left alone, the compiler takes 32 and spills.
template <int V> __global__ void __launch_bounds__(kRowThreads, 6) rms_norm(Norm norm) {
    float *shared = reinterpret_cast<float *>(dynamic_shared());
    int64_t row = int64_t(blockIdx.x) * norm.h;
    float squares = 0.0f;
    for (int64_t i = int64_t(threadIdx.x) * V; i < norm.h; i += kRowThreads * V) {
        Vector<V> x = Vector<V>::load(norm.x + row + i);
        if (norm.delta != nullptr) {
            Vector<V> delta = Vector<V>::load(norm.delta + row + i);
#pragma unroll
            for (int j = 0; j < V; ++j) x.v[j] += delta.v[j];
            x = rounded(x);
            x.store(norm.sum + row + i);
        }
#pragma unroll
        for (int j = 0; j < V; ++j) squares += x.v[j] * x.v[j];
    }
    float rho = inverse_rms(block_sum(squares, shared), norm.h, norm.eps);
    // A thread reads again what it wrote itself.
    const bf16 *s = norm.delta != nullptr ? norm.sum : norm.x;
    for (int64_t i = int64_t(threadIdx.x) * V; i < norm.h; i += kRowThreads * V) {
        Vector<V> x = Vector<V>::load(s + row + i), weight = Vector<V>::load(norm.weight + i);
#pragma unroll
        for (int j = 0; j < V; ++j) x.v[j] = weight.v[j] * (x.v[j] * rho);
        if (norm.residual != nullptr) {
            Vector<V> residual = Vector<V>::load(norm.residual + row + i);
            x = rounded(x);
#pragma unroll
            for (int j = 0; j < V; ++j) x.v[j] += residual.v[j];
        }
        x.store(norm.y + int64_t(blockIdx.x) * norm.ldy + i);
    }
}

struct NormBackward {
    const bf16 *dy, *x;   // [M, lddy], [M, H]
    const float *weight;  // [H]
    bf16 *dx;             // [M, lddx]
    int64_t h, lddy, lddx;
    float eps;
    bool accumulate;
};

template <int V> __global__ void __launch_bounds__(kRowThreads) rms_norm_backward(NormBackward norm) {
    float *shared = reinterpret_cast<float *>(dynamic_shared());
    int64_t row = int64_t(blockIdx.x) * norm.h;
    const bf16 *dy_row = norm.dy + int64_t(blockIdx.x) * norm.lddy;
    bf16 *dx_row = norm.dx + int64_t(blockIdx.x) * norm.lddx;
    float squares = 0.0f, g_dot_x = 0.0f;
    for (int64_t i = int64_t(threadIdx.x) * V; i < norm.h; i += kRowThreads * V) {
        Vector<V> x = Vector<V>::load(norm.x + row + i), dy = Vector<V>::load(dy_row + i),
                  weight = Vector<V>::load(norm.weight + i);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            squares += x.v[j] * x.v[j];
            g_dot_x += weight.v[j] * dy.v[j] * x.v[j];
        }
    }
    float2 sums = block_sums(squares, g_dot_x, shared);
    float rho = inverse_rms(sums.x, norm.h, norm.eps);
    float along_x = rho * rho * rho * sums.y / float(norm.h);
    for (int64_t i = int64_t(threadIdx.x) * V; i < norm.h; i += kRowThreads * V) {
        Vector<V> x = Vector<V>::load(norm.x + row + i), dy = Vector<V>::load(dy_row + i),
                  weight = Vector<V>::load(norm.weight + i), dx = {};
        if (norm.accumulate) dx = Vector<V>::load(dx_row + i);
#pragma unroll
        for (int j = 0; j < V; ++j) dx.v[j] += rho * weight.v[j] * dy.v[j] - along_x * x.v[j];
        dx.store(dx_row + i);
    }
}

int check_sizes(int64_t m, int64_t h, float eps) {
    if (m < 0 || m > INT32_MAX || h < 1 || h > INT32_MAX) return QK_ERROR_SHAPE;
    return eps > 0.0f ? QK_OK : QK_ERROR_VALUE;
}

}  // namespace

extern "C" int qk_rms_norm(const qk_rms_norm_args *caller, qk_stream stream) {
    qk_rms_norm_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (int error = check_sizes(args.m, args.h, args.eps)) return error;
    int64_t ldy = args.ldy != 0 ? args.ldy : args.h;
    if (ldy < args.h) return QK_ERROR_SHAPE;
    if (args.m == 0) return QK_OK;
    if (args.x == nullptr || args.weight == nullptr || args.y == nullptr) return QK_ERROR_NULL_POINTER;
    if ((args.delta == nullptr) != (args.sum == nullptr)) return QK_ERROR_NULL_POINTER;
    if (args.delta != nullptr && args.residual != nullptr) return QK_ERROR_NULL_POINTER;
    for (const void *matrix :
         {args.x, args.delta, args.residual, static_cast<const void *>(args.sum), static_cast<const void *>(args.y)})
        if (!is_aligned(matrix, 16)) return QK_ERROR_ALIGNMENT;
    if (!is_aligned(args.weight, sizeof(float))) return QK_ERROR_ALIGNMENT;
    Norm norm = {static_cast<const bf16 *>(args.x),
                 static_cast<const bf16 *>(args.delta),
                 args.weight,
                 static_cast<bf16 *>(args.sum),
                 static_cast<bf16 *>(args.y),
                 static_cast<const bf16 *>(args.residual),
                 args.h,
                 ldy,
                 args.eps};
    auto kernel = is_vector(args.h) && is_vector(ldy) && is_aligned(args.weight, 16) ? rms_norm<8> : rms_norm<1>;
    return launch(kernel, dim3(unsigned(args.m)), dim3(kRowThreads), kRowSumBytes, stream, norm);
}

extern "C" int qk_rms_norm_backward(const qk_rms_norm_backward_args *caller, qk_stream stream) {
    qk_rms_norm_backward_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (int error = check_sizes(args.m, args.h, args.eps)) return error;
    int64_t lddy = args.lddy != 0 ? args.lddy : args.h, lddx = args.lddx != 0 ? args.lddx : args.h;
    if (lddy < args.h || lddx < args.h) return QK_ERROR_SHAPE;
    if (args.accumulate > 1) return QK_ERROR_VALUE;
    if (args.m == 0) return QK_OK;
    if (args.dy == nullptr || args.x == nullptr || args.weight == nullptr || args.dx == nullptr)
        return QK_ERROR_NULL_POINTER;
    for (const void *matrix : {args.dy, args.x, static_cast<const void *>(args.dx)})
        if (!is_aligned(matrix, 16)) return QK_ERROR_ALIGNMENT;
    if (!is_aligned(args.weight, sizeof(float))) return QK_ERROR_ALIGNMENT;
    NormBackward norm = {static_cast<const bf16 *>(args.dy),
                         static_cast<const bf16 *>(args.x),
                         args.weight,
                         static_cast<bf16 *>(args.dx),
                         args.h,
                         lddy,
                         lddx,
                         args.eps,
                         args.accumulate != 0};
    bool vector = is_vector(args.h) && is_vector(lddy) && is_vector(lddx) && is_aligned(args.weight, 16);
    auto kernel = vector ? rms_norm_backward<8> : rms_norm_backward<1>;
    return launch(kernel, dim3(unsigned(args.m)), dim3(kRowThreads), kRowSumBytes, stream, norm);
}
