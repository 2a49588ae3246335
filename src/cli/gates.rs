//! Limits for nightly jobs, of `run` and `compare`.

use clap::Args;

use super::compare::parse_share;
use crate::config::Gates;
use crate::metrics::gates::{Max, Objective};

#[derive(Debug, Clone, Args)]
pub struct GateArgs {
    /// Exit with 99 if a metric's mean is larger, several with commas: ttft_ms:200,latency_ms:planner:1500
    #[arg(long, env = "MAX_METRIC", value_name = "METRIC:VALUE", value_delimiter = ',', value_parser = checked::<Max>)]
    max: Vec<String>,

    /// Objectives of a service level, with commas: ttft:200ms,tpot:30ms,e2el:2s; prints the share of requests
    /// that keep all of them
    #[arg(long, env, value_name = "GOODPUT", value_delimiter = ',', value_parser = checked::<Objective>)]
    goodput: Vec<String>,

    /// Exit with 99 if that share is smaller
    #[arg(long, env, value_name = "MIN_GOODPUT", requires = "goodput", value_parser = parse_share)]
    min_goodput: Option<f64>,
}

impl GateArgs {
    pub fn resolve(&self, gate: bool) -> Gates {
        Gates {
            gate,
            max: self.max.clone(),
            goodput: self.goodput.clone(),
            min_goodput: self.min_goodput,
        }
    }
}

/// Keeps the text of a value that parses.
fn checked<T: std::str::FromStr<Err = String>>(text: &str) -> Result<String, String> {
    text.parse::<T>().map(|_| text.to_owned())
}
