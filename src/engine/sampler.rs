//! Samples the next token from logits. Each request has its own generator, so its draws do not
//! depend on the other requests in the batch.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::Sampling;

#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    sampling: Sampling,
    generator: ChaCha8Rng,
}

impl Sampler {
    /// A sampler whose draws depend only on `sampling.seed`.
    pub(crate) fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            generator: ChaCha8Rng::seed_from_u64(sampling.seed),
        }
    }

    /// The next token's id, or `None` if no logit is usable (all NaN or −∞), as a broken model
    /// returns.
    ///
    /// Greedy takes the highest logit, and the lowest id among equals. Otherwise the logits are
    /// divided by the temperature and cut to the `top_k` most likely tokens, then to the smallest
    /// set whose probabilities reach `top_p` (Holtzman et al. 2020, "The Curious Case of Neural
    /// Text Degeneration"). One of the remaining tokens is drawn.
    pub(crate) fn next(&mut self, logits: &[f32]) -> Option<u32> {
        if self.sampling.temperature <= 0.0 {
            return argmax(logits);
        }
        let mut candidates: Vec<(u32, f32)> = (0u32..)
            .zip(logits.iter().copied())
            .filter(|(_, logit)| !logit.is_nan() && *logit > f32::NEG_INFINITY)
            .collect();
        // Most likely first. Equal logits are ordered by id, so that the order is deterministic.
        let likelier =
            |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0));
        let keep = match self.sampling.top_k {
            0 => candidates.len(),
            k => k.min(candidates.len()),
        };
        if keep < candidates.len() {
            candidates.select_nth_unstable_by(keep, likelier);
            candidates.truncate(keep);
        }
        candidates.sort_unstable_by(likelier);

        let (_, highest) = *candidates.first()?;
        // f64 keeps rounding errors of the sum over the vocabulary negligible.
        let temperature = f64::from(self.sampling.temperature);
        let weight = |logit: f32| (f64::from(logit - highest) / temperature).exp();
        let total: f64 = candidates.iter().map(|(_, logit)| weight(*logit)).sum();
        let nucleus = f64::from(self.sampling.top_p) * total;
        let mut kept = 0;
        let mut kept_weight = 0.0;
        for (_, logit) in &candidates {
            kept += 1;
            kept_weight += weight(*logit);
            if kept_weight >= nucleus {
                break;
            }
        }

        let mut left = self.uniform() * kept_weight;
        for (token, logit) in &candidates[..kept] {
            left -= weight(*logit);
            if left < 0.0 {
                return Some(*token);
            }
        }
        // Rounding can leave a small remainder after the last candidate.
        Some(candidates[kept - 1].0)
    }

    /// Uniform in [0, 1), with 53 random bits.
    fn uniform(&mut self) -> f64 {
        (self.generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Number of logits that [`argmax`] compares in parallel.
const SIDE_BY_SIDE: usize = 16;

/// The id of the highest logit, and the lowest id among equals. NaN counts as lowest.
fn argmax(logits: &[f32]) -> Option<u32> {
    // Not `f32::max`: this form compiles to one SIMD instruction and also skips NaN.
    let higher = |one: f32, other: f32| if other > one { other } else { one };
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling(temperature: f32, top_p: f32, top_k: usize, seed: u64) -> Sampling {
        Sampling {
            temperature,
            top_p,
            top_k,
            seed,
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals_and_ignores_nan() {
        let mut sampler = Sampler::new(Sampling::default());
        assert_eq!(sampler.next(&[1.0, 3.0, 3.0, f32::NAN]), Some(1));
        assert_eq!(sampler.next(&[f32::NAN, f32::NEG_INFINITY]), None);
        assert_eq!(sampler.next(&[]), None);
        let mut warm = Sampler::new(sampling(1.0, 1.0, 0, 1));
        assert_eq!(warm.next(&[f32::NAN]), None);
    }

    #[test]
    fn draws_follow_the_distribution() {
        // Probabilities 0.6, 0.3, 0.1.
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let mut sampler = Sampler::new(sampling(1.0, 1.0, 0, 7));
        let mut counts = [0u32; 3];
        for _ in 0..20_000 {
            counts[sampler.next(&logits).expect("finite logits") as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([0.6, 0.3, 0.1]) {
            let share = f64::from(*count) / 20_000.0;
            // Five standard deviations of a proportion near 0.5 are 0.018.
            assert!((share - expected).abs() < 0.018, "{share} for {expected}");
        }
    }

    #[test]
    fn nucleus_and_top_k_cut_the_tail() {
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let mut nucleus = Sampler::new(sampling(1.0, 0.8, 0, 3));
        let mut top = Sampler::new(sampling(1.0, 1.0, 1, 3));
        for _ in 0..500 {
            assert!(nucleus.next(&logits).expect("finite logits") < 2);
            assert_eq!(top.next(&logits), Some(0));
        }
    }

    proptest! {
        #[test]
        fn greedy_takes_the_first_of_the_highest_logits(
            logits in prop::collection::vec(
                prop_oneof![(-3i8..3).prop_map(f32::from), Just(f32::NAN), Just(f32::NEG_INFINITY)],
                0..70,
            ),
        ) {
            let mut expected = None;
            for (token, logit) in (0u32..).zip(&logits) {
                let higher = expected.is_none_or(|(_, highest)| *logit > highest);
                if !logit.is_nan() && *logit > f32::NEG_INFINITY && higher {
                    expected = Some((token, *logit));
                }
            }
            prop_assert_eq!(argmax(&logits), expected.map(|(token, _)| token));
        }
    }

    proptest! {
        #[test]
        fn the_same_seed_draws_the_same_tokens_and_only_possible_ones(
            logits in prop::collection::vec(-8f32..8.0, 1..200),
            temperature in 0f32..2.0,
            top_p in 0f32..=1.0,
            top_k in 0usize..50,
            seed in any::<u64>(),
        ) {
            let mut one = Sampler::new(sampling(temperature, top_p, top_k, seed));
            let mut two = Sampler::new(sampling(temperature, top_p, top_k, seed));
            for _ in 0..5 {
                let token = one.next(&logits);
                prop_assert_eq!(token, two.next(&logits));
                let token = token.expect("finite logits") as usize;
                prop_assert!(token < logits.len());
                if top_k > 0 && temperature > 0.0 {
                    let higher = logits.iter().filter(|other| **other > logits[token]).count();
                    prop_assert!(higher < top_k);
                }
            }
        }
    }
}
