//! Command-line flags, the matching environment variables, and how both become settings. A flag
//! overrides its variable, which overrides the default.

mod ab;
mod bench;
mod compare;
mod gates;
mod history;
mod init;
mod misspelled;
mod process_env;
#[cfg(test)]
mod reference;
mod remote;
mod serve;
mod workflows;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{
    Backend, Concurrency, DeviceChoice, DiagnoseFormat, ExportFormat, GpuSettings, JobSettings,
    Layout, MachineSettings, Mode, ModelConfig, PresentationSettings, ProfileConfig, RemoteConfig,
    ReportFormat, RunConfig, WhatIf,
};
use crate::error::{Error, Result};
use crate::evaluate;
use crate::record::shard::Shard;
use crate::terminal::{is_active, visible, visible_line};

use remote::{RemoteArgs, ServerArgs};

pub use ab::AbArgs;
pub use bench::BenchEngineArgs;
pub use compare::{CompareArgs, FailOn};
pub use history::HistoryArgs;
pub use init::InitArgs;
pub use misspelled::misspelled;
pub use process_env::ProcessEnv;
pub use serve::ServeArgs;

/// Upper bound on flows per run: a larger `NUM_FLOWS` is a typo, not a workload.
pub const MAX_FLOWS: usize = 1_000_000;

/// A benchmark runner for multi-step LLM workflows on one local GPU.
#[derive(Debug, Parser)]
#[command(name = "flowbench", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Expand the flows, load the engine once, run the flows and measure them
    Run(Box<RunArgs>),
    /// Run the job several times with nothing changed, so that compare knows by how much runs differ
    Calibrate(Box<RunArgs>),
    /// Expand the flows through the cache, without loading an engine
    Expand(ExpandArgs),
    /// Explain where the time of a run went: share per stage, known causes, and how much fixing
    /// each could save at most
    Diagnose(DiagnoseArgs),
    /// Render a run as a self-contained HTML file, or as Markdown
    Report(ReportArgs),
    /// Run two settings, programs or servers in turns until their difference is settled
    Ab(Box<AbArgs>),
    /// Compare runs with a baseline: a verdict with its interval, and why it changed
    Compare(CompareArgs),
    /// Show a metric over the runs of a job, and where its level changed
    History(HistoryArgs),
    /// Convert a run to another program's format: JUnit, CSV, OpenMetrics, OTLP, and others
    Export(ExportArgs),
    /// Serve a model, recorded answers or another server over OpenAI's HTTP interface
    Serve(Box<ServeArgs>),
    /// Merge the runs of all shards of a job (--shard) into one
    Merge(MergeArgs),
    /// Make a folder with a template, suite, fixture and nightly job to start from
    Init(InitArgs),
    /// Check the toolchain, CPU, GPU, model, Python, disk space and folders
    Doctor(DoctorArgs),
    /// Locate, download or inspect a model
    Model(ModelArgs),
    /// Benchmark prefill and decode, and compare them with the limits of the machine
    BenchEngine(BenchEngineArgs),
}

/// The folder of a job.
#[derive(Debug, Clone, Args)]
pub struct LayoutArgs {
    /// Folder that holds templates/ and fixtures/, and gets flows/ and results/
    #[arg(
        long,
        env = "FLOWBENCH_ROOT",
        value_name = "FLOWBENCH_ROOT",
        default_value = "."
    )]
    pub root: PathBuf,
}

impl LayoutArgs {
    fn layout(&self) -> Layout {
        Layout {
            root: self.root.clone(),
        }
    }
}

/// Where runs are kept.
#[derive(Debug, Clone, Args)]
pub struct ResultsArgs {
    /// Folder for run results [default: results/ in the root]
    #[arg(long, env, value_name = "OUT")]
    out: Option<PathBuf>,

    #[command(flatten)]
    layout: LayoutArgs,
}

