//! Whether runs differ from a baseline by more than their noise, by how much, and why.
//!
//! `table` lines the runs up, `quantity` and `cells` read values and their terms, `noise` says how uncertain a
//! difference is, `decide` judges a family of them, `causes` splits a change into parts, and `why` explains them.

mod causes;
mod cells;
mod decide;
#[cfg(test)]
pub(crate) mod effects;
#[cfg(test)]
pub(crate) mod made;
mod noise;
mod quantity;
mod table;
#[cfg(test)]
mod tests;
mod texts;
mod why;

use std::collections::HashSet;

use crate::record::compare::{
    Cause, ChangeInterval, ChangedOutputs, Difference, MeasuredRun, MetricVerdict, Noise, Verdict,
};
use crate::statistics::median;

use causes::Part;
use cells::{Cell, cells};
use decide::{Decision, Tested, decide};
use noise::Sides;
use quantity::Level;
use table::{ChangedSteps, Table, plain_id};
use why::Known;

pub use cells::Selected;
pub use noise::{Earlier, Knowledge};
pub use quantity::{Quantity, Term};

/// What is asked.
pub struct Question<'a> {
    pub base: &'a [MeasuredRun],
    pub new: &'a [MeasuredRun],
    /// Names of facts that differ, for explanations.
    pub differences: &'a [Difference],
    /// Whether outputs may differ for a reason: another model, template or seed.
    pub outputs_may_differ: bool,
    pub metrics: Vec<Metric>,
    /// As a share, such as 0.03.
    pub threshold: f64,
    /// A standard deviation of runs to assume, as a share.
    pub assumed_noise: Option<f64>,
    /// Earlier means of a metric: of runs of the same job on the same machine, by group.
    pub earlier: &'a dyn Fn(&Selected) -> Vec<Earlier>,
}

/// A metric of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    pub quantity: Quantity,
    pub steps: Steps,
}

/// Which steps a metric is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Steps {
    All,
    One(String),
    /// A metric of its own for each.
    Each,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub verdict: Verdict,
    pub flows: usize,
    pub flows_left_out: usize,
    pub metrics: Vec<MetricVerdict>,
    pub outputs: Vec<ChangedOutputs>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    #[error("no flow ended well in every run")]
    NoFlows,
    #[error("the runs have no {0} in common")]
    NoValues(String),
}

/// Compares both sides.
///
/// # Errors
/// If the sides have nothing in common to compare.
pub fn compare(question: &Question) -> Result<Answer, Unanswerable> {
    let table = Table::new(question.base, question.new);
    if table.flows.is_empty() {
        return Err(Unanswerable::NoFlows);
    }
    let (outputs, changed) = table.changed_outputs();
    let is_puzzling = !changed.is_empty() && !question.outputs_may_differ;
    let equal = is_puzzling.then_some(&changed);
    let mut family = Vec::new();
    for selected in selections(&table, &question.metrics) {
        family.push(Measured::new(&table, selected, equal, question)?);
    }
    let threshold = question.threshold.ln_1p();
    let tested: Vec<Tested> = family
        .iter()
        .map(|measured| measured.tested.clone())
        .collect();
    let decisions = decide(&tested, threshold);
    let metrics: Vec<MetricVerdict> = (family.iter().zip(decisions))
        .map(|(measured, decision)| measured.verdict(&table, decision, question, is_puzzling))
        .collect();
    Ok(Answer {
        verdict: worst(metrics.iter().map(|metric| metric.verdict)),
        flows: table.flows.len(),
        flows_left_out: table.left_out,
        metrics,
        outputs,
    })
}

/// A metric over the flows of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunMetric {
    pub selected: Selected,
    /// Geometric mean, the flows weighing alike.
    pub mean: f64,
    pub median: f64,
    /// Standard deviation of the logarithms; `None` below two values.
    pub scatter: Option<f64>,
}

/// All metrics that a run has, of all steps together and of each.
pub fn of_run(run: &MeasuredRun) -> Vec<RunMetric> {
    let runs = std::slice::from_ref(run);
    let table = Table::new(runs, &[]);
    let each = Quantity::ALL.into_iter().flat_map(|quantity| {
        let all = Metric {
            quantity,
            steps: Steps::All,
        };
        let each = quantity.has_steps().then_some(Metric {
            quantity,
            steps: Steps::Each,
        });
        [Some(all), each]
    });
    let metrics: Vec<Metric> = each.flatten().collect();
    let of_selection = |selected: Selected| {
        let cells = cells(&table, &selected, None);
        let logs: Vec<f64> = cells.iter().map(|cell| cell.values[0].log).collect();
        Some(RunMetric {
            median: median(&logs)?.exp(),
            mean: run_mean(&cells, 0).exp(),
            scatter: deviation(&logs),
            selected,
        })
    };
    let selections = selections(&table, &metrics).into_iter();
    selections.filter_map(of_selection).collect()
}

