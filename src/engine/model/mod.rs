//! Forward passes. A [`Model`] takes a batch of sequences of any lengths, each at its own position,
//! and stores their keys and values. Schedulers and samplers know nothing else about a model.

mod candle;
mod cuda;
mod generic;
mod loading;
mod native;
mod source;
mod support;
#[cfg(test)]
pub(super) mod testing;
mod weights;

use std::path::{Path, PathBuf};

use super::cuda::driver::Memory;
use super::decoder;
use super::device::Device;
use super::kv::PAGE_TOKENS;
use super::load::gguf::{GgufFile, Metadata};
use super::load::safetensors::{SafetensorsFolder, folder_of};
use super::memory;
pub(crate) use super::model_spec::ModelSpec;
use super::sampler::SamplingParameters;
use crate::config::GpuSettings;
use crate::error::{Error, Result};
use crate::record::bench::Ceilings;
use crate::units::Bytes;

#[cfg(test)]
pub(crate) use loading::load;
pub(crate) use loading::{check_gpu, load_within};

/// A model that is ready to run, with its tokenizer and chat template still to be parsed.
pub(crate) struct Loaded {
    pub(crate) model: Box<dyn Model>,
    /// The model's name, if the files give one.
    pub(crate) name: Option<String>,
    pub(crate) source: Source,
}

/// The source of the tokenizer and the chat template.
pub(crate) enum Source {
    /// All metadata of a GGUF file; the tokenizer is in `tokenizer.ggml.*`, the chat template in
    /// `tokenizer.chat_template`.
    Gguf(Metadata),
    /// A folder with `tokenizer.json`, `tokenizer_config.json` and `config.json`.
    Folder(PathBuf),
}

/// A model with open files whose weights have not been read.
pub(crate) enum Opened {
    Gguf(GgufFile),
    Folder(SafetensorsFolder),
}

/// Opens a GGUF file or a safetensors folder.
///
/// # Errors
/// Exit code 3 if it is missing or corrupt.
pub(crate) fn open(path: &Path) -> Result<Opened> {
    if path.is_dir() {
        return SafetensorsFolder::open(path).map(Opened::Folder);
    }
    match folder_of(path) {
        None => GgufFile::open(path).map(Opened::Gguf),
        Some(folder) => Err(Error::preflight(format!(
            "`{}` is one file of a model",
            path.display()
        ))
        .hint(format!(
            "use the folder that contains it, with config.json, tokenizer.json and the weights: MODEL={}",
            folder.display()
        ))),
    }
}

/// Configured limits on the length of sequences.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Upper bound on a sequence's tokens; `None`: the model's context.
    pub(crate) context: Option<usize>,
    /// Memory for keys and values in bytes; `None`: see [`Limits::budget`].
    pub(crate) kv_bytes: Option<usize>,
    pub(crate) gpu: GpuSettings,
}

impl Limits {
    /// Default memory for keys and values; also the minimum if no size is configured.
    const DEFAULT: usize = 1 << 30;

    /// Upper bound on a sequence's tokens for this model.
    pub(crate) fn context_of(&self, spec: &ModelSpec) -> usize {
        self.context.unwrap_or(usize::MAX).min(spec.context_length)
    }

    /// Upper bound on the bytes of keys and values. If no size is configured: on a CPU 1 GiB, or more if
    /// one sequence of the full context needs more, up to half of the available memory; on a GPU, whose
    /// memory is read after the weights are loaded, what [`GpuSettings::memory_utilization`] leaves.
    pub(crate) fn budget(&self, full_context: usize, device: &Device) -> usize {
        self.kv_bytes.unwrap_or_else(|| match device {
            Device::Cpu => full_context
                .min(memory::half_of_available())
                .max(Self::DEFAULT),
            Device::Cuda(gpu) => match gpu.memory() {
                Ok(memory) => self.gpu_budget(full_context, memory),
                Err(_) => 0,
            },
        })
    }

