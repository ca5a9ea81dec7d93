// RMSNorm of every head of q and of k in rows q|k|v, or of all of q and all of k: y = weight * (x * rho), rho = 1 /
// sqrt(mean(x^2) + eps) over the part's D elements; and its gradient rho * g - x * rho^3 * (g . x) / D with
// g = weight * dy. v, or its gradient, is copied, so that attention finds the whole row in y.
//
// With a rotation the heads of q and k are turned by their positions as rope.cu turns them, behind the norm or before
// it, without another pass over memory; the gradient turns dy back, or its own result. Nothing is rounded in between.
//
// A part is taken by as many lanes of a warp as it has units (a power of two, 32 at most). A unit is a group of 8
// elements, or, of rotated elements, the two groups of 8 pairs: 16 lanes if D = 128, 8 if it is rotated, so that a
// block takes 16 heads, or 32. The second pass reads the part again, from the first-level cache. Limit: bytes, 4 an
// element, 6 for the gradient; the tables' rows stay in the caches.
#include "common/abi.cuh"
#include "common/rows.cuh"

namespace {

struct HeadNorm {
    const bf16 *x, *dy;               // [M, ldx], [M, ldy]; dy is NULL in the forward pass
    const float *q_weight, *k_weight; // [q_width], [k_width]
    bf16 *y;                          // [M, ldy]: the norm, or the gradient of x
    const uint32_t *positions;        // [M]
    const float *cosines, *sines;     // [table_positions, half]
    int64_t m, ldx, ldy, table_positions;
    int q_parts, k_parts; // of a row; v has as many as k
    int q_width, k_width; // of a part
    int d, half;          // of a head, of which the first 2 * half elements are turned
    int lanes;            // of one part
    float eps;
};

// V elements of a part, or V pairs.
struct Unit {
    int at, gap; // gap: from one of a pair to the other; 0: elements
};

template <int V, bool turns> __device__ __forceinline__ Unit unit_of(int index, int d, int half) {
    if (!turns) return {index * V, 0};
    int pairs = half / V, of_head = d / V - pairs, head = index / of_head, rest = index - head * of_head;
    return rest < pairs ? Unit{head * d + rest * V, half} : Unit{head * d + half + rest * V, 0};
}

template <int V> struct Angles {
    Vector<V> cosines, sines;

    // A position that the table does not have makes NaN.
    __device__ __forceinline__ static Angles load(const HeadNorm &norm, int64_t position, int i) {
        bool known = position < norm.table_positions;
        int64_t entry = (known ? position : 0) * norm.half + i;
        Angles angles = {Vector<V>::load(norm.cosines + entry), Vector<V>::load(norm.sines + entry)};
#pragma unroll
        for (int j = 0; j < V; ++j)
            if (!known) angles.cosines.v[j] = __uint_as_float(0x7fc00000u);
        return angles;
    }

    // direction: 1, or -1 for the inverse.
    __device__ __forceinline__ void turn(Vector<V> (&pair)[2], float direction) const {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            float first = pair[0].v[j], second = pair[1].v[j], sine = direction * sines.v[j];
            pair[0].v[j] = first * cosines.v[j] - second * sine;
            pair[1].v[j] = second * cosines.v[j] + first * sine;
        }
    }
};

template <int V> struct Operands {
    Vector<V> x[2], dy[2], weight[2];
    Angles<V> angles;
    bool is_pair;
};

// Operands of the norm of a unit: x as it is normalized, dy as the gradient of the norm itself.
template <int V, bool backward, int rotation>
__device__ __forceinline__ Operands<V> operands_of(const HeadNorm &norm, Unit unit, const bf16 *x, const bf16 *dy,
                                                   const float *weight, int64_t position) {
    Operands<V> of = {};
    of.is_pair = rotation != QK_ROTATION_NONE && unit.gap != 0;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
        if (p == 1 && !of.is_pair) continue;
        int i = unit.at + p * unit.gap;
        of.x[p] = Vector<V>::load(x + i);
        if (backward) of.dy[p] = Vector<V>::load(dy + i);
        of.weight[p] = Vector<V>::load(weight + i);
    }
    if (of.is_pair) {
        of.angles = Angles<V>::load(norm, position, unit.at % norm.d);
        if (rotation == QK_ROTATION_BEFORE_NORM) of.angles.turn(of.x, 1.0f);
        if (rotation == QK_ROTATION_AFTER_NORM && backward) of.angles.turn(of.dy, -1.0f);
    }
    return of;
}

