#include "runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>

#include "../include/qlora_kernels.h"
#include "counters.h"

namespace emulation {
namespace {

constexpr size_t kStackBytes = FIBER_ASAN ? 256 * 1024 : 64 * 1024;
// Stacks at multiples of a power of two would have their ends in the same few sets of every cache.
constexpr size_t kStackStride = kStackBytes + 5 * 64;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 99 * 1024;
constexpr unsigned char kPoison = 0xff;
constexpr unsigned char kGuard = 0xa5;
// Far enough that the next row of a tile is still caught. AddressSanitizer has its own.
constexpr size_t kGuardBytes = FIBER_ASAN ? 0 : 4096;
constexpr int kErrorInvalidConfiguration = 9; // cudaErrorInvalidConfiguration

// Messages are made apart from the functions that threads wait in: each thread has the frames of those on a stack of
// its own, and short ones stay in the cache.
#define RARE __attribute__((noinline, cold))

struct Warp {
    unsigned ready;   // lanes that run
    unsigned arrived; // lanes at a collective
    bool begun;       // its fibers are there
    Site site;        // of it
    Thread *threads;  // its 32
    void *slots[32];
};

// SplitMix64: a schedule is a pure function of its seed and the launches made since it was set.
struct Random {
    uint64_t state = 0;
    uint64_t next() {
        uint64_t z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    unsigned below(unsigned n) { return static_cast<unsigned>((next() >> 32) * n >> 32); }
};

struct Machine {
    Block block = {};
    std::vector<Thread> threads = std::vector<Thread>(kMaxThreads);
    std::vector<Warp> warps;
    std::unique_ptr<unsigned char[]> stacks;
    std::unique_ptr<Tile[]> tiles; // kMostProducts of each warp
    Fiber scheduler = {};
    unsigned count = 0; // threads of the block
    unsigned at_barrier = 0, done = 0;
    bool failed = false;
    void (*thread)(const void *) = nullptr;
    const void *state = nullptr;
    Random random;
    std::string message;
    uint64_t launches = 0;
    uint64_t blocks = 0;
    uint64_t sampled_from = UINT64_MAX, sample = 0; // the launch from which on only so many blocks of a grid run
    uint64_t lost_from = UINT64_MAX; // the launch from which on the device is lost
    int lost_code = 0;
    int (*take_work)(void *, void *, int (*)(void *), void (*)(void *)) = nullptr;
};

// A pointer at a fixed place of the OS thread's memory: no call for each use.
__thread Machine *made __attribute__((tls_model("initial-exec")));

__attribute__((noinline)) Machine &make_machine() {
    static thread_local Machine machine;
    made = &machine;
    return machine;
}

inline Machine &machine() { return __builtin_expect(made != nullptr, 1) ? *made : make_machine(); }

std::string describe(const Thread &thread) {
    const Block &block = machine().block;
    char text[160];
    std::snprintf(text, sizeof text, "block (%u, %u, %u) thread (%u, %u, %u)", block.index.x, block.index.y,
                  block.index.z, thread.index.x, thread.index.y, thread.index.z);
    return text;
}

std::string describe(Site site) {
    const char *name = std::strrchr(site.file, '/');
    return std::string(name ? name + 1 : site.file) + ":" + std::to_string(site.line);
}

Site site_of(const Thread &thread) {
    return thread.state == State::AtCollective ? machine().warps[thread.warp].site : thread.site;
}

std::string doing(const Thread &thread) {
    if (machine().warps[thread.warp].ready >> thread.lane & 1) return "is running";
    switch (thread.state) {
    case State::New: return "has not begun";
    case State::Done: return "has ended";
    case State::AtBarrier: return "waits at __syncthreads " + describe(site_of(thread));
    case State::AtCollective: return "waits at the warp collective " + describe(site_of(thread));
    }
    return "";
}

void record(const std::string &message) {
    Machine &m = machine();
    if (!m.failed) m.message = message;
    m.failed = true;
    for (Warp &warp : m.warps) warp.ready = 0; // nobody goes on
}

// Draws the lane of the warp that runs next: its lanes run in a random rotation, each as far as it can. Null where all
// wait, or the block has failed.
inline Thread *draw_lane(Machine &m, const Warp &warp) {
    unsigned ready = warp.ready;
    if (!ready) return nullptr;
    unsigned first = m.random.below(32);
    unsigned rotated = ready >> first | ready << (-first & 31);
    return running.thread = warp.threads + (first + static_cast<unsigned>(__builtin_ctz(rotated))) % 32;
}

// Goes on in the next lane of this warp, or in the scheduler where there is none. Nothing comes after the switch, so
// that it is a jump where it can be.
inline void yield(Machine &m, Thread &self, const Warp &warp) {
    Thread *next = draw_lane(m, warp);
    if (next != &self) fiber_switch(self.fiber, next ? next->fiber : m.scheduler);
}

[[noreturn]] void abandon() {
    Machine &m = machine();
    Thread &self = current_thread();
    for (;;) yield(m, self, m.warps[self.warp]); // nobody comes back to a failed block, or to a thread that has ended
}

inline void wait_as(Warp &warp, Thread &thread, State state) {
    thread.state = state;
    warp.ready &= ~(1u << thread.lane);
}

[[noreturn]] RARE void fail_unfinished(const Thread &self) {
    fail(self.tiles[self.products - 1].site, "the sums of this mma are never waited for");
}

void fiber_main() {
    Machine &m = machine();
    Thread &self = current_thread();
    fiber_entered(self.fiber);
    m.thread(m.state);
    if (self.products) fail_unfinished(self);
    self.site = {nullptr, 0};
    wait_as(m.warps[self.warp], self, State::Done);
    ++m.done;
    abandon();
}

// Threads that wait while nothing can run: names one of each kind.
RARE void record_divergence() {
    Machine &m = machine();
    const Thread *waiting = nullptr, *other = nullptr;
    for (unsigned t = 0; t < m.count && !waiting; ++t)
        if (m.threads[t].state != State::Done) waiting = &m.threads[t];
    for (unsigned t = 0; t < m.count && !other; ++t) {
        const Thread &thread = m.threads[t];
        if (thread.state != waiting->state || !(site_of(thread) == site_of(*waiting))) other = &thread;
    }
    record("divergent barrier: " + describe(*waiting) + " " + doing(*waiting) + ", " +
           (other ? describe(*other) + " " + doing(*other) : ""));
}

// Creates the fibers of a warp when it is its turn, so that they are in the cache when they run.
void begin_warp(Machine &m, unsigned w) {
    m.warps[w].begun = true;
    for (unsigned t = w * 32; t < w * 32 + 32; ++t) {
        Thread &thread = m.threads[t];
        thread.state = State::New;
        thread.products = thread.committed = 0;
        thread.copies.clear();
        fiber_create(thread.fiber, m.stacks.get() + t * kStackStride, kStackBytes, fiber_main);
    }
}

// The lanes' stacks come into the cache together, not one after the other.
void fetch_stacks(const Warp &warp) {
    for (unsigned lane = 0; lane < 32; ++lane) fiber_prefetch(warp.threads[lane].fiber);
}

// One warp at a time runs as far as it can.
void schedule() {
    Machine &m = machine();
    std::vector<unsigned> runnable(m.warps.size());
    while (m.done < m.count && !m.failed) {
        runnable.clear();
        for (unsigned w = 0; w < m.warps.size(); ++w)
            if (m.warps[w].ready) runnable.push_back(w);
        if (runnable.empty()) return record_divergence();
        unsigned w = runnable[m.random.below(static_cast<unsigned>(runnable.size()))];
        if (m.warps[w].begun) fetch_stacks(m.warps[w]);
        else begin_warp(m, w);
        while (Thread *next = draw_lane(m, m.warps[w])) fiber_switch(m.scheduler, next->fiber);
    }
}

// The blocks of a grid in the order in which they run: all, or a sample with the first, the last, and others by chance.
std::vector<unsigned> order_of(uint64_t blocks, uint64_t sample) {
    Random &random = machine().random;
    std::vector<unsigned> order;
    if (sample >= blocks) {
        order.resize(blocks);
        std::iota(order.begin(), order.end(), 0u);
    } else {
        if (sample > 0) order.push_back(0);
        if (sample > 1) order.push_back(static_cast<unsigned>(blocks - 1));
        while (order.size() < sample) {
            unsigned next = random.below(static_cast<unsigned>(blocks));
            if (std::find(order.begin(), order.end(), next) == order.end()) order.push_back(next);
        }
    }
    for (size_t i = order.size(); i-- > 1;) std::swap(order[i], order[random.below(static_cast<unsigned>(i + 1))]);
    return order;
}

bool is_guard(const unsigned char *bytes) {
    return kGuardBytes == 0 || (bytes[0] == kGuard && std::memcmp(bytes, bytes + 1, kGuardBytes - 1) == 0);
}

void check_guards() {
    if (is_guard(running.shared - kGuardBytes) && is_guard(running.shared + running.shared_bytes)) return;
    Machine &m = machine();
    for (size_t i = 0; i < kGuardBytes; ++i) {
        bool below = running.shared[-1 - static_cast<ptrdiff_t>(i)] != kGuard;
        bool above = running.shared[running.shared_bytes + i] != kGuard;
        if (!below && !above) continue;
        return record("out of bounds: block (" + std::to_string(m.block.index.x) + ", " +
                      std::to_string(m.block.index.y) + ") wrote to shared memory " +
                      std::to_string(below ? i + 1 : i) + " bytes " + (below ? "before its start" : "past its end") +
                      " (" + std::to_string(running.shared_bytes) + " bytes)");
    }
}

// Sets what all blocks of a launch share.
void prepare(Machine &m) {
    if (!m.stacks) m.stacks.reset(new unsigned char[kMaxThreads * kStackStride]);
    if (!m.tiles) m.tiles.reset(new Tile[kMaxThreads / 32 * kMostProducts]);
    m.warps.resize(m.count / 32);
    for (unsigned w = 0; w < m.warps.size(); ++w) {
        m.warps[w].threads = &m.threads[w * 32];
        for (unsigned i = 0; i < kMostProducts; ++i) m.tiles[w * kMostProducts + i].lanes = 0;
    }
    Index size = m.block.size;
    for (unsigned t = 0; t < m.count; ++t) {
        Thread &thread = m.threads[t];
        thread.index = {t % size.x, t / size.x % size.y, t / size.x / size.y};
        thread.warp = t / 32;
        thread.lane = t % 32;
        thread.tiles = &m.tiles[thread.warp * kMostProducts];
    }
}

void run_block(Index index) {
    Machine &m = machine();
    m.block.index = index;
    std::memset(running.shared - kGuardBytes, kGuard, kGuardBytes);
    std::memset(running.shared, kPoison, running.shared_bytes);
    std::memset(running.shared + running.shared_bytes, kGuard, kGuardBytes);
    for (Warp &warp : m.warps) warp.ready = ~0u, warp.arrived = 0, warp.begun = false;
    m.at_barrier = m.done = 0;
    if (counting()) count_block_begins(m.count / 32);
    schedule();
    if (counting()) count_block_ends();
    if (!m.failed) check_guards();
}

}  // namespace

__thread Running running __attribute__((tls_model("initial-exec")));

RARE void fail(Site site, const char *what) {
    record(std::string(what) + ": " + describe(current_thread()) + " at " + describe(site));
    abandon();
}

void block_barrier(Site site) {
    Machine &m = *made;
    Thread &self = current_thread();
    Warp &own = m.warps[self.warp];
    if (self.products) fail_unfinished(self);
    self.site = site;
    wait_as(own, self, State::AtBarrier);
    if (++m.at_barrier < m.count) return yield(m, self, own);
    m.at_barrier = 0;
    for (unsigned t = 0; t < m.count; ++t) {
        if (m.threads[t].site == site) continue;
        record_divergence();
        abandon();
    }
    if (counting()) count_barrier();
    for (Warp &warp : m.warps) warp.ready = ~0u;
    yield(m, self, own);
}

[[noreturn]] RARE static void fail_apart(const Thread &self, const Warp &warp, Site site) {
    record("divergent warp: " + describe(self) + " is at " + describe(site) + ", other lanes wait at " +
           describe(warp.site));
    abandon();
}

// The last lane is here. Apart, so that the others need no room for what a call would change.
__attribute__((noinline)) static void finish_collective(Warp &warp, void (*operation)(void **, const void *),
                                                        const void *state) {
    warp.arrived = 0;
    operation(warp.slots, state);
    warp.ready = ~0u;
    yield(*made, current_thread(), warp);
}

void warp_collective(unsigned mask, void *slot, Site site, void (*operation)(void **, const void *),
                     const void *state) {
    Machine &m = *made;
    Thread &self = current_thread();
    Warp &warp = m.warps[self.warp];
    if (mask != ~0u) fail(site, "a collective of part of a warp is not emulated");
    if (warp.arrived && !(warp.site == site)) fail_apart(self, warp, site);
    warp.site = site;
    warp.slots[self.lane] = slot;
    warp.arrived |= 1u << self.lane;
    wait_as(warp, self, State::AtCollective);
    if (warp.arrived == ~0u) return finish_collective(warp, operation, state);
    yield(m, self, warp);
}

void wait_for_products(Site site) {
    Thread &self = current_thread();
    if (self.products == 0) return;
    warp_collective(~0u, self, site, [site](Thread *(&lanes)[32]) {
        unsigned products = lanes[0]->products;
        for (const Thread *lane : lanes)
            if (lane->products != products) fail(site, "divergent warp: lanes have issued different numbers of mma");
        for (Thread *lane : lanes) lane->products = 0;
        Tile *tiles = lanes[0]->tiles;
        for (unsigned i = 0; i < products; ++i) {
            tiles[i].lanes = 0;
            if (counting()) count_product(lanes[0]->warp);
        }
        multiply_tiles(tiles, products);
    });
}

void counted_access(const void *address, unsigned bytes, bool store, Site site) {
    const unsigned char *first = static_cast<const unsigned char *>(address);
    bool shared = first >= running.shared && first < running.shared + running.shared_bytes;
    Kind kind = shared ? (store ? SharedStore : SharedLoad) : (store ? GlobalStore : GlobalLoad);
    count_access(current_thread().warp, current_thread().lane, kind, address, bytes, site);
}

static void perform(const AsyncCopy &copy) {
    if (copy.bytes == 16) {
        std::memcpy(copy.destination, copy.source, 16);
        return;
    }
    if (copy.bytes) std::memcpy(copy.destination, copy.source, copy.bytes);
    std::memset(static_cast<unsigned char *>(copy.destination) + copy.bytes, 0, 16 - copy.bytes);
}

void async_copy(void *destination, const void *source, int bytes, Site site) {
    check_shared(destination, 16, site);
    if (bytes < 0 || bytes > 16) fail(site, "a cp.async of 16 bytes takes 0 to 16 of its source");
    if (reinterpret_cast<uintptr_t>(source) % 16 != 0) fail(site, "misaligned cp.async source");
    Thread &self = current_thread();
    if (counting()) {
        if (bytes) count_access(self.warp, self.lane, CopySource, source, unsigned(bytes), site);
        count_access(self.warp, self.lane, CopyTarget, destination, 16, site);
        count_copy(self.warp * 32 + self.lane, self.committed, unsigned(bytes));
    }
    AsyncCopy copy = {destination, source, unsigned(bytes), self.committed};
    // Hardware may perform it at once, or as late as the wait: both happen here, so that a missing wait and a stage
    // that is refilled too early are seen.
    if (machine().random.below(4) == 0) perform(copy);
    else self.copies.push_back(copy);
}

void async_commit() { ++current_thread().committed; }

void async_wait(unsigned pending_groups) {
    Thread &self = current_thread();
    if (counting())
        count_wait(self.warp * 32 + self.lane, self.committed > pending_groups ? self.committed - pending_groups : 0);
    // The oldest come first.
    auto first = self.copies.begin(), due = first;
    for (; due != self.copies.end() && due->group + pending_groups < self.committed; ++due) perform(*due);
    self.copies.erase(first, due);
}

int run(Index grid, Index block, size_t shared_bytes, void (*thread)(const void *), const void *state) {
    Machine &m = machine();
    uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
    if (threads == 0 || threads > kMaxThreads || threads % 32 || shared_bytes > kMaxSharedBytes || blocks == 0 ||
        blocks > 1u << 31 || grid.y > 65535 || grid.z > 65535)
        return kErrorInvalidConfiguration;
    size_t bytes = (shared_bytes + 127) / 128 * 128;
    std::unique_ptr<unsigned char, void (*)(void *)> memory(
        static_cast<unsigned char *>(std::aligned_alloc(128, std::max<size_t>(bytes, 128) + 2 * kGuardBytes)),
        std::free);
    running.block = &m.block;
    running.shared = memory.get() + kGuardBytes;
    running.shared_bytes = shared_bytes;
    m.count = static_cast<unsigned>(threads);
    m.block.size = block;
    m.block.grid = grid;
    m.thread = thread;
    m.state = state;
    m.failed = false;
    prepare(m);
    if (++m.launches >= m.lost_from) return m.lost_code;
    if (counting()) count_launch_begins(blocks, threads, shared_bytes);
    for (unsigned b : order_of(blocks, m.launches >= m.sampled_from ? m.sample : blocks)) {
        run_block({b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y});
        ++m.blocks;
        if (m.failed) return QK_ERROR_EMULATION;
    }
    return QK_OK;
}

bool give_work(void *stream, void *work, int (*run)(void *), void (*release)(void *)) {
    auto take = machine().take_work;
    return take != nullptr && take(stream, work, run, release) != 0;
}

}  // namespace emulation

void qk_emulation_set_seed(uint64_t seed) { emulation::machine().random.state = seed; }
const char *qk_emulation_message(void) { return emulation::machine().message.c_str(); }
void qk_emulation_lose(uint64_t launch, int code) {
    emulation::machine().lost_from = launch;
    emulation::machine().lost_code = code;
}
void qk_emulation_sample(uint64_t launch, uint64_t blocks) {
    emulation::machine().sampled_from = launch;
    emulation::machine().sample = blocks;
}
uint64_t qk_emulation_blocks(void) { return emulation::machine().blocks; }
uint64_t qk_emulation_launches(void) { return emulation::machine().launches; }
void qk_emulation_take_work(int (*take)(void *, void *, int (*)(void *), void (*)(void *))) {
    emulation::machine().take_work = take;
}
