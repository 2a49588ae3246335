//! Explains the parts of a change by what the records know.

use super::causes::{ALL_STEPS, Part};
use super::quantity::Term;
use super::table::{RunView, Table, plain_id};
use super::texts::Texts;
use crate::record::compare::{Difference, MeasuredRun, MeasuredStep};
use crate::record::gpu::is_setting;
use crate::units::plural;

/// What explanations are made from.
pub(super) struct Known<'a> {
    pub table: &'a Table<'a>,
    /// What differs between the sides.
    pub differences: &'a [Difference],
    /// Half the width of the change's interval, in logarithms.
    pub half_width: Option<f64>,
    /// Whether outputs changed although nothing explains it.
    pub outputs_changed: bool,
}

impl Known<'_> {
    /// Why a part is what it is, as far as the records tell.
    pub(super) fn why(&self, part: &Part) -> String {
        match (part.term, part.is_work) {
            (Term::Prefill, true) => self.prefill(part),
            (Term::Decode, true) => self.decode(part),
            (Term::Path, _) => "the critical path runs through other steps".to_owned(),
            _ if self.is_within_noise(part) => "within noise".to_owned(),
            (Term::Queue, _) if self.differs("concurrency") => {
                "another number of flows in flight".to_owned()
            }
            (term, _) => self.cost(changed(term, part.log > 0.0)),
        }
    }

    fn is_within_noise(&self, part: &Part) -> bool {
        self.half_width.is_some_and(|width| part.log.abs() < width)
    }

    fn differs(&self, name: &str) -> bool {
        self.differences
            .iter()
            .any(|difference| difference.name == name)
    }

    /// Means per flow of a count of the part's steps, for both sides.
    fn means(&self, part: &Part, count: impl Fn(&MeasuredStep) -> usize) -> [f64; 2] {
        let table = self.table;
        let flows = table.flows.len().max(1) as f64;
        table.sides().map(|side| {
            let runs = side.len() as f64;
            let steps = (table.runs[side].iter())
                .flat_map(|view| table.flows.iter().flat_map(|flow| view.views(flow)))
                .flat_map(|flow| &flow.steps)
                .filter(|step| part.step == ALL_STEPS || plain_id(step) == part.step);
            steps.map(|step| count(step)).sum::<usize>() as f64 / runs / flows
        })
    }

    fn prefill(&self, part: &Part) -> String {
        let [before, after] = self.means(part, |step| step.tokens.prompt);
        let [reused_before, reused_after] = self.means(part, |step| step.tokens.reused);
        let lost = reused_before - reused_after;
        let longer = after - before;
        let mut text = if lost.abs() > longer.abs() {
            let what = if lost > 0.0 { "no longer" } else { "newly" };
            format!("{:.0} tokens {what} reused", lost.abs())
        } else if longer.abs() >= 0.5 {
            let what = if longer > 0.0 { "longer" } else { "shorter" };
            format!("prompts are {:.0} tokens {what}", longer.abs())
        } else {
            return "the same tokens, divided otherwise".to_owned();
        };
        for (name, what) in [
            ("template", "the template changed"),
            ("fixture", "the fixture changed"),
            ("mode", "the mode differs"),
            ("model", "the model differs"),
        ] {
            if self.differs(name) {
                text.push_str(&format!(": {what}"));
                if name == "template"
                    && let Some(place) = self.changed_in_template(&part.step)
                {
                    text.push_str(&place);
                }
                return text;
            }
        }
        if self.outputs_changed {
            text.push_str(": earlier answers changed");
        }
        text
    }

    /// Where the template's text changed for a step: in the system message, which begins every prompt, or else in
    /// a prompt. The last run of the baseline is compared with the first new one.
    fn changed_in_template(&self, step: &str) -> Option<String> {
        let [base, new] = self.table.sides();
        let text = |view: &RunView| view.run.record.expansion.template_text.clone();
        let before = Texts::of(&text(self.table.runs[base].last()?)?)?;
        let after = Texts::of(&text(self.table.runs[new].first()?)?)?;
        before.first_change(&after, step)
    }

    /// In how many flows the answers became longer, or shorter.
    fn decode(&self, part: &Part) -> String {
        let table = self.table;
        let of_flow = |flow| {
            table.sides().map(|side| {
                let runs = side.len() as f64;
                let steps = (table.runs[side].iter())
                    .flat_map(|view| view.views(flow))
                    .flat_map(|flow| &flow.steps)
                    .filter(|step| part.step == ALL_STEPS || plain_id(step) == part.step);
                steps.map(|step| step.tokens.decode).sum::<usize>() as f64 / runs
            })
        };
        let pairs: Vec<[f64; 2]> = table.flows.iter().map(of_flow).collect();
        let longer = pairs
            .iter()
            .filter(|[before, after]| after > before)
            .count();
        let shorter = pairs
            .iter()
            .filter(|[before, after]| after < before)
            .count();
        let flows = plural(pairs.len(), "flow");
        match (longer, shorter) {
            (0, 0) => "answers are equally long".to_owned(),
            _ if part.log > 0.0 => format!("answers longer in {longer} of {flows}"),
            _ => format!("answers shorter in {shorter} of {flows}"),
        }
    }

    /// Facts of the machine and of the differences; otherwise `default`.
    fn cost(&self, default: &str) -> String {
        let sides = self.table.sides();
        let runs = |side: usize| -> Vec<&MeasuredRun> {
            let views = self.table.runs[sides[side].clone()].iter();
            views.map(|view| view.run).collect()
        };
        let (base, new) = (runs(0), runs(1));
        let mut facts = Vec::new();
        let (before, after) = (throttled(&base), throttled(&new));
        let appeared: Vec<&str> = after
            .iter()
            .filter(|r| !before.contains(r))
            .copied()
            .collect();
        if !appeared.is_empty() {
            facts.push(format!("the GPU was throttled: {}", appeared.join(", ")));
        }
        for (what, share) in [
            ("other processes used", others as Share),
            ("the hypervisor took", stolen as Share),
        ] {
            if let (Some(before), Some(after)) = (share_of(&base, share), share_of(&new, share))
                && (after - before).abs() >= NOTABLE_SHARE
            {
                let [before, after] = [before, after].map(|share| share * 100.0);
                facts.push(format!(
                    "{what} {after:.0} % of the processors, {before:.0} % in the baseline"
                ));
            }
        }
        let [before, after] = [&base, &new].map(|runs| retries(runs));
        if (after - before).abs() >= 1.0 {
            facts.push(format!("{after:.0} retries, {before:.0} in the baseline"));
        }
        if facts.is_empty() && !self.differences.is_empty() {
            let names = self
                .differences
                .iter()
                .map(|difference| difference.name.as_str());
            facts.push(format!(
                "{} differs",
                names.collect::<Vec<&str>>().join(", ")
            ));
        }
        if facts.is_empty() {
            default.to_owned()
        } else {
            facts.join("; ")
        }
    }
}

