//! The values of a quantity in all runs: one cell per flow, step or run, with the terms of each value.

use std::collections::HashMap;

use super::quantity::{Level, Quantity, Term, TermValue, path_terms};
use super::table::{ChangedSteps, FlowKey, Table, plain_id};
use crate::record::compare::MeasuredStep;

/// A value that every run has.
pub(super) struct Cell<'a> {
    /// Its share in the mean; the flows weigh alike, and so do the steps of a flow.
    pub weight: f64,
    /// By run, the baseline's first.
    pub values: Vec<CellValue<'a>>,
}

/// The value of a run.
pub(super) struct CellValue<'a> {
    /// Logarithm.
    pub log: f64,
    /// Empty if the quantity has no terms.
    pub terms: Vec<TermValue<'a>>,
}

/// What is compared: a quantity, of all steps or of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Selected {
    pub quantity: Quantity,
    /// A step's id, with or without its generation.
    pub step: Option<String>,
}

impl Selected {
    fn selects(&self, step: &MeasuredStep) -> bool {
        let wanted = self.step.as_deref();
        wanted.is_none_or(|wanted| wanted == step.step || wanted == plain_id(step))
    }
}

/// The cells of a quantity. Empty if the runs do not have it, or have it 0.
///
/// Times of the steps in `equal` are scaled to the baseline's numbers of tokens.
pub(super) fn cells<'a>(
    table: &Table<'a>,
    selected: &Selected,
    equal: Option<&ChangedSteps<'a>>,
) -> Vec<Cell<'a>> {
    let mut cells = match selected.quantity.level() {
        Level::Flow => flow_cells(table, selected, equal),
        Level::Step => step_cells(table, selected, equal),
        Level::Run => run_cell(table, selected),
    };
    let sum: f64 = cells.iter().map(|cell| cell.weight).sum();
    for cell in &mut cells {
        cell.weight /= sum;
    }
    cells
}

fn flow_cells<'a>(
    table: &Table<'a>,
    selected: &Selected,
    equal: Option<&ChangedSteps<'a>>,
) -> Vec<Cell<'a>> {
    debug_assert_eq!(selected.quantity, Quantity::WorkflowMs);
    let cell = |flow: &FlowKey<'a>| {
        let of_run = |view: &super::table::RunView<'a>| {
            let views = view.views(flow).iter();
            views
                .map(|flow| (flow.workflow.workflow_ms.0, path_terms(flow)))
                .collect()
        };
        let measured: Vec<Vec<Measured>> = table.runs.iter().map(of_run).collect();
        let is_equal = |step: &str| equal.is_some_and(|equal| equal.contains_name(flow, step));
        finished(table, measured, 1.0, &is_equal)
    };
    table.flows.iter().filter_map(cell).collect()
}

fn step_cells<'a>(
    table: &Table<'a>,
    selected: &Selected,
    equal: Option<&ChangedSteps<'a>>,
) -> Vec<Cell<'a>> {
    let quantity = selected.quantity;
    let mut cells = Vec::new();
    for flow in &table.flows {
        let mut of_flow = Vec::new();
        for ((id, _), runs) in table.steps(flow, selected.step.as_deref()) {
            if !runs.iter().flatten().all(|step| selected.selects(step)) {
                continue;
            }
            let measure =
                |step: &&'a MeasuredStep| Some((quantity.of_step(step)?, quantity.terms(step)));
            let of_run = |steps: &Vec<&'a MeasuredStep>| steps.iter().filter_map(measure).collect();
            let measured: Vec<Vec<Measured>> = runs.iter().map(of_run).collect();
            let is_equal = equal.is_some_and(|equal| equal.contains(flow, id));
            of_flow.extend(finished(table, measured, 1.0, &|_| is_equal));
        }
        let share = 1.0 / of_flow.len().max(1) as f64;
        cells.extend(of_flow.into_iter().map(|cell| Cell {
            weight: share,
            ..cell
        }));
    }
    cells
}

/// A value and its terms.
type Measured<'a> = (f64, Vec<TermValue<'a>>);

