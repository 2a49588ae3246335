//! Matrix products with a model's weights, dequantized to dense f32 matrices.

use candle_core::{Result, Tensor};

use super::dense;
use crate::engine::model::source::Matrix;

/// `y = x · wᵀ + b`
pub(super) struct Linear {
    /// `[outputs, inputs]`
    weight: Tensor,
    /// `[outputs]`
    bias: Option<Tensor>,
}

impl Linear {
    /// A product with one matrix, or with several matrices that share their input. Their rows are
    /// stacked, so their outputs are adjacent.
    ///
    /// `biases` has one entry per matrix, or none.
    pub(super) fn new(matrices: Vec<Matrix>, biases: Vec<Tensor>) -> Result<Self> {
        let matrices: Vec<Tensor> = matrices
            .into_iter()
            .map(Matrix::in_f32)
            .collect::<Result<_>>()?;
        let bias = match biases.is_empty() {
            true => None,
            false => Some(Tensor::cat(&biases, 0)?),
        };
        Ok(Self {
            weight: Tensor::cat(&matrices, 0)?,
            bias,
        })
    }

    /// `x`: `[tokens, inputs]`; returns `[tokens, outputs]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = dense::product(x, &self.weight)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// The token embedding. A model with tied weights uses the same copy as its output head.
pub(super) struct Embedding {
    /// `[vocabulary, hidden]`
    table: Tensor,
}

impl Embedding {
    pub(super) fn new(matrix: Matrix) -> Result<Self> {
        let table = matrix.in_f32()?;
        Ok(Self { table })
    }

    /// The tokens' rows: `[tokens, hidden]`.
    pub(super) fn lookup(&self, tokens: &Tensor) -> Result<Tensor> {
        self.table.index_select(tokens, 0)
    }

    /// An output head that shares the embedding's weights.
    pub(super) fn tied_head(&self) -> Linear {
        Linear {
            weight: self.table.clone(),
            bias: None,
        }
    }
}
