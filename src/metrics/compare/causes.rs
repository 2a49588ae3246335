//! Splits a change into parts that add up to it.
//!
//! A value is a sum of terms, T = Σ T_i, and some terms are work × cost, T_i = W_i C_i. The logarithmic mean
//! Divisia index (B. W. Ang, *Decomposition analysis for policymaking in energy*, 2004; multiplicative form,
//! LMDI-I) splits ln(T¹/T⁰) without a remainder: with the logarithmic mean L(a, b) = (a − b) / ln(a/b), term i
//! has the part L(T_i¹, T_i⁰) / L(T¹, T⁰) · (ln(W_i¹/W_i⁰) + ln(C_i¹/C_i⁰)). A term that one side lacks is taken
//! at its limit, (T_i¹ − T_i⁰) / L(T¹, T⁰), which is all work. Parts of cells are averaged like the cells.

use std::collections::{BTreeMap, BTreeSet};

use super::cells::{Cell, CellValue};
use super::quantity::{Term, TermValue};
use super::table::Table;

/// A part of a change.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    /// Of the logarithm of the change.
    pub log: f64,
    /// The step's id without its generation; [`ALL_STEPS`].
    pub step: String,
    pub term: Term,
    /// Of a product: whether this is the part of the work.
    pub is_work: bool,
    /// Per flow: tokens, time per token, or time.
    pub from: f64,
    pub to: f64,
}

/// Stands for all steps that have no part of their own.
pub(super) const ALL_STEPS: &str = "*";

/// Parts of less than this share of the change are put together over all steps.
const SMALL: f64 = 0.1;

/// So are parts below this, in logarithms.
const TINY: f64 = 0.002;

/// Means of a term over the cells, for both sides.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    work_part: f64,
    cost_part: f64,
    work: [f64; 2],
    time: [f64; 2],
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.work_part += other.work_part;
        self.cost_part += other.cost_part;
        for side in 0..2 {
            self.work[side] += other.work[side];
            self.time[side] += other.time[side];
        }
    }
}

type Terms<'a> = BTreeMap<(&'a str, Term), Sums>;

/// The parts of the change of all cells, largest first. They add up to the mean logarithm of the change;
/// empty if the cells have no terms.
pub(super) fn parts(table: &Table, cells: &[Cell], change: f64) -> Vec<Part> {
    let mut all: Terms = BTreeMap::new();
    for cell in cells {
        if cell.values.iter().any(|value| value.terms.is_empty()) {
            return Vec::new();
        }
        for (key, sums) in of_cell(table, cell) {
            all.entry(key).or_default().add(&sums);
        }
    }
    listed(all, change)
}

/// The terms of a cell, with its weight.
fn of_cell<'a>(table: &Table, cell: &Cell<'a>) -> Terms<'a> {
    let [base, new] = table.sides().map(|side| mean_terms(&cell.values[side]));
    let only_one: BTreeSet<&str> = {
        let steps = |terms: &BTreeMap<(&'a str, Term), (f64, f64)>| -> BTreeSet<&'a str> {
            terms.keys().map(|(step, _)| *step).collect()
        };
        let (base, new) = (steps(&base), steps(&new));
        base.symmetric_difference(&new).copied().collect()
    };
    // What runs through other steps is one term of its own.
    let moved = |(step, term): (&'a str, Term)| {
        if only_one.contains(step) {
            (ALL_STEPS, Term::Path)
        } else {
            (step, term)
        }
    };
    let mut terms: Terms = BTreeMap::new();
    for (side, of_side) in [base, new].into_iter().enumerate() {
        for (key, (work, time)) in of_side {
            let sums = terms.entry(moved(key)).or_default();
            sums.work[side] += work;
            sums.time[side] += time;
        }
    }
    let total = |side: usize| terms.values().map(|sums| sums.time[side]).sum::<f64>();
    let whole = logarithmic_mean(total(1), total(0));
    for ((_, term), sums) in &mut terms {
        (sums.work_part, sums.cost_part) = split(*term, sums, whole);
        for value in [&mut sums.work_part, &mut sums.cost_part] {
            *value *= cell.weight;
        }
        for side in 0..2 {
            sums.work[side] *= cell.weight;
            sums.time[side] *= cell.weight;
        }
    }
    terms
}