/// What happened, where no fact explains it.
fn changed(term: Term, longer: bool) -> &'static str {
    match (term, longer) {
        (Term::Queue, true) => "requests queued for longer",
        (Term::Queue, false) => "requests queued for less time",
        (Term::Evaluation, true) => "checking programs and answers took longer",
        (Term::Evaluation, false) => "checking programs and answers took less time",
        (Term::EngineInit, true) => "the engine took longer to start",
        (Term::EngineInit, false) => "the engine took less time to start",
        (Term::Idle, true) => "longer gaps between steps",
        (Term::Idle, false) => "shorter gaps between steps",
        (_, true) => "slower; the records do not say why",
        (_, false) => "faster; the records do not say why",
    }
}

/// A share of the processors that differs by this much is named.
const NOTABLE_SHARE: f64 = 0.05;

type Share = fn(&MeasuredRun) -> Option<f64>;

fn others(run: &MeasuredRun) -> Option<f64> {
    run.record.environment.load.as_ref()?.others_share
}

fn stolen(run: &MeasuredRun) -> Option<f64> {
    run.record.environment.load.as_ref()?.steal_share
}

fn share_of(runs: &[&MeasuredRun], share: Share) -> Option<f64> {
    let known: Option<Vec<f64>> = runs.iter().map(|run| share(run)).collect();
    crate::statistics::mean(&known?)
}

/// Throttle reasons of any of the runs.
fn throttled<'a>(runs: &[&'a MeasuredRun]) -> Vec<&'a str> {
    let gpus = runs.iter().filter_map(|run| run.record.gpu.as_ref());
    let reasons = gpus.flat_map(|gpu| gpu.throttle.iter().map(String::as_str));
    reasons.filter(|reason| !is_setting(reason)).collect()
}

/// Calls beyond the first, per run.
fn retries(runs: &[&MeasuredRun]) -> f64 {
    let steps = runs.iter().flat_map(|run| &run.steps);
    let more = steps.filter_map(|step| step.attempts);
    let sum: usize = more.map(|attempts| attempts.saturating_sub(1)).sum();
    sum as f64 / runs.len().max(1) as f64
}
