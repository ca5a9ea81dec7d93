// Version and names of the C interface.
#include "common/abi.cuh"

static_assert(sizeof(void *) == 8, "the layout of the interface is that of 64-bit pointers");
#define QK_FIRST_FITS(type, bytes) \
    static_assert((bytes) % 8 == 0 && (bytes) < sizeof(type), "the first version of " #type);
QK_GROWN_STRUCTS(QK_FIRST_FITS)
#undef QK_FIRST_FITS

extern "C" uint32_t qk_abi_version(void) {
    return QK_ABI_VERSION;
}

extern "C" uint32_t qk_abi_revision(void) {
    return QK_ABI_REVISION;
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
    case QK_ERROR_RESERVED: return "QK_ERROR_RESERVED";
    default: return status > 0 ? "cudaError" : "unknown";
    }
}
