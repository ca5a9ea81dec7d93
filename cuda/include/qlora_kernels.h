/* qlora-kernels: fused NF4 + LoRA kernels behind a plain C interface (C99; also C++, and Rust by bindgen).
 *
 * Rules that hold for every function
 * - Pointers named "device" are device addresses (in the emulated build: ordinary host addresses). Structs themselves, and
 *   arrays of structs, live in host memory and are read before the function returns.
 * - Work is queued on `stream` and the function returns at once. Nothing is allocated, no global state is kept, and a
 *   stream under graph capture is fine. What needs scratch memory takes it from the caller and has a size query.
 * - The status is 0 for success, a cudaError_t when positive, and a qk_status when negative. On a negative status nothing
 *   was queued and nothing was written. Nothing is printed and the process is never ended.
 * - `struct_size` is set by the caller to sizeof of the struct: it tells versions of the interface apart.
 * - bf16 is bfloat16 in its 16 bits; it is passed as `void *` because C has no such type.
 * - Matrices are row-major. M is tokens, N out features, K in features, r the LoRA rank.
 * - Base pointers of X, codes, dense weights, A, B, S, Y and the workspace are 16-byte aligned; others to their element.
 */
#ifndef QLORA_KERNELS_H
#define QLORA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when a struct or a function changes its meaning; adding a function leaves it. */
#define QK_ABI_VERSION 1u

/* At most this many row segments (q, k, v or gate, up) make one operand. */
#define QK_MAX_SEGMENTS 4u

/* The largest LoRA rank. */
#define QK_MAX_R 256u

/* Blocks of the second level of the double quantisation, in absmax values. */
#define QK_NESTED_BLOCK 256u

/* Elements of one scale of 8-bit optimiser states. */
#define QK_STATE_BLOCK 256u

/* Elements that the optimiser's table counts as one chunk of work. */
#define QK_ADAMW_CHUNK 4096u

/* A cudaStream_t / CUstream; NULL is the default stream. Ignored in the emulated build. */
typedef struct CUstream_st *qk_stream;

enum qk_status {
    QK_OK = 0,
    QK_ERROR_STRUCT_SIZE = -1,  /* a struct_size this library does not know */
    QK_ERROR_NULL_POINTER = -2, /* a pointer that is needed is NULL, or two that exclude each other are set */
    QK_ERROR_SHAPE = -3,        /* a dimension or a stride is out of range, or two do not agree */
    QK_ERROR_ALIGNMENT = -4,    /* a base pointer is not aligned as the rules above say */
    QK_ERROR_LAYOUT = -5,       /* an unknown layout or dtype, or one that this weight's shape does not allow */
    QK_ERROR_BLOCK_SIZE = -6,   /* a block size other than a power of two in 32..4096 */
    QK_ERROR_WORKSPACE = -7,    /* the workspace is smaller than its size query says */
    QK_ERROR_NOT_BUILT = -8,    /* a feature of the interface that this version does not have yet */
    QK_ERROR_EMULATION = -9     /* emulated build only: a kernel broke a rule; qk_emulation_message() says which */
};

/* Element type of a dense matrix. */
enum qk_dtype { QK_BF16 = 0, QK_F32 = 1 };

/* Order of the first-level absmax of an [N, K] weight. */
enum qk_layout {
    QK_ABSMAX_ROW_MAJOR = 0, /* [N, K / block_size], flat, as bitsandbytes stores it; any N and K */
    QK_ABSMAX_TRANSPOSED = 1 /* [K / block_size, N]: what the kernels read fastest; needs K % block_size == 0 */
};

/* An NF4 weight W [N, K]. Element i (row-major, flat) is codebook[code i] * absmax[i / block_size]; code 2j is the high
 * nibble of byte j, code 2j + 1 the low one. With double quantisation absmax[b] = nested_code[absmax_codes[b]] *
 * nested_absmax[b / 256] + offset in two roundings, b being the row-major block index whatever the layout.
 * Exactly one of absmax_codes (double quantisation) and absmax (without) is set. */
