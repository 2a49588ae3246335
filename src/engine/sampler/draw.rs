//! The draw of a token, as the module above defines it.
//!
//! Nothing is sorted. A bound on the logits, found in one pass, leaves out most of the tokens that
//! `top_k` and `top_p` would cut.

use flowbench_kernels::{Kernels, WEIGHT_ONE};

use super::{ALL, SamplingParameters, higher};

/// Logits whose weights are computed at a time.
const BLOCK: usize = 512;

/// Logits that are compared with a bound at a time.
const SIDE_BY_SIDE: usize = 16;

/// Number of maxima that bound the `top_k`-th logit from below.
const MAXIMA: usize = 1024;

/// Number of equal intervals of `(logit − max) / temperature` in which a nucleus is looked for.
const INTERVALS: usize = 1024;

/// e^−28 · 2^40 < 1: smaller exponents have a weight of 0.
const LEAST_EXPONENT: f32 = -28.0;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, Default)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Candidate {
    /// Its place in the order: the likeliest has the largest key.
    fn key(self) -> u64 {
        // −0 + 0 is +0.
        let bits = (self.logit + 0.0).to_bits();
        let orderable = if bits >> 31 == 1 {
            !bits
        } else {
            bits | 1 << 31
        };
        u64::from(orderable) << 32 | u64::from(u32::MAX - self.id)
    }
}

/// A row of logits, and what their weights depend on.
struct Row<'a> {
    kernels: Kernels,
    logits: &'a [f32],
    max: f32,
    inverse_temperature: f32,
}

/// The token that the module above defines, or `None` without candidates.
pub(super) fn draw(
    kernels: Kernels,
    logits: &[f32],
    parameters: SamplingParameters,
) -> Option<u32> {
    let maxima = maxima(logits);
    let max = maxima.iter().copied().fold(f32::NEG_INFINITY, higher);
    if max == f32::NEG_INFINITY {
        return None;
    }
    let SamplingParameters {
        share,
        random,
        inverse_temperature,
        ..
    } = parameters;
    let row = Row {
        kernels,
        logits,
        max,
        inverse_temperature,
    };
    let top_k = parameters.top_k as usize;
    if top_k > 0 && top_k < logits.len() {
        let kept = keep_top(row.candidates(bound(maxima, top_k)), top_k);
        let weights = row.weights_of(&kept);
        let target = target(weights.iter().sum(), share);
        return row.draw_from_nucleus(&kept, &weights, target, random);
    }
    let blocks = row.block_sums();
    let total = blocks.iter().sum();
    if share == ALL {
        return row.draw_from_all(&blocks, scaled(total, random));
    }
    let target = target(total, share);
    let likeliest = row.likeliest(total, target);
    let weights = row.weights_of(&likeliest);
    row.draw_from_nucleus(&likeliest, &weights, target, random)
}

/// `floor(total · random / 2^64)`: uniform below `total`.
fn scaled(total: u64, random: u64) -> u64 {
    ((u128::from(total) * u128::from(random)) >> 64) as u64
}

/// The weight that a nucleus has to reach.
fn target(total: u64, share: u64) -> u64 {
    (((u128::from(total) * u128::from(share)) >> 32) as u64).max(1)
}

/// The largest logits of [`MAXIMA`] disjoint parts, which are all of the row. NaN counts as −∞.
fn maxima(logits: &[f32]) -> [f32; MAXIMA] {
    let mut maxima = [f32::NEG_INFINITY; MAXIMA];
    for row in logits.chunks(MAXIMA) {
        for (max, logit) in maxima.iter_mut().zip(row) {
            *max = higher(*max, *logit);
        }
    }
    maxima
}

/// A number that at least `top_k` logits reach, if there are so many above −∞.
fn bound(mut maxima: [f32; MAXIMA], top_k: usize) -> f32 {
    if top_k > MAXIMA {
        return f32::NEG_INFINITY;
    }
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    let (_, bound, _) = maxima.select_nth_unstable_by(top_k - 1, descending);
    *bound
}

/// The `count` likeliest candidates, by ascending id as before.
fn keep_top(mut candidates: Vec<Candidate>, count: usize) -> Vec<Candidate> {
    if count < candidates.len() {
        let mut keys: Vec<u64> = candidates.iter().map(|one| one.key()).collect();
        let (_, last, _) = keys.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        let last = *last;
        candidates.retain(|one| one.key() >= last);
    }
    candidates
}

/// The first position at which the running sum exceeds `r`.
fn position(weights: impl Iterator<Item = u64>, r: u64) -> Option<usize> {
    let mut running = 0;
    weights
        .map(|weight| {
            running += weight;
            running > r
        })
        .position(|exceeds| exceeds)
}

