//! The native model's weights: every matrix repacked for the kernels, without loss.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Tensor};

use super::super::WeightBytes;
use super::super::source::{
    Matrix, Weights, ordered_bias, ordered_matrix, required_vector, stored_row,
};
use super::super::weights::weight_type;
use crate::engine::decoder::{Decoder, LayerTensors, MatrixTensor, VectorTensor};
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

    fn load(loader: &Loader<'_>, tensors: &LayerTensors) -> Result<Self> {
        let (query_norm, key_norm) = match &tensors.head_norms {
            Some([query, key]) => (loader.optional(query)?, loader.optional(key)?),
            None => (None, None),
        };
        let layer = Self {
            attention_norm: loader.vector(&tensors.attention_norm)?,
            query: loader.linear(&tensors.query)?,
            key: loader.linear(&tensors.key)?,
            value: loader.linear(&tensors.value)?,
            query_norm,
            key_norm,
            output: loader.linear(&tensors.output)?,
            feed_forward_norm: loader.vector(&tensors.feed_forward_norm)?,
            gate: loader.linear(&tensors.gate)?,
            up: loader.linear(&tensors.up)?,
            down: loader.linear(&tensors.down)?,
        };
        let inputs = [&layer.query, &layer.key, &layer.value];
        let norms = [&layer.query_norm, &layer.key_norm];
        tensors.check_found(
            inputs.map(|linear| linear.bias.is_some()),
            norms.map(|norm| norm.is_some()),
        )?;
        Ok(layer)
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
}

impl NativeWeights {
    /// Reads and repacks the weights.
    ///
    /// # Errors
    /// A tensor is missing, has another shape than the model's sizes require, or a type without a
    /// kernel.
    pub(in crate::engine::model) fn load(
        weights: &dyn Weights,
        decoder: &Decoder,
        pool: &Pool,
    ) -> Result<Self> {
        let loader = Loader { weights, pool };
        let layer = |index| Layer::load(&loader, &decoder.layer_tensors(index));
        Ok(Self {
            layers: (0..decoder.spec.layers).map(layer).collect::<Result<_>>()?,
            embedding: loader.matrix(&decoder.embedding())?,
            head: match decoder.head() {
                None => None,
                Some(head) => Some(loader.matrix(&head)?),
            },
            norm: loader.vector(&decoder.output_norm())?,
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
    fn linear(&self, tensor: &MatrixTensor) -> Result<Linear> {
        let matrix = self.matrix(tensor)?;
        let bias = ordered_bias(self.weights, tensor)?;
        let name = tensor.bias_name();
        Ok(Linear {
            matrix,
            bias: bias.map(|bias| self.numbers(&name, &bias)).transpose()?,
        })
    }

    /// A matrix with rows in the order of the rotary kernel.
    fn matrix(&self, tensor: &MatrixTensor) -> Result<PackedMatrix> {
        let (name, shape) = (&tensor.name, tensor.shape);
        let head_rows = tensor.interleaved_heads.map_or(0, |heads| shape.0 / heads);
        if let Some(packed) = self.pack_stored(name, shape, head_rows)? {
            return Ok(packed);
        }
        let matrix = ordered_matrix(self.weights, tensor)?;
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

    fn vector(&self, tensor: &VectorTensor) -> Result<Vec<f32>> {
        let vector = required_vector(self.weights, tensor)?;
        self.numbers(&tensor.name, &vector)
    }

    /// `None` if the file has no such vector.
    fn optional(&self, tensor: &VectorTensor) -> Result<Option<Vec<f32>>> {
        let (name, length) = (&tensor.name, tensor.length);
        let vector = self.weights.vector(name, length)?;
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
    use candle_core::Device;
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
