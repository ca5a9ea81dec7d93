// Rows of bf16: 8 elements at a time where the width allows it, and sums over a block whose order does not depend on
// the schedule.
#pragma once

#include "common/ptx.cuh"

// V consecutive elements as floats: one 16-byte access of bf16 for V = 8, two of f32; one element for V = 1. (8 scalar
// loads of f32, 32 bytes apart from lane to lane, would each touch every line that the two touch once.)
template <int V> struct Vector;

template <> struct Vector<8> {
    float v[8];
    __device__ __forceinline__ static Vector load(const bf16 *from) {
        uint4 bits = load_as<uint4>(from);
        return {{low_float(bits.x), high_float(bits.x), low_float(bits.y), high_float(bits.y), low_float(bits.z),
                 high_float(bits.z), low_float(bits.w), high_float(bits.w)}};
    }
    __device__ __forceinline__ static Vector load(const float *from) {
        float4 low = load_as<float4>(from), high = load_as<float4>(from + 4);
        return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
    }
    __device__ __forceinline__ void store(bf16 *to) const {
        store_as<uint4>(to, make_uint4(pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]), pack_bf16x2(v[4], v[5]),
                                       pack_bf16x2(v[6], v[7])));
    }
    __device__ __forceinline__ void store(float *to) const {
        store_as<float4>(to, {v[0], v[1], v[2], v[3]});
        store_as<float4>(to + 4, {v[4], v[5], v[6], v[7]});
    }
};

template <> struct Vector<1> {
    float v[1];
    __device__ __forceinline__ static Vector load(const bf16 *from) { return {{to_float(*from)}}; }
    __device__ __forceinline__ static Vector load(const float *from) { return {{*from}}; }
    __device__ __forceinline__ void store(bf16 *to) const { *to = to_bf16(v[0]); }
    __device__ __forceinline__ void store(float *to) const { *to = v[0]; }
};

// Rounds like `store` and `load`: what a reader of the stored value sees.
template <int V> __device__ __forceinline__ Vector<V> rounded(Vector<V> x) {
#pragma unroll
    for (int i = 0; i < V; ++i) x.v[i] = to_float(to_bf16(x.v[i]));
    return x;
}

constexpr int kRowThreads = 256;
constexpr size_t kRowSumBytes = 2 * (kRowThreads / 32) * sizeof(float);

// 1 / sqrt(mean + eps) of a row of h elements whose squares have this sum.
__device__ __forceinline__ float inverse_rms(float squares, int64_t h, float eps) {
    return __fdiv_rn(1.0f, sqrtf(__fadd_rn(__fdiv_rn(squares, float(h)), eps)));
}

// The sum of a over the warp, in each of its lanes, as a tree.
__device__ __forceinline__ float lane_sum(float a ACCESS_SITE) {
#ifdef QK_EMULATION
    float sums[1] = {a};
    emulation::add_over_lanes(sums, 32, site);
    return sums[0];
#else
#pragma unroll
    for (int half = 16; half > 0; half /= 2) a += __shfl_xor_sync(~0u, a, half);
    return a;
#endif
}

// The sums of a and b over each `lanes` lanes of the warp (a power of two), in each of them, as a tree.
__device__ __forceinline__ float2 lane_sums(float a, float b, int lanes ACCESS_SITE) {
#ifdef QK_EMULATION
    float sums[2] = {a, b};
    emulation::add_over_lanes(sums, lanes, site);
    return {sums[0], sums[1]};
#else
#pragma unroll
    for (int half = 16; half > 0; half /= 2) {
        if (half >= lanes) continue;
        a += __shfl_xor_sync(~0u, a, half);
        b += __shfl_xor_sync(~0u, b, half);
    }
    return {a, b};
#endif
}

// The sums of a and b over the block, in every thread: a tree over the lanes, then over the warps. `shared` has
// kRowSumBytes; a barrier must lie between two calls.
__device__ __forceinline__ float2 block_sums(float a, float b, float *shared) {
    float2 sums = lane_sums(a, b, 32);
    int warp = int(threadIdx.x) / 32, warps = kRowThreads / 32;
    if (threadIdx.x % 32 == 0) shared[warp] = sums.x, shared[warps + warp] = sums.y;
    __syncthreads();
    a = b = 0.0f;
#pragma unroll
    for (int i = 0; i < kRowThreads / 32; ++i) a += shared[i], b += shared[warps + i];
    return {a, b};
}

// The sum of a over the block, likewise.
__device__ __forceinline__ float block_sum(float a, float *shared) {
    a = lane_sum(a);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = a;
    __syncthreads();
    a = 0.0f;
#pragma unroll
    for (int i = 0; i < kRowThreads / 32; ++i) a += shared[i];
    return a;
}

// True if every row of these widths starts 16-byte aligned.
inline bool is_vector(int64_t width) { return width % 8 == 0; }
