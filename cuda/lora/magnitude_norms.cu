// Norms of the rows of W' = W + scale * B * A, which DoRA's magnitudes take the place of, without a matrix of the
// weight's size: |W|^2 of each row once (a block a row), and norms = sqrt(|W|^2 + 2 * scale * (Z^T . B)) after every
// change of A and B (a thread a row), Z = A * (W + scale / 2 * B * A)^T being a forward pass of r tokens.
//
// Elements of W are rounded to bf16, as the fused products have them. Limit: bytes, those of W once (0.53 a weight in
// NF4), and 4 r + 8 a row of the norms, beside a forward pass that reads W. Shared memory: the block's sums and the
// codebook, 128 bytes.
#include "common/abi.cuh"
#include "common/rows.cuh"
#include "nf4/nf4.cuh"

namespace {

// kVector: K is a multiple of 8, so that 8 elements share 4 bytes of codes and one absmax.
template <bool kVector>
__global__ void __launch_bounds__(kRowThreads) row_squares_nf4(Nf4View weight, float *squares /* [N] */) {
    float *sums = reinterpret_cast<float *>(dynamic_shared()), *codebook = sums + kRowSumBytes / sizeof(float);
    if (threadIdx.x < 16) codebook[threadIdx.x] = nf4_code(threadIdx.x);
    __syncthreads();
    int64_t row = int64_t(blockIdx.x) * weight.k;
    float sum = 0.0f;
    if constexpr (kVector) {
        for (int64_t i = int64_t(threadIdx.x) * 8; i < weight.k; i += kRowThreads * 8) {
            float absmax = weight.block_absmax((row + i) >> weight.block_shift);
            uint32_t codes = load_as<uint32_t>(weight.codes + (row + i) / 2);
#pragma unroll
            for (int j = 0; j < 8; ++j) { // byte j / 2, its high nibble first
                float code = codebook[codes >> (j / 2 * 8 + 4 - j % 2 * 4) & 15];
                float w = to_float(to_bf16(__fmul_rn(code, absmax)));
                sum = fmaf(w, w, sum);
            }
        }
    } else {
        for (int64_t i = threadIdx.x; i < weight.k; i += kRowThreads) {
            float absmax = weight.block_absmax((row + i) >> weight.block_shift);
            float w = to_float(to_bf16(__fmul_rn(codebook[weight.code(row + i)], absmax)));
            sum = fmaf(w, w, sum);
        }
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

template <int V>
__global__ void __launch_bounds__(kRowThreads)
    row_squares_dense(const bf16 *weight /* [N, K] */, int64_t k, float *squares /* [N] */) {
    float *sums = reinterpret_cast<float *>(dynamic_shared());
    const bf16 *row = weight + int64_t(blockIdx.x) * k;
    float sum = 0.0f;
    for (int64_t i = int64_t(threadIdx.x) * V; i < k; i += kRowThreads * V) {
        Vector<V> w = Vector<V>::load(row + i);
#pragma unroll
        for (int j = 0; j < V; ++j) sum = fmaf(w.v[j], w.v[j], sum);
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

struct Norms {
    const bf16 *z, *b;    // [r, N], [N, r]
    const float *squares; // [N]
    float *norms;         // [N]
    int64_t n;
    int r;
    float twice_scale;
};

__global__ void __launch_bounds__(kRowThreads) magnitude_norms(Norms of) {
    int64_t row = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
    if (row >= of.n) return;
    float along = 0.0f;
#pragma unroll 4
    for (int i = 0; i < of.r; ++i) along = fmaf(to_float(of.z[i * of.n + row]), to_float(of.b[row * of.r + i]), along);
    float square = fmaf(of.twice_scale, along, of.squares[row]);
    // Below 0 by rounding alone; NaN stays NaN.
    of.norms[row] = square < 0.0f ? 0.0f : __fsqrt_rn(square);
}

}  // namespace

extern "C" int qk_row_squares(const qk_row_squares_args *caller, qk_stream stream) {
    qk_row_squares_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.n < 1 || args.n > INT32_MAX || args.k < 1 || args.k > INT64_MAX / 16 / args.n) return QK_ERROR_SHAPE;
    if (args.squares == nullptr || (args.nf4 == nullptr) == (args.dense == nullptr)) return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.squares, sizeof(float)) || !is_aligned(args.dense, 16)) return QK_ERROR_ALIGNMENT;
    dim3 grid(unsigned(args.n)), block(kRowThreads);
    if (args.dense != nullptr) {
        auto kernel = is_vector(args.k) ? row_squares_dense<8> : row_squares_dense<1>;
        return launch(kernel, grid, block, kRowSumBytes, stream, static_cast<const bf16 *>(args.dense), args.k,
                      args.squares);
    }
    Nf4View weight;
    if (int error = nf4_view(args.nf4, &weight)) return error;
    if (weight.n != args.n || weight.k != args.k) return QK_ERROR_SHAPE;
    auto kernel = is_vector(args.k) ? row_squares_nf4<true> : row_squares_nf4<false>;
    return launch(kernel, grid, block, kRowSumBytes + 16 * sizeof(float), stream, weight, args.squares);
}

extern "C" int qk_magnitude_norms(const qk_magnitude_norms_args *caller, qk_stream stream) {
    qk_magnitude_norms_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.r < 1 || args.r > QK_MAX_R || args.n < 1 || args.n > INT32_MAX) return QK_ERROR_SHAPE;
    if (!std::isfinite(args.scale)) return QK_ERROR_VALUE;
    if (args.z == nullptr || args.b == nullptr || args.squares == nullptr || args.norms == nullptr)
        return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.z, 16) || !is_aligned(args.b, 16)) return QK_ERROR_ALIGNMENT;
    if (!is_aligned(args.squares, sizeof(float)) || !is_aligned(args.norms, sizeof(float))) return QK_ERROR_ALIGNMENT;
    Norms of = {static_cast<const bf16 *>(args.z),
                static_cast<const bf16 *>(args.b),
                args.squares,
                args.norms,
                args.n,
                int(args.r),
                2.0f * args.scale};
    return launch(magnitude_norms, dim3(unsigned(ceil_div(args.n, kRowThreads))), dim3(kRowThreads), 0, stream, of);
}
