//! Models in one GGUF file: memory-mapped, checked, and read tensor by tensor.

mod header;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use memmap2::Mmap;

use self::header::HeaderError;
use crate::engine::model::ModelSpec;
use crate::error::{Context, Error, Exit, Result};

const FETCH_AGAIN: &str =
    "delete the file and fetch it again, or give another one with MODEL=/path/file.gguf";

/// A GGUF file's metadata: tokenizer, chat template, hyperparameters.
pub(crate) type Metadata = HashMap<String, Value>;

/// An open GGUF file whose header has been read and whose tensors are all there.
pub(crate) struct GgufFile {
    path: PathBuf,
    map: Mmap,
    content: Content,
}

impl GgufFile {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// Exit code 3, with path and hint: no file, not a GGUF, cut short, corrupt, or with a tensor
    /// type that candle does not have.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).or_exit(Exit::Preflight, || format!("`{}`", path.display()))?;
        // SAFETY: the map is read-only, and this program never writes a model file in place (a
        // fetched one is written elsewhere and renamed). Another process that shortens the file
        // while it is mapped would end this one by SIGBUS, as with any program that maps its
        // weights; it cannot make Rust see a changed length.
        let map = unsafe { Mmap::map(&file) }
            .or_exit(Exit::Preflight, || format!("`{}`", path.display()))?;
        Self::from_map(path.to_owned(), map)
    }

    fn from_map(path: PathBuf, map: Mmap) -> Result<Self> {
        let fail = |what: String| {
            Error::preflight(format!("`{}` {what}", path.display())).hint(FETCH_AGAIN)
        };
        let content = header::parse(&map).map_err(|error| match &error {
            HeaderError::TensorType { .. } => {
                Error::preflight(format!("`{}` {error}", path.display())).hint(
                    "take the model in another quantisation, such as Q4_0, Q4_K_M, Q8_0 or F16",
                )
            }
            _ => fail(error.to_string()),
        })?;
        if let Some(missing) = header::missing_data(&content, map.len() as u64) {
            return Err(fail(format!(
                "is cut short: {} bytes are missing to the end of tensor `{}` ({} of {} tensors are not whole)",
                missing.bytes,
                missing.last,
                missing.tensors,
                content.tensor_infos.len(),
            )));
        }
        Ok(Self { path, map, content })
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Tokenizer, chat template, hyperparameters.
    pub(crate) fn metadata(&self) -> &Metadata {
        &self.content.metadata
    }

    /// The metadata, without the weights.
    pub(crate) fn into_metadata(self) -> Metadata {
        self.content.metadata
    }

    /// The header once more and a reader over the file, as candle-transformers' constructors want
    /// them (they consume the header).
    pub(crate) fn for_candle(&self) -> Result<(Content, Cursor<&[u8]>)> {
        let content = header::parse(&self.map).or_exit(Exit::Preflight, || {
            format!("failed to read `{}`", self.path.display())
        })?;
        Ok((content, Cursor::new(&self.map)))
    }

    /// `general.architecture`.
    pub(crate) fn architecture(&self) -> Result<&str> {
        match self.metadata().get("general.architecture") {
            Some(Value::String(name)) => Ok(name),
            _ => Err(self.lacks("general.architecture")),
        }
    }

    /// The names of all tensors, in no order.
    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.content.tensor_infos.keys().map(String::as_str)
    }

    /// A tensor's shape, outermost dimension first, if it is there.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        let info = self.content.tensor_infos.get(name)?;
        Some(info.shape.dims())
    }

    /// What most of the layers' weights are stored as: `Q4_1`, `Q4K`.
    pub(crate) fn weight_type(&self) -> String {
        let mut elements: HashMap<String, usize> = HashMap::new();
        for (name, info) in &self.content.tensor_infos {
            if name.starts_with("blk.") {
                *elements
                    .entry(format!("{:?}", info.ggml_dtype))
                    .or_default() += info.shape.elem_count();
            }
        }
        let most = elements
            .into_iter()
            .max_by(|(name, count), (other_name, other)| {
                count.cmp(other).then(other_name.cmp(name))
            });
        most.map_or_else(|| "no weights".to_owned(), |(name, _)| name)
    }

    /// Reads a tensor to the device, as it is stored.
    ///
    /// # Errors
    /// There is none of that name, or the device has no room.
    pub(crate) fn tensor(&self, name: &str, device: &Device) -> Result<QTensor> {
        if self.shape(name).is_none() {
            return Err(Error::preflight(format!(
                "`{}` has no tensor `{name}`",
                self.path.display()
            ))
            .hint(FETCH_AGAIN));
        }
        self.content
            .tensor(&mut Cursor::new(&self.map), name, device)
            .or_exit(Exit::Preflight, || {
                format!(
                    "failed to read tensor `{name}` of `{}`",
                    self.path.display()
                )
            })
    }

    /// A tensor as it is stored: its type, its shape (outermost dimension first), and its bytes in the
    /// mapped file. `None` where there is none of that name.
    pub(crate) fn stored(&self, name: &str) -> Option<(GgmlDType, &[usize], &[u8])> {
        let info = self.content.tensor_infos.get(name)?;
        let elements = info.shape.elem_count();
        let length = elements / info.ggml_dtype.block_size() * info.ggml_dtype.type_size();
        let start = usize::try_from(self.content.tensor_data_offset + info.offset).ok()?;
        let bytes = self.map.get(start..start.checked_add(length)?)?;
        Some((info.ggml_dtype, info.shape.dims(), bytes))
    }

    /// Says that a tensor's bytes will not be read again, so that they need not stay in this process's
    /// memory; if they are, they come from the file again.
    pub(crate) fn release(&self, bytes: &[u8]) {
        #[cfg(target_os = "linux")]
        if let Some(start) = bytes
            .as_ptr()
            .addr()
            .checked_sub(self.map.as_ptr().addr())
            .filter(|start| start + bytes.len() <= self.map.len())
        {
            // SAFETY: the map is of a file and read-only: what is given up is read from the file
            // again, with the same bytes.
            let _ = unsafe {
                self.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    start,
                    bytes.len(),
                )
            };
        }
    }

    /// A whole number of the architecture's metadata (`llama.block_count` for `block_count`).
    ///
    /// # Errors
    /// It is there, but is no whole number that fits.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>> {
        let key = format!("{}.{key}", self.architecture()?);
        let Some(value) = self.metadata().get(&key) else {
            return Ok(None);
        };
        let number = match *value {
            Value::U8(number) => Some(u64::from(number)),
            Value::U16(number) => Some(u64::from(number)),
            Value::U32(number) => Some(u64::from(number)),
            Value::U64(number) => Some(number),
            Value::I8(number) => u64::try_from(number).ok(),
            Value::I16(number) => u64::try_from(number).ok(),
            Value::I32(number) => u64::try_from(number).ok(),
            Value::I64(number) => u64::try_from(number).ok(),
            _ => None,
        };
        match number.and_then(|number| usize::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(&key, "is not a whole number")),
        }
    }

    /// A number of the architecture's metadata that need not be whole.
    ///
    /// # Errors
    /// It is there, but is no finite number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        let full_key = format!("{}.{key}", self.architecture()?);
        let number = match self.metadata().get(&full_key) {
            None => return Ok(None),
            Some(Value::F32(number)) => f64::from(*number),
            Some(Value::F64(number)) => *number,
            Some(_) => self.count(key)?.map_or(f64::NAN, |number| number as f64),
        };
        if number.is_finite() {
            Ok(Some(number))
        } else {
            Err(self.wrong(&full_key, "is not a number"))
        }
    }

    /// A text of the architecture's metadata.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        let key = format!("{}.{key}", self.architecture()?);
        match self.metadata().get(&key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(&key, "is not a text")),
        }
    }

    /// The model's sizes. A model that gives each layer its own number of KV heads has the largest
    /// of them here.
    ///
    /// # Errors
    /// A key is missing, or the sizes contradict each other or the embedding's shape.
    pub(crate) fn spec(&self) -> Result<ModelSpec> {
        let architecture = self.architecture()?.to_owned();
        let required = |key: &str| -> Result<usize> {
            match self.count(key)? {
                Some(0) => Err(self.wrong(&format!("{architecture}.{key}"), "is 0")),
                Some(count) => Ok(count),
                None => Err(self.lacks(&format!("{architecture}.{key}"))),
            }
        };
        let hidden = required("embedding_length")?;
        let heads = required("attention.head_count")?;
        let head_size = match self.count("attention.key_length")? {
            Some(size) => size,
            None => hidden / heads,
        };
        let embedding = "token_embd.weight";
        let vocabulary = match self.shape(embedding) {
            Some(&[vocabulary, width]) if width == hidden => vocabulary,
            Some(shape) => {
                return Err(self.wrong(
                    &format!("{architecture}.embedding_length"),
                    &format!("is {hidden}, but tensor `{embedding}` has the shape {shape:?}"),
                ));
            }
            None => {
                return Err(Error::preflight(format!(
                    "`{}` has no tensor `{embedding}`",
                    self.path.display()
                ))
                .hint(FETCH_AGAIN));
            }
        };
        let norm_epsilon = match self.number("attention.layer_norm_rms_epsilon")? {
            Some(epsilon) => epsilon,
            None => self
                .number("attention.layer_norm_epsilon")?
                .ok_or_else(|| {
                    self.lacks(&format!("{architecture}.attention.layer_norm_rms_epsilon"))
                })?,
        };
        let spec = ModelSpec {
            layers: required("block_count")?,
            hidden,
            intermediate: required("feed_forward_length")?,
            heads,
            kv_heads: self.kv_heads()?.unwrap_or(heads),
            head_size,
            vocabulary,
            context_length: required("context_length")?,
            norm_epsilon,
            rope_base: self.number("rope.freq_base")?.unwrap_or(10_000.0) as f32,
            rope_dimensions: self.count("rope.dimension_count")?.unwrap_or(head_size),
            architecture,
        };
        spec.check().map_err(|what| {
            Error::preflight(format!("`{}` {what}", self.path.display())).hint(FETCH_AGAIN)
        })?;
        Ok(spec)
    }

    fn kv_heads(&self) -> Result<Option<usize>> {
        let key = format!("{}.attention.head_count_kv", self.architecture()?);
        let Some(Value::Array(values)) = self.metadata().get(&key) else {
            return self.count("attention.head_count_kv");
        };
        let mut most = 0;
        for value in values {
            let count = match *value {
                Value::U32(count) => Some(count),
                Value::I32(count) => u32::try_from(count).ok(),
                _ => None,
            };
            most = most.max(count.ok_or_else(|| self.wrong(&key, "is not a list of counts"))?);
        }
        Ok(Some(most as usize))
    }

    /// An error that says that a metadata key is not there.
    pub(crate) fn lacks(&self, key: &str) -> Error {
        Error::preflight(format!(
            "`{}` has no metadata key `{key}`",
            self.path.display()
        ))
        .hint("give a GGUF file of a language model with MODEL=/path/file.gguf")
    }

    /// An error that says what is wrong with a metadata key.
    pub(crate) fn wrong(&self, key: &str, what: &str) -> Error {
        Error::preflight(format!(
            "`{}`: metadata key `{key}` {what}",
            self.path.display()
        ))
        .hint(FETCH_AGAIN)
    }
}
