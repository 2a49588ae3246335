//! Attention over paged keys and values, block by block with a running softmax, over any [`Simd`].
//!
//! Queries, keys and the softmax's powers are integers with a scale (see `kv_memory`), so scores and
//! outputs are exact integer dot products, two terms per instruction: over all of a head's columns for
//! a score, over the sixteen tokens of a page for an output. The rest is f32:
//!
//! ```text
//! score  = Σ (query · key) · key's scale
//! power  = e^(score · query's scale / √head_size − running maximum)
//! whole  = round(power · (value's scale · 32767 / the block's largest value scale))
//! output = fma(Σ (whole · value), the block's largest value scale / 32767, output), page by page
//! ```
//!
//! The softmax runs over blocks of [`SPAN`] tokens, aligned to absolute positions. A query's result is
//! made by the same operations whether it is computed alone, with others, or in several tiles that meet
//! at multiples of [`SPAN`].

use super::kv_memory::{HeadPage, KvLayer, KvShape, PAGE, Scale, WHOLE};
use super::simd::{LANES, Simd};
use super::vector::store_padded;

/// Tokens of a softmax block: the running maximum and sum are updated once per block.
pub const SPAN: usize = 64;

/// Pages of a softmax block.
const SPAN_PAGES: usize = SPAN / PAGE;

/// The largest integer power. The sum over a page fits 31 bits: 16 · 32767 · 4095 < 2^31.
const POWER: f32 = 32767.0;

impl KvShape {
    /// The largest integer of a query, so that the sum over a head's columns fits 31 bits.
    pub fn query_limit(self) -> f32 {
        let terms = 2 * self.key_pairs() * WHOLE as usize;
        (i32::MAX as usize / terms).min(i16::MAX as usize) as f32
    }

    /// Length of the [`super::scratch`] for a part of `queries` queries.
    pub(super) fn scratch_len(self, queries: usize) -> usize {
        queries * QUERY_SCRATCH * self.value_stride() / 2
    }
}

/// A query's scratch in halves of a padded vector: two for its f32 output, one for its integers.
const QUERY_SCRATCH: usize = 3;

/// One query head of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// Offset of the head's `head_size` numbers, in the queries and in the output.
    pub at: usize,
    /// The position of the query's token, which sees positions `0..=position`.
    pub position: usize,
    /// Index of its running maximum and sum in the state.
    pub state: usize,
}

/// The running softmax of a query.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Running {
    /// The sum of `e^(score − max)` so far, by lane; the lanes are added at the end.
    pub(crate) sums: [f32; LANES],
    /// The largest score so far.
    pub(crate) max: f32,
    /// Multiplies the scores: the query's scale / √head_size. Set by [`prepare`].
    factor: f32,
}

impl Default for Running {
    fn default() -> Self {
        Self {
            sums: [0.0; LANES],
            max: f32::NEG_INFINITY,
            factor: 0.0,
        }
    }
}

/// Some queries against one KV head, over some positions of one page table. The queries may belong to
/// different sequences that share these pages.
#[derive(Clone)]
pub(super) struct AttentionTile<'a> {
    pub(super) layer: KvLayer<'a>,
    pub(super) kv_head: usize,
    /// Page `i` holds positions `16 i..16 (i + 1)`.
    pub(super) pages: &'a [u32],
    /// Starts at a multiple of [`SPAN`], and ends at one or at the end of the sequence.
    pub(super) positions: std::ops::Range<usize>,
    pub(super) queries: &'a [Query],
    /// Pages of this layer and head that will probably be read next.
    pub(super) next: &'a [u32],
    /// Multiplies the scores: 1 / √head_size.
    pub(super) scale: f32,
    pub(super) input: &'a [f32],
    /// Where [`finish`] writes the results.
    pub(super) output: *mut f32,
    pub(super) state: *mut Running,
    /// [`KvShape::scratch_len`] numbers for the queries of all tiles of a part.
    pub(super) scratch: *mut f32,
}

impl AttentionTile<'_> {
    /// A query's output accumulator, padded to whole vectors.
    #[inline(always)]
    fn sums(&self, query: &Query) -> *mut f32 {
        let stride = self.layer.shape().value_stride();
        self.scratch
            .wrapping_add(query.state * QUERY_SCRATCH * stride / 2)
    }

    /// A query's integers, padded to whole vectors. Written by [`prepare`].
    #[inline(always)]
    fn whole(&self, query: &Query) -> *mut i16 {
        let stride = self.layer.shape().value_stride();
        self.sums(query).wrapping_add(stride).cast()
    }
}

