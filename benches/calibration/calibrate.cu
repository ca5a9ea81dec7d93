// Cycles of single instructions on a GPU, for the constants of the speed predictions (tools/predict).
//
//   calibrate [--record DIR]
//
// Each micro-kernel runs an unrolled chain of one instruction between two readings of the multiprocessor's clock. Where
// a rate is timed, all four schedulers are busy (or one, where it says so); where a latency is, one warp runs
// instructions that wait for each other. Every figure is cycles of one instruction of a warp, and
// DIR/<date>-<time>-<gpu>.json holds them with the card, its clock and its driver. tools/kernel-inspect checks in the
// machine code that each loop holds the instructions that are divided by here, and little else.
//
// Exit status: 0 measured; 1 an error; 2 wrong usage; 3 no GPU or no driver.

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <cuda_runtime.h>

// Instructions of a round of each loop; tools/kernel-inspect counts them.
constexpr int kMatrices = 64, kWords = 32, kVectors = 16, kChain = 64, kCopies = 16, kWaits = 16, kBranches = 24,
              kBarriers = 64;
constexpr int kWarp = 32, kSchedulers = 4;
// Sums of a warp that do not wait for each other.
constexpr int kSums = 8;
// Shared memory of a block, and what it copies of global memory: 8 chunks of each of 256 threads.
constexpr int kSharedBytes = 32 * 1024, kCopyThreads = 256, kPlaces = 8;

// Clock of the multiprocessor, and nanoseconds, before and after a warp's chain.
struct Span {
    int64_t start, end, began, ended;
};

__device__ __forceinline__ unsigned shared_address(const void *pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ int64_t nanoseconds() {
    int64_t time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
}

// Runs `chain` twice in the warps that work, the first time to load its instructions, and notes the second.
template <typename Chain> __device__ __forceinline__ void timed(Span *spans, bool works, Chain chain) {
    Span span = {};
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
        __syncthreads();
        span.began = nanoseconds();
        span.start = clock64();
        if (works) chain();
        span.end = clock64();
        span.ended = nanoseconds();
    }
    if (threadIdx.x % kWarp == 0)
        spans[(blockIdx.x * blockDim.x + threadIdx.x) / kWarp] = works ? span : Span{};
}

// Two bf16 from 1 to 2 with signs and fractions of a hash: operands as products have them. A card whose power is
// limited holds a higher clock where few bits change.
__device__ __forceinline__ unsigned two_numbers(unsigned seed) {
    unsigned bits = (seed + 1) * 2654435761u;
    bits = (bits ^ bits >> 15) * 2246822507u;
    return 0x3f803f80u | ((bits ^ bits >> 13) & 0x807f807fu);
}

extern "C" __global__ void hmma(Span *spans, float *sink, int rounds) {
    float c[kSums][4] = {};
    unsigned first = threadIdx.x * 6;
    unsigned a[4] = {two_numbers(first), two_numbers(first + 1), two_numbers(first + 2), two_numbers(first + 3)};
    unsigned b[2] = {two_numbers(first + 4), two_numbers(first + 5)};
    timed(spans, true, [&] {
#pragma unroll 1
        for (int round = 0; round < rounds; ++round)
#pragma unroll
            for (int i = 0; i < kMatrices; ++i) {
                float(&d)[4] = c[i % kSums];
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                             "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
            }
    });
    float sum = 0.0f;
    for (int i = 0; i < kSums; ++i) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
    sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// 4 bytes a lane, each of the 32 banks once. Every `apart`-th warp works: with 4, those of one scheduler.
extern "C" __global__ void lds_32(Span *spans, float *sink, int rounds, int apart) {
    extern __shared__ __align__(128) unsigned char bytes[];
    unsigned from = shared_address(bytes) + threadIdx.x % kWarp * 4, word[kWords] = {};
    timed(spans, threadIdx.x / kWarp % apart == 0, [&] {
#pragma unroll 1
        for (int round = 0; round < rounds; ++round)
#pragma unroll
            for (int i = 0; i < kWords; ++i)
                asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(word[i]) : "r"(from + i * 128));
    });
    unsigned sum = 0;
    for (int i = 0; i < kWords; ++i) sum += word[i];
    sink[threadIdx.x] = float(sum);
}

