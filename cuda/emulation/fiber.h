// Switching between stacks. On x86-64 a few lines of assembly (tens of nanoseconds), elsewhere ucontext. Under
// AddressSanitizer, which learns of each switch, too: its own swapcontext clears the shadow of the whole stack.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#else
#define FIBER_ASAN 0
#endif

#if defined(__x86_64__)
#define FIBER_ASSEMBLY 1
#else
#define FIBER_ASSEMBLY 0
#include <ucontext.h>
#endif

namespace emulation {

struct Fiber {
#if FIBER_ASSEMBLY
    void *stack_pointer;
#else
    ucontext_t context;
#endif
#if FIBER_ASAN
    const void *stack;
    size_t stack_bytes;
    void *fake_stack; // AddressSanitizer's
#endif
};

// A fiber that will call entry() on this stack; entry must not return.
void fiber_create(Fiber &fiber, void *stack, size_t bytes, void (*entry)());

// The first thing to call in a fiber's entry: completes the switch that led here.
#if FIBER_ASAN
void fiber_entered(Fiber &self);
#else
inline void fiber_entered(Fiber &) {}
#endif

// Asks for what a switch to this fiber will read.
inline void fiber_prefetch(const Fiber &fiber) {
#if FIBER_ASSEMBLY
    for (int line = 0; line < 4; ++line) __builtin_prefetch(static_cast<char *>(fiber.stack_pointer) + 64 * line, 1);
#else
    (void)fiber;
#endif
}

#if FIBER_ASSEMBLY
// Saves the callee-saved registers and the stack pointer, and loads those of another stack.
extern "C" void qk_emulation_fiber_swap(void **save, void *load);
#endif

// Leaves `from`, which can be switched to again, and goes on in `to`. The OS thread's own stack is a Fiber as well; it
// needs no creation.
#if FIBER_ASSEMBLY && !FIBER_ASAN
inline void fiber_switch(Fiber &from, Fiber &to) { qk_emulation_fiber_swap(&from.stack_pointer, to.stack_pointer); }
#else
void fiber_switch(Fiber &from, Fiber &to);
#endif

}  // namespace emulation
