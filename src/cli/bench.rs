//! The flags of `bench-engine`.

use clap::Args;
use clap::builder::BoolishValueParser;

use super::{EngineArgs, MAX_FLOWS, ProcessEnv, parse_count, parse_mebibytes};
use crate::config::{BenchConfig, BenchFormat};
use crate::error::{Error, Result};
use crate::record::bench::{Phase, Test};

/// `flowbench bench-engine`.
#[derive(Debug, Clone, Args)]
pub struct BenchEngineArgs {
    // `--n-prompt`, `--n-gen`, `-d` and `--n-depth` are what llama-bench calls the same.
    /// Lengths of prompts, in tokens; 0 for none
    #[arg(short, long, alias = "n-prompt", env = "BENCH_PROMPT_TOKENS", value_name = "LIST", default_value = "512", value_delimiter = ',', value_parser = parse_length)]
    prompt_tokens: Vec<usize>,

    /// How many tokens are generated; 0 for none
    #[arg(short = 'n', long, alias = "n-gen", env = "BENCH_GEN_TOKENS", value_name = "LIST", default_value = "128", value_delimiter = ',', value_parser = parse_length)]
    gen_tokens: Vec<usize>,

    /// Sequences that generate at once
    #[arg(short, long, env = "BENCH_BATCH", value_name = "LIST", default_value = "1,8,25", value_delimiter = ',', value_parser = parse_count)]
    batch: Vec<usize>,

    /// Tokens that each sequence has before it generates, of its own
    #[arg(short, long, short_alias = 'd', alias = "n-depth", env = "BENCH_CONTEXT", value_name = "TOKENS", default_value = "400", value_parser = parse_length)]
    context: usize,

    /// How often each test is repeated; the tests take turns
    #[arg(short, long, env = "BENCH_REPETITIONS", value_name = "COUNT", default_value = "5", value_parser = parse_count)]
    repetitions: usize,

    /// What the figures are printed as
    #[arg(
        short,
        long,
        env = "BENCH_OUTPUT",
        value_name = "FORMAT",
        default_value = "md"
    )]
    output: BenchFormat,

    #[command(flatten)]
    engine: EngineArgs,

    /// Most memory for keys and values in MiB [default: 1024, or what one sequence of the full context
    /// takes, as far as half of the available memory goes]
    #[arg(long, env, value_name = "KV_CACHE_MB", value_parser = parse_mebibytes)]
    kv_cache_mb: Option<usize>,

    /// 1: no progress lines and bars
    #[arg(long, env, value_name = "QUIET", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    quiet: bool,
}

impl BenchEngineArgs {
    /// Puts flags, environment and defaults together: prompts first, then a generation for each
    /// length and batch.
    ///
    /// # Errors
    /// Exit code 2 where there is nothing to measure or a variable cannot be understood.
    pub fn resolve(self, environment: &ProcessEnv) -> Result<BenchConfig> {
        let lengths = |list: Vec<usize>| list.into_iter().filter(|tokens| *tokens > 0);
        let prompts = lengths(self.prompt_tokens).map(|tokens| Test {
            phase: Phase::Prefill,
            tokens,
            batch: 1,
            context: 0,
        });
        let generations = lengths(self.gen_tokens).flat_map(|tokens| {
            let batches = self.batch.iter();
            batches.map(move |batch| Test {
                phase: Phase::Decode,
                tokens,
                batch: *batch,
                context: self.context,
            })
        });
        let tests: Vec<Test> = prompts.chain(generations).collect();
        if tests.is_empty() {
            return Err(Error::usage("there is nothing to measure")
                .hint("give a length other than 0 with -p or -n"));
        }
        Ok(BenchConfig {
            model: environment.model(self.engine.model.model)?,
            device: self.engine.device,
            backend: self.engine.backend,
            kv_cache_bytes: self.kv_cache_mb,
            tests,
            repetitions: self.repetitions,
            format: self.output,
            quiet: self.quiet,
        })
    }
}

fn parse_length(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 0..=MAX_FLOWS) => Ok(count),
        _ => Err(format!("expected a whole number from 0 to {MAX_FLOWS}")),
    }
}
