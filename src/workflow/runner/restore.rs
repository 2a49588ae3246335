//! Restores the steps of a flow that ended in earlier segments of the run, and goes on from there.
//!
//! A step's record holds its answer, program's outcome or verdict. The conversation that the answer ends, and the
//! program in it, are made again from the flow: they follow from the steps before. Nothing is restored of a
//! selection, or of a judge whose answer was decided before: they have no records, and are made again at once.

use std::collections::{BTreeMap, HashMap};

use super::Runner;
use super::begin::entry_points;
use super::end::{
    begins_with_each_sample, generation_ended, judged_item, not_pinned, selected, trial, trial_item,
};
use crate::engine::Request;
use crate::error::{Error, Result};
use crate::evaluate::{program, verify};
use crate::flow::{Scored, Work};
use crate::record::StepRecord;
use crate::record::evaluation::TrialRecord;
use crate::stopwatch::Moment;
use crate::workflow::flow_state::FlowState;
use crate::workflow::in_flight::SampleId;
use crate::workflow::judge;
use crate::workflow::step_state::SampleResult;

/// The records of a flow's steps that are not restored yet.
struct Records<'r> {
    /// By step and sample (of a judge: request), from 0.
    left: HashMap<&'r str, BTreeMap<usize, &'r StepRecord>>,
}

impl<'r> Records<'r> {
    fn new(ended: &'r [StepRecord]) -> Self {
        let mut left: HashMap<&str, BTreeMap<usize, &StepRecord>> = HashMap::new();
        for record in ended {
            let sample = record.sample.map_or(0, |sample| sample.saturating_sub(1));
            left.entry(&record.step).or_default().insert(sample, record);
        }
        Self { left }
    }

    fn take(&mut self, step: &str, sample: usize) -> Option<&'r StepRecord> {
        self.left.get_mut(step)?.remove(&sample)
    }

    /// Takes two, or neither if one of them is missing.
    fn take_both(&mut self, step: &str, samples: [usize; 2]) -> Option<[&'r StepRecord; 2]> {
        let of_step = self.left.get_mut(step)?;
        let [one, other] = samples.map(|sample| of_step.get(&sample).copied());
        let both = [one?, other?];
        of_step.retain(|sample, _| !samples.contains(sample));
        Some(both)
    }

    /// A step of which records are left.
    fn any(&self) -> Option<&'r StepRecord> {
        let all = self.left.values().flat_map(BTreeMap::values);
        all.copied().min_by_key(|record| record.label())
    }
}

impl Runner<'_, '_> {
    /// Gives a flow that has just started the steps that have `ended`, and begins what is ready then.
    ///
    /// # Errors
    /// Exit code 2 if the records are not those of the flow; further as of the steps that are begun.
    pub(super) fn restore(&mut self, flow: usize, ended: &[StepRecord]) -> Result<()> {
        let mut records = Records::new(ended);
        for step in 0..self.flows.get(flow)?.steps.len() {
            // What failed then fails now.
            if let Err(error) = self.restore_step(flow, step, &mut records)? {
                return self.fail(flow, error);
            }
        }
        if let Some(left) = records.any() {
            let label = left.label();
            return Err(Error::usage(format!(
                "flow {flow}, step {label} has ended, but not what it needs"
            ))
            .hint("steps.jsonl was changed after the run: start a new one"));
        }
        match self.flows.get_mut(flow)?.all_restored() {
            true => {
                let now = Moment::now(self.services.engine)?;
                self.end(flow, now, None)
            }
            false => self.begin_remaining(flow),
        }
    }

    /// Restores the samples of a step that have ended, and takes their records out of `records`. The inner
    /// error is the flow's own.
    fn restore_step(
        &mut self,
        flow: usize,
        step: usize,
        records: &mut Records,
    ) -> Result<Result<()>> {
        let running = self.flows.get(flow)?;
        let is_ready = needs_have_ended(running, step);
        match &running.step(step).work {
            Work::Select(select) if is_ready => {
                let kept = selected(running, select);
                self.flows.get_mut(flow)?.steps[step].end_all(kept);
            }
            Work::Select(_) => {}
            Work::Generate(_) => {
                if is_ready && let Err(error) = self.restore_answers(flow, step, records)? {
                    return Ok(Err(error));
                }
            }
            Work::Evaluate(_) | Work::Verify(_) | Work::Judge(_) => {
                for sample in 0..running.steps[step].samples() {
                    let place = SampleId { flow, step, sample };
                    if let Err(error) = self.restore_judged(place, is_ready, records)? {
                        return Ok(Err(error));
                    }
                }
            }
        }
        let running = self.flows.get_mut(flow)?;
        if running.steps[step].readable().is_some() {
            let end = running.restored(step);
            if let Some(generation) = generation_ended(running, step, end) {
                self.observer.generation_kept(&generation)?;
            }
        }
        Ok(Ok(()))
    }