/// Quantises the queries. Runs before the first [`attend`].
///
/// # Safety
/// As [`attend`]'s.
#[inline(always)]
pub(super) unsafe fn prepare<S: Simd>(tile: &AttentionTile<'_>) {
    let shape = tile.layer.shape();
    for query in tile.queries {
        let numbers = &tile.input[query.at..query.at + shape.head_size];
        // SAFETY: as this function's.
        unsafe {
            let scale = Scale::of::<S>(numbers, shape.query_limit());
            (*tile.state.add(query.state)).factor = scale.scale * tile.scale;
            let whole = tile.whole(query);
            for at in (0..shape.head_size).step_by(LANES) {
                scale.apply::<S>(numbers, at, whole.add(at));
            }
        }
    }
}

/// A softmax block: the head's keys and values by page, and those of the next block, to be prefetched.
struct Block {
    first: usize,
    pages: [HeadPage; SPAN_PAGES],
    next: [HeadPage; SPAN_PAGES],
    /// Valid pages in `next`.
    coming: usize,
}

impl Block {
    /// The block of `tile` at position `first`, of which `visible` positions are seen.
    #[inline(always)]
    unsafe fn new(tile: &AttentionTile<'_>, first: usize, visible: usize) -> Self {
        let pages = &tile.pages[first / PAGE..(first + visible).div_ceil(PAGE)];
        let end = tile.positions.end.div_ceil(PAGE);
        let after = (first / PAGE + SPAN_PAGES).min(end);
        let next = match &tile.pages[after..end] {
            [] => tile.next,
            further => further,
        };
        let coming = next.len().min(SPAN_PAGES);
        // SAFETY: as [`attend`]'s: all these pages are the layer's.
        unsafe {
            let start = tile.layer.head(pages[0], tile.kv_head);
            let mut block = Self {
                first,
                pages: [start; SPAN_PAGES],
                next: [start; SPAN_PAGES],
                coming,
            };
            for place in 0..SPAN_PAGES {
                // Past the last page it is repeated: its scores are not used.
                let page = pages[place.min(pages.len() - 1)];
                block.pages[place] = tile.layer.head(page, tile.kv_head);
                if place < coming {
                    block.next[place] = tile.layer.head(next[place], tile.kv_head);
                }
            }
            block
        }
    }

    /// Prefetches the cache line of the next block's keys that corresponds to a pair of columns of a
    /// page.
    #[inline(always)]
    unsafe fn prefetch_keys<S: Simd>(&self, page: usize, pair: usize) {
        if page < self.coming {
            let next = self.next[page];
            // SAFETY: only prefetches.
            unsafe {
                S::prefetch_far(next.keys().wrapping_add(pair * 2 * PAGE).cast());
                if pair == 0 {
                    S::prefetch_far(next.key_scales().cast());
                }
            }
        }
    }

    /// Prefetches the next block's values of a page.
    #[inline(always)]
    unsafe fn prefetch_values<S: Simd>(&self, page: usize, shape: KvShape) {
        if page < self.coming {
            let next = self.next[page];
            // SAFETY: only prefetches.
            unsafe {
                S::prefetch_far(next.value_scales(shape).cast());
                for at in (0..PAGE * shape.value_stride()).step_by(2 * LANES) {
                    S::prefetch_far(next.values(shape).wrapping_add(at).cast());
                }
            }
        }
    }

    /// The factors that make a block's powers integers, if its first `seen` tokens are seen.
    #[inline(always)]
    unsafe fn weights<S: Simd>(&self, shape: KvShape, seen: usize) -> Weights {
        let mut scales = [0.0f32; SPAN];
        // SAFETY: as [`attend`]'s; a block of scales is `SPAN_PAGES` vectors.
        unsafe {
            let mut largest = S::splat(0.0);
            for page in 0..SPAN_PAGES {
                let scale = S::load(self.pages[page].value_scales(shape));
                let scale = S::first(scale, seen.saturating_sub(page * PAGE), 0.0);
                largest = S::max(largest, scale);
                S::store(scales.as_mut_ptr().add(page * PAGE), scale);
            }
            let largest = S::reduce_max(largest);
            let inverse = if largest == 0.0 { 0.0 } else { POWER / largest };
            for page in 0..SPAN_PAGES {
                let at = scales.as_mut_ptr().add(page * PAGE);
                S::store(at, S::mul(S::load(at), S::splat(inverse)));
            }
            Weights {
                seen,
                scales,
                back: largest / POWER,
            }
        }
    }
}