/// The mean work and time of each term over runs; the times are scaled so that they add up to the geometric
/// mean of the values.
fn mean_terms<'a>(values: &[CellValue<'a>]) -> BTreeMap<(&'a str, Term), (f64, f64)> {
    let runs = values.len() as f64;
    let mut terms: BTreeMap<(&str, Term), (f64, f64)> = BTreeMap::new();
    for TermValue {
        step,
        term,
        work,
        time,
    } in values.iter().flat_map(|value| &value.terms)
    {
        let (works, times) = terms.entry((*step, *term)).or_default();
        *works += work / runs;
        *times += time / runs;
    }
    let sum: f64 = terms.values().map(|(_, time)| time).sum();
    let mean = (values.iter().map(|value| value.log).sum::<f64>() / runs).exp();
    for (_, time) in terms.values_mut() {
        *time *= mean / sum;
    }
    terms
}

/// The parts of work and cost of a term.
fn split(term: Term, sums: &Sums, whole: f64) -> (f64, f64) {
    let [before, after] = sums.time;
    let part = (after - before) / whole;
    let [work_before, work_after] = sums.work;
    if !term.has_work() {
        return (part, 0.0);
    }
    let is_worked = work_before > 0.0 && work_after > 0.0;
    if before <= 0.0 || after <= 0.0 {
        // The same tokens for nothing are a matter of cost, as where a token comes in the same instant.
        return if is_worked { (0.0, part) } else { (part, 0.0) };
    }
    if !is_worked {
        return (0.0, part);
    }
    let work = logarithmic_mean(after, before) / whole * (work_after / work_before).ln();
    (work, part - work)
}

/// L(a, b) = (a − b) / ln(a/b); a if both are equal.
fn logarithmic_mean(a: f64, b: f64) -> f64 {
    let ratio = a / b;
    // Near 1 the quotient loses its digits; the series of L is √(ab) (1 + ln²(a/b)/24 + …).
    if (ratio - 1.0).abs() < 1e-4 {
        let log = ratio.ln();
        return (a * b).sqrt() * (1.0 + log * log / 24.0);
    }
    (a - b) / ratio.ln()
}

/// The large parts by step, and the rest by term over all steps.
fn listed(all: Terms, change: f64) -> Vec<Part> {
    let least = (SMALL * change.abs()).max(TINY);
    let mut parts = Vec::new();
    let mut rest: BTreeMap<(Term, bool), Sums> = BTreeMap::new();
    for ((step, term), sums) in all {
        for (is_work, log) in [(true, sums.work_part), (false, sums.cost_part)] {
            if is_work || term.has_work() {
                if log.abs() >= least && step != ALL_STEPS {
                    parts.push(part(step, term, is_work, log, &sums));
                } else {
                    rest.entry((term, is_work)).or_default().add(&Sums {
                        work_part: log,
                        cost_part: 0.0,
                        ..sums
                    });
                }
            }
        }
    }
    let rest = rest
        .into_iter()
        .map(|((term, is_work), sums)| part(ALL_STEPS, term, is_work, sums.work_part, &sums));
    parts.extend(rest);
    parts.sort_by(|a, b| b.log.abs().total_cmp(&a.log.abs()));
    parts
}

fn part(step: &str, term: Term, is_work: bool, log: f64, sums: &Sums) -> Part {
    let value = |side: usize| match (term.has_work(), is_work) {
        (true, true) => sums.work[side],
        (true, false) if sums.work[side] > 0.0 => sums.time[side] / sums.work[side],
        _ => sums.time[side],
    };
    Part {
        log,
        step: step.to_owned(),
        term,
        is_work,
        from: value(0),
        to: value(1),
    }
}
