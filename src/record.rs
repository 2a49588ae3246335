//! What a run leaves behind: `results/<run-id>/run.json` and `steps.jsonl`, as plain structs. The doc
//! comments are the descriptions in `docs/*.schema.json`.

pub mod bench;
pub mod compare;
pub mod evaluation;
pub mod gpu;
pub mod history;
pub mod load;
pub mod metrics;
pub mod profile;
pub mod remote;
pub mod repetition;
#[cfg(test)]
mod schema;
pub mod segment;
pub mod shard;
pub mod shortage;
mod tokens;
pub mod trend;
pub mod validity;
pub mod warning;
pub mod what_if;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::Millis;
use compare::{ChangeInterval, Verdict};
use evaluation::{
    EvaluationRecord, EvaluatorRecord, RolloutRecord, ScoreRecord, UsageRecord, VerificationRecord,
};
use gpu::GpuRecord;
use load::LoadRecord;
use metrics::{CriticalStep, Distribution, PositionRecord};
use remote::RemoteRecord;
use repetition::Repetition;
use segment::Segment;
use shard::{Shard, ShardRun};
use shortage::MemoryShortage;
use validity::{Taint, ValidityRecord};
use warning::Warning;

pub use tokens::TokenCounts;

/// Version of the layout of [`RunRecord`] and [`StepRecord`]; incremented when a field changes
/// meaning.
pub const RECORD_SCHEMA: u32 = 1;

/// `run.json`: the whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RunRecord {
    /// [`RECORD_SCHEMA`].
    pub schema: u32,
    /// Name of the run's folder: UTC start time, mode, and a suffix that makes it unique.
    pub run_id: String,
    /// Start of the first segment. UTC, RFC 3339.
    pub started_at: String,
    pub status: Status,
    /// Why the run ended early or failed, in one line.
    pub error: Option<String>,
    /// Settings, resolved from flags, environment and defaults.
    pub settings: BTreeMap<String, serde_json::Value>,
    pub environment: Environment,
    pub expansion: ExpansionRecord,
    /// The engine (a serialized `EngineInfo`); `null` before it was loaded.
    pub engine: serde_json::Value,
    /// Time from the request for the engine until the device is idle with the model loaded; `null` before.
    /// With one engine per workflow, the sum, and of a resumed run the sum over the segments.
    pub engine_init_ms: Option<Millis>,
    /// Start of the evaluation pool, before the engine; absent without a pool. Of a resumed run the sum over
    /// the segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_init_ms: Option<Millis>,
    /// What generated programs run on; absent if no step evaluates or verifies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluator: Option<EvaluatorRecord>,
    /// The GPU as the driver's management library reports it, in the last segment; absent if the engine uses
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRecord>,
    /// What was watched while the run, or its last segment, went on; absent before the engine is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validity: Option<ValidityRecord>,
    /// How often an engine was started: once, or once per segment; more often with `--engine-per-workflow`.
    pub engine_starts: usize,
    /// Finished and failed workflows, in the order of the flows.
    pub workflows: Vec<WorkflowRecord>,
    /// `--discard-tainted` only: the first measurements of workflows that were run again. They are in no total.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discarded: Vec<WorkflowRecord>,
    pub totals: Totals,
    /// One segment, and one more each time that the run was resumed (`--resume`). Absent if the run was merged,
    /// or is of an earlier version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
    /// Why the figures prove less than they seem to; empty while the run is in progress.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// `MODE=both` only: the rounds, and how the modes compare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// With `--output` only: the results of the rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollouts: Option<RolloutRecord>,
    /// `--profile` only: where the time of the last segment went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<profile::Profile>,
    /// With `--repetitions` only: which of them this run is. `benchmark_total_ms` is then without the start of
    /// the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition: Option<Repetition>,
    /// With `--shard` only: the part of the flows that this run has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// `flowbench merge` only: the merged runs, by shard. Times from the start of the benchmark count from
    /// the start of each run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardRun>,
}

