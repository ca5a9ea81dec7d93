//! The bugs that are seeded into the operands of one product for all segments of a linear layer.

use super::table::{Mutant, mutant};

const FILE: &str = "linear/product.cu";
const LAYERS: &str = "dispatch::one_product_computes_all";
const INSIDE: &str = "dispatch::outputs_side_by_side";

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "one product: a wrong stride of S",
        FILE,
        "copies.add(Copy{s, behind, view.m, lds, view.m",
        "copies.add(Copy{s, behind, view.m, lds - 8, view.m",
        LAYERS,
    ),
    mutant(
        "one product: a wrong stride of T",
        FILE,
        "copies.add(Copy{t, behind, view.m, ldt, view.m",
        "copies.add(Copy{t, behind, view.m, ldt - 8, view.m",
        LAYERS,
    ),
    mutant(
        "one product: the room of S used again before it is read",
        FILE,
        "*low_rank = x + parts.x, *bias",
        "*low_rank = x, *bias",
        INSIDE,
    ),
    mutant(
        "one product: the room of T used again before it is read",
        FILE,
        "*low_rank = x + parts.x;",
        "*low_rank = x;",
        INSIDE,
    ),
    mutant(
        "one product: X where W is",
        FILE,
        "*x = w + parts.w, *low_rank = x + parts.x, *bias",
        "*x = w, *low_rank = x + parts.x, *bias",
        LAYERS,
    ),
    mutant(
        "one product: dropped columns of S",
        FILE,
        "product->k = view.k + view.columns;",
        "product->k = view.k;",
        LAYERS,
    ),
    mutant(
        "one product: dropped rows of A",
        FILE,
        "product->k = parts.n + view.columns;",
        "product->k = parts.n;",
        LAYERS,
    ),
    mutant(
        "one product: W of a segment where that of the first is",
        FILE,
        "const SegmentView &segment = view.segments[i];\n        bf16 *rows = w + row * parts.ldw;",
        "const SegmentView &segment = view.segments[i];\n        bf16 *rows = w + i * parts.ldw;",
        LAYERS,
    ),
    mutant(
        "one product: B of a segment in the columns of the first",
        FILE,
        "segment.n, parts.ldw, segment.s_column,",
        "segment.n, parts.ldw, 0,",
        LAYERS,
    ),
    mutant(
        "one product: dY of a segment in the columns of the first",
        FILE,
        "copies.add(Copy{segment.dy, x + row, view.m",
        "copies.add(Copy{segment.dy, x, view.m",
        LAYERS,
    ),
    mutant(
        "one product: A of a segment in the rows of the first",
        FILE,
        "w + (parts.n + segment.s_column) * parts.ldw",
        "w + parts.n * parts.ldw",
        LAYERS,
    ),
    mutant(
        "one product: a bias where that of the first segment is",
        FILE,
        "copies.add(Copy{segment.bias, bias + row,",
        "copies.add(Copy{segment.bias, bias,",
        LAYERS,
    ),
    mutant(
        "one product: padding of A left as it was",
        FILE,
        "round_up_8(segment.r), parts.ldw, 0,",
        "segment.r, parts.ldw, 0,",
        LAYERS,
    ),
    mutant(
        "one product: zeros beside B left as they were",
        FILE,
        "store_as<uint4>(to, there ? load_as<uint4>(copy.in + row * copy.ldi + at) : zero);",
        "if (there) store_as<uint4>(to, load_as<uint4>(copy.in + row * copy.ldi + at));",
        LAYERS,
    ),
    mutant(
        "one product: rows of W without their padding",
        FILE,
        "bf16 *to = out + row * ldo + column;",
        "bf16 *to = out + first;",
        LAYERS,
    ),
    mutant(
        "one product: removed barrier after the codebook",
        FILE,
        "codebook[threadIdx.x] = nf4_code(threadIdx.x);\n    __syncthreads();",
        "codebook[threadIdx.x] = nf4_code(threadIdx.x);",
        LAYERS,
    ),
];