/// The logarithm of new / base for two runs, over the flows that both have.
///
/// # Errors
/// If they have nothing in common to compare.
pub fn difference(
    base: &MeasuredRun,
    new: &MeasuredRun,
    metric: &Metric,
) -> Result<f64, Unanswerable> {
    let table = Table::new(std::slice::from_ref(base), std::slice::from_ref(new));
    if table.flows.is_empty() {
        return Err(Unanswerable::NoFlows);
    }
    let Some(selected) = selections(&table, std::slice::from_ref(metric))
        .into_iter()
        .next()
    else {
        return Err(Unanswerable::NoFlows);
    };
    let cells = cells(&table, &selected, None);
    if cells.is_empty() {
        return Err(Unanswerable::NoValues(name_of(&selected)));
    }
    Ok(run_mean(&cells, 1) - run_mean(&cells, 0))
}

/// How much runs differ: the standard deviation of their logarithmic means, and the smallest change of one more run
/// that would be visible beside them, as a share. `None` below two runs.
pub fn noise_of(means: &[f64], threshold: f64) -> Option<(f64, f64)> {
    let sides = Sides {
        base: means.iter().copied().enumerate().collect(),
        new: vec![(means.len(), means.iter().sum::<f64>() / means.len() as f64)],
    };
    let known = sides.uncertainty(&Knowledge::Measured(Vec::new()))?;
    let visible = known.smallest_visible(decide::COVERAGE, threshold.ln_1p());
    Some((known.deviation, visible.exp_m1()))
}

fn selections(table: &Table, metrics: &[Metric]) -> Vec<Selected> {
    let mut known = HashSet::new();
    let mut selections: Vec<Selected> = Vec::new();
    for metric in metrics {
        let quantity = metric.quantity;
        let steps: Vec<Option<String>> = match &metric.steps {
            Steps::All => vec![None],
            Steps::One(step) => vec![Some(step.clone())],
            Steps::Each => step_ids(table).into_iter().map(Some).collect(),
        };
        for step in steps {
            let selected = Selected { quantity, step };
            if known.insert(selected.clone()) {
                selections.push(selected);
            }
        }
    }
    selections
}

/// The ids of all steps, without generations, in the order of their first start.
fn step_ids(table: &Table) -> Vec<String> {
    let mut known = HashSet::new();
    let first = table.runs.first();
    let views = (table.flows.iter()).flat_map(|flow| first.map_or(&[][..], |run| run.views(flow)));
    let ids = views
        .flat_map(|view| &view.steps)
        .map(|step| plain_id(step));
    ids.filter(|id| known.insert(*id))
        .map(str::to_owned)
        .collect()
}

/// The mean logarithm of a run.
fn run_mean(cells: &[Cell], run: usize) -> f64 {
    cells
        .iter()
        .map(|cell| cell.weight * cell.values[run].log)
        .sum()
}

/// A metric of both sides.
struct Measured<'a> {
    selected: Selected,
    cells: Vec<Cell<'a>>,
    tested: Tested,
    noise: Noise,
}

impl<'a> Measured<'a> {
    fn new(
        table: &Table<'a>,
        selected: Selected,
        equal: Option<&ChangedSteps<'a>>,
        question: &Question,
    ) -> Result<Self, Unanswerable> {
        let equal = equal.filter(|_| selected.quantity.is_time());
        let cells = cells(table, &selected, equal);
        if cells.is_empty() {
            return Err(Unanswerable::NoValues(name_of(&selected)));
        }
        let places = places(table);
        let side = |runs: std::ops::Range<usize>| {
            runs.map(|run| (places[run], run_mean(&cells, run)))
                .collect()
        };
        let [base, new] = table.sides().map(side);
        let sides = Sides { base, new };
        let earlier = (question.earlier)(&selected);
        let history_runs = earlier
            .iter()
            .map(|earlier| earlier.means.len().min(noise::HISTORY))
            .sum();
        let (knowledge, source) = match question.assumed_noise {
            Some(noise) => (Knowledge::Assumed(noise), "assumed"),
            None if history_runs > 0 => (Knowledge::Measured(earlier), "history"),
            None => (Knowledge::Measured(earlier), "runs"),
        };
        let uncertainty = sides.uncertainty(&knowledge);
        let noise = Noise {
            deviation: uncertainty.as_ref().map(|known| known.deviation),
            degrees: uncertainty.as_ref().and_then(|known| known.degrees),
            source: if uncertainty.is_some() {
                source
            } else {
                "unknown"
            }
            .to_owned(),
            history_runs,
        };
        let more_is_better = selected.quantity.more_is_better();
        Ok(Self {
            selected,
            cells,
            tested: Tested {
                sides,
                uncertainty,
                more_is_better,
            },
            noise,
        })
    }

