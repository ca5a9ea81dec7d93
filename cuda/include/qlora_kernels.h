/* qlora-kernels: fused NF4 + LoRA kernels behind a plain C interface (C99; also C++, and Rust by bindgen).
 *
 * Rules that hold for every function
 * - Pointers named "device" are device addresses (in the emulated build: ordinary host addresses). Structs
 *   themselves, and arrays of structs, live in host memory and are read before the function returns.
 * - Work is queued on `stream` and the function returns at once. Nothing is allocated, no global state is kept, and
 *   a stream under graph capture is fine. What needs scratch memory takes it from the caller: qk_NAME takes a
 *   workspace whose bytes qk_NAME_workspace_size gives.
 * - The status is 0 for success, a cudaError_t when positive, and a qk_status when negative. On a negative status
 *   nothing was queued and nothing was written. Nothing is printed and the process is never ended. The same fault
 *   has the same status everywhere; enum qk_status says which.
 * - A struct that a function takes as its arguments is called qk_NAME_args; the others describe an operand.
 * - bf16 is bfloat16 in its 16 bits; it is passed as `void *` because C has no such type.
 * - Matrices are row-major. M is tokens, N out features, K in features, r the LoRA rank.
 * - Base pointers of X, codes, dense weights, A, B, S, Y, dY, T, dX and the workspace are 16-byte aligned; others to
 *   their element.
 *
 * Versions
 * - The caller sets `struct_size` to sizeof of the struct and fills the rest of it with zeros where nothing is to be
 *   said: `struct qk_lora lora = {.struct_size = sizeof lora, ...}`.
 * - Structs grow at their end and nowhere else. A struct_size that is smaller or larger than the library's is
 *   accepted for the prefix that both know: what a shorter struct lacks is 0, and what the library does not know of
 *   a longer one is not read, so that it has no effect. 0 always means what the library did before the field was
 *   there.
 * - Refused with QK_ERROR_STRUCT_SIZE: a size below that of the struct's first version under this
 *   QK_ABI_VERSION, above QK_MAX_STRUCT_SIZE, or not a multiple of 8. In an array of structs the elements lie
 *   struct_size bytes apart, and all have the struct_size of the first.
 * - `reserved` is 0; anything else is refused with QK_ERROR_RESERVED, so that it can get a meaning.
 * - QK_ABI_VERSION is another one when a struct or a function is no longer compatible; it is the number in the
 *   shared library's name. QK_ABI_REVISION grows when a field or a function is added. Who needs an added field asks
 *   qk_abi_revision() for it first: an older library would not see it.
 */
#ifndef QLORA_KERNELS_H
#define QLORA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the interface, and what was added to it since; see above. */
#define QK_ABI_VERSION 3u
#define QK_ABI_REVISION 9u

/* The largest struct_size that any version will have: what is above was not set. */
#define QK_MAX_STRUCT_SIZE 4096u

/* At most this many row segments (q, k, v or gate, up) make one operand. */
#define QK_MAX_SEGMENTS 4u

/* The largest LoRA rank. */
#define QK_MAX_R 256u

/* Blocks of the second level of the double quantization, in absmax values. */
#define QK_NESTED_BLOCK 256u

/* Elements of one scale of 8-bit optimizer states. */
#define QK_STATE_BLOCK 256u

/* Elements that the optimizer's table counts as one chunk of work. */
#define QK_ADAMW_CHUNK 4096u

/* A cudaStream_t / CUstream; NULL is the default stream. Emulated: work runs at once or, in tests, when waited for. */
typedef struct CUstream_st *qk_stream;

enum qk_status {
    QK_OK = 0,
    QK_ERROR_STRUCT_SIZE = -1,  /* a struct_size that no version has, or two of one array that differ */
    QK_ERROR_NULL_POINTER = -2, /* a pointer that is needed is NULL, or two that exclude each other are set */
    QK_ERROR_SHAPE = -3,        /* a dimension, a count or a stride is out of range, or two do not agree */
    QK_ERROR_ALIGNMENT = -4,    /* a base pointer is not aligned as the rules above say */
    QK_ERROR_LAYOUT = -5,       /* an unknown layout or dtype, or one that this weight's shape does not allow */
    QK_ERROR_BLOCK_SIZE = -6,   /* a block size other than a power of two in 32..4096 */
    QK_ERROR_WORKSPACE = -7,    /* the workspace is NULL or smaller than its size query says */
    QK_ERROR_NOT_BUILT = -8,    /* a feature of the interface that this version does not have yet */
    QK_ERROR_EMULATION = -9,    /* emulated build only: a kernel broke a rule; qk_emulation_message() says which */
    QK_ERROR_VALUE = -10,       /* a number that is no dimension is out of range: a flag, an index, p, eps, a step */
    QK_ERROR_HEAD_DIM = -11,    /* attention: a head_dim that is not built */
    QK_ERROR_OVERLAP = -12,     /* what is written overlaps another operand that it may not overlap */
    QK_ERROR_RESERVED = -13     /* a field called reserved is not 0 */
};

/* Element type of a dense matrix. */
enum qk_dtype { QK_BF16 = 0, QK_F32 = 1 };

/* Order of the first-level absmax of an [N, K] weight. */
enum qk_layout {
    QK_ABSMAX_ROW_MAJOR = 0, /* [N, K / block_size], flat, as bitsandbytes stores it; any N and K */
    QK_ABSMAX_TRANSPOSED = 1 /* [K / block_size, N]: what the kernels read fastest; needs K % block_size == 0 */
};

/* An NF4 weight W [N, K]. Element i (row-major, flat) is codebook[code i] * absmax[i / block_size]; code 2j is the high
 * nibble of byte j, code 2j + 1 the low one. With double quantization absmax[b] = nested_map[absmax_codes[b]] *
 * nested_absmax[b / 256] + offset in two roundings, b being the row-major block index whatever the layout.
 * Exactly one of absmax_codes (double quantization) and absmax (without) is set. */
typedef struct qk_nf4 {
    uint32_t struct_size;        /* sizeof(struct qk_nf4) */
    uint32_t layout;             /* enum qk_layout, of absmax_codes or absmax */
    int64_t n;                   /* N, rows (out features), >= 1 */
    int64_t k;                   /* K, columns (in features), >= 1 */
    uint32_t block_size;         /* elements per absmax: a power of two in 32..4096; 64 has the fast kernels */
    uint32_t reserved;           /* 0 */
    const uint8_t *codes;        /* device, [ceil(N * K / 2)] */
    const uint8_t *absmax_codes; /* device, [ceil(N * K / block_size)], or NULL */
    const float *absmax;         /* device, [ceil(N * K / block_size)], or NULL */
    const float *nested_absmax;  /* device, [ceil(blocks / 256)]; NULL without double quantization */
    const float *nested_map;     /* device, [256]: the 8-bit map; NULL without double quantization */
    const float *offset;         /* device, [1]; NULL without double quantization */
} qk_nf4;

/* A LoRA pair: Y += bf16(scale * X * A^T) * B^T. Or, with adapter_index, num_adapters pairs of which each row takes
 * its own: A and B then hold the pairs one after the other, all of rank r; one of a lower rank is padded with zeros,
 * A with rows and B with columns. What a row gets is, bit for bit, what it would get if every other row had the index
 * -1. */
typedef struct qk_lora {
    uint32_t struct_size;         /* sizeof(struct qk_lora) */
    uint32_t r;                   /* rank, 1..QK_MAX_R */
    float scale;                  /* alpha / r, or alpha / sqrt(r) for rsLoRA */
    uint32_t num_adapters;        /* 1 without adapter_index, else >= 1 */
    const void *a;                /* device, bf16 [num_adapters, r, K] */
    const void *b;                /* device, bf16 [num_adapters, N, r] */
    const int32_t *adapter_index; /* device, [M]: the adapter of each row, 0..num_adapters; any other, as -1: none.
                                   * NULL: one adapter, all rows */
    const float *scales;          /* device, [num_adapters]: the scale of each adapter in place of `scale`; NULL:
                                   * `scale` is that of all */
} qk_lora;

/* Dropout of the low-rank path's input: the same mask for all segments, in the forward pass and in the backward pass,
 * drawn again each time. The element (token, feature) is dropped if its number is below round(p * 2^32), else
 * multiplied by f32(1 / (1 - p)). Its number is word feature % 4 of Philox4x32-10 with key (seed, seed >> 32) and
 * counter (first_token + row, feature / 4, dropout_id, dropout_step). */
typedef struct qk_dropout {
    uint32_t struct_size;           /* sizeof(struct qk_dropout) */
    float p;                        /* in [0, 1); with 0 nothing is dropped */
    uint64_t seed;
    uint32_t dropout_id;            /* of the input: layer * 16 + which input of the layer */
    uint32_t dropout_step;          /* step * accumulation + micro */
    int64_t first_token;            /* of row 0; first_token + M <= 2^32 */
    const uint32_t *step_on_device; /* device, [1]: read in place of dropout_step when the kernel runs, so that a
                                     * captured graph is replayed with another mask; NULL: dropout_step. Revision 9 */
} qk_dropout;

/* One row segment of an operand: its own weight, LoRA pair, bias and output. */
typedef struct qk_segment {
    uint32_t struct_size;       /* sizeof(struct qk_segment) */
    uint32_t reserved;          /* 0 */
    int64_t n;                  /* out features of this segment, >= 1; equals nf4->n */
    const struct qk_nf4 *nf4;   /* host; the weight of qk_linear_forward, else NULL */
    const void *dense;          /* device, bf16 [n, K]; the weight of qk_linear_forward_dense, else NULL */
    const struct qk_lora *lora; /* host, or NULL: no LoRA on this segment */
    const void *bias;           /* device, bf16 [n], or NULL */
    void *y;                    /* device, bf16 [M, ldy]: the output, columns 0..n of each row */
    int64_t ldy;                /* elements from one row of y to the next, >= n */
} qk_segment;

