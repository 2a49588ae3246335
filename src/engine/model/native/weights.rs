//! The native model's weights: every matrix repacked for the kernels, without loss.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};

use super::super::source::{
    Matrix, Weights, required_vector, rotated_bias, rotated_matrix, stored_row,
};
use super::super::weights::weight_type;
use super::super::{ModelSpec, WeightBytes};
use crate::engine::kernels::{BLOCK, PackedMatrix, Pool};
use crate::engine::load::gguf::GgufFile;
use crate::error::{Context, Error, Exit, Result};

/// A transformer block.
pub(in crate::engine::model) struct Layer {
    /// `[hidden]`.
    pub(in crate::engine::model) attention_norm: Vec<f32>,
    /// `[heads · head_size, hidden]`.
    pub(in crate::engine::model) query: Linear,
    /// `[kv_heads · head_size, hidden]`.
    pub(in crate::engine::model) key: Linear,
    /// `[kv_heads · head_size, hidden]`.
    pub(in crate::engine::model) value: Linear,
    /// `[head_size]`, for models that norm each head of queries and keys (Qwen3).
    pub(in crate::engine::model) query_norm: Option<Vec<f32>>,
    /// `[head_size]`, likewise.
    pub(in crate::engine::model) key_norm: Option<Vec<f32>>,
    /// `[hidden, heads · head_size]`.
    pub(in crate::engine::model) output: Linear,
    /// `[hidden]`.
    pub(in crate::engine::model) feed_forward_norm: Vec<f32>,
    /// `[intermediate, hidden]`.
    pub(in crate::engine::model) gate: Linear,
    /// `[intermediate, hidden]`.
    pub(in crate::engine::model) up: Linear,
    /// `[hidden, intermediate]`.
    pub(in crate::engine::model) down: Linear,
}

impl Layer {
    /// The matrices of the first product.
    pub(in crate::engine::model) fn inputs(&self) -> [&PackedMatrix; 3] {
        [&self.query, &self.key, &self.value].map(|linear| &linear.matrix)
    }

    fn linears(&self) -> [&Linear; 7] {
        [
            &self.query,
            &self.key,
            &self.value,
            &self.output,
            &self.gate,
            &self.up,
            &self.down,
        ]
    }

    /// Checks for tensors that the architecture requires: a file without them holds another model.
    fn check(&self, architecture: &str, index: usize) -> Result<()> {
        let biases = [&self.query, &self.key, &self.value].map(|linear| linear.bias.is_some());
        if biases[0] != biases[1] || biases[0] != biases[2] {
            return Err(Error::preflight(format!(
                "only some of attn_q, attn_k, attn_v in block {index} have a bias"
            )));
        }
        if architecture == "qwen2" && !biases[0] {
            return Err(Error::preflight(format!(
                "tensor `blk.{index}.attn_q.bias` is missing"
            )));
        }
        if architecture == "qwen3" && (self.query_norm.is_none() || self.key_norm.is_none()) {
            return Err(Error::preflight(format!(
                "tensor `blk.{index}.attn_q_norm.weight` or `attn_k_norm.weight` is missing"
            )));
        }
        Ok(())
    }
}

/// A matrix and its optional bias.
pub(in crate::engine::model) struct Linear {
    pub(in crate::engine::model) matrix: PackedMatrix,
    /// `[rows]`.
    pub(in crate::engine::model) bias: Option<Vec<f32>>,
}

pub(in crate::engine::model) struct NativeWeights {
    /// `[vocabulary, hidden]`.
    pub(in crate::engine::model) embedding: PackedMatrix,
    /// The output head, if it is not tied to the embedding.
    pub(in crate::engine::model) head: Option<PackedMatrix>,
    pub(in crate::engine::model) layers: Vec<Layer>,
    /// `[hidden]`.
    pub(in crate::engine::model) norm: Vec<f32>,
    /// Divisors of the rotary frequencies, by pair.
    pub(in crate::engine::model) rope_divisors: Option<Vec<f32>>,
}

impl NativeWeights {
    /// Reads and repacks the weights.
    ///
    /// # Errors
    /// A tensor is missing, has another shape than the model's sizes require, or a type without a
    /// kernel.
    pub(in crate::engine::model) fn load(
        weights: &dyn Weights,
        spec: &ModelSpec,
        pool: &Pool,
    ) -> Result<Self> {
        let loader = Loader { weights, pool };
        let hidden = spec.hidden;
        let queries = spec.heads * spec.head_size;
        let keys = spec.kv_heads * spec.head_size;
        let layers = (0..spec.layers)
            .map(|index| {
                let name = |part: &str| format!("blk.{index}.{part}");
                let layer = Layer {
                    attention_norm: loader.vector(&name("attn_norm.weight"), hidden)?,
                    query: loader.rotated(&name("attn_q"), (queries, hidden), spec.heads)?,
                    key: loader.rotated(&name("attn_k"), (keys, hidden), spec.kv_heads)?,
                    value: loader.linear(&name("attn_v"), (keys, hidden))?,
                    query_norm: loader.optional(&name("attn_q_norm.weight"), spec.head_size)?,
                    key_norm: loader.optional(&name("attn_k_norm.weight"), spec.head_size)?,
                    output: loader.linear(&name("attn_output"), (hidden, queries))?,
                    feed_forward_norm: loader.vector(&name("ffn_norm.weight"), hidden)?,
                    gate: loader.linear(&name("ffn_gate"), (spec.intermediate, hidden))?,
                    up: loader.linear(&name("ffn_up"), (spec.intermediate, hidden))?,
                    down: loader.linear(&name("ffn_down"), (hidden, spec.intermediate))?,
                };
                layer.check(&spec.architecture, index)?;
                Ok(layer)
            })
            .collect::<Result<_>>()?;
        let shape = (spec.vocabulary, hidden);
        Ok(Self {
            embedding: loader.matrix("token_embd", shape)?,
            head: match weights.output_is_tied() {
                true => None,
                false => Some(loader.matrix("output", shape)?),
            },
            layers,
            norm: loader.vector("output_norm.weight", hidden)?,
            rope_divisors: weights.rope_divisors(spec)?,
        })
    }

