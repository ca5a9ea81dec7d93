// The host side of the fused linear layer: check the operand, choose the kernel by its shape, launch it.
#include <cmath>
#include <cstdio>

#include "common/abi.cuh"
#include "linear/linear.cuh"

namespace {

int check_segment(const qk_linear_args *linear, uint32_t index, SegmentView *view) {
    qk_segment own, *segment = &own;
    if (int error = read_element(linear->segments, index, segment)) return error;
    if (segment->n < 1 || segment->n > INT32_MAX || segment->ldy < segment->n) return QK_ERROR_SHAPE;
    if ((segment->nf4 != nullptr) == (segment->dense != nullptr)) return QK_ERROR_NULL_POINTER;
    if (segment->y == nullptr && linear->m > 0) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(segment->y, 16) || !is_aligned(segment->dense, 16) || !is_aligned(segment->bias, 2))
        return QK_ERROR_ALIGNMENT;
    if (segment->nf4 != nullptr) {
        if (int error = nf4_view(segment->nf4, &view->nf4)) return error;
        if (view->nf4.n != segment->n || view->nf4.k != linear->k) return QK_ERROR_SHAPE;
    }
    view->dense = static_cast<const bf16 *>(segment->dense);
    view->bias = static_cast<const bf16 *>(segment->bias);
    view->y = static_cast<bf16 *>(segment->y);
    view->n = segment->n;
    view->ldy = segment->ldy;
    return segment->lora == nullptr ? QK_OK : lora_view(segment->lora, view);
}

int check(const qk_linear_args *caller, LinearView *view) {
    qk_linear_args own, *linear = &own;
    *view = {};
    if (int error = read_struct(caller, linear)) return error;
    if (linear->num_segments < 1 || linear->num_segments > QK_MAX_SEGMENTS) return QK_ERROR_SHAPE;
    if (linear->m < 0 || linear->m > INT32_MAX || linear->k < 1 || linear->k > INT32_MAX || linear->ldx < linear->k)
        return QK_ERROR_SHAPE;
    if (linear->segments == nullptr || (linear->x == nullptr && linear->m > 0)) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(linear->x, 16) || !is_aligned(linear->s, 16)) return QK_ERROR_ALIGNMENT;
    view->x = static_cast<const bf16 *>(linear->x);
    view->m = linear->m;
    view->k = linear->k;
    view->ldx = linear->ldx;
    view->num_segments = int(linear->num_segments);
    for (uint32_t i = 0; i < linear->num_segments; ++i) {
        SegmentView *segment = &view->segments[i];
        if (int error = check_segment(linear, i, segment)) return error;
        segment->s_column = view->columns;
        view->columns += round_up_8(segment->r);
    }
    if (int error = low_rank_stride(linear->lds, view->columns, &view->lds)) return error;
    if (linear->room != nullptr) {
        bool fits = linear->room == view->x + linear->k && linear->ldx >= linear->k + view->columns;
        if (linear->s == linear->room) fits &= view->lds == linear->ldx;
        if (!fits || linear->ldx % 8 != 0) return QK_ERROR_SHAPE;
    }
    if (view->columns > 0) {
        view->s = static_cast<const bf16 *>(linear->s);
        view->room = static_cast<bf16 *>(linear->room);
    }
    return dropout_view(linear->dropout, linear->m, &view->dropout);
}

LinearChoice choose(const LinearView &view) {
    LinearChoice choice = {QK_PATH_GENERIC, 0, 0, view.segments[0].dense != nullptr, false};
    bool generic = view.k % kTileK != 0 || view.ldx % 8 != 0;
    for (int i = 0; i < view.num_segments; ++i)
        generic |= view.segments[i].dense == nullptr && view.segments[i].nf4.block_shift != 6;
    if (generic) return choice;
    if (view.m <= kMostTokensOfSmallM) {
        bool wide = view.tiles(kWideColumns, false) >= kBlocksOfWideTiles;
        choice.path = QK_PATH_SMALL_M;
        choice.tokens = kMostTokensOfSmallM;
        choice.columns = wide ? kWideColumns : kNarrowColumns;
        return choice;
    }
    choice.masked = view.has_adapters();
    int64_t large = ceil_div(view.m, kLargeTokens) * view.tiles(kLargeColumns, false);
    int64_t small = ceil_div(view.m, kSmallTokens) * view.tiles(kSmallColumns, false);
    bool is_large = !choice.masked && large_tiles_are_sooner(large, small, choice.dense);
    choice.path = QK_PATH_TENSOR_CORE;
    choice.tokens = is_large ? kLargeTokens : kSmallTokens;
    choice.columns = is_large ? kLargeColumns : kSmallColumns;
    return choice;
}

