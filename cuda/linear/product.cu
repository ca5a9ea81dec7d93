// The operands of one product that computes all segments of a linear layer, for the GEMM of a library.
//
//     Y  [M, N] = [X | S] * [W | B]^T    N: all segments' features, one behind the other; R: the columns of S and T
//     dX [M, K] = [dY | T] * [W ; A]     B of a segment stands in its rows and in its columns of S, among zeros
//
// The workspace holds, one behind the other and each 256-byte aligned: W with B or A in bf16, X with S or dY with T, S
// or T where the call has to compute it, and the biases. Rows are padded to multiples of 8 elements, which nothing
// reads. A part that is there already as the product wants it is not copied: neither X nor S where S follows X in its
// rows, and of the two S alone where X has room for it; what of S the call has to compute is written there at once.
//
// Limit: bytes. A weight is read in NF4 and written in bf16, 2.5 bytes; an X or dY that has no room for S or T is read
// and written once, 4 bytes an element. Two kinds of launches: one for each NF4 weight, where a block has (a part of) a
// row and a thread makes 16 elements, and one for all that is copied, where a thread copies 8. No shared memory but the
// codebook.
#include "common/abi.cuh"
#include "linear/backward.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWeights = 16; // of a thread
constexpr int kCopied = 8;   // columns of a thread
constexpr int64_t kMostBlocks = INT32_MAX;

__device__ __forceinline__ void store16(bf16 *to, const Features &weights) {
    const uint32_t *pairs = weights.pairs;
    store_as<uint4>(to, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
    store_as<uint4>(to + 8, make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]));
}

// grid: N * tiles, the blocks of a row.
__global__ void __launch_bounds__(kThreads)
    dequantize_rows(Nf4View weight, bf16 *out /* [N, ldo] */, int64_t ldo, uint32_t tiles) {
    float *codebook = reinterpret_cast<float *>(dynamic_shared());
    if (threadIdx.x < 16) codebook[threadIdx.x] = nf4_code(threadIdx.x);
    __syncthreads();
    int64_t row = blockIdx.x / tiles;
    int64_t column = (int64_t(blockIdx.x % tiles) * blockDim.x + threadIdx.x) * kWeights;
    if (column >= weight.k) return;
    int64_t first = row * weight.k + column;
    bf16 *to = out + row * ldo + column;
    if (weight.k % kWeights == 0) { // the 16 lie in whole bytes, and in one block
        uint2 codes = load_as<uint2>(weight.codes + first / 2);
        store16(to, dequantize16(codes, codebook, weight.block_absmax(first >> weight.block_shift)));
        return;
    }
    for (int i = 0; i < kWeights && column + i < weight.k; ++i) {
        float absmax = weight.block_absmax((first + i) >> weight.block_shift);
        to[i] = to_bf16(__fmul_rn(codebook[weight.code(first + i)], absmax));
    }
}

// Columns of a matrix that get a copy of another one, with zeros around it.
struct Copy {
    const bf16 *in;         // [in_rows, ldi], of which `width` columns are copied
    bf16 *out;              // [rows, ldo], of which `columns` are written
    int64_t in_rows, ldi, rows, ldo;
    int64_t first, width;   // where the copy lies in those columns
    int64_t columns;

    // True if 8 columns are one load and one store.
    bool is_whole() const {
        bool strides = (ldi | ldo | first | width | columns) % kCopied == 0;
        return strides && is_aligned(in, 16) && is_aligned(out, 16);
    }
    __host__ __device__ int64_t blocks() const { return ceil_div(rows * ceil_div(columns, kCopied), kThreads); }
};

constexpr int kMostCopies = 3 * QK_MAX_SEGMENTS + 2; // weight, B or A, and bias or dY of each; X and S, or T

struct Copies {
    int count;
    bool whole[kMostCopies];
    Copy all[kMostCopies];

    void add(const Copy &copy) {
        whole[count] = copy.is_whole();
        all[count++] = copy;
    }
};

