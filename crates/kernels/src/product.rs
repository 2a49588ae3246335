//! The product of packed weights with activations, over any [`Simd`].
//!
//! Every output is a fixed sequence of operations in ascending order of columns, whatever tile computes
//! it. Quantised, it is one chain of fused multiply-adds; for each block of 32 columns:
//!
//! ```text
//! output = fma(weight scale · activation scale, Σ integer products, output)
//! output = fma(weight minimum, activation scale · Σ activation quants, output)
//! ```
//!
//! Dense, the columns are cut into [`SEGMENTS`] segments, each a chain from zero with `sum = fma(weight,
//! activation, sum)` for each column, and `output` is the segments' sums, added in their order: a GPU
//! needs more than one chain to be busy with one token. So the bits do not depend on the batch, on how
//! the work is split, or on the processor.

use std::ops::Range;

use super::activations::ActivationBlock;
use super::gguf::SUPER;
use super::group::{GroupPointers, ScaleMin, has_min, is_nibbles, scale_and_min};
use super::kv_prefetch::PrefetchCursor;
use super::pack::{Format, PackedMatrix};
use super::pool::share;
use super::quant::BLOCK;
use super::simd::{LANES, Simd};
use super::weight_prefetch::WeightPrefetch;

/// Segments of a dense row, at most.
pub const SEGMENTS: usize = 8;

/// Columns of a segment of a dense row of `cols` columns; the last one may have fewer.
pub fn segment_columns(cols: usize) -> usize {
    cols.div_ceil(SEGMENTS).next_multiple_of(BLOCK)
}

/// The input of a product: `tokens` activation vectors of `cols` numbers.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    pub tokens: usize,
    /// `[tokens, cols]`, for dense weights (otherwise it may be empty).
    pub values: &'a [f32],
    /// `[tokens, cols / 32]`, for quantised weights (otherwise it may be empty).
    pub blocks: &'a [ActivationBlock],
}

/// A part of a product: some groups of rows, for some tokens.
#[derive(Clone)]
pub(super) struct Part<'a> {
    pub(super) weights: &'a PackedMatrix,
    pub(super) input: Input<'a>,
    pub(super) groups: Range<usize>,
    /// The weights that this thread will probably multiply next, and the first group of them.
    pub(super) next: Option<(&'a PackedMatrix, usize)>,
    pub(super) tokens: Range<usize>,
    /// Keys and values to prefetch meanwhile.
    pub(super) kv: PrefetchCursor<'a>,
    /// `[tokens, rows]`, the whole output; the part writes its own rows of its own tokens.
    pub(super) output: *mut f32,
}

/// The first group of rows and the first token of a tile.
#[derive(Clone, Copy)]
pub(super) struct TileOrigin {
    pub(super) group: usize,
    pub(super) token: usize,
}

/// Computes a part of a product with weights of format `FORMAT` (a [`Format`] as `u8`).
///
/// # Safety
/// As [`Simd`]'s; the weights have this format; the part's ranges are within its weights, input and
/// output, and nobody else writes these outputs.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, const FORMAT: u8>(part: &Part<'_>) {
    // SAFETY: as this function's.
    unsafe {
        if FORMAT >= Format::F16 as u8 {
            dense::<S, FORMAT>(part)
        } else {
            quantized::<S, FORMAT>(part)
        }
    }
}

/// Dispatches to the tile function for a tile's shape: up to 6 tokens × 4 groups. Shapes beyond
/// `$limit` are not generated.
macro_rules! by_shape {
    ($limit:expr, $tokens:expr, $groups:expr, $tile:ident::<$simd:ident, $format:ident>, $args:tt) => {
        by_shape!(@tokens $limit, $tokens, $groups, $tile, $simd, $format, $args, 1 2 3 4 5 6)
    };
    (@tokens $limit:expr, $tokens:expr, $groups:expr, $tile:ident, $simd:ident, $format:ident,
     $args:tt, $($t:literal)*) => {
        match $tokens {
            $($t if $t <= $limit.0 => match $groups {
                1 => $tile::<$simd, $format, $t, 1> $args,
                2 if $limit.1 >= 2 => $tile::<$simd, $format, $t, 2> $args,
                3 if $limit.1 >= 3 => $tile::<$simd, $format, $t, 3> $args,
                4 if $limit.1 >= 4 => $tile::<$simd, $format, $t, 4> $args,
                _ => unreachable!("a tile of {} groups", $groups),
            },)*
            _ => unreachable!("a tile of {} tokens", $tokens),
        }
    };
}
pub(super) use by_shape;