impl Row<'_> {
    fn weigh(&self, logits: &[f32], weights: &mut [u64]) {
        let scale = self.inverse_temperature;
        (self.kernels).softmax_weights(logits, self.max, scale, weights);
    }

    fn weights_of(&self, candidates: &[Candidate]) -> Vec<u64> {
        let logits: Vec<f32> = candidates.iter().map(|one| one.logit).collect();
        let mut weights = vec![0; logits.len()];
        self.weigh(&logits, &mut weights);
        weights
    }

    /// The sums of the weights of each [`BLOCK`] logits.
    fn block_sums(&self) -> Vec<u64> {
        let mut weights = [0; BLOCK];
        let blocks = self.logits.chunks(BLOCK).map(|logits| {
            let weights = &mut weights[..logits.len()];
            self.weigh(logits, weights);
            weights.iter().sum()
        });
        blocks.collect()
    }

    /// The token at which the running sum of all weights exceeds `r`.
    fn draw_from_all(&self, blocks: &[u64], r: u64) -> Option<u32> {
        let index = position(blocks.iter().copied(), r)?;
        let before: u64 = blocks[..index].iter().sum();
        let logits = self.logits.chunks(BLOCK).nth(index)?;
        let mut weights = [0; BLOCK];
        self.weigh(logits, &mut weights[..logits.len()]);
        let within = position(weights.into_iter(), r - before)?;
        u32::try_from(index * BLOCK + within).ok()
    }

    /// The candidates whose logit is at least `bound`, by ascending id.
    fn candidates(&self, bound: f32) -> Vec<Candidate> {
        let wanted = |logit: f32| logit >= bound && logit > f32::NEG_INFINITY;
        let mut candidates = Vec::new();
        let first_ids = (0u32..).step_by(SIDE_BY_SIDE);
        for (first_id, logits) in first_ids.zip(self.logits.chunks(SIDE_BY_SIDE)) {
            // Often there is none. Nothing here branches on a single logit, which a processor could not
            // predict.
            if logits.iter().fold(false, |any, logit| any | wanted(*logit)) {
                let mut found = [Candidate::default(); SIDE_BY_SIDE];
                let mut count = 0;
                for (id, &logit) in (first_id..).zip(logits) {
                    found[count] = Candidate { id, logit };
                    count += usize::from(wanted(logit));
                }
                candidates.extend_from_slice(&found[..count]);
            }
        }
        candidates
    }

    /// The likeliest candidates, so many that their weights sum to at least `target`.
    fn likeliest(&self, total: u64, target: u64) -> Vec<Candidate> {
        // Missing are tokens that weigh at most half of what each may. Half, because the exponential
        // and the logarithm are not exact.
        let spare = (total - target) as f64 / self.logits.len() as f64;
        let exponent = (0.5 * spare / WEIGHT_ONE as f64).ln();
        let below_max = exponent / f64::from(self.inverse_temperature);
        self.candidates((f64::from(self.max) + below_max) as f32)
    }

    /// Draws from the shortest prefix of the candidates' order whose weights sum to at least `target`.
    /// The candidates and their weights are given by ascending id.
    fn draw_from_nucleus(
        &self,
        candidates: &[Candidate],
        weights: &[u64],
        target: u64,
        random: u64,
    ) -> Option<u32> {
        let (last, total) = self.nucleus(candidates, weights, target)?;
        let kept = candidates.iter().zip(weights);
        let kept = kept.map(|(one, weight)| if one.key() >= last { *weight } else { 0 });
        let drawn = position(kept, scaled(total, random))?;
        Some(candidates[drawn].id)
    }

    /// The key of the last candidate of that prefix, and the prefix's weight.
    fn nucleus(
        &self,
        candidates: &[Candidate],
        weights: &[u64],
        target: u64,
    ) -> Option<(u64, u64)> {
        let mut sums = [0; INTERVALS];
        for (one, weight) in candidates.iter().zip(weights) {
            sums[self.interval(one.logit)] += weight;
        }
        // The interval that holds the last candidate, and the weight of those before it.
        let last = position(sums.iter().copied(), target - 1)?;
        let mut total = sums[..last].iter().sum();
        let inside = candidates.iter().zip(weights);
        let inside = inside.filter(|(one, _)| self.interval(one.logit) == last);
        let mut inside: Vec<(u64, u64)> =
            inside.map(|(one, weight)| (one.key(), *weight)).collect();
        inside.sort_unstable_by(|a, b| b.cmp(a));
        for (key, weight) in inside {
            total += weight;
            if total >= target {
                return Some((key, total));
            }
        }
        None
    }

    /// Never smaller for a smaller logit, since every operation is monotonic. Infinite logits are in
    /// the first and the last interval.
    fn interval(&self, logit: f32) -> usize {
        let exponent = (logit - self.max) * self.inverse_temperature;
        // A cast takes NaN, which is +∞ − ∞, to 0.
        ((exponent * (INTERVALS as f32 / LEAST_EXPONENT)) as usize).min(INTERVALS - 1)
    }
}
