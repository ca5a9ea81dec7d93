/* An engine in plain C: takes a weight as bitsandbytes stores it (NF4 codes, double-quantised absmax) and a LoRA pair, computes
 *
 *     Y = X * deq(W)^T + bf16(scale * X * A^T) * B^T
 *
 * with the kernels, on a stream of its own, and checks it against a plain loop in double precision.
 *
 *     ./engine ../../tests/golden/nf4.safetensors
 *
 * Prints `ok` and the largest error as a share of its bound, or ends with status 1. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qlora_kernels.h>

/* ---- Memory and a stream: this engine's own business, which the kernels have no part in. ---- */

#ifdef QLORA_KERNELS_EMULATED /* set by the emulated library's pkg-config and CMake files: device memory is host memory */
typedef qk_stream stream_t;
static int device_alloc(void **p, size_t bytes) { return (*p = malloc(bytes)) == NULL; } /* 16-byte aligned, as the kernels ask */
static int to_device(void *to, const void *from, size_t bytes) { return memcpy(to, from, bytes) != to; }
static int from_device(void *to, const void *from, size_t bytes, stream_t stream) { return (void)stream, to_device(to, from, bytes); }
static int stream_create(stream_t *stream) { return (*stream = NULL) != NULL; }
static void device_free(void *p) { free(p); }
#else
#include <cuda_runtime_api.h>
typedef cudaStream_t stream_t;
static int device_alloc(void **p, size_t bytes) { return cudaMalloc(p, bytes) != cudaSuccess; }
static int to_device(void *to, const void *from, size_t bytes) { return cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice) != cudaSuccess; }
static int from_device(void *to, const void *from, size_t bytes, stream_t stream) {
    return cudaStreamSynchronize(stream) != cudaSuccess || cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost) != cudaSuccess;
}
/* A blocking stream: it waits for the copies above, which are in the default stream. */
static int stream_create(stream_t *stream) { return cudaStreamCreate(stream) != cudaSuccess; }
static void device_free(void *p) { cudaFree(p); }
#endif

static void fail(const char *what) {
    fprintf(stderr, "c-engine: %s\n", what);
    exit(1);
}

/* A call's status is 0, a cudaError_t (> 0) or a qk_status (< 0). */
static void check(int status, const char *what) {
    if (status == QK_OK) return;
    fprintf(stderr, "c-engine: %s: %s (%d)\n", what, qk_status_name(status), status);
    exit(1);
}

static void *uploaded(const void *host, size_t bytes) {
    void *device = NULL;
    if (device_alloc(&device, bytes) || to_device(device, host, bytes)) fail("device memory");
    return device;
}

/* ---- A weight from a safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes. ---- */

typedef struct file {
    char *header, *data;
    size_t data_bytes;
} file;

