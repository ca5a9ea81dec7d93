// Accesses of a warp as the hardware would serve them, counted exactly from their addresses.
//
// The lanes of a warp run one after the other, so their accesses at one place are put together again: the n-th of each
// lane, at one place, belong to one instruction. Counted are load_as(), store_as(), ldmatrix and cp.async, in blocks
// that run while counting is on.
//   Shared memory: wavefronts. 32 banks of 4 bytes; an instruction of 8 bytes a lane is two halves of a warp, one of 16
//   four quarters, and each takes as many wavefronts as the bank with the most different words has of them.
//   Global memory: sectors of 32 bytes that are touched, for each instruction.
// Beside these, of each launch: barriers, matrix instructions, and copies that are in flight. A copy is, from its
// cp.async to the wait that its group needs; by the program of each thread alone, so that no schedule changes it. Loads
// and stores that are plain C++ are not seen, and registers are the compiler's: how many blocks they leave a
// multiprocessor is in nvcc's listing (tools/kernel-inspect), and not here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime.h"

namespace emulation {

enum Kind : uint32_t { SharedLoad, SharedStore, GlobalLoad, GlobalStore, Matrix, CopySource, CopyTarget };
constexpr unsigned kKinds = CopyTarget + 1, kMostBytes = 16; // of a lane

// The accesses of one size at one place.
struct Counted {
    const char *file;
    uint32_t line, kind, bytes; // of a lane
    uint64_t instructions;      // of warps
    uint64_t taken;             // wavefronts, or sectors
    uint64_t least;             // as many as the same bytes need when they lie well
};

// One launch, all its blocks that ran together.
struct CountedLaunch {
    uint64_t grid, blocks;          // of the launch; that ran
    uint64_t threads, shared_bytes; // of a block
    uint64_t barriers;              // __syncthreads of a block
    uint64_t products;              // mma of a warp
    uint64_t groups_in_products;    // cp.async groups in flight at each of those, added up
    uint64_t most_groups;           // of a thread in flight at once
    uint64_t most_copied_bytes;     // of a block: what its threads have in flight at most, added up
    uint64_t instructions[kKinds][kMostBytes + 1]; // of warps, by the bytes of a lane
    uint64_t lanes[kKinds][kMostBytes + 1];        // of those
};

void count_launch_begins(uint64_t grid, uint64_t threads, uint64_t shared_bytes);
void count_block_begins(unsigned warps);
void count_block_ends();
// An access of one lane, of a warp of the running block.
void count_access(unsigned warp, unsigned lane, Kind kind, const void *address, unsigned bytes, Site site);
// An ldmatrix.x4: 16 bytes at each of 32 addresses.
void count_matrix(const void *const (&rows)[32], Site site);
void count_barrier();
// An mma of a warp.
void count_product(unsigned warp);
// A cp.async of a thread, of `bytes` bytes, in its group of this number.
void count_copy(unsigned thread, unsigned group, unsigned bytes);
// The thread's groups before this one are there.
void count_wait(unsigned thread, unsigned group);

}  // namespace emulation

extern "C" {
// Counts the launches that this OS thread makes from now on, from zero; or, if `on` is 0, stops, and keeps the counts.
void qk_emulation_count(int on);
// The counts of place number `index`, or NULL past the last; valid until counting begins again.
const emulation::Counted *qk_emulation_counted(uint64_t index);
// Launch number `index` (0 is the first) of those that were counted, valid as long.
const emulation::CountedLaunch *qk_emulation_counted_launch(uint64_t index);
}
