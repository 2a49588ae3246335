// Kernels that are right, against plain computations; and mistakes that every build must report.
#include <algorithm>
#include <cmath>

#include "selftest.h"

namespace {

unsigned random_state = 7;
unsigned next_random() {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

std::vector<unsigned char> random_bytes(std::size_t count) {
    std::vector<unsigned char> bytes(count);
    for (unsigned char &byte : bytes) byte = static_cast<unsigned char>(next_random());
    return bytes;
}

void test_warp_operations() {
    for (const char *seed : {"0", "1", "99"}) {
        Session s{{"SIMGPU_SEED", seed}};
        const u64 out = s.allocate(32 * 5 * 4);
        EXPECT_EQUAL(s.run("warp_operations", 1, 32, out), 0);
        const std::vector<int> got = s.download<int>(out, 32 * 5);
        for (int lane = 0; lane < 32; lane++) {
            EXPECT_EQUAL(got[lane * 5], 21);
            EXPECT_EQUAL(got[lane * 5 + 1], lane + 5 < 32 ? lane + 5 : lane);
            EXPECT_EQUAL(unsigned(got[lane * 5 + 2]), 0x49249249u);
            EXPECT_EQUAL(got[lane * 5 + 3], 1);
            EXPECT_EQUAL(got[lane * 5 + 4], lane ^ 1);
        }
    }
}

void test_byte_products() {
    for (int kind = 0; kind < 4; kind++) {
        Session s;
        const std::vector<unsigned char> a = random_bytes(16 * 32), b = random_bytes(8 * 32);
        const u64 out = s.allocate(16 * 8 * 4);
        EXPECT_EQUAL(s.run("product_bytes", 1, 32, s.upload(a), s.upload(b), out, kind), 0);
        const std::vector<int> got = s.download<int>(out, 16 * 8);
        const bool a_signed = kind == 1 || kind == 2, b_signed = kind == 0 || kind == 1;
        for (int row = 0; row < 16; row++) {
            for (int column = 0; column < 8; column++) {
                int sum = 1 + 2 * (row / 8) + column % 2;
                for (int k = 0; k < 32; k++) {
                    const int x = a[row * 32 + k], y = b[column * 32 + k];
                    sum += (a_signed ? std::int8_t(x) : x) * (b_signed ? std::int8_t(y) : y);
                }
                EXPECT_EQUAL(got[row * 8 + column], sum);
            }
        }
    }
}

// Small integers, which both formats hold exactly: bf16 is the upper half of a float.
unsigned short half_of(int value) {
    if (value == 0) return 0;
    const int magnitude = value < 0 ? -value : value, exponent = int(std::log2(magnitude));
    return static_cast<unsigned short>((value < 0 ? 0x8000 : 0) | (exponent + 15) << 10 |
                                       ((magnitude << 10 >> exponent) & 1023));
}
unsigned short bfloat_of(int value) {
    const float number = float(value);
    unsigned bits;
    std::memcpy(&bits, &number, 4);
    return static_cast<unsigned short>(bits >> 16);
}

void test_half_products() {
    for (int kind = 0; kind < 2; kind++) {
        Session s;
        std::vector<int> a(16 * 16), b(8 * 16);
        for (int &value : a) value = int(next_random() % 33) - 16;
        for (int &value : b) value = int(next_random() % 33) - 16;
        const auto encode = [&](const std::vector<int> &values) {
            std::vector<unsigned short> coded;
            for (int value : values) coded.push_back(kind == 0 ? half_of(value) : bfloat_of(value));
            return s.upload(coded);
        };
        const u64 out = s.allocate(16 * 8 * 4);
        EXPECT_EQUAL(s.run("product_halves", 1, 32, encode(a), encode(b), out, kind), 0);
        const std::vector<float> got = s.download<float>(out, 16 * 8);
        for (int row = 0; row < 16; row++) {
            for (int column = 0; column < 8; column++) {
                int sum = 0;
                for (int k = 0; k < 16; k++) sum += a[row * 16 + k] * b[column * 16 + k];
                EXPECT_EQUAL(got[row * 8 + column], float(sum));
            }
        }
    }
}

void test_blocks() {
    for (const char *seed : {"0", "5"}) {
        for (const char *threads : {"1", "3"}) {
            Session s{{"SIMGPU_SEED", seed}, {"SIMGPU_THREADS", threads}};
            std::vector<int> x(7 * 96);
            for (std::size_t i = 0; i < x.size(); i++) x[i] = int(i * i % 1000);
            const u64 out = s.allocate(7 * 4);
            EXPECT_EQUAL(s.run("block_sum", 7, 96, s.upload(x), out), 0);
            const std::vector<int> got = s.download<int>(out, 7);
            for (int block = 0; block < 7; block++) {
                int sum = 0;
                for (int i = 0; i < 96; i++) sum += x[block * 96 + i];
                EXPECT_EQUAL(got[block], sum);
            }
            EXPECT_EQUAL(simgpu_count("block_sum"), 1u);
            EXPECT_EQUAL(simgpu_count("block_sum.blocks"), 7u);
            EXPECT_EQUAL(simgpu_count("block_sum.shuffles"), 7u * 3 * 5);
            EXPECT_EQUAL(simgpu_count("block_sum.block_barriers"), 7u);
            EXPECT_EQUAL(simgpu_count("block_sum.shared_bytes"), 128u);
        }
    }
}

// A seed changes who comes first, so that a result that depends on it shows.
void test_seed_changes_order() {
    std::vector<std::vector<int>> orders;
    for (const char *seed : {"0", "1", "2"}) {
        Session s{{"SIMGPU_SEED", seed}};
        const u64 out = s.upload(std::vector<int>(33, 0));
        EXPECT_EQUAL(s.start(nullptr, "order_of_lanes", 1, 32, out), 0);
        if (!CHECKS) orders.push_back(s.download<int>(out, 33));
    }
    if (CHECKS) return;  // there it is reported as a race
    for (int lane = 0; lane < 32; lane++) EXPECT_EQUAL(orders[0][1 + lane], lane);
    EXPECT(orders[0] != orders[1] && orders[1] != orders[2]);
}

void expect_mistake(const char *kernel, unsigned threads, int code) {
    Session s;
    const u64 out = s.allocate(4096);
    EXPECT_EQUAL(s.run(kernel, 1, threads, out), code);
    EXPECT_EQUAL(simgpu_count("findings"), 1u);
    // The context is lost, and a new one works.
    u64 other;
    EXPECT_EQUAL(cuMemAlloc_v2(&other, 16), code);
    EXPECT_EQUAL(cuDevicePrimaryCtxRelease_v2(0), 0);
    void *context;
    EXPECT_EQUAL(cuDevicePrimaryCtxRetain(&context, 0), 0);
    EXPECT_EQUAL(cuMemAlloc_v2(&other, 16), 0);
}

}  // namespace

void test_kernels() {
    test_warp_operations();
    test_byte_products();
    test_half_products();
    test_blocks();
    test_seed_changes_order();
}

void test_mistakes() {
    expect_mistake("barrier_in_branch", 64, 715);
    expect_mistake("shuffle_after_end", 32, 715);
    expect_mistake("shuffle_after_end", 16, 715);  // no whole warp
    expect_mistake("shuffle_against_barrier", 64, 715);
    expect_mistake("wild_write", 32, 700);
    expect_mistake("too_much_shared", 1, 200);
    expect_mistake("deep_stack", 64, 700);
    expect_mistake("divide", 32, 719);
    {
        Session s;
        const u64 out = s.allocate(1000);
        EXPECT_EQUAL(s.run("write_behind", 1, 1, out, 1000), 700);
    }
    {
        Session s;
        const u64 out = s.allocate(1000);
        EXPECT_EQUAL(s.run("write_behind", 1, 1, out, 999), 0);
    }
}
