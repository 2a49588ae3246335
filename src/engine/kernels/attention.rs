//! Attention over paged keys and values, block by block with a running softmax, over any [`Simd`].
//!
//! A page holds [`PAGE`] consecutive tokens of one layer, in f16: for each KV head the keys as
//! `[head_size][16 tokens]`, so that sixteen scores grow side by side, then for each KV head the
//! values as `[16 tokens][head_size]`. Both a score and an output element are then one chain of fused
//! additions, over the head's dimensions and over the tokens in ascending order.
//!
//! The softmax runs over blocks of [`SPAN`] tokens, aligned to absolute positions. A query's result is
//! made by the same operations whether it is computed alone, with others, or in several calls that
//! meet at multiples of [`SPAN`].

use super::aligned::Aligned;
use super::simd::{LANES, Simd};

/// Tokens of a page.
pub(crate) const PAGE: usize = LANES;

/// Tokens of a softmax block: the running maximum and sum change once per block.
pub(crate) const SPAN: usize = 64;

/// Pages of a softmax block.
const SPAN_PAGES: usize = SPAN / PAGE;

/// The shape of the keys and values of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    /// Heads of keys and values.
    pub(crate) kv_heads: usize,
    /// Numbers per head.
    pub(crate) head_size: usize,
}

impl KvShape {
    /// f16 numbers of a page: `2 · kv_heads · 16 · head_size` (rounded up to 16 for the values).
    pub(crate) fn page_len(self) -> usize {
        self.kv_heads * PAGE * (self.head_size + self.value_stride())
    }

    /// Numbers from one token's values to the next one's.
    fn value_stride(self) -> usize {
        self.head_size.next_multiple_of(LANES)
    }

    /// Where a head's keys start in a page.
    fn keys_at(self, kv_head: usize) -> usize {
        kv_head * PAGE * self.head_size
    }

    /// Where a head's values start in a page.
    fn values_at(self, kv_head: usize) -> usize {
        self.kv_heads * PAGE * self.head_size + kv_head * PAGE * self.value_stride()
    }
}

/// The keys and values of one layer: a number of pages, all zeros at first.
pub(crate) struct KvLayer {
    pub(super) shape: KvShape,
    pub(super) pages: usize,
    pub(super) numbers: Aligned<u16>,
}

impl KvLayer {
    /// Room for `pages` pages. Pages that are never written cost no memory.
    pub(crate) fn new(shape: KvShape, pages: usize) -> Self {
        Self {
            shape,
            pages,
            numbers: Aligned::zeroed(pages * shape.page_len()),
        }
    }

    /// The shape.
    pub(crate) fn shape(&self) -> KvShape {
        self.shape
    }

    /// Copies a page over another one: a fork whose last page is not full.
    ///
    /// # Panics
    /// Where there are no such pages.
    pub(crate) fn copy_page(&mut self, from: u32, to: u32) {
        let len = self.shape.page_len();
        let from = from as usize * len;
        self.numbers
            .copy_within(from..from + len, to as usize * len);
    }
}

/// One query head's work: which token's keys it may see, and where its numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Query {
    /// Where the head's `head_size` numbers start in the queries, and those of its result in the
    /// output.
    pub(crate) at: usize,
    /// The position of the query's own token: it sees positions `0..=position`.
    pub(crate) position: usize,
    /// Where its running maximum and sum are kept in the state.
    pub(crate) state: usize,
}

/// The running softmax of a query between calls.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Running {
    /// The sum of `e^(score − max)` so far, lane by lane: added up once, at the end.
    pub(crate) sums: [f32; LANES],
    /// The largest score so far.
    pub(crate) max: f32,
}

impl Default for Running {
    fn default() -> Self {
        Self {
            sums: [0.0; LANES],
            max: f32::NEG_INFINITY,
        }
    }
}

/// One call: some queries against one KV head over some positions of one page table. The queries may
/// belong to different sequences as long as these share the pages of the positions.
pub(super) struct Call<'a> {
    pub(super) layer: &'a KvLayer,
    pub(super) kv_head: usize,
    /// Page `i` holds positions `16 i..16 (i + 1)`.
    pub(super) pages: &'a [u32],
    /// From a multiple of [`SPAN`] to a multiple of it (or to the end).
    pub(super) positions: std::ops::Range<usize>,
    pub(super) queries: &'a [Query],
    /// Multiplies the scores: 1 / √head_size.
    pub(super) scale: f32,
    pub(super) input: &'a [f32],
    /// Where the outputs build up, unnormalised until [`finish`].
    pub(super) output: *mut f32,
    pub(super) state: *mut Running,
}

