//! Constants and formulas of quantisation that weights, activations, and keys and values share.

/// Columns that share a scale, here and in every quantised weight.
pub const BLOCK: usize = 32;

/// What low nibbles are raised by.
pub(super) const RAISED: u8 = 113;

/// What high nibbles are lowered by.
pub(super) const LOWERED: u8 = 15;

/// Quads of a block's first half that are paired with those of the other; the last is not.
pub(super) const QUADS: usize = 3;

/// A largest magnitude below which what makes numbers whole could overflow: all are as good as zero.
pub(super) const NOTHING: f32 = 1e-30;

/// What turns whole numbers of at most `most` in magnitude back into those whose largest magnitude is given,
/// and what makes them whole.
#[inline(always)]
pub(super) fn whole_scale(largest: f32, most: f32) -> (f32, f32) {
    if largest < NOTHING {
        return (0.0, 0.0);
    }
    (largest / most, most / largest)
}
