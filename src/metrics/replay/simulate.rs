//! Runs a recorded graph again, event by event, on an engine whose passes take what a [`PassCost`] says.
//!
//! The engine admits, batches and cuts prompts as `engine::scheduler` does: a pass takes a token of every decoding
//! sequence, then prompt tokens in order of admission up to a limit. Memory for keys and values is not limited.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::cost::{Pass, PassCost, Speeds};
use super::recording::{Recording, Request, Work};

/// The engine and the settings of a replay.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    pub(super) concurrency: usize,
    /// Most sequences in a pass.
    pub(super) sequences: usize,
    /// Most tokens in a pass.
    pub(super) pass_tokens: usize,
    pub(super) speeds: Speeds,
    pub(super) evaluation_speed: f64,
    pub(super) max_tokens: Option<usize>,
    pub(super) answers: Answers,
}

/// How the engine answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    /// In forward passes.
    InPasses,
    /// Each request as it did, whatever else is in flight (scripted engine).
    AsRecorded,
}

/// What is computed for a request, as the replay's settings have it; by item.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Demand {
    /// Prompt tokens to compute; at least 1.
    pub(super) prompt: usize,
    /// Milliseconds in which this process prepares it, and computes nothing else.
    pub(super) host_ms: f64,
    /// Milliseconds on the way, beside everything else.
    pub(super) delay_ms: f64,
    /// Tokens of a pass in which it decodes alone, and the rows that these take.
    pub(super) alone_tokens: f64,
    pub(super) alone_rows: f64,
}

/// The figures of a replay, in milliseconds.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Replayed {
    /// From the first submission to the end of the last step.
    pub(super) total: f64,
    pub(super) flows: Vec<f64>,
    pub(super) ttft: Vec<f64>,
    /// Of requests with at least two tokens.
    pub(super) tpot: Vec<f64>,
    /// By index of the step's name.
    pub(super) latency: Vec<Vec<f64>>,
    pub(super) passes: usize,
}

/// An event to come.
#[derive(Debug, PartialEq)]
struct Coming {
    ms: f64,
    number: usize,
    item: usize,
    /// A request arrives at the engine; otherwise the item ends.
    arrives: bool,
}

impl Eq for Coming {}

impl Ord for Coming {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.ms.total_cmp(&other.ms)).then(self.number.cmp(&other.number))
    }
}

impl PartialOrd for Coming {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A sequence in the batch.
struct Active {
    item: usize,
    request: Request,
    demand: Demand,
    prompt_left: usize,
    /// Passes' worth of tokens that are still to come, the first one included.
    left: f64,
    /// Tokens so far.
    done: f64,
}

struct Replay<'a> {
    recording: &'a Recording,
    settings: &'a Settings,
    cost: &'a PassCost,
    demands: &'a [Demand],
    now: f64,
    next_flow: usize,
    open_flows: usize,
    /// By flow: open items, and the time of its first submission.
    open: Vec<(usize, f64)>,
    needs: Vec<usize>,
    submitted: Vec<f64>,
    /// When the first token of an item was, or will be, there.
    first: Vec<Option<f64>>,
    coming: BinaryHeap<Reverse<Coming>>,
    events: usize,
    ending: Vec<usize>,
    waiting: VecDeque<usize>,
    active: Vec<Active>,
    result: Replayed,
}

/// Replays a recording.
pub(super) fn replay(
    recording: &Recording,
    settings: &Settings,
    cost: &PassCost,
    demands: &[Demand],
) -> Replayed {
    let mut replay = Replay {
        recording,
        settings,
        cost,
        demands,
        now: 0.0,
        next_flow: 0,
        open_flows: 0,
        open: vec![(0, 0.0); recording.flows.len()],
        needs: recording.items.iter().map(|item| item.needs).collect(),
        submitted: vec![0.0; recording.items.len()],
        first: vec![None; recording.items.len()],
        coming: BinaryHeap::new(),
        events: 0,
        ending: Vec::new(),
        waiting: VecDeque::new(),
        active: Vec::new(),
        result: Replayed {
            flows: vec![0.0; recording.flows.len()],
            latency: vec![Vec::new(); recording.names.len()],
            ..Replayed::default()
        },
    };
    replay.run();
    replay.result.total = replay.now;
    replay.result
}

