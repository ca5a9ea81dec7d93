// One kernel per PTX instruction of common/ptx.cuh, for one warp: a GPU and the host versions must both agree with the
// PTX manual's tables.
#include "common/ptx.cuh"

namespace {

// Fragments in and out: element j of lane l at l * width + j.
__global__ void one_mma(const uint32_t *a /* [32, 4] */, const uint32_t *b /* [32, 2] */, float *c /* [32, 4] */) {
    int lane = threadIdx.x;
    uint32_t fragment_a[4], fragment_b[2];
    float sums[4];
    for (int i = 0; i < 4; ++i) fragment_a[i] = a[lane * 4 + i], sums[i] = c[lane * 4 + i];
    for (int i = 0; i < 2; ++i) fragment_b[i] = b[lane * 2 + i];
    mma_m16n8k16(sums, fragment_a, fragment_b);
    mma_wait();
    for (int i = 0; i < 4; ++i) c[lane * 4 + i] = sums[i];
}

// d [32, 4] = ldmatrix of 32 rows of 8 16-bit elements.
template <bool transposed> __global__ void one_ldmatrix(const uint32_t *rows /* [32, 4] */, uint32_t *d) {
    uint32_t *shared = reinterpret_cast<uint32_t *>(dynamic_shared());
    int lane = threadIdx.x;
    for (int i = 0; i < 4; ++i) shared[lane * 4 + i] = rows[lane * 4 + i];
    __syncwarp();
    uint32_t fragment[4];
    if (transposed) ldmatrix_x4_trans(fragment, shared + lane * 4);
    else ldmatrix_x4(fragment, shared + lane * 4);
    for (int i = 0; i < 4; ++i) d[lane * 4 + i] = fragment[i];
}

// Two groups of 16 bytes a lane: the first is read when only it is waited for, the second after both. Lane l copies if
// bit l of `valid` is set, and gets zeros if not.
__global__ void two_cp_async(const uint32_t *in /* [2, 32, 4] */, uint32_t valid, uint32_t bytes,
                             uint32_t *out /* [2, 32, 4] */) {
    uint32_t *shared = reinterpret_cast<uint32_t *>(dynamic_shared());
    int lane = threadIdx.x;
    for (int group = 0; group < 2; ++group) {
        int at = (group * 32 + lane) * 4;
        if (bytes == 0) cp_async_16(shared + at, in + at, valid >> lane & 1);
        else cp_async_partial(shared + at, in + at, valid >> lane & 1 ? 16 : int(bytes));
        cp_async_commit();
    }
    cp_async_wait<1>();
    for (int i = 0; i < 4; ++i) out[lane * 4 + i] = shared[lane * 4 + i];
    cp_async_wait<0>();
    for (int i = 0; i < 4; ++i) out[(32 + lane) * 4 + i] = shared[(32 + lane) * 4 + i];
}

// packed[i] = bf16x2 of pairs[2i] (low) and pairs[2i + 1] (high).
__global__ void pack(const uint32_t *pairs /* [2 * count], bits of f32 */, uint32_t *packed /* [count] */, int count) {
    for (int i = threadIdx.x; i < count; i += 32)
        packed[i] = pack_bf16x2(__uint_as_float(pairs[2 * i]), __uint_as_float(pairs[2 * i + 1]));
}

}  // namespace

extern "C" int twin_mma(const uint32_t *a, const uint32_t *b, float *c, qk_stream stream) {
    return launch(one_mma, dim3(1), dim3(32), 0, stream, a, b, c);
}

extern "C" int twin_ldmatrix(int transposed, const uint32_t *rows, uint32_t *d, qk_stream stream) {
    return launch(transposed ? one_ldmatrix<true> : one_ldmatrix<false>, dim3(1), dim3(32), 512, stream, rows, d);
}

extern "C" int twin_cp_async(const uint32_t *in, uint32_t valid, uint32_t bytes, uint32_t *out, qk_stream stream) {
    return launch(two_cp_async, dim3(1), dim3(32), 1024, stream, in, valid, bytes, out);
}

extern "C" int twin_pack(const uint32_t *pairs, uint32_t *packed, int count, qk_stream stream) {
    return launch(pack, dim3(1), dim3(32), 0, stream, pairs, packed, count);
}
