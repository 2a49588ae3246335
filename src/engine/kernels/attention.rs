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

    /// Numbers of a head's keys and values in a block of [`SPAN`] tokens.
    pub(super) fn widened_len(self) -> usize {
        SPAN * (self.head_size + self.value_stride())
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

/// The keys and values of all layers: a number of pages, all zeros at first. A page's layers stand one
/// after another, `[pages, layers, page_len]`: what a sequence uses lies together, so that it takes
/// few pages of the system's, and large ones.
pub(crate) struct KvMemory {
    pub(super) shape: KvShape,
    layers: usize,
    pub(super) pages: usize,
    pub(super) numbers: Aligned<u16>,
}

impl KvMemory {
    /// Room for `pages` pages. Pages that are never written cost no memory.
    pub(crate) fn new(shape: KvShape, layers: usize, pages: usize) -> Self {
        Self {
            shape,
            layers,
            pages,
            numbers: Aligned::zeroed(pages * layers * shape.page_len()),
        }
    }

    /// The shape of a layer.
    pub(crate) fn shape(&self) -> KvShape {
        self.shape
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Numbers from one page to the next.
    pub(super) fn stride(&self) -> usize {
        self.layers * self.shape.page_len()
    }

    /// Where a layer's first page starts.
    ///
    /// # Panics
    /// Where there is no such layer.
    pub(super) fn layer_at(&self, layer: usize) -> usize {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        layer * self.shape.page_len()
    }

    /// A layer's keys and values.
    ///
    /// # Panics
    /// Where there is no such layer.
    pub(crate) fn layer(&self, layer: usize) -> KvLayer<'_> {
        KvLayer {
            at: self.layer_at(layer),
            memory: self,
        }
    }

    /// Copies a page over another one, in every layer: a fork whose last page is not full.
    ///
    /// # Panics
    /// Where there are no such pages.
    pub(crate) fn copy_page(&mut self, from: u32, to: u32) {
        let len = self.stride();
        let from = from as usize * len;
        self.numbers
            .copy_within(from..from + len, to as usize * len);
    }
}

/// The keys and values of one layer, to be read.
#[derive(Clone, Copy)]
pub(crate) struct KvLayer<'a> {
    memory: &'a KvMemory,
    /// Where its first page starts.
    at: usize,
}

impl KvLayer<'_> {
    /// The shape.
    pub(crate) fn shape(self) -> KvShape {
        self.memory.shape
    }

    /// How many pages there are.
    pub(super) fn pages(self) -> usize {
        self.memory.pages
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
#[derive(Clone)]
pub(super) struct Call<'a> {
    pub(super) layer: KvLayer<'a>,
    pub(super) kv_head: usize,
    /// Page `i` holds positions `16 i..16 (i + 1)`.
    pub(super) pages: &'a [u32],
    /// From a multiple of [`SPAN`] to a multiple of it (or to the end).
    pub(super) positions: std::ops::Range<usize>,
    pub(super) queries: &'a [Query],
    /// Pages of this layer and head that will probably be looked at next.
    pub(super) next: &'a [u32],
    /// Multiplies the scores: 1 / √head_size.
    pub(super) scale: f32,
    pub(super) input: &'a [f32],
    /// Where the outputs build up, unnormalised until [`finish`].
    pub(super) output: *mut f32,
    pub(super) state: *mut Running,
    /// Room for a block's keys and values as f32: [`KvShape::widened_len`] numbers.
    pub(super) widened: *mut f32,
}

impl Call<'_> {
    /// Where the head's keys and values in a page start.
    #[inline(always)]
    unsafe fn page(&self, page: u32) -> (*const u16, *const u16) {
        let KvLayer { memory, at } = self.layer;
        let shape = memory.shape;
        // SAFETY: the page is one of the layer's (the caller's promise).
        unsafe {
            let page = page as usize * memory.stride() + at;
            let page = memory.numbers.as_ptr().add(page);
            (
                page.add(shape.keys_at(self.kv_head)),
                page.add(shape.values_at(self.kv_head)),
            )
        }
    }
}

/// A block of positions: where the head's keys and values lie, page by page, and those of the block
/// after it, to be asked for meanwhile. Pointers to f16, or to f32 where the block was widened.
struct Block {
    first: usize,
    /// How many positions some query sees.
    most: usize,
    keys: [*const u16; SPAN_PAGES],
    values: [*const u16; SPAN_PAGES],
    next: [(*const u16, *const u16); SPAN_PAGES],
    /// How many pages of `next` there are.
    coming: usize,
}

