//! The few statistics that a small sample supports: median, range, and how far the range can be
//! trusted.

/// Fewest values of which a median is told; of fewer only the values are.
pub const LEAST_FOR_MEDIAN: usize = 3;

/// The middle value, or the mean of the two middle ones; `None` without values.
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

/// The smallest and the largest value; `None` without values.
pub fn range(values: &[f64]) -> Option<(f64, f64)> {
    let smallest = values.iter().copied().min_by(f64::total_cmp)?;
    let largest = values.iter().copied().max_by(f64::total_cmp)?;
    Some((smallest, largest))
}

/// The mean; `None` without values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The probability that the range of `count` independent values covers the median of what they
/// were drawn from, whatever its distribution: 1 − 2^(1 − count), by the sign test (B. C. Arnold,
/// N. Balakrishnan, H. N. Nagaraja, *A First Course in Order Statistics*, §7.1).
pub fn range_coverage(count: usize) -> f64 {
    1.0 - 2f64.powi(1 - i32::try_from(count.clamp(1, 64)).unwrap_or(64))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // By count: each triple of equally likely sides of the median, both sides in it or not.
        let covered = (0..8u32).filter(|sides| (1..3).contains(&sides.count_ones()));
        assert_eq!(covered.count() as f64 / 8.0, range_coverage(3));
    }
}
