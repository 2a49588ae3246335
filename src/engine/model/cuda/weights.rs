//! The weights on the device: the CPU's packed matrices, with quants as [`repack`] stores them.

use std::sync::OnceLock;

use super::super::WeightBytes;
use super::super::native::weights::{Layer, Linear, NativeWeights};
use super::descriptors::Matrix;
use super::repack::{self, GROUP, Stored};
use crate::engine::cuda::driver::{Buffer, Gpu, GpuError};
use crate::engine::kernels::{PackedMatrix, PackedParts, Pool};

/// A matrix on the device, with its optional bias.
pub(super) struct GpuMatrix {
    quants: Buffer<u8>,
    scales: Buffer<u16>,
    mins: Buffer<u16>,
    fine: Buffer<u8>,
    bias: Option<Buffer<f32>>,
    rows: usize,
    cols: usize,
    format: Stored,
    dense: bool,
    bytes: usize,
}

impl GpuMatrix {
    fn upload(gpu: &Gpu, matrix: &PackedMatrix, bias: Option<&[f32]>) -> Result<Self, GpuError> {
        let PackedParts {
            scales, mins, fine, ..
        } = matrix.parts();
        let (format, quants) = repack::quants(matrix);
        Ok(Self {
            quants: upload(gpu, &quants)?,
            scales: upload(gpu, scales)?,
            mins: upload(gpu, mins)?,
            fine: upload(gpu, fine)?,
            bias: bias.map(|bias| upload(gpu, bias)).transpose()?,
            rows: matrix.rows(),
            cols: matrix.cols(),
            format,
            dense: matrix.format().is_dense(),
            bytes: quants.len() + fine.len() + 2 * (scales.len() + mins.len()),
        })
    }

    fn linear(gpu: &Gpu, linear: &Linear) -> Result<Self, GpuError> {
        Self::upload(gpu, &linear.matrix, linear.bias.as_deref())
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that a product reads; the bias is negligible.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
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
            format: self.format as u32,
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

    fn matrices(&self) -> impl Iterator<Item = &GpuMatrix> {
        let others = [&self.output, &self.gate, &self.up, &self.down];
        self.inputs.iter().chain(others)
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
    /// Repacks and copies matrices on all threads of the pool.
    pub(super) fn upload(
        gpu: &Gpu,
        weights: &NativeWeights,
        pool: &Pool,
    ) -> Result<Self, GpuError> {
        let (embedding, head) = (OnceLock::new(), OnceLock::new());
        let layers: Vec<_> = weights.layers.iter().map(|_| OnceLock::new()).collect();
        let matrix = |matrix| GpuMatrix::upload(gpu, matrix, None);
        // The largest first.
        pool.run(2 + layers.len(), |part| match part {
            0 => drop(embedding.set(matrix(&weights.embedding))),
            1 => drop(head.set(weights.head.as_ref().map(matrix).transpose())),
            _ => drop(layers[part - 2].set(GpuLayer::upload(gpu, &weights.layers[part - 2]))),
        });
        Ok(Self {
            embedding: done(embedding)?,
            head: done(head)?,
            layers: layers.into_iter().map(done).collect::<Result<_, _>>()?,
            norm: upload(gpu, &weights.norm)?,
        })
    }

    /// Bytes that a pass reads; the vectors are negligible.
    pub(super) fn bytes(&self) -> WeightBytes {
        let layers = self.layers.iter().flat_map(GpuLayer::matrices);
        WeightBytes {
            layers: layers.map(GpuMatrix::bytes).sum(),
            head: self.head().bytes(),
        }
    }

    pub(super) fn head(&self) -> &GpuMatrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

/// The result of a part of a run.
fn done<T>(result: OnceLock<Result<T, GpuError>>) -> Result<T, GpuError> {
    result.into_inner().expect("every part of a run is done")
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