impl ResultsArgs {
    /// The folder where runs are kept.
    pub fn folder(&self) -> PathBuf {
        let default = || self.layout.layout().results();
        self.out.clone().unwrap_or_else(default)
    }

    /// Where templates, fixtures and flows are.
    pub fn layout(&self) -> Layout {
        self.layout.layout()
    }
}

/// What is expanded.
#[derive(Debug, Clone, Args)]
pub struct FlowArgs {
    /// Number of flows; flow i uses suite row i modulo the number of rows [default: one per row]
    #[arg(long, env, value_name = "NUM_FLOWS", value_parser = parse_count, allow_negative_numbers = true)]
    pub num_flows: Option<usize>,

    /// Template: a name in templates/ of the root, the name of a shipped one (init --list), or the path of a .toml file
    #[arg(long, env, value_name = "TEMPLATE", default_value = "three_step")]
    pub template: String,
}

#[derive(Debug, Clone, Args)]
pub struct ModelChoice {
    /// Model: a .gguf file, a folder with safetensors, or a Hugging Face repository (owner/name or
    /// owner/name:file); the default is SmolLM2-135M-Instruct Q4_1, downloaded once
    #[arg(long, env, value_name = "MODEL")]
    pub model: Option<String>,
}

/// What sequences of an engine in this process may take, of `run` and `serve`.
#[derive(Debug, Clone, Args)]
struct SequenceArgs {
    /// Upper bound on KV cache memory in MiB; on a CPU, memory is allocated on demand [default:
    /// 1024, or more if one sequence of the full context needs it, up to half of the available
    /// memory]
    #[arg(long, env, value_name = "KV_CACHE_MB", value_parser = parse_mebibytes)]
    kv_cache_mb: Option<usize>,

    /// Maximum sequence length in tokens, prompt and output together [default: the model's context
    /// length]
    #[arg(long, env, value_name = "CONTEXT", value_parser = parse_tokens)]
    context: Option<usize>,

    /// 1: speculative decoding by prompt lookup while a single sequence is decoding; the output
    /// does not change
    #[arg(long, env, value_name = "SPECULATE", default_value = "1", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    speculate: bool,
}

#[derive(Debug, Clone, Args)]
struct EngineArgs {
    #[command(flatten)]
    model: ModelChoice,

    /// Device to run the model on
    #[arg(long, env, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,

    /// Implementation of the forward pass
    #[arg(long, env, value_name = "BACKEND", default_value = "auto")]
    backend: Backend,

    /// Share of the GPU's memory that the run may use, of all that the card has, from 0.05 to 1 [default: 0.9,
    /// of which the KV cache takes no more than 16 sequences of the full context]
    #[arg(long, env, value_name = "GPU_MEMORY_UTILIZATION", value_parser = parse_share)]
    gpu_memory_utilization: Option<f64>,

    /// 0: launch the kernels of decode passes one by one; the output does not change
    #[arg(long, env, value_name = "CUDA_GRAPHS", default_value = "1", value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    cuda_graphs: bool,
}

impl EngineArgs {
    fn gpu(&self) -> GpuSettings {
        GpuSettings {
            memory_utilization: self.gpu_memory_utilization,
            graphs: self.cuda_graphs,
        }
    }
}