/* Y_s = X * W_s^T + S_s * B_s^T (+ bias_s) for every segment s of one input X. */
typedef struct qk_linear_args {
    uint32_t struct_size;              /* sizeof(struct qk_linear_args) */
    uint32_t num_segments;             /* 1..QK_MAX_SEGMENTS */
    int64_t m;                         /* M, tokens, >= 0; with 0 nothing is done */
    int64_t k;                         /* K, the same for all segments */
    const void *x;                     /* device, bf16 [M, ldx] */
    int64_t ldx;                       /* elements from one row of x to the next, >= k */
    const struct qk_segment *segments; /* host, [num_segments], consecutive by segments[0].struct_size bytes */
    const void *s;                     /* device, bf16 [M, lds], qk_lora_columns() of each row, from qk_lora_down, or
                                        * NULL: computed inside */
    const struct qk_dropout *dropout;  /* host, or NULL: none. Read where S is computed: by qk_lora_down, and if s is
                                        * NULL */
    int64_t lds;                       /* elements from one row of s to the next, also of what qk_lora_down writes: a
                                        * multiple of 8, >= qk_lora_columns(); 0: that. Revision 9 */
    void *room;                        /* device, x + k, or NULL. ldx is then a multiple of 8, >= k +
                                        * qk_lora_columns(): qk_linear_product puts S behind the k columns of each row
                                        * of x, and x is not copied. Revision 9 */
} qk_linear_args;

/* One row segment of an operand, seen from its gradient. */
typedef struct qk_segment_backward {
    uint32_t struct_size;       /* sizeof(struct qk_segment_backward) */
    uint32_t reserved;          /* 0 */
    int64_t n;                  /* out features of this segment, >= 1; equals nf4->n */
    const struct qk_nf4 *nf4;   /* host; the weight of qk_linear_dx, else NULL */
    const void *dense;          /* device, bf16 [n, K]; the weight of qk_linear_dx_dense, else NULL */
    const struct qk_lora *lora; /* host, or NULL: no LoRA on this segment */
    const void *dy;             /* device, bf16 [M, lddy]: the gradient of the segment's output, columns 0..n of each
                                 * row */
    int64_t lddy;               /* elements from one row of dy to the next, >= n */
    float *da;                  /* device, f32 [num_adapters, r, K], or NULL: not wanted. Of qk_lora_gradients, which
                                 * adds to it */
    float *db;                  /* device, f32 [num_adapters, n, r], or NULL: not wanted. Likewise */
} qk_segment_backward;

/* The gradients of one input X of several segments. A function needs the pointers that it reads or writes; others may
 * be NULL. A weight is needed by the two dX functions only. */
typedef struct qk_linear_backward_args {
    uint32_t struct_size;                       /* sizeof(struct qk_linear_backward_args) */
    uint32_t num_segments;                      /* 1..QK_MAX_SEGMENTS */
    int64_t m;                                  /* M, tokens, >= 0; with 0 nothing is done */
    int64_t k;                                  /* K, the same for all segments */
    const void *x;                              /* device, bf16 [M, ldx]: read by qk_lora_gradients */
    int64_t ldx;                                /* elements from one row of x to the next, >= k; not read where x is
                                                 * NULL */
    void *dx;                                   /* device, bf16 [M, lddx]: written by qk_linear_dx and
                                                 * qk_linear_dx_dense, columns 0..k of each row */
    int64_t lddx;                               /* elements from one row of dx to the next, >= k; not read where dx is
                                                 * NULL */
    uint32_t accumulate;                        /* 1: dX becomes bf16(dX + gradient), the sum in f32, rounded once; 0:
                                                 * bf16(gradient) */
    uint32_t reserved;                          /* 0 */
    const struct qk_segment_backward *segments; /* host, [num_segments], consecutive by segments[0].struct_size bytes */
    const void *s;                              /* device, bf16 [M, lds] of qk_lora_down: read by qk_lora_gradients */
    const void *t;                              /* device, bf16 [M, ldt] of qk_lora_dy_b, or NULL: computed inside, in
                                                 * the workspace */
    const struct qk_dropout *dropout;           /* host, that of the forward pass, or NULL: none */
    int64_t lds;                                /* elements from one row of s to the next, a multiple of 8, >=
                                                 * qk_lora_columns(); 0: that. Revision 9 */
    int64_t ldt;                                /* those of t, also of what qk_lora_dy_b writes. Revision 9 */
    void *room;                                 /* device, behind the last segment's dy, or NULL. All dy are then
                                                 * columns of one matrix, one behind the other, whose rows are lddy
                                                 * apart, a multiple of 8, with qk_lora_columns() more elements:
                                                 * qk_linear_dx_product puts T there, and no dy is copied. Revision 9 */
} qk_linear_backward_args;

/* The kernel that a call takes. */
enum qk_path {
    QK_PATH_TENSOR_CORE = 0, /* M > 16: mma.sync tiles */
    QK_PATH_SMALL_M = 1,     /* M <= 16: reads each weight once */
    QK_PATH_GENERIC = 2      /* K % 64, ldx % 8 (lddy % 8 of any segment), block_size other than 64: one slow kernel */
};

/* Operands of qk_nf4_quantize. Every block's absmax is that of its elements; a block with a NaN or an
 * infinity gets that absmax and its codes are unspecified but in range. */
typedef struct qk_nf4_quantize_args {
    uint32_t struct_size;    /* sizeof(struct qk_nf4_quantize_args) */
    uint32_t dtype;          /* enum qk_dtype of weight */
    int64_t count;           /* elements, N * K, >= 1 */
    uint32_t block_size;     /* a power of two in 32..4096 */
    uint32_t reserved;       /* 0 */
    const void *weight;      /* device, [count] */
    const float *nested_map; /* device, [256] ascending 8-bit map, or NULL: no double quantization */
    uint8_t *codes;          /* device, out [ceil(count / 2)]; a last odd low nibble is 7, the code of 0 */
    float *absmax;           /* device, out [blocks], blocks = ceil(count / block_size); scratch under double
                              * quantization */
    uint8_t *absmax_codes;   /* device, out [blocks], row-major order; NULL without double quantization */
    float *nested_absmax;    /* device, out [ceil(blocks / 256)]; NULL without double quantization */
    float *offset;           /* device, out [1]: the f64 mean of absmax rounded to f32; NULL without double
                              * quantization */
} qk_nf4_quantize_args;

/* One trainable tensor of the optimizer. Its moments m and v are f32, or 8-bit codes with an absmax for every 256
 * elements: of the signed dynamic map for m, of the unsigned one for v, as bitsandbytes keeps them. Before the first
 * update all bytes of m, v and the absmax are 0, in either format. value, working, gradient, m and v are 16-byte
 * aligned. Without moments (all four NULL) a gradient counts in qk_gradient_norm, and qk_adamw_update is an error: for
 * moments that are brought to the device part by part. */
typedef struct qk_adamw_tensor {
    uint32_t struct_size;  /* sizeof(struct qk_adamw_tensor) */
    uint32_t rate;         /* index into qk_adamw_args.rates: LoRA+ has one rate for every A and another for every B */
    int64_t n;             /* elements, >= 1 */
    float *value;          /* device, [n]: the f32 master copy, updated */
    void *working;         /* device, bf16 [n]: written with the rounded new value, or NULL */
    const float *gradient; /* device, [n] */
    void *m;               /* device, f32 [n] or codes u8 [n], updated: first moment */
    void *v;               /* device, likewise: second moment */
    float *m_absmax;       /* device, [ceil(n / 256)], updated; NULL: f32 states */
    float *v_absmax;       /* device, [ceil(n / 256)], updated; NULL: f32 states */
} qk_adamw_tensor;

/* Scalars of the update of one rate's tensors. Device memory: a captured graph is replayed with new contents. */
typedef struct qk_adamw_rate {
    float decay;     /* 1 - learning_rate * weight_decay */
    float step_size; /* learning_rate / (1 - beta1^step); the first step is 1 */
    float root;      /* sqrt(1 - beta2^step) */
    float beta1;
    float rest1;     /* 1 - beta1 */
    float beta2;
    float rest2;     /* 1 - beta2 */
    float epsilon;
} qk_adamw_rate;

/* Result of qk_gradient_norm. Device memory, 8-byte aligned: the update reads it there, so the host need not wait
 * for it. */
typedef struct qk_gradient_state {
    double norm;    /* L2 norm over all gradients, before clipping; not finite if a gradient is not */
    float scale;    /* factor of every gradient in the update: min(1, max_norm / (norm + 1e-6)), 1 without
                     * clipping */
    int32_t tensor; /* the first tensor with a gradient that is not finite, or -1. The update does nothing unless it
                     * is negative */
} qk_gradient_state;

/* AdamW over all trainable tensors. */
typedef struct qk_adamw_args {
    uint32_t struct_size;                    /* sizeof(struct qk_adamw_args) */
    uint32_t num_tensors;                    /* >= 1 */
    const qk_adamw_tensor *tensors;          /* host, [num_tensors]: those that the table was made from */
    const void *table;                       /* device: a copy of what qk_adamw_table wrote, 16-byte aligned */
    const qk_adamw_rate *rates;              /* device, [num_rates] */
    uint32_t num_rates;                      /* above every tensor's rate */
    uint32_t reserved;                       /* 0 */
    const qk_gradient_state *gradient_state; /* device: read by qk_adamw_update; NULL: scale 1, and nothing is
                                              * skipped */
} qk_adamw_args;

/* QK_ABI_VERSION of the library, to be compared with the header's. */
uint32_t qk_abi_version(void);

/* QK_ABI_REVISION of the library: at least that of the header which has the fields and functions that the caller
 * needs. */
uint32_t qk_abi_revision(void);

/* A static name such as "QK_ERROR_SHAPE"; "cudaError" for positive values, "unknown" for what is neither. Not NULL. */
const char *qk_status_name(int status);

/* Quantizes to NF4, with double quantization if nested_map is set. */
int qk_nf4_quantize(const struct qk_nf4_quantize_args *args, qk_stream stream);

