// out[t] = scale * table[ids[t]]: one block a token, 16 bytes a thread. The table may lie in pinned host memory: every
// row is read once, in order, so that PCIe sees whole rows. An id past the table makes its row NaN, which the check for
// non-finite values then finds.
#include "common/abi.cuh"
#include "common/rows.cuh"

namespace {

constexpr int kThreads = 128;

template <int V>
__global__ void __launch_bounds__(kThreads) embedding(const uint32_t *ids /* [M] */, const bf16 *table /* [vocab, H] */,
                                                      bf16 *out /* [M, H] */, int64_t h, int64_t vocab,
                                                      float scale) {
    int64_t id = ids[blockIdx.x], row = int64_t(blockIdx.x) * h;
    for (int64_t i = int64_t(threadIdx.x) * V; i < h; i += kThreads * V) {
        Vector<V> values;
        if (id < vocab) {
            values = Vector<V>::load(table + id * h + i);
        } else {
#pragma unroll
            for (int j = 0; j < V; ++j) values.v[j] = __uint_as_float(0x7fc00000u);
        }
        // Times 1 every value keeps its bits.
#pragma unroll
        for (int j = 0; j < V; ++j) values.v[j] *= scale;
        values.store(out + row + i);
    }
}

}  // namespace

extern "C" int qk_embedding(const qk_embedding_args *caller, qk_stream stream) {
    qk_embedding_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.m < 0 || args.m > INT32_MAX || args.h < 1 || args.h > INT32_MAX || args.vocab < 1 ||
        args.vocab > INT32_MAX)
        return QK_ERROR_SHAPE;
    if (args.reserved2 != 0) return QK_ERROR_RESERVED;
    if (!std::isfinite(args.scale)) return QK_ERROR_VALUE;
    if (args.m == 0) return QK_OK;
    if (args.ids == nullptr || args.table == nullptr || args.out == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.table, 16) || !is_aligned(args.out, 16) || !is_aligned(args.ids, 4)) return QK_ERROR_ALIGNMENT;
    auto kernel = is_vector(args.h) ? embedding<8> : embedding<1>;
    return launch(kernel, dim3(unsigned(args.m)), dim3(kThreads), 0, stream, args.ids,
                  static_cast<const bf16 *>(args.table), static_cast<bf16 *>(args.out), args.h, args.vocab,
                  args.scale == 0.0f ? 1.0f : args.scale);
}