/// Splits `count` evenly into as few shares of at most `max` as possible: 25 by 6 is five fives.
#[inline(always)]
pub(super) fn shares(count: usize, max: usize) -> impl Iterator<Item = (usize, usize)> {
    let parts = count.div_ceil(max);
    (0..parts).map(move |part| {
        let share = share(part, parts, count);
        (share.start, share.len())
    })
}

/// Computes the part tile by tile. Groups are the outer loop: their weights come from memory once, and
/// from the nearest cache for every further tile of tokens. Meanwhile each tile prefetches a share of
/// the next groups' weights, so that memory is busy throughout.
#[inline(always)]
unsafe fn quantized<S: Simd, const FORMAT: u8>(part: &Part<'_>) {
    let (max_tokens, mut max_groups) = S::TILE;
    let tiles = part.tokens.len().div_ceil(max_tokens);
    if part.tokens.len() <= ALONE {
        max_groups = 1;
    }
    let mut kv = part.kv.clone();
    let blocks = part.weights.cols / BLOCK;
    kv.spread(tiles * part.groups.len().div_ceil(max_groups) * blocks);
    for (group, groups) in shares(part.groups.len(), max_groups) {
        let group = part.groups.start + group;
        for (index, (token, tokens)) in shares(part.tokens.len(), max_tokens).enumerate() {
            let at = TileOrigin {
                group,
                token: part.tokens.start + token,
            };
            let prefetch = if part.tokens.len() <= ALONE {
                WeightPrefetch::stream(part, group)
            } else {
                WeightPrefetch::for_tile::<S>(part, group + groups, index, tiles)
            };
            // SAFETY: as this function's; the tile is inside the part.
            unsafe {
                by_shape!(
                    S::TILE,
                    tokens,
                    groups,
                    quantized_tile::<S, FORMAT>,
                    (part, at, prefetch, &mut kv)
                )
            }
        }
    }
}

/// Up to this many tokens, groups are computed one at a time, as a single stream of weights: then
/// memory bandwidth is the limit, and one stream is the fastest way to read.
const ALONE: usize = 1;

/// The outputs of `T` tokens and `R` groups of rows, starting at `at`.
#[inline(always)]
unsafe fn quantized_tile<S: Simd, const FORMAT: u8, const T: usize, const R: usize>(
    part: &Part<'_>,
    at: TileOrigin,
    prefetch: WeightPrefetch,
    kv: &mut PrefetchCursor<'_>,
) {
    // SAFETY: the tile is within the weights, input and output (guaranteed by the caller), and each
    // pointer stays within the rows, tokens and blocks that it names.
    unsafe {
        let blocks = part.weights.cols / BLOCK;
        let mut weights = [GroupPointers::of(part.weights, at.group); R];
        for r in 1..R {
            weights[r] = GroupPointers::of(part.weights, at.group + r);
        }
        let inputs = part.input.blocks.as_ptr().add(at.token * blocks);
        // One pointer per token: computing them from one base would take more instructions than the
        // products.
        let mut next = [inputs; T];
        for t in 1..T {
            next[t] = inputs.add(t * blocks);
        }

        let mut outputs = [[S::splat(0.0); R]; T];
        for block in 0..blocks {
            let now = next;
            for t in 0..T {
                next[t] = now[t].add(1);
            }
            let input = |t: usize| &*now[t];
            prefetch.prefetch_block::<S, FORMAT>(block);
            kv.prefetch_next::<S>();
            if FORMAT == Format::U8Half as u8 {
                half_block::<S, 0, T, R>(&weights, &now, block, &mut outputs);
                half_block::<S, 1, T, R>(&weights, &now, block, &mut outputs);
                continue;
            }

            let mut sums = [[S::splat_i32(0); R]; T];
            for t in 0..T {
                let start = if FORMAT == Format::U4 as u8 {
                    S::splat_i32(i32::from(input(t).offset))
                } else if FORMAT == Format::I8 as u8 && S::OFFSET_IN_SUM {
                    S::splat_i32(i32::from(input(t).offset) << 4)
                } else {
                    S::splat_i32(0)
                };
                sums[t] = [start; R];
            }
            if is_nibbles(FORMAT) {
                for quad in 0..4 {
                    let mut pairs = [S::load_weights(weights[0].quants); R];
                    for r in 0..R {
                        pairs[r] = S::load_weights(weights[r].quants.add(block * 256 + quad * 64));
                    }
                    for high in [false, true] {
                        let mut quants = pairs;
                        for r in 0..R {
                            quants[r] = if high {
                                S::high(pairs[r])
                            } else {
                                S::low(pairs[r])
                            };
                        }
                        for t in 0..T {
                            let from = quad * 4 + if high { 16 } else { 0 };
                            let a = S::quad(input(t).quants.as_ptr().add(from));
                            for r in 0..R {
                                sums[t][r] = S::dot(sums[t][r], quants[r], a);
                            }
                        }
                    }
                }
            } else {
                for quad in 0..8 {
                    let mut quants = [S::load_weights(weights[0].quants); R];
                    for r in 0..R {
                        quants[r] = S::load_weights(weights[r].quants.add(block * 512 + quad * 64));
                    }
                    for t in 0..T {
                        let a = S::quad(input(t).quants.as_ptr().add(quad * 4));
                        for r in 0..R {
                            sums[t][r] = if FORMAT == Format::I8 as u8 {
                                S::dot_signed(sums[t][r], quants[r], a)
                            } else {
                                S::dot(sums[t][r], quants[r], a)
                            };
                        }
                    }
                }
            }

            for r in 0..R {
                let scales = scale_and_min::<S, FORMAT>(&weights[r], block);
                for t in 0..T {
                    outputs[t][r] =
                        add_scaled::<S, FORMAT>(sums[t][r], &scales, input(t), outputs[t][r]);
                }
            }
        }
        store_tile::<S, T, R>(part, at, outputs);
    }
}

