//! A recorded run as a graph: what had to be computed, and what waited for what.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::record::StepRecord;

/// What can be begun on its own: one sample of a step, or the join of all samples of a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    /// Index of the flow.
    pub(super) flow: usize,
    /// Index into [`Recording::names`]; `None` for a join.
    pub(super) step: Option<usize>,
    pub(super) work: Work,
    /// How many items it waits for.
    pub(super) needs: usize,
    /// The items that wait for it.
    pub(super) dependents: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Work {
    /// Ends as it begins.
    Join,
    /// A program or an answer that is judged, in milliseconds, whatever else goes on.
    Judgement(f64),
    Request(Request),
}

/// A request to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Request {
    pub(super) prompt: usize,
    /// Prompt tokens that were not computed.
    pub(super) reused: usize,
    /// Generated tokens.
    pub(super) decode: usize,
    /// Whether the model ended its turn, which takes a pass without a token.
    pub(super) stopped: bool,
    pub(super) drafted: usize,
    pub(super) accepted: usize,
    /// Another sample of the same prompt, which computes it.
    pub(super) leader: Option<usize>,
    /// The request of the first step that it needs, whose conversation it may continue.
    pub(super) after: Option<usize>,
    /// Times, in milliseconds from the start of the benchmark: submission, first pass, first token, end.
    pub(super) start: f64,
    pub(super) queue: f64,
    pub(super) first: f64,
    pub(super) end: f64,
}

/// A run that can be replayed.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Recording {
    pub(super) items: Vec<Item>,
    /// The items of each flow, flows in the order in which they were started.
    pub(super) flows: Vec<Range<usize>>,
    /// Ids of steps, without generations, in order of appearance.
    pub(super) names: Vec<String>,
    /// The index into the steps from which it was read, of each item.
    pub(super) sources: Vec<Option<usize>>,
}

impl Request {
    /// Passes from the first token on, if each gives one token.
    pub(super) fn passes(&self) -> usize {
        (self.decode + usize::from(self.stopped)).max(1)
    }
}

