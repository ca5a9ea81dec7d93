/* Training steps of one layer: forward, squared error, gradients of X, A and B, and LoRA+ AdamW, all but the error by
 * the kernels. The target is the same layer with another pair, the teacher's, so a pair that learns can reach it. */
#include "layer.h"

enum { STEPS = 30, M = MAX_M, FALL = 10 /* to less than a tenth */ };
static const double RATE_A = 1e-3, RATIO = 16; /* LoRA+: B learns faster than A */

static uint16_t x[M * K], a[R * K], b[N * R], s[M * R], t[M * R], y[M * N], dy[M * N], dx[M * K], target[M * N];
static float a_master[R * K], b_master[N * R], da[R * K], db[N * R];

/* The mean squared error, and its gradient as dY. An engine has a kernel for this; here it is the host's work. */
static double squared_error(void) {
    double loss = 0;
    int i;
    for (i = 0; i < M * N; ++i) {
        float error = f32_of(y[i]) - f32_of(target[i]);
        loss += (double)error * error / (M * N);
        dy[i] = bf16_of(2 * error / (M * N));
    }
    return loss;
}

/* The largest error of T, dX, dA and dB as a share of its bound. */
static double worst_error(const uint16_t *w) {
    double worst = 0;
    int row, n, k, r;
    for (row = 0; row < M; ++row) {
        for (r = 0; r < R; ++r) {
            sum expected = {0};
            for (n = 0; n < N; ++n) add(&expected, (double)f32_of(dy[row * N + n]) * f32_of(b[n * R + r]) * SCALE);
            worst = larger(share(f32_of(t[row * R + r]), &expected, -8), worst);
        }
        for (k = 0; k < K; ++k) {
            sum expected = {0};
            for (n = 0; n < N; ++n) add(&expected, (double)f32_of(dy[row * N + n]) * f32_of(w[n * K + k]));
            for (r = 0; r < R; ++r) add(&expected, (double)f32_of(t[row * R + r]) * f32_of(a[r * K + k]));
            worst = larger(share(f32_of(dx[row * K + k]), &expected, -8), worst);
        }
    }
    for (r = 0; r < R; ++r) {
        for (k = 0; k < K; ++k) {
            sum expected = {0};
            for (row = 0; row < M; ++row) add(&expected, (double)f32_of(t[row * R + r]) * f32_of(x[row * K + k]));
            worst = larger(share(da[r * K + k], &expected, -24), worst);
        }
        for (n = 0; n < N; ++n) {
            sum expected = {0};
            for (row = 0; row < M; ++row) add(&expected, (double)f32_of(dy[row * N + n]) * f32_of(s[row * R + r]));
            worst = larger(share(db[n * R + r], &expected, -24), worst);
        }
    }
    return worst;
}

/* A trainable tensor: its f32 master copy, its gradient and both moments, beside the bf16 working copy that the layer
 * reads. */
static qk_adamw_tensor trainable(const uint16_t *values, float *master, const void *working, int64_t n, uint32_t rate) {
    static const float zeros[R * K + N * R];
    qk_adamw_tensor tensor = {0};
    int64_t i;
    for (i = 0; i < n; ++i) master[i] = f32_of(values[i]);
    tensor.struct_size = sizeof tensor;
    tensor.rate = rate;
    tensor.n = n;
    tensor.value = (float *)uploaded(master, (size_t)n * 4);
    tensor.working = (void *)working;
    tensor.gradient = (const float *)uploaded(zeros, (size_t)n * 4);
    tensor.m = uploaded(zeros, (size_t)n * 4);
    tensor.v = uploaded(zeros, (size_t)n * 4);
    return tensor;
}

