//! The command line: flags, the environment variables of the same meaning, and how the two become
//! settings. A flag beats the environment, which beats the default.

mod bench;
mod process_env;
mod remote;
mod workflows;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{
    Backend, Concurrency, DeviceChoice, DiagnoseFormat, JobSettings, Layout, MachineSettings, Mode,
    ModelConfig, PresentationSettings, ProfileConfig, RemoteConfig, ReportFormat, RunConfig,
};
use crate::error::{Error, Result};
use crate::evaluate;
use crate::record::shard::Shard;
use crate::terminal::{is_active, visible, visible_line};

use remote::{RemoteArgs, ServerArgs};

pub use bench::BenchEngineArgs;
pub use process_env::ProcessEnv;

/// Most flows of a run: more would be a mistake in `NUM_FLOWS`, not a workload.
pub const MAX_FLOWS: usize = 1_000_000;

/// A benchmark runner for multi-step LLM workflows on one local GPU.
#[derive(Debug, Parser)]
#[command(name = "flowbench", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Expand the flows, load the engine once, run the flows and time them
    Run(Box<RunArgs>),
    /// Expand the flows through the cache, without an engine
    Expand(ExpandArgs),
    /// Say why a run took as long as it did: stages by share, causes, what would help by how much
    Diagnose(DiagnoseArgs),
    /// Make a run into one HTML file, or into Markdown
    Report(ReportArgs),
    /// Join the runs of all shards (--shard) of a job into one
    Merge(MergeArgs),
    /// Check toolchain, CPU, GPU, model, Python, disk and folders
    Doctor(DoctorArgs),
    /// Find, fetch or inspect a model
    Model(ModelArgs),
    /// Measure prompt processing and token generation, beside what the machine can do at most
    BenchEngine(BenchEngineArgs),
}

/// Where flowbench's files are.
#[derive(Debug, Clone, Args)]
pub struct LayoutArgs {
    /// Folder that holds templates/, fixtures/ and flows/
    #[arg(
        long,
        env = "FLOWBENCH_ROOT",
        value_name = "FLOWBENCH_ROOT",
        default_value = "."
    )]
    pub root: PathBuf,
}

/// What is expanded.
#[derive(Debug, Clone, Args)]
pub struct FlowArgs {
    /// How many flows; flow i takes suite row i modulo the number of rows
    #[arg(long, env, value_name = "NUM_FLOWS", default_value = "25", value_parser = parse_count, allow_negative_numbers = true)]
    pub num_flows: usize,

    /// A name in templates/, or a path to a .toml file
    #[arg(long, env, value_name = "TEMPLATE", default_value = "three_step")]
    pub template: String,
}

/// Which model, and where it is looked for.
#[derive(Debug, Clone, Args)]
pub struct ModelChoice {
    /// A .gguf file, a folder with safetensors, or a hub repository (owner/name or owner/name:file); without it,
    /// SmolLM2-135M-Instruct Q4_1, which is fetched once
    #[arg(long, env, value_name = "MODEL")]
    pub model: Option<String>,
}

/// Which model is computed, where and how.
#[derive(Debug, Clone, Args)]
struct EngineArgs {
    #[command(flatten)]
    model: ModelChoice,

    /// Where the model runs
    #[arg(long, env, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,

    /// Which forward pass computes the model: the fastest that knows it, or one of them
    #[arg(long, env, value_name = "BACKEND", default_value = "auto")]
    backend: Backend,
}

