// Products of a few tokens: decoding.
#include "product.h"

// A group of rows and T tokens: grid (tokens / T, groups of all matrices). Blocks of the same rows are neighbours, so
// that their weights come from memory once.
template <i32 T>
DEVICE void product(const Products &p, const Activations *x, const float *values, const u32 *count) {
    SHARED(float, tile, Tile<T>::FLOATS);
    u32 first = blockIdx.x * T, all = *count;
    if (first >= all) return;
    u32 tokens = all - first < T ? all - first : T;
    const Matrix &m = p.matrices[matrix_of(p, blockIdx.y)];
    u32 group = blockIdx.y - m.first_group;
    const Activations *blocks = x + size_t(first) * (m.cols / BLOCK);
    float output = group_product<T>(m, group, blocks, values + size_t(first) * m.cols, tokens, tile);
    u32 row = group * LANES + row_of<T>(threadIdx.x), token = token_of<T>(threadIdx.x);
    if (token < tokens && row < m.rows) {
        if (m.bias) output = add_(output, m.bias[row]);
        m.output[size_t(first + token) * m.rows + row] = output;
    }
}

KERNEL(product_1, const Products p, const Activations *x, const float *values, const u32 *count) {
    product<1>(p, x, values, count);
}

KERNEL(product_4, const Products p, const Activations *x, const float *values, const u32 *count) {
    product<4>(p, x, values, count);
}

KERNEL(product_8, const Products p, const Activations *x, const float *values, const u32 *count) {
    product<8>(p, x, values, count);
}

// 32 rows of gate and up, and silu(gate) · up, quantised if `blocks` is there: grid (tokens / T, rows / 32).
// `p` holds gate and up; `value` is [tokens][rows].
template <i32 T>
DEVICE void swiglu(const Products &p, const Activations *x, const float *values, const u32 *count, float *value,
                   Activations *blocks) {
    SHARED(float, tile, Tile<T>::FLOATS);
    SHARED(float, outputs, 2 * T * OUTPUTS);
    u32 first = blockIdx.x * T, all = *count;
    if (first >= all) return;
    u32 tokens = all - first < T ? all - first : T;
    u32 thread = threadIdx.x, token = token_of<T>(thread);
#pragma unroll 1
    for (u32 part = 0; part < 4; part++) {
        const Matrix &m = p.matrices[part / 2];
        u32 group = blockIdx.y * 2 + part % 2, row = group * LANES + row_of<T>(thread);
        float output = 0.0f;
        if (group * LANES < m.rows) {
            const Activations *input = x + size_t(first) * (m.cols / BLOCK);
            output = group_product<T>(m, group, input, values + size_t(first) * m.cols, tokens, tile);
            if (m.bias && row < m.rows) output = add_(output, m.bias[row]);
        }
        if (token < T) outputs[(part / 2 * T + token) * OUTPUTS + part % 2 * LANES + row_of<T>(thread)] = output;
    }
    sync_block();
    gated_rows<T>(p, outputs, first, tokens, value, blocks);
}

KERNEL(swiglu_1, const Products p, const Activations *x, const float *values, const u32 *count, float *value,
       Activations *blocks) {
    swiglu<1>(p, x, values, count, value, blocks);
}

KERNEL(swiglu_4, const Products p, const Activations *x, const float *values, const u32 *count, float *value,
       Activations *blocks) {
    swiglu<4>(p, x, values, count, value, blocks);
}

KERNEL(swiglu_8, const Products p, const Activations *x, const float *values, const u32 *count, float *value,
       Activations *blocks) {
    swiglu<8>(p, x, values, count, value, blocks);
}