/// Adds a block's contribution to an output, as in the module documentation.
#[inline(always)]
pub(super) unsafe fn add_scaled<S: Simd, const FORMAT: u8>(
    sum: S::I,
    weights: &ScaleMin<S>,
    input: &ActivationBlock,
    output: S::F,
) -> S::F {
    // SAFETY: as [`Simd`]'s.
    unsafe {
        let scale = S::mul(weights.scale, S::splat(input.scale));
        let output = S::mul_add(S::to_f32(sum), scale, output);
        if has_min(FORMAT) {
            S::mul_add(weights.min, S::splat(input.scaled_sum), output)
        } else {
            output
        }
    }
}

/// Half a block of [`Format::U8Half`], which has its own scale.
#[inline(always)]
unsafe fn half_block<S: Simd, const HALF: usize, const T: usize, const R: usize>(
    weights: &[GroupPointers; R],
    inputs: &[*const ActivationBlock; T],
    block: usize,
    outputs: &mut [[S::F; R]; T],
) {
    // SAFETY: as the caller's, [`quantized_tile`].
    unsafe {
        let mut sums = [[S::splat_i32(0); R]; T];
        for t in 0..T {
            let input = &*inputs[t];
            let high = input.offset_high;
            let offset = if HALF == 1 { high } else { input.offset - high };
            sums[t] = [S::splat_i32(i32::from(offset) << 2); R];
        }
        for quad in HALF * 4..HALF * 4 + 4 {
            let mut quants = [S::load_weights(weights[0].quants); R];
            for r in 0..R {
                quants[r] = S::load_weights(weights[r].quants.add(block * 512 + quad * 64));
            }
            for t in 0..T {
                let a = S::quad((*inputs[t]).quants.as_ptr().add(quad * 4));
                for r in 0..R {
                    sums[t][r] = S::dot(sums[t][r], quants[r], a);
                }
            }
        }
        for r in 0..R {
            let coarse = S::load_f16(weights[r].scales.add(block / (SUPER / BLOCK) * LANES));
            let fine = weights[r].fine.add((block * 2 + HALF) * LANES);
            let scale = S::mul(coarse, S::load_i8(fine.cast()));
            for t in 0..T {
                let scale = S::mul(scale, S::splat((*inputs[t]).scale));
                outputs[t][r] = S::mul_add(S::to_f32(sums[t][r]), scale, outputs[t][r]);
            }
        }
    }
}

