//! How far two groups of runs would differ with nothing changed.
//!
//! A metric y of flow f in run r is modelled as log y = μ + a_r + b_f + e_rf. Comparisons use the mean of a run,
//! m_r, over the flows that all runs have. Flows are the same in each run, so b_f cancels, and the variance of
//! m_r between runs of one side holds a_r and e_rf together.
//!
//! Runs that follow each other are alike (heat, neighbours, the state of a machine). Their sample variance is
//! then too small, and the mean of several is less certain than the number of runs says. With first-order
//! autocorrelation ρ, a quadratic form of the values, Σ A_ij m_i m_j, has the expectation σ² tr(A R),
//! R_ij = ρ^|i − j|, and a difference of means w·m the variance σ² wᵀRw. Both are exact; the degrees of freedom
//! are Satterthwaite's, tr(AR)² / tr((AR)²). As ρ is unknown, the widest interval of those with ρ = 0, ¼ and ½
//! is taken. Simulations in the tests show what that gives.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use crate::statistics::students_t_quantile;

/// Autocorrelations that intervals must hold for.
const CORRELATIONS: [f64; 3] = [0.0, 0.25, 0.5];

/// Where a side has one run only, nothing tells whether it is an outlier, and the tails of real runs are heavier
/// than those of a normal distribution: Student's t has at most this many degrees of freedom then.
const DEGREES_OF_ONE_RUN: f64 = 5.0;

/// Probability with which the smallest visible change is found, with a margin: where runs follow each other, it
/// is found in about two of a hundred jobs less often than the model says.
const POWER: f64 = 0.83;

/// Of a long history, the latest runs.
pub(super) const HISTORY: usize = 50;

/// Logarithmic means of runs of one job on one machine, in the order in which they ran.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Earlier {
    pub means: Vec<f64>,
    /// Whether the job's program or model may have changed in between, so that levels differ: then only
    /// neighbours are compared.
    pub drifting: bool,
}

/// What is known of the noise.
#[derive(Debug, Clone, PartialEq)]
pub enum Knowledge {
    /// Standard deviation of a run, as the user gave it.
    Assumed(f64),
    /// Runs that were made before, by group.
    Measured(Vec<Earlier>),
}

/// The means of both sides, each with its place in the order of time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sides {
    pub base: Vec<(usize, f64)>,
    pub new: Vec<(usize, f64)>,
}

/// How uncertain a difference is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Uncertainty {
    candidates: Vec<Candidate>,
    /// Standard deviation of a run.
    pub deviation: f64,
    /// Degrees of freedom; `None`: the deviation is assumed to be known.
    pub degrees: Option<f64>,
}

/// A standard error and its degrees of freedom, for one autocorrelation.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    error: f64,
    /// Infinite if the noise is known.
    degrees: f64,
}

impl Sides {
    /// new − base, in logarithms.
    pub(super) fn difference(&self) -> f64 {
        let mean =
            |side: &[(usize, f64)]| side.iter().map(|(_, m)| m).sum::<f64>() / side.len() as f64;
        mean(&self.new) - mean(&self.base)
    }