    /// Whether any product uses int8 activations.
    pub(in crate::engine::model) fn is_quantised(&self) -> bool {
        let matrices = self.layers.iter().flat_map(Layer::linears);
        let matrices = matrices.map(|linear| &linear.matrix);
        matrices
            .chain([self.head.as_ref().unwrap_or(&self.embedding)])
            .any(|matrix| !matrix.format().is_dense())
    }

    /// Bytes that a pass reads; the vectors are negligible.
    pub(in crate::engine::model) fn bytes(&self) -> WeightBytes {
        let linears = self.layers.iter().flat_map(Layer::linears);
        WeightBytes {
            layers: linears.map(|linear| linear.matrix.bytes()).sum(),
            head: self.head.as_ref().unwrap_or(&self.embedding).bytes(),
        }
    }
}

/// Checks that every matrix of a file has a type with a kernel.
///
/// # Errors
/// Exit code 3, with the tensor and its type.
pub(in crate::engine::model) fn check_types(file: &GgufFile) -> Result<()> {
    match file.matrix_of_other_type(|dtype| weight_type(dtype).is_some()) {
        None => Ok(()),
        Some((name, dtype)) => Err(Error::preflight(format!(
            "{} is of type {dtype}, which BACKEND=native cannot multiply",
            Weights::place(file, name)
        ))),
    }
}

struct Loader<'a> {
    weights: &'a dyn Weights,
    pool: &'a Pool,
}

impl Loader<'_> {
    fn linear(&self, name: &str, shape: (usize, usize)) -> Result<Linear> {
        Ok(Linear {
            matrix: self.matrix(name, shape)?,
            bias: self.optional(&format!("{name}.bias"), shape.0)?,
        })
    }

    /// A matrix whose outputs are rotated, with rows in the order of the rotary kernel.
    fn rotated(&self, name: &str, shape: (usize, usize), heads: usize) -> Result<Linear> {
        let cpu = Device::Cpu;
        let head_rows = match self.weights.rows_are_interleaved() {
            true => shape.0 / heads,
            false => 0,
        };
        let matrix = match self.pack_stored(name, shape, head_rows)? {
            Some(packed) => packed,
            None => {
                let matrix = rotated_matrix(self.weights, name, shape, heads, &cpu)?;
                self.pack(name, shape, &matrix)?
            }
        };
        let bias_name = format!("{name}.bias");
        let bias = rotated_bias(self.weights, &bias_name, shape.0, heads, &cpu)?;
        Ok(Linear {
            matrix,
            bias: bias
                .map(|bias| self.numbers(&bias_name, &bias))
                .transpose()?,
        })
    }

    fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<PackedMatrix> {
        if let Some(packed) = self.pack_stored(name, shape, 0)? {
            return Ok(packed);
        }
        let matrix = self.weights.matrix(name, shape, &Device::Cpu)?;
        self.pack(name, shape, &matrix)
    }

    /// Packs straight from the mapped file; `None` if the tensor is not mapped. `head_rows` is the rows
    /// per head if they have to be permuted to the order of the rotary kernel, otherwise 0.
    fn pack_stored(
        &self,
        name: &str,
        shape: (usize, usize),
        head_rows: usize,
    ) -> Result<Option<PackedMatrix>> {
        let mut packed = None;
        self.weights.read_stored(name, shape, &mut |dtype, bytes| {
            packed = Some(self.pack_bytes(dtype, shape, bytes, head_rows));
        })?;
        packed.transpose().map_err(|error| {
            error.context(format!("failed to repack {}", self.weights.place(name)))
        })
    }

    fn pack(&self, name: &str, shape: (usize, usize), matrix: &Matrix) -> Result<PackedMatrix> {
        let failed = || format!("failed to repack {}", self.weights.place(name));
        let packed = match matrix {
            Matrix::Stored(stored) => {
                let bytes = stored.data().or_exit(Exit::Preflight, failed)?;
                self.pack_bytes(stored.dtype(), shape, &bytes, 0)
            }
            Matrix::Dense(dense) => {
                let (dtype, bytes) = dense_bytes(dense).or_exit(Exit::Preflight, failed)?;
                self.pack_bytes(dtype, shape, &bytes, 0)
            }
        };
        packed.map_err(|error| error.context(failed()))
    }

    fn pack_bytes(
        &self,
        dtype: GgmlDType,
        (rows, cols): (usize, usize),
        bytes: &[u8],
        head_rows: usize,
    ) -> Result<PackedMatrix> {
        // Quantised products take activations in whole blocks.
        if !cols.is_multiple_of(BLOCK) && dtype.block_size() > 1 {
            return Err(Error::preflight(format!(
                "{cols} columns are no multiple of {BLOCK}"
            )));
        }
        let no_kernel = || Error::preflight(format!("no native kernel multiplies {dtype:?}"));
        let dtype = weight_type(dtype).ok_or_else(no_kernel)?;
        let from = |row| match head_rows {
            0 => row,
            _ => stored_row(row, head_rows),
        };
        PackedMatrix::pack_rows(self.pool, dtype, (rows, cols), bytes, &from)
            .map_err(|source| Error::preflight("no native kernel fits").caused_by(source))
    }

    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let vector = required_vector(self.weights, name, length, &Device::Cpu)?;
        self.numbers(name, &vector)
    }

    fn optional(&self, name: &str, length: usize) -> Result<Option<Vec<f32>>> {
        let vector = self.weights.vector(name, length, &Device::Cpu)?;
        vector.map(|vector| self.numbers(name, &vector)).transpose()
    }

    fn numbers(&self, name: &str, vector: &Tensor) -> Result<Vec<f32>> {
        vector.to_vec1().or_exit(Exit::Preflight, || {
            format!("failed to load {}", self.weights.place(name))
        })
    }
}

