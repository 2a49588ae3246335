//! What a local engine is loaded with, and its warm-up.

use crate::config::{Backend, DeviceChoice, GpuSettings};
use crate::engine::model::{Chunk, Model};
use crate::error::Result;

#[derive(Debug, Clone)]
pub struct LocalOptions {
    pub device: DeviceChoice,
    pub backend: Backend,
    pub gpu: GpuSettings,
    /// Maximum concurrent sequences, as far as the model supports it.
    pub max_sequences: usize,
    /// Whether the keys and values of known prefixes are reused.
    pub reuse: bool,
    /// Memory for keys and values in bytes; `None`: 1 GiB, or the size of one full context if memory
    /// allows.
    pub kv_bytes: Option<usize>,
    /// Maximum tokens of a sequence; `None`: the model's context length.
    pub context: Option<usize>,
    /// Speculative decoding by prompt lookup, for a sequence that decodes alone. The output does not
    /// change.
    pub speculate: bool,
}

/// A prefill and a decode of a few tokens: page faults, kernel compilation and allocator growth belong
/// to the engine's start, not to the first workflow.
pub(super) fn warm_up(model: &mut dyn Model) -> Result<()> {
    let slot = model.open()?;
    let tokens = [0; 16];
    // A model of a few positions is warmed with fewer.
    let last = model.spec().context_length.min(tokens.len()) - 1;
    let pages = [0];
    for (start, tokens) in [(0, &tokens[..last]), (last, &tokens[last..=last])] {
        if tokens.is_empty() {
            continue;
        }
        model.forward(&[Chunk {
            slot,
            pages: &pages,
            tokens,
            start,
            logits: true,
        }])?;
    }
    model.close(slot);
    model.synchronize()
}