/// `flowbench run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    flows: FlowArgs,

    /// How the flows are run
    #[arg(long, env, value_name = "MODE", default_value = "standalone")]
    mode: Mode,

    #[command(flatten)]
    engine: EngineArgs,

    /// Flows in flight [default: 1; in MODE=reuse, and in the reuse rounds of MODE=both, all flows; in
    /// MODE=remote all flows, 256 at most]
    #[arg(long, env, value_name = "CONCURRENCY", value_parser = parse_count)]
    concurrency: Option<usize>,

    /// Rounds of each mode in MODE=both; a median is told from 3 on
    #[arg(long, env, value_name = "ROUNDS", default_value = "3", value_parser = parse_count)]
    rounds: usize,

    /// Most memory for keys and values in MiB; on a CPU it is taken as it is needed [default: 1024, or
    /// what one sequence of the full context takes, as far as half of the available memory goes]
    #[arg(long, env, value_name = "KV_CACHE_MB", value_parser = parse_mebibytes)]
    kv_cache_mb: Option<usize>,

    /// Most tokens of a sequence, prompt and generated ones together [default: the model's context]
    #[arg(long, env, value_name = "CONTEXT", value_parser = parse_tokens)]
    context: Option<usize>,

    /// 1: a sequence that decodes alone guesses its next tokens and checks them in one pass; the
    /// tokens are the same
    #[arg(long, env, value_name = "SPECULATE", default_value = "1", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    speculate: bool,

    /// Seed of the sampling
    #[arg(long, env, value_name = "SEED", default_value = "0")]
    seed: u64,

    /// Most tokens a step generates, in place of the template's own limits
    #[arg(long, env, value_name = "MAX_TOKENS", value_parser = parse_count)]
    max_tokens: Option<usize>,

    /// 1: generate up to the limit, past any end-of-sequence token
    #[arg(long, env, value_name = "IGNORE_EOS", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    ignore_eos: bool,

    /// Recorded answers for MODE=scripted: JSON Lines, or the steps.jsonl of an earlier run; without
    /// it, the file TEMPLATE.script.jsonl beside the template
    #[arg(long, env, value_name = "SCRIPT")]
    script: Option<PathBuf>,

    /// 0: do not wait for the latencies that the script gives
    #[arg(long, env, value_name = "SCRIPT_LATENCY", default_value = "1", value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    script_latency: bool,

    /// 1: no progress lines and bars
    #[arg(long, env, value_name = "QUIET", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    quiet: bool,

    /// Watts to assume for the energy of the run, where the power cannot be read
    #[arg(long, env, value_name = "GPU_POWER", value_parser = parse_watts)]
    gpu_power: Option<f64>,

    /// Folder where runs are kept
    #[arg(long, env, value_name = "OUT", default_value = "results")]
    out: PathBuf,

    #[command(flatten)]
    remote: RemoteArgs,

    /// Run part i of n of the flows: i, i + n, i + 2n, …; flowbench merge joins the parts' runs
    #[arg(long, env, value_name = "SHARD")]
    shard: Option<Shard>,

    #[command(flatten)]
    profile: ProfileArgs,

    #[command(flatten)]
    workflow: workflows::WorkflowArgs,

    /// Print the generated text of each step to stderr
    #[arg(long)]
    show_output: bool,

    /// Print the prompt of each step to stderr as the model is given it, special tokens and all; with
    /// ENDPOINT_API=chat, the messages that the server renders
    #[arg(long, env, value_name = "SHOW_PROMPT", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    show_prompt: bool,

    /// Expand anew and start an engine for each workflow: the slow way that this program replaces,
    /// kept so that the difference can be measured
    #[arg(long)]
    engine_per_workflow: bool,

    #[command(flatten)]
    layout: LayoutArgs,
}

/// What is measured of the program itself.
#[derive(Debug, Clone, Args)]
struct ProfileArgs {
    /// 1: measure where the time goes, and keep the table as profile.log in the run's folder
    #[arg(long, env, value_name = "PROFILE", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    profile: bool,

    /// Folder that gets a copy of the table, under --profile-name; turns the profile on
    #[arg(long, env, value_name = "PROFILE_DIR")]
    profile_dir: Option<PathBuf>,

    /// Name of that copy, without .log [default: the run's own name]
    #[arg(long, env, value_name = "PROFILE_NAME", requires = "profile_dir", value_parser = parse_file_name)]
    profile_name: Option<String>,

    /// Serve /stats, /metrics and a page at this address while the run goes on (127.0.0.1:0 is any
    /// free port; a port alone is one of this machine only); turns the profile on
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
    /// What is expanded.
    #[command(flatten)]
    pub flows: FlowArgs,

