//! Products of nibbles with two columns per multiplication, for processors that add bytes on more ports
//! than they multiply them on.
//!
//! Winograd ("A New Algorithm for Inner Product", IEEE Transactions on Computers, 1968) computes two
//! terms of an inner product with one multiplication:
//!
//! ```text
//! w₁·a₁ + w₂·a₂ = (w₁ + a₂)·(w₂ + a₁) − w₁·w₂ − a₁·a₂
//! ```
//!
//! `w₁·w₂` depends on the weights alone and `a₁·a₂` on the activations alone, so each is summed once
//! for a whole panel. Here the first sixteen columns of a block are paired with the other sixteen, as
//! they are stored in low and high nibbles. The integer product takes an unsigned and a signed byte. So
//! that the two sums fit, the low nibble is raised, the high one lowered, and activations are
//! −113..=127. (The wider side is the one that a block needs: its scale may be negative.)
//!
//! ```text
//! low + 113 + a₂ is 0..=255        high − 15 + a₁ is −128..=127
//! ```
//!
//! All of this is exact, so outputs have the same bits as those of [`super::product`].
//!
//! The gain on Zen 4, which multiplies on two of its four ports: 16 rows × 32 columns × one token take
//! 8 integer products, one multiplication and two fused multiply-adds on the multiplying ports, which
//! is 11 cycles at full register width. With three quarters of the columns paired they take 8, and the
//! additions fit beside them: 16 instructions in 8 cycles. Pairing all columns would take 17.

use std::ops::Range;

use super::aligned::LINE;
use super::group::{GroupPointers, ScaleMin, is_nibbles, scale_and_min};
use super::kv_prefetch::PrefetchCursor;
use super::pack::Format;
use super::product::{Part, TileOrigin, add_scaled, by_shape, load_tile, shares, store_tile};
use super::quant::{BLOCK, LOWERED, QUADS, RAISED};
use super::scratch;
use super::simd::{LANES, Simd};
use super::weight_prefetch::WeightPrefetch;

/// Minimum tokens of a part for which spreading the weights pays.
pub(super) const MIN_TOKENS: usize = 48;

/// Blocks of columns that are spread at a time: such a panel stays in the second-level cache.
const PANEL: usize = 64;

/// Processors with an instruction for this kind of product.
///
/// # Safety
/// As [`Simd`]'s.
pub(super) trait Pairing: Simd {
    /// `acc + Σ (low + a_high)·(high + a_low)` over each lane's quad. The first factor is an unsigned
    /// byte, the second a signed one.
    unsafe fn dot_paired(
        acc: Self::I,
        low: Self::W,
        high: Self::W,
        a_low: Self::A,
        a_high: Self::A,
    ) -> Self::I;
    /// `a + b`.
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I;
    /// Loads 16 `i32`.
    unsafe fn load_i32(from: *const i32) -> Self::I;
    /// Stores 16 `i32`.
    unsafe fn store_i32(to: *mut i32, x: Self::I);
}

/// A block of sixteen rows, unpacked for many tokens.
#[repr(C, align(64))]
struct Spread {
    /// Nibbles as bytes, low and high alternating by quad; the paired ones are raised and lowered.
    quants: [[u8; LINE]; 8],
    /// `−Σ` of the products of paired nibbles.
    start: [i32; LANES],
    scale: [f32; LANES],
    min: [f32; LANES],
}

/// Computes a part of a product with nibbles of format `FORMAT`.
///
/// # Safety
/// As [`super::product::product`]'s.
#[inline(always)]
pub(super) unsafe fn product<S: Pairing, const FORMAT: u8>(part: &Part<'_>) {
    const { assert!(is_nibbles(FORMAT)) };
    let panel = (part.weights.cols / BLOCK).min(PANEL) * S::TILE.1;
    let scratch = scratch::get(panel * size_of::<Spread>() / size_of::<f32>());
    // SAFETY: as this function's; the scratch holds a panel.
    unsafe { quantized::<S, FORMAT>(part, scratch.cast()) }
}

/// Computes the part tile by tile, as `product` does.
#[inline(always)]
unsafe fn quantized<S: Pairing, const FORMAT: u8>(part: &Part<'_>, scratch: *mut Spread) {
    let (max_tokens, max_groups) = S::TILE;
    let tiles = part.tokens.len().div_ceil(max_tokens);
    let mut kv = part.kv.clone();
    let blocks = part.weights.cols / BLOCK;
    kv.spread(tiles * part.groups.len().div_ceil(max_groups) * blocks);
    for (group, groups) in shares(part.groups.len(), max_groups) {
        let group = part.groups.start + group;
        for start in (0..blocks).step_by(PANEL) {
            let panel = start..(start + PANEL).min(blocks);
            for r in 0..groups {
                // SAFETY: as this function's: the group is one of the weights', and the scratch holds a
                // panel of a tile's groups.
                unsafe {
                    spread::<S, FORMAT>(part, group + r, panel.clone(), scratch.add(r), groups)
                }
            }
            for (index, (token, tokens)) in shares(part.tokens.len(), max_tokens).enumerate() {
                let at = TileOrigin {
                    group,
                    token: part.tokens.start + token,
                };
                let prefetch = WeightPrefetch::for_tile::<S>(part, group + groups, index, tiles);
                // SAFETY: as this function's; the tile is within the part, and its panel has been
                // spread.
                unsafe {
                    by_shape!(
                        S::TILE,
                        tokens,
                        groups,
                        tile::<S, FORMAT>,
                        (part, scratch, at, panel.clone(), prefetch, &mut kv)
                    )
                }
            }
        }
    }
}

