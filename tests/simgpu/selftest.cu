// Kernels of the simulator's own tests.
#include "simt.h"

KERNEL(fill_index, int *out, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) out[i] = i;
}

// y += a · x
KERNEL(axpy, float *y, const float *x, float a, int n) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] = fma_(a, x[i], y[i]);
}

// The sum of each block's values by shuffles and a shared array: out[block].
KERNEL(block_sum, const int *x, int *out) {
    SHARED(int, part, 32);
    int sum = x[blockIdx.x * blockDim.x + threadIdx.x];
    for (int step = 16; step > 0; step /= 2) sum += shuffle_xor(sum, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    sync_block();
    if (threadIdx.x == 0) {
        int total = 0;
        for (unsigned i = 0; i < blockDim.x / 32; i++) total += part[i];
        out[blockIdx.x] = total;
    }
}

// What each lane gets of the others, 5 numbers a lane.
KERNEL(warp_operations, int *out) {
    const int lane = int(threadIdx.x);
    int *mine = out + lane * 5;
    mine[0] = shuffle(lane * 3, 7);
    mine[1] = shuffle_down(lane, 5);
    mine[2] = int(ballot(lane % 3 == 0));
    mine[3] = any(lane == 31) + 2 * any(lane == 32);
    mine[4] = int(shuffle_xor(0x100000000ull * u64(lane), 1) >> 32);
}

// D = A · B with fragments loaded by the layout of the PTX ISA. A: [16, 32] and B: [8, 32] bytes, D: [16, 8].
DEVICE void load_fragments(const u8 *a, const u8 *b, unsigned *fragment_a, unsigned *fragment_b) {
    const int group = int(threadIdx.x) / 4, number = int(threadIdx.x) % 4;
    for (int i = 0; i < 4; i++) {
        fragment_a[i] = *(const unsigned *)(a + (group + 8 * (i & 1)) * 32 + number * 4 + 16 * (i >> 1));
    }
    for (int i = 0; i < 2; i++) fragment_b[i] = *(const unsigned *)(b + group * 32 + number * 4 + 16 * i);
}
template <class T>
DEVICE void store_fragment(T *d, const T *fragment) {
    const int group = int(threadIdx.x) / 4, number = int(threadIdx.x) % 4;
    for (int i = 0; i < 4; i++) d[(group + 8 * (i >> 1)) * 8 + number * 2 + (i & 1)] = fragment[i];
}
KERNEL(product_bytes, const u8 *a, const u8 *b, int *d, int kind) {
    unsigned fragment_a[4], fragment_b[2];
    int sum[4] = {1, 2, 3, 4};
    load_fragments(a, b, fragment_a, fragment_b);
    if (kind == 0) mma_u8s8(sum, fragment_a, fragment_b);
    if (kind == 1) mma_s8s8(sum, fragment_a, fragment_b);
    if (kind == 2) mma_s8u8(sum, fragment_a, fragment_b);
    if (kind == 3) mma_u8u8(sum, fragment_a, fragment_b);
    store_fragment(d, sum);
}
// A: [16, 16] and B: [8, 16] of two bytes each.
KERNEL(product_halves, const u8 *a, const u8 *b, float *d, int kind) {
    unsigned fragment_a[4], fragment_b[2];
    float sum[4] = {0, 0, 0, 0};
    load_fragments(a, b, fragment_a, fragment_b);
    if (kind == 0) mma_f16(sum, fragment_a, fragment_b);
    if (kind == 1) mma_bf16(sum, fragment_a, fragment_b);
    store_fragment(d, sum);
}

// For the speed of warp operations and barriers.
KERNEL(many_shuffles, int *out, int rounds) {
    int value = int(threadIdx.x);
    for (int i = 0; i < rounds; i++) value += shuffle_xor(value, 1 + (i & 15));
    out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}
KERNEL(many_products, int *out, int rounds) {
    unsigned a[4] = {threadIdx.x, 2, 3, 4}, b[2] = {5, threadIdx.x};
    int d[4] = {0, 0, 0, 0};
    for (int i = 0; i < rounds; i++) mma_u8s8(d, a, b);
    out[blockIdx.x * blockDim.x + threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}

// Mistakes, each in its own kernel.
KERNEL(barrier_in_branch, int *out) {
    if (threadIdx.x < 32) {
        sync_block();
    } else {
        sync_block();
    }
    out[threadIdx.x] = 1;
}
KERNEL(shuffle_after_end, int *out) {
    if (threadIdx.x == 9) return;
    out[threadIdx.x] = shuffle_xor(1, 1);
}
KERNEL(shuffle_against_barrier, int *out) {
    if (threadIdx.x == 9) sync_block();
    out[threadIdx.x] = shuffle_xor(1, 1);
    sync_block();
}
KERNEL(wild_write, int *out) {
    if (threadIdx.x == 5) out[1 << 20] = 1;
}
KERNEL(write_behind, u8 *out, int n) {
    if (threadIdx.x == 0) out[n] = 1;
}
KERNEL(too_much_shared, int *out) {
    SHARED(int, big, 13000);
    big[0] = 1;
    out[0] = big[0];
}

// Each frame refers to the one above, so that the compiler makes no loop of it.
DEVICE int recurse(int depth, volatile int *above) {
    volatile int room[256];
    room[depth % 256] = above[0] + depth;
    return depth == 0 ? above[0] : recurse(depth - 1, room) + room[1];
}
KERNEL(deep_stack, int *out) {
    volatile int top = 1;
    out[threadIdx.x] = recurse(threadIdx.x == 3 ? 60 : 1, &top);
}
KERNEL(divide, int *out) { out[threadIdx.x] = 7 / int(threadIdx.x); }
// out[1 + n] = the n-th lane that came.
KERNEL(order_of_lanes, int *out) { out[1 + out[0]++] = int(threadIdx.x); }

// For the checks.
KERNEL(shared_race, int *out) {
    SHARED(int, cell, 64);
    cell[threadIdx.x] = int(threadIdx.x);
    out[threadIdx.x] = cell[(threadIdx.x + 1) % 64];
}
KERNEL(shared_no_race, int *out) {
    SHARED(int, cell, 64);
    cell[threadIdx.x] = int(threadIdx.x);
    sync_warp();
    int value = cell[threadIdx.x ^ 1];
    sync_block();
    cell[63 - threadIdx.x] = value;
    sync_block();
    out[threadIdx.x] = cell[threadIdx.x];
}
// sync_warp orders the lanes of one warp, and these are two.
KERNEL(race_across_warps, int *out) {
    SHARED(int, cell, 64);
    cell[threadIdx.x] = 0;
    sync_block();
    cell[threadIdx.x] = int(threadIdx.x);
    sync_warp();
    out[threadIdx.x] = cell[(threadIdx.x + 32) % 64];
}
KERNEL(write_after_read, int *x, int with_barrier) {
    const int value = x[(threadIdx.x + 1) % 64];
    if (with_barrier) sync_block();
    x[threadIdx.x] = value;
}
KERNEL(block_race, int *out) { out[threadIdx.x] = int(blockIdx.x); }
KERNEL(uninitialised_shared, int *out) {
    SHARED(int, cell, 64);
    if (threadIdx.x < 32) cell[threadIdx.x] = 1;
    sync_block();
    out[threadIdx.x] = cell[threadIdx.x];
}
KERNEL(uninitialised_device, const int *x, int *out) { out[threadIdx.x] = x[threadIdx.x] + 1; }
KERNEL(misaligned, const u8 *x, int *out) {
    const int4 v = *(const int4 *)(x + 4);
    out[threadIdx.x] = v.x;
}
// Lane l touches word l · stride: stride 1 has no conflict, 2 has 1 more pass, 32 has 31.
KERNEL(bank_conflicts, int *out, int stride) {
    SHARED(int, cell, 32 * 32);
    cell[threadIdx.x * unsigned(stride)] = int(threadIdx.x);
    sync_warp();
    out[threadIdx.x] = cell[threadIdx.x * unsigned(stride)];
}
// Lane l touches the 16 bytes at 16 · l · stride. Eight lanes are served together.
KERNEL(vector_conflicts, int *out, int stride) {
    SHARED(int4, cell, 32 * 2);
    const int lane = int(threadIdx.x);
    cell[lane * stride] = int4(lane, 1, 2, 3);
    sync_warp();
    const int4 v = cell[lane * stride];
    out[lane] = v.x + v.w;
}
// Lane l reads the 16 bytes at l · stride: 4 sectors of 32 bytes for each 8 lanes if stride is 16.
KERNEL(vector_reads, const u8 *x, int *out, int stride) {
    const int4 v = ld_stream((const int4 *)(x + threadIdx.x * unsigned(stride)));
    out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
// Lane l of block b reads words l and l + 8 · b of `x`.
KERNEL(repeated_reads, const int *x, int *out) {
    const unsigned lane = threadIdx.x;
    out[blockIdx.x * 32 + lane] = x[lane] + x[lane + blockIdx.x * 8];
}
