//! Where the weights of a described model come from: a GGUF file or a folder with safetensors, behind one
//! trait. Tensors have GGUF's names (`blk.0.attn_q`). Both forward passes, `native` and `candle`, load
//! through this.

use std::collections::HashSet;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};

use super::weights::dense_type;
use crate::engine::decoder::{self, Decoder, Divisors, MatrixTensor, Presence, Rope, VectorTensor};
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::error::{Context, Error, Exit, Result};

/// A matrix `[outputs, inputs]` as stored.
pub(super) enum Matrix {
    /// From a GGUF file, quantized or not.
    Stored(QTensor),
    /// From safetensors: f32, f16 or bf16.
    Dense(Tensor),
}

impl Matrix {
    /// Converts to a dense matrix in f32.
    pub(super) fn in_f32(self) -> candle_core::Result<Tensor> {
        match self {
            Self::Stored(matrix) => matrix.dequantize(&Device::Cpu),
            Self::Dense(matrix) => matrix.to_dtype(DType::F32),
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Stored(matrix) => matrix.shape().dims(),
            Self::Dense(matrix) => matrix.dims(),
        }
    }

    /// Reverts the row order of query and key matrices in GGUF files of the architecture `llama`.
    /// There, paired dimensions of a head are adjacent (`0, h, 1, h + 1, …` for a head of size
    /// `2h`).
    fn restore_rows(self, heads: usize) -> candle_core::Result<Self> {
        match self {
            Self::Dense(matrix) => Ok(Self::Dense(restore_rows(&matrix, heads)?)),
            Self::Stored(matrix) => {
                let (rows, columns) = matrix.shape().dims2()?;
                let data = matrix.data()?;
                let (row_bytes, head_rows) = (data.len() / rows, rows / heads);
                let mut bytes = Vec::with_capacity(data.len());
                for row in 0..rows {
                    let from = stored_row(row, head_rows);
                    bytes.extend_from_slice(&data[from * row_bytes..(from + 1) * row_bytes]);
                }
                let storage = QStorage::from_data(bytes.into(), &Device::Cpu, matrix.dtype())?;
                Ok(Self::Stored(QTensor::new(storage, (rows, columns))?))
            }
        }
    }
}

/// The stored row that becomes row `row` in [`Matrix::restore_rows`], with `head_rows` rows per
/// head.
pub(super) fn stored_row(row: usize, head_rows: usize) -> usize {
    let (head, place) = (row / head_rows, row % head_rows);
    let half = head_rows / 2;
    head * head_rows + place % half * 2 + place / half
}

/// Like [`Matrix::restore_rows`], for a dense matrix or bias.
fn restore_rows(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let half = tensor.dim(0)? / heads / 2;
    tensor
        .reshape((heads, half, 2, tensor.elem_count() / (heads * half * 2)))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape(tensor.shape())
}

pub(super) trait Weights: Sync {
    /// The matrix of this name (`blk.0.attn_q`) and shape.
    fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<Matrix>;

    /// Calls `read` with the type and the bytes (row by row) of the stored matrix. Returns `false`,
    /// without calling it, if the matrix is not available without a copy.
    fn read_stored(
        &self,
        _name: &str,
        _shape: (usize, usize),
        _read: &mut dyn FnMut(GgmlDType, &[u8]),
    ) -> Result<bool> {
        Ok(false)
    }

    /// The vector of this name (`blk.0.attn_q.bias`) in f32, if there is one.
    fn vector(&self, name: &str, length: usize) -> Result<Option<Tensor>>;

    /// The name of this tensor in the file.
    fn file_name(&self, name: &str) -> String;

    /// Describes a tensor, given its name in the file, for messages: "tensor `…` of `…`".
    fn place(&self, file_name: &str) -> String;
}

/// A matrix, its rows in the order of the computation.
pub(super) fn ordered_matrix(weights: &dyn Weights, tensor: &MatrixTensor) -> Result<Matrix> {
    let (name, shape) = (&tensor.name, tensor.shape);
    let Some(heads) = tensor.interleaved_heads else {
        return weights.matrix(name, shape);
    };
    weights
        .matrix(name, shape)?
        .restore_rows(heads)
        .or_exit(Exit::Preflight, || {
            format!("failed to load {}", weights.place(&weights.file_name(name)))
        })
}

