//! Forward passes. [`Model`] takes a batch of sequences of any lengths, each at its own position,
//! and keeps their keys and values; schedulers and samplers know nothing else of it.

mod candle;
mod generic;
#[cfg(test)]
pub(super) mod testing;

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::load::gguf::{GgufFile, Metadata};
use super::load::safetensors::SafetensorsFolder;
use crate::error::{Error, Result};

/// A model that is ready to run, and what its tokenizer and chat template are read from.
pub(crate) struct Loaded {
    /// The model.
    pub(crate) model: Box<dyn Model>,
    /// The model's own name, where it says one.
    pub(crate) name: Option<String>,
    /// What came with the weights.
    pub(crate) source: Source,
}

/// What came with the weights.
pub(crate) enum Source {
    /// All metadata of a GGUF file; the tokenizer is in `tokenizer.ggml.*`, the chat template in
    /// `tokenizer.chat_template`.
    Gguf(Metadata),
    /// A folder with `tokenizer.json`, `tokenizer_config.json` and `config.json`.
    Folder(PathBuf),
}

/// Loads a GGUF file, or a folder with safetensors, to the device.
///
/// The Llama family runs on [`candle`] (any batch), other architectures of GGUF files on
/// [`generic`] (one sequence at a time).
///
/// # Errors
/// Exit code 3, with path and hint: nothing there, a damaged file, an architecture that is not
/// supported, no room on the device.
pub(crate) fn load(path: &Path, device: &Device) -> Result<Loaded> {
    if path.is_dir() {
        let folder = SafetensorsFolder::open(path)?;
        let model = candle::CandleModel::from_safetensors(&folder, device)?;
        return Ok(Loaded {
            model: Box::new(model),
            name: folder.name(),
            source: Source::Folder(path.to_owned()),
        });
    }
    if path.extension().is_some_and(|end| end == "safetensors") {
        return Err(
            Error::preflight(format!("`{}` is one file of a model", path.display())).hint(
                "give the folder that holds it, with config.json and tokenizer.json beside it",
            ),
        );
    }
    let file = GgufFile::open(path)?;
    let model: Box<dyn Model> = if candle::supports(&file)? {
        Box::new(candle::CandleModel::from_gguf(&file, device)?)
    } else {
        Box::new(generic::GenericModel::from_gguf(&file, device)?)
    };
    let metadata = file.into_metadata();
    let name = match metadata.get("general.name") {
        Some(candle_core::quantized::gguf_file::Value::String(name)) => Some(name.clone()),
        _ => None,
    };
    Ok(Loaded {
        model,
        name,
        source: Source::Gguf(metadata),
    })
}

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

impl ModelSpec {
    /// Whether the sizes can be those of a model. The error is a fragment: "`model.gguf` …".
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self {
            heads, kv_heads, ..
        } = *self;
        let even = |what: &str, size: usize, most: usize| match size {
            size if size > 0 && size <= most && size.is_multiple_of(2) => Ok(()),
            size => Err(format!(
                "has {what} of {size}, not an even number up to {most}"
            )),
        };
        let counts = [
            ("layers", self.layers, 4096),
            ("a hidden size", self.hidden, 1 << 20),
            ("a feed-forward size", self.intermediate, 1 << 22),
            ("heads", heads, 1 << 16),
            ("key and value heads", kv_heads, 1 << 16),
            ("a vocabulary", self.vocabulary, u32::MAX as usize),
            ("a context", self.context_length, 1 << 27),
        ];
        for (what, count, most) in counts {
            if count == 0 || count > most {
                return Err(format!("has {what} of {count}, not 1 to {most}"));
            }
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "has {heads} heads, which do not share {kv_heads} key and value heads evenly"
            ));
        }
        even("a head size", self.head_size, 1 << 16)?;
        even(
            "a rotated part of a head",
            self.rope_dimensions,
            self.head_size,
        )?;
        if !(self.norm_epsilon > 0.0 && self.norm_epsilon < 1.0) {
            return Err(format!("has a norm epsilon of {}", self.norm_epsilon));
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return Err(format!("has a rotary base of {}", self.rope_base));
        }
        Ok(())
    }
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

    /// Forgets a sequence. Its memory is kept for the next one that is opened.
    fn close(&mut self, slot: Slot);

    /// One pass over all chunks, each of another sequence. Returns the logits (`[vocabulary]`, f32)
    /// of those chunks that want them, in the chunks' order.
    ///
    /// # Errors
    /// Exit code 100, and no sequence has moved on: a chunk that is not the continuation of its
    /// sequence, reaches beyond the context or holds a token that is not in the vocabulary (told
    /// before anything is computed), or a device error (out of memory).
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>>;

    /// Returns when the device has finished all that was queued.
    fn synchronize(&self) -> Result<()>;
}

/// Whether a chunk continues its sequence, of which `length` tokens are computed.
///
/// # Errors
/// Exit code 100: what is wrong with it.
fn check_chunk(chunk: &Chunk<'_>, length: usize, spec: &ModelSpec) -> Result<()> {
    let fail = |what: String| Err(Error::flow(format!("sequence {} {what}", chunk.slot.0)));
    if chunk.tokens.is_empty() {
        return fail("has an empty chunk".to_owned());
    }
    if chunk.start != length {
        return fail(format!(
            "has {length} tokens, but its chunk starts at {}",
            chunk.start
        ));
    }
    let end = length + chunk.tokens.len();
    if end > spec.context_length {
        return fail(format!(
            "would have {end} tokens, more than the context of {}",
            spec.context_length
        ));
    }
    if let Some(token) = chunk
        .tokens
        .iter()
        .find(|&&token| token as usize >= spec.vocabulary)
    {
        return fail(format!(
            "has the token {token}, beyond the vocabulary of {}",
            spec.vocabulary
        ));
    }
    Ok(())
}
