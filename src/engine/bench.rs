//! Times a model's forward passes on synthetic tokens, without scheduler or tokenizer, and without the sampler
//! where that is not a part of the pass.
//! Backs `flowbench bench-engine`.

use super::EngineInfo;
use super::kernels::{self, CeilingError};
use super::kv::PAGE_TOKENS;
use super::local::LocalEngine;
use super::model::{Chunk, Model, ModelSpec, Slot};
use crate::environment::cpu_threads;
use crate::error::{Error, Result};
use crate::record::bench::{Ceilings, Phase, Test, Work};
use crate::stopwatch::{Fence, Moment, NoFence};
use crate::units::{Bytes, Millis, plural};

/// Untimed decode steps before a measurement, so that one-time setup is already done.
const WARM_UP_STEPS: usize = 4;

/// Measures the processor's upper bounds: peak arithmetic and memory bandwidth.
///
/// # Errors
/// Exit code 3 if the threads cannot be started.
fn measure_ceilings() -> Result<Ceilings> {
    let start = Moment::now(&NoFence)?;
    // Without a device to wait for, the clock cannot fail.
    let clock = || Moment::now(&NoFence).map_or(f64::INFINITY, |now| now.since(start).seconds());
    let found = kernels::measure_ceilings(cpu_threads(), &clock).map_err(|error| match error {
        CeilingError::Threads(source) => {
            Error::preflight("failed to start threads").caused_by(source)
        }
        CeilingError::Memory(source) => {
            Error::preflight("there is no memory to measure what can be read").caused_by(source)
        }
    })?;
    Ok(Ceilings {
        threads: found.threads,
        instructions: format!("{:?}", found.isa).to_lowercase(),
        read_gb_s: found.read_gb_s,
        int8_gmac_s: found.int8_gmac_s,
    })
}

pub struct BenchModel {
    info: EngineInfo,
    model: Box<dyn Model>,
    /// `None` for a backend that keeps keys and values per slot.
    pages: Option<Pages>,
    /// Synthetic token ids; every sequence is a prefix of them.
    tokens: Vec<u32>,
    /// Logits of the last pass, kept for the allocation.
    logits: Vec<f32>,
}

/// Assigns pages to sequences. Decode sequences come first, one after another, and the prefill
/// prompt gets the pages behind them, so that it does not overwrite their contexts.
#[derive(Debug, Clone, Copy)]
struct Pages {
    /// Pages per decode sequence.
    each: usize,
    /// Number of decode sequences.
    batch: usize,
    /// Pages of the prompt.
    prompt: usize,
}

impl Pages {
    fn new(tests: &[Test]) -> Self {
        let longest = |phase| {
            let of = tests.iter().filter(|test| test.phase == phase);
            of.map(|test| pages_of(test.length())).max().unwrap_or(0)
        };
        Self {
            each: longest(Phase::Decode),
            batch: tests.iter().map(|test| test.batch).max().unwrap_or(0),
            prompt: longest(Phase::Prefill),
        }
    }

    fn count(&self) -> usize {
        self.each * self.batch + self.prompt
    }

    fn of(&self, phase: Phase, sequence: usize) -> Vec<u32> {
        let (first, count) = match phase {
            Phase::Decode => (sequence * self.each, self.each),
            Phase::Prefill => (self.batch * self.each, self.prompt),
        };
        (first..first + count).map(|page| page as u32).collect()
    }
}

