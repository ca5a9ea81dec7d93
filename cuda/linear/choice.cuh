// The code that one call of the linear layer takes: dispatch.cu and dispatch_dx.cu choose it, the launchers follow it.
#pragma once

#include "common/launch.cuh"

struct LinearChoice {
    qk_path path;
    int tokens, columns; // of a block's tile of the output; 0 on the generic path, where a thread makes one element
    bool dense;          // bf16 weights
    bool masked;         // forward: rows differ in the adapter that they see, which only small tiles serve

    // "tensor cores, tiles of 128 tokens x 256 columns, NF4 weights": at most `size` bytes, with the 0 at the end.
    void print(char *text, size_t size) const;
};

// The path of few tokens: enough blocks for every multiprocessor first, then fewer readings of X.
constexpr int kMostTokensOfSmallM = 16;
constexpr int64_t kBlocksOfWideTiles = 128;
constexpr int kWideColumns = 32, kNarrowColumns = 8;

constexpr int kLargeTokens = 128, kLargeColumns = 256, kSmallTokens = 64, kSmallColumns = 128;

// Tiles of two sizes, which add in the same order: the one whose blocks are through sooner is taken, the large one of
// equals. Large ones read each operand less often, and dequantize a weight once for twice as many tokens; small ones
// leave less of a last wave idle. Times in hundredths of a large tile's, for NF4 and bf16, forward and dX alike: of the
// instructions beside each matrix instruction (forward 3.5 and 6.7, dX 3.9 and 7.5) and of as many warps at once, which
// nothing has measured yet.
struct TileTimes {
    int resident;        // blocks of a multiprocessor at once
    int together, alone; // the time of so many blocks, and of one that has a multiprocessor to itself

    constexpr int64_t of(int64_t blocks, int64_t multiprocessors) const {
        int64_t waves = blocks / (multiprocessors * resident), rest = blocks % (multiprocessors * resident);
        return waves * together + (rest == 0 ? 0 : rest <= multiprocessors ? alone : together);
    }
};

constexpr TileTimes kLargeTimes = {1, 100, 100}, kSmallTimes = {2, 60, 40};

// Two small tiles of bf16 weights need more shared memory than sm_86, sm_89 and sm_120 have: one is there at a time.
constexpr TileTimes kSmallTimesAlone = {1, 40, 40};
// Tables, 3 stages of 64 rows of X and 128 of W by 128 bytes, and the 1,024 bytes of each block that the system takes.
constexpr int64_t kSmallDenseBytes = 75840;

// True if `large` large tiles take less time than `small` small ones, on this device.
bool large_tiles_are_sooner(int64_t large, int64_t small, bool dense);
