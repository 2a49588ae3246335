//! How long a forward pass takes, fitted to the passes of a run.

use super::least_squares::{dot, fit};
use crate::statistics::median;

/// Fewer passes of one batch size say nothing about it.
const FEWEST: usize = 5;

/// The work of a forward pass, or of several that were observed as one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Pass {
    /// Number of passes; a pass has a cost of its own, mostly that of reading the weights.
    pub(super) passes: f64,
    /// Decoding sequences, as a mean over time if it changed.
    pub(super) decoding: f64,
    /// Tokens computed for decoding sequences, drafts included.
    pub(super) decode_rows: f64,
    /// Prompt tokens computed.
    pub(super) prompt_rows: f64,
    /// Sum over the decode rows of the tokens before each.
    pub(super) decode_context: f64,
    /// Sum over the prompt rows of the tokens before each.
    pub(super) prompt_context: f64,
    /// Requests to a server that began: each has a cost outside any pass.
    pub(super) requests: f64,
}

/// Factors by which parts of the work would be faster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speeds {
    pub(super) decode: f64,
    pub(super) prefill: f64,
}

/// Milliseconds for the features of a pass, and corrections by what was seen.
///
/// `ms = a·passes + b·rows + c·decode_context + d·prompt_context + e·requests`: reading the weights, arithmetic of
/// the linear layers (the same for prompts and for decoding), attention, and the way to a server.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct PassCost {
    coefficients: [f64; FEATURES],
    /// Observed by predicted time of passes that only decode, by the number of sequences, ascending.
    by_batch: Vec<(f64, f64)>,
    /// The same of passes with prompt tokens.
    with_prompt: f64,
}

const FEATURES: usize = 5;

/// What is believed of attention, where a run does not show it: over the contexts of the run, it costs a prompt's
/// token half as much as the linear layers do, and a decoded one, which reads keys and values for itself alone, as
/// much as they do. Measured on CPUs with the default model.
const PROMPT_ATTENTION: f64 = 0.5;
const DECODE_ATTENTION: f64 = 1.0;

/// A belief weighs as much as this share of the passes that it is about.
const BELIEF: f64 = 0.05;

fn beliefs(observed: &[(Pass, f64)]) -> [[f64; FEATURES]; 2] {
    let sum = |of: fn(&Pass) -> f64| observed.iter().map(|(pass, _)| of(pass)).sum::<f64>();
    let prompts = observed.iter().filter(|(pass, _)| pass.prompt_rows > 0.0);
    let prompt_ms: f64 = prompts.map(|(_, ms)| ms).sum();
    let prompt_rows = sum(|pass| pass.prompt_rows);
    let decode_rows = sum(|pass| pass.decode_rows);
    if prompt_rows <= 0.0 || prompt_ms <= 0.0 {
        return [[0.0; FEATURES]; 2];
    }
    let with_prompt = observed
        .iter()
        .filter(|(pass, _)| !pass.is_decode())
        .count();
    // In units of what a prompt's token takes.
    let weight = |passes: usize| (BELIEF * passes as f64).sqrt() * prompt_rows / prompt_ms;
    let (of_prompts, of_decode) = (weight(with_prompt), weight(observed.len() - with_prompt));
    let prompt_context = sum(|pass| pass.prompt_context) / prompt_rows;
    let decode_context = sum(|pass| pass.decode_context) / decode_rows.max(1.0);
    [
        [0.0, -PROMPT_ATTENTION, 0.0, prompt_context, 0.0].map(|part| part * of_prompts),
        [0.0, -DECODE_ATTENTION, decode_context, 0.0, 0.0].map(|part| part * of_decode),
    ]
}

impl Pass {
    fn features(&self) -> [f64; FEATURES] {
        [
            self.passes,
            self.decode_rows + self.prompt_rows,
            self.decode_context,
            self.prompt_context,
            self.requests,
        ]
    }

    fn is_decode(&self) -> bool {
        self.prompt_rows <= 0.0
    }
}

impl PassCost {
    /// Fits observed passes, each with its milliseconds. Those without a duration are left out.
    pub(super) fn fit(observed: &[(Pass, f64)]) -> Self {
        let samples: Vec<_> = observed
            .iter()
            .filter(|(_, ms)| *ms > 0.0)
            .map(|(pass, ms)| (pass.features(), *ms))
            .collect();
        let mut cost = Self {
            coefficients: fit(&samples, &beliefs(observed)),
            by_batch: Vec::new(),
            with_prompt: 1.0,
        };
        let (decode, prompt): (Vec<_>, Vec<_>) = observed
            .iter()
            .copied()
            .partition(|(pass, _)| pass.is_decode());
        cost.with_prompt = cost.ratio(&prompt).unwrap_or(1.0);
        cost.by_batch = cost.ratios(decode);
        cost
    }

    /// What the model leaves open of a set of passes: observed by predicted time, in the median. A machine that
    /// was disturbed was disturbed in some passes, whatever they computed.
    fn ratio(&self, observed: &[(Pass, f64)]) -> Option<f64> {
        let ratios: Vec<f64> = (observed.iter())
            .map(|(pass, ms)| ms / self.uncorrected(pass))
            .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
            .collect();
        median(&ratios)
    }

