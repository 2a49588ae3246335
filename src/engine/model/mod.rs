//! Forward passes. [`Model`] takes a batch of sequences of any lengths, each at its own position,
//! and keeps their keys and values; schedulers and samplers know nothing else of it.

mod candle;
mod generic;
mod native;
mod source;
mod support;
#[cfg(test)]
pub(super) mod testing;
mod weights;

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::kv::PAGE_TOKENS;
use super::load::gguf::{GgufFile, Metadata};
use super::load::safetensors::{SafetensorsFolder, folder_of};
use super::memory;
pub(crate) use super::model_spec::ModelSpec;
use crate::config::Backend;
use crate::error::{Error, Result};
use crate::units::Bytes;

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

/// A model whose files are open, and whose weights are not read.
enum Opened {
    Gguf(GgufFile),
    Folder(SafetensorsFolder),
}

fn open(path: &Path) -> Result<Opened> {
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
            "give the folder that holds it, with config.json, tokenizer.json and the weights in it: MODEL={}",
            folder.display()
        ))),
    }
}

/// How long sequences may become.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Most tokens of a sequence, where fewer are wanted than the model can.
    pub(crate) context: Option<usize>,
    /// Memory for keys and values in bytes; `None`: [`Limits::budget`] decides.
    pub(crate) kv_bytes: Option<usize>,
}

impl Limits {
    /// Memory for keys and values that is always there, where no size was asked for.
    const DEFAULT: usize = 1 << 30;

    /// Most tokens of a sequence of this model.
    pub(crate) fn context_of(&self, spec: &ModelSpec) -> usize {
        self.context.unwrap_or(usize::MAX).min(spec.context_length)
    }

    /// Bytes of keys and values that there may be. Where no size was asked for: 1 GiB, and more where
    /// one sequence of the full context takes more, up to half of the memory that is available.
    pub(crate) fn budget(&self, full_context: usize, device: &Device) -> usize {
        self.kv_bytes.unwrap_or_else(|| {
            let most = match device {
                Device::Cpu => memory::half_of_available(),
                _ => usize::MAX,
            };
            full_context.min(most).max(Self::DEFAULT)
        })
    }

    /// Most tokens of a sequence of a model that keeps the keys and values of each for itself: what the
    /// context and the memory for them allow.
    pub(crate) fn tokens_of(&self, spec: &ModelSpec, token_bytes: usize, device: &Device) -> usize {
        let context = self.context_of(spec);
        let token_bytes = token_bytes.max(1);
        let budget = self.budget(context.saturating_mul(token_bytes), device);
        context.min(budget / token_bytes)
    }