/* out [N, K] of `dtype` (enum qk_dtype): the f32 product code * absmax, rounded once if bf16. 16-byte aligned. */
int qk_nf4_dequantize(const struct qk_nf4 *weight, void *out, uint32_t dtype, qk_stream stream);

/* out [columns, rows] = transpose of in [rows, columns], bytes: row-major absmax codes (rows = N, columns = K /
 * block_size) to the transposed layout, and back with rows and columns exchanged. in and out must not overlap. */
int qk_absmax_transpose(const uint8_t *in, uint8_t *out, int64_t rows, int64_t columns, qk_stream stream);

/* Columns of S and T: every segment's r rounded up to 8 (0 without LoRA), summed; the segments' parts follow each
 * other in order. */
int qk_lora_columns(const struct qk_linear_args *linear, int64_t *columns);

/* S [M, qk_lora_columns()] bf16, in rows of linear->lds: part s is bf16(scale_s * X * A_s^T), padding columns are
 * zero, and nothing is written between rows. S may lie behind X's columns in the same rows. linear->s is not read. */
int qk_lora_down(const struct qk_linear_args *linear, void *s, qk_stream stream);

/* Bytes of workspace of the two forward functions: S, if the call has to compute it, or 0. */
int qk_linear_forward_workspace_size(const struct qk_linear_args *linear, size_t *bytes);

/* The kernel that the forward functions take for this call (enum qk_path). */
int qk_linear_forward_path(const struct qk_linear_args *linear, uint32_t *path);

/* The choice of the forward functions for this call, for people: "tensor cores, tiles of 128 tokens x 256 columns, NF4
 * weights". At most `size` bytes of `text` (host) are written, with the 0 at the end. Revision 1. */
int qk_linear_forward_choice(const struct qk_linear_args *linear, char *text, size_t size);

/* NF4 weights: every segment has nf4. Products are summed in f32 in an order that depends on K and r alone, within a
 * path. */
int qk_linear_forward(const struct qk_linear_args *linear, void *workspace, size_t workspace_bytes, qk_stream stream);

/* qk_linear_forward with bf16 weights: every segment has dense. */
int qk_linear_forward_dense(const struct qk_linear_args *linear, void *workspace, size_t workspace_bytes,
                            qk_stream stream);

/* Bytes of the table for these tensors. The functions of the table and of rates touch no device. */
int qk_adamw_table_size(const struct qk_adamw_tensor *tensors, uint32_t num_tensors, size_t *bytes);

/* Writes the table into `table` (host, 8-byte aligned): which tensor each chunk of work belongs to, and the tensors'
 * pointers. The caller copies it to the device once; a tensor that moves or changes its rate's index needs a new
 * one. */
int qk_adamw_table(const struct qk_adamw_tensor *tensors, uint32_t num_tensors, void *table, size_t table_size);

/* The scalars of update `step` (>= 1), computed in double and rounded once. */
int qk_adamw_rate_of(double learning_rate, double beta1, double beta2, double epsilon, double weight_decay,
                     uint64_t step, struct qk_adamw_rate *rate);

/* Bytes of workspace of qk_gradient_norm: a double for every chunk. */
int qk_gradient_norm_workspace_size(const struct qk_adamw_args *adamw, size_t *bytes);

/* *state (device) = norm of all gradients, the factor that clips it to max_norm (0: no clipping), and the first
 * tensor that is not finite. Sums are f64 in one fixed order: equal gradients give equal bits. adamw->gradient_state
 * is not read. */
int qk_gradient_norm(const struct qk_adamw_args *adamw, double max_norm, struct qk_gradient_state *state,
                     void *workspace, size_t workspace_bytes, qk_stream stream);

/* One update of all tensors, in one launch. Every operation rounds on its own in a fixed order (optim/adamw.cu):
 * results depend on neither device nor grid, and equal those of the Rust functions reference::adamw and
 * optim8bit::adamw_blockwise bit for bit. */
int qk_adamw_update(const struct qk_adamw_args *adamw, qk_stream stream);

/* T [M, qk_lora_columns()] bf16, in rows of backward->ldt: part s is bf16(scale_s * dY_s * B_s), padding columns are
 * zero, and nothing is written between rows. T may lie behind dY's columns in the same rows. backward->t is not
 * read. */
int qk_lora_dy_b(const struct qk_linear_backward_args *backward, void *t, qk_stream stream);

/* Bytes of workspace of the two dX functions: T, if the call has to compute it, or 0. */
int qk_linear_dx_workspace_size(const struct qk_linear_backward_args *backward, size_t *bytes);

/* The kernel that the dX functions take for this call (enum qk_path): QK_PATH_TENSOR_CORE for any M, or
 * QK_PATH_GENERIC. */
int qk_linear_dx_path(const struct qk_linear_backward_args *backward, uint32_t *path);

/* qk_linear_forward_choice of the dX functions. Revision 1. */
int qk_linear_dx_choice(const struct qk_linear_backward_args *backward, char *text, size_t size);

/* dX = mask(sum_s T_s * A_s) + sum_s dY_s * W_s (+ dX), NF4 weights: every segment has nf4. The segments are one
 * operand: products are summed in f32 in an order that depends on the segments' N and r alone, the low-rank ones
 * first, and dX is rounded once. */
int qk_linear_dx(const struct qk_linear_backward_args *backward, void *workspace, size_t workspace_bytes,
                 qk_stream stream);

/* qk_linear_dx with bf16 weights: every segment has dense. */
int qk_linear_dx_dense(const struct qk_linear_backward_args *backward, void *workspace, size_t workspace_bytes,
                       qk_stream stream);

/* dA_s += T_s^T * dropout(X) and dB_s += dY_s^T * S_s, f32, of every segment that has da or db. Sums over tokens:
 * each 256 tokens (from row 0 on) from zero, this sum then added to what is there, in order. So the bits do not
 * depend on tiling, and a batch cut at multiples of 256 rows and added up in order gives the same. With adapters,
 * pair p sums the rows of index p, as if no other were there. Needs x where a da is set, s where a db is, lora where
 * either is; reads no weight. */
int qk_lora_gradients(const struct qk_linear_backward_args *backward, void *workspace, size_t workspace_bytes,
                      qk_stream stream);

/* Bytes of workspace of qk_lora_gradients: T, if the call has to compute it, and sums over tokens where the matrices
 * are few and small. */
int qk_lora_gradients_workspace_size(const struct qk_linear_backward_args *backward, size_t *bytes);

/* ---- One product for all segments, by the GEMM of a library: weights are dequantized, and the low-rank term is
 * appended to what is summed over. Adapters by an index, and dropout in dX, are QK_ERROR_NOT_BUILT. All of it is
 * revision 7. ---- */

/* The operands of a product, out [M, n], with f32 sums that are rounded once. They lie in the workspace, or are those
 * of the call where one of them is already as it has to be: X or dY, too, if S or T lies behind its columns in the
 * same rows, or may be put there (`room`). */
typedef struct qk_product {
    uint32_t struct_size; /* sizeof(struct qk_product), set by the caller; the rest is written */
    uint32_t reserved;    /* 0 */
    int64_t n;            /* columns of the product: the features of all segments, or K in dX */
    int64_t k;            /* what is summed over: K and the columns of S, or all features and the columns of T */
    const void *x;        /* device, bf16 [M, ldx]: [X | S], or [dY | T] */
    int64_t ldx;          /* elements from row to row of x */
    const void *w;        /* device, bf16: [W | B] is [n, ldw], out = x * w^T; in dX [W ; A] is [k, ldw], out = x * w */
    int64_t ldw;          /* elements from row to row of w */
    const void *bias;     /* device, bf16 [n], added before the sum is rounded; NULL in dX, and where no segment has
                           * one */
} qk_product;

/* Bytes of workspace of qk_linear_product. With room, X takes none of it, nor does S. */
int qk_linear_product_workspace_size(const struct qk_linear_args *linear, size_t *bytes);

/* The product of the forward pass: segment by segment, out has the columns of each y. The segments may be of NF4 and
 * dense ones at once. No y is written. */
int qk_linear_product(const struct qk_linear_args *linear, struct qk_product *product, void *workspace,
                      size_t workspace_bytes, qk_stream stream);

/* Bytes of workspace of qk_linear_dx_product. With room, dY takes none of it, nor does T. Of the pointers it only reads
 * whether t and room are NULL, and whether the segments' dy, and t, are columns of one matrix, one behind the other. */
int qk_linear_dx_product_workspace_size(const struct qk_linear_backward_args *backward, size_t *bytes);

/* The product of dX, without what accumulate adds. dx is not written. */
int qk_linear_dx_product(const struct qk_linear_backward_args *backward, struct qk_product *product, void *workspace,
                         size_t workspace_bytes, qk_stream stream);

/* ---- Magnitudes of a layer's outputs (DoRA): y = m / norm * (x * W'^T) + bias with W' = W + scale * B * A and norm
 * those of its rows, which no gradient goes through. All of it is revision 7. ---- */

/* A weight whose rows are squared. */
typedef struct qk_row_squares_args {
    uint32_t struct_size;     /* sizeof(struct qk_row_squares_args) */
    uint32_t reserved;        /* 0 */
    int64_t n;                /* N, rows, >= 1; equals nf4->n */
    int64_t k;                /* K, columns, >= 1; equals nf4->k */
    const struct qk_nf4 *nf4; /* host; the weight, or NULL: dense */
    const void *dense;        /* device, bf16 [N, K]; the weight, or NULL: nf4 */
    float *squares;           /* device, out [N] */
} qk_row_squares_args;

/* squares[i] = the sum of the squares of row i, of elements rounded to bf16 as the products with them have them. f32
 * sums, in an order that depends on K alone. */
int qk_row_squares(const struct qk_row_squares_args *args, qk_stream stream);

/* Operands of the norms of the rows of W'. With X = A as input (M = r) and scale / 2 as the scale of its LoRA pair,
 * qk_linear_forward gives Z = A * (W + scale / 2 * B * A)^T, and |W'|^2 = |W|^2 + 2 * scale * (Z^T . B) row by row: no
 * matrix of the weight's size is made. */
