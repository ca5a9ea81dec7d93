//! The bugs that are seeded into strides: rows taken for dense ones, and room behind rows.

use super::table::{Mutant, mutant};

const OF_S: &str = "strides::s_of_any_stride";
const OF_T: &str = "strides::t_of_any_stride";
const OF_GRADIENTS: &str = "strides::s_and_t_of_any_strides";
const X_WITH_ROOM: &str = "strides::an_input_with_room";
const DY_WITH_ROOM: &str = "strides::gradients_with_room";
const NORMS: &str = "layer_strides::norms_write";
const OF_NORMS: &str = "layer_strides::gradients_of_norms";
const SWIGLU: &str = "layer_strides::swiglu";
const ATTENTION: &str = "layer_strides::attention_and";

pub const MUTANTS: &[Mutant] = &[
    mutant(
        "strides: S written side by side",
        "lora/down.cu",
        "s[token * view.lds + column] = to_bf16(padding ? 0.0f : segment.scale_of(0) * sums[i]);",
        "s[token * view.columns + column] = to_bf16(padding ? 0.0f : segment.scale_of(0) * sums[i]);",
        OF_S,
    ),
    mutant(
        "strides: S of adapters written side by side",
        "lora/down.cu",
        "s[token * view.lds + column] =\n",
        "s[token * view.columns + column] =\n",
        OF_S,
    ),
    mutant(
        "strides: S read side by side",
        "linear/forward.cu",
        "view.s + (m0 + token) * view.lds + segment.s_column",
        "view.s + (m0 + token) * view.columns + segment.s_column",
        OF_S,
    ),
    mutant(
        "strides: S of few tokens read side by side",
        "linear/small_m.cu",
        "view.s[token * view.lds + segment.s_column + j]",
        "view.s[token * view.columns + segment.s_column + j]",
        OF_S,
    ),
    mutant(
        "strides: T written side by side",
        "lora/dy_b.cu",
        "t_matrix[token * view.ldt + segment.s_column + rank] =\n",
        "t_matrix[token * view.columns + segment.s_column + rank] =\n",
        OF_T,
    ),
    mutant(
        "strides: T read side by side",
        "linear/dx.cu",
        "fetch_tokens(t_tile, view.t + first, view.ldt, end - first);",
        "fetch_tokens(t_tile, view.t + first, view.columns, end - first);",
        OF_T,
    ),
    mutant(
        "strides: dX of the columns between the rows of T",
        "linear/dx.cu",
        "return ranks(0, int(view.columns), nullptr, 0, 0);",
        "return ranks(0, int(view.ldt), nullptr, 0, 0);",
        OF_T,
    ),
    mutant(
        "strides: dB of S in the rows of T",
        "lora/gradients_generic.cu",
        "segment.lddy,\n                                  view.lds,",
        "segment.lddy,\n                                  view.ldt,",
        OF_GRADIENTS,
    ),
    mutant(
        "strides: dA of T in the rows of S",
        "lora/gradients_generic.cu",
        "view.ldx, view.ldt, view.k, 1, int(view.columns)",
        "view.ldx, view.lds, view.k, 1, int(view.columns)",
        OF_GRADIENTS,
    ),
    mutant(
        "room: S computed inside in rows of its own",
        "linear/product.cu",
        "own.lds = lds = view.room != nullptr ? view.ldx : view.columns;",
        "own.lds = lds = view.columns;",
        X_WITH_ROOM,
    ),
    mutant(
        "room: S left where it is",
        "linear/product.cu",
        "bf16 *behind = parts.joins_x ? x + view.k : view.room;",
        "bf16 *behind = parts.joins_x ? x + view.k : nullptr;",
        X_WITH_ROOM,
    ),
    mutant(
        "room: S behind X in rows of its own",
        "linear/product.cu",
        "copies.add(Copy{s, behind, view.m, lds, view.m, parts.ldx, 0,",
        "copies.add(Copy{s, behind, view.m, lds, view.m, lds, 0,",
        X_WITH_ROOM,
    ),
    mutant(
        "room: T computed inside in rows of its own",
        "linear/product.cu",
        "own.ldt = ldt = view.room != nullptr ? view.segments[0].lddy : view.columns;",
        "own.ldt = ldt = view.columns;",
        DY_WITH_ROOM,
    ),
    mutant(
        "room: T left where it is",
        "linear/product.cu",
        "bf16 *behind = parts.joins_x ? x + parts.n : view.room;",
        "bf16 *behind = parts.joins_x ? x + parts.n : nullptr;",
        DY_WITH_ROOM,
    ),
    mutant(
        "strides: a norm written side by side",
        "llama/rms_norm.cu",
        "x.store(norm.y + int64_t(blockIdx.x) * norm.ldy + i);",
        "x.store(norm.y + row + i);",
        NORMS,
    ),
    mutant(
        "strides: the gradient of a norm in the rows of the norm's",
        "llama/rms_norm.cu",
        "bf16 *dx_row = norm.dx + int64_t(blockIdx.x) * norm.lddx;",
        "bf16 *dx_row = norm.dx + int64_t(blockIdx.x) * norm.lddy;",
        OF_NORMS,
    ),
    mutant(
        "strides: the gradient of a norm's weight of dY in the rows of X",
        "llama/norm_gradient.cu",
        "j = token * norm.lddy + at.column;",
        "j = token * norm.ld + at.column;",
        OF_NORMS,
    ),
    mutant(
        "strides: the gradient of the embedding reads side by side",
        "llama/embedding_backward.cu",
        "of.dout + other * of.lddout + column",
        "of.dout + other * of.h + column",
        "layer_strides::the_gradient_of_the_embedding",
    ),
    mutant(
        "strides: SwiGLU written side by side",
        "llama/swiglu.cu",
        "out.store(args.out + row * args.ldout + column);",
        "out.store(args.out + index);",
        SWIGLU,
    ),
    mutant(
        "strides: gate and up read side by side",
        "llama/swiglu.cu",
        "args.gate_up + row * args.ldgate_up + column,",
        "args.gate_up + row * 2 * args.i + column,",
        SWIGLU,
    ),
    mutant(
        "strides: attention written side by side",
        "attention/forward.cu",
        "int64_t(row[i]) * view.ldout + query_column",
        "int64_t(row[i]) * view.heads * D + query_column",
        ATTENTION,
    ),
    mutant(
        "strides: attention's output read side by side in its gradient",
        "attention/backward.cu",
        "token * view.ldout + head * D + column",
        "index * D + column",
        ATTENTION,
    ),
    mutant(
        "strides: dK and dV in the rows of q, k and v",
        "attention/backward.cu",
        "view.dqkv + int64_t(row) * view.lddqkv + column",
        "view.dqkv + int64_t(row) * view.ldqkv + column",
        ATTENTION,
    ),
    mutant(
        "strides: dQ in the rows of q, k and v",
        "attention/backward.cu",
        "view.dqkv + int64_t(row[i]) * view.lddqkv",
        "view.dqkv + int64_t(row[i]) * view.ldqkv",
        ATTENTION,
    ),
    mutant(
        "strides: attention over a cache written side by side",
        "attention/cache.cu",
        "queries.token_of(view, query)) * view.ldout;",
        "queries.token_of(view, query)) * view.heads * D;",
        "layer_strides::attention_over_a_cache",
    ),
];
