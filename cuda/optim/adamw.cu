// AdamW over all tensors in one launch. Of every element, each operation rounded on its own in this order:
//   g = scale * gradient; m = beta1 * m + rest1 * g; v = beta2 * v + (rest2 * g) * g
//   value = value * decay - (step_size * m) / (sqrt(v) / root + epsilon); working = bf16(value)
// States are f32, or 8-bit codes with an absmax for every 256 elements (optim/dynamic_map.cuh), dequantized before and
// quantized after. Blocks of 256 threads walk over chunks of 4096 elements; a warp updates 256 elements at a time, a
// lane four and four neighbors 128 apart, so that a warp reads and writes 512 bytes of f32, 256 of bf16 and 128 of
// codes in a row. Two warp reductions, no atomics. Shared memory: the two maps, 10 KB, only where a tensor has 8-bit
// states. Limit: memory traffic, 18 bytes an element with 8-bit states and a bf16 copy (26 and 6 more with f32 states).
// Next come the six reads of shared memory an element (two codes decoded, two found), whose addresses the data choose,
// and so the banks they fall on. Not measured on a GPU.
#include "common/block_scale.cuh"
#include "common/ptx.cuh"
#include "optim/adamw.cuh"
#include "optim/dynamic_map.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPerLane = QK_STATE_BLOCK / 32;
constexpr int kBlocksOfWarp = QK_ADAMW_CHUNK / QK_STATE_BLOCK / kWarps;
static_assert(kPerLane == 8 && kBlocksOfWarp * kWarps * QK_STATE_BLOCK == QK_ADAMW_CHUNK,
              "lanes take four and four elements");
// Resident blocks on each multiprocessor: 80 registers a thread.
constexpr int kResident = 3;

// Element i of a lane, relative to the start of its 256.
__device__ __forceinline__ int element(int lane, int i) { return i / 4 * 128 + lane * 4 + i % 4; }

__device__ __forceinline__ void load(const float *from, int lane, int count, float (&x)[kPerLane]) {
    if (count == QK_STATE_BLOCK) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float4 four = load_as<float4>(from + half * 128 + lane * 4);
            x[4 * half] = four.x, x[4 * half + 1] = four.y, x[4 * half + 2] = four.z, x[4 * half + 3] = four.w;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) x[i] = element(lane, i) < count ? from[element(lane, i)] : 0.0f;
}

__device__ __forceinline__ void store(float *to, int lane, int count, const float (&x)[kPerLane]) {
    if (count == QK_STATE_BLOCK) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
            store_as<float4>(to + half * 128 + lane * 4,
                             {x[4 * half], x[4 * half + 1], x[4 * half + 2], x[4 * half + 3]});
        return;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
        if (element(lane, i) < count) to[element(lane, i)] = x[i];
}

__device__ __forceinline__ void store_bf16(bf16 *to, int lane, int count, const float (&x)[kPerLane]) {
    if (count == QK_STATE_BLOCK) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
            store_as<uint2>(to + half * 128 + lane * 4, make_uint2(pack_bf16x2(x[4 * half], x[4 * half + 1]),
                                                                   pack_bf16x2(x[4 * half + 2], x[4 * half + 3])));
        return;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
        if (element(lane, i) < count) to[element(lane, i)] = to_bf16(x[i]);
}

// map[code] * absmax; 0 past the end.
template <bool is_signed>
__device__ __forceinline__ void load_codes(const DynamicMap<is_signed> &map, const uint8_t *codes, float absmax,
                                           int lane, int count, float (&x)[kPerLane]) {
    if (count == QK_STATE_BLOCK) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint32_t four = load_as<uint32_t>(codes + half * 128 + lane * 4);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[4 * half + i] = __fmul_rn(map.map[four >> 8 * i & 255], absmax);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
        x[i] = element(lane, i) < count ? __fmul_rn(map.map[codes[element(lane, i)]], absmax) : 0.0f;
}

template <bool is_signed>
__device__ __forceinline__ void store_codes(const DynamicMap<is_signed> &map, uint8_t *codes, float *absmax, int lane,
                                            int count, const float (&x)[kPerLane]) {
    // Magnitudes order as their bits do.
    unsigned largest = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) largest = max(largest, __float_as_uint(magnitude(x[i])));
    largest = __reduce_max_sync(~0u, largest);
    Normalizer normalize = normalizer(__uint_as_float(largest));
    if (lane == 0) *absmax = normalize.absmax;
    if (count == QK_STATE_BLOCK) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint32_t four = 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) four |= map.code(normalize(x[4 * half + i])) << 8 * i;
            store_as<uint32_t>(codes + half * 128 + lane * 4, four);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
        if (element(lane, i) < count) codes[element(lane, i)] = uint8_t(map.code(normalize(x[i])));
}

