// SwiGLU: out = gate * s * up with s = 1 / (1 + exp(-gate)); backward in place: dgate = dout * up * s * (1 + gate * (1
// - s)), dup = dout * gate * s. Offsets are 64-bit: gate and up of 37 thousand tokens of a 70B pass 2^31.
//
// A thread takes 8 (or 1) neighbors. Bytes: 6 I a row forward, 10 I backward (12 I with `out`).
#include "common/abi.cuh"
#include "common/rows.cuh"

namespace {

constexpr int kThreads = 256;

struct Swiglu {
    bf16 *gate_up;     // [M, 2 I]
    bf16 *out;         // [M, I]
    const bf16 *dout;  // [M, I]
    int64_t m, i;
};

__device__ __forceinline__ float sigmoid(float x) { return __fdiv_rn(1.0f, 1.0f + expf(-x)); }

template <int V, bool backward> __global__ void __launch_bounds__(kThreads) swiglu(Swiglu args) {
    int64_t index = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * V;
    if (index >= args.m * args.i) return;
    // A division of 64 bits costs more than all the rest; but for the longest batches 32 do.
    int64_t row = index <= UINT32_MAX ? int64_t(uint32_t(index) / uint32_t(args.i)) : index / args.i;
    bf16 *gate_at = args.gate_up + index + row * args.i, *up_at = gate_at + args.i;
    Vector<V> gate = Vector<V>::load(gate_at), up = Vector<V>::load(up_at), out;
    if (backward) {
        Vector<V> dout = Vector<V>::load(args.dout + index), dgate, dup;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            float s = sigmoid(gate.v[j]);
            dgate.v[j] = dout.v[j] * up.v[j] * s * (1.0f + gate.v[j] * (1.0f - s));
            dup.v[j] = dout.v[j] * gate.v[j] * s;
            out.v[j] = gate.v[j] * s * up.v[j];
        }
        dgate.store(gate_at);
        dup.store(up_at);
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j) out.v[j] = gate.v[j] * sigmoid(gate.v[j]) * up.v[j];
    }
    if (args.out != nullptr) out.store(args.out + index);
}

template <bool backward> int run(const qk_swiglu_args *caller, qk_stream stream) {
    qk_swiglu_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.m < 0 || args.m > INT32_MAX || args.i < 1 || args.i > INT32_MAX) return QK_ERROR_SHAPE;
    if (args.m == 0) return QK_OK;
    if (args.gate_up == nullptr || (args.out == nullptr && !backward) || (args.dout == nullptr) == backward)
        return QK_ERROR_NULL_POINTER;
    for (const void *matrix : {static_cast<const void *>(args.gate_up), static_cast<const void *>(args.out), args.dout})
        if (!is_aligned(matrix, 16)) return QK_ERROR_ALIGNMENT;
    Swiglu view = {static_cast<bf16 *>(args.gate_up), static_cast<bf16 *>(args.out),
                   static_cast<const bf16 *>(args.dout), args.m, args.i};
    bool vector = is_vector(args.i);
    int64_t blocks = ceil_div(view.m * view.i / (vector ? 8 : 1), kThreads);
    if (blocks > INT32_MAX) return QK_ERROR_SHAPE;
    return launch(vector ? swiglu<8, backward> : swiglu<1, backward>, dim3(unsigned(blocks)), dim3(kThreads), 0, stream,
                  view);
}

}  // namespace

extern "C" int qk_swiglu(const qk_swiglu_args *args, qk_stream stream) { return run<false>(args, stream); }

extern "C" int qk_swiglu_backward(const qk_swiglu_args *args, qk_stream stream) { return run<true>(args, stream); }
