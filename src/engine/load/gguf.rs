//! Models in GGUF files: memory-mapped, validated, and read tensor by tensor. A model can be split
//! over several files ([`split`]).

mod for_candle;
#[cfg(any(test, fuzzing))]
pub(in crate::engine) mod fuzzing;
mod header;
mod keys;
pub(crate) mod split;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use memmap2::Mmap;

use self::header::{Header, HeaderError};
use crate::engine::memory;
use crate::error::{Context, Error, Exit, Result};

/// Hint for a file that may be damaged.
const FETCH_AGAIN: &str =
    "delete the file and fetch it again, or give another one with MODEL=/path/file.gguf";
/// Hint for an intact file that cannot be used.
const OTHER_FILE: &str = "use another file of this model, or convert it again";
/// Hint for a file without a model.
const GIVE_GGUF: &str = "give a GGUF file of a language model with MODEL=/path/file.gguf";
/// Hint for weights of an unsupported type.
const OTHER_QUANTISATION: &str =
    "use another quantization of the model, such as Q4_0, Q4_K_M, Q8_0 or F16";

/// A GGUF file's metadata: tokenizer, chat template, hyperparameters.
pub(crate) type Metadata = HashMap<String, Value>;

/// An open model with parsed headers, whose tensors are all complete.
pub(crate) struct GgufFile {
    /// Path of the first part.
    path: PathBuf,
    metadata: Metadata,
    parts: Vec<Mmap>,
    tensors: HashMap<String, Tensor>,
}

/// Location of a tensor.
struct Tensor {
    /// The type, or the name of an unsupported one.
    dtype: Result<GgmlDType, String>,
    /// Outermost dimension first.
    shape: Vec<usize>,
    part: usize,
    /// Byte offset in the part's file.
    start: u64,
    /// Length in bytes; 0 if the type is not supported.
    bytes: u64,
}

