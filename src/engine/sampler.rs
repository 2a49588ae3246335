//! Samples the next token from logits. Each request has its own generator, so its draws do not
//! depend on the other requests in the batch.
//!
//! A GPU has to draw the same token as a CPU. So a draw is defined without any sum whose rounding
//! depends on its order: weights are integers, and floating-point numbers occur only in a fixed
//! sequence of IEEE 754 operations per logit. [`draw()`] may use any method with this result:
//!
//! 1. **Candidates** are the tokens whose logit is neither NaN nor −∞. `max` is the largest of their
//!    logits. Without candidates there is no token.
//! 2. **Weights.** `x = (logit − max) · inverse_temperature` in f32, rounded after each of the two
//!    operations. `weight = floor(2^40 · exp(x))`, a 64-bit integer, where `exp` is the sequence of
//!    operations of `Simd::exp` (`crates/kernels/src/simd.rs`) with `x` clamped to −86.6..=0. It is
//!    exactly 1 at 0, and its product with 2^40 is exact. If `max` is +∞, the weight is 2^40 where
//!    the logit is +∞, and 0 elsewhere. A token of weight 0 is never drawn.
//! 3. **Order.** By descending `key = orderable(logit) · 2^32 + (2^32 − 1 − id)`: most likely first,
//!    and the lower id first among equals. `orderable` is the number's 32 bits, with all of them
//!    flipped if it is negative, otherwise only the sign bit; −0 is taken as +0.
//! 4. **top_k** above 0 keeps the first `top_k` candidates.
//! 5. **top_p.** `share = round(2^32 · top_p)`, clamped to 0..=2^32. If it is below 2^32, the
//!    shortest prefix is kept whose weights sum to at least `max(1, floor(total · share / 2^32))`
//!    (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"). `total` is the sum of
//!    the weights that step 4 kept; the product has 128 bits.
//! 6. **Draw.** `r = floor(total · random / 2^64)`, where `total` is the sum of the weights that are
//!    kept now, and `random` is the next 64-bit number of the request's ChaCha8 generator. The token
//!    is the first one kept, by ascending id, at which the running sum of weights exceeds `r`.

mod draw;
#[cfg(test)]
mod tests;

use flowbench_kernels::Kernels;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::Sampling;
use draw::draw;

/// [`SamplingParameters::share`] that keeps all tokens.
const ALL: u64 = 1 << 32;

/// A request's settings and the state of its generator.
#[derive(Clone)]
pub(crate) struct Sampler {
    sampling: Sampling,
    generator: ChaCha8Rng,
    kernels: Kernels,
}

/// All that a sampled token depends on, besides the logits. The same on a CPU and on a GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SamplingParameters {
    /// 1 / temperature; positive, normal and finite.
    pub(crate) inverse_temperature: f32,
    /// Tokens to keep; 0: all.
    pub(crate) top_k: u32,
    /// Share of the total weight to keep, in units of 2^−32; 2^32: all.
    pub(crate) share: u64,
    /// This token's random bits.
    pub(crate) random: u64,
}

impl Sampler {
    /// A sampler whose draws depend only on `sampling.seed`.
    pub(crate) fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            generator: ChaCha8Rng::seed_from_u64(sampling.seed),
            kernels: Kernels::best(),
        }
    }

    /// The next token's id, or `None` if no logit is usable (all NaN or −∞), as a broken model
    /// returns. Greedy takes the highest logit, and the lowest id among equals.
    pub(crate) fn next(&mut self, logits: &[f32]) -> Option<u32> {
        match self.parameters() {
            None => argmax(logits),
            Some(parameters) => draw(self.kernels, logits, parameters),
        }
    }

    /// What the next token is sampled with, or `None` if it is the highest logit. Takes 64 bits from
    /// the generator, so it stands for one call of [`Sampler::next`].
    pub(crate) fn parameters(&mut self) -> Option<SamplingParameters> {
        let Sampling {
            temperature,
            top_p,
            top_k,
            ..
        } = self.sampling;
        if temperature.is_nan() || temperature <= 0.0 {
            return None;
        }
        Some(SamplingParameters {
            // At both ends of the range, the reciprocal would be infinite or subnormal.
            inverse_temperature: (1.0 / temperature).clamp(f32::MIN_POSITIVE, f32::MAX),
            top_k: u32::try_from(top_k).unwrap_or(u32::MAX),
            // Casts of negative numbers and NaN give 0.
            share: ((f64::from(top_p) * ALL as f64).round() as u64).min(ALL),
            random: self.generator.next_u64(),
        })
    }
}

/// Number of logits that [`argmax`] compares in parallel.
const SIDE_BY_SIDE: usize = 16;

/// The larger number, or `one` if `other` is NaN. Unlike `f32::max`, this is one SIMD instruction.
#[inline(always)]
fn higher(one: f32, other: f32) -> f32 {
    if other > one { other } else { one }
}

/// The id of the highest logit, and the lowest id among equals. NaN counts as lowest.
fn argmax(logits: &[f32]) -> Option<u32> {
    let mut highest = [f32::NEG_INFINITY; SIDE_BY_SIDE];
    let rows = logits.chunks_exact(SIDE_BY_SIDE);
    let rest = rows.remainder().iter().copied();
    for row in rows {
        for (highest, logit) in highest.iter_mut().zip(row) {
            *highest = higher(*highest, *logit);
        }
    }
    let highest = rest.chain(highest).fold(f32::NEG_INFINITY, higher);
    if highest == f32::NEG_INFINITY {
        return None;
    }
    let first = logits.iter().position(|logit| *logit == highest)?;
    u32::try_from(first).ok()
}
