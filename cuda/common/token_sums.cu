// total[c] += partial[0, c], then partial[1, c] and so on: a thread a column. Limit: reading partial, 4 bytes for each
// 256 tokens of a column, which is little beside what made it.
#include "common/token_sums.cuh"

namespace {

__global__ void __launch_bounds__(kRowThreads)
    add_token_sums(const float *partial /* [chunks, columns] */, int64_t chunks, int64_t columns,
                   float *total /* [columns] */) {
    int64_t column = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
    if (column >= columns) return;
    float sum = total[column];
#pragma unroll 4
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum = __fadd_rn(sum, partial[chunk * columns + column]);
    total[column] = sum;
}

}  // namespace

int launch_add_token_sums(const float *partial, int64_t chunks, int64_t columns, float *total, qk_stream stream) {
    return launch(add_token_sums, dim3(unsigned(ceil_div(columns, kRowThreads))), dim3(kRowThreads), 0, stream, partial,
                  chunks, columns, total);
}
