//! A flow that has started and not ended: how far each step has come, and what the next can read.

use std::collections::BTreeMap;

use super::graph::Graph;
use super::item::{Item, Node};
use crate::error::Result;
use crate::flow::{Flow, Step, Visible, Work};
use crate::metrics;
use crate::profile::Activity;
use crate::record::StepRecord;
use crate::record::metrics::CriticalStep;
use crate::stopwatch::Moment;
use crate::units::Millis;

/// A flow that has started and not ended.
pub(super) struct Running<'a> {
    pub(super) flow: &'a Flow,
    pub(super) graph: Graph,
    pub(super) started: Moment,
    pub(super) nodes: Vec<Node>,
    /// For each step, when it ended, counted from `started`.
    pub(super) ends: Vec<Option<Millis>>,
    /// For each step that evaluates, the number of the trial before its first.
    trials_before: Vec<usize>,
    pub(super) steps_done: usize,
    pub(super) activity: Activity,
    pub(super) tokens: Tokens,
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
        Ok(Self {
            graph: Graph::new(flow)?,
            flow,
            started,
            nodes: samples.into_iter().map(Node::new).collect(),
            ends: vec![None; flow.steps.len()],
            trials_before,
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
        self.flow.steps.iter().position(|step| step.id == id)
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

    /// What the expressions of a step can name. Steps of a loop are known by the names that the
    /// template has for them: of several generations, that of the step's own, or else the last.
    pub(super) fn visible(&self, step: usize) -> Visible<'_> {
        let own = self.flow.steps[step].generation.as_ref();
        let mut steps: Vec<(&str, usize, usize)> = Vec::new();
        let ancestors = self.graph.ancestors(step);
        for &index in &ancestors {
            let ancestor = &self.flow.steps[index];
            let generation = ancestor.generation.as_ref().map_or(0, |of| of.number);
            match steps.iter_mut().find(|(name, ..)| *name == ancestor.name()) {
                Some(known) if generation > known.1 => {
                    *known = (ancestor.name(), generation, index)
                }
                Some(_) => {}
                None => steps.push((ancestor.name(), generation, index)),
            }
        }
        let readable = |index: usize| self.nodes[index].readable();
        Visible {
            steps: (steps.into_iter())
                .filter_map(|(name, _, index)| Some((name, readable(index)?)))
                .collect(),
            previous: own.and_then(|own| readable(self.index(&own.previous)?)),
            generation: own.map(|own| own.number),
            scratchpad: self.scratchpad(ancestors.into_iter()),
        }
    }

    /// The trials of some steps, a line each.
    fn scratchpad(&self, steps: impl Iterator<Item = usize>) -> String {
        let mut lines = Vec::new();
        for step in steps {
            if !matches!(self.flow.steps[step].work, Work::Evaluate(_)) {
                continue;
            }
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

/// How many samples each step has: of one that works on another, those of the other.
fn samples(flow: &Flow) -> Vec<usize> {
    let mut samples: Vec<usize> = Vec::with_capacity(flow.steps.len());
    for step in &flow.steps {
        let of = |id: &String| {
            let index = flow.steps[..samples.len()]
                .iter()
                .position(|step| step.id == *id);
            index.map_or(0, |index| samples[index])
        };
        let own = match &step.work {
            Work::Generate(generate) => generate.samples,
            Work::Select(select) => select.keep.min(select.of.iter().map(of).sum()),
            work => work.of().iter().map(of).sum(),
        };
        samples.push(own);
    }
    samples
}

/// How many requests of a flow can be in flight at once, at most: the most samples of steps that are
/// equally far from the flow's beginning, two for each answer that is judged.
pub fn width(flow: &Flow) -> usize {
    let samples = samples(flow);
    let mut depths: Vec<usize> = Vec::with_capacity(flow.steps.len());
    let mut widths: BTreeMap<usize, usize> = BTreeMap::new();
    for (index, step) in flow.steps.iter().enumerate() {
        let before = |id: &String| {
            let needed = flow.steps[..index].iter().position(|step| step.id == *id);
            needed.map(|needed| depths[needed] + 1)
        };
        let depth = step.needs.iter().filter_map(before).max().unwrap_or(0);
        depths.push(depth);
        *widths.entry(depth).or_default() += match step.work {
            Work::Generate(_) => samples[index],
            Work::Judge(_) => 2 * samples[index],
            _ => 0,
        };
    }
    widths.into_values().max().unwrap_or(1).max(1)
}
