// NF4 quantization with double-quantized absmax, in four launches:
//   codes:   absmax[b] = max |w| of block b; code = nearest of the codebook to w * (1 / absmax), ties to the lower
//   offset:  the f64 mean of absmax rounded to f32, summed in one fixed order
//   nested:  nested_absmax[c] = max |absmax - offset| of 256; absmax_codes = nearest of the 8-bit map to (absmax -
//   offset) * (1 / nested_absmax)
// One warp per block of 32..4096 elements; a lane takes pairs of elements, which share a byte. All-zero block: code 7.
#include "common/abi.cuh"
#include "common/block_scale.cuh"
#include "nf4/nf4.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMeanThreads = 1024;

// The maximum of a warp; a NaN wins, as it does when blocks are scanned with a comparison that NaN fails.
__device__ __forceinline__ float nan_max(float a, float b) { return a > b || a != a ? a : b; }

__device__ __forceinline__ float warp_nan_max(float value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value = nan_max(value, __shfl_xor_sync(~0u, value, lanes));
    return value;
}

__device__ __forceinline__ float load(const float *in, int64_t i) { return in[i]; }
__device__ __forceinline__ float load(const bf16 *in, int64_t i) { return to_float(in[i]); }

template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_blocks(const T *weight, uint8_t *codes, float *absmax, int64_t count, int block_size) {
    int64_t block = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, first = block * block_size;
    if (first >= count) return; // a whole warp
    int64_t end = first + block_size < count ? first + block_size : count;
    int lane = threadIdx.x % 32;
    float largest = 0.0f;
    for (int64_t i = first + lane; i < end; i += 32) largest = nan_max(magnitude(load(weight, i)), largest);
    largest = warp_nan_max(largest);
    Normalizer normalize = normalizer(largest);
    for (int64_t i = first + 2 * lane; i < end; i += 64) {
        unsigned high = nf4_encode(normalize(load(weight, i)));
        unsigned low = i + 1 < end ? nf4_encode(normalize(load(weight, i + 1))) : 7; // 7: the code of 0
        codes[i / 2] = uint8_t(high << 4 | low);
    }
    if (lane == 0) absmax[block] = largest;
}

// One block: thread t sums values t, t + 1024, ... in order, then a tree over threads.
__global__ void __launch_bounds__(kMeanThreads) mean(const float *values, int64_t count, float *result) {
    double *sums = reinterpret_cast<double *>(dynamic_shared());
    int thread = threadIdx.x;
    double sum = 0.0;
    for (int64_t i = thread; i < count; i += kMeanThreads) sum = __dadd_rn(sum, double(values[i]));
    sums[thread] = sum;
    for (int half = kMeanThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) sums[thread] = __dadd_rn(sums[thread], sums[thread + half]);
    }
    if (thread == 0) *result = float(__ddiv_rn(sums[0], double(count)));
}

// The 8-bit code of a value: binary search from pivot 127 in the ascending map, then the midpoint towards the neighbor
// on the other side: going up the upper one only if x > mid, going down the lower one only if x < mid.
__device__ __forceinline__ unsigned encode8(const float *map /* [256] */, float x) {
    int pivot = 127, lower = 0, upper = 255;
    for (int step = 64; step > 0; step /= 2) {
        if (x > map[pivot]) {
            lower = pivot;
            pivot += step;
        } else {
            upper = pivot;
            pivot -= step;
        }
    }
    if (x > map[pivot]) return x > __fmul_rn(__fadd_rn(map[upper], map[pivot]), 0.5f) ? upper : pivot;
    return x < __fmul_rn(__fadd_rn(map[lower], map[pivot]), 0.5f) ? lower : pivot;
}

// One warp per 256 absmax values.
__global__ void __launch_bounds__(kThreads) quantize_absmax(const float *absmax, int64_t count, const float *map,
                                                            const float *offset, uint8_t *codes, float *nested_absmax) {
    int64_t block = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, first = block * QK_NESTED_BLOCK;
    if (first >= count) return;
    int64_t end = first + QK_NESTED_BLOCK < count ? first + QK_NESTED_BLOCK : count;
    int lane = threadIdx.x % 32;
    float largest = 0.0f;
    for (int64_t i = first + lane; i < end; i += 32)
        largest = nan_max(magnitude(__fadd_rn(absmax[i], -*offset)), largest);
    largest = warp_nan_max(largest);
    Normalizer normalize = normalizer(largest);
    for (int64_t i = first + lane; i < end; i += 32)
        codes[i] = uint8_t(encode8(map, normalize(__fadd_rn(absmax[i], -*offset))));
    if (lane == 0) nested_absmax[block] = largest;
}

template <typename T>
int quantize(const qk_nf4_quantize_args &args, int64_t blocks, qk_stream stream) {
    return launch(quantize_blocks<T>, dim3(unsigned(ceil_div(blocks, kWarps))), dim3(kThreads), 0, stream,
                  static_cast<const T *>(args.weight), args.codes, args.absmax, args.count, int(args.block_size));
}

}  // namespace

extern "C" int qk_nf4_quantize(const qk_nf4_quantize_args *caller, qk_stream stream) {
    qk_nf4_quantize_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.dtype != QK_BF16 && args.dtype != QK_F32) return QK_ERROR_LAYOUT;
    if (!is_block_size(args.block_size)) return QK_ERROR_BLOCK_SIZE;
    if (args.count < 1) return QK_ERROR_SHAPE;
    bool nested = args.nested_map != nullptr;
    if (args.weight == nullptr || args.codes == nullptr || args.absmax == nullptr) return QK_ERROR_NULL_POINTER;
    if ((args.absmax_codes != nullptr) != nested || (args.nested_absmax != nullptr) != nested ||
        (args.offset != nullptr) != nested)
        return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.weight, args.dtype == QK_F32 ? 4 : 2)) return QK_ERROR_ALIGNMENT;
    for (const float *part : {static_cast<const float *>(args.absmax), args.nested_map,
                              static_cast<const float *>(args.nested_absmax), static_cast<const float *>(args.offset)})
        if (!is_aligned(part, sizeof(float))) return QK_ERROR_ALIGNMENT;
    int64_t blocks = ceil_div(args.count, args.block_size);
    if (blocks > int64_t(INT32_MAX) * kWarps) return QK_ERROR_SHAPE;

    int status = args.dtype == QK_BF16 ? quantize<bf16>(args, blocks, stream) : quantize<float>(args, blocks, stream);
    if (status != QK_OK || !nested) return status;
    status = launch(mean, dim3(1), dim3(kMeanThreads), kMeanThreads * sizeof(double), stream, args.absmax, blocks,
                    args.offset);
    if (status != QK_OK) return status;
    return launch(quantize_absmax, dim3(unsigned(ceil_div(ceil_div(blocks, QK_NESTED_BLOCK), kWarps))), dim3(kThreads),
                  0, stream, args.absmax, blocks, args.nested_map, args.offset, args.absmax_codes, args.nested_absmax);
}
