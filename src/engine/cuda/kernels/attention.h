// Attention over paged keys and values, by crates/kernels' attention.rs: exact integer products, and a running
// softmax over spans of 64 positions.
//
// A block of 128 threads computes a tile: the query heads that share a KV head, of some tokens. The products of
// queries with keys, and of powers with values, are those of tensor cores: sixteen queries, a fragment, with the 16
// positions or columns that a warp has loaded once. Their numbers have two bytes, of which a product takes one:
// (256 · high + low) of both sides makes four products, whose sums are put together again.
#pragma once
#include "pass.h"

#define THREADS 128
#define WARPS 4
// Positions of a softmax block, and its pages: a warp has one.
#define SPAN 64
#define SPAN_PAGES 4
// The largest integer power.
#define POWER 32767.0f
// Query heads of a fragment.
#define FRAGMENT 16
// Fragments of a tile, at most. For heads of more than 128 columns there is one.
#define FRAGMENTS 2
#define QUERIES (FRAGMENT * FRAGMENTS)
// Most tokens of a tile, and most columns of a head.
#define MOST_ROWS 16
#define MOST_COLUMNS 256
// Words from one query's scores to the next: 64, padded so that two rows of a fragment are in different banks.
#define SCORES 80

// Words from one query's integers to the next, padded likewise: for each 32 columns and each quarter of a warp, the
// low and the high bytes of eight columns.
DEVICE u32 query_words(const Kv &kv) { return (kv.key_pairs + 15) / 16 * 16 | 16; }
// 32 queries of 128 columns, or 16 of 256.
#define MOST_QUERY_WORDS (QUERIES * 80)

// The queries of a tile: a fragment has whole tokens, and may end with rows that are none.
struct Queries {
    u32 group;        // query heads of a token
    u32 in_fragment;  // tokens of a fragment
    u32 rows;         // tokens
    // Of each token:
    u32 *position;
    u32 *table;       // offset of its page table
    u32 *query_row;   // of the queries and their factors
    u32 *out_row;     // of the outputs
};

DEVICE u32 fragments_of(const Queries &t) { return (t.rows + t.in_fragment - 1) / t.in_fragment; }
// A query's token; `rows` or more: none.
DEVICE u32 row_of(const Queries &t, u32 query) {
    u32 in = query % FRAGMENT / t.group;
    return in < t.in_fragment ? query / FRAGMENT * t.in_fragment + in : MOST_ROWS;
}
DEVICE u32 head_of(const Queries &t, u32 query) { return query % FRAGMENT % t.group; }
// The row of a token's first query head of a KV head, in [tokens][heads].
DEVICE size_t first_head(const Kv &kv, const Queries &t, u32 row, u32 kv_head) {
    return (size_t(t.query_row[row]) * kv.kv_heads + kv_head) * t.group;
}
// Positions of a span that a token sees.
DEVICE u32 seen_of(const Queries &t, u32 row, u32 span) {
    u32 first = span * SPAN, last = t.position[row];
    if (last < first) return 0;
    return last + 1 - first < SPAN ? last + 1 - first : SPAN;
}
// The last position that a token of the tile sees.
DEVICE u32 last_of(const Queries &t) {
    u32 last = 0;
    for (u32 row = 0; row < t.rows; row++) last = t.position[row] > last ? t.position[row] : last;
    return last;
}

// The part of a tile that sees a span in the same pages: all of it, or a token.
struct Part {
    u32 first_fragment, end_fragment;
    u32 low, high; // rows of each fragment
    u32 visible;   // positions
    const u32 *pages;
};

DEVICE bool has(const Part &part, u32 row) { return part.low <= row && row < part.high; }

// `last` is that of `last_of`.
DEVICE Part whole_part(const Queries &tile, const u32 *tables, u32 span, u32 last) {
    u32 visible = last < span * SPAN ? 0 : last + 1 - span * SPAN;
    return {0, fragments_of(tile), 0, FRAGMENT, visible < SPAN ? visible : SPAN,
            tables + tile.table[0] + span * SPAN_PAGES};
}
DEVICE Part row_part(const Queries &tile, const u32 *tables, u32 row, u32 span) {
    u32 fragment = row / tile.in_fragment, low = row % tile.in_fragment * tile.group;
    return {fragment, fragment + 1, low, low + tile.group, seen_of(tile, row, span),
            tables + tile.table[row] + span * SPAN_PAGES};
}

