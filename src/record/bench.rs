//! Results of `flowbench bench-engine`. Units are decimal: 1 GB = 10⁹ bytes, 1 GMAC = 10⁹ multiply-adds.

use serde::{Deserialize, Serialize};

use super::Environment;
use crate::units::Millis;

/// Version of the layout of [`BenchRecord`]; raised when a field changes meaning.
pub const BENCH_SCHEMA: u32 = 1;

/// One call of `flowbench bench-engine`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRecord {
    /// [`BENCH_SCHEMA`].
    pub schema: u32,
    /// UTC, RFC 3339.
    pub started_at: String,
    /// `false` if it was interrupted; repetitions may then be missing.
    pub complete: bool,
    /// Where it ran.
    pub environment: Environment,
    /// Load average of the minute before the start; `null` if it is not known. Near 0 on an idle machine.
    pub load_average: Option<f64>,
    /// Name of the model.
    pub model: String,
    /// SHA-256 of the model file (64 hex digits), if the model is one file with a known digest.
    pub model_sha256: Option<String>,
    /// Weights and arithmetic: `Q4_1 with int8 activations`.
    pub weights: Option<String>,
    /// The forward pass: `native`, `candle`, `generic`.
    pub backend: String,
    /// `cpu` or `cuda`.
    pub device: String,
    /// The device's name.
    pub device_name: String,
    /// Load and warm-up of the engine as in `run`, including tokenizer and chat template.
    pub engine_init_ms: Millis,
    /// The limits of the device.
    pub ceilings: Option<Ceilings>,
    /// The tests, in their order.
    pub tests: Vec<TestRecord>,
}

/// Limits of the processor or the GPU, measured in the same process: the better of a measurement before the
/// tests and one after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Number of threads, here and in the tests; of a GPU, its multiprocessors.
    pub threads: usize,
    /// The kernels' processor family: `avx512`, `avx512paired`; of a GPU, the instruction: `mma`, `dp4a`.
    pub instructions: String,
    /// GB/s read from memory (256 MiB; of a GPU, up to 1 GiB), all threads.
    pub read_gb_s: f64,
    /// GMAC/s of int8 from registers, all threads.
    pub int8_gmac_s: f64,
}

impl Ceilings {
    /// The higher of each figure.
    #[must_use]
    pub fn or_higher(mut self, other: &Self) -> Self {
        self.read_gb_s = self.read_gb_s.max(other.read_gb_s);
        self.int8_gmac_s = self.int8_gmac_s.max(other.int8_gmac_s);
        self
    }
}

/// The phase that a test measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Prompt processing.
    Prefill,
    /// Token generation.
    Decode,
}

/// A test: what is computed in each repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    /// Prompt processing or token generation.
    pub phase: Phase,
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Sequences at once; 1 in prefill.
    pub batch: usize,
    /// Tokens that each sequence has before, of its own; 0 in prefill.
    pub context: usize,
}

impl Test {
    /// The name that llama-bench gives it: `pp512`, `tg128`.
    pub fn name(&self) -> String {
        match self.phase {
            Phase::Prefill => format!("pp{}", self.tokens),
            Phase::Decode => format!("tg{}", self.tokens),
        }
    }

    /// Tokens of a sequence at the end.
    pub fn length(&self) -> usize {
        self.context + self.tokens
    }
}

/// The minimum work of one repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Bytes streamed: weights once per pass, keys and values of each sequence once per pass, and those
    /// written; `null` if the backend does not report them.
    pub bytes: Option<u64>,
    /// Multiply-adds of all products and of attention; `null` if the architecture's products are not known.
    pub macs: Option<u64>,
}

/// The result of a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestRecord {
    /// `pp512`, `tg128`.
    pub name: String,
    /// What is computed.
    #[serde(flatten)]
    pub test: Test,
    /// What one repetition must do.
    pub work: Work,
    /// Time of each repetition, in their order.
    pub samples_ms: Vec<Millis>,
    /// Tokens per second, all sequences together: mean over the repetitions.
    pub tokens_per_second: f64,
    /// Their standard deviation (n − 1); `null` with one repetition.
    pub deviation: Option<f64>,
    /// The fastest repetition's tokens per second: the least disturbed one on a shared machine.
    pub best: f64,
    /// GB/s of [`Work::bytes`] at the mean speed.
    pub gb_s: Option<f64>,
    /// Share of [`Ceilings::read_gb_s`]; above 1 if caches serve reads.
    pub read_share: Option<f64>,
    /// GMAC/s of [`Work::macs`] at the mean speed.
    pub gmac_s: Option<f64>,
    /// Share of [`Ceilings::int8_gmac_s`]; it may exceed 1 where one multiplication does the work of two.
    pub int8_share: Option<f64>,
}

impl TestRecord {
    /// `None` without a repetition.
    pub fn new(
        test: Test,
        work: Work,
        samples_ms: Vec<Millis>,
        ceilings: Option<&Ceilings>,
    ) -> Option<Self> {
        let tokens = (test.tokens * test.batch) as f64;
        let rates: Vec<f64> = samples_ms
            .iter()
            .map(|time| tokens / time.seconds())
            .collect();
        let count = rates.len() as f64;
        let best = rates.iter().copied().reduce(f64::max)?;
        let mean = rates.iter().sum::<f64>() / count;
        let squares = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>();
        // A repetition's work is that of `tokens` tokens.
        let rate = |work: Option<u64>| Some(work? as f64 * mean / tokens / 1e9);
        let gb_s = rate(work.bytes);
        let gmac_s = rate(work.macs);
        Some(Self {
            name: test.name(),
            test,
            work,
            samples_ms,
            tokens_per_second: mean,
            deviation: (rates.len() > 1).then(|| (squares / (count - 1.0)).sqrt()),
            best,
            gb_s,
            read_share: ceilings.and_then(|ceilings| Some(gb_s? / ceilings.read_gb_s)),
            gmac_s,
            int8_share: ceilings.and_then(|ceilings| Some(gmac_s? / ceilings.int8_gmac_s)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_means_over_repetitions_with_n_minus_1() {
        let test = Test {
            phase: Phase::Decode,
            tokens: 10,
            batch: 2,
            context: 100,
        };
        let work = Work {
            bytes: Some(20_000_000),
            macs: None,
        };
        let ceilings = Ceilings {
            threads: 1,
            instructions: "scalar".to_owned(),
            read_gb_s: 10.0,
            int8_gmac_s: 100.0,
        };
        // 200, 100 and 300 tokens/s.
        let samples = vec![Millis(100.0), Millis(200.0), Millis(20.0 / 0.3)];
        let record = TestRecord::new(test, work, samples, Some(&ceilings)).expect("three");
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * b, "{a} is not {b}");
        assert_eq!(record.name, "tg10");
        close(record.tokens_per_second, 200.0);
        close(record.deviation.expect("three"), 100.0);
        close(record.best, 300.0);
        close(record.gb_s.expect("known"), 0.2);
        close(record.read_share.expect("known"), 0.02);
        assert_eq!((record.gmac_s, record.int8_share), (None, None));

        let one = TestRecord::new(test, work, vec![Millis(100.0)], None).expect("one");
        assert_eq!((one.deviation, one.read_share), (None, None));
        assert_eq!(TestRecord::new(test, work, Vec::new(), None), None);
    }
}
