// NF4: codebook, code choice, and the double-quantized absmax, in exactly the roundings of the format.
#pragma once

#include "common/ptx.cuh"

// Codes 0..15. The fused kernels keep a copy in shared memory, where 16 floats lie in 16 different banks and a lookup
// never conflicts.
static constexpr __device__ float kNf4Codes[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

__device__ __forceinline__ float nf4_code(int index) { return kNf4Codes[index]; }

// The fp32 midpoint of codes index and index + 1; a value equal to it takes the lower code.
__device__ __forceinline__ float nf4_threshold(int index) {
    return __fmul_rn(__fadd_rn(nf4_code(index), nf4_code(index + 1)), 0.5f);
}

// The code of a value normalized to [-1, 1]. NaN gets 0.
__device__ __forceinline__ unsigned nf4_encode(float normalized) {
    unsigned code = 0;
#pragma unroll
    for (int i = 0; i < 15; ++i) code += normalized > nf4_threshold(i) ? 1u : 0u;
    return code;
}

// A kernel's view of a qk_nf4, by value.
struct Nf4View {
    const uint8_t *codes;
    const uint8_t *absmax_codes;
    const float *absmax, *nested_absmax, *nested_map, *offset;
    int64_t n, k;
    int block_shift; // log2 of the block size
    bool transposed; // [K / block_size, N] rather than flat

    // The absmax of row-major block `block`, two roundings: never a fused multiply-add.
    __device__ __forceinline__ float block_absmax(int64_t block) const {
        int64_t at = block;
        if (transposed) {
            // A division of 64 bits costs more than all the rest; 32 do for any weight of a model.
            int64_t per_row = k >> block_shift;
            int64_t row = (block | per_row) <= UINT32_MAX ? int64_t(uint32_t(block) / uint32_t(per_row))
                                                          : block / per_row;
            at = (block - row * per_row) * n + row;
        }
        return absmax_at(at, block);
    }

    // block_absmax() of the block whose absmax is the one `at` in its layout: without a division, for a caller that
    // knows row and column of blocks.
    __device__ __forceinline__ float absmax_at(int64_t at, int64_t block) const {
        if (absmax != nullptr) return absmax[at];
        return __fadd_rn(__fmul_rn(nested_map[absmax_codes[at]], nested_absmax[block / QK_NESTED_BLOCK]), *offset);
    }

    // The code of element (row-major, flat).
    __device__ __forceinline__ int code(int64_t element) const {
        int byte = codes[element >> 1];
        return element & 1 ? byte & 15 : byte >> 4;
    }
};

inline bool is_block_size(uint32_t block_size) {
    return block_size >= 32 && block_size <= 4096 && (block_size & (block_size - 1)) == 0;
}

inline int log2_of(uint32_t power) {
    int shift = 0;
    while (power >> shift > 1) ++shift;
    return shift;
}

// Checks a weight and turns it into a view: QK_OK or the error.
int nf4_view(const qk_nf4 *weight, Nf4View *view);
