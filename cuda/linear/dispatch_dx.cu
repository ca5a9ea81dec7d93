// The host side of the fused linear layer's backward pass: check the operand, choose the kernel, launch.
#include "common/abi.cuh"
#include "linear/backward.cuh"

namespace {

int check_segment(const qk_linear_backward_args *backward, uint32_t index, BackwardSegment *view) {
    qk_segment_backward own, *segment = &own;
    if (int error = read_element(backward->segments, index, segment)) return error;
    if (segment->n < 1 || segment->n > INT32_MAX || segment->lddy < segment->n) return QK_ERROR_SHAPE;
    if (segment->nf4 != nullptr && segment->dense != nullptr) return QK_ERROR_NULL_POINTER;
    if (segment->dy == nullptr && backward->m > 0) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(segment->dy, 16) || !is_aligned(segment->dense, 16)) return QK_ERROR_ALIGNMENT;
    if (!is_aligned(segment->da, sizeof(float)) || !is_aligned(segment->db, sizeof(float))) return QK_ERROR_ALIGNMENT;
    if (segment->nf4 != nullptr) {
        if (int error = nf4_view(segment->nf4, &view->nf4)) return error;
        if (view->nf4.n != segment->n || view->nf4.k != backward->k) return QK_ERROR_SHAPE;
    }
    view->dense = static_cast<const bf16 *>(segment->dense);
    view->dy = static_cast<const bf16 *>(segment->dy);
    view->da = segment->da;
    view->db = segment->db;
    view->n = segment->n;
    view->lddy = segment->lddy;
    return segment->lora == nullptr ? QK_OK : lora_view(segment->lora, view);
}

size_t workspace_bytes_of(const BackwardView &view) {
    return view.t != nullptr ? 0 : size_t(view.m) * size_t(view.columns) * sizeof(bf16);
}

int linear_dx(const qk_linear_backward_args *backward, bool dense, void *workspace, size_t workspace_bytes,
              qk_stream stream) {
    BackwardView view;
    if (int error = backward_view(backward, &view)) return error;
    for (int i = 0; i < view.num_segments; ++i)
        if (dense ? view.segments[i].dense == nullptr : !view.segments[i].has_nf4()) return QK_ERROR_NULL_POINTER;
    if (view.dx == nullptr && view.m > 0) return QK_ERROR_NULL_POINTER;
    size_t needed = workspace_bytes_of(view);
    if (int error = check_workspace(workspace, workspace_bytes, needed)) return error;
    if (view.m == 0) return QK_OK;
    if (needed > 0) {
        view.ldt = view.columns;
        if (int error = launch_lora_dy_b(view, static_cast<bf16 *>(workspace), stream)) return error;
        view.t = static_cast<const bf16 *>(workspace);
    }
    LinearChoice choice = choose_dx(view);
    return choice.path == QK_PATH_TENSOR_CORE ? launch_linear_dx_tensor_core(view, choice, stream)
                                              : launch_linear_dx_generic(view, stream);
}

// QK_OK if T has its place behind the columns of one dY.
int check_room(const BackwardView &view, const void *room, const void *t) {
    int64_t features = 0, stride = view.segments[0].lddy;
    for (int i = 0; i < view.num_segments; ++i) features += view.segments[i].n;
    bool fits = room == view.segments[0].dy + features && stride >= features + view.columns;
    if (t == room) fits &= view.ldt == stride;
    return fits && has_one_dy(view) && stride % 8 == 0 ? QK_OK : QK_ERROR_SHAPE;
}

}  // namespace

bool has_one_dy(const BackwardView &view) {
    int64_t column = 0;
    for (int i = 0; i < view.num_segments; ++i) {
        const BackwardSegment &first = view.segments[0], &segment = view.segments[i];
        if (segment.lddy != first.lddy || segment.dy != first.dy + column) return false;
        column += segment.n;
    }
    return true;
}

LinearChoice choose_dx(const BackwardView &view) {
    LinearChoice choice = {QK_PATH_GENERIC, 0, 0, view.segments[0].dense != nullptr, false};
    bool generic = view.k % kTileK != 0;
    for (int i = 0; i < view.num_segments; ++i) {
        const BackwardSegment &segment = view.segments[i];
        generic |= segment.lddy % 8 != 0 || (segment.dense == nullptr && segment.nf4.block_shift != 6);
    }
    if (generic) return choice;
    choice.path = QK_PATH_TENSOR_CORE;
    int64_t large = ceil_div(view.m, kLargeTokens) * ceil_div(view.k, kLargeColumns);
    int64_t small = ceil_div(view.m, kSmallTokens) * ceil_div(view.k, kSmallColumns);
    bool is_large = large_tiles_are_sooner(large, small, choice.dense);
    choice.tokens = is_large ? kLargeTokens : kSmallTokens;
    choice.columns = is_large ? kLargeColumns : kSmallColumns;
    return choice;
}