typedef struct qk_nf4 {
    uint32_t struct_size;         /* sizeof(struct qk_nf4) */
    uint32_t layout;              /* enum qk_layout, of absmax_codes or absmax */
    int64_t n;                    /* N, rows (out features), >= 1 */
    int64_t k;                    /* K, columns (in features), >= 1 */
    uint32_t block_size;          /* elements per absmax: a power of two in 32..4096; 64 has the fast kernels */
    uint32_t reserved;            /* 0 */
    const uint8_t *codes;         /* device, [ceil(N * K / 2)] */
    const uint8_t *absmax_codes;  /* device, [ceil(N * K / block_size)], or NULL */
    const float *absmax;          /* device, [ceil(N * K / block_size)], or NULL */
    const float *nested_absmax;   /* device, [ceil(blocks / 256)]; NULL without double quantisation */
    const float *nested_code;     /* device, [256]: the 8-bit map; NULL without double quantisation */
    const float *offset;          /* device, [1]; NULL without double quantisation */
} qk_nf4;

/* A LoRA pair: Y += bf16(scale * X * A^T) * B^T. */
typedef struct qk_lora {
    uint32_t struct_size;         /* sizeof(struct qk_lora) */
    uint32_t r;                   /* rank, 1..QK_MAX_R */
    float scale;                  /* alpha / r, or alpha / sqrt(r) for rsLoRA */
    uint32_t num_adapters;        /* 1; more come with adapter_index */
    const void *a;                /* device, bf16 [r, K] */
    const void *b;                /* device, bf16 [N, r] */
    const int32_t *adapter_index; /* device, [M]: the adapter of each row. Must be NULL for now (QK_ERROR_NOT_BUILT) */
} qk_lora;

/* One row segment of an operand: its own weight, LoRA pair, bias and output. */
typedef struct qk_segment {
    uint32_t struct_size;         /* sizeof(struct qk_segment) */
    uint32_t reserved;            /* 0 */
    int64_t n;                    /* out features of this segment, >= 1; equals nf4->n */
    const struct qk_nf4 *nf4;     /* host; the weight of qk_linear_forward, else NULL */
    const void *dense;            /* device, bf16 [n, K]; the weight of qk_linear_forward_dense, else NULL */
    const struct qk_lora *lora;   /* host, or NULL: no LoRA on this segment */
    const void *bias;             /* device, bf16 [n], or NULL */
    void *y;                      /* device, bf16 [M, ldy]: the output, columns 0..n of each row */
    int64_t ldy;                  /* elements from one row of y to the next, >= n */
} qk_segment;

/* Y_s = X * W_s^T + S_s * B_s^T (+ bias_s) for every segment s of one input X. */
typedef struct qk_linear {
    uint32_t struct_size;              /* sizeof(struct qk_linear) */
    uint32_t num_segments;             /* 1..QK_MAX_SEGMENTS */
    int64_t m;                         /* M, tokens, >= 0; with 0 nothing is done */
    int64_t k;                         /* K, the same for all segments */
    const void *x;                     /* device, bf16 [M, ldx] */
    int64_t ldx;                       /* elements from one row of x to the next, >= k */
    const struct qk_segment *segments; /* host, [num_segments], consecutive by segments[0].struct_size bytes */
    const void *s;                     /* device, bf16 [M, qk_lora_columns()] from qk_lora_down, or NULL: computed inside */
} qk_linear;

/* The kernel that a call takes. */
enum qk_path {
    QK_PATH_TENSOR_CORE = 0, /* M > 16: mma.sync tiles */
    QK_PATH_SMALL_M = 1,     /* M <= 16: reads each weight once */
    QK_PATH_GENERIC = 2      /* K % 64, ldx % 8, a block size other than 64: one plain, slow kernel */
};