struct Multiprocessors {
    int64_t count, shared_bytes; // bytes of shared memory of each
};

// The device's; those of an A100 in the emulation, and where no device says: a launch will fail, not a choice.
Multiprocessors multiprocessors() {
    Multiprocessors found = {108, 164 * 1024};
#ifndef QK_EMULATION
    int device = 0, count = 0, bytes = 0;
    bool is_known = cudaGetDevice(&device) == cudaSuccess &&
                    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
                    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) == cudaSuccess;
    if (is_known && count > 0) found = {count, bytes};
    else (void)cudaGetLastError();
#endif
    return found;
}

int launch(const LinearView &view, const LinearChoice &choice, qk_stream stream) {
    switch (choice.path) {
    case QK_PATH_TENSOR_CORE: return launch_linear_tensor_core(view, choice, stream);
    case QK_PATH_SMALL_M: return launch_linear_small_m(view, choice, stream);
    default: return launch_linear_generic(view, stream);
    }
}

size_t workspace_bytes_of(const LinearView &view) {
    return view.s != nullptr ? 0 : size_t(view.m) * size_t(view.columns) * sizeof(bf16);
}

int forward(const qk_linear_args *linear, bool dense, void *workspace, size_t workspace_bytes, qk_stream stream) {
    LinearView view;
    if (int error = check(linear, &view)) return error;
    for (int i = 0; i < view.num_segments; ++i)
        if ((view.segments[i].dense != nullptr) != dense) return QK_ERROR_NULL_POINTER;
    size_t needed = workspace_bytes_of(view);
    if (int error = check_workspace(workspace, workspace_bytes, needed)) return error;
    if (view.m == 0) return QK_OK;
    if (needed > 0) {
        view.lds = view.columns;
        if (int error = launch_lora_down_of_any(view, static_cast<bf16 *>(workspace), stream)) return error;
        view.s = static_cast<const bf16 *>(workspace);
    }
    return launch(view, choose(view), stream);
}

}  // namespace

bool large_tiles_are_sooner(int64_t large, int64_t small, bool dense) {
    Multiprocessors here = multiprocessors();
    bool two_fit = !dense || 2 * kSmallDenseBytes <= here.shared_bytes;
    const TileTimes &small_times = two_fit ? kSmallTimes : kSmallTimesAlone;
    return kLargeTimes.of(large, here.count) <= small_times.of(small, here.count);
}

void LinearChoice::print(char *text, size_t size) const {
    const char *weights = dense ? "bf16" : "NF4";
    if (path == QK_PATH_GENERIC) {
        std::snprintf(text, size, "generic, %s weights", weights);
    } else {
        std::snprintf(text, size, "%s, tiles of %d tokens x %d columns, %s weights%s",
                      path == QK_PATH_SMALL_M ? "few tokens" : "tensor cores", tokens, columns, weights,
                      masked ? ", adapters by an index" : "");
    }
}

int linear_view(const qk_linear_args *linear, LinearView *view) { return check(linear, view); }

int low_rank_stride(int64_t given, int64_t columns, int64_t *stride) {
    *stride = given != 0 ? given : columns;
    return *stride < columns || *stride % 8 != 0 ? QK_ERROR_SHAPE : QK_OK;
}

int launch_lora_down_of_any(const LinearView &view, bf16 *s, qk_stream stream) {
    bool fast = view.k % kTileK == 0 && view.ldx % 8 == 0;
    return fast ? launch_lora_down(view, s, stream) : launch_lora_down_generic(view, s, stream);
}