    fn verdict(
        &self,
        table: &Table,
        decision: Decision,
        question: &Question,
        is_puzzling: bool,
    ) -> MetricVerdict {
        let quantity = self.selected.quantity;
        let log = self.tested.sides.difference();
        let change = log.exp_m1();
        // Parts of the logarithm, stretched to parts of the change.
        let stretch = if log == 0.0 { 1.0 } else { change / log };
        let known = Known {
            table,
            differences: question.differences,
            half_width: decision.half_width,
            outputs_changed: is_puzzling,
        };
        let cause = |part: Part| Cause {
            part: part.log * stretch,
            why: known.why(&part),
            term: term_name(quantity, &part).to_owned(),
            from: part.from,
            to: part.to,
            step: part.step,
        };
        let causes = causes::parts(table, &self.cells, log);
        let changes = self.changes(table);
        let side_mean = |side: &[(usize, f64)]| {
            (side.iter().map(|(_, mean)| mean).sum::<f64>() / side.len() as f64).exp()
        };
        MetricVerdict {
            metric: quantity.name().to_owned(),
            step: self.selected.step.clone(),
            verdict: decision.verdict,
            base: side_mean(&self.tested.sides.base),
            new: side_mean(&self.tested.sides.new),
            change,
            change_median: median(&changes).unwrap_or(log).exp_m1(),
            interval: decision.half_width.map(|width| ChangeInterval {
                low: (log - width).exp_m1(),
                high: (log + width).exp_m1(),
                coverage: decision.coverage,
            }),
            smallest_visible: decision.smallest_visible.map(f64::exp_m1),
            threshold: question.threshold,
            noise: self.noise.clone(),
            scatter: deviation(&changes),
            compared: self.cells.len(),
            more_runs: decision.more_runs,
            at_equal_tokens: is_puzzling && quantity.is_time() && quantity.level() != Level::Run,
            causes: causes.into_iter().map(cause).collect(),
        }
    }

    /// The logarithm of each cell's change.
    fn changes(&self, table: &Table) -> Vec<f64> {
        let change = |cell: &Cell| {
            let [base, new] = table.sides().map(|side| {
                let runs = side.len() as f64;
                cell.values[side].iter().map(|value| value.log).sum::<f64>() / runs
            });
            new - base
        };
        self.cells.iter().map(change).collect()
    }
}

/// The places of the runs in the order of their starts.
fn places(table: &Table) -> Vec<usize> {
    let started = |run: &usize| {
        let text = &table.runs[*run].run.record.started_at;
        text.parse::<jiff::Timestamp>().ok()
    };
    let mut order: Vec<usize> = (0..table.runs.len()).collect();
    order.sort_by_key(started);
    let mut places = vec![0; order.len()];
    for (place, run) in order.into_iter().enumerate() {
        places[run] = place;
    }
    places
}

/// Standard deviation; `None` below two values.
fn deviation(values: &[f64]) -> Option<f64> {
    crate::statistics::distribution(values)?.deviation
}

fn name_of(selected: &Selected) -> String {
    let quantity = selected.quantity;
    match &selected.step {
        Some(step) => format!("{quantity} of step {step}"),
        None => quantity.to_string(),
    }
}

fn term_name(quantity: Quantity, part: &Part) -> &'static str {
    match (part.term, part.is_work) {
        (Term::Prefill, true) => "prefill_tokens",
        (Term::Prefill, false) => "prefill_ms_per_token",
        (Term::Decode, true) if quantity != Quantity::TpotMs => "decode_tokens",
        (Term::Decode, _) => "decode_ms_per_token",
        (Term::Queue, _) => "queue",
        (Term::Evaluation, _) => "evaluation",
        (Term::Request, _) => "request",
        (Term::Idle, _) => "idle",
        (Term::EngineInit, _) => "engine_init",
        (Term::Path, _) => "path",
    }
}

fn worst(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Regressed => 3,
        Verdict::NoVerdict => 2,
        Verdict::Improved => 1,
        Verdict::Pass => 0,
    };
    verdicts.max_by_key(rank).unwrap_or(Verdict::NoVerdict)
}
