// Reading a caller's struct, with which every entry of the C interface begins: the prefix that both know is copied into
// a struct of the library's own.
//
// A caller's struct of another version is shorter or longer than the library's. What it lacks is 0 in the copy, and
// what the library does not know is not read; so a kernel's launcher reads its own struct and never the caller's.
#pragma once

#include <cstring>
#include <type_traits>

#include "common/launch.cuh"

// The structs that have grown since their first version under this QK_ABI_VERSION, with the bytes of that version:
// older callers go on passing the shorter struct. Any other struct has the size that it began with.
#define QK_GROWN_STRUCTS(X) \
    X(qk_cross_entropy_args, 96) X(qk_attention_args, 96) X(qk_attention_cache_args, 104) X(qk_embedding_args, 56) \
    X(qk_rms_norm_args, 64) X(qk_head_norm_args, 88) X(qk_rope_args, 72) X(qk_swiglu_args, 48) \
    X(qk_embedding_backward_args, 64) X(qk_linear_args, 64) X(qk_linear_backward_args, 96) \
    X(qk_rms_norm_backward_args, 64) X(qk_norm_gradient_args, 72) X(qk_dropout, 32)

template <typename T> struct FirstVersion { static constexpr uint32_t kBytes = sizeof(T); };
#define QK_FIRST_VERSION(type, bytes) \
    template <> struct FirstVersion<type> { static constexpr uint32_t kBytes = bytes; };
QK_GROWN_STRUCTS(QK_FIRST_VERSION)
#undef QK_FIRST_VERSION

template <typename T> auto reserved_of(const T &value, int) -> decltype(value.reserved) { return value.reserved; }
template <typename T> uint32_t reserved_of(const T &, long) { return 0; } // a struct without the field

// *to = the prefix of *from that both sides know, the rest 0: QK_OK or the error.
template <typename T> int read_struct(const T *from, T *to) {
    static_assert(std::is_trivially_copyable<T>::value && offsetof(T, struct_size) == 0,
                  "a C struct that tells its size");
    static_assert(sizeof(T) % 8 == 0 && FirstVersion<T>::kBytes <= sizeof(T), "no version ends inside a field");
    *to = {};
    if (from == nullptr) return QK_ERROR_NULL_POINTER;
    uint32_t size = from->struct_size;
    if (size < FirstVersion<T>::kBytes || size > QK_MAX_STRUCT_SIZE || size % 8 != 0) return QK_ERROR_STRUCT_SIZE;
    std::memcpy(to, from, size < sizeof(T) ? size : sizeof(T));
    return reserved_of(*to, 0) == 0 ? QK_OK : QK_ERROR_RESERVED;
}

// *to = element `index` of a caller's array. Its elements lie struct_size bytes apart, as far as the caller's struct is
// long, and all have the struct_size of the first.
template <typename T> int read_element(const T *first, uint32_t index, T *to) {
    if (first == nullptr) return read_struct(first, to);
    uint32_t stride = first->struct_size;
    if (stride < FirstVersion<T>::kBytes || stride > QK_MAX_STRUCT_SIZE) return QK_ERROR_STRUCT_SIZE;
    const T *element = reinterpret_cast<const T *>(reinterpret_cast<const char *>(first) + size_t(index) * stride);
    return element->struct_size == stride ? read_struct(element, to) : QK_ERROR_STRUCT_SIZE;
}

// The status of a workspace of which `needed` bytes are used.
inline int check_workspace(const void *workspace, size_t bytes, size_t needed) {
    if (needed == 0) return QK_OK;
    if (workspace == nullptr || bytes < needed) return QK_ERROR_WORKSPACE;
    return is_aligned(workspace, 16) ? QK_OK : QK_ERROR_ALIGNMENT;
}