int lora_view(const qk_lora *caller, LoraView *view) {
    qk_lora own, *lora = &own;
    if (int error = read_struct(caller, lora)) return error;
    if (lora->r < 1 || lora->r > QK_MAX_R) return QK_ERROR_SHAPE;
    bool indexed = lora->adapter_index != nullptr;
    if (lora->num_adapters < 1 || lora->num_adapters > INT32_MAX || (!indexed && lora->num_adapters != 1))
        return QK_ERROR_SHAPE;
    if (lora->a == nullptr || lora->b == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(lora->a, 16) || !is_aligned(lora->b, 16)) return QK_ERROR_ALIGNMENT;
    if (!is_aligned(lora->adapter_index, sizeof(int32_t)) || !is_aligned(lora->scales, sizeof(float)))
        return QK_ERROR_ALIGNMENT;
    view->a = static_cast<const bf16 *>(lora->a);
    view->b = static_cast<const bf16 *>(lora->b);
    view->adapter_index = lora->adapter_index;
    view->scales = lora->scales;
    view->scale = lora->scale;
    view->r = int(lora->r);
    view->num_adapters = int(lora->num_adapters);
    return QK_OK;
}

int dropout_view(const qk_dropout *caller, int64_t m, DropoutView *view) {
    qk_dropout own, *dropout = &own;
    *view = {};
    if (caller == nullptr) return QK_OK;
    if (int error = read_struct(caller, dropout)) return error;
    if (!(dropout->p >= 0.0f && dropout->p < 1.0f)) return QK_ERROR_VALUE;
    if (dropout->first_token < 0 || dropout->first_token > (int64_t(1) << 32) - m) return QK_ERROR_VALUE;
    double p = dropout->p, threshold = std::round(p * 4294967296.0);
    view->key_low = uint32_t(dropout->seed);
    view->key_high = uint32_t(dropout->seed >> 32);
    view->dropout_id = dropout->dropout_id;
    view->dropout_step = dropout->dropout_step;
    view->first_token = uint32_t(dropout->first_token);
    view->threshold = uint32_t(threshold < 4294967295.0 ? threshold : 4294967295.0);
    view->scale = float(1.0 / (1.0 - p));
    view->step_on_device = dropout->step_on_device;
    return is_aligned(dropout->step_on_device, alignof(uint32_t)) ? QK_OK : QK_ERROR_ALIGNMENT;
}

extern "C" int qk_lora_columns(const qk_linear_args *linear, int64_t *columns) {
    LinearView view;
    if (columns == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = check(linear, &view)) return error;
    *columns = view.columns;
    return QK_OK;
}

extern "C" int qk_lora_down(const qk_linear_args *linear, void *s, qk_stream stream) {
    LinearView view;
    if (int error = check(linear, &view)) return error;
    if (view.columns == 0 || view.m == 0) return QK_OK;
    if (s == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(s, 16)) return QK_ERROR_ALIGNMENT;
    return launch_lora_down_of_any(view, static_cast<bf16 *>(s), stream);
}

extern "C" int qk_linear_forward_workspace_size(const qk_linear_args *linear, size_t *bytes) {
    LinearView view;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = check(linear, &view)) return error;
    *bytes = workspace_bytes_of(view);
    return QK_OK;
}

extern "C" int qk_linear_forward_path(const qk_linear_args *linear, uint32_t *path) {
    LinearView view;
    if (path == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = check(linear, &view)) return error;
    *path = choose(view).path;
    return QK_OK;
}

extern "C" int qk_linear_forward_choice(const qk_linear_args *linear, char *text, size_t size) {
    LinearView view;
    if (text == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = check(linear, &view)) return error;
    choose(view).print(text, size);
    return QK_OK;
}

extern "C" int qk_linear_forward(const qk_linear_args *linear, void *workspace, size_t workspace_bytes,
                                 qk_stream stream) {
    return forward(linear, false, workspace, workspace_bytes, stream);
}

extern "C" int qk_linear_forward_dense(const qk_linear_args *linear, void *workspace, size_t workspace_bytes,
                                       qk_stream stream) {
    return forward(linear, true, workspace, workspace_bytes, stream);
}
