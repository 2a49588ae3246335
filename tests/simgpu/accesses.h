// Counts bank conflicts of shared memory and sectors of device memory, by what the 32 lanes of a warp access
// together; and the distinct sectors that a launch reads, which is what must come from memory if the L2 cache is
// empty at its start and large enough.
#pragma once
#include "checks.h"

namespace accesses {

// The running lane accesses `bytes` at `address` by the instruction `site`.
void log(unsigned thread, std::uintptr_t site, u64 address, unsigned bytes, bool shared);
// The running launch reads `bytes` of device memory at `offset` from the start of the reserved addresses.
void read(u64 offset, unsigned bytes);
// Device memory takes up to `bytes` of addresses.
void open_memory(std::size_t bytes);
// Compares what the lanes of a warp have logged, and forgets it.
void flush(unsigned warp);
// Adds the counts of the last launch, and forgets them.
void collect(simgpu::KernelCounts &counts);

}  // namespace accesses