    fn gpu_budget(&self, full_context: usize, memory: Memory) -> usize {
        const DEFAULT_SHARE: f64 = 0.9;
        let left = |share: f64| {
            let kept = memory.total as f64 * (1.0 - share);
            memory.free.saturating_sub(kept.ceil() as usize)
        };
        match self.gpu.memory_utilization {
            Some(share) => left(share),
            None => {
                let wanted = full_context.saturating_mul(16).max(Self::DEFAULT);
                wanted.min(left(DEFAULT_SHARE))
            }
        }
    }

    /// Upper bound on a sequence's tokens, for a model on the CPU that stores keys and values per sequence:
    /// limited by the context and by the memory for them.
    pub(crate) fn tokens_of(&self, spec: &ModelSpec, token_bytes: usize) -> usize {
        let context = self.context_of(spec);
        let token_bytes = token_bytes.max(1);
        let budget = self.budget(context.saturating_mul(token_bytes), &Device::Cpu);
        context.min(budget / token_bytes)
    }

    /// Checks that the model supports the configured context.
    ///
    /// # Errors
    /// Exit code 2, with the model's context.
    pub(crate) fn check(&self, spec: &ModelSpec) -> Result<()> {
        match self.context {
            Some(context) if context > spec.context_length => Err(Error::usage(format!(
                "a context of {context} tokens is more than the model's, {}",
                spec.context_text()
            ))
            .hint(format!(
                "set CONTEXT to at most {}, or leave it out",
                spec.context_length
            ))),
            _ => Ok(()),
        }
    }
}

/// Describes a model file without loading its weights, as label and value pairs for display. The
/// last pair lists the backends that can compute it, or why none can.
///
/// # Errors
/// Exit code 3 if the file is corrupt.
pub(crate) fn inspect(path: &Path) -> Result<Vec<(&'static str, String)>> {
    let opened = open(path)?;
    let spec = match &opened {
        Opened::Gguf(file) => file.spec(),
        Opened::Folder(folder) => match decoder::of_folder(folder) {
            Ok(decoder) => Ok(decoder.spec),
            // The sizes are shown even if the model is not supported.
            Err(_) => folder.spec(),
        },
    };
    let size = |gguf: &str, folder_key: &str| match &opened {
        Opened::Gguf(file) => file.shown(gguf),
        Opened::Folder(folder) => folder.shown(folder_key),
    };
    let (architecture, vocabulary, weights, tensors, backends) = match &opened {
        Opened::Gguf(file) => {
            let embedding = file.shape("token_embd.weight");
            (
                file.architecture()?.to_owned(),
                embedding.map_or("?".to_owned(), |shape| shape[0].to_string()),
                file.weight_type(),
                file.tensor_names().count(),
                support::backends_of_gguf(file),
            )
        }
        Opened::Folder(folder) => (
            folder.model_type()?.to_owned(),
            folder.shown("vocab_size"),
            folder.weight_type().to_owned(),
            folder.tensor_names().count(),
            support::backends_of_folder(folder),
        ),
    };
    // For an unsupported file, show the values as stored.
    let head_size = match &spec {
        Ok(spec) => spec.head_size.to_string(),
        Err(_) => size("attention.key_length", "head_dim"),
    };
    let kv_heads = match &spec {
        Ok(spec) => spec.kv_heads.to_string(),
        Err(_) => size("attention.head_count_kv", "num_key_value_heads"),
    };
    let positions = size("context_length", "max_position_embeddings");
    let context = match &spec {
        Ok(spec) if spec.context_length.to_string() != positions => format!(
            "{} tokens (of {positions} positions: limited by its sliding window or scaling)",
            spec.context_length
        ),
        _ => format!("{positions} tokens"),
    };
    let mut facts = vec![
        ("architecture", architecture),
        ("layers", size("block_count", "num_hidden_layers")),
        ("hidden", size("embedding_length", "hidden_size")),
        (
            "feed-forward",
            size("feed_forward_length", "intermediate_size"),
        ),
        (
            "heads",
            format!(
                "{} of size {head_size}",
                size("attention.head_count", "num_attention_heads")
            ),
        ),
        ("kv heads", kv_heads),
        ("vocabulary", format!("{vocabulary} tokens")),
        ("context", context),
        ("weights", format!("{weights}, {tensors} tensors")),
        ("backends", backends),
    ];
    if let Opened::Gguf(file) = &opened
        && file.parts() > 1
    {
        facts.insert(0, ("parts", format!("{} files", file.parts())));
    }
    Ok(facts)
}

