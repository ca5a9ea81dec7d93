// Rotary position embedding in place: elements i and i + R / 2 of a head's first R are rotated by the angle of
// (position, i), whose cosine and sine come from tables made in double precision on the host. The rest of a head stays.
//
// A thread takes 8 (or 1) of the R / 2 pairs of one head. Bytes: 4 R a head, read and written once; the tables' rows
// stay in the caches.
#include "common/abi.cuh"
#include "common/rows.cuh"

namespace {

constexpr int kThreads = 256;

struct Rope {
    bf16 *x;                     // [M, ldx]
    const uint32_t *positions;   // [M]
    const float *cosines, *sines;  // [table_positions, half]
    int64_t m, ldx, table_positions;
    int heads, d, half;          // half: R / 2
    float direction;             // 1, or -1 for the inverse
};

template <int V> __global__ void __launch_bounds__(kThreads) rope(Rope rope) {
    int groups = rope.half / V;
    int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    int64_t token = index / (int64_t(rope.heads) * groups);
    if (token >= rope.m) return;
    int rest = int(index % (int64_t(rope.heads) * groups)), head = rest / groups, i = rest % groups * V;
    bf16 *at = rope.x + token * rope.ldx + int64_t(head) * rope.d + i;
    int64_t position = rope.positions[token];
    bool known = position < rope.table_positions;
    int64_t entry = (known ? position : 0) * rope.half + i;
    Vector<V> a = Vector<V>::load(at), b = Vector<V>::load(at + rope.half),
              cosines = Vector<V>::load(rope.cosines + entry), sines = Vector<V>::load(rope.sines + entry);
#pragma unroll
    for (int j = 0; j < V; ++j) {
        float cosine = known ? cosines.v[j] : __uint_as_float(0x7fc00000u), sine = rope.direction * sines.v[j];
        float first = a.v[j], second = b.v[j];
        a.v[j] = first * cosine - second * sine;
        b.v[j] = second * cosine + first * sine;
    }
    a.store(at);
    b.store(at + rope.half);
}

}  // namespace

extern "C" int qk_rope(const qk_rope_args *caller, qk_stream stream) {
    qk_rope_args args;
    if (int error = read_struct(caller, &args)) return error;
    if (args.head_dim < 2 || args.head_dim > 1024 || args.head_dim % 2 != 0 || args.heads < 1 || args.heads > 65536)
        return QK_ERROR_SHAPE;
    if (args.rotary_dim > args.head_dim || args.rotary_dim % 2 != 0) return QK_ERROR_SHAPE;
    if (args.reserved != 0) return QK_ERROR_RESERVED;
    if (args.inverse > 1) return QK_ERROR_VALUE;
    if (args.m < 0 || args.m > INT32_MAX || args.table_positions < 1) return QK_ERROR_SHAPE;
    if (args.ldx < int64_t(args.heads) * args.head_dim) return QK_ERROR_SHAPE;
    if (args.m == 0) return QK_OK;
    if (args.x == nullptr || args.positions == nullptr || args.cosines == nullptr || args.sines == nullptr)
        return QK_ERROR_NULL_POINTER;
    if (!is_aligned(args.x, 16)) return QK_ERROR_ALIGNMENT;
    for (const void *part : {static_cast<const void *>(args.positions), static_cast<const void *>(args.cosines),
                             static_cast<const void *>(args.sines)})
        if (!is_aligned(part, 4)) return QK_ERROR_ALIGNMENT;
    Rope view = {static_cast<bf16 *>(args.x),
                 args.positions,
                 args.cosines,
                 args.sines,
                 args.m,
                 args.ldx,
                 args.table_positions,
                 int(args.heads),
                 int(args.head_dim),
                 int((args.rotary_dim == 0 ? args.head_dim : args.rotary_dim) / 2),
                 args.inverse != 0 ? -1.0f : 1.0f};
    bool vector = view.half % 8 == 0 && view.d % 8 == 0 && is_vector(args.ldx) && is_aligned(args.cosines, 16) &&
                  is_aligned(args.sines, 16);
    int64_t threads = view.m * view.heads * (view.half / (vector ? 8 : 1));
    if (ceil_div(threads, kThreads) > INT32_MAX) return QK_ERROR_SHAPE;
    return launch(vector ? rope<8> : rope<1>, dim3(unsigned(ceil_div(threads, kThreads))), dim3(kThreads), 0, stream,
                  view);
}
