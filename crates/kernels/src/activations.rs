//! Activations for the integer products: int8 in blocks of 32 columns, each with its scale and sums.

use super::quant::{BLOCK, LOWERED, NOTHING, QUADS, RAISED};
use super::simd::{LANES, NOT_FINITE, Simd};

/// 32 activations, `quants[k] · scale` each. A token of `cols` activations is `cols / 32` blocks, and a
/// batch is `[tokens, cols / 32]`.
///
/// 48 bytes, so that one pointer per token reaches all that a tile needs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C, align(16))]
pub struct ActivationBlock {
    /// Rounded to nearest, −113..=127: the range that [`super::winograd`] can take.
    pub(crate) quants: [i8; BLOCK],
    /// The smallest scale that keeps the largest magnitude within 127, and the other sign's within 113.
    /// It has the sign of the value with the largest magnitude, and is 0 if that is below 1e-30.
    pub(crate) scale: f32,
    /// `scale · Σ quants`: multiplied by a weight's minimum.
    pub(crate) scaled_sum: f32,
    /// `−8 · Σ quants`: the initial sum for weights stored with an offset of 8. (For other offsets it
    /// is shifted.)
    pub(crate) offset: i16,
    /// The same over the second half of the block, for scales per 16 columns.
    pub(crate) offset_high: i16,
    /// The activations' part of the initial sum of [`super::winograd`]'s products: `−Σ (low · high +
    /// 113 · low − 15 · high)` over the paired columns.
    pub(crate) pairing: i32,
}

/// The largest quant on the side of the block's largest magnitude.
const LIMIT: f32 = 127.0;

/// The largest on the other side.
const LIMIT_OF_OTHER_SIGN: f32 = RAISED as f32;

/// Sentinel for a block with a non-finite number, which makes every result of its token non-finite.
/// Comparisons with NaN differ between processors, and so would the block's scale.
const NOT_FINITE_BLOCK: ActivationBlock = ActivationBlock {
    quants: [0; BLOCK],
    scale: f32::NAN,
    scaled_sum: f32::NAN,
    offset: 0,
    offset_high: 0,
    pairing: 0,
};

/// The scale of a block with these largest magnitudes of either sign, and its inverse.
#[inline(always)]
fn signed_scale(positive: f32, negative: f32) -> (f32, f32) {
    let (magnitude, other, sign) = match positive >= negative {
        true => (positive, negative, 1.0),
        false => (negative, positive, -1.0),
    };
    if magnitude < NOTHING {
        return (0.0, 0.0);
    }
    let scale = sign * (magnitude / LIMIT).max(other / LIMIT_OF_OTHER_SIGN);
    (scale, 1.0 / scale)
}

/// How many blocks ahead of the stores to prefetch.
const AHEAD: usize = 16;

/// Quantises `values` (a multiple of 32) into as many blocks.
///
/// # Safety
/// As [`Simd`]'s; `blocks.len() * 32 == values.len()`.
#[inline(always)]
pub(super) unsafe fn quantize<S: Simd>(values: &[f32], blocks: &mut [ActivationBlock]) {
    // SAFETY: as this function's.
    unsafe {
        let count = blocks.len();
        quantize_strided::<S>(values.as_ptr(), blocks.as_mut_ptr(), count, 1, AHEAD);
    }
}

/// Quantises 32 numbers into each of `count` blocks. Consecutive blocks are `stride` blocks apart, and
/// the numbers likewise. Prefetches the block `ahead` strides further.
///
/// # Safety
/// As [`Simd`]'s; numbers and blocks are in bounds, and nobody else uses the blocks.
#[inline(always)]
pub(super) unsafe fn quantize_strided<S: Simd>(
    values: *const f32,
    blocks: *mut ActivationBlock,
    count: usize,
    stride: usize,
    ahead: usize,
) {
    let mut done = 0;
    while done < count {
        // SAFETY: as this function's.
        unsafe {
            let values = values.add(done * stride * BLOCK);
            let blocks = blocks.add(done * stride);
            if count - done >= 4 {
                quantize_some::<S, 4>(values, blocks, stride, ahead);
                done += 4;
            } else {
                quantize_some::<S, 1>(values, blocks, stride, ahead);
                done += 1;
            }
        }
    }
}

/// Quantises `N` blocks, at most four: the reductions work on four vectors at once.
#[inline(always)]
unsafe fn quantize_some<S: Simd, const N: usize>(
    values: *const f32,
    blocks: *mut ActivationBlock,
    stride: usize,
    ahead: usize,
) {
    // SAFETY: as the caller's; 32 numbers are two vectors.
    unsafe {
        let zeros = [S::splat(0.0); 4];
        let (mut low, mut high) = (zeros, zeros);
        let (mut positive, mut negative) = (zeros, zeros);
        for i in 0..N {
            let values = values.add(i * stride * BLOCK);
            low[i] = S::load(values);
            high[i] = S::load(values.add(LANES));
            positive[i] = S::max(low[i], high[i]);
            negative[i] = S::sub(S::splat(0.0), S::min(low[i], high[i]));
        }
        let (positive, negative) = (S::maxima(positive), S::maxima(negative));
        // The stores go to a more distant cache, and wait for one another.
        for i in 0..N {
            S::prefetch(
                blocks
                    .wrapping_add((ahead + i) * stride)
                    .cast_const()
                    .cast(),
            );
        }
        let (mut all, mut pairs) = (zeros, zeros);
        for i in 0..N {
            let (scale, inverse) = signed_scale(positive[i], negative[i]);
            let block = &mut *blocks.add(i * stride);
            block.scale = scale;
            let inverse = S::splat(inverse);
            low[i] = S::round(S::mul(low[i], inverse));
            high[i] = S::round(S::mul(high[i], inverse));
            let to = block.quants.as_mut_ptr();
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
            let block = &mut *blocks.add(i * stride);
            if all[i] == NOT_FINITE {
                *block = NOT_FINITE_BLOCK;
                continue;
            }
            block.scaled_sum = block.scale * all[i] as f32;
            // At most 8 · 32 · 127 in magnitude.
            block.offset = (-8 * all[i]) as i16;
            block.offset_high = (-8 * half[i]) as i16;
            block.pairing = -pairs[i];
        }
    }
}