typedef struct qk_magnitude_norms_args {
    uint32_t struct_size; /* sizeof(struct qk_magnitude_norms_args) */
    uint32_t r;           /* rank, 1..QK_MAX_R */
    int64_t n;            /* N, >= 1 */
    const void *z;        /* device, bf16 [r, N] */
    const void *b;        /* device, bf16 [N, r] */
    const float *squares; /* device, [N]: of qk_row_squares */
    float *norms;         /* device, out [N] */
    float scale;          /* that of the LoRA pair, finite */
    uint32_t reserved;    /* 0 */
} qk_magnitude_norms_args;

/* norms[i] = sqrt(max(0, squares[i] + 2 * scale * (the sum over j, in order, of z[j, i] * b[i, j]))), in f32. */
int qk_magnitude_norms(const struct qk_magnitude_norms_args *args, qk_stream stream);

/* The outputs of a linear layer and their magnitudes, or the gradient of both. */
typedef struct qk_magnitude_args {
    uint32_t struct_size;   /* sizeof(struct qk_magnitude_args) */
    uint32_t reserved;      /* 0 */
    int64_t m;              /* M, tokens, >= 0 */
    int64_t n;              /* N, >= 1 */
    const float *magnitude; /* device, [N]. NULL, with norms, in qk_magnitude_backward: the layer has none */
    const float *norms;     /* device, [N]; where one is 0, output and gradients are as if the magnitude were 0 */
    const void *bias;       /* device, bf16 [N], or NULL */
    void *y;                /* device, bf16 [M, ldy]: the layer's output with its bias, written over */
    int64_t ldy;            /* elements from row to row of y, >= n */
    const void *dy;         /* device, bf16 [M, lddy]: the gradient of the output with magnitudes; NULL in
                             * qk_magnitude */
    int64_t lddy;           /* elements from row to row of dy, >= n; not read where dy is NULL */
    float *dmagnitude;      /* device, f32 [N]: the gradient of the magnitudes is added to it, or NULL: not wanted */
} qk_magnitude_args;

/* y = magnitude / norms * (y - bias) + bias. */
int qk_magnitude(const struct qk_magnitude_args *args, qk_stream stream);

/* Bytes of workspace of qk_magnitude_backward: sums of 256 tokens of every column, where dmagnitude is wanted. Of the
 * pointers it only reads whether that is NULL. */
int qk_magnitude_backward_workspace_size(const struct qk_magnitude_args *args, size_t *bytes);

/* dmagnitude += the sum over tokens of dy * (y - bias) / norms, then y = magnitude / norms * dy, the gradient of the
 * layer's output. y is the output before its magnitudes. Sums over tokens: of each 256 tokens (from row 0 on) 16 sums
 * of every 16th in order, from zero, these added in order and divided by the norm; this sum is then added to what is
 * there, in order. So a batch cut at multiples of 256 rows and added up in order gives the same bits. Without
 * magnitudes y = dy. */
int qk_magnitude_backward(const struct qk_magnitude_args *args, void *workspace, size_t workspace_bytes,
                          qk_stream stream);

/* ---- The rest of a Llama layer. Activations are bf16, sums f32; each result is rounded once. Base pointers of bf16
 * matrices are 16-byte aligned; widths that are multiples of 8 are fast, others are taken element by element. ---- */

/* Rows of an embedding table. */
typedef struct qk_embedding_args {
    uint32_t struct_size; /* sizeof(struct qk_embedding_args) */
    uint32_t reserved;    /* 0 */
    int64_t m;            /* M, tokens, >= 0 */
    int64_t h;            /* H, the width of a row, >= 1 */
    int64_t vocab;        /* rows of the table, >= 1 */
    const uint32_t *ids;  /* device, [M]; a row whose id is not below vocab becomes NaN */
    const void *table;    /* bf16 [vocab, H], device or pinned host memory that the device can read */
    void *out;            /* device, bf16 [M, H] */
    float scale;          /* what rows are multiplied by, finite; 0: 1. Revision 3 */
    uint32_t reserved2;   /* 0 */
} qk_embedding_args;

/* out[t] = scale * table[ids[t]], rounded once. */
int qk_embedding(const struct qk_embedding_args *args, qk_stream stream);

/* The gradient of the rows of an embedding table. */
typedef struct qk_embedding_backward_args {
    uint32_t struct_size; /* sizeof(struct qk_embedding_backward_args) */
    uint32_t reserved;    /* 0 */
    int64_t m;            /* M, tokens, >= 0 */
    int64_t h;            /* H, the width of a row, >= 1 */
    int64_t vocab;        /* rows of the table, >= 1 */
    const uint32_t *ids;  /* device, [M]; a token whose id is not below vocab is left out */
    const void *dout;     /* device, bf16 [M, lddout]: the gradient of qk_embedding's output */
    float *dtable;        /* device, f32 [vocab, H], with rows [num_rows, H]: added to */
    float scale;          /* that of qk_embedding, finite; 0: 1 */
    uint32_t reserved2;   /* 0 */
    const uint32_t *rows; /* device, [num_rows]: the ids whose rows dtable has, ascending, each once; tokens of others
                           * are left out. NULL: all ids. Revision 8 */
    int64_t num_rows;     /* 1..vocab with rows, 0 without */
    int64_t lddout;       /* elements from one row of dout to the next, >= H; 0: H. Revision 9 */
} qk_embedding_backward_args;

/* dtable[ids[t]] += scale * dout[t], product and sum each rounded, token by token in order: a batch that is cut
 * anywhere and added up in order gives the same bits. With rows those of dtable are the bits that they are without.
 * Revision 7. */
int qk_embedding_backward(const struct qk_embedding_backward_args *args, qk_stream stream);

/* Rows that take the place of some of a table. All of it is revision 8. */
typedef struct qk_replace_rows_args {
    uint32_t struct_size; /* sizeof(struct qk_replace_rows_args) */
    uint32_t reserved;    /* 0 */
    int64_t h;            /* H, the width of a row, >= 1 */
    int64_t vocab;        /* rows of the table, >= 1 */
    int64_t num_rows;     /* 0..vocab */
    const uint32_t *rows; /* device, [num_rows], each once; one that is not below vocab is left out */
    const void *values;   /* device, bf16 [num_rows, H] */
    void *table;          /* bf16 [vocab, H], device or pinned host memory that the device can write */
} qk_replace_rows_args;

/* table[rows[i]] = values[i]. */
int qk_replace_rows(const struct qk_replace_rows_args *args, qk_stream stream);

/* RMSNorm, with the residual add before it or after it. */
typedef struct qk_rms_norm_args {
    uint32_t struct_size; /* sizeof(struct qk_rms_norm_args) */
    float eps;            /* > 0 */
    int64_t m;            /* M, tokens, >= 0 */
    int64_t h;            /* H, >= 1 */
    const void *x;        /* device, bf16 [M, H]: the residual stream */
    const void *delta;    /* device, bf16 [M, H]: what is added to it, or NULL */
    const float *weight;  /* device, [H] */
    void *sum;            /* device, out bf16 [M, H]: bf16(x + delta), may be x itself; NULL if and only if delta is */
    void *y;              /* device, out bf16 [M, ldy]; may be residual itself, with ldy = H */
    const void *residual; /* device, bf16 [M, H]: what the rounded norm is added to, or NULL; NULL with delta.
                           * Revision 4 */
    int64_t ldy;          /* elements from one row of y to the next, >= H; 0: H. Revision 9 */
} qk_rms_norm_args;

/* y = weight * (s / sqrt(mean(s^2) + eps)), s = bf16(x + delta): the norm reads the rounded stream. With a residual,
 * y = bf16(residual + bf16(that)). */
int qk_rms_norm(const struct qk_rms_norm_args *args, qk_stream stream);

/* The gradient of RMSNorm with respect to its input. */
typedef struct qk_rms_norm_backward_args {
    uint32_t struct_size; /* sizeof(struct qk_rms_norm_backward_args) */
    float eps;            /* > 0 */
    int64_t m;            /* M, tokens, >= 0 */
    int64_t h;            /* H, >= 1 */
    const void *dy;       /* device, bf16 [M, lddy] */
    const void *x;        /* device, bf16 [M, H]: what the norm read */
    const float *weight;  /* device, [H] */
    void *dx;             /* device, bf16 [M, lddx]; may be dy itself, with lddx = lddy */
    uint32_t accumulate;  /* 1: added to dx, 0: written over it */
    uint32_t reserved;    /* 0 */
    int64_t lddy;         /* elements from one row of dy to the next, >= H; 0: H. Revision 9 */
    int64_t lddx;         /* those of dx. Revision 9 */
} qk_rms_norm_backward_args;

/* With g = weight * dy and rho = 1 / sqrt(mean(x^2) + eps): dx (+)= rho * g - x * rho^3 * (g . x) / H. */
int qk_rms_norm_backward(const struct qk_rms_norm_backward_args *args, qk_stream stream);

/* The gradient of the weight of RMSNorm, whose rows are parts of the rows of a matrix: with 1 part, those of
 * qk_rms_norm; with as many parts as heads, those of the q or of the k of qk_head_norm. */
typedef struct qk_norm_gradient_args {
    uint32_t struct_size; /* sizeof(struct qk_norm_gradient_args) */
    float eps;            /* > 0 */
    int64_t m;            /* M, tokens, >= 0 */
    int64_t parts;        /* of a row, one behind the other, 1..65535 */
    int64_t width;        /* of a part, >= 1 */
    int64_t ld;           /* elements from row to row of x, and of dy without lddy, >= column + parts * width */
    int64_t column;       /* where the first part begins, >= 0 */
    const void *dy;       /* device, bf16 [M, lddy]: the gradient of the norm's output, before any rotation */
    const void *x;        /* device, bf16 [M, ld]: what the norm read, after any rotation */
    float *dweight;       /* device, f32 [width]: added to */
    int64_t lddy;         /* elements from row to row of dy, >= column + parts * width; 0: ld. Revision 9 */
} qk_norm_gradient_args;

