// Products of many tokens: prompts. A warp multiplies sixteen rows with 32 tokens and keeps the chains in
// registers.
#include "product.h"

#ifdef HAS_MMA

// Tokens of a block's tile.
#define TOKENS 32
#define PARTS (TOKENS / 8)

// The outputs of a warp's sixteen rows: out[8-token part][fragment].
DEVICE void tile_product(const Matrix &m, u32 group, const Activations *x, u32 first, u32 tokens, float (*out)[4]) {
    u32 lane = threadIdx.x % 32, blocks = m.cols / BLOCK, format = m.format;
    for (u32 part = 0; part < PARTS; part++)
        for (u32 at = 0; at < 4; at++) out[part][at] = 0.0f;
    for (u32 block = 0; block < blocks; block++) {
        u32 a[4];
        fragment(m, group, block, a);
        Scales upper = scales_of(m, group, block, lane / 4), lower = scales_of(m, group, block, lane / 4 + 8);
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) {
            Tokens t = tokens_of(first + part * 8, tokens);
            Input of[2];
            for (u32 at = 0; at < 2; at++) of[at] = input_of(format, x + size_t(t.got[at]) * blocks + block);
            i32 sums[4], second[4];
            block_sums(format, a, x + size_t(t.multiplied) * blocks + block, of, sums, second);
#pragma unroll
            for (u32 at = 0; at < 4; at++) {
                const Scales &s = at < 2 ? upper : lower;
                const Input &input = of[at % 2];
                float y = fma_(int_to_f32(sums[at]), mul_(s.scale, input.scale), out[part][at]);
                if (format == U6_HALF) y = fma_(int_to_f32(second[at]), mul_(s.second, input.scale), y);
                if (has_min(format)) y = fma_(s.min, input.scaled_sum, y);
                out[part][at] = y;
            }
        }
    }
}

// Four groups of rows and 32 tokens: grid (tokens / 32, groups of all matrices / 4). The first groups of the
// matrices are multiples of four.
KERNEL(product_32, const Products p, const Activations *x, const u32 *count) {
    u32 first = blockIdx.x * TOKENS, tokens = *count, lane = threadIdx.x % 32;
    if (first >= tokens) return;
    u32 at = blockIdx.y * 4 + threadIdx.x / 32;
    const Matrix &m = p.matrices[matrix_of(p, at)];
    u32 group = at - m.first_group;
    if (group * LANES >= m.rows) return;
    float out[PARTS][4];
    tile_product(m, group, x, first, tokens, out);
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
#pragma unroll
        for (u32 at = 0; at < 4; at++) {
            u32 row = group * LANES + lane / 4 + at / 2 * 8, token = first + part * 8 + lane % 4 * 2 + at % 2;
            if (row < m.rows && token < tokens) {
                float y = out[part][at];
                if (m.bias) y = add_(y, m.bias[row]);
                m.output[size_t(token) * m.rows + row] = y;
            }
        }
    }
}

// 32 rows of gate and up, quantised if `blocks` is there: grid (tokens / 32, rows / 32).
KERNEL(swiglu_32, const Products p, const Activations *x, const u32 *count, float *value, Activations *blocks) {
    SHARED(float, outputs, 2 * TOKENS * OUTPUTS);
    u32 first = blockIdx.x * TOKENS, tokens = *count, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (first >= tokens) return;
    const Matrix &m = p.matrices[warp / 2];
    u32 group = blockIdx.y * 2 + warp % 2;
    if (group * LANES < m.rows) {
        float out[PARTS][4];
        tile_product(m, group, x, first, tokens, out);
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) {
#pragma unroll
            for (u32 at = 0; at < 4; at++) {
                u32 in_group = lane / 4 + at / 2 * 8, row = group * LANES + in_group;
                u32 token = part * 8 + lane % 4 * 2 + at % 2;
                float y = out[part][at];
                if (m.bias && row < m.rows) y = add_(y, m.bias[row]);
                outputs[(warp / 2 * TOKENS + token) * OUTPUTS + warp % 2 * LANES + in_group] = y;
            }
        }
    }
    sync_block();
    gated_rows<TOKENS>(p, outputs, first, tokens - first < TOKENS ? tokens - first : TOKENS, value, blocks);
}

#endif
