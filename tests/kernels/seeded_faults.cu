// Small kernels for the tests of the emulation: one right, and the same with one bug each, which must be seen.
#include "common/rows.cuh"

namespace {

constexpr int kThreads = 128;

// out[i] = in[kThreads - 1 - i] through shared memory: each thread reads what another warp wrote.
template <bool barrier> __global__ void reverse(const float *in, float *out) {
    float *shared = reinterpret_cast<float *>(dynamic_shared());
    shared[threadIdx.x] = in[threadIdx.x];
    if (barrier) __syncthreads();
    out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

// Two rounds through the same memory; without the barrier between them a warp overwrites what another has yet to read.
template <bool barrier> __global__ void twice(const float *in, float *out) {
    float *shared = reinterpret_cast<float *>(dynamic_shared());
    float sum = 0.0f;
    for (int round = 0; round < 2; ++round) {
        shared[threadIdx.x] = in[threadIdx.x] + float(round);
        __syncthreads();
        sum += shared[kThreads - 1 - threadIdx.x];
        if (barrier) __syncthreads();
    }
    out[threadIdx.x] = sum;
}

// Lanes exchange through shared memory inside a warp.
template <bool barrier> __global__ void warp_reverse(const float *in, float *out) {
    float *shared = reinterpret_cast<float *>(dynamic_shared());
    shared[threadIdx.x] = in[threadIdx.x];
    if (barrier) __syncwarp();
    out[threadIdx.x] = shared[threadIdx.x ^ 31];
}

// A copy of 16 bytes a thread by cp.async.
template <bool wait> __global__ void copy(const float *in, float *out) {
    float *shared = reinterpret_cast<float *>(dynamic_shared());
    int at = threadIdx.x * 4;
    cp_async_16(shared + at, in + at, true);
    cp_async_commit();
    if (wait) cp_async_wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) out[at + i] = shared[at + i];
}

// Writes `extra` elements past the end of its shared memory.
__global__ void overrun(const float *in, float *out, int extra) {
    float *shared = reinterpret_cast<float *>(dynamic_shared());
    shared[threadIdx.x + extra] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x];
}

// An ldmatrix of a row past the end.
__global__ void ldmatrix_overrun(float *out) {
    unsigned char *shared = dynamic_shared();
    uint32_t fragment[4];
    ldmatrix_x4(fragment, shared + 16 * (threadIdx.x % 32 + 1));
    out[threadIdx.x] = float(fragment[0]);
}

// Thread 5 leaves before the barrier (how = 0), or warp 1 waits at another one (how = 1).
__global__ void diverge(const float *in, float *out, int how) {
    if (how == 0 && threadIdx.x == 5) return;
    if (how == 1 && threadIdx.x / 32 == 1) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = in[threadIdx.x];
}

// Reads shared memory that nothing wrote.
__global__ void poison(float *out) { out[threadIdx.x] = reinterpret_cast<float *>(dynamic_shared())[threadIdx.x]; }

// Rows of 32 floats in shared memory, whose neighbors a warp reads in a row (`columns` false: 32 banks) or in a column
// (one bank), from global memory in rows of 32 (`apart` 1) or `apart` floats apart.
__global__ void patterns(const float *in, float *out, bool columns, int apart) {
    float *shared = reinterpret_cast<float *>(dynamic_shared());
    int lane = threadIdx.x % 32, row = threadIdx.x / 32;
    store_as<float>(shared + threadIdx.x, load_as<float>(in + threadIdx.x * apart));
    __syncthreads();
    float value = load_as<float>(shared + (columns ? lane * 32 : row * 32 + lane) % kThreads);
    store_as<float>(out + threadIdx.x, value);
}

// 16 bytes of each row of 128, from shared memory: every chunk in the same four banks, or (`swizzled`) spread over all.
__global__ void matrix(uint32_t *out, bool swizzled) {
    unsigned char *shared = dynamic_shared();
    int lane = threadIdx.x;
    for (int i = 0; i < 8; ++i) store_as<uint4>(shared + (lane * 8 + i) * 16, make_uint4(1, 2, 3, 4));
    __syncwarp();
    uint32_t fragment[4];
    ldmatrix_x4(fragment, shared + lane * 128 + (swizzled ? lane % 8 * 16 : 0));
    store_as<uint4>(out + lane * 4, make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]));
}

// A load of 8 bytes from an address that is a multiple of 4.
__global__ void misaligned(const float *in, float *out) { out[0] = load_as<float2>(in + 1).x; }

// An mma that nothing waits for (how = 0), that a barrier comes before the wait for (how = 1), or that half of a warp
// issues from another place (how = 2).
__global__ void product(float *out, int how) {
    float sums[4] = {};
    uint32_t a[4] = {}, b[2] = {};
    if (how == 2 && threadIdx.x % 32 < 16) {
        mma_m16n8k16(sums, a, b);
    } else {
        mma_m16n8k16(sums, a, b);
    }
    if (how == 1) __syncthreads();
    if (how != 0) mma_wait();
    out[threadIdx.x] = sums[0];
}

