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
    /// Of each of `flows`: the steps that every run has.
    steps: HashMap<FlowKey<'a>, BTreeMap<StepKey<'a>, ByRun<'a>>>,
}

/// What each run measured of a step, several times in `MODE=both`.
pub(super) type ByRun<'a> = Vec<Vec<&'a MeasuredStep>>;

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
    /// Places in `steps`, by id with and without generation.
    by_name: HashMap<&'a str, Vec<usize>>,
}

impl<'a> FlowView<'a> {
    fn new(workflow: &'a WorkflowRecord, steps: Vec<&'a MeasuredStep>) -> Self {
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        for (place, step) in steps.iter().enumerate() {
            let (id, plain) = (step.step.as_str(), plain_id(step));
            by_name.entry(id).or_default().push(place);
            if plain != id {
                by_name.entry(plain).or_default().push(place);
            }
        }
        Self {
            workflow,
            steps,
            by_name,
        }
    }

    /// The steps of an id, with or without generation; all steps for `None`.
    pub(super) fn named(&self, name: Option<&str>) -> Vec<&'a MeasuredStep> {
        let Some(name) = name else {
            return self.steps.clone();
        };
        let places = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        places.iter().map(|place| self.steps[*place]).collect()
    }
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
        let steps = flows.iter().map(|flow| (*flow, lined_up(&runs, flow)));
        Self {
            steps: steps.collect(),
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

    /// Steps of `flow` that every run has, in order: all, or those of an id with or without generation.
    pub(super) fn steps(
        &self,
        flow: &FlowKey<'a>,
        name: Option<&str>,
    ) -> Vec<(StepKey<'a>, &ByRun<'a>)> {
        let Some(steps) = self.steps.get(flow) else {
            return Vec::new();
        };
        let Some(name) = name else {
            return steps.iter().map(|(key, runs)| (*key, runs)).collect();
        };
        let views = self.runs.first().map_or(&[][..], |view| view.views(flow));
        let named = views.iter().flat_map(|view| view.named(Some(name)));
        let keys: BTreeSet<StepKey> = named.map(step_key).collect();
        let found = |key: StepKey<'a>| Some((key, steps.get(&key)?));
        keys.into_iter().filter_map(found).collect()
    }

    /// The outputs that differ between the sides: by step, and the steps themselves.
    pub(super) fn changed_outputs(&self) -> (Vec<ChangedOutputs>, ChangedSteps<'a>) {
        let mut by_step: BTreeMap<&str, ChangedOutputs> = BTreeMap::new();
        let mut changed = ChangedSteps::default();
        for flow in &self.flows {
            for ((id, _), runs) in self.steps(flow, None) {
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
                    changed.ids.insert((*flow, id));
                    changed.names.insert((*flow, name));
                }
            }
        }
        let differing = |outputs: &ChangedOutputs| outputs.differing > 0;
        (by_step.into_values().filter(differing).collect(), changed)
    }
}

/// Steps with outputs that differ between the sides.
#[derive(Debug, Default)]
pub(super) struct ChangedSteps<'a> {
    ids: BTreeSet<(FlowKey<'a>, &'a str)>,
    /// The ids without generations.
    names: BTreeSet<(FlowKey<'a>, &'a str)>,
}

impl<'a> ChangedSteps<'a> {
    pub(super) fn contains(&self, flow: &FlowKey<'a>, step: &'a str) -> bool {
        self.ids.contains(&(*flow, step))
    }

    /// Whether a step of this id without generation is among them.
    pub(super) fn contains_name(&self, flow: &FlowKey<'a>, name: &'a str) -> bool {
        self.names.contains(&(*flow, name))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
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
            let view = FlowView::new(workflow, steps);
            flows.entry(key(workflow)).or_default().push(view);
        }
        Self { run, flows }
    }

    /// What the run has of a flow: once, or in `MODE=both` once a round.
    pub(super) fn views(&self, flow: &FlowKey<'a>) -> &[FlowView<'a>] {
        self.flows.get(flow).map_or(&[], Vec::as_slice)
    }
}

/// The steps of `flow` that every run has.
fn lined_up<'a>(runs: &[RunView<'a>], flow: &FlowKey<'a>) -> BTreeMap<StepKey<'a>, ByRun<'a>> {
    let mut lined_up: BTreeMap<StepKey, ByRun> = BTreeMap::new();
    for (run, view) in runs.iter().enumerate() {
        for step in view.views(flow).iter().flat_map(|flow| &flow.steps) {
            let by_run = lined_up.entry(step_key(step)).or_default();
            by_run.resize(runs.len(), Vec::new());
            by_run[run].push(*step);
        }
    }
    lined_up.retain(|_, by_run| by_run.iter().all(|steps| !steps.is_empty()));
    lined_up
}

fn step_key(step: &MeasuredStep) -> StepKey<'_> {
    (&step.step, step.sample.unwrap_or(0))
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
