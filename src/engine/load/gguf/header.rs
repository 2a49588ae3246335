//! Parses a GGUF file's header: the metadata and the tensor table.
//!
//! candle has such a parser, too. This one handles bad files differently. It names the place of an
//! error and distinguishes truncated from invalid files. Memory is bounded by the file's size. It
//! cannot panic, while candle's divides by `general.alignment`, which may be 0. A tensor of a type
//! that candle does not support keeps the type's name, so that only code that needs its data has to
//! reject it.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::collections::HashMap;
use std::fmt;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;

use super::Metadata;
use crate::engine::load::foreign;

/// Upper bound on the elements of all metadata arrays together. A vocabulary has three arrays of at
/// most a few hundred thousand elements. In memory an element takes 32 bytes, whatever its size in
/// the file.
const MAX_ARRAY_ELEMENTS: u64 = 8 << 20;
/// Upper bound on a string's bytes. The longest ones are chat templates of some ten thousand bytes,
/// but a sparse file may claim more than fits in memory.
const MAX_STRING: usize = 64 << 20;
/// The format allows nested arrays, but no known file uses them.
const MAX_ARRAY_DEPTH: usize = 4;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// Why a header could not be parsed. Sentence fragments: "`model.gguf` …".
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// The file does not start with the GGUF magic number.
    NotGguf(Vec<u8>),
    /// An unsupported GGUF version or byte order.
    Version(u32),
    /// The file ends before its header does.
    CutShort {
        /// What was being read.
        reading: String,
        /// Number of missing bytes.
        missing: u64,
    },
    /// The header contradicts itself.
    Corrupt(String),
    /// An intact header that violates the format.
    Invalid(String),
}

impl HeaderError {
    /// A hint for the user. Only a file that may be damaged is worth downloading again.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::NotGguf(start) => {
                foreign::recognise(start).map_or(super::GIVE_GGUF, |(_, hint)| hint)
            }
            Self::Version(version) if is_big_endian(*version) => {
                "convert it with `gguf-convert-endian FILE little` (Python package gguf), or use a little-endian file"
            }
            Self::Version(1) => "use a newer file of this model, or convert it again",
            Self::Version(_) => "use a file of GGUF version 3",
            Self::CutShort { .. } | Self::Corrupt(_) => super::FETCH_AGAIN,
            Self::Invalid(_) => super::OTHER_FILE,
        }
    }
}

/// Whether the version is valid when its bytes are swapped.
fn is_big_endian(version: u32) -> bool {
    version != 0 && version.swap_bytes() <= 3
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGguf(start) => match foreign::recognise(start) {
                Some((what, _)) => write!(f, "is not a GGUF file: it {what}"),
                None => write!(
                    f,
                    "is not a GGUF file (it starts with `{}`)",
                    start[..start.len().min(4)].escape_ascii()
                ),
            },
            Self::Version(version) if is_big_endian(*version) => {
                f.write_str("is a big-endian GGUF file, which is not supported")
            }
            Self::Version(version) => {
                write!(
                    f,
                    "is a GGUF file of version {version}; 2 and 3 are supported"
                )
            }
            Self::CutShort { reading, missing } => write!(
                f,
                "is cut short or corrupt: {missing} bytes are missing to read {reading}"
            ),
            Self::Corrupt(why) => write!(f, "is corrupt: {why}"),
            Self::Invalid(why) => write!(f, "is not a valid GGUF file: {why}"),
        }
    }
}

impl std::error::Error for HeaderError {}

/// A parsed header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: HashMap<String, TensorInfo>,
    /// Byte offset of the tensor data in the file.
    pub(super) data_offset: u64,
}

/// An entry of the tensor table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorInfo {
    /// The type, or the name of one that candle does not support.
    pub(super) dtype: Result<GgmlDType, String>,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// Byte offset in the tensor data.
    pub(super) offset: u64,
}

impl TensorInfo {
    /// Length of the data in bytes; `None` if the type is unknown. Cannot overflow:
    /// [`Reader::tensor_info`] has checked that the number of elements fits in an `i64`, and no
    /// block format takes more than 4 bytes per element.
    pub(super) fn bytes(&self) -> Option<u64> {
        let dtype = self.dtype.as_ref().ok()?;
        let elements: usize = self.shape.iter().product();
        let blocks = (elements / dtype.block_size()) as u64;
        Some(blocks.saturating_mul(dtype.type_size() as u64))
    }
}

/// The tensors whose data lies beyond the end of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// Number of incomplete tensors.
    pub(super) tensors: usize,
    /// The incomplete tensor that ends last.
    pub(super) last: String,
    /// Missing bytes up to its end.
    pub(super) bytes: u64,
}