    /// Set parameters of the template anew: max_generations=5,timeout_ms=2000
    #[arg(long = "set", env = "PARAMS", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = workflows::parse_setting)]
    pub set: Vec<(String, String)>,

    /// Verify flows and cache without writing; exit 99 where they would be written anew
    #[arg(long)]
    pub check: bool,

    /// 1: no progress lines
    #[arg(long, env, value_name = "QUIET", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    pub quiet: bool,

    #[command(flatten)]
    layout: LayoutArgs,
}

impl ExpandArgs {
    /// Where templates, fixtures and flows are.
    pub fn layout(&self) -> Layout {
        Layout {
            root: self.layout.root.clone(),
        }
    }
}

/// `flowbench diagnose`.
#[derive(Debug, Clone, Args)]
pub struct DiagnoseArgs {
    /// A run's folder or its run.json; without it, the latest run in OUT
    pub run: Option<PathBuf>,

    /// What the diagnosis is printed as
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    pub output: DiagnoseFormat,

    /// Folder where runs are kept
    #[arg(long, env, value_name = "OUT", default_value = "results")]
    pub out: PathBuf,
}

/// `flowbench report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// A run's folder or its run.json; without it, the latest run in OUT
    pub run: Option<PathBuf>,

    /// What is made of the run
    #[arg(short, long, value_name = "FORMAT", default_value = "html")]
    pub output: ReportFormat,

    /// Folder where runs are kept
    #[arg(long, env, value_name = "OUT", default_value = "results")]
    pub out: PathBuf,
}

/// `flowbench merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// The runs' folders, or their run.json
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,

    /// Folder where the joined run is kept
    #[arg(long, env, value_name = "OUT", default_value = "results")]
    pub out: PathBuf,
}

/// `flowbench doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    model: ModelChoice,

    /// Where the model is to run
    #[arg(long, env, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Folder where runs are kept
    #[arg(long, env, value_name = "OUT", default_value = "results")]
    pub out: PathBuf,

    /// Python that generated programs run on
    #[arg(long, env, value_name = "PYTHON", default_value = "python3")]
    python: PathBuf,

    /// How the flows are to be run: with remote, or where ENDPOINT is set, the server is asked and no
    /// model is looked for
    #[arg(long, env, value_name = "MODE")]
    mode: Option<Mode>,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    layout: LayoutArgs,
}

impl DoctorArgs {
    /// How generated programs would be run.
    pub fn evaluator(&self, environment: &ProcessEnv) -> evaluate::Settings {
        evaluate::Settings::new(&self.python, environment.python.clone())
    }

    /// The server to ask, and the model to ask it for.
    ///
    /// # Errors
    /// Exit code 2 for a variable that cannot be understood.
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

    /// Where templates, fixtures and flows are.
    pub fn layout(&self) -> Layout {
        Layout {
            root: self.layout.root.clone(),
        }
    }

    /// Where the model is looked for.
    ///
    /// # Errors
    /// Exit code 2 for a variable that cannot be understood.
    pub fn model(&self, environment: &ProcessEnv) -> Result<ModelConfig> {
        environment.model(self.model.model.clone())
    }
}

/// `flowbench model`.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: ModelCommand,
}

/// The subcommands of `flowbench model`.
#[derive(Debug, Clone, Subcommand)]
pub enum ModelCommand {
    /// Find the model or fetch it, and print its path
    Fetch(ModelFileArgs),
    /// Print what the model file says of itself
    Inspect(ModelFileArgs),
}

/// The model that a `flowbench model` command is about.
#[derive(Debug, Clone, Args)]
pub struct ModelFileArgs {
    #[command(flatten)]
    model: ModelChoice,

    /// 1: no progress bars
    #[arg(long, env, value_name = "QUIET", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    pub quiet: bool,
}

impl ModelFileArgs {
    /// Where the model is looked for.
    ///
    /// # Errors
    /// Exit code 2 for a variable that cannot be understood.
    pub fn resolve(&self, environment: &ProcessEnv) -> Result<ModelConfig> {
        environment.model(self.model.model.clone())
    }
}

