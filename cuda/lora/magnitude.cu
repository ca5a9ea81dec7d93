// Magnitudes of a linear layer's outputs (DoRA): y = f * (y - bias) + bias with f = magnitude / norms; and their
// gradients, dmagnitude += sum over tokens of dy * (z - bias) / norms, then z = f * dy. Where a norm is 0, f is 0.
//
// Blocks of 256 tokens by 16 vectors of columns (common/token_sums.cuh): a thread has its columns' factors in
// registers and takes every 16th token. Limit: bytes of DRAM, 4 an element, 6 for the gradient; those of the workspace
// are 1/128 of one more. Shared memory: 8 KB in the gradient. Widths and strides off 8 go element by element.
#include "common/abi.cuh"
#include "common/token_sums.cuh"

namespace {

struct Magnitude {
    const float *magnitude, *norms; // [N]; NULL: factors of 1
    const bf16 *bias;               // [N], or NULL
    bf16 *y;                        // [M, ldy]
    const bf16 *dy;                 // [M, lddy]; NULL in the forward pass
    int64_t m, n, ldy, lddy;
};

// One vector of columns.
template <int V> struct Columns {
    Vector<V> factor, bias;
};

template <int V> __device__ __forceinline__ Columns<V> columns_of(const Magnitude &layer, int64_t column) {
    Columns<V> of = {};
    if (layer.bias != nullptr) of.bias = Vector<V>::load(layer.bias + column);
    if (layer.magnitude == nullptr) {
#pragma unroll
        for (int j = 0; j < V; ++j) of.factor.v[j] = 1.0f;
        return of;
    }
    Vector<V> magnitude = Vector<V>::load(layer.magnitude + column), norms = Vector<V>::load(layer.norms + column);
    // NaN is not 0 and stays NaN.
#pragma unroll
    for (int j = 0; j < V; ++j)
        of.factor.v[j] = norms.v[j] == 0.0f ? 0.0f : __fdiv_rn(magnitude.v[j], norms.v[j]);
    return of;
}

template <int V> __global__ void __launch_bounds__(kRowThreads) magnitude_forward(Magnitude layer) {
    TokenSums<V> at(layer.m, layer.n);
    if (!at.has_column) return;
    Columns<V> of = columns_of<V>(layer, at.column);
#pragma unroll 4
    for (int64_t token = at.token; token < at.end; token += kSumRows) {
        bf16 *to = layer.y + token * layer.ldy + at.column;
        Vector<V> y = Vector<V>::load(to);
#pragma unroll
        for (int j = 0; j < V; ++j) y.v[j] = fmaf(of.factor.v[j], __fadd_rn(y.v[j], -of.bias.v[j]), of.bias.v[j]);
        y.store(to);
    }
}

template <int V>
__global__ void __launch_bounds__(kRowThreads)
    magnitude_backward(Magnitude layer, float *partial /* [chunks, N]; NULL: not wanted */) {
    TokenSums<V> at(layer.m, layer.n);
    float sums[V] = {};
    if (at.has_column) {
        Columns<V> of = columns_of<V>(layer, at.column);
#pragma unroll 4
        for (int64_t token = at.token; token < at.end; token += kSumRows) {
            bf16 *to = layer.y + token * layer.ldy + at.column;
            Vector<V> z = Vector<V>::load(to), dy = Vector<V>::load(layer.dy + token * layer.lddy + at.column);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                sums[j] = fmaf(dy.v[j], __fadd_rn(z.v[j], -of.bias.v[j]), sums[j]);
                z.v[j] = __fmul_rn(of.factor.v[j], dy.v[j]);
            }
            z.store(to);
        }
    }
    if (partial == nullptr) return;
    const float *norms = layer.norms;
    at.store(sums, partial, [norms](int64_t column, float sum) {
        float norm = norms[column];
        return norm == 0.0f ? 0.0f : __fdiv_rn(sum, norm);
    });
}

int check_shape(const qk_magnitude_args &args) {
    if (args.m < 0 || args.m > INT32_MAX || args.n < 1 || args.n > INT32_MAX) return QK_ERROR_SHAPE;
    return token_sum_blocks(args.m, args.n, 1) <= INT32_MAX ? QK_OK : QK_ERROR_SHAPE;
}

