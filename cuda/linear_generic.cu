// Y = X * W^T + S * B^T (+ bias), and S = bf16(scale * X * A^T), for any K, ldx and block size: one thread per output, features in order, f32.
// Slow on purpose: it is for shapes that no model has.
#include "linear.cuh"

namespace {

constexpr int kThreads = 256;

// grid: (ceil(n / 256), M, segments)
__global__ void __launch_bounds__(kThreads) linear_generic(LinearView view, int64_t first_token) {
    const SegmentView &segment = view.segments[blockIdx.z];
    int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x, token = first_token + blockIdx.y;
    if (n >= segment.n) return;
    const bf16 *x = view.x + token * view.ldx;
    float sum = 0.0f;
    for (int64_t k = 0; k < view.k; ++k) {
        int64_t i = n * view.k + k;
        bf16 w = segment.dense != nullptr
                     ? segment.dense[i]
                     : to_bf16(__fmul_rn(nf4_code(segment.nf4.code(i)), segment.nf4.block_absmax(i >> segment.nf4.block_shift)));
        sum = fmaf(to_float(x[k]), to_float(w), sum);
    }
    for (int j = 0; j < segment.r; ++j)
        sum = fmaf(to_float(view.s[token * view.lds + segment.s_column + j]), to_float(segment.b[n * segment.r + j]), sum);
    if (segment.bias != nullptr) sum += to_float(segment.bias[n]);
    segment.y[token * segment.ldy + n] = to_bf16(sum);
}

// grid: (1, M, segments); a thread per column of S, padding included.
__global__ void __launch_bounds__(kThreads) lora_down_generic(LinearView view, bf16 *s, int64_t first_token) {
    const SegmentView &segment = view.segments[blockIdx.z];
    int row = threadIdx.x;
    int64_t token = first_token + blockIdx.y;
    if (row >= (segment.r + 7) / 8 * 8) return;
    float sum = 0.0f;
    if (row < segment.r)
        for (int64_t k = 0; k < view.k; ++k) sum = fmaf(to_float(view.x[token * view.ldx + k]), to_float(segment.a[row * view.k + k]), sum);
    s[token * view.lds + segment.s_column + row] = to_bf16(segment.scale * sum);
}

// A grid has at most 65,535 tokens.
template <typename Launch> int by_tokens(int64_t m, Launch launch_from) {
    constexpr int64_t kMost = 65535;
    for (int64_t first = 0; first < m; first += kMost)
        if (int error = launch_from(first, unsigned(m - first < kMost ? m - first : kMost))) return error;
    return QK_OK;
}

}  // namespace

int launch_linear_generic(const LinearView &view, qk_stream stream) {
    int64_t widest = 0;
    for (int i = 0; i < view.num_segments; ++i) widest = view.segments[i].n > widest ? view.segments[i].n : widest;
    return by_tokens(view.m, [&](int64_t first, unsigned tokens) {
        dim3 grid(unsigned(ceil_div(widest, kThreads)), tokens, unsigned(view.num_segments));
        return launch(linear_generic, grid, dim3(kThreads), 0, stream, view, first);
    });
}

int launch_lora_down_generic(const LinearView &view, bf16 *s, qk_stream stream) {
    return by_tokens(view.m, [&](int64_t first, unsigned tokens) {
        return launch(lora_down_generic, dim3(1, tokens, unsigned(view.num_segments)), dim3(kThreads), 0, stream, view, s, first);
    });
}