/// Writes a tile's outputs. Padding rows of the last group are dropped.
#[inline(always)]
pub(super) unsafe fn store_tile<S: Simd, const T: usize, const R: usize>(
    part: &Part<'_>,
    at: TileOrigin,
    outputs: [[S::F; R]; T],
) {
    let rows = part.weights.rows;
    for t in 0..T {
        for r in 0..R {
            let row = (at.group + r) * LANES;
            // SAFETY: the tile is within the output; a full group has 16 rows there, and of the last
            // one only `rows - row` are copied.
            unsafe {
                let to = part.output.add((at.token + t) * rows + row);
                if rows - row >= LANES {
                    S::store(to, outputs[t][r]);
                } else {
                    let mut lanes = [0.0; LANES];
                    S::store(lanes.as_mut_ptr(), outputs[t][r]);
                    to.copy_from_nonoverlapping(lanes.as_ptr(), rows - row);
                }
            }
        }
    }
}

/// Reads the outputs that [`store_tile`] has written.
#[inline(always)]
pub(super) unsafe fn load_tile<S: Simd, const T: usize, const R: usize>(
    part: &Part<'_>,
    at: TileOrigin,
    outputs: &mut [[S::F; R]; T],
) {
    let rows = part.weights.rows;
    for t in 0..T {
        for r in 0..R {
            let row = (at.group + r) * LANES;
            // SAFETY: as `store_tile`'s.
            unsafe {
                let from = part.output.add((at.token + t) * rows + row);
                outputs[t][r] = if rows - row >= LANES {
                    S::load(from)
                } else {
                    let mut lanes = [0.0; LANES];
                    lanes
                        .as_mut_ptr()
                        .copy_from_nonoverlapping(from, rows - row);
                    S::load(lanes.as_ptr())
                };
            }
        }
    }
}

/// Computes the part tile by tile, for dense weights.
#[inline(always)]
unsafe fn dense<S: Simd, const FORMAT: u8>(part: &Part<'_>) {
    let (max_tokens, max_groups) = S::WIDE;
    for (group, groups) in shares(part.groups.len(), max_groups) {
        for (token, tokens) in shares(part.tokens.len(), max_tokens) {
            let at = TileOrigin {
                group: part.groups.start + group,
                token: part.tokens.start + token,
            };
            // SAFETY: as this function's; the tile is inside the part.
            unsafe { by_shape!(S::WIDE, tokens, groups, dense_tile::<S, FORMAT>, (part, at)) }
        }
    }
}

/// The outputs of `T` tokens and `R` groups of dense rows.
#[inline(always)]
unsafe fn dense_tile<S: Simd, const FORMAT: u8, const T: usize, const R: usize>(
    part: &Part<'_>,
    at: TileOrigin,
) {
    // SAFETY: the tile is within the weights, input and output (guaranteed by the caller).
    unsafe {
        let cols = part.weights.cols;
        // Bytes of a column of a group, a constant here.
        let step = if FORMAT == Format::F32 as u8 { 64 } else { 32 };
        let weights = part.weights.quants.as_ptr().add(at.group * cols * step);
        let inputs = part.input.values.as_ptr().add(at.token * cols);
        let mut outputs = [[S::splat(0.0); R]; T];
        let segment = segment_columns(cols);
        for start in (0..cols).step_by(segment) {
            let mut sums = [[S::splat(0.0); R]; T];
            for column in start..(start + segment).min(cols) {
                let mut row = [S::splat(0.0); R];
                for r in 0..R {
                    let from = weights.add((r * cols + column) * step);
                    row[r] = if FORMAT == Format::F16 as u8 {
                        S::load_f16(from.cast())
                    } else if FORMAT == Format::Bf16 as u8 {
                        S::load_bf16(from.cast())
                    } else {
                        S::load(from.cast())
                    };
                }
                for t in 0..T {
                    let a = S::splat(*inputs.add(t * cols + column));
                    for r in 0..R {
                        sums[t][r] = S::mul_add(row[r], a, sums[t][r]);
                    }
                }
            }
            for t in 0..T {
                for r in 0..R {
                    outputs[t][r] = S::add(outputs[t][r], sums[t][r]);
                }
            }
        }
        store_tile::<S, T, R>(part, at, outputs);
    }
}
