//! Matrix products with a model's weights, stored on the device in the format that is fastest
//! there.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};

use super::dense;
use crate::engine::model::source::Matrix;

/// How weights are stored on the device, and the type of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightFormat {
    /// Dense matrices of this type; activations have the same type. Models on a CPU use f32.
    Dense(DType),
    /// Weights that are quantized in the file stay so; activations are f32. Fast where candle has
    /// kernels for quantized products, which is on CUDA.
    Quantized,
}

impl WeightFormat {
    /// The type of activations, keys and values.
    pub(super) fn activations(self) -> DType {
        match self {
            Self::Dense(dtype) => dtype,
            Self::Quantized => DType::F32,
        }
    }
}

/// `y = x · wᵀ + b`
pub(super) struct Linear {
    weight: Weight,
    /// `[outputs]`
    bias: Option<Tensor>,
}

/// A matrix `[outputs, inputs]`.
#[derive(Clone)]
enum Weight {
    Dense(Tensor),
    Quantized(Arc<QTensor>),
    /// Matrices of different types that share their input. Their outputs are concatenated.
    Stacked(Vec<Weight>),
}

impl Linear {
    /// A product with one matrix, or with several matrices that share their input. Their rows are
    /// stacked, so their outputs are adjacent.
    ///
    /// `biases` has one entry per matrix, or none.
    pub(super) fn new(
        matrices: Vec<Matrix>,
        biases: Vec<Tensor>,
        format: WeightFormat,
        device: &Device,
    ) -> Result<Self> {
        let bias = if biases.is_empty() {
            None
        } else {
            Some(Tensor::cat(&biases, 0)?.to_dtype(format.activations())?)
        };
        Ok(Self {
            weight: Weight::new(matrices, format, device)?,
            bias,
        })
    }

    /// `x`: `[tokens, inputs]`; returns `[tokens, outputs]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.product(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

impl Weight {
    fn new(matrices: Vec<Matrix>, format: WeightFormat, device: &Device) -> Result<Self> {
        let mut parts = Vec::with_capacity(matrices.len());
        for matrix in matrices {
            parts.push(match (matrix, format) {
                (Matrix::Stored(matrix), WeightFormat::Quantized) if is_quantized(&matrix) => {
                    Self::Quantized(Arc::new(matrix))
                }
                (matrix, format) => Self::Dense(matrix.dense(format.activations(), device)?),
            });
        }
        stack(parts, device)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => dense::product(x, weight),
            Self::Quantized(weight) => x.apply_op1_no_bwd(weight.as_ref()),
            Self::Stacked(parts) => {
                let outputs: Result<Vec<_>> = parts.iter().map(|part| part.product(x)).collect();
                Tensor::cat(&outputs?, 1)
            }
        }
    }
}

/// Merges several matrices into one if their types allow it.
fn stack(mut parts: Vec<Weight>, device: &Device) -> Result<Weight> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let dense: Option<Vec<&Tensor>> = parts
        .iter()
        .map(|part| match part {
            Weight::Dense(matrix) => Some(matrix),
            _ => None,
        })
        .collect();
    if let Some(matrices) = dense {
        return Ok(Weight::Dense(Tensor::cat(&matrices, 0)?));
    }
    let quantized: Option<Vec<&Arc<QTensor>>> = parts
        .iter()
        .map(|part| match part {
            Weight::Quantized(matrix) => Some(matrix),
            _ => None,
        })
        .collect();
    match quantized.as_deref() {
        Some([first, others @ ..]) if others.iter().all(|other| other.dtype() == first.dtype()) => {
            let inputs = first.shape().dims2()?.1;
            let mut rows = 0;
            let mut bytes = Vec::new();
            for matrix in std::iter::once(first).chain(others) {
                rows += matrix.shape().dims2()?.0;
                bytes.extend_from_slice(&matrix.data()?);
            }
            let storage = QStorage::from_data(bytes.into(), device, first.dtype())?;
            Ok(Weight::Quantized(Arc::new(QTensor::new(
                storage,
                (rows, inputs),
            )?)))
        }
        _ => Ok(Weight::Stacked(parts)),
    }
}

fn is_quantized(matrix: &QTensor) -> bool {
    !matches!(
        matrix.dtype(),
        GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16
    )
}

/// The token embedding. A model with tied weights uses the same copy as its output head.
pub(super) struct Embedding {
    /// `[vocabulary, hidden]`
    table: Weight,
}

impl Embedding {
    pub(super) fn new(matrix: Matrix, format: WeightFormat, device: &Device) -> Result<Self> {
        let table = Weight::new(vec![matrix], format, device)?;
        Ok(Self { table })
    }

    /// The tokens' rows: `[tokens, hidden]`.
    pub(super) fn lookup(&self, tokens: &Tensor) -> Result<Tensor> {
        match &self.table {
            Weight::Dense(table) => table.index_select(tokens, 0),
            Weight::Quantized(table) => table.embedding(tokens),
            Weight::Stacked(_) => candle_core::bail!("an embedding is one matrix"),
        }
    }

    /// An output head that shares the embedding's weights.
    pub(super) fn tied_head(&self) -> Linear {
        Linear {
            weight: self.table.clone(),
            bias: None,
        }
    }
}
