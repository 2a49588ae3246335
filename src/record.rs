//! What a run leaves behind: plain structs, `results/<run-id>/run.json` and `steps.jsonl`.
//! Reporters read them and compute nothing again. Every field says its unit.

pub mod bench;
pub mod evaluation;
pub mod load;
pub mod metrics;
pub mod profile;
pub mod remote;
#[cfg(test)]
mod schema;
pub mod shard;
mod tokens;
pub mod warning;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::Millis;
use evaluation::{
    EvaluationRecord, EvaluatorRecord, RolloutRecord, ScoreRecord, UsageRecord, VerificationRecord,
};
use load::LoadRecord;
use metrics::{CriticalStep, Distribution, PositionRecord};
use remote::RemoteRecord;
use shard::{Shard, ShardRun};
use warning::Warning;

pub use tokens::TokenCounts;

/// Version of the layout of [`RunRecord`] and [`StepRecord`]; raised when a field changes meaning.
pub const RECORD_SCHEMA: u32 = 1;

/// `run.json`: the whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RunRecord {
    /// [`RECORD_SCHEMA`].
    pub schema: u32,
    /// Name of the run's folder: UTC start time, mode, and a suffix that keeps runs apart.
    pub run_id: String,
    /// UTC, RFC 3339.
    pub started_at: String,
    /// How far the run came.
    pub status: Status,
    /// Why it ended early or failed, in one line.
    pub error: Option<String>,
    /// The settings, after flags, environment and defaults were put together.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Where it ran.
    pub environment: Environment,
    /// The expansion of the flows.
    pub expansion: ExpansionRecord,
    /// The engine (a serialised `EngineInfo`); `null` before it was loaded.
    pub engine: serde_json::Value,
    /// Time from before the engine was asked for to the device being idle with the model loaded.
    /// `null` before it was loaded. With one engine a workflow, the sum over all.
    pub engine_init_ms: Option<Millis>,
    /// Time in which the evaluation pool was started, before the engine; `null` without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_init_ms: Option<Millis>,
    /// What generated programs are run on; absent where no step evaluates or verifies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluator: Option<EvaluatorRecord>,
    /// How many times an engine was started (1, but for the *before* measurement).
    pub engine_starts: usize,
    /// One entry a finished or failed workflow, in the flows' order.
    pub workflows: Vec<WorkflowRecord>,
    /// Sums over all workflows.
    pub totals: Totals,
    /// What makes the figures prove less than they seem to; empty while the run goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// Of `MODE=both` only: its rounds, and what they say of the two modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// With `--output` only: what the rows came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollouts: Option<RolloutRecord>,
    /// With `--profile` only: where the time went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<profile::Profile>,
    /// With `--shard` only: the part of the flows that was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// Of `flowbench merge` only: the runs that were joined, by their shards. Times that count from the
    /// start of the benchmark count from that of each run's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardRun>,
}

/// How far a run came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It has not ended, or its process was killed: `steps.jsonl` holds what was measured.
    Running,
    /// Every flow ended well.
    Complete,
    /// Every flow ended, some of them badly, or the two modes of `both` gave different outputs.
    Failed,
    /// It was stopped (Ctrl-C, an engine error, an output that could not be written).
    Incomplete,
}

/// What was measured of the expansion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExpansionRecord {
    /// Template's name.
    pub template: String,
    /// SHA-256 of the fixture (64 hex digits).
    pub fixture_hash: String,
    /// SHA-256 of the template, its suite, and what they include (64 hex digits).
    pub template_hash: String,
    /// Bytes of the fixture that the template takes in.
    pub fixture_bytes: u64,
    /// Files (or rows) of the fixture.
    pub fixture_files: usize,
    /// How many flows.
    pub num_flows: usize,
    /// Whether the flows came from the cache.
    pub cached: bool,
    /// Why not, where they did not: `no cache`, `fixture changed`.
    pub miss: Option<String>,
    /// Time of the whole expansion, verification included.
    pub flow_expansion_ms: Millis,
    /// How much of the prompts is shared; `null` while the run goes on, and of more than 1,000
    /// flows.
    #[serde(default)]
    pub prefix: Option<PrefixRecord>,
    /// The template's steps that ask the model for answers. Those of a loop are there once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<PlannedStep>,
}

/// What a step asks the model for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedStep {
    /// The step's id, without a generation.
    pub step: String,
    /// Answers to its prompt.
    pub samples: usize,
    /// Its temperature; 0 is greedy.
    pub temperature: f64,
    /// Most tokens of an answer, as the template says (`MAX_TOKENS` is in the settings).
    pub max_tokens: usize,
    /// Whether an `evaluate`, `verify`, `judge` or `select` step works on its answers.
    pub judged: bool,
}

