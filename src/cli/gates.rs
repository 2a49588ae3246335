//! Limits for nightly jobs, of `run` and `compare`.

use clap::Args;

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

/// A share such as `3%` or `0.03`, above 0 and below 1.
pub(super) fn parse_share(text: &str) -> Result<f64, String> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse(),
    };
    match value {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("expected a share above 0 and below 100 %, such as 3% or 0.03".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percentages_or_fractions() {
        assert_eq!(parse_share("3%"), Ok(0.03));
        assert_eq!(parse_share("0.5"), Ok(0.5));
        for bad in ["0", "-1%", "100%", "1", "NaN", "inf", "3 percent", "%"] {
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }
}