/// Factors that make a block's powers integers.
struct Weights {
    seen: usize,
    /// The values' scales · 32767 / the largest.
    scales: [f32; SPAN],
    /// Converts integer sums back to outputs.
    back: f32,
}

/// The softmax powers of `Q` queries over a block, as integers.
struct Powers<const Q: usize> {
    whole: [[i16; SPAN]; Q],
    /// Converts a query's integer sums back to outputs.
    back: [f32; Q],
}

/// Adds the tile's positions to its queries' running softmaxes and outputs.
///
/// # Safety
/// As [`Simd`]'s; pages, queries and states are within the layer, the input, the output, the scratch
/// and the state; `pages` covers `positions`; nobody else uses these outputs, these states and this
/// scratch.
#[inline(always)]
pub(super) unsafe fn attend<S: Simd>(tile: &AttentionTile<'_>) {
    let end = tile.positions.end;
    let last = tile.queries.iter().map(|query| query.position + 1).max();
    let last = last.unwrap_or(0).min(end);
    let mut first = tile.positions.start;
    while first < last {
        // SAFETY: as this function's.
        unsafe {
            let block = Block::new(tile, first, (last - first).min(SPAN));
            run_tiles::<S>(tile, &block);
        }
        first += SPAN;
    }
}

/// All queries over one block, as many at a time as fit into registers.
#[inline(always)]
unsafe fn run_tiles<S: Simd>(tile: &AttentionTile<'_>, block: &Block) {
    let wide = S::WIDE.1 >= 4;
    let mut start = 0;
    while start < tile.queries.len() {
        let parts = (tile.queries.len() - start).div_ceil(S::WIDE.0);
        let count = (tile.queries.len() - start).div_ceil(parts);
        let queries = &tile.queries[start..start + count];
        // The first tile prefetches the next block.
        let prefetch = start == 0;
        start += count;
        // SAFETY: as [`attend`]'s.
        unsafe {
            match (count, wide) {
                (1, true) => run_tile::<S, 1, 4>(tile, queries, block, prefetch),
                (2, true) => run_tile::<S, 2, 4>(tile, queries, block, prefetch),
                (3, true) => run_tile::<S, 3, 4>(tile, queries, block, prefetch),
                (4, true) => run_tile::<S, 4, 4>(tile, queries, block, prefetch),
                (5, true) => run_tile::<S, 5, 4>(tile, queries, block, prefetch),
                (6, true) => run_tile::<S, 6, 4>(tile, queries, block, prefetch),
                (1, false) => run_tile::<S, 1, 1>(tile, queries, block, prefetch),
                (2, false) => run_tile::<S, 2, 1>(tile, queries, block, prefetch),
                (3, false) => run_tile::<S, 3, 1>(tile, queries, block, prefetch),
                (4, false) => run_tile::<S, 4, 1>(tile, queries, block, prefetch),
                _ => unreachable!("a tile of {count} queries"),
            }
        }
    }
}

/// `Q` queries over a block, `V` vectors of keys or values at a time.
#[inline(always)]
unsafe fn run_tile<S: Simd, const Q: usize, const V: usize>(
    tile: &AttentionTile<'_>,
    queries: &[Query],
    block: &Block,
    prefetch: bool,
) {
    // Visible positions of the block, by query.
    let mut seen = [0; Q];
    let mut visible = 0;
    for q in 0..Q {
        let limit = tile.positions.end.min(queries[q].position + 1);
        seen[q] = limit.saturating_sub(block.first).min(SPAN);
        visible = visible.max(seen[q]);
    }
    if visible == 0 {
        return;
    }
    let shape = tile.layer.shape();
    let mut scores = [[0.0f32; SPAN]; Q];
    // SAFETY: as [`attend`]'s; only pages below `first + visible` are read.
    unsafe {
        self::scores::<S, Q, V>(tile, queries, block, visible, prefetch, &mut scores);
        // All maxima before all powers: each is a dependency chain, and independent chains hide the
        // latency.
        let mut largest = [f32::NEG_INFINITY; Q];
        for q in 0..Q {
            largest[q] = largest_score::<S>(&mut scores[q], seen[q]);
        }
        let mut weights = block.weights::<S>(shape, seen[0]);
        let mut powers = Powers {
            whole: [[0i16; SPAN]; Q],
            back: [0.0f32; Q],
        };
        for q in 0..Q {
            // The query heads of one token see the same positions.
            if weights.seen != seen[q] {
                weights = block.weights::<S>(shape, seen[q]);
            }
            powers.back[q] = weights.back;
            let whole = &mut powers.whole[q];
            softmax_block::<S>(tile, &queries[q], &scores[q], largest[q], &weights, whole);
        }
        accumulate::<S, Q>(tile, queries, block, visible, prefetch, &powers);
    }
}

