//! Where the level of a series of runs changes.
//!
//! E-divisive (D. S. Matteson, N. A. James, *A Nonparametric Approach for Multiple Change Point Analysis of
//! Multivariate Data*, 2014): a segment is split where the energy distance between both parts is largest, if a
//! permutation test finds that unlikely to be chance, and so are its parts. It assumes no distribution.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::statistics::shuffle;

/// Fewer runs than this on a side are no level.
const SHORTEST: usize = 3;

/// Permutations of a test.
const PERMUTATIONS: usize = 199;

/// A split is kept if at most this share of the permutations has as large a distance.
const SIGNIFICANCE: f64 = 0.05;

/// Indices of the first values of new levels, ascending.
pub(super) fn change_points(values: &[f64]) -> Vec<usize> {
    // The same history has the same change points every time.
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut points = Vec::new();
    let mut open = vec![(0, values.len())];
    while let Some((start, end)) = open.pop() {
        let segment = &values[start..end];
        let Some((split, distance)) = best_split(segment) else {
            continue;
        };
        if is_significant(segment, distance, &mut random) {
            points.push(start + split);
            open.push((start, start + split));
            open.push((start + split, end));
        }
    }
    points.sort_unstable();
    points
}

/// The split with the largest energy distance, and that distance; `None` for a segment that is too short.
fn best_split(values: &[f64]) -> Option<(usize, f64)> {
    let count = values.len();
    if count < 2 * SHORTEST {
        return None;
    }
    let distances = |value: f64, others: &[f64]| -> f64 {
        others.iter().map(|other| (value - other).abs()).sum()
    };
    // Sums of distances within the left part, within the right part, and between both, for a split that
    // moves to the right.
    let all: f64 = (0..count)
        .map(|index| distances(values[index], &values[..index]))
        .sum();
    let (mut left, mut right, mut between) = (0.0, all, 0.0);
    let mut best: Option<(usize, f64)> = None;
    for split in 1..count {
        let moved = values[split - 1];
        let to_left = distances(moved, &values[..split - 1]);
        let to_right = distances(moved, &values[split..]);
        left += to_left;
        right -= to_right;
        between += to_right - to_left;
        if split < SHORTEST || count - split < SHORTEST {
            continue;
        }
        let (m, n) = (split as f64, (count - split) as f64);
        let pairs = |size: f64| size * (size - 1.0) / 2.0;
        let energy = 2.0 * between / (m * n) - left / pairs(m) - right / pairs(n);
        let distance = m * n / (m + n) * energy;
        if best.is_none_or(|(_, largest)| distance > largest) {
            best = Some((split, distance));
        }
    }
    best
}

fn is_significant(values: &[f64], distance: f64, random: &mut ChaCha8Rng) -> bool {
    if distance <= 0.0 {
        return false;
    }
    let mut shuffled = values.to_vec();
    let mut as_large = 1;
    for _ in 0..PERMUTATIONS {
        shuffle(&mut shuffled, random);
        let by_chance = best_split(&shuffled).map_or(0.0, |(_, distance)| distance);
        as_large += usize::from(by_chance >= distance);
    }
    as_large as f64 / (PERMUTATIONS + 1) as f64 <= SIGNIFICANCE
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::RngCore;

    /// Values around `levels`, 20 of each, with a little noise.
    fn series(levels: &[f64], noise: f64) -> Vec<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let values = levels.iter().flat_map(|level| [*level; 20]);
        values
            .map(|level| {
                level + noise * ((random.next_u64() >> 40) as f64 / (1u64 << 24) as f64 - 0.5)
            })
            .collect()
    }

    #[test]
    fn levels_are_found_where_they_change() {
        assert_eq!(change_points(&series(&[1.0, 2.0, 1.5], 0.2)), [20, 40]);
        assert_eq!(change_points(&series(&[1.0, 1.1], 0.1)), [20]);
    }

    #[test]
    fn noise_alone_is_no_change() {
        let mut false_alarms = 0;
        for seed in 0..100 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let values: Vec<f64> = (0..30).map(|_| (random.next_u64() >> 40) as f64).collect();
            false_alarms += usize::from(!change_points(&values).is_empty());
        }
        // 5 of 100 are expected.
        assert!(false_alarms <= 10, "{false_alarms}");
        assert!(change_points(&[1.0; 50]).is_empty());
        assert!(change_points(&[]).is_empty());
        assert!(
            change_points(&[1.0, 1.0, 9.0, 9.0, 9.0]).is_empty(),
            "too short"
        );
    }
}
