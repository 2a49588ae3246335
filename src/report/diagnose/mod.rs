//! Explains where the time of a run went: stages by their share of the wall time, known causes, and
//! how much fixing each could save at most. It reads records only.

mod advice;
mod causes;
mod prefixes;
mod present;
mod server;
mod stages;
#[cfg(test)]
mod tests;
mod text;
mod what_if;

use serde::Serialize;

use crate::record::profile::DeviceTimes;
use crate::record::warning::Warning;
use crate::record::{RunRecord, Status, StepRecord};
use crate::report::warnings;

use present::Present;

pub use present::Setting;
pub use text::{markdown, seconds};
pub use what_if::what_if;

/// Version of the layout of [`Diagnosis`].
const SCHEMA: u32 = 1;

/// A diagnosis. Shares refer to `wall_s`; times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    pub schema: u32,
    pub run_id: String,
    pub status: Status,
    /// Source of the stage times: `profile` (`--profile`), or `records` (step times).
    pub source: Source,
    /// Time covered: the profile's, or expansion, pool start-up and benchmark.
    pub wall_s: f64,
    /// Time in which no stage was open.
    pub idle_s: f64,
    /// Largest possible saving first.
    pub causes: Vec<Cause>,
    /// Largest share first.
    pub stages: Vec<Finding>,
    /// Device time by kind of kernel, of a run with `--profile` on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceTimes>,
    /// Warnings of the run.
    pub warnings: Vec<Warning>,
    /// Caveats.
    pub notes: Vec<String>,
}

/// Source of the stage times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The profile.
    Profile,
    /// The times of the steps.
    Records,
}

/// A known cause of a long run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cause {
    /// Identifier for programs: `engine_restarts`.
    pub id: &'static str,
    /// Description of the problem.
    pub title: String,
    /// Stage in which the time is spent.
    pub stage: &'static str,
    /// Measurements that show it.
    pub evidence: String,
    /// What would help and the run does not do already.
    pub advice: String,
    /// Related settings with their values in the run; may be empty.
    pub settings: Vec<Setting>,
    /// Upper bound on the saving.
    pub saves_s: f64,
}

/// Severity of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiagnosisVerdict {
    /// At least 50 % of the wall time.
    Critical,
    /// At least 10 %.
    Significant,
    /// At least 1 %; or each call spends at least 100 ms on its start-up.
    Moderate,
    /// Less than 1 %.
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
    pub stage: String,
    pub verdict: DiagnosisVerdict,
    /// `split_s` / `wall_s`.
    pub share: f64,
    /// Number of calls.
    pub calls: u64,
    /// `union_s` / `calls`: less than the duration of a call if calls overlap.
    pub mean_s: f64,
    /// Time in which at least one call was open.
    pub union_s: f64,
    /// Time in which only this stage was active: an upper bound on what removing it could save.
    pub exposed_s: f64,
    /// Active time, split equally while several stages are active.
    pub split_s: f64,
    /// General advice that the run does not follow already; may be empty.
    pub advice: String,
}

/// Diagnoses a run. `steps` are all of its finished steps.
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
        device: run
            .profile
            .as_ref()
            .and_then(|profile| profile.device.clone()),
        warnings: warnings::of(run, steps).into_owned(),
        notes: notes(run, steps, &shares),
    }
}

/// A repeated start-up is worth a remark from this time per call on.
const START_S: f64 = 0.1;

fn finding(stage: &stages::Stage, wall_s: f64, present: &Present) -> Finding {
    let share = if wall_s > 0.0 {
        stage.split_s / wall_s
    } else {
        0.0
    };
    let mean_s = stage.union_s / stage.calls.max(1) as f64;
    // These stages are pure start-up, repeated.
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
            "The run did not succeed ({}): the time of failed steps counts as idle.",
            run.error.as_deref().unwrap_or("no reason was kept")
        )),
    }
    if shares.source == Source::Records {
        notes.push(
            "The stages are derived from the steps' times: prefill and decode of a request count for \
             their whole duration, even while a pass computes other requests. A run with PROFILE=1 \
             measures more stages, and these more precisely."
                .to_owned(),
        );
    }
    if steps.iter().all(|step| step.queue_ms.is_none()) && !steps.is_empty() {
        notes.push("The records contain no queue wait: it counts as prefill.".to_owned());
    }
    if run.comparison.is_some() {
        notes.push(
            "MODE=both: the stages combine the rounds of both modes; diagnose a run of a single \
             mode to separate them."
                .to_owned(),
        );
    }
    notes
}