template <int V, bool backward, int rotation>
__global__ void __launch_bounds__(kRowThreads) head_norm(HeadNorm norm) {
    constexpr bool turns = rotation != QK_ROTATION_NONE;
    int parts = norm.q_parts + 2 * norm.k_parts;
    int64_t index = (int64_t(blockIdx.x) * kRowThreads + threadIdx.x) / norm.lanes;
    int64_t token = index / parts;
    int part = int(index % parts), lane = int(threadIdx.x) % norm.lanes;
    bool is_query = part < norm.q_parts, is_value = part >= norm.q_parts + norm.k_parts;
    int width = is_query ? norm.q_width : norm.k_width, half = is_value ? 0 : norm.half;
    int64_t column = is_query ? int64_t(part) * norm.q_width
                              : int64_t(norm.q_parts) * norm.q_width + int64_t(part - norm.q_parts) * norm.k_width;
    // Lanes beyond the last part have nothing to read or write, and take part in the sums.
    int units = token >= norm.m ? 0 : turns ? width / norm.d * (norm.d / V - half / V) : width / V;
    const float *weight = is_query ? norm.q_weight : norm.k_weight;
    const bf16 *x = norm.x + token * norm.ldx + column;
    int64_t at = token * norm.ldy + column;
    const bf16 *dy = backward ? norm.dy + at : nullptr;
    bf16 *y = norm.y + at;
    int64_t position = turns && units > 0 ? norm.positions[token] : 0;

    float squares = 0.0f, g_dot_x = 0.0f;
    for (int i = lane; i < units; i += norm.lanes) {
        Unit unit = unit_of<V, turns>(i, norm.d, half);
        Operands<V> of = operands_of<V, backward, rotation>(norm, unit, x, dy, weight, position);
#pragma unroll
        for (int p = 0; p < 2; ++p) {
            if (p == 1 && !of.is_pair) continue;
#pragma unroll
            for (int j = 0; j < V; ++j) {
                squares += of.x[p].v[j] * of.x[p].v[j];
                if (backward) g_dot_x += of.weight[p].v[j] * of.dy[p].v[j] * of.x[p].v[j];
            }
        }
    }
    float2 sums = lane_sums(squares, g_dot_x, norm.lanes);
    float rho = inverse_rms(sums.x, width, norm.eps);
    float along_x = backward ? rho * rho * rho * sums.y / float(width) : 0.0f;

    // A lane overwrites what in this pass it alone reads, and the sums are of what all lanes have read in the first, so
    // that y may be x or dy.
    for (int i = lane; i < units; i += norm.lanes) {
        Unit unit = unit_of<V, turns>(i, norm.d, half);
        Operands<V> of = operands_of<V, backward, rotation>(norm, unit, x, dy, weight, position);
        Vector<V> result[2] = {};
#pragma unroll
        for (int p = 0; p < 2; ++p) {
            if (p == 1 && !of.is_pair) continue;
#pragma unroll
            for (int j = 0; j < V; ++j) {
                float normed = backward ? rho * of.weight[p].v[j] * of.dy[p].v[j] - along_x * of.x[p].v[j]
                                        : of.weight[p].v[j] * (of.x[p].v[j] * rho);
                float copied = backward ? of.dy[p].v[j] : of.x[p].v[j];
                result[p].v[j] = is_value ? copied : normed;
            }
        }
        if (of.is_pair) {
            if (rotation == QK_ROTATION_AFTER_NORM && !backward) of.angles.turn(result, 1.0f);
            if (rotation == QK_ROTATION_BEFORE_NORM && backward) of.angles.turn(result, -1.0f);
        }
#pragma unroll
        for (int p = 0; p < 2; ++p) {
            if (p == 1 && !of.is_pair) continue;
            result[p].store(y + unit.at + p * unit.gap);
        }
    }
}

