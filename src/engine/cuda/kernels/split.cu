// Attention of few tokens with long contexts, in three launches: all spans of 64 positions are computed side by side,
// and joined in their order. The bits are those of one launch.
#include "attention.h"

// What the launches hand over, for each token, KV head and span, in floats.
struct Span {
    float *scores; // [heads][SPAN]
    float *max;    // [heads]: the largest score, times its query's factor
    float *decay;  // [heads]: of what is before the span
    float *back;   // [heads]
    float *sums;   // [heads][16]
    float *pages;  // [heads][SPAN_PAGES][columns]: sums over a page
};

DEVICE Span span_of(const Kv &kv, u32 heads, float *room, u32 token, u32 kv_head, u32 spans, u32 span) {
    Span s;
    size_t floats = heads * SPAN + 3 * LANES + heads * LANES + heads * SPAN_PAGES * kv.value_stride;
    s.scores = room + ((size_t(token) * kv.kv_heads + kv_head) * spans + span) * floats;
    s.max = s.scores + heads * SPAN;
    s.decay = s.max + LANES;
    s.back = s.decay + LANES;
    s.sums = s.back + LANES;
    s.pages = s.sums + heads * LANES;
    return s;
}

// The tokens of a block, from its own on: those of its tile where they share the span, and otherwise one. None: another
// block has it.
DEVICE u32 rows_of_span(const Place *places, u32 span) {
    Tile tile = places[blockIdx.x].tile;
    if (span >= tile.shared) return 1;
    return tile.first == blockIdx.x ? tile.rows : 0;
}

// First launch: scores and their maxima. Grid (tokens, kv_heads, spans).
KERNEL(attend_scores, const Kv kv, const i16 *whole, const float *factors, const u32 *tables, const Place *places,
       const u32 *count, u32 group, float *room) {
    SHARED(u32, queries, MOST_QUERY_WORDS);
    SHARED(float, scores, QUERIES * SCORES);
    SHARED(u32, of_rows, 4 * MOST_ROWS);
    if (blockIdx.x >= *count) return;
    u32 kv_head = blockIdx.y, span = blockIdx.z, lane = threadIdx.x % LANES;
    u32 rows = rows_of_span(places, span);
    if (rows == 0) return;
    Queries tile = load_rows(group, rows, places + blockIdx.x, of_rows);
    Part part = whole_part(tile, tables, span, last_of(tile));
    if (part.visible == 0) return;
    stage_queries(kv, tile, whole, kv_head, queries);
    sync_block();
    span_scores<FRAGMENTS>(kv, part, kv_head, queries, scores);
    sync_block();
    for (u32 start = threadIdx.x / 32 * 2; start < fragments_of(tile) * FRAGMENT; start += 2 * WARPS) {
        u32 query = start + threadIdx.x % 32 / LANES, row = row_of(tile, query), head = head_of(tile, query);
        bool is_query = row < tile.rows;
        Softmax s = scores_of(scores + query * SCORES, is_query ? seen_of(tile, row, span) : 0);
        if (!is_query) continue;
        Span to = span_of(kv, group, room, tile.out_row[row], kv_head, gridDim.z, span);
#pragma unroll
        for (u32 page = 0; page < SPAN_PAGES; page++) to.scores[head * SPAN + page * LANES + lane] = s.score[page];
        float factor = factors[first_head(kv, tile, row, kv_head) + head];
        if (lane == 0) to.max[head] = mul_(s.largest, factor);
    }
}

