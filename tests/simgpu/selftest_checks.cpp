// What only the instrumented build reports and counts.
#include "selftest.h"

namespace {

constexpr int FAILED = 719;

void test_races() {
    for (const char *seed : {"0", "3", "4"}) {
        {
            Session s{{"SIMGPU_SEED", seed}};
            EXPECT_EQUAL(s.run("shared_race", 1, 64, s.allocate(256)), FAILED);
        }
        {
            Session s{{"SIMGPU_SEED", seed}};
            EXPECT_EQUAL(s.run("race_across_warps", 1, 64, s.allocate(256)), FAILED);
        }
        {
            Session s{{"SIMGPU_SEED", seed}};
            const u64 out = s.allocate(256);
            EXPECT_EQUAL(s.run("shared_no_race", 3, 64, out), FAILED);  // its blocks write the same cells of `out`
        }
        {
            Session s{{"SIMGPU_SEED", seed}};
            const u64 out = s.allocate(256);
            for (int i = 0; i < 3; i++) EXPECT_EQUAL(s.run("shared_no_race", 1, 64, out), 0);
            EXPECT_EQUAL(simgpu_count("findings"), 0u);
        }
        {
            Session s{{"SIMGPU_SEED", seed}};
            EXPECT_EQUAL(s.run("write_after_read", 1, 64, s.upload(std::vector<int>(64, 1)), 0), FAILED);
        }
        {
            Session s{{"SIMGPU_SEED", seed}};
            EXPECT_EQUAL(s.run("write_after_read", 1, 64, s.upload(std::vector<int>(64, 1)), 1), 0);
        }
        {
            Session s{{"SIMGPU_SEED", seed}};
            EXPECT_EQUAL(s.run("block_race", 2, 32, s.allocate(128)), FAILED);
        }
        {
            Session s{{"SIMGPU_SEED", seed}};
            EXPECT_EQUAL(s.run("block_race", 1, 32, s.allocate(128)), 0);
        }
    }
}

void test_uninitialised() {
    {
        Session s;
        EXPECT_EQUAL(s.run("uninitialised_shared", 1, 64, s.allocate(256)), FAILED);
    }
    {
        Session s;
        EXPECT_EQUAL(s.run("uninitialised_shared", 2, 32, s.allocate(128)),
                     FAILED);  // only as two blocks write `out`
        EXPECT_EQUAL(simgpu_count("findings"), 1u);
    }
    {
        Session s;
        EXPECT_EQUAL(s.run("uninitialised_shared", 1, 32, s.allocate(128)), 0);
    }
    {
        Session s;
        const u64 x = s.allocate(128), out = s.allocate(128);
        EXPECT_EQUAL(cuMemsetD8_v2(x, 0, 124), 0);
        EXPECT_EQUAL(s.run("uninitialised_device", 1, 31, x, out), 0);
        EXPECT_EQUAL(s.run("uninitialised_device", 1, 32, x, out), FAILED);
    }
    {
        // What a kernel has written counts, and memory that is given back does not.
        Session s;
        const u64 x = s.allocate(128), out = s.allocate(128);
        EXPECT_EQUAL(s.run("fill_index", 1, 32, x, 32), 0);
        EXPECT_EQUAL(s.run("uninitialised_device", 1, 32, x, out), 0);
    }
}

void test_addresses() {
    {
        Session s;
        EXPECT_EQUAL(s.run("misaligned", 1, 1, s.upload(std::vector<int>(16, 1)), s.allocate(128)), 716);
    }
    {
        Session s;
        const u64 x = s.upload(std::vector<int>(32, 1));
        EXPECT_EQUAL(s.run("uninitialised_device", 1, 33, x, s.allocate(256)), 700);
    }
    {
        Session s;
        const u64 x = s.upload(std::vector<int>(32, 1)), out = s.allocate(128);
        EXPECT_EQUAL(cuMemFree_v2(x), 0);
        EXPECT_EQUAL(s.run("uninitialised_device", 1, 32, x, out), 700);
    }
}

void test_counts() {
    for (const auto &[stride, conflicts] : {std::pair{1, 0}, {2, 1}, {3, 0}, {8, 7}, {32, 31}}) {
        Session s;
        EXPECT_EQUAL(s.run("bank_conflicts", 1, 32, s.allocate(128), stride), 0);
        EXPECT_EQUAL(simgpu_count("bank_conflicts.shared_requests"), 2u);
        EXPECT_EQUAL(simgpu_count("bank_conflicts.shared_conflicts"), 2u * unsigned(conflicts));
    }
    for (const auto &[stride, conflicts] : {std::pair{0, 0}, {1, 0}, {2, 4}}) {
        Session s;
        const int expected = stride == 0 ? FAILED : 0;  // all lanes write one place
        EXPECT_EQUAL(s.run("vector_conflicts", 1, 32, s.allocate(128), stride), expected);
        EXPECT_EQUAL(simgpu_count("vector_conflicts.shared_requests"), 8u);
        EXPECT_EQUAL(simgpu_count("vector_conflicts.shared_conflicts"), 2u * unsigned(conflicts));
    }
    for (const auto &[stride, sectors] : {std::pair{0, 1}, {16, 16}, {32, 32}, {64, 32}}) {
        Session s;
        EXPECT_EQUAL(s.run("vector_reads", 1, 32, s.upload(std::vector<char>(2048, 1)), s.allocate(128), stride),
                     0);
        EXPECT_EQUAL(simgpu_count("vector_reads.global_requests"), 2u);
        EXPECT_EQUAL(simgpu_count("vector_reads.global_sectors"), unsigned(sectors) + 4);
        EXPECT_EQUAL(simgpu_count("vector_reads.global_bytes"), 32u * 20);
    }
}

// Each sector once a launch, whichever block reads it. Nothing is left of an earlier launch.
void test_distinct_sectors() {
    Session s;
    const u64 x = s.upload(std::vector<int>(128, 1)), out = s.allocate(4 * 32 * 4);
    EXPECT_EQUAL(s.run("repeated_reads", 4, 32, x, out), 0);
    // Words 0..56. Other blocks read most of them again, and what is written does not count.
    EXPECT_EQUAL(simgpu_count("repeated_reads.distinct_sectors"), 7u);
    EXPECT_EQUAL(simgpu_count("repeated_reads.global_sectors"), 4u * 12);
    EXPECT_EQUAL(s.run("repeated_reads", 1, 32, x, out), 0);
    EXPECT_EQUAL(simgpu_count("repeated_reads.distinct_sectors"), 7u + 4);
    // Words 1..33 touch a fifth sector.
    EXPECT_EQUAL(s.run("repeated_reads", 1, 32, x + 4, out), 0);
    EXPECT_EQUAL(simgpu_count("repeated_reads.distinct_sectors"), 7u + 4 + 5);
}

}  // namespace

void test_checks() {
    test_races();
    test_uninitialised();
    test_addresses();
    test_counts();
    test_distinct_sectors();
}
