//! Verdicts from differences and their uncertainty.

use super::noise::{Sides, Uncertainty};
use crate::record::compare::Verdict;

/// Coverage of an interval that stands alone.
pub(super) const COVERAGE: f64 = 0.95;

/// More runs than this are no advice.
const MANY_RUNS: usize = 100;

/// A difference that is to be judged, in logarithms; positive is worse.
#[derive(Debug, Clone)]
pub(super) struct Tested {
    pub sides: Sides,
    /// `None` if nothing tells how much runs differ.
    pub uncertainty: Option<Uncertainty>,
    /// Whether more is better.
    pub more_is_better: bool,
}

impl Tested {
    /// Logarithm of new / base; positive is worse.
    fn worse_by(&self) -> f64 {
        let difference = self.sides.difference();
        if self.more_is_better {
            -difference
        } else {
            difference
        }
    }
}

/// A verdict, and what it rests on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Decision {
    pub verdict: Verdict,
    /// Coverage of the interval.
    pub coverage: f64,
    /// Half the width of the interval, in logarithms; `None` if the noise is unknown.
    pub half_width: Option<f64>,
    /// In logarithms.
    pub smallest_visible: Option<f64>,
    /// `NO_VERDICT` only: how many more runs a side would settle it.
    pub more_runs: Option<usize>,
}

/// Judges a family of differences together. `threshold` is a logarithm.
///
/// The intervals follow Holm's method (S. Holm, 1979): of k differences, the one that excludes zero most
/// clearly has an interval of coverage 1 − 0.05/k, the next one 1 − 0.05/(k − 1), and so on until one does not
/// exclude zero; that coverage is used for all others.
pub(super) fn decide(family: &[Tested], threshold: f64) -> Vec<Decision> {
    let coverages = coverages(family);
    (family.iter().zip(coverages))
        .map(|(tested, coverage)| decide_one(tested, coverage, threshold))
        .collect()
}

fn coverages(family: &[Tested]) -> Vec<f64> {
    let certainty = |tested: &Tested| {
        let uncertainty = tested.uncertainty.as_ref();
        uncertainty.map_or(0.0, |known| known.excluding_zero(tested.worse_by()))
    };
    let certainties: Vec<f64> = family.iter().map(certainty).collect();
    let mut order: Vec<usize> = (0..family.len()).collect();
    order.sort_by(|a, b| certainties[*b].total_cmp(&certainties[*a]));
    let mut coverages = vec![COVERAGE; family.len()];
    let mut left = family.len();
    let mut rejecting = true;
    for index in order {
        let coverage = 1.0 - (1.0 - COVERAGE) / left as f64;
        coverages[index] = coverage;
        rejecting = rejecting && certainties[index] > coverage;
        if rejecting {
            left -= 1;
        }
    }
    coverages
}

fn decide_one(tested: &Tested, coverage: f64, threshold: f64) -> Decision {
    let Some(uncertainty) = &tested.uncertainty else {
        return Decision {
            verdict: Verdict::NoVerdict,
            coverage,
            half_width: None,
            smallest_visible: None,
            more_runs: None,
        };
    };
    let half_width = uncertainty.half_width(coverage);
    let verdict = verdict(tested.worse_by(), half_width, threshold);
    let undecided = verdict == Verdict::NoVerdict;
    Decision {
        verdict,
        coverage,
        half_width: Some(half_width),
        smallest_visible: Some(uncertainty.smallest_visible(coverage, threshold)),
        more_runs: undecided
            .then(|| more_runs(tested, coverage, threshold))
            .flatten(),
    }
}

/// The verdict on a difference for the worse, with the half width of its interval.
fn verdict(worse_by: f64, half_width: f64, threshold: f64) -> Verdict {
    let excludes_zero = worse_by.abs() > half_width;
    if excludes_zero && worse_by > threshold {
        Verdict::Regressed
    } else if excludes_zero && worse_by < -threshold {
        Verdict::Improved
    } else if worse_by.abs() + half_width < threshold {
        Verdict::Pass
    } else {
        Verdict::NoVerdict
    }
}

/// How many more runs of each side would settle it, with this difference and this noise.
fn more_runs(tested: &Tested, coverage: f64, threshold: f64) -> Option<usize> {
    let uncertainty = tested.uncertainty.as_ref()?;
    let width = uncertainty.half_width(coverage);
    // The weight of the noise falls with the number of runs; the quantile, which falls as well, is kept.
    let share = |more: usize| {
        let runs = |side: &[(usize, f64)]| 1.0 / (side.len() + more) as f64;
        runs(&tested.sides.base) + runs(&tested.sides.new)
    };
    let settled = |more: &usize| {
        let width = width * (share(*more) / share(0)).sqrt();
        verdict(tested.worse_by(), width, threshold) != Verdict::NoVerdict
    };
    (1..=MANY_RUNS).find(settled)
}