/// A dense matrix as GGUF stores it: its type, and its numbers row by row, little-endian.
fn dense_bytes(dense: &Tensor) -> candle_core::Result<(GgmlDType, Vec<u8>)> {
    let flat = dense.flatten_all()?;
    Ok(match dense.dtype() {
        DType::F16 => {
            let numbers = flat.to_vec1::<half::f16>()?;
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
            (GgmlDType::F16, bytes.collect())
        }
        DType::BF16 => {
            let numbers = flat.to_vec1::<half::bf16>()?;
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
            (GgmlDType::BF16, bytes.collect())
        }
        _ => {
            let numbers = flat.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
            (GgmlDType::F32, bytes.collect())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::WeightType;
    use candle_core::quantized::{QStorage, QTensor};
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    /// Random bits, so that every quant and scale occurs, with f16 factors of ordinary size.
    fn random_blocks(dtype: GgmlDType, elements: usize) -> Vec<u8> {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut bytes = vec![0; elements / dtype.block_size() * dtype.type_size()];
        random.fill_bytes(&mut bytes);
        let mut factor = || (random.next_u32() as f32 / u32::MAX as f32 - 0.5) * 0.1;
        // Offsets of the f16 factors in a block.
        let factors: &[usize] = match dtype {
            GgmlDType::F16 | GgmlDType::BF16 | GgmlDType::F32 => {
                let values = (0..elements).map(|_| factor()).collect::<Vec<_>>();
                let values = Tensor::new(values, &Device::Cpu).unwrap();
                let tensor = QTensor::quantize(&values, dtype).unwrap();
                return tensor.data().unwrap().to_vec();
            }
            GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
            GgmlDType::Q6K => &[208],
            _ => &[0, 2],
        };
        for block in bytes.chunks_exact_mut(dtype.type_size()) {
            for &at in factors {
                let bits = half::f16::from_f32(factor()).to_le_bytes();
                block[at..at + 2].copy_from_slice(&bits);
            }
        }
        bytes
    }

    #[test]
    fn packed_rows_are_what_candle_dequantises() {
        let pool = Pool::new(2).unwrap();
        let types = [
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q8_0,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
            GgmlDType::F16,
            GgmlDType::BF16,
            GgmlDType::F32,
        ];
        assert_eq!(types.map(weight_type), WeightType::ALL.map(Some));
        for dtype in types {
            let known = weight_type(dtype).unwrap();
            assert_eq!(known.block_columns(), dtype.block_size());
            assert_eq!(known.block_bytes(), dtype.type_size());
            let (rows, cols) = (37, 512);
            let bytes = random_blocks(dtype, rows * cols);
            let storage = QStorage::from_data(bytes.clone().into(), &Device::Cpu, dtype);
            let tensor = QTensor::new(storage.unwrap(), (rows, cols)).unwrap();
            let expected = tensor.dequantize(&Device::Cpu).unwrap();
            let expected: Vec<Vec<f32>> = expected.to_vec2().unwrap();
            let packed =
                PackedMatrix::pack_rows(&pool, known, (rows, cols), &bytes, &|row| row).unwrap();
            let mut row = vec![0.0; cols];
            for (index, expected) in expected.iter().enumerate() {
                packed.row(index, &mut row);
                assert_eq!(row, *expected, "{dtype:?}, row {index}");
            }
        }
    }
}
