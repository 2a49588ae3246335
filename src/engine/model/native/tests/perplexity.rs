//! How well the default model predicts a text, compared with the candle path in f32.
//!
//! Perplexity is e to the mean of −ln(probability of the next token) over all but the first token of
//! each window. Two computations of one model differ in each term by chance (int8 activations round),
//! so two perplexities differ by chance as well: the standard error of the mean difference, reported
//! beside it, says by how much.

use super::real_model::tokenizer;
use super::*;
use crate::engine::model::source::{Matrix, Weights};
use crate::engine::model::testing::test_model;
use crate::thorough::cases;

const TEXT: &str = include_str!("../../../../../tests/data/perplexity.txt");

/// Tokens of a window.
const WINDOW: usize = 256;

/// Tolerance for agreement to three digits: for a perplexity between 10 and 100, half a unit of the
/// third digit. Measured: 14.327 and 14.307, which both round to 14.3.
const HALF_A_THIRD_DIGIT: f64 = 0.05;

fn windows(path: &Path) -> Vec<Vec<u32>> {
    let tokens = tokenizer(path).encode(TEXT, false).unwrap();
    let windows: Vec<Vec<u32>> = tokens.chunks_exact(WINDOW).map(<[u32]>::to_vec).collect();
    assert!(windows.len() >= 12, "{} tokens", tokens.len());
    windows
}

/// Called with each row of logits, its window, and the index of the token that it follows.
type Show<'a> = &'a mut dyn FnMut(usize, usize, &[f32]);

/// The logits after each token of each window but its last, in one pass per window: every token is a
/// sequence, and all share the window's pages, which a pass writes before it attends. That they equal
/// those of a prefill is checked at the window's end: to the last bit on the native path.
fn show_rows(model: &mut dyn Model, windows: &[Vec<u32>], show: Show<'_>) {
    let pages: Vec<u32> = (0..(WINDOW / PAGE) as u32).collect();
    model.set_pages(pages.len()).unwrap();
    let slots: Vec<Slot> = (1..WINDOW).map(|_| model.open().unwrap()).collect();
    for (index, window) in windows.iter().enumerate() {
        let known = &window[..WINDOW - 1];
        let batch: Vec<Chunk<'_>> = slots
            .iter()
            .enumerate()
            .map(|(start, slot)| Chunk {
                slot: *slot,
                pages: &pages,
                tokens: &known[start..=start],
                start,
                logits: true,
            })
            .collect();
        let rows = model.forward(&batch).unwrap();
        let prefill = step(model, slots[0], &pages, known, 0);
        let apart = difference(rows.last().unwrap(), &prefill);
        let bound = if model.backend() == "native" {
            0.0
        } else {
            1e-4
        };
        assert!(apart <= bound, "{apart}");
        for (at, row) in rows.iter().enumerate() {
            show(index, at, row);
        }
    }
}

/// ln(probability) of every token, in f64.
fn log_probabilities(logits: &[f32]) -> impl Iterator<Item = f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - largest).exp())
        .sum();
    let whole = sum.ln() + f64::from(largest);
    logits.iter().map(move |logit| f64::from(*logit) - whole)
}

/// A perplexity compared with another one.
struct Comparison {
    ours: f64,
    theirs: f64,
    /// By how much ours is higher, as a fraction.
    apart: f64,
    /// The standard error of that.
    standard_error: f64,
    tokens: usize,
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
        tokens: ours.len(),
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ours, theirs, .. } = self;
        write!(
            f,
            "perplexity {ours:.4}, candle path {theirs:.4} over {} tokens: {:+.2e} apart, \
             standard error {:.1e}",
            self.tokens, self.apart, self.standard_error
        )
    }
}

/// −ln(probability) of the next token of the window.
fn loss(window: &[u32], at: usize, logits: &[f32]) -> f64 {
    let next = window[at + 1] as usize;
    -log_probabilities(logits).nth(next).unwrap()
}

