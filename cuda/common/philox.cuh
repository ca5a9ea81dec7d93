// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and the dropout mask drawn from
// it: a pure function of (seed, token, feature, dropout_id, dropout_step), so that forward and backward draw the same
// mask and none is stored. On the host: src/rng.rs.
#pragma once

#include "common/launch.cuh"

// A kernel's view of a qk_dropout, by value.
struct DropoutView {
    uint32_t key_low, key_high;
    uint32_t dropout_id, dropout_step;
    uint32_t first_token; // of row 0
    uint32_t threshold;   // a number below it drops its element; 0: no dropout
    float scale;          // of what is kept
    const uint32_t *step_on_device; // [1]; NULL: dropout_step

    __host__ __device__ bool active() const { return threshold != 0; }
    // The step that a mask is drawn for: read once by each thread, before its loops.
    __device__ __forceinline__ uint32_t step() const {
        return step_on_device != nullptr ? *step_on_device : dropout_step;
    }
};

struct Random4 {
    uint32_t words[4];
};

__device__ __forceinline__ Random4 philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key_low,
                                                 uint32_t key_high) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        uint64_t low = uint64_t(0xd2511f53u) * c0, high = uint64_t(0xcd9e8d57u) * c2;
        c0 = uint32_t(high >> 32) ^ c1 ^ key_low;
        c2 = uint32_t(low >> 32) ^ c3 ^ key_high;
        c1 = uint32_t(high);
        c3 = uint32_t(low);
        key_low += 0x9e3779b9u;
        key_high += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

// Bit i: feature 4 * quad + i of a row is kept; `step` is dropout.step(). For kernels that zero what is dropped and
// apply `scale` to their f32 sums.
__device__ __forceinline__ uint32_t dropout_kept(const DropoutView &dropout, uint32_t step, int64_t row, int64_t quad) {
    Random4 random = philox4x32_10(dropout.first_token + uint32_t(row), uint32_t(quad), dropout.dropout_id, step,
                                   dropout.key_low, dropout.key_high);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) bits |= uint32_t(random.words[i] >= dropout.threshold) << i;
    return bits;
}

// Checks a dropout for m rows and turns it into a view: QK_OK or the error. NULL is no dropout.
int dropout_view(const qk_dropout *dropout, int64_t m, DropoutView *view);
