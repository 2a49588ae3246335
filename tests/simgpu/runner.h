// Running a kernel: blocks are shared over host threads, and the threads of a block are fibers.
#pragma once
#include <atomic>

#include "simt.h"

namespace simt {

// Results of the driver (`CUresult`) for what a kernel can do wrong.
constexpr int CUDA_INVALID_IMAGE = 200, CUDA_ILLEGAL_ADDRESS = 700, CUDA_ILLEGAL_INSTRUCTION = 715,
              CUDA_MISALIGNED_ADDRESS = 716, CUDA_LAUNCH_FAILED = 719;

constexpr unsigned MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32;
constexpr std::size_t HOST_PAGE = 4096;
// Bytes of one thread's stack, the lowest page of which is a guard.
constexpr std::size_t STACK = 12 * HOST_PAGE;
constexpr std::size_t MAX_SHARED = 48 << 10;  // bytes of static shared memory, on every card

// What the fibers did, in warp operations and barriers of a whole block.
struct Counters {
    u64 shuffles = 0, votes = 0, products = 0, warp_barriers = 0, block_barriers = 0;
    void add(const Counters &other);
};

// The first thing that went wrong in a launch.
struct Fault {
    int code = 0;  // a CUresult, 0 for none
    char text[600] = {};
};

struct Launch {
    const Kernel *kernel = nullptr;
    void *const *params = nullptr;
    Dim grid{}, block{};
    u64 blocks = 0;
    u64 seed = 0;  // 0: lanes, warps and blocks in order
    // Results.
    Counters counters;
    std::size_t shared_bytes = 0;
    Fault fault;
    // Shared by the workers.
    std::atomic<u64> next{0};
    std::atomic<bool> stopped{false};
};

enum Operation : u8 { SHUFFLE, VOTE, PRODUCT, WARP_BARRIER };

struct Warp {
    // Masks of lanes. A lane of `exists` is in one of the four others.
    u32 exists, ready, arrived, at_block, ended;
    // The operation that lanes have arrived at.
    Operation operation;
    Product product;
    int line;
    unsigned parity;  // which of the buffers that operation uses
    u32 votes[2];
    u64 slots[2][32];
    void *d[32];
    const unsigned *a[32], *b[32];
};

struct SharedRoom {
    const SharedArray *array;
    unsigned offset;
};

// One host thread's room for a block.
struct Worker {
    void *home = nullptr;  // the stack that runs blocks
    void *stack_pointers[MAX_THREADS] = {};
    Warp warps[MAX_WARPS];
    unsigned threads = 0, warp_count = 0;
    u32 ready_warps = 0;
    int block_line = 0;         // of the barrier that threads wait at, 0 for none
    unsigned block_waiter = 0;  // the first thread that came there
    Launch *launch = nullptr;
    bool in_kernel = false;
    u64 random = 0;
    char *stacks = nullptr;
    unsigned guarded = 0;  // threads whose stacks have their guard
    alignas(16) char arena[MAX_SHARED];
    std::size_t arena_used = 0;
    SharedRoom rooms[64];
    unsigned room_count = 0;
    Counters counters;
    u64 block_index = 0;

    char *stack_bottom(unsigned thread) { return stacks + thread * STACK; }
    // Not all at the same place of a page: they would share a few sets of the cache.
    char *stack_top(unsigned thread) { return stacks + (thread + 1) * STACK - thread % 24 * 320; }
};
extern __thread Worker *worker __attribute__((tls_model("initial-exec"), visibility("hidden")));

void run_block(Worker &w, u64 index);
// Runs all blocks. `launch.fault` says what went wrong, if anything.
void run(Launch &launch, unsigned host_threads);

// Reports a fault of the running thread and ends the block. Never returns.
[[noreturn]] void fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
// The same, but the block goes on: for findings.
void note(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

const Kernel *find_kernel(const char *name);

}  // namespace simt
