// Version and names of the C interface.
#include "launch.cuh"

static_assert(sizeof(qk_nf4) == 80 && sizeof(qk_lora) == 48 && sizeof(qk_segment) == 64, "the layout of the interface");
static_assert(sizeof(qk_linear_args) == 64 && sizeof(qk_nf4_quantize_args) == 80, "the layout of the interface");
static_assert(sizeof(qk_dropout) == 32 && sizeof(qk_segment_backward) == 72, "the layout of the interface");
static_assert(sizeof(qk_linear_backward_args) == 96, "the layout of the interface");
static_assert(sizeof(qk_adamw_tensor) == 72 && sizeof(qk_adamw_args) == 48, "the layout of the interface");
static_assert(sizeof(qk_embedding_args) == 56 && sizeof(qk_rms_norm_args) == 64, "the layout of the interface");
static_assert(sizeof(qk_rms_norm_backward_args) == 64 && sizeof(qk_rope_args) == 72, "the layout of the interface");
static_assert(sizeof(qk_swiglu_args) == 48 && sizeof(qk_attention_args) == 96, "the layout of the interface");
static_assert(sizeof(qk_loss_state) == 16 && sizeof(qk_cross_entropy_args) == 96, "the layout of the interface");

extern "C" uint32_t qk_abi_version(void) {
    return QK_ABI_VERSION;
}

extern "C" const char *qk_status_name(int status) {
    switch (status) {
    case QK_OK: return "QK_OK";
    case QK_ERROR_STRUCT_SIZE: return "QK_ERROR_STRUCT_SIZE";
    case QK_ERROR_NULL_POINTER: return "QK_ERROR_NULL_POINTER";
    case QK_ERROR_SHAPE: return "QK_ERROR_SHAPE";
    case QK_ERROR_ALIGNMENT: return "QK_ERROR_ALIGNMENT";
    case QK_ERROR_LAYOUT: return "QK_ERROR_LAYOUT";
    case QK_ERROR_BLOCK_SIZE: return "QK_ERROR_BLOCK_SIZE";
    case QK_ERROR_WORKSPACE: return "QK_ERROR_WORKSPACE";
    case QK_ERROR_NOT_BUILT: return "QK_ERROR_NOT_BUILT";
    case QK_ERROR_OVERLAP: return "QK_ERROR_OVERLAP";
    case QK_ERROR_HEAD_DIM: return "QK_ERROR_HEAD_DIM";
    case QK_ERROR_EMULATION: return "QK_ERROR_EMULATION";
    case QK_ERROR_VALUE: return "QK_ERROR_VALUE";
    default: return status > 0 ? "cudaError" : "unknown";
    }
}
