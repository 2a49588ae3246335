//! Activations as the integer products take them: int8 in blocks of 32 columns, each with its scale
//! and its sums.

use super::paired::{LOWERED, QUADS, RAISED};
use super::simd::{LANES, Simd};

/// Columns that share a scale, here and in every quantised weight.
pub(crate) const BLOCK: usize = 32;

/// 32 activations: `quants[k] · scale` each. A token of `cols` activations is `cols / 32` of these,
/// and tokens lie one after another: `[tokens, cols / 32]`.
///
/// 48 bytes, so that one pointer per token reaches all that a tile needs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C, align(16))]
pub(crate) struct ActivationBlock {
    /// Rounded to the nearest, −113..=127: what [`super::paired`] has room for.
    pub(crate) quants: [i8; BLOCK],
    /// What makes the largest magnitude 127, and those of the other sign at most 113. It has the sign of the
    /// largest magnitude, and is 0 where that is below 1e-30.
    pub(crate) scale: f32,
    /// `scale · Σ quants`: what a weight's minimum is multiplied by.
    pub(crate) scaled_sum: f32,
    /// `−8 · Σ quants`: what the products of weights stored with an offset of 8 start from. (Other
    /// offsets are this, shifted.)
    pub(crate) offset: i16,
    /// The same over the second half of the block, for scales per 16 columns.
    pub(crate) offset_high: i16,
    /// What the paired products of [`super::paired`] start from, as far as it comes from activations:
    /// `−Σ (low · high + 113 · low − 15 · high)` over the paired columns.
    pub(crate) pairing: i32,
}

/// The largest magnitudes of quants, of the sign of the largest and of the other one.
const MOST: f32 = 127.0;
const LEAST: f32 = RAISED as f32;

/// What turns whole numbers of at most `most` in magnitude back into those whose largest magnitude is given,
/// and what makes them whole. Below 1e-30 the latter could overflow: all are as good as zero.
#[inline(always)]
pub(super) fn whole_scale(largest: f32, most: f32) -> (f32, f32) {
    if largest < 1e-30 {
        return (0.0, 0.0);
    }
    (largest / most, most / largest)
}

/// The scale of a block with this largest number and this largest negated one, and what makes its numbers
/// quants.
#[inline(always)]
fn signed_scale(largest: f32, smallest: f32) -> (f32, f32) {
    let (magnitude, other, sign) = match largest >= smallest {
        true => (largest, smallest, 1.0),
        false => (smallest, largest, -1.0),
    };
    if magnitude < 1e-30 {
        return (0.0, 0.0);
    }
    let scale = sign * (magnitude / MOST).max(other / LEAST);
    (scale, 1.0 / scale)
}

/// Blocks that are asked for ahead of what is written.
const AHEAD: usize = 16;

/// Quantises `values` (a multiple of 32) into as many blocks.
///
/// # Safety
/// As [`Simd`]'s; `blocks.len() * 32 == values.len()`.
#[inline(always)]
pub(super) unsafe fn quantize<S: Simd>(values: &[f32], blocks: &mut [ActivationBlock]) {
    let fours = blocks.len() / 4 * 4;
    let (values, last_values) = values.split_at(fours * BLOCK);
    let (blocks, last_blocks) = blocks.split_at_mut(fours);
    // SAFETY: as this function's; a chunk has as many blocks as its values fill.
    unsafe {
        for (values, blocks) in values
            .chunks_exact(4 * BLOCK)
            .zip(blocks.chunks_exact_mut(4))
        {
            quantize_some::<S, 4>(values, blocks);
        }
        for (values, block) in last_values.chunks_exact(BLOCK).zip(last_blocks) {
            quantize_some::<S, 1>(values, std::slice::from_mut(block));
        }
    }
}

/// Quantises `N` blocks, at most four: what is summed up in each is for four at once.
#[inline(always)]
unsafe fn quantize_some<S: Simd, const N: usize>(values: &[f32], blocks: &mut [ActivationBlock]) {
    // SAFETY: as the caller's; a block has 32 elements, two vectors.
    unsafe {
        let zeros = [S::splat(0.0); 4];
        let (mut low, mut high) = (zeros, zeros);
        let (mut largest, mut smallest) = (zeros, zeros);
        for i in 0..N {
            low[i] = S::load(values.as_ptr().add(i * BLOCK));
            high[i] = S::load(values.as_ptr().add(i * BLOCK + LANES));
            largest[i] = S::max(low[i], high[i]);
            smallest[i] = S::sub(S::splat(0.0), S::min(low[i], high[i]));
        }
        let (largest, smallest) = (S::maxima(largest), S::maxima(smallest));
        // What is written next lies in a cache further off, and the stores wait for each other.
        for i in 0..N {
            S::prefetch(blocks.as_ptr().wrapping_add(AHEAD + i).cast());
        }
        let (mut all, mut pairs) = (zeros, zeros);
        for i in 0..N {
            let (scale, inverse) = signed_scale(largest[i], smallest[i]);
            blocks[i].scale = scale;
            let inverse = S::splat(inverse);
            low[i] = S::round(S::mul(low[i], inverse));
            high[i] = S::round(S::mul(high[i], inverse));
            let to = blocks[i].quants.as_mut_ptr();
            S::store_i8(to, low[i]);
            S::store_i8(to.add(LANES), high[i]);
            all[i] = S::add(low[i], high[i]);
            let raised = S::add(high[i], S::splat(f32::from(RAISED)));
            let lowered = S::mul(high[i], S::splat(-f32::from(LOWERED)));
            pairs[i] = S::first(S::mul_add(low[i], raised, lowered), 4 * QUADS, 0.0);
        }
        let (all, half, pairs) = (
            S::whole_sums(all),
            S::whole_sums(high),
            S::whole_sums(pairs),
        );
        for i in 0..N {
            blocks[i].scaled_sum = blocks[i].scale * all[i] as f32;
            // At most 8 · 32 · 127 in magnitude. Where a number was not finite they are anything, and the
            // scale, which is not finite either, decides.
            blocks[i].offset = all[i].wrapping_mul(-8) as i16;
            blocks[i].offset_high = half[i].wrapping_mul(-8) as i16;
            blocks[i].pairing = pairs[i].wrapping_neg();
        }
    }
}
