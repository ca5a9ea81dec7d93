// The checked operand of the fused linear layer's backward pass, by value, and the launchers of its kernels.
#pragma once

#include "linear/linear.cuh"

struct BackwardSegment : LoraView {
    Nf4View nf4;
    const bf16 *dense; // [n, K]; NULL: nf4, if any
    const bf16 *dy;    // [M, lddy]
    float *da, *db;    // [num_adapters, r, K], [num_adapters, n, r]; NULL: not wanted
    int64_t n, lddy;
    int64_t s_column;  // where this segment's part of S and T begins

    bool has_nf4() const { return nf4.codes != nullptr; }
};

struct BackwardView {
    const bf16 *x;       // [M, ldx]; NULL where it is not read
    const bf16 *s, *t;   // [M, lds] and [M, ldt], multiples of 8; NULL without LoRA, and where not given
    bf16 *dx;            // [M, lddx]; NULL where it is not written
    bf16 *room;          // where T may follow dY's columns, in rows of lddy; NULL: nowhere
    int64_t m, k, ldx, lddx, lds, ldt;
    int64_t columns;     // of S and of T: each segment's r rounded up to 8
    DropoutView dropout;
    int num_segments;
    bool accumulate;     // into dX
    BackwardSegment segments[QK_MAX_SEGMENTS];

    __host__ __device__ bool has_adapters() const {
        for (int i = 0; i < num_segments; ++i)
            if (segments[i].adapter_index != nullptr) return true;
        return false;
    }
};

// Checks what all functions of the backward pass share (no pointer that only some need, no weight's absence): QK_OK or
// the error.
int backward_view(const qk_linear_backward_args *backward, BackwardView *view);

// True if the segments' dY are columns of one matrix, one behind the other.
bool has_one_dy(const BackwardView &view);

// The code that dX takes.
LinearChoice choose_dx(const BackwardView &view);

// Launchers, one per kernel file. The view is valid, m >= 1, and what the operation reads and writes is there.
int launch_lora_dy_b(const BackwardView &view, bf16 *t, qk_stream stream); // in rows that are ldt apart
int launch_linear_dx_tensor_core(const BackwardView &view, const LinearChoice &choice, qk_stream stream);
int launch_linear_dx_generic(const BackwardView &view, qk_stream stream);
