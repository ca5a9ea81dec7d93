// Reading of a caller's structs by the C interface, on a struct that has grown since its first version, for the tests.
#include "common/abi.cuh"

struct Grown {
    uint32_t struct_size, reserved;
    int64_t first;           // of the first version
    int64_t added, appended; // of later ones
};

template <> struct FirstVersion<Grown> {
    static constexpr uint32_t kBytes = 16;
};

extern "C" int test_read_struct(const Grown *from, Grown *to) { return read_struct(from, to); }

extern "C" int test_read_element(const Grown *first, uint32_t index, Grown *to) {
    return read_element(first, index, to);
}

// Bytes of the first version of the struct of this name; 0 if it never grew.
extern "C" uint32_t test_first_version(const char *name) {
#define QK_FIRST(type, bytes) \
    if (std::strcmp(name, #type) == 0) return bytes;
    QK_GROWN_STRUCTS(QK_FIRST)
#undef QK_FIRST
    return 0;
}