/// Identifies a sequence's keys and values within a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot(pub(crate) usize);

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk<'a> {
    pub(crate) slot: Slot,
    /// Page table, for models with paged memory ([`Model::page_bytes`]): token `i` is in page
    /// `pages[i / 16]`, at offset `i % 16`. Other models store keys and values by slot.
    pub(crate) pages: &'a [u32],
    /// The tokens to compute; at least one.
    pub(crate) tokens: &'a [u32],
    /// Position of the first token: the number of tokens of this sequence computed before.
    pub(crate) start: usize,
    /// Whether the logits after the last token are wanted.
    pub(crate) logits: bool,
}

/// Bytes of the matrices that the products read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WeightBytes {
    /// All blocks: read by every pass.
    pub(crate) layers: usize,
    /// The output head: also read by passes that return logits.
    pub(crate) head: usize,
}

/// Enough for matrix products at full speed on a CPU, few enough that what one product writes is still in a
/// near cache when the next step reads it (512 was 4 % slower), and that an interrupt or another flow's next
/// token waits only a fraction of a second.
const CPU_PASS_TOKENS: usize = 256;

/// Computes logits, and stores the keys and values of open sequences.
pub(crate) trait Model {
    fn spec(&self) -> &ModelSpec;

    /// `cuda`, `native`, `candle` or `generic`.
    fn backend(&self) -> &'static str;

    /// Weight format and arithmetic, as recorded in a run: `Q4_1 as f32`.
    fn weights(&self) -> String;

    /// Bytes of weights that a pass reads, if known.
    fn weight_bytes(&self) -> Option<WeightBytes> {
        None
    }

    /// Whether a pass can take consecutive tokens of a sequence as separate chunks, each with its
    /// own logits. Verifying a draft needs that.
    fn checks_guesses(&self) -> bool {
        false
    }

    /// The limits of a device that is not the CPU, measured.
    ///
    /// # Errors
    /// Exit code 3 if the device fails.
    fn device_ceilings(&self) -> Result<Option<Ceilings>> {
        Ok(None)
    }

    /// How long the driver compiled the kernels for its card, in milliseconds; `None` without a driver.
    fn jit_ms(&self) -> Option<f64> {
        None
    }

    /// Maximum tokens of a pass.
    fn pass_tokens(&self) -> usize {
        CPU_PASS_TOKENS
    }

    /// Maximum number of open sequences.
    fn max_sequences(&self) -> usize;

    /// Bytes of keys and values per page of 16 tokens; `None` for a model that stores them per
    /// sequence instead of in pages.
    fn page_bytes(&self) -> Option<usize> {
        None
    }

    /// Sets the number of pages of a paged model; their content is lost. On a CPU, memory is
    /// allocated on demand.
    ///
    /// # Errors
    /// Exit code 3 if the device has too little memory; the model then has no pages.
    fn set_pages(&mut self, _pages: usize) -> Result<()> {
        Ok(())
    }

    /// Allocates memory for the first `pages` pages. Returns the number of pages that have memory,
    /// which is smaller if memory is short.
    fn provide_pages(&mut self, pages: usize) -> usize {
        pages
    }

    /// Gives up device memory that passes can do without, with the same results. Returns whether there was any.
    fn save_memory(&mut self) -> bool {
        false
    }

    /// Bytes of keys and values per token, for a model that stores them per sequence.
    fn token_bytes(&self) -> usize {
        0
    }

    /// Copies a page over another one, in every layer.
    ///
    /// # Errors
    /// Exit code 100 for a device error.
    fn copy_page(&mut self, _from: u32, _to: u32) -> Result<()> {
        Ok(())
    }

    /// Opens an empty sequence. Callers must not exceed [`Model::max_sequences`].
    fn open(&mut self) -> Result<Slot>;

    /// Closes a sequence. Its memory may be reused by the next one.
    fn close(&mut self, slot: Slot);

