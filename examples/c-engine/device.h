/* The engine's own part: memory, a stream, and the end of the program when something fails. */
#ifndef ENGINE_DEVICE_H
#define ENGINE_DEVICE_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qlora_kernels.h>

/* ---- Memory and a stream: this engine's own business, which the kernels have no part in. ---- */

#ifdef QLORA_KERNELS_EMULATED /* set by the emulated library's pkg-config and CMake files: device memory is host \
                                 memory */
typedef qk_stream stream_t;
static inline int device_alloc(void **p, size_t bytes) {
    return (*p = malloc(bytes)) == NULL;
} /* 16-byte aligned, as the kernels ask */
static inline int to_device(void *to, const void *from, size_t bytes) { return memcpy(to, from, bytes) != to; }
static inline int from_device(void *to, const void *from, size_t bytes, stream_t stream) {
    return (void)stream, to_device(to, from, bytes);
}
static inline int stream_create(stream_t *stream) { return (*stream = NULL) != NULL; }
static inline void device_free(void *p) { free(p); }
#else
#include <cuda_runtime_api.h>
typedef cudaStream_t stream_t;
static inline int device_alloc(void **p, size_t bytes) { return cudaMalloc(p, bytes) != cudaSuccess; }
static inline int to_device(void *to, const void *from, size_t bytes) {
    return cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice) != cudaSuccess;
}
static inline int from_device(void *to, const void *from, size_t bytes, stream_t stream) {
    return cudaStreamSynchronize(stream) != cudaSuccess ||
           cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost) != cudaSuccess;
}
/* A blocking stream: it waits for the copies above, which are in the default stream. */
static inline int stream_create(stream_t *stream) { return cudaStreamCreate(stream) != cudaSuccess; }
static inline void device_free(void *p) { cudaFree(p); }
#endif

static inline void fail(const char *what) {
    fprintf(stderr, "c-engine: %s\n", what);
    exit(1);
}

/* A call's status is 0, a cudaError_t (> 0) or a qk_status (< 0). */
static inline void check(int status, const char *what) {
    if (status == QK_OK) return;
    fprintf(stderr, "c-engine: %s: %s (%d)\n", what, qk_status_name(status), status);
    exit(1);
}

static inline void *uploaded(const void *host, size_t bytes) {
    void *device = NULL;
    if (device_alloc(&device, bytes) || to_device(device, host, bytes)) fail("device memory");
    return device;
}

/* ---- bf16 is the upper half of an f32. ---- */

static inline float f32_of(uint16_t bf16) {
    uint32_t bits = (uint32_t)bf16 << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Values in (-size, size), cut to bf16; the same on every machine. */
static inline void fill(uint16_t *to, size_t count, float size, uint32_t seed) {
    size_t i;
    for (i = 0; i < count; ++i) {
        float value;
        uint32_t bits;
        seed = seed * 1664525u + 1013904223u;
        value = ((float)(seed >> 8) / 8388608.0f - 1.0f) * size;
        memcpy(&bits, &value, 4);
        to[i] = (uint16_t)(bits >> 16);
    }
}

static inline uint16_t bf16_of(float value) { /* to the nearest, ties to even; no NaN comes here */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* ---- What every check compares with: a sum of products in double precision. ---- */

typedef struct sum {
    double value, size; /* of the terms, and of their absolute values */
    int terms;
} sum;

static inline void add(sum *s, double product) {
    s->value += product;
    s->size += fabs(product);
    s->terms++;
}

/* |error| of a kernel's result as a share of its bound: f32 sums in any order (2^-23 a term, because
 * tensor cores cut where f32 rounds) and one rounding to bf16 (rounding -8), or to none (-24). Infinite for a NaN. */
static inline double share(double found, const sum *s, int rounding) {
    double error = fabs(found - s->value) / (ldexp(fabs(s->value), rounding) + ldexp(s->terms * s->size, -23));
    return error >= 0 ? error : HUGE_VAL;
}

static inline double larger(double a, double b) { return a >= b ? a : b; }

#endif