/// `scores[q][j] = Σ query · key`, without the query's scale, for the pages that hold the block's first
/// `visible` positions.
#[inline(always)]
unsafe fn scores<S: Simd, const Q: usize, const V: usize>(
    tile: &AttentionTile<'_>,
    queries: &[Query],
    block: &Block,
    visible: usize,
    prefetch: bool,
    scores: &mut [[f32; SPAN]; Q],
) {
    let shape = tile.layer.shape();
    // SAFETY: as [`attend`]'s.
    unsafe {
        let mut whole = [tile.whole(&queries[0]).cast_const(); Q];
        for q in 1..Q {
            whole[q] = tile.whole(&queries[q]);
        }
        for page in (0..visible.div_ceil(PAGE)).step_by(V) {
            let pages: &[HeadPage; V] = &*block.pages.as_ptr().add(page).cast();
            let mut sums = [[S::splat_i32(0); V]; Q];
            for pair in 0..shape.key_pairs() {
                if prefetch {
                    for v in 0..V {
                        block.prefetch_keys::<S>(page + v, pair);
                    }
                }
                let mut key = [S::load_weights(pages[0].keys().cast()); V];
                for v in 0..V {
                    key[v] = S::load_weights(pages[v].keys().add(pair * 2 * PAGE).cast());
                }
                for q in 0..Q {
                    let query = S::quad(whole[q].add(2 * pair).cast());
                    for v in 0..V {
                        sums[q][v] = S::dot_pairs(sums[q][v], key[v], query);
                    }
                }
            }
            let mut scale = [S::splat(0.0); V];
            for v in 0..V {
                scale[v] = S::load(pages[v].key_scales());
            }
            for q in 0..Q {
                let to = scores
                    .as_mut_ptr()
                    .cast::<f32>()
                    .add(q * SPAN + page * PAGE);
                for v in 0..V {
                    let score = S::mul(S::to_f32(sums[q][v]), scale[v]);
                    S::store(to.add(v * PAGE), score);
                }
            }
        }
    }
}

/// The largest of a block's first `seen` scores; sets the others to −∞.
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

