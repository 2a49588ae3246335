//! Runs flows on an engine and measures them. The one place that joins engine, flow and evaluation.
//!
//! ```text
//! run ─► runner (what is ready begins, what ends is measured) ─► running, item (a flow's steps so far)
//!          ├─ step, judge (requests)   measure (records)   accounts (usage, limits)
//!          └─ graph (who waits for whom)
//! ```

mod accounts;
mod conversations;
mod graph;
mod item;
mod judge;
mod lengths;
mod measure;
mod runner;
mod running;
mod step;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::{Engine, Message, Origin, Script};
use crate::error::{Error, Result};
use crate::evaluate::{self, Evaluator, Verifier};
use crate::flow::{Flow, Scored, Work};
use crate::record::evaluation::{GenerationRecord, TrialRecord};
use crate::record::{StepRecord, WorkflowRecord};
use crate::stopwatch::Moment;
use crate::units::Millis;

use runner::Runner;
use running::Running;
use step::RequestBuilder;

pub use accounts::{Accounts, Reached};
pub use lengths::check_lengths;
pub use running::width;

/// What flows are run with.
pub struct Means<'a> {
    /// Answers requests.
    pub engine: &'a mut dyn Engine,
    /// Runs programs; `None` where no flow has any.
    pub evaluator: Option<&'a mut dyn Evaluator>,
    /// Checks answers.
    pub verifier: &'a mut Verifier,
    /// Keeps count of what was asked.
    pub accounts: &'a mut Accounts,
    /// Recorded texts that later steps are given in place of what is generated now.
    pub pins: Option<&'a Script>,
}

/// How flows are run.
#[derive(Debug, Clone)]
pub struct RunnerOptions {
    /// Flows in flight, at least 1; with 1 they run one after another.
    pub concurrency: usize,
    /// Most tokens a step generates; `None`: as the flow says.
    pub max_tokens: Option<usize>,
    /// Generate to the limit, past any end-of-sequence token.
    pub ignore_eos: bool,
    /// The run's seed.
    pub seed: u64,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self {
            concurrency: 1,
            max_tokens: None,
            ignore_eos: false,
            seed: 0,
        }
    }
}

/// Is told what was measured, as soon as it was.
pub trait Observer {
    /// A step ended well.
    ///
    /// # Errors
    /// Where it could not be kept or shown; the run stops.
    fn step_ended(&mut self, step: &StepRecord) -> Result<()>;

    /// A workflow ended, well or badly (`error` says so), with this response.
    ///
    /// # Errors
    /// As [`Observer::step_ended`].
    fn workflow_ended(
        &mut self,
        workflow: &WorkflowRecord,
        response: &Response,
        error: Option<&Error>,
    ) -> Result<()>;

    /// Whether prompts are to be told.
    fn wants_prompts(&self) -> bool {
        false
    }

    /// A request was handed to the engine; `text` is the prompt as the model is given it, where the
    /// engine makes that itself. Told where [`Observer::wants_prompts`].
    fn prompt_sent(&mut self, _origin: &Origin, _messages: &[Message], _text: Option<String>) {}

    /// A generated program was run and scored, or could not be.
    ///
    /// # Errors
    /// As [`Observer::step_ended`].
    fn trial_ended(&mut self, _trial: &TrialRecord) -> Result<()> {
        Ok(())
    }

    /// The last step of a generation with trials has ended.
    ///
    /// # Errors
    /// As [`Observer::step_ended`].
    fn generation_ended(&mut self, _generation: &GenerationRecord) -> Result<()> {
        Ok(())
    }
}

/// What a flow came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Response {
    /// The text: what the last judged answers were judged on, or else the last step's answer.
    pub text: Option<String>,
    /// The answer that was taken from it.
    pub answer: Option<String>,
    /// What it was found to be.
    pub outcome: Option<String>,
    /// The mean score of the answers of the last step that judges; `None` with none, or where one of
    /// them could not be judged.
    pub reward: Option<f64>,
    /// The same mean, in which an answer without a score counts 0; `None` where nothing judges, or where
    /// the machinery failed under one of them.
    pub reward_floor: Option<f64>,
}

impl Response {
    fn of(running: &Running) -> Self {
        let ended = |index: &usize| running.nodes[*index].readable().is_some();
        let steps = running.flow.steps.iter().enumerate().rev();
        let judges = |work: &Work| !matches!(work, Work::Generate(_));
        let last_judged = steps.clone().find(|(_, step)| judges(&step.work));
        let last = match last_judged {
            Some((index, _)) => Some(index).filter(ended),
            None => steps.map(|(index, _)| index).find(ended),
        };
        let Some(readable) = last.and_then(|index| running.nodes[index].readable()) else {
            return Self::default();
        };
        let scored = readable.scored.as_deref().unwrap_or_default();
        let scores: Option<Vec<f64>> = scored.iter().map(|scored| scored.score).collect();
        // What the machinery failed at says nothing about the answer.
        let is_known = |scored: &&Scored| scored.outcome != evaluate::Outcome::InfraError.as_str();
        let all_known = scored.iter().all(|scored| is_known(&scored));
        let floors = scored.iter().map(|scored| scored.score.unwrap_or(0.0));
        let mean = |scores: Vec<f64>| {
            (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
        };
        Self {
            text: readable.texts.first().cloned(),
            answer: scored.first().and_then(|scored| scored.answer.clone()),
            outcome: scored.first().map(|scored| scored.outcome.clone()),
            reward: scores.and_then(mean),
            reward_floor: mean(floors.collect()).filter(|_| all_known),
        }
    }
}

/// How a run came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every flow was run, well or badly.
    Ended,
    /// It was interrupted; flows are missing.
    Interrupted,
    /// A limit was reached; flows are missing.
    Limited(Reached),
}

/// Runs `flows` in their order. Times in the records count from `origin`, the start of the
/// benchmark; the engine is synchronised before each reading of the clock.
///
/// # Errors
/// Where the engine as a whole, or the observer, can go no further. A step that fails ends its own
/// flow only. Exit code 3, before any flow begins, where the engine cannot hold their conversations.
pub fn run(
    means: &mut Means,
    flows: &[Flow],
    options: &RunnerOptions,
    origin: Moment,
    interrupted: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    (means.engine).try_conversations(&conversations::kinds(flows))?;
    let mut runner = Runner {
        means,
        options,
        origin,
        observer,
        requests: RequestBuilder::default(),
        running: BTreeMap::new(),
        in_flight: HashMap::new(),
        evaluations: HashMap::new(),
        checks: HashMap::new(),
        settled: VecDeque::new(),
        half_judged: HashMap::new(),
        overlap: Millis::default(),
    };
    let mut waiting: VecDeque<&Flow> = flows.iter().collect();
    loop {
        if interrupted.load(Ordering::Relaxed) {
            runner.cancel_all()?;
            return Ok(Outcome::Interrupted);
        }
        if runner.running.is_empty() && waiting.is_empty() {
            return Ok(Outcome::Ended);
        }
        if let Some(reached) = runner.means.accounts.reached() {
            runner.cancel_all()?;
            return Ok(Outcome::Limited(reached));
        }
        while runner.running.len() < options.concurrency.max(1) {
            let Some(flow) = waiting.pop_front() else {
                break;
            };
            runner.start(flow)?;
        }
        runner.poll()?;
    }
}

#[cfg(test)]
mod tests;