/// A cell from what each run measured, several times in `MODE=both`; `None` if a run has no value.
fn finished<'a>(
    table: &Table<'a>,
    mut measured: Vec<Vec<Measured<'a>>>,
    weight: f64,
    is_equal: &dyn Fn(&str) -> bool,
) -> Option<Cell<'a>> {
    equalise(table, &mut measured, is_equal);
    let value = |rounds: Vec<Measured<'a>>| {
        let count = rounds.len() as f64;
        let log = rounds.iter().map(|(value, _)| value.ln()).sum::<f64>() / count;
        let terms = rounds.into_iter().flat_map(|(_, terms)| terms);
        let terms = terms.map(|value| TermValue {
            work: value.work / count,
            time: value.time / count,
            ..value
        });
        log.is_finite().then(|| CellValue {
            log,
            terms: terms.collect(),
        })
    };
    let values = measured.into_iter().map(value);
    let values = values.collect::<Option<Vec<CellValue>>>()?;
    Some(Cell { weight, values })
}

/// Scales the terms of the steps for which `is_equal` holds to the baseline's mean work.
fn equalise(table: &Table, measured: &mut [Vec<Measured>], is_equal: &dyn Fn(&str) -> bool) {
    let mut wanted: HashMap<(&str, Term), (f64, f64)> = HashMap::new();
    for (_, terms) in measured[..table.base].iter().flatten() {
        for value in terms {
            if value.term.has_work() && value.work > 0.0 && is_equal(value.step) {
                let (sum, count) = wanted.entry((value.step, value.term)).or_default();
                *sum += value.work;
                *count += 1.0;
            }
        }
    }
    for (total, terms) in measured.iter_mut().flatten() {
        for value in terms {
            let known = wanted.get(&(value.step, value.term));
            if let Some((sum, count)) = known.filter(|_| value.work > 0.0) {
                let work = sum / count;
                let time = value.time * work / value.work;
                *total += time - value.time;
                *value = TermValue {
                    work,
                    time,
                    ..*value
                };
            }
        }
    }
}

/// The cell of a quantity that a run has as a whole.
fn run_cell<'a>(table: &Table<'a>, selected: &Selected) -> Vec<Cell<'a>> {
    let quantity = selected.quantity;
    let measure = |view: &super::table::RunView<'a>| {
        let record = &view.run.record;
        let flows = || table.flows.iter().flat_map(|flow| view.views(flow));
        let (value, terms) = match quantity {
            Quantity::BenchmarkTotalMs => {
                let total = record.totals.benchmark_total_ms?.0;
                let init = record.engine_init_ms.unwrap_or_default().0.min(total);
                let on_paths: Vec<TermValue> = flows().flat_map(path_terms).collect();
                (total, apportioned(total, init, on_paths))
            }
            Quantity::EnergyJoules => (record.totals.energy.as_ref()?.joules, Vec::new()),
            Quantity::Reward => {
                let rewards: Vec<f64> = flows().filter_map(|flow| flow.workflow.reward).collect();
                (crate::statistics::mean(&rewards)?, Vec::new())
            }
            _ => {
                let steps = flows().flat_map(|flow| flow.named(selected.step.as_deref()));
                let steps = steps.filter(|step| step.generates());
                let terms: Vec<TermValue> =
                    steps.flat_map(|step| counted(quantity, step)).collect();
                (terms.iter().map(|value| value.time).sum(), terms)
            }
        };
        Some(vec![(value, terms)])
    };
    let measured: Option<Vec<Vec<Measured>>> = table.runs.iter().map(measure).collect();
    let cell = measured.and_then(|measured| finished(table, measured, 1.0, &|_| false));
    cell.into_iter().collect()
}

/// The start of the engine, and the rest of `total` in proportion to the terms on the flows' paths, which
/// overlap where several flows are in flight.
fn apportioned(total: f64, init: f64, on_paths: Vec<TermValue>) -> Vec<TermValue> {
    let sum: f64 = on_paths.iter().map(|value| value.time).sum();
    let share = if sum > 0.0 { (total - init) / sum } else { 0.0 };
    let mut terms = vec![TermValue {
        step: "*",
        term: Term::EngineInit,
        work: 0.0,
        time: if sum > 0.0 { init } else { total },
    }];
    terms.extend(on_paths.into_iter().map(|value| value.scaled(share)));
    terms.retain(|value| value.time > 0.0);
    terms
}

/// Tokens of a step as terms: the work is what they cost.
fn counted(quantity: Quantity, step: &MeasuredStep) -> Vec<TermValue<'_>> {
    let value = |term: Term, tokens: usize| TermValue {
        step: plain_id(step),
        term,
        work: tokens as f64,
        time: tokens as f64,
    };
    let (prefill, decode) = (
        value(Term::Prefill, step.tokens.prefill),
        value(Term::Decode, step.tokens.decode),
    );
    match quantity {
        Quantity::PrefillTokens => vec![prefill],
        Quantity::DecodeTokens => vec![decode],
        _ => vec![prefill, decode],
    }
}
