//! The bugs that are seeded into soft caps: of the scores of attention, and of the logits of the loss.

use super::table::{Mutant, mutant};

const FORWARD: &str = "attention::attention_is_within";
const BACKWARD: &str = "attention::attention_gradients";
const CACHE: &str = "attention_cache::attention_over_a_cache";
const LOSS: &str = "cross_entropy::losses_of_capped";

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "soft cap: scores cut to what tanh is near 0",
        "attention/attention.cuh",
        "s[n][i] = tanh_scaled(s[n][i] * to_tanh);",
        "s[n][i] *= to_tanh / kTanhScale;",
        FORWARD,
    ),
    mutant(
        "soft cap: tanh of half of the score",
        "common/soft_cap.cuh",
        "1.0f + exp2_approx(y)",
        "1.0f + exp2_approx(0.5f * y)",
        FORWARD,
    ),
    mutant(
        "soft cap: scores over a cache without its factor",
        "attention/cache.cu",
        "? kLog2e * args->soft_cap",
        "? kLog2e",
        CACHE,
    ),
    mutant(
        "soft cap: scores over a cache as they are",
        "attention/cache.cu",
        "kCapped ? tanh_scaled(s[n][j] * view.to_tanh) : s[n][j];",
        "s[n][j];",
        CACHE,
    ),
    mutant(
        "soft cap, backward: dK without the slope",
        "attention/backward.cu",
        "(i % 2 ? row.w : row.y)) * soft_cap_slope(s[n][i]);",
        "(i % 2 ? row.w : row.y));",
        BACKWARD,
    ),
    mutant(
        "soft cap, backward: dQ without the slope",
        "attention/backward.cu",
        "- delta[i / 2]) * soft_cap_slope(s[n][i]);",
        "- delta[i / 2]);",
        BACKWARD,
    ),
    mutant(
        "soft cap, backward: a slope of 1 - tanh",
        "common/soft_cap.cuh",
        "return fmaf(-tanh, tanh, 1.0f);",
        "return 1.0f - tanh;",
        BACKWARD,
    ),
    mutant(
        "soft cap: the loss of logits as they are",
        "loss/cross_entropy_logits.cu",
        "sums[i][n][j] = view.soft_cap * tanh_scaled(sums[i][n][j] * to_tanh);",
        "sums[i][n][j] *= 1.0f + 0.0f * to_tanh;",
        LOSS,
    ),
    mutant(
        "soft cap: the gradient of logits without the slope",
        "loss/cross_entropy.cu",
        "if constexpr (kCapped) p[j] = __fmul_rn(p[j], slope);",
        "",
        LOSS,
    ),
    mutant(
        "soft cap: the slope of a logit, not of its share of the cap",
        "loss/cross_entropy.cu",
        "float to_tanh = kCapped ? __fdiv_rn(1.0f, view.soft_cap) : 0.0f;",
        "float to_tanh = 1.0f;",
        LOSS,
    ),
];
