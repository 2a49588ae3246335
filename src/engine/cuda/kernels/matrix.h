// Packed weight matrices: the layout of `PackedMatrix` in crates/kernels, uploaded as it is. A group is
// sixteen rows; its quants are quads of 64 bytes, four columns of each row. Bytes hold the eight quads of
// a block of 32 columns in order; nibbles hold quad j low and quad j + 4 high.
#pragma once
#include "numbers.h"

// `Format` of crates/kernels.
enum Format { U4, U4_MIN, U4_SUPER, I8, U8_MIN, U8_SUPER, U8_HALF, F16, BF16, F32 };

// Blocks of 32 columns that share the coarse scale of a two-level format.
#define SUPER_BLOCKS 8

// 64 bytes; the same layout in Rust.
struct Matrix {
    const u8 *quants;  // [groups][blocks][256 or 512], or dense [groups][cols][16]
    const u16 *scales; // f16 [groups][blocks or super-blocks][16]
    const u16 *mins;   // likewise
    const u8 *fine;    // [groups][blocks][2][16]
    const float *bias; // [rows], or null
    float *output;     // [tokens][rows]
    u32 rows, cols;
    u32 format;
    u32 first_group;   // of the launch: groups of the matrices before it
};

DEVICE bool is_nibbles(u32 format) { return format <= U4_SUPER; }
DEVICE bool is_super(u32 format) { return format == U4_SUPER || format == U8_SUPER || format == U8_HALF; }
DEVICE bool has_min(u32 format) {
    return format == U4_MIN || format == U4_SUPER || format == U8_MIN || format == U8_SUPER;
}
DEVICE bool is_dense(u32 format) { return format >= F16; }

// The scale of a row's block (of its first half, in U8_HALF) before the fine scale, and the rest.
struct Scales {
    float scale, second, min; // `second`: the second half's, in U8_HALF
};

// The row is a lane of the group.
DEVICE Scales scales_of(const Matrix &m, u32 group, u32 block, u32 row) {
    u32 blocks = m.cols / BLOCK;
    bool fine = is_super(m.format);
    size_t coarse = fine ? size_t(group) * (blocks / SUPER_BLOCKS) + block / SUPER_BLOCKS
                         : size_t(group) * blocks + block;
    coarse = coarse * LANES + row;
    Scales s;
    s.scale = half_to_f32(m.scales[coarse]);
    s.second = 0.0f;
    s.min = has_min(m.format) ? half_to_f32(m.mins[coarse]) : 0.0f;
    if (fine) {
        const u8 *at = m.fine + (size_t(group) * blocks + block) * 2 * LANES + row;
        if (m.format == U8_HALF) {
            s.second = mul_(s.scale, int_to_f32(i8(at[LANES])));
            s.scale = mul_(s.scale, int_to_f32(i8(at[0])));
        } else {
            s.scale = mul_(s.scale, int_to_f32(at[0]));
            s.min = mul_(s.min, int_to_f32(at[LANES]));
        }
    }
    return s;
}

// A row's dense weight at a column. `row` is a lane of the group.
DEVICE float dense_weight(const Matrix &m, u32 group, u32 column, u32 row) {
    size_t at = (size_t(group) * m.cols + column) * LANES + row;
    if (m.format == F16) return half_to_f32(((const u16 *)m.quants)[at]);
    if (m.format == BF16) return bf16_to_f32(((const u16 *)m.quants)[at]);
    return ((const float *)m.quants)[at];
}