/// The softmax of one block: turns scores into integer powers, `e^(score − max)` for the visible ones
/// and zero beyond, and updates the query's running maximum, sum and output.
#[inline(always)]
unsafe fn softmax_block<S: Simd>(
    tile: &AttentionTile<'_>,
    query: &Query,
    scores: &[f32; SPAN],
    largest: f32,
    weights: &Weights,
    whole: &mut [i16; SPAN],
) {
    let seen = weights.seen;
    if seen == 0 {
        return;
    }
    // SAFETY: as [`attend`]'s; a block of scores is `SPAN_PAGES` vectors.
    unsafe {
        let running = &mut *tile.state.add(query.state);
        let mut block = [S::splat(0.0); SPAN_PAGES];
        for v in 0..SPAN_PAGES {
            block[v] = S::load(scores.as_ptr().add(v * LANES));
        }
        // Rounding is monotonic: the largest product is that of the largest score.
        let max = running.max.max(largest * running.factor);
        let (scale, minus_max) = (S::splat(running.factor), S::splat(-max));
        let mut sums = S::splat(0.0);
        for v in 0..SPAN_PAGES {
            let mut power = S::exp(S::mul_add(block[v], scale, minus_max), 0.0);
            if seen < SPAN {
                power = S::first(power, seen.saturating_sub(v * LANES), 0.0);
            }
            sums = S::add(sums, power);
            let weight = S::load(weights.scales.as_ptr().add(v * LANES));
            let to = whole.as_mut_ptr().add(v * LANES);
            S::store_i16(to, S::mul(power, weight));
        }
        if max > running.max {
            let output = tile.sums(query);
            let size = tile.layer.shape().value_stride();
            if running.max == f32::NEG_INFINITY {
                output.write_bytes(0, size);
            } else {
                let decay = S::exp(S::splat(running.max - max), 0.0);
                sums = S::mul_add(S::load(running.sums.as_ptr()), decay, sums);
                for d in (0..size).step_by(LANES) {
                    let output = output.add(d);
                    S::store(output, S::mul(S::load(output), decay));
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

/// `output[q] += Σ power · value`, page by page, for the block's first `visible` positions.
#[inline(always)]
unsafe fn accumulate<S: Simd, const Q: usize>(
    tile: &AttentionTile<'_>,
    queries: &[Query],
    block: &Block,
    visible: usize,
    prefetch: bool,
    powers: &Powers<Q>,
) {
    let shape = tile.layer.shape();
    let stride = shape.value_stride();
    // SAFETY: as [`attend`]'s; values and accumulators are padded to whole vectors.
    unsafe {
        if prefetch {
            for page in 0..SPAN_PAGES {
                block.prefetch_values::<S>(page, shape);
            }
        }
        let pages = visible.div_ceil(PAGE);
        let mut d = 0;
        while d < stride {
            if S::WIDE.1 > 1 && d + 2 * LANES <= stride {
                accumulate_columns::<S, Q, 2>(tile, queries, block, pages, d, powers);
                d += 2 * LANES;
            } else {
                accumulate_columns::<S, Q, 1>(tile, queries, block, pages, d, powers);
                d += LANES;
            }
        }
    }
}

/// The same for `V` vectors of columns, from column `d` on.
#[inline(always)]
unsafe fn accumulate_columns<S: Simd, const Q: usize, const V: usize>(
    tile: &AttentionTile<'_>,
    queries: &[Query],
    block: &Block,
    pages: usize,
    d: usize,
    powers: &Powers<Q>,
) {
    let shape = tile.layer.shape();
    let stride = shape.value_stride();
    // SAFETY: as [`accumulate`]'s.
    unsafe {
        let mut outputs = [[S::splat(0.0); V]; Q];
        for q in 0..Q {
            let from = tile.sums(&queries[q]).add(d);
            for v in 0..V {
                outputs[q][v] = S::load(from.add(v * LANES));
            }
        }
        for page in 0..pages {
            let values = block.pages.get_unchecked(page).values(shape).add(2 * d);
            let whole = powers.whole.as_ptr().cast::<i8>().add(2 * page * PAGE);
            let mut sums = [[S::splat_i32(0); V]; Q];
            for pair in 0..PAGE / 2 {
                let row = values.add(2 * pair * stride);
                let mut value = [S::load_weights(row.cast()); V];
                for v in 1..V {
                    value[v] = S::load_weights(row.add(2 * v * LANES).cast());
                }
                for q in 0..Q {
                    let power = S::quad(whole.add(2 * (q * SPAN + 2 * pair)));
                    for v in 0..V {
                        sums[q][v] = S::dot_pairs(sums[q][v], value[v], power);
                    }
                }
            }
            for q in 0..Q {
                let back = S::splat(powers.back[q]);
                for v in 0..V {
                    outputs[q][v] = S::mul_add(S::to_f32(sums[q][v]), back, outputs[q][v]);
                }
            }
        }
        for q in 0..Q {
            let to = tile.sums(&queries[q]).add(d);
            for v in 0..V {
                S::store(to.add(v * LANES), outputs[q][v]);
            }
        }
    }
}

/// Divides the queries' accumulated outputs by their sums and writes the results.
///
/// # Safety
/// As [`attend`]'s.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd>(tile: &AttentionTile<'_>) {
    let size = tile.layer.shape().head_size;
    for query in tile.queries {
        // SAFETY: as this function's.
        unsafe {
            let sums = S::load((*tile.state.add(query.state)).sums.as_ptr());
            let inverse = S::splat(1.0 / S::reduce_add(sums));
            let output = tile.sums(query);
            let to = std::slice::from_raw_parts_mut(tile.output.add(query.at), size);
            for d in (0..size).step_by(LANES) {
                let x = S::mul(S::load(output.add(d)), inverse);
                // A masked page adds 0, which can turn −0 into 0. Adding 0 always does.
                let x = S::add(x, S::splat(0.0));
                store_padded::<S>(to, d, x);
            }
        }
    }
}