/// How much of the prompts a prefix cache can take from requests before, in bytes of the text that
/// is known at the expansion. Shares of bytes are close to shares of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PrefixRecord {
    /// The prompts of all requests together.
    pub prompt_bytes: u64,
    /// What of them can be reused in the order in which the template has its parts.
    pub reusable_bytes: u64,
    /// What could be, if the parts that all flows share came before those that differ.
    pub reusable_bytes_reordered: u64,
}

/// One workflow.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WorkflowRecord {
    /// Number of the flow, from 1.
    pub flow: usize,
    /// The suite row's id.
    pub row: String,
    /// Submission of its first step, counted from the start of the benchmark.
    #[serde(default)]
    pub start_ms: Millis,
    /// Makespan: from the submission of its first step to the end of its last one.
    pub workflow_ms: Millis,
    /// With an engine of its own only: the start of that engine, which `workflow_ms` leaves out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_init_ms: Option<Millis>,
    /// How many steps ended well.
    pub steps_done: usize,
    /// How many steps it has.
    pub steps: usize,
    /// Why it failed.
    pub error: Option<String>,
    /// The mean score of the answers of its last step that judges; absent with none, or where one of
    /// them could not be judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// The same mean, in which an answer that was left undecided, or whose program failed, counts 0;
    /// absent where nothing judges, or where the machinery failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_floor: Option<f64>,
    #[serde(flatten, with = "tokens::without_drafts")]
    #[cfg_attr(test, schemars(with = "tokens::without_drafts::Layout"))]
    pub tokens: TokenCounts,
    /// The steps that made it as long as it was, in their order; empty where it failed.
    #[serde(default)]
    pub critical_path: Vec<CriticalStep>,
    /// For each step, by how much later it could have ended without making the flow longer, if all
    /// others had taken as long as they did: (the smallest, over the steps that need it, of their
    /// slack + their end − the time they took since the last step that they need had ended; for one
    /// that none needs, the end of the flow) − its own end. 0 on the critical path. Empty where the
    /// flow failed.
    #[serde(default)]
    pub slack_ms: BTreeMap<String, Millis>,
    /// Of `MODE=both` only: the round, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
    /// Of `MODE=both` only: the round's mode, `standalone` or `reuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// A line of `steps.jsonl`: one finished step, or one sample of a step that has several.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepRecord {
    /// [`RECORD_SCHEMA`].
    pub schema: u32,
    /// Number of the flow, from 1.
    pub flow: usize,
    /// The suite row's id.
    pub row: String,
    /// The step's id; in a loop with `.` and the generation.
    pub step: String,
    /// `evaluate`, `verify` or `judge`; absent of a step that generates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Of a step with several samples: which, from 1. A judge's are its requests, two an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<usize>,
    /// In a loop: the generation, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<usize>,
    /// The steps that it needs.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Submission, counted from the start of the benchmark.
    pub start_ms: Millis,
    /// Queue wait: submission to the start of the first forward pass that computed a token of it.
    /// Its conversation is rendered and tokenised within. `null` where the engine cannot tell.
    #[serde(default)]
    pub queue_ms: Option<Millis>,
    /// Submission to last token (end-to-end latency, E2EL); of `MODE=remote` to the end of the answer.
    pub latency_ms: Millis,
    /// Submission to first token (TTFT); `null` where no token came.
    pub ttft_ms: Option<Millis>,
    /// Time per output token after the first: (E2EL − TTFT) / (n − 1); `null` below two tokens. Of
    /// `MODE=remote`: (last chunk − first chunk) / (n − 1), n the tokens in them; `null` also where the
    /// answer came in one burst, where n is not known, and where fewer than 10 chunks hold more than
    /// 2 tokens each.
    pub tpot_ms: Option<Millis>,
    /// Inter-token latencies (ITL): how `gaps_ms` are spread; `null` below two tokens.
    #[serde(default)]
    pub itl_ms: Option<Distribution>,
    /// The times between successive tokens, n − 1 of them, to a microsecond. 0 between tokens of one
    /// pass. Between what, `gaps_between` says.
    #[serde(default)]
    pub gaps_ms: Vec<f64>,
    /// What `gaps_ms` and `itl_ms` lie between: of `MODE=remote` `chunks` of the stream, which may hold
    /// several tokens or none that is counted; absent otherwise: tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gaps_between: Option<String>,
    /// `prefill_tokens` a second of TTFT − queue wait; `null` without either.
    #[serde(default)]
    pub prefill_tokens_per_s: Option<f64>,
    /// 1000 / TPOT: tokens a second after the first; `null` below two tokens.
    #[serde(default)]
    pub decode_tokens_per_s: Option<f64>,
    #[serde(flatten)]
    pub tokens: TokenCounts,
    /// `stop` (the model ended its turn), `length`, or of a server `tool_calls`; of a step that
    /// evaluates or verifies, its outcome.
    pub finish: String,
    /// First 16 hex digits of SHA-256 of the generated token ids (little-endian u32).
    pub out_hash: String,
    /// The generated text.
    pub output: String,
    /// Whether later steps were given a recorded text in place of this one (`--pin-outputs`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// How a program ended (`ok`, `invalid`, `runtime_error`, `timeout`, `oom`, `crashed`, `denied`,
    /// `bad_output`, `infra_error`), or what an answer was found to be (`equal`, `unequal`,
    /// `undecided`, `no_answer`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// The score of a program; 1 of an answer that is right, 0 of one that is not. Of a judge's two
    /// requests, what both came to together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// What was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The answer that was taken from the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Of `evaluate` only: where its time went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<EvaluationRecord>,
    /// Of `MODE=remote` only: calls that were made for it, the last of which ended well. The times
    /// count from the submission, so that all of them are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<usize>,
    /// Of `MODE=remote` only: who counted the tokens. `usage`: the server; `chunks`: the server did not
    /// tell, so that each streamed chunk counts as one, and prompt tokens are 0; `chunks+tokenizer`: the
    /// same, with the prompt counted by the local tokenizer; `chunks+usage`: the server counted the
    /// prompt alone; `usage+tokenizer`: it counted the generated tokens alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_by: Option<String>,
    /// Of `MODE=remote` only: those of `decode_tokens` that were thoughts, as the server counts them;
    /// else the chunks of thoughts that it streamed. Absent where there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<usize>,
    /// Of `MODE=remote` only: those of `decode_tokens` that were not streamed (thoughts that the server
    /// keeps to itself). Where the server does not say how many, the fewest that it can be: a token
    /// that is streamed has a byte at least. Absent where there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_tokens: Option<usize>,
    /// Of `MODE=remote` only: the answer came in one piece, or faster than any engine writes: something
    /// between held it back. Its TTFT is then its latency, and its TPOT `null`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub burst: bool,
    /// Of `MODE=both` only: the round, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
    /// Of `MODE=both` only: the round's mode, `standalone` or `reuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

