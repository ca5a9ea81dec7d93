#include "runtime.h"

namespace emulation {
namespace {

// A row of eight sums. Without vectors of that width the compiler makes two of four.
typedef float Row __attribute__((vector_size(32)));

// Eight rows at a time, whose sums do not wait for each other. No product is fused with its sum (-ffp-contract=off), so
// every width gives the same bits.
__attribute__((always_inline)) inline void multiply(float (&c)[16][8], const float (&a)[16][16],
                                                    const float (&b)[16][8]) {
    const Row *columns = reinterpret_cast<const Row *>(b);
    Row *sums = reinterpret_cast<Row *>(c);
    for (int first = 0; first < 16; first += 8) {
        Row row[8];
        for (int m = 0; m < 8; ++m) row[m] = sums[first + m];
        for (int k = 0; k < 16; ++k) {
            Row column = columns[k];
            for (int m = 0; m < 8; ++m) row[m] += a[first + m][k] * column;
        }
        for (int m = 0; m < 8; ++m) sums[first + m] = row[m];
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void multiply_avx2(float (&c)[16][8], const float (&a)[16][16],
                                                   const float (&b)[16][8]) {
    multiply(c, a, b);
}
#endif

}  // namespace

void multiply_tiles(float (&c)[16][8], const float (&a)[16][16], const float (&b)[16][8]) {
#if defined(__x86_64__)
    static const bool wide = __builtin_cpu_supports("avx2");
    if (wide) return multiply_avx2(c, a, b);
#endif
    multiply(c, a, b);
}

}  // namespace emulation
