//! The output lines of a run. Their keys are never renamed: nightly jobs parse them.

use std::fmt;
use std::path::Path;

use crate::record::evaluation::{GenerationRecord, RolloutRecord, ScoreRecord};
use crate::record::metrics::Distribution;
use crate::record::{ExpansionRecord, RoundRecord, StepRecord, Totals, WorkflowRecord};
use crate::units::{Millis, plural};

/// `[INPUT] fixture_bytes=… fixture_files=…`
pub fn input(expansion: &ExpansionRecord) -> String {
    format!(
        "[INPUT] fixture_bytes={} fixture_files={}",
        expansion.fixture_bytes, expansion.fixture_files
    )
}

/// `[TIMING] flow_expansion_ms=… (cached)`
pub fn flow_expansion(expansion: &ExpansionRecord) -> String {
    let cached = if expansion.cached { " (cached)" } else { "" };
    format!(
        "[TIMING] flow_expansion_ms={}{cached}",
        expansion.flow_expansion_ms
    )
}

/// `[TIMING] engine_init_ms=…`
pub fn engine_init(init: Millis) -> String {
    format!("[TIMING] engine_init_ms={init}")
}

/// `[TIMING] pool_init_ms=…`
pub fn pool_init(init: Millis) -> String {
    format!("[TIMING] pool_init_ms={init}")
}

/// `[GENERATION] flow=… generation=… trials=… valid=… best_score=… selected=… selected_score=…`
pub fn generation(generation: &GenerationRecord) -> String {
    format!(
        "[GENERATION] flow={}{} generation={} trials={} valid={} best_score={} selected={} \
         selected_score={}",
        generation.flow,
        match generation.r#loop {
            0 | 1 => String::new(),
            further => format!(" loop={further}"),
        },
        generation.generation,
        generation.trials,
        generation.outcomes.get("ok").copied().unwrap_or(0),
        Score(generation.best_score),
        generation
            .selected
            .map_or("null".to_owned(), |trial| trial.to_string()),
        Score(generation.selected_score)
    )
}

/// `[SCORE] step=… kind=… count=… ok=… timeout=… mean=… min=… median=… max=…`, one line per judged
/// step.
pub fn scores(totals: &Totals) -> Vec<String> {
    let line = |score: &ScoreRecord| {
        let mut line = format!(
            "[SCORE] step={} kind={} count={}",
            score.step, score.kind, score.count
        );
        for (outcome, count) in &score.outcomes {
            line.push_str(&format!(" {outcome}={count}"));
        }
        line + &spread(score.score.as_ref())
    };
    totals.scores.iter().map(line).collect()
}

/// `[FAILURES] step=… failed=… of=… outcome=… count=… first="…"`: the most frequent reasons why
/// programs of a step failed, one line each. Program output is escaped.
pub fn failures(totals: &Totals) -> Vec<String> {
    let mut lines = Vec::new();
    for score in &totals.scores {
        let good = score.outcomes.get("ok").copied().unwrap_or(0);
        let head = format!(
            "[FAILURES] step={} failed={} of={}",
            score.step,
            score.count.saturating_sub(good),
            score.count
        );
        for failure in &score.failures {
            let (outcome, count, detail) = (&failure.outcome, failure.count, &failure.detail);
            lines.push(format!(
                "{head} outcome={outcome} count={count} first={detail:?}"
            ));
        }
    }
    lines
}

/// `[REWARD] rows=… repeats=… done=… failed=… unjudged=… mean=… min=… median=… max=… std=…
/// mean_reward=…`: `mean` covers the judged flows, `mean_reward` counts the others as 0.
pub fn rollouts(rollouts: &RolloutRecord) -> String {
    format!(
        "[REWARD] rows={} repeats={} done={} failed={} unjudged={}{} mean_reward={}",
        rollouts.rows,
        rollouts.repeats,
        rollouts.done,
        rollouts.failed,
        rollouts.unjudged,
        spread(rollouts.reward.as_ref()),
        Score(rollouts.mean_reward)
    )
}

/// `[REWARD] flows=… judged=… mean=… min=… median=… max=… std=… undecided=… mean_reward=…`, if
/// anything was judged: `mean` covers the decided flows, `mean_reward` counts undecided ones as 0.
pub fn reward(totals: &Totals) -> Option<String> {
    let judges = !totals.scores.is_empty();
    judges.then(|| {
        format!(
            "[REWARD] flows={} judged={}{} undecided={} mean_reward={}",
            totals.workflows_done,
            totals.reward.as_ref().map_or(0, |reward| reward.count),
            spread(totals.reward.as_ref()),
            totals.undecided,
            Score(totals.mean_reward)
        )
    })
}

