//! The bugs that cost time alone: what a launch does more, or has in flight less, while its results stay right.

use super::table::{Mutant, mutant};

const FORWARD: &str = "launch_counts::blocks_of_the_forward";
const DX: &str = "launch_counts::blocks_of_dx";
const ATTENTION: &str = "launch_counts::blocks_of_attention";
const ATTENTION_BACKWARD: &str = "launch_counts::blocks_of_the_gradient_of_attention";
const GRADIENTS: &str = "launch_counts::blocks_of_the_gradients_of_lora";

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "forward: a stage less in flight",
        "linear/forward.cu",
        "cp_async_wait<C::kStages - 2>(); // this tile is here ...\n            __syncthreads(); // ... for everyone",
        "cp_async_wait<0>();\n            __syncthreads(); // ... for everyone",
        FORWARD,
    ),
    mutant(
        "forward: X loaded by halves",
        "linear/forward.cu",
        "uint4 chunk = load_as<uint4>(stage + C::token_offset(8 * i + g, 2 * t + half));",
        "uint4 chunk = [](uint2 low, uint2 high) { return make_uint4(low.x, low.y, high.x, high.y); }(\
         load_as<uint2>(stage + C::token_offset(8 * i + g, 2 * t + half)), \
         load_as<uint2>(stage + C::token_offset(8 * i + g, 2 * t + half) + 8));",
        FORWARD,
    ),
    mutant(
        "dx: a stage less in flight",
        "linear/dx.cu",
        "cp_async_wait<C::kStages - 2>(); // this tile is here ...\n            __syncthreads(); // ... for everyone",
        "cp_async_wait<0>();\n            __syncthreads(); // ... for everyone",
        DX,
    ),
    mutant(
        "attention: a barrier more in each step",
        "attention/forward.cu",
        "if (key + kKeys <= last) load(key + kKeys, stage ^ 1);",
        "__syncthreads();\n        if (key + kKeys <= last) load(key + kKeys, stage ^ 1);",
        ATTENTION,
    ),
    mutant(
        "attention backward: copies that are waited for at once",
        "attention/backward.cu",
        "if (query + kWalked < stop) load(query + kWalked, head, stage ^ 1);",
        "if (query + kWalked < stop) { load(query + kWalked, head, stage ^ 1); cp_async_wait<0>(); }",
        ATTENTION_BACKWARD,
    ),
    mutant(
        "gradients: a stage less in flight",
        "lora/gradients.cu",
        "cp_async_wait<kStages - 2>(); // this stage is here ...",
        "cp_async_wait<0>();",
        GRADIENTS,
    ),
];
