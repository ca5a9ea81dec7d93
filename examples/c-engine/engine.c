/* An engine in plain C: takes a weight as bitsandbytes stores it (NF4 codes, double-quantized absmax) and a LoRA pair,
 * computes
 *
 *     Y = X * deq(W)^T + bf16(scale * X * A^T) * B^T
 *
 * with the kernels, on a stream of its own, and checks it against a plain loop in double precision; then trains the
 * pair (train.c).
 *
 *     ./engine ../../tests/golden/nf4.safetensors
 *
 * Prints `ok` and the largest error as a share of its bound, and how far the loss fell, or ends with status 1. */
#include "layer.h"
#include "weight.h"

static uint16_t x[MAX_M * K], a[R * K], b[N * R], s[MAX_M * R], y[MAX_M * N], w[N * K];

/* The largest error of S and Y as a share of its bound. */
static double worst_error(int m) {
    double worst = 0;
    int row, n, k, r;
    for (row = 0; row < m; ++row) {
        for (r = 0; r < R; ++r) {
            sum expected = {0};
            for (k = 0; k < K; ++k) add(&expected, (double)f32_of(x[row * K + k]) * f32_of(a[r * K + k]) * SCALE);
            worst = larger(share(f32_of(s[row * R + r]), &expected, -8), worst);
        }
        for (n = 0; n < N; ++n) {
            sum expected = {0};
            for (k = 0; k < K; ++k) add(&expected, (double)f32_of(x[row * K + k]) * f32_of(w[n * K + k]));
            for (r = 0; r < R; ++r)
                add(&expected, (double)f32_of(s[row * R + r]) *
                                   f32_of(b[n * R + r])); /* with the kernel's S: its own error was measured above */
            worst = larger(share(f32_of(y[row * N + n]), &expected, -8), worst);
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
    qk_linear_args linear = {0};
    size_t i;
    if (argc != 2) fail("usage: engine FILE.safetensors");
    if (qk_abi_version() != QK_ABI_VERSION) fail("the library is not of the header's version");
    f = read_file(argv[1]);
    if (stream_create(&stream)) fail("no stream: is there a GPU?");

    /* The 8-bit absmax is the one part that changes its order: [N, K / 64] to [K / 64, N], on the device. */
    absmax_row_major = uploaded(tensor(&f, "up.b64.nested.codes", BLOCKS), BLOCKS);
    if (device_alloc(&absmax, BLOCKS)) fail("device memory");
    check(qk_absmax_transpose((const uint8_t *)absmax_row_major, (uint8_t *)absmax, N, K / BLOCK, stream),
          "qk_absmax_transpose");
    weight.struct_size = sizeof weight;
    weight.layout = QK_ABSMAX_TRANSPOSED;
    weight.n = N;
    weight.k = K;
    weight.block_size = BLOCK;
    weight.codes = (const uint8_t *)uploaded(tensor(&f, "up.b64.codes", N * K / 2), N * K / 2);
    weight.absmax_codes = (const uint8_t *)absmax;
    weight.nested_absmax = (const float *)uploaded(tensor(&f, "up.b64.nested.absmax", NESTED * 4), NESTED * 4);
    weight.nested_map = (const float *)uploaded(tensor(&f, "dynamic_map_signed", 256 * 4), 256 * 4);
    weight.offset =
        (const float *)uploaded(tensor(&f, "up.b64.nested.offset", 4), 4); /* on the device, like the rest */
    /* The weight that bitsandbytes itself would multiply with, for the check. */
    memcpy(w, tensor(&f, "up.b64.nested.dequantized_bf16", sizeof w), sizeof w);

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
        int64_t columns = 0;
        uint32_t path = 0;
        linear.m = rows[i];
        linear.s = NULL;
        check(qk_lora_columns(&linear, &columns), "qk_lora_columns");
        if (columns != R) fail("S does not have r columns, rounded up to 8");
        check(qk_lora_down(&linear, device_s, stream), "qk_lora_down");
        linear.s = device_s; /* given, so that no workspace is needed */
        check(qk_linear_forward(&linear, NULL, 0, stream), "qk_linear_forward");
        check(qk_linear_forward_path(&linear, &path), "qk_linear_forward_path");
        if (from_device(s, device_s, sizeof s, stream) || from_device(y, device_y, sizeof y, stream))
            fail("the kernels did not end well");
        error = worst_error(rows[i]);
        printf("%s c-engine: M %d, N %d, K %d, r %d, path %u: largest error %.3f of its bound\n",
               error <= 1 ? "ok" : "WRONG", rows[i], N, K, R, path, error);
        if (!(error <= 1)) return 1;
    }

    if (!train(&weight, w, stream)) return 1;

    device_free(absmax_row_major);
    device_free(absmax);
    device_free((void *)weight.codes);
    device_free((void *)weight.nested_absmax);
    device_free((void *)weight.nested_map);
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