int train(const qk_nf4 *weight, const uint16_t *w, stream_t stream) {
    static const float zeros[R * K];
    qk_lora lora = {0};
    qk_segment segment = {0};
    qk_linear_args linear = {0};
    qk_segment_backward segment_backward = {0};
    qk_linear_backward_args backward = {0};
    qk_adamw_tensor tensors[2];
    qk_adamw_args adamw = {0};
    qk_gradient_state found;
    void *device_x, *device_s, *device_t, *device_y, *device_dy, *device_dx, *teacher_a, *teacher_b, *table,
        *device_table, *workspace, *norm_workspace, *state, *rates;
    size_t bytes, norm_bytes;
    double first = 0, loss = 0, error = 0;
    int step, learned, i;

    fill(x, M * K, 1.0f, 11);
    device_x = uploaded(x, sizeof x);
    device_s = uploaded(s, sizeof s);
    device_t = uploaded(t, sizeof t);
    device_y = uploaded(y, sizeof y);
    device_dy = uploaded(dy, sizeof dy);
    device_dx = uploaded(dx, sizeof dx);
    fill(a, R * K, 0.0625f, 12);
    fill(b, N * R, 0.0625f, 13);
    teacher_a = uploaded(a, sizeof a);
    teacher_b = uploaded(b, sizeof b);
    fill(a, R * K, 0.0625f, 14); /* the pair that learns begins with B = 0 */
    memset(b, 0, sizeof b);

    /* The layer, as in the forward pass, with the teacher's pair first. */
    lora.struct_size = sizeof lora;
    lora.r = R;
    lora.scale = SCALE;
    lora.num_adapters = 1;
    lora.a = teacher_a;
    lora.b = teacher_b;
    segment.struct_size = sizeof segment;
    segment.n = N;
    segment.nf4 = weight;
    segment.lora = &lora;
    segment.y = device_y;
    segment.ldy = N;
    linear.struct_size = sizeof linear;
    linear.num_segments = 1;
    linear.m = M;
    linear.k = K;
    linear.x = device_x;
    linear.ldx = K;
    linear.segments = &segment;
    linear.s = device_s;
    check(qk_lora_down(&linear, device_s, stream), "qk_lora_down");
    check(qk_linear_forward(&linear, NULL, 0, stream), "qk_linear_forward");
    if (from_device(target, device_y, sizeof target, stream)) fail("the kernels did not end well");
    lora.a = uploaded(a, sizeof a);
    lora.b = uploaded(b, sizeof b);

    /* The optimizer: two tensors, each with a rate of its own. */
    tensors[0] = trainable(a, a_master, lora.a, R * K, 0);
    tensors[1] = trainable(b, b_master, lora.b, N * R, 1);
    check(qk_adamw_table_size(tensors, 2, &bytes), "qk_adamw_table_size");
    if ((table = malloc(bytes)) == NULL) fail("memory");
    check(qk_adamw_table(tensors, 2, table, bytes), "qk_adamw_table");
    device_table = uploaded(table, bytes);
    free(table);
    if (device_alloc(&state, sizeof found) || device_alloc(&rates, 2 * sizeof(qk_adamw_rate))) fail("device memory");
    adamw.struct_size = sizeof adamw;
    adamw.num_tensors = 2;
    adamw.tensors = tensors;
    adamw.table = device_table;
    adamw.rates = (const qk_adamw_rate *)rates;
    adamw.num_rates = 2;
    adamw.gradient_state = (const qk_gradient_state *)state;
    check(qk_gradient_norm_workspace_size(&adamw, &norm_bytes), "qk_gradient_norm_workspace_size");
    if (device_alloc(&norm_workspace, norm_bytes)) fail("device memory");

    /* The layer seen from its gradient. */
    segment_backward.struct_size = sizeof segment_backward;
    segment_backward.n = N;
    segment_backward.nf4 = weight;
    segment_backward.lora = &lora;
    segment_backward.dy = device_dy;
    segment_backward.lddy = N;
    segment_backward.da = (float *)tensors[0].gradient;
    segment_backward.db = (float *)tensors[1].gradient;
    backward.struct_size = sizeof backward;
    backward.num_segments = 1;
    backward.m = M;
    backward.k = K;
    backward.x = device_x;
    backward.ldx = K;
    backward.dx = device_dx;
    backward.lddx = K;
    backward.segments = &segment_backward;
    backward.s = device_s;
    backward.t = device_t; /* given, so that qk_linear_dx needs no workspace */
    check(qk_lora_gradients_workspace_size(&backward, &bytes), "qk_lora_gradients_workspace_size");
    if (device_alloc(&workspace, bytes + 16)) fail("device memory"); /* it may ask for none */

    for (step = 1; step <= STEPS; ++step) {
        qk_adamw_rate rate[2];
        check(qk_lora_down(&linear, device_s, stream), "qk_lora_down");
        check(qk_linear_forward(&linear, NULL, 0, stream), "qk_linear_forward");
        if (from_device(y, device_y, sizeof y, stream)) fail("the kernels did not end well");
        loss = squared_error();
        if (step == 1) first = loss;
        if (step == 1 || step % 10 == 0) printf("   c-engine: step %2d, loss %.6f\n", step, loss);

        if (to_device(device_dy, dy, sizeof dy) || to_device(segment_backward.da, zeros, sizeof da) ||
            to_device(segment_backward.db, zeros, sizeof db))
            fail("device memory");
        check(qk_lora_dy_b(&backward, device_t, stream), "qk_lora_dy_b");
        check(qk_linear_dx(&backward, NULL, 0, stream), "qk_linear_dx"); /* for the layer below, which there is not */
        check(qk_lora_gradients(&backward, workspace, bytes, stream), "qk_lora_gradients");
        if (step == STEPS) { /* B is not zero any more */
            if (from_device(a, lora.a, sizeof a, stream) || from_device(b, lora.b, sizeof b, stream) ||
                from_device(s, device_s, sizeof s, stream) || from_device(t, device_t, sizeof t, stream) ||
                from_device(dx, device_dx, sizeof dx, stream) ||
                from_device(da, segment_backward.da, sizeof da, stream) ||
                from_device(db, segment_backward.db, sizeof db, stream))
                fail("the kernels did not end well");
            error = worst_error(w);
        }

        check(qk_adamw_rate_of(RATE_A, 0.9, 0.999, 1e-8, 0, (uint64_t)step, &rate[0]), "qk_adamw_rate_of");
        check(qk_adamw_rate_of(RATE_A * RATIO, 0.9, 0.999, 1e-8, 0, (uint64_t)step, &rate[1]), "qk_adamw_rate_of");
        if (to_device(rates, rate, sizeof rate)) fail("device memory");
        check(qk_gradient_norm(&adamw, 1.0, (qk_gradient_state *)state, norm_workspace, norm_bytes, stream),
              "qk_gradient_norm");
        check(qk_adamw_update(&adamw, stream), "qk_adamw_update"); /* scales by what the norm says, on the device */
    }
    if (from_device(&found, state, sizeof found, stream)) fail("the kernels did not end well");
    printf("%s c-engine: T, dX, dA and dB: largest error %.3f of its bound\n", error <= 1 ? "ok" : "WRONG", error);
    if (found.tensor >= 0) printf("   c-engine: the gradient of tensor %d is not finite\n", found.tensor);
    learned = loss < first / FALL; /* false for a NaN */
    printf("%s c-engine: %d steps, loss %.6f to %.6f, 1/%d of it asked for\n", learned ? "ok" : "WRONG", STEPS, first,
           loss, FALL);

    for (i = 0; i < 2; ++i) {
        device_free(tensors[i].value);
        device_free((void *)tensors[i].gradient);
        device_free(tensors[i].m);
        device_free(tensors[i].v);
    }
    device_free((void *)lora.a);
    device_free((void *)lora.b);
    device_free(teacher_a);
    device_free(teacher_b);
    device_free(device_x);
    device_free(device_s);
    device_free(device_t);
    device_free(device_y);
    device_free(device_dy);
    device_free(device_dx);
    device_free(device_table);
    device_free(rates);
    device_free(state);
    device_free(norm_workspace);
    device_free(workspace);
    return error <= 1 && found.tensor < 0 && learned;
}
