//! Where the weights of a Llama-family model come from: a GGUF file or a folder with safetensors, behind
//! one trait. Tensors have GGUF's names (`blk.0.attn_q`). Both forward passes, `native` and `candle`, load
//! through this.

use std::collections::HashSet;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};

use super::ModelSpec;
use super::weights::dense_type;
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::error::{Context, Error, Exit, Result};

/// A matrix `[outputs, inputs]` as stored.
#[allow(
    clippy::large_enum_variant,
    reason = "with CUDA one variant is much larger, but only a few values exist at a time"
)]
pub(super) enum Matrix {
    /// From a GGUF file, quantized or not.
    Stored(QTensor),
    /// From safetensors: f32, f16 or bf16.
    Dense(Tensor),
}

impl Matrix {
    /// Converts to a dense matrix of this type.
    pub(super) fn dense(self, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        match self {
            Self::Stored(matrix) => matrix.dequantize(device)?.to_dtype(dtype),
            Self::Dense(matrix) => matrix.to_dtype(dtype),
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
    fn restore_rows(self, heads: usize, device: &Device) -> candle_core::Result<Self> {
        match self {
            Self::Dense(matrix) => Ok(Self::Dense(
                restore_rows(&matrix, heads)?.to_device(device)?,
            )),
            Self::Stored(matrix) => {
                let (rows, columns) = matrix.shape().dims2()?;
                let data = matrix.data()?;
                let (row_bytes, head_rows) = (data.len() / rows, rows / heads);
                let mut bytes = Vec::with_capacity(data.len());
                for row in 0..rows {
                    let from = stored_row(row, head_rows);
                    bytes.extend_from_slice(&data[from * row_bytes..(from + 1) * row_bytes]);
                }
                let storage = QStorage::from_data(bytes.into(), device, matrix.dtype())?;
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
    /// The matrix of this name and shape.
    fn matrix(&self, name: &str, shape: (usize, usize), device: &Device) -> Result<Matrix>;

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
    fn vector(&self, name: &str, length: usize, device: &Device) -> Result<Option<Tensor>>;

    /// Whether query and key rows are in the order that [`Matrix::restore_rows`] reverts.
    fn rows_are_interleaved(&self) -> bool;

    /// Whether the output head shares the embedding's weights.
    fn output_is_tied(&self) -> bool;

    /// Divisors of the rotation frequencies, `[rope_dimensions / 2]`; `None` if all are 1.
    fn rope_divisors(&self, spec: &ModelSpec) -> Result<Option<Vec<f32>>>;

    /// The name of this tensor in the file.
    fn file_name(&self, name: &str) -> String;

    /// Describes a tensor, given its name in the file, for messages: "tensor `…` of `…`".
    fn place(&self, file_name: &str) -> String;
}

/// A query or key matrix, its rows in the order that rotation wants.
pub(super) fn rotated_matrix(
    weights: &dyn Weights,
    name: &str,
    shape: (usize, usize),
    heads: usize,
    device: &Device,
) -> Result<Matrix> {
    if !weights.rows_are_interleaved() {
        return weights.matrix(name, shape, device);
    }
    // Reordered on the host, then sent to the device.
    weights
        .matrix(name, shape, &Device::Cpu)?
        .restore_rows(heads, device)
        .or_exit(Exit::Preflight, || {
            format!("failed to load {}", weights.place(&weights.file_name(name)))
        })
}

/// Like [`rotated_matrix`], for a bias.
pub(super) fn rotated_bias(
    weights: &dyn Weights,
    name: &str,
    length: usize,
    heads: usize,
    device: &Device,
) -> Result<Option<Tensor>> {
    let bias = weights.vector(name, length, device)?;
    match bias {
        Some(bias) if weights.rows_are_interleaved() => restore_rows(&bias, heads)
            .map(Some)
            .or_exit(Exit::Preflight, || {
                format!("failed to load {}", weights.place(&weights.file_name(name)))
            }),
        bias => Ok(bias),
    }
}

/// A vector that the model requires.
pub(super) fn required_vector(
    weights: &dyn Weights,
    name: &str,
    length: usize,
    device: &Device,
) -> Result<Tensor> {
    weights.vector(name, length, device)?.ok_or_else(|| {
        Error::preflight(format!(
            "{} is missing",
            weights.place(&weights.file_name(name))
        ))
    })
}

fn wrong_shape(place: String, found: &[usize], expected: &[usize]) -> Error {
    Error::preflight(format!(
        "{place} has the shape {found:?}, not {expected:?} as the model's sizes require"
    ))
}

impl Weights for GgufFile {
    fn matrix(&self, name: &str, shape: (usize, usize), device: &Device) -> Result<Matrix> {
        let name = format!("{name}.weight");
        let matrix = Matrix::Stored(self.tensor(&name, device)?);
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

    fn vector(&self, name: &str, length: usize, device: &Device) -> Result<Option<Tensor>> {
        match self.shape(name) {
            None => Ok(None),
            Some(found) if found == [length] => self
                .tensor(name, device)?
                .dequantize(device)
                .map(Some)
                .or_exit(Exit::Preflight, || {
                    format!("failed to load {}", self.place(name))
                }),
            Some(found) => Err(wrong_shape(self.place(name), found, &[length])),
        }
    }

    fn rows_are_interleaved(&self) -> bool {
        self.architecture().is_ok_and(|name| name == "llama")
    }

    fn output_is_tied(&self) -> bool {
        self.shape("output.weight").is_none()
    }

    /// The factor and the tensor `rope_freqs.weight` (Llama 3) are multiplied, as in llama.cpp.
    fn rope_divisors(&self, spec: &ModelSpec) -> Result<Option<Vec<f32>>> {
        let pairs = spec.rope_dimensions / 2;
        let factor = self.rope_factor()? as f32;
        let name = "rope_freqs.weight";
        let Some(divisors) = self.vector(name, pairs, &Device::Cpu)? else {
            return Ok((factor != 1.0).then(|| vec![factor; pairs]));
        };
        let divisors: Vec<f32> = divisors.to_vec1().or_exit(Exit::Preflight, || {
            format!("failed to load {}", self.place(name))
        })?;
        if divisors
            .iter()
            .any(|divisor| !divisor.is_finite() || *divisor <= 0.0)
        {
            return Err(Error::preflight(format!(
                "{} contains a divisor that is not a positive number",
                self.place(name)
            )));
        }
        Ok(Some(
            divisors.iter().map(|divisor| divisor * factor).collect(),
        ))
    }

    fn file_name(&self, name: &str) -> String {
        name.to_owned()
    }

    fn place(&self, file_name: &str) -> String {
        format!("tensor `{file_name}` of `{}`", self.path().display())
    }
}

impl Weights for SafetensorsFolder {
    fn matrix(&self, name: &str, shape: (usize, usize), device: &Device) -> Result<Matrix> {
        let name = hub_name(&format!("{name}.weight"));
        let Some(matrix) = self.tensor(&name, device)? else {
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

    fn vector(&self, name: &str, length: usize, device: &Device) -> Result<Option<Tensor>> {
        let name = hub_name(name);
        let Some(vector) = self.tensor(&name, device)? else {
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

    fn rows_are_interleaved(&self) -> bool {
        false
    }

    fn output_is_tied(&self) -> bool {
        SafetensorsFolder::output_is_tied(self)
    }

    fn rope_divisors(&self, spec: &ModelSpec) -> Result<Option<Vec<f32>>> {
        SafetensorsFolder::rope_divisors(self, spec)
    }

    fn file_name(&self, name: &str) -> String {
        hub_name(name)
    }

    fn place(&self, file_name: &str) -> String {
        format!("tensor `{file_name}` in `{}`", self.path().display())
    }
}

/// Whether a GGUF file of the Llama family can be computed here, as far as its header tells.
///
/// # Errors
/// Exit code 3: what is not supported.
pub(super) fn check(file: &GgufFile) -> Result<()> {
    let spec = checked_spec(file)?;
    file.rope_divisors(&spec).map(|_| ())
}

/// The sizes of a GGUF file's model of the Llama family, once it is sure that the file holds such a
/// model and nothing else.
///
/// # Errors
/// Exit code 3: sizes that do not fit, or tensors that no such model has.
pub(super) fn checked_spec(file: &GgufFile) -> Result<ModelSpec> {
    let spec = file.spec()?;
    if spec.rope_dimensions != spec.head_size && spec.architecture != "llama" {
        return Err(file.wrong(
            &format!("{}.rope.dimension_count", spec.architecture),
            &format!(
                "is {}, not the head size {}, which is not supported",
                spec.rope_dimensions, spec.head_size
            ),
        ));
    }
    let value_length = file.count("attention.value_length")?;
    if value_length.is_some_and(|length| length != spec.head_size) {
        return Err(file.wrong(
            &format!("{}.attention.value_length", spec.architecture),
            "is not the key length, which is not supported",
        ));
    }
    check_names(file, &spec, file.tensor_names())?;
    Ok(spec)
}

/// Refuses a file with tensors that this forward pass knows nothing of: it would compute another
/// model than the file holds.
pub(super) fn check_names<'a>(
    weights: &dyn Weights,
    spec: &ModelSpec,
    names: impl Iterator<Item = &'a str>,
) -> Result<()> {
    const OF_MODEL: [&str; 4] = [
        "token_embd.weight",
        "output_norm.weight",
        "output.weight",
        "rope_freqs.weight",
    ];
    const OF_LAYER: [&str; 16] = [
        "attn_norm.weight",
        "attn_q.weight",
        "attn_q.bias",
        "attn_k.weight",
        "attn_k.bias",
        "attn_v.weight",
        "attn_v.bias",
        "attn_output.weight",
        "attn_output.bias",
        "ffn_norm.weight",
        "ffn_gate.weight",
        "ffn_gate.bias",
        "ffn_up.weight",
        "ffn_up.bias",
        "ffn_down.weight",
        "ffn_down.bias",
    ];
    const OF_QWEN3_LAYER: [&str; 2] = ["attn_q_norm.weight", "attn_k_norm.weight"];
    let of_family: &[&str] = match spec.architecture.as_str() {
        "qwen3" => &OF_QWEN3_LAYER,
        _ => &[],
    };
    let mut known: HashSet<String> = OF_MODEL
        .iter()
        .map(|name| weights.file_name(name))
        .collect();
    for layer in 0..spec.layers {
        let stems = OF_LAYER.iter().chain(of_family);
        known.extend(stems.map(|stem| weights.file_name(&format!("blk.{layer}.{stem}"))));
    }
    for name in names {
        // Old files have the frequencies of the rotation in every layer.
        let frequencies =
            name.ends_with("rotary_emb.inv_freq") || name.ends_with("rot_embd.weight");
        if !known.contains(name) && !frequencies {
            return Err(Error::preflight(format!(
                "{} is not part of a {} model as flowbench knows it",
                weights.place(name),
                spec.architecture
            ))
            .hint("set MODEL=/path/file.gguf or MODEL=owner/name:file to another model"));
        }
    }
    Ok(())
}

/// What each of the `head_size / 2` pairs of a head turns by from one position to the next, in
/// radians; 0 for the pairs that are not rotated. `divisors` slow the pairs down, where the model was stretched to a longer context.
pub(super) fn frequencies(spec: &ModelSpec, divisors: Option<&[f32]>) -> Vec<f32> {
    let rotated = spec.rope_dimensions;
    (0..spec.head_size / 2)
        .map(|pair| {
            if pair >= rotated / 2 {
                return 0.0;
            }
            let exponent = (2 * pair) as f64 / rotated as f64;
            let divisor = divisors.map_or(1.0, |divisors| divisors[pair]);
            f64::from(spec.rope_base).powf(-exponent) as f32 / divisor
        })
        .collect()
}

/// `general.architecture`s that run here.
#[cfg(test)]
pub(super) const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

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
