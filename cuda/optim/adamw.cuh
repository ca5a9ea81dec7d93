// The optimizer's table: what it holds, and how the host checks and writes it.
#pragma once

#include "common/launch.cuh"

// One tensor, as the kernels read it.
struct AdamWEntry {
    int64_t n, first_chunk;
    float *value;
    void *working; // bf16, or NULL
    const float *gradient;
    void *m, *v;                 // f32, or 8-bit codes
    float *m_absmax, *v_absmax;  // NULL: f32 states
    uint32_t rate, reserved;
};

// The kernels' view of a qk_adamw_args, by value.
struct AdamWView {
    const AdamWEntry *entries;    // device, [num_tensors]
    const uint32_t *chunk_tensor; // device, [chunks]: the tensor of each chunk of QK_ADAMW_CHUNK elements
    int chunks;
    bool quantized; // a tensor has 8-bit states
    const qk_adamw_rate *rates;
    const qk_gradient_state *gradient_state; // NULL: scale 1
};

// Checks everything and fills the view: QK_OK or the error. With `needs_states` each tensor has moments.
int adamw_view(const qk_adamw_args *adamw, bool needs_states, AdamWView *view);
