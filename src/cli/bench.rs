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
    // Same names as in llama-bench: `--n-prompt`, `--n-gen`, `-d`, `--n-depth`.
    /// Prompt lengths in tokens; 0 skips the prefill tests
    #[arg(short, long, alias = "n-prompt", env = "BENCH_PROMPT_TOKENS", value_name = "LIST", default_value = "512", value_delimiter = ',', value_parser = parse_length)]
    prompt_tokens: Vec<usize>,

    /// Tokens to generate per sequence; 0 skips the decode tests
    #[arg(short = 'n', long, alias = "n-gen", env = "BENCH_GEN_TOKENS", value_name = "LIST", default_value = "128", value_delimiter = ',', value_parser = parse_length)]
    gen_tokens: Vec<usize>,

    /// Batch sizes: sequences that decode together
    #[arg(short, long, env = "BENCH_BATCH", value_name = "LIST", default_value = "1,8,25", value_delimiter = ',', value_parser = parse_count)]
    batch: Vec<usize>,

    /// Tokens in the context of each sequence before it decodes; not shared between sequences
    #[arg(short, long, short_alias = 'd', alias = "n-depth", env = "BENCH_CONTEXT", value_name = "TOKENS", default_value = "400", value_parser = parse_length)]
    context: usize,

    /// Repetitions of each test; tests are interleaved
    #[arg(short, long, env = "BENCH_REPETITIONS", value_name = "COUNT", default_value = "5", value_parser = parse_count)]
    repetitions: usize,

    /// Output format
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

    /// Upper bound on KV cache memory in MiB [default: 1024, or more if one sequence of the full
    /// context needs it, up to half of the available memory]
    #[arg(long, env, value_name = "KV_CACHE_MB", value_parser = parse_mebibytes)]
    kv_cache_mb: Option<usize>,

    /// 1: do not show progress
    #[arg(long, env, value_name = "QUIET", default_value = "0", value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "1")]
    quiet: bool,
}

impl BenchEngineArgs {
    /// Merges flags, environment and defaults. Prefill tests come first, then one decode test per
    /// length and batch size.
    ///
    /// # Errors
    /// Exit code 2 if there is nothing to measure or a variable is invalid.
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
                .hint("give -p or -n a length other than 0"));
        }
        let gpu = self.engine.gpu();
        Ok(BenchConfig {
            model: environment.model(self.engine.model.model)?,
            device: self.engine.device,
            backend: self.engine.backend,
            gpu,
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
