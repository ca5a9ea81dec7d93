// W[i] = codebook[code i] * absmax[i / block_size] in f32, rounded once to the output type.
//
// A thread takes 8 consecutive elements: 4 bytes of codes in, 16 (bf16) or 32 (f32) bytes out, both coalesced. Block
// sizes are multiples of 32 and blocks are counted over the flat weight, so that the 8 share one absmax. No shared
// memory but the codebook. Any N and K; the last group may be ragged.
#include "common/abi.cuh"
#include "nf4/nf4.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;

__device__ __forceinline__ void store8(float *out, const float (&w)[kPerThread]) {
    store_as<float4>(out, {w[0], w[1], w[2], w[3]});
    store_as<float4>(out + 4, {w[4], w[5], w[6], w[7]});
}

__device__ __forceinline__ void store8(bf16 *out, const float (&w)[kPerThread]) {
    store_as<uint4>(out, make_uint4(pack_bf16x2(w[0], w[1]), pack_bf16x2(w[2], w[3]), pack_bf16x2(w[4], w[5]),
                                    pack_bf16x2(w[6], w[7])));
}

__device__ __forceinline__ void store1(float *out, float value) { *out = value; }
__device__ __forceinline__ void store1(bf16 *out, float value) { *out = to_bf16(value); }

template <typename T>
__global__ void __launch_bounds__(kThreads) dequantize(Nf4View weight, T *out /* [N, K] */) {
    float *codebook = reinterpret_cast<float *>(dynamic_shared());
    if (threadIdx.x < 16) codebook[threadIdx.x] = nf4_code(threadIdx.x);
    __syncthreads();
    int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kPerThread, count = weight.n * weight.k;
    if (first >= count) return;
    float absmax = weight.block_absmax(first >> weight.block_shift);
    if (first + kPerThread <= count) {
        uint32_t packed = load_as<uint32_t>(weight.codes + first / 2);
        float w[kPerThread];
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) // byte i / 2, its high nibble first
            w[i] = __fmul_rn(load_as<float>(codebook + (packed >> (i / 2 * 8 + (i % 2 ? 0 : 4)) & 15)), absmax);
        store8(out + first, w);
    } else {
        for (int64_t i = first; i < count; ++i) store1(out + i, __fmul_rn(codebook[weight.code(i)], absmax));
    }
}

template <typename T>
int dequantize_to(const Nf4View &weight, void *out, qk_stream stream) {
    int64_t groups = ceil_div(weight.n * weight.k, kPerThread);
    return launch(dequantize<T>, dim3(unsigned(ceil_div(groups, kThreads))), dim3(kThreads), 16 * sizeof(float), stream,
                  weight, static_cast<T *>(out));
}

}  // namespace

int nf4_view(const qk_nf4 *caller, Nf4View *view) {
    qk_nf4 own, *weight = &own;
    if (int error = read_struct(caller, weight)) return error;
    if (weight->n < 1 || weight->k < 1 || weight->n > INT64_MAX / 16 / weight->k) return QK_ERROR_SHAPE;
    if (!is_block_size(weight->block_size)) return QK_ERROR_BLOCK_SIZE;
    bool transposed = weight->layout == QK_ABSMAX_TRANSPOSED;
    if (!transposed && weight->layout != QK_ABSMAX_ROW_MAJOR) return QK_ERROR_LAYOUT;
    if (transposed && weight->k % weight->block_size != 0) return QK_ERROR_LAYOUT;
    bool nested = weight->absmax_codes != nullptr;
    if (weight->codes == nullptr || nested == (weight->absmax != nullptr)) return QK_ERROR_NULL_POINTER;
    for (const float *part : {weight->nested_absmax, weight->nested_map, weight->offset}) {
        if ((part != nullptr) != nested) return QK_ERROR_NULL_POINTER;
        if (!is_aligned(part, sizeof(float))) return QK_ERROR_ALIGNMENT;
    }
    if (!is_aligned(weight->codes, 16) || !is_aligned(weight->absmax, sizeof(float))) return QK_ERROR_ALIGNMENT;
    *view = {weight->codes,
             weight->absmax_codes,
             weight->absmax,
             weight->nested_absmax,
             weight->nested_map,
             weight->offset,
             weight->n,
             weight->k,
             log2_of(weight->block_size),
             transposed};
    return QK_OK;
}

extern "C" int qk_nf4_dequantize(const qk_nf4 *weight, void *out, uint32_t dtype, qk_stream stream) {
    Nf4View view;
    if (int error = nf4_view(weight, &view)) return error;
    if (out == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(out, 16)) return QK_ERROR_ALIGNMENT;
    if (view.n * view.k > int64_t(kThreads) * kPerThread * INT32_MAX) return QK_ERROR_SHAPE;
    switch (dtype) {
    case QK_BF16: return dequantize_to<bf16>(view, out, stream);
    case QK_F32: return dequantize_to<float>(view, out, stream);
    default: return QK_ERROR_LAYOUT;
    }
}
