//! A group of sixteen packed rows: pointers to its arrays, and the scales of a block.

use super::gguf::SUPER;
use super::pack::{Format, PackedMatrix};
use super::quant::BLOCK;
use super::simd::{LANES, Simd};

/// Whether quants are nibbles rather than bytes.
pub(super) const fn is_nibbles(format: u8) -> bool {
    format == Format::U4 as u8 || format == Format::U4Min as u8 || format == Format::U4Super as u8
}

/// Whether scales have two levels.
pub(super) const fn is_super(format: u8) -> bool {
    format == Format::U4Super as u8
        || format == Format::U8Super as u8
        || format == Format::U8Half as u8
}

/// Whether blocks have minima.
pub(super) const fn has_min(format: u8) -> bool {
    format == Format::U4Min as u8
        || format == Format::U8Min as u8
        || format == Format::U4Super as u8
        || format == Format::U8Super as u8
}

/// The start of each of a group's arrays.
#[derive(Clone, Copy)]
pub(super) struct GroupPointers {
    pub(super) quants: *const u8,
    pub(super) scales: *const u16,
    pub(super) mins: *const u16,
    pub(super) fine: *const u8,
}

impl GroupPointers {
    #[inline(always)]
    pub(super) fn of(weights: &PackedMatrix, group: usize) -> Self {
        let blocks = weights.cols / BLOCK;
        let coarse = if weights.format.is_super() {
            weights.cols / SUPER
        } else {
            blocks
        } * LANES
            * group;
        // Wrapping, because arrays that the format lacks are empty, and the group may be one past the
        // last: such pointers are only prefetched.
        let step = weights.format.step_bytes();
        Self {
            quants: weights.quants.as_ptr().wrapping_add(group * blocks * step),
            scales: weights.scales.as_ptr().wrapping_add(coarse),
            mins: weights.mins.as_ptr().wrapping_add(coarse),
            fine: weights
                .fine
                .as_ptr()
                .wrapping_add(group * blocks * 2 * LANES),
        }
    }

    /// The same, `blocks` blocks further. The coarse scales of two-level formats, one for eight blocks,
    /// stay where they are.
    #[inline(always)]
    pub(super) fn skip(self, format: Format, blocks: usize) -> Self {
        let coarse = if format.is_super() { 0 } else { blocks * LANES };
        Self {
            quants: self.quants.wrapping_add(blocks * format.step_bytes()),
            scales: self.scales.wrapping_add(coarse),
            mins: self.mins.wrapping_add(coarse),
            fine: self.fine.wrapping_add(blocks * 2 * LANES),
        }
    }
}

/// A block's scales and minima of sixteen rows, one per lane.
pub(super) struct ScaleMin<S: Simd> {
    pub(super) scale: S::F,
    /// 0 where the format has no minima.
    pub(super) min: S::F,
}

/// Loads a block's scales of sixteen rows, and the minima if the format has them.
#[inline(always)]
pub(super) unsafe fn scale_and_min<S: Simd, const FORMAT: u8>(
    weights: &GroupPointers,
    block: usize,
) -> ScaleMin<S> {
    // SAFETY: the block is in the group; minima are read only in formats that have them.
    unsafe {
        let coarse = if is_super(FORMAT) {
            block / (SUPER / BLOCK)
        } else {
            block
        } * LANES;
        let mut scale = S::load_f16(weights.scales.add(coarse));
        let mut min = S::splat(0.0);
        if has_min(FORMAT) {
            min = S::load_f16(weights.mins.add(coarse));
        }
        if is_super(FORMAT) {
            // Exact: 11 bits by 6.
            let fine = weights.fine.add(block * 2 * LANES);
            scale = S::mul(scale, S::load_u8(fine));
            min = S::mul(min, S::load_u8(fine.add(LANES)));
        }
        ScaleMin { scale, min }
    }
}