/// The state of a run, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// In progress, or its process was killed: `steps.jsonl` has what was measured.
    Running,
    /// All flows succeeded.
    Complete,
    /// Every flow ended, but some failed, or the modes of `both` gave different outputs.
    Failed,
    /// Stopped by Ctrl-C, a limit, an engine error, or an output that could not be written.
    Incomplete,
}

/// The expansion of the flows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExpansionRecord {
    /// The template's name.
    pub template: String,
    /// SHA-256 of the fixture (64 hex digits).
    pub fixture_hash: String,
    /// SHA-256 of the template, its suite, and the files they include (64 hex digits).
    pub template_hash: String,
    /// Bytes of the fixture's included files.
    pub fixture_bytes: u64,
    /// Number of the fixture's included files (or rows).
    pub fixture_files: usize,
    pub num_flows: usize,
    /// Whether the flows came from the cache.
    pub cached: bool,
    /// Why not: `no cache`, `fixture changed`.
    pub miss: Option<String>,
    /// Duration of the expansion, with the verification of the cache.
    pub flow_expansion_ms: Millis,
    /// How much of the prompts is shared; `null` while the run is in progress, and above 1,000 flows.
    #[serde(default)]
    pub prefix: Option<PrefixRecord>,
    /// The template's source, so that a later run can tell what was changed in it; absent above 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_text: Option<String>,
    /// The template's steps that generate; steps of a loop are listed once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<PlannedStep>,
}

/// A step that generates.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedStep {
    /// Step ID, without a generation number.
    pub step: String,
    /// Number of answers per prompt.
    pub samples: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// The template's limit on the tokens of an answer; `MAX_TOKENS` is in the settings.
    pub max_tokens: usize,
    /// Whether an `evaluate`, `verify`, `judge` or `select` step uses its answers.
    pub judged: bool,
    /// Whether its prompt continues the conversation of the first step that it needs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub appends: bool,
    /// What of its prompts is known at expansion, and what a prefix cache can reuse of that, in bytes over all
    /// flows, as in [`PrefixRecord`]. 0 where that is not computed, and in records of earlier versions.
    #[serde(default, skip_serializing_if = "is_zero_bytes")]
    pub prompt_bytes: u64,
    #[serde(default, skip_serializing_if = "is_zero_bytes")]
    pub reusable_bytes: u64,
}

