// dtable[ids[t]] += scale * dout[t], token by token in order, without atomics and without sorting: the block of a token
// looks for all tokens of its id, 256 at a time, and adds their rows to that of the table; if one of them comes before
// its own token, it leaves the work to that one's block. An id has one writer, which adds in order.
//
// With `rows` the table's gradient has the rows of those ids alone, and the block of a token looks for its id among
// them, by halves; the block of another token does nothing.
//
// A block has 256 vectors of columns of one token. Limit: bytes, 2 H a token and 8 H an id that is there; beside them
// every block reads the ids up to its token, or all: M^2 * 4 bytes a tile of columns at most, from the L2 (5.5 GB at
// 37,000 tokens, some milliseconds of a step of seconds). Shared memory: 64 bytes. Precondition: `rows` ascend, each
// once.
#include "common/abi.cuh"
#include "common/rows.cuh"

namespace {

constexpr int kWarps = kRowThreads / 32;

struct EmbeddingBackward {
    const uint32_t *ids;  // [M]
    const bf16 *dout;     // [M, lddout]
    float *dtable;        // [vocab, H], or [num_rows, H]
    const uint32_t *rows; // [num_rows]: ids, or NULL: all of them
    int64_t m, h, vocab, num_rows, lddout, tiles;
    float scale;

    // The row of dtable that is an id's; -1: none.
    __device__ __forceinline__ int64_t row_of(uint32_t id) const {
        if (id >= vocab) return -1;
        if (rows == nullptr) return id;
        int64_t first = 0, last = num_rows;
        while (first < last) {
            int64_t middle = (first + last) / 2;
            if (rows[middle] < id) first = middle + 1;
            else last = middle;
        }
        return first < num_rows && rows[first] == id ? first : -1;
    }
};

template <int V> __global__ void __launch_bounds__(kRowThreads) embedding_backward(EmbeddingBackward of) {
    unsigned *found = reinterpret_cast<unsigned *>(dynamic_shared()); // [2][warps]: which tokens of 256 have the id
    int64_t token = int64_t(blockIdx.x) / of.tiles;
    int64_t column = (int64_t(blockIdx.x) % of.tiles * kRowThreads + int(threadIdx.x)) * V;
    uint32_t id = of.ids[token];
    int64_t row = of.row_of(id);
    if (row < 0) return;
    bool has_column = column < of.h;
    float *to = of.dtable + row * of.h + column;
    Vector<V> sums = {};
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, round = 0;
    bool is_first = true;
    for (int64_t first = 0; first < of.m; first += kRowThreads, round ^= 1) {
        int64_t own = first + int(threadIdx.x);
        unsigned ballot = __ballot_sync(~0u, own < of.m && of.ids[own] == id);
        unsigned *of_round = found + round * kWarps;
        if (lane == 0) of_round[warp] = ballot;
        __syncthreads(); // the other round's are free after it
        for (int i = 0; i < kWarps; ++i) {
            unsigned left = of_round[i];
            for (int64_t other = first + 32 * i; left != 0; ++other, left >>= 1) {
                if ((left & 1u) == 0) continue;
                if (is_first && other != token) return; // the whole block
                if (is_first && has_column) sums = Vector<V>::load(to);
                is_first = false;
                if (!has_column) continue;
                Vector<V> dout = Vector<V>::load(of.dout + other * of.lddout + column);
#pragma unroll
                for (int j = 0; j < V; ++j) sums.v[j] = __fadd_rn(sums.v[j], __fmul_rn(of.scale, dout.v[j]));
            }
        }
    }
    if (has_column) sums.store(to);
}

}  // namespace

extern "C" int qk_embedding_backward(const qk_embedding_backward_args *caller, qk_stream stream) {
    qk_embedding_backward_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.m < 0 || args.m > INT32_MAX || args.h < 1 || args.h > INT32_MAX || args.vocab < 1 ||
        args.vocab > INT32_MAX)
        return QK_ERROR_SHAPE;
    if (args.m * ceil_div(args.h, kRowThreads) > INT32_MAX) return QK_ERROR_SHAPE;
    if (args.num_rows < 0 || args.num_rows > args.vocab) return QK_ERROR_SHAPE;
    int64_t lddout = args.lddout != 0 ? args.lddout : args.h;
    if (lddout < args.h) return QK_ERROR_SHAPE;
    if (args.reserved2 != 0) return QK_ERROR_RESERVED;
    if (!std::isfinite(args.scale)) return QK_ERROR_VALUE;
    if ((args.rows == nullptr) != (args.num_rows == 0)) return QK_ERROR_NULL_POINTER;
    if (args.m == 0) return QK_OK;
    if (args.ids == nullptr || args.dout == nullptr || args.dtable == nullptr) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.dout, 16) || !is_aligned(args.ids, 4) || !is_aligned(args.dtable, 4) ||
        !is_aligned(args.rows, 4))
        return QK_ERROR_ALIGNMENT;
    bool vector = is_vector(args.h) && is_vector(lddout) && is_aligned(args.dtable, 16);
    EmbeddingBackward of = {args.ids,
                            static_cast<const bf16 *>(args.dout),
                            args.dtable,
                            args.rows,
                            args.m,
                            args.h,
                            args.vocab,
                            args.num_rows,
                            lddout,
                            ceil_div(args.h, kRowThreads * (vector ? 8 : 1)),
                            args.scale == 0.0f ? 1.0f : args.scale};
    auto kernel = vector ? embedding_backward<8> : embedding_backward<1>;
    return launch(kernel, dim3(unsigned(args.m * of.tiles)), dim3(kRowThreads), 2 * kWarps * sizeof(unsigned), stream,
                  of);
}
