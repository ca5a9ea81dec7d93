// A soft cap: x becomes cap * tanh(x / cap), which is never above cap and near 0 is x.
#pragma once

#include "common/ptx.cuh"

// Factor of x for tanh_scaled(): tanh(x) = tanh_scaled(x * kTanhScale), so that a caller folds it into a factor.
constexpr float kTanhScale = 2.8853900817779268f; // 2 log2(e)

// 1 - 2 / (1 + 2^y): the tanh of y / kTanhScale to 2^-21 in absolute terms, in four instructions. Of infinities it is 1
// and -1.
__device__ __forceinline__ float tanh_scaled(float y) {
    return fmaf(-2.0f, reciprocal_approx(1.0f + exp2_approx(y)), 1.0f);
}

// The derivative of a capped value by what was capped, from tanh.
__device__ __forceinline__ float soft_cap_slope(float tanh) { return fmaf(-tanh, tanh, 1.0f); }

// 0 is no cap; every other value has to be finite and above 0.
inline bool is_soft_cap(float cap) { return cap >= 0.0f && cap - cap == 0.0f; }
