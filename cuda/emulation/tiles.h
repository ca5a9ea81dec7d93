// Matrix products of a warp: lanes write their fragments where they belong, and one of them multiplies.
#pragma once

#include <cstdint>

namespace emulation {

// A place in a kernel, for messages.
struct Site {
    const char *file;
    int line;
    bool operator==(const Site &other) const { return file == other.file && line == other.line; }
    // A default argument: the place of the call.
    static constexpr Site here(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

constexpr unsigned kMostProducts = 16; // that a warp has issued and not performed

// The operands of an mma.m16n8k16; ptx.cuh has the layout of its fragments.
struct Tile {
    alignas(32) uint32_t a[16][8]; // pairs of neighbors in a row, bf16
    uint32_t b[8][8];              // pairs of neighbors in a column: [pair][column]
    float *c[32];                  // of each lane: its 4 sums
    Site site;
    uint32_t lanes;                // that have put their fragments here

    // False where other lanes put theirs from another place.
    bool put(unsigned lane, float (&sums)[4], const uint32_t (&rows)[4], const uint32_t (&columns)[2], Site from) {
        unsigned g = lane / 4, t = lane % 4;
        if (lanes == 0) site = from;
        lanes |= 1u << lane;
        a[g][t] = rows[0], a[g + 8][t] = rows[1], a[g][t + 4] = rows[2], a[g + 8][t + 4] = rows[3];
        b[t][g] = columns[0], b[t + 4][g] = columns[1];
        c[lane] = sums;
        return site == from;
    }
};

// c += a * b of each tile, one after the other, in f32: each product and each sum is rounded, in the order of the 16
// products of a sum. All lanes have put their fragments there.
void multiply_tiles(const Tile *tiles, unsigned count);

}  // namespace emulation