/// Runs a call.
///
/// # Safety
/// As [`Simd`]'s; pages, queries and states lie within the layer, the input, the output and the state;
/// `pages` covers `positions`; nobody else uses these outputs and states.
#[inline(always)]
pub(super) unsafe fn attend<S: Simd>(call: &Call<'_>) {
    let (most, vectors) = S::WIDE;
    let mut start = 0;
    while start < call.queries.len() {
        let parts = (call.queries.len() - start).div_ceil(most);
        let count = (call.queries.len() - start).div_ceil(parts);
        let queries = &call.queries[start..start + count];
        start += count;
        // SAFETY: as this function's.
        unsafe {
            match (count, vectors >= 4) {
                (1, true) => tile::<S, 1, 4>(call, queries),
                (2, true) => tile::<S, 2, 4>(call, queries),
                (3, true) => tile::<S, 3, 4>(call, queries),
                (4, true) => tile::<S, 4, 4>(call, queries),
                (5, true) => tile::<S, 5, 4>(call, queries),
                (6, true) => tile::<S, 6, 4>(call, queries),
                (1, false) => tile::<S, 1, 1>(call, queries),
                (2, false) => tile::<S, 2, 1>(call, queries),
                (3, false) => tile::<S, 3, 1>(call, queries),
                (4, false) => tile::<S, 4, 1>(call, queries),
                _ => unreachable!("a tile of {count} queries"),
            }
        }
    }
}

/// `Q` queries over all blocks, `V` vectors of keys or values at a time.
#[inline(always)]
unsafe fn tile<S: Simd, const Q: usize, const V: usize>(call: &Call<'_>, queries: &[Query]) {
    let end = call.positions.end;
    let mut first = call.positions.start;
    while first < end {
        // How many positions of the block each query sees.
        let mut seen = [0; Q];
        let mut most = 0;
        for q in 0..Q {
            let limit = end.min(queries[q].position + 1);
            seen[q] = limit.saturating_sub(first).min(SPAN);
            most = most.max(seen[q]);
        }
        if most == 0 {
            return;
        }
        let mut scores = [[0.0f32; SPAN]; Q];
        // SAFETY: as [`attend`]'s; only pages below `first + most` are read.
        unsafe {
            self::scores::<S, Q, V>(call, queries, first, most, &mut scores);
            // All maxima before all powers: each is a chain of operations that wait for one another,
            // and chains side by side hide that.
            let mut largest = [f32::NEG_INFINITY; Q];
            for q in 0..Q {
                largest[q] = largest_score::<S>(&mut scores[q], seen[q]);
            }
            for q in 0..Q {
                soften::<S>(call, &queries[q], seen[q], largest[q], &mut scores[q]);
            }
            accumulate::<S, Q, V>(call, queries, first, most, &scores);
        }
        first += SPAN;
    }
}

/// `scores[q][j] = Σ query · key`, for the pages that hold the block's first `most` positions.
#[inline(always)]
unsafe fn scores<S: Simd, const Q: usize, const V: usize>(
    call: &Call<'_>,
    queries: &[Query],
    first: usize,
    most: usize,
    scores: &mut [[f32; SPAN]; Q],
) {
    let shape = call.layer.shape;
    let used = most.div_ceil(PAGE);
    let mut page = 0;
    // SAFETY: as [`attend`]'s.
    unsafe {
        while page < used {
            let mut keys = [call.layer.numbers.as_ptr(); V];
            for v in 0..V {
                // Past the last page the same one again: its scores are not used.
                let index = call.pages[first / PAGE + (page + v).min(used - 1)] as usize;
                keys[v] = call
                    .layer
                    .numbers
                    .as_ptr()
                    .add(index * shape.page_len() + shape.keys_at(call.kv_head));
            }
            let mut sums = [[S::splat(0.0); V]; Q];
            for d in 0..shape.head_size {
                let mut key = [S::splat(0.0); V];
                for v in 0..V {
                    key[v] = S::load_f16(keys[v].add(d * PAGE));
                }
                for q in 0..Q {
                    let query = S::splat(*call.input.as_ptr().add(queries[q].at + d));
                    for v in 0..V {
                        sums[q][v] = S::mul_add(query, key[v], sums[q][v]);
                    }
                }
            }
            for q in 0..Q {
                for v in 0..V {
                    S::store(scores[q].as_mut_ptr().add((page + v) * PAGE), sums[q][v]);
                }
            }
            page += V;
        }
    }
}