#[test]
fn perplexity_agrees_with_the_candle_paths_to_three_digits() {
    let Some(path) = test_model() else { return };
    let mut windows = windows(&path);
    windows.truncate(cases(5, usize::MAX));
    let mut losses = [(); 2].map(|()| vec![[0.0; WINDOW - 1]; windows.len()]);
    let [ours, theirs] = &mut losses;
    show_rows(&mut native(&path, 2, 0), &windows, &mut |index, at, row| {
        ours[index][at] = loss(&windows[index], at, row);
    });
    show_rows(&mut reference(&path, 0), &windows, &mut |index, at, row| {
        theirs[index][at] = loss(&windows[index], at, row);
    });
    let comparison = compare_losses(ours.as_flattened(), theirs.as_flattened());
    eprintln!("{comparison}");
    let apart = (comparison.ours - comparison.theirs).abs();
    assert!((10.0..100.0).contains(&comparison.theirs), "{comparison}");
    assert!(apart < HALF_A_THIRD_DIGIT, "{comparison}");
}

/// A file's weights, of which only some stay quantised. The others are converted to f32, so that their
/// products take activations in f32.
struct Partly<'a> {
    file: &'a GgufFile,
    /// Substrings of the names of those that stay quantised.
    stay: &'a [&'a str],
}

impl Weights for Partly<'_> {
    fn matrix(&self, name: &str, shape: (usize, usize)) -> crate::error::Result<Matrix> {
        let matrix = self.file.matrix(name, shape)?;
        if self.stay.iter().any(|part| name.contains(part)) {
            return Ok(matrix);
        }
        Ok(Matrix::Dense(matrix.in_f32().unwrap()))
    }

    fn vector(&self, name: &str, length: usize) -> crate::error::Result<Option<Tensor>> {
        self.file.vector(name, length)
    }

    fn file_name(&self, name: &str) -> String {
        self.file.file_name(name)
    }

    fn place(&self, file_name: &str) -> String {
        self.file.place(file_name)
    }
}

/// What the int8 activations of each kind of product cost: one kind at a time, all others in f32.
/// Beside the perplexity, which chance moves either way, this reports the mean Kullback–Leibler
/// divergence from the candle path's distribution: the rise in mean loss on text that the model itself
/// would write. Takes minutes and 0.7 GB, so it runs among the thorough tests only.
#[test]
fn int8_activations_cost_little_in_each_product() {
    if cases(0, 1) == 0 {
        return;
    }
    let Some(path) = test_model() else { return };
    let windows = windows(&path);
    let mut logits = vec![vec![Vec::new(); WINDOW - 1]; windows.len()];
    let mut theirs = vec![[0.0; WINDOW - 1]; windows.len()];
    show_rows(&mut reference(&path, 0), &windows, &mut |index, at, row| {
        theirs[index][at] = loss(&windows[index], at, row);
        logits[index][at] = row.to_vec();
    });
    let file = GgufFile::open(&path).unwrap();
    let cases: [(&str, &[&str]); 7] = [
        ("none (keys and values alone)", &[]),
        ("head", &["token_embd"]),
        ("query, key, value", &["attn_q", "attn_k", "attn_v"]),
        ("attention output", &["attn_output"]),
        ("gate and up", &["ffn_gate", "ffn_up"]),
        ("down", &["ffn_down"]),
        ("all", &[""]),
    ];
    for (what, stay) in cases {
        let weights = Partly { file: &file, stay };
        let decoder = described_gguf(&file).unwrap();
        let mut model = NativeModel::load(&weights, decoder, String::new(), 2).unwrap();
        let mut ours = vec![[0.0; WINDOW - 1]; windows.len()];
        let mut divergence = 0.0;
        show_rows(&mut model, &windows, &mut |index, at, row| {
            ours[index][at] = loss(&windows[index], at, row);
            let pairs = log_probabilities(&logits[index][at]).zip(log_probabilities(row));
            divergence += pairs.map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        });
        let comparison = compare_losses(ours.as_flattened(), theirs.as_flattened());
        let divergence = divergence / comparison.tokens as f64;
        eprintln!("{what}: {comparison}, divergence {divergence:.2e}");
        // Measured for all products together: 2.73e-3.
        assert!(divergence < 4e-3, "{what}: {divergence:.2e}");
    }
}
