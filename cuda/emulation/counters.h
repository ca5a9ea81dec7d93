// Accesses of a warp as the hardware would serve them, counted exactly from their addresses.
//
// The lanes of a warp run one after the other, so their accesses at one place are put together again: the n-th of each
// lane, at one place, belong to one instruction. Counted are load_as(), store_as(), ldmatrix and cp.async, in blocks
// that run while counting is on.
//   Shared memory: wavefronts. 32 banks of 4 bytes; an instruction of 8 bytes a lane is two halves of a warp, one of 16
//   four quarters, and each takes as many wavefronts as the bank with the most different words has of them.
//   Global memory: sectors of 32 bytes that are touched, for each instruction.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime.h"

namespace emulation {

enum Kind : uint32_t { SharedLoad, SharedStore, GlobalLoad, GlobalStore, Matrix, CopySource, CopyTarget };

// The accesses of one size at one place.
struct Counted {
    const char *file;
    uint32_t line, kind, bytes; // of a lane
    uint64_t instructions;      // of warps
    uint64_t taken;             // wavefronts, or sectors
    uint64_t least;             // as many as the same bytes need when they lie well
};

void count_block_begins(unsigned warps);
void count_block_ends();
// An access of one lane, of a warp of the running block.
void count_access(unsigned warp, unsigned lane, Kind kind, const void *address, unsigned bytes, Site site);
// An ldmatrix.x4: 16 bytes at each of 32 addresses.
void count_matrix(const void *const (&rows)[32], Site site);

}  // namespace emulation

extern "C" {
// Counts the launches that this OS thread makes from now on, anew; or, if `on` is 0, stops, and keeps what was counted.
void qk_emulation_count(int on);
// What was counted at place number `index`, or NULL past the last; valid until counting begins anew.
const emulation::Counted *qk_emulation_counted(uint64_t index);
}
