//! Lines runs up: the same flow (suite row and its occurrence), step and sample in every run.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::record::WorkflowRecord;
use crate::record::compare::{ChangedOutputs, MeasuredRun, MeasuredStep};

/// A flow, whatever its number: the row's ID, its occurrence from 0, and the mode in `MODE=both`.
pub(super) type FlowKey<'a> = (&'a str, usize, Option<&'a str>);

/// A step of a flow: its ID with its generation, and the sample.
pub(super) type StepKey<'a> = (&'a str, usize);

/// The runs of both sides, lined up.
pub(super) struct Table<'a> {
    /// The baseline's runs first.
    pub runs: Vec<RunView<'a>>,
    /// Number of the baseline's runs.
    pub base: usize,
    /// Flows that ended well in every run, in order.
    pub flows: Vec<FlowKey<'a>>,
    /// Flows of any run that are not among them.
    pub left_out: usize,
}

/// A run by flow.
pub(super) struct RunView<'a> {
    pub run: &'a MeasuredRun,
    /// Of each flow: once, or in `MODE=both` once a round.
    flows: HashMap<FlowKey<'a>, Vec<FlowView<'a>>>,
}

/// A flow that ended well.
pub(super) struct FlowView<'a> {
    pub workflow: &'a WorkflowRecord,
    pub steps: Vec<&'a MeasuredStep>,
}

impl<'a> Table<'a> {
    pub(super) fn new(base: &'a [MeasuredRun], new: &'a [MeasuredRun]) -> Self {
        let runs: Vec<RunView> = base.iter().chain(new).map(RunView::new).collect();
        let all: BTreeSet<FlowKey> = (runs.iter())
            .flat_map(|view| view.run.record.workflows.iter().map(key_maker(view.run)))
            .collect();
        let in_all = |key: &&FlowKey| runs.iter().all(|view| view.flows.contains_key(*key));
        let flows: Vec<FlowKey> = all.iter().filter(in_all).copied().collect();
        let left_out = all.len() - flows.len();
        Self {
            runs,
            base: base.len(),
            flows,
            left_out,
        }
    }

    /// Indices of the baseline's runs and of the new ones.
    pub(super) fn sides(&self) -> [std::ops::Range<usize>; 2] {
        [0..self.base, self.base..self.runs.len()]
    }

    /// Steps of `flow` that every run has, each with its measurements by run (several in `MODE=both`).
    pub(super) fn steps(
        &self,
        flow: &FlowKey<'a>,
    ) -> Vec<(StepKey<'a>, Vec<Vec<&'a MeasuredStep>>)> {
        let mut by_run: Vec<BTreeMap<StepKey, Vec<&MeasuredStep>>> = Vec::new();
        for view in &self.runs {
            let mut steps: BTreeMap<StepKey, Vec<&MeasuredStep>> = BTreeMap::new();
            for step in view.views(flow).iter().flat_map(|flow| &flow.steps) {
                let key = (step.step.as_str(), step.sample.unwrap_or(0));
                steps.entry(key).or_default().push(step);
            }
            by_run.push(steps);
        }
        let Some(first) = by_run.first() else {
            return Vec::new();
        };
        let in_all = |key: &&StepKey| by_run.iter().all(|steps| steps.contains_key(*key));
        let keys: Vec<StepKey> = first.keys().filter(in_all).copied().collect();
        let with_steps = |key: StepKey<'a>| {
            let of_run = |steps: &BTreeMap<StepKey<'a>, Vec<&'a MeasuredStep>>| steps[&key].clone();
            (key, by_run.iter().map(of_run).collect())
        };
        keys.into_iter().map(with_steps).collect()
    }

    /// The outputs that differ between the sides: by step, and the steps themselves.
    pub(super) fn changed_outputs(&self) -> (Vec<ChangedOutputs>, ChangedSteps<'a>) {
        let mut by_step: BTreeMap<&str, ChangedOutputs> = BTreeMap::new();
        let mut changed = ChangedSteps::default();
        for flow in &self.flows {
            for ((id, _), runs) in self.steps(flow) {
                if !runs.iter().flatten().all(|step| step.generates()) {
                    continue;
                }
                let hashes = self.sides().map(|side| {
                    let steps = runs[side].iter().flatten();
                    steps
                        .map(|step| step.out_hash.as_str())
                        .collect::<BTreeSet<&str>>()
                });
                let name = plain_id(runs[0][0]);
                let entry = by_step.entry(name).or_insert_with(|| ChangedOutputs {
                    step: name.to_owned(),
                    compared: 0,
                    differing: 0,
                    unstable: 0,
                });
                entry.compared += 1;
                if hashes.iter().any(|hashes| hashes.len() > 1) {
                    entry.unstable += 1;
                }
                if hashes[0] != hashes[1] {
                    entry.differing += 1;
                    changed.0.insert((*flow, id));
                }
            }
        }
        let differing = |outputs: &ChangedOutputs| outputs.differing > 0;
        (by_step.into_values().filter(differing).collect(), changed)
    }
}

/// Steps with outputs that differ between the sides.
#[derive(Debug, Default)]
pub(super) struct ChangedSteps<'a>(BTreeSet<(FlowKey<'a>, &'a str)>);

impl<'a> ChangedSteps<'a> {
    pub(super) fn contains(&self, flow: &FlowKey<'a>, step: &'a str) -> bool {
        self.0.contains(&(*flow, step))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> RunView<'a> {
    fn new(run: &'a MeasuredRun) -> Self {
        let key = key_maker(run);
        let round = |round: Option<usize>| round.unwrap_or(0);
        let mut steps: HashMap<(usize, usize, Option<&str>), Vec<&MeasuredStep>> = HashMap::new();
        for step in &run.steps {
            let place = (step.flow, round(step.round), step.mode.as_deref());
            steps.entry(place).or_default().push(step);
        }
        let mut flows: HashMap<FlowKey, Vec<FlowView>> = HashMap::new();
        for workflow in &run.record.workflows {
            // The time of a resumed workflow is not that of one process.
            if workflow.error.is_some() || workflow.resumed {
                continue;
            }
            let place = (
                workflow.flow,
                round(workflow.round),
                workflow.mode.as_deref(),
            );
            let steps = steps.remove(&place).unwrap_or_default();
            let view = FlowView { workflow, steps };
            flows.entry(key(workflow)).or_default().push(view);
        }
        Self { run, flows }
    }

    /// What the run has of a flow: once, or in `MODE=both` once a round.
    pub(super) fn views(&self, flow: &FlowKey<'a>) -> &[FlowView<'a>] {
        self.flows.get(flow).map_or(&[], Vec::as_slice)
    }
}

/// The step's id without its generation.
pub(super) fn plain_id(step: &MeasuredStep) -> &str {
    let generation = step.generation.map(|generation| format!(".{generation}"));
    let suffix = generation.as_deref().unwrap_or_default();
    step.step.strip_suffix(suffix).unwrap_or(&step.step)
}

/// Gives the key of each workflow of a run.
fn key_maker(run: &MeasuredRun) -> impl Fn(&WorkflowRecord) -> FlowKey<'_> + use<> {
    let mut rows: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for workflow in &run.record.workflows {
        rows.entry(&workflow.row).or_default().insert(workflow.flow);
    }
    let places: HashMap<usize, usize> = (rows.into_values())
        .flat_map(|flows| flows.into_iter().enumerate().collect::<Vec<_>>())
        .map(|(place, flow)| (flow, place))
        .collect();
    move |workflow| {
        let place = places.get(&workflow.flow).copied().unwrap_or(0);
        (&workflow.row, place, workflow.mode.as_deref())
    }
}