__device__ __forceinline__ void update(const qk_adamw_rate &rate, float scale, const float (&gradient)[kPerLane],
                                       float (&value)[kPerLane], float (&m)[kPerLane], float (&v)[kPerLane]) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
        float g = __fmul_rn(scale, gradient[i]);
        m[i] = __fadd_rn(__fmul_rn(rate.beta1, m[i]), __fmul_rn(rate.rest1, g));
        v[i] = __fadd_rn(__fmul_rn(rate.beta2, v[i]), __fmul_rn(__fmul_rn(rate.rest2, g), g));
        float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v[i]), rate.root), rate.epsilon);
        value[i] = __fadd_rn(__fmul_rn(value[i], rate.decay), -__fdiv_rn(__fmul_rn(rate.step_size, m[i]), denominator));
    }
}

__global__ void __launch_bounds__(kThreads, kResident) adamw_update(AdamWView view) {
    float scale = 1.0f;
    if (view.gradient_state != nullptr) {
        if (view.gradient_state->tensor >= 0) return; // a gradient is not finite: nothing is updated
        scale = view.gradient_state->scale;
    }
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const auto signed_map = DynamicMap<true>::at(dynamic_shared());
    const auto unsigned_map = DynamicMap<false>::at(dynamic_shared() + DynamicMap<true>::kBytes);
    if (view.quantized) {
        signed_map.build(thread, kThreads);
        unsigned_map.build(thread, kThreads);
        __syncthreads();
    }
    for (int chunk = blockIdx.x; chunk < view.chunks; chunk += gridDim.x) {
        const AdamWEntry &entry = view.entries[view.chunk_tensor[chunk]];
        const qk_adamw_rate rate = view.rates[entry.rate];
        int64_t block = (chunk - entry.first_chunk) * (QK_ADAMW_CHUNK / QK_STATE_BLOCK) + warp * kBlocksOfWarp;
#pragma unroll 1
        for (int64_t end = block + kBlocksOfWarp; block < end; ++block) {
            int64_t at = block * QK_STATE_BLOCK;
            if (at >= entry.n) break;
            int count = int(min(entry.n - at, int64_t(QK_STATE_BLOCK)));
            float gradient[kPerLane], value[kPerLane], m[kPerLane], v[kPerLane];
            load(entry.gradient + at, lane, count, gradient);
            load(entry.value + at, lane, count, value);
            if (entry.m_absmax != nullptr) {
                uint8_t *m_codes = static_cast<uint8_t *>(entry.m) + at,
                        *v_codes = static_cast<uint8_t *>(entry.v) + at;
                load_codes(signed_map, m_codes, entry.m_absmax[block], lane, count, m);
                load_codes(unsigned_map, v_codes, entry.v_absmax[block], lane, count, v);
                update(rate, scale, gradient, value, m, v);
                store_codes(signed_map, m_codes, entry.m_absmax + block, lane, count, m);
                store_codes(unsigned_map, v_codes, entry.v_absmax + block, lane, count, v);
            } else {
                float *m_values = static_cast<float *>(entry.m) + at, *v_values = static_cast<float *>(entry.v) + at;
                load(m_values, lane, count, m);
                load(v_values, lane, count, v);
                update(rate, scale, gradient, value, m, v);
                store(m_values, lane, count, m);
                store(v_values, lane, count, v);
            }
            store(entry.value + at, lane, count, value);
            if (entry.working != nullptr) store_bf16(static_cast<bf16 *>(entry.working) + at, lane, count, value);
        }
    }
}

// Enough blocks to fill the device; results do not depend on how many.
int blocks_for(int chunks) {
#ifdef QK_EMULATION
    return min(chunks, 3);
#else
    int device = 0, processors = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || processors < 1) {
        (void)cudaGetLastError();
        processors = 128;
    }
    return chunks < processors * kResident ? chunks : processors * kResident;
#endif
}

}  // namespace

extern "C" int qk_adamw_update(const qk_adamw_args *adamw, qk_stream stream) {
    AdamWView view;
    int status = adamw_view(adamw, true, &view);
    if (status != QK_OK) return status;
    size_t shared = view.quantized ? DynamicMap<true>::kBytes + DynamicMap<false>::kBytes : 0;
    return launch(adamw_update, dim3(unsigned(blocks_for(view.chunks))), dim3(kThreads), shared, stream, view);
}
