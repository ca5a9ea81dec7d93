// A record of the kernels launched and their dynamic shared memory, for other programs: with
// QLORA_EMULATION_LAUNCHES naming a file, a line "address-in-the-executable bytes executable" is appended to it for
// every launch that is new to this process. A symbol table tells the kernel's name.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <utility>

#include "runtime.h"

namespace emulation {

void note_launch(const void *kernel, size_t shared_bytes) {
    static const char *path = std::getenv("QLORA_EMULATION_LAUNCHES");
    if (path == nullptr || *path == 0) return;
    static std::mutex mutex;
    static std::set<std::pair<const void *, size_t>> known;
    std::lock_guard<std::mutex> lock(mutex);
    if (!known.emplace(kernel, shared_bytes).second) return;
    Dl_info info;
    if (dladdr(kernel, &info) == 0) return;
    auto address = static_cast<const char *>(kernel) - static_cast<const char *>(info.dli_fbase);
    if (FILE *file = std::fopen(path, "a")) {
        std::fprintf(file, "%zx %zu %s\n", size_t(address), shared_bytes, info.dli_fname);
        std::fclose(file);
    }
}

}  // namespace emulation
