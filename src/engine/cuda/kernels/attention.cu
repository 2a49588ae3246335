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

// What is left of the outputs so far when the maximum rises from `before` to `now`; 0: there are none.
DEVICE float decay_of(float before, float now) {
    if (!(now > before)) return 1.0f;
    return before == NEGATIVE_INFINITY ? 0.0f : exp_(sub_(before, now), 0.0f);
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
    float old = decay_of(before, now);
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

// Σ power · value over the tokens of a page, for a column and TOGETHER heads from `first` on. Two threads each take
// half of the pairs of tokens, and both get the sums.
DEVICE void page_sums(const Kv &kv, u32 page, u32 kv_head, u32 column, u32 half, u32 heads, u32 first,
                      const i16 *powers, u32 in_span, i32 *sums) {
    const u32 *values = (const u32 *)(head_page(kv, page, kv_head) + kv.values_at + SCALES) + column;
#pragma unroll
    for (u32 at = 0; at < TOGETHER; at++) sums[at] = 0;
#pragma unroll
    for (u32 pair = 0; pair < LANES / 4; pair++) {
        u32 in_page = half * (LANES / 4) + pair, value = values[in_page * kv.value_stride];
#pragma unroll
        for (u32 at = 0; at < TOGETHER; at++)
            if (first + at < heads) {
                const u32 *power = (const u32 *)(powers + (first + at) * SPAN);
                sums[at] = dot_pair(value, power[in_span * (LANES / 2) + in_page], sums[at]);
            }
    }
#pragma unroll
    for (u32 at = 0; at < TOGETHER; at++) sums[at] += shuffle_xor(sums[at], 1);
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
                i32 sums[TOGETHER];
                page_sums(kv, pages[page], kv_head, column, half, heads, first, powers, page, sums);
#pragma unroll
                for (u32 at = 0; at < TOGETHER; at++)
                    output[at] = fma_(int_to_f32(sums[at]), back, output[at]);
            }
#pragma unroll
            for (u32 at = 0; at < TOGETHER; at++)
                if (half == at % 2 && first + at < heads) outputs[(first + at) * stride + column] = output[at];
        }
    }
}

// The integers of a token's queries to a KV head: [heads][2 · pairs of columns].
DEVICE void stage_queries(const Kv &kv, const i16 *whole, size_t first_head, u32 heads, i16 *queries) {
    for (u32 at = threadIdx.x; at < heads * 2 * kv.key_pairs; at += THREADS) {
        u32 head = at / (2 * kv.key_pairs), column = at % (2 * kv.key_pairs);
        queries[at] = column < kv.head_size ? whole[(first_head + head) * kv.head_size + column] : i16(0);
    }
}