/// How much of the prompts a prefix cache can reuse from earlier requests, in bytes of the text known at
/// expansion. Shares of bytes are close to shares of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PrefixRecord {
    /// Prompts of all requests.
    pub prompt_bytes: u64,
    /// What can be reused with the template's order of parts.
    pub reusable_bytes: u64,
    /// What could be reused if the parts that all flows share came first.
    pub reusable_bytes_reordered: u64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WorkflowRecord {
    /// Flow number, from 1.
    pub flow: usize,
    /// ID of the suite row.
    pub row: String,
    /// The segment in which it ended, from 2 on; absent in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<usize>,
    /// Whether steps of it ended in several segments, so that its time says nothing about an undisturbed run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumed: bool,
    /// Submission of the first step, from the start of the benchmark; if it was `resumed`, of the first step
    /// in its last segment. The start of the benchmark is that of the segment.
    #[serde(default)]
    pub start_ms: Millis,
    /// Makespan: from the submission of the first step to the end of the last one. If it was `resumed`, the
    /// sum over the segments; of an earlier segment only what its recorded steps cover. The distributions in
    /// `Totals` leave resumed workflows out.
    pub workflow_ms: Millis,
    /// With an engine per workflow only: the engine's start, which `workflow_ms` excludes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_init_ms: Option<Millis>,
    /// Steps that ended well.
    pub steps_done: usize,
    /// Number of steps.
    pub steps: usize,
    /// Why the workflow failed.
    pub error: Option<String>,
    /// Mean score of the answers of the last step that judges; absent if there is none, or if one of the
    /// answers could not be judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// The same mean with 0 for an undecided answer or a failed program; absent if no step judges, or if the
    /// evaluator itself failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_floor: Option<f64>,
    #[serde(flatten, with = "tokens::without_drafts")]
    #[cfg_attr(test, schemars(with = "tokens::without_drafts::Layout"))]
    pub tokens: TokenCounts,
    /// The critical path, in order; empty if the workflow failed or was `resumed`.
    #[serde(default)]
    pub critical_path: Vec<CriticalStep>,
    /// For each step, how much later it could have ended without making the flow longer: L − its end, where
    /// L is the minimum over its dependents of their slack + end − duration since they could begin, or the
    /// end of the flow for a step without dependents. 0 on the critical path; empty if the workflow failed or
    /// was `resumed`.
    #[serde(default)]
    pub slack_ms: BTreeMap<String, Millis>,
    /// Why its times may not be what the machine can do: what held at some time from its start to its end,
    /// sorted. Set at the end of the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tainted: Vec<Taint>,
    /// Sum of its steps' `energy_joules`; absent if energy is not measured, and if it was `resumed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
    /// `--discard-tainted` only: measured at the end of the run, after a tainted first time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rerun: bool,
    /// `MODE=both` only: the round, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
    /// `MODE=both` only: the round's mode, `standalone` or `reuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// A line of `steps.jsonl`: a finished step, or one sample of a step with several.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepRecord {
    /// [`RECORD_SCHEMA`].
    pub schema: u32,
    /// Flow number, from 1.
    pub flow: usize,
    /// ID of the suite row.
    pub row: String,
    /// The step's id; in a loop followed by `.` and the generation.
    pub step: String,
    /// `evaluate`, `verify` or `judge`; absent for a step that generates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Number of the sample, from 1, if the step has several. A judge counts its requests, two per answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<usize>,
    /// Generation number in a loop, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<usize>,
    /// Direct dependencies.
    #[serde(default)]
    pub needs: Vec<String>,
    /// The run's segment in which it ended, from 2 on; absent in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<usize>,
    /// Submission, from the start of the benchmark, which is that of the segment.
    pub start_ms: Millis,
    /// Queue wait: from submission to the start of the first forward pass with a token of it; rendering and
    /// tokenization are included. `null` if the engine does not report it.
    #[serde(default)]
    pub queue_ms: Option<Millis>,
    /// End-to-end latency (E2EL): from submission to the last token; in `MODE=remote` to the end of the
    /// answer.
    pub latency_ms: Millis,
    /// Time to first token (TTFT), from submission; `null` if no token came.
    pub ttft_ms: Option<Millis>,
    /// Time per output token after the first: (E2EL − TTFT) / (n − 1); `null` below two tokens. In
    /// `MODE=remote`: (last chunk − first chunk) / (n − 1) with n tokens in the chunks; `null` also if the
    /// answer came in one burst, if n is unknown, and if fewer than 10 chunks hold more than 2 tokens each.
    pub tpot_ms: Option<Millis>,
    /// Inter-token latencies (ITL): the distribution of `gaps_ms`; `null` below two tokens.
    #[serde(default)]
    pub itl_ms: Option<Distribution>,
    /// The n − 1 times between successive tokens, to a microsecond; 0 between tokens of one pass. See
    /// `gaps_between`.
    #[serde(default)]
    pub gaps_ms: Vec<f64>,
    /// `chunks` in `MODE=remote`: `gaps_ms` and `itl_ms` lie between chunks of the stream, which may hold
    /// several tokens or none that is counted. Absent otherwise: they lie between tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gaps_between: Option<String>,
    /// `prefill_tokens` / (TTFT − queue wait); `null` without either.
    #[serde(default)]
    pub prefill_tokens_per_s: Option<f64>,
    /// 1000 / TPOT, tokens per second after the first; `null` below two tokens.
    #[serde(default)]
    pub decode_tokens_per_s: Option<f64>,
    #[serde(flatten)]
    pub tokens: TokenCounts,
    /// `stop` (the model ended its turn), `length`, or, from a server, `tool_calls`; the outcome for a step
    /// that evaluates or verifies.
    pub finish: String,
    /// First 16 hex digits of the SHA-256 of the generated token IDs (little-endian u32).
    pub out_hash: String,
    /// Generated text.
    pub output: String,
    /// Whether later steps were given a recorded text instead (`--pin-outputs`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// How a program ended (`ok`, `invalid`, `runtime_error`, `timeout`, `oom`, `crashed`, `denied`,
    /// `bad_output`, `infra_error`), or the verdict on an answer (`equal`, `unequal`, `undecided`,
    /// `no_answer`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// The score of a program; 1 for a right answer, 0 for a wrong one. Both requests of a judge have their
    /// common score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The answer extracted from the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// `evaluate` only: where the time went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<EvaluationRecord>,
    /// `MODE=remote` only: number of calls, the last of which succeeded. Times count from submission and
    /// include all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<usize>,
    /// `MODE=remote` only: who counted the tokens. `usage`: the server; `chunks`: nobody, so that each streamed
    /// chunk counts as one, and prompt tokens are 0; `chunks+tokenizer`: likewise, but the local tokenizer
    /// counted the prompt; `chunks+usage`: the server counted the prompt alone; `usage+tokenizer`: the server
    /// counted the generated tokens alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_by: Option<String>,
    /// `MODE=remote` only: reasoning tokens among `decode_tokens`, as the server counts them, or else the
    /// number of streamed reasoning chunks. Absent if there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<usize>,
    /// `MODE=remote` only: tokens among `decode_tokens` that were not streamed (hidden reasoning). If the
    /// server does not report them, a lower bound: every streamed token has at least one byte. Absent if
    /// there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_tokens: Option<usize>,
    /// `MODE=remote` only: the answer came in one piece, or faster than any engine decodes, so something in
    /// between buffered it. TTFT is then the latency, and TPOT is `null`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub burst: bool,
    /// Why its times may not be what the machine can do: what held at some time from its submission to its end,
    /// sorted. Set at the end of the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tainted: Vec<Taint>,
    /// Its share of the energy: at every moment, the power is divided equally among the steps in flight, waiting
    /// or computing. Set at the end of the run; absent if energy is not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
    /// `--discard-tainted` only: measured at the end of the run, after a tainted first time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rerun: bool,
    /// `--discard-tainted` only: replaced by another measurement of the same flow, and in no total.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discarded: bool,
    /// `MODE=both` only: the round, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
    /// `MODE=both` only: the round's mode, `standalone` or `reuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// Whether steps of this `kind` are requests to a model.
fn asks_a_model(kind: Option<&str>) -> bool {
    matches!(kind, None | Some("judge"))
}

impl StepRecord {
    /// The kind of step, as templates name it.
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("generate")
    }

    /// Whether it was a request to a model.
    pub fn asks_a_model(&self) -> bool {
        asks_a_model(self.kind.as_deref())
    }

    /// The step and its sample, for messages.
    pub fn label(&self) -> String {
        match self.sample {
            Some(sample) => format!("{} sample {sample}", self.step),
            None => self.step.clone(),
        }
    }
}

