//! What a recorded run would have taken under other settings.
//!
//! `recording` reads the run as a graph of requests and judgements, `observed` recovers its forward passes from the
//! times of its tokens, `cost` fits what a pass costs, and `simulate` runs the graph again. Predictions are the
//! recorded figures times the ratio of two replays, with and without the change, so that what the model leaves
//! out of both cancels.

mod cost;
mod least_squares;
mod observed;
mod recording;
mod simulate;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::config::WhatIf;
use crate::error::{Error, Result};
use crate::record::what_if::Predicted;
use crate::record::{RunRecord, StepRecord, WorkflowRecord};
use crate::statistics::mean;
use crate::units::plural;

use cost::{PassCost, Speeds};
use observed::{Alone, Observed};
use recording::{Recording, Request, Work};
use simulate::{Answers, Demand, Replayed, Settings, replay};

/// Tokens of a pass where the record does not say it: what servers of the field take by default.
const SERVER_PASS_TOKENS: usize = 2048;

/// Alone for fewer passes, a run shows nothing of drafts.
const FEWEST_ALONE: usize = 20;

/// A run, its costs, and a replay with its own settings.
#[derive(Debug, Clone)]
pub struct Replayer {
    recording: Recording,
    cost: PassCost,
    alone: Vec<Alone>,
    largest_batch: f64,
    kind: Kind,
    concurrency: usize,
    sequences: usize,
    pass_tokens: usize,
    speculates: bool,
    caches: bool,
    /// Prompt tokens by step id that a prefix cache could reuse, as a mean.
    reusable: BTreeMap<String, f64>,
    /// Steps that continue a conversation.
    appends: BTreeSet<String>,
    /// Time of this process before a request can be computed.
    host_ms: f64,
    measured: Measured,
    fitted: usize,
    /// With the settings of the run.
    base: Replayed,
    notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Local,
    Remote,
    Scripted,
}

/// What the run measured, in milliseconds.
#[derive(Debug, Clone, PartialEq, Default)]
struct Measured {
    total: f64,
    /// From the first submission to the end of the last step.
    span: f64,
    workflow: Vec<f64>,
    ttft: Vec<f64>,
    tpot: Vec<f64>,
    latency: Vec<Vec<f64>>,
}

/// A prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    pub quantities: Vec<Predicted>,
    pub notes: Vec<String>,
}

impl Replayer {
    /// Reads a run: its record, and all of its steps.
    ///
    /// # Errors
    /// Exit code 2 if the run is of a kind that cannot be replayed, or no workflow of it succeeded.
    pub fn of(record: &RunRecord, steps: &[StepRecord]) -> Result<Self> {
        refuse(record)?;
        let whole: BTreeSet<usize> = (record.workflows.iter())
            .filter(|flow| is_whole(flow))
            .map(|flow| flow.flow)
            .collect();
        if whole.is_empty() {
            return Err(not_replayable(record, "no workflow of it succeeded")
                .hint("name a run whose workflows ended"));
        }
        let of_whole = steps.iter().filter(|step| whole.contains(&step.flow));
        let steps: Vec<StepRecord> = of_whole.cloned().collect();
        let mut notes = Vec::new();
        let dropped = record.expansion.num_flows.saturating_sub(whole.len());
        if dropped > 0 {
            notes.push(format!(
                "{dropped} of {} workflows did not succeed and are left out",
                record.expansion.num_flows
            ));
        }
        let engine = |name: &str| record.engine.get(name);
        let kind = match engine("kind").and_then(Value::as_str) {
            Some("remote") => Kind::Remote,
            Some("scripted") => Kind::Scripted,
            _ => Kind::Local,
        };
        let count = |name: &str| Some(engine(name)?.as_u64()? as usize);
        let pass_tokens = count("pass_tokens").unwrap_or(match kind {
            Kind::Local => 256,
            _ => SERVER_PASS_TOKENS,
        });
        let sequences = match count("max_sequences") {
            Some(most) => most,
            None if engine("backend").and_then(Value::as_str) == Some("generic") => 1,
            None => usize::MAX,
        };
        let recording = Recording::of(&steps);
        let Observed {
            passes,
            alone,
            largest_batch,
        } = match kind {
            Kind::Local => observed::of_passes(&recording, &steps, pass_tokens.max(1)),
            Kind::Remote => observed::of_requests(&recording, &steps),
            Kind::Scripted => Observed::default(),
        };
        if kind == Kind::Remote && largest_batch <= 0.0 {
            return Err(not_replayable(
                record,
                "its answers came in one piece each, so that \
                 nothing is known of the server's passes",
            )
            .hint("record a run with streamed answers"));
        }
        let setting = |name: &str| record.settings.get(name);
        let concurrency = setting("concurrency").and_then(Value::as_u64).unwrap_or(1) as usize;
        let reuses = recording
            .requests()
            .any(|(_, request)| request.reused > 0 && request.leader.is_none());
        let caches = match setting("mode").and_then(Value::as_str) {
            Some("reuse") => true,
            Some("standalone") => false,
            _ => reuses,
        };
        let measured = Measured::of(record, &steps, &recording);
        let mut replayer = Self {
            cost: PassCost::fit(&passes),
            alone,
            largest_batch,
            kind,
            concurrency: concurrency.max(1),
            sequences,
            pass_tokens: pass_tokens.max(1),
            speculates: setting("speculate").and_then(Value::as_bool) == Some(true),
            caches,
            reusable: reusable(record, &recording),
            appends: (record.expansion.steps.iter())
                .filter(|step| step.appends)
                .map(|step| step.step.clone())
                .collect(),
            host_ms: host_time(&recording),
            measured,
            fitted: passes.len(),
            base: Replayed::default(),
            notes,
            recording,
        };
        replayer.base = replayer.replay(&WhatIf::default())?;
        Ok(replayer)
    }

