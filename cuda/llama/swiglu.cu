// SwiGLU and GeGLU: out = gate * s * up with s = 1 / (1 + exp(-z)); backward in place: dgate = dout * up * s * (1 +
// gate * (1 - s) * z'), dup = dout * gate * s. Of silu z is gate; of gelu in its tanh form, as (1 + tanh(u)) / 2 is
// the sigmoid of 2 u, z is 2 sqrt(2 / pi) * (gate + 0.044715 * gate^3). Offsets are 64-bit: gate and up of 37 thousand
// tokens of a 70B pass 2^31.
//
// A thread takes 8 (or 1) neighbors. Bytes: 6 I a row forward, 10 I backward (12 I with `out`).
#include "common/abi.cuh"
#include "common/rows.cuh"

namespace {

constexpr int kThreads = 256;

struct Swiglu {
    bf16 *gate_up;     // [M, ldgate_up]
    bf16 *out;         // [M, ldout]
    const bf16 *dout;  // [M, I]
    int64_t m, i, ldgate_up, ldout;
};

__device__ __forceinline__ float sigmoid(float x) { return __fdiv_rn(1.0f, 1.0f + expf(-x)); }

constexpr float kTwoRootTwoOverPi = 1.5957691216057308f, kCubic = 0.044715f;

template <int activation> __device__ __forceinline__ float sigmoid_of(float gate) {
    if (activation == QK_SILU) return sigmoid(gate);
    return sigmoid(kTwoRootTwoOverPi * (gate + kCubic * gate * gate * gate));
}

// z'
template <int activation> __device__ __forceinline__ float slope(float gate) {
    return activation == QK_SILU ? 1.0f : kTwoRootTwoOverPi * (1.0f + 3.0f * kCubic * gate * gate);
}

template <int V, bool backward, int activation>
__global__ void __launch_bounds__(kThreads) swiglu(Swiglu args) {
    int64_t index = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * V;
    if (index >= args.m * args.i) return;
    // A division of 64 bits costs more than all the rest; but for the longest batches 32 do.
    int64_t row = index <= UINT32_MAX ? int64_t(uint32_t(index) / uint32_t(args.i)) : index / args.i;
    int64_t column = index - row * args.i;
    bf16 *gate_at = args.gate_up + row * args.ldgate_up + column, *up_at = gate_at + args.i;
    Vector<V> gate = Vector<V>::load(gate_at), up = Vector<V>::load(up_at), out;
    if (backward) {
        Vector<V> dout = Vector<V>::load(args.dout + index), dgate, dup;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            float s = sigmoid_of<activation>(gate.v[j]);
            dgate.v[j] = dout.v[j] * up.v[j] * s * (1.0f + gate.v[j] * (1.0f - s) * slope<activation>(gate.v[j]));
            dup.v[j] = dout.v[j] * gate.v[j] * s;
            out.v[j] = gate.v[j] * s * up.v[j];
        }
        dgate.store(gate_at);
        dup.store(up_at);
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j) out.v[j] = gate.v[j] * sigmoid_of<activation>(gate.v[j]) * up.v[j];
    }
    if (args.out != nullptr) out.store(args.out + row * args.ldout + column);
}

template <bool backward> int run(const qk_swiglu_args *caller, qk_stream stream) {
    qk_swiglu_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.m < 0 || args.m > INT32_MAX || args.i < 1 || args.i > INT32_MAX) return QK_ERROR_SHAPE;
    if (args.reserved2 != 0) return QK_ERROR_RESERVED;
    if (args.activation != QK_SILU && args.activation != QK_GELU_TANH) return QK_ERROR_VALUE;
    int64_t ldgate_up = args.ldgate_up != 0 ? args.ldgate_up : 2 * args.i;
    int64_t ldout = args.ldout != 0 ? args.ldout : args.i;
    if (ldgate_up < 2 * args.i || ldout < args.i) return QK_ERROR_SHAPE;
    if (args.m == 0) return QK_OK;
    if (args.gate_up == nullptr || (args.out == nullptr && !backward) || (args.dout == nullptr) == backward)
        return QK_ERROR_NULL_POINTER;
    for (const void *matrix : {static_cast<const void *>(args.gate_up), static_cast<const void *>(args.out), args.dout})
        if (!is_aligned(matrix, 16)) return QK_ERROR_ALIGNMENT;
    Swiglu view = {static_cast<bf16 *>(args.gate_up), static_cast<bf16 *>(args.out),
                   static_cast<const bf16 *>(args.dout), args.m, args.i, ldgate_up, ldout};
    bool vector = is_vector(args.i) && is_vector(ldgate_up) && is_vector(ldout);
    int64_t blocks = ceil_div(view.m * view.i / (vector ? 8 : 1), kThreads);
    if (blocks > INT32_MAX) return QK_ERROR_SHAPE;
    auto silu = vector ? swiglu<8, backward, QK_SILU> : swiglu<1, backward, QK_SILU>;
    auto gelu = vector ? swiglu<8, backward, QK_GELU_TANH> : swiglu<1, backward, QK_GELU_TANH>;
    return launch(args.activation == QK_SILU ? silu : gelu, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, view);
}

}  // namespace

extern "C" int qk_swiglu(const qk_swiglu_args *args, qk_stream stream) { return run<false>(args, stream); }

extern "C" int qk_swiglu_backward(const qk_swiglu_args *args, qk_stream stream) { return run<true>(args, stream); }