/// The largest of a block's first `seen` scores; the others become −∞.
#[inline(always)]
unsafe fn largest_score<S: Simd>(scores: &mut [f32; SPAN], seen: usize) -> f32 {
    // SAFETY: as [`attend`]'s; a block of scores is `SPAN_PAGES` vectors.
    unsafe {
        let mut block = [S::splat(f32::NEG_INFINITY); SPAN_PAGES];
        for v in 0..SPAN_PAGES {
            let score = scores.as_mut_ptr().add(v * LANES);
            block[v] = S::load(score);
            if seen < SPAN {
                let inside = seen.saturating_sub(v * LANES);
                block[v] = S::first(block[v], inside, f32::NEG_INFINITY);
                S::store(score, block[v]);
            }
        }
        let mut step = SPAN_PAGES / 2;
        while step > 0 {
            for v in 0..step {
                block[v] = S::max(block[v], block[v + step]);
            }
            step /= 2;
        }
        S::reduce_max(block[0])
    }
}

/// Turns a block's scores into `e^(score − max)`, zero beyond the `seen` first ones, and brings the
/// query's running maximum, sums and output up to date.
#[inline(always)]
unsafe fn soften<S: Simd>(
    call: &Call<'_>,
    query: &Query,
    seen: usize,
    largest: f32,
    scores: &mut [f32; SPAN],
) {
    // SAFETY: as [`attend`]'s; a block of scores is `SPAN_PAGES` vectors.
    unsafe {
        if seen == 0 {
            *scores = [0.0; SPAN];
            return;
        }
        let running = &mut *call.state.add(query.state);
        let mut block = [S::splat(0.0); SPAN_PAGES];
        for v in 0..SPAN_PAGES {
            block[v] = S::load(scores.as_ptr().add(v * LANES));
        }
        // Rounding keeps the order: the largest product is the product of the largest.
        let max = running.max.max(largest * call.scale);
        let (scale, minus_max) = (S::splat(call.scale), S::splat(-max));
        let mut sums = S::splat(0.0);
        for v in 0..SPAN_PAGES {
            let mut power = S::exp(S::mul_add(block[v], scale, minus_max));
            if seen < SPAN {
                power = S::first(power, seen.saturating_sub(v * LANES), 0.0);
            }
            sums = S::add(sums, power);
            S::store(scores.as_mut_ptr().add(v * LANES), power);
        }
        if max > running.max {
            let output = call.output.add(query.at);
            let size = call.layer.shape.head_size;
            if running.max == f32::NEG_INFINITY {
                output.write_bytes(0, size);
            } else {
                let decay = S::exp(S::splat(running.max - max));
                sums = S::mul_add(S::load(running.sums.as_ptr()), decay, sums);
                for d in (0..size).step_by(LANES) {
                    let decayed = S::mul(load_within::<S>(output, d, size), decay);
                    store_within::<S>(output, d, size, decayed);
                }
            }
            running.max = max;
        } else {
            // The decay would be e^0, which is exactly 1.
            sums = S::add(S::load(running.sums.as_ptr()), sums);
        }
        S::store(running.sums.as_mut_ptr(), sums);
    }
}

/// `output[q] += Σ scores[q][j] · value[j]`, for the block's first `most` positions.
#[inline(always)]
unsafe fn accumulate<S: Simd, const Q: usize, const V: usize>(
    call: &Call<'_>,
    queries: &[Query],
    first: usize,
    most: usize,
    scores: &[[f32; SPAN]; Q],
) {
    let shape = call.layer.shape;
    let size = shape.head_size;
    let stride = shape.value_stride();
    // SAFETY: as [`attend`]'s; values are padded to whole vectors, outputs are not, so that the last
    // vectors of a head are loaded and stored in part.
    unsafe {
        let mut d = 0;
        while d < size {
            let mut sums = [[S::splat(0.0); V]; Q];
            for q in 0..Q {
                let from = call.output.add(queries[q].at);
                for v in 0..V {
                    sums[q][v] = load_within::<S>(from, d + v * LANES, size);
                }
            }
            for page in 0..most.div_ceil(PAGE) {
                let index = call.pages[first / PAGE + page] as usize;
                let values = call
                    .layer
                    .numbers
                    .as_ptr()
                    .add(index * shape.page_len() + shape.values_at(call.kv_head) + d);
                for slot in 0..PAGE.min(most - page * PAGE) {
                    let mut value = [S::splat(0.0); V];
                    for v in 0..V {
                        // A vector past the head's end stands in for itself: it is not stored.
                        let at = if d + v * LANES < size { v * LANES } else { 0 };
                        value[v] = S::load_f16(values.add(slot * stride + at));
                    }
                    for q in 0..Q {
                        let score = S::splat(scores[q][page * PAGE + slot]);
                        for v in 0..V {
                            sums[q][v] = S::mul_add(score, value[v], sums[q][v]);
                        }
                    }
                }
            }
            for q in 0..Q {
                let to = call.output.add(queries[q].at);
                for v in 0..V {
                    store_within::<S>(to, d + v * LANES, size, sums[q][v]);
                }
            }
            d += V * LANES;
        }
    }
}