template <int V, int rotation> auto direction_of(bool backward) {
    return backward ? head_norm<V, true, rotation> : head_norm<V, false, rotation>;
}

template <int V> auto kernel_of(bool backward, uint32_t rotation) {
    if (rotation == QK_ROTATION_AFTER_NORM) return direction_of<V, QK_ROTATION_AFTER_NORM>(backward);
    if (rotation == QK_ROTATION_BEFORE_NORM) return direction_of<V, QK_ROTATION_BEFORE_NORM>(backward);
    return direction_of<V, QK_ROTATION_NONE>(backward);
}

// The faults of the fields that a rotation needs.
int check_rotation(const qk_head_norm_args &args) {
    if (args.rotation > QK_ROTATION_BEFORE_NORM) return QK_ERROR_VALUE;
    if (args.rotation == QK_ROTATION_NONE) return QK_OK;
    if (args.head_dim % 2 != 0 || args.rotary_dim > args.head_dim || args.rotary_dim % 2 != 0 ||
        args.table_positions < 1)
        return QK_ERROR_SHAPE;
    if (args.m == 0) return QK_OK;
    for (const void *part : {static_cast<const void *>(args.positions), static_cast<const void *>(args.cosines),
                             static_cast<const void *>(args.sines)}) {
        if (part == nullptr) return QK_ERROR_NULL_POINTER;
        if (!is_aligned(part, 4)) return QK_ERROR_ALIGNMENT;
    }
    return QK_OK;
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
    if (int error = check_rotation(args)) return error;
    if (args.m == 0) return QK_OK;
    if (args.x == nullptr || args.q_weight == nullptr || args.k_weight == nullptr || args.y == nullptr)
        return QK_ERROR_NULL_POINTER;
    for (const void *matrix : {args.x, args.dy, static_cast<const void *>(args.y)})
        if (!is_aligned(matrix, 16)) return QK_ERROR_ALIGNMENT;
    for (const float *weight : {args.q_weight, args.k_weight})
        if (!is_aligned(weight, sizeof(float))) return QK_ERROR_ALIGNMENT;
    bool turns = args.rotation != QK_ROTATION_NONE;
    int half = turns ? int(args.rotary_dim == 0 ? args.head_dim : args.rotary_dim) / 2 : 0;
    bool vector = is_vector(args.head_dim) && is_vector(args.ldx) && is_vector(args.ldy) &&
                  is_aligned(args.q_weight, 16) && is_aligned(args.k_weight, 16);
    if (turns) vector = vector && is_vector(half) && is_aligned(args.cosines, 16) && is_aligned(args.sines, 16);
    bool whole = args.whole_width != 0;
    int64_t q_parts = whole ? 1 : args.heads, k_parts = whole ? 1 : args.kv_heads;
    int64_t q_width = int64_t(args.heads) * args.head_dim / q_parts,
            k_width = int64_t(args.kv_heads) * args.head_dim / k_parts;
    int64_t units = q_width / args.head_dim * (int64_t(args.head_dim) - half) / (vector ? 8 : 1);
    int lanes = 1;
    while (lanes < units && lanes < 32) lanes *= 2;
    int64_t blocks = ceil_div(args.m * (q_parts + 2 * k_parts), int64_t(kRowThreads / lanes));
    if (blocks > INT32_MAX) return QK_ERROR_SHAPE;
    HeadNorm norm = {static_cast<const bf16 *>(args.x),
                     static_cast<const bf16 *>(args.dy),
                     args.q_weight,
                     args.k_weight,
                     static_cast<bf16 *>(args.y),
                     args.positions,
                     args.cosines,
                     args.sines,
                     args.m,
                     args.ldx,
                     args.ldy,
                     args.table_positions,
                     int(q_parts),
                     int(k_parts),
                     int(q_width),
                     int(k_width),
                     int(args.head_dim),
                     half,
                     lanes,
                     args.eps};
    bool backward = args.dy != nullptr;
    auto kernel = vector ? kernel_of<8>(backward, args.rotation) : kernel_of<1>(backward, args.rotation);
    return launch(kernel, dim3(unsigned(blocks)), dim3(kRowThreads), 0, stream, norm);
}