/// `flowbench run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    flows: FlowArgs,

    /// How to run the flows
    #[arg(long, env, value_name = "MODE", default_value = "standalone")]
    mode: Mode,

    #[command(flatten)]
    engine: EngineArgs,

    /// Maximum number of flows in flight [default: 1; all flows in MODE=reuse and in the reuse
    /// rounds of MODE=both; all flows, but at most 256, in MODE=remote]
    #[arg(long, env, value_name = "CONCURRENCY", value_parser = parse_count)]
    concurrency: Option<usize>,

    /// Rounds per mode in MODE=both; medians need at least 3
    #[arg(long, env, value_name = "ROUNDS", default_value = "3", value_parser = parse_count)]
    rounds: usize,

    #[command(flatten)]
    sequences: SequenceArgs,

    /// Sampling seed
    #[arg(long, env, value_name = "SEED", default_value = "0")]
    seed: u64,

    /// Maximum tokens per generation; overrides the template's limits
    #[arg(long, env, value_name = "MAX_TOKENS", value_parser = parse_count)]
    max_tokens: Option<usize>,

    /// 1: ignore end-of-sequence tokens and generate up to the token limit
    #[arg(long, env, value_name = "IGNORE_EOS", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    ignore_eos: bool,

    /// Script of recorded answers for MODE=scripted: JSON Lines, or the steps.jsonl of an earlier
    /// run [default: TEMPLATE.script.jsonl beside the template]
    #[arg(long, env, value_name = "SCRIPT")]
    script: Option<PathBuf>,

    /// 0: do not simulate the script's recorded latencies
    #[arg(long, env, value_name = "SCRIPT_LATENCY", default_value = "1", value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    script_latency: bool,

    /// 1: do not show progress
    #[arg(long, env, value_name = "QUIET", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    quiet: bool,

    /// Power in watts to assume for the energy estimate when it cannot be measured
    #[arg(long, env, value_name = "GPU_POWER", value_parser = parse_watts)]
    gpu_power: Option<f64>,

    #[command(flatten)]
    results: ResultsArgs,

    #[command(flatten)]
    remote: RemoteArgs,

    /// Run only shard i of n, given as i/n: flows i, i + n, i + 2n, …; `flowbench merge` combines
    /// the runs of all shards
    #[arg(long, env, value_name = "SHARD")]
    shard: Option<Shard>,

    #[command(flatten)]
    profile: ProfileArgs,

    #[command(flatten)]
    keep: KeepArgs,

    #[command(flatten)]
    workflow: workflows::WorkflowArgs,

    /// Print each step's generated text to stderr
    #[arg(long)]
    show_output: bool,

    /// Print each step's prompt to stderr exactly as the model receives it, special tokens
    /// included; with ENDPOINT_API=chat, print the messages that the server renders
    #[arg(long, env, value_name = "SHOW_PROMPT", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    show_prompt: bool,

    /// Expand the flows again and start a new engine for each workflow: the slow baseline, kept for
    /// comparison
    #[arg(long)]
    engine_per_workflow: bool,

    /// 1: run tainted flows again at the end, each once, at most a quarter of all flows, and count
    /// the second measurement; one flow at a time only
    #[arg(long, env, value_name = "DISCARD_TAINTED", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    discard_tainted: bool,
}

/// What a run is to its history.
#[derive(Debug, Clone, Args)]
struct KeepArgs {
    /// Label the run in the history: NAME=VALUE, several with commas; commit is set from GITHUB_SHA
    #[arg(long = "label", env = "LABELS", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = workflows::parse_setting)]
    labels: Vec<(String, String)>,

    /// Let this name stand for the run as a baseline from now on, if it is valid
    #[arg(long, env, value_name = "SAVE_BASELINE", value_parser = crate::results::baselines::parse_name)]
    save_baseline: Option<String>,

    /// Run the job N times on one engine, the flows in another order each time; each is a run of its own, and
    /// together they say how much runs differ with nothing changed [default: 1; 10 for calibrate]
    #[arg(long, env, value_name = "REPETITIONS", value_parser = parse_count)]
    repetitions: Option<usize>,

    /// Wait for a line on stdin before each repetition, and end when it is closed; `ab` uses it
    #[arg(long, hide = true)]
    by_turns: bool,

    /// 1: exit with 98 if the run is invalid: flows missing, no tokens, a throttled or shared GPU
    #[arg(long, env, value_name = "GATE", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    gate: bool,

    #[command(flatten)]
    limits: gates::GateArgs,
}

/// Repetitions of `calibrate`.
const CALIBRATION: usize = 10;

