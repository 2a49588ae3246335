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

use crate::record::compare::{ChangeInterval, Verdict};
use crate::statistics::{distribution, students_t_quantile};

/// Error rate of the whole test, however often it is looked at.
const ERROR_RATE: f64 = 0.05;

/// c²: smaller is quicker for large differences. Of 1, 3, 10 and 30, this one stops first for differences of
/// twice the threshold, and no later for none.
const PRIOR: f64 = 1.0;

/// Probability with which the smallest visible change is found, with a margin for rounds that are not normally
/// distributed.
const POWER: f64 = 0.83;

/// The rounds of a test, as they come.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// ln(B/A).
    rounds: Vec<f64>,
    /// A logarithm.
    threshold: f64,
    more_is_better: bool,
}

/// What the rounds say so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Mean of ln(B/A).
    pub mean: f64,
    /// Half the width of the confidence sequence; infinite with few rounds.
    pub half_width: f64,
    /// The ln(B/A) that would have been found after so many rounds of this noise with a probability of 80 %:
    /// whose mean exceeds both the half width and the threshold. Infinite with few rounds.
    pub smallest_visible: f64,
    pub verdict: Verdict,
}

impl Sequence {
    /// `threshold` is a share, such as 0.03.
    pub fn new(threshold: f64, more_is_better: bool) -> Self {
        Self {
            rounds: Vec::new(),
            threshold: threshold.ln_1p(),
            more_is_better,
        }
    }

    /// Adds ln(B/A) of a round.
    pub fn add(&mut self, difference: f64) {
        self.rounds.push(difference);
    }

    pub fn rounds(&self) -> usize {
        self.rounds.len()
    }

    /// Judges the rounds so far.
    pub fn progress(&self) -> Progress {
        let spread = distribution(&self.rounds);
        let mean = spread.as_ref().map_or(0.0, |spread| spread.mean);
        let deviation = spread.and_then(|spread| spread.deviation);
        let half_width = match deviation {
            Some(deviation) => half_width(self.rounds.len(), deviation),
            None => f64::INFINITY,
        };
        let worse_by = if self.more_is_better { -mean } else { mean };
        let verdict = if mean.abs() > half_width && worse_by > self.threshold {
            Verdict::Regressed
        } else if mean.abs() > half_width && worse_by < -self.threshold {
            Verdict::Improved
        } else if mean.abs() + half_width < self.threshold {
            Verdict::Pass
        } else {
            Verdict::NoVerdict
        };
        let margin = deviation.map_or(f64::INFINITY, |deviation| {
            let n = self.rounds.len() as f64;
            students_t_quantile(n - 1.0, POWER) * deviation / n.sqrt()
        });
        Progress {
            mean,
            half_width,
            smallest_visible: half_width.max(self.threshold) + margin,
            verdict,
        }
    }
}

impl Progress {
    /// The confidence sequence, as shares; `None` with few rounds.
    pub fn interval(&self) -> Option<ChangeInterval> {
        self.half_width.is_finite().then(|| ChangeInterval {
            low: (self.mean - self.half_width).exp_m1(),
            high: (self.mean + self.half_width).exp_m1(),
            coverage: 1.0 - ERROR_RATE,
        })
    }

    /// As a share; `None` with few rounds.
    pub fn smallest_visible(&self) -> Option<f64> {
        let visible = self.smallest_visible;
        visible.is_finite().then(|| visible.exp_m1())
    }
}

