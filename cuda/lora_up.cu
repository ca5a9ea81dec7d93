// T = bf16(scale * dY * B) for any shape: one thread per element, features in order, f32.
#include "by_tokens.cuh"
#include "linear_backward.cuh"

namespace {

constexpr int kThreads = 256;

// grid: (1, M, segments); a thread per column of T, padding included.
__global__ void __launch_bounds__(kThreads) lora_up(BackwardView view, bf16 *t, int64_t first_token) {
    const BackwardSegment &segment = view.segments[blockIdx.z];
    int rank = threadIdx.x;
    int64_t token = first_token + blockIdx.y;
    if (rank >= (segment.r + 7) / 8 * 8) return;
    int adapter = segment.adapter(token);
    float sum = 0.0f;
    if (rank < segment.r && adapter >= 0) {
        const bf16 *b = segment.b + adapter * segment.n * segment.r;
        for (int64_t n = 0; n < segment.n; ++n) sum = fmaf(to_float(segment.dy[token * segment.lddy + n]), to_float(b[n * segment.r + rank]), sum);
        sum = __fmul_rn(segment.scale_of(adapter), sum);
    }
    t[token * view.lds + segment.s_column + rank] = to_bf16(sum);
}

}  // namespace

int launch_lora_up(const BackwardView &view, bf16 *t, qk_stream stream) {
    return by_tokens(view.m, [&](int64_t first, unsigned tokens) {
        return launch(lora_up, dim3(1, tokens, unsigned(view.num_segments)), dim3(kThreads), 0, stream, view, t, first);
    });
}