// Reads the tokens of a tile. `of_rows` is [4][MOST_ROWS].
DEVICE Queries load_rows(u32 group, u32 rows, const Place *places, u32 *of_rows) {
    u32 row = threadIdx.x;
    if (row < rows) {
        of_rows[row] = places[row].position;
        of_rows[MOST_ROWS + row] = places[row].table;
        of_rows[2 * MOST_ROWS + row] = places[row].row;
        of_rows[3 * MOST_ROWS + row] = places[row].token;
    }
    sync_block();
    return {group, FRAGMENT / group, rows, of_rows, of_rows + MOST_ROWS, of_rows + 2 * MOST_ROWS,
            of_rows + 3 * MOST_ROWS};
}

// The integers of a tile's queries, as the fragments of `span_scores` take them. Rows without a query are zero.
DEVICE void stage_queries(const Kv &kv, const Queries &tile, const i16 *whole, u32 kv_head, u32 *queries) {
    u32 stride = query_words(kv), parts = (kv.key_pairs + 15) / 16 * 4;
    for (u32 at = threadIdx.x; at < fragments_of(tile) * FRAGMENT * parts; at += THREADS) {
        u32 query = at / parts, part = at % parts, row = row_of(tile, query);
        u32 words[4];
        const i16 *from = whole;
        if (row < tile.rows) from += (first_head(kv, tile, row, kv_head) + head_of(tile, query)) * kv.head_size;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 column = 2 * (part / 4 * 16 + j * 4 + part % 4);
            // The head size is even: the rotary embedding takes pairs of columns.
            words[j] = row < tile.rows && column < kv.head_size ? *(const u32 *)(from + column) : 0;
        }
        uint4 bytes;
        bytes.x = low_bytes(words[0], words[1]);
        bytes.y = low_bytes(words[2], words[3]);
        bytes.z = high_bytes(words[0], words[1]);
        bytes.w = high_bytes(words[2], words[3]);
        *(uint4 *)(queries + query * stride + part * 4) = bytes;
    }
}

// The sum of products of two-byte numbers, from those of their bytes.
DEVICE i32 joined(i32 high, i32 middle, i32 low) { return i32((u32(high) << 16) + (u32(middle) << 8) + u32(low)); }

// Scores of a part's queries for a span's positions, without the queries' factors: [queries][SCORES]. Scores of
// positions that a query does not see are any number. MOST: fragments that there may be. A warp has a page, of which
// lane 4g + n holds tokens 2g and 2g + 1 and a quarter n of the columns.
template <u32 MOST>
DEVICE void span_scores(const Kv &kv, const Part &part, u32 kv_head, const u32 *queries, float *scores) {
    u32 place = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, n = lane % 4, stride = query_words(kv);
    if (place * LANES >= part.visible) return;
    u32 visible = part.visible - place * LANES;
    const i16 *page = head_page(kv, part.pages[place], kv_head);
    const uint2 *keys = (const uint2 *)(page + SCALES) + g;
    i32 high[MOST][2][4] = {}, middle[MOST][2][4] = {}, low[MOST][2][4] = {};
    u32 steps = (kv.key_pairs + 15) / 16;
    for (u32 step = 0; step < steps; step++) {
        uint2 words[4];
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 pair = step * 16 + j * 4 + n;
            words[j].x = words[j].y = 0;
            if (2 * g < visible && pair < kv.key_pairs) words[j] = keys[pair * (LANES / 2)];
        }
        // Tokens 2g + tile.
        u32 low_keys[2][2], high_keys[2][2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            low_keys[0][half] = low_bytes(words[2 * half].x, words[2 * half + 1].x);
            low_keys[1][half] = low_bytes(words[2 * half].y, words[2 * half + 1].y);
            high_keys[0][half] = high_bytes(words[2 * half].x, words[2 * half + 1].x);
            high_keys[1][half] = high_bytes(words[2 * half].y, words[2 * half + 1].y);
        }
#pragma unroll
        for (u32 f = 0; f < MOST; f++) {
            if (f < part.first_fragment || f >= part.end_fragment) continue;
            const u32 *at = queries + (f * FRAGMENT + g) * stride + (step * 4 + n) * 4;
            uint4 upper = *(const uint4 *)at, lower = *(const uint4 *)(at + 8 * stride);
            u32 low_queries[4] = {upper.x, lower.x, upper.y, lower.y};
            u32 high_queries[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
            for (u32 tile = 0; tile < 2; tile++) {
                mma_s8s8(high[f][tile], high_queries, high_keys[tile]);
                mma_s8u8(middle[f][tile], high_queries, low_keys[tile]);
                mma_u8s8(middle[f][tile], low_queries, high_keys[tile]);
                mma_u8u8(low[f][tile], low_queries, low_keys[tile]);
            }
        }
    }
    // Lane 4g + n now has rows g and g + 8, and tokens 4n to 4n + 3.
    float4 scale = ((const float4 *)page)[n];
#pragma unroll
    for (u32 f = 0; f < MOST; f++) {
        if (f < part.first_fragment || f >= part.end_fragment) continue;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 row = g + 8 * half;
            float score[4];
#pragma unroll
            for (u32 at = 0; at < 4; at++) {
                u32 tile = at % 2, in = at / 2 + 2 * half;
                score[at] = int_to_f32(joined(high[f][tile][in], middle[f][tile][in], low[f][tile][in]));
            }
            float4 scaled;
            scaled.x = mul_(score[0], scale.x);
            scaled.y = mul_(score[1], scale.y);
            scaled.z = mul_(score[2], scale.z);
            scaled.w = mul_(score[3], scale.w);
            if (has(part, row)) *(float4 *)(scores + (f * FRAGMENT + row) * SCORES + place * LANES + 4 * n) = scaled;
        }
    }
}