// 16 bytes a lane: four wavefronts.
extern "C" __global__ void lds_128(Span *spans, float *sink, int rounds) {
    extern __shared__ __align__(128) unsigned char bytes[];
    unsigned from = shared_address(bytes) + threadIdx.x % kWarp * 16, word[kVectors][4] = {};
    timed(spans, true, [&] {
#pragma unroll 1
        for (int round = 0; round < rounds; ++round)
#pragma unroll
            for (int i = 0; i < kVectors; ++i)
                asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(word[i][0]), "=r"(word[i][1]), "=r"(word[i][2]), "=r"(word[i][3])
                             : "r"(from + i * 512));
    });
    unsigned sum = 0;
    for (int i = 0; i < kVectors; ++i) sum += word[i][0] + word[i][1] + word[i][2] + word[i][3];
    sink[threadIdx.x] = float(sum);
}

// A lane's word of shared memory is its own address.
extern "C" __global__ void lds_latency(Span *spans, float *sink, int rounds) {
    extern __shared__ __align__(128) unsigned char bytes[];
    unsigned at = shared_address(bytes) + threadIdx.x * 4;
    reinterpret_cast<volatile unsigned *>(bytes)[threadIdx.x] = at;
    timed(spans, true, [&] {
#pragma unroll 1
        for (int round = 0; round < rounds; ++round)
#pragma unroll
            for (int i = 0; i < kChain; ++i) asm volatile("ld.volatile.shared.u32 %0, [%0];" : "+r"(at));
    });
    sink[threadIdx.x] = float(at);
}

// Four 8 x 8 matrices of 16-bit elements, rows of 16 bytes one after the other: four wavefronts.
extern "C" __global__ void ldsm(Span *spans, float *sink, int rounds) {
    extern __shared__ __align__(128) unsigned char bytes[];
    unsigned from = shared_address(bytes) + threadIdx.x % kWarp * 16, word[kVectors][4] = {};
    timed(spans, true, [&] {
#pragma unroll 1
        for (int round = 0; round < rounds; ++round)
#pragma unroll
            for (int i = 0; i < kVectors; ++i)
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(word[i][0]), "=r"(word[i][1]), "=r"(word[i][2]), "=r"(word[i][3])
                             : "r"(from + i * 512)
                             : "memory");
    });
    unsigned sum = 0;
    for (int i = 0; i < kVectors; ++i) sum += word[i][0] + word[i][1] + word[i][2] + word[i][3];
    sink[threadIdx.x] = float(sum);
}

// A lane brings row l and gets word l of the first matrix, in which the address of row l stands.
extern "C" __global__ void ldsm_latency(Span *spans, float *sink, int rounds) {
    extern __shared__ __align__(128) unsigned char bytes[];
    unsigned at = shared_address(bytes) + threadIdx.x * 16, rest[3] = {};
    reinterpret_cast<volatile unsigned *>(bytes)[threadIdx.x] = at;
    timed(spans, true, [&] {
#pragma unroll 1
        for (int round = 0; round < rounds; ++round)
#pragma unroll
            for (int i = 0; i < kChain; ++i)
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%0];"
                             : "+r"(at), "=r"(rest[0]), "=r"(rest[1]), "=r"(rest[2])
                             :
                             : "memory");
    });
    sink[threadIdx.x] = float(at + rest[0] + rest[1] + rest[2]);
}

// Copies of 16 bytes a lane from the L2 to shared memory. A block has a place of its own; two groups are under way.
extern "C" __global__ void ldgsts(Span *spans, const unsigned char *global, int rounds) {
    extern __shared__ __align__(128) unsigned char bytes[];
    unsigned to = shared_address(bytes) + threadIdx.x * 16;
    const unsigned char *from = global + int64_t(blockIdx.x) * kSharedBytes + threadIdx.x * 16;
    timed(spans, true, [&] {
#pragma unroll 1
        for (int round = 0; round < rounds; ++round) {
#pragma unroll
            for (int i = 0; i < kCopies; ++i) {
                int at = i % kPlaces * kCopyThreads * 16;
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + at), "l"(from + at) : "memory");
            }
            asm volatile("cp.async.commit_group;\ncp.async.wait_group 1;" ::: "memory");
        }
        asm volatile("cp.async.wait_group 0;" ::: "memory");
    });
}