/// Sums and distributions over all workflows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Totals {
    /// Workflows that succeeded.
    pub workflows_done: usize,
    /// Workflows that failed.
    pub workflows_failed: usize,
    /// Steps that succeeded.
    pub steps_done: usize,
    #[serde(flatten)]
    pub tokens: TokenCounts,
    /// Engine init and all workflows, without the expansion; `null` while the run is in progress. Of a resumed
    /// run the sum over the segments.
    pub benchmark_total_ms: Option<Millis>,
    /// Mean over the workflows that ended well in one segment; `null` without any, and in `MODE=both`, where [`Comparison`]
    /// has the means of both modes.
    pub avg_workflow_ms: Option<Millis>,
    /// Over the workflows that ended well in one segment; `null` if `avg_workflow_ms` is.
    #[serde(default)]
    pub workflow_ms: Option<Distribution>,
    /// `ttft_ms` of all steps; `null` while the run is in progress, and in `MODE=both`.
    #[serde(default)]
    pub ttft_ms: Option<Distribution>,
    /// One entry per step id, in order of first end; empty while the run is in progress.
    #[serde(default)]
    pub positions: Vec<PositionRecord>,
    /// Usage of the model by kind of step.
    #[serde(default)]
    pub usage: Vec<UsageRecord>,
    /// One entry per judged step, in order of first end; empty while the run is in progress.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<ScoreRecord>,
    /// Rewards of the workflows; absent if nothing was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<Distribution>,
    /// Judged workflows without a reward: an answer was undecided, or a program failed.
    #[serde(default)]
    pub undecided: usize,
    /// Mean of the workflows' `reward_floor`, with 0 for undecided answers. Unlike the mean of `reward`, it
    /// does not rise when a model gives unreadable answers. Absent if nothing was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_reward: Option<f64>,
    /// How answers were checked; absent if none were. Segments that were killed are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationRecord>,
    /// Energy, measured or assumed; absent if it is neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
    /// Steps with a reason in `tainted`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub steps_tainted: usize,
    /// Steps by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tainted: BTreeMap<Taint, usize>,
    /// `MODE=remote` only: calls to the server, retries and failures. Segments that were killed are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteRecord>,
    /// Passes for which the device's memory was short.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_shortages: Vec<MemoryShortage>,
}

