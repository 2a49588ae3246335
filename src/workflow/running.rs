//! A flow that has started and not ended: how far each step has come, and what the next can read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::graph::Graph;
use super::item::{Item, Node};
use crate::error::Result;
use crate::flow::{Flow, Readable, Step, Visible, Work};
use crate::metrics;
use crate::profile::Activity;
use crate::record::StepRecord;
use crate::record::metrics::CriticalStep;
use crate::stopwatch::Moment;
use crate::units::Millis;

/// A flow that has started and not ended.
pub(super) struct Running<'a> {
    pub(super) flow: &'a Flow,
    pub(super) graph: Graph<'a>,
    pub(super) started: Moment,
    pub(super) nodes: Vec<Node>,
    /// For each step, when it ended, counted from `started`.
    pub(super) ends: Vec<Option<Millis>>,
    /// For each step that evaluates, the number of the trial before its first.
    trials_before: Vec<usize>,
    /// The steps of each name: their generation (0 outside a loop) and number, in this order.
    by_name: HashMap<&'a str, Vec<(usize, usize)>>,
    /// The steps of each generation of a loop.
    generations: HashMap<(usize, usize), InGeneration>,
    pub(super) steps_done: usize,
    pub(super) activity: Activity,
    pub(super) tokens: Tokens,
}

/// The steps of a generation.
#[derive(Debug, Default)]
struct InGeneration {
    steps: Vec<usize>,
    /// How many have ended.
    ended: usize,
}

/// Tokens of a flow's steps.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tokens {
    pub(super) prompt: usize,
    pub(super) prefill: usize,
    pub(super) reused: usize,
    pub(super) decode: usize,
}

impl Tokens {
    pub(super) fn add(&mut self, step: &StepRecord) {
        self.prompt += step.prompt_tokens;
        self.prefill += step.prefill_tokens;
        self.reused += step.reused_tokens;
        self.decode += step.decode_tokens;
    }
}

/// Longest text of an error in a line of the scratchpad (characters).
const LONGEST_DETAIL: usize = 160;

impl<'a> Running<'a> {
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
            nodes: samples.into_iter().map(Node::new).collect(),
            ends: vec![None; flow.steps.len()],
            trials_before,
            by_name,
            generations,
            steps_done: 0,
            activity,
            tokens: Tokens::default(),
        })
    }

    pub(super) fn step(&self, step: usize) -> &'a Step {
        &self.flow.steps[step]
    }

    /// The number of the step called `id`.
    pub(super) fn index(&self, id: &str) -> Option<usize> {
        self.graph.index(id)
    }

    /// Notes that a step of a loop has ended; the steps of its generation, if it was the last of them.
    pub(super) fn ended_in_generation(&mut self, step: usize) -> Option<&[usize]> {
        let of = self.flow.steps[step].generation.as_ref()?;
        let of_it = self.generations.get_mut(&(of.r#loop, of.number))?;
        of_it.ended += 1;
        (of_it.ended == of_it.steps.len()).then_some(&of_it.steps)
    }

    /// A sample of the step that another works on.
    pub(super) fn item_of(&self, of: &str, sample: usize) -> Option<&Item> {
        self.nodes[self.index(of)?].item(sample)
    }

    /// The number of a trial, from 1 in the order of steps and samples.
    pub(super) fn trial(&self, step: usize, sample: usize) -> usize {
        self.trials_before[step] + sample + 1
    }

    /// The trial that the prompts of `step` went on from.
    pub(super) fn parent_trial(&self, step: usize) -> Option<usize> {
        let previous = &self.flow.steps[step].generation.as_ref()?.previous;
        self.item_of(previous, 0)?.trial
    }

    /// What the expressions of a step can name.
    pub(super) fn visible(&self, step: usize) -> VisibleTo<'_> {
        VisibleTo {
            running: self,
            step,
        }
    }

    /// The trials of the steps that a step needs, and that these need in turn, a line each.
    fn scratchpad(&self, of: usize) -> String {
        let evaluates = |step: usize| matches!(self.flow.steps[step].work, Work::Evaluate(_));
        let mut lines = Vec::new();
        for step in self.graph.ancestors(of, evaluates) {
            for item in self.nodes[step].items() {
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

    /// Which steps made the flow long, and each step's slack; nothing of a flow whose steps have not
    /// all ended.
    pub(super) fn path(&self) -> (Vec<CriticalStep>, BTreeMap<String, Millis>) {
        let ended = |(step, end): (usize, &Option<Millis>)| {
            Some(metrics::EndedStep {
                end: (*end)?,
                needs: self.graph.needs(step).to_vec(),
            })
        };
        let steps: Option<Vec<_>> = self.ends.iter().enumerate().map(ended).collect();
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

/// What the expressions of one step can name.
pub(super) struct VisibleTo<'r> {
    running: &'r Running<'r>,
    step: usize,
}

impl VisibleTo<'_> {
    fn readable(&self, step: usize) -> Option<Arc<Readable>> {
        self.running.nodes[step].readable().cloned()
    }
}

impl Visible for VisibleTo<'_> {
    /// Steps of a loop are known by the names that the template has for them: of several generations,
    /// that of the step's own, or else the last. The expansion has seen to it that the step needs it.
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

/// The numbers of steps by their ids, of those that came before.
#[derive(Default)]
struct Before<'a> {
    index: HashMap<&'a str, usize>,
    count: usize,
}

impl<'a> Before<'a> {
    fn add(&mut self, step: &'a Step) {
        // Of two steps of one id, which a sound flow has not, the first counts.
        self.index.entry(&step.id).or_insert(self.count);
        self.count += 1;
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.index.get(id).copied()
    }
}

/// How many samples each step has: of one that works on another, those of the other.
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

/// How many requests of a flow can be in flight at once, at most: the most samples of steps that are
/// equally far from the flow's beginning, two for each answer that is judged.
pub fn width(flow: &Flow) -> usize {
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