// Ballot of odd lanes, and every shuffle, of the lane's number: [32, 5].
__global__ void lanes(uint32_t *out) {
    uint32_t lane = threadIdx.x, *row = out + lane * 5;
    row[0] = __ballot_sync(~0u, lane % 2);
    row[1] = __shfl_sync(~0u, lane, 7);
    row[2] = __shfl_xor_sync(~0u, lane, 5);
    row[3] = __shfl_up_sync(~0u, lane, 3);
    row[4] = __shfl_down_sync(~0u, lane, 3);
}

// Sums over 32 lanes, and over 8, each beside what the shuffles of its tree give: [kThreads, 4].
__global__ void trees(const float *in, float *out) {
    float x = 1.0f / (in[threadIdx.x] + 1.0f), y = 3.0f * x, over_32 = x, over_8 = y, *row = out + threadIdx.x * 4;
    for (int half = 16; half > 0; half /= 2) over_32 += __shfl_xor_sync(~0u, over_32, half);
    for (int half = 4; half > 0; half /= 2) over_8 += __shfl_xor_sync(~0u, over_8, half);
    row[0] = lane_sum(x), row[1] = over_32;
    row[2] = lane_sums(x, y, 8).y, row[3] = over_8;
}

// Every thread of every block adds one.
__global__ void count(uint32_t *counter) { atomicAdd(counter, 1u); }

constexpr size_t kShared = kThreads * sizeof(float);

}  // namespace

enum Fault {
    Reverse,
    ReverseNoBarrier,
    Twice,
    TwiceNoBarrier,
    WarpReverse,
    WarpReverseNoBarrier,
    Copy,
    CopyNoWait,
    Overrun,
    LdmatrixOverrun,
    ThreadLeaves,
    OtherBarrier,
    Poison,
    Rows,
    Columns,
    Apart,
    Matrix,
    MatrixSwizzled,
    Misaligned,
    MmaNoWait,
    MmaAtBarrier,
    MmaApart,
    Trees,
};

// in and out have 4 * 128 elements.
extern "C" int seeded_run(int which, const float *in, float *out) {
    dim3 one(1), threads(kThreads);
    switch (which) {
    case Reverse: return launch(reverse<true>, one, threads, kShared, nullptr, in, out);
    case ReverseNoBarrier: return launch(reverse<false>, one, threads, kShared, nullptr, in, out);
    case Twice: return launch(twice<true>, one, threads, kShared, nullptr, in, out);
    case TwiceNoBarrier: return launch(twice<false>, one, threads, kShared, nullptr, in, out);
    case WarpReverse: return launch(warp_reverse<true>, one, threads, kShared, nullptr, in, out);
    case WarpReverseNoBarrier: return launch(warp_reverse<false>, one, threads, kShared, nullptr, in, out);
    case Copy: return launch(copy<true>, one, threads, 4 * kShared, nullptr, in, out);
    case CopyNoWait: return launch(copy<false>, one, threads, 4 * kShared, nullptr, in, out);
    case Overrun: return launch(overrun, one, threads, kShared, nullptr, in, out, 1);
    case LdmatrixOverrun: return launch(ldmatrix_overrun, one, threads, 32 * 16, nullptr, out);
    case ThreadLeaves: return launch(diverge, one, threads, 0, nullptr, in, out, 0);
    case OtherBarrier: return launch(diverge, one, threads, 0, nullptr, in, out, 1);
    case Poison: return launch(poison, one, threads, kShared, nullptr, out);
    case Rows: return launch(patterns, one, threads, kShared, nullptr, in, out, false, 1);
    case Columns: return launch(patterns, one, threads, kShared, nullptr, in, out, true, 1);
    case Apart: return launch(patterns, one, threads, kShared, nullptr, in, out, false, 4);
    case Matrix: return launch(matrix, one, dim3(32), 32 * 128, nullptr, reinterpret_cast<uint32_t *>(out), false);
    case MatrixSwizzled:
        return launch(matrix, one, dim3(32), 32 * 128, nullptr, reinterpret_cast<uint32_t *>(out), true);
    case MmaNoWait:
    case MmaAtBarrier:
    case MmaApart: return launch(product, one, threads, 0, nullptr, out, which - MmaNoWait);
    case Trees: return launch(trees, one, threads, 0, nullptr, in, out);
    case Misaligned: return launch(misaligned, one, dim3(32), 0, nullptr, in, out);
    default: return QK_ERROR_NOT_BUILT;
    }
}

extern "C" int seeded_lanes(uint32_t *out) { return launch(lanes, dim3(1), dim3(32), 0, nullptr, out); }

extern "C" int seeded_count(uint32_t *counter) {
    return launch(count, dim3(5, 3, 2), dim3(64, 2), 0, nullptr, counter);
}
