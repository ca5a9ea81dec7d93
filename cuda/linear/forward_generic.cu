// Y = X * W^T + S * B^T (+ bias) for any K, ldx and block size: one thread per output, features in order, f32. Slow on
// purpose: it is for shapes that no model has.
#include "common/grid_y.cuh"
#include "linear/linear.cuh"

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
        bf16 w = segment.dense != nullptr ? segment.dense[i]
                                          : to_bf16(__fmul_rn(nf4_code(segment.nf4.code(i)),
                                                              segment.nf4.block_absmax(i >> segment.nf4.block_shift)));
        sum = fmaf(to_float(x[k]), to_float(w), sum);
    }
    int adapter = segment.r > 0 ? segment.adapter(token) : -1;
    if (adapter >= 0) {
        const bf16 *b = segment.b + (adapter * segment.n + n) * segment.r,
                   *s = view.s + token * view.lds + segment.s_column;
        for (int j = 0; j < segment.r; ++j) sum = fmaf(to_float(s[j]), to_float(b[j]), sum);
    }
    if (segment.bias != nullptr) sum += to_float(segment.bias[n]);
    segment.y[token * segment.ldy + n] = to_bf16(sum);
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
