// Runs one block at a time, a fiber per thread, and checks what a GPU does not:
// - dynamic shared memory is poisoned (bytes 0xff: NaN) at the start of each block and guarded at both ends;
// - one warp, chosen by the schedule's seed, runs ahead as far as barriers allow, then another; inside a warp one lane
// does; blocks
//   come in a random order. Equal seeds give equal schedules;
// - a cp.async copy happens at the wait that completes it, and not at all without one, or, one in four, at once;
// - an mma happens at the next mma_wait(), and no barrier comes before that;
// - all threads of a block must meet at the same __syncthreads, all lanes of a warp at the same collective;
// - wide loads and stores are aligned.
// A broken rule ends the launch with QK_ERROR_EMULATION, and message() says which thread, where.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fiber.h"
#include "tiles.h"

namespace emulation {

struct Index { unsigned x, y, z; };

// A 16-byte cp.async that has been issued: `bytes` from `source`, then zeros.
struct AsyncCopy {
    void *destination;
    const void *source;
    unsigned bytes, group;
};

// The wait of a thread, or its last one: it runs where its warp says so.
enum class State { New, AtBarrier, AtCollective, Done };

// The part that every switch touches comes first, in one cache line.
struct alignas(64) Thread {
    Index index;
    unsigned warp, lane;
    State state;
    Fiber fiber;
    Tile *tiles;                   // of its warp: kMostProducts
    unsigned products;             // issued, not yet performed
    unsigned committed;            // cp.async groups so far
    Site site;                     // of the barrier it waits at; that of a collective is its warp's
    std::vector<AsyncCopy> copies; // issued, not yet performed
};

struct Block { Index index, size, grid; };

// The block and thread that an OS thread runs; looked at for every access and index, so variables rather than calls.
struct Running {
    Thread *thread;
    const Block *block;
    unsigned char *shared;
    size_t shared_bytes;
    bool counted; // accesses are, counters.h
};
extern __thread Running running __attribute__((tls_model("initial-exec")));

inline Thread &current_thread() { return *running.thread; }
inline const Block &current_block() { return *running.block; }
inline unsigned char *shared_memory() { return running.shared; }
inline bool counting() { return running.counted; }

// Ends the launch; does not return. `what` needs no thread or place.
[[noreturn]] void fail(Site site, const char *what);

void block_barrier(Site site);

// Blocks until all lanes called it at the same place; the last one runs its `operation` on the slots of all.
void warp_collective(unsigned mask, void *slot, Site site, void (*operation)(void **slots, const void *state),
                     const void *state);

template <typename Slot, typename Operation>
void warp_collective(unsigned mask, Slot &slot, Site site, const Operation &operation) {
    auto typed = [](void **slots, const void *state) {
        Slot *lanes[32];
        for (int lane = 0; lane < 32; ++lane) lanes[lane] = static_cast<Slot *>(slots[lane]);
        (*static_cast<const Operation *>(state))(lanes);
    };
    warp_collective(mask, &slot, site, typed, &operation);
}

// `bytes` at `address` must lie in the block's shared memory and be aligned to `bytes`.
inline void check_shared(const void *address, size_t bytes, Site site) {
    const unsigned char *first = static_cast<const unsigned char *>(address);
    if (reinterpret_cast<uintptr_t>(first) % bytes != 0) fail(site, "misaligned shared memory address");
    if (first < running.shared || first + bytes > running.shared + running.shared_bytes)
        fail(site, "out of bounds of shared memory");
}

void counted_access(const void *address, unsigned bytes, bool store, Site site);

// A load or store of one lane, with load_as() or store_as(): aligned to its size; counted where that is asked for.
inline void access(const void *address, unsigned bytes, bool store, Site site) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail(site, "misaligned address");
    if (counting()) counted_access(address, bytes, store, site);
}

// Performs the products that the warp has issued, when all lanes have come here.
void wait_for_products(Site site);

// Issues c += a * b of a warp, an mma.m16n8k16. It is performed when the warp waits for its products, so that lanes
// meet once for several; `c` is not to be touched, and to be there, until then.
inline void issue_product(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
    Thread &self = current_thread();
    if (!self.tiles[self.products].put(self.lane, c, a, b, site))
        fail(site, "divergent warp: other lanes issue another mma");
    if (++self.products == kMostProducts || counting()) wait_for_products(site);
}

void async_copy(void *destination, const void *source, int bytes, Site site);
void async_commit();
void async_wait(unsigned pending_groups);

int run(Index grid, Index block, size_t shared_bytes, void (*thread)(const void *), const void *state);

// Gives away `work` on a stream whose work waits for its turn, to be run once then and released. False: the stream is
// none of those, and the work is the caller's.
bool give_work(void *stream, void *work, int (*run)(void *), void (*release)(void *));

// Runs the launch: now, or on a stream whose work waits for its turn, then. Its own status comes later in that case.
template <typename Launch>
int on_stream(void *stream, const Launch &launch) {
    if (stream == nullptr) return launch();
    auto run = [](void *work) { return (*static_cast<const Launch *>(work))(); };
    auto release = [](void *work) { delete static_cast<const Launch *>(work); };
    auto *work = new Launch(launch);
    if (give_work(stream, work, run, release)) return 0;
    int status = run(work);
    release(work);
    return status;
}

// Remembers a launch where QLORA_EMULATION_LAUNCHES says so (launches.cpp).
void note_launch(const void *kernel, size_t shared_bytes);

}  // namespace emulation

// The emulated build's own interface (not in the header of the library).
extern "C" {
// Chooses the schedule of the launches that this OS thread makes from now on.
void qk_emulation_set_seed(uint64_t seed);
// The message of this OS thread's last launch that returned QK_ERROR_EMULATION; valid until the next.
const char *qk_emulation_message(void);
// Launch number `launch` (1 is the first) of this OS thread and all later ones do nothing and return `code`, a
// cudaError_t.
void qk_emulation_lose(uint64_t launch, int code);
// From launch number `launch` (1 is the first) of this OS thread on, only `blocks` of a grid run: the first, the last,
// and others by chance. A kernel can so be looked at on a grid of real size.
void qk_emulation_sample(uint64_t launch, uint64_t blocks);
// Blocks that this OS thread has run so far.
uint64_t qk_emulation_blocks(void);
// Launches of this OS thread so far: a test can show that something ran.
uint64_t qk_emulation_launches(void);
// The taker of this OS thread's launches on streams whose work waits for its turn: it answers 1, or 0 where the stream
// is none of those. Work that was taken is run on this thread, and then released.
void qk_emulation_take_work(int (*take)(void *stream, void *work, int (*run)(void *), void (*release)(void *)));
}
