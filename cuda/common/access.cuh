// Loads and stores of more than one element, and lookups whose banks matter: one instruction each on a GPU. The
// emulation checks their alignment and counts what the hardware would do for a warp of them (emulation/counters.h).
#pragma once

#include "common/launch.cuh"

#ifdef QK_EMULATION
#define ACCESS_SITE , emulation::Site site = emulation::Site::here()
#define PASS_SITE , site
#else
#define ACCESS_SITE
#define PASS_SITE
#endif

// The T at `address`, which is aligned to its size.
template <typename T> __device__ __forceinline__ T load_as(const void *address ACCESS_SITE) {
#ifdef QK_EMULATION
    emulation::access(address, sizeof(T), false, site);
#endif
    return *static_cast<const T *>(address);
}

template <typename T> __device__ __forceinline__ void store_as(void *address, T value ACCESS_SITE) {
#ifdef QK_EMULATION
    emulation::access(address, sizeof(T), true, site);
#endif
    *static_cast<T *>(address) = value;
}