size_t workspace_bytes(const qk_magnitude_args &args) {
    return args.dmagnitude == nullptr ? 0 : size_t(token_chunks(args.m) * args.n) * sizeof(float);
}

// Checks of both functions: QK_OK or the error.
int check_operands(const qk_magnitude_args &args) {
    if (args.ldy < args.n) return QK_ERROR_SHAPE;
    if (args.m == 0) return QK_OK;
    if (args.y == nullptr || (args.magnitude == nullptr) != (args.norms == nullptr)) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.y, 16)) return QK_ERROR_ALIGNMENT;
    for (const float *vector : {args.magnitude, args.norms})
        if (!is_aligned(vector, sizeof(float))) return QK_ERROR_ALIGNMENT;
    return is_aligned(args.bias, sizeof(bf16)) ? QK_OK : QK_ERROR_ALIGNMENT;
}

Magnitude layer_of(const qk_magnitude_args &args) {
    return {args.magnitude,
            args.norms,
            static_cast<const bf16 *>(args.bias),
            static_cast<bf16 *>(args.y),
            static_cast<const bf16 *>(args.dy),
            args.m,
            args.n,
            args.ldy,
            args.lddy};
}

// True if every vector of 8 begins at a multiple of its bytes.
bool is_vector_layer(const Magnitude &layer) {
    bool vector = is_vector(layer.n) && is_vector(layer.ldy) && (layer.dy == nullptr || is_vector(layer.lddy));
    return vector && is_aligned(layer.magnitude, 16) && is_aligned(layer.norms, 16) && is_aligned(layer.bias, 16);
}

}  // namespace

extern "C" int qk_magnitude(const qk_magnitude_args *caller, qk_stream stream) {
    qk_magnitude_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (int error = check_shape(args)) return error;
    if (args.dy != nullptr || args.dmagnitude != nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = check_operands(args)) return error;
    if (args.m == 0) return QK_OK;
    if (args.magnitude == nullptr) return QK_ERROR_NULL_POINTER;
    Magnitude layer = layer_of(args);
    bool vector = is_vector_layer(layer);
    unsigned blocks = unsigned(token_sum_blocks(args.m, args.n, vector ? 8 : 1));
    return launch(vector ? magnitude_forward<8> : magnitude_forward<1>, dim3(blocks), dim3(kRowThreads), 0, stream,
                  layer);
}

extern "C" int qk_magnitude_backward_workspace_size(const qk_magnitude_args *caller, size_t *bytes) {
    qk_magnitude_args args;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = read_struct(caller, &args)) return error;
    if (int error = check_shape(args)) return error;
    *bytes = workspace_bytes(args);
    return QK_OK;
}

extern "C" int qk_magnitude_backward(const qk_magnitude_args *caller, void *workspace, size_t bytes, qk_stream stream) {
    qk_magnitude_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (int error = check_shape(args)) return error;
    if (int error = check_operands(args)) return error;
    if (args.lddy < args.n) return QK_ERROR_SHAPE;
    if (args.m == 0) return QK_OK;
    if (args.dy == nullptr || (args.magnitude == nullptr && args.dmagnitude != nullptr)) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.dy, 16) || !is_aligned(args.dmagnitude, sizeof(float))) return QK_ERROR_ALIGNMENT;
    if (int error = check_workspace(workspace, bytes, workspace_bytes(args))) return error;
    Magnitude layer = layer_of(args);
    bool vector = is_vector_layer(layer);
    float *partial = args.dmagnitude == nullptr ? nullptr : static_cast<float *>(workspace);
    unsigned blocks = unsigned(token_sum_blocks(args.m, args.n, vector ? 8 : 1));
    size_t shared = partial == nullptr ? 0 : vector ? kTokenSumBytes<8> : kTokenSumBytes<1>;
    if (int error = launch(vector ? magnitude_backward<8> : magnitude_backward<1>, dim3(blocks), dim3(kRowThreads),
                           shared, stream, layer, partial))
        return error;
    return partial == nullptr ? QK_OK
                              : launch_add_token_sums(partial, token_chunks(args.m), args.n, args.dmagnitude, stream);
}
