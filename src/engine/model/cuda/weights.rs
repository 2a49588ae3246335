//! The weights on the device: the CPU's packed matrices, uploaded as they are.

use super::super::native::weights::{Layer, Linear, NativeWeights};
use super::descriptors::Matrix;
use crate::engine::cuda::driver::{Buffer, Gpu, GpuError};
use crate::engine::kernels::{PackedMatrix, PackedParts};

/// Rows of a group.
pub(super) const GROUP: usize = 16;

/// A matrix on the device, with its optional bias.
pub(super) struct GpuMatrix {
    quants: Buffer<u8>,
    scales: Buffer<u16>,
    mins: Buffer<u16>,
    fine: Buffer<u8>,
    bias: Option<Buffer<f32>>,
    rows: usize,
    cols: usize,
    format: u32,
    dense: bool,
}

impl GpuMatrix {
    fn upload(gpu: &Gpu, matrix: &PackedMatrix, bias: Option<&[f32]>) -> Result<Self, GpuError> {
        let PackedParts {
            quants,
            scales,
            mins,
            fine,
        } = matrix.parts();
        Ok(Self {
            quants: upload(gpu, quants)?,
            scales: upload(gpu, scales)?,
            mins: upload(gpu, mins)?,
            fine: upload(gpu, fine)?,
            bias: bias.map(|bias| upload(gpu, bias)).transpose()?,
            rows: matrix.rows(),
            cols: matrix.cols(),
            format: matrix.format() as u32,
            dense: matrix.format().is_dense(),
        })
    }

    fn linear(gpu: &Gpu, linear: &Linear) -> Result<Self, GpuError> {
        Self::upload(gpu, &linear.matrix, linear.bias.as_deref())
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    /// Whether its products take unquantised activations.
    pub(super) fn is_dense(&self) -> bool {
        self.dense
    }

    /// For a launch that writes `[tokens, rows]` to `output`, in which `first_group` groups are before
    /// this matrix's.
    pub(super) fn descriptor(&self, output: u64, first_group: usize) -> Matrix {
        Matrix {
            quants: self.quants.address(0),
            scales: self.scales.address(0),
            mins: self.mins.address(0),
            fine: self.fine.address(0),
            bias: self.bias.as_ref().map_or(0, |bias| bias.address(0)),
            output,
            rows: self.rows as u32,
            cols: self.cols as u32,
            format: self.format,
            first_group: first_group as u32,
        }
    }
}

/// A transformer block on the device.
pub(super) struct GpuLayer {
    pub(super) attention_norm: Buffer<f32>,
    pub(super) inputs: [GpuMatrix; 3],
    pub(super) query_norm: Option<Buffer<f32>>,
    pub(super) key_norm: Option<Buffer<f32>>,
    pub(super) output: GpuMatrix,
    pub(super) feed_forward_norm: Buffer<f32>,
    pub(super) gate: GpuMatrix,
    pub(super) up: GpuMatrix,
    pub(super) down: GpuMatrix,
}

impl GpuLayer {
    fn upload(gpu: &Gpu, layer: &Layer) -> Result<Self, GpuError> {
        let linear = |linear| GpuMatrix::linear(gpu, linear);
        let optional = |norm: &Option<Vec<f32>>| {
            let norm = norm.as_deref();
            norm.map(|norm| upload(gpu, norm)).transpose()
        };
        Ok(Self {
            attention_norm: upload(gpu, &layer.attention_norm)?,
            inputs: [
                linear(&layer.query)?,
                linear(&layer.key)?,
                linear(&layer.value)?,
            ],
            query_norm: optional(&layer.query_norm)?,
            key_norm: optional(&layer.key_norm)?,
            output: linear(&layer.output)?,
            feed_forward_norm: upload(gpu, &layer.feed_forward_norm)?,
            gate: linear(&layer.gate)?,
            up: linear(&layer.up)?,
            down: linear(&layer.down)?,
        })
    }
}

/// A model's weights on the device.
pub(super) struct GpuWeights {
    pub(super) embedding: GpuMatrix,
    /// The output head, if it is not tied to the embedding.
    pub(super) head: Option<GpuMatrix>,
    pub(super) layers: Vec<GpuLayer>,
    pub(super) norm: Buffer<f32>,
}

impl GpuWeights {
    pub(super) fn upload(gpu: &Gpu, weights: &NativeWeights) -> Result<Self, GpuError> {
        let matrix = |matrix| GpuMatrix::upload(gpu, matrix, None);
        let layers = weights.layers.iter();
        Ok(Self {
            embedding: matrix(&weights.embedding)?,
            head: weights.head.as_ref().map(matrix).transpose()?,
            layers: layers
                .map(|layer| GpuLayer::upload(gpu, layer))
                .collect::<Result<_, _>>()?,
            norm: upload(gpu, &weights.norm)?,
        })
    }

    pub(super) fn head(&self) -> &GpuMatrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

/// A copy on the device. One element if `values` is empty, so that there is an address.
pub(super) fn upload<T: crate::engine::cuda::driver::Plain>(
    gpu: &Gpu,
    values: &[T],
) -> Result<Buffer<T>, GpuError> {
    let mut buffer = gpu.allocate(values.len().max(1))?;
    gpu.upload(&mut buffer, 0, values)?;
    Ok(buffer)
}