    /// How uncertain the difference is; `None` if nothing tells.
    pub(super) fn uncertainty(&self, knowledge: &Knowledge) -> Option<Uncertainty> {
        let earlier = match knowledge {
            Knowledge::Assumed(deviation) => {
                let runs = |side: &[(usize, f64)]| 1.0 / side.len() as f64;
                let error = deviation * (runs(&self.base) + runs(&self.new)).sqrt();
                let degrees = f64::INFINITY;
                return Some(Uncertainty {
                    candidates: vec![Candidate { error, degrees }],
                    deviation: *deviation,
                    degrees: None,
                });
            }
            Knowledge::Measured(earlier) => earlier,
        };
        let sides = [&self.base, &self.new];
        let mut blocks: Vec<Block> = (earlier.iter()).map(Block::of_earlier).collect();
        blocks.extend(sides.map(|side| Block::of_side(side)));
        blocks.retain(|block| block.places.len() > 1);
        let squares: f64 = blocks.iter().map(Block::squares).sum();
        if blocks.is_empty() || !squares.is_finite() {
            return None;
        }
        let single = sides.iter().any(|side| side.len() == 1);
        let limit = if single {
            DEGREES_OF_ONE_RUN
        } else {
            f64::INFINITY
        };
        let of_correlation = |correlation: f64| {
            let traces = blocks.iter().map(|block| block.traces(correlation));
            let (first, second) = traces.fold((0.0, 0.0), |sum, traces| {
                (sum.0 + traces.0, sum.1 + traces.1)
            });
            let variance = squares / first;
            let error = (variance * self.weight(correlation).max(0.0)).sqrt();
            let degrees = (first * first / second).min(limit);
            (Candidate { error, degrees }, variance)
        };
        let (independent, variance) = of_correlation(0.0);
        let mut candidates: Vec<Candidate> = (CORRELATIONS.iter().skip(1))
            .map(|correlation| of_correlation(*correlation).0)
            .collect();
        candidates.push(independent);
        candidates.extend(self.welch());
        Some(Uncertainty {
            candidates,
            deviation: variance.sqrt(),
            degrees: Some(independent.degrees),
        })
    }

    /// Variance of the difference per variance of a run: wᵀRw.
    fn weight(&self, correlation: f64) -> f64 {
        let weights = |side: &[(usize, f64)], sign: f64| -> Vec<(usize, f64)> {
            let weight = sign / side.len() as f64;
            side.iter().map(|(place, _)| (*place, weight)).collect()
        };
        let mut all = weights(&self.base, -1.0);
        all.extend(weights(&self.new, 1.0));
        let pairs = all.iter().flat_map(|a| all.iter().map(move |b| (a, b)));
        pairs
            .map(|(a, b)| a.1 * b.1 * correlated(correlation, a.0, b.0))
            .sum()
    }

    /// Welch's standard error, for sides that do not scatter alike (B. L. Welch, 1947).
    fn welch(&self) -> Option<Candidate> {
        let term = |side: &[(usize, f64)]| {
            let runs = side.len() as f64;
            let block = Block::of_side(side);
            (runs > 1.0).then(|| (block.squares() / (runs - 1.0) / runs, runs - 1.0))
        };
        let [(base, of_base), (new, of_new)] = [term(&self.base)?, term(&self.new)?];
        let sum = base + new;
        (sum > 0.0).then(|| Candidate {
            error: sum.sqrt(),
            degrees: sum * sum / (base * base / of_base + new * new / of_new),
        })
    }
}

impl Uncertainty {
    /// Half the width of the two-sided interval with this coverage.
    pub(super) fn half_width(&self, coverage: f64) -> f64 {
        let upper = f64::midpoint(1.0, coverage);
        let widths = (self.candidates.iter()).map(|candidate| candidate.width(upper));
        widths.fold(0.0, f64::max)
    }

    /// The smallest coverage whose interval around `difference` reaches 0: 1 − the two-sided p-value.
    pub(super) fn excluding_zero(&self, difference: f64) -> f64 {
        let certain = |candidate: &Candidate| {
            let size = difference.abs() / candidate.error;
            if size.is_finite() {
                2.0 * cumulative(candidate.degrees, size) - 1.0
            } else if difference == 0.0 {
                0.0
            } else {
                1.0
            }
        };
        self.candidates.iter().map(certain).fold(1.0, f64::min)
    }

    /// The smallest difference that is found with a probability of 80 %: one that exceeds both the
    /// interval's half width at `coverage` and `threshold`.
    pub(super) fn smallest_visible(&self, coverage: f64, threshold: f64) -> f64 {
        let margin = (self.candidates.iter()).map(|candidate| candidate.width(POWER));
        let margin = margin.fold(0.0, f64::max);
        margin + self.half_width(coverage).max(threshold)
    }
}

