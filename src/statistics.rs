//! Statistics of small samples: median, range, and how likely the range covers the true median.

use rand_chacha::rand_core::RngCore;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use crate::record::metrics::{Distribution, Interval};

/// A median of fewer values is not given.
pub const LEAST_FOR_MEDIAN: usize = 3;

/// The middle value, or the mean of the two middle ones; `None` for an empty sample.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(middle - 1)?, upper))
}

/// Minimum and maximum; `None` for an empty sample.
pub fn range(values: &[f64]) -> Option<(f64, f64)> {
    let smallest = values.iter().copied().min_by(f64::total_cmp)?;
    let largest = values.iter().copied().max_by(f64::total_cmp)?;
    Some((smallest, largest))
}

/// The mean; `None` for an empty sample.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Probability that the range of `count` independent values covers the median of their
/// distribution, whatever that is: 1 − 2^(1 − count), by the sign test (B. C. Arnold, N.
/// Balakrishnan, H. N. Nagaraja, *A First Course in Order Statistics*, §7.1).
pub fn range_coverage(count: usize) -> f64 {
    1.0 - 2f64.powi(1 - i32::try_from(count.clamp(1, 64)).unwrap_or(64))
}

/// Minimum coverage of a confidence interval for the median.
const COVERAGE: f64 = 0.95;

/// Summarizes a sample; `None` for an empty one.
pub fn distribution(values: &[f64]) -> Option<Distribution> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    let mean = mean(&sorted)?;
    let squares: f64 = sorted.iter().map(|value| (value - mean).powi(2)).sum();
    // A quantile needs a sample in which at least one value is expected beyond it.
    let supported = |q: f64, least: usize| (count >= least).then(|| quantile(&sorted, q));
    Some(Distribution {
        count,
        mean,
        deviation: (count > 1).then(|| (squares / (count - 1) as f64).sqrt()),
        min: *sorted.first()?,
        median: supported(0.5, LEAST_FOR_MEDIAN),
        median_interval: median_interval(&sorted),
        p90: supported(0.9, 10),
        p95: supported(0.95, 20),
        p99: supported(0.99, 100),
        max: *sorted.last()?,
    })
}

/// Quantile `q` of at least one sorted value, interpolated linearly.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * q;
    let below = sorted[place.floor() as usize];
    let above = sorted[place.ceil() as usize];
    below + (above - below) * place.fract()
}

/// Confidence interval for the median (B. C. Arnold et al., as above, §7.1).
fn median_interval(sorted: &[f64]) -> Option<Interval> {
    let count = sorted.len();
    // P(B = 0). It vanishes beyond a thousand values, where the normal approximation is accurate
    // enough: k = n/2 − 0.98 √n.
    let mut probability = 0.5f64.powi(i32::try_from(count).ok()?);
    if count > 1000 {
        let k = (count as f64 / 2.0 - 0.98 * (count as f64).sqrt()).floor() as usize;
        return Some(Interval {
            low: sorted[k - 1],
            high: sorted[count - k],
            coverage: COVERAGE,
        });
    }
    // `below` is P(B < k + 1) for the interval of k.
    let mut below = probability;
    let mut found = None;
    for k in 1..=count / 2 {
        let coverage = 1.0 - 2.0 * below;
        if coverage < COVERAGE {
            break;
        }
        found = Some(Interval {
            low: sorted[k - 1],
            high: sorted[count - k],
            coverage,
        });
        probability *= (count - k + 1) as f64 / k as f64;
        below += probability;
    }
    found
}

/// Brings `items` into a random order (R. A. Fisher, F. Yates, 1938).
pub fn shuffle<T>(items: &mut [T], random: &mut impl RngCore) {
    for last in (1..items.len()).rev() {
        // The bias of the remainder is below 2^-40 for a million items.
        let other = random.next_u64() % (last as u64 + 1);
        items.swap(last, usize::try_from(other).unwrap_or(0));
    }
}

/// The quantile of Student's t, or of the normal distribution for infinite `degrees`.
pub fn students_t_quantile(degrees: f64, probability: f64) -> f64 {
    match StudentsT::new(0.0, 1.0, degrees) {
        Ok(student) if degrees.is_finite() => student.inverse_cdf(probability),
        _ => Normal::standard().inverse_cdf(probability),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn the_8th_and_18th_of_25_values_bound_the_median() {
        let values: Vec<f64> = (1..=25).rev().map(f64::from).collect();
        let spread = distribution(&values).expect("values");
        let interval = spread.median_interval.expect("enough");
        assert_eq!((interval.low, interval.high), (8.0, 18.0));
        // Tables of the sign test: 1 − 2 P(B ≤ 7), n = 25, is 0.9567.
        assert!((interval.coverage - 0.9567).abs() < 5e-5, "{interval:?}");
        assert_eq!((spread.median, spread.mean), (Some(13.0), 13.0));
        // The variance of 1…n is n (n + 1) / 12.
        let variance = spread.deviation.expect("enough").powi(2);
        assert!((variance - 25.0 * 26.0 / 12.0).abs() < 1e-9);
        assert!((spread.p95.expect("enough") - 23.8).abs() < 1e-9);
        assert_eq!(spread.p99, None, "one value in a hundred is not there");
    }

    #[test]
    fn every_order_is_as_likely() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            let mut items = [1, 2, 3];
            shuffle(&mut items, &mut random);
            *counts.entry(items).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        // 1000 are expected of each, with a standard deviation of 29.
        assert!(
            counts.values().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn small_samples_have_no_median_or_interval() {
        assert_eq!(distribution(&[]), None);
        let one = distribution(&[4.0]).expect("a value");
        assert_eq!((one.min, one.max, one.mean), (4.0, 4.0, 4.0));
        assert_eq!((one.deviation, one.median), (None, None));
        let five = distribution(&[1.0, 2.0, 3.0, 4.0, 5.0]).expect("values");
        assert_eq!(five.median_interval, None, "the range of five: 93.75 %");
        let six = distribution(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).expect("values");
        let interval = six.median_interval.expect("the range of six: 96.9 %");
        assert_eq!((interval.low, interval.high), (1.0, 6.0));
        assert_eq!(interval.coverage, range_coverage(6));
    }

    #[test]
    fn large_samples_have_percentiles_and_a_narrow_interval() {
        let values: Vec<f64> = (0..=1000).map(f64::from).collect();
        let exact = distribution(&values[..1000]).expect("values");
        let close = distribution(&values).expect("values");
        assert_eq!(close.p99, Some(990.0));
        let (exact, close) = (exact.median_interval, close.median_interval);
        let (exact, close) = (exact.expect("enough"), close.expect("enough"));
        assert!((exact.low - close.low).abs() <= 1.0, "{exact:?} {close:?}");
        assert!((exact.high - close.high).abs() <= 1.0);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn ranges_and_means() {
        assert_eq!(range(&[]), None);
        assert_eq!(range(&[2.0, -1.0, 5.0]), Some((-1.0, 5.0)));
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[1.0, 2.0, 6.0]), Some(3.0));
    }

    #[test]
    fn the_range_of_three_covers_the_median_three_times_out_of_four() {
        assert_eq!(range_coverage(1), 0.0);
        assert_eq!(range_coverage(3), 0.75);
        assert_eq!(range_coverage(6), 0.968_75);
        // By enumeration: each of three values lies on either side of the median, and the range
        // covers it if both sides occur.
        let covered = (0..8u32).filter(|sides| (1..3).contains(&sides.count_ones()));
        assert_eq!(covered.count() as f64 / 8.0, range_coverage(3));
    }
}