    /// Passes of the engine, or streams of a server, from which costs are known.
    pub fn fitted(&self) -> usize {
        self.fitted
    }

    /// The time of a replay with the run's own settings by the measured time, less 1. Both are of the
    /// whole benchmark.
    pub fn replay_error(&self) -> f64 {
        let outside = self.measured.total - self.measured.span;
        (outside + self.base.total) / self.measured.total - 1.0
    }

    /// Predicts the run under other settings.
    ///
    /// # Errors
    /// Exit code 2 if the run shows nothing of a setting.
    pub fn predict(&self, changes: &WhatIf) -> Result<Prediction> {
        let changed = self.replay(changes)?;
        let mut quantities = Vec::new();
        let measured = &self.measured;
        let mut predict = |quantity: &str, step: Option<&String>, recorded: f64, predicted: f64| {
            if recorded > 0.0 && predicted.is_finite() {
                quantities.push(Predicted {
                    quantity: quantity.to_owned(),
                    step: step.cloned(),
                    recorded,
                    predicted,
                    change: predicted / recorded - 1.0,
                });
            }
        };
        let ratio = |one: f64, other: f64| if other > 0.0 { one / other } else { 1.0 };
        // What is outside of the flows, such as the engine's start, stays.
        let outside = measured.total - measured.span;
        let total = outside + measured.span * ratio(changed.total, self.base.total);
        predict("benchmark_total_ms", None, measured.total, total);
        let means = [
            (
                "workflow_ms",
                &measured.workflow,
                &changed.flows,
                &self.base.flows,
            ),
            ("ttft_ms", &measured.ttft, &changed.ttft, &self.base.ttft),
            ("tpot_ms", &measured.tpot, &changed.tpot, &self.base.tpot),
        ];
        for (quantity, recorded, changed, base) in means {
            if let (Some(recorded), Some(changed), Some(base)) =
                (mean(recorded), mean(changed), mean(base))
            {
                predict(quantity, None, recorded, recorded * ratio(changed, base));
            }
        }
        for (index, name) in self.recording.names.iter().enumerate() {
            if let (Some(recorded), Some(changed), Some(base)) = (
                mean(&measured.latency[index]),
                mean(&changed.latency[index]),
                mean(&self.base.latency[index]),
            ) {
                predict(
                    "latency_ms",
                    Some(name),
                    recorded,
                    recorded * ratio(changed, base),
                );
            }
        }
        Ok(Prediction {
            quantities,
            notes: self.notes(changes),
        })
    }

