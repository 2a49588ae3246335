//! The bytes that a decode pass reads from memory, against those of its weights, keys and values.
//!
//! The simulated GPU, with checks, counts each sector of 32 bytes once a launch, whichever blocks read it: what comes
//! from memory if the L2 cache holds all that a launch reads, and nothing of an earlier one.

use super::super::split::Split;
use super::counts::{Counter, decode};
use super::*;
use crate::engine::kernels::SPAN;
use crate::engine::model::testing::test_model;

/// Bytes of a sector.
const SECTOR: u64 = 32;
/// Most bytes read for each byte of weights, keys and values.
const MOST: f64 = 1.05;
/// Bytes of 32 quantised activations.
const ACTIVATIONS: usize = 48;

const PRODUCTS: [&str; 5] = [
    "product_1",
    "product_4",
    "product_8",
    "product_32",
    "dense_product_32",
];
const SWIGLU: [&str; 5] = [
    "swiglu_1",
    "swiglu_4",
    "swiglu_8",
    "swiglu_32",
    "dense_swiglu_32",
];
const ATTENTION: [&str; 5] = [
    "attend_64",
    "attend_128",
    "attend_256",
    "attend_scores",
    "attend_values",
];
/// Reads what the launches of a split attention before it have written.
const JOIN: [&str; 1] = ["attend_join"];
/// These read activations.
const OTHERS: [&str; 6] = [
    "embed",
    "add_norm",
    "rotate_and_store",
    "keep_rows",
    "quantise_rows",
    "sample",
];

/// The counter of a simulated GPU with checks.
fn counter(gpu: &Gpu) -> Option<Counter> {
    let counter = Counter::of(gpu)?;
    if counter.read("checks") == 0 {
        // Where checks are asked for, a test must not pass without them.
        assert_ne!(std::env::var("SIMGPU_CHECKS").as_deref(), Ok("1"));
        eprintln!("skipped: sectors are counted with SIMGPU_CHECKS=1 only");
        return None;
    }
    Some(counter)
}

/// What some kernels read in a decode pass, in bytes.
#[derive(Default)]
struct Read {
    /// Distinct sectors of each launch.
    all: u64,
    /// Weights, or keys and values with their scales: each once.
    needed: usize,
    /// At most: activations, queries, page tables and the like, which a larger model has few of.
    inputs: usize,
}

impl Read {
    fn ratio(&self) -> f64 {
        self.all as f64 / self.needed as f64
    }

    /// All that is needed is read, and hardly more.
    fn check(&self, what: &str) {
        let (all, needed) = (self.all as f64, self.needed as f64);
        assert!(all >= 0.99 * needed, "{what}: {all} of {needed}");
        let most = MOST * needed + self.inputs as f64;
        assert!(all <= most, "{what}: {all} bytes, at most {most}");
    }
}

/// Bytes of the sectors of `bytes` that begin anywhere.
fn sectors(bytes: usize) -> usize {
    let sector = SECTOR as usize;
    ((bytes + sector - 2) / sector + 1) * sector
}

/// What products, SwiGLU and attention read in a decode pass of `rows` sequences, each of `tokens` tokens with the new
/// one, and what the other kernels do.
struct Pass {
    products: Read,
    swiglu: Read,
    attention: Read,
    join: u64,
    others: u64,
}

impl Pass {
    fn run(counter: &Counter, model: &mut CudaModel, rows: usize, tokens: usize) -> Self {
        let count = |kernels: &[&str]| -> u64 {
            let of = |kernel| counter.read(&format!("{kernel}.distinct_sectors"));
            kernels.iter().map(|kernel| SECTOR * of(kernel)).sum()
        };
        let all = || [&PRODUCTS[..], &SWIGLU, &ATTENTION, &JOIN, &OTHERS].map(count);
        let before = all();
        decode(model, rows, tokens - 1);
        let after = all();
        let [products, swiglu, attention, join, others] =
            std::array::from_fn(|at| after[at] - before[at]);
        let mut pass = Self::expected(model, rows, tokens);
        pass.products.all = products;
        pass.swiglu.all = swiglu;
        pass.attention.all = attention;
        pass.join = join;
        pass.others = others;
        pass
    }

