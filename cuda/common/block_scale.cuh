// The scale of a block in blockwise quantization, from its largest magnitude.
#pragma once

#include "common/launch.cuh"

constexpr float kMaxFloat = 3.4028234663852886e38f;

__device__ __forceinline__ float magnitude(float value) {
    return __uint_as_float(__float_as_uint(value) & 0x7fffffffu);
}

// value / absmax as the formats want it: times the correctly rounded reciprocal, and a true division only where that
// overflows (absmax below 2^-128). Where absmax is 0 or no number, the value itself.
struct Normalizer {
    float absmax, reciprocal;
    bool divide;
    __device__ __forceinline__ float operator()(float value) const {
        return divide ? __fdiv_rn(value, absmax) : __fmul_rn(value, reciprocal);
    }
};

__device__ __forceinline__ Normalizer normalizer(float absmax) {
    if (!(absmax > 0.0f)) return {absmax, 1.0f, false};
    float reciprocal = __frcp_rn(absmax);
    return {absmax, reciprocal, reciprocal > kMaxFloat};
}
