// The product of one group of sixteen rows with up to T tokens, by one block of 128 threads.
//
// With quantised weights, every output is one chain of fused multiply-adds over the blocks of 32 columns in
// ascending order, as in crates/kernels. The integer sums of a chunk of blocks are computed by all threads; then one
// thread for each row and token continues the chain. Dense weights: dense.h.
#pragma once
#include "dense.h"

#define THREADS 128

// Products of one input.
struct Products {
    Matrix matrices[3];
    u32 count; // of matrices
    u32 unused[3];
};

// The matrix that a group of a launch belongs to.
DEVICE u32 matrix_of(const Products &p, u32 group) {
    u32 index = 0;
    if (p.count > 1 && group >= p.matrices[1].first_group) index = 1;
    if (p.count > 2 && group >= p.matrices[2].first_group) index = 2;
    return index;
}

// What a product with T tokens keeps in shared memory: for each block of a chunk, one or two factors of
// the chain, [T][blocks of a chunk][16 rows].
template <i32 T> struct Tile {
    enum : u32 {
        CHUNK = T > 4 ? 16 : 32,
        // Padded, so that a warp's rows and tokens are in different banks.
        TOKEN = CHUNK * LANES + (T > 4 ? 4 : LANES),
        FACTORS = T * TOKEN,
        FLOATS = 4 * FACTORS,
    };
};

// Floats from one token's 32 gated outputs to the next, so that a warp's tokens are in different banks.
#define OUTPUTS (BLOCK + 4)

// The row (of its group) and the token whose chain a thread continues.
template <i32 T> DEVICE u32 row_of(u32 thread) {
    return T > 4 ? thread % 8 + thread / 32 % 2 * 8 : thread % LANES;
}
template <i32 T> DEVICE u32 token_of(u32 thread) {
    return T > 4 ? thread % 32 / 8 * 2 + thread / 64 : thread / LANES;
}

// The activations that a lane multiplies: quants, and what follows them.
struct Input {
    uint4 low, high;
    float scale, scaled_sum;
    i32 first; // what the sums of both halves start with
    i32 second;
};

DEVICE Input input_of(u32 format, const Activations *a) {
    Input input;
    const uint4 *at = (const uint4 *)a;
    input.low = at[0];
    input.high = at[1];
    uint4 rest = at[2];
    input.scale = bits_f32(rest.x);
    input.scaled_sum = bits_f32(rest.y);
    i32 offset = i16(rest.z), offset_high = i16(rest.z >> 16);
    input.first = 0;
    input.second = 0;
    if (format == U4) input.first = offset;
    if (format == U5) input.first = offset << 1;
    if (format == I8) input.first = offset << 4;
    if (format == U6_HALF) {
        input.first = (offset - offset_high) << 2;
        input.second = offset_high << 2;
    }
    return input;
}

DEVICE void dot_rows(i32 *sums, uint4 weights, u32 quad) {
    sums[0] = dot4_us(weights.x, i32(quad), sums[0]);
    sums[1] = dot4_us(weights.y, i32(quad), sums[1]);
    sums[2] = dot4_us(weights.z, i32(quad), sums[2]);
    sums[3] = dot4_us(weights.w, i32(quad), sums[3]);
}

DEVICE u32 quad_of(const Input &input, u32 quad) {
    const uint4 &half = quad < 4 ? input.low : input.high;
    u32 at = quad % 4;
    return at == 0 ? half.x : at == 1 ? half.y : at == 2 ? half.z : half.w;
}

DEVICE uint4 low_nibbles(uint4 w) {
    const u32 mask = 0x0f0f0f0fu;
    uint4 low;
    low.x = w.x & mask, low.y = w.y & mask, low.z = w.z & mask, low.w = w.w & mask;
    return low;
}

DEVICE uint4 high_nibbles(uint4 w) {
    w.x >>= 4, w.y >>= 4, w.z >>= 4, w.w >>= 4;
    return low_nibbles(w);
}

// Adds the upper bits of a quad's columns in four rows.
DEVICE void add_fifth_bits(uint4 &w, uint4 bits, u32 quad) {
    w.x |= fifth_bits(bits.x, quad), w.y |= fifth_bits(bits.y, quad);
    w.z |= fifth_bits(bits.z, quad), w.w |= fifth_bits(bits.w, quad);
}