/* Bytes of workspace of qk_norm_gradient: 4 for every part of every row, and sums of 256 tokens of every column. Of the
 * pointers it reads none. */
int qk_norm_gradient_workspace_size(const struct qk_norm_gradient_args *args, size_t *bytes);

/* dweight += the sum over tokens and parts of dy * (x / sqrt(mean(x^2) + eps)). Sums: of each 256 tokens (from row 0
 * on) 16 sums of every 16th in order, part by part, from zero, these added in order; this sum is then added to what is
 * there, in order. So a batch cut at multiples of 256 rows and added up in order gives the same bits. Revision 7. */
int qk_norm_gradient(const struct qk_norm_gradient_args *args, void *workspace, size_t workspace_bytes,
                     qk_stream stream);

/* Rotation of q and k in qk_head_norm by their positions, as in qk_rope. */
enum qk_rotation {
    QK_ROTATION_NONE = 0,
    QK_ROTATION_AFTER_NORM = 1, /* the norm's output is rotated: Qwen3, Gemma 3, OLMo 2 */
    QK_ROTATION_BEFORE_NORM = 2 /* the norm's input is rotated: Hunyuan */
};

/* RMSNorm of every head of q and of k, or of all of q and all of k, in rows q | k | v of heads + 2 * kv_heads heads,
 * and their rotation with it. */
typedef struct qk_head_norm_args {
    uint32_t struct_size;  /* sizeof(struct qk_head_norm_args) */
    uint32_t head_dim;     /* D, 1..1024 */
    uint32_t heads;        /* H, query heads, 1..65535 */
    uint32_t kv_heads;     /* Hkv, key heads and value heads, 1..heads */
    float eps;             /* > 0 */
    uint32_t reserved;     /* 0 */
    int64_t m;             /* M, tokens, >= 0 */
    int64_t ldx;           /* elements from row to row of x, >= (H + 2 * Hkv) * D */
    int64_t ldy;           /* elements from row to row of y and dy, >= (H + 2 * Hkv) * D */
    const void *x;         /* device, bf16 [M, ldx]: what the norm reads */
    const float *q_weight; /* device, [D], or [H * D] with whole_width */
    const float *k_weight; /* device, [D], or [Hkv * D] with whole_width */
    const void *dy;        /* device, bf16 [M, ldy]: the gradient of the norm's output; NULL: the norm itself */
    void *y;               /* device, out bf16 [M, ldy]; may be x (with ldy = ldx) in the norm, dy in its gradient */
    uint32_t whole_width;  /* 1: q is normalized as one, and k too; 0: head by head. Revision 4 */
    uint32_t reserved2;    /* 0 */
    uint32_t rotation;     /* enum qk_rotation; the fields below are read with one only. Revision 6 */
    uint32_t rotary_dim;   /* R, as in qk_rope_args. Revision 6 */
    const uint32_t *positions; /* device, [M], below table_positions; a row beyond becomes NaN. Revision 6 */
    const float *cosines;      /* device, [table_positions, R / 2]. Revision 6 */
    const float *sines;        /* device, [table_positions, R / 2]. Revision 6 */
    int64_t table_positions;   /* >= 1. Revision 6 */
} qk_head_norm_args;

/* Without dy, for each head of q and k, or with whole_width for q and for k: y = weight * (x / sqrt(mean(x^2) + eps)).
 * With dy the gradient with respect to x, g being weight * dy and rho 1 / sqrt(mean(x^2) + eps): y = rho * g - x *
 * rho^3 * (g . x) / D, D being the elements that the mean is of. The part v is copied, from x or from dy. With a
 * rotation x and y are those of the whole: rounded once, not between its two halves. */
int qk_head_norm(const struct qk_head_norm_args *args, qk_stream stream);

/* Rotary position embedding of the first `heads` heads of every row, in place, in the half-split form of Llama. */
typedef struct qk_rope_args {
    uint32_t struct_size;      /* sizeof(struct qk_rope_args) */
    uint32_t head_dim;         /* D, even, 2..1024 */
    uint32_t heads;            /* rotated heads of a row: query heads and key heads, >= 1 */
    uint32_t inverse;          /* 1: by the negative angle, which is the gradient */
    int64_t m;                 /* M, tokens, >= 0 */
    int64_t ldx;               /* elements from row to row of x, >= heads * D */
    void *x;                   /* device, bf16 [M, ldx] */
    const uint32_t *positions; /* device, [M], below table_positions; a row beyond becomes NaN */
    const float *cosines;      /* device, [table_positions, R / 2] */
    const float *sines;        /* device, [table_positions, R / 2] */
    int64_t table_positions;   /* >= 1 */
    uint32_t rotary_dim;       /* R, even, at most D: the elements of a head that are rotated, its first; 0: D.
                                * Revision 4 */
    uint32_t reserved;         /* 0 */
} qk_rope_args;

/* (a, b) = elements (i, i + R / 2) of a head become (a * cos - b * sin, b * cos + a * sin). */
int qk_rope(const struct qk_rope_args *args, qk_stream stream);

/* Activation of the gate. */
enum qk_activation {
    QK_SILU = 0,     /* x / (1 + exp(-x)) */
    QK_GELU_TANH = 1 /* x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) */
};

/* SwiGLU, or GeGLU. A row of gate_up is gate [I], then up [I]. */
typedef struct qk_swiglu_args {
    uint32_t struct_size; /* sizeof(struct qk_swiglu_args) */
    uint32_t reserved;    /* 0 */
    int64_t m;            /* M, tokens, >= 0 */
    int64_t i;            /* I, >= 1 */
    void *gate_up;        /* device, bf16 [M, ldgate_up]; qk_swiglu_backward writes its gradient over it */
    void *out;            /* device, bf16 [M, ldout]: written by qk_swiglu, or NULL in qk_swiglu_backward: not wanted */
    const void *dout;     /* device, bf16 [M, I]: the gradient of out; NULL in qk_swiglu */
    uint32_t activation;  /* enum qk_activation. Revision 4 */
    uint32_t reserved2;   /* 0 */
    int64_t ldgate_up;    /* elements from one row of gate_up to the next, >= 2 * I; 0: that. Revision 9 */
    int64_t ldout;        /* elements from one row of out to the next, >= I; 0: I. Revision 9 */
} qk_swiglu_args;

/* out = activation(gate) * up. */
int qk_swiglu(const struct qk_swiglu_args *args, qk_stream stream);

/* dgate = dout * up * activation'(gate), dup = dout * activation(gate). If `out` is set it gets the forward result once
 * more, so that a recomputing backward pass needs no second kernel. */
int qk_swiglu_backward(const struct qk_swiglu_args *args, qk_stream stream);

/* Causal attention over documents laid end to end, with grouped queries. */
typedef struct qk_attention_args {
    uint32_t struct_size;       /* sizeof(struct qk_attention_args) */
    uint32_t head_dim;          /* D: 64, 96, 128 or 256, else QK_ERROR_HEAD_DIM. 96 and 256: revision 4 */
    uint32_t heads;             /* H, query heads, >= 1 */
    uint32_t kv_heads;          /* Hkv, key and value heads, a divisor of H */
    int64_t m;                  /* M, tokens, >= 0 */
    int64_t documents;          /* >= 1 */
    const uint32_t *cu_seqlens; /* device, [documents + 1], ascending from 0 to M: document d has tokens cu_seqlens[d]
                                 * .. cu_seqlens[d + 1] */
    int64_t window;             /* a query sees this many keys at most, itself included; 0: all of its document before
                                 * it */
    const void *qkv;            /* device, bf16 [M, ldqkv]: a row is H queries, Hkv keys, Hkv values of D each */
    int64_t ldqkv;              /* elements from row to row of qkv, and of dqkv without lddqkv, a multiple of 8, >=
                                 * (H + 2 Hkv) * D */
    void *out;                  /* device, bf16 [M, ldout]: written forward, read backward */
    float *lse;                 /* device, [M, H]: log of the sum of exponentials, written forward, read backward */
    const void *dout;           /* device, bf16 [M, H * D]: backward only */
    void *dqkv;                 /* device, out bf16 [M, lddqkv]: backward only */
    float soft_cap;             /* scores s = Q * K^T / sqrt(D) become soft_cap * tanh(s / soft_cap) before the mask,
                                 * finite and above 0; 0: as they are. Revision 5 */
    uint32_t reserved;          /* 0 */
    int64_t ldout;              /* elements from row to row of out, a multiple of 8, >= H * D; 0: H * D. Revision 9 */
    int64_t lddqkv;             /* elements from row to row of dqkv, a multiple of 8, >= (H + 2 Hkv) * D; 0: ldqkv.
                                 * Revision 9 */
} qk_attention_args;

/* out = softmax(Q * K^T / sqrt(D)) * V, or with capped scores. */
int qk_attention(const struct qk_attention_args *args, qk_stream stream);

/* Bytes of workspace of the backward function: lse and rowsum(dout * out) of every query, and, of few tokens, partial
 * sums of dK and dV. They grow with M, so that the workspace of the longest batch serves every one. */
int qk_attention_backward_workspace_size(const struct qk_attention_args *args, size_t *bytes);

/* dqkv, all of its heads. Deterministic: sums have one order, and no block waits for another. */
int qk_attention_backward(const struct qk_attention_args *args, void *workspace, size_t workspace_bytes,
                          qk_stream stream);

/* Attention of new tokens over the keys and values of earlier ones, kept in a cache. Documents have rows of the cache
 * of their own, position p of document d being row starts[d] + p; the rows of two documents must not overlap. A batch
 * has the next tokens of each document, any number of them, also none; the positions of a document's new tokens
 * ascend by 1. */