impl KeepArgs {
    /// The labels, with that of the commit if the environment knows it.
    fn labels(&self, environment: &ProcessEnv) -> Vec<(String, String)> {
        let mut labels = self.labels.clone();
        let is_named = labels.iter().any(|(name, _)| name == "commit");
        if let Some(commit) = environment.commit.clone().filter(|_| !is_named) {
            labels.push(("commit".to_owned(), commit));
        }
        labels
    }
}

#[derive(Debug, Clone, Args)]
struct ProfileArgs {
    /// 1: profile the run; writes the table to profile.log in the run's folder
    #[arg(long, env, value_name = "PROFILE", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    profile: bool,

    /// Also write the table to this folder, as --profile-name; implies --profile
    #[arg(long, env, value_name = "PROFILE_DIR")]
    profile_dir: Option<PathBuf>,

    /// File name of that copy, without .log [default: the run ID]
    #[arg(long, env, value_name = "PROFILE_NAME", requires = "profile_dir", value_parser = parse_file_name)]
    profile_name: Option<String>,

    /// Serve /stats, /metrics and a live page on this address during the run (127.0.0.1:0 picks a
    /// free port; a bare port listens on localhost only); implies --profile
    #[arg(long, env, value_name = "STATS_ADDR", value_parser = crate::live::parse_address)]
    stats_addr: Option<SocketAddr>,
}

impl ProfileArgs {
    fn resolve(self) -> ProfileConfig {
        ProfileConfig {
            profile: self.profile || self.profile_dir.is_some() || self.stats_addr.is_some(),
            profile_dir: self.profile_dir,
            profile_name: self.profile_name,
            stats_addr: self.stats_addr,
        }
    }
}

/// `flowbench expand`.
#[derive(Debug, Clone, Args)]
pub struct ExpandArgs {
    #[command(flatten)]
    pub flows: FlowArgs,

    /// Override template parameters: max_generations=5,timeout_ms=2000
    #[arg(long = "set", env = "PARAMS", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = workflows::parse_setting)]
    pub set: Vec<(String, String)>,

    /// Verify the flows and the cache without writing; exit with 99 if they are out of date
    #[arg(long)]
    pub check: bool,

    /// Compare the prompts with those of the flows on disk, by the rates of the latest run; writes nothing
    #[arg(long, conflicts_with = "check")]
    pub cost: bool,

    /// 1: do not show progress
    #[arg(long, env, value_name = "QUIET", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    pub quiet: bool,

    #[command(flatten)]
    pub results: ResultsArgs,
}

impl ExpandArgs {
    pub fn layout(&self) -> Layout {
        self.results.layout()
    }
}

/// `flowbench diagnose`.
#[derive(Debug, Clone, Args)]
pub struct DiagnoseArgs {
    /// Run folder, or its run.json [default: the latest run in OUT]
    pub run: Option<PathBuf>,

    /// Also say what changed since these runs, named as in `compare`
    #[arg(long, value_name = "RUNS")]
    pub baseline: Option<String>,

    /// What may differ between the run and the baseline
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub allow_different: Vec<String>,

    /// Predict the run under other settings instead: concurrency=N, prefix_cache=on|off, speculate=on|off,
    /// max_tokens=N, decode_speed=FACTOR, prefill_speed=FACTOR, evaluation_speed=FACTOR, with commas
    #[arg(long, value_name = "SETTINGS", conflicts_with = "baseline")]
    pub what_if: Option<WhatIf>,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    pub output: DiagnoseFormat,

    #[command(flatten)]
    pub results: ResultsArgs,
}

/// `flowbench report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Run folder, or its run.json [default: the latest run in OUT]
    pub run: Option<PathBuf>,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "html")]
    pub output: ReportFormat,

    #[command(flatten)]
    pub results: ResultsArgs,
}

