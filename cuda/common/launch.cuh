// The CUDA runtime (or its emulation), launch() and dynamic shared memory: included by every kernel file.
//
// Kernels use no static __shared__ variables: a block's shared memory is one dynamic allocation, taken apart by the
// kernel, so that its size is known to the launcher and the emulation can poison it and watch its ends.
#pragma once

#include "include/qlora_kernels.h"

#ifdef QK_EMULATION
#include "emulation/cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif

// The most dynamic shared memory that a block gets on every card this is for (sm_86, sm_89: 99 KB).
constexpr size_t kMaxSharedBytes = 99 * 1024;

// The block's dynamic shared memory, 128-byte aligned.
__device__ __forceinline__ unsigned char *dynamic_shared() {
#ifdef QK_EMULATION
    return emulation::shared_memory();
#else
    extern __shared__ __align__(128) unsigned char bytes[];
    return bytes;
#endif
}

// Queues kernel<<<grid, block, shared_bytes, stream>>>(args...) and returns a status of the C interface.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, qk_stream stream,
           Arguments... args) {
#ifdef QK_EMULATION
    emulation::note_launch(reinterpret_cast<const void *>(kernel), shared_bytes);
    auto thread = [=] { kernel(static_cast<Parameters>(args)...); };
    using Thread = decltype(thread);
    return emulation::on_stream(stream, [grid, block, shared_bytes, thread] {
        return emulation::run(
            grid, block, shared_bytes, [](const void *f) { (*static_cast<const Thread *>(f))(); }, &thread);
    });
#else
    if (shared_bytes > 48 * 1024) {
        cudaError_t error =
            cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
        if (error != cudaSuccess) {
            (void)cudaGetLastError();
            return static_cast<int>(error);
        }
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    // Not cudaGetLastError(): that could be somebody else's, from before.
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...);
    if (error != cudaSuccess) (void)cudaGetLastError();
    return static_cast<int>(error);
#endif
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

inline bool is_aligned(const void *pointer, size_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}
