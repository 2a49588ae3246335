// Attention over paged keys and values, by crates/kernels' attention.rs: exact integer products, and a running
// softmax over blocks of 64 positions. One block of threads computes the query heads of one token that share
// a KV head.
#include "pass.h"

#define THREADS 128
// Positions of a softmax block, and its pages.
#define SPAN 64
#define SPAN_PAGES 4
// The largest integer power.
#define POWER 32767.0f
// Most query heads to a KV head, and most columns of a head.
#define MOST_HEADS 16
#define MOST_COLUMNS 256
// Query heads that share each load of keys and values.
#define TOGETHER 4

// The product of two pairs of 16-bit integers.
DEVICE i32 dot_pair(u32 a, u32 b, i32 sum) {
    return sum + i32(i16(a)) * i32(i16(b)) + (i32(a) >> 16) * (i32(b) >> 16);
}

// The scores of a block of positions: [heads][SPAN], −∞ beyond `seen`. Each key is read once for TOGETHER heads:
// two threads share a position, and a pair of threads the pairs of columns.
DEVICE void block_scores(const Kv &kv, const u32 *pages, u32 kv_head, u32 seen, u32 heads, const i16 *queries,
                         float *scores) {
    u32 position = threadIdx.x / 2, half = threadIdx.x % 2;
    bool sees = position < seen;
    const i16 *page = head_page(kv, pages[sees ? position / LANES : 0], kv_head);
    const u32 *keys = (const u32 *)(page + SCALES) + position % LANES;
    for (u32 first = 0; first < heads; first += TOGETHER) {
        i32 sums[TOGETHER];
#pragma unroll
        for (u32 at = 0; at < TOGETHER; at++) sums[at] = 0;
        if (sees) {
            for (u32 pair = half; pair < kv.key_pairs; pair += 2) {
                u32 key = keys[pair * LANES];
#pragma unroll
                for (u32 at = 0; at < TOGETHER; at++)
                    if (first + at < heads)
                        sums[at] = dot_pair(key, ((const u32 *)queries)[(first + at) * kv.key_pairs + pair], sums[at]);
            }
        }
        float scale = sees ? ((const float *)page)[position % LANES] : 0.0f;
#pragma unroll
        for (u32 at = 0; at < TOGETHER; at++) {
            i32 sum = sums[at] + shuffle_xor(sums[at], 1);
            if (half == at % 2 && first + at < heads)
                scores[(first + at) * SPAN + position] = sees ? mul_(int_to_f32(sum), scale) : NEGATIVE_INFINITY;
        }
    }
}

// The factors that make a block's powers integers, by a warp; returns what converts the sums back.
DEVICE float block_weights(const Kv &kv, const u32 *pages, u32 kv_head, u32 seen, float *weights) {
    u32 lane = threadIdx.x % 32;
    float scale[2], largest = 0.0f;
    for (u32 half = 0; half < 2; half++) {
        u32 position = half * 32 + lane;
        scale[half] = 0.0f;
        if (position < seen) {
            const i16 *page = head_page(kv, pages[position / LANES], kv_head);
            scale[half] = ((const float *)(page + kv.values_at))[position % LANES];
        }
        largest = max_(largest, scale[half]);
    }
    for (i32 mask = 16; mask > 0; mask /= 2) largest = max_(largest, shuffle_xor(largest, mask));
    float inverse = largest == 0.0f ? 0.0f : div_(POWER, largest);
    for (u32 half = 0; half < 2; half++) weights[half * 32 + lane] = mul_(scale[half], inverse);
    return div_(largest, POWER);
}

// The softmax of one block for one head, by a warp: powers, running maximum and sums, and the factor for the
// outputs so far (0: there are none).
DEVICE void softmax_block(const float *scores, const float *weights, u32 seen, float factor, i16 *powers, float *max,
                          float *sums, float *decay) {
    u32 lane = threadIdx.x % 32;
    float largest = max_(scores[lane], scores[lane + 32]);
    for (i32 mask = 16; mask > 0; mask /= 2) largest = max_(largest, shuffle_xor(largest, mask));
    float before = *max, now = max_(before, mul_(largest, factor));
    sync_warp();
    float old = 1.0f;
    if (now > before) old = before == NEGATIVE_INFINITY ? 0.0f : exp_(sub_(before, now), 0.0f);
    if (lane < LANES) {
        float sum = 0.0f;
        for (u32 page = 0; page < SPAN_PAGES; page++) {
            u32 at = page * LANES + lane;
            float power = at < seen ? exp_(fma_(scores[at], factor, sub_(0.0f, now)), 0.0f) : 0.0f;
            sum = add_(sum, power);
            powers[at] = i16(f32_to_int(rint_(mul_(power, weights[at]))));
        }
        if (now > before) {
            if (before != NEGATIVE_INFINITY) sum = fma_(sums[lane], old, sum);
        } else {
            sum = add_(sums[lane], sum);
        }
        sums[lane] = sum;
    }
    if (lane == 0) {
        *max = now;
        *decay = old;
    }
}

