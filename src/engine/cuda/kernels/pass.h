// A pass as the host uploads it, in one copy.
#pragma once
#include "numbers.h"

// What the counts of a pass are, in the order of the upload; the same in Rust.
struct Pass {
    u32 tokens;  // of the pass
    u32 ends;    // tokens whose logits are wanted
    u32 samples; // tokens to pick
    u32 tiles, end_tiles; // of attention: of all tokens, and of those whose logits are wanted
    u32 unused[3];
};

// A token of the pass.
struct Token {
    u32 id;
    u32 position;
    u32 table; // offset of its sequence's page table
    u32 row;   // row of the pass: of the last layer's queries, whose rows are moved together
};

// Attention's tokens in the order of their tiles. A tile is some that follow one another: the spans of 64 positions
// that they see in the same pages are read once for all of them.
struct Tile {
    u32 first;  // place
    u32 rows;   // places
    u32 shared; // spans from the start that are in the same pages
    u32 unused;
};
struct Place {
    u32 position, table, row; // as `Token` has them
    u32 token;                // index in the pass's tokens, or in those whose logits are wanted
    Tile tile;
};

// Shape of the keys and values of a layer, and where they are: `KvMemory` of crates/kernels.
struct Kv {
    i16 *layer;       // in the first page
    u64 page_numbers; // i16 from one page to the next
    u32 kv_heads, head_size;
    u32 head_numbers;  // i16 from one head to the next
    u32 values_at;     // i16 from the start of a head to the scales of its values
    u32 value_stride;  // columns of a value, padded
    u32 key_pairs;
    float query_limit; // the largest integer of a query
    float scale;       // 1 / √head_size
};

DEVICE i16 *head_page(const Kv &kv, u32 page, u32 head) {
    return kv.layer + page * kv.page_numbers + size_t(head) * kv.head_numbers;
}

// i16 of sixteen f32 scales.
#define SCALES (LANES * 2)
