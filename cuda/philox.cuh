// Philox4x32-10 (Salmon et al., 2011) and the dropout mask drawn from it: bit for bit src/philox.rs, so that a mask drawn in the forward
// pass is drawn again in the backward pass, on any device and in any order, without being stored.
//
// Counter = (token, feature / 4, site, draw), key = seed. An element is kept when its 32-bit number is at least p * 2^32.
#pragma once

#include <cmath>

#include "launch.cuh"

struct Philox4 {
    uint32_t word[4];
};

__host__ __device__ __forceinline__ Philox4 philox4x32_10(Philox4 counter, uint32_t key0, uint32_t key1) {
    uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        uint64_t low = uint64_t(0xd2511f53u) * c0, high = uint64_t(0xcd9e8d57u) * c2;
        c0 = uint32_t(high >> 32) ^ c1 ^ key0;
        c1 = uint32_t(high);
        c2 = uint32_t(low >> 32) ^ c3 ^ key1;
        c3 = uint32_t(low);
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

// A checked qk_dropout by value. Without dropout: threshold 0 and scale 1, which keep everything as it is.
struct DropoutView {
    uint32_t key0, key1;  // the seed, low and high half
    uint32_t site, draw;
    uint32_t threshold;   // p * 2^32; 0: nothing is dropped
    uint32_t first_token; // of the rows of this call
    float scale;          // of what is kept, 1 / (1 - p)

    __host__ __device__ bool drops() const { return threshold != 0; }

    // Bit i: feature 4 * quad + i of row `row` of this call is kept.
    __host__ __device__ __forceinline__ uint32_t kept(uint32_t row, uint32_t quad) const {
        Philox4 number = philox4x32_10({{first_token + row, quad, site, draw}}, key0, key1);
        uint32_t bits = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) bits |= uint32_t(number.word[i] >= threshold) << i;
        return bits;
    }

    // 0 or `scale`, for kernels that take an element at a time.
    __host__ __device__ __forceinline__ float factor(int64_t row, int64_t feature) const {
        return kept(uint32_t(row), uint32_t(feature / 4)) >> (feature % 4) & 1 ? scale : 0.0f;
    }
};

inline DropoutView no_dropout() { return {0, 0, 0, 0, 0, 0, 1.0f}; }

// p in [0, 1).
inline DropoutView dropout_view(float p, uint64_t seed, uint32_t site, uint32_t draw, uint32_t first_token) {
    double threshold = std::round(double(p) * 4294967296.0);
    if (threshold > 4294967295.0) threshold = 4294967295.0;
    return {uint32_t(seed), uint32_t(seed >> 32), site, draw, uint32_t(threshold), first_token, float(1.0 / (1.0 - double(p)))};
}
