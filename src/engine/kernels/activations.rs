//! Activations as the integer products take them: int8 in blocks of 32 columns, each with its scale
//! and its sums.

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
    /// Rounded to the nearest, −127..=127.
    pub(crate) quants: [i8; BLOCK],
    /// The largest magnitude / 127, or 0 where that is below 1e-30.
    pub(crate) scale: f32,
    /// `scale · Σ quants`: what a weight's minimum is multiplied by.
    pub(crate) scaled_sum: f32,
    /// `−8 · Σ quants`: what the products of weights stored with an offset of 8 start from. (Other
    /// offsets are this, shifted.)
    pub(crate) offset: i32,
    /// The same over the second half of the block, for scales per 16 columns.
    pub(crate) offset_high: i32,
}

/// What turns whole numbers of at most `most` in magnitude back into those whose largest magnitude is given,
/// and what makes them whole. Below 1e-30 the latter could overflow: all are as good as zero.
#[inline(always)]
pub(super) fn whole_scale(largest: f32, most: f32) -> (f32, f32) {
    if largest < 1e-30 {
        return (0.0, 0.0);
    }
    (largest / most, most / largest)
}

/// Quantises `values` (a multiple of 32) into as many blocks.
///
/// # Safety
/// As [`Simd`]'s; `blocks.len() * 32 == values.len()`.
#[inline(always)]
pub(super) unsafe fn quantize<S: Simd>(values: &[f32], blocks: &mut [ActivationBlock]) {
    for (values, block) in values.chunks_exact(BLOCK).zip(blocks) {
        // SAFETY: a chunk and a block have 32 elements, two vectors; the rest as this function's.
        unsafe {
            let low = S::load(values.as_ptr());
            let high = S::load(values.as_ptr().add(LANES));
            let largest = S::reduce_max(S::max(S::abs(low), S::abs(high)));
            let (scale, inverse) = whole_scale(largest, 127.0);
            let inverse = S::splat(inverse);
            let to = block.quants.as_mut_ptr();
            let low = S::store_i8(to, S::mul(low, inverse));
            let high = S::store_i8(to.add(LANES), S::mul(high, inverse));
            block.scale = scale;
            block.scaled_sum = scale * (low + high) as f32;
            block.offset = -8 * (low + high);
            block.offset_high = -8 * high;
        }
    }
}
