// Y = X * W^T + S * B^T (+ bias) for M <= 16: each weight is read once, straight from global memory into registers, by
// the skinny product (skinny.cuh). Preconditions: K % 64 == 0, ldx % 8 == 0, block size 64.
#include "linear/skinny.cuh"

namespace {

using namespace skinny;

struct Nf4Rows {
    Nf4View weight;
    __device__ __forceinline__ Features load(int, int64_t row, int64_t tile, int lane, const float *codebook) const {
        int64_t block = row * (weight.k / kTileK) + tile, at = weight.transposed ? tile * weight.n + row : block;
        uint2 codes = *reinterpret_cast<const uint2 *>(weight.codes + block * (kTileK / 2) + lane * 8);
        return dequantize16(codes, codebook, weight.absmax_at(at, block));
    }
};

template <int kTiles, bool dense> __global__ void __launch_bounds__(kThreads) linear_small_m(LinearView view) {
    constexpr int kColumns = 8 * kTiles;
    int64_t tile = blockIdx.x;
    const SegmentView &segment = view.segments[view.segment_of(tile, kColumns, false)];
    int64_t n0 = tile * kColumns;
    float *sums = dense ? skinny_product<kTiles>(view, DenseRows{segment.dense, view.k}, n0, segment.n, 0)
                        : skinny_product<kTiles>(view, Nf4Rows{segment.nf4}, n0, segment.n, 0);
    for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
        int64_t token = i / kColumns, n = n0 + i % kColumns;
        if (token >= view.m || n >= segment.n) continue;
        float sum = sums[i];
        int adapter = segment.r > 0 ? segment.adapter(token) : -1, r = adapter >= 0 ? segment.r : 0;
        const bf16 *b = segment.b + (adapter * segment.n + n) * segment.r;
#pragma unroll 1
        for (int j = 0; j < r; ++j)
            sum = fmaf(to_float(view.s[token * view.lds + segment.s_column + j]), to_float(b[j]), sum);
        if (segment.bias != nullptr) sum += to_float(segment.bias[n]);
        segment.y[token * segment.ldy + n] = to_bf16(sum);
    }
}

template <int kTiles, bool dense> int launch_small_m(const LinearView &view, qk_stream stream) {
    return launch(linear_small_m<kTiles, dense>, dim3(unsigned(view.tiles(8 * kTiles, false))), dim3(kThreads),
                  shared_bytes(kTiles), stream, view);
}

}  // namespace

int launch_linear_small_m(const LinearView &view, const LinearChoice &choice, qk_stream stream) {
    if (choice.columns == kWideColumns)
        return choice.dense ? launch_small_m<4, true>(view, stream) : launch_small_m<4, false>(view, stream);
    return choice.dense ? launch_small_m<1, true>(view, stream) : launch_small_m<1, false>(view, stream);
}