/// A matrix's bias, in the order of [`ordered_matrix`]; `None` if the file has none.
pub(super) fn ordered_bias(weights: &dyn Weights, tensor: &MatrixTensor) -> Result<Option<Tensor>> {
    if tensor.bias == Presence::Absent {
        return Ok(None);
    }
    let name = tensor.bias_name();
    let bias = weights.vector(&name, tensor.shape.0)?;
    match (bias, tensor.interleaved_heads) {
        (Some(bias), Some(heads)) => {
            restore_rows(&bias, heads)
                .map(Some)
                .or_exit(Exit::Preflight, || {
                    format!(
                        "failed to load {}",
                        weights.place(&weights.file_name(&name))
                    )
                })
        }
        (bias, _) => Ok(bias),
    }
}

/// A vector that the model requires.
pub(super) fn required_vector(weights: &dyn Weights, tensor: &VectorTensor) -> Result<Tensor> {
    let vector = weights.vector(&tensor.name, tensor.length)?;
    vector.ok_or_else(|| {
        let place = weights.place(&weights.file_name(&tensor.name));
        Error::preflight(format!("{place} is missing"))
    })
}

/// What each of the `head_size / 2` pairs of a head turns by from one position to the next, in
/// radians; 0 for the pairs that are not rotated.
///
/// # Errors
/// Exit code 3 if the divisors are in a tensor that is not `[dimensions / 2]` positive numbers.
pub(super) fn frequencies(
    weights: &dyn Weights,
    rope: &Rope,
    head_size: usize,
) -> Result<Vec<f32>> {
    Ok(match &rope.divisors {
        Divisors::None => rope.frequencies(head_size, None),
        Divisors::Given(divisors) => rope.frequencies(head_size, Some(divisors)),
        Divisors::Tensor { name, factor } => {
            let divisors = stored_divisors(weights, name, rope.dimensions / 2, *factor)?;
            rope.frequencies(head_size, Some(&divisors))
        }
    })
}

fn stored_divisors(
    weights: &dyn Weights,
    name: &str,
    pairs: usize,
    factor: f32,
) -> Result<Vec<f32>> {
    let place = || weights.place(&weights.file_name(name));
    let tensor = VectorTensor {
        name: name.to_owned(),
        length: pairs,
    };
    let divisors = required_vector(weights, &tensor)?;
    let divisors: Vec<f32> = divisors
        .to_vec1()
        .or_exit(Exit::Preflight, || format!("failed to load {}", place()))?;
    if divisors
        .iter()
        .any(|divisor| !divisor.is_finite() || *divisor <= 0.0)
    {
        return Err(Error::preflight(format!(
            "{} contains a divisor that is not a positive number",
            place()
        )));
    }
    Ok(divisors.iter().map(|divisor| divisor * factor).collect())
}

fn wrong_shape(place: String, found: &[usize], expected: &[usize]) -> Error {
    Error::preflight(format!(
        "{place} has the shape {found:?}, not {expected:?} as the model's sizes require"
    ))
}

impl Weights for GgufFile {
    fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<Matrix> {
        let name = format!("{name}.weight");
        let matrix = Matrix::Stored(self.tensor(&name)?);
        match matrix.shape() {
            found if found == [shape.0, shape.1] => Ok(matrix),
            found => Err(wrong_shape(self.place(&name), found, &[shape.0, shape.1])),
        }
    }

    fn read_stored(
        &self,
        name: &str,
        (rows, columns): (usize, usize),
        read: &mut dyn FnMut(GgmlDType, &[u8]),
    ) -> Result<bool> {
        let name = format!("{name}.weight");
        let Some((dtype, shape, bytes)) = self.stored(&name) else {
            return Ok(false);
        };
        if shape != [rows, columns] {
            return Err(wrong_shape(self.place(&name), shape, &[rows, columns]));
        }
        read(dtype, bytes);
        self.release(bytes);
        Ok(true)
    }

    fn vector(&self, name: &str, length: usize) -> Result<Option<Tensor>> {
        match self.shape(name) {
            None => Ok(None),
            Some(found) if found == [length] => self
                .tensor(name)?
                .dequantize(&Device::Cpu)
                .map(Some)
                .or_exit(Exit::Preflight, || {
                    format!("failed to load {}", self.place(name))
                }),
            Some(found) => Err(wrong_shape(self.place(name), found, &[length])),
        }
    }

    fn file_name(&self, name: &str) -> String {
        name.to_owned()
    }

    fn place(&self, file_name: &str) -> String {
        format!("tensor `{file_name}` of `{}`", self.path().display())
    }
}