// Divides the outputs by their sums, stores them and quantises them, a head to a warp. `row` is the first head's
// in [tokens][heads].
DEVICE void finish(const Kv &kv, u32 heads, size_t row, const float *outputs, const float *sums, float *attended,
                   Activations *blocks) {
    u32 lane = threadIdx.x % 32, size = kv.head_size, padded = (size + 31) / 32 * 32;
    for (u32 head = threadIdx.x / 32; head < heads; head += THREADS / 32) {
        float sum = lane < LANES ? sums[head * LANES + lane] : 0.0f;
        float inverse = div_(1.0f, shuffle(sum_of_lanes(sum), 0));
        for (u32 at = lane; at < padded; at += 32) {
            float y = 0.0f;
            if (at < size) {
                y = add_(mul_(outputs[head * kv.value_stride + at], inverse), 0.0f);
                attended[(row + head) * size + at] = y;
            }
            if (blocks) quantise(y, blocks + (row + head) * (size / BLOCK) + at / BLOCK);
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
    u32 heads = group * kv.kv_heads, last = tokens[token].position;
    const u32 *table = tables + tokens[token].table;
    size_t first_head = size_t(tokens[token].row) * heads + kv_head * group;
    stage_queries(kv, whole, first_head, group, queries);
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
    finish(kv, group, size_t(token) * heads + kv_head * group, outputs, sums, attended, blocks);
}

// Few tokens with long contexts: three launches, so that all spans of 64 positions are computed side by side. What
// they hand over, for each token, KV head and span, in floats:
struct Span {
    float *scores;  // [heads][SPAN]
    float *weights; // [SPAN]
    float *back;    // one
    float *max;     // [heads]: the largest score, times its query's factor
    float *sums;    // [heads][16]
    float *pages;   // [heads][SPAN_PAGES][columns]: sums over a page
};

DEVICE Span span_of(const Kv &kv, u32 heads, float *room, u32 token, u32 kv_head, u32 spans, u32 span) {
    Span s;
    size_t floats = heads * SPAN + SPAN + LANES + MOST_HEADS + heads * LANES + heads * SPAN_PAGES * kv.value_stride;
    s.scores = room + ((size_t(token) * kv.kv_heads + kv_head) * spans + span) * floats;
    s.weights = s.scores + heads * SPAN;
    s.back = s.weights + SPAN;
    s.max = s.back + LANES;
    s.sums = s.max + MOST_HEADS;
    s.pages = s.sums + heads * LANES;
    return s;
}

// The positions of a span that a token sees.
DEVICE u32 seen_of(u32 position, u32 span) {
    u32 first = span * SPAN;
    if (position < first) return 0;
    return position + 1 - first < SPAN ? position + 1 - first : SPAN;
}

// First launch: scores, their maxima, and the factors of the values. Grid (tokens, kv_heads, spans).
KERNEL(attend_scores, const Kv kv, const i16 *whole, const float *factors, const Token *tokens, const u32 *tables,
       const u32 *count, u32 group, float *room) {
    SHARED(i16, queries, MOST_HEADS * MOST_COLUMNS);
    u32 token = blockIdx.x, kv_head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (token >= *count) return;
    u32 seen = seen_of(tokens[token].position, blockIdx.z);
    if (seen == 0) return;
    const u32 *pages = tables + tokens[token].table + blockIdx.z * SPAN_PAGES;
    size_t first_head = (size_t(tokens[token].row) * kv.kv_heads + kv_head) * group;
    Span span = span_of(kv, group, room, token, kv_head, gridDim.z, blockIdx.z);
    stage_queries(kv, whole, first_head, group, queries);
    sync_block();
    block_scores(kv, pages, kv_head, seen, group, queries, span.scores);
    if (warp == 0) {
        float back = block_weights(kv, pages, kv_head, seen, span.weights);
        if (lane == 0) *span.back = back;
    }
    sync_block();
    for (u32 head = warp; head < group; head += THREADS / 32) {
        const float *scores = span.scores + head * SPAN;
        float largest = max_(scores[lane], scores[lane + 32]);
        for (i32 mask = 16; mask > 0; mask /= 2) largest = max_(largest, shuffle_xor(largest, mask));
        if (lane == 0) span.max[head] = mul_(largest, factors[first_head + head]);
    }
}

// Second launch: powers, by the running maximum of the spans up to this one, and their products with values. Grid as
// above.
KERNEL(attend_values, const Kv kv, const float *factors, const Token *tokens, const u32 *tables, const u32 *count,
       u32 group, float *room) {
    SHARED(i16, powers, MOST_HEADS * SPAN);
    u32 token = blockIdx.x, kv_head = blockIdx.y, lane = threadIdx.x % 32, half = threadIdx.x % 2;
    if (token >= *count) return;
    u32 seen = seen_of(tokens[token].position, blockIdx.z);
    if (seen == 0) return;
    const u32 *pages = tables + tokens[token].table + blockIdx.z * SPAN_PAGES;
    size_t first_head = (size_t(tokens[token].row) * kv.kv_heads + kv_head) * group;
    Span span = span_of(kv, group, room, token, kv_head, gridDim.z, blockIdx.z);
    for (u32 head = threadIdx.x / 32; head < group; head += THREADS / 32) {
        float now = NEGATIVE_INFINITY, factor = factors[first_head + head];
        for (u32 at = lane; at <= blockIdx.z; at += 32)
            now = max_(now, span_of(kv, group, room, token, kv_head, gridDim.z, at).max[head]);
        for (i32 mask = 16; mask > 0; mask /= 2) now = max_(now, shuffle_xor(now, mask));
        if (lane >= LANES) continue;
        float sum = 0.0f;
        for (u32 page = 0; page < SPAN_PAGES; page++) {
            u32 at = page * LANES + lane;
            float power = at < seen ? exp_(fma_(span.scores[head * SPAN + at], factor, sub_(0.0f, now)), 0.0f) : 0.0f;
            sum = add_(sum, power);
            powers[head * SPAN + at] = i16(f32_to_int(rint_(mul_(power, span.weights[at]))));
        }
        span.sums[head * LANES + lane] = sum;
    }
    sync_block();
    u32 stride = kv.value_stride;
    for (u32 column = threadIdx.x / 2; column < stride; column += THREADS / 2) {
        for (u32 first = 0; first < group; first += TOGETHER) {
            for (u32 page = 0; page * LANES < seen; page++) {
                i32 sums[TOGETHER];
                page_sums(kv, pages[page], kv_head, column, half, group, first, powers, page, sums);
#pragma unroll
                for (u32 at = 0; at < TOGETHER; at++)
                    if (half == at % 2 && first + at < group)
                        span.pages[((first + at) * SPAN_PAGES + page) * stride + column] = int_to_f32(sums[at]);
            }
        }
    }
}

// Third launch: the spans' parts are joined in their order. Grid (tokens, kv_heads).
KERNEL(attend_join, const Kv kv, const Token *tokens, const u32 *count, u32 group, u32 spans, float *room,
       float *attended, Activations *blocks) {
    SHARED(float, outputs, MOST_HEADS * MOST_COLUMNS);
    SHARED(float, sums, MOST_HEADS * LANES);
    u32 token = blockIdx.x, kv_head = blockIdx.y, stride = kv.value_stride;
    if (token >= *count) return;
    u32 position = tokens[token].position;
    // Columns, then the lanes of the sums.
    for (u32 at = threadIdx.x; at < group * (stride + LANES); at += THREADS) {
        bool is_sum = at >= group * stride;
        u32 in = is_sum ? at - group * stride : at, width = is_sum ? LANES : stride;
        u32 head = in / width, column = in % width;
        float value = 0.0f, before = NEGATIVE_INFINITY;
        for (u32 index = 0; index * SPAN <= position; index++) {
            Span span = span_of(kv, group, room, token, kv_head, spans, index);
            float now = max_(before, span.max[head]), old = decay_of(before, now);
            if (is_sum) {
                float sum = span.sums[in];
                value = old == 0.0f ? sum : fma_(value, old, sum);
            } else {
                if (old != 1.0f) value = old == 0.0f ? 0.0f : mul_(value, old);
                u32 seen = seen_of(position, index);
                float back = *span.back;
                for (u32 page = 0; page * LANES < seen; page++)
                    value = fma_(span.pages[(head * SPAN_PAGES + page) * stride + column], back, value);
            }
            before = now;
        }
        (is_sum ? sums : outputs)[in] = value;
    }
    sync_block();
    finish(kv, group, (size_t(token) * kv.kv_heads + kv_head) * group, outputs, sums, attended, blocks);
}
