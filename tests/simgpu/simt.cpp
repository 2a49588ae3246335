// The fibers of one block: warp operations, barriers, shared arrays, faults.
//
// A lane that waits switches straight to the next lane that can run: first within its warp, then in another one.
// So a warp operation costs one switch a lane, and the lane that completes it goes on without any.
#include "simt.h"

#include <cstdarg>
#include <cstdio>

#include "fiber.h"
#include "mma.h"
#include "runner.h"
#ifdef SIMGPU_CHECKS
#include "checks.h"
#endif

namespace simt {

__thread Here here;
__thread Worker *worker;

namespace {

constexpr u32 FULL = 0xffffffffu;

const char *const NAMES[] = {"a shuffle", "a vote", "a matrix product", "sync_warp"};

void set_fault(int code, const char *format, va_list list) {
    Launch &launch = *worker->launch;
    char text[sizeof launch.fault.text];
    const int head =
        std::snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u), thread %u: ", launch.kernel->name,
                      here.block.x, here.block.y, here.block.z, here.thread.x);
    std::vsnprintf(text + head, sizeof text - std::size_t(head), format, list);
    static std::atomic_flag lock = ATOMIC_FLAG_INIT;
    while (lock.test_and_set(std::memory_order_acquire)) {
    }
    if (launch.fault.code == 0) {
        launch.fault.code = code;
        std::memcpy(launch.fault.text, text, sizeof text);
    }
    lock.clear(std::memory_order_release);
    std::fprintf(stderr, "simulated GPU: %s\n", text);
}

u64 next_random(u64 &state) {
    state += 0x9e3779b97f4a7c15ull;  // SplitMix64
    u64 z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// One of the set bits: the lowest, or a random one if the launch has a seed.
unsigned pick(Worker &w, u32 mask) {
    if (w.launch->seed == 0) return unsigned(__builtin_ctz(mask));
    const unsigned turn = unsigned(next_random(w.random)) & 31;
    const u32 turned = mask >> turn | mask << ((32 - turn) & 31);
    return (unsigned(__builtin_ctz(turned)) + turn) & 31;
}

[[noreturn]] void leave_block() {
    worker->launch->stopped.store(true, std::memory_order_relaxed);
    void *never;
    simt_switch(&never, worker->home);
    __builtin_unreachable();
}

// Lanes wait for an operation that the rest of their warp cannot reach.
[[noreturn]] void fail_incomplete(Worker &w, unsigned index) {
    Warp &warp = w.warps[index];
    const unsigned waits = unsigned(__builtin_ctz(warp.arrived));
    here.thread.x = index * 32 + waits;
    const u32 missing = ~warp.arrived;
    const unsigned lane = unsigned(__builtin_ctz(missing));
    const u32 bit = 1u << lane;
    const char *where = warp.ended & bit      ? "has ended"
                        : warp.at_block & bit ? "waits at sync_block"
                                              : "does not exist";
    fail(CUDA_ILLEGAL_INSTRUCTION, "%s at line %d needs the whole warp, but thread %u %s", NAMES[warp.operation],
         warp.line, index * 32 + lane, where);
}

// Chooses who goes on when the running lane cannot. Returns its thread index, or -1 if all have ended.
int next_thread(Worker &w) {
    unsigned index = here.thread.x / 32;
    if (w.warps[index].ready == 0) {
        if (w.warps[index].arrived != 0) fail_incomplete(w, index);
        w.ready_warps &= ~(1u << index);
        if (w.ready_warps == 0) {
            for (unsigned i = 0; i < w.warp_count; i++) {
                Warp &warp = w.warps[i];
                warp.ready = warp.at_block;
                warp.at_block = 0;
                if (warp.ready != 0) w.ready_warps |= 1u << i;
            }
            if (w.ready_warps == 0) return -1;
            w.block_line = 0;
            w.counters.block_barriers++;
#ifdef SIMGPU_CHECKS
            checks::pass_block_barrier();
#endif
        }
        index = pick(w, w.ready_warps);
    }
    return int(index * 32 + pick(w, w.warps[index].ready));
}

void give_way(Worker &w) {
    const unsigned self = here.thread.x;
    const unsigned next = unsigned(next_thread(w));
    if (next == self) return;
    here.thread.x = next;
    simt_switch(&w.stack_pointers[self], w.stack_pointers[next]);
}

// The body of every fiber.
void run_thread() {
    worker->launch->kernel->call(worker->launch->params);
    Worker &w = *worker;
    Warp &warp = w.warps[here.thread.x / 32];
    const u32 bit = 1u << (here.thread.x & 31);
    warp.ready &= ~bit;
    warp.ended |= bit;
    const int next = next_thread(w);
    void *never;
    if (next < 0) simt_switch(&never, w.home);
    here.thread.x = unsigned(next);
    simt_switch(&never, w.stack_pointers[next]);
    __builtin_unreachable();
}

// The running lane comes to a warp operation. Returns true in the lane that came last, which completes it.
bool arrive(Warp &warp, Operation operation, int line) {
    const u32 bit = 1u << (here.thread.x & 31);
    if (warp.arrived == 0) {
        warp.operation = operation;
        warp.line = line;
    } else if (warp.operation != operation || warp.line != line) {
        const unsigned other = (here.thread.x & ~31u) + unsigned(__builtin_ctz(warp.arrived));
        fail(CUDA_ILLEGAL_INSTRUCTION, "%s at line %d, while thread %u of the same warp is at %s at line %d",
             NAMES[operation], line, other, NAMES[warp.operation], warp.line);
    }
    warp.arrived |= bit;
    warp.ready &= ~bit;
    if (warp.arrived != FULL) return false;
    warp.arrived = 0;
    warp.ready = FULL;
    warp.parity ^= 1;
#ifdef SIMGPU_CHECKS
    checks::pass_warp_operation(here.thread.x / 32);
#endif
    return true;
}

Warp &current_warp(Worker &w) { return w.warps[here.thread.x / 32]; }

}  // namespace