/// `flowbench export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Run folder, or its run.json [default: the latest run in OUT]
    pub run: Option<PathBuf>,

    /// Output format
    #[arg(short, long, value_name = "FORMAT")]
    pub output: ExportFormat,

    /// File to write, replaced as a whole; `-` is stdout [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,

    #[command(flatten)]
    pub results: ResultsArgs,
}

/// `flowbench merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// Run folders, or their run.json files
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,

    #[command(flatten)]
    pub results: ResultsArgs,
}

/// `flowbench doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    model: ModelChoice,

    /// Device that the model will run on
    #[arg(long, env, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    #[command(flatten)]
    pub results: ResultsArgs,

    /// Python interpreter for generated programs
    #[arg(long, env, value_name = "PYTHON", default_value = "python3")]
    python: PathBuf,

    /// Mode that the flows will run in; with remote, or if ENDPOINT is set, the server is checked
    /// in place of a local model
    #[arg(long, env, value_name = "MODE")]
    mode: Option<Mode>,

    #[command(flatten)]
    server: ServerArgs,
}

impl DoctorArgs {
    pub fn evaluator(&self, environment: &ProcessEnv) -> evaluate::Settings {
        evaluate::Settings::new(&self.python, environment.python.clone())
    }

    /// The server, and the model to request from it.
    ///
    /// # Errors
    /// Exit code 2 for an invalid variable.
    pub fn server(
        &self,
        environment: &ProcessEnv,
    ) -> Result<Option<(RemoteConfig, Option<String>)>> {
        let remote = self
            .server
            .clone()
            .resolve_for_doctor(self.mode, environment)?;
        Ok(remote.map(|remote| (remote, self.model.model.clone())))
    }

    pub fn layout(&self) -> Layout {
        self.results.layout()
    }

    /// # Errors
    /// Exit code 2 for an invalid variable.
    pub fn model(&self, environment: &ProcessEnv) -> Result<ModelConfig> {
        environment.model(self.model.model.clone())
    }
}

/// `flowbench model`.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    pub command: ModelCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ModelCommand {
    /// Locate the model, download it if needed, and print its path
    Fetch(ModelFileArgs),
    /// Print the model file's metadata
    Inspect(ModelFileArgs),
}

#[derive(Debug, Clone, Args)]
pub struct ModelFileArgs {
    #[command(flatten)]
    model: ModelChoice,

    /// 1: do not show progress bars
    #[arg(long, env, value_name = "QUIET", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    pub quiet: bool,
}

impl ModelFileArgs {
    /// # Errors
    /// Exit code 2 for an invalid variable.
    pub fn resolve(&self, environment: &ProcessEnv) -> Result<ModelConfig> {
        environment.model(self.model.model.clone())
    }
}

impl RunArgs {
    /// These flags for `calibrate`.
    #[must_use]
    pub fn calibrating(mut self) -> Self {
        self.keep.repetitions.get_or_insert(CALIBRATION);
        self
    }