    /// Runs one pass over all chunks, each of a different sequence. Returns the logits
    /// (`[vocabulary]`, f32) of the chunks that request them, in order.
    ///
    /// # Errors
    /// Exit code 100; no sequence has advanced. Either a chunk does not continue its sequence,
    /// exceeds the context or has a token outside the vocabulary (checked before anything is
    /// computed), or the device failed (for example, out of memory).
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>>;

    /// Like [`Self::forward`], but replaces the content of `logits` with the rows, `[wanted,
    /// vocabulary]`. Reusing the buffer avoids an allocation per pass.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn forward_into(&mut self, chunks: &[Chunk<'_>], logits: &mut Vec<f32>) -> Result<()> {
        let rows = self.forward(chunks)?;
        logits.clear();
        rows.iter().for_each(|row| logits.extend(row));
        Ok(())
    }

    /// Whether [`Self::forward_sampled`] and [`Self::sample_row`] work: then no logits leave the device.
    fn samples(&self) -> bool {
        false
    }

    /// Like [`Self::forward`], but picks a token from each row of logits on the device. `sampling` has an
    /// element for each row, `None` for the highest logit. A row whose logits are all NaN or −∞ gives `None`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn forward_sampled(
        &mut self,
        _chunks: &[Chunk<'_>],
        _sampling: &[Option<SamplingParameters>],
    ) -> Result<Vec<Option<u32>>> {
        Err(Error::flow("this model does not sample"))
    }

    /// Picks another token from a row of the last [`Self::forward_sampled`].
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn sample_row(
        &mut self,
        _row: usize,
        _sampling: Option<SamplingParameters>,
    ) -> Result<Option<u32>> {
        Err(Error::flow("this model does not sample"))
    }

    /// Returns once the device has finished all queued work.
    fn synchronize(&self) -> Result<()>;
}

/// [`Model::forward`] for a model that implements [`Model::forward_into`].
///
/// # Errors
/// Those of the pass.
fn split_rows(model: &mut dyn Model, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>> {
    let mut logits = Vec::new();
    model.forward_into(chunks, &mut logits)?;
    let rows = logits.chunks_exact(model.spec().vocabulary);
    Ok(rows.map(<[f32]>::to_vec).collect())
}

/// The error if address space or device memory for the pages cannot be reserved.
fn no_room_for_pages(
    pages: usize,
    page_bytes: usize,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    let bytes = Bytes(pages.saturating_mul(page_bytes) as u64);
    Error::preflight(format!(
        "there is no room for {bytes} of keys and values, {pages} pages of {PAGE_TOKENS} tokens"
    ))
    .caused_by(source)
    .hint("set a smaller KV_CACHE_MB, or a smaller CONTEXT")
}

/// Checks that a chunk continues its sequence, of which `length` tokens are computed.
///
/// # Errors
/// Exit code 100, with what is wrong.
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

/// Checks that a chunk has the pages it needs. `pages`: number of pages of the model.
///
/// # Errors
/// Exit code 100 if it does not.
fn check_pages(chunk: &Chunk<'_>, pages: usize) -> Result<()> {
    let needed = (chunk.start + chunk.tokens.len()).div_ceil(PAGE_TOKENS);
    let known = chunk.pages.iter().all(|page| (*page as usize) < pages);
    if needed > chunk.pages.len() || !known {
        return Err(Error::flow(format!(
            "sequence {} has too few pages",
            chunk.slot.0
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_take_a_share_of_a_cards_memory() {
        const GIB: usize = 1 << 30;
        let budget = |utilization, context: usize, free: usize| {
            let limits = Limits {
                gpu: GpuSettings {
                    memory_utilization: utilization,
                    graphs: true,
                },
                ..Limits::default()
            };
            let memory = Memory {
                free: free * GIB,
                total: 100 * GIB,
            };
            limits.gpu_budget(context * GIB, memory) / GIB
        };
        // Of 100 GiB, 30 are taken, by the weights for instance.
        assert_eq!(budget(None, 2, 70), 32, "16 full contexts");
        assert_eq!(budget(None, 5, 70), 60, "up to nine tenths of the card");
        assert_eq!(budget(Some(0.5), 5, 70), 20);
        assert_eq!(budget(Some(1.0), 1, 70), 70, "all that is free");
        assert_eq!(budget(Some(0.25), 1, 70), 0, "more is taken already");
    }
}