void note(int code, const char *format, ...) {
    va_list list;
    va_start(list, format);
    set_fault(code, format, list);
    va_end(list);
}

void fail(int code, const char *format, ...) {
    va_list list;
    va_start(list, format);
    set_fault(code, format, list);
    va_end(list);
    leave_block();
}

void wait_block(int line) {
    Worker &w = *worker;
    if (w.block_line == 0) {
        w.block_line = line;
        w.block_waiter = here.thread.x;
    } else if (w.block_line != line) {
        fail(CUDA_ILLEGAL_INSTRUCTION, "sync_block at line %d, while thread %u waits at the one at line %d", line,
             w.block_waiter, w.block_line);
    }
    Warp &warp = current_warp(w);
    const u32 bit = 1u << (here.thread.x & 31);
    warp.ready &= ~bit;
    warp.at_block |= bit;
    give_way(w);
}

void wait_warp(int line) {
    Worker &w = *worker;
    Warp &warp = current_warp(w);
    if (!arrive(warp, WARP_BARRIER, line)) return give_way(w);
    w.counters.warp_barriers++;
#ifdef SIMGPU_CHECKS
    checks::pass_warp_barrier(here.thread.x / 32);
#endif
}

// Lanes hand over in one of two buffers by turns. All have read the one when the next operation but one starts,
// since the operation between needed them all.
const u64 *gather(u64 value, int line) {
    Worker &w = *worker;
    Warp &warp = current_warp(w);
    u64 *slots = warp.slots[warp.parity];
    slots[here.thread.x & 31] = value;
    if (arrive(warp, SHUFFLE, line)) {
        w.counters.shuffles++;
    } else {
        give_way(w);
    }
    return slots;
}

unsigned vote(bool value, int line) {
    Worker &w = *worker;
    Warp &warp = current_warp(w);
    u32 &votes = warp.votes[warp.parity];
    if (warp.arrived == 0) votes = 0;
    votes |= u32(value) << (here.thread.x & 31);
    if (arrive(warp, VOTE, line)) {
        w.counters.votes++;
    } else {
        give_way(w);
    }
    return votes;
}

void multiply(Product kind, void *d, const unsigned *a, const unsigned *b, int line) {
    Worker &w = *worker;
    Warp &warp = current_warp(w);
    const unsigned lane = here.thread.x & 31;
    if (warp.arrived == 0) {
        warp.product = kind;
    } else if (warp.product != kind) {
        fail(CUDA_ILLEGAL_INSTRUCTION, "a matrix product at line %d of another kind than the rest of its warp",
             line);
    }
    warp.d[lane] = d;
    warp.a[lane] = a;
    warp.b[lane] = b;
    if (!arrive(warp, PRODUCT, line)) return give_way(w);
    w.counters.products++;
    multiply_warp(kind, warp.d, warp.a, warp.b);
}

void *shared(const SharedArray *array) {
    Worker &w = *worker;
    for (unsigned i = 0; i < w.room_count; i++) {
        if (w.rooms[i].array == array) return w.arena + w.rooms[i].offset;
    }
    const std::size_t offset = w.arena_used, bytes = (array->bytes + 15) & ~std::size_t(15);
    if (offset + bytes > MAX_SHARED || w.room_count == sizeof w.rooms / sizeof w.rooms[0]) {
        fail(CUDA_INVALID_IMAGE, "the shared array %s takes %zu bytes after %zu, over the limit of %zu",
             array->name, array->bytes, offset, MAX_SHARED);
    }
    w.rooms[w.room_count++] = {array, unsigned(offset)};
    w.arena_used = offset + bytes;
    std::memset(w.arena + offset, 0xA5, bytes);
    return w.arena + offset;
}

void run_block(Worker &w, u64 index) {
    Launch &launch = *w.launch;
    here.grid_dim = launch.grid;
    here.block_dim = launch.block;
    here.block.x = unsigned(index % launch.grid.x);
    here.block.y = unsigned(index / launch.grid.x % launch.grid.y);
    here.block.z = unsigned(index / launch.grid.x / launch.grid.y);
    w.block_index = index;
    w.random = launch.seed + index * 0xd1342543de82ef95ull;
    w.threads = launch.block.x;
    w.warp_count = (w.threads + 31) / 32;
    w.ready_warps = w.warp_count == 32 ? FULL : (1u << w.warp_count) - 1;
    w.block_line = 0;
    for (unsigned i = 0; i < w.warp_count; i++) {
        Warp &warp = w.warps[i];
        const unsigned lanes = w.threads - 32 * i;
        warp.exists = warp.ready = lanes >= 32 ? FULL : (1u << lanes) - 1;
        warp.arrived = warp.at_block = warp.ended = 0;
        warp.parity = 0;
    }
    for (unsigned i = 0; i < w.threads; i++)
        w.stack_pointers[i] = prepare_fiber(w.stack_bottom(i), w.stack_top(i), run_thread);
    std::memset(w.arena, 0xA5, w.arena_used);
#ifdef SIMGPU_CHECKS
    checks::start_block();
#endif
    const unsigned index_of_warp = pick(w, w.ready_warps);
    const unsigned first = index_of_warp * 32 + pick(w, w.warps[index_of_warp].ready);
    here.thread.x = first;
    w.in_kernel = true;
    simt_switch(&w.home, w.stack_pointers[first]);
    w.in_kernel = false;
#ifdef SIMGPU_CHECKS
    checks::end_block();
#endif
}

}  // namespace simt
