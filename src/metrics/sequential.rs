//! When an A/B test that is looked at after every round may stop.
//!
//! A round runs both settings; its unit is x = ln(B/A). Looking at a t-test after every round and stopping when it
//! is significant finds differences that do not exist. A confidence sequence covers the mean at all times at once,
//! so that it may be looked at whenever, and stopped whenever (H. Robbins, 1970). This one is of the scale-invariant
//! test with a normal prior of variance 1/c² on μ/σ (T. L. Lai, 1976; H. Wang, A. Ramdas, *Anytime-valid t-tests and
//! confidence sequences for Gaussian means with unknown variance*, 2023): with ν = n − 1, r = c² / (n + c²) and
//! A = (√((n + c²)/c²) / α)^(2/n), it is x̄ ± s/√n · √(ν (A − 1) / (1 − A r)), and everything while A r ≥ 1.
//!
//! Within a round the settings run as A B, then B A, and so on: a linear drift of the machine shifts rounds by turns
//! to either side, so that it widens the interval but does not move its middle.

use crate::record::compare::Verdict;

/// Error rate of the whole test, however often it is looked at.
const ERROR_RATE: f64 = 0.05;

/// c²: smaller is quicker for large differences. Of 1, 3, 10 and 30, this one stops first for differences of
/// twice the threshold, and no later for none.
const PRIOR: f64 = 1.0;

/// What the rounds say so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Mean of ln(B/A).
    pub mean: f64,
    /// Half the width of the confidence sequence; infinite with few rounds.
    pub half_width: f64,
    pub verdict: Verdict,
}

/// Judges the rounds so far. `threshold` is a logarithm; positive values of `rounds` are for the worse.
pub fn progress(rounds: &[f64], threshold: f64) -> Progress {
    let spread = crate::statistics::distribution(rounds);
    let mean = spread.as_ref().map_or(0.0, |spread| spread.mean);
    let deviation = spread.and_then(|spread| spread.deviation);
    let half_width = match deviation {
        Some(deviation) => half_width(rounds.len(), deviation),
        None => f64::INFINITY,
    };
    let verdict = if mean.abs() > half_width && mean > threshold {
        Verdict::Regressed
    } else if mean.abs() > half_width && mean < -threshold {
        Verdict::Improved
    } else if mean.abs() + half_width < threshold {
        Verdict::Pass
    } else {
        Verdict::NoVerdict
    };
    Progress {
        mean,
        half_width,
        verdict,
    }
}

fn half_width(count: usize, deviation: f64) -> f64 {
    let n = count as f64;
    let a = ((n + PRIOR).sqrt() / PRIOR.sqrt() / ERROR_RATE).powf(2.0 / n);
    let rest = 1.0 - a * PRIOR / (n + PRIOR);
    if rest <= 0.0 {
        return f64::INFINITY;
    }
    deviation / n.sqrt() * ((n - 1.0) * (a - 1.0) / rest).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::compare::effects::{Effects, Shape};
    use crate::statistics::median;

    const JOBS: u64 = 500;

    /// Rounds until the test stops, and its verdict.
    fn stopped(
        effects: &mut Effects,
        difference: f64,
        deviation: f64,
        drift: f64,
        threshold: f64,
    ) -> (usize, Verdict) {
        let mut rounds = Vec::new();
        loop {
            let turn = if rounds.len() % 2 == 0 { drift } else { -drift };
            rounds.push(difference + deviation * effects.one() + turn);
            let verdict = progress(&rounds, threshold).verdict;
            if verdict != Verdict::NoVerdict || rounds.len() == 1000 {
                return (rounds.len(), verdict);
            }
        }
    }

    fn simulate(difference: f64, deviation: f64, drift: f64, shape: Shape) -> (f64, Vec<Verdict>) {
        let mut effects = Effects::new(11, shape);
        let jobs: Vec<(usize, Verdict)> = (0..JOBS)
            .map(|_| stopped(&mut effects, difference, deviation, drift, 0.03f64.ln_1p()))
            .collect();
        let rounds: Vec<f64> = jobs.iter().map(|(rounds, _)| *rounds as f64).collect();
        let verdicts = jobs.into_iter().map(|(_, verdict)| verdict).collect();
        (median(&rounds).expect("jobs"), verdicts)
    }

    fn share(verdicts: &[Verdict], of: &[Verdict]) -> f64 {
        let count = verdicts
            .iter()
            .filter(|verdict| of.contains(verdict))
            .count();
        count as f64 / verdicts.len() as f64
    }

    const DIFFERENT: [Verdict; 2] = [Verdict::Regressed, Verdict::Improved];

    #[test]
    fn equal_settings_are_told_apart_seldom() {
        for deviation in [0.02, 0.04, 0.06] {
            for shape in [Shape::Normal, Shape::HeavyTails] {
                for drift in [0.0, deviation] {
                    let (_, verdicts) = simulate(0.0, deviation, drift, shape);
                    let wrong = share(&verdicts, &DIFFERENT);
                    assert!(wrong <= 0.05, "{deviation} {shape:?} {drift}: {wrong}");
                }
            }
        }
    }

    /// The table: rounds until it stops against a fixed number of rounds of the same error rates, which a
    /// t-test needs to find each answer in 95 of 100 jobs: 18, 45 for a noise of 3 and 5 % and a threshold of 3 %
    /// (simulated once, 4,000 jobs each).
    #[test]
    fn it_stops_early_enough() {
        for (deviation, fixed) in [(0.03, 18.0), (0.05, 45.0)] {
            let (equal, verdicts) = simulate(0.0, deviation, 0.0, Shape::Normal);
            assert!(equal <= 1.4 * fixed, "{deviation}: {equal}");
            assert!(share(&verdicts, &[Verdict::Pass]) >= 0.95);
            let (different, verdicts) = simulate(0.06f64.ln_1p(), deviation, 0.0, Shape::Normal);
            assert!(different <= 0.6 * fixed, "{deviation}: {different}");
            assert!(share(&verdicts, &[Verdict::Regressed]) >= 0.95);
        }
    }

    #[test]
    fn few_rounds_say_nothing() {
        assert_eq!(progress(&[], 0.03).verdict, Verdict::NoVerdict);
        let four = progress(&[0.5, 0.51, 0.49, 0.5], 0.03);
        assert_eq!(
            (four.verdict, four.half_width),
            (Verdict::NoVerdict, f64::INFINITY)
        );
        let five = [0.5, 0.51, 0.49, 0.5, 0.5];
        assert_eq!(progress(&five, 0.03).verdict, Verdict::Regressed);
        assert_eq!(progress(&five.map(|x| -x), 0.03).verdict, Verdict::Improved);
    }
}