/// Spreads a group's blocks into every `step`th element of `to`.
#[inline(always)]
unsafe fn spread<S: Pairing, const FORMAT: u8>(
    part: &Part<'_>,
    group: usize,
    blocks: Range<usize>,
    to: *mut Spread,
    step: usize,
) {
    // SAFETY: the blocks are the group's, and `to` has space for them (guaranteed by the caller).
    unsafe {
        let weights = GroupPointers::of(part.weights, group);
        let zero = S::quad([0; 4].as_ptr());
        for (index, block) in blocks.enumerate() {
            let to = &mut *to.add(index * step);
            for quad in 0..4 {
                let nibbles = &*weights
                    .quants
                    .add((block * 4 + quad) * LINE)
                    .cast::<[u8; LINE]>();
                let (raised, lowered) = if quad < QUADS {
                    (RAISED, LOWERED)
                } else {
                    (0, 0)
                };
                for byte in 0..LINE {
                    to.quants[quad * 2][byte] = (nibbles[byte] & 15) + raised;
                    to.quants[quad * 2 + 1][byte] = (nibbles[byte] >> 4).wrapping_sub(lowered);
                }
            }
            let mut sums = S::splat_i32(0);
            for quad in 0..QUADS {
                let low = S::load_weights(to.quants[quad * 2].as_ptr());
                let high = S::load_weights(to.quants[quad * 2 + 1].as_ptr());
                sums = S::dot_paired(sums, low, high, zero, zero);
            }
            S::store_i32(to.start.as_mut_ptr(), sums);
            to.start = to.start.map(|sum| -sum);
            let ScaleMin { scale, min } = scale_and_min::<S, FORMAT>(&weights, block);
            S::store(to.scale.as_mut_ptr(), scale);
            S::store(to.min.as_mut_ptr(), min);
        }
    }
}

/// The outputs of `T` tokens and `R` groups of rows, starting at `at`, up to the last of these blocks.
#[inline(always)]
unsafe fn tile<S: Pairing, const FORMAT: u8, const T: usize, const R: usize>(
    part: &Part<'_>,
    panel: *const Spread,
    at: TileOrigin,
    blocks: Range<usize>,
    prefetch: WeightPrefetch,
    kv: &mut PrefetchCursor<'_>,
) {
    // SAFETY: the tile is within the weights, input and output, and the blocks within the panel
    // (guaranteed by the caller).
    unsafe {
        let all = part.weights.cols / BLOCK;
        let inputs = part
            .input
            .blocks
            .as_ptr()
            .add(at.token * all + blocks.start);
        let mut next = [inputs; T];
        for t in 1..T {
            next[t] = inputs.add(t * all);
        }
        let mut panel = panel;
        let mut outputs = [[S::splat(0.0); R]; T];
        if blocks.start > 0 {
            load_tile::<S, T, R>(part, at, &mut outputs);
        }
        // Rows of a wide matrix are far apart and map to few sets of the nearest cache.
        for t in 0..T {
            for r in 0..R {
                let to = (at.token + t) * part.weights.rows + (at.group + r) * LANES;
                S::prefetch(part.output.wrapping_add(to).cast());
            }
        }
        for block in blocks {
            let now = next;
            for t in 0..T {
                next[t] = now[t].add(1);
            }
            let input = |t: usize| &*now[t];
            let weights = |r: usize| &*panel.add(r);
            prefetch.prefetch_block::<S, FORMAT>(block);
            kv.prefetch_next::<S>();

            let mut sums = [[S::splat_i32(0); R]; T];
            for r in 0..R {
                let start = S::load_i32(weights(r).start.as_ptr());
                for t in 0..T {
                    let mut from = input(t).pairing;
                    if FORMAT == Format::U4 as u8 {
                        from += i32::from(input(t).offset);
                    }
                    sums[t][r] = S::add_i32(start, S::splat_i32(from));
                }
            }
            for quad in 0..4 {
                let mut low = [S::load_weights(weights(0).quants[0].as_ptr()); R];
                let mut high = low;
                for r in 0..R {
                    low[r] = S::load_weights(weights(r).quants[quad * 2].as_ptr());
                    high[r] = S::load_weights(weights(r).quants[quad * 2 + 1].as_ptr());
                }
                for t in 0..T {
                    let a_low = S::quad(input(t).quants.as_ptr().add(quad * 4));
                    let a_high = S::quad(input(t).quants.as_ptr().add(quad * 4 + BLOCK / 2));
                    for r in 0..R {
                        sums[t][r] = if quad < QUADS {
                            S::dot_paired(sums[t][r], low[r], high[r], a_low, a_high)
                        } else {
                            S::dot(S::dot(sums[t][r], low[r], a_low), high[r], a_high)
                        };
                    }
                }
            }
            for r in 0..R {
                let scales = ScaleMin::<S> {
                    scale: S::load(weights(r).scale.as_ptr()),
                    min: S::load(weights(r).min.as_ptr()),
                };
                for t in 0..T {
                    outputs[t][r] =
                        add_scaled::<S, FORMAT>(sums[t][r], &scales, input(t), outputs[t][r]);
                }
            }
            panel = panel.add(R);
        }
        store_tile::<S, T, R>(part, at, outputs);
    }
}
