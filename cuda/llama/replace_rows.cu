// table[rows[i]] = values[i]: rows of a table that are trained on their own go where the embedding and the output layer
// read them. One block a row, 16 bytes a thread, bits as they are. The table may lie in pinned host memory, to which
// whole rows go over PCIe. Limit: bytes, 4 H a row; no shared memory. Precondition: `rows` names no row twice.
#include "common/abi.cuh"
#include "common/rows.cuh"

namespace {

constexpr int kThreads = 128;

template <int V>
__global__ void __launch_bounds__(kThreads)
    replace_rows(const uint32_t *rows /* [num_rows] */, const bf16 *values /* [num_rows, H] */,
                 bf16 *table /* [vocab, H] */, int64_t h, int64_t vocab) {
    int64_t id = rows[blockIdx.x];
    if (id >= vocab) return;
    const bf16 *from = values + int64_t(blockIdx.x) * h;
    bf16 *to = table + id * h;
    for (int64_t i = int64_t(threadIdx.x) * V; i < h; i += kThreads * V) {
        if constexpr (V == 8) store_as<uint4>(to + i, load_as<uint4>(from + i));
        else to[i] = from[i];
    }
}

}  // namespace

extern "C" int qk_replace_rows(const qk_replace_rows_args *caller, qk_stream stream) {
    qk_replace_rows_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.h < 1 || args.h > INT32_MAX || args.vocab < 1 || args.vocab > INT32_MAX) return QK_ERROR_SHAPE;
    if (args.num_rows < 0 || args.num_rows > args.vocab) return QK_ERROR_SHAPE;
    if (args.num_rows == 0) return QK_OK;
    if (args.rows == nullptr || args.values == nullptr || args.table == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.values, 16) || !is_aligned(args.table, 16) || !is_aligned(args.rows, 4))
        return QK_ERROR_ALIGNMENT;
    auto kernel = is_vector(args.h) ? replace_rows<8> : replace_rows<1>;
    return launch(kernel, dim3(unsigned(args.num_rows)), dim3(kThreads), 0, stream, args.rows,
                  static_cast<const bf16 *>(args.values), static_cast<bf16 *>(args.table), args.h, args.vocab);
}