    /// Restores the answers of a step that generates.
    fn restore_answers(
        &mut self,
        flow: usize,
        step: usize,
        records: &mut Records,
    ) -> Result<Result<()>> {
        let running = self.flows.get_mut(flow)?;
        let Work::Generate(generate) = &running.step(step).work else {
            return Ok(Ok(()));
        };
        let id = running.step(step).id.as_str();
        let mut request: Option<Request> = None;
        for sample in 0..generate.samples {
            let Some(record) = records.take(id, sample) else {
                continue;
            };
            let request = match &request {
                Some(request) => request,
                None => match (self.requests).generate(running, step, generate, self.options) {
                    Ok(made) => request.insert(made),
                    Err(error) => {
                        let context = format!("flow {flow}, step {id}: not run");
                        return Ok(Err(error.context(context)));
                    }
                },
            };
            let mut origin = request.origin.clone();
            origin.sample = sample + 1;
            running.earlier.add(step, record);
            let text = match self.services.pins.map(|pins| pins.text(&origin)) {
                None => record.output.as_str(),
                Some(Some(pinned)) => pinned,
                Some(None) => return Ok(Err(not_pinned(flow, record))),
            };
            running.tokens += record.tokens;
            let item = SampleResult {
                text: text.to_owned(),
                messages: request.messages.clone(),
                ..SampleResult::default()
            };
            running.steps[step].end(sample, item);
        }
        Ok(Ok(()))
    }

    /// Restores a sample of a step that works on another step's samples, if it has ended.
    fn restore_judged(
        &mut self,
        place: SampleId,
        is_ready: bool,
        records: &mut Records,
    ) -> Result<Result<()>> {
        let SampleId { flow, step, sample } = place;
        let running = self.flows.get_mut(flow)?;
        let work = &running.step(step).work;
        let id = running.step(step).id.as_str();
        let of = work.of().first().and_then(|of| running.item_of(of, sample));
        let Some(of) = of.cloned() else {
            return Ok(Ok(()));
        };
        let item = match work {
            Work::Generate(_) | Work::Select(_) => return Ok(Ok(())),
            Work::Evaluate(evaluate) => {
                let Some(record) = records.take(id, sample) else {
                    return Ok(Ok(()));
                };
                let code = program::of_answer(&of.text, entry_points(evaluate));
                running.earlier.add(step, record);
                running.tokens += record.tokens;
                let trial = TrialRecord {
                    start_ms: record.start_ms,
                    latency_ms: record.latency_ms,
                    evaluation: record.evaluation.clone(),
                    ..trial(running, place, scored(record), code)
                };
                self.observer.trial_kept(&trial)?;
                trial_item(place, trial)
            }
            Work::Verify(_) => {
                let Some(record) = records.take(id, sample) else {
                    return Ok(Ok(()));
                };
                running.earlier.add(step, record);
                running.tokens += record.tokens;
                SampleResult {
                    text: of.text,
                    scored: Some(scored(record)),
                    origin: Some((step, sample)),
                    ..SampleResult::default()
                }
            }
            Work::Judge(_) => {
                let decided = of.scored.as_ref();
                if decided.is_some_and(|scored| scored.outcome != verify::UNDECIDED) {
                    if !is_ready {
                        return Ok(Ok(()));
                    }
                    of
                } else {
                    let requests = [2 * sample, 2 * sample + 1];
                    let Some(requests) = records.take_both(id, requests) else {
                        return Ok(Ok(()));
                    };
                    for record in requests {
                        running.earlier.add(step, record);
                        running.tokens += record.tokens;
                        if record.outcome.is_none() {
                            return Ok(Err(not_pinned(flow, record)));
                        }
                    }
                    let same = |record: &StepRecord| {
                        verify::Verdict::named(record.outcome.as_deref()).same()
                    };
                    let [one, other] = requests.map(same);
                    let verdict = verify::Verdict::of(judge::together(one, other));
                    judged_item(running, place, verdict)
                }
            }
        };
        self.flows.get_mut(flow)?.steps[step].end(sample, item);
        Ok(Ok(()))
    }

    /// Begins what is ready in a flow whose steps have been restored: steps whose needs have ended, and samples
    /// of steps that work on the samples of an unfinished step.
    fn begin_remaining(&mut self, flow: usize) -> Result<()> {
        let running = self.flows.get(flow)?;
        let is_open = |step: &usize| running.steps[*step].readable().is_none();
        let open: Vec<usize> = (0..running.steps.len()).filter(is_open).collect();
        let ready = |step: &usize| needs_have_ended(running, *step);
        let ready: Vec<usize> = open.iter().copied().filter(ready).collect();
        let mut places = Vec::new();
        for &of in &open {
            let id = &running.step(of).id;
            let ended = |sample: &usize| running.steps[of].item(*sample).is_some();
            for step in running.graph.wait_only_for(of) {
                let work = &running.step(step).work;
                if begins_with_each_sample(work) && work.of().contains(id) {
                    let samples = (0..running.steps[of].samples()).filter(ended);
                    places.extend(samples.map(|sample| SampleId { flow, step, sample }));
                }
            }
        }
        for place in places {
            if let Err(error) = self.begin_sample(place) {
                return self.not_run(flow, place.step, error);
            }
        }
        self.begin_all(flow, ready)
    }
}

fn needs_have_ended(running: &FlowState, step: usize) -> bool {
    let mut needs = running.graph.needs(step).iter();
    needs.all(|need| running.steps[*need].readable().is_some())
}

/// The score and the outcome in a record.
fn scored(record: &StepRecord) -> Scored {
    Scored {
        score: record.score,
        outcome: record.outcome.clone().unwrap_or_default(),
        detail: record.detail.clone().unwrap_or_default(),
        answer: record.answer.clone(),
    }
}
