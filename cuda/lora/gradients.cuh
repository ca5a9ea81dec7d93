// The gradients of the LoRA matrices as one list of products small^T * big over tokens: small is T or S, big is X or
// dY.
#pragma once

#include "linear/backward.cuh"

// The tokens of a sum over tokens that are added up before they are added to what there is.
constexpr int kChunkTokens = 256;

// Ranks first .. first + r of a product go to one matrix.
struct GradientOutput {
    float *out; // f32 [adapters, r, columns] (dA) or [adapters, columns, r] (dB); NULL: not wanted
    int first, r;
};

// out += small^T * big, token by token where adapter_index says so.
struct GradientProduct {
    const bf16 *big;              // [M, ld]: X or dY
    const bf16 *small;            // [M, lds]: T or S, from the product's first column on
    const int32_t *adapter_index; // [M], or NULL: one adapter, all tokens
    int64_t ld, lds, columns;     // columns of big: K or N
    int adapters, ranks;          // ranks: columns of small that count, a multiple of 8
    bool transposed;              // out is [columns, r]: dB
    bool dropped;                 // the dropout mask is that of big: dA
    int num_outputs;
    GradientOutput outputs[QK_MAX_SEGMENTS];

    // Destination of rank `rank` of `adapter` (NULL: none) and the distance of its columns.
    struct Row {
        float *out;
        int64_t stride;
    };
    __device__ __forceinline__ Row row(int rank, int64_t adapter) const {
        for (int i = 0; i < num_outputs; ++i) {
            const GradientOutput &to = outputs[i];
            int j = rank - to.first;
            if (to.out == nullptr || j < 0 || j >= to.r) continue;
            return {to.out + adapter * to.r * columns + (transposed ? int64_t(j) : j * columns), transposed ? to.r : 1};
        }
        return {nullptr, 0};
    }
};

struct GradientsView {
    int64_t m; // tokens
    DropoutView dropout;
    int num_products;
    GradientProduct products[2 * QK_MAX_SEGMENTS];
};

// One kernel file each. The view is valid, has products, and m >= 1. The first needs ld % 8 == 0 and columns % 8 == 0
// of every product.
size_t gradients_workspace_bytes(const GradientsView &view);
int launch_lora_gradients(const GradientsView &view, void *workspace, qk_stream stream);
int launch_lora_gradients_generic(const GradientsView &view, qk_stream stream);