/// Energy of a run. Measured, it is that of the whole GPU or of the processors' packages, with their idle power
/// and whatever else they do.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Energy {
    /// `nvml_energy_counter`: the GPU's counter. `nvml_power`: the GPU's power, integrated over the readings,
    /// where there is no counter. `rapl`: the counters of the processors' packages, without their memory, in a
    /// run without a GPU. `assumed`: a constant power given by the user, only if nothing is measured.
    pub source: String,
    /// Mean power; for `assumed`, the given one.
    pub watts: f64,
    /// Measured: from the start of the first flow to the end of the last. Assumed: watts × `benchmark_total_ms`
    /// / 1000.
    pub joules: f64,
    /// Sum of the steps' `energy_joules`, which is the energy of the time in which a step was in flight; absent
    /// if assumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_joules: Option<f64>,
    /// `steps_joules` (assumed: `joules`) per generated token; absent without any, and in `MODE=both`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules_per_token: Option<f64>,
    /// The same per workflow with a reward of 1; absent without any, and in `MODE=both`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules_per_correct: Option<f64>,
    /// With a GPU: energy of the processors' packages in the same time, which is not in `joules`; absent if it
    /// cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processors_joules: Option<f64>,
}

/// What the end of a run adds to a line of `steps.jsonl`: fields of [`StepRecord`].
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct StepAmendment {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tainted: Vec<Taint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub discarded: bool,
}

/// `MODE=both`: the rounds of the two modes, and how they compare.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Comparison {
    /// Rounds in the order in which they ran, including one that was stopped.
    pub rounds: Vec<RoundRecord>,
    /// One entry per quantity, in the order of the table; complete rounds only.
    pub metrics: Vec<Metric>,
    /// Probability that the range of the rounds covers the true median, for any distribution: 1 − 2^(1 − n)
    /// with the smaller number of rounds n of the two modes; `null` below 3 rounds.
    pub range_coverage: Option<f64>,
    /// Whether the rounds generated the same tokens.
    pub outputs: OutputComparison,
    /// What the test of `flowbench ab` says of `total_ms`, with `standalone` as A and `reuse` as B; absent without a
    /// pair of complete rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<RoundsVerdict>,
}

