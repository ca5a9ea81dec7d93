// logits = head * hidden of up to 16 tokens, in f32: each row of the output layer is read once, straight from global
// memory into registers.
//
// A block has 64 rows of head, each of its 8 warps 8 of them over all of H: sums stay in one warp's accumulators, in
// the order of the features. The other way round (warps along H, as for the linear layers) would not fill a GPU better:
// a vocabulary has thousands of rows. Limits: the bytes of head, 2 H V; the 16 hidden rows come from the caches. Tokens
// past the last are zeros that nobody stores.
#include "common/abi.cuh"
#include "linear/linear.cuh"

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kTokens = 16, kRows = 8 * kWarps;

struct LogitsView {
    const bf16 *hidden, *head; // [M, H], [V, H]
    int64_t h, vocab;
    int count;
    uint32_t tokens[kTokens];
    float *logits[kTokens];
};

// Features first .. first + 15 of a row of `h`, zeros from h on. Not kWhole: rows that do not begin at multiples of 16
// bytes.
template <bool kWhole> __device__ __forceinline__ Features load_row(const bf16 *row, int64_t first, int64_t h) {
    if (row == nullptr) return {};
    if constexpr (kWhole) {
        uint4 none = make_uint4(0, 0, 0, 0);
        uint4 low = first < h ? load_as<uint4>(row + first) : none;
        return features_of(low, first + 8 < h ? load_as<uint4>(row + first + 8) : none);
    } else {
        Features features;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            int64_t at = first + 2 * i;
            features.pairs[i] =
                pack_bf16x2(at < h ? to_float(row[at]) : 0.0f, at + 1 < h ? to_float(row[at + 1]) : 0.0f);
        }
        return features;
    }
}

template <bool kWhole> __global__ void __launch_bounds__(kThreads) logits_of_tokens(LogitsView view) {
    int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, g = lane / 4, t = lane % 4;
    int64_t first_row = int64_t(blockIdx.x) * kRows + warp * 8;
    const bf16 *x[2], *w = first_row + g < view.vocab ? view.head + (first_row + g) * view.h : nullptr;
#pragma unroll
    for (int i = 0; i < 2; ++i)
        x[i] = g + 8 * i < view.count ? view.hidden + int64_t(view.tokens[g + 8 * i]) * view.h : nullptr;
    float c[4] = {};
#pragma unroll 4
    for (int64_t k = t * 16; k - t * 16 < view.h; k += kTileK)
        mma_tile(c, load_row<kWhole>(x[0], k, view.h), load_row<kWhole>(x[1], k, view.h),
                 load_row<kWhole>(w, k, view.h));
    mma_wait();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int token = g + i / 2 * 8;
        int64_t row = first_row + 2 * t + i % 2;
        if (token < view.count && row < view.vocab) view.logits[token][row] = c[i];
    }
}

}  // namespace

extern "C" int qk_logits(const qk_logits_args *caller, qk_stream stream) {
    qk_logits_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.num_tokens > 65535 || args.m < 1 || args.m > INT32_MAX || args.h < 1 || args.h > INT32_MAX)
        return QK_ERROR_SHAPE;
    if (args.vocab < 1 || args.vocab > INT32_MAX) return QK_ERROR_SHAPE;
    if (args.num_tokens == 0) return QK_OK;
    if (args.hidden == nullptr || args.head == nullptr || args.tokens == nullptr || args.logits == nullptr)
        return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.hidden, 16) || !is_aligned(args.head, 16)) return QK_ERROR_ALIGNMENT;
    for (uint32_t i = 0; i < args.num_tokens; ++i) {
        if (args.tokens[i] >= args.m) return QK_ERROR_VALUE;
        if (args.logits[i] == nullptr) return QK_ERROR_NULL_POINTER;
        if (!is_aligned(args.logits[i], 4)) return QK_ERROR_ALIGNMENT;
    }
    auto kernel = args.h % 8 == 0 ? logits_of_tokens<true> : logits_of_tokens<false>;
    for (uint32_t first = 0; first < args.num_tokens; first += kTokens) {
        LogitsView view = {static_cast<const bf16 *>(args.hidden),
                           static_cast<const bf16 *>(args.head),
                           args.h,
                           args.vocab,
                           0,
                           {},
                           {}};
        for (; view.count < kTokens && first + uint32_t(view.count) < args.num_tokens; ++view.count) {
            view.tokens[view.count] = args.tokens[first + uint32_t(view.count)];
            view.logits[view.count] = args.logits[first + uint32_t(view.count)];
        }
        int error = launch(kernel, dim3(unsigned(ceil_div(args.vocab, kRows))), dim3(kThreads), 0, stream, view);
        if (error) return error;
    }
    return QK_OK;
}