impl Recording {
    /// The graph of the steps of whole flows.
    pub(super) fn of(steps: &[StepRecord]) -> Self {
        let mut by_flow: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, step) in steps.iter().enumerate() {
            by_flow.entry(step.flow).or_default().push(index);
        }
        let mut flows: Vec<Vec<usize>> = by_flow.into_values().collect();
        for flow in &mut flows {
            flow.sort_by(|a, b| steps[*a].start_ms.0.total_cmp(&steps[*b].start_ms.0));
        }
        flows.sort_by(|a, b| steps[a[0]].start_ms.0.total_cmp(&steps[b[0]].start_ms.0));
        let mut recording = Self::default();
        let mut names = HashMap::new();
        for (number, flow) in flows.iter().enumerate() {
            recording.add(number, flow, steps, &mut names);
        }
        recording
    }

    fn add(
        &mut self,
        flow: usize,
        members: &[usize],
        steps: &[StepRecord],
        names: &mut HashMap<String, usize>,
    ) {
        let begin = self.items.len();
        // Samples of a step, in order of their numbers.
        let mut order: Vec<&str> = Vec::new();
        let mut samples: HashMap<&str, Vec<usize>> = HashMap::new();
        for &index in members {
            let id = steps[index].step.as_str();
            let of_step = samples.entry(id).or_default();
            if of_step.is_empty() {
                order.push(id);
            }
            of_step.push(index);
        }
        // For each step: its items, and the one that ends when all of them have ended.
        let mut placed: HashMap<&str, (Range<usize>, usize)> = HashMap::new();
        for id in &order {
            let Some(mut of_step) = samples.remove(id) else {
                continue;
            };
            of_step.sort_by_key(|index| steps[*index].sample);
            let first = self.items.len();
            let name = base(&steps[of_step[0]]);
            let next = names.len();
            let name = *names.entry(name.to_owned()).or_insert_with(|| {
                self.names.push(name.to_owned());
                next
            });
            let needs = &steps[of_step[0]].needs;
            let known: Option<Vec<_>> =
                needs.iter().map(|need| placed.get(need.as_str())).collect();
            let before: Vec<(Range<usize>, usize)> = match known {
                Some(known) => known.into_iter().cloned().collect(),
                // It waited for a step without a record, such as a selection: then for all that had ended.
                None => {
                    let start = steps[of_step[0]].start_ms.0;
                    let had_ended = |(range, _): &&(Range<usize>, usize)| {
                        range
                            .clone()
                            .all(|item| self.end_of(item, steps) <= start + 1e-6)
                    };
                    placed.values().filter(had_ended).cloned().collect()
                }
            };
            let after = needs.first().and_then(|need| placed.get(need.as_str()));
            let after = after
                .filter(|(range, _)| range.len() == 1)
                .map(|(range, _)| range.start);
            for (position, &index) in of_step.iter().enumerate() {
                let item = self.items.len();
                let mut work = work(&steps[index], (position > 0).then_some(first));
                if let Work::Request(request) = &mut work {
                    request.after = after;
                }
                self.items.push(Item {
                    flow,
                    step: Some(name),
                    work,
                    needs: 0,
                    dependents: Vec::new(),
                });
                self.sources.push(Some(index));
                for (range, join) in &before {
                    let each = of_step.len() / range.len();
                    // A judgement begins when the answer that it judges is there.
                    let own = steps[index].kind.is_some()
                        && range.len() > 1
                        && each * range.len() == of_step.len();
                    self.depend(
                        item,
                        if own {
                            range.start + position / each
                        } else {
                            *join
                        },
                    );
                }
            }
            let range = first..self.items.len();
            let join = match range.len() {
                1 => first,
                _ => self.join(flow, range.clone()),
            };
            placed.insert(id, (range, join));
        }
        self.flows.push(begin..self.items.len());
    }

    fn join(&mut self, flow: usize, range: Range<usize>) -> usize {
        let join = self.items.len();
        self.items.push(Item {
            flow,
            step: None,
            work: Work::Join,
            needs: 0,
            dependents: Vec::new(),
        });
        self.sources.push(None);
        for item in range {
            self.depend(join, item);
        }
        join
    }

    fn depend(&mut self, item: usize, on: usize) {
        self.items[on].dependents.push(item);
        self.items[item].needs += 1;
    }

    fn end_of(&self, item: usize, steps: &[StepRecord]) -> f64 {
        self.sources[item].map_or(0.0, |index| {
            steps[index].start_ms.0 + steps[index].latency_ms.0
        })
    }

    /// The requests, with their items.
    pub(super) fn requests(&self) -> impl Iterator<Item = (usize, &Request)> {
        (self.items.iter().enumerate()).filter_map(|(index, item)| match &item.work {
            Work::Request(request) => Some((index, request)),
            _ => None,
        })
    }
}

/// The step's id without its generation.
fn base(step: &StepRecord) -> &str {
    match (step.generation, step.step.rsplit_once('.')) {
        (Some(_), Some((base, _))) => base,
        _ => &step.step,
    }
}

fn work(step: &StepRecord, leader: Option<usize>) -> Work {
    let latency = step.latency_ms.0.max(0.0);
    if !step.asks_a_model() {
        let waited = step
            .evaluation
            .as_ref()
            .map_or(0.0, |phases| phases.waited_ms.0);
        return Work::Judgement((latency - waited).max(0.0));
    }
    let start = step.start_ms.0;
    let ttft = step
        .ttft_ms
        .map_or(latency, |ttft| ttft.0.clamp(0.0, latency));
    let queue = step.queue_ms.map_or(0.0, |queue| queue.0.clamp(0.0, ttft));
    let tokens = &step.tokens;
    Work::Request(Request {
        prompt: tokens.prompt,
        reused: tokens.reused.min(tokens.prompt),
        decode: tokens.decode,
        stopped: step.finish == "stop",
        drafted: tokens.drafted,
        accepted: tokens.accepted.min(tokens.decode),
        // A sample that computed the prompt itself waits for nobody.
        leader: leader.filter(|_| tokens.reused > 0 && step.kind.is_none()),
        after: None,
        start,
        queue: start + queue,
        first: start + ttft,
        end: start + latency,
    })
}
