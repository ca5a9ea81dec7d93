// RMSNorm of every head of q and of k in rows q|k|v, or of all of q and all of k, before their rotation: y = weight *
// (x * rho), rho = 1 / sqrt(mean(x^2) + eps) over the part's D elements; and its gradient rho * g - x * rho^3 * (g . x)
// / D with g = weight * dy. v, or its gradient, is copied, so that attention finds the whole row in y.
//
// As many lanes of a warp as a part has groups of 8 elements (a power of two, 32 at most) take one part: 16 lanes if
// D = 128, so that a block takes 16 heads. The second pass reads the part again, from the first-level cache. Bytes: 4
// an element, 6 for the gradient, which is what limits it.
#include "common/abi.cuh"
#include "common/rows.cuh"

namespace {

struct HeadNorm {
    const bf16 *x, *dy;               // [M, ldx], [M, ldy]; dy is NULL in the forward pass
    const float *q_weight, *k_weight; // [q_width], [k_width]
    bf16 *y;                          // [M, ldy]: the norm, or the gradient of x
    int64_t m, ldx, ldy;
    int q_parts, k_parts; // of a row; v has as many as k
    int q_width, k_width; // of a part
    int lanes;            // of one part
    float eps;
};

template <int V, bool backward> __global__ void __launch_bounds__(kRowThreads) head_norm(HeadNorm norm) {
    int parts = norm.q_parts + 2 * norm.k_parts;
    int64_t index = (int64_t(blockIdx.x) * kRowThreads + threadIdx.x) / norm.lanes;
    int64_t token = index / parts;
    int part = int(index % parts), first = int(threadIdx.x) % norm.lanes * V, stride = norm.lanes * V;
    bool is_query = part < norm.q_parts, is_value = part >= norm.q_parts + norm.k_parts;
    int width = is_query ? norm.q_width : norm.k_width;
    int64_t column = is_query ? int64_t(part) * norm.q_width
                              : int64_t(norm.q_parts) * norm.q_width + int64_t(part - norm.q_parts) * norm.k_width;
    // Lanes beyond the last part have nothing to read or write, and take part in the sums.
    int d = token < norm.m ? width : 0;
    const float *weight = is_query ? norm.q_weight : norm.k_weight;
    const bf16 *x = norm.x + token * norm.ldx + column;
    int64_t at = token * norm.ldy + column;
    const bf16 *dy = backward ? norm.dy + at : nullptr;
    bf16 *y = norm.y + at;

    float squares = 0.0f, g_dot_x = 0.0f;
    for (int i = first; i < d; i += stride) {
        Vector<V> value = Vector<V>::load(x + i), gradient = {};
        if (backward) gradient = Vector<V>::load(dy + i);
        Vector<V> scale = Vector<V>::load(weight + i);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            squares += value.v[j] * value.v[j];
            if (backward) g_dot_x += scale.v[j] * gradient.v[j] * value.v[j];
        }
    }
    float2 sums = lane_sums(squares, g_dot_x, norm.lanes);
    float rho = inverse_rms(sums.x, width, norm.eps);
    float along_x = backward ? rho * rho * rho * sums.y / float(width) : 0.0f;

    // A lane overwrites what it alone read, so that y may be x or dy.
    for (int i = first; i < d; i += stride) {
        Vector<V> value = Vector<V>::load(x + i), result = {};
        if (backward) result = Vector<V>::load(dy + i);
        Vector<V> scale = Vector<V>::load(weight + i);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            float normed = backward ? rho * scale.v[j] * result.v[j] - along_x * value.v[j]
                                    : scale.v[j] * (value.v[j] * rho);
            float copied = backward ? result.v[j] : value.v[j];
            result.v[j] = is_value ? copied : normed;
        }
        result.store(y + i);
    }
}

}  // namespace

extern "C" int qk_head_norm(const qk_head_norm_args *caller, qk_stream stream) {
    qk_head_norm_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.head_dim < 1 || args.head_dim > 1024 || args.heads < 1 || args.heads > 65535 || args.kv_heads < 1 ||
        args.kv_heads > args.heads)
        return QK_ERROR_SHAPE;
    int64_t all_heads = int64_t(args.heads) + 2 * int64_t(args.kv_heads), width = all_heads * args.head_dim;
    if (args.m < 0 || args.m > INT32_MAX || args.ldx < width || args.ldy < width) return QK_ERROR_SHAPE;
    if (args.reserved2 != 0) return QK_ERROR_RESERVED;
    if (!(args.eps > 0.0f) || args.whole_width > 1) return QK_ERROR_VALUE;
    if (args.m == 0) return QK_OK;
    if (args.x == nullptr || args.q_weight == nullptr || args.k_weight == nullptr || args.y == nullptr)
        return QK_ERROR_NULL_POINTER;
    for (const void *matrix : {args.x, args.dy, static_cast<const void *>(args.y)})
        if (!is_aligned(matrix, 16)) return QK_ERROR_ALIGNMENT;
    for (const float *weight : {args.q_weight, args.k_weight})
        if (!is_aligned(weight, sizeof(float))) return QK_ERROR_ALIGNMENT;
    bool vector = is_vector(args.head_dim) && is_vector(args.ldx) && is_vector(args.ldy) &&
                  is_aligned(args.q_weight, 16) && is_aligned(args.k_weight, 16);
    bool whole = args.whole_width != 0;
    int64_t q_parts = whole ? 1 : args.heads, k_parts = whole ? 1 : args.kv_heads;
    int64_t q_width = int64_t(args.heads) * args.head_dim / q_parts,
            k_width = int64_t(args.kv_heads) * args.head_dim / k_parts;
    int64_t groups = q_width / (vector ? 8 : 1);
    int lanes = 1;
    while (lanes < groups && lanes < 32) lanes *= 2;
    int64_t blocks = ceil_div(args.m * (q_parts + 2 * k_parts), int64_t(kRowThreads / lanes));
    if (blocks > INT32_MAX) return QK_ERROR_SHAPE;
    HeadNorm norm = {static_cast<const bf16 *>(args.x),
                     static_cast<const bf16 *>(args.dy),
                     args.q_weight,
                     args.k_weight,
                     static_cast<bf16 *>(args.y),
                     args.m,
                     args.ldx,
                     args.ldy,
                     int(q_parts),
                     int(k_parts),
                     int(q_width),
                     int(k_width),
                     lanes,
                     args.eps};
    auto forward = vector ? head_norm<8, false> : head_norm<1, false>;
    auto backward = vector ? head_norm<8, true> : head_norm<1, true>;
    return launch(args.dy == nullptr ? forward : backward, dim3(unsigned(blocks)), dim3(kRowThreads), 0, stream, norm);
}
