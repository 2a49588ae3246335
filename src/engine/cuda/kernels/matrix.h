// Packed weight matrices. Scales, and nibbles with theirs, are laid out as in `PackedMatrix` of crates/kernels;
// `repack.rs` of the forward pass makes the rest. A group is sixteen rows; its quants are quads of 64 bytes, four
// columns of each row. Bytes hold the eight quads of a block of 32 columns in order; nibbles hold quad j low and
// quad j + 4 high. Weights of five and six bits are nibbles, followed by their upper bits: words [16 rows], whose
// bit 8 · c + j is the fifth bit of quad j's column c; or words [2 halves of the columns][16 rows], whose bits
// 8 · c + 2 · (j % 4) and the next are those of quad j's column c.
#pragma once
#include "numbers.h"

// `Stored` of repack.rs.
enum Format { U4, U4_MIN, U4_SUPER, U5, U5_MIN, U5_SUPER, U6_HALF, I8, F16, BF16, F32 };

// Blocks of 32 columns that share the coarse scale of a two-level format.
#define SUPER_BLOCKS 8

// 64 bytes; the same layout in Rust.
struct Matrix {
    const u8 *quants;  // [groups][blocks][block_bytes], or dense [groups][vectors of columns][16][16 bytes]
    const u16 *scales; // f16 [groups][blocks or super-blocks][16]
    const u16 *mins;   // likewise
    const u8 *fine;    // [groups][blocks][2][16]
    const float *bias; // [rows], or null
    float *output;     // [tokens][rows]
    u32 rows, cols;
    u32 format;
    u32 first_group;   // of the launch: groups of the matrices before it
};

DEVICE bool is_five_bits(u32 format) { return format >= U5 && format <= U5_SUPER; }
DEVICE bool is_super(u32 format) { return format == U4_SUPER || format == U5_SUPER || format == U6_HALF; }
DEVICE bool has_min(u32 format) {
    return format == U4_MIN || format == U4_SUPER || format == U5_MIN || format == U5_SUPER;
}
DEVICE bool is_dense(u32 format) { return format >= F16; }

// Bytes of a group's block of 32 columns.
DEVICE u32 block_bytes(u32 format) {
    return format <= U4_SUPER ? 256 : format <= U5_SUPER ? 320 : format == U6_HALF ? 384 : 512;
}

// A group's block of 32 columns.
DEVICE const u8 *block_of(const Matrix &m, u32 group, u32 block) {
    return m.quants + (size_t(group) * (m.cols / BLOCK) + block) * block_bytes(m.format);
}

// The fifth bits of a quad's four columns, in their place.
DEVICE u32 fifth_bits(u32 word, u32 quad) { return (quad < 4 ? word << (4 - quad) : word >> (quad - 4)) & 0x10101010u; }

// Bits five and six of a quad's four columns, from the word of its half.
DEVICE u32 sixth_bits(u32 word, u32 quad) {
    return (quad % 4 < 3 ? word << (4 - quad % 4 * 2) : word >> 2) & 0x30303030u;
}

// A row's quant at a column of a block, without its offset. `row` is a lane of the group.
DEVICE i32 quant_of(const Matrix &m, u32 group, u32 block, u32 column, u32 row) {
    const u8 *stored = block_of(m, group, block);
    u32 quad = column / 4, byte = column % 4, format = m.format;
    if (format == I8) return stored[quad * 64 + row * 4 + byte] - 128;
    i32 quant = stored[quad % 4 * 64 + row * 4 + byte] >> quad / 4 * 4 & 15;
    const u32 *words = (const u32 *)(stored + 256) + row;
    if (is_five_bits(format)) quant |= fifth_bits(words[0], quad) >> byte * 8 & 0x10;
    if (format == U6_HALF) quant |= sixth_bits(words[quad / 4 * LANES], quad) >> byte * 8 & 0x30;
    return quant - (format == U4 ? 8 : format == U5 ? 16 : format == U6_HALF ? 32 : 0);
}

// The scale of a row's block (of its first half, in U6_HALF) before the fine scale, and the rest.
struct Scales {
    float scale, second, min; // `second`: the second half's, in U6_HALF
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
        if (m.format == U6_HALF) {
            s.second = mul_(s.scale, int_to_f32(i8(at[LANES])));
            s.scale = mul_(s.scale, int_to_f32(i8(at[0])));
        } else {
            s.scale = mul_(s.scale, int_to_f32(at[0]));
            s.min = mul_(s.min, int_to_f32(at[LANES]));
        }
    }
    return s;
}

// Columns of a vector, 16 bytes of a row's dense weights. The last one is padded with zeros.
DEVICE constexpr u32 vector_columns(u32 format) { return format == F32 ? 4 : 8; }

// A row's dense weight at a column. `row` is a lane of the group.
DEVICE float dense_weight(const Matrix &m, u32 group, u32 column, u32 row) {
    u32 columns = vector_columns(m.format), vectors = (m.cols + columns - 1) / columns;
    size_t at = ((size_t(group) * vectors + column / columns) * LANES + row) * columns + column % columns;
    if (m.format == F16) return half_to_f32(((const u16 *)m.quants)[at]);
    if (m.format == BF16) return bf16_to_f32(((const u16 *)m.quants)[at]);
    return ((const float *)m.quants)[at];
}