impl Block {
    /// The block of `call` from position `first` on, of which `most` positions are seen.
    #[inline(always)]
    unsafe fn new(call: &Call<'_>, first: usize, most: usize) -> Self {
        let pages = &call.pages[first / PAGE..(first + most).div_ceil(PAGE)];
        let end = call.positions.end.div_ceil(PAGE);
        let after = (first / PAGE + SPAN_PAGES).min(end);
        let next = match &call.pages[after..end] {
            [] => call.next,
            further => further,
        };
        let coming = next.len().min(SPAN_PAGES);
        // SAFETY: as [`attend`]'s: all these pages are the layer's.
        unsafe {
            let start = call.page(pages[0]);
            let mut block = Self {
                first,
                most,
                keys: [start.0; SPAN_PAGES],
                values: [start.1; SPAN_PAGES],
                next: [start; SPAN_PAGES],
                coming,
            };
            for place in 0..SPAN_PAGES {
                // Past the last page the same one again: its scores are not used.
                let page = call.page(pages[place.min(pages.len() - 1)]);
                (block.keys[place], block.values[place]) = page;
                if place < coming {
                    block.next[place] = call.page(next[place]);
                }
            }
            block
        }
    }

    /// How many pages some query sees.
    fn pages(&self) -> usize {
        self.most.div_ceil(PAGE)
    }

    /// Asks for the line of the next block's keys that stands where column `d` of a page is.
    #[inline(always)]
    unsafe fn ask_keys<S: Simd>(&self, page: usize, d: usize) {
        // A line of 64 bytes holds two columns.
        if d.is_multiple_of(2) && page < self.coming {
            // SAFETY: a prefetch.
            unsafe { S::prefetch(self.next[page].0.wrapping_add(d * PAGE).cast()) }
        }
    }

    /// Asks for the next block's values of one slot of a page: `stride` numbers.
    #[inline(always)]
    unsafe fn ask_values<S: Simd>(&self, page: usize, slot: usize, stride: usize) {
        if page < self.coming {
            let row = self.next[page].1.wrapping_add(slot * stride);
            for at in (0..stride).step_by(2 * LANES) {
                // SAFETY: a prefetch.
                unsafe { S::prefetch(row.wrapping_add(at).cast()) }
            }
        }
    }

    /// Copies the block's keys and values to `to` as f32, which is exact, and lets the pointers point
    /// there: for several tiles of queries that would each convert them.
    #[inline(always)]
    unsafe fn widen<S: Simd>(&mut self, shape: KvShape, to: *mut f32) {
        let (keys, values) = (PAGE * shape.head_size, PAGE * shape.value_stride());
        // SAFETY: as [`attend`]'s: `to` has room for a block.
        unsafe {
            for page in 0..self.pages() {
                let to_keys = to.add(page * (keys + values));
                let to_values = to_keys.add(keys);
                for d in 0..shape.head_size {
                    self.ask_keys::<S>(page, d);
                    let at = d * PAGE;
                    S::store(to_keys.add(at), S::load_f16(self.keys[page].add(at)));
                }
                for slot in 0..PAGE {
                    self.ask_values::<S>(page, slot, shape.value_stride());
                    for at in (0..shape.value_stride()).step_by(LANES) {
                        let at = slot * shape.value_stride() + at;
                        S::store(to_values.add(at), S::load_f16(self.values[page].add(at)));
                    }
                }
                (self.keys[page], self.values[page]) = (to_keys.cast(), to_values.cast());
            }
            for page in self.pages()..SPAN_PAGES {
                (self.keys[page], self.values[page]) = (self.keys[0], self.values[0]);
            }
        }
    }
}

/// Runs a call.
///
/// # Safety
/// As [`Simd`]'s; pages, queries and states lie within the layer, the input, the output and the state;
/// `pages` covers `positions`; there is room for a widened block; nobody else uses these outputs,
/// states and that room.
#[inline(always)]
pub(super) unsafe fn attend<S: Simd>(call: &Call<'_>) {
    let (most_queries, vectors) = S::WIDE;
    let tiles = call.queries.len().div_ceil(most_queries);
    let end = call.positions.end;
    let last = call.queries.iter().map(|query| query.position + 1).max();
    let last = last.unwrap_or(0).min(end);
    let mut first = call.positions.start;
    while first < last {
        // SAFETY: as this function's.
        unsafe {
            let mut block = Block::new(call, first, (last - first).min(SPAN));
            if tiles < WORTH_WIDENING {
                run_tiles::<S, false>(call, &block, vectors >= 4);
            } else {
                block.widen::<S>(call.layer.shape(), call.widened);
                run_tiles::<S, true>(call, &block, vectors >= 4);
            }
        }
        first += SPAN;
    }
}

/// Tiles of queries from which on a block is converted to f32 once for all of them.
const WORTH_WIDENING: usize = 2;

