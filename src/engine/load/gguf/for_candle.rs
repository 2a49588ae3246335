//! Adapts a GGUF header to candle-transformers' constructors. These read each key in one type only,
//! have few defaults, and expect one tensor per expert. Files differ in all three.

use std::io::{self, Read, Seek, SeekFrom};

use candle_core::Shape;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value, VersionedMagic};
use memmap2::Mmap;

use super::{GgufFile, Tensor, whole_number};
use crate::engine::model_spec::ModelSpec;
use crate::error::{Error, Result};

/// Tensors with the matrices of all experts, `[experts, rows, columns]`.
const MERGED: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

impl GgufFile {
    /// The adapted header, and a reader over the data of all parts.
    ///
    /// # Errors
    /// Exit code 3 if a merged tensor does not have the number of experts that the metadata gives.
    pub(crate) fn for_candle(&self, spec: &ModelSpec) -> Result<(Content, PartsReader<'_>)> {
        let reader = PartsReader {
            parts: &self.parts,
            position: 0,
        };
        let experts = self.count("expert_count")?.unwrap_or(0);
        let mut tensor_infos = std::collections::HashMap::new();
        for (name, tensor) in &self.tensors {
            let first = reader.start(tensor.part) + tensor.start;
            match merged(name) {
                Some((block, stem)) if experts > 1 => {
                    let (count, size) = expert_shape(tensor)
                        .ok_or_else(|| self.not_merged(name, &tensor.shape, experts))?;
                    if count != experts {
                        return Err(self.not_merged(name, &tensor.shape, experts));
                    }
                    for expert in 0..count {
                        let offset = first + expert as u64 * size;
                        let shape = tensor.shape[1..].to_vec();
                        let name = format!("{block}.{stem}.{expert}.weight");
                        tensor_infos.extend(info(name, tensor, shape, offset));
                    }
                }
                _ => {
                    let shape = tensor.shape.clone();
                    tensor_infos.extend(info(name.clone(), tensor, shape, first));
                }
            }
        }
        let content = Content {
            magic: VersionedMagic::GgufV3,
            metadata: self.metadata_for_candle(spec),
            tensor_infos,
            tensor_data_offset: 0,
        };
        Ok((content, reader))
    }

    fn not_merged(&self, name: &str, shape: &[usize], experts: usize) -> Error {
        Error::preflight(format!(
            "tensor `{name}` of `{}` has the shape {shape:?}, which does not hold {experts} experts",
            self.path().display()
        ))
        .hint(super::OTHER_FILE)
    }

    /// The metadata without the tokenizer's. Integers become `u32` and other numbers `f32`, an
    /// array of equal integers becomes one, and sizes that a file may omit are filled in.
    fn metadata_for_candle(&self, spec: &ModelSpec) -> super::Metadata {
        let plain = |value: &Value| -> Option<Value> {
            match value {
                Value::F64(number) => Some(Value::F32(*number as f32)),
                other => whole_number(other)
                    .and_then(|number| u32::try_from(number).ok())
                    .map(Value::U32),
            }
        };
        let one = |value: &Value| match value {
            Value::Array(values) => match &values[..] {
                [first, rest @ ..] => {
                    let number = whole_number(first)?;
                    let same = rest.iter().all(|other| whole_number(other) == Some(number));
                    same.then(|| plain(first))?
                }
                [] => None,
            },
            other => plain(other),
        };
        let kept = self.metadata().iter();
        let mut metadata: super::Metadata = kept
            .filter(|(key, _)| !key.starts_with("tokenizer."))
            .map(|(key, value)| (key.clone(), one(value).unwrap_or_else(|| value.clone())))
            .collect();
        let sizes = [
            ("attention.head_count_kv", spec.kv_heads),
            ("attention.key_length", spec.head_size),
            ("attention.value_length", spec.head_size),
            ("rope.dimension_count", spec.rope_dimensions),
        ];
        for (key, size) in sizes {
            let key = format!("{}.{key}", spec.architecture);
            metadata.entry(key).or_insert(Value::U32(size as u32));
        }
        // gemma3 has another default, which candle-transformers knows.
        if spec.architecture != "gemma3" {
            let key = format!("{}.rope.freq_base", spec.architecture);
            metadata.entry(key).or_insert(Value::F32(spec.rope_base));
        }
        // Some files store these floats as integers.
        for key in [
            "rope.freq_base",
            "attention.layer_norm_rms_epsilon",
            "attention.layer_norm_epsilon",
        ] {
            let value = metadata.get_mut(&format!("{}.{key}", spec.architecture));
            if let Some(value) = value
                && let Some(number) = whole_number(value)
            {
                *value = Value::F32(number as f32);
            }
        }
        metadata
    }
}

/// The block and the stem of a tensor with merged experts: `blk.0`, `ffn_up`.
fn merged(name: &str) -> Option<(&str, &str)> {
    let (block, stem) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let stem = MERGED.contains(&stem).then(|| stem.strip_suffix("_exps"))?;
    Some((block, stem?))
}

/// Number of experts in a merged tensor, and the bytes of each.
fn expert_shape(tensor: &Tensor) -> Option<(usize, u64)> {
    match tensor.shape[..] {
        // The header parser rejects dimensions of 0, and rows consist of whole blocks.
        [count, _, _] => Some((count, tensor.bytes / count as u64)),
        _ => None,
    }
}

/// An entry of candle's tensor table. `None` for a type that candle does not support.
fn info(
    name: String,
    tensor: &Tensor,
    shape: Vec<usize>,
    offset: u64,
) -> Option<(String, TensorInfo)> {
    let info = TensorInfo {
        ggml_dtype: *tensor.dtype.as_ref().ok()?,
        shape: Shape::from(shape),
        offset,
    };
    Some((name, info))
}

/// Reads the parts of a model as one contiguous file.
pub(crate) struct PartsReader<'a> {
    parts: &'a [Mmap],
    /// Byte offset from the start of the first part.
    position: u64,
}

impl PartsReader<'_> {
    /// Offset of a part.
    fn start(&self, part: usize) -> u64 {
        self.parts[..part].iter().map(|map| map.len() as u64).sum()
    }
}

impl Read for PartsReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut start = self.position;
        for map in self.parts {
            let length = map.len() as u64;
            if start < length {
                // In range: `start` is less than the map's length.
                let bytes = &map[start as usize..];
                let count = bytes.len().min(buffer.len());
                buffer[..count].copy_from_slice(&bytes[..count]);
                self.position += count as u64;
                return Ok(count);
            }
            start -= length;
        }
        Ok(0)
    }
}

impl Seek for PartsReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (from, by) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(by) => (self.position, by),
            SeekFrom::End(by) => (self.start(self.parts.len()), by),
        };
        self.position = from.checked_add_signed(by).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek to a position before the start",
            )
        })?;
        Ok(self.position)
    }
}