// Second launch: powers, by the running maximum of the spans up to this one, and their products with values. Grid as
// above.
KERNEL(attend_values, const Kv kv, const float *factors, const u32 *tables, const Place *places, const u32 *count,
       u32 group, float *room) {
    SHARED(u32, powers, QUERIES * SCORES);
    SHARED(float, scales, SPAN);
    SHARED(u32, of_rows, 4 * MOST_ROWS);
    if (blockIdx.x >= *count) return;
    u32 kv_head = blockIdx.y, span = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % LANES;
    u32 rows = rows_of_span(places, span);
    if (rows == 0) return;
    Queries tile = load_rows(group, rows, places + blockIdx.x, of_rows);
    Part part = whole_part(tile, tables, span, last_of(tile));
    if (part.visible == 0) return;
    span_scales(kv, part, kv_head, threadIdx.x, scales);
    sync_block();
    u32 fragments = fragments_of(tile);
    for (u32 start = 2 * warp; start < fragments * FRAGMENT; start += 2 * WARPS) {
        u32 query = start + threadIdx.x % 32 / LANES, row = row_of(tile, query), head = head_of(tile, query);
        bool is_query = row < tile.rows;
        u32 seen = is_query ? seen_of(tile, row, span) : 0;
        float factor = 0.0f, before = NEGATIVE_INFINITY, now = before;
        Softmax s = {};
        if (is_query) {
            factor = factors[first_head(kv, tile, row, kv_head) + head];
            Span from = span_of(kv, group, room, tile.out_row[row], kv_head, gridDim.z, span);
            now = from.max[head];
#pragma unroll
            for (u32 page = 0; page < SPAN_PAGES; page++)
                s.score[page] = from.scores[head * SPAN + page * LANES + lane];
            for (u32 at = lane; at < span; at += LANES)
                before = max_(before, span_of(kv, group, room, tile.out_row[row], kv_head, gridDim.z, at).max[head]);
        }
        for (i32 mask = 8; mask > 0; mask /= 2) before = max_(before, shuffle_xor(before, mask));
        now = max_(before, now);
        powers_of(s, scales, seen, factor, now, query, powers);
        if (!is_query) continue;
        Span to = span_of(kv, group, room, tile.out_row[row], kv_head, gridDim.z, span);
        to.sums[head * LANES + lane] = s.sum;
        if (lane == 0) {
            to.decay[head] = decay_of(before, now);
            to.back[head] = s.back;
        }
    }
    sync_block();
    u32 g = threadIdx.x % 32 / 4, n = threadIdx.x % 4;
    for (u32 unit = warp; unit * LANES < kv.value_stride; unit += WARPS) {
        Values values[SPAN_PAGES];
#pragma unroll
        for (u32 page = 0; page < SPAN_PAGES; page++) values[page] = values_of(kv, part, kv_head, page, unit);
        for (u32 f = 0; f < fragments; f++) {
#pragma unroll
            for (u32 page = 0; page < SPAN_PAGES; page++) {
                if (page * LANES >= part.visible) continue;
                i32 sums[8];
                page_sums(values[page], powers, f, page, sums);
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    u32 query = f * FRAGMENT + g + 8 * half, row = row_of(tile, query);
                    if (row >= tile.rows) continue;
                    Span to = span_of(kv, group, room, tile.out_row[row], kv_head, gridDim.z, span);
                    float4 sum;
                    sum.x = int_to_f32(sums[4 * half]);
                    sum.y = int_to_f32(sums[4 * half + 1]);
                    sum.z = int_to_f32(sums[4 * half + 2]);
                    sum.w = int_to_f32(sums[4 * half + 3]);
                    u32 at = (head_of(tile, query) * SPAN_PAGES + page) * kv.value_stride + unit * LANES + 4 * n;
                    *(float4 *)(to.pages + at) = sum;
                }
            }
        }
    }
}

// Spans whose parts `attend_join` loads at a time.
#define AHEAD 4

// Third launch: the spans' parts are joined in their order. Grid (tokens, kv_heads, heads of a KV head).
KERNEL(attend_join, const Kv kv, const Token *tokens, const u32 *count, u32 group, u32 spans, float *room,
       float *attended, Activations *blocks) {
    SHARED(float, outputs, MOST_COLUMNS);
    SHARED(float, sums, LANES);
    u32 token = blockIdx.x, kv_head = blockIdx.y, head = blockIdx.z, stride = kv.value_stride;
    if (token >= *count) return;
    u32 position = tokens[token].position, last = position / SPAN;
    // Columns, then the lanes of the sums.
    for (u32 at = threadIdx.x; at < stride + LANES; at += blockDim.x) {
        bool is_sum = at >= stride;
        float value = 0.0f;
        for (u32 first = 0; first <= last; first += AHEAD) {
            float decay[AHEAD], back[AHEAD], parts[AHEAD][SPAN_PAGES];
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ahead++) {
                u32 index = first + ahead;
                decay[ahead] = 1.0f;
                back[ahead] = 1.0f;
                if (index <= last) {
                    Span span = span_of(kv, group, room, token, kv_head, spans, index);
                    decay[ahead] = span.decay[head];
                    if (!is_sum) back[ahead] = span.back[head];
#pragma unroll
                    for (u32 page = 0; page < SPAN_PAGES; page++) {
                        bool is_there = index * SPAN + page * LANES <= position;
                        parts[ahead][page] = 0.0f;
                        if (is_sum && page == 0) parts[ahead][page] = span.sums[head * LANES + at - stride];
                        if (!is_sum && is_there)
                            parts[ahead][page] = span.pages[(head * SPAN_PAGES + page) * stride + at];
                    }
                }
            }
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ahead++) {
                if (first + ahead > last) continue;
                if (is_sum) {
                    value = decay[ahead] == 0.0f ? parts[ahead][0] : fma_(value, decay[ahead], parts[ahead][0]);
                    continue;
                }
                value = decay[ahead] == 0.0f ? 0.0f : mul_(value, decay[ahead]);
#pragma unroll
                for (u32 page = 0; page < SPAN_PAGES; page++) value = fma_(parts[ahead][page], back[ahead], value);
            }
        }
        if (is_sum)
            sums[at - stride] = value;
        else
            outputs[at] = value;
    }
    sync_block();
    size_t row = (size_t(token) * kv.kv_heads + kv_head) * group + head;
    if (threadIdx.x < 32) finish(kv, row, outputs, sums, attended, blocks);
}