impl Weights for SafetensorsFolder {
    fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<Matrix> {
        let name = hub_name(&format!("{name}.weight"));
        let Some(matrix) = self.tensor(&name)? else {
            return Err(Error::preflight(format!(
                "{} is missing",
                self.place(&name)
            )));
        };
        match matrix.dims() {
            found if found == [shape.0, shape.1] => Ok(Matrix::Dense(matrix)),
            found => Err(wrong_shape(self.place(&name), found, &[shape.0, shape.1])),
        }
    }

    fn read_stored(
        &self,
        name: &str,
        (rows, columns): (usize, usize),
        read: &mut dyn FnMut(GgmlDType, &[u8]),
    ) -> Result<bool> {
        let name = hub_name(&format!("{name}.weight"));
        let Some((dtype, shape, bytes)) = self.stored(&name) else {
            return Ok(false);
        };
        let Some(dtype) = dense_type(dtype) else {
            return Ok(false);
        };
        if shape != [rows, columns] {
            return Err(wrong_shape(self.place(&name), &shape, &[rows, columns]));
        }
        read(dtype, bytes);
        Ok(true)
    }

    fn vector(&self, name: &str, length: usize) -> Result<Option<Tensor>> {
        let name = hub_name(name);
        let Some(vector) = self.tensor(&name)? else {
            return Ok(None);
        };
        if vector.dims() != [length] {
            return Err(wrong_shape(self.place(&name), vector.dims(), &[length]));
        }
        vector
            .to_dtype(DType::F32)
            .map(Some)
            .or_exit(Exit::Preflight, || {
                format!("failed to load {}", self.place(&name))
            })
    }

    fn file_name(&self, name: &str) -> String {
        hub_name(name)
    }

    fn place(&self, file_name: &str) -> String {
        format!("tensor `{file_name}` in `{}`", self.path().display())
    }
}

/// The decoder of a GGUF file, once it is sure that the file holds such a model and nothing else.
///
/// # Errors
/// Exit code 3: what is not supported, as far as the header tells, or tensors that no such model has.
pub(super) fn described_gguf(file: &GgufFile) -> Result<Decoder> {
    let decoder = decoder::of_gguf(file)?;
    check_names(file, &decoder, file.tensor_names())?;
    check_ropes(file, &decoder)?;
    Ok(decoder)
}

/// Like [`described_gguf`], for a folder.
///
/// # Errors
/// As [`described_gguf`].
pub(super) fn described_folder(folder: &SafetensorsFolder) -> Result<Decoder> {
    let decoder = decoder::of_folder(folder)?;
    check_names(folder, &decoder, folder.tensor_names())?;
    check_ropes(folder, &decoder)?;
    Ok(decoder)
}

fn check_ropes(weights: &dyn Weights, decoder: &Decoder) -> Result<()> {
    for rope in &decoder.ropes {
        frequencies(weights, rope, decoder.spec.head_size)?;
    }
    Ok(())
}

/// Refuses a file with tensors that the description does not have: a forward pass would compute another
/// model than the file holds.
fn check_names<'a>(
    weights: &dyn Weights,
    decoder: &Decoder,
    names: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let known = decoder.tensor_names().map(|name| weights.file_name(&name));
    let known: HashSet<String> = known.collect();
    for name in names {
        // Old files have the frequencies of the rotation in every layer.
        let frequencies =
            name.ends_with("rotary_emb.inv_freq") || name.ends_with("rot_embd.weight");
        if !known.contains(name) && !frequencies {
            return Err(Error::preflight(format!(
                "{} is not part of a {} model as flowbench knows it",
                weights.place(name),
                decoder.spec.architecture
            ))
            .hint("set MODEL=/path/file.gguf or MODEL=owner/name:file to another model"));
        }
    }
    Ok(())
}

/// Hugging Face's name for a tensor, given its GGUF name.
pub(super) fn hub_name(name: &str) -> String {
    let Some((layer, rest)) = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
    else {
        let (stem, kind) = name.rsplit_once('.').unwrap_or((name, "weight"));
        return match stem {
            "token_embd" => format!("model.embed_tokens.{kind}"),
            "output_norm" => format!("model.norm.{kind}"),
            "output" => format!("lm_head.{kind}"),
            other => format!("{other}.{kind}"),
        };
    };
    let (stem, kind) = rest.rsplit_once('.').unwrap_or((rest, "weight"));
    let stem = match stem {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => other,
    };
    format!("model.layers.{layer}.{stem}.{kind}")
}
