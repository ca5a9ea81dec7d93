// dX = mask(T * A) + dY * W (+ dX) for any K, stride and block size: one thread per element of dX, ranks and then
// features in order, f32. Slow on purpose: it is for shapes that no model has.
#include "common/grid_y.cuh"
#include "linear/backward.cuh"

namespace {

constexpr int kThreads = 256;

// grid: (ceil(K / 256), M)
__global__ void __launch_bounds__(kThreads) linear_dx_generic(BackwardView view, int64_t first_token) {
    int64_t k = int64_t(blockIdx.x) * kThreads + threadIdx.x, token = first_token + blockIdx.y;
    if (k >= view.k) return;
    float sum = 0.0f;
    for (int i = 0; i < view.num_segments; ++i) {
        const BackwardSegment &segment = view.segments[i];
        int adapter = segment.r > 0 ? segment.adapter(token) : -1;
        if (adapter < 0) continue;
        const bf16 *a = segment.a + int64_t(adapter) * segment.r * view.k + k,
                   *t = view.t + token * view.ldt + segment.s_column;
        for (int j = 0; j < segment.r; ++j) sum = fmaf(to_float(t[j]), to_float(a[j * view.k]), sum);
    }
    if (view.dropout.active()) {
        bool kept = dropout_kept(view.dropout, view.dropout.step(), token, k / 4) >> (k & 3) & 1;
        sum = kept ? __fmul_rn(sum, view.dropout.scale) : 0.0f; // zero also where the sum is no number
    }
    for (int i = 0; i < view.num_segments; ++i) {
        const BackwardSegment &segment = view.segments[i];
        const bf16 *dy = segment.dy + token * segment.lddy;
        for (int64_t n = 0; n < segment.n; ++n) {
            int64_t at = n * view.k + k;
            bf16 w = segment.dense != nullptr
                         ? segment.dense[at]
                         : to_bf16(__fmul_rn(nf4_code(segment.nf4.code(at)),
                                             segment.nf4.block_absmax(at >> segment.nf4.block_shift)));
            sum = fmaf(to_float(dy[n]), to_float(w), sum);
        }
    }
    bf16 *dx = view.dx + token * view.lddx + k;
    *dx = to_bf16(view.accumulate ? __fadd_rn(to_float(*dx), sum) : sum);
}

}  // namespace

int launch_linear_dx_generic(const BackwardView &view, qk_stream stream) {
    return by_tokens(view.m, [&](int64_t first, unsigned tokens) {
        return launch(linear_dx_generic, dim3(unsigned(ceil_div(view.k, kThreads)), tokens), dim3(kThreads), 0, stream,
                      view, first);
    });
}