/* What qk_nf4_quantize reads and writes. Every block's absmax is that of its elements; a block with a NaN or an infinity
 * gets that absmax and its codes are unspecified but in range. */
typedef struct qk_nf4_quantize_args {
    uint32_t struct_size;   /* sizeof(struct qk_nf4_quantize_args) */
    uint32_t dtype;         /* enum qk_dtype of weight */
    int64_t count;          /* elements, N * K, >= 1 */
    uint32_t block_size;    /* a power of two in 32..4096 */
    uint32_t reserved;      /* 0 */
    const void *weight;     /* device, [count] */
    const float *nested_code; /* device, [256] ascending 8-bit map, or NULL: no double quantisation */
    uint8_t *codes;         /* device, out [ceil(count / 2)]; a last odd low nibble is 7, the code of 0 */
    float *absmax;          /* device, out [blocks], blocks = ceil(count / block_size); scratch under double quantisation */
    uint8_t *absmax_codes;  /* device, out [blocks], row-major order; NULL without double quantisation */
    float *nested_absmax;   /* device, out [ceil(blocks / 256)]; NULL without double quantisation */
    float *offset;          /* device, out [1]: the f64 mean of absmax rounded to f32; NULL without double quantisation */
} qk_nf4_quantize_args;

/* One trainable tensor of the optimiser. Its moments m and v are f32, or 8-bit codes with an absmax for every 256 elements: of the
 * signed dynamic map for m, of the unsigned one for v, as bitsandbytes keeps them. Before the first update all bytes of m, v and
 * the absmax are 0, in either format. value, working, gradient, m and v are 16-byte aligned. */
typedef struct qk_adamw_tensor {
    uint32_t struct_size;     /* sizeof(struct qk_adamw_tensor) */
    uint32_t rate;            /* index into qk_adamw.rates: LoRA+ has one rate for every A and another for every B */
    int64_t n;                /* elements, >= 1 */
    float *value;             /* device, [n]: the f32 master copy, updated */
    void *working;            /* device, bf16 [n]: written with the rounded new value, or NULL */
    const float *gradient;    /* device, [n] */
    void *m;                  /* device, f32 [n] or codes u8 [n], updated: first moment */
    void *v;                  /* device, likewise: second moment */
    float *m_absmax;          /* device, [ceil(n / 256)], updated; NULL: f32 states */
    float *v_absmax;          /* device, [ceil(n / 256)], updated; NULL: f32 states */
} qk_adamw_tensor;

/* What the tensors of one rate are updated with. Device memory: a captured graph is replayed with new contents. */
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

/* What qk_gradient_norm finds. Device memory, 8-byte aligned: the update reads it there, so the host need not wait for it. */
typedef struct qk_gradient_state {
    double norm;    /* L2 norm over all gradients, before clipping; not finite if a gradient is not */
    float scale;    /* what every gradient is multiplied by in the update: min(1, max_norm / (norm + 1e-6)), 1 without clipping */
    int32_t tensor; /* the first tensor with a gradient that is not finite, or -1. The update does nothing unless it is negative */
} qk_gradient_state;

/* AdamW over all trainable tensors. */
typedef struct qk_adamw {
    uint32_t struct_size;              /* sizeof(struct qk_adamw) */
    uint32_t num_tensors;              /* >= 1 */
    const qk_adamw_tensor *tensors;    /* host, [num_tensors]: those that the table was made from */
    const void *table;                 /* device: a copy of what qk_adamw_table wrote, 16-byte aligned */
    const qk_adamw_rate *rates;        /* device, [num_rates] */
    uint32_t num_rates;                /* above every tensor's rate */
    uint32_t reserved;                 /* 0 */
    const qk_gradient_state *gradients;/* device: read by qk_adamw_update; NULL: scale 1, and nothing is skipped */
} qk_adamw;

/* QK_ABI_VERSION of the library, to be compared with the header's. */
uint32_t qk_abi_version(void);