impl GgufFile {
    /// Maps a file, and the other parts if the model is split, and parses the headers.
    ///
    /// # Errors
    /// Exit code 3, with path and hint: file missing, not a GGUF, truncated, corrupt, or a part is
    /// missing. Tensors of an unsupported type are not an error here: see [`Self::check_types`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (map, header) = read(path)?;
        let Some((number, count)) = split::position(path, &header.metadata)? else {
            let mut file = Self::of(path.to_owned(), header.metadata);
            file.add(path, map, header.tensors, header.data_offset)?;
            return Ok(file);
        };
        let mut given = Some((map, header));
        let mut whole: Option<Self> = None;
        for (index, part) in split::locate(path, (number, count))?.iter().enumerate() {
            let (map, header) = match given.take_if(|_| index + 1 == number) {
                Some(given) => given,
                None => read(part)?,
            };
            let expected = (index + 1, count);
            if split::position(part, &header.metadata)? != Some(expected) {
                return Err(split::mixed(part, expected));
            }
            let file = whole.get_or_insert_with(|| Self::of(part.clone(), header.metadata));
            file.add(part, map, header.tensors, header.data_offset)?;
        }
        let file = whole.ok_or_else(|| split::mixed(path, (number, count)))?;
        let expected = file.metadata.get("split.tensors.count");
        match expected.and_then(whole_number) {
            Some(expected) if expected != file.tensors.len() as u64 => Err(file.wrong(
                "split.tensors.count",
                &format!(
                    "is {expected}, but the parts hold {} tensors",
                    file.tensors.len()
                ),
            )),
            _ => Ok(file),
        }
    }

    fn of(path: PathBuf, metadata: Metadata) -> Self {
        Self {
            path,
            metadata,
            parts: Vec::new(),
            tensors: HashMap::new(),
        }
    }

    fn add(
        &mut self,
        path: &Path,
        map: Mmap,
        tensors: HashMap<String, header::TensorInfo>,
        data_offset: u64,
    ) -> Result<()> {
        for (name, info) in tensors {
            let tensor = Tensor {
                part: self.parts.len(),
                start: data_offset.saturating_add(info.offset),
                bytes: info.bytes().unwrap_or(0),
                dtype: info.dtype,
                shape: info.shape,
            };
            if self.tensors.contains_key(&name) {
                return Err(Error::preflight(format!(
                    "`{}` has the tensor `{name}`, which another part of the model has as well",
                    path.display()
                ))
                .hint(OTHER_FILE));
            }
            self.tensors.insert(name, tensor);
        }
        self.parts.push(map);
        Ok(())
    }

    /// The file's path; the first part of a split model.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Number of files of the model.
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Tokenizer, chat template, hyperparameters.
    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Takes the metadata and unmaps the weights.
    pub(crate) fn into_metadata(self) -> Metadata {
        self.metadata
    }

    /// Names of all tensors, in no particular order.
    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's shape, outermost dimension first.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| &tensor.shape[..])
    }

    /// Whether the output head shares the embedding's weights.
    pub(crate) fn output_is_tied(&self) -> bool {
        self.shape("output.weight").is_none()
    }

    /// The first matrix, by name, whose type `knows` does not accept, and its type.
    pub(crate) fn matrix_of_other_type(
        &self,
        knows: impl Fn(GgmlDType) -> bool,
    ) -> Option<(&str, String)> {
        let others = self.tensors.iter().filter_map(|(name, tensor)| {
            let (matrix, dtype) = (tensor.shape.len() > 1, tensor.dtype.as_ref().ok()?);
            (matrix && !knows(*dtype)).then(|| (name.as_str(), format!("{dtype:?}")))
        });
        others.min()
    }

    /// Checks that all tensors can be read.
    ///
    /// # Errors
    /// Exit code 3 if a tensor has a type that candle does not support.
    pub(crate) fn check_types(&self) -> Result<()> {
        let others = self
            .tensors
            .iter()
            .filter(|(_, tensor)| tensor.dtype.is_err());
        match others.map(|(name, _)| name).min() {
            None => Ok(()),
            Some(name) => Err(self.unsupported(name)),
        }
    }

    fn unsupported(&self, name: &str) -> Error {
        let tensor = self.tensors.get(name);
        let dtype = tensor.and_then(|tensor| tensor.dtype.as_ref().err());
        Error::preflight(format!(
            "`{}` has tensor `{name}` of type {}, which is not supported",
            self.path.display(),
            dtype.map_or("unknown", String::as_str),
        ))
        .hint(OTHER_QUANTISATION)
    }

    /// The type of most weights in the layers, such as `Q4_1` or `Q4K`.
    pub(crate) fn weight_type(&self) -> String {
        let mut elements: HashMap<String, usize> = HashMap::new();
        for (name, tensor) in &self.tensors {
            if name.starts_with("blk.") {
                let dtype = match &tensor.dtype {
                    Ok(dtype) => format!("{dtype:?}"),
                    Err(name) => name.clone(),
                };
                *elements.entry(dtype).or_default() += tensor.shape.iter().product::<usize>();
            }
        }
        let most = elements
            .into_iter()
            .max_by(|(name, count), (other_name, other)| {
                count.cmp(other).then(other_name.cmp(name))
            });
        most.map_or_else(|| "no weights".to_owned(), |(name, _)| name)
    }

    /// Copies a tensor without converting its type.
    ///
    /// # Errors
    /// If there is no such tensor, its type is not supported, or memory is short.
    pub(crate) fn tensor(&self, name: &str) -> Result<QTensor> {
        let Some((dtype, shape, bytes)) = self.stored(name) else {
            return Err(match self.shape(name) {
                Some(_) => self.unsupported(name),
                None => {
                    Error::preflight(format!("`{}` has no tensor `{name}`", self.path.display()))
                        .hint(OTHER_FILE)
                }
            });
        };
        // A copy, since the data in the file may not be aligned as the type requires.
        memory::probe(bytes.len()).or_exit(Exit::Preflight, || {
            format!(
                "not enough memory for tensor `{name}` of `{}`",
                self.path.display()
            )
        })?;
        let bytes = bytes.to_vec();
        qtensor_from_ggml(dtype, &bytes, shape.to_vec(), &Device::Cpu).or_exit(
            Exit::Preflight,
            || {
                format!(
                    "failed to read tensor `{name}` of `{}`",
                    self.path.display()
                )
            },
        )
    }

    /// A tensor's type, shape (outermost dimension first) and bytes in the mapped file. `None` if
    /// there is no such tensor, or its type is not supported.
    pub(crate) fn stored(&self, name: &str) -> Option<(GgmlDType, &[usize], &[u8])> {
        let tensor = self.tensors.get(name)?;
        let dtype = *tensor.dtype.as_ref().ok()?;
        let start = usize::try_from(tensor.start).ok()?;
        let end = start.checked_add(usize::try_from(tensor.bytes).ok()?)?;
        let bytes = self.parts.get(tensor.part)?.get(start..end)?;
        Some((dtype, &tensor.shape, bytes))
    }

    /// Advises the kernel that a tensor's bytes will not be read again, so that they do not occupy
    /// this process's memory. Reading them again would load them from the file.
    pub(crate) fn release(&self, bytes: &[u8]) {
        #[cfg(target_os = "linux")]
        for map in &self.parts {
            let start = bytes.as_ptr().addr().checked_sub(map.as_ptr().addr());
            let Some(start) = start.filter(|start| start + bytes.len() <= map.len()) else {
                continue;
            };
            // SAFETY: the map is read-only and backed by a file: discarded pages are read from the
            // file again, with the same bytes.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, bytes.len())
            };
        }
    }

    /// The error for a missing metadata key.
    pub(crate) fn lacks(&self, key: &str) -> Error {
        let what = match self.metadata.get("general.type") {
            // An adapter, a projector, an importance matrix.
            Some(Value::String(kind)) if kind != "model" => {
                format!("; it is not a model but `{kind}` (general.type)")
            }
            _ => String::new(),
        };
        Error::preflight(format!(
            "`{}` has no metadata key `{key}`{what}",
            self.path.display()
        ))
        .hint(match key {
            "general.architecture" => GIVE_GGUF,
            _ => OTHER_FILE,
        })
    }

    /// The error for a model that candle-transformers would compute differently.
    pub(crate) fn differs(&self, what: String) -> Error {
        Error::preflight(format!(
            "`{}` {what}, which candle-transformers does not support",
            self.path.display()
        ))
    }

    /// The error for an invalid metadata key.
    pub(crate) fn wrong(&self, key: &str, what: &str) -> Error {
        Error::preflight(format!(
            "`{}`: metadata key `{key}` {what}",
            self.path.display()
        ))
        .hint(OTHER_FILE)
    }
}