// outputs[head][column] = outputs · decay + Σ power · value, page by page. Two threads share a column, and each
// takes half of a page's pairs of tokens; the sums of even heads go to the first thread, of odd heads to the
// second. Each value is read once for TOGETHER heads.
DEVICE void accumulate(const Kv &kv, const u32 *pages, u32 kv_head, u32 seen, u32 heads, const i16 *powers,
                       const float *decay, float back, float *outputs) {
    u32 stride = kv.value_stride, half = threadIdx.x % 2;
    for (u32 column = threadIdx.x / 2; column < stride; column += THREADS / 2) {
        for (u32 first = 0; first < heads; first += TOGETHER) {
            float output[TOGETHER];
#pragma unroll
            for (u32 at = 0; at < TOGETHER; at++) {
                output[at] = 0.0f;
                if (half == at % 2 && first + at < heads) {
                    float old = decay[first + at];
                    if (old != 0.0f) output[at] = outputs[(first + at) * stride + column];
                    if (old != 1.0f) output[at] = mul_(output[at], old);
                }
            }
            for (u32 page = 0; page * LANES < seen; page++) {
                const u32 *values = (const u32 *)(head_page(kv, pages[page], kv_head) + kv.values_at + SCALES) + column;
                i32 sums[TOGETHER];
#pragma unroll
                for (u32 at = 0; at < TOGETHER; at++) sums[at] = 0;
#pragma unroll
                for (u32 pair = 0; pair < LANES / 4; pair++) {
                    u32 in_page = half * (LANES / 4) + pair, value = values[in_page * stride];
#pragma unroll
                    for (u32 at = 0; at < TOGETHER; at++)
                        if (first + at < heads) {
                            const u32 *power = (const u32 *)(powers + (first + at) * SPAN);
                            sums[at] = dot_pair(value, power[page * (LANES / 2) + in_page], sums[at]);
                        }
                }
#pragma unroll
                for (u32 at = 0; at < TOGETHER; at++)
                    output[at] = fma_(int_to_f32(sums[at] + shuffle_xor(sums[at], 1)), back, output[at]);
            }
#pragma unroll
            for (u32 at = 0; at < TOGETHER; at++)
                if (half == at % 2 && first + at < heads) outputs[(first + at) * stride + column] = output[at];
        }
    }
}

// Grid (tokens, kv_heads). `tokens` are the pass's, or those whose logits are wanted; `whole` and `factors` are
// those of `rotate_and_store`, by the row of the pass. `attended` is [tokens][heads][head_size]; `blocks`, its
// quantisation, is there if the head size is a multiple of 32.
KERNEL(attend, const Kv kv, const i16 *whole, const float *factors, const Token *tokens, const u32 *tables,
       const u32 *count, u32 group, float *attended, Activations *blocks) {
    SHARED(i16, queries, MOST_HEADS * MOST_COLUMNS);
    SHARED(float, outputs, MOST_HEADS * MOST_COLUMNS);
    SHARED(float, scores, MOST_HEADS * SPAN);
    SHARED(i16, powers, MOST_HEADS * SPAN);
    SHARED(float, weights, SPAN);
    SHARED(float, sums, MOST_HEADS * LANES);
    SHARED(float, max, MOST_HEADS);
    SHARED(float, decay, MOST_HEADS);
    SHARED(float, back, 1);
    u32 token = blockIdx.x, kv_head = blockIdx.y, thread = threadIdx.x, warp = thread / 32;
    if (token >= *count) return;
    u32 size = kv.head_size, heads = group * kv.kv_heads, last = tokens[token].position;
    const u32 *table = tables + tokens[token].table;
    size_t first_head = size_t(tokens[token].row) * heads + kv_head * group;
    for (u32 at = thread; at < group * 2 * kv.key_pairs; at += THREADS) {
        u32 head = at / (2 * kv.key_pairs), column = at % (2 * kv.key_pairs);
        queries[at] = column < size ? whole[(first_head + head) * size + column] : i16(0);
    }
    for (u32 at = thread; at < group * LANES; at += THREADS) sums[at] = 0.0f;
    for (u32 at = thread; at < group * kv.value_stride; at += THREADS) outputs[at] = 0.0f;
    if (thread < group) max[thread] = NEGATIVE_INFINITY;
    sync_block();
    for (u32 first = 0; first <= last; first += SPAN) {
        u32 seen = last + 1 - first < SPAN ? last + 1 - first : SPAN;
        const u32 *pages = table + first / LANES;
        block_scores(kv, pages, kv_head, seen, group, queries, scores);
        if (warp == 0) {
            float factor = block_weights(kv, pages, kv_head, seen, weights);
            if (thread == 0) *back = factor;
        }
        sync_block();
        for (u32 head = warp; head < group; head += THREADS / 32)
            softmax_block(scores + head * SPAN, weights, seen, factors[first_head + head], powers + head * SPAN,
                          max + head, sums + head * LANES, decay + head);
        sync_block();
        accumulate(kv, pages, kv_head, seen, group, powers, decay, *back, outputs);
        sync_block();
    }
    // Every thread reads the sums and columns that others have written.
    for (u32 head = warp; head < group; head += THREADS / 32) {
        u32 lane = thread % 32;
        float sum = lane < LANES ? sums[head * LANES + lane] : 0.0f;
        float inverse = div_(1.0f, shuffle(sum_of_lanes(sum), 0));
        u32 padded = (size + 31) / 32 * 32;
        size_t row = size_t(token) * heads + kv_head * group + head;
        for (u32 at = lane; at < padded; at += 32) {
            float y = 0.0f;
            if (at < size) {
                y = add_(mul_(outputs[head * kv.value_stride + at], inverse), 0.0f);
                attended[row * size + at] = y;
            }
            if (blocks) quantise(y, blocks + row * (size / BLOCK) + at / BLOCK);
        }
    }
}