    /// Merges flags, environment and defaults.
    ///
    /// # Errors
    /// Exit code 2 for conflicting settings or an invalid variable.
    pub fn resolve(self, environment: &ProcessEnv) -> Result<RunConfig> {
        if self.script.is_some() && !matches!(self.mode, Mode::Scripted | Mode::Both) {
            return Err(
                Error::usage(format!("SCRIPT is set, but MODE is {}", self.mode.as_str()))
                    .hint("set MODE=scripted to replay the script, or unset SCRIPT"),
            );
        }
        if self.engine_per_workflow && self.mode == Mode::Both {
            return Err(
                Error::usage("--engine-per-workflow is set, but MODE is both").hint(
                    "MODE=both compares two modes on one engine; use MODE=standalone with this flag",
                ),
            );
        }
        let workflow = self.workflow.resolve(environment)?;
        let concurrency = (self.concurrency).map_or(Concurrency::of(self.mode), Concurrency::Fixed);
        if self.discard_tainted {
            check_reruns(self.mode, concurrency, &workflow)?;
        }
        if workflow.rollouts.is_some() && self.mode == Mode::Both {
            return Err(Error::usage("--input is given, but MODE is both")
                .hint("MODE=both compares two modes on the template's own suite"));
        }
        let remote = self.remote.resolve(self.mode, environment)?;
        Ok(RunConfig {
            job: JobSettings {
                num_flows: self.flows.num_flows,
                mode: self.mode,
                device: self.engine.device,
                backend: self.engine.backend,
                gpu: self.engine.gpu(),
                concurrency,
                rounds: self.rounds,
                kv_cache_bytes: self.sequences.kv_cache_mb,
                context: self.sequences.context,
                speculate: self.sequences.speculate,
                seed: self.seed,
                max_tokens: self.max_tokens,
                ignore_eos: self.ignore_eos,
                script_latency: self.script_latency,
                engine_per_workflow: self.engine_per_workflow,
                discard_tainted: self.discard_tainted,
                params: workflow.params,
                unsafe_eval: workflow.unsafe_eval,
                limits: workflow.limits,
                prices: workflow.prices,
                pin_outputs: workflow.pin_outputs,
            },
            machine: MachineSettings {
                template: self.flows.template,
                model_files: environment.model(self.engine.model.model)?,
                script: self.script,
                gpu_power: self.gpu_power,
                python: workflow.python,
                python_environment: environment.python.clone(),
                layout: self.results.layout(),
            },
            presentation: PresentationSettings {
                quiet: self.quiet,
                show_output: self.show_output,
                show_prompt: self.show_prompt,
                out: self.results.folder(),
                record: workflow.record,
                labels: self.keep.labels(environment),
                gates: self.keep.limits.resolve(self.keep.gate),
                repetitions: self.keep.repetitions.unwrap_or(1),
                by_turns: self.keep.by_turns,
                save_baseline: self.keep.save_baseline,
                profiling: self.profile.resolve(),
            },
            rollouts: workflow.rollouts,
            remote,
            shard: self.shard,
            resume: workflow.resume,
        })
    }
}

/// Checks that a flow that is run again at the end is measured as it was the first time.
///
/// # Errors
/// Exit code 2 if it is not.
fn check_reruns(
    mode: Mode,
    concurrency: Concurrency,
    workflow: &workflows::WorkflowSettings,
) -> Result<()> {
    let why = match mode {
        _ if workflow.resume.is_some() => {
            "--resume is given, and a run that was killed does not say which flows it ran again"
        }
        Mode::Standalone | Mode::Scripted if concurrency != Concurrency::Fixed(1) => {
            "several flows are in flight at once (CONCURRENCY), and a flow that is run again would have \
             other company"
        }
        Mode::Standalone | Mode::Scripted => match &workflow.rollouts {
            Some(rollouts) if rollouts.files.output.is_some() => {
                "--output has a row's result as soon as its flow ends"
            }
            _ => return Ok(()),
        },
        Mode::Reuse => {
            "MODE is reuse, and a flow that is run again would find its own prefixes cached"
        }
        Mode::Both => "MODE is both, whose rounds alternate to share the disturbances",
        Mode::Remote => "MODE is remote, and the server may have cached the flow's prompts",
    };
    Err(Error::usage(format!("--discard-tainted is given, but {why}")).hint(
        "without --discard-tainted (DISCARD_TAINTED=0), run.json still says which flows are tainted",
    ))
}

/// Parses MiB and returns bytes.
fn parse_mebibytes(text: &str) -> Result<usize, String> {
    // In MiB: 2^44 bytes.
    const MOST: usize = 1 << 24;
    match text.parse::<usize>() {
        Ok(count @ 1..=MOST) => Ok(count << 20),
        _ => Err(format!("expected a whole number from 1 to {MOST}")),
    }
}

/// A share of a card's memory.
fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.05..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0.05 to 1, such as 0.9".to_owned()),
    }
}

