// Tiles of rows in shared memory: how the threads of a block share the work of copying one.
//
// A tile's row is kChunks chunks of 16 bytes. Every thread has one chunk of every kApart-th row: its addresses are one
// pointer on either side, and the rest are constants and multiples of a stride. (A loop over i = threadIdx.x computes
// row, chunk and a 64-bit product for each chunk, and does not unroll.) A swizzle that exchanges chunks by the
// row's number repeats after kPeriod rows, so that it too is a part of the one pointer.
#pragma once

#include "common/ptx.cuh"

template <int kRows, int kChunks, int kThreads, int kPeriod> struct TileLoader {
    static constexpr int kRowBytes = 16 * kChunks;
    static constexpr int kApart = kThreads / kChunks; // rows from one of a thread's chunks to its next
    static_assert(kThreads % kChunks == 0 && kRows % kApart == 0, "every thread copies equally many chunks");
    static_assert(kApart % kPeriod == 0, "a thread's rows have the same swizzle");

    // The thread's first row and its chunk.
    __device__ __forceinline__ static int row() { return int(threadIdx.x) / kChunks; }
    __device__ __forceinline__ static int chunk() { return int(threadIdx.x) % kChunks; }

    // Starts copying the thread's chunks: from `from`, the first of them, in rows of `row_bytes`, to `to`, where the
    // first belongs. Rows from `rows` on, counted from the thread's first, become zero; nothing of them is read.
    __device__ __forceinline__ static void load(unsigned char *to, const void *from, int64_t row_bytes,
                                                int rows ACCESS_SITE) {
        const unsigned char *source = static_cast<const unsigned char *>(from);
#pragma unroll
        for (int i = 0; i < kRows / kApart; ++i)
            cp_async_16(to + i * kApart * kRowBytes, source + i * kApart * row_bytes, i * kApart < rows PASS_SITE);
    }
};