int backward_view(const qk_linear_backward_args *caller, BackwardView *view) {
    qk_linear_backward_args own, *backward = &own;
    *view = {};
    if (int error = read_struct(caller, backward)) return error;
    if (backward->num_segments < 1 || backward->num_segments > QK_MAX_SEGMENTS) return QK_ERROR_SHAPE;
    if (backward->m < 0 || backward->m > INT32_MAX || backward->k < 1 || backward->k > INT32_MAX) return QK_ERROR_SHAPE;
    if ((backward->x != nullptr && backward->ldx < backward->k) ||
        (backward->dx != nullptr && backward->lddx < backward->k))
        return QK_ERROR_SHAPE;
    if (backward->accumulate > 1) return QK_ERROR_VALUE;
    if (backward->segments == nullptr) return QK_ERROR_NULL_POINTER;
    for (const void *pointer : {backward->x, static_cast<const void *>(backward->dx), backward->s, backward->t})
        if (!is_aligned(pointer, 16)) return QK_ERROR_ALIGNMENT;
    view->x = static_cast<const bf16 *>(backward->x);
    view->dx = static_cast<bf16 *>(backward->dx);
    view->m = backward->m;
    view->k = backward->k;
    view->ldx = backward->ldx;
    view->lddx = backward->lddx;
    view->accumulate = backward->accumulate != 0;
    view->num_segments = int(backward->num_segments);
    for (uint32_t i = 0; i < backward->num_segments; ++i) {
        BackwardSegment *segment = &view->segments[i];
        if (int error = check_segment(backward, i, segment)) return error;
        segment->s_column = view->columns;
        view->columns += round_up_8(segment->r);
    }
    if (int error = low_rank_stride(backward->lds, view->columns, &view->lds)) return error;
    if (int error = low_rank_stride(backward->ldt, view->columns, &view->ldt)) return error;
    if (backward->room != nullptr)
        if (int error = check_room(*view, backward->room, backward->t)) return error;
    if (view->columns > 0) {
        view->s = static_cast<const bf16 *>(backward->s);
        view->t = static_cast<const bf16 *>(backward->t);
        view->room = static_cast<bf16 *>(backward->room);
    }
    return dropout_view(backward->dropout, backward->m, &view->dropout);
}

extern "C" int qk_lora_dy_b(const qk_linear_backward_args *backward, void *t, qk_stream stream) {
    BackwardView view;
    if (int error = backward_view(backward, &view)) return error;
    if (view.columns == 0 || view.m == 0) return QK_OK;
    if (t == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(t, 16)) return QK_ERROR_ALIGNMENT;
    return launch_lora_dy_b(view, static_cast<bf16 *>(t), stream);
}

extern "C" int qk_linear_dx_workspace_size(const qk_linear_backward_args *backward, size_t *bytes) {
    BackwardView view;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = backward_view(backward, &view)) return error;
    *bytes = workspace_bytes_of(view);
    return QK_OK;
}

// The choice where every segment has a weight.
static int checked_choice(const qk_linear_backward_args *backward, LinearChoice *choice) {
    BackwardView view;
    if (int error = backward_view(backward, &view)) return error;
    for (int i = 0; i < view.num_segments; ++i)
        if (view.segments[i].dense == nullptr && !view.segments[i].has_nf4()) return QK_ERROR_NULL_POINTER;
    *choice = choose_dx(view);
    return QK_OK;
}

extern "C" int qk_linear_dx_path(const qk_linear_backward_args *backward, uint32_t *path) {
    LinearChoice choice;
    if (path == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = checked_choice(backward, &choice)) return error;
    *path = choice.path;
    return QK_OK;
}

extern "C" int qk_linear_dx_choice(const qk_linear_backward_args *backward, char *text, size_t size) {
    LinearChoice choice;
    if (text == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = checked_choice(backward, &choice)) return error;
    choice.print(text, size);
    return QK_OK;
}

extern "C" int qk_linear_dx(const qk_linear_backward_args *backward, void *workspace, size_t workspace_bytes,
                            qk_stream stream) {
    return linear_dx(backward, false, workspace, workspace_bytes, stream);
}

extern "C" int qk_linear_dx_dense(const qk_linear_backward_args *backward, void *workspace, size_t workspace_bytes,
                                  qk_stream stream) {
    return linear_dx(backward, true, workspace, workspace_bytes, stream);
}