/// At least 2: one prompt token and one generated token.
fn parse_tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 2..) => Ok(count),
        _ => Err("expected a whole number, at least 2".to_owned()),
    }
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=MAX_FLOWS) => Ok(count),
        _ => Err(format!("expected a whole number from 1 to {MAX_FLOWS}")),
    }
}

fn parse_file_name(text: &str) -> Result<String, String> {
    let path = std::path::Path::new(text);
    match path.file_name() {
        Some(name) if name == path.as_os_str() => Ok(text.to_owned()),
        _ => Err("expected a file name without a folder".to_owned()),
    }
}

fn parse_watts(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(watts) if watts.is_finite() && watts > 0.0 => Ok(watts),
        _ => Err("expected a power in watts, above 0".to_owned()),
    }
}

/// Prints the help, the version, or a usage error. Control characters in the user's input are
/// escaped.
///
/// # Errors
/// Writing to the stream fails.
pub fn print(mut error: clap::Error) -> std::io::Result<()> {
    use clap::error::ContextValue::{String, Strings};
    let shown = |text: &std::string::String| visible_line(text).into_owned();
    let context: Vec<_> = error
        .context()
        .filter_map(|(kind, value)| match value {
            String(text) => Some((kind, String(shown(text)))),
            Strings(texts) => Some((kind, Strings(texts.iter().map(shown).collect()))),
            _ => None,
        })
        .collect();
    for (kind, value) in context {
        error.insert(kind, value);
    }
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    match cause {
        // The cause cannot be replaced inside the error, so print without colours.
        Some(cause) if cause.contains(is_active) => {
            write!(std::io::stderr(), "{}", visible(&error.to_string()))
        }
        _ => error.print(),
    }
}

/// Hint for a rejected value: names the flag and the environment variable that may have set it.
pub fn hint_for(error: &clap::Error) -> Option<String> {
    let argument = match error.get(clap::error::ContextKind::InvalidArg)? {
        clap::error::ContextValue::String(argument) => argument.clone(),
        _ => return None,
    };
    let flag = argument.split_whitespace().next()?.to_owned();
    // With the name of its value: `--output` is another flag in `run` than in `report`.
    let mut command = Cli::command();
    command.build();
    let variable = command
        .get_subcommands()
        .flat_map(|command| command.get_arguments())
        .find(|known| known.to_string() == argument)?
        .get_env()?
        .to_string_lossy()
        .into_owned();
    Some(format!(
        "{variable} in the environment and {flag} on the command line set this; the flag wins"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_definitions_are_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_refused_value_gets_the_hint_of_its_own_subcommand() {
        let hint = |arguments: &[&str]| {
            let refused = Cli::try_parse_from(arguments).expect_err("refused");
            hint_for(&refused)
        };
        let flows = hint(&["flowbench", "run", "--num-flows", "none"]).expect("a variable sets it");
        assert!(flows.starts_with("NUM_FLOWS in the environment"), "{flows}");
        for subcommand in ["report", "diagnose"] {
            assert_eq!(hint(&["flowbench", subcommand, "-o", "yaml"]), None);
        }
    }

    #[test]
    fn counts_are_whole_numbers_of_at_least_one() {
        for bad in [
            "0",
            "-1",
            "abc",
            "1e9",
            "1.5",
            "",
            "1000001",
            "99999999999999999999",
        ] {
            assert!(parse_count(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_count("25"), Ok(25));
    }

    #[test]
    fn a_file_name_has_no_folder() {
        for bad in ["", ".", "..", "a/b", "/a", "a/"] {
            assert!(parse_file_name(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_file_name("baseline.2"), Ok("baseline.2".to_owned()));
    }

    #[test]
    fn watts_are_positive() {
        for bad in ["0", "-3", "nan", "inf", "x"] {
            assert!(parse_watts(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_watts("300"), Ok(300.0));
    }
}