static file read_file(const char *path) {
    file f = {NULL, NULL, 0};
    unsigned char length[8];
    FILE *in = fopen(path, "rb");
    long end;
    size_t header_bytes = 0;
    int i;
    if (in == NULL || fseek(in, 0, SEEK_END) != 0 || (end = ftell(in)) < 8 || fseek(in, 0, SEEK_SET) != 0) fail("the weight file cannot be read");
    if (fread(length, 1, 8, in) != 8) fail("the weight file cannot be read");
    for (i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | length[i];
    if (header_bytes > (size_t)end - 8) fail("the weight file is no safetensors file");
    f.data_bytes = (size_t)end - 8 - header_bytes;
    f.header = (char *)calloc(header_bytes + 1, 1);
    f.data = (char *)malloc(f.data_bytes + 1);
    if (f.header == NULL || f.data == NULL) fail("memory");
    if (fread(f.header, 1, header_bytes, in) != header_bytes || fread(f.data, 1, f.data_bytes, in) != f.data_bytes) fail("the weight file is short");
    fclose(in);
    return f;
}

/* The bytes of one tensor, which has to have this many. */
static const void *tensor(const file *f, const char *name, size_t bytes) {
    char quoted[128];
    const char *entry, *offsets;
    unsigned long first, last;
    snprintf(quoted, sizeof quoted, "\"%s\":{", name);
    entry = strstr(f->header, quoted);
    offsets = entry == NULL ? NULL : strstr(entry, "\"data_offsets\":[");
    if (offsets == NULL || sscanf(offsets, "\"data_offsets\":[%lu,%lu]", &first, &last) != 2) fail(name);
    if (last > f->data_bytes || first > last || last - first != bytes) fail(name);
    return f->data + first;
}

/* ---- bf16 is the upper half of an f32. ---- */

static float f32_of(uint16_t bf16) {
    uint32_t bits = (uint32_t)bf16 << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Values in (-size, size), cut to bf16; the same on every machine. */
static void fill(uint16_t *to, size_t count, float size, uint32_t seed) {
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

enum { N = 33, K = 576, R = 8, BLOCK = 64, BLOCKS = N * K / BLOCK, NESTED = (BLOCKS + 255) / 256, MAX_M = 24 };
static const float SCALE = 2.0f; /* alpha 16 over r 8 */

static uint16_t x[MAX_M * K], a[R * K], b[N * R], s[MAX_M * R], y[MAX_M * N], w[N * K];

/* The largest |error| / bound of S and Y. A bound is what f32 sums of that many terms in any order, and one rounding to bf16
 * (2^-8), can differ by; 2^-23 a term, because tensor cores cut where f32 rounds. */
static double worst_error(int m) {
    double worst = 0;
    int row, n, k, r;
    for (row = 0; row < m; ++row) {
        for (r = 0; r < R; ++r) {
            double sum = 0, size = 0, error;
            for (k = 0; k < K; ++k) {
                double product = (double)f32_of(x[row * K + k]) * f32_of(a[r * K + k]) * SCALE;
                sum += product;
                size += fabs(product);
            }
            error = fabs(f32_of(s[row * R + r]) - sum) / (ldexp(fabs(sum), -8) + ldexp(K * size, -23));
            if (!(error <= worst)) worst = error;
        }
        for (n = 0; n < N; ++n) {
            double sum = 0, size = 0, error;
            for (k = 0; k < K; ++k) {
                double product = (double)f32_of(x[row * K + k]) * f32_of(w[n * K + k]);
                sum += product;
                size += fabs(product);
            }
            for (r = 0; r < R; ++r) { /* with the S that the kernel gave: its own error was measured above */
                double product = (double)f32_of(s[row * R + r]) * f32_of(b[n * R + r]);
                sum += product;
                size += fabs(product);
            }
            error = fabs(f32_of(y[row * N + n]) - sum) / (ldexp(fabs(sum), -8) + ldexp((K + R) * size, -23));
            if (!(error <= worst)) worst = error;
        }
    }
    return worst;
}

int main(int argc, char **argv) {
    static const int rows[] = {1, MAX_M}; /* a decoding step, and a batch on the tensor cores */
    file f;
    stream_t stream;
    void *absmax_row_major, *absmax, *device_x, *device_s, *device_y;
    qk_nf4 weight = {0};
    qk_lora lora = {0};
    qk_segment segment = {0};
    qk_linear linear = {0};
    size_t i;
    if (argc != 2) fail("usage: engine FILE.safetensors");
    if (qk_abi_version() != QK_ABI_VERSION) fail("the library is not of the header's version");
    f = read_file(argv[1]);
    if (stream_create(&stream)) fail("no stream: is there a GPU?");

    /* The 8-bit absmax is the one part that changes its order: [N, K / 64] to [K / 64, N], on the device. */
    absmax_row_major = uploaded(tensor(&f, "up.b64.nested.codes", BLOCKS), BLOCKS);
    if (device_alloc(&absmax, BLOCKS)) fail("device memory");
    check(qk_absmax_transpose((const uint8_t *)absmax_row_major, (uint8_t *)absmax, N, K / BLOCK, stream), "qk_absmax_transpose");
    weight.struct_size = sizeof weight;
    weight.layout = QK_ABSMAX_TRANSPOSED;
    weight.n = N;
    weight.k = K;
    weight.block_size = BLOCK;
    weight.codes = (const uint8_t *)uploaded(tensor(&f, "up.b64.codes", N * K / 2), N * K / 2);
    weight.absmax_codes = (const uint8_t *)absmax;
    weight.nested_absmax = (const float *)uploaded(tensor(&f, "up.b64.nested.absmax", NESTED * 4), NESTED * 4);
    weight.nested_code = (const float *)uploaded(tensor(&f, "dynamic_map_signed", 256 * 4), 256 * 4);
    weight.offset = (const float *)uploaded(tensor(&f, "up.b64.nested.offset", 4), 4); /* on the device, like the rest */
    /* What bitsandbytes itself would multiply with: the check's weight. */
    memcpy(w, tensor(&f, "up.b64.nested.dequantised_bf16", sizeof w), sizeof w);

    fill(x, MAX_M * K, 1.0f, 1);
    fill(a, R * K, 0.0625f, 2);
    fill(b, N * R, 0.0625f, 3);
    lora.struct_size = sizeof lora;
    lora.r = R;
    lora.scale = SCALE;
    lora.num_adapters = 1;
    lora.a = uploaded(a, sizeof a);
    lora.b = uploaded(b, sizeof b);

    device_x = uploaded(x, sizeof x);
    device_s = uploaded(s, sizeof s);
    device_y = uploaded(y, sizeof y);
    segment.struct_size = sizeof segment;
    segment.n = N;
    segment.nf4 = &weight;
    segment.lora = &lora;
    segment.y = device_y;
    segment.ldy = N;
    linear.struct_size = sizeof linear;
    linear.num_segments = 1;
    linear.k = K;
    linear.x = device_x;
    linear.ldx = K;
    linear.segments = &segment;

    for (i = 0; i < sizeof rows / sizeof *rows; ++i) {
        double error;
        linear.m = rows[i];
        linear.s = NULL;
        if (qk_lora_columns(&linear) != R) fail("qk_lora_columns"); /* r rounded up to 8 */
        check(qk_lora_down(&linear, device_s, stream), "qk_lora_down");
        linear.s = device_s; /* given, so that no workspace is needed */
        check(qk_linear_forward(&linear, NULL, 0, stream), "qk_linear_forward");
        if (from_device(s, device_s, sizeof s, stream) || from_device(y, device_y, sizeof y, stream)) fail("the kernels did not end well");
        error = worst_error(rows[i]);
        printf("%s c-engine: M %d, N %d, K %d, r %d, path %d: largest error %.3f of its bound\n", error <= 1 ? "ok" : "WRONG", rows[i], N, K, R,
               qk_linear_path(&linear), error);
        if (!(error <= 1)) return 1;
    }

    device_free(absmax_row_major);
    device_free(absmax);
    device_free((void *)weight.codes);
    device_free((void *)weight.nested_absmax);
    device_free((void *)weight.nested_code);
    device_free((void *)weight.offset);
    device_free((void *)lora.a);
    device_free((void *)lora.b);
    device_free(device_x);
    device_free(device_s);
    device_free(device_y);
    free(f.header);
    free(f.data);
    return 0;
}