DEVICE void add_sixth_bits(uint4 &w, uint4 bits, u32 quad) {
    w.x |= sixth_bits(bits.x, quad), w.y |= sixth_bits(bits.y, quad);
    w.z |= sixth_bits(bits.z, quad), w.w |= sixth_bits(bits.w, quad);
}

// The eight quads of a block for rows 4 · rows to 4 · rows + 3 of the group, as bytes.
DEVICE void quads_of(const Matrix &m, u32 group, u32 block, u32 rows, uint4 *weights) {
    u32 format = m.format;
    const uint4 *from = (const uint4 *)block_of(m, group, block) + rows;
    if (format == I8) {
#pragma unroll
        for (u32 quad = 0; quad < 8; quad++) weights[quad] = ld_stream(from + quad * 4);
        return;
    }
    bool fives = is_five_bits(format), sixes = format == U6_HALF;
    uint4 both[4], bits = {}, upper_bits = {};
#pragma unroll
    for (u32 quad = 0; quad < 4; quad++) both[quad] = ld_stream(from + quad * 4);
    if (fives || sixes) bits = ld_stream(from + 16);
    if (sixes) upper_bits = ld_stream(from + 20);
#pragma unroll
    for (u32 quad = 0; quad < 4; quad++) {
        weights[quad] = low_nibbles(both[quad]);
        weights[quad + 4] = high_nibbles(both[quad]);
    }
    if (fives) {
#pragma unroll
        for (u32 quad = 0; quad < 8; quad++) add_fifth_bits(weights[quad], bits, quad);
    }
    if (sixes) {
#pragma unroll
        for (u32 quad = 0; quad < 4; quad++) {
            add_sixth_bits(weights[quad], bits, quad);
            add_sixth_bits(weights[quad + 4], upper_bits, quad);
        }
    }
}

DEVICE float4 factors(float a, float b, float c, float d) {
    float4 v;
    v.x = a, v.y = b, v.z = c, v.w = d;
    return v;
}

// The factors of one block for four rows of T tokens, by a lane: `block` of the chunk and of the row.
template <i32 T>
DEVICE void factors_of_block(const Matrix &m, u32 group, u32 block, u32 in_chunk, u32 rows, const Activations *x,
                             u32 tokens, float *tile) {
    u32 blocks = m.cols / BLOCK, format = m.format;
    uint4 weights[8];
    quads_of(m, group, block, rows, weights);
    Scales scales[4];
#pragma unroll
    for (u32 row = 0; row < 4; row++) scales[row] = scales_of(m, group, block, rows * 4 + row);
#pragma unroll
    for (u32 t = 0; t < T; t++) {
        if (t >= tokens) break;
        Input input = input_of(format, x + size_t(t) * blocks + block);
        i32 first[4], second[4];
#pragma unroll
        for (u32 row = 0; row < 4; row++) first[row] = input.first, second[row] = input.second;
#pragma unroll
        for (u32 quad = 0; quad < 4; quad++) dot_rows(first, weights[quad], quad_of(input, quad));
#pragma unroll
        for (u32 quad = 4; quad < 8; quad++) dot_rows(second, weights[quad], quad_of(input, quad));
        bool halves = format == U6_HALF;
        float n[4], p[4], n2[4], p2[4];
#pragma unroll
        for (u32 row = 0; row < 4; row++) {
            n[row] = int_to_f32(halves ? first[row] : first[row] + second[row]);
            p[row] = mul_(scales[row].scale, input.scale);
            n2[row] = halves ? int_to_f32(second[row]) : scales[row].min;
            p2[row] = halves ? mul_(scales[row].second, input.scale) : input.scaled_sum;
        }
        float *at = tile + t * Tile<T>::TOKEN + in_chunk * LANES + rows * 4;
        const u32 step = Tile<T>::FACTORS;
        *(float4 *)at = factors(n[0], n[1], n[2], n[3]);
        *(float4 *)(at + step) = factors(p[0], p[1], p[2], p[3]);
        if (halves || has_min(format)) {
            *(float4 *)(at + 2 * step) = factors(n2[0], n2[1], n2[2], n2[3]);
            *(float4 *)(at + 3 * step) = factors(p2[0], p2[1], p2[2], p2[3]);
        }
    }
}

