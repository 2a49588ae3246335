//! What a pass returns: logits that are sampled here, or tokens that the device has sampled.

use super::LocalEngine;
use crate::engine::model::{Chunk, Model};
use crate::engine::sampler::SamplingParameters;
use crate::engine::scheduler::Work;
use crate::error::Result;

/// What the next token of a sequence is taken from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Row<'a> {
    Logits(&'a [f32]),
    /// A row of the last pass, still on the device.
    OnDevice(usize),
    /// `None`: no logit was usable.
    Sampled(Option<u32>),
}

/// The rows of a pass.
pub(super) enum Results {
    Logits { rows: Vec<f32>, vocabulary: usize },
    Sampled(Vec<Option<u32>>),
}

impl Results {
    /// The row, for the sequence that it was computed for.
    pub(super) fn row(&self, row: usize) -> Row<'_> {
        match self {
            Self::Logits { .. } => self.logits(row),
            Self::Sampled(tokens) => Row::Sampled(tokens[row]),
        }
    }

    /// The row, for another sample of the same prompt.
    pub(super) fn logits(&self, row: usize) -> Row<'_> {
        match self {
            Self::Logits { rows, vocabulary } => {
                Row::Logits(&rows[row * vocabulary..][..*vocabulary])
            }
            Self::Sampled(_) => Row::OnDevice(row),
        }
    }
}

impl LocalEngine {
    /// How each sequence's next token is sampled, if the device does it; otherwise nothing.
    pub(super) fn sampling_of<'w>(
        &mut self,
        wanted: impl Iterator<Item = &'w Work>,
    ) -> Vec<Option<SamplingParameters>> {
        if !self.model.samples() {
            return Vec::new();
        }
        let parameters = |work: &Work| {
            let sequence = self.sequences.get_mut(&work.id);
            sequence.and_then(|sequence| sequence.sampler.parameters())
        };
        wanted.map(parameters).collect()
    }

    /// Keeps the buffer for the next pass.
    pub(super) fn keep(&mut self, results: Results) {
        if let Results::Logits { rows, .. } = results {
            self.logits = rows;
        }
    }
}

/// Runs a pass. `sampling` is that of [`LocalEngine::sampling_of`]; `buffer` is reused for logits.
///
/// # Errors
/// Those of the model.
pub(super) fn forward(
    model: &mut dyn Model,
    buffer: &mut Vec<f32>,
    chunks: &[Chunk<'_>],
    sampling: &[Option<SamplingParameters>],
) -> Result<Results> {
    if model.samples() {
        let sampled = model.forward_sampled(chunks, sampling);
        return sampled.map(Results::Sampled);
    }
    let mut rows = std::mem::take(buffer);
    model.forward_into(chunks, &mut rows)?;
    let vocabulary = model.spec().vocabulary;
    Ok(Results::Logits { rows, vocabulary })
}