fn pages_of(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

impl Fence for BenchModel {
    fn synchronize(&self) -> Result<()> {
        self.model.synchronize()
    }
}

impl BenchModel {
    /// Takes the model out of a loaded engine. Allocates pages and computes the contexts within the
    /// engine's budget for keys and values.
    ///
    /// # Errors
    /// Exit code 2 for a test that does not fit the context, the model or that budget.
    pub fn new(engine: LocalEngine, tests: &[Test]) -> Result<Self> {
        let room = engine.kv_budget();
        let (info, mut model) = engine.into_model();
        check(model.as_ref(), tests, room)?;
        let longest = tests.iter().map(Test::length).max().unwrap_or(1);
        let pages = model.page_bytes().map(|_| Pages::new(tests));
        if let Some(pages) = pages {
            model.set_pages(pages.count())?;
        }
        let tokens = made_up(longest, model.spec().vocabulary);
        let mut bench = Self {
            info,
            model,
            pages,
            tokens,
            logits: Vec::new(),
        };
        if let Some(pages) = pages {
            bench.fill_contexts(pages, tests)?;
        }
        Ok(bench)
    }

    /// Upper bounds of the device, or of the processor if the model runs there.
    ///
    /// # Errors
    /// Exit code 3 if they cannot be measured.
    pub fn measure_ceilings(&self) -> Result<Ceilings> {
        match self.model.device_ceilings()? {
            Some(ceilings) => Ok(ceilings),
            None => measure_ceilings(),
        }
    }

    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Lower bound on the work of one repetition of a test. A field is `None` if it is unknown for
    /// the backend.
    pub fn work(&self, test: &Test) -> Work {
        let model = self.model.as_ref();
        let passes = passes(test, self.model.pass_tokens());
        let kv_token = model.page_bytes().map(|bytes| bytes / PAGE_TOKENS);
        let bytes = model.weight_bytes().zip(kv_token).map(|(weights, kv)| {
            let of = |pass: &BenchPass| {
                let head = if pass.logits { weights.head } else { 0 };
                let sequence = kv * (pass.start + pass.count) + kv * pass.count;
                weights.layers + head + sequence * test.batch
            };
            passes.iter().map(of).sum::<usize>() as u64
        });
        // Other architectures have other products, such as those of experts.
        let known = model.backend() != "generic";
        let macs = known.then(|| {
            let of = |pass: &BenchPass| pass_macs(model.spec(), pass) * test.batch as u64;
            passes.iter().map(of).sum()
        });
        Work { bytes, macs }
    }

    /// Runs a test once, untimed; a decode is cut to a few steps.
    ///
    /// # Errors
    /// If the device fails.
    pub fn warm_up(&mut self, test: &Test) -> Result<()> {
        let tokens = match test.phase {
            Phase::Prefill => test.tokens,
            Phase::Decode => test.tokens.min(WARM_UP_STEPS),
        };
        self.run(&Test { tokens, ..*test }).map(drop)
    }

    /// Runs a test once and times it, from device idle to device idle. Computing the contexts is
    /// not timed.
    ///
    /// # Errors
    /// If the device fails.
    pub fn run(&mut self, test: &Test) -> Result<Millis> {
        let slots: Vec<Slot> = (0..test.batch)
            .map(|_| self.model.open())
            .collect::<Result<_>>()?;
        let tables: Vec<Vec<u32>> = (0..test.batch)
            .map(|sequence| match &self.pages {
                None => Vec::new(),
                Some(pages) => pages.of(test.phase, sequence),
            })
            .collect();
        let time = self.time(test, &slots, &tables);
        for slot in slots {
            self.model.close(slot);
        }
        time
    }

    fn time(&mut self, test: &Test, slots: &[Slot], tables: &[Vec<u32>]) -> Result<Millis> {
        // Keys and values kept in the slot start empty, so the context is computed on every run.
        if self.pages.is_none() && test.context > 0 {
            for slot in slots {
                self.prefill(*slot, &[], test.context)?;
            }
        }
        let passes = passes(test, self.model.pass_tokens());
        let start = Moment::now(self)?;
        for pass in &passes {
            let tokens = &self.tokens[pass.start..pass.start + pass.count];
            let chunks: Vec<Chunk<'_>> = slots
                .iter()
                .zip(tables)
                .map(|(&slot, pages)| Chunk {
                    slot,
                    pages,
                    tokens,
                    start: pass.start,
                    logits: pass.logits,
                })
                .collect();
            if self.model.samples() {
                // As in a run: the logits stay on the device.
                let rows = if pass.logits { test.batch } else { 0 };
                self.model.forward_sampled(&chunks, &vec![None; rows])?;
            } else {
                self.model.forward_into(&chunks, &mut self.logits)?;
            }
        }
        Ok(Moment::now(self)?.since(start))
    }

    /// Computes the context of a paged model once and copies its pages to the other sequences,
    /// since all sequences have the same tokens. No pages are shared, as between unrelated
    /// sequences.
    fn fill_contexts(&mut self, pages: Pages, tests: &[Test]) -> Result<()> {
        let context = tests.iter().map(|test| test.context).max().unwrap_or(0);
        if context == 0 {
            return Ok(());
        }
        let slot = self.model.open()?;
        let first = pages.of(Phase::Decode, 0);
        self.prefill(slot, &first, context)?;
        self.model.close(slot);
        let used = &first[..pages_of(context)];
        for sequence in 1..pages.batch {
            for (from, to) in used.iter().zip(pages.of(Phase::Decode, sequence)) {
                self.model.copy_page(*from, to)?;
            }
        }
        self.model.synchronize()
    }

    fn prefill(&mut self, slot: Slot, pages: &[u32], count: usize) -> Result<()> {
        let most = self.model.pass_tokens();
        for (index, tokens) in self.tokens[..count].chunks(most).enumerate() {
            self.model.forward(&[Chunk {
                slot,
                pages,
                tokens,
                start: index * most,
                logits: false,
            }])?;
        }
        Ok(())
    }
}

/// The tokens that each sequence computes in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BenchPass {
    start: usize,
    count: usize,
    logits: bool,
}

/// The passes of a test, split as the scheduler would split them into passes of `pass_tokens`.
fn passes(test: &Test, pass_tokens: usize) -> Vec<BenchPass> {
    let most = match test.phase {
        Phase::Prefill => pass_tokens,
        Phase::Decode => 1,
    };
    let end = test.length();
    (test.context..end)
        .step_by(most)
        .map(|start| {
            let count = most.min(end - start);
            BenchPass {
                start,
                count,
                logits: test.phase == Phase::Decode || start + count == end,
            }
        })
        .collect()
}

