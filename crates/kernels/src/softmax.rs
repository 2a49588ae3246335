//! Softmax weights as integers: their sum is exact, so its order does not matter.

use super::Kernels;
use super::simd::{LANES, Simd};

/// The weight of the largest logit: 1 as a fixed-point number with 40 bits after the point.
pub const WEIGHT_ONE: u64 = 1 << 40;

impl Kernels {
    /// `weights[i] = floor(2^40 · e^((logits[i] − max) · inverse_temperature))`, computed in f32. The
    /// exponential is a fixed sequence of operations (`Simd::exp`), exactly 1 for `max`; its argument
    /// is clamped to −86.6..=0. The weight of NaN and −∞ is 0.
    ///
    /// `max` is the largest of all logits, not NaN and not −∞. If it is +∞, the weight is 2^40 for +∞
    /// and 0 for everything else.
    ///
    /// # Panics
    /// If the lengths differ, or `inverse_temperature` is not a positive finite number.
    pub fn softmax_weights(
        self,
        logits: &[f32],
        max: f32,
        inverse_temperature: f32,
        weights: &mut [u64],
    ) {
        assert_eq!(logits.len(), weights.len());
        assert!(inverse_temperature > 0.0 && inverse_temperature.is_finite());
        if max == f32::INFINITY {
            for (weight, logit) in weights.iter_mut().zip(logits) {
                *weight = if *logit == max { WEIGHT_ONE } else { 0 };
            }
            return;
        }
        // SAFETY: this processor has the features (`Kernels::of`); the lengths were checked.
        unsafe { (self.table.softmax_weights)(logits, max, inverse_temperature, weights) }
    }
}

/// [`Kernels::softmax_weights`] for a finite `max`.
///
/// # Safety
/// As [`Simd`]'s; `weights` is as long as `logits`.
#[inline(always)]
pub(super) unsafe fn softmax_weights<S: Simd>(
    logits: &[f32],
    max: f32,
    inverse_temperature: f32,
    weights: &mut [u64],
) {
    let (whole, rest) = logits.as_chunks::<LANES>();
    let (whole_weights, rest_weights) = weights.split_at_mut(LANES * whole.len());
    let scale = inverse_temperature;
    // SAFETY: as this function's.
    unsafe {
        for (logits, weights) in whole.iter().zip(whole_weights.as_chunks_mut().0) {
            sixteen_weights::<S>(logits, max, scale, weights);
        }
        let mut logits = [0.0; LANES];
        logits[..rest.len()].copy_from_slice(rest);
        let mut weights = [0; LANES];
        sixteen_weights::<S>(&logits, max, scale, &mut weights);
        rest_weights.copy_from_slice(&weights[..rest.len()]);
    }
}

/// The weights of sixteen logits. Loops, because closures would not be compiled with the processor's
/// features.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn sixteen_weights<S: Simd>(
    logits: &[f32; LANES],
    max: f32,
    inverse_temperature: f32,
    weights: &mut [u64; LANES],
) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for lane in 0..LANES {
        // False for NaN. A selection rather than a branch, for the compiler.
        lanes[lane] = if logits[lane] > f32::NEG_INFINITY {
            logits[lane]
        } else {
            f32::NEG_INFINITY
        };
    }
    // SAFETY: as this function's; the arrays have sixteen elements.
    unsafe {
        let x = S::sub(S::load(lanes.as_ptr()), S::splat(max));
        let x = S::mul(x, S::splat(inverse_temperature));
        S::store(lanes.as_mut_ptr(), S::exp(x, 0.0));
    }
    for lane in 0..LANES {
        weights[lane] = fixed_point(lanes[lane]);
    }
}

/// `floor(p · 2^40)` for a normal number `0 < p ≤ 1`. In integers, because no vector instruction before
/// AVX-512 converts to 64 bits.
#[inline(always)]
fn fixed_point(p: f32) -> u64 {
    let bits = p.to_bits();
    // p = significand · 2^(exponent − 127 − 23)
    let (exponent, significand) = (bits >> 23, bits & 0x7f_ffff | 0x80_0000);
    (u64::from(significand) << 17) >> 127u32.wrapping_sub(exponent).min(63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::tests::exp;
    use proptest::prelude::*;

    /// The definition, one logit at a time.
    fn expected(logit: f32, max: f32, inverse_temperature: f32) -> u64 {
        if logit.is_nan() || logit == f32::NEG_INFINITY {
            return 0;
        }
        let p = exp(((logit - max) * inverse_temperature).min(0.0));
        (f64::from(p) * (1u64 << 40) as f64).floor() as u64
    }

    fn check(logits: &[f32], inverse_temperature: f32) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let expected: Vec<u64> = match max {
            f32::NEG_INFINITY => return,
            f32::INFINITY => (logits.iter())
                .map(|logit| if *logit == max { WEIGHT_ONE } else { 0 })
                .collect(),
            _ => (logits.iter())
                .map(|logit| expected(*logit, max, inverse_temperature))
                .collect(),
        };
        let isas = Isa::ALL.iter().chain(&[Isa::ScalarPaired]);
        for kernels in isas.filter_map(|isa| Kernels::of(*isa)) {
            let mut found = vec![u64::MAX; logits.len()];
            kernels.softmax_weights(logits, max, inverse_temperature, &mut found);
            assert_eq!(found, expected, "{:?}", kernels.isa());
        }
    }

    #[test]
    fn the_largest_logit_weighs_one() {
        for max in [0.0, -0.0, 1.0, -7.25, f32::MAX, f32::MIN, 1e-40] {
            let mut weights = [0; 3];
            let logits = [max, f32::NAN, f32::NEG_INFINITY];
            Kernels::best().softmax_weights(&logits, max, 1.25, &mut weights);
            assert_eq!(weights, [WEIGHT_ONE, 0, 0], "{max}");
        }
    }

    #[test]
    fn weights_fall_to_zero_at_two_to_the_minus_forty() {
        let logits: Vec<f32> = (0..40_000).map(|step| step as f32 * -1e-3).collect();
        check(&logits, 1.0);
        let mut weights = vec![0; logits.len()];
        Kernels::best().softmax_weights(&logits, 0.0, 1.0, &mut weights);
        // 40 · ln 2 = 27.726
        assert!(weights[27_720] > 0 && weights[27_735..].iter().all(|weight| *weight == 0));
    }

    proptest! {
        #[test]
        fn weights_are_those_of_the_definition(
            logits in prop::collection::vec(
                prop_oneof![
                    20 => -30f32..30.0,
                    2 => any::<f32>(),
                    1 => Just(f32::NAN),
                    1 => Just(f32::NEG_INFINITY),
                ],
                1..100,
            ),
            inverse_temperature in prop_oneof![
                0.1f32..3.0, Just(f32::MAX), Just(f32::MIN_POSITIVE), Just(1e30), Just(1e-30),
            ],
        ) {
            check(&logits, inverse_temperature);
        }
    }
}
