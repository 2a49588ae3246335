// Attention in one launch: a block walks the spans that its tile sees, one after the other.
#include "attention.h"

// The arguments of `attend_…`: grid (tiles, kv_heads). `places` and `tiles` are of the pass's tokens, or of those whose
// logits are wanted; `whole` and `factors` are those of `rotate_and_store`, by the row of the pass. `attended` is
// [tokens][heads][head_size]; `blocks`, its quantisation, is there if the head size is a multiple of 32.
#define ATTEND_PARAMETERS                                                                                       \
    const Kv kv, const i16 *whole, const float *factors, const u32 *tables, const Place *places,                \
        const Tile *tiles, const u32 *count, u32 group, float *attended, Activations *blocks

// For heads of up to COLUMNS columns. A warp keeps the outputs of its columns in registers.
template <u32 COLUMNS> DEVICE void attend(ATTEND_PARAMETERS) {
    constexpr u32 MOST = COLUMNS > 128 ? 1 : FRAGMENTS; // fragments
    constexpr u32 UNITS = COLUMNS / (WARPS * LANES);    // sixteen columns each, of a warp
    constexpr u32 OUTPUT = COLUMNS | LANES;             // from one query's outputs to the next, padded
    constexpr u32 SPACE = MOST * FRAGMENT * SCORES > FRAGMENT * OUTPUT ? MOST * FRAGMENT * SCORES : FRAGMENT * OUTPUT;
    SHARED(u32, queries, MOST * FRAGMENT * (COLUMNS / 2 | 16));
    SHARED(float, space, SPACE);
    SHARED(float, scales, MOST_ROWS * SPAN);
    SHARED(float, sums, MOST * FRAGMENT * LANES);
    SHARED(float, of_queries, MOST * FRAGMENT);
    SHARED(float, max, MOST * FRAGMENT);
    SHARED(float, decay, MOST * FRAGMENT);
    SHARED(float, back, MOST * FRAGMENT);
    SHARED(u32, of_rows, 4 * MOST_ROWS);
    // Both are loaded at once.
    Tile of_tile = tiles[blockIdx.x];
    if (blockIdx.x >= *count) return;
    u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, n = lane % 4;
    u32 kv_head = blockIdx.y, shared = of_tile.shared;
    Queries tile = load_rows(group, of_tile.rows, places + of_tile.first, of_rows);
    stage_queries(kv, tile, whole, kv_head, queries);
    u32 used = fragments_of(tile) * FRAGMENT, units = kv.value_stride / LANES, last = last_of(tile);
    for (u32 at = thread; at < used * LANES; at += THREADS) sums[at] = 0.0f;
    if (thread < used) {
        u32 row = row_of(tile, thread), head = head_of(tile, thread);
        of_queries[thread] = row < tile.rows ? factors[first_head(kv, tile, row, kv_head) + head] : 0.0f;
        max[thread] = NEGATIVE_INFINITY;
        decay[thread] = 1.0f;
        back[thread] = 0.0f;
    }
    // Rows without a query have some scores and no softmax. Their outputs stay zero.
    for (u32 at = thread; at < used * SCORES; at += THREADS) space[at] = 0.0f;
    float outputs[MOST][UNITS][8] = {};
    sync_block();
    auto part_of = [&](u32 span, u32 at) {
        return span < shared ? whole_part(tile, tables, span, last) : row_part(tile, tables, at, span);
    };
    auto parts_of = [&](u32 span) { return span < shared ? 1 : tile.rows; };
    for (u32 span = 0; span * SPAN <= last; span++) {
        u32 parts = parts_of(span);
        for (u32 at = 0; at < parts; at++) {
            Part part = part_of(span, at);
            span_scores<MOST>(kv, part, kv_head, queries, space);
            span_scales(kv, part, kv_head, (thread + THREADS - at % 2 * SPAN) % THREADS, scales + at * SPAN);
        }
        Values values[SPAN_PAGES];
        auto load_values = [&](const Part &part, u32 unit) {
#pragma unroll
            for (u32 page = 0; page < SPAN_PAGES; page++) values[page] = values_of(kv, part, kv_head, page, unit);
        };
        // The first ones arrive during the softmax.
        if (warp < units) load_values(part_of(span, 0), warp);
        if ((span + 1) * SPAN <= last)
            for (u32 at = 0; at < parts_of(span + 1); at++) prefetch_span(kv, part_of(span + 1, at), kv_head);
        sync_block();
        for (u32 start = 2 * warp; start < used; start += 2 * WARPS) {
            if (row_of(tile, start) >= tile.rows && row_of(tile, start + 1) >= tile.rows) continue;
            u32 query = start + lane / LANES, row = row_of(tile, query);
            bool is_query = row < tile.rows;
            u32 seen = is_query ? seen_of(tile, row, span) : 0;
            float factor = of_queries[query], before = max[query], now = before;
            Softmax s = scores_of(space + query * SCORES, seen);
            if (seen > 0) now = max_(before, mul_(s.largest, factor));
            float old = decay_of(before, now);
            powers_of(s, scales + (span < shared ? 0 : row * SPAN), seen, factor, now, query, (u32 *)space);
            if (seen > 0) {
                float *sum = sums + query * LANES + lane % LANES;
                *sum = old == 0.0f ? s.sum : fma_(*sum, old, s.sum);
            }
            if (lane % LANES == 0) {
                max[query] = now;
                decay[query] = old;
                back[query] = s.back;
            }
        }
        sync_block();
        for (u32 at = 0; at < parts; at++) {
            Part part = part_of(span, at);
#pragma unroll
            for (u32 u = 0; u < UNITS; u++) {
                if (u * WARPS + warp >= units) continue;
                if (at + u > 0) load_values(part, u * WARPS + warp);
#pragma unroll
                for (u32 f = 0; f < MOST; f++) {
                    if (f < part.first_fragment || f >= part.end_fragment) continue;
                    float old[2], factor[2], next[8];
#pragma unroll
                    for (u32 half = 0; half < 2; half++) {
                        old[half] = decay[f * FRAGMENT + g + 8 * half];
                        factor[half] = back[f * FRAGMENT + g + 8 * half];
                    }
#pragma unroll
                    for (u32 i = 0; i < 8; i++)
                        next[i] = old[i / 4] == 0.0f ? 0.0f : mul_(outputs[f][u][i], old[i / 4]);
#pragma unroll
                    for (u32 page = 0; page < SPAN_PAGES; page++) {
                        if (page * LANES >= part.visible) continue;
                        i32 whole_sums[8];
                        page_sums(values[page], (const u32 *)space, f, page, whole_sums);
#pragma unroll
                        for (u32 i = 0; i < 8; i++)
                            next[i] = fma_(int_to_f32(whole_sums[i]), factor[i / 4], next[i]);
                    }
#pragma unroll
                    for (u32 i = 0; i < 8; i++)
                        if (has(part, g + i / 4 * 8)) outputs[f][u][i] = next[i];
                }
            }
        }
        sync_block();
    }
#pragma unroll
    for (u32 f = 0; f < MOST; f++) {
        if (f >= fragments_of(tile)) continue;
#pragma unroll
        for (u32 u = 0; u < UNITS; u++) {
            u32 unit = u * WARPS + warp;
            if (unit >= units) continue;
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const float *from = outputs[f][u] + 4 * half;
                float4 to;
                to.x = from[0];
                to.y = from[1];
                to.z = from[2];
                to.w = from[3];
                *(float4 *)(space + (g + 8 * half) * OUTPUT + unit * LANES + 4 * n) = to;
            }
        }
        sync_block();
        for (u32 in = warp; in < FRAGMENT; in += WARPS) {
            u32 query = f * FRAGMENT + in, row = row_of(tile, query);
            if (row >= tile.rows) continue;
            size_t to = (size_t(tile.out_row[row]) * kv.kv_heads + kv_head) * group + head_of(tile, query);
            finish(kv, to, space + in * OUTPUT, sums + query * LANES, attended, blocks);
        }
        sync_block();
    }
}

#define ATTEND(COLUMNS)                                                                                         \
    KERNEL(attend_##COLUMNS, ATTEND_PARAMETERS) {                                                               \
        attend<COLUMNS>(kv, whole, factors, tables, places, tiles, count, group, attended, blocks);             \
    }
ATTEND(64)
ATTEND(128)
ATTEND(256)
