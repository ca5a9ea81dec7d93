// Launches of kernels that have tokens along a grid's y: a grid has at most 65,535 of those.
#pragma once

#include "common/launch.cuh"

// launch_from(first token, tokens) for each part of m tokens: the first error, or QK_OK.
template <typename Launch> int by_tokens(int64_t m, Launch launch_from) {
    constexpr int64_t kMost = 65535;
    for (int64_t first = 0; first < m; first += kMost)
        if (int error = launch_from(first, unsigned(m - first < kMost ? m - first : kMost))) return error;
    return QK_OK;
}