// One copy at a time.
extern "C" __global__ void ldgsts_latency(Span *spans, const unsigned char *global, int rounds) {
    extern __shared__ __align__(128) unsigned char bytes[];
    unsigned to = shared_address(bytes) + threadIdx.x * 16;
    const unsigned char *from = global + threadIdx.x * 16;
    timed(spans, true, [&] {
#pragma unroll 1
        for (int round = 0; round < rounds; ++round)
#pragma unroll
            for (int i = 0; i < kWaits; ++i) {
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i * 512), "l"(from + i * 512)
                             : "memory");
                asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
            }
    });
}

// Six conditions, so that no branch can be told from the one before it.
struct Conditions {
    int taken[6];
};

// Branches that are all taken, which the compiler does not know: each jumps over stores, too many for a predicate.
extern "C" __global__ void branch(Span *spans, float *sink, int rounds, Conditions conditions) {
    extern __shared__ __align__(128) unsigned char bytes[];
    unsigned to = shared_address(bytes) + threadIdx.x * 4;
    timed(spans, true, [&] {
#pragma unroll 1
        for (int round = 0; round < rounds; ++round)
#pragma unroll
            for (int i = 0; i < kBranches; ++i)
                asm volatile("{\n.reg .pred jumps;\nsetp.ne.s32 jumps, %0, 0;\n@jumps bra.uni after;\n"
                             "st.volatile.shared.u32 [%1], %0;\nst.volatile.shared.u32 [%1+128], %0;\n"
                             "st.volatile.shared.u32 [%1+256], %0;\nst.volatile.shared.u32 [%1+384], %0;\n"
                             "st.volatile.shared.u32 [%1+512], %0;\nst.volatile.shared.u32 [%1+640], %0;\n"
                             "st.volatile.shared.u32 [%1+768], %0;\nst.volatile.shared.u32 [%1+896], %0;\n"
                             "after:\n}" ::"r"(conditions.taken[i % 6]),
                             "r"(to)
                             : "memory");
    });
    sink[threadIdx.x] = float(bytes[threadIdx.x]);
}

extern "C" __global__ void barrier(Span *spans, int rounds) {
    timed(spans, true, [&] {
#pragma unroll 1
        for (int round = 0; round < rounds; ++round)
#pragma unroll
            for (int i = 0; i < kBarriers; ++i) asm volatile("bar.sync 0;" ::: "memory");
    });
}

namespace {

void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "error: %s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
}

constexpr int kRounds = 200, kRepeats = 7;
// Time that the tensor cores of all multiprocessors run for the clock to settle, and the most rounds of it.
constexpr double kClockNanoseconds = 3e8;
constexpr int kLongestRun = 1 << 20;

