//! Flags of `flowbench ab`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::compare::parse_metric;
use super::gates::parse_share;
use super::workflows::{parse_duration, parse_setting};
use super::{ResultsArgs, parse_count};
use crate::config::{ArmSettings, CompareFormat};
use crate::metrics::compare::Metric;

/// `flowbench ab`.
#[derive(Debug, Clone, Args)]
pub struct AbArgs {
    /// A setting of A as a variable: --a MODEL=x.gguf --a SPECULATE=0; all others come from the environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting)]
    pub a: Vec<(String, String)>,

    /// A setting of B likewise
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting)]
    pub b: Vec<(String, String)>,

    /// Another flowbench program for A
    #[arg(long, value_name = "PATH")]
    pub a_binary: Option<PathBuf>,

    /// Another flowbench program for B
    #[arg(long, value_name = "PATH")]
    pub b_binary: Option<PathBuf>,

    /// Server for A: MODE=remote,ENDPOINT=URL
    #[arg(long, value_name = "URL")]
    pub a_endpoint: Option<String>,

    /// Server for B
    #[arg(long, value_name = "URL")]
    pub b_endpoint: Option<String>,

    /// Metric to judge, as in `compare`
    #[arg(long, value_name = "METRIC", default_value = "workflow_ms", value_parser = parse_metric)]
    pub metric: Metric,

    /// Changes up to this size do not matter
    #[arg(long, value_name = "SHARE", default_value = "3%", value_parser = parse_share)]
    pub threshold: f64,

    /// Stop after this many rounds without a verdict
    #[arg(long, value_name = "N", default_value = "50", value_parser = parse_count)]
    pub max_rounds: usize,

    /// Begin no round after this long: seconds, or with a unit (90s, 30m, 2h)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub deadline: Option<Duration>,

    /// Start a process for each run, instead of keeping both engines loaded; so it is anyway on a GPU, with
    /// another program, and where memory is short
    #[arg(long)]
    pub one_at_a_time: bool,

    /// Exit with 98 if the rounds allow no verdict
    #[arg(long)]
    pub require_verdict: bool,

    /// Output format of the end
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: CompareFormat,

    #[command(flatten)]
    pub results: ResultsArgs,
}

impl AbArgs {
    /// Settings and program of both arms.
    pub fn arms(&self) -> [ArmSettings; 2] {
        let arm =
            |given: &[(String, String)], endpoint: &Option<String>, program: &Option<PathBuf>| {
                let mut variables = given.to_vec();
                if let Some(endpoint) = endpoint {
                    variables.push(("MODE".to_owned(), "remote".to_owned()));
                    variables.push(("ENDPOINT".to_owned(), endpoint.clone()));
                }
                ArmSettings {
                    variables,
                    program: program.clone(),
                }
            };
        [
            arm(&self.a, &self.a_endpoint, &self.a_binary),
            arm(&self.b, &self.b_endpoint, &self.b_binary),
        ]
    }
}