/// Half the width of the confidence sequence after `count` rounds.
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

    const JOBS: u64 = 2000;
    const THRESHOLD: f64 = 0.03;
    const SHAPES: [Shape; 3] = [Shape::Normal, Shape::HeavyTails, Shape::Outliers];

    /// What rounds are made of, in logarithms.
    #[derive(Debug, Clone, Copy)]
    struct Job {
        difference: f64,
        /// Of a round, by the effects of its two runs.
        deviation: f64,
        /// Of the machine, from one run to the next: rounds alternate, so it shifts them by turns to either side.
        drift: f64,
        shape: Shape,
    }

    impl Job {
        fn round(&self, effects: &mut Effects, number: usize) -> f64 {
            let turn = if number.is_multiple_of(2) {
                self.drift
            } else {
                -self.drift
            };
            let of_run = self.deviation / 2f64.sqrt();
            self.difference + of_run * (effects.one() - effects.one()) + turn
        }

        /// The rounds until the test stops, at most `most`.
        fn run(&self, effects: &mut Effects, most: usize) -> Sequence {
            let mut sequence = Sequence::new(THRESHOLD, false);
            while sequence.rounds() < most && sequence.progress().verdict == Verdict::NoVerdict {
                sequence.add(self.round(effects, sequence.rounds()));
            }
            sequence
        }

        /// Median of the rounds until the test stops, and the verdicts.
        fn simulate(&self) -> (f64, Vec<Verdict>) {
            let mut effects = Effects::new(11, self.shape);
            let jobs: Vec<Sequence> = (0..JOBS).map(|_| self.run(&mut effects, 1000)).collect();
            let rounds: Vec<f64> = jobs.iter().map(|job| job.rounds() as f64).collect();
            let verdicts = jobs.iter().map(|job| job.progress().verdict).collect();
            (median(&rounds).expect("jobs"), verdicts)
        }
    }

    fn share(verdicts: &[Verdict], of: &[Verdict]) -> f64 {
        let counted = verdicts.iter().filter(|verdict| of.contains(verdict));
        counted.count() as f64 / verdicts.len() as f64
    }

    const DIFFERENT: [Verdict; 2] = [Verdict::Regressed, Verdict::Improved];

    fn jobs(difference: f64) -> impl Iterator<Item = Job> {
        let noises = [0.02, 0.04, 0.06].into_iter();
        let with_shape = noises.flat_map(|deviation| SHAPES.map(|shape| (deviation, shape)));
        with_shape.flat_map(move |(deviation, shape)| {
            [0.0, deviation].map(|drift| Job {
                difference,
                deviation,
                drift,
                shape,
            })
        })
    }

    #[test]
    fn equal_settings_are_told_apart_seldom() {
        for job in jobs(0.0) {
            let (_, verdicts) = job.simulate();
            let wrong = share(&verdicts, &DIFFERENT);
            println!("{job:?}: {wrong}");
            assert!(wrong <= 0.05, "{job:?}: {wrong}");
        }
    }

    /// At all rounds at once, which is more than at the one where the test stops.
    #[test]
    fn intervals_cover_the_difference() {
        for job in jobs(0.01) {
            let mut effects = Effects::new(12, job.shape);
            let mut covered = 0;
            for _ in 0..JOBS {
                let mut sequence = Sequence::new(THRESHOLD, false);
                let covers = (0..60).all(|number| {
                    sequence.add(job.round(&mut effects, number));
                    let now = sequence.progress();
                    (now.mean - job.difference).abs() <= now.half_width
                });
                covered += usize::from(covers);
            }
            let covered = covered as f64 / JOBS as f64;
            println!("{job:?}: {covered}");
            assert!(covered >= 0.93, "{job:?}: {covered}");
        }
    }

    /// A change of the smallest visible size is added to the same rounds, where a fixed number of them was run and
    /// where the test has stopped by itself. And a new test of such a change finds it, too.
    #[test]
    fn the_smallest_visible_change_is_found() {
        let rounds = |sequence: &Sequence, by: f64| Sequence {
            rounds: sequence.rounds.iter().map(|round| round + by).collect(),
            ..sequence.clone()
        };
        for job in jobs(0.0) {
            for fixed in [5, 10, 30] {
                let mut effects = Effects::new(13, job.shape);
                let mut found = 0;
                for _ in 0..JOBS {
                    let mut sequence = Sequence::new(THRESHOLD, false);
                    (0..fixed).for_each(|number| sequence.add(job.round(&mut effects, number)));
                    let visible = sequence.progress().smallest_visible;
                    let slower = rounds(&sequence, visible).progress();
                    found += usize::from(slower.verdict == Verdict::Regressed);
                }
                let found = found as f64 / JOBS as f64;
                println!("{job:?} {fixed}: {found}");
                assert!(found >= 0.8, "{job:?}, {fixed} rounds: {found}");
            }
            let mut effects = Effects::new(14, job.shape);
            let mut found = [0, 0];
            for _ in 0..JOBS {
                let stopped = job.run(&mut effects, 50);
                let visible = stopped.progress().smallest_visible;
                let slower = rounds(&stopped, visible).progress();
                found[0] += usize::from(slower.verdict == Verdict::Regressed);
                let again = Job {
                    difference: visible,
                    ..job
                };
                let again = again.run(&mut effects, 50).progress();
                found[1] += usize::from(again.verdict == Verdict::Regressed);
            }
            let found = found.map(|count| count as f64 / JOBS as f64);
            println!("{job:?} stopped: {found:?}");
            assert!(
                found.iter().all(|found| *found >= 0.8),
                "{job:?}: {found:?}"
            );
        }
    }

    /// The table: rounds until it stops against a fixed number of rounds of the same error rates, which a
    /// t-test needs to find each answer in 95 of 100 jobs: 18, 45 for a noise of 3 and 5 % and a threshold of 3 %
    /// (simulated once, 4,000 jobs each).
    #[test]
    fn it_stops_early_enough() {
        for (deviation, fixed) in [(0.03, 18.0), (0.05, 45.0)] {
            let of = |difference| Job {
                difference,
                deviation,
                drift: 0.0,
                shape: Shape::Normal,
            };
            let (equal, verdicts) = of(0.0).simulate();
            println!("{deviation}: {equal}");
            assert!(equal <= 1.4 * fixed, "{deviation}: {equal}");
            assert!(share(&verdicts, &[Verdict::Pass]) >= 0.95);
            let (different, verdicts) = of(0.06f64.ln_1p()).simulate();
            println!("{deviation}: {different}");
            assert!(different <= 0.6 * fixed, "{deviation}: {different}");
            assert!(share(&verdicts, &[Verdict::Regressed]) >= 0.95);
        }
    }

    #[test]
    fn few_rounds_say_nothing() {
        let judged = |rounds: &[f64], more_is_better| {
            let mut sequence = Sequence::new(THRESHOLD, more_is_better);
            rounds.iter().for_each(|round| sequence.add(*round));
            sequence.progress()
        };
        assert_eq!(judged(&[], false).verdict, Verdict::NoVerdict);
        let four = judged(&[0.5, 0.51, 0.49, 0.5], false);
        assert_eq!(four.verdict, Verdict::NoVerdict);
        assert_eq!((four.interval(), four.smallest_visible()), (None, None));
        let five = [0.5, 0.51, 0.49, 0.5, 0.5];
        assert_eq!(judged(&five, false).verdict, Verdict::Regressed);
        assert_eq!(judged(&five, true).verdict, Verdict::Improved);
        assert_eq!(judged(&five.map(|x| -x), false).verdict, Verdict::Improved);
        let visible = judged(&five, false).smallest_visible().expect("enough");
        assert!(visible > THRESHOLD && visible < 0.1, "{visible}");
    }
}
