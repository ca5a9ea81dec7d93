// The optimizer's table on the host: checks, sizes, and the image that the caller copies to the device. Device memory
// is not touched.
//   entries [num_tensors], then the tensor of every chunk u32 [chunks]
#include "common/abi.cuh"
#include "optim/adamw.cuh"

#include <cmath>

static_assert(sizeof(AdamWEntry) == 80 && sizeof(qk_adamw_rate) == 32 && sizeof(qk_gradient_state) == 16,
              "device structs");

namespace {

// Checks the tensors; `chunks` gets the sum of those of valid ones. Without `needs_states` moments may be missing.
int check_tensors(const qk_adamw_tensor *tensors, uint32_t count, bool needs_states, int *chunks, bool *quantized,
                  uint32_t *highest_rate) {
    if (tensors == nullptr) return QK_ERROR_NULL_POINTER;
    if (count < 1 || count > uint32_t(INT32_MAX)) return QK_ERROR_SHAPE;
    int64_t total = 0;
    *quantized = false;
    *highest_rate = 0;
    for (uint32_t i = 0; i < count; ++i) {
        qk_adamw_tensor t;
        if (int error = read_element(tensors, i, &t)) return error;
        if (t.n < 1 || t.n > int64_t(INT32_MAX) * QK_ADAMW_CHUNK) return QK_ERROR_SHAPE;
        if (t.value == nullptr || t.gradient == nullptr) return QK_ERROR_NULL_POINTER;
        if ((t.m == nullptr) != (t.v == nullptr)) return QK_ERROR_NULL_POINTER;
        if ((t.m_absmax == nullptr) != (t.v_absmax == nullptr)) return QK_ERROR_NULL_POINTER;
        if (t.m == nullptr && (needs_states || t.m_absmax != nullptr)) return QK_ERROR_NULL_POINTER;
        for (const void *base :
             {static_cast<const void *>(t.value), static_cast<const void *>(t.working),
              static_cast<const void *>(t.gradient), static_cast<const void *>(t.m), static_cast<const void *>(t.v)})
            if (!is_aligned(base, 16)) return QK_ERROR_ALIGNMENT;
        if (!is_aligned(t.m_absmax, sizeof(float)) || !is_aligned(t.v_absmax, sizeof(float))) return QK_ERROR_ALIGNMENT;
        *quantized |= t.m_absmax != nullptr;
        if (t.rate > *highest_rate) *highest_rate = t.rate;
        total += ceil_div(t.n, QK_ADAMW_CHUNK);
        if (total > INT32_MAX) return QK_ERROR_SHAPE;
    }
    *chunks = int(total);
    return QK_OK;
}

size_t table_bytes(uint32_t count, int chunks) {
    return count * sizeof(AdamWEntry) + size_t(chunks) * sizeof(uint32_t);
}

}  // namespace

int adamw_view(const qk_adamw_args *caller, bool needs_states, AdamWView *view) {
    qk_adamw_args own, *adamw = &own;
    uint32_t highest_rate = 0;
    if (int error = read_struct(caller, adamw)) return error;
    if (int error = check_tensors(adamw->tensors, adamw->num_tensors, needs_states, &view->chunks, &view->quantized,
                                  &highest_rate))
        return error;
    if (adamw->table == nullptr || adamw->rates == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(adamw->table, 16) || !is_aligned(adamw->rates, 4) || !is_aligned(adamw->gradient_state, 8))
        return QK_ERROR_ALIGNMENT;
    if (highest_rate >= adamw->num_rates) return QK_ERROR_VALUE;
    view->entries = static_cast<const AdamWEntry *>(adamw->table);
    view->chunk_tensor = reinterpret_cast<const uint32_t *>(view->entries + adamw->num_tensors);
    view->rates = adamw->rates;
    view->gradient_state = adamw->gradient_state;
    return QK_OK;
}

extern "C" int qk_adamw_table_size(const qk_adamw_tensor *tensors, uint32_t num_tensors, size_t *bytes) {
    int chunks;
    bool quantized;
    uint32_t highest_rate;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    int status = check_tensors(tensors, num_tensors, false, &chunks, &quantized, &highest_rate);
    if (status == QK_OK) *bytes = table_bytes(num_tensors, chunks);
    return status;
}

extern "C" int qk_adamw_table(const qk_adamw_tensor *tensors, uint32_t num_tensors, void *table, size_t table_size) {
    int chunks;
    bool quantized;
    uint32_t highest_rate;
    int status = check_tensors(tensors, num_tensors, false, &chunks, &quantized, &highest_rate);
    if (status != QK_OK) return status;
    if (table == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(table, 8)) return QK_ERROR_ALIGNMENT;
    if (table_size < table_bytes(num_tensors, chunks)) return QK_ERROR_WORKSPACE;
    AdamWEntry *entries = static_cast<AdamWEntry *>(table);
    uint32_t *chunk_tensor = reinterpret_cast<uint32_t *>(entries + num_tensors);
    int64_t chunk = 0;
    for (uint32_t i = 0; i < num_tensors; ++i) {
        qk_adamw_tensor t;
        if (int error = read_element(tensors, i, &t)) return error;
        entries[i] = {t.n, chunk, t.value, t.working, t.gradient, t.m, t.v, t.m_absmax, t.v_absmax, t.rate, 0};
        for (int64_t end = chunk + ceil_div(t.n, QK_ADAMW_CHUNK); chunk < end; ++chunk) chunk_tensor[chunk] = i;
    }
    return QK_OK;
}

extern "C" int qk_adamw_rate_of(double learning_rate, double beta1, double beta2, double epsilon, double weight_decay,
                                uint64_t step, qk_adamw_rate *rate) {
    if (rate == nullptr) return QK_ERROR_NULL_POINTER;
    if (step < 1) return QK_ERROR_VALUE;
    rate->decay = float(1.0 - learning_rate * weight_decay);
    rate->step_size = float(learning_rate / (1.0 - std::pow(beta1, double(step))));
    rate->root = float(std::sqrt(1.0 - std::pow(beta2, double(step))));
    rate->beta1 = float(beta1);
    rate->rest1 = float(1.0 - beta1);
    rate->beta2 = float(beta2);
    rate->rest2 = float(1.0 - beta2);
    rate->epsilon = float(epsilon);
    return QK_OK;
}