    /// Ratios by batch size. Neighbouring sizes with few passes are taken together.
    fn ratios(&self, mut decode: Vec<(Pass, f64)>) -> Vec<(f64, f64)> {
        decode.sort_by(|(a, _), (b, _)| a.decoding.total_cmp(&b.decoding));
        let mut ratios = Vec::new();
        let mut group: Vec<(Pass, f64)> = Vec::new();
        let sizes: Vec<_> = decode
            .chunk_by(|(a, _), (b, _)| a.decoding.round() == b.decoding.round())
            .map(<[_]>::to_vec)
            .collect();
        for (index, size) in sizes.iter().enumerate() {
            group.extend_from_slice(size);
            if group.len() < FEWEST && index + 1 < sizes.len() {
                continue;
            }
            let mean =
                group.iter().map(|(pass, _)| pass.decoding).sum::<f64>() / group.len() as f64;
            if let Some(ratio) = self.ratio(&group)
                && (group.len() >= FEWEST || ratios.is_empty())
            {
                ratios.push((mean, ratio));
            }
            group.clear();
        }
        ratios
    }

    fn uncorrected(&self, pass: &Pass) -> f64 {
        dot(&pass.features(), &self.coefficients)
    }

    /// The correction for a batch size: of the nearest sizes seen, interpolated by the logarithm of the size.
    fn correction(&self, decoding: f64) -> f64 {
        let after = self.by_batch.partition_point(|(size, _)| *size <= decoding);
        let before = after.checked_sub(1).map(|index| self.by_batch[index]);
        match (before, self.by_batch.get(after)) {
            (Some((small, one)), Some(&(large, other))) => {
                let share = (decoding / small).ln() / (large / small).ln();
                one + (other - one) * share
            }
            (Some((_, ratio)), None) | (None, Some(&(_, ratio))) => ratio,
            (None, None) => self.with_prompt,
        }
    }

    /// Milliseconds of one pass.
    pub(super) fn ms(&self, pass: &Pass, speeds: Speeds) -> f64 {
        if pass.is_decode() {
            return self.uncorrected(pass) * self.correction(pass.decoding) / speeds.decode;
        }
        let decode = Pass {
            passes: 0.0,
            prompt_rows: 0.0,
            prompt_context: 0.0,
            requests: 0.0,
            ..*pass
        };
        let whole = self.uncorrected(pass) * self.with_prompt;
        let decode = self.uncorrected(&decode) * self.with_prompt;
        (whole - decode) / speeds.prefill + decode / speeds.decode
    }

    /// Milliseconds for each request to a server, outside any pass.
    pub(super) fn of_request(&self) -> f64 {
        self.coefficients[FEATURES - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AS_IT_WAS: Speeds = Speeds {
        decode: 1.0,
        prefill: 1.0,
    };

    fn decode(sequences: usize, context: f64) -> Pass {
        let sequences = sequences as f64;
        Pass {
            passes: 1.0,
            decoding: sequences,
            decode_rows: sequences,
            decode_context: sequences * context,
            ..Pass::default()
        }
    }

    fn prompt(tokens: f64) -> Pass {
        Pass {
            passes: 1.0,
            prompt_rows: tokens,
            prompt_context: tokens * tokens / 2.0,
            ..Pass::default()
        }
    }

    /// A machine: 3 ms to read the weights, a quarter of a millisecond a row, attention.
    fn truth(pass: &Pass) -> f64 {
        dot(&pass.features(), &[3.0, 0.25, 2e-4, 1e-4, 0.0])
    }

    #[test]
    fn a_batch_that_was_never_seen_follows_from_prompts() {
        let mut seen: Vec<_> = (0..60)
            .map(|at| decode(1, 500.0 + 10.0 * f64::from(at)))
            .collect();
        seen.extend((1..8).map(|at| prompt(30.0 * f64::from(at))));
        let seen: Vec<_> = seen.into_iter().map(|pass| (pass, truth(&pass))).collect();
        let cost = PassCost::fit(&seen);
        for pass in [decode(8, 700.0), decode(25, 900.0), prompt(256.0)] {
            let error = cost.ms(&pass, AS_IT_WAS) / truth(&pass) - 1.0;
            // Seven prompts do not outweigh what is believed of attention, of which this machine has little.
            assert!(error.abs() < 0.15, "{pass:?} {error}");
        }
        let half = Speeds {
            decode: 2.0,
            prefill: 1.0,
        };
        let eight = decode(8, 700.0);
        let ratio = cost.ms(&eight, half) / cost.ms(&eight, AS_IT_WAS);
        assert!((ratio - 0.5).abs() < 1e-12);
        assert_eq!(
            cost.ms(&prompt(256.0), half),
            cost.ms(&prompt(256.0), AS_IT_WAS)
        );
    }

    #[test]
    fn batches_that_were_seen_cost_what_they_cost() {
        // No line: from four sequences on a pass takes twice as long.
        let time = |sequences: usize| if sequences < 4 { 3.0 } else { 6.0 };
        let mut seen: Vec<(Pass, f64)> = Vec::new();
        for sequences in [1, 2, 4, 8] {
            seen.extend(vec![(decode(sequences, 0.0), time(sequences)); 10]);
        }
        let cost = PassCost::fit(&seen);
        for sequences in [1, 2, 4, 8] {
            let ms = cost.ms(&decode(sequences, 0.0), AS_IT_WAS);
            assert!((ms - time(sequences)).abs() < 1e-9, "{sequences}: {ms}");
        }
        let between = cost.ms(&decode(3, 0.0), AS_IT_WAS);
        assert!((3.0..6.0).contains(&between), "{between}");
    }

    #[test]
    fn nothing_observed_costs_nothing() {
        let cost = PassCost::fit(&[]);
        assert_eq!(cost.ms(&decode(1, 5.0), AS_IT_WAS), 0.0);
        assert_eq!(cost.of_request(), 0.0);
    }
}
