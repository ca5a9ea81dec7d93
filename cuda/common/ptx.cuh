// The only inline PTX, one function per instruction, each with its host version. Fragment layouts: PTX ISA, "Matrix
// fragments for mma.m16n8k16 with floating point type" and "ldmatrix". With g = lane / 4 and t = lane % 4:
//   A (16 x 16): a[0] rows g, columns 2t, 2t+1; a[1] rows g+8; a[2] row g, columns 2t+8, 2t+9; a[3] row g+8, likewise
//   B (16 x 8):  b[0] rows 2t, 2t+1 of column g; b[1] rows 2t+8, 2t+9
//   C (16 x 8):  c[0], c[1] row g, columns 2t, 2t+1; c[2], c[3] row g+8
// The lower index is in the lower half of a register.
#pragma once

#include "common/access.cuh"

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(bf16 value) {
#ifdef QK_EMULATION
    return __uint_as_float(uint32_t(value.bits) << 16);
#else
    return __bfloat162float(value);
#endif
}

// Round to nearest even; every NaN becomes 0x7fff, as cvt does.
__device__ __forceinline__ bf16 to_bf16(float value) {
#ifdef QK_EMULATION
    uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{0x7fff};
    return bf16{static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
#else
    return __float2bfloat16_rn(value);
#endif
}

// cvt.rn.bf16x2.f32: two roundings in one instruction.
__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high) {
#ifdef QK_EMULATION
    return uint32_t(to_bf16(high).bits) << 16 | to_bf16(low).bits;
#else
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

// ex2.approx.ftz.f32: 2^x to 2^-22 of it, without the scaling by which exp2f() returns subnormal numbers; those are 0.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef QK_EMULATION
    float power = exp2f(x);
    return power < 0x1p-126f ? 0.0f : power;
#else
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#endif
}

// rcp.approx.ftz.f32: 1 / x to 2^-23 of it; 0 of infinity.
__device__ __forceinline__ float reciprocal_approx(float x) {
#ifdef QK_EMULATION
    return 1.0f / x;
#else
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(x));
    return reciprocal;
#endif
}

__device__ __forceinline__ float low_float(uint32_t bf16x2) { return __uint_as_float(bf16x2 << 16); }
__device__ __forceinline__ float high_float(uint32_t bf16x2) { return __uint_as_float(bf16x2 & 0xffff0000u); }

// c += a * b, f32 accumulators. The order in which hardware adds the 16 products is its own: results on the
// host and on a GPU agree to rounding, and exactly when no partial sum rounds.
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2] ACCESS_SITE) {
#ifdef QK_EMULATION
    emulation::issue_product(c, a, b, site);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Between an mma and the first look at its sums. A GPU waits by itself; in the emulation, where all lanes have to meet
// for an mma, they meet here for all that came before.
#ifdef QK_EMULATION
inline void mma_wait(emulation::Site site = emulation::Site::here()) { emulation::wait_for_products(site); }
#else
__device__ __forceinline__ void mma_wait() {}
#endif

#ifdef QK_EMULATION
// Four 8 x 8 matrices of 16-bit elements; lane l brings the address of row l % 8 of matrix l / 8 and gets two
// neighbors of each.
template <bool transposed> void emulated_ldmatrix(uint32_t (&d)[4], const void *row, emulation::Site site) {
    emulation::check_shared(row, 16, site);
    struct Slot { const void *row; uint32_t *d; } slot = {row, d};
    emulation::warp_collective(~0u, slot, site, [site](Slot *(&lanes)[32]) {
        if (emulation::counting()) {
            const void *rows[32];
            for (int lane = 0; lane < 32; ++lane) rows[lane] = lanes[lane]->row;
            emulation::count_matrix(rows, site);
        }
        for (int lane = 0; lane < 32; ++lane)
            for (int matrix = 0; matrix < 4; ++matrix) {
                uint16_t pair[2];
                for (int i = 0; i < 2; ++i) {
                    int row = transposed ? lane % 4 * 2 + i : lane / 4,
                        column = transposed ? lane / 4 : lane % 4 * 2 + i;
                    std::memcpy(&pair[i], static_cast<const char *>(lanes[matrix * 8 + row]->row) + 2 * column, 2);
                }
                lanes[lane]->d[matrix] = uint32_t(pair[1]) << 16 | pair[0];
            }
    });
}
#endif

// ldmatrix.x4: `row` is in shared memory, 16 bytes, 16-byte aligned.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], const void *row ACCESS_SITE) {
#ifdef QK_EMULATION
    emulated_ldmatrix<false>(d, row, site);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
                 : "memory");
#endif
}

// ldmatrix.x4.trans: each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&d)[4], const void *row ACCESS_SITE) {
#ifdef QK_EMULATION
    emulated_ldmatrix<true>(d, row, site);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
                 : "memory");
#endif
}

// cp.async.cg of the first `bytes` of 16 bytes from global to shared memory, and zeros after them; reads nothing if
// `bytes` is 0.
__device__ __forceinline__ void cp_async_partial(void *shared, const void *global, int bytes ACCESS_SITE) {
#ifdef QK_EMULATION
    emulation::async_copy(shared, global, bytes, site);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "l"(__cvta_generic_to_global(global)),
                   "r"(bytes)
                 : "memory");
#endif
}

// All 16 bytes; 16 zero bytes, and no read, if not `valid`.
__device__ __forceinline__ void cp_async_16(void *shared, const void *global, bool valid ACCESS_SITE) {
    cp_async_partial(shared, global, valid ? 16 : 0 PASS_SITE);
}

__device__ __forceinline__ void cp_async_commit() {
#ifdef QK_EMULATION
    emulation::async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` of this thread's newest groups are under way.
template <int pending> __device__ __forceinline__ void cp_async_wait() {
#ifdef QK_EMULATION
    emulation::async_wait(pending);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}
