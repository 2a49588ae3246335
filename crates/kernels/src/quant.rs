//! Constants and formulas of quantisation that weights, activations, and keys and values share.

/// Columns that share a scale, in activations and in every quantised weight.
pub const BLOCK: usize = 32;

/// Added to low nibbles, for the products of [`super::winograd`].
pub(super) const RAISED: u8 = 113;

/// Subtracted from high nibbles, likewise.
pub(super) const LOWERED: u8 = 15;

/// Quads of a block's first half that are paired with those of the second half; the last one is not.
pub(super) const QUADS: usize = 3;

/// If the largest magnitude is below this, all numbers are quantised to zero: the inverse scale could
/// overflow.
pub(super) const NOTHING: f32 = 1e-30;

/// The scale for integers of at most `max` in magnitude, given the largest magnitude of the numbers,
/// and its inverse.
#[inline(always)]
pub(super) fn whole_scale(largest: f32, max: f32) -> (f32, f32) {
    if largest < NOTHING {
        return (0.0, 0.0);
    }
    (largest / max, max / largest)
}