typedef struct qk_attention_cache_args {
    uint32_t struct_size;       /* sizeof(struct qk_attention_cache_args) */
    uint32_t head_dim;          /* D: 64, 96, 128 or 256, else QK_ERROR_HEAD_DIM. 96 and 256: revision 4 */
    uint32_t heads;             /* H, query heads, >= 1, at most 65,535 */
    uint32_t kv_heads;          /* Hkv, key and value heads, a divisor of H */
    int64_t m;                  /* M, new tokens, >= 0 */
    int64_t documents;          /* >= 1 */
    const uint32_t *cu_seqlens; /* device, [documents + 1], ascending from 0 to M: document d has tokens cu_seqlens[d]
                                 * .. cu_seqlens[d + 1] */
    const uint32_t *starts;     /* device, [documents]: the row of the cache of each document's position 0 */
    const uint32_t *positions;  /* device, [M]: of each new token in its document */
    int64_t max_seqlen;         /* more than every position, 1..65535 * 128 (* 64 with D = 256): what the grid and the
                                 * workspace have room for. No bit of the result depends on it */
    int64_t rows;               /* of the cache, >= 1 */
    const void *qkv;            /* device, bf16 [M, ldqkv]: a row is H queries, Hkv keys, Hkv values of D each,
                                 * rotated */
    int64_t ldqkv;              /* elements from row to row of qkv, a multiple of 8, >= (H + 2 Hkv) * D */
    void *cache;                /* device, bf16 [rows, 2 * Hkv * D]: a row is Hkv keys, Hkv values; qk_attention_cache
                                 * only reads it */
    void *out;                  /* device, bf16 [M, ldout]; not used by qk_attention_cache_append */
    int64_t window;             /* a query sees this many keys at most, itself included; 0: all of its document before
                                 * it. Not used by qk_attention_cache_append. Revision 3 */
    float soft_cap;             /* that of qk_attention_args. Not used by qk_attention_cache_append. Revision 5 */
    uint32_t reserved;          /* 0 */
    int64_t ldout;              /* elements from row to row of out, >= H * D; 0: H * D. Not used by
                                 * qk_attention_cache_append. Revision 9 */
} qk_attention_cache_args;

/* Copies the new tokens' keys and values to their rows of the cache. A token whose row is beyond the cache is left
 * out. */
int qk_attention_cache_append(const struct qk_attention_cache_args *args, qk_stream stream);

/* Bytes of workspace of qk_attention_cache: an f32 result of every query and of every 128 rows of the cache (64 with
 * D = 256), with two floats beside; of many new tokens as many at a time as fit 64 MiB or, if one tile of 16
 * queries a key head needs more, that. Of the pointers it reads none. */
int qk_attention_cache_workspace_size(const struct qk_attention_cache_args *args, size_t *bytes);

/* out = softmax(q * K^T / sqrt(D)) * V over positions 0 .. the query's own, or the last `window` of them, which
 * qk_attention_cache_append has written. What no query of a tile sees of the cache is not read, by as many rows. A row
 * whose position is not below `max_seqlen`, or whose document's rows do not fit the cache, becomes NaN.
 * Deterministic: what those rows of the cache add is computed apart from the others and combined by a second kernel, in
 * order; the result does not depend on the rest of the batch. */
int qk_attention_cache(const struct qk_attention_cache_args *args, void *workspace, size_t workspace_bytes,
                       qk_stream stream);

/* The output layer of a few tokens, whose logits choose the next token. */
typedef struct qk_logits_args {
    uint32_t struct_size;   /* sizeof(struct qk_logits_args) */
    uint32_t num_tokens;    /* 0..65,535; 16 are computed at a time */
    int64_t m;              /* M, rows of hidden, >= 1 */
    int64_t h;              /* H, >= 1; the last 64 of features are padded with zeros, multiples of 8 are fast */
    int64_t vocab;          /* V, rows of head, >= 1 */
    const void *hidden;     /* device, bf16 [M, H]: after the last norm */
    const void *head;       /* device, bf16 [V, H] */
    const uint32_t *tokens; /* host, [num_tokens]: the rows of hidden, each below M */
    float *const *logits;   /* host, [num_tokens]: each device, out [V] */
} qk_logits_args;

/* logits[i] = head * hidden[tokens[i]], summed in f32, not rounded to bf16 and without a soft cap, which is the
 * caller's. A token's bits do not depend on the others. */
int qk_logits(const struct qk_logits_args *args, qk_stream stream);

/* Result of qk_cross_entropy. Device memory, 8-byte aligned. */
typedef struct qk_loss_state {
    double sum;          /* of weights * losses: each 256 rows (from row 0 on) from zero, these sums then added in
                          * order; NaN if one is not finite */
    int32_t row;         /* the first row whose loss or weight is not finite, or -1 */
    uint32_t supervised; /* the supervised tokens found; sum is NaN if args->supervised is another number. If they are
                          * more, what is beyond has a loss of NaN and a gradient that is not written */
} qk_loss_state;

/* The output layer, the softmax cross-entropy and its gradient, without M * V logits. A token is supervised if its
 * target is not negative and its weight is not 0; any other costs nothing. */
typedef struct qk_cross_entropy_args {
    uint32_t struct_size;        /* sizeof(struct qk_cross_entropy_args) */
    float gradient_scale;        /* multiplies dhidden and no loss, finite: 1 / supervised tokens of the whole
                                  * optimizer step, for a mean */
    int64_t m;                   /* M, tokens, >= 0 */
    int64_t h;                   /* H, >= 1; multiples of 64 are fast, with others the gradient takes one plain, slow
                                  * kernel */
    int64_t vocab;               /* V, rows of head, >= 1 */
    int64_t supervised;          /* supervised tokens, 0..m: what is computed, and what the workspace has room for */
    int64_t chunk;               /* tokens whose logits exist at one time, >= 1, best a multiple of 128. No bit of the
                                  * result depends on it */
    const void *hidden;          /* device, bf16 [M, H]: after the last norm */
    const void *head;            /* device, bf16 [V, H] */
    const int32_t *targets;      /* device, [M]: below V; negative: none, which costs nothing. From V on: that row's
                                  * loss and gradient are NaN */
    float *losses;               /* device, out [M]: log(sum(exp(z))) - z[target], not weighted; 0 where not
                                  * supervised */
    struct qk_loss_state *state; /* device, out [1] */
    void *dhidden;               /* device, out bf16 [M, H], may be hidden itself; zero where not supervised. NULL:
                                  * losses only */
    const float *weights;        /* device, [M]: of each token's loss in the sum and in dhidden, of either sign; NULL:
                                  * 1 each. Those of negative targets are not read. Revision 1 */
    float soft_cap;              /* logits z become soft_cap * tanh(z / soft_cap), finite and above 0; 0: as they are.
                                  * Revision 5 */
    uint32_t reserved;           /* 0 */
    float *dhead;                /* device, f32 [V, H], with head_rows [num_head_rows, H]: the gradient of head is added
                                  * to it, or NULL: not wanted. Needs dhidden. Revision 7 */
    const uint32_t *head_rows;   /* device, [num_head_rows]: the rows of head that dhead has, each once; one that is not
                                  * below V gets nothing. NULL: all. Needs dhead. Revision 8 */
    int64_t num_head_rows;       /* 1..V with head_rows, 0 without */
} qk_cross_entropy_args;

/* Bytes of workspace of qk_cross_entropy. With C = min(chunk, supervised) and V, H rounded up to 8 and 64: 4 *
 * supervised + C * (2 * H + V / 8 + 4) with some padding, and, with a gradient, C * V * 4 more, the logits (1,024
 * tokens of 128,256: 525 MB); with dhead, of a small output layer or of few rows, sums over tokens; with head_rows
 * C * 2 for each, rounded up to 8. Of the pointers it only reads whether dhidden and dhead are NULL. */
int qk_cross_entropy_workspace_size(const struct qk_cross_entropy_args *args, size_t *bytes);

/* losses, state and, if set, dhidden = gradient_scale * weights[t] * (softmax(z) - onehot(target)) * head with
 * z = hidden * head^T: the gradient of gradient_scale * state->sum. gradient_scale * weights[t] is one f32. With a
 * soft cap z is the capped logit, and the gradient of each has the factor 1 - (z / soft_cap)^2. Logits,
 * softmax and losses are f32; the gradient of the logits is rounded to bf16 once, dhidden is summed in f32 over the
 * vocabulary in order and rounded once. dhead += (that rounded gradient)^T * hidden, f32: each 256 supervised tokens
 * from zero, this sum then added to what is there, in order; its bits do not depend on a chunk that is a multiple of
 * 256, or is all there is. With head_rows those of dhead are the bits that they are without. Where the supervised
 * tokens are fewer than args->supervised, dhead is unspecified. */
int qk_cross_entropy(const struct qk_cross_entropy_args *args, void *workspace, size_t workspace_bytes,
                     qk_stream stream);

/* ---- Layout. Sizes and offsets where pointers have 64 bits, which C11 and C++11 compilers check. A committed table
 * of them tells an incompatible change from an added field. ---- */

#if UINTPTR_MAX == UINT64_MAX
#ifdef __cplusplus
#define QK_STATIC_ASSERT(condition, message) static_assert(condition, message)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define QK_STATIC_ASSERT(condition, message) _Static_assert(condition, message)
#endif
#endif

#ifdef QK_STATIC_ASSERT
#define QK_SIZE(type, bytes) QK_STATIC_ASSERT(sizeof(struct type) == (bytes), "the size of " #type)
#define QK_AT(type, field, bytes) QK_STATIC_ASSERT(offsetof(struct type, field) == (bytes), #field " of " #type)

QK_SIZE(qk_nf4, 80);
QK_AT(qk_nf4, struct_size, 0); QK_AT(qk_nf4, layout, 4); QK_AT(qk_nf4, n, 8); QK_AT(qk_nf4, k, 16);
QK_AT(qk_nf4, block_size, 24); QK_AT(qk_nf4, reserved, 28); QK_AT(qk_nf4, codes, 32); QK_AT(qk_nf4, absmax_codes, 40);
QK_AT(qk_nf4, absmax, 48); QK_AT(qk_nf4, nested_absmax, 56); QK_AT(qk_nf4, nested_map, 64); QK_AT(qk_nf4, offset, 72);

