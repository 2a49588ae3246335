// The simulator's own tests: `bash scripts/simgpu.sh --selftest`. Exit code 1 if any expectation fails.
#include "selftest.h"

#include <algorithm>

#ifdef SIMGPU_CHECKS
const bool CHECKS = true;
#else
const bool CHECKS = false;
#endif

namespace {

int failures, expectations;

const char *const KERNELS[] = {
    "fill_index",
    "axpy",
    "block_sum",
    "warp_operations",
    "product_bytes",
    "product_halves",
    "many_shuffles",
    "many_products",
    "barrier_in_branch",
    "shuffle_after_end",
    "shuffle_against_barrier",
    "wild_write",
    "write_behind",
    "too_much_shared",
    "shared_race",
    "shared_no_race",
    "block_race",
    "uninitialised_shared",
    "uninitialised_device",
    "misaligned",
    "bank_conflicts",
    "vector_reads",
    "repeated_reads",
    "write_after_read",
    "deep_stack",
    "divide",
    "order_of_lanes",
    "race_across_warps",
    "vector_conflicts",
};

}  // namespace

void expect(bool holds, const char *file, int line, const std::string &what) {
    expectations++;
    if (holds) return;
    failures++;
    std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what.c_str());
}

std::string ptx(const char *version, const char *target) {
    std::string text = std::string(".version ") + version + "\n.target " + target + "\n.address_size 64\n";
    for (const char *name : KERNELS) text += std::string(".visible .entry ") + name + "()\n{ ret; }\n";
    return text;
}

Session::Session(std::initializer_list<std::pair<const char *, const char *>> variables) {
    for (const auto &[name, value] : variables) {
        setenv(name, value, 1);
        set_.push_back(name);
    }
    simgpu_reset();
    void *context;
    EXPECT_EQUAL(cuInit(0), 0);
    EXPECT_EQUAL(cuDevicePrimaryCtxRetain(&context, 0), 0);
    EXPECT_EQUAL(cuCtxSetCurrent(context), 0);
    EXPECT_EQUAL(cuModuleLoadData(&module, ptx().c_str()), 0);
}

Session::~Session() {
    for (const std::string &name : set_) unsetenv(name.c_str());
}

u64 Session::allocate(std::size_t bytes) {
    u64 address = 0;
    EXPECT_EQUAL(cuMemAlloc_v2(&address, bytes), 0);
    return address;
}

void *Session::function(const std::string &name) {
    void *function = nullptr;
    EXPECT_EQUAL(cuModuleGetFunction(&function, module, name.c_str()), 0);
    return function;
}

int main() {
    test_kernels();
    test_mistakes();
    test_driver();
    test_streams();
    test_management();
    if (CHECKS) test_checks();
    std::fprintf(stderr, "simulated GPU%s: %d expectations, %d failed\n", CHECKS ? " with checks" : "",
                 expectations, failures);
    return failures == 0 ? 0 : 1;
}