    /// What a prediction assumes.
    fn notes(&self, changes: &WhatIf) -> Vec<String> {
        let mut notes = self.notes.clone();
        let concurrency = changes.concurrency.unwrap_or(self.concurrency);
        if self.kind == Kind::Scripted {
            notes.push("a script answers every request as if it were alone".to_owned());
            return notes;
        }
        if concurrency > self.concurrency {
            notes.push(format!(
                "no pass of the run had more than {}: the cost of larger batches follows from its prompts, whose \
                 tokens are also computed side by side",
                plural(self.largest_batch.max(1.0).ceil() as usize, "sequence")
            ));
            notes.push("memory for keys and values is taken to suffice".to_owned());
        }
        let alone: usize = self.alone.iter().map(|alone| alone.passes).sum();
        if self.speculates
            && changes.speculate != Some(false)
            && concurrency < self.concurrency
            && alone < FEWEST_ALONE
        {
            notes.push(
                "flows that are alone speculate, and the run shows nothing of that: it would be faster where \
                 answers repeat the prompt"
                    .to_owned(),
            );
        }
        if changes.prefix_cache == Some(true) && !self.caches {
            notes.push(
                "what is reused follows from the bytes that prompts share, and answers are taken to differ"
                    .to_owned(),
            );
        }
        if changes.max_tokens.is_some() {
            notes.push("later prompts stay as long as they were".to_owned());
        }
        notes
    }

    fn replay(&self, changes: &WhatIf) -> Result<Replayed> {
        let demands = self.demands(changes)?;
        let settings = Settings {
            concurrency: changes.concurrency.unwrap_or(self.concurrency),
            sequences: self.sequences.max(1),
            pass_tokens: self.pass_tokens,
            speeds: Speeds {
                decode: changes.decode_speed.unwrap_or(1.0),
                prefill: changes.prefill_speed.unwrap_or(1.0),
            },
            evaluation_speed: changes.evaluation_speed.unwrap_or(1.0),
            max_tokens: changes.max_tokens,
            answers: match self.kind {
                Kind::Scripted => Answers::AsRecorded,
                _ => Answers::InPasses,
            },
        };
        Ok(replay(&self.recording, &settings, &self.cost, &demands))
    }

    /// What is computed for each item.
    fn demands(&self, changes: &WhatIf) -> Result<Vec<Demand>> {
        let computes = self.kind != Kind::Scripted;
        if !computes && (changes.prefix_cache.is_some() || changes.speculate.is_some()) {
            return Err(unknown(
                "prefix_cache and speculate",
                "a script computes nothing",
            ));
        }
        if changes.speculate == Some(true) && !(self.speculates && self.kind == Kind::Local) {
            return Err(unknown("speculate=on", "the run made no drafts"));
        }
        let caches = changes.prefix_cache.unwrap_or(self.caches);
        if caches && !self.caches && self.reusable.is_empty() {
            return Err(unknown(
                "prefix_cache=on",
                "the run does not say how much its prompts share: it has over 1,000 flows, or is of an earlier \
                 version",
            ));
        }
        let speculates = self.speculates && changes.speculate != Some(false);
        let pooled = self.pooled();
        let mut demands = vec![Demand::default(); self.recording.items.len()];
        for (item, request) in self.recording.requests() {
            let name = self.recording.items[item].step.unwrap_or(0);
            let reused = match (caches, self.caches) {
                (true, true) | (false, false) => request.reused,
                // Samples of one prompt share it without a cache.
                (false, true) if request.leader.is_some() => request.reused,
                (false, true) => 0,
                (true, false) => {
                    let most = request.prompt.saturating_sub(1);
                    self.shared(&self.recording.names[name], request)
                        .clamp(request.reused.min(most), most)
                }
            };
            let (alone_tokens, alone_rows) = match speculates {
                true => alone_of(request, self.alone.get(item), pooled),
                false => (1.0, 1.0),
            };
            let (host_ms, delay_ms) = match self.kind {
                Kind::Remote => (0.0, self.cost.of_request()),
                _ => (self.host_ms, 0.0),
            };
            demands[item] = Demand {
                prompt: request.prompt - reused.min(request.prompt),
                host_ms,
                delay_ms,
                alone_tokens,
                alone_rows,
            };
        }
        Ok(demands)
    }

