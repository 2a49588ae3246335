//! Forward passes. [`Model`] takes a batch of sequences of any lengths, each at its own position,
//! and keeps their keys and values; schedulers and samplers know nothing else of it.

mod candle;
mod generic;

use crate::error::Result;

/// The sizes of a decoder-only transformer, from the model file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelSpec {
    /// `llama`, `qwen2`: GGUF's `general.architecture`.
    pub(crate) architecture: String,
    /// Transformer blocks.
    pub(crate) layers: usize,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Width of the feed-forward network's inside.
    pub(crate) intermediate: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads; it divides `heads`.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_size: usize,
    /// Tokens in the vocabulary.
    pub(crate) vocabulary: usize,
    /// Most tokens of a sequence.
    pub(crate) context_length: usize,
    /// Added under the root of the RMS norm.
    pub(crate) norm_epsilon: f64,
    /// Base of the rotary embedding's frequencies.
    pub(crate) rope_base: f32,
    /// Leading dimensions of a head that are rotated.
    pub(crate) rope_dimensions: usize,
}

/// Names a sequence's keys and values within one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot(pub(crate) usize);

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk<'a> {
    /// The sequence.
    pub(crate) slot: Slot,
    /// The tokens to compute; at least one.
    pub(crate) tokens: &'a [u32],
    /// Position of the first of them: how many tokens of this sequence were computed before.
    pub(crate) start: usize,
    /// Whether the logits after the last token are wanted.
    pub(crate) logits: bool,
}

/// A model that computes logits, and keeps the keys and values of the sequences it has seen.
pub(crate) trait Model {
    /// The model's sizes.
    fn spec(&self) -> &ModelSpec;

    /// `candle` or `generic`.
    fn backend(&self) -> &'static str;

    /// Weights and arithmetic, for the record: `Q4_1 as f32`.
    fn weights(&self) -> String;

    /// How many sequences can be open at once.
    fn max_sequences(&self) -> usize;

    /// Opens an empty sequence. Callers keep to [`Model::max_sequences`].
    fn open(&mut self) -> Result<Slot>;

    /// Forgets a sequence and frees its memory.
    fn close(&mut self, slot: Slot);

    /// One pass over all chunks, each of another sequence. Returns the logits (`[vocabulary]`, f32)
    /// of those chunks that want them, in the chunks' order.
    ///
    /// # Errors
    /// A device error (out of memory), or a chunk that is not the continuation of its sequence.
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>>;

    /// Returns when the device has finished all that was queued.
    fn synchronize(&self) -> Result<()>;
}