/// The verdict on rounds of two arms in turns, by a test that may be looked at after every round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RoundsVerdict {
    pub verdict: Verdict,
    /// B / A − 1, the geometric mean over the pairs of rounds.
    pub change: f64,
    /// The confidence sequence of `change`; `null` with few rounds.
    pub interval: Option<ChangeInterval>,
    /// The smallest change that would have been found after so many rounds with a probability of 80 %; `null` with
    /// few rounds.
    pub smallest_visible: Option<f64>,
    /// Changes up to this share do not matter.
    pub threshold: f64,
}

/// A round: all flows once, in one mode, starting with an empty prefix cache.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RoundRecord {
    /// Number of the round within its mode, from 1.
    pub round: usize,
    /// `standalone` or `reuse`.
    pub mode: String,
    /// Whether every flow ended well; only complete rounds are compared.
    pub complete: bool,
    /// From the start of the first workflow until the device is idle after the last one.
    pub total_ms: Millis,
    /// Workflows that succeeded.
    pub workflows_done: usize,
    /// Mean over the workflows that ended well; `null` without any.
    pub mean_workflow_ms: Option<Millis>,
    /// Prompt tokens that were computed.
    pub prefill_tokens: usize,
    /// Prompt tokens served from the prefix cache.
    pub reused_tokens: usize,
    /// Generated tokens.
    pub decode_tokens: usize,
    /// `decode_tokens` per second of `total_ms`.
    pub decode_tokens_per_s: f64,
    /// `prefill_tokens` + `decode_tokens`, the tokens that went through the model, per second of `total_ms`.
    pub processed_tokens_per_s: f64,
    /// Joules, measured, or else assumed watts × `total_ms` / 1000; `null` without either.
    pub energy_joules: Option<f64>,
}

/// A quantity of the rounds in both modes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Metric {
    /// The field of [`RoundRecord`]; its name ends in the unit.
    pub name: String,
    /// Values of the `standalone` rounds.
    pub standalone: Sample,
    /// Values of the `reuse` rounds.
    pub reuse: Sample,
    /// `reuse` / `standalone`, one value per pair of complete rounds; empty if `standalone` is 0.
    pub ratio: Sample,
}

/// A few values, and the statistics that their number supports.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sample {
    /// In the order of the rounds.
    pub values: Vec<f64>,
    /// `null` below 3 values.
    pub median: Option<f64>,
    /// `null` below 3 values.
    pub min: Option<f64>,
    /// `null` below 3 values.
    pub max: Option<f64>,
}

/// Whether all rounds of both modes generated the same tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputComparison {
    /// Steps of all flows that ended in both modes.
    pub compared: usize,
    /// Steps whose `out_hash` differs between rounds.
    pub differing: usize,
    /// The first of them, by flow and then by order of steps.
    pub first: Option<OutputDifference>,
}

/// A step that generated different tokens in two rounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputDifference {
    /// Flow number, from 1.
    pub flow: usize,
    /// Step ID.
    pub step: String,
    pub one: OutputOf,
    pub other: OutputOf,
}

/// The output of a step in a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputOf {
    /// `standalone` or `reuse`.
    pub mode: String,
    /// Round number, from 1.
    pub round: usize,
    /// As in [`StepRecord`].
    pub out_hash: String,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn is_zero_bytes(bytes: &u64) -> bool {
    *bytes == 0
}

/// The machine and the build.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environment {
    /// Version of flowbench.
    pub flowbench: String,
    /// Git revision of the checkout, with `-dirty` if it has changes; `null` outside of a checkout.
    pub git_revision: Option<String>,
    /// Operating system and kernel.
    pub os: String,
    /// Model name of the processor.
    pub cpu: String,
    /// Logical processors available to the process.
    pub cpu_threads: usize,
    /// Vector extensions of the processor that the kernels use.
    pub cpu_features: Vec<String>,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// What the build can run on: `cpu+cuda`.
    pub build: String,
    /// First 16 hex digits of SHA-256 of the host name: distinguishes machines without naming them, though a
    /// guessed name can be checked. Absent if the host has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname_hash: Option<String>,
    /// Load of the machine during the run, or its last segment; absent while the run is in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadRecord>,
}