    /// Prompt tokens that a prefix cache would reuse.
    fn shared(&self, step: &str, request: &Request) -> usize {
        let of_text = self.reusable.get(step).map_or(0.0, |known| known.round());
        let earlier = request.after.filter(|_| self.appends.contains(step));
        let of_turn = match earlier.map(|item| self.recording.items[item].work) {
            // Of the last token that was generated, keys and values were never computed.
            Some(Work::Request(turn)) => (turn.prompt + turn.decode).saturating_sub(1),
            _ => 0,
        };
        (of_text as usize).max(of_turn)
    }

    /// Tokens and rows of a pass in which a sequence decodes alone, over the whole run.
    fn pooled(&self) -> (f64, f64) {
        let passes: usize = self.alone.iter().map(|alone| alone.passes).sum();
        if passes < FEWEST_ALONE {
            return (1.0, 1.0);
        }
        let tokens: usize = self.alone.iter().map(|alone| alone.tokens).sum();
        let drafted: usize = (self.recording.requests())
            .map(|(_, request)| request.drafted)
            .sum();
        let passes = passes as f64;
        (tokens as f64 / passes, 1.0 + drafted as f64 / passes)
    }
}

/// Its own figures if it was alone for at least half of its tokens.
fn alone_of(request: &Request, alone: Option<&Alone>, pooled: (f64, f64)) -> (f64, f64) {
    match alone {
        Some(alone) if alone.passes > 0 && 2 * alone.tokens >= request.decode => {
            let passes = alone.passes as f64;
            (
                alone.tokens as f64 / passes,
                1.0 + request.drafted as f64 / passes,
            )
        }
        _ => pooled,
    }
}

impl Measured {
    fn of(record: &RunRecord, steps: &[StepRecord], recording: &Recording) -> Self {
        let starts = steps.iter().map(|step| step.start_ms.0);
        let ends = steps.iter().map(|step| step.start_ms.0 + step.latency_ms.0);
        let begin = starts.fold(f64::INFINITY, f64::min);
        let end = ends.fold(0.0, f64::max);
        let span = (end - begin).max(0.0);
        let asked = || steps.iter().filter(|step| step.asks_a_model());
        let mut latency = vec![Vec::new(); recording.names.len()];
        for (item, source) in recording.items.iter().zip(&recording.sources) {
            if let (Some(name), Some(source)) = (item.step, source) {
                latency[name].push(steps[*source].latency_ms.0);
            }
        }
        let flows = record.workflows.iter().filter(|flow| is_whole(flow));
        Self {
            total: record.totals.benchmark_total_ms.map_or(span, |ms| ms.0),
            span,
            workflow: flows.map(|flow| flow.workflow_ms.0).collect(),
            ttft: asked().filter_map(|step| Some(step.ttft_ms?.0)).collect(),
            tpot: asked().filter_map(|step| Some(step.tpot_ms?.0)).collect(),
            latency,
        }
    }
}

/// The shortest wait before a first pass: what this process does for a request itself, in milliseconds.
fn host_time(recording: &Recording) -> f64 {
    let waits = recording
        .requests()
        .map(|(_, request)| request.queue - request.start);
    let shortest = waits.fold(f64::INFINITY, f64::min);
    if shortest.is_finite() { shortest } else { 0.0 }
}

