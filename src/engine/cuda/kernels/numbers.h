// Sums, maxima, the exponential and int8 quantisation, as crates/kernels computes them.
#pragma once
#include "gpu.h"

// Lanes of the CPU's vectors, tokens of a page, and rows of a weight group.
#define LANES 16
// Columns that share a scale.
#define BLOCK 32

#define NEGATIVE_INFINITY bits_f32(0xff800000u)

// 32 activations, as `ActivationBlock` of crates/kernels. `unused` is the CPU's `pairing`.
struct __attribute__((aligned(16))) Activations {
    i8 quants[BLOCK];
    float scale, scaled_sum;
    i16 offset, offset_high;
    i32 unused;
};

// The sum of lanes 0..16 of a warp: lanes 8 apart first, then 4, 2, 1. Valid in lanes 0 and 16.
DEVICE float sum_of_lanes(float x) {
    for (i32 half = 8; half > 0; half /= 2) x = add_(x, shuffle_down(x, half));
    return x;
}

// e^min(x, most), for `most` up to 88: `Simd::exp` of crates/kernels.
DEVICE float exp_(float x, float most) {
    x = max_(min_(x, most), -86.6f);
    float n = rint_(mul_(x, 1.44269504088896340736f));
    float r = fma_(n, -0.6933594f, x);
    r = fma_(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fma_(p, r, 1.3982e-3f);
    p = fma_(p, r, 8.333452e-3f);
    p = fma_(p, r, 4.1665796e-2f);
    p = fma_(p, r, 1.6666665e-1f);
    p = fma_(p, r, 0.5f);
    float y = add_(fma_(p, mul_(r, r), r), 1.0f);
    return bits_f32(f32_bits(y) + (u32(f32_to_int(n)) << 23));
}

DEVICE float silu(float x) {
    float decay = exp_(sub_(0.0f, x), 88.0f);
    return div_(x, add_(1.0f, decay));
}

// Scale and inverse for integers of at most `most` in magnitude: `whole_scale` of crates/kernels.
DEVICE float whole_scale(float largest, float most, float *inverse) {
    if (largest < 1e-30f) {
        *inverse = 0.0f;
        return 0.0f;
    }
    *inverse = div_(most, largest);
    return div_(largest, most);
}

// Numbers are clamped before they become keys, values or queries: an infinity would spoil every later
// result.
DEVICE float within(float x) { return max_(min_(x, 1e30f), -1e30f); }

DEVICE bool is_finite(float x) { return (f32_bits(x) & 0x7f800000u) != 0x7f800000u; }

// A warp quantises 32 numbers, one in each lane.
DEVICE void quantise(float x, Activations *to) {
    i32 lane = threadIdx.x % 32;
    if (warp_any(!is_finite(x))) {
        to->quants[lane] = 0;
        if (lane == 0) {
            to->scale = to->scaled_sum = bits_f32(0x7fc00000u);
            to->offset = to->offset_high = 0;
        }
        return;
    }
    float positive = x, negative = sub_(0.0f, x);
    for (i32 mask = 16; mask > 0; mask /= 2) {
        positive = max_(positive, shuffle_xor(positive, mask));
        negative = max_(negative, shuffle_xor(negative, mask));
    }
    bool is_positive = positive >= negative;
    float magnitude = is_positive ? positive : negative, other = is_positive ? negative : positive;
    float scale = 0.0f, inverse = 0.0f;
    if (magnitude >= 1e-30f) {
        float size = max_(div_(magnitude, 127.0f), div_(other, 113.0f));
        scale = is_positive ? size : sub_(0.0f, size);
        inverse = div_(1.0f, scale);
    }
    i32 whole = f32_to_int(rint_(mul_(x, inverse)));
    i32 sum = whole;
    for (i32 mask = 8; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    i32 other_half = shuffle_xor(sum, 16);
    to->quants[lane] = i8(whole);
    if (lane == 0) {
        i32 all = sum + other_half;
        to->scale = scale;
        to->scaled_sum = mul_(scale, int_to_f32(all));
        to->offset = i16(-8 * all);
        to->offset_high = i16(-8 * other_half);
    }
}
