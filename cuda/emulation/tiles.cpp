#include "tiles.h"

#include <cstring>

namespace emulation {
namespace {

// A row of eight elements. Without vectors of that width the compiler makes two of four.
typedef float Row __attribute__((vector_size(32)));
typedef uint32_t Pairs __attribute__((vector_size(32)));

__attribute__((always_inline)) inline void store_halves(Pairs pairs, float *low, float *high) {
    Pairs shifted = pairs << 16, masked = pairs & 0xffff0000u;
    std::memcpy(low, &shifted, sizeof shifted);
    std::memcpy(high, &masked, sizeof masked);
}

// Eight rows at a time, whose sums do not wait for each other. No product is fused with its sum (-ffp-contract=off), so
// every width gives the same bits.
__attribute__((always_inline)) inline void multiply(const Tile &tile) {
    alignas(32) float low[16][8], high[16][8], b[16][8], c[16][8]; // of a: even columns, and odd ones
    for (int row = 0; row < 16; ++row)
        store_halves(*reinterpret_cast<const Pairs *>(tile.a[row]), low[row], high[row]);
    for (int pair = 0; pair < 8; ++pair)
        store_halves(*reinterpret_cast<const Pairs *>(tile.b[pair]), b[2 * pair], b[2 * pair + 1]);
    for (int lane = 0; lane < 32; ++lane)
        for (int half = 0; half < 2; ++half)
            std::memcpy(&c[lane / 4 + half * 8][lane % 4 * 2], tile.c[lane] + 2 * half, 2 * sizeof(float));
    const Row *columns = reinterpret_cast<const Row *>(b);
    Row *sums = reinterpret_cast<Row *>(c);
    for (int first = 0; first < 16; first += 8) {
        Row row[8];
        for (int m = 0; m < 8; ++m) row[m] = sums[first + m];
        for (int pair = 0; pair < 8; ++pair) {
            for (int m = 0; m < 8; ++m) row[m] += low[first + m][pair] * columns[2 * pair];
            for (int m = 0; m < 8; ++m) row[m] += high[first + m][pair] * columns[2 * pair + 1];
        }
        for (int m = 0; m < 8; ++m) sums[first + m] = row[m];
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int half = 0; half < 2; ++half)
            std::memcpy(tile.c[lane] + 2 * half, &c[lane / 4 + half * 8][lane % 4 * 2], 2 * sizeof(float));
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void multiply_avx2(const Tile *tiles, unsigned count) {
    for (unsigned i = 0; i < count; ++i) multiply(tiles[i]);
}
#endif

}  // namespace

void multiply_tiles(const Tile *tiles, unsigned count) {
#if defined(__x86_64__)
    static const bool wide = __builtin_cpu_supports("avx2");
    if (wide) return multiply_avx2(tiles, count);
#endif
    for (unsigned i = 0; i < count; ++i) multiply(tiles[i]);
}

}  // namespace emulation
