//! The flags of `serve`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::remote::RemoteArgs;
use super::{EngineArgs, ProcessEnv, SequenceArgs, parse_count};
use crate::config::{EngineSettings, Mode, ServeConfig, ServerSettings};
use crate::error::{Error, Result};

/// Tokens of an answer in `MODE=remote`, for requests that do not say: the server's context is not known.
const REMOTE_TOKENS: usize = 1024;

/// `flowbench serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Address to listen at; port 0 picks a free one, and a bare port listens on localhost only
    #[arg(long, env = "SERVE_ADDR", value_name = "HOST:PORT", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)), value_parser = crate::live::parse_address)]
    addr: SocketAddr,

    /// Key that clients must send; without one, any key is accepted, and only on loopback
    #[arg(
        long,
        env = "FLOWBENCH_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,

    /// Names of this machine that clients may use besides localhost and IP addresses, with commas
    #[arg(
        long,
        env = "SERVE_ALLOW_HOST",
        value_name = "NAMES",
        value_delimiter = ','
    )]
    allow_host: Vec<String>,

    /// Other names by which clients may ask for the model, with commas
    #[arg(long, env = "SERVE_ALIAS", value_name = "NAMES", value_delimiter = ',')]
    alias: Vec<String>,

    /// Maximum number of answers generated at once
    #[arg(long, env, value_name = "CONCURRENCY", default_value = "256", value_parser = parse_count)]
    concurrency: usize,

    /// Maximum number of answers that wait beside them; more are refused with status 429
    #[arg(long, env = "SERVE_MAX_QUEUE", value_name = "COUNT", default_value = "1024", value_parser = parse_queue)]
    max_queue: usize,

    /// Maximum size of a request's body in MiB
    #[arg(long, env = "SERVE_MAX_BODY_MB", value_name = "MIB", default_value = "16", value_parser = parse_body)]
    max_body_mb: usize,

    /// How to answer: reuse (a model in this process, prefixes kept), standalone (prefixes not kept),
    /// scripted (recorded answers), remote (passed on to ENDPOINT)
    #[arg(
        long,
        env,
        value_name = "MODE",
        default_value = "reuse",
        hide_possible_values = true
    )]
    mode: Mode,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    sequences: SequenceArgs,

    /// Seed from which requests without a seed get theirs, each another one
    #[arg(long, env, value_name = "SEED", default_value = "0")]
    seed: u64,

    /// Maximum tokens of an answer, for requests that set no limit [default: what the context leaves;
    /// 1024 in MODE=remote]
    #[arg(long, env, value_name = "MAX_TOKENS", value_parser = parse_count)]
    max_tokens: Option<usize>,

    /// Script of recorded answers for MODE=scripted: JSON Lines, or the steps.jsonl of an earlier run
    #[arg(long, env, value_name = "SCRIPT")]
    script: Option<PathBuf>,

    /// 0: do not simulate the script's recorded latencies
    #[arg(long, env, value_name = "SCRIPT_LATENCY", default_value = "1", value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    script_latency: bool,

    /// 1: do not show progress
    #[arg(long, env, value_name = "QUIET", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    quiet: bool,

    #[command(flatten)]
    remote: RemoteArgs,
}

impl ServeArgs {
    /// Merges flags, environment and defaults.
    ///
    /// # Errors
    /// Exit code 2 for conflicting settings or an invalid variable.
    pub fn resolve(self, environment: &ProcessEnv) -> Result<ServeConfig> {
        let scripted = self.mode == Mode::Scripted;
        if self.mode == Mode::Both {
            return Err(
                Error::usage("MODE is both, which compares two modes of a run")
                    .hint("set MODE=reuse, or unset MODE"),
            );
        }
        if scripted && self.script.is_none() {
            return Err(
                Error::usage("MODE is scripted, but SCRIPT is not set").hint(
                    "set SCRIPT (--script) to a file of recorded answers, such as the steps.jsonl of a run",
                ),
            );
        }
        if self.script.is_some() && !scripted {
            return Err(
                Error::usage(format!("SCRIPT is set, but MODE is {}", self.mode.as_str()))
                    .hint("set MODE=scripted to replay the script, or unset SCRIPT"),
            );
        }
        let api_key = self.api_key.filter(|key| !key.is_empty());
        if api_key.is_none() && !self.addr.ip().is_loopback() {
            return Err(Error::usage(format!(
                "{} can be reached from other machines, and no key is set",
                self.addr
            ))
            .hint("set FLOWBENCH_API_KEY, or listen on 127.0.0.1"));
        }
        let remote = self.remote.resolve(self.mode, environment)?;
        let mut aliases = self.alias;
        if remote.is_none() && !scripted {
            // What the user called it; its own name is in its file.
            aliases.extend(self.engine.model.model.clone());
        }
        let default_tokens = remote.as_ref().map(|_| REMOTE_TOKENS);
        Ok(ServeConfig {
            engine: EngineSettings {
                scripted,
                script: self.script,
                script_latency: self.script_latency,
                remote,
                device: self.engine.device,
                backend: self.engine.backend,
                gpu: self.engine.gpu(),
                reuse: self.mode == Mode::Reuse,
                kv_cache_bytes: self.sequences.kv_cache_mb,
                context: self.sequences.context,
                speculate: self.sequences.speculate,
                model_files: environment.model(self.engine.model.model)?,
            },
            server: ServerSettings {
                address: self.addr,
                api_key,
                allow_hosts: self.allow_host,
                aliases,
                concurrency: self.concurrency,
                max_queue: self.max_queue,
                max_tokens: self.max_tokens.or(default_tokens),
                max_body: self.max_body_mb << 20,
                seed: self.seed,
            },
            quiet: self.quiet,
        })
    }
}

fn parse_queue(text: &str) -> Result<usize, String> {
    const MOST: usize = 1_000_000;
    match text.parse() {
        Ok(count @ 0..=MOST) => Ok(count),
        _ => Err(format!("expected a whole number from 0 to {MOST}")),
    }
}

fn parse_body(text: &str) -> Result<usize, String> {
    // In MiB.
    const MOST: usize = 1024;
    match text.parse() {
        Ok(count @ 1..=MOST) => Ok(count),
        _ => Err(format!("expected a whole number from 1 to {MOST}")),
    }
}
