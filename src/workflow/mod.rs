//! Runs flows on an engine and measures them. The only place that joins engine, flow and evaluation.
//!
//! ```text
//! run ─► runner (begins what is ready, measures what ends, restores what ended before)
//!          ├─ flow_state, step_state (a flow so far)
//!          ├─ step, judge (requests)   measure (records)   accounts (usage, limits)
//!          └─ graph (dependencies)
//! ```

mod accounts;
mod conversations;
mod flow_state;
mod graph;
mod in_flight;
mod judge;
mod lengths;
mod measure;
mod runner;
mod step;
mod step_state;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::{Engine, Message, Origin, Script};
use crate::error::{Error, Result};
use crate::evaluate::{self, Evaluator, Verifier};
use crate::flow::{Flow, Scored, Work};
use crate::record::evaluation::{GenerationRecord, TrialRecord};
use crate::record::{StepRecord, WorkflowRecord};
use crate::stopwatch::Moment;
use crate::units::Millis;

use flow_state::{FlowState, Flows};
use runner::Runner;
use step::RequestBuilder;

pub use accounts::{Accounts, Reached};
pub use flow_state::max_parallel_requests;
pub use lengths::check_lengths;

/// What flows are run with.
pub struct Services<'a> {
    pub engine: &'a mut dyn Engine,
    /// Runs programs; `None` if no flow has any.
    pub evaluator: Option<&'a mut dyn Evaluator>,
    pub verifier: &'a mut Verifier,
    /// Usage, cost, and the limits at which the run stops.
    pub accounts: &'a mut Accounts,
    /// Recorded texts that later steps are given in place of generated ones.
    pub pins: Option<&'a Script>,
}

/// How flows are run.
#[derive(Debug, Clone)]
pub struct RunnerOptions {
    /// Flows in flight, at least 1; with 1 they run one after another.
    pub concurrency: usize,
    /// Tokens that a step generates, at most; by default the flow's limit.
    pub max_tokens: Option<usize>,
    /// Generate to the limit, past any end-of-sequence token.
    pub ignore_eos: bool,
    pub seed: u64,
    /// The run's segment, from 2 on; `None` for the first.
    pub segment: Option<usize>,
    /// Steps that ended in earlier segments, by flow. They are not run again, and the observer is not told of
    /// them.
    pub ended: Arc<HashMap<usize, Vec<StepRecord>>>,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self {
            concurrency: 1,
            max_tokens: None,
            ignore_eos: false,
            seed: 0,
            segment: None,
            ended: Arc::default(),
        }
    }
}

/// Receives measurements as soon as they are made.
pub trait Observer {
    /// A step ended well.
    ///
    /// # Errors
    /// If it could not be saved or printed; the run stops.
    fn step_ended(&mut self, step: StepRecord) -> Result<()>;

    /// A workflow ended, with an `error` if it failed.
    ///
    /// # Errors
    /// As [`Observer::step_ended`].
    fn workflow_ended(
        &mut self,
        workflow: WorkflowRecord,
        response: &Response,
        error: Option<&Error>,
    ) -> Result<()>;

    /// Whether [`Observer::prompt_sent`] is to be called.
    fn wants_prompts(&self) -> bool {
        false
    }

    /// A request was submitted. `text` is the prompt that the model is given, if the engine renders it
    /// itself.
    fn prompt_sent(&mut self, _origin: &Origin, _messages: &[Message], _text: Option<String>) {}

    /// A generated program was run and scored, or could not be run.
    ///
    /// # Errors
    /// As [`Observer::step_ended`].
    fn trial_ended(&mut self, _trial: &TrialRecord) -> Result<()> {
        Ok(())
    }

    /// A trial of an earlier segment is part of the flow.
    ///
    /// # Errors
    /// As [`Observer::step_ended`].
    fn trial_kept(&mut self, _trial: &TrialRecord) -> Result<()> {
        Ok(())
    }

    /// A generation of an earlier segment is part of the flow. Its end is that of its last recorded step.
    ///
    /// # Errors
    /// As [`Observer::step_ended`].
    fn generation_kept(&mut self, _generation: &GenerationRecord) -> Result<()> {
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

/// The result of a flow.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Response {
    /// The text that the last judging step judged, or else the last step's answer.
    pub text: Option<String>,
    /// The answer extracted from the text.
    pub answer: Option<String>,
    pub outcome: Option<String>,
    /// Mean score of the answers of the last step that judges; `None` if there is none, or if one of the
    /// answers could not be judged.
    pub reward: Option<f64>,
    /// The same mean with 0 for an answer without a score; `None` if no step judges, or if the evaluator
    /// itself failed on one of the answers.
    pub reward_floor: Option<f64>,
}

impl Response {
    fn of(running: &FlowState) -> Self {
        let ended = |index: &usize| running.steps[*index].readable().is_some();
        let steps = running.flow.steps.iter().enumerate().rev();
        let judges = |work: &Work| !matches!(work, Work::Generate(_));
        let last_judged = steps.clone().find(|(_, step)| judges(&step.work));
        let last = match last_judged {
            Some((index, _)) => Some(index).filter(ended),
            None => steps.map(|(index, _)| index).find(ended),
        };
        let Some(readable) = last.and_then(|index| running.steps[index].readable()) else {
            return Self::default();
        };
        let scored = readable.scored.as_deref().unwrap_or_default();
        let scores: Option<Vec<f64>> = scored.iter().map(|scored| scored.score).collect();
        // A failure of the evaluator says nothing about the answer.
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

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every flow ended, well or with an error.
    Ended,
    /// Flows are missing.
    Interrupted,
    /// A limit was reached. Flows are missing.
    Limited(Reached),
}

/// Runs `flows` in order. Times in records count from `origin`, the start of the benchmark; the engine is
/// synchronised before each reading of the clock.
///
/// # Errors
/// If the engine as a whole or the observer fails. A failing step ends its own flow only. Exit code 3,
/// before any flow begins, if the chat template rejects the flows' conversations.
pub fn run(
    services: &mut Services,
    flows: &[Flow],
    options: &RunnerOptions,
    origin: Moment,
    interrupted: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    (services.engine).try_conversations(&conversations::kinds(flows))?;
    let mut runner = Runner {
        services,
        options,
        origin,
        observer,
        requests: RequestBuilder::default(),
        flows: Flows::default(),
        in_flight: HashMap::new(),
        evaluations: HashMap::new(),
        checks: HashMap::new(),
        immediate: VecDeque::new(),
        half_judged: HashMap::new(),
        overlap: Millis::default(),
    };
    let mut waiting: VecDeque<&Flow> = flows.iter().collect();
    loop {
        if interrupted.load(Ordering::Relaxed) {
            runner.cancel_all()?;
            return Ok(Outcome::Interrupted);
        }
        if runner.flows.is_empty() && waiting.is_empty() {
            return Ok(Outcome::Ended);
        }
        if let Some(reached) = runner.services.accounts.reached() {
            runner.cancel_all()?;
            return Ok(Outcome::Limited(reached));
        }
        while runner.flows.len() < options.concurrency.max(1) {
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
