// What is between the products: embedding, norms, rotary embedding, and writing keys and values.
#include "matrix.h"
#include "pass.h"

// Sum of squares of a row by lanes 0..16 of a warp, as the CPU's sixteen lanes, and the norm's factor, in all
// lanes.
DEVICE float norm_factor(const float *x, u32 size, float epsilon) {
    u32 lane = threadIdx.x % 32;
    float squares = 0.0f;
    if (lane < LANES)
        for (u32 at = lane; at < size; at += LANES) squares = fma_(x[at], x[at], squares);
    float mean = div_(shuffle(sum_of_lanes(squares), 0), int_to_f32(size));
    return div_(1.0f, sqrt_(add_(mean, epsilon)));
}

// stream[token] = the row of the table: grid (tokens).
KERNEL(embed, const Matrix table, const Token *tokens, const Pass *pass, float *stream) {
    u32 token = blockIdx.x;
    if (token >= pass->tokens) return;
    u32 row = tokens[token].id, group = row / LANES, lane = row % LANES, cols = table.cols;
    float *to = stream + size_t(token) * cols;
    for (u32 column = threadIdx.x; column < cols; column += blockDim.x) {
        float value;
        if (is_dense(table.format)) {
            value = dense_weight(table, group, column, lane);
        } else {
            u32 block = column / BLOCK;
            i32 quant = quant_of(table, group, block, column % BLOCK, lane);
            Scales s = scales_of(table, group, block, lane);
            float scale = table.format == U6_HALF && column % BLOCK >= BLOCK / 2 ? s.second : s.scale;
            value = add_(mul_(scale, int_to_f32(quant)), s.min);
        }
        to[column] = value;
    }
}

// stream += delta; normed = RMS norm of stream, and its quantisation: grid (tokens). `delta` is null before
// the first layer; there the CPU adds 0. `blocks` may be null.
KERNEL(add_norm, float *stream, const float *delta, const float *weight, float *normed, Activations *blocks,
       const u32 *count, u32 size, float epsilon) {
    SHARED(float, factor, 1);
    u32 token = blockIdx.x;
    if (token >= *count) return;
    float *x = stream + size_t(token) * size;
    for (u32 at = threadIdx.x; at < size; at += blockDim.x)
        x[at] = add_(x[at], delta ? delta[size_t(token) * size + at] : 0.0f);
    sync_block();
    if (threadIdx.x < 32) {
        float f = norm_factor(x, size, epsilon);
        if (threadIdx.x == 0) *factor = f;
    }
    sync_block();
    float scale = *factor;
    u32 padded = (size + 31) / 32 * 32;
    for (u32 at = threadIdx.x; at < padded; at += blockDim.x) {
        float y = 0.0f;
        if (at < size) {
            y = mul_(mul_(x[at], scale), weight[at]);
            normed[size_t(token) * size + at] = y;
        }
        if (blocks) quantise(y, blocks + size_t(token) * (size / BLOCK) + at / BLOCK);
    }
}

// [tokens][size] → blocks: grid (tokens). The size is a multiple of 32.
KERNEL(quantise_rows, const float *x, Activations *blocks, const u32 *count, u32 size) {
    u32 token = blockIdx.x;
    if (token >= *count) return;
    for (u32 at = threadIdx.x; at < size; at += blockDim.x)
        quantise(x[size_t(token) * size + at], blocks + size_t(token) * (size / BLOCK) + at / BLOCK);
}

// Moves the rows of the tokens whose logits are wanted to the front: grid (1), because a row may be another's
// source. Rows are in ascending order.
KERNEL(keep_rows, float *x, const Token *ends, const Pass *pass, u32 size) {
    for (u32 end = 0; end < pass->ends; end++) {
        const float *from = x + size_t(ends[end].row) * size;
        float *to = x + size_t(end) * size;
        if (from == to) continue;
        for (u32 at = threadIdx.x; at < size; at += blockDim.x) to[at] = from[at];
    }
}

// What the rotary embedding and the norms of heads need.
struct Heads {
    const float *query_norm, *key_norm; // [head_size], or null
    const float *cos, *sin;             // [positions][pairs]
    u32 heads, pairs;
    float epsilon;
    u32 unused;
};

// Norms and rotates queries and keys, quantises queries, and writes keys and values to their pages: grid
// (tokens, heads + 2 · kv_heads), a warp each. `whole` is [tokens][heads][head_size], `factors` [tokens][heads].
KERNEL(rotate_and_store, const Heads h, const Kv kv, const float *queries, const float *keys, const float *values,
       const Token *tokens, const u32 *tables, const Pass *pass, i16 *whole, float *factors) {
    SHARED(float, x, 512);
    u32 token = blockIdx.x, head = blockIdx.y, lane = threadIdx.x, size = kv.head_size;
    if (token >= pass->tokens) return;
    bool is_query = head < h.heads, is_value = head >= h.heads + kv.kv_heads;
    u32 kv_head = is_value ? head - h.heads - kv.kv_heads : head - h.heads;
    const float *from = is_query ? queries + (size_t(token) * h.heads + head) * size
                                 : (is_value ? values : keys) + (size_t(token) * kv.kv_heads + kv_head) * size;
    u32 position = tokens[token].position;
    for (u32 at = lane; at < size; at += 32) x[at] = from[at];
    sync_warp();
    const float *norm = is_query ? h.query_norm : h.key_norm;
    if (norm && !is_value) {
        float factor = norm_factor(x, size, h.epsilon);
        sync_warp();
        for (u32 at = lane; at < size; at += 32) x[at] = mul_(mul_(x[at], factor), norm[at]);
        sync_warp();
    }
    if (!is_value) {
        const float *cos = h.cos + size_t(position) * h.pairs, *sin = h.sin + size_t(position) * h.pairs;
        for (u32 at = lane; at < h.pairs; at += 32) {
            float a = x[at], b = x[at + h.pairs];
            x[at] = fma_(sub_(0.0f, b), sin[at], mul_(a, cos[at]));
            x[at + h.pairs] = fma_(a, sin[at], mul_(b, cos[at]));
        }
        sync_warp();
    }
    float largest = 0.0f;
    for (u32 at = lane; at < size; at += 32) largest = max_(largest, abs_(within(x[at])));
    for (i32 mask = 16; mask > 0; mask /= 2) largest = max_(largest, shuffle_xor(largest, mask));
    float inverse, scale = whole_scale(largest, is_query ? kv.query_limit : 4095.0f, &inverse);
    if (is_query) {
        size_t row = size_t(token) * h.heads + head;
        for (u32 at = lane; at < size; at += 32)
            whole[row * size + at] = i16(f32_to_int(rint_(mul_(within(x[at]), inverse))));
        if (lane == 0) factors[row] = mul_(scale, kv.scale);
        return;
    }
    u32 page = tables[tokens[token].table + position / LANES], slot = position % LANES;
    i16 *to = head_page(kv, page, kv_head) + (is_value ? kv.values_at : 0);
    if (lane == 0) ((float *)to)[slot] = scale;
    to += SCALES;
    // Values: [8 pairs of tokens][stride][2], with zeros up to the stride. Keys: [pairs of columns][16 tokens][2].
    u32 columns = is_value ? kv.value_stride : 2 * kv.key_pairs;
    for (u32 at = lane; at < columns; at += 32) {
        i16 number = at < size ? i16(f32_to_int(rint_(mul_(within(x[at]), inverse)))) : i16(0);
        u32 index = is_value ? (slot / 2 * kv.value_stride + at) * 2 + slot % 2 : (at / 2 * LANES + slot) * 2 + at % 2;
        to[index] = number;
    }
}
