//! Flows in flight: the state of each step, and what the next steps can read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::graph::Graph;
use super::step_state::{SampleResult, StepState};
use crate::error::{Error, Result};
use crate::flow::{Flow, Readable, Step, Visible, Work};
use crate::metrics;
use crate::profile::Activity;
use crate::record::metrics::CriticalStep;
use crate::record::{StepRecord, TokenCounts};
use crate::stopwatch::Moment;
use crate::units::Millis;

/// The flows in flight, by number.
#[derive(Default)]
pub(super) struct Flows<'a>(BTreeMap<usize, FlowState<'a>>);

impl<'a> Flows<'a> {
    pub(super) fn insert(&mut self, flow: FlowState<'a>) {
        self.0.insert(flow.flow.flow, flow);
    }

    /// # Errors
    /// The flow is not in flight. Whatever refers to a flow is dropped with it, so this is a bug.
    pub(super) fn get(&self, flow: usize) -> Result<&FlowState<'a>> {
        self.0.get(&flow).ok_or_else(|| not_in_flight(flow))
    }

    /// # Errors
    /// As [`Self::get`].
    pub(super) fn get_mut(&mut self, flow: usize) -> Result<&mut FlowState<'a>> {
        self.0.get_mut(&flow).ok_or_else(|| not_in_flight(flow))
    }

    /// # Errors
    /// As [`Self::get`].
    pub(super) fn remove(&mut self, flow: usize) -> Result<FlowState<'a>> {
        self.0.remove(&flow).ok_or_else(|| not_in_flight(flow))
    }

    /// The flow with the lowest number.
    pub(super) fn first(&self) -> Option<usize> {
        self.0.first_key_value().map(|(flow, _)| *flow)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn not_in_flight(flow: usize) -> Error {
    Error::flow(format!("flow {flow} is not in flight"))
        .hint("this is a bug in flowbench: please report it")
}

/// A flow in flight.
pub(super) struct FlowState<'a> {
    pub(super) flow: &'a Flow,
    pub(super) graph: Graph<'a>,
    pub(super) started: Moment,
    pub(super) steps: Vec<StepState>,
    /// When each step ended, from `started`.
    pub(super) ends: Vec<Option<Millis>>,
    /// For each step that evaluates, the number of trials of earlier steps.
    trials_before: Vec<usize>,
    /// Steps by name: generation (0 outside a loop) and index, sorted.
    by_name: HashMap<&'a str, Vec<(usize, usize)>>,
    /// By loop and generation.
    generations: HashMap<(usize, usize), InGeneration>,
    pub(super) steps_done: usize,
    pub(super) activity: Activity,
    pub(super) tokens: TokenCounts,
    /// Of steps that ended in earlier segments of the run.
    pub(super) earlier: EarlierTimes,
}

/// When steps ended in earlier segments of the run, in milliseconds from the start of each segment.
#[derive(Debug, Default)]
pub(super) struct EarlierTimes {
    /// By segment, from 1: the first submission and the last end.
    spans: BTreeMap<usize, (f64, f64)>,
    /// Segment and end of each step that has ended, by index.
    ends: HashMap<usize, (usize, f64)>,
    /// Whether anything is left to do in this segment.
    goes_on: bool,
}

impl EarlierTimes {
    /// Adds a request, a program or an answer of a step.
    pub(super) fn add(&mut self, step: usize, record: &StepRecord) {
        let segment = record.segment.unwrap_or(1);
        let start = record.start_ms.0;
        let end = start + record.latency_ms.0;
        let span = self.spans.entry(segment).or_insert((start, end));
        *span = (span.0.min(start), span.1.max(end));
        self.end(step, (segment, end));
    }

    /// Notes that a step did not end before this.
    fn end(&mut self, step: usize, end: (usize, f64)) {
        let known = self.ends.entry(step).or_insert(end);
        if end > *known {
            *known = end;
        }
    }

    /// When the last of these steps ended.
    fn last(&self, steps: impl Iterator<Item = usize>) -> Option<(usize, f64)> {
        let ends = steps.filter_map(|step| self.ends.get(&step).copied());
        ends.max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))
    }

    /// How long the flow was in flight, as far as that is recorded.
    pub(super) fn in_flight(&self) -> Millis {
        Millis(self.spans.values().map(|(start, end)| end - start).sum())
    }

    /// If the flow ended in an earlier segment: the last such segment, and the flow's first submission in it.
    pub(super) fn ended(&self) -> Option<(usize, Millis)> {
        let (segment, (start, _)) = self.spans.last_key_value()?;
        (!self.goes_on).then_some((*segment, Millis(*start)))
    }

    /// Whether the flow ran in several segments.
    pub(super) fn are_several(&self) -> bool {
        self.spans.len() + usize::from(self.goes_on) > 1
    }
}

/// The steps of a generation.
#[derive(Debug, Default)]
struct InGeneration {
    steps: Vec<usize>,
    ended: usize,
}