    fn expected(model: &CudaModel, rows: usize, tokens: usize) -> Self {
        let spec = &model.decoder.spec;
        let weights = model.weight_bytes;
        let gated = |layer: &weights::GpuLayer| layer.gate.bytes() + layer.up.bytes();
        let gated: usize = model.weights.layers.iter().map(gated).sum();
        let count = sectors(size_of::<u32>());
        let input = |columns: usize| {
            let row = match model.quantised {
                true => columns / 32 * ACTIVATIONS,
                false => columns * size_of::<f32>(),
            };
            sectors(rows * row) + count
        };
        let width = spec.heads * spec.head_size;
        let of_layer = input(spec.hidden) + input(width) + input(spec.intermediate);
        // Numbers of two bytes, and a scale for each key and value.
        let of_token = spec.kv_heads * (4 * spec.head_size + 8);
        // Queries and their factors, page tables, places, tiles.
        let of_row = [
            2 * width,
            4 * spec.heads,
            4 * tokens.div_ceil(PAGE),
            4 * places::PLACE,
            4 * places::TILE,
        ];
        let attention: usize = of_row.iter().map(|bytes| sectors(rows * bytes)).sum();
        Self {
            products: Read {
                needed: weights.layers + weights.head - gated,
                inputs: spec.layers * of_layer + input(spec.hidden),
                ..Read::default()
            },
            swiglu: Read {
                needed: gated,
                inputs: spec.layers * input(spec.hidden),
                ..Read::default()
            },
            attention: Read {
                needed: spec.layers * rows * tokens * of_token,
                inputs: spec.layers * (attention + count),
                ..Read::default()
            },
            join: 0,
            others: 0,
        }
    }

    fn sum(&self) -> Read {
        let parts = [&self.products, &self.swiglu, &self.attention];
        Read {
            all: parts.iter().map(|part| part.all).sum(),
            needed: parts.iter().map(|part| part.needed).sum(),
            inputs: parts.iter().map(|part| part.inputs).sum(),
        }
    }

    fn check(&self, what: &str) {
        self.products.check(&format!("{what}, products"));
        self.swiglu.check(&format!("{what}, swiglu"));
        self.attention.check(&format!("{what}, attention"));
        self.sum().check(what);
    }
}

/// A model with pages for `rows` sequences of `tokens` tokens. Their keys and values are zero: what is read does not
/// depend on them.
fn with_pages(gpu: Gpu, path: &Path, rows: usize, tokens: usize) -> CudaModel {
    cuda(gpu, path, rows * tokens.div_ceil(PAGE))
}

#[test]
fn every_weight_type_is_read_once() {
    const TOKENS: usize = 17 * PAGE;
    let folder = tempfile::tempdir().unwrap();
    for dtype in QUANTISED.into_iter().chain(DENSE) {
        let Some(gpu) = gpu() else { return };
        let Some(counter) = counter(&gpu) else { return };
        let path = Tiny::new("llama", true).write_gguf(folder.path(), dtype);
        let mut model = with_pages(gpu, &path, 8, TOKENS);
        for rows in [1, 4, 8] {
            let pass = Pass::run(&counter, &mut model, rows, TOKENS);
            pass.check(&format!("{dtype:?}, {rows} rows"));
        }
    }
}

/// Split attention reads keys and values once, too. Its second launch also reads what the first hands over.
#[test]
fn a_split_attention_reads_keys_and_values_once() {
    const TOKENS: usize = 17 * PAGE;
    let Some(gpu) = gpu() else { return };
    let Some(counter) = counter(&gpu) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::Q8_0);
    let mut model = with_pages(gpu, &path, 2, TOKENS);
    model.fewest_spans = 3;
    let spec = &model.decoder.spec;
    let spans = TOKENS.div_ceil(SPAN);
    let handed =
        Split { spans }.floats(model.kv_shape, spec.heads / spec.kv_heads) * size_of::<f32>();
    let layers = spec.layers;
    for rows in [1, 2] {
        let mut pass = Pass::run(&counter, &mut model, rows, TOKENS);
        assert!(counter.read("attend_join") > 0);
        // Both launches read a row's numbers.
        pass.attention.inputs = 2 * pass.attention.inputs + layers * rows * handed;
        pass.attention.check(&format!("{rows} rows"));
    }
}

/// Of the default model, activations are so few that they need no allowance. Prints the table of
/// docs/gpu-predictions.md, in MB.
#[test]
fn the_default_model_is_read_once() {
    // Rows, tokens of each, and whether attention is split.
    const CASES: [(usize, usize, bool); 4] = [
        (1, 464, false),
        (8, 464, false),
        (25, 464, false),
        (1, 1024, true),
    ];
    let Some(gpu) = gpu() else { return };
    let Some(counter) = counter(&gpu) else { return };
    let Some(path) = test_model() else { return };
    let mut model = with_pages(gpu, &path, 25, 464);
    for (rows, tokens, is_split) in CASES {
        let pass = Pass::run(&counter, &mut model, rows, tokens);
        assert_eq!(pass.join > 0, is_split);
        let sum = pass.sum();
        let parts = [
            ("products", &pass.products),
            ("swiglu", &pass.swiglu),
            ("attention", &pass.attention),
            ("these three", &sum),
        ];
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        eprintln!("{rows} × {tokens}:");
        for (name, part) in parts {
            let (all, needed) = (megabytes(part.all), megabytes(part.needed as u64));
            let ratio = part.ratio();
            eprintln!("    {name}: {all:.2} of {needed:.2}, {ratio:.3}");
            assert!(
                (1.0..=MOST).contains(&ratio),
                "{rows} rows, {name}: {ratio}"
            );
        }
        let (join, others) = (megabytes(pass.join), megabytes(pass.others));
        eprintln!("    attend_join: {join:.2}, others: {others:.2}");
    }
}
