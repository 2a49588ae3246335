// Counts bank conflicts of shared memory and sectors of device memory, by what the 32 lanes of a warp access
// together.
#pragma once
#include "checks.h"

namespace accesses {

// The running lane accesses `bytes` at `address` by the instruction `site`.
void log(unsigned thread, std::uintptr_t site, u64 address, unsigned bytes, bool shared);
// Compares what the lanes of a warp have logged, and forgets it.
void flush(unsigned warp);
void collect(simgpu::KernelCounts &counts);

}  // namespace accesses