/// Multiply-adds of one sequence in a pass: the layers' products, causal attention (queries · keys
/// and scores · values), and the output head for the last token.
fn pass_macs(spec: &ModelSpec, pass: &BenchPass) -> u64 {
    let queries = spec.heads * spec.head_size;
    let [output, gate_and_up, down, inputs] = spec.layer_products();
    let rest = output + gate_and_up + down;
    let (start, end) = (pass.start, pass.start + pass.count);
    let seen = (end * (end + 1) - start * (start + 1)) / 2;
    let layer = pass.count * (inputs + rest) + 2 * queries * seen;
    // The last layer computes keys and values of all tokens, but the rest only for the token whose
    // logits are wanted.
    let last = pass.count * inputs;
    let end = if pass.logits {
        rest + 2 * queries * end + spec.vocabulary * spec.hidden
    } else {
        0
    };
    (spec.layers.saturating_sub(1) * layer + last + end) as u64
}

/// Reports tests that do not fit as usage errors, with the flag to change.
fn check(model: &dyn Model, tests: &[Test], room: usize) -> Result<()> {
    let limit = model.spec().context_length;
    for test in tests {
        if test.length() > limit {
            let (what, flags) = match test.phase {
                Phase::Prefill => (format!("a prompt of {} tokens", test.tokens), "-p"),
                Phase::Decode => (
                    format!("{} tokens after a context of {}", test.tokens, test.context),
                    "-n or -c",
                ),
            };
            return Err(Error::usage(format!(
                "{what} does not fit the model's context of {}",
                model.spec().context_text()
            ))
            .hint(format!("use a smaller {flags}")));
        }
        let most = model.max_sequences();
        if test.batch > most {
            return Err(Error::usage(format!(
                "a batch of {} sequences is more than the {} backend computes at once ({most})",
                test.batch,
                model.backend()
            ))
            .hint(format!("use -b {most} or less, or another BACKEND")));
        }
        let Some(page_bytes) = model.page_bytes() else {
            continue;
        };
        let pages = test.batch.saturating_mul(pages_of(test.length()));
        let needed = pages.saturating_mul(page_bytes);
        if needed > room {
            return Err(Error::usage(format!(
                "the keys and values of {} of {} take {}, and there is room for {}",
                plural(test.batch, "sequence"),
                plural(test.length(), "token"),
                Bytes(needed as u64),
                Bytes(room as u64)
            ))
            .hint("raise KV_CACHE_MB, or lower -b, -c or -n"));
        }
    }
    Ok(())
}

/// Pseudo-random token ids, the same on every call.
fn made_up(count: usize, vocabulary: usize) -> Vec<u32> {
    let mut state = 0x5eed_u64;
    (0..count)
        .map(|_| {
            // Knuth's MMIX generator. Its upper bits are the good ones.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocabulary as u64) as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(phase: Phase, tokens: usize, batch: usize, context: usize) -> Test {
        Test {
            phase,
            tokens,
            batch,
            context,
        }
    }

    #[test]
    fn passes_are_split_as_the_scheduler_splits_them() {
        let of = |test| -> Vec<_> {
            let passes = passes(&test, 256);
            let facts = passes.iter();
            facts.map(|p| (p.start, p.count, p.logits)).collect()
        };
        let long = of(test(Phase::Prefill, 1100, 1, 0));
        assert_eq!(
            long,
            [
                (0, 256, false),
                (256, 256, false),
                (512, 256, false),
                (768, 256, false),
                (1024, 76, true)
            ]
        );
        let decode = of(test(Phase::Decode, 2, 8, 400));
        assert_eq!(decode, [(400, 1, true), (401, 1, true)]);
    }

    #[test]
    fn multiply_adds_match_the_default_model() {
        let spec = ModelSpec {
            architecture: "llama".to_owned(),
            layers: 30,
            hidden: 576,
            intermediate: 1536,
            heads: 9,
            kv_heads: 3,
            head_size: 64,
            vocabulary: 49152,
            context_length: 8192,
            beyond_window: None,
            norm_epsilon: 1e-5,
            rope_base: 1e5,
            rope_dimensions: 64,
        };
        let pass = |start, count, logits| BenchPass {
            start,
            count,
            logits,
        };
        let attention = |seen: u64| 30 * 2 * 576 * seen;
        // Without logits, the last layer stops after its keys and values.
        assert_eq!(
            pass_macs(&spec, &pass(0, 1, false)),
            29 * 3_538_944 + 552_960 + attention(1) / 30 * 29
        );
        assert_eq!(
            pass_macs(&spec, &pass(499, 1, true)),
            106_168_320 + 28_311_552 + attention(500)
        );
        // Splitting a prompt into two passes does not change the work.
        let parts =
            pass_macs(&spec, &pass(0, 300, false)) + pass_macs(&spec, &pass(300, 212, true));
        assert_eq!(pass_macs(&spec, &pass(0, 512, true)), parts);
    }

    #[test]
    fn made_up_tokens_are_in_the_vocabulary() {
        let tokens = made_up(1000, 320);
        assert!(tokens.iter().all(|token| *token < 320));
        assert_ne!(tokens[..10], tokens[10..20]);
    }
}