// Asks for the keys and values of a part's span.
DEVICE void prefetch_span(const Kv &kv, const Part &part, u32 kv_head) {
    u32 lines = (kv.head_numbers * 2 + 127) / 128;
    for (u32 at = threadIdx.x; at < SPAN_PAGES * lines; at += THREADS) {
        u32 page = at / lines;
        if (page * LANES < part.visible)
            prefetch((const u8 *)head_page(kv, part.pages[page], kv_head) + at % lines * 128);
    }
}

// The scales of a span's values, by the threads from `thread` on: [SPAN]. Those beyond `visible` are not written.
DEVICE void span_scales(const Kv &kv, const Part &part, u32 kv_head, u32 thread, float *scales) {
    if (thread < SPAN && thread < part.visible) {
        const i16 *page = head_page(kv, part.pages[thread / LANES], kv_head);
        scales[thread] = ((const float *)(page + kv.values_at))[thread % LANES];
    }
}

// What is left of the outputs so far when the maximum rises from `before` to `now`; 0: there are none.
DEVICE float decay_of(float before, float now) {
    if (!(now > before)) return 1.0f;
    return before == NEGATIVE_INFINITY ? 0.0f : exp_(sub_(before, now), 0.0f);
}

// The largest of four numbers of each of sixteen lanes, in all of them.
DEVICE float largest_of(const float *x) {
    float largest = max_(max_(x[0], x[1]), max_(x[2], x[3]));
    for (i32 mask = 8; mask > 0; mask /= 2) largest = max_(largest, shuffle_xor(largest, mask));
    return largest;
}

// A query's softmax over a span, by sixteen lanes.
struct Softmax {
    float score[SPAN_PAGES]; // of a lane's position in each page, −∞ beyond what is seen
    float largest;           // of all scores
    float sum;               // a lane's powers
    float back;              // converts sums of integer powers back
};

DEVICE Softmax scores_of(const float *scores, u32 seen) {
    Softmax s;
#pragma unroll
    for (u32 page = 0; page < SPAN_PAGES; page++) {
        u32 at = page * LANES + threadIdx.x % LANES;
        s.score[page] = at < seen ? scores[at] : NEGATIVE_INFINITY;
    }
    s.largest = largest_of(s.score);
    return s;
}

// Where the powers of a query have those of four tokens, in words: low bytes, and sixteen words on, high bytes. The
// pages change places so that a fragment's rows are in different banks.
DEVICE u32 powers_at(u32 query, u32 page) { return query * SCORES + (page ^ query / 2 % 4) * 4; }

