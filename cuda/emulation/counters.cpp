#include "counters.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

namespace emulation {
namespace {

// One instruction of a warp, as far as its lanes have come.
struct Instruction {
    uintptr_t addresses[32];
    uint32_t lanes = 0;
};

// Instructions at one place that not all lanes of a warp have reached; `passed` are done and gone.
struct Open {
    std::deque<Instruction> instructions;
    uint64_t passed = 0;
    uint64_t of_lane[32] = {};
};

using Place = std::tuple<const char *, int, Kind, unsigned>; // file, line, kind, bytes

// A thread's groups of cp.async with copies, of which no wait has made sure yet, oldest first: number and bytes.
struct InFlight {
    std::deque<std::pair<unsigned, uint64_t>> groups;
    uint64_t bytes = 0, most_groups = 0, most_bytes = 0;
};

struct Counters {
    std::map<Place, size_t> places;
    std::vector<Counted> counted;
    std::vector<CountedLaunch> launches;
    std::vector<std::map<size_t, Open>> warps; // of the running block, by place
    std::vector<InFlight> threads;             // of the running block
};

Counters &counters() {
    static thread_local Counters counters;
    return counters;
}

bool is_global(uint32_t kind) { return kind == GlobalLoad || kind == GlobalStore || kind == CopySource; }

size_t distinct(std::vector<uintptr_t> &values) {
    std::sort(values.begin(), values.end());
    return size_t(std::unique(values.begin(), values.end()) - values.begin());
}

// Units of `size` bytes that the accesses touch.
std::vector<uintptr_t> touched(const Instruction &instruction, unsigned first, unsigned end, unsigned bytes,
                               unsigned size) {
    std::vector<uintptr_t> units;
    for (unsigned lane = first; lane < end; ++lane) {
        if (!(instruction.lanes >> lane & 1)) continue;
        uintptr_t from = instruction.addresses[lane], to = from + bytes;
        for (uintptr_t unit = from / size; unit * size < to; ++unit) units.push_back(unit);
    }
    units.resize(distinct(units));
    return units;
}

void add(Counted &counted, const Instruction &instruction) {
    ++counted.instructions;
    if (counted.bytes <= kMostBytes) {
        CountedLaunch &launch = counters().launches.back();
        ++launch.instructions[counted.kind][counted.bytes];
        launch.lanes[counted.kind][counted.bytes] += uint64_t(__builtin_popcount(instruction.lanes));
    }
    if (is_global(counted.kind)) {
        size_t sectors = touched(instruction, 0, 32, counted.bytes, 32).size();
        size_t bytes = touched(instruction, 0, 32, counted.bytes, 1).size();
        counted.taken += sectors;
        counted.least += (bytes + 31) / 32;
        return;
    }
    unsigned lanes = counted.bytes >= 16 ? 8 : counted.bytes == 8 ? 16 : 32;
    for (unsigned first = 0; first < 32; first += lanes) {
        std::vector<uintptr_t> words = touched(instruction, first, first + lanes, counted.bytes, 4);
        unsigned of_bank[32] = {};
        for (uintptr_t word : words) ++of_bank[word % 32];
        counted.taken += *std::max_element(of_bank, of_bank + 32);
        counted.least += (words.size() + 31) / 32;
    }
}

Counted &at(Counters &c, Kind kind, unsigned bytes, Site site, size_t *number) {
    auto found = c.places.emplace(Place(site.file, site.line, kind, bytes), c.counted.size());
    if (found.second) c.counted.push_back({site.file, uint32_t(site.line), kind, bytes, 0, 0, 0});
    *number = found.first->second;
    return c.counted[*number];
}

}  // namespace

void count_launch_begins(uint64_t grid, uint64_t threads, uint64_t shared_bytes) {
    CountedLaunch launch = {};
    launch.grid = grid;
    launch.threads = threads;
    launch.shared_bytes = shared_bytes;
    counters().launches.push_back(launch);
}

void count_block_begins(unsigned warps) {
    counters().warps.assign(warps, {});
    counters().threads.assign(size_t(warps) * 32, {});
}

// An access that not every lane came to counts as it is.
void count_block_ends() {
    Counters &c = counters();
    for (auto &warp : c.warps)
        for (auto &open : warp)
            for (const Instruction &instruction : open.second.instructions) add(c.counted[open.first], instruction);
    c.warps.clear();
    CountedLaunch &launch = c.launches.back();
    uint64_t bytes = 0;
    for (const InFlight &thread : c.threads) {
        launch.most_groups = std::max(launch.most_groups, thread.most_groups);
        bytes += thread.most_bytes;
    }
    launch.most_copied_bytes = std::max(launch.most_copied_bytes, bytes);
    ++launch.blocks;
}

void count_access(unsigned warp, unsigned lane, Kind kind, const void *address, unsigned bytes, Site site) {
    Counters &c = counters();
    size_t number;
    Counted &counted = at(c, kind, bytes, site, &number);
    Open &open = c.warps[warp][number];
    size_t index = size_t(open.of_lane[lane]++ - open.passed);
    if (index >= open.instructions.size()) open.instructions.resize(index + 1);
    Instruction &instruction = open.instructions[index];
    instruction.addresses[lane] = reinterpret_cast<uintptr_t>(address);
    instruction.lanes |= 1u << lane;
    while (!open.instructions.empty() && open.instructions.front().lanes == ~0u) {
        add(counted, open.instructions.front());
        open.instructions.pop_front();
        ++open.passed;
    }
}

void count_matrix(const void *const (&rows)[32], Site site) {
    Counters &c = counters();
    size_t number;
    Counted &counted = at(c, Matrix, 16, site, &number);
    Instruction instruction;
    instruction.lanes = ~0u;
    for (unsigned lane = 0; lane < 32; ++lane) instruction.addresses[lane] = reinterpret_cast<uintptr_t>(rows[lane]);
    add(counted, instruction);
}

void count_barrier() { ++counters().launches.back().barriers; }

void count_product(unsigned warp) {
    Counters &c = counters();
    size_t groups = 0;
    for (unsigned lane = 0; lane < 32; ++lane) groups = std::max(groups, c.threads[warp * 32 + lane].groups.size());
    CountedLaunch &launch = c.launches.back();
    ++launch.products;
    launch.groups_in_products += groups;
}

void count_copy(unsigned thread, unsigned group, unsigned bytes) {
    InFlight &own = counters().threads[thread];
    if (own.groups.empty() || own.groups.back().first != group) own.groups.emplace_back(group, 0);
    own.groups.back().second += bytes;
    own.bytes += bytes;
    own.most_groups = std::max(own.most_groups, uint64_t(own.groups.size()));
    own.most_bytes = std::max(own.most_bytes, own.bytes);
}

void count_wait(unsigned thread, unsigned group) {
    InFlight &own = counters().threads[thread];
    while (!own.groups.empty() && own.groups.front().first < group) {
        own.bytes -= own.groups.front().second;
        own.groups.pop_front();
    }
}

}  // namespace emulation

void qk_emulation_count(int on) {
    emulation::Counters &c = emulation::counters();
    if (on) c.places.clear(), c.counted.clear(), c.launches.clear();
    emulation::running.counted = on != 0;
}
const emulation::Counted *qk_emulation_counted(uint64_t index) {
    const auto &counted = emulation::counters().counted;
    return index < counted.size() ? &counted[index] : nullptr;
}
const emulation::CountedLaunch *qk_emulation_counted_launch(uint64_t index) {
    const auto &launches = emulation::counters().launches;
    return index < launches.size() ? &launches[index] : nullptr;
}
