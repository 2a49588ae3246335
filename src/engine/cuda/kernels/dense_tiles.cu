// Dense products of many tokens: prompts and larger batches.
#include "product.h"

// Tokens of a block, and those that a thread finishes: eight apart, with the rows and tokens of product_8.
#define TOKENS 32
#define PARTS (TOKENS / 8)

// The output of a thread's row and token, with its bias.
DEVICE float output_of(const Matrix &m, u32 group, const float *partial, u32 row, u32 token) {
    float output = dense_output<TOKENS>(partial, row, token);
    u32 at = group * LANES + row;
    return m.bias && at < m.rows ? add_(output, m.bias[at]) : output;
}

// A group of rows and 32 tokens: grid (tokens / 32, groups of all matrices).
KERNEL(dense_product_32, const Products p, const float *values, const u32 *count) {
    SHARED(float, partial, DenseTile<TOKENS>::FLOATS);
    u32 first = blockIdx.x * TOKENS, all = *count;
    if (first >= all) return;
    u32 tokens = all - first < TOKENS ? all - first : TOKENS;
    const Matrix &m = p.matrices[matrix_of(p, blockIdx.y)];
    u32 group = blockIdx.y - m.first_group;
    dense_sums<TOKENS>(m, group, values + size_t(first) * m.cols, tokens, partial);
    u32 row = row_of<8>(threadIdx.x);
    for (u32 part = 0; part < PARTS; part++) {
        u32 token = part * 8 + token_of<8>(threadIdx.x);
        float output = output_of(m, group, partial, row, token);
        if (token < tokens && group * LANES + row < m.rows)
            m.output[size_t(first + token) * m.rows + group * LANES + row] = output;
    }
}

// 32 rows of gate and up, and silu(gate) · up, quantised if `blocks` is there: grid (tokens / 32, rows / 32).
KERNEL(dense_swiglu_32, const Products p, const float *values, const u32 *count, float *value, Activations *blocks) {
    SHARED(float, partial, DenseTile<TOKENS>::FLOATS);
    SHARED(float, outputs, 2 * TOKENS * OUTPUTS);
    u32 first = blockIdx.x * TOKENS, all = *count;
    if (first >= all) return;
    u32 tokens = all - first < TOKENS ? all - first : TOKENS;
    u32 row = row_of<8>(threadIdx.x);
    for (u32 part = 0; part < 4; part++) {
        const Matrix &m = p.matrices[part / 2];
        u32 group = blockIdx.y * 2 + part % 2;
        if (group * LANES >= m.rows) continue;
        dense_sums<TOKENS>(m, group, values + size_t(first) * m.cols, tokens, partial);
        for (u32 at = 0; at < PARTS; at++) {
            u32 token = at * 8 + token_of<8>(threadIdx.x);
            float *to = outputs + (part / 2 * TOKENS + token) * OUTPUTS + part % 2 * LANES + row;
            *to = output_of(m, group, partial, row, token);
        }
    }
    sync_block();
    gated_rows<TOKENS>(p, outputs, first, tokens, value, blocks);
}