/* A static name such as "QK_ERROR_SHAPE"; "cudaError" for positive values, "unknown" for what is neither. Never NULL. */
const char *qk_status_name(int status);

/* Quantises to NF4, with double quantisation if nested_code is set. */
int qk_nf4_quantize(const struct qk_nf4_quantize_args *args, qk_stream stream);

/* out [N, K] of `dtype` (enum qk_dtype): the f32 product code * absmax, rounded once if bf16. 16-byte aligned. */
int qk_nf4_dequantize(const struct qk_nf4 *weight, void *out, uint32_t dtype, qk_stream stream);

/* out [columns, rows] = transpose of in [rows, columns], bytes: row-major absmax codes (rows = N, columns = K / block_size) to
 * the transposed layout, and back with rows and columns exchanged. in and out must not overlap. */
int qk_absmax_transpose(const uint8_t *in, uint8_t *out, int64_t rows, int64_t columns, qk_stream stream);

/* Columns of S: every segment's r rounded up to 8 (0 without LoRA), summed; the segments' parts follow each other in order. 0 for
 * an operand without LoRA or one that is not valid. */
int64_t qk_lora_columns(const struct qk_linear *linear);

/* S [M, qk_lora_columns()] bf16: part s is bf16(scale_s * X * A_s^T), padding columns are zero. linear->s is not read. */
int qk_lora_down(const struct qk_linear *linear, void *s, qk_stream stream);

/* Bytes of workspace of the two forward functions: S, if the call has to compute it, else 0. */
int qk_linear_workspace_size(const struct qk_linear *linear, size_t *bytes);

/* The kernel the forward functions take for this call (enum qk_path), or a negative qk_status. */
int qk_linear_path(const struct qk_linear *linear);

/* NF4 weights: every segment has nf4. Products are summed in f32 in an order that depends on K and r alone, within a path. */
int qk_linear_forward(const struct qk_linear *linear, void *workspace, size_t workspace_bytes, qk_stream stream);

/* The same with bf16 weights: every segment has dense. */
int qk_linear_forward_dense(const struct qk_linear *linear, void *workspace, size_t workspace_bytes, qk_stream stream);

/* Bytes of the table for these tensors. The functions of the table and of rates touch no device. */
int qk_adamw_table_size(const struct qk_adamw_tensor *tensors, uint32_t num_tensors, size_t *bytes);

/* Writes the table into `table` (host, 8-byte aligned): which tensor each chunk of work belongs to, and the tensors' pointers. The caller
 * copies it to the device once; a tensor that moves or changes its rate's index needs a new one. */
int qk_adamw_table(const struct qk_adamw_tensor *tensors, uint32_t num_tensors, void *table, size_t table_size);

/* The scalars of update `step` (>= 1), computed in double and rounded once. */
int qk_adamw_rate_of(double learning_rate, double beta1, double beta2, double epsilon, double weight_decay, uint64_t step,
                     struct qk_adamw_rate *rate);

/* Bytes of workspace of qk_gradient_norm: a double for every chunk. */
int qk_gradient_norm_workspace_size(const struct qk_adamw *adamw, size_t *bytes);

/* *state (device) = norm of all gradients, the factor that clips it to max_norm (0: no clipping), and the first tensor that is not
 * finite. Sums are f64 in one fixed order: equal gradients give equal bits. adamw->gradients is not read. */
int qk_gradient_norm(const struct qk_adamw *adamw, double max_norm, struct qk_gradient_state *state, void *workspace,
                     size_t workspace_bytes, qk_stream stream);

/* One update of all tensors, in one launch. Every operation rounds on its own in a fixed order (adamw.cu): results depend on neither
 * device nor grid, and equal those of the Rust functions reference::adamw and blockwise::adamw_blockwise bit for bit. */
int qk_adamw_update(const struct qk_adamw *adamw, qk_stream stream);

#ifdef __cplusplus
}
#endif

#endif