/// Characters of an error in a line of the scratchpad, at most.
const LONGEST_DETAIL: usize = 160;

impl<'a> FlowState<'a> {
    pub(super) fn new(flow: &'a Flow, started: Moment, activity: Activity) -> Result<Self> {
        let samples = samples(flow);
        let mut trials = 0;
        let trials_before = (flow.steps.iter().zip(&samples)).map(|(step, samples)| {
            let before = trials;
            if matches!(step.work, Work::Evaluate(_)) {
                trials += samples;
            }
            before
        });
        let trials_before = trials_before.collect();
        let mut by_name: HashMap<&str, Vec<(usize, usize)>> = HashMap::new();
        let mut generations: HashMap<(usize, usize), InGeneration> = HashMap::new();
        for (index, step) in flow.steps.iter().enumerate() {
            let number = step.generation.as_ref().map_or(0, |of| of.number);
            by_name
                .entry(step.name())
                .or_default()
                .push((number, index));
            if let Some(of) = &step.generation {
                let of_it = generations.entry((of.r#loop, of.number)).or_default();
                of_it.steps.push(index);
            }
        }
        by_name.values_mut().for_each(|steps| steps.sort_unstable());
        Ok(Self {
            graph: Graph::new(flow)?,
            flow,
            started,
            steps: samples.into_iter().map(StepState::new).collect(),
            ends: vec![None; flow.steps.len()],
            trials_before,
            by_name,
            generations,
            steps_done: 0,
            activity,
            tokens: TokenCounts::default(),
            earlier: EarlierTimes::default(),
        })
    }

    pub(super) fn step(&self, step: usize) -> &'a Step {
        &self.flow.steps[step]
    }

    /// Notes that a step ended in an earlier segment. Returns when the last step of its generation ended, from
    /// the start of that segment.
    pub(super) fn restored(&mut self, step: usize) -> Millis {
        // Selections, and judgements of what was decided before, have no record: they take no time.
        if let Some(end) = self.earlier.last(self.graph.needs(step).iter().copied()) {
            self.earlier.end(step, end);
        }
        self.graph.ended(step);
        self.steps_done += 1;
        let place = |step: &usize| {
            let generation = self.flow.steps[*step].generation.as_ref();
            generation.map(|of| (of.r#loop, of.number))
        };
        let own = place(&step);
        let same = (0..self.steps.len()).filter(|other| place(other) == own);
        Millis(self.earlier.last(same).map_or(0.0, |(_, end)| end))
    }

    /// Notes that all steps are restored that can be. Returns whether the flow has ended.
    pub(super) fn all_restored(&mut self) -> bool {
        self.earlier.goes_on = !self.graph.is_done();
        if self.earlier.are_several() || self.earlier.goes_on {
            return !self.earlier.goes_on;
        }
        if let Some((_, start)) = self.earlier.ended() {
            for (step, (_, end)) in &self.earlier.ends {
                self.ends[*step] = Some(Millis(*end) - start);
            }
        }
        true
    }

    /// The index of the step called `id`.
    pub(super) fn index(&self, id: &str) -> Option<usize> {
        self.graph.index(id)
    }

    /// Notes that a step has ended. Returns the steps of its generation if it was the last of them.
    pub(super) fn ended_in_generation(&mut self, step: usize) -> Option<&[usize]> {
        let of = self.flow.steps[step].generation.as_ref()?;
        let of_it = self.generations.get_mut(&(of.r#loop, of.number))?;
        of_it.ended += 1;
        (of_it.ended == of_it.steps.len()).then_some(&of_it.steps)
    }

    /// A sample of the step called `of`.
    pub(super) fn item_of(&self, of: &str, sample: usize) -> Option<&SampleResult> {
        self.steps[self.index(of)?].item(sample)
    }

    /// The number of a trial, from 1, in the order of steps and samples.
    pub(super) fn trial(&self, step: usize, sample: usize) -> usize {
        self.trials_before[step] + sample + 1
    }

    /// The trial that `step` started from.
    pub(super) fn parent_trial(&self, step: usize) -> Option<usize> {
        let previous = &self.flow.steps[step].generation.as_ref()?.previous;
        self.item_of(previous, 0)?.trial
    }

    /// What the expressions of a step can refer to.
    pub(super) fn visible(&self, step: usize) -> VisibleTo<'_> {
        VisibleTo {
            running: self,
            step,
        }
    }

    /// One line per trial among the ancestors of a step.
    fn scratchpad(&self, of: usize) -> String {
        let evaluates = |step: usize| matches!(self.flow.steps[step].work, Work::Evaluate(_));
        let mut lines = Vec::new();
        for step in self.graph.ancestors(of, evaluates) {
            for item in self.steps[step].items() {
                let (Some(trial), Some(scored)) = (item.trial, &item.scored) else {
                    continue;
                };
                let found = match scored.score {
                    Some(score) => format!("score {score:.4}"),
                    None => {
                        let first = scored.detail.lines().next().unwrap_or_default();
                        let short: String = first.chars().take(LONGEST_DETAIL).collect();
                        format!("{}: {short}", scored.outcome)
                    }
                };
                lines.push(format!("trial {trial}: {found}"));
            }
        }
        lines.join("\n")
    }

    /// The critical path, and each step's slack; empty unless all steps have ended, and in one segment.
    pub(super) fn path(&self) -> (Vec<CriticalStep>, BTreeMap<String, Millis>) {
        let ended = |(step, end): (usize, &Option<Millis>)| {
            Some(metrics::EndedStep {
                end: (*end)?,
                needs: self.graph.needs(step).to_vec(),
            })
        };
        let steps: Option<Vec<_>> = match self.earlier.are_several() {
            true => None,
            false => self.ends.iter().enumerate().map(ended).collect(),
        };
        let steps = steps.unwrap_or_default();
        let id = |step: usize| self.flow.steps[step].id.clone();
        let path = metrics::critical_path(&steps)
            .into_iter()
            .map(|(step, ms)| CriticalStep { step: id(step), ms })
            .collect();
        let slack = metrics::slack(&steps).into_iter().enumerate();
        (path, slack.map(|(step, ms)| (id(step), ms)).collect())
    }
}

/// What the expressions of one step can refer to.
pub(super) struct VisibleTo<'r> {
    running: &'r FlowState<'r>,
    step: usize,
}

impl VisibleTo<'_> {
    fn readable(&self, step: usize) -> Option<Arc<Readable>> {
        self.running.steps[step].readable().cloned()
    }
}

impl Visible for VisibleTo<'_> {
    /// Steps of a loop have the template's names. Of several generations, a name means the step's own, or
    /// else the last. The expansion has made sure that the step needs it.
    fn step(&self, name: &str) -> Option<Arc<Readable>> {
        let steps = self.running.by_name.get(name)?;
        let of_step = |step: usize| self.running.flow.steps[step].generation.as_ref();
        let (_, last) = *steps.last()?;
        let own = of_step(self.step)
            .filter(|own| of_step(last).is_some_and(|of| of.r#loop == own.r#loop))
            .and_then(|own| {
                let place = steps.binary_search_by_key(&own.number, |(number, _)| *number);
                Some(steps[place.ok()?].1)
            });
        self.readable(own.unwrap_or(last))
    }

    fn previous(&self) -> Option<Arc<Readable>> {
        let own = self.running.flow.steps[self.step].generation.as_ref()?;
        self.readable(self.running.index(&own.previous)?)
    }

    fn generation(&self) -> Option<usize> {
        let own = self.running.flow.steps[self.step].generation.as_ref();
        own.map(|own| own.number)
    }

    fn scratchpad(&self) -> String {
        self.running.scratchpad(self.step)
    }
}

/// Indices of earlier steps by id.
#[derive(Default)]
struct Before<'a> {
    index: HashMap<&'a str, usize>,
    count: usize,
}

impl<'a> Before<'a> {
    fn add(&mut self, step: &'a Step) {
        // A valid flow has no two steps with one id; otherwise the first counts.
        self.index.entry(&step.id).or_insert(self.count);
        self.count += 1;
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.index.get(id).copied()
    }
}

/// Number of samples of each step. A step that works on another has as many as that one.
fn samples(flow: &Flow) -> Vec<usize> {
    let mut samples: Vec<usize> = Vec::with_capacity(flow.steps.len());
    let mut earlier = Before::default();
    for step in &flow.steps {
        let of = |id: &String| earlier.find(id).map_or(0, |index| samples[index]);
        let own = match &step.work {
            Work::Generate(generate) => generate.samples,
            Work::Select(select) => select.keep.min(select.of.iter().map(of).sum()),
            work => work.of().iter().map(of).sum(),
        };
        samples.push(own);
        earlier.add(step);
    }
    samples
}

/// Upper bound on the requests of a flow in flight at once: the maximum, over the depths of the graph, of
/// the samples of all steps at that depth. A judge makes two requests per answer.
pub fn max_parallel_requests(flow: &Flow) -> usize {
    let samples = samples(flow);
    let mut depths: Vec<usize> = Vec::with_capacity(flow.steps.len());
    let mut widths: BTreeMap<usize, usize> = BTreeMap::new();
    let mut earlier = Before::default();
    for (index, step) in flow.steps.iter().enumerate() {
        let before = |id: &String| earlier.find(id).map(|needed| depths[needed] + 1);
        let depth = step.needs.iter().filter_map(before).max().unwrap_or(0);
        depths.push(depth);
        earlier.add(step);
        *widths.entry(depth).or_default() += match step.work {
            Work::Generate(_) => samples[index],
            Work::Judge(_) => 2 * samples[index],
            _ => 0,
        };
    }
    widths.into_values().max().unwrap_or(1).max(1)
}
