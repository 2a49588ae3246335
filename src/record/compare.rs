//! `flowbench compare`: what is read of the runs, and the verdicts on how they differ.

use serde::{Deserialize, Serialize};

use super::validity::Taint;
use super::{RunRecord, TokenCounts};
use crate::units::Millis;

/// A run as `compare` reads it: the record, and of each step what is measured, without its texts.
#[derive(Debug, Clone)]
pub struct MeasuredRun {
    pub record: RunRecord,
    pub steps: Vec<MeasuredStep>,
}

/// The fields of a `StepRecord` that comparisons use.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct MeasuredStep {
    pub flow: usize,
    pub step: String,
    #[serde(default)]
    pub kind: Option<String>,
    #[serde(default)]
    pub sample: Option<usize>,
    #[serde(default)]
    pub generation: Option<usize>,
    #[serde(default)]
    pub segment: Option<usize>,
    pub start_ms: Millis,
    #[serde(default)]
    pub queue_ms: Option<Millis>,
    pub latency_ms: Millis,
    #[serde(default)]
    pub ttft_ms: Option<Millis>,
    #[serde(default)]
    pub tpot_ms: Option<Millis>,
    #[serde(flatten)]
    pub tokens: TokenCounts,
    #[serde(default)]
    pub out_hash: String,
    #[serde(default)]
    pub attempts: Option<usize>,
    #[serde(default)]
    pub round: Option<usize>,
    #[serde(default)]
    pub mode: Option<String>,
    #[serde(default)]
    pub tainted: Vec<Taint>,
    #[serde(default)]
    pub rerun: bool,
    #[serde(default)]
    pub discarded: bool,
}

impl MeasuredStep {
    /// Whether the step asked a model.
    pub fn generates(&self) -> bool {
        super::asks_a_model(self.kind.as_deref())
    }
}

/// What a comparison says of a metric, or as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verdict {
    /// Worse by more than the threshold, and the interval excludes no change.
    Regressed,
    /// Better by more than the threshold, and the interval excludes no change.
    Improved,
    /// The whole interval lies within the threshold.
    Pass,
    /// The runs do not tell.
    NoVerdict,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Regressed => "REGRESSED",
            Self::Improved => "IMPROVED",
            Self::Pass => "PASS",
            Self::NoVerdict => "NO_VERDICT",
        }
    }
}

/// `compare -o json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompareRecord {
    /// [`super::RECORD_SCHEMA`].
    pub schema: u32,
    /// The worst of the metrics' verdicts: `REGRESSED`, then `NO_VERDICT`, `IMPROVED`, `PASS`.
    pub verdict: Verdict,
    pub base: Vec<RunName>,
    pub new: Vec<RunName>,
    /// What differs between the two sides and is being compared; empty if nothing differs.
    pub subject: Vec<Difference>,
    /// What differs besides, and was accepted by `--allow-different`.
    pub allowed: Vec<Difference>,
    /// Flows that ended well in every run.
    pub flows: usize,
    /// Flows that are left out, because a run does not have them or they failed in it.
    pub flows_left_out: usize,
    pub metrics: Vec<MetricVerdict>,
    /// Why the new runs must not be judged by; empty if they may.
    pub invalid: Vec<Invalid>,
    /// `--max` and `--goodput`, of each new run.
    pub gates: Vec<GateResult>,
    /// Steps whose outputs differ between the two sides.
    pub outputs: Vec<ChangedOutputs>,
}

/// A run of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunName {
    pub run_id: String,
    pub folder: String,
    pub started_at: String,
}

/// A fact that differs between the two sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// As in `--subject` and `--allow-different`.
    pub name: String,
    pub base: String,
    pub new: String,
}

/// How a metric changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricVerdict {
    /// Such as `workflow_ms`.
    pub metric: String,
    /// The step's id if the metric is of one step.
    pub step: Option<String>,
    pub verdict: Verdict,
    /// Geometric mean over flows and runs of each side.
    pub base: f64,
    pub new: f64,
    /// new / base − 1.
    pub change: f64,
    /// The same as the median over flows.
    pub change_median: f64,
    /// Interval of `change`; `null` if the noise of runs is unknown.
    pub interval: Option<ChangeInterval>,
    /// The smallest change that would have been found with a probability of 80 %; `null` as above.
    pub smallest_visible: Option<f64>,
    pub threshold: f64,
    /// How much runs differ from each other with nothing changed.
    pub noise: Noise,
    /// Standard deviation of the flows' own changes, as a share: the scatter within runs. `null` below two
    /// flows.
    pub scatter: Option<f64>,
    /// Flows (for step metrics: steps) that were compared.
    pub compared: usize,
    /// `NO_VERDICT` only: how many more runs of each side would settle it, if the change and the noise stay
    /// as they are; `null` if 100 would not.
    pub more_runs: Option<usize>,
    /// Whether time is judged at equal numbers of tokens, because outputs changed and nothing explains it.
    pub at_equal_tokens: bool,
    /// The parts of `change`, by size. They add up to it.
    pub causes: Vec<Cause>,
}

/// A confidence interval of a change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChangeInterval {
    pub low: f64,
    pub high: f64,
    /// At least 0.95; more where several metrics are tested (Holm's method).
    pub coverage: f64,
}

/// The differences between runs of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Noise {
    /// Standard deviation of a run's logarithmic mean, about the share by which a run differs; `null` if
    /// unknown.
    pub deviation: Option<f64>,
    /// Effective degrees of freedom of `deviation`; `null` if it is unknown or was assumed.
    pub degrees: Option<f64>,
    /// `runs`: these runs alone; `history`: with earlier ones; `assumed`: `--assume-noise`; `unknown`.
    pub source: String,
    /// Runs from the history that were used.
    pub history_runs: usize,
}

/// A part of a change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cause {
    /// Share of the baseline, as `change` is.
    pub part: f64,
    /// The step's id without its generation; `*`: all steps that are not listed.
    pub step: String,
    /// `prefill_tokens`, `decode_tokens`: work. `prefill_ms_per_token`, `decode_ms_per_token`: cost.
    /// `queue`, `evaluation`, `idle`, `request`, `engine_init`, `path`: time.
    pub term: String,
    /// Mean per flow of the term.
    pub from: f64,
    pub to: f64,
    pub why: String,
}

/// A step whose outputs differ between the two sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChangedOutputs {
    /// The step's id without its generation.
    pub step: String,
    /// Outputs that were compared.
    pub compared: usize,
    pub differing: usize,
    /// Outputs that also differ among runs of one side.
    pub unstable: usize,
}

/// Why a run must not be judged by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalid {
    /// Identifier for programs, such as `flows_missing`; `docs/nightly.md` lists them.
    pub reason: String,
    /// The run.
    pub run_id: String,
    /// A sentence without a full stop.
    pub detail: String,
}

/// A limit that was given on the command line, and what the run has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GateResult {
    /// `max` or `goodput`.
    pub gate: String,
    /// As it was given: `ttft_ms:200`.
    pub limit: String,
    /// In the unit of the limit; a share for goodput.
    pub value: f64,
    pub passed: bool,
}