// grid: the blocks of all copies.
__global__ void __launch_bounds__(kThreads) copy_columns(Copies copies) {
    int64_t block = blockIdx.x;
    int number = 0;
    for (; number + 1 < copies.count; ++number) {
        int64_t blocks = copies.all[number].blocks();
        if (block < blocks) break;
        block -= blocks;
    }
    const Copy &copy = copies.all[number];
    int64_t group = block * kThreads + threadIdx.x, groups = ceil_div(copy.columns, kCopied);
    int64_t row = group / groups, column = group % groups * kCopied;
    if (row >= copy.rows) return;
    bf16 *to = copy.out + row * copy.ldo + column;
    int64_t at = column - copy.first; // of the copied columns
    if (copies.whole[number]) {
        bool there = row < copy.in_rows && at >= 0 && at < copy.width;
        uint4 zero = make_uint4(0, 0, 0, 0);
        store_as<uint4>(to, there ? load_as<uint4>(copy.in + row * copy.ldi + at) : zero);
        return;
    }
    for (int i = 0; i < kCopied && column + i < copy.columns; ++i) {
        bool there = row < copy.in_rows && at + i >= 0 && at + i < copy.width;
        to[i] = there ? copy.in[row * copy.ldi + at + i] : to_bf16(0.0f);
    }
}

int launch_copies(const Copies &copies, qk_stream stream) {
    int64_t blocks = 0;
    for (int i = 0; i < copies.count; ++i) blocks += copies.all[i].blocks();
    if (blocks == 0) return QK_OK;
    return launch(copy_columns, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, copies);
}

uint32_t tiles_of(int64_t k) { return uint32_t(ceil_div(k, kThreads * kWeights)); }

int launch_dequantize_rows(const Nf4View &weight, bf16 *out, int64_t ldo, qk_stream stream) {
    uint32_t tiles = tiles_of(weight.k);
    unsigned threads = tiles > 1 ? kThreads : unsigned(ceil_div(weight.k, 32 * kWeights) * 32); // whole warps
    return launch(dequantize_rows, dim3(unsigned(weight.n * tiles)), dim3(threads), 16 * sizeof(float), stream, weight,
                  out, ldo, tiles);
}

// The parts of the workspace, in elements, and the strides of their rows.
struct Parts {
    int64_t n;            // all segments' features
    int64_t ldx, ldw;
    bool joins_x, joins_w; // whether they are put together in the workspace
    int64_t w, x, low_rank, bias;

    size_t bytes() const { return size_t(w + x + low_rank + bias) * sizeof(bf16); }
};

// True if S or T, `low_rank`, lies behind the columns of X or dY, `x`, in the same rows.
bool follows(const bf16 *low_rank, int64_t stride, const bf16 *x, int64_t ldx, int64_t columns) {
    return low_rank != nullptr && low_rank == x + columns && stride == ldx && ldx % kCopied == 0;
}

int64_t round_up_128(int64_t elements) { return (elements + 127) / 128 * 128; }

// QK_OK if all sizes can be counted and every launch has a grid.
template <typename View> int check_sizes(const View &view, const Parts &parts, int64_t rows_of_w) {
    if (parts.ldx > INT64_MAX / 64 / (view.m + 1)) return QK_ERROR_SHAPE;
    if (parts.ldw > INT64_MAX / 64 / (rows_of_w + 1)) return QK_ERROR_SHAPE;
    // Groups of columns at most: a row of each copy may have one that is not full.
    int64_t groups = view.m * (parts.ldx / kCopied + kMostCopies) + rows_of_w * (parts.ldw / kCopied + kMostCopies);
    if (groups / kThreads + kMostCopies > kMostBlocks) return QK_ERROR_SHAPE;
    for (int i = 0; i < view.num_segments; ++i)
        if (view.segments[i].n * tiles_of(view.k) > kMostBlocks) return QK_ERROR_SHAPE;
    return QK_OK;
}

int parts_of(const LinearView &view, Parts *parts) {
    *parts = {};
    bool biases = false;
    for (int i = 0; i < view.num_segments; ++i) {
        parts->n += view.segments[i].n;
        biases |= view.segments[i].bias != nullptr;
    }
    if (view.has_adapters()) return QK_ERROR_NOT_BUILT;
    bool in_place = view.room != nullptr || follows(view.s, view.lds, view.x, view.ldx, view.k);
    parts->joins_x = view.columns > 0 && !in_place;
    parts->joins_w = view.columns > 0 || view.num_segments > 1 || view.segments[0].dense == nullptr;
    parts->ldx = parts->joins_x ? round_up_8(view.k + view.columns) : view.ldx;
    parts->ldw = parts->joins_w ? round_up_8(view.k + view.columns) : view.k;
    if (int error = check_sizes(view, *parts, parts->n)) return error;
    parts->w = parts->joins_w ? round_up_128(parts->n * parts->ldw) : 0;
    parts->x = parts->joins_x ? round_up_128(view.m * parts->ldx) : 0;
    parts->low_rank = view.s == nullptr && view.room == nullptr ? round_up_128(view.m * view.columns) : 0;
    parts->bias = biases ? round_up_128(parts->n) : 0;
    return QK_OK;
}

