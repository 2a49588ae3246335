//! Live counters of a run in progress.

use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Upper bounds of the histogram buckets, in seconds. Values above the last bound are counted as
/// well.
const BOUNDS: [f64; 16] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
];

/// Counters that any thread updates without a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Count {
    /// Total number of flows, over all rounds.
    Flows,
    /// Flows that failed.
    FlowsFailed,
    /// Generated tokens.
    Generated,
    /// Prompt tokens that were computed.
    Prefilled,
}

static COUNTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static KV_HELD: AtomicU64 = AtomicU64::new(0);
static KV_PAGES: AtomicU64 = AtomicU64::new(0);

/// Adds `more` to a counter while the profile is on.
#[inline]
pub fn count(what: Count, more: usize) {
    if super::is_on() {
        COUNTS[what as usize].fetch_add(more as u64, Ordering::Relaxed);
    }
}

/// Reports KV cache usage: pages held by sequences, out of all pages.
#[inline]
pub fn kv_pages(held: usize, of: usize) {
    KV_HELD.store(held as u64, Ordering::Relaxed);
    KV_PAGES.store(of as u64, Ordering::Relaxed);
}

pub(super) fn kv_held() -> u64 {
    KV_HELD.load(Ordering::Relaxed)
}

/// Snapshot of the run.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Live {
    /// Total number of flows, over all rounds.
    pub flows: u64,
    /// Flows in progress.
    pub flows_running: u64,
    /// Finished flows, including failed ones.
    pub flows_ended: u64,
    /// Failed flows.
    pub flows_failed: u64,
    /// Finished steps, including failed ones.
    pub steps_ended: u64,
    /// Generated tokens.
    pub generated_tokens: u64,
    /// Prompt tokens that were computed.
    pub prefilled_tokens: u64,
    /// KV cache pages held by sequences.
    pub kv_pages_held: u64,
    /// All KV cache pages; 0 if the engine has none.
    pub kv_pages: u64,
    /// From submission to first token, per step.
    pub ttft: Distribution,
    /// From submission to end, per step.
    pub step: Distribution,
}

/// Distribution of durations.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Distribution {
    pub count: u64,
    /// In seconds.
    pub sum_s: f64,
    /// In seconds, accurate to 1 %.
    pub p50_s: f64,
    /// In seconds, accurate to 1 %.
    pub p90_s: f64,
    /// In seconds, accurate to 1 %.
    pub p99_s: f64,
    /// Upper bound of each bucket in seconds, and the cumulative count of calls up to it.
    pub at_most: Vec<(f64, u64)>,
}

/// Collects a [`Distribution`] in a few KB, independent of the number of calls.
#[derive(Debug)]
pub(super) struct Collector {
    /// In microseconds; `None` if the library rejects the bounds.
    quantiles: Option<Histogram<u32>>,
    classes: [u64; BOUNDS.len()],
    count: u64,
    sum_s: f64,
}

impl Collector {
    fn new() -> Self {
        Self {
            quantiles: Histogram::new_with_bounds(1, 86_400_000_000, 2).ok(),
            classes: [0; BOUNDS.len()],
            count: 0,
            sum_s: 0.0,
        }
    }

    pub(super) fn add(&mut self, nanos: u64) {
        let seconds = nanos as f64 / 1e9;
        self.count += 1;
        self.sum_s += seconds;
        if let Some(class) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.classes[class] += 1;
        }
        if let Some(quantiles) = &mut self.quantiles {
            quantiles.saturating_record(nanos / 1000);
        }
    }

    pub(super) fn read(&self) -> Distribution {
        let quantile = |quantile: f64| {
            let micros = (self.quantiles.as_ref()).map(|all| all.value_at_quantile(quantile));
            micros.unwrap_or(0) as f64 / 1e6
        };
        let mut below = 0;
        Distribution {
            count: self.count,
            sum_s: self.sum_s,
            p50_s: quantile(0.5),
            p90_s: quantile(0.9),
            p99_s: quantile(0.99),
            at_most: (BOUNDS.iter().zip(self.classes))
                .map(|(bound, class)| {
                    below += class;
                    (*bound, below)
                })
                .collect(),
        }
    }
}

/// State that is updated under the recorder's lock.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) flows_running: u64,
    pub(super) flows_ended: u64,
    pub(super) ttft: Collector,
    pub(super) step: Collector,
}

impl Watched {
    pub(super) fn new() -> Self {
        Self {
            flows_running: 0,
            flows_ended: 0,
            ttft: Collector::new(),
            step: Collector::new(),
        }
    }

    pub(super) fn read(&self) -> Live {
        let count = |what: Count| COUNTS[what as usize].load(Ordering::Relaxed);
        let step = self.step.read();
        Live {
            flows: count(Count::Flows),
            flows_running: self.flows_running,
            flows_ended: self.flows_ended,
            flows_failed: count(Count::FlowsFailed),
            steps_ended: step.count,
            generated_tokens: count(Count::Generated),
            prefilled_tokens: count(Count::Prefilled),
            kv_pages_held: kv_held(),
            kv_pages: KV_PAGES.load(Ordering::Relaxed),
            ttft: self.ttft.read(),
            step,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_have_buckets_and_quantiles() {
        let mut collector = Collector::new();
        for _ in 0..98 {
            collector.add(3_000_000);
        }
        collector.add(1_500_000_000);
        collector.add(u64::MAX);
        let read = collector.read();
        assert_eq!(read.count, 100);
        assert!((read.p50_s - 0.003).abs() < 0.000_1, "{}", read.p50_s);
        assert!((read.p99_s - 1.5).abs() < 0.02, "{}", read.p99_s);
        let at_most = |bound: f64| read.at_most.iter().find(|(of, _)| *of == bound);
        assert_eq!(at_most(0.002), Some(&(0.002, 0)));
        assert_eq!(at_most(0.005), Some(&(0.005, 98)));
        assert_eq!(at_most(100.0), Some(&(100.0, 99)), "one is above all");
    }
}
