// What a card can do at most, for `flowbench bench-engine`.
#include "numbers.h"

// Reads `count` uint4 once. What is read is written only if it is odd, which the host makes sure it is not.
KERNEL(read_memory, const uint4 *from, u64 count, u32 *sink) {
    u32 all = 0;
    u64 step = u64(gridDim.x) * blockDim.x;
    u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; at + 3 * step < count; at += 4 * step) {
        uint4 a = ld_stream(from + at), b = ld_stream(from + at + step);
        uint4 c = ld_stream(from + at + 2 * step), d = ld_stream(from + at + 3 * step);
        all |= a.x | a.y | a.z | a.w | b.x | b.y | b.z | b.w;
        all |= c.x | c.y | c.z | c.w | d.x | d.y | d.z | d.w;
    }
    for (; at < count; at += step) {
        uint4 a = ld_stream(from + at);
        all |= a.x | a.y | a.z | a.w;
    }
    if (all % 2 == 1) *sink = all;
}

// Eight independent chains of products of bytes in registers. `rounds` × 8 products of 16 × 32 by 32 × 8 for each
// warp; without the instruction, of four bytes for each thread.
KERNEL(multiply_bytes, u32 rounds, u32 seed, i32 *sink) {
    i32 sums[8][4];
#pragma unroll
    for (u32 chain = 0; chain < 8; chain++)
#pragma unroll
        for (u32 at = 0; at < 4; at++) sums[chain][at] = i32(chain * 4 + at);
    u32 a[4] = {seed, seed + 1, seed + 2, seed + 3}, b[2] = {seed ^ threadIdx.x, seed + threadIdx.x};
    for (u32 round = 0; round < rounds; round++) {
#pragma unroll
        for (u32 chain = 0; chain < 8; chain++) {
#ifdef HAS_MMA
            mma_u8s8(sums[chain], a, b);
#else
            sums[chain][0] = dot4_us(a[chain % 4], i32(b[chain % 2]), sums[chain][0]);
#endif
        }
    }
    i32 all = 0;
#pragma unroll
    for (u32 chain = 0; chain < 8; chain++)
#pragma unroll
        for (u32 at = 0; at < 4; at++) all ^= sums[chain][at];
    // So that the products have a use.
    if (all == i32(seed)) *sink = all;
}