// The powers of a query, as integers in `powers`, which may be its scores' memory. `now` is the running maximum.
DEVICE void powers_of(Softmax &s, const float *scales, u32 seen, float factor, float now, u32 query, u32 *powers) {
    u32 lane = threadIdx.x % LANES;
    float scale[SPAN_PAGES];
#pragma unroll
    for (u32 page = 0; page < SPAN_PAGES; page++)
        scale[page] = page * LANES + lane < seen ? scales[page * LANES + lane] : 0.0f;
    float largest = largest_of(scale);
    float inverse = largest == 0.0f ? 0.0f : div_(POWER, largest);
    s.back = div_(largest, POWER);
    s.sum = 0.0f;
    // All lanes have read the scores.
    sync_warp();
#pragma unroll
    for (u32 page = 0; page < SPAN_PAGES; page++) {
        bool sees = page * LANES + lane < seen;
        float power = sees ? exp_(fma_(s.score[page], factor, sub_(0.0f, now)), 0.0f) : 0.0f;
        s.sum = add_(s.sum, power);
        u32 whole = u32(f32_to_int(rint_(mul_(power, mul_(scale[page], inverse)))));
        u8 *to = (u8 *)(powers + powers_at(query, page)) + lane;
        to[0] = u8(whole);
        to[FRAGMENT * 4] = u8(whole >> 8);
    }
}

// The values of a page in sixteen columns: lane 4g + n holds tokens 4n to 4n + 3 of columns 2g and 2g + 1.
struct Values {
    uint2 words[2];
};

DEVICE Values values_of(const Kv &kv, const Part &part, u32 kv_head, u32 page, u32 unit) {
    u32 g = threadIdx.x % 32 / 4, n = threadIdx.x % 4;
    Values v;
    v.words[0].x = v.words[0].y = v.words[1].x = v.words[1].y = 0;
    if (page * LANES < part.visible) {
        const i16 *at = head_page(kv, part.pages[page], kv_head) + kv.values_at + SCALES;
        const uint2 *words = (const uint2 *)((const u32 *)at + 2 * n * kv.value_stride + unit * LANES) + g;
        v.words[0] = words[0];
        v.words[1] = words[kv.value_stride / 2];
    }
    return v;
}

// Σ power · value over the tokens of a page, for a fragment: lane 4g + n gets columns 4n to 4n + 3 of row g, and then
// of row g + 8.
DEVICE void page_sums(const Values &v, const u32 *powers, u32 fragment, u32 page, i32 *sums) {
    u32 g = threadIdx.x % 32 / 4, n = threadIdx.x % 4;
    const u32 *at = powers + powers_at(fragment * FRAGMENT + g, page) + n;
    u32 low_powers[2] = {at[0], at[8 * SCORES]}, high_powers[2] = {at[16], at[8 * SCORES + 16]};
#pragma unroll
    for (u32 tile = 0; tile < 2; tile++) {
        u32 a = tile == 0 ? v.words[0].x : v.words[0].y, b = tile == 0 ? v.words[1].x : v.words[1].y;
        u32 low_values = low_bytes(a, b), high_values = high_bytes(a, b);
        i32 high[4] = {}, middle[4] = {}, low[4] = {};
        half_u8s8(high, high_powers, &high_values);
        half_u8u8(middle, high_powers, &low_values);
        half_u8s8(middle, low_powers, &high_values);
        half_u8u8(low, low_powers, &low_values);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sums[i / 2 * 4 + i % 2 * 2 + tile] = joined(high[i], middle[i], low[i]);
    }
}

// Divides a head's outputs by the sum of its powers, stores them and quantises them, by a warp. `row` is its row in
// [tokens][heads]; `sums` has the lanes of the sum.
DEVICE void finish(const Kv &kv, size_t row, const float *outputs, const float *sums, float *attended,
                   Activations *blocks) {
    u32 lane = threadIdx.x % 32, size = kv.head_size, padded = (size + 31) / 32 * 32;
    float sum = lane < LANES ? sums[lane] : 0.0f;
    float inverse = div_(1.0f, shuffle(sum_of_lanes(sum), 0));
    for (u32 at = lane; at < padded; at += 32) {
        float y = 0.0f;
        if (at < size) {
            y = add_(mul_(outputs[at], inverse), 0.0f);
            attended[row * size + at] = y;
        }
        if (blocks) quantise(y, blocks + row * (size / BLOCK) + at / BLOCK);
    }
}
