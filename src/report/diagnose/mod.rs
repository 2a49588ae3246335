//! What made a run as long as it was: stages by their share of the wall time, what would help, and
//! by how much at most. It sees records only.

mod advice;
mod causes;
mod prefixes;
mod present;
mod server;
mod stages;
#[cfg(test)]
mod tests;
mod text;

use serde::Serialize;

use crate::record::warning::Warning;
use crate::record::{RunRecord, Status, StepRecord};
use crate::report::warnings;

use present::Present;

pub use present::Setting;
pub use text::{markdown, seconds};

/// Version of the layout of [`Diagnosis`].
const SCHEMA: u32 = 1;

/// A diagnosis. Shares are of `wall_s`; times are seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    /// Version of this layout.
    pub schema: u32,
    /// The run.
    pub run_id: String,
    /// How far it came.
    pub status: Status,
    /// What the stages are from: `profile` (`--profile`), or `records` (the steps' own times).
    pub source: Source,
    /// Time that is looked at: the profile's, or expansion, pool and benchmark.
    pub wall_s: f64,
    /// Time in which no stage was open.
    pub idle_s: f64,
    /// What would help, the most first.
    pub causes: Vec<Cause>,
    /// The stages, by their share.
    pub stages: Vec<Finding>,
    /// What the run has warned of.
    pub warnings: Vec<Warning>,
    /// What to keep in mind.
    pub notes: Vec<String>,
}

/// Where the stages' times are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The profile.
    Profile,
    /// The steps' times.
    Records,
}

/// A thing that can be changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cause {
    /// Names it for programs: `engine_restarts`.
    pub id: &'static str,
    /// What is wrong.
    pub title: String,
    /// The stage where the time goes.
    pub stage: &'static str,
    /// The figures that say so.
    pub evidence: String,
    /// What would help, and is not so in the run.
    pub advice: String,
    /// The settings that this is about, as they are in the run; empty where it is about none.
    pub settings: Vec<Setting>,
    /// The most that it could save.
    pub saves_s: f64,
}

/// How much a stage weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiagnosisVerdict {
    /// Half of the wall time or more.
    Critical,
    /// A tenth or more.
    Significant,
    /// A hundredth or more; or every call pays 100 ms or more for its own start.
    Moderate,
    /// Less.
    NotABottleneck,
}

impl DiagnosisVerdict {
    /// As people read it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Significant => "significant",
            Self::Moderate => "moderate",
            Self::NotABottleneck => "not a bottleneck",
        }
    }

    fn of(share: f64) -> Self {
        match share {
            share if share >= 0.5 => Self::Critical,
            share if share >= 0.1 => Self::Significant,
            share if share >= 0.01 => Self::Moderate,
            _ => Self::NotABottleneck,
        }
    }
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Its name.
    pub stage: String,
    /// How much it weighs.
    pub verdict: DiagnosisVerdict,
    /// `split_s` / `wall_s`.
    pub share: f64,
    /// How often it began.
    pub calls: u64,
    /// `union_s` / `calls`: where calls overlap, less than a call took.
    pub mean_s: f64,
    /// Time in which it was open, however many times at once.
    pub union_s: f64,
    /// Time in which it alone was at work: the most that doing away with it could save.
    pub exposed_s: f64,
    /// Its equal share of the time in which it was at work beside others.
    pub split_s: f64,
    /// What would help in general, as far as the run has it not; empty where nothing would.
    pub advice: String,
}

/// Diagnoses a run. `steps` are all of its steps that ended.
pub fn diagnose(run: &RunRecord, steps: &[StepRecord]) -> Diagnosis {
    let shares = stages::shares(run, steps);
    let present = Present {
        run,
        steps,
        profiled: shares.source == Source::Profile,
    };
    let mut findings: Vec<Finding> = shares
        .stages
        .iter()
        .filter(|stage| stage.calls > 0)
        .map(|stage| finding(stage, shares.wall_s, &present))
        .collect();
    findings.sort_by(|a, b| b.share.total_cmp(&a.share));
    Diagnosis {
        schema: SCHEMA,
        run_id: run.run_id.clone(),
        status: run.status,
        source: shares.source,
        wall_s: shares.wall_s,
        idle_s: shares.idle_s,
        causes: causes::causes(&present, &shares),
        stages: findings,
        warnings: warnings::of(run, steps).into_owned(),
        notes: notes(run, steps, &shares),
    }
}

/// Least time a call that a start of its own is worth a word.
const START_S: f64 = 0.1;

fn finding(stage: &stages::Stage, wall_s: f64, present: &Present) -> Finding {
    let share = if wall_s > 0.0 {
        stage.split_s / wall_s
    } else {
        0.0
    };
    let mean_s = stage.union_s / stage.calls.max(1) as f64;
    // These are nothing but the start of something, again and again.
    let starts = ["engine_init", "evaluate.start_up", "flow_expansion"];
    let raised = starts.contains(&stage.name.as_str()) && stage.calls > 1 && mean_s >= START_S;
    let verdict = match DiagnosisVerdict::of(share) {
        DiagnosisVerdict::NotABottleneck if raised => DiagnosisVerdict::Moderate,
        verdict => verdict,
    };
    Finding {
        verdict,
        share,
        calls: stage.calls,
        mean_s,
        union_s: stage.union_s,
        exposed_s: stage.exposed_s,
        split_s: stage.split_s,
        advice: advice::advice(&stage.name, present),
        stage: stage.name.clone(),
    }
}

fn notes(run: &RunRecord, steps: &[StepRecord], shares: &stages::Shares) -> Vec<String> {
    let mut notes = Vec::new();
    match run.status {
        Status::Complete => {}
        Status::Running => notes.push(
            "The run has not ended, or its process was killed: only steps that ended are counted."
                .to_owned(),
        ),
        Status::Failed | Status::Incomplete => notes.push(format!(
            "The run did not end well ({}): the time of steps that failed counts as idle.",
            run.error.as_deref().unwrap_or("no reason was kept")
        )),
    }
    if shares.source == Source::Records {
        notes.push(
            "The stages are derived from the steps' times: prefill and decode of a request count \
             while they last, also where a pass computed others. A run with PROFILE=1 tells more \
             stages, and these more exactly."
                .to_owned(),
        );
    }
    if steps.iter().all(|step| step.queue_ms.is_none()) && !steps.is_empty() {
        notes.push("No queue wait is in the records: it counts as prefill.".to_owned());
    }
    if run.comparison.is_some() {
        notes.push(
            "MODE=both: the stages are of the rounds of both modes together; diagnose a run of one \
             mode to tell them apart."
                .to_owned(),
        );
    }
    notes
}
