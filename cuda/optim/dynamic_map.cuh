// The 8-bit dynamic maps of optimizer states (signed: first moment, unsigned: second) and the search for the nearest
// entry.
//
// Decade i of seven, scaled by 10^(i - 6), holds the midpoints of a division of [0.1, 1] into 2^i parts for either
// sign, or into 2^(i + 1) parts without signs; then 0 and 1. Every block of threads computes the maps again: a few
// instructions a thread.
//
// The first bits of a float name its bin; a bin holds at most one threshold between two codes, so the code is that of
// the bin's lowest value or the next one: two reads of shared memory, where a binary search takes eight. Ties go to the
// even entry, as they do in bitsandbytes' search; unlike there, an unsigned value above 0 never takes the code of 0.
#pragma once

#include "common/launch.cuh"

static constexpr __device__ float kDecades[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};

template <bool is_signed> struct DynamicMap {
    static constexpr int kEntries = 256;
    static constexpr unsigned kLowest =
        0x34000000u;  // magnitudes below 2^-23 share the first bin: no threshold lies there
    static constexpr unsigned kHighest = 0x3f800000u; // magnitudes from 1 up share the last one
    static constexpr int kShift = is_signed ? 17 : 16; // mantissa bits that do not name a bin
    static constexpr int kSide = ((kHighest - kLowest) >> kShift) + 1;
    static constexpr int kBins = is_signed ? 2 * kSide : kSide;
    // Shared memory: map and thresholds f32 [256], then the code of each bin's lowest value, bins ascending.
    static constexpr int kBytes = 2 * kEntries * int(sizeof(float)) + (kBins + 15) / 16 * 16;

    float *map;
    float *thresholds; // the code is c + 1 and not c above thresholds[c]; the last is infinite
    uint8_t *lowest;

    // Boundary k of [0.1, 1] in `parts` parts: counted from the nearer end, one rounding.
    static __device__ __forceinline__ float boundary(int k, int parts) {
        float step = __fdiv_rn(__fadd_rn(1.0f, -0.1f), float(parts));
        bool low = k < (parts + 1) / 2;
        return fmaf(low ? step : -step, float(low ? k : parts - k), low ? 0.1f : 1.0f);
    }

    // Entry `index` of the magnitudes above 0, from 1.
    static __device__ __forceinline__ float entry_above(int index) {
        int at = is_signed ? index : index + 1, parts = is_signed ? 1 : 2, decade = 0;
        for (; at >= 2 * parts; parts *= 2) ++decade;
        if (decade == 7) return 1.0f;
        float middle = __fmul_rn(__fadd_rn(boundary(at - parts, parts), boundary(at - parts + 1, parts)), 0.5f);
        return __fmul_rn(kDecades[decade], middle);
    }

    static __device__ __forceinline__ float entry(int code) {
        constexpr int zero = is_signed ? 127 : 0;
        if (code == zero) return 0.0f;
        float value = entry_above(code > zero ? code - zero : zero - code);
        return code > zero ? value : -value;
    }

    static __device__ __forceinline__ int bin(float x) {
        unsigned bits = __float_as_uint(x), size = min(max(bits & 0x7fffffffu, kLowest), kHighest);
        int k = int((size - kLowest) >> kShift);
        if (!is_signed) return k;
        return bits >> 31 ? kSide - 1 - k : kSide + k;
    }

    // In kBytes of shared memory, 16-byte aligned.
    static __device__ __forceinline__ DynamicMap at(unsigned char *shared) {
        float *map = reinterpret_cast<float *>(shared);
        return {map, map + kEntries, reinterpret_cast<uint8_t *>(map + 2 * kEntries)};
    }

    // Fills it; all threads of the block. The caller waits at a barrier before the first use.
    __device__ __forceinline__ void build(int thread, int threads) const {
        for (int code = thread; code < kEntries; code += threads) map[code] = entry(code);
        __syncthreads();
        for (int code = thread; code < kEntries; code += threads) {
            float threshold = __uint_as_float(0x7f800000u);
            if (code < kEntries - 1) {
                threshold = __fmul_rn(__fadd_rn(map[code], map[code + 1]), 0.5f);
                // A tie goes to the even entry: there the odd one's threshold is the next float below. No such
                // threshold is 0.
                unsigned bits = __float_as_uint(threshold);
                if (code % 2 == 1) threshold = __uint_as_float(bits >> 31 ? bits + 1 : bits - 1);
                // A value above 0 stays above 0: the root of a second moment of 0 would divide the first by epsilon
                // alone.
                if (!is_signed && code == 0) threshold = 0.0f;
            }
            thresholds[code] = threshold;
        }
        __syncthreads();
        // Bins after that of the last lower threshold, up to that of this one, begin with this code. A warp a code.
        for (int code = thread / 32; code < kEntries; code += threads / 32) {
            int from = code > 0 ? bin(thresholds[code - 1]) + 1 : 0;
            int to = code < kEntries - 1 ? bin(thresholds[code]) : kBins - 1;
            for (int i = from + thread % 32; i <= to; i += 32) lowest[i] = uint8_t(code);
        }
    }

    // The code nearest to a normalized x; a tie takes the even one.
    __device__ __forceinline__ unsigned code(float x) const {
        unsigned code = lowest[bin(x)];
        return code + (x > thresholds[code] ? 1u : 0u);
    }
};
