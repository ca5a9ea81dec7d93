// The code that one call of the linear layer takes: dispatch.cu and dispatch_dx.cu choose it, the launchers follow it.
#pragma once

#include "common/launch.cuh"

struct LinearChoice {
    qk_path path;
    int tokens, columns; // of a block's tile of the output; 0 on the generic path, where a thread makes one element
    bool dense;          // bf16 weights
    bool masked;         // rows differ in what they see: by adapters, or, in dX, by dropout

    // "tensor cores, tiles of 128 tokens x 256 columns, NF4 weights": at most `size` bytes, with the 0 at the end.
    void print(char *text, size_t size) const;
};

// Tiles of two sizes: the large ones read each operand less often, and serve best once they fill the multiprocessors of
// the larger cards; the small ones serve below. Both add in the same order.
constexpr int64_t kBlocksOfLargeTiles = 96;

// The path of few tokens: enough blocks for every multiprocessor first, then fewer readings of X.
constexpr int kMostTokensOfSmallM = 16;
constexpr int64_t kBlocksOfWideTiles = 128;
constexpr int kWideColumns = 32, kNarrowColumns = 8;

constexpr int kLargeTokens = 128, kLargeColumns = 256, kSmallTokens = 64, kSmallColumns = 128;
