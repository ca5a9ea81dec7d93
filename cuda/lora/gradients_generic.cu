// dA += T^T * dropout(X) and dB += dY^T * S for any N, K and stride: one thread per element, tokens in order within
// chunks of 256, chunks in order, f32. Slow on purpose: it is for shapes that no model has. And the host side of both
// kernels: check, list the products, launch.
#include "common/abi.cuh"
#include "lora/gradients.cuh"

namespace {

constexpr int kThreads = 256;

// grid: (ceil(largest matrix / 256), products)
__global__ void __launch_bounds__(kThreads) lora_gradients_generic(GradientsView view) {
    const GradientProduct &product = view.products[blockIdx.y];
    int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    int64_t column = index % product.columns, adapter = index / product.columns / product.ranks;
    int rank = int(index / product.columns % product.ranks);
    if (adapter >= product.adapters) return;
    GradientProduct::Row row = product.row(rank, adapter);
    if (row.out == nullptr) return;
    bool drops = product.dropped && view.dropout.active();
    uint32_t step = view.dropout.step();
    float total = row.out[column * row.stride];
    for (int64_t chunk = 0; chunk < view.m;
         chunk += kChunkTokens) { // the sums of the other kernel: one a chunk, then in order
        float sum = 0.0f;
        bool any = false;
        for (int64_t token = chunk; token < min(chunk + kChunkTokens, view.m); ++token) {
            if (product.adapter_index != nullptr && product.adapter_index[token] != adapter) continue;
            any = true;
            if (drops && (dropout_kept(view.dropout, step, token, column / 4) >> (column % 4) & 1) == 0) continue;
            sum = fmaf(to_float(product.small[token * product.lds + rank]),
                       to_float(product.big[token * product.ld + column]), sum);
        }
        if (any) total = __fadd_rn(total, __fmul_rn(drops ? view.dropout.scale : 1.0f, sum));
    }
    row.out[column * row.stride] = total;
}

// The products of an operand: those of shapes that the tensor cores' kernel takes, and the others.
struct Products {
    GradientsView fast, generic;

    void add(const GradientProduct &product) {
        bool whole = product.ld % 8 == 0 && product.columns % 8 == 0;
        GradientsView &view = whole ? fast : generic;
        view.products[view.num_products++] = product;
    }
};

Products products_of(const BackwardView &view) {
    Products products = {};
    products.fast.m = products.generic.m = view.m;
    products.fast.dropout = products.generic.dropout = view.dropout;
    // X is the same for all segments, and so one product with the columns of T of all, unless rows differ by segment.
    GradientProduct all = {view.x,  view.t, nullptr, view.ldx, view.ldt, view.k, 1, int(view.columns),
                           false,   true,   0,       {}};
    bool wanted = false;
    for (int i = 0; i < view.num_segments; ++i) {
        const BackwardSegment &segment = view.segments[i];
        int ranks = int(round_up_8(segment.r));
        if (view.has_adapters() && segment.da != nullptr) {
            GradientProduct da = {view.x,
                                  view.t + segment.s_column,
                                  segment.adapter_index,
                                  view.ldx,
                                  view.ldt,
                                  view.k,
                                  segment.num_adapters,
                                  ranks,
                                  false,
                                  true,
                                  1,
                                  {{segment.da, 0, segment.r}}};
            products.add(da);
        } else if (segment.da != nullptr) {
            all.outputs[all.num_outputs++] = {segment.da, int(segment.s_column), segment.r};
            wanted = true;
        }
        if (segment.db != nullptr) {
            GradientProduct db = {segment.dy,
                                  view.s + segment.s_column,
                                  segment.adapter_index,
                                  segment.lddy,
                                  view.lds,
                                  segment.n,
                                  segment.num_adapters,
                                  ranks,
                                  true,
                                  false,
                                  1,
                                  {{segment.db, 0, segment.r}}};
            products.add(db);
        }
    }
    if (wanted) products.add(all);
    return products;
}

// Needs of one call: T, if it is not given and A's gradient is wanted, then the workspace of the products.
struct Plan {
    Products products;
    size_t t_bytes, bytes;
};

int plan(const qk_linear_backward_args *backward, BackwardView *view, Plan *plan) {
    if (int error = backward_view(backward, view)) return error;
    bool da = false, db = false;
    for (int i = 0; i < view->num_segments; ++i) {
        const BackwardSegment &segment = view->segments[i];
        if ((segment.da != nullptr || segment.db != nullptr) && segment.r == 0) return QK_ERROR_NULL_POINTER;
        da |= segment.da != nullptr;
        db |= segment.db != nullptr;
    }
    if (view->m > 0 && ((da && view->x == nullptr) || (db && view->s == nullptr))) return QK_ERROR_NULL_POINTER;
    plan->t_bytes = da && view->t == nullptr ? size_t(view->m) * size_t(view->columns) * sizeof(bf16) : 0;
    plan->products = products_of(*view);
    plan->bytes = plan->t_bytes + (view->m > 0 ? gradients_workspace_bytes(plan->products.fast) : 0);
    return QK_OK;
}

}  // namespace

int launch_lora_gradients_generic(const GradientsView &view, qk_stream stream) {
    int64_t most = 0;
    for (int i = 0; i < view.num_products; ++i) {
        const GradientProduct &product = view.products[i];
        int64_t blocks = ceil_div(product.columns * product.ranks * product.adapters, kThreads);
        most = blocks > most ? blocks : most;
    }
    if (most > INT32_MAX) return QK_ERROR_SHAPE;
    return launch(lora_gradients_generic, dim3(unsigned(most), unsigned(view.num_products)), dim3(kThreads), 0, stream,
                  view);
}

extern "C" int qk_lora_gradients_workspace_size(const qk_linear_backward_args *backward, size_t *bytes) {
    BackwardView view;
    Plan needed;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = plan(backward, &view, &needed)) return error;
    *bytes = needed.bytes;
    return QK_OK;
}

extern "C" int qk_lora_gradients(const qk_linear_backward_args *backward, void *workspace, size_t workspace_bytes,
                                 qk_stream stream) {
    BackwardView view;
    Plan needed;
    if (int error = plan(backward, &view, &needed)) return error;
    if (int error = check_workspace(workspace, workspace_bytes, needed.bytes)) return error;
    if (view.m == 0) return QK_OK;
    if (needed.t_bytes > 0) {
        view.ldt = view.columns;
        if (int error = launch_lora_dy_b(view, static_cast<bf16 *>(workspace), stream)) return error;
        view.t = static_cast<const bf16 *>(workspace);
        needed.products = products_of(view);
        workspace = static_cast<char *>(workspace) + needed.t_bytes;
    }
    if (needed.products.fast.num_products > 0)
        if (int error = launch_lora_gradients(needed.products.fast, workspace, stream)) return error;
    return needed.products.generic.num_products > 0 ? launch_lora_gradients_generic(needed.products.generic, stream)
                                                    : QK_OK;
}