QK_SIZE(qk_lora, 48);
QK_AT(qk_lora, struct_size, 0); QK_AT(qk_lora, r, 4); QK_AT(qk_lora, scale, 8); QK_AT(qk_lora, num_adapters, 12);
QK_AT(qk_lora, a, 16); QK_AT(qk_lora, b, 24); QK_AT(qk_lora, adapter_index, 32); QK_AT(qk_lora, scales, 40);

QK_SIZE(qk_dropout, 40);
QK_AT(qk_dropout, struct_size, 0); QK_AT(qk_dropout, p, 4); QK_AT(qk_dropout, seed, 8);
QK_AT(qk_dropout, dropout_id, 16); QK_AT(qk_dropout, dropout_step, 20); QK_AT(qk_dropout, first_token, 24);
QK_AT(qk_dropout, step_on_device, 32);

QK_SIZE(qk_segment, 64);
QK_AT(qk_segment, struct_size, 0); QK_AT(qk_segment, reserved, 4); QK_AT(qk_segment, n, 8);
QK_AT(qk_segment, nf4, 16); QK_AT(qk_segment, dense, 24); QK_AT(qk_segment, lora, 32); QK_AT(qk_segment, bias, 40);
QK_AT(qk_segment, y, 48); QK_AT(qk_segment, ldy, 56);

QK_SIZE(qk_linear_args, 80);
QK_AT(qk_linear_args, struct_size, 0); QK_AT(qk_linear_args, num_segments, 4); QK_AT(qk_linear_args, m, 8);
QK_AT(qk_linear_args, k, 16); QK_AT(qk_linear_args, x, 24); QK_AT(qk_linear_args, ldx, 32);
QK_AT(qk_linear_args, segments, 40); QK_AT(qk_linear_args, s, 48); QK_AT(qk_linear_args, dropout, 56);
QK_AT(qk_linear_args, lds, 64); QK_AT(qk_linear_args, room, 72);

QK_SIZE(qk_segment_backward, 72);
QK_AT(qk_segment_backward, struct_size, 0); QK_AT(qk_segment_backward, reserved, 4); QK_AT(qk_segment_backward, n, 8);
QK_AT(qk_segment_backward, nf4, 16); QK_AT(qk_segment_backward, dense, 24); QK_AT(qk_segment_backward, lora, 32);
QK_AT(qk_segment_backward, dy, 40); QK_AT(qk_segment_backward, lddy, 48); QK_AT(qk_segment_backward, da, 56);
QK_AT(qk_segment_backward, db, 64);

QK_SIZE(qk_linear_backward_args, 120);
QK_AT(qk_linear_backward_args, struct_size, 0); QK_AT(qk_linear_backward_args, num_segments, 4);
QK_AT(qk_linear_backward_args, m, 8); QK_AT(qk_linear_backward_args, k, 16); QK_AT(qk_linear_backward_args, x, 24);
QK_AT(qk_linear_backward_args, ldx, 32); QK_AT(qk_linear_backward_args, dx, 40);
QK_AT(qk_linear_backward_args, lddx, 48); QK_AT(qk_linear_backward_args, accumulate, 56);
QK_AT(qk_linear_backward_args, reserved, 60); QK_AT(qk_linear_backward_args, segments, 64);
QK_AT(qk_linear_backward_args, s, 72); QK_AT(qk_linear_backward_args, t, 80);
QK_AT(qk_linear_backward_args, dropout, 88); QK_AT(qk_linear_backward_args, lds, 96);
QK_AT(qk_linear_backward_args, ldt, 104); QK_AT(qk_linear_backward_args, room, 112);

QK_SIZE(qk_nf4_quantize_args, 80);
QK_AT(qk_nf4_quantize_args, struct_size, 0); QK_AT(qk_nf4_quantize_args, dtype, 4);
QK_AT(qk_nf4_quantize_args, count, 8); QK_AT(qk_nf4_quantize_args, block_size, 16);
QK_AT(qk_nf4_quantize_args, reserved, 20); QK_AT(qk_nf4_quantize_args, weight, 24);
QK_AT(qk_nf4_quantize_args, nested_map, 32); QK_AT(qk_nf4_quantize_args, codes, 40);
QK_AT(qk_nf4_quantize_args, absmax, 48); QK_AT(qk_nf4_quantize_args, absmax_codes, 56);
QK_AT(qk_nf4_quantize_args, nested_absmax, 64); QK_AT(qk_nf4_quantize_args, offset, 72);

QK_SIZE(qk_adamw_tensor, 72);
QK_AT(qk_adamw_tensor, struct_size, 0); QK_AT(qk_adamw_tensor, rate, 4); QK_AT(qk_adamw_tensor, n, 8);
QK_AT(qk_adamw_tensor, value, 16); QK_AT(qk_adamw_tensor, working, 24); QK_AT(qk_adamw_tensor, gradient, 32);
QK_AT(qk_adamw_tensor, m, 40); QK_AT(qk_adamw_tensor, v, 48); QK_AT(qk_adamw_tensor, m_absmax, 56);
QK_AT(qk_adamw_tensor, v_absmax, 64);

QK_SIZE(qk_adamw_rate, 32);
QK_AT(qk_adamw_rate, decay, 0); QK_AT(qk_adamw_rate, step_size, 4); QK_AT(qk_adamw_rate, root, 8);
QK_AT(qk_adamw_rate, beta1, 12); QK_AT(qk_adamw_rate, rest1, 16); QK_AT(qk_adamw_rate, beta2, 20);
QK_AT(qk_adamw_rate, rest2, 24); QK_AT(qk_adamw_rate, epsilon, 28);

QK_SIZE(qk_gradient_state, 16);
QK_AT(qk_gradient_state, norm, 0); QK_AT(qk_gradient_state, scale, 8); QK_AT(qk_gradient_state, tensor, 12);

QK_SIZE(qk_adamw_args, 48);
QK_AT(qk_adamw_args, struct_size, 0); QK_AT(qk_adamw_args, num_tensors, 4); QK_AT(qk_adamw_args, tensors, 8);
QK_AT(qk_adamw_args, table, 16); QK_AT(qk_adamw_args, rates, 24); QK_AT(qk_adamw_args, num_rates, 32);
QK_AT(qk_adamw_args, reserved, 36); QK_AT(qk_adamw_args, gradient_state, 40);

QK_SIZE(qk_product, 64);
QK_AT(qk_product, struct_size, 0); QK_AT(qk_product, reserved, 4); QK_AT(qk_product, n, 8); QK_AT(qk_product, k, 16);
QK_AT(qk_product, x, 24); QK_AT(qk_product, ldx, 32); QK_AT(qk_product, w, 40); QK_AT(qk_product, ldw, 48);
QK_AT(qk_product, bias, 56);

QK_SIZE(qk_row_squares_args, 48);
QK_AT(qk_row_squares_args, struct_size, 0); QK_AT(qk_row_squares_args, reserved, 4); QK_AT(qk_row_squares_args, n, 8);
QK_AT(qk_row_squares_args, k, 16); QK_AT(qk_row_squares_args, nf4, 24); QK_AT(qk_row_squares_args, dense, 32);
QK_AT(qk_row_squares_args, squares, 40);

QK_SIZE(qk_magnitude_norms_args, 56);
QK_AT(qk_magnitude_norms_args, struct_size, 0); QK_AT(qk_magnitude_norms_args, r, 4);
QK_AT(qk_magnitude_norms_args, n, 8); QK_AT(qk_magnitude_norms_args, z, 16); QK_AT(qk_magnitude_norms_args, b, 24);
QK_AT(qk_magnitude_norms_args, squares, 32); QK_AT(qk_magnitude_norms_args, norms, 40);
QK_AT(qk_magnitude_norms_args, scale, 48); QK_AT(qk_magnitude_norms_args, reserved, 52);

QK_SIZE(qk_magnitude_args, 88);
QK_AT(qk_magnitude_args, struct_size, 0); QK_AT(qk_magnitude_args, reserved, 4); QK_AT(qk_magnitude_args, m, 8);
QK_AT(qk_magnitude_args, n, 16); QK_AT(qk_magnitude_args, magnitude, 24); QK_AT(qk_magnitude_args, norms, 32);
QK_AT(qk_magnitude_args, bias, 40); QK_AT(qk_magnitude_args, y, 48); QK_AT(qk_magnitude_args, ldy, 56);
QK_AT(qk_magnitude_args, dy, 64); QK_AT(qk_magnitude_args, lddy, 72); QK_AT(qk_magnitude_args, dmagnitude, 80);

QK_SIZE(qk_embedding_args, 64);
QK_AT(qk_embedding_args, struct_size, 0); QK_AT(qk_embedding_args, reserved, 4); QK_AT(qk_embedding_args, m, 8);
QK_AT(qk_embedding_args, h, 16); QK_AT(qk_embedding_args, vocab, 24); QK_AT(qk_embedding_args, ids, 32);
QK_AT(qk_embedding_args, table, 40); QK_AT(qk_embedding_args, out, 48); QK_AT(qk_embedding_args, scale, 56);
QK_AT(qk_embedding_args, reserved2, 60);

QK_SIZE(qk_embedding_backward_args, 88);
QK_AT(qk_embedding_backward_args, struct_size, 0); QK_AT(qk_embedding_backward_args, reserved, 4);
QK_AT(qk_embedding_backward_args, m, 8); QK_AT(qk_embedding_backward_args, h, 16);
QK_AT(qk_embedding_backward_args, vocab, 24); QK_AT(qk_embedding_backward_args, ids, 32);
QK_AT(qk_embedding_backward_args, dout, 40); QK_AT(qk_embedding_backward_args, dtable, 48);
QK_AT(qk_embedding_backward_args, scale, 56); QK_AT(qk_embedding_backward_args, reserved2, 60);
QK_AT(qk_embedding_backward_args, rows, 64); QK_AT(qk_embedding_backward_args, num_rows, 72);
QK_AT(qk_embedding_backward_args, lddout, 80);