impl StepRecord {
    /// What it does, as templates name it.
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("generate")
    }

    /// The step, and which of its samples.
    pub fn label(&self) -> String {
        match self.sample {
            Some(sample) => format!("{} sample {sample}", self.step),
            None => self.step.clone(),
        }
    }
}

/// Sums over the workflows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Totals {
    /// Workflows that ended well.
    pub workflows_done: usize,
    /// Workflows that failed.
    pub workflows_failed: usize,
    /// Steps that ended well.
    pub steps_done: usize,
    #[serde(flatten)]
    pub tokens: TokenCounts,
    /// Engine init and every workflow; without the expansion. `null` while the run goes on.
    pub benchmark_total_ms: Option<Millis>,
    /// Mean over the workflows that ended well; `null` with none, and in `MODE=both`, where
    /// [`Comparison`] has a mean of each mode.
    pub avg_workflow_ms: Option<Millis>,
    /// Of the workflows that ended well; `null` as `avg_workflow_ms` is.
    #[serde(default)]
    pub workflow_ms: Option<Distribution>,
    /// Of the `ttft_ms` of all steps together. `null` while the run goes on, and in `MODE=both`.
    #[serde(default)]
    pub ttft_ms: Option<Distribution>,
    /// An entry a step id, in the order in which the first of each ended. Empty while the run goes
    /// on.
    #[serde(default)]
    pub positions: Vec<PositionRecord>,
    /// What was asked of the model, for each kind of step.
    #[serde(default)]
    pub usage: Vec<UsageRecord>,
    /// What the judged steps came to, in the order in which the first of each ended. Empty while the
    /// run goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<ScoreRecord>,
    /// Of the workflows' rewards; absent where nothing was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<Distribution>,
    /// Workflows that were judged and have no reward, since an answer was left undecided or a program
    /// failed.
    #[serde(default)]
    pub undecided: usize,
    /// Mean of the workflows' `reward_floor`, which counts what is undecided as 0. It does not rise when a
    /// model answers what cannot be read, as the mean of `reward` may. Absent where nothing was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_reward: Option<f64>,
    /// How answers were checked; absent where none were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationRecord>,
    /// Energy, where a power was assumed (`GPU_POWER`) or could be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
    /// Of `MODE=remote` only: calls to the server, retries, and what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteRecord>,
}

