// The product of one group of sixteen dense rows with up to T tokens, by one block of 128 threads: T is 1, 4, 8 or 32.
//
// As in crates/kernels, the columns of an output are cut into segments, each of them one chain of fused
// multiply-adds, and the segments' sums are added in their order. All segments are computed side by side: sixteen
// threads each, which share its rows and tokens. Weights and inputs go from memory to registers.
#pragma once
#include "matrix.h"

// Segments of a row: `SEGMENTS` of crates/kernels.
#define SEGMENTS 8

// A thread's rows and tokens, and how the sums of segments lie in shared memory, [SEGMENTS][T][16 rows] with
// padding: a warp writes and reads different banks.
template <i32 T> struct DenseTile {
    enum : u32 {
        ROWS = T == 1 ? 1 : T == 4 ? 2 : T == 8 ? 4 : 8,
        TOKENS = T == 1 ? 1 : T == 32 ? 4 : 2,
        // A thread's rows are this far apart, and its tokens.
        ROW_STEP = LANES / ROWS,
        TOKEN_STEP = T / TOKENS,
        // Vectors of columns that are loaded at a time.
        VECTORS = T == 1 ? 8 : T == 4 ? 4 : 2,
        TOKEN = T > 4 ? LANES + 4 : LANES,
        SEGMENT = T * TOKEN + (T == 1 ? 0 : T == 4 ? 8 : T == 8 ? 16 : 2),
        FLOATS = SEGMENTS * SEGMENT,
    };
};

// Columns of a segment: `segment_columns` of crates/kernels.
DEVICE u32 segment_columns(u32 cols) { return ((cols + SEGMENTS - 1) / SEGMENTS + BLOCK - 1) / BLOCK * BLOCK; }

// A column of a vector of weights.
template <u32 FORMAT> DEVICE float weight_of(const uint4 &v, u32 column) {
    u32 at = FORMAT == F32 ? column : column / 2, word = at == 0 ? v.x : at == 1 ? v.y : at == 2 ? v.z : v.w;
    if (FORMAT == F32) return bits_f32(word);
    if (FORMAT == BF16) return bits_f32(column % 2 ? word & 0xffff0000u : word << 16);
    return half_to_f32(u16(column % 2 ? word >> 16 : word));
}

// What a thread computes: its rows start at `weights`.
template <i32 T> struct Chains {
    const uint4 *weights;
    const float *inputs[DenseTile<T>::TOKENS];
    float sums[DenseTile<T>::ROWS][DenseTile<T>::TOKENS];
};

// Loads a vector of each row.
template <i32 T> DEVICE void load_rows(const Chains<T> &c, u32 vector, uint4 *weights) {
#pragma unroll
    for (u32 row = 0; row < DenseTile<T>::ROWS; row++)
        weights[row] = ld_stream(c.weights + vector * LANES + row * DenseTile<T>::ROW_STEP);
}

// Continues the chains by a vector. `inputs` are those of its columns.
template <i32 T, u32 FORMAT>
DEVICE void multiply(Chains<T> &c, const uint4 *weights, const float (*inputs)[vector_columns(FORMAT)]) {
#pragma unroll
    for (u32 column = 0; column < vector_columns(FORMAT); column++) {
#pragma unroll
        for (u32 row = 0; row < DenseTile<T>::ROWS; row++) {
            float weight = weight_of<FORMAT>(weights[row], column);
#pragma unroll
            for (u32 t = 0; t < DenseTile<T>::TOKENS; t++)
                c.sums[row][t] = fma_(weight, inputs[t][column], c.sums[row][t]);
        }
    }
}

