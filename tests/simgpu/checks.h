// What the instrumented build (SIMGPU_CHECKS=1) watches: every access of a kernel to shared and device memory.
//
// The kernels are compiled with `-fsanitize=thread` for its calls before each access, which `checks.cpp` answers.
// There is one host thread, so nothing here has a lock.
#pragma once
#include "driver.h"
#include "memory.h"

namespace checks {

// Device memory.
void open_memory(u64 base, std::size_t bytes);
void add_allocation(const simgpu::Allocation &allocation);
void remove_allocation(const simgpu::Allocation &allocation);
void set_written(u64 address, std::size_t bytes);
void copy_written(u64 target, u64 source, std::size_t bytes);

// Where a launch is. A block's barrier orders all that came before it; sync_warp orders the lanes of one warp.
void start_launch();
void start_block();
void end_block();
void pass_block_barrier();
void pass_warp_barrier(unsigned warp);
// All lanes of a warp have come to an operation. It orders nothing, but here their accesses can be compared.
void pass_warp_operation(unsigned warp);

// Adds the counts of the last launch.
void collect(simgpu::KernelCounts &counts);

}  // namespace checks