/// Energy of the benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Energy {
    /// `assumed`: a constant power that the user gave.
    pub source: String,
    /// Watts.
    pub watts: f64,
    /// Joules: watts × `benchmark_total_ms` / 1000.
    pub joules: f64,
}

/// `MODE=both`: rounds of the two modes, and what they say.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Comparison {
    /// The rounds in the order in which they ran, the one that was broken off included.
    pub rounds: Vec<RoundRecord>,
    /// One entry a quantity, in the order of the table; complete rounds only.
    pub metrics: Vec<Metric>,
    /// Probability that the range of the rounds covers the true median, whatever its
    /// distribution, 1 − 2^(1 − n) with the fewer rounds of the two modes; `null` below 3 rounds.
    pub range_coverage: Option<f64>,
    /// Whether the rounds generated the same tokens.
    pub outputs: OutputComparison,
}

/// A round: all flows once, in one mode, beginning with an empty prefix cache.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RoundRecord {
    /// Number of the round, from 1; there is one a mode.
    pub round: usize,
    /// `standalone` or `reuse`.
    pub mode: String,
    /// Whether every flow ended well; no other round is compared.
    pub complete: bool,
    /// Start of its first workflow to the device being idle after its last; the cache is emptied
    /// before.
    pub total_ms: Millis,
    /// Workflows that ended well.
    pub workflows_done: usize,
    /// Mean over the workflows that ended well; `null` with none.
    pub mean_workflow_ms: Option<Millis>,
    /// Prompt tokens that were computed.
    pub prefill_tokens: usize,
    /// Prompt tokens taken from the prefix cache.
    pub reused_tokens: usize,
    /// Generated tokens.
    pub decode_tokens: usize,
    /// `decode_tokens` a second of `total_ms`.
    pub decode_tokens_per_s: f64,
    /// `prefill_tokens` + `decode_tokens`, which went through the model, a second of `total_ms`.
    pub processed_tokens_per_s: f64,
    /// Joules: the assumed watts × `total_ms` / 1000; `null` without `GPU_POWER`.
    pub energy_joules: Option<f64>,
}

/// A quantity of the rounds, in both modes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Metric {
    /// The field of [`RoundRecord`], whose name ends in its unit.
    pub name: String,
    /// Its values in the `standalone` rounds.
    pub standalone: Sample,
    /// Its values in the `reuse` rounds.
    pub reuse: Sample,
    /// `reuse` / `standalone`, one value for each number of which both rounds are complete; none
    /// where `standalone` is 0.
    pub ratio: Sample,
}

/// A few values, and no more about them than their number supports.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sample {
    /// The values in the order of the rounds' numbers.
    pub values: Vec<f64>,
    /// Their median; `null` below 3 values.
    pub median: Option<f64>,
    /// The smallest; `null` below 3 values.
    pub min: Option<f64>,
    /// The largest; `null` below 3 values.
    pub max: Option<f64>,
}

/// Whether all rounds of both modes generated the same tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputComparison {
    /// Steps (of all flows) that ended in rounds of both modes.
    pub compared: usize,
    /// Steps whose `out_hash` is not the same in every round.
    pub differing: usize,
    /// The first of them, by flow and then by order of the steps.
    pub first: Option<OutputDifference>,
}

/// A step that generated different tokens in two rounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputDifference {
    /// Number of the flow, from 1.
    pub flow: usize,
    /// The step's id.
    pub step: String,
    /// What it generated first.
    pub one: OutputOf,
    /// What it generated later, and differently.
    pub other: OutputOf,
}

/// What a step generated in a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputOf {
    /// `standalone` or `reuse`.
    pub mode: String,
    /// Number of the round, from 1.
    pub round: usize,
    /// As in [`StepRecord`].
    pub out_hash: String,
}

/// Where a run ran.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environment {
    /// Version of this program.
    pub flowbench: String,
    /// Revision of the checkout, `-dirty` where it has changes; `null` outside of one.
    pub git_revision: Option<String>,
    /// Operating system and kernel.
    pub os: String,
    /// Processor, as it names itself.
    pub cpu: String,
    /// Logical processors that the process may use.
    pub cpu_threads: usize,
    /// Those vector extensions of the processor that matter here.
    pub cpu_features: Vec<String>,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// The command line's feature set: `cpu`, or `cpu+cuda`.
    pub build: String,
    /// First 16 hex digits of a SHA-256 of the host's name: tells machines apart without naming them.
    /// Whoever guesses the name can check it. `null` where the host has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname_hash: Option<String>,
    /// How busy the machine was during the run; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadRecord>,
}