#ifdef HAS_MMA

// The weights of a block as a fragment: rows lane / 4 and 8 below, quads lane % 4 and 4 further on.
DEVICE void fragment(const Matrix &m, u32 group, u32 block, u32 *a) {
    u32 lane = threadIdx.x % 32, row = lane / 4, quad = lane % 4, format = m.format;
    const u32 *words = (const u32 *)block_of(m, group, block) + row, *from = words + quad * LANES;
    u32 upper = ld_stream(from), lower = ld_stream(from + 8);
    if (format == I8) {
        a[0] = upper, a[1] = lower;
        a[2] = ld_stream(from + 4 * LANES), a[3] = ld_stream(from + 4 * LANES + 8);
        return;
    }
    u32 bits[4] = {};
    words += 4 * LANES;
    if (is_five_bits(format)) {
        u32 first = ld_stream(words), second = ld_stream(words + 8);
        bits[0] = fifth_bits(first, quad), bits[1] = fifth_bits(second, quad);
        bits[2] = fifth_bits(first, quad + 4), bits[3] = fifth_bits(second, quad + 4);
    }
    if (format == U6_HALF) {
        bits[0] = sixth_bits(ld_stream(words), quad), bits[1] = sixth_bits(ld_stream(words + 8), quad);
        words += LANES;
        bits[2] = sixth_bits(ld_stream(words), quad), bits[3] = sixth_bits(ld_stream(words + 8), quad);
    }
    a[0] = (upper & 0x0f0f0f0fu) | bits[0], a[1] = (lower & 0x0f0f0f0fu) | bits[1];
    a[2] = (upper >> 4 & 0x0f0f0f0fu) | bits[2], a[3] = (lower >> 4 & 0x0f0f0f0fu) | bits[3];
}

// The sums of 16 rows and 8 tokens over a block; in U6_HALF, of its halves. `x` is the block of token
// lane / 4, and `of` are those of tokens 2 · (lane % 4) and the next, whose sums this lane gets: rows lane / 4
// and 8 below.
DEVICE void block_sums(u32 format, const u32 *a, const Activations *x, const Input *of, i32 *first, i32 *second) {
    u32 lane = threadIdx.x % 32;
    const u32 *quads = (const u32 *)x->quants + lane % 4;
    u32 b[2] = {quads[0], quads[4]};
#pragma unroll
    for (u32 at = 0; at < 4; at++) first[at] = of[at % 2].first, second[at] = of[at % 2].second;
    if (format == U6_HALF) {
        u32 upper[4] = {a[0], a[1], 0, 0}, lower[4] = {0, 0, a[2], a[3]};
        mma_u8s8(first, upper, b);
        mma_u8s8(second, lower, b);
    } else {
        mma_u8s8(first, a, b);
    }
}

// The tokens whose block a lane multiplies, and whose sums it gets; beyond the last token, the last.
struct Tokens {
    u32 multiplied, got[2];
};

DEVICE Tokens tokens_of(u32 first, u32 tokens) {
    u32 lane = threadIdx.x % 32, last = tokens - 1;
    Tokens t;
    t.multiplied = first + lane / 4 < last ? first + lane / 4 : last;
    for (u32 at = 0; at < 2; at++) {
        u32 token = first + lane % 4 * 2 + at;
        t.got[at] = token < last ? token : last;
    }
    return t;
}