fn spread(of: Option<&Distribution>) -> String {
    let of = of.cloned();
    format!(
        " mean={} min={} median={} max={} std={}",
        Score(of.as_ref().map(|of| of.mean)),
        Score(of.as_ref().map(|of| of.min)),
        Score(of.as_ref().and_then(|of| of.median)),
        Score(of.as_ref().map(|of| of.max)),
        Score(of.as_ref().and_then(|of| of.deviation)),
    )
}

/// Formats a score with four decimals.
struct Score(Option<f64>);

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(score) => write!(f, "{score:.4}"),
            None => f.write_str("null"),
        }
    }
}

/// The line of a step: `[TARGET]`, or `[EVALUATE]` or `[VERIFY]` for a step judged without the
/// model.
pub fn target(step: &StepRecord) -> String {
    let mut line = match step.kind() {
        "evaluate" | "verify" => judged(step),
        _ => generated(step),
    };
    if step.rerun {
        line.push_str(" rerun=1");
    }
    line
}

/// `[EVALUATE] flow=… step=… sample=… outcome=… score=… latency_ms=… run_ms=… overhead_ms=…`, or
/// `[VERIFY]` without the last two.
fn judged(step: &StepRecord) -> String {
    let mut line = format!(
        "[{}] flow={} step={} sample={} outcome={} score={} latency_ms={}",
        step.kind().to_uppercase(),
        step.flow,
        step.step,
        step.sample.unwrap_or(1),
        step.outcome.as_deref().unwrap_or("null"),
        Score(step.score),
        step.latency_ms
    );
    if let Some(times) = &step.evaluation {
        let overhead = times.start_up_ms + times.stop_ms + times.validate_ms;
        line.push_str(&format!(" run_ms={} overhead_ms={overhead}", times.run_ms));
    }
    line
}

/// `[TARGET] flow=… step=… latency_ms=… ttft_ms=… prompt_tokens=… prefill_tokens=… reused_tokens=…
/// decode_tokens=… out_hash=…`, with `attempts=…` before the hash if there was more than one.
fn generated(step: &StepRecord) -> String {
    let sample = step
        .sample
        .map_or(String::new(), |sample| format!(" sample={sample}"));
    let attempts = match step.attempts {
        None | Some(1) => String::new(),
        Some(attempts) => format!(" attempts={attempts}"),
    };
    format!(
        "[TARGET] flow={} step={}{sample} latency_ms={} ttft_ms={} prompt_tokens={} prefill_tokens={} \
         reused_tokens={} decode_tokens={}{attempts} out_hash={}",
        step.flow,
        step.step,
        step.latency_ms,
        OrNull(step.ttft_ms),
        step.tokens.prompt,
        step.tokens.prefill,
        step.tokens.reused,
        step.tokens.decode,
        step.out_hash
    )
}

/// `[TIMING] workflow_1_ms=…`, followed by `(failed)` for an incomplete workflow, and by `(again)` for one that
/// was run again.
pub fn workflow(workflow: &WorkflowRecord) -> String {
    let failed = if workflow.error.is_some() {
        " (failed)"
    } else {
        ""
    };
    let rerun = if workflow.rerun { " (again)" } else { "" };
    format!(
        "[TIMING] workflow_{}_ms={}{failed}{rerun}",
        workflow.flow, workflow.workflow_ms
    )
}

/// `[ROUND] round=… mode=… total_ms=… mean_workflow_ms=… prefill_tokens=… reused_tokens=…
/// decode_tokens=…`, followed by `(incomplete)` for a round that is not compared.
pub fn round(round: &RoundRecord) -> String {
    let remark = if round.complete { "" } else { " (incomplete)" };
    format!(
        "[ROUND] round={} mode={} total_ms={} mean_workflow_ms={} prefill_tokens={} \
         reused_tokens={} decode_tokens={}{remark}",
        round.round,
        round.mode,
        round.total_ms,
        OrNull(round.mean_workflow_ms),
        round.prefill_tokens,
        round.reused_tokens,
        round.decode_tokens
    )
}