/// The metadata of a GGUF file; for a part of a split model, that of the first part. Does not check
/// the weights: they may be of any type, or missing.
///
/// # Errors
/// Exit code 3, with path and hint: file missing, not a GGUF, corrupt, or the first part is
/// missing.
pub(crate) fn metadata(path: &Path) -> Result<Metadata> {
    let parse = |path: &Path| {
        let map = map(path)?;
        header::parse_metadata(&map).map_err(|error| refused(path, &error))
    };
    let metadata = parse(path)?;
    let later = split::position(path, &metadata)?.filter(|(number, _)| *number > 1);
    match later.and_then(|_| split::part_paths(path)) {
        Some(parts) => parse(&parts[0]),
        None => Ok(metadata),
    }
}

/// Maps a file and parses its header.
fn read(path: &Path) -> Result<(Mmap, Header)> {
    let map = map(path)?;
    let header = header::parse(&map).map_err(|error| refused(path, &error))?;
    if let Some(missing) = header::missing_data(&header, map.len() as u64) {
        return Err(Error::preflight(format!(
            "`{}` is cut short: {} bytes are missing to the end of tensor `{}` ({} of {} tensors are incomplete)",
            path.display(),
            missing.bytes,
            missing.last,
            missing.tensors,
            header.tensors.len(),
        ))
        .hint(FETCH_AGAIN));
    }
    Ok((map, header))
}

fn map(path: &Path) -> Result<Mmap> {
    let failed = |source: std::io::Error| {
        Error::preflight(format!("failed to open `{}`", path.display()))
            .caused_by(source)
            .hint("the file must be readable, on a disk or file server that works")
    };
    let file = File::open(path).map_err(failed)?;
    // SAFETY: the map is read-only, and this program never writes a model file in place (a fetched
    // one is written elsewhere and renamed). Another process that shortens the file while it is
    // mapped would kill this one with SIGBUS, as with any program that maps its weights; it cannot
    // make Rust see a changed length.
    unsafe { Mmap::map(&file) }.map_err(failed)
}

fn refused(path: &Path, error: &HeaderError) -> Error {
    Error::preflight(format!("`{}` {error}", path.display())).hint(error.hint())
}

/// An integer of any width, if it is not negative.
fn whole_number(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(number) => Some(u64::from(number)),
        Value::U16(number) => Some(u64::from(number)),
        Value::U32(number) => Some(u64::from(number)),
        Value::U64(number) => Some(number),
        Value::I8(number) => u64::try_from(number).ok(),
        Value::I16(number) => u64::try_from(number).ok(),
        Value::I32(number) => u64::try_from(number).ok(),
        Value::I64(number) => u64::try_from(number).ok(),
        _ => None,
    }
}
