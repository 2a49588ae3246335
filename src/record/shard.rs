//! Shards: which flows each machine runs, and what a merged run keeps of each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::gpu::GpuRecord;
use super::segment::Segment;
use super::{Environment, Status};
use crate::units::Millis;

/// A part of the flows: every `of`-th one, starting with flow `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Shard {
    /// From 1.
    pub index: usize,
    /// Number of shards.
    pub of: usize,
}

impl Shard {
    /// Whether flow number `flow` (from 1) is in the shard: (`flow` − 1) mod `of` = `index` − 1.
    pub fn holds(self, flow: usize) -> bool {
        (flow + self.of - 1) % self.of == self.index - 1
    }

    /// Number of flows in the shard, of `flows` flows in all.
    pub fn count(self, flows: usize) -> usize {
        (flows + self.of - self.index) / self.of
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let number = |text: &str| text.trim().parse::<usize>().ok();
        match parts.and_then(|(index, of)| Some((number(index)?, number(of)?))) {
            Some((index, of)) if (1..=of).contains(&index) && of <= 1_000_000 => {
                Ok(Self { index, of })
            }
            _ => Err("expected i/n with 1 ≤ i ≤ n, such as 2/5".to_owned()),
        }
    }
}

/// A run that was merged with others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ShardRun {
    pub shard: Shard,
    pub run_id: String,
    /// UTC, RFC 3339.
    pub started_at: String,
    pub status: Status,
    pub environment: Environment,
    /// The engine (a serialised `EngineInfo`).
    pub engine: serde_json::Value,
    /// As in `RunRecord`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRecord>,
    /// As in `RunRecord`.
    pub engine_init_ms: Option<Millis>,
    /// As in `Totals`.
    pub benchmark_total_ms: Option<Millis>,
    /// As in `RunRecord`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_shard_is_written_as_a_fraction() {
        assert_eq!("2/5".parse(), Ok(Shard { index: 2, of: 5 }));
        assert_eq!("1/1".parse(), Ok(Shard { index: 1, of: 1 }));
        assert_eq!(Shard { index: 2, of: 5 }.to_string(), "2/5");
        for bad in [
            "", "2", "0/3", "4/3", "-1/3", "1/0", "a/b", "1/2/3", "1.5/2",
        ] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn each_flow_is_in_one_shard(of in 1usize..40, flows in 0usize..200) {
            let shards: Vec<Shard> = (1..=of).map(|index| Shard { index, of }).collect();
            for flow in 1..=flows {
                prop_assert_eq!(shards.iter().filter(|shard| shard.holds(flow)).count(), 1);
            }
            for shard in shards {
                let held = (1..=flows).filter(|flow| shard.holds(*flow)).count();
                prop_assert_eq!(shard.count(flows), held);
            }
        }
    }
}