/// `[TIMING] benchmark_total_ms=…` and `[TIMING] avg_workflow_ms=…`, followed by a remark if the
/// totals do not cover all flows.
pub fn totals(totals: &Totals, num_flows: usize) -> Vec<String> {
    let done = totals.workflows_done;
    let remark = if done == num_flows {
        String::new()
    } else if done + totals.workflows_failed == num_flows {
        let workflows = plural(num_flows, "workflow");
        format!(" ({} of {workflows} failed)", totals.workflows_failed)
    } else {
        format!(" (incomplete: {done} of {})", plural(num_flows, "workflow"))
    };
    vec![
        format!(
            "[TIMING] benchmark_total_ms={}{remark}",
            OrNull(totals.benchmark_total_ms)
        ),
        format!(
            "[TIMING] avg_workflow_ms={}{remark}",
            OrNull(totals.avg_workflow_ms)
        ),
    ]
}

/// `[RUN] path=…`, the last line: the run's folder. The path is the rest of the line.
pub fn run(folder: &Path) -> String {
    format!("[RUN] path={}", folder.display())
}

struct OrNull(Option<Millis>);

impl fmt::Display for OrNull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("null"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TokenCounts;

    fn totals_of(done: usize, failed: usize) -> Totals {
        Totals {
            workflows_done: done,
            workflows_failed: failed,
            benchmark_total_ms: Some(Millis(1234.5)),
            avg_workflow_ms: (done > 0).then_some(Millis(61.0)),
            ..Totals::default()
        }
    }

    #[test]
    fn step_and_workflow_lines() {
        let mut step = StepRecord {
            schema: 1,
            flow: 3,
            row: "r".to_owned(),
            step: "planner".to_owned(),
            latency_ms: Millis(12.345),
            ttft_ms: Some(Millis(1.5)),
            tokens: TokenCounts {
                prompt: 10,
                prefill: 8,
                reused: 2,
                decode: 4,
                ..TokenCounts::default()
            },
            finish: "stop".to_owned(),
            out_hash: "00112233aabbccdd".to_owned(),
            output: "never printed".to_owned(),
            ..StepRecord::default()
        };
        insta::assert_snapshot!(target(&step), @"[TARGET] flow=3 step=planner latency_ms=12.35 ttft_ms=1.50 prompt_tokens=10 prefill_tokens=8 reused_tokens=2 decode_tokens=4 out_hash=00112233aabbccdd");
        step.attempts = Some(1);
        assert!(!target(&step).contains("attempts"));
        step.attempts = Some(3);
        assert!(target(&step).contains(" decode_tokens=4 attempts=3 out_hash="));
        step.ttft_ms = None;
        assert!(target(&step).contains(" ttft_ms=null "));
        step.rerun = true;
        assert!(target(&step).ends_with("out_hash=00112233aabbccdd rerun=1"));

        let mut flow = WorkflowRecord {
            flow: 3,
            row: "r".to_owned(),
            segment: None,
            resumed: false,
            start_ms: Millis(0.0),
            workflow_ms: Millis(99.0),
            engine_init_ms: None,
            steps_done: 3,
            steps: 3,
            error: None,
            reward: None,
            reward_floor: None,
            tokens: TokenCounts::default(),
            ..WorkflowRecord::default()
        };
        assert_eq!(workflow(&flow), "[TIMING] workflow_3_ms=99.00");
        flow.error = Some("broke".to_owned());
        assert_eq!(workflow(&flow), "[TIMING] workflow_3_ms=99.00 (failed)");
        flow.error = None;
        flow.rerun = true;
        assert_eq!(workflow(&flow), "[TIMING] workflow_3_ms=99.00 (again)");
    }

    #[test]
    fn partial_totals_are_marked() {
        insta::assert_snapshot!(totals(&totals_of(25, 0), 25).join("\n"), @r"
        [TIMING] benchmark_total_ms=1234.50
        [TIMING] avg_workflow_ms=61.00
        ");
        insta::assert_snapshot!(totals(&totals_of(24, 1), 25).join("\n"), @r"
        [TIMING] benchmark_total_ms=1234.50 (1 of 25 workflows failed)
        [TIMING] avg_workflow_ms=61.00 (1 of 25 workflows failed)
        ");
        insta::assert_snapshot!(totals(&totals_of(0, 1), 25).join("\n"), @r"
        [TIMING] benchmark_total_ms=1234.50 (incomplete: 0 of 25 workflows)
        [TIMING] avg_workflow_ms=null (incomplete: 0 of 25 workflows)
        ");
    }
}