/// Parses the header at the start of `bytes`, the whole file.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
    let mut reader = Reader::new(bytes);
    let (tensor_count, metadata) = reader.metadata()?;
    let mut tensors = HashMap::new();
    for index in 0..tensor_count {
        let name = reader.string(|| format!("the name of tensor {index} of {tensor_count}"))?;
        let info = reader.tensor_info(&name)?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(HeaderError::Corrupt(format!(
                "tensor `{name}` appears twice"
            )));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::U32(value)) if value.is_power_of_two() => u64::from(*value),
        Some(Value::U32(value)) => {
            return Err(HeaderError::Corrupt(format!(
                "`general.alignment` is {value}, not a power of two"
            )));
        }
        Some(other) => {
            let found = format!("{:?}", other.value_type()).to_lowercase();
            return Err(HeaderError::Invalid(format!(
                "`general.alignment` is of type {found}, not u32"
            )));
        }
    };
    Ok(Header {
        metadata,
        tensors,
        data_offset: (reader.position as u64).next_multiple_of(alignment),
    })
}

/// Parses the metadata only, ignoring errors in the tensor table.
pub(super) fn parse_metadata(bytes: &[u8]) -> Result<Metadata, HeaderError> {
    Reader::new(bytes).metadata().map(|(_, metadata)| metadata)
}