template <typename T> T median(std::vector<T> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

struct Device {
    Span *spans;
    float *sink;
    unsigned char *global;
    int multiprocessors;

    // Runs `launch(rounds)` and returns the spans of its warps.
    template <typename Launch> std::vector<Span> run(int blocks, int threads, int rounds, Launch launch) const {
        std::vector<Span> found(blocks * threads / kWarp);
        launch(rounds);
        check(cudaGetLastError(), "a launch");
        check(cudaDeviceSynchronize(), "a micro-kernel");
        size_t size = found.size() * sizeof(Span);
        check(cudaMemcpy(found.data(), spans, size, cudaMemcpyDeviceToHost), "a copy to the host");
        return found;
    }

    // Cycles of one of the instructions that share a unit, `instructions` in all of a block's round: from the first
    // warp's start to the last one's end, the median over blocks and repeats.
    template <typename Launch> double cycles(int blocks, int threads, double instructions, Launch launch) const {
        std::vector<double> all;
        for (int repeat = 0; repeat < kRepeats; ++repeat) {
            std::vector<Span> found = run(blocks, threads, kRounds, launch);
            int warps = threads / kWarp;
            for (int block = 0; block < blocks; ++block) {
                int64_t start = INT64_MAX, end = INT64_MIN;
                for (int warp = 0; warp < warps; ++warp) {
                    const Span &span = found[block * warps + warp];
                    if (span.end == 0) continue;
                    start = std::min(start, span.start), end = std::max(end, span.end);
                }
                all.push_back(double(end - start) / (kRounds * instructions));
            }
        }
        return median(all);
    }
};

// "580.65.06" of the kernel's module; empty where it does not say.
std::string driver_version() {
    std::ifstream file("/proc/driver/nvidia/version");
    std::string word, line;
    std::getline(file, line);
    for (std::istringstream words(line); words >> word;)
        if (word[0] >= '0' && word[0] <= '9' && word.find('.') != std::string::npos) return word;
    return "";
}

// The GPU's name in lower case, words joined by dashes, as records have it.
std::string file_name(const std::string &gpu) {
    std::string name;
    for (unsigned char c : gpu) {
        if (std::isalnum(c))
            name += char(std::tolower(c));
        else if (!name.empty() && name.back() != '-')
            name += '-';
    }
    while (!name.empty() && name.back() == '-') name.pop_back();
    return name;
}

// UTC
std::string shown(std::time_t time, const char *format) {
    char text[64];
    std::strftime(text, sizeof text, format, std::gmtime(&time));
    return text;
}

std::string escaped(const std::string &text) {
    std::string to;
    for (char c : text) {
        if (c == '"' || c == '\\') to += '\\';
        to += c;
    }
    return '"' + to + '"';
}

// GHz of the multiprocessors while all of their tensor cores work: the last of runs that become longer.
double clock_ghz(const Device &device) {
    int blocks = device.multiprocessors, threads = 512;
    double ghz = 0.0;
    for (int rounds = 2000; rounds <= kLongestRun; rounds *= 2) {
        auto launch = [&](int rounds) { hmma<<<blocks, threads>>>(device.spans, device.sink, rounds); };
        std::vector<double> all;
        double longest = 0.0;
        for (const Span &span : device.run(blocks, threads, rounds, launch)) {
            double nanoseconds = double(span.ended - span.began);
            longest = std::max(longest, nanoseconds);
            all.push_back(double(span.end - span.start) / nanoseconds);
        }
        ghz = median(all);
        if (longest > kClockNanoseconds) break;
    }
    return ghz;
}

} // namespace

