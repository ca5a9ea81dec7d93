// The part of the CUDA language that the kernels use, for the host C++ compiler. Every CUDA thread of a block is a
// fiber; blocks run one after the other. See runtime.h for what is checked.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "counters.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

// bfloat16 in its 16 bits; conversions are in ptx.cuh.
struct __nv_bfloat16 { uint16_t bits; };

namespace emulation {

inline dim3 dim3_of(Index index) { return dim3(index.x, index.y, index.z); }

// Runs the kernel on the host: 0, a cudaError_t, or QK_ERROR_EMULATION with a message.
inline int run(dim3 grid, dim3 block, size_t shared_bytes, void (*thread)(const void *), const void *state) {
    return run(Index{grid.x, grid.y, grid.z}, Index{block.x, block.y, block.z}, shared_bytes, thread, state);
}

}  // namespace emulation

#define threadIdx (emulation::dim3_of(emulation::current_thread().index))
#define blockIdx (emulation::dim3_of(emulation::current_block().index))
#define blockDim (emulation::dim3_of(emulation::current_block().size))
#define gridDim (emulation::dim3_of(emulation::current_block().grid))

inline void __syncthreads(emulation::Site site = emulation::Site::here()) { emulation::block_barrier(site); }

inline void __syncwarp(unsigned mask = ~0u, emulation::Site site = emulation::Site::here()) {
    char nothing = 0;
    emulation::warp_collective(mask, nothing, site, [](char *(&)[32]) {});
}

namespace emulation {

// Every lane reads the value of the lane `source(lane)`.
template <typename T, typename Source>
T shuffle(unsigned mask, T value, int parameter, Site site, Source) {
    struct Slot { T value, result; int parameter; } slot = {value, value, parameter};
    warp_collective(mask, slot, site, [](Slot *(&slots)[32]) {
        for (int lane = 0; lane < 32; ++lane) {
            int source = Source()(lane, slots[lane]->parameter);
            slots[lane]->result = source >= 0 && source < 32 ? slots[source]->value : slots[lane]->value;
        }
    });
    return slot.result;
}

struct FromLane { int operator()(int, int source) const { return source & 31; } };
struct FromXor { int operator()(int lane, int mask) const { return lane ^ mask; } };
struct FromBelow { int operator()(int lane, int delta) const { return lane - delta; } };
struct FromAbove { int operator()(int lane, int delta) const { return lane + delta; } };

}  // namespace emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, emulation::Site site = emulation::Site::here()) {
    return emulation::shuffle(mask, value, source, site, emulation::FromLane());
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, emulation::Site site = emulation::Site::here()) {
    return emulation::shuffle(mask, value, lanes, site, emulation::FromXor());
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, emulation::Site site = emulation::Site::here()) {
    return emulation::shuffle(mask, value, static_cast<int>(delta), site, emulation::FromBelow());
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, emulation::Site site = emulation::Site::here()) {
    return emulation::shuffle(mask, value, static_cast<int>(delta), site, emulation::FromAbove());
}

namespace emulation {

// `value += __shfl_xor_sync(~0u, value, half)` of each value, for half = lanes / 2, lanes / 4 and so on to 1, in one
// meeting of the warp.
template <int N> void add_over_lanes(float (&values)[N], int lanes, Site site) {
    warp_collective(~0u, values, site, [lanes](float (*(&of_lane)[32])[N]) {
        for (int i = 0; i < N; ++i) {
            float sums[32], others[32];
            for (int lane = 0; lane < 32; ++lane) sums[lane] = (*of_lane[lane])[i];
            for (int half = lanes / 2; half > 0; half /= 2) {
                for (int lane = 0; lane < 32; ++lane) others[lane] = sums[lane ^ half];
                for (int lane = 0; lane < 32; ++lane) sums[lane] += others[lane];
            }
            for (int lane = 0; lane < 32; ++lane) (*of_lane[lane])[i] = sums[lane];
        }
    });
}

}  // namespace emulation

inline unsigned __reduce_max_sync(unsigned mask, unsigned value, emulation::Site site = emulation::Site::here()) {
    emulation::warp_collective(mask, value, site, [](unsigned *(&values)[32]) {
        unsigned largest = 0;
        for (unsigned *value : values) largest = *value > largest ? *value : largest;
        for (unsigned *value : values) *value = largest;
    });
    return value;
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emulation::Site site = emulation::Site::here()) {
    struct Slot { int predicate; unsigned result; } slot = {predicate, 0};
    emulation::warp_collective(mask, slot, site, [](Slot *(&slots)[32]) {
        unsigned result = 0;
        for (int lane = 0; lane < 32; ++lane) result |= (slots[lane]->predicate != 0 ? 1u : 0u) << lane;
        for (Slot *slot : slots) slot->result = result;
    });
    return slot.result;
}

// A fiber is only left at a barrier or a collective, so plain arithmetic is atomic.
template <typename T> T atomicAdd(T *address, T value) {
    T old = *address;
    *address = old + value;
    return old;
}
template <typename T> T atomicMax(T *address, T value) {
    T old = *address;
    if (value > old) *address = value;
    return old;
}
template <typename T> T atomicCAS(T *address, T compare, T value) {
    T old = *address;
    if (old == compare) *address = value;
    return old;
}

// Compiled with -ffp-contract=off: one rounding each, as written.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T> T __ldg(const T *address) { return *address; }
template <typename T> T min(T a, T b) { return b < a ? b : a; }
template <typename T> T max(T a, T b) { return a < b ? b : a; }
using std::fmaf;
