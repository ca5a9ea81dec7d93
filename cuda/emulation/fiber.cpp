#include "fiber.h"

#include <cstdint>

#if FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if FIBER_ASSEMBLY
asm(R"(
.text
.hidden qk_emulation_fiber_swap
.globl qk_emulation_fiber_swap
.type qk_emulation_fiber_swap, @function
qk_emulation_fiber_swap:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size qk_emulation_fiber_swap, .-qk_emulation_fiber_swap
)");
#endif

namespace emulation {

void fiber_create(Fiber &fiber, void *stack, size_t bytes, void (*entry)()) {
#if FIBER_ASAN
    __asan_unpoison_memory_region(stack, bytes); // the last fiber on this stack left its frames' red zones
    fiber.stack = stack;
    fiber.stack_bytes = bytes;
    fiber.fake_stack = nullptr;
#endif
#if FIBER_ASSEMBLY
    uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15);
    void **slot = reinterpret_cast<void **>(top);
    *--slot = nullptr; // where entry would return to; leaves the stack as a call does: 8 bytes off 16
    *--slot = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; ++i) *--slot = nullptr;
    fiber.stack_pointer = slot;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
#endif
}

#if FIBER_ASAN
// The OS thread's own stack is learned at the first switch away from it.
static thread_local Fiber *switched_from;

void fiber_entered(Fiber &self) {
    __sanitizer_finish_switch_fiber(self.fake_stack, &switched_from->stack, &switched_from->stack_bytes);
}
#endif

#if FIBER_ASAN || !FIBER_ASSEMBLY
void fiber_switch(Fiber &from, Fiber &to) {
#if FIBER_ASAN
    switched_from = &from;
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#if FIBER_ASSEMBLY
    qk_emulation_fiber_swap(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
    fiber_entered(from);
}
#endif

}  // namespace emulation