// The factors of a block of the chunk for eight tokens, by a warp.
DEVICE void factors_by_mma(const Matrix &m, u32 group, u32 block, u32 in_chunk, const Activations *x, u32 tokens,
                           float *tile) {
    u32 lane = threadIdx.x % 32, blocks = m.cols / BLOCK, format = m.format;
    u32 a[4];
    fragment(m, group, block, a);
    Tokens t = tokens_of(0, tokens);
    Input of[2];
    for (u32 at = 0; at < 2; at++) of[at] = input_of(format, x + size_t(t.got[at]) * blocks + block);
    i32 first[4], second[4];
    block_sums(format, a, x + size_t(t.multiplied) * blocks + block, of, first, second);
    const u32 step = Tile<8>::FACTORS;
#pragma unroll
    for (u32 down = 0; down < 2; down++) {
        Scales s = scales_of(m, group, block, lane / 4 + down * 8);
#pragma unroll
        for (u32 at = 0; at < 2; at++) {
            u32 token = lane % 4 * 2 + at;
            float *to = tile + token * Tile<8>::TOKEN + in_chunk * LANES + lane / 4 + down * 8;
            to[0] = int_to_f32(first[down * 2 + at]);
            to[step] = mul_(s.scale, of[at].scale);
            if (format == U6_HALF) {
                to[2 * step] = int_to_f32(second[down * 2 + at]);
                to[3 * step] = mul_(s.second, of[at].scale);
            } else if (has_min(format)) {
                to[2 * step] = s.min;
                to[3 * step] = of[at].scaled_sum;
            }
        }
    }
}

#endif

// Quantised: each thread returns the output of its row and token.
template <i32 T>
DEVICE float quantised_group(const Matrix &m, u32 group, const Activations *x, u32 tokens, float *tile) {
    const u32 chunk = Tile<T>::CHUNK, step = Tile<T>::FACTORS;
    u32 blocks = m.cols / BLOCK, thread = threadIdx.x;
    bool two = m.format == U6_HALF || has_min(m.format);
    bool chains = token_of<T>(thread) < tokens;
    const float *mine = tile + token_of<T>(thread) * Tile<T>::TOKEN + row_of<T>(thread);
    float output = 0.0f;
    for (u32 start = 0; start < blocks; start += chunk) {
        u32 count = blocks - start < chunk ? blocks - start : chunk;
#ifdef HAS_MMA
        if (T > 4) {
            for (u32 at = thread / 32; at < count; at += THREADS / 32)
                factors_by_mma(m, group, start + at, at, x, tokens, tile);
        } else
#endif
        {
            // Four threads to a block of 32 columns.
            for (u32 at = thread / 4; at < count; at += THREADS / 4)
                factors_of_block<T>(m, group, start + at, at, thread % 4, x, tokens, tile);
        }
        sync_block();
        if (chains) {
            for (u32 at = 0; at < count; at++) {
                output = fma_(mine[at * LANES], mine[step + at * LANES], output);
                if (two) output = fma_(mine[2 * step + at * LANES], mine[3 * step + at * LANES], output);
            }
        }
        sync_block();
    }
    return output;
}

// Each thread returns the output of its row and token, if there is such a token. `x` and `values` are those
// of the first token.
template <i32 T>
DEVICE float group_product(const Matrix &m, u32 group, const Activations *x, const float *values, u32 tokens,
                           float *tile) {
    if (is_dense(m.format)) {
        dense_sums<T>(m, group, values, tokens, tile);
        u32 token = token_of<T>(threadIdx.x);
        return token < T ? dense_output<T>(tile, row_of<T>(threadIdx.x), token) : 0.0f;
    }
    return quantised_group<T>(m, group, x, tokens, tile);
}

// silu(gate) · up of 32 rows and T tokens, of which there are `tokens`, and its quantisation if `blocks` is there.
// `outputs` is [gate, up][T][OUTPUTS].
template <i32 T>
DEVICE void gated_rows(const Products &p, const float *outputs, u32 first, u32 tokens, float *value,
                       Activations *blocks) {
    u32 rows = p.matrices[0].rows, lane = threadIdx.x % 32, row = blockIdx.y * BLOCK + lane;
    for (u32 t = threadIdx.x / 32; t < tokens; t += THREADS / 32) {
        float gated = 0.0f;
        if (row < rows) {
            gated = mul_(silu(outputs[t * OUTPUTS + lane]), outputs[(T + t) * OUTPUTS + lane]);
            value[size_t(first + t) * rows + row] = gated;
        }
        if (blocks) quantise(gated, blocks + size_t(first + t) * (rows / BLOCK) + blockIdx.y);
    }
}
