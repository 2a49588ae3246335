// What the kernels are written in: CUDA under NVRTC, and `simt.h` of the simulated GPU on the host.
// Every floating-point operation is a named function, so that no compiler contracts or reorders it: the
// kernels give the bits of crates/kernels.
#pragma once

#ifdef __CUDACC_RTC__

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE static __device__ __forceinline__
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
// An array in the block's shared memory.
#define SHARED(T, name, N) __shared__ __align__(16) T name[N]

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
// All 32 lanes take part.
template <class T> DEVICE T shuffle_xor(T v, i32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
template <class T> DEVICE T shuffle(T v, i32 lane) { return __shfl_sync(0xffffffffu, v, lane); }
template <class T> DEVICE T shuffle_down(T v, i32 delta) { return __shfl_down_sync(0xffffffffu, v, delta); }
DEVICE bool warp_any(bool v) { return __any_sync(0xffffffffu, v); }

// c + Σ w·a over four bytes, w unsigned and a signed.
DEVICE i32 dot4_us(u32 w, i32 a, i32 c) {
    i32 d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(w), "r"(a), "r"(c));
    return d;
}

// Bytes 0 and 2 of two words, and bytes 1 and 3.
DEVICE u32 low_bytes(u32 a, u32 b) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, 0x6420;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DEVICE u32 high_bytes(u32 a, u32 b) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, 0x7531;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// mma_XY: d[16×8] += a[16×32] · b[32×8], bytes with a sign (s8) or without (u8). Fragments as in the PTX ISA,
// m16n8k32. half_XY: the same with 16 instead of 32, m16n8k16: the first two registers of a, the first of b.
#if __CUDA_ARCH__ >= 800
#define HAS_MMA 1
#define MMA(A, B)                                                                                               \
    DEVICE void mma_##A##B(i32 *d, const u32 *a, const u32 *b) {                                                \
        asm("mma.sync.aligned.m16n8k32.row.col.s32." #A "." #B ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "   \
            "{%0,%1,%2,%3};"                                                                                    \
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                                    \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                \
    }                                                                                                           \
    DEVICE void half_##A##B(i32 *d, const u32 *a, const u32 *b) {                                               \
        asm("mma.sync.aligned.m16n8k16.row.col.s32." #A "." #B ".s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "            \
            "{%0,%1,%2,%3};"                                                                                    \
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                                    \
            : "r"(a[0]), "r"(a[1]), "r"(b[0]));                                                                 \
    }
#else
// Turing has a quarter of it, m8n8k16, with the same fragments.
#define MMA(A, B)                                                                                               \
    DEVICE void quarter_##A##B(i32 *d, u32 a, u32 b) {                                                          \
        asm("mma.sync.aligned.m8n8k16.row.col.s32." #A "." #B ".s32 {%0,%1}, {%2}, {%3}, {%0,%1};"              \
            : "+r"(d[0]), "+r"(d[1])                                                                            \
            : "r"(a), "r"(b));                                                                                  \
    }                                                                                                           \
    DEVICE void half_##A##B(i32 *d, const u32 *a, const u32 *b) {                                               \
        quarter_##A##B(d, a[0], b[0]);                                                                          \
        quarter_##A##B(d + 2, a[1], b[0]);                                                                      \
    }                                                                                                           \
    DEVICE void mma_##A##B(i32 *d, const u32 *a, const u32 *b) {                                                \
        half_##A##B(d, a, b);                                                                                   \
        half_##A##B(d, a + 2, b + 1);                                                                           \
    }
#endif
MMA(s8, s8)
MMA(s8, u8)
MMA(u8, s8)
MMA(u8, u8)

DEVICE float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float mul_(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sub_(float a, float b) { return __fsub_rn(a, b); }
DEVICE float div_(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float sqrt_(float a) { return __fsqrt_rn(a); }
// To the nearest integer, ties to even.
DEVICE float rint_(float a) { return rintf(a); }
// Neither argument is NaN.
DEVICE float max_(float a, float b) { return fmaxf(a, b); }
DEVICE float min_(float a, float b) { return fminf(a, b); }
DEVICE float abs_(float a) { return fabsf(a); }
DEVICE float int_to_f32(i32 a) { return __int2float_rn(a); }
// Truncates.
DEVICE i32 f32_to_int(float a) { return __float2int_rz(a); }
DEVICE u32 f32_bits(float a) { return __float_as_uint(a); }
DEVICE float bits_f32(u32 a) { return __uint_as_float(a); }
DEVICE float half_to_f32(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
DEVICE float bf16_to_f32(u16 h) { return __uint_as_float(u32(h) << 16); }
DEVICE u64 mulhi_u64(u64 a, u64 b) { return __umul64hi(a, b); }

// Loads of what is read once: weights.
DEVICE u32 ld_stream(const u32 *p) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
DEVICE uint4 ld_stream(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

// Brings a line of 128 bytes to the L2 cache.
DEVICE void prefetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" : : "l"(p)); }

#else
#include "simt.h"
DEVICE void prefetch(const void *) {}
#define HAS_MMA 1
#define warp_any any
DEVICE u32 low_bytes(u32 a, u32 b) {
    return (a & 0xff) | (a >> 16 & 0xff) << 8 | (b & 0xff) << 16 | (b >> 16 & 0xff) << 24;
}
DEVICE u32 high_bytes(u32 a, u32 b) { return low_bytes(a >> 8, b >> 8); }
DEVICE void half_u8s8(i32 *d, const u32 *a, const u32 *b) {
    const u32 whole_a[4] = {a[0], a[1], 0, 0}, whole_b[2] = {b[0], 0};
    mma_u8s8(d, whole_a, whole_b);
}
DEVICE void half_u8u8(i32 *d, const u32 *a, const u32 *b) {
    const u32 whole_a[4] = {a[0], a[1], 0, 0}, whole_b[2] = {b[0], 0};
    mma_u8u8(d, whole_a, whole_b);
}
#endif