QK_SIZE(qk_replace_rows_args, 56);
QK_AT(qk_replace_rows_args, struct_size, 0); QK_AT(qk_replace_rows_args, reserved, 4);
QK_AT(qk_replace_rows_args, h, 8); QK_AT(qk_replace_rows_args, vocab, 16); QK_AT(qk_replace_rows_args, num_rows, 24);
QK_AT(qk_replace_rows_args, rows, 32); QK_AT(qk_replace_rows_args, values, 40);
QK_AT(qk_replace_rows_args, table, 48);

QK_SIZE(qk_rms_norm_args, 80);
QK_AT(qk_rms_norm_args, struct_size, 0); QK_AT(qk_rms_norm_args, eps, 4); QK_AT(qk_rms_norm_args, m, 8);
QK_AT(qk_rms_norm_args, h, 16); QK_AT(qk_rms_norm_args, x, 24); QK_AT(qk_rms_norm_args, delta, 32);
QK_AT(qk_rms_norm_args, weight, 40); QK_AT(qk_rms_norm_args, sum, 48); QK_AT(qk_rms_norm_args, y, 56);
QK_AT(qk_rms_norm_args, residual, 64); QK_AT(qk_rms_norm_args, ldy, 72);

QK_SIZE(qk_rms_norm_backward_args, 80);
QK_AT(qk_rms_norm_backward_args, struct_size, 0); QK_AT(qk_rms_norm_backward_args, eps, 4);
QK_AT(qk_rms_norm_backward_args, m, 8); QK_AT(qk_rms_norm_backward_args, h, 16);
QK_AT(qk_rms_norm_backward_args, dy, 24); QK_AT(qk_rms_norm_backward_args, x, 32);
QK_AT(qk_rms_norm_backward_args, weight, 40); QK_AT(qk_rms_norm_backward_args, dx, 48);
QK_AT(qk_rms_norm_backward_args, accumulate, 56); QK_AT(qk_rms_norm_backward_args, reserved, 60);
QK_AT(qk_rms_norm_backward_args, lddy, 64); QK_AT(qk_rms_norm_backward_args, lddx, 72);

QK_SIZE(qk_norm_gradient_args, 80);
QK_AT(qk_norm_gradient_args, struct_size, 0); QK_AT(qk_norm_gradient_args, eps, 4);
QK_AT(qk_norm_gradient_args, m, 8); QK_AT(qk_norm_gradient_args, parts, 16); QK_AT(qk_norm_gradient_args, width, 24);
QK_AT(qk_norm_gradient_args, ld, 32); QK_AT(qk_norm_gradient_args, column, 40); QK_AT(qk_norm_gradient_args, dy, 48);
QK_AT(qk_norm_gradient_args, x, 56); QK_AT(qk_norm_gradient_args, dweight, 64);
QK_AT(qk_norm_gradient_args, lddy, 72);

QK_SIZE(qk_head_norm_args, 136);
QK_AT(qk_head_norm_args, struct_size, 0); QK_AT(qk_head_norm_args, head_dim, 4); QK_AT(qk_head_norm_args, heads, 8);
QK_AT(qk_head_norm_args, kv_heads, 12); QK_AT(qk_head_norm_args, eps, 16); QK_AT(qk_head_norm_args, reserved, 20);
QK_AT(qk_head_norm_args, m, 24); QK_AT(qk_head_norm_args, ldx, 32); QK_AT(qk_head_norm_args, ldy, 40);
QK_AT(qk_head_norm_args, x, 48); QK_AT(qk_head_norm_args, q_weight, 56); QK_AT(qk_head_norm_args, k_weight, 64);
QK_AT(qk_head_norm_args, dy, 72); QK_AT(qk_head_norm_args, y, 80); QK_AT(qk_head_norm_args, whole_width, 88);
QK_AT(qk_head_norm_args, reserved2, 92);
QK_AT(qk_head_norm_args, rotation, 96); QK_AT(qk_head_norm_args, rotary_dim, 100);
QK_AT(qk_head_norm_args, positions, 104); QK_AT(qk_head_norm_args, cosines, 112); QK_AT(qk_head_norm_args, sines, 120);
QK_AT(qk_head_norm_args, table_positions, 128);

QK_SIZE(qk_rope_args, 80);
QK_AT(qk_rope_args, struct_size, 0); QK_AT(qk_rope_args, head_dim, 4); QK_AT(qk_rope_args, heads, 8);
QK_AT(qk_rope_args, inverse, 12); QK_AT(qk_rope_args, m, 16); QK_AT(qk_rope_args, ldx, 24);
QK_AT(qk_rope_args, x, 32); QK_AT(qk_rope_args, positions, 40); QK_AT(qk_rope_args, cosines, 48);
QK_AT(qk_rope_args, sines, 56); QK_AT(qk_rope_args, table_positions, 64); QK_AT(qk_rope_args, rotary_dim, 72);
QK_AT(qk_rope_args, reserved, 76);

QK_SIZE(qk_swiglu_args, 72);
QK_AT(qk_swiglu_args, struct_size, 0); QK_AT(qk_swiglu_args, reserved, 4); QK_AT(qk_swiglu_args, m, 8);
QK_AT(qk_swiglu_args, i, 16); QK_AT(qk_swiglu_args, gate_up, 24); QK_AT(qk_swiglu_args, out, 32);
QK_AT(qk_swiglu_args, dout, 40); QK_AT(qk_swiglu_args, activation, 48); QK_AT(qk_swiglu_args, reserved2, 52);
QK_AT(qk_swiglu_args, ldgate_up, 56); QK_AT(qk_swiglu_args, ldout, 64);

QK_SIZE(qk_attention_args, 120);
QK_AT(qk_attention_args, struct_size, 0); QK_AT(qk_attention_args, head_dim, 4); QK_AT(qk_attention_args, heads, 8);
QK_AT(qk_attention_args, kv_heads, 12); QK_AT(qk_attention_args, m, 16); QK_AT(qk_attention_args, documents, 24);
QK_AT(qk_attention_args, cu_seqlens, 32); QK_AT(qk_attention_args, window, 40); QK_AT(qk_attention_args, qkv, 48);
QK_AT(qk_attention_args, ldqkv, 56); QK_AT(qk_attention_args, out, 64); QK_AT(qk_attention_args, lse, 72);
QK_AT(qk_attention_args, dout, 80); QK_AT(qk_attention_args, dqkv, 88);
QK_AT(qk_attention_args, soft_cap, 96); QK_AT(qk_attention_args, reserved, 100);
QK_AT(qk_attention_args, ldout, 104); QK_AT(qk_attention_args, lddqkv, 112);

QK_SIZE(qk_attention_cache_args, 128);
QK_AT(qk_attention_cache_args, struct_size, 0); QK_AT(qk_attention_cache_args, head_dim, 4);
QK_AT(qk_attention_cache_args, heads, 8); QK_AT(qk_attention_cache_args, kv_heads, 12);
QK_AT(qk_attention_cache_args, m, 16); QK_AT(qk_attention_cache_args, documents, 24);
QK_AT(qk_attention_cache_args, cu_seqlens, 32); QK_AT(qk_attention_cache_args, starts, 40);
QK_AT(qk_attention_cache_args, positions, 48); QK_AT(qk_attention_cache_args, max_seqlen, 56);
QK_AT(qk_attention_cache_args, rows, 64); QK_AT(qk_attention_cache_args, qkv, 72);
QK_AT(qk_attention_cache_args, ldqkv, 80); QK_AT(qk_attention_cache_args, cache, 88);
QK_AT(qk_attention_cache_args, out, 96);
QK_AT(qk_attention_cache_args, window, 104); QK_AT(qk_attention_cache_args, soft_cap, 112);
QK_AT(qk_attention_cache_args, reserved, 116); QK_AT(qk_attention_cache_args, ldout, 120);

QK_SIZE(qk_logits_args, 64);
QK_AT(qk_logits_args, struct_size, 0); QK_AT(qk_logits_args, num_tokens, 4); QK_AT(qk_logits_args, m, 8);
QK_AT(qk_logits_args, h, 16); QK_AT(qk_logits_args, vocab, 24); QK_AT(qk_logits_args, hidden, 32);
QK_AT(qk_logits_args, head, 40); QK_AT(qk_logits_args, tokens, 48); QK_AT(qk_logits_args, logits, 56);

QK_SIZE(qk_loss_state, 16);
QK_AT(qk_loss_state, sum, 0); QK_AT(qk_loss_state, row, 8); QK_AT(qk_loss_state, supervised, 12);

QK_SIZE(qk_cross_entropy_args, 136);
QK_AT(qk_cross_entropy_args, struct_size, 0); QK_AT(qk_cross_entropy_args, gradient_scale, 4);
QK_AT(qk_cross_entropy_args, m, 8); QK_AT(qk_cross_entropy_args, h, 16); QK_AT(qk_cross_entropy_args, vocab, 24);
QK_AT(qk_cross_entropy_args, supervised, 32); QK_AT(qk_cross_entropy_args, chunk, 40);
QK_AT(qk_cross_entropy_args, hidden, 48); QK_AT(qk_cross_entropy_args, head, 56);
QK_AT(qk_cross_entropy_args, targets, 64); QK_AT(qk_cross_entropy_args, losses, 72);
QK_AT(qk_cross_entropy_args, state, 80); QK_AT(qk_cross_entropy_args, dhidden, 88);
QK_AT(qk_cross_entropy_args, weights, 96); QK_AT(qk_cross_entropy_args, soft_cap, 104);
QK_AT(qk_cross_entropy_args, reserved, 108); QK_AT(qk_cross_entropy_args, dhead, 112);
QK_AT(qk_cross_entropy_args, head_rows, 120); QK_AT(qk_cross_entropy_args, num_head_rows, 128);

#undef QK_SIZE
#undef QK_AT
#undef QK_STATIC_ASSERT
#endif

#ifdef __cplusplus
}
#endif

#endif