/// Sixteen of `from[at..size]`, zeros where it ends.
#[inline(always)]
unsafe fn load_within<S: Simd>(from: *const f32, at: usize, size: usize) -> S::F {
    // SAFETY: `from` is good for `size` elements.
    unsafe {
        if at + LANES <= size {
            return S::load(from.add(at));
        }
        let mut lanes = [0.0; LANES];
        if at < size {
            lanes
                .as_mut_ptr()
                .copy_from_nonoverlapping(from.add(at), size - at);
        }
        S::load(lanes.as_ptr())
    }
}

/// Stores the lanes of `x` that fit in `to[at..size]`.
#[inline(always)]
unsafe fn store_within<S: Simd>(to: *mut f32, at: usize, size: usize, x: S::F) {
    // SAFETY: `to` is good for `size` elements.
    unsafe {
        if at + LANES <= size {
            S::store(to.add(at), x);
        } else if at < size {
            let mut lanes = [0.0; LANES];
            S::store(lanes.as_mut_ptr(), x);
            to.add(at)
                .copy_from_nonoverlapping(lanes.as_ptr(), size - at);
        }
    }
}

/// Divides the queries' outputs by their sums.
///
/// # Safety
/// As [`attend`]'s.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd>(call: &Call<'_>) {
    let size = call.layer.shape.head_size;
    for query in call.queries {
        // SAFETY: as this function's.
        unsafe {
            let sums = S::load((*call.state.add(query.state)).sums.as_ptr());
            let inverse = S::splat(1.0 / S::reduce_add(sums));
            let output = call.output.add(query.at);
            for d in (0..size).step_by(LANES) {
                let x = S::mul(load_within::<S>(output, d, size), inverse);
                // A masked score adds `0 · value`, which can turn −0 into 0. Adding 0 does so always.
                store_within::<S>(output, d, size, S::add(x, S::splat(0.0)));
            }
        }
    }
}

/// Tokens to write to a layer, `[tokens, kv_heads, head_size]` each.
pub(super) struct Writing<'a> {
    pub(super) shape: KvShape,
    pub(super) pages: *mut u16,
    /// Page and slot of each token.
    pub(super) places: &'a [(u32, usize)],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

/// Writes one head's keys, or its values, of all tokens, as f16 (to nearest even; what f16 cannot hold
/// is cut to ±65504, for an infinity would spoil every later result).
///
/// # Safety
/// As [`Simd`]'s; all places are in the layer's pages, there are as many keys and values as they take,
/// and nobody else uses this head's keys (or values).
#[inline(always)]
pub(super) unsafe fn write<S: Simd>(writing: &Writing<'_>, head: usize, values: bool) {
    let shape = writing.shape;
    let size = shape.head_size;
    for (token, &(page, slot)) in writing.places.iter().enumerate() {
        for d in (0..size).step_by(LANES) {
            // SAFETY: as this function's; a head's vectors are cut at its end.
            unsafe {
                let from = if values { writing.values } else { writing.keys };
                let from = from.as_ptr().add((token * shape.kv_heads + head) * size);
                let mut half = [0u16; LANES];
                let x = within_f16::<S>(load_within::<S>(from, d, size));
                S::store_f16(half.as_mut_ptr(), x);
                let half = &half[..LANES.min(size - d)];

                let page = writing.pages.add(page as usize * shape.page_len());
                if values {
                    let to = page.add(shape.values_at(head) + slot * shape.value_stride() + d);
                    to.copy_from_nonoverlapping(half.as_ptr(), half.len());
                } else {
                    let to = page.add(shape.keys_at(head) + d * PAGE + slot);
                    for (lane, half) in half.iter().enumerate() {
                        *to.add(lane * PAGE) = *half;
                    }
                }
            }
        }
    }
}

/// Cut to what f16 can hold.
#[inline(always)]
unsafe fn within_f16<S: Simd>(x: S::F) -> S::F {
    // SAFETY: as the caller's.
    unsafe { S::max(S::min(x, S::splat(65504.0)), S::splat(-65504.0)) }
}
