// Picks a token from each row of logits. The definition is that of engine/sampler.rs: keys order the candidates,
// weights are 64-bit integers, so that no sum depends on its order, and thresholds take the place of a sort.
#include "pass.h"

#define THREADS 512
#define WARPS (THREADS / 32)
#define NO_TOKEN 0xffffffffu

// How a row is sampled; the same in Rust.
struct Request {
    u64 share;  // of the weights that top_p keeps, in 2^-32
    u64 random; // uniform
    float inverse_temperature;
    u32 top_k;  // 0: all
    u32 greedy;
    u32 row;    // of the logits
};

// Candidates with a key of at least this: the number's bits, in order, and in a tie lower ids.
struct Threshold {
    u32 bits; // of the least likely candidate that is kept
    u32 id;   // the last of those with these bits
};

// Maps numbers to integers of the same order; 0 for what is no candidate.
DEVICE u32 ordered(float x) {
    if (!(x > NEGATIVE_INFINITY)) return 0; // NaN, too
    if (x == 0.0f) return 0x80000000u;
    u32 bits = f32_bits(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

DEVICE float from_ordered(u32 bits) { return bits_f32(bits >> 31 ? bits & 0x7fffffffu : ~bits); }

DEVICE bool keeps(Threshold t, u32 bits, u32 id) { return bits > t.bits || (bits == t.bits && id <= t.id); }

// The sum of all threads' numbers, in every thread.
DEVICE u64 block_sum(u64 x, u64 *shared) {
    for (i32 mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    sync_block();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    sync_block();
    u64 sum = 0;
    for (u32 warp = 0; warp < WARPS; warp++) sum += shared[warp];
    return sum;
}

DEVICE u32 block_max(u32 x, u64 *shared) {
    for (i32 mask = 16; mask > 0; mask /= 2) {
        u32 other = shuffle_xor(x, mask);
        x = other > x ? other : x;
    }
    sync_block();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    sync_block();
    u32 max = 0;
    for (u32 warp = 0; warp < WARPS; warp++) max = u32(shared[warp]) > max ? u32(shared[warp]) : max;
    return max;
}

// The weight of a candidate: its probability relative to the most likely, in 2^-40.
DEVICE u64 weight_of(float logit, float max, float inverse_temperature) {
    if (logit == max) return u64(1) << 40;
    float x = mul_(sub_(logit, max), inverse_temperature);
    if (!(x > NEGATIVE_INFINITY)) return 0;
    return u64(mul_(exp_(x, 0.0f), 1099511627776.0f));
}

struct Row {
    const float *logits;
    u32 size;
    float max, inverse_temperature;
    u64 *shared;
};

// Σ over the candidates that `within` keeps and whose key is at least `t`: their weights, or their number.
DEVICE u64 sum_from(const Row &row, Threshold within, Threshold t, bool counts) {
    u64 sum = 0;
    for (u32 id = threadIdx.x; id < row.size; id += THREADS) {
        u32 bits = ordered(row.logits[id]);
        if (bits && keeps(within, bits, id) && keeps(t, bits, id))
            sum += counts ? 1 : weight_of(row.logits[id], row.max, row.inverse_temperature);
    }
    return block_sum(sum, row.shared);
}

// The highest threshold whose candidates sum to at least `target`, which all together do.
DEVICE Threshold cut(const Row &row, Threshold within, u64 target, bool counts) {
    Threshold t;
    t.id = NO_TOKEN;
    t.bits = 0;
    for (i32 bit = 31; bit >= 0; bit--) {
        Threshold higher = t;
        higher.bits |= u32(1) << bit;
        if (sum_from(row, within, higher, counts) >= target) t = higher;
    }
    // Among equals, the lowest ids that suffice.
    u32 least = 0, most = row.size - 1;
    while (least < most) {
        u32 middle = least + (most - least) / 2;
        Threshold narrower = t;
        narrower.id = middle;
        if (sum_from(row, within, narrower, counts) >= target) most = middle;
        else least = middle + 1;
    }
    t.id = least;
    return t;
}

// The first candidate, by id, at which the running sum of kept weights exceeds `target`. Each thread has a range
// of ids.
DEVICE u32 draw(const Row &row, Threshold kept, u64 target, u64 *sums, u32 *drawn) {
    u32 range = (row.size + THREADS - 1) / THREADS;
    u32 first = threadIdx.x * range, end = first + range < row.size ? first + range : row.size;
    u64 sum = 0;
    for (u32 id = first; id < end; id++) {
        u32 bits = ordered(row.logits[id]);
        if (bits && keeps(kept, bits, id)) sum += weight_of(row.logits[id], row.max, row.inverse_temperature);
    }
    sums[threadIdx.x] = sum;
    sync_block();
    u64 before = 0;
    for (u32 thread = 0; thread < threadIdx.x; thread++) before += sums[thread];
    if (before <= target && target < before + sum) {
        for (u32 id = first; id < end; id++) {
            u32 bits = ordered(row.logits[id]);
            if (bits && keeps(kept, bits, id)) before += weight_of(row.logits[id], row.max, row.inverse_temperature);
            if (before > target) {
                *drawn = id;
                break;
            }
        }
    }
    sync_block();
    return *drawn;
}

// Grid (requests). A row without a candidate gets NO_TOKEN.
KERNEL(sample, const float *logits, const Request *requests, const u32 *count, u32 vocabulary, u32 *tokens) {
    SHARED(u64, shared, WARPS);
    SHARED(u64, sums, THREADS);
    SHARED(u32, drawn, 1);
    if (blockIdx.x >= *count) return;
    const Request &request = requests[blockIdx.x];
    Row row;
    row.logits = logits + size_t(request.row) * vocabulary;
    row.size = vocabulary;
    row.shared = shared;
    u32 highest = 0;
    for (u32 id = threadIdx.x; id < vocabulary; id += THREADS) {
        u32 bits = ordered(row.logits[id]);
        highest = bits > highest ? bits : highest;
    }
    highest = block_max(highest, shared);
    if (highest == 0) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = NO_TOKEN;
        return;
    }
    row.max = from_ordered(highest);
    row.inverse_temperature = request.inverse_temperature;
    Threshold kept;
    kept.bits = 0;
    kept.id = NO_TOKEN;
    u32 token;
    if (request.greedy) {
        u32 lowest = NO_TOKEN;
        for (u32 id = threadIdx.x; id < vocabulary; id += THREADS)
            if (ordered(row.logits[id]) == highest && id < lowest) lowest = id;
        token = ~block_max(~lowest, shared);
    } else {
        if (request.top_k > 0 && request.top_k < sum_from(row, kept, kept, true)) kept = cut(row, kept, request.top_k, true);
        u64 total = sum_from(row, kept, kept, false);
        if (request.share < u64(1) << 32) {
            u64 target = mulhi_u64(total, request.share << 32);
            kept = cut(row, kept, target > 0 ? target : 1, false);
            total = sum_from(row, kept, kept, false);
        }
        token = draw(row, kept, mulhi_u64(request.random, total), sums, drawn);
    }
    if (threadIdx.x == 0) tokens[blockIdx.x] = token;
}
