//! Least squares with coefficients that are not negative.

use crate::statistics::median;

/// Sweeps over the coefficients; the problems are small and their columns scaled.
const SWEEPS: usize = 2_000;

/// Rounds of reweighting, in which outliers lose weight.
const ROUNDS: usize = 8;

/// A relative error up to this is none of an outlier.
const NO_OUTLIER: f64 = 0.1;

/// The coefficients `c ≥ 0` that minimise `Σ w (y − x·c)² / p² + Σ (v·c)²` over the samples `(x, y)` and the beliefs
/// `v`, by sequential coordinate descent (V. Franc, V. Hlaváč, M. Navara, CAIP 2005). The errors are relative to `p`,
/// the last round's prediction: relative to the noisy `y`, small values would pull everything down. The weights `w`
/// are Huber's, for errors beyond twice the median of their sizes (P. J. Huber, 1964).
pub(super) fn fit<const N: usize>(samples: &[([f64; N], f64)], beliefs: &[[f64; N]]) -> [f64; N] {
    let mut scales: Vec<(f64, f64)> = samples.iter().map(|(_, y)| (*y, 1.0)).collect();
    let mut coefficients = [0.0; N];
    for _ in 0..ROUNDS {
        coefficients = weighted(samples, &scales, beliefs);
        let predicted = samples.iter().map(|(x, y)| match dot(x, &coefficients) {
            p if p > 0.0 => p,
            _ => *y,
        });
        let predicted: Vec<f64> = predicted.collect();
        let error = |(p, (_, y)): (&f64, &([f64; N], f64))| (y / p - 1.0).abs();
        let errors: Vec<f64> = predicted.iter().zip(samples).map(error).collect();
        let limit = (2.0 * median(&errors).unwrap_or(0.0)).max(NO_OUTLIER);
        for ((scale, p), error) in scales.iter_mut().zip(predicted).zip(errors) {
            let weight = if error > limit && error > 0.0 {
                limit / error
            } else {
                1.0
            };
            *scale = (p, weight);
        }
    }
    coefficients
}

pub(super) fn dot<const N: usize>(x: &[f64; N], c: &[f64; N]) -> f64 {
    x.iter().zip(c).map(|(x, c)| x * c).sum()
}

fn weighted<const N: usize>(
    samples: &[([f64; N], f64)],
    scales: &[(f64, f64)],
    beliefs: &[[f64; N]],
) -> [f64; N] {
    // The normal equations, with columns of length 1.
    let mut gram = [[0.0; N]; N];
    let mut right = [0.0; N];
    for ((x, y), (scale, weight)) in samples.iter().zip(scales) {
        for i in 0..N {
            let scaled = weight * x[i] / (scale * scale);
            right[i] += scaled * y;
            for j in 0..N {
                gram[i][j] += scaled * x[j];
            }
        }
    }
    for v in beliefs {
        for i in 0..N {
            for j in 0..N {
                gram[i][j] += v[i] * v[j];
            }
        }
    }
    let length: [f64; N] = std::array::from_fn(|i| gram[i][i].sqrt());
    for i in 0..N {
        if length[i] > 0.0 {
            right[i] /= length[i];
        }
        for j in 0..N {
            if length[i] > 0.0 && length[j] > 0.0 {
                gram[i][j] /= length[i] * length[j];
            }
        }
    }
    let mut c = [0.0; N];
    for _ in 0..SWEEPS {
        let mut moved = 0.0f64;
        for i in 0..N {
            if length[i] <= 0.0 {
                continue;
            }
            let gradient = dot(&gram[i], &c) - right[i];
            let next = (c[i] - gradient).max(0.0);
            moved = moved.max((next - c[i]).abs());
            c[i] = next;
        }
        if moved < 1e-12 {
            break;
        }
    }
    std::array::from_fn(|i| {
        if length[i] > 0.0 {
            c[i] / length[i]
        } else {
            0.0
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Exact data give their coefficients back.
        #[test]
        fn coefficients_are_found(
            truth in [0.1f64..5.0, 0.01f64..2.0, 0.0f64..0.1],
            rows in prop::collection::vec((1u32..40, 0u32..500), 30..80),
        ) {
            let samples: Vec<([f64; 3], f64)> = rows
                .iter()
                .map(|(rows, context)| {
                    let x = [1.0, f64::from(*rows), f64::from(*context)];
                                        (x, dot(&x, &truth))
                })
                .collect();
            let found = fit(&samples, &[]);
            for (x, _) in &samples {
                let (is, should) = (dot(x, &found), dot(x, &truth));
                prop_assert!((is / should - 1.0).abs() < 0.01, "{found:?} {truth:?}");
            }
        }
    }

    #[test]
    fn one_stall_in_ten_pulls_little() {
        let truth = [3.0, 0.25];
        let sample = |index: u32| {
            let x = [1.0, f64::from(1 + index * 7 % 40)];
            let stall = if index % 10 == 9 { 3.0 } else { 1.0 };
            (x, dot(&x, &truth) * stall)
        };
        let samples: Vec<([f64; 2], f64)> = (0..80).map(sample).collect();
        let found = fit(&samples, &[]);
        for (x, _) in &samples {
            let error = dot(x, &found) / dot(x, &truth) - 1.0;
            assert!(error.abs() < 0.1, "{found:?}");
        }
    }

    #[test]
    fn a_belief_decides_what_the_samples_leave_open() {
        // Both columns are the same: only their sum is known.
        let samples = vec![([1.0, 1.0], 3.0); 10];
        let found = fit(&samples, &[[0.1, -0.2]]);
        assert!(
            (found[0] - 2.0).abs() < 1e-6 && (found[1] - 1.0).abs() < 1e-6,
            "{found:?}"
        );
    }

    #[test]
    fn nothing_is_negative_and_nothing_known_is_zero() {
        // Falls with x, which no coefficient explains.
        let samples = [
            ([1.0, 1.0, 0.0], 3.0),
            ([1.0, 2.0, 0.0], 2.0),
            ([1.0, 3.0, 0.0], 1.0),
        ];
        let found = fit(&samples, &[]);
        assert!(found.iter().all(|c| *c >= 0.0), "{found:?}");
        assert_eq!(found[2], 0.0);
        assert_eq!(fit::<2>(&[], &[]), [0.0, 0.0]);
    }
}