    /// Whether the model can have the context that was asked for.
    ///
    /// # Errors
    /// Exit code 2, naming the model's.
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

/// Loads a GGUF file, or a folder with safetensors, to the device, for sequences of any length.
#[cfg(test)]
pub(crate) fn load(path: &Path, backend: Backend, device: &Device) -> Result<Loaded> {
    load_within(path, backend, device, &Limits::default())
}

/// Loads a GGUF file, or a folder with safetensors, to the device.
///
/// The Llama family runs on [`native`] (CPU) or [`candle`] (any device), in any batch; other
/// architectures of GGUF files on [`generic`], one sequence at a time ([`support`]).
///
/// # Errors
/// Exit code 3, with path and hint: nothing there, a damaged file, an architecture that is not
/// supported, a backend that does not know it, no room on the device or in memory. Exit code 2: a
/// context that is larger than the model's.
pub(crate) fn load_within(
    path: &Path,
    backend: Backend,
    device: &Device,
    limits: &Limits,
) -> Result<Loaded> {
    if backend == Backend::Native && !device.is_cpu() {
        return Err(Error::preflight("BACKEND=native computes on the CPU only")
            .hint("set DEVICE=cpu, or BACKEND=auto"));
    }
    let file = match open(path)? {
        Opened::Gguf(file) => file,
        Opened::Folder(folder) => return load_folder(&folder, backend, device, limits),
    };
    let backend = support::choose(&file, backend, device)?;
    if let Ok(spec) = file.spec() {
        limits.check(&spec)?;
    }
    memory::check_weights(path, weights::of_gguf(&file, backend, device))?;
    let model: Box<dyn Model> = match backend {
        Backend::Native => Box::new(native::NativeModel::from_gguf(&file)?),
        Backend::Generic => Box::new(generic::GenericModel::from_gguf(&file, device, limits)?),
        Backend::Candle | Backend::Auto => Box::new(candle::CandleModel::from_gguf(&file, device)?),
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

fn load_folder(
    folder: &SafetensorsFolder,
    backend: Backend,
    device: &Device,
    limits: &Limits,
) -> Result<Loaded> {
    limits.check(&support::check_folder(folder)?)?;
    let fits =
        |backend| memory::check_weights(folder.path(), weights::of_folder(folder, backend, device));
    let model: Box<dyn Model> = match backend {
        Backend::Generic => {
            return Err(
                Error::preflight("BACKEND=generic reads GGUF files only").hint("set BACKEND=auto")
            );
        }
        Backend::Auto | Backend::Native if device.is_cpu() => {
            fits(Backend::Native)?;
            Box::new(native::NativeModel::from_safetensors(folder)?)
        }
        _ => {
            fits(Backend::Candle)?;
            Box::new(candle::CandleModel::from_safetensors(folder, device)?)
        }
    };
    Ok(Loaded {
        model,
        name: folder.name(),
        source: Source::Folder(folder.path().to_owned()),
    })
}

/// What a model file says of itself, without loading its weights: names and values, for people. The
/// last one says which backends can compute it, or why none can.
///
/// # Errors
/// Exit code 3 where it is broken.
pub(crate) fn inspect(path: &Path) -> Result<Vec<(&'static str, String)>> {
    let opened = open(path)?;
    let spec = match &opened {
        Opened::Gguf(file) => file.spec(),
        Opened::Folder(folder) => folder.spec(),
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
    // What a file that is not supported says of itself is shown as it stands.
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

/// Names a sequence's keys and values within one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot(pub(crate) usize);

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk<'a> {
    /// The sequence.
    pub(crate) slot: Slot,
    /// Where its keys and values lie, for models with paged memory ([`Model::page_bytes`]): token
    /// `i` is in page `i / 16`, at `i % 16`. Others keep them by the slot.
    pub(crate) pages: &'a [u32],
    /// The tokens to compute; at least one.
    pub(crate) tokens: &'a [u32],
    /// Position of the first of them: how many tokens of this sequence were computed before.
    pub(crate) start: usize,
    /// Whether the logits after the last token are wanted.
    pub(crate) logits: bool,
}

/// Bytes of matrices, as the products read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WeightBytes {
    /// Of all blocks: what every pass reads.
    pub(crate) layers: usize,
    /// Of the output head: what a pass that gives logits reads besides.
    pub(crate) head: usize,
}

/// A model that computes logits, and keeps the keys and values of the sequences it has seen.
pub(crate) trait Model {
    /// The model's sizes.
    fn spec(&self) -> &ModelSpec;

    /// `candle` or `generic`.
    fn backend(&self) -> &'static str;

    /// Weights and arithmetic, for the record: `Q4_1 as f32`.
    fn weights(&self) -> String;

    /// Bytes of weights that a pass streams, of models that know.
    fn weight_bytes(&self) -> Option<WeightBytes> {
        None
    }

    /// Whether one pass can hold consecutive tokens of a sequence as chunks of their own, each with its
    /// logits: what checking a guess takes.
    fn checks_guesses(&self) -> bool {
        false
    }

    /// How many sequences can be open at once.
    fn max_sequences(&self) -> usize;

    /// Bytes of keys and values of a page of 16 tokens, for a model whose memory is paged; `None`
    /// for one that keeps each sequence's for itself.
    fn page_bytes(&self) -> Option<usize> {
        None
    }

    /// Gives a paged model room for so many pages; what they held is lost. On a CPU they take memory
    /// as they are needed.
    ///
    /// # Errors
    /// Exit code 3: no room on the device. There are no pages then.
    fn set_pages(&mut self, _pages: usize) -> Result<()> {
        Ok(())
    }

    /// Makes sure that there is memory for the first `pages` pages, and returns how many of them there
    /// is memory for: fewer where it is short.
    fn provide_pages(&mut self, pages: usize) -> usize {
        pages
    }

    /// Bytes of keys and values of a token, of a model that keeps each sequence's for itself.
    fn token_bytes(&self) -> usize {
        0
    }

    /// Copies a page over another one, in every layer.
    ///
    /// # Errors
    /// Exit code 100: a device error.
    fn copy_page(&mut self, _from: u32, _to: u32) -> Result<()> {
        Ok(())
    }

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

    /// The same, with the rows one after another in `logits`, `[wanted, vocabulary]`, in place of what it
    /// held: a buffer that is kept costs no fresh memory for each pass.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn forward_into(&mut self, chunks: &[Chunk<'_>], logits: &mut Vec<f32>) -> Result<()> {
        let rows = self.forward(chunks)?;
        logits.clear();
        rows.iter().for_each(|row| logits.extend(row));
        Ok(())
    }

    /// Returns when the device has finished all that was queued.
    fn synchronize(&self) -> Result<()>;
}

/// What to say where there are not even addresses, or no memory on the device, for so many pages.
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

/// Whether a chunk of a model with paged memory comes with the pages it needs. `pages`: how many
/// the model has.
///
/// # Errors
/// Exit code 100.
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
