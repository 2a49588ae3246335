//! How well the default model tells a text's next tokens, against the candle path in f32.
//!
//! Perplexity is e to the mean of −ln(probability of the next token) over all but the first token of
//! each window. Two computations of one model differ in each term by chance (int8 activations round),
//! so that two perplexities differ by chance, too: the standard error of the mean difference says by
//! how much, and stands beside it.

use super::real_model::tokenizer;
use super::*;
use crate::engine::model::candle::weights::{Matrix, Weights};
use crate::engine::model::testing::test_model;

const TEXT: &str = include_str!("../../../../../tests/data/perplexity.txt");

/// Tokens of a window.
const WINDOW: usize = 256;

/// Most that the perplexities may differ, as a share: half a unit of the third digit of 10.0.
/// Measured: see `docs/performance.md`.
const BOUND: f64 = 5e-3;

fn windows(path: &Path) -> Vec<Vec<u32>> {
    let tokens = tokenizer(path).encode(TEXT, false).unwrap();
    let windows: Vec<Vec<u32>> = tokens.chunks_exact(WINDOW).map(<[u32]>::to_vec).collect();
    assert!(windows.len() >= 12, "{} tokens", tokens.len());
    windows
}

/// −ln(probability of `next`), in f64.
fn loss(logits: &[f32], next: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - largest).exp())
        .sum();
    sum.ln() + f64::from(largest) - f64::from(logits[next as usize])
}

/// The losses of each window's tokens in one pass a window: every token is a chunk of its own, and all
/// have the window's pages, so that there are logits after each. That they are those of a prefill is
/// seen at the window's end.
fn native_losses(model: &mut NativeModel, windows: &[Vec<u32>]) -> Vec<f64> {
    let pages: Vec<u32> = (0..(WINDOW / PAGE) as u32).collect();
    model.set_pages(pages.len());
    let slot = model.open().unwrap();
    let mut losses = Vec::new();
    for window in windows {
        let (last, known) = window.split_last().unwrap();
        let batch: Vec<Chunk<'_>> = (0..known.len())
            .map(|start| Chunk {
                slot,
                pages: &pages,
                tokens: &known[start..=start],
                start,
                logits: true,
            })
            .collect();
        let rows = model.forward(&batch).unwrap();
        let prefill = step(model, slot, &pages, known, 0);
        assert_eq!(rows.last(), Some(&prefill));
        let next = known[1..].iter().chain([last]);
        losses.extend(rows.iter().zip(next).map(|(row, next)| loss(row, *next)));
    }
    losses
}

/// The same by the candle path, which gives logits after the last token only: all windows go on
/// together, a token at a time.
fn reference_losses(model: &mut CandleModel, windows: &[Vec<u32>]) -> Vec<f64> {
    let slots: Vec<Slot> = windows.iter().map(|_| model.open().unwrap()).collect();
    let mut losses = vec![Vec::new(); windows.len()];
    for start in 0..WINDOW - 1 {
        let batch: Vec<Chunk<'_>> = windows
            .iter()
            .zip(&slots)
            .map(|(window, slot)| Chunk {
                slot: *slot,
                pages: &[],
                tokens: &window[start..=start],
                start,
                logits: true,
            })
            .collect();
        let rows = model.forward(&batch).unwrap();
        for ((window, row), losses) in windows.iter().zip(&rows).zip(&mut losses) {
            losses.push(loss(row, window[start + 1]));
        }
    }
    losses.concat()
}

/// A perplexity beside another one.
struct Comparison {
    ours: f64,
    theirs: f64,
    /// Share by which ours is the higher one.
    apart: f64,
    /// What chance makes of that, about.
    standard_error: f64,
}

fn compare_losses(ours: &[f64], theirs: &[f64]) -> Comparison {
    assert_eq!(ours.len(), theirs.len());
    let count = ours.len() as f64;
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / count;
    let (mean_ours, mean_theirs) = (mean(ours), mean(theirs));
    let more = mean_ours - mean_theirs;
    let squares = ours.iter().zip(theirs).map(|(a, b)| (a - b - more).powi(2));
    Comparison {
        ours: mean_ours.exp(),
        theirs: mean_theirs.exp(),
        apart: more.exp() - 1.0,
        standard_error: (squares.sum::<f64>() / (count - 1.0) / count).sqrt(),
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ours, theirs, .. } = self;
        write!(
            f,
            "perplexity {ours:.4}, candle path {theirs:.4}: {:+.2e} apart, standard error {:.1e}",
            self.apart, self.standard_error
        )
    }
}

#[test]
fn perplexity_is_that_of_the_candle_path() {
    let Some(path) = test_model() else { return };
    let windows = windows(&path);
    let ours = native_losses(&mut native(&path, 2, 0), &windows);
    let theirs = reference_losses(&mut reference(&path), &windows);
    let comparison = compare_losses(&ours, &theirs);
    eprintln!("{comparison}, over {} tokens", ours.len());
    assert!(comparison.apart.abs() < BOUND, "{comparison}");
}

/// A file's weights, of which only some stay quantised: the others are the same numbers in f32, whose
/// products take activations in f32.
struct Partly<'a> {
    file: &'a GgufFile,
    /// Parts of the names of those that stay.
    stay: &'a [&'a str],
}

impl Weights for Partly<'_> {
    fn matrix(
        &self,
        name: &str,
        shape: (usize, usize),
        device: &Device,
    ) -> crate::error::Result<Matrix> {
        let matrix = self.file.matrix(name, shape, device)?;
        if self.stay.iter().any(|part| name.contains(part)) {
            return Ok(matrix);
        }
        Ok(Matrix::Dense(matrix.dense(DType::F32, device).unwrap()))
    }

    fn vector(
        &self,
        name: &str,
        length: usize,
        device: &Device,
    ) -> crate::error::Result<Option<Tensor>> {
        self.file.vector(name, length, device)
    }

    fn rows_are_interleaved(&self) -> bool {
        self.file.rows_are_interleaved()
    }

    fn output_is_tied(&self) -> bool {
        self.file.output_is_tied()
    }

    fn rope_divisors(&self, spec: &ModelSpec) -> crate::error::Result<Option<Vec<f32>>> {
        self.file.rope_divisors(spec)
    }

    fn file_name(&self, name: &str) -> String {
        self.file.file_name(name)
    }

    fn place(&self, file_name: &str) -> String {
        self.file.place(file_name)
    }
}

/// Which product's int8 activations cost what: each kind alone, all others in f32.
#[test]
#[ignore = "a measurement: minutes"]
fn what_int8_activations_cost_in_each_product() {
    let Some(path) = test_model() else { return };
    let windows = windows(&path);
    let theirs = reference_losses(&mut reference(&path), &windows);
    let file = GgufFile::open(&path).unwrap();
    let cases: [(&str, &[&str]); 7] = [
        ("none (f16 keys and values alone)", &[]),
        ("head", &["token_embd"]),
        ("query, key, value", &["attn_q", "attn_k", "attn_v"]),
        ("attention output", &["attn_output"]),
        ("gate and up", &["ffn_gate", "ffn_up"]),
        ("down", &["ffn_down"]),
        ("all", &[""]),
    ];
    for (what, stay) in cases {
        let weights = Partly { file: &file, stay };
        let spec = checked_spec(&file).unwrap();
        let mut model = NativeModel::load(&weights, spec, String::new(), 2).unwrap();
        let ours = native_losses(&mut model, &windows);
        eprintln!("{what}: {}", compare_losses(&ours, &theirs));
    }
}
