// out[c, r] = in[r, c] of bytes: 64 x 64 tiles through shared memory (65-byte rows, so that columns fall into different
// banks), 256 threads, reads and writes along rows.
#include "common/launch.cuh"

namespace {

constexpr int kTile = 64;
constexpr int kThreads = 256;
constexpr int kStride = kTile + 1;

__global__ void __launch_bounds__(kThreads)
    transpose(const uint8_t *in /* [rows, columns] */, uint8_t *out /* [columns, rows] */, int64_t rows,
              int64_t columns) {
    unsigned char *tile = dynamic_shared();
    int64_t tiles_across = ceil_div(columns, kTile);
    int64_t row0 = blockIdx.x / tiles_across * kTile, column0 = blockIdx.x % tiles_across * kTile;
    for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
        int64_t row = row0 + i / kTile, column = column0 + i % kTile;
        if (row < rows && column < columns) tile[i / kTile * kStride + i % kTile] = in[row * columns + column];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
        int64_t row = row0 + i % kTile, column = column0 + i / kTile;
        if (row < rows && column < columns) out[column * rows + row] = tile[i % kTile * kStride + i / kTile];
    }
}

}  // namespace

extern "C" int qk_absmax_transpose(const uint8_t *in, uint8_t *out, int64_t rows, int64_t columns, qk_stream stream) {
    if (in == nullptr || out == nullptr) return QK_ERROR_NULL_POINTER;
    if (rows < 1 || columns < 1) return QK_ERROR_SHAPE;
    if (rows > INT64_MAX / columns) return QK_ERROR_SHAPE;
    uintptr_t from = reinterpret_cast<uintptr_t>(in), to = reinterpret_cast<uintptr_t>(out),
              bytes = uintptr_t(rows * columns);
    if (from < to + bytes && to < from + bytes) return QK_ERROR_OVERLAP;
    int64_t down = ceil_div(rows, kTile), across = ceil_div(columns, kTile);
    if (down > INT32_MAX / across) return QK_ERROR_SHAPE;
    return launch(transpose, dim3(unsigned(down * across)), dim3(kThreads), kTile * kStride, stream, in, out, rows,
                  columns);
}
