// Y = X * W^T + S * B^T (+ bias) for M <= 16: each weight is read once, straight from global memory into registers, by
// the skinny product (skinny.cuh). Preconditions: K % 64 == 0, ldx % 8 == 0, block size 64.
#include "linear/skinny.cuh"

namespace {

using namespace skinny;

// Rows of codes. Without double quantization every absmax code stands for 1 and the offset is 0, so that both formats
// take one path; the code is then any byte.
struct Nf4Rows {
    struct Raw {
        uint2 codes;
        float factor; // nested absmax, or the absmax itself
        int code;     // of the absmax
    };
    const uint8_t *codes, *absmax_codes;
    const float *factors, *nested_map;
    int64_t n, blocks; // of 64 in a row
    bool nested, transposed;
    float offset;

    __device__ __forceinline__ explicit Nf4Rows(const Nf4View &w)
        : codes(w.codes), absmax_codes(w.absmax != nullptr ? w.codes : w.absmax_codes),
          factors(w.absmax != nullptr ? w.absmax : w.nested_absmax), nested_map(w.nested_map), n(w.n),
          blocks(w.k / kTileK), nested(w.absmax == nullptr), transposed(w.transposed),
          offset(w.offset != nullptr ? *w.offset : 0.0f) {}

    // The codebook, and what an absmax code stands for.
    __device__ __forceinline__ void prepare(float *tables) const {
        if (threadIdx.x < 16) tables[threadIdx.x] = nf4_code(threadIdx.x);
        for (int i = threadIdx.x; i < 256; i += kThreads) tables[16 + i] = nested_map != nullptr ? nested_map[i] : 1.0f;
    }
    __device__ __forceinline__ Raw load(int, int64_t row, int64_t tile, int lane) const {
        int64_t block = row * blocks + tile, at = transposed ? tile * n + row : block;
        // Under double quantization the factor is that of 256 row-major blocks; in f32 it lies where the absmax does.
        return {load_as<uint2>(codes + block * (kTileK / 2) + lane * 8),
                factors[nested ? block / QK_NESTED_BLOCK : at], absmax_codes[at]};
    }
    __device__ __forceinline__ Features decode(const Raw &raw, const float *tables) const {
        float absmax = __fadd_rn(__fmul_rn(tables[16 + raw.code], raw.factor), offset);
        return dequantize16(raw.codes, tables, absmax);
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
