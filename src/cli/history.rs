//! Flags of `flowbench history`.

use clap::Args;

use super::compare::parse_metric;
use super::{ResultsArgs, parse_count};
use crate::config::HistoryFormat;
use crate::metrics::compare::Metric;

/// `flowbench history`.
#[derive(Debug, Clone, Args)]
pub struct HistoryArgs {
    /// Metric to show, as in `compare`; of one step: latency_ms:planner
    #[arg(long, value_name = "METRIC", default_value = "workflow_ms", value_parser = parse_metric)]
    pub metric: Metric,

    /// Show the last N runs of the job
    #[arg(long, value_name = "N", default_value = "30", value_parser = parse_count)]
    pub last: usize,

    /// The job and machine to show, by one of its runs [default: those of the latest run]
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,

    /// Remove the folders of all runs but the last N and those of baselines; their lines stay
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub prune: Option<usize>,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: HistoryFormat,

    #[command(flatten)]
    pub results: ResultsArgs,
}