impl Candidate {
    fn width(&self, probability: f64) -> f64 {
        self.error * students_t_quantile(self.degrees, probability)
    }
}

/// Values whose squares tell the variance of a run.
struct Block {
    places: Vec<usize>,
    values: Vec<f64>,
    form: Form,
}

/// Which squares are added.
#[derive(Clone, Copy)]
enum Form {
    /// Distances from the mean: A = I − 1/n.
    Deviations,
    /// Half of the squared steps from one to the next, which a change of level meets once.
    Steps,
}

impl Block {
    fn of_side(side: &[(usize, f64)]) -> Self {
        Self {
            places: side.iter().map(|(place, _)| *place).collect(),
            values: side.iter().map(|(_, value)| *value).collect(),
            form: Form::Deviations,
        }
    }

    fn of_earlier(earlier: &Earlier) -> Self {
        let skipped = earlier.means.len().saturating_sub(HISTORY);
        let values = earlier.means[skipped..].to_vec();
        Self {
            places: (0..values.len()).collect(),
            values,
            form: if earlier.drifting {
                Form::Steps
            } else {
                Form::Deviations
            },
        }
    }

    fn squares(&self) -> f64 {
        match self.form {
            Form::Deviations => {
                let mean = self.values.iter().sum::<f64>() / self.values.len() as f64;
                self.values.iter().map(|value| (value - mean).powi(2)).sum()
            }
            Form::Steps => {
                let steps = self.values.windows(2);
                steps.map(|pair| (pair[1] - pair[0]).powi(2) / 2.0).sum()
            }
        }
    }

    /// tr(AR) and tr((AR)²).
    fn traces(&self, correlation: f64) -> (f64, f64) {
        let places = &self.places;
        let count = places.len();
        let row = |from: &usize| -> Vec<f64> {
            let to = places.iter();
            to.map(|to| correlated(correlation, *from, *to)).collect()
        };
        let correlations: Vec<Vec<f64>> = places.iter().map(row).collect();
        let matrix = self.form.times(&correlations);
        let first = (0..count).map(|index| matrix[index][index]).sum();
        let pairs = (0..count).flat_map(|row| (0..count).map(move |column| (row, column)));
        let second = pairs
            .map(|(row, column)| matrix[row][column] * matrix[column][row])
            .sum();
        (first, second)
    }
}

impl Form {
    /// AR.
    fn times(self, correlations: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let count = correlations.len();
        match self {
            Self::Deviations => {
                // R is symmetric: the mean of a column is that of the row.
                let mean = |row: &Vec<f64>| row.iter().sum::<f64>() / count as f64;
                let means: Vec<f64> = correlations.iter().map(mean).collect();
                let row = |row: &Vec<f64>| {
                    let columns = row.iter().zip(&means);
                    columns.map(|(entry, mean)| entry - mean).collect()
                };
                correlations.iter().map(row).collect()
            }
            Self::Steps => {
                let row = |index: usize| {
                    let neighbours = [index.checked_sub(1), Some(index + 1)];
                    let neighbours = neighbours.into_iter().flatten();
                    let rows: Vec<&Vec<f64>> =
                        neighbours.filter_map(|row| correlations.get(row)).collect();
                    let entry = |column: usize| {
                        let own = correlations[index][column];
                        let steps = rows.iter().map(|row| (own - row[column]) / 2.0);
                        steps.sum()
                    };
                    (0..count).map(entry).collect()
                };
                (0..count).map(row).collect()
            }
        }
    }
}

/// R_ij = ρ^|i − j|.
fn correlated(correlation: f64, a: usize, b: usize) -> f64 {
    let distance = i32::try_from(a.abs_diff(b)).unwrap_or(i32::MAX);
    correlation.powi(distance)
}

fn cumulative(degrees: f64, value: f64) -> f64 {
    match StudentsT::new(0.0, 1.0, degrees) {
        Ok(student) if degrees.is_finite() => student.cdf(value),
        _ => Normal::standard().cdf(value),
    }
}