// Continues the chains by COUNT vectors at a time, as long as there are so many before `end`. Returns the first of
// the rest.
template <i32 T, u32 FORMAT, u32 COUNT> DEVICE u32 multiply_vectors(Chains<T> &c, u32 vector, u32 end) {
    const u32 columns = vector_columns(FORMAT);
    for (; vector + COUNT <= end; vector += COUNT) {
        // All loads are under way before the first product.
        uint4 weights[COUNT][DenseTile<T>::ROWS];
#pragma unroll
        for (u32 v = 0; v < COUNT; v++) load_rows(c, vector + v, weights[v]);
#pragma unroll
        for (u32 v = 0; v < COUNT; v++) {
            float inputs[DenseTile<T>::TOKENS][columns];
#pragma unroll
            for (u32 t = 0; t < DenseTile<T>::TOKENS; t++) {
                const float4 *from = (const float4 *)(c.inputs[t] + (vector + v) * columns);
#pragma unroll
                for (u32 four = 0; four < columns / 4; four++) {
                    float4 x = from[four];
                    float *to = inputs[t] + four * 4;
                    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
                }
            }
            multiply<T, FORMAT>(c, weights[v], inputs);
        }
    }
    return vector;
}

// The sums of a thread's segment, rows and tokens.
template <i32 T, u32 FORMAT>
DEVICE void segment_sums(const Matrix &m, u32 group, const float *x, u32 tokens, float *partial) {
    typedef DenseTile<T> Tile;
    const u32 columns = vector_columns(FORMAT);
    u32 cols = m.cols, segment = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    u32 first_row = lane % Tile::ROW_STEP, first_token = lane / Tile::ROW_STEP;
    Chains<T> c;
    c.weights = (const uint4 *)m.quants + size_t(group) * ((cols + columns - 1) / columns) * LANES + first_row;
#pragma unroll
    for (u32 t = 0; t < Tile::TOKENS; t++) {
        u32 token = first_token + t * Tile::TOKEN_STEP;
        // Beyond the last token, the last.
        c.inputs[t] = x + size_t(token < tokens ? token : tokens - 1) * cols;
#pragma unroll
        for (u32 row = 0; row < Tile::ROWS; row++) c.sums[row][t] = 0.0f;
    }
    u32 width = segment_columns(cols), start = segment * width, end = start + width < cols ? start + width : cols;
    u32 vector = start / columns;
    if (cols % 4 == 0) { // The inputs are aligned.
        vector = multiply_vectors<T, FORMAT, Tile::VECTORS>(c, vector, end / columns);
        if (Tile::VECTORS > 4) vector = multiply_vectors<T, FORMAT, 4>(c, vector, end / columns);
    }
    for (; vector * columns < end; vector++) {
        uint4 weights[Tile::ROWS];
        float inputs[Tile::TOKENS][columns];
        load_rows(c, vector, weights);
        // The columns beyond the last are padding: both zero, they leave the sums as they are.
#pragma unroll
        for (u32 t = 0; t < Tile::TOKENS; t++) {
#pragma unroll
            for (u32 column = 0; column < columns; column++) {
                u32 at = vector * columns + column;
                inputs[t][column] = at < cols ? c.inputs[t][at] : 0.0f;
            }
        }
        multiply<T, FORMAT>(c, weights, inputs);
    }
#pragma unroll
    for (u32 t = 0; t < Tile::TOKENS; t++) {
        float *to = partial + segment * Tile::SEGMENT + (first_token + t * Tile::TOKEN_STEP) * Tile::TOKEN + first_row;
#pragma unroll
        for (u32 row = 0; row < Tile::ROWS; row++) to[row * Tile::ROW_STEP] = c.sums[row][t];
    }
}

// Leaves the sums of all segments in `partial`.
template <i32 T> DEVICE void dense_sums(const Matrix &m, u32 group, const float *x, u32 tokens, float *partial) {
    sync_block();
    if (m.format == F16) segment_sums<T, F16>(m, group, x, tokens, partial);
    if (m.format == BF16) segment_sums<T, BF16>(m, group, x, tokens, partial);
    if (m.format == F32) segment_sums<T, F32>(m, group, x, tokens, partial);
    sync_block();
}

// The output of a row of the group and a token.
template <i32 T> DEVICE float dense_output(const float *partial, u32 row, u32 token) {
    float output = 0.0f;
#pragma unroll
    for (u32 segment = 0; segment < SEGMENTS; segment++)
        output = add_(output, partial[segment * DenseTile<T>::SEGMENT + token * DenseTile<T>::TOKEN + row]);
    return output;
}