/// All queries' tiles over one block.
#[inline(always)]
unsafe fn run_tiles<S: Simd, const WIDENED: bool>(call: &Call<'_>, block: &Block, wide: bool) {
    let mut start = 0;
    while start < call.queries.len() {
        let parts = (call.queries.len() - start).div_ceil(S::WIDE.0);
        let count = (call.queries.len() - start).div_ceil(parts);
        let queries = &call.queries[start..start + count];
        start += count;
        // SAFETY: as [`attend`]'s.
        unsafe {
            match (count, wide) {
                (1, true) => tile::<S, 1, 4, WIDENED>(call, queries, block),
                (2, true) => tile::<S, 2, 4, WIDENED>(call, queries, block),
                (3, true) => tile::<S, 3, 4, WIDENED>(call, queries, block),
                (4, true) => tile::<S, 4, 4, WIDENED>(call, queries, block),
                (5, true) => tile::<S, 5, 4, WIDENED>(call, queries, block),
                (6, true) => tile::<S, 6, 4, WIDENED>(call, queries, block),
                (1, false) => tile::<S, 1, 1, WIDENED>(call, queries, block),
                (2, false) => tile::<S, 2, 1, WIDENED>(call, queries, block),
                (3, false) => tile::<S, 3, 1, WIDENED>(call, queries, block),
                (4, false) => tile::<S, 4, 1, WIDENED>(call, queries, block),
                _ => unreachable!("a tile of {count} queries"),
            }
        }
    }
}

/// `Q` queries over a block, `V` vectors of keys or values at a time.
#[inline(always)]
unsafe fn tile<S: Simd, const Q: usize, const V: usize, const WIDENED: bool>(
    call: &Call<'_>,
    queries: &[Query],
    block: &Block,
) {
    // How many positions of the block each query sees.
    let mut seen = [0; Q];
    let mut most = 0;
    for q in 0..Q {
        let limit = call.positions.end.min(queries[q].position + 1);
        seen[q] = limit.saturating_sub(block.first).min(SPAN);
        most = most.max(seen[q]);
    }
    if most == 0 {
        return;
    }
    let mut scores = [[0.0f32; SPAN]; Q];
    // SAFETY: as [`attend`]'s; only pages below `first + most` are read.
    unsafe {
        self::scores::<S, Q, V, WIDENED>(call, queries, block, most, &mut scores);
        // All maxima before all powers: each is a chain of operations that wait for one another,
        // and chains side by side hide that.
        let mut largest = [f32::NEG_INFINITY; Q];
        for q in 0..Q {
            largest[q] = largest_score::<S>(&mut scores[q], seen[q]);
        }
        for q in 0..Q {
            soften::<S>(call, &queries[q], seen[q], largest[q], &mut scores[q]);
        }
        accumulate::<S, Q, V, WIDENED>(call, queries, block, most, &scores);
    }
}

/// Sixteen keys or values, `at` numbers from the start: f16, or f32 where they were widened.
#[inline(always)]
unsafe fn load_kv<S: Simd, const WIDENED: bool>(from: *const u16, at: usize) -> S::F {
    // SAFETY: as the caller's.
    unsafe {
        if WIDENED {
            S::load(from.cast::<f32>().add(at))
        } else {
            S::load_f16(from.add(at))
        }
    }
}

/// `scores[q][j] = Σ query · key`, for the pages that hold the block's first `most` positions.
#[inline(always)]
unsafe fn scores<S: Simd, const Q: usize, const V: usize, const WIDENED: bool>(
    call: &Call<'_>,
    queries: &[Query],
    block: &Block,
    most: usize,
    scores: &mut [[f32; SPAN]; Q],
) {
    let shape = call.layer.shape();
    // SAFETY: as [`attend`]'s.
    unsafe {
        for page in (0..most.div_ceil(PAGE)).step_by(V) {
            let mut sums = [[S::splat(0.0); V]; Q];
            for d in 0..shape.head_size {
                let mut key = [S::splat(0.0); V];
                for v in 0..V {
                    key[v] = load_kv::<S, WIDENED>(block.keys[page + v], d * PAGE);
                    if !WIDENED {
                        block.ask_keys::<S>(page + v, d);
                    }
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
            let size = call.layer.shape().head_size;
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
unsafe fn accumulate<S: Simd, const Q: usize, const V: usize, const WIDENED: bool>(
    call: &Call<'_>,
    queries: &[Query],
    block: &Block,
    most: usize,
    scores: &[[f32; SPAN]; Q],
) {
    let shape = call.layer.shape();
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
                let values = block.values[page];
                for slot in 0..PAGE.min(most - page * PAGE) {
                    if !WIDENED && d == 0 {
                        block.ask_values::<S>(page, slot, stride);
                    }
                    let mut value = [S::splat(0.0); V];
                    for v in 0..V {
                        // A vector past the head's end stands in for itself: it is not stored.
                        let at = if d + v * LANES < size { v * LANES } else { 0 };
                        value[v] = load_kv::<S, WIDENED>(values, slot * stride + d + at);
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
    let size = call.layer.shape().head_size;
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
    /// The layer's first page.
    pub(super) pages: *mut u16,
    /// Numbers from one page to the next.
    pub(super) stride: usize,
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

                let page = writing.pages.add(page as usize * writing.stride);
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