/// The tensors whose data a file of `file_size` bytes does not contain. Tensors of an unknown type
/// count as empty.
pub(super) fn missing_data(header: &Header, file_size: u64) -> Option<Missing> {
    let mut missing: Option<Missing> = None;
    let mut tensors = 0;
    for (name, info) in &header.tensors {
        let end = header
            .data_offset
            .saturating_add(info.offset)
            .saturating_add(info.bytes().unwrap_or(0));
        let Some(bytes) = end.checked_sub(file_size).filter(|&bytes| bytes > 0) else {
            continue;
        };
        tensors += 1;
        if missing.as_ref().is_none_or(|other| bytes > other.bytes) {
            missing = Some(Missing {
                tensors: 0,
                last: name.clone(),
                bytes,
            });
        }
    }
    missing.map(|missing| Missing { tensors, ..missing })
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
    array_elements: u64,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            position: 0,
            array_elements: 0,
        }
    }

    /// Parses the start of the file up to the tensor table. Returns the number of tensors and the
    /// metadata.
    fn metadata(&mut self) -> Result<(u64, Metadata), HeaderError> {
        let magic = self.array::<4>("the magic number")?;
        if &magic != b"GGUF" {
            let start = &self.bytes[..self.bytes.len().min(32)];
            return Err(HeaderError::NotGguf(start.to_vec()));
        }
        match self.u32("the version")? {
            2 | 3 => {}
            other => return Err(HeaderError::Version(other)),
        }
        let tensor_count = self.u64("the number of tensors")?;
        let metadata_count = self.u64("the number of metadata keys")?;
        let mut metadata = HashMap::new();
        for index in 0..metadata_count {
            let key = self.string(|| format!("metadata key {index} of {metadata_count}"))?;
            let value_type = self.u32(&format!("the type of metadata key `{key}`"))?;
            let value = self.value(value_type, &key, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(HeaderError::Corrupt(format!(
                    "metadata key `{key}` appears twice"
                )));
            }
        }
        Ok((tensor_count, metadata))
    }

    fn take(
        &mut self,
        length: u64,
        reading: impl FnOnce() -> String,
    ) -> Result<&'a [u8], HeaderError> {
        let left = (self.bytes.len() - self.position) as u64;
        if length > left {
            return Err(HeaderError::CutShort {
                reading: reading(),
                missing: length - left,
            });
        }
        let start = self.position;
        // Fits in a `usize`: `length` is at most `left`.
        self.position += length as usize;
        Ok(&self.bytes[start..self.position])
    }

    fn array<const N: usize>(&mut self, reading: &str) -> Result<[u8; N], HeaderError> {
        let bytes = self.take(N as u64, || reading.to_owned())?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    fn u32(&mut self, reading: &str) -> Result<u32, HeaderError> {
        self.array(reading).map(u32::from_le_bytes)
    }

    fn u64(&mut self, reading: &str) -> Result<u64, HeaderError> {
        self.array(reading).map(u64::from_le_bytes)
    }

    fn string(&mut self, reading: impl Fn() -> String) -> Result<String, HeaderError> {
        let length = self.take(8, &reading)?;
        let mut array = [0; 8];
        array.copy_from_slice(length);
        let bytes = self.take(u64::from_le_bytes(array), &reading)?;
        if bytes.len() > MAX_STRING {
            return Err(HeaderError::Corrupt(format!(
                "{} is a text of {} bytes",
                reading(),
                bytes.len()
            )));
        }
        // Some writers end strings with a NUL, and some vocabularies have tokens that are not
        // UTF-8.
        let end = bytes
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn value(&mut self, value_type: u32, key: &str, depth: usize) -> Result<Value, HeaderError> {
        Ok(match value_type {
            0 => Value::U8(u8::from_le_bytes(self.array(key)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(key)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(key)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            // Any nonzero byte is true, as in C: some writers use 255.
            7 => Value::Bool(self.array::<1>(key)? != [0]),
            8 => Value::String(self.string(|| format!("metadata key `{key}`"))?),
            9 => {
                let element_type = self.u32(key)?;
                let length = self.u64(key)?;
                self.array_elements = self.array_elements.saturating_add(length);
                if self.array_elements > MAX_ARRAY_ELEMENTS || depth == MAX_ARRAY_DEPTH {
                    return Err(HeaderError::Corrupt(format!(
                        "the array of metadata key `{key}` is too large ({length} elements)"
                    )));
                }
                // Nothing is preallocated from `length`: each element takes at least one byte of
                // the file.
                let mut values = Vec::new();
                for _ in 0..length {
                    values.try_reserve(1).map_err(|_| {
                        HeaderError::Corrupt(format!(
                            "not enough memory for the {length} elements of metadata key `{key}`"
                        ))
                    })?;
                    values.push(self.value(element_type, key, depth + 1)?);
                }
                Value::Array(values)
            }
            10 => Value::U64(u64::from_le_bytes(self.array(key)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            other => {
                return Err(HeaderError::Corrupt(format!(
                    "metadata key `{key}` has the unknown type {other}"
                )));
            }
        })
    }

    fn tensor_info(&mut self, name: &str) -> Result<TensorInfo, HeaderError> {
        let corrupt = |what: String| Err(HeaderError::Corrupt(format!("tensor `{name}` {what}")));
        let rank = self.u32(name)?;
        if !(1..=MAX_DIMENSIONS).contains(&rank) {
            return corrupt(format!("has {rank} dimensions"));
        }
        let mut dimensions = Vec::with_capacity(rank as usize);
        let mut elements: u64 = 1;
        for _ in 0..rank {
            let dimension = self.u64(name)?;
            elements = match elements.checked_mul(dimension) {
                Some(elements) if dimension > 0 && elements <= i64::MAX as u64 => elements,
                _ => return corrupt(format!("has a dimension of {dimension}")),
            };
            // At most `elements`, which fits in 63 bits.
            dimensions.push(dimension as usize);
        }
        // GGUF lists the contiguous dimension first, candle last.
        dimensions.reverse();
        let dtype = ggml_dtype(self.u32(name)?);
        let offset = self.u64(name)?;
        let row = dimensions.last().copied().unwrap_or(0);
        if let Ok(dtype) = &dtype
            && !row.is_multiple_of(dtype.block_size())
        {
            return corrupt(format!(
                "has rows of {row} elements, which {dtype:?} cannot hold"
            ));
        }
        Ok(TensorInfo {
            dtype,
            shape: dimensions,
            offset,
        })
    }
}

/// The tensor type with this number, or its name if candle does not support it. Numbers as in
/// [`ggml.h`](https://github.com/ggml-org/ggml/blob/master/include/ggml.h).
fn ggml_dtype(number: u32) -> Result<GgmlDType, String> {
    let unsupported = match number {
        0 => return Ok(GgmlDType::F32),
        1 => return Ok(GgmlDType::F16),
        2 => return Ok(GgmlDType::Q4_0),
        3 => return Ok(GgmlDType::Q4_1),
        6 => return Ok(GgmlDType::Q5_0),
        7 => return Ok(GgmlDType::Q5_1),
        8 => return Ok(GgmlDType::Q8_0),
        10 => return Ok(GgmlDType::Q2K),
        11 => return Ok(GgmlDType::Q3K),
        12 => return Ok(GgmlDType::Q4K),
        13 => return Ok(GgmlDType::Q5K),
        14 => return Ok(GgmlDType::Q6K),
        30 => return Ok(GgmlDType::BF16),
        // Intermediate formats of activations, never of weights.
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        other => return Err(format!("number {other}")),
    };
    Err(unsupported.to_owned())
}