impl Replay<'_> {
    fn run(&mut self) {
        loop {
            while self.open_flows < self.settings.concurrency
                && self.next_flow < self.recording.flows.len()
            {
                self.begin_flow();
            }
            while (self.coming.peek()).is_some_and(|Reverse(coming)| coming.ms <= self.now) {
                if let Some(Reverse(coming)) = self.coming.pop() {
                    self.come(&coming);
                }
            }
            if self.open_flows < self.settings.concurrency
                && self.next_flow < self.recording.flows.len()
            {
                continue;
            }
            self.admit();
            if !self.active.is_empty() {
                self.pass();
            } else if let Some(Reverse(coming)) = self.coming.peek() {
                self.now = self.now.max(coming.ms);
            } else {
                return;
            }
        }
    }

    fn begin_flow(&mut self) {
        let flow = self.next_flow;
        self.next_flow += 1;
        self.open_flows += 1;
        let range = self.recording.flows[flow].clone();
        self.open[flow] = (range.len(), self.now);
        for item in range {
            if self.recording.items[item].needs == 0 {
                self.begin(item);
            }
        }
        self.end_all();
    }

    fn begin(&mut self, item: usize) {
        self.submitted[item] = self.now;
        match self.recording.items[item].work {
            Work::Join => self.ending.push(item),
            Work::Judgement(ms) => self.later(ms / self.settings.evaluation_speed, item, false),
            Work::Request(request) if self.settings.answers == Answers::AsRecorded => {
                let Speeds { decode, prefill } = self.settings.speeds;
                let first = (request.first - request.start) / prefill;
                let kept = self.kept(&request) as f64 / request.passes() as f64;
                self.first[item] = Some(self.now + first);
                let ms = first + (request.end - request.first) * kept / decode;
                self.later(ms, item, false);
            }
            Work::Request(_) => {
                let demand = self.demands[item];
                self.now += demand.host_ms;
                match demand.delay_ms > 0.0 {
                    true => self.later(demand.delay_ms, item, true),
                    false => self.waiting.push_back(item),
                }
            }
        }
    }

    fn later(&mut self, after: f64, item: usize, arrives: bool) {
        let number = self.events;
        self.events += 1;
        self.coming.push(Reverse(Coming {
            ms: self.now + after,
            number,
            item,
            arrives,
        }));
    }

    fn come(&mut self, coming: &Coming) {
        match coming.arrives {
            true => self.waiting.push_back(coming.item),
            false => {
                self.ending.push(coming.item);
                self.end_all();
            }
        }
    }

    /// Ends items, and begins what waited for them.
    fn end_all(&mut self) {
        while let Some(item) = self.ending.pop() {
            let of = &self.recording.items[item];
            if let Some(step) = of.step {
                self.result.latency[step].push(self.now - self.submitted[item]);
            }
            if let (Work::Request(request), Some(first)) = (of.work, self.first[item]) {
                self.result.ttft.push(first - self.submitted[item]);
                let decode = (self.settings.max_tokens)
                    .map_or(request.decode, |most| most.min(request.decode));
                if decode > 1 {
                    self.result
                        .tpot
                        .push((self.now - first) / (decode - 1) as f64);
                }
            }
            let (open, began) = &mut self.open[of.flow];
            *open -= 1;
            if *open == 0 {
                self.result.flows[of.flow] = self.now - *began;
                self.open_flows -= 1;
            }
            for &dependent in &of.dependents {
                self.needs[dependent] -= 1;
                if self.needs[dependent] == 0 {
                    self.begin(dependent);
                }
            }
        }
    }

    /// Generated tokens under the replay's limit, as passes.
    fn kept(&self, request: &Request) -> usize {
        match self.settings.max_tokens {
            // Cut off, it has no end of its turn.
            Some(most) if request.decode > most => most,
            _ => request.passes(),
        }
    }

    /// Moves waiting requests into the batch, in order.
    fn admit(&mut self) {
        let mut at = 0;
        while at < self.waiting.len() && self.active.len() < self.settings.sequences {
            let item = self.waiting[at];
            let Work::Request(request) = self.recording.items[item].work else {
                self.waiting.remove(at);
                continue;
            };
            // Another sample computes its prompt.
            if request
                .leader
                .is_some_and(|leader| self.first[leader].is_none())
            {
                at += 1;
                continue;
            }
            self.waiting.remove(at);
            let demand = self.demands[item];
            self.active.push(Active {
                item,
                request,
                demand,
                prompt_left: demand.prompt.max(1),
                left: self.kept(&request) as f64,
                done: 0.0,
            });
        }
    }

    fn pass(&mut self) {
        let mut pass = Pass {
            passes: 1.0,
            ..Pass::default()
        };
        for sequence in self
            .active
            .iter()
            .filter(|sequence| sequence.prompt_left == 0)
        {
            pass.decoding += 1.0;
            pass.decode_rows += 1.0;
            pass.decode_context += sequence.request.prompt as f64 + sequence.done;
        }
        let mut room = self
            .settings
            .pass_tokens
            .saturating_sub(pass.decode_rows as usize);
        let mut cut = vec![0; self.active.len()];
        for (sequence, cut) in self.active.iter().zip(&mut cut) {
            *cut = sequence.prompt_left.min(room);
            room -= *cut;
            let count = *cut as f64;
            let before = (sequence.request.prompt.saturating_sub(sequence.prompt_left)) as f64;
            pass.prompt_rows += count;
            pass.prompt_context += count * (before + count / 2.0);
        }
        let alone = self.active.len() == 1 && pass.prompt_rows <= 0.0;
        if alone {
            let rows = self.active[0].demand.alone_rows.max(1.0);
            pass.decode_rows *= rows;
            pass.decode_context *= rows;
        }
        self.now += self.cost.ms(&pass, self.settings.speeds);
        self.result.passes += 1;
        for (sequence, cut) in self.active.iter_mut().zip(cut) {
            let gave = match (sequence.prompt_left == 0, sequence.prompt_left == cut) {
                (true, _) if alone => sequence.demand.alone_tokens.max(1.0),
                (true, _) => 1.0,
                (false, true) => {
                    self.first[sequence.item] = Some(self.now);
                    1.0
                }
                (false, false) => 0.0,
            };
            sequence.prompt_left -= cut;
            sequence.done += gave;
            sequence.left -= gave;
        }
        // A little is left of a sum of fractions.
        let (ended, going) = (self.active.drain(..))
            .partition(|sequence: &Active| sequence.prompt_left == 0 && sequence.left < 1e-6);
        self.active = going;
        for sequence in ended {
            self.ending.push(sequence.item);
            self.end_all();
        }
    }
}
