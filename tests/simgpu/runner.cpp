// Sharing the blocks of a launch over host threads, and turning a kernel's signals into faults.
#include "runner.h"

#include <signal.h>
#include <sys/mman.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#include "fiber.h"

namespace simt {
namespace {

Kernel *kernels;  // all that were registered

// The workers are made once and never destroyed: at exit some may still wait.
struct Pool {
    std::mutex mutex;
    std::condition_variable wake, done;
    std::vector<Worker *> workers;  // the first is borrowed by the thread that launches
    u64 generation = 0;
    unsigned asked = 0, busy = 0;
    Launch *launch = nullptr;
};

struct sigaction previous[NSIG];

void on_signal(int number, siginfo_t *info, void *context) {
    if (worker != nullptr && worker->in_kernel) {
        // The fault report runs on the signal's stack, and leaves it for good.
        if (number == SIGFPE) fail(CUDA_LAUNCH_FAILED, "an integer division by zero, or one that overflows");
        const u64 in_stacks = reinterpret_cast<u64>(info->si_addr) - reinterpret_cast<u64>(worker->stacks);
        if (in_stacks < MAX_THREADS * STACK) fail(CUDA_ILLEGAL_ADDRESS, "used more than %zu bytes of stack", STACK);
        fail(CUDA_ILLEGAL_ADDRESS, "an access at %p, which is no memory of the device", info->si_addr);
    }
    const struct sigaction &old = previous[number];
    if (old.sa_flags & SA_SIGINFO) {
        old.sa_sigaction(number, info, context);
    } else if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) {
        old.sa_handler(number);
    } else {
        signal(number, SIG_DFL);  // the instruction runs again, and ends the process
    }
}

void catch_signals() {
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int number : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(number, &action, &previous[number]);
}

// A stack overflow cannot report itself on the stack that overflowed.
void need_signal_stack() {
    stack_t now{};
    sigaltstack(nullptr, &now);
    if (!(now.ss_flags & SS_DISABLE) && now.ss_size >= (16 << 10)) return;
    stack_t stack{};
    stack.ss_size = 64 << 10;
    stack.ss_sp = std::malloc(stack.ss_size);
    sigaltstack(&stack, nullptr);
}

Worker *make_worker() {
    Worker *w = new Worker;
    void *room = mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        std::fprintf(stderr, "simulated GPU: no memory for the threads' stacks\n");
        std::abort();
    }
    w->stacks = static_cast<char *>(room);
    return w;
}

// Block number `index` of the launch's order. A seed makes it a permutation: i · step + start, modulo the blocks.
struct Order {
    u64 blocks, step = 1, start = 0;
    explicit Order(const Launch &launch) : blocks(launch.blocks) {
        if (launch.seed == 0 || blocks < 2) return;
        start = launch.seed % blocks;
        for (step = (launch.seed >> 20) % blocks | 1; std::gcd(step, blocks) != 1; step += 2) {
        }
    }
    u64 operator[](u64 index) const { return u64((static_cast<unsigned __int128>(index) * step + start) % blocks); }
};

void work(Worker &w, Launch &launch) {
    worker = &w;
    w.launch = &launch;
    w.room_count = 0;
    w.arena_used = 0;
    w.counters = {};
    for (; w.guarded < launch.block.x; w.guarded++) mprotect(w.stack_bottom(w.guarded), HOST_PAGE, PROT_NONE);
    const Order order(launch);
    while (!launch.stopped.load(std::memory_order_relaxed)) {
        const u64 index = launch.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= launch.blocks) break;
        run_block(w, order[index]);
    }
    worker = nullptr;
}

void serve(Pool *pool, unsigned number) {
    need_signal_stack();
    std::unique_lock<std::mutex> lock(pool->mutex);
    u64 seen = 0;
    for (;;) {
        pool->wake.wait(lock, [&] { return pool->generation != seen; });
        seen = pool->generation;
        if (number >= pool->asked) continue;
        Launch *launch = pool->launch;
        Worker *own = pool->workers[number];
        lock.unlock();
        work(*own, *launch);
        lock.lock();
        if (--pool->busy == 0) pool->done.notify_one();
    }
}

void collect(Launch &launch, const Worker &w) {
    launch.counters.add(w.counters);
    if (w.arena_used > launch.shared_bytes) launch.shared_bytes = w.arena_used;
}

}  // namespace

Kernel::Kernel(const char *name, void (*call)(void *const *), const unsigned *sizes, unsigned count)
    : name(name), call(call), sizes(sizes), count(count), next(kernels) {
    if (find_kernel(name) != nullptr) std::fprintf(stderr, "simulated GPU: two kernels are called %s\n", name);
    kernels = this;
}

const Kernel *find_kernel(const char *name) {
    for (const Kernel *kernel = kernels; kernel != nullptr; kernel = kernel->next) {
        if (std::strcmp(kernel->name, name) == 0) return kernel;
    }
    return nullptr;
}

void Counters::add(const Counters &other) {
    shuffles += other.shuffles;
    votes += other.votes;
    products += other.products;
    warp_barriers += other.warp_barriers;
    block_barriers += other.block_barriers;
}

void run(Launch &launch, unsigned host_threads) {
    static Pool *const pool = [] {
        catch_signals();
        Pool *made = new Pool;
        made->workers.push_back(make_worker());
        return made;
    }();
    need_signal_stack();
    const unsigned wanted = unsigned(launch.blocks < host_threads ? launch.blocks : host_threads);
    {
        const std::lock_guard<std::mutex> lock(pool->mutex);
        while (pool->workers.size() < wanted) {
            pool->workers.push_back(make_worker());
            std::thread(serve, pool, unsigned(pool->workers.size() - 1)).detach();
        }
        if (wanted > 1) {
            pool->launch = &launch;
            pool->asked = wanted;
            pool->busy = wanted - 1;
            pool->generation++;
            pool->wake.notify_all();
        }
    }
    work(*pool->workers[0], launch);
    std::unique_lock<std::mutex> lock(pool->mutex);
    pool->done.wait(lock, [&] { return pool->busy == 0; });
    for (unsigned i = 0; i < wanted; i++) collect(launch, *pool->workers[i]);
}

}  // namespace simt