int parts_of(const BackwardView &view, Parts *parts) {
    *parts = {};
    for (int i = 0; i < view.num_segments; ++i) {
        const BackwardSegment &segment = view.segments[i];
        if (segment.dense == nullptr && !segment.has_nf4()) return QK_ERROR_NULL_POINTER;
        parts->n += segment.n;
    }
    if (view.has_adapters() || (view.dropout.active() && view.columns > 0)) return QK_ERROR_NOT_BUILT;
    const BackwardSegment &first = view.segments[0];
    bool one_dy = has_one_dy(view);
    bool in_place = view.room != nullptr || (one_dy && follows(view.t, view.ldt, first.dy, first.lddy, parts->n));
    parts->joins_x = view.columns > 0 ? !in_place : !one_dy;
    parts->joins_w = view.columns > 0 || view.num_segments > 1 || view.segments[0].dense == nullptr;
    parts->ldx = parts->joins_x ? round_up_8(parts->n + view.columns) : first.lddy;
    parts->ldw = parts->joins_w ? round_up_8(view.k) : view.k;
    if (int error = check_sizes(view, *parts, parts->n + view.columns)) return error;
    parts->w = parts->joins_w ? round_up_128((parts->n + view.columns) * parts->ldw) : 0;
    parts->x = parts->joins_x ? round_up_128(view.m * parts->ldx) : 0;
    parts->low_rank = view.t == nullptr && view.room == nullptr ? round_up_128(view.m * view.columns) : 0;
    return QK_OK;
}

// The weight of a segment in bf16, from `out` on: dequantized at once, or added to what is copied.
template <typename Segment>
int place_weight(const Segment &segment, int64_t k, bf16 *out, int64_t ldo, Copies *copies, qk_stream stream) {
    if (segment.dense == nullptr) return launch_dequantize_rows(segment.nf4, out, ldo, stream);
    copies->add(Copy{segment.dense, out, segment.n, k, segment.n, ldo, 0, k, k});
    return QK_OK;
}

int join(const LinearView &view, const Parts &parts, bf16 *workspace, qk_product *product, qk_stream stream) {
    bf16 *w = workspace, *x = w + parts.w, *low_rank = x + parts.x, *bias = low_rank + parts.low_rank;
    product->n = parts.n;
    product->k = view.k + view.columns;
    product->x = parts.joins_x ? x : view.x;
    product->ldx = parts.ldx;
    product->w = parts.joins_w ? w : view.segments[0].dense;
    product->ldw = parts.ldw;
    product->bias = parts.bias > 0 ? bias : nullptr;
    if (view.m == 0) return QK_OK;
    const bf16 *s = view.s;
    int64_t lds = view.lds;
    if (view.columns > 0 && s == nullptr) {
        LinearView own = view;
        bf16 *to = view.room != nullptr ? view.room : low_rank;
        s = to;
        own.lds = lds = view.room != nullptr ? view.ldx : view.columns;
        if (int error = launch_lora_down_of_any(own, to, stream)) return error;
    }
    Copies copies = {};
    int64_t row = 0;
    for (int i = 0; i < view.num_segments; ++i) {
        const SegmentView &segment = view.segments[i];
        bf16 *rows = w + row * parts.ldw;
        if (parts.joins_w)
            if (int error = place_weight(segment, view.k, rows, parts.ldw, &copies, stream)) return error;
        if (view.columns > 0)
            copies.add(Copy{segment.b, rows + view.k, segment.n, segment.r, segment.n, parts.ldw, segment.s_column,
                        segment.r, view.columns});
        if (parts.bias > 0)
            copies.add(Copy{segment.bias, bias + row, segment.bias != nullptr, segment.n, 1, segment.n, 0, segment.n,
                        segment.n});
        row += segment.n;
    }
    if (parts.joins_x) copies.add(Copy{view.x, x, view.m, view.ldx, view.m, parts.ldx, 0, view.k, view.k});
    // Behind X, wherever that is; nothing where it is there already.
    bf16 *behind = parts.joins_x ? x + view.k : view.room;
    if (behind != nullptr && view.columns > 0 && s != behind)
        copies.add(Copy{s, behind, view.m, lds, view.m, parts.ldx, 0, view.columns, view.columns});
    return launch_copies(copies, stream);
}