int main(int argc, char **argv) {
    std::string dir;
    if (argc == 3 && std::string(argv[1]) == "--record") {
        dir = argv[2];
    } else if (argc != 1) {
        std::fprintf(stderr, "usage: calibrate [--record DIR]\n");
        return 2;
    }
    int devices = 0;
    cudaError_t found = cudaGetDeviceCount(&devices);
    if (found != cudaSuccess || devices == 0) {
        std::fprintf(stderr, "no GPU or no driver: %s\n", cudaGetErrorString(found));
        return 3;
    }
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, 0), "the first GPU");
    int blocks = properties.multiProcessorCount, cuda = 0;
    check(cudaDriverGetVersion(&cuda), "the driver's version");

    Device device = {nullptr, nullptr, nullptr, blocks};
    size_t threads = size_t(blocks) * 1024, bytes = size_t(blocks) * kSharedBytes;
    check(cudaMalloc(&device.spans, threads / kWarp * sizeof(Span)), "memory");
    check(cudaMalloc(&device.sink, threads * sizeof(float)), "memory");
    check(cudaMalloc(&device.global, bytes), "memory");
    check(cudaMemset(device.global, 0, bytes), "memory");

    Span *spans = device.spans;
    float *sink = device.sink;
    const unsigned char *global = device.global;
    Conditions taken = {{1, 1, 1, 1, 1, 1}};
    // The clock first: it warms the card up, and the other figures are cycles of whatever the clock is.
    double ghz = clock_ghz(device);
    if (!std::isfinite(ghz) || ghz <= 0.0) {
        std::fprintf(stderr, "error: the clock came out as %g GHz: the GPU's timer of nanoseconds does not run\n", ghz);
        return 1;
    }
    const int warps = 16, all = warps * kWarp;
    std::vector<std::pair<const char *, double>> cycles;
    cycles.emplace_back("hmma", device.cycles(1, all, kMatrices * (warps / kSchedulers),
                                              [&](int rounds) { hmma<<<1, all>>>(spans, sink, rounds); }));
    cycles.emplace_back("lds_32", device.cycles(1, all, kWords * warps, [&](int rounds) {
        lds_32<<<1, all, kSharedBytes>>>(spans, sink, rounds, 1);
    }));
    cycles.emplace_back("lds_32_one_scheduler",
                        device.cycles(1, all, kWords * (warps / kSchedulers), [&](int rounds) {
                            lds_32<<<1, all, kSharedBytes>>>(spans, sink, rounds, kSchedulers);
                        }));
    cycles.emplace_back("lds_128", device.cycles(1, all, kVectors * warps, [&](int rounds) {
        lds_128<<<1, all, kSharedBytes>>>(spans, sink, rounds);
    }));
    cycles.emplace_back("lds_latency", device.cycles(1, kWarp, kChain, [&](int rounds) {
        lds_latency<<<1, kWarp, kSharedBytes>>>(spans, sink, rounds);
    }));
    cycles.emplace_back("ldsm", device.cycles(1, all, kVectors * warps, [&](int rounds) {
        ldsm<<<1, all, kSharedBytes>>>(spans, sink, rounds);
    }));
    cycles.emplace_back("ldsm_latency", device.cycles(1, kWarp, kChain, [&](int rounds) {
        ldsm_latency<<<1, kWarp, kSharedBytes>>>(spans, sink, rounds);
    }));
    const int copying = kCopyThreads / kWarp;
    cycles.emplace_back("ldgsts", device.cycles(blocks, kCopyThreads, kCopies * copying, [&](int rounds) {
        ldgsts<<<blocks, kCopyThreads, kSharedBytes>>>(spans, global, rounds);
    }));
    cycles.emplace_back("ldgsts_latency", device.cycles(1, kWarp, kWaits, [&](int rounds) {
        ldgsts_latency<<<1, kWarp, kSharedBytes>>>(spans, global, rounds);
    }));
    // The loop's own branch jumps too.
    cycles.emplace_back("branch", device.cycles(1, kWarp, kBranches + 1, [&](int rounds) {
        branch<<<1, kWarp, kSharedBytes>>>(spans, sink, rounds, taken);
    }));
    cycles.emplace_back("barrier", device.cycles(1, kCopyThreads, kBarriers,
                                                 [&](int rounds) { barrier<<<1, kCopyThreads>>>(spans, rounds); }));

    for (const auto &[name, figure] : cycles) {
        if (std::isfinite(figure) && figure > 0.0) continue;
        std::fprintf(stderr, "error: %s took %g cycles: the clock of the multiprocessors does not run\n", name, figure);
        return 1;
    }
    std::ostringstream text;
    std::time_t time = std::time(nullptr);
    std::string gpu = properties.name, driver = driver_version();
    text.precision(5);
    text << "{\n  \"date\": " << escaped(shown(time, "%Y-%m-%d %H:%M")) << ",\n  \"gpu\": " << escaped(gpu)
         << ",\n  \"compute_capability\": \"" << properties.major << '.' << properties.minor
         << "\",\n  \"multiprocessors\": " << blocks << ",\n  \"clock_ghz\": " << ghz
         << ",\n  \"driver\": " << (driver.empty() ? "null" : escaped(driver)) << ",\n  \"cuda\": \"" << cuda / 1000
         << '.' << cuda % 1000 / 10 << "\",\n  \"nvcc\": \"" << __CUDACC_VER_MAJOR__ << '.' << __CUDACC_VER_MINOR__
         << '.' << __CUDACC_VER_BUILD__ << "\",\n  \"cycles\": {";
    for (size_t i = 0; i < cycles.size(); ++i) {
        std::printf("%-22s %8.2f cycles\n", cycles[i].first, cycles[i].second);
        text << (i == 0 ? "\n" : ",\n") << "    \"" << cycles[i].first << "\": " << cycles[i].second;
    }
    text << "\n  }\n}\n";
    std::printf("%s: %zu figures at %.2f GHz\n", gpu.c_str(), cycles.size(), ghz);
    if (dir.empty()) return 0;
    std::error_code error;
    std::filesystem::create_directories(dir, error);
    std::string path = dir + '/' + shown(time, "%Y-%m-%d-%H%M") + '-' + file_name(gpu) + ".json";
    std::ofstream file(path);
    file << text.str();
    file.close();
    if (!file) {
        std::fprintf(stderr, "error: %s cannot be written\n", path.c_str());
        return 1;
    }
    std::printf("written: %s\n", path.c_str());
    return 0;
}