/// Prompt tokens that a cache could reuse of each step, from bytes: the text that is known at expansion has the
/// fewest tokens a byte where no answers of earlier steps are in the prompt.
fn reusable(record: &RunRecord, recording: &Recording) -> BTreeMap<String, f64> {
    let mut tokens: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (item, request) in recording.requests() {
        if let Some(name) = recording.items[item].step {
            let (sum, count) = tokens.entry(&recording.names[name]).or_default();
            *sum += request.prompt;
            *count += 1;
        }
    }
    let requests = |step: &str| tokens.get(step).copied().filter(|(_, count)| *count > 0);
    let known = || (record.expansion.steps.iter()).filter(|step| step.prompt_bytes > 0);
    let flows = record.expansion.num_flows.max(1) as f64;
    // Bytes are counted once for all samples of a prompt, and over all flows.
    let rates = known().filter_map(|step| {
        let (sum, count) = requests(&step.step)?;
        let in_loops = count as f64 / (flows * step.samples.max(1) as f64);
        let bytes = step.prompt_bytes as f64 / (flows * in_loops.max(1.0));
        Some(sum as f64 / count as f64 / bytes)
    });
    let tokens_per_byte = rates.fold(f64::INFINITY, f64::min);
    if !tokens_per_byte.is_finite() {
        return BTreeMap::new();
    }
    known()
        .filter_map(|step| {
            let (_, count) = requests(&step.step)?;
            let in_loops = count as f64 / (flows * step.samples.max(1) as f64);
            let bytes = step.reusable_bytes as f64 / (flows * in_loops.max(1.0));
            Some((step.step.clone(), bytes * tokens_per_byte))
        })
        .collect()
}

fn is_whole(flow: &WorkflowRecord) -> bool {
    flow.error.is_none() && flow.steps_done == flow.steps && flow.steps > 0
}

/// Runs whose times are not those of one engine in one process.
fn refuse(record: &RunRecord) -> Result<()> {
    let is_set = |name: &str| record.settings.get(name).and_then(Value::as_bool) == Some(true);
    let reason =
        if record.comparison.is_some() || record.workflows.iter().any(|flow| flow.mode.is_some()) {
            "it has rounds of two modes"
        } else if !record.shards.is_empty() {
            "it was merged from several runs"
        } else if record.segments.len() > 1 {
            "it was resumed, so that its times are those of several processes"
        } else if is_set("engine_per_workflow") {
            "it started an engine for each workflow"
        } else if record.workflows.iter().any(|flow| flow.rerun) {
            "disturbed workflows were run again at its end"
        } else {
            return Ok(());
        };
    Err(not_replayable(record, reason)
        .hint("name a run in one mode, in one process, with one engine"))
}

fn not_replayable(record: &RunRecord, reason: &str) -> Error {
    Error::usage(format!("{}: cannot be replayed: {reason}", record.run_id))
}

fn unknown(setting: &str, reason: &str) -> Error {
    Error::usage(format!(
        "{setting} cannot be predicted from this run: {reason}"
    ))
    .hint("make a run with that setting, or leave it out of --what-if")
}

/// The changes that turn the settings of one run into those of another, as far as they can be predicted.
/// `None` if there are none.
pub fn changes_between(one: &RunRecord, other: &RunRecord) -> Option<WhatIf> {
    let number = |record: &RunRecord, name: &str| record.settings.get(name).and_then(Value::as_u64);
    let is_set =
        |record: &RunRecord, name: &str| record.settings.get(name).and_then(Value::as_bool);
    let caches = |record: &RunRecord| match record.settings.get("mode").and_then(Value::as_str) {
        Some("reuse") => Some(true),
        Some("standalone") => Some(false),
        _ => None,
    };
    let changed = |one: Option<usize>, other: Option<usize>| other.filter(|_| one != other);
    let switched = |one: Option<bool>, other: Option<bool>| other.filter(|_| one != other);
    let count = |record: &RunRecord, name: &str| number(record, name).map(|count| count as usize);
    let changes = WhatIf {
        concurrency: changed(count(one, "concurrency"), count(other, "concurrency")),
        prefix_cache: switched(caches(one), caches(other)),
        speculate: switched(is_set(one, "speculate"), is_set(other, "speculate")),
        max_tokens: changed(count(one, "max_tokens"), count(other, "max_tokens")),
        ..WhatIf::default()
    };
    (changes != WhatIf::default()).then_some(changes)
}

/// The facts of a run that [`changes_between`] can bridge, by their names in the settings.
pub const PREDICTABLE: [&str; 4] = ["concurrency", "mode", "speculate", "max_tokens"];