int join(const BackwardView &view, const Parts &parts, bf16 *workspace, qk_product *product, qk_stream stream) {
    bf16 *w = workspace, *x = w + parts.w, *low_rank = x + parts.x;
    product->n = view.k;
    product->k = parts.n + view.columns;
    product->x = parts.joins_x ? x : view.segments[0].dy;
    product->ldx = parts.ldx;
    product->w = parts.joins_w ? w : view.segments[0].dense;
    product->ldw = parts.ldw;
    if (view.m == 0) return QK_OK;
    const bf16 *t = view.t;
    int64_t ldt = view.ldt;
    if (view.columns > 0 && t == nullptr) {
        BackwardView own = view;
        bf16 *to = view.room != nullptr ? view.room : low_rank;
        t = to;
        own.ldt = ldt = view.room != nullptr ? view.segments[0].lddy : view.columns;
        if (int error = launch_lora_dy_b(own, to, stream)) return error;
    }
    Copies copies = {};
    int64_t row = 0;
    for (int i = 0; i < view.num_segments; ++i) {
        const BackwardSegment &segment = view.segments[i];
        bf16 *rows = w + row * parts.ldw;
        if (parts.joins_w)
            if (int error = place_weight(segment, view.k, rows, parts.ldw, &copies, stream)) return error;
        if (segment.r > 0)
            copies.add(Copy{segment.a, w + (parts.n + segment.s_column) * parts.ldw, segment.r, view.k,
                        round_up_8(segment.r), parts.ldw, 0, view.k, view.k});
        if (parts.joins_x)
            copies.add(Copy{segment.dy, x + row, view.m, segment.lddy, view.m, parts.ldx, 0, segment.n, segment.n});
        row += segment.n;
    }
    bf16 *behind = parts.joins_x ? x + parts.n : view.room;
    if (behind != nullptr && view.columns > 0 && t != behind)
        copies.add(Copy{t, behind, view.m, ldt, view.m, parts.ldx, 0, view.columns, view.columns});
    return launch_copies(copies, stream);
}

// The product of a checked operand, in the caller's struct: as much of it as that has room for.
template <typename View>
int product_of(const View &view, qk_product *caller, void *workspace, size_t workspace_bytes, qk_stream stream) {
    qk_product product;
    if (int error = read_struct(caller, &product)) return error;
    Parts parts;
    if (int error = parts_of(view, &parts)) return error;
    if (int error = check_workspace(workspace, workspace_bytes, parts.bytes())) return error;
    uint32_t size = product.struct_size;
    product = {};
    product.struct_size = size;
    if (int error = join(view, parts, static_cast<bf16 *>(workspace), &product, stream)) return error;
    std::memcpy(caller, &product, size < sizeof product ? size : sizeof product);
    return QK_OK;
}

}  // namespace

extern "C" int qk_linear_product_workspace_size(const qk_linear_args *linear, size_t *bytes) {
    LinearView view;
    Parts parts;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = linear_view(linear, &view)) return error;
    if (int error = parts_of(view, &parts)) return error;
    *bytes = parts.bytes();
    return QK_OK;
}

extern "C" int qk_linear_product(const qk_linear_args *linear, qk_product *product, void *workspace,
                                 size_t workspace_bytes, qk_stream stream) {
    LinearView view;
    if (int error = linear_view(linear, &view)) return error;
    return product_of(view, product, workspace, workspace_bytes, stream);
}

extern "C" int qk_linear_dx_product_workspace_size(const qk_linear_backward_args *backward, size_t *bytes) {
    BackwardView view;
    Parts parts;
    if (bytes == nullptr) return QK_ERROR_NULL_POINTER;
    if (int error = backward_view(backward, &view)) return error;
    if (int error = parts_of(view, &parts)) return error;
    *bytes = parts.bytes();
    return QK_OK;
}

extern "C" int qk_linear_dx_product(const qk_linear_backward_args *backward, qk_product *product, void *workspace,
                                    size_t workspace_bytes, qk_stream stream) {
    BackwardView view;
    if (int error = backward_view(backward, &view)) return error;
    return product_of(view, product, workspace, workspace_bytes, stream);
}