impl RunArgs {
    /// Puts flags, environment and defaults together.
    ///
    /// # Errors
    /// Exit code 2 for settings that contradict one another or a variable that cannot be
    /// understood.
    pub fn resolve(self, environment: &ProcessEnv) -> Result<RunConfig> {
        if self.script.is_some() && !matches!(self.mode, Mode::Scripted | Mode::Both) {
            return Err(
                Error::usage(format!("SCRIPT is set, but MODE is {}", self.mode.as_str()))
                    .hint("MODE=scripted plays a script; without it, unset SCRIPT"),
            );
        }
        if self.engine_per_workflow && self.mode == Mode::Both {
            return Err(
                Error::usage("--engine-per-workflow is set, but MODE is both").hint(
                    "MODE=both compares two modes on one engine; give MODE=standalone with it",
                ),
            );
        }
        let workflow = self.workflow.resolve()?;
        if workflow.rollouts.is_some() && self.mode == Mode::Both {
            return Err(Error::usage("--input is given, but MODE is both")
                .hint("MODE=both compares two modes on the template's own suite"));
        }
        let remote = self.remote.resolve(self.mode, environment)?;
        let default_concurrency = Concurrency::of(self.mode);
        Ok(RunConfig {
            job: JobSettings {
                num_flows: self.flows.num_flows,
                mode: self.mode,
                device: self.engine.device,
                backend: self.engine.backend,
                concurrency: (self.concurrency).map_or(default_concurrency, Concurrency::Fixed),
                rounds: self.rounds,
                kv_cache_bytes: self.kv_cache_mb,
                context: self.context,
                speculate: self.speculate,
                seed: self.seed,
                max_tokens: self.max_tokens,
                ignore_eos: self.ignore_eos,
                script_latency: self.script_latency,
                engine_per_workflow: self.engine_per_workflow,
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
                layout: Layout {
                    root: self.layout.root,
                },
            },
            presentation: PresentationSettings {
                quiet: self.quiet,
                show_output: self.show_output,
                show_prompt: self.show_prompt,
                out: self.out,
                record: workflow.record,
                profiling: self.profile.resolve(),
            },
            rollouts: workflow.rollouts,
            remote,
            shard: self.shard,
        })
    }
}

/// Mebibytes, as bytes.
fn parse_mebibytes(text: &str) -> Result<usize, String> {
    // What an address can count.
    const MOST: usize = 1 << 24;
    match text.parse::<usize>() {
        Ok(count @ 1..=MOST) => Ok(count << 20),
        _ => Err(format!("expected a whole number from 1 to {MOST}")),
    }
}

/// A number of tokens, of which one is a prompt's and one is generated at the least.
fn parse_tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 2..) => Ok(count),
        _ => Err("expected a whole number from 2 on".to_owned()),
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
        _ => Err("expected the name of a file, without a folder".to_owned()),
    }
}

fn parse_watts(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(watts) if watts.is_finite() && watts > 0.0 => Ok(watts),
        _ => Err("expected a power in watts, above 0".to_owned()),
    }
}

/// Prints help, the version, or what is wrong with the command line. Control characters in what the
/// user wrote are shown as escapes.
///
/// # Errors
/// The stream cannot be written.
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
        // The cause cannot be replaced: this goes without colours.
        Some(cause) if cause.contains(is_active) => {
            write!(std::io::stderr(), "{}", visible(&error.to_string()))
        }
        _ => error.print(),
    }
}

/// The hint for a value that was refused: the flag, and the variable that may have set it.
pub fn hint_for(error: &clap::Error) -> Option<String> {
    let argument = match error.get(clap::error::ContextKind::InvalidArg)? {
        clap::error::ContextValue::String(argument) => argument.clone(),
        _ => return None,
    };
    let flag = argument.split_whitespace().next()?.to_owned();
    let long = flag.strip_prefix("--")?;
    let variable = Cli::command()
        .get_subcommands()
        .flat_map(|command| command.get_arguments())
        .find(|known| known.get_long() == Some(long))?
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
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn counts_are_whole_numbers_from_one() {
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
