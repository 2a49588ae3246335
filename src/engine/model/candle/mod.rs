//! Forward pass on candle's tensors, on the CPU. It runs what [`crate::engine::decoder`] describes: the
//! reference for the other forward passes, and for weights that they have no kernels for.
//!
//! Batches are ragged: each chunk has its own length and position. All tokens are rows of one
//! matrix `[tokens, hidden]`, so each weight is read once per pass, whatever the number of
//! sequences. Keys and values are in pages that sequences can share. A pass is first planned as
//! integers ([`plan`]), which are sent to the device in one transfer ([`pass`]). Nothing waits for
//! the device between the first layer and the logits.
//!
//! How a sequence's logits depend on the rest of the batch: on a CPU with AVX2, attention returns
//! the same bits in any batch, and so does a whole pass of up to 64 tokens. Larger passes use the
//! `gemm` crate, which chooses the order of summation by the sizes, so the last bits can differ. For the same reason, they can differ between a prompt in
//! one chunk and in several.

mod attention;
mod dense;
mod kv;
mod layer;
mod linear;
mod pagewise;
mod pass;
mod plan;
mod rope;
#[cfg(test)]
mod tests;
mod weighted;

use std::collections::HashSet;

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::rms_norm;
use rayon::prelude::*;

use self::kv::KvPages;
use self::layer::Layer;
use self::linear::{Embedding, Linear};
use self::pass::PlannedPass;
use self::plan::{Plan, Policy};
use self::rope::Rope;
use super::source::{
    Weights, described_folder, described_gguf, frequencies, ordered_matrix, required_vector,
};
use super::{Chunk, Model, ModelSpec, Slot, check_chunk, check_pages, no_room_for_pages};
use crate::engine::decoder::{Activation, Decoder, Norm, NormPlace};
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::error::{Context, Error, Exit, Result};

pub(crate) use self::linear::WeightFormat;

/// A described model on one device.
pub(super) struct CandleModel {
    spec: ModelSpec,
    device: Device,
    format: WeightFormat,
    /// As recorded in a run, such as `Q4_1 as f32`.
    weights: String,
    embedding: Embedding,
    layers: Vec<Layer>,
    /// `[hidden]`
    norm: Tensor,
    /// `[vocabulary, hidden]`
    head: Linear,
    rope: Rope,
    kv: KvPages,
    policy: Policy,
    /// Number of sequences opened so far; slots are numbered by it and have no other state.
    opened: usize,
}

impl CandleModel {
    /// Loads a GGUF model in the format that is fastest on the device.
    pub(super) fn from_gguf(file: &GgufFile, device: &Device) -> Result<Self> {
        let format = match device {
            Device::Cpu => WeightFormat::Dense(DType::F32),
            _ => WeightFormat::Quantized,
        };
        Self::from_gguf_as(file, format, device)
    }

    /// Loads a GGUF model in the given format.
    pub(super) fn from_gguf_as(
        file: &GgufFile,
        format: WeightFormat,
        device: &Device,
    ) -> Result<Self> {
        let decoder = described_gguf(file)?;
        let weights = match format {
            WeightFormat::Dense(dtype) => format!("{} as {}", file.weight_type(), dtype.as_str()),
            WeightFormat::Quantized => file.weight_type(),
        };
        Self::load(file, &decoder, weights, format, device)
    }

    /// Loads a model folder: in f32 on a CPU, in its stored type elsewhere.
    pub(super) fn from_safetensors(folder: &SafetensorsFolder, device: &Device) -> Result<Self> {
        let decoder = described_folder(folder)?;
        let stored = folder.weight_type();
        let dtype = match (device, stored) {
            (Device::Cpu, _) => DType::F32,
            (_, "F16") => DType::F16,
            (_, "BF16") => DType::BF16,
            _ => DType::F32,
        };
        let weights = format!("{stored} as {}", dtype.as_str());
        let format = WeightFormat::Dense(dtype);
        Self::load(folder, &decoder, weights, format, device)
    }

    fn load(
        source: &dyn Weights,
        decoder: &Decoder,
        weights: String,
        format: WeightFormat,
        device: &Device,
    ) -> Result<Self> {
        let spec = &decoder.spec;
        // The kinds that this forward pass computes.
        let Norm::Rms { .. } = decoder.norm;
        let (NormPlace::BeforeBlock, Activation::SiluGated) =
            (decoder.norm_place, decoder.activation);
        let load_layer = |index| Layer::load(index, source, decoder, format, device);
        let layers: Result<Vec<Layer>> = if device.is_cpu() {
            // Dequantization takes most of the load time, so layers are loaded in parallel.
            (0..spec.layers).into_par_iter().map(load_layer).collect()
        } else {
            (0..spec.layers).map(load_layer).collect()
        };
        let failed = || format!("failed to load the {} model", spec.architecture);
        let embedding = ordered_matrix(source, &decoder.embedding(), device)?;
        let embedding =
            Embedding::new(embedding, format, device).or_exit(Exit::Preflight, failed)?;
        let head = match decoder.head() {
            None => embedding.tied_head(),
            Some(head) => {
                let matrix = ordered_matrix(source, &head, device)?;
                Linear::new(vec![matrix], Vec::new(), format, device)
                    .or_exit(Exit::Preflight, failed)?
            }
        };
        let norm = required_vector(source, &decoder.output_norm(), device)?
            .to_dtype(format.activations())
            .or_exit(Exit::Preflight, failed)?;
        let [rope] = &decoder.ropes[..] else {
            return Err(Error::preflight(format!(
                "BACKEND=candle rotates all layers alike, which a {} model does not",
                spec.architecture
            ))
            .hint("set BACKEND=auto"));
        };
        let frequencies = frequencies(source, rope, spec.head_size)?;
        let context = spec.context_length;
        let rope = Rope::new(frequencies, context, format.activations(), device)
            .or_exit(Exit::Preflight, failed)?;
        Ok(Self {
            device: device.clone(),
            format,
            weights,
            embedding,
            layers: layers?,
            norm,
            head,
            rope,
            kv: KvPages::new(spec, format.activations(), device),
            policy: match device {
                Device::Cpu => Policy::cpu(format.activations() == DType::F32),
                _ => Policy::gpu(),
            },
            opened: 0,
            spec: spec.clone(),
        })
    }

    /// Validates a batch before anything is computed.
    fn check(&self, chunks: &[Chunk<'_>]) -> Result<()> {
        let mut seen = HashSet::new();
        for chunk in chunks {
            check_chunk(chunk, chunk.start, &self.spec)?;
            check_pages(chunk, self.kv.capacity())?;
            if !seen.insert(chunk.slot) {
                return Err(Error::flow(format!(
                    "sequence {} is in the batch twice",
                    chunk.slot.0
                )));
            }
        }
        Ok(())
    }

    fn compute(&mut self, chunks: &[Chunk<'_>]) -> candle_core::Result<Vec<Vec<f32>>> {
        let plan = Plan::new(chunks, &self.spec, self.policy);
        let (pass, ends) = PlannedPass::new(
            plan,
            &self.spec,
            self.policy,
            &mut self.rope,
            self.format.activations(),
            &self.device,
        )?;
        let mut x = self.embedding.lookup(&ends.tokens)?;
        for layer in &self.layers {
            x = layer.forward(&x, &pass, &self.kv)?;
        }
        let Some(wanted) = &ends.wanted else {
            return Ok(Vec::new());
        };
        let x = x.index_select(wanted, 0)?;
        let x = rms_norm(&x, &self.norm, self.spec.norm_epsilon as f32)?;
        self.head.forward(&x)?.to_dtype(DType::F32)?.to_vec2()
    }
}

impl Model for CandleModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn backend(&self) -> &'static str {
        "candle"
    }

    fn weights(&self) -> String {
        self.weights.clone()
    }

    fn max_sequences(&self) -> usize {
        // Same as the native backend; the caller limits the memory for keys and values.
        4096
    }

    fn page_bytes(&self) -> Option<usize> {
        Some(self.kv.page_bytes())
    }

    fn set_pages(&mut self, pages: usize) -> Result<()> {
        let page_bytes = self.kv.page_bytes();
        self.kv
            .resize(pages)
            .map_err(|source| no_room_for_pages(pages, page_bytes, source))
    }

    fn provide_pages(&mut self, pages: usize) -> usize {
        match self.kv.provide(pages) {
            Ok(()) => pages,
            Err(_) => self.kv.pages(),
        }
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        self.kv
            .provide(from.max(to) as usize + 1)
            .and_then(|()| self.kv.copy(from, to))
            .or_exit(Exit::FlowFailed, || "failed to copy a page".to_owned())
    }

    fn open(&mut self) -> Result<Slot> {
        self.opened += 1;
        Ok(Slot(self.opened))
    }

    fn close(&mut self, _: Slot) {}

    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        self.check(chunks)?;
        let pages = chunks.iter().flat_map(|chunk| chunk.pages).max();
        self.kv
            .provide(pages.map_or(0, |last| *last as usize + 1))
            .or_exit(Exit::FlowFailed, || {
                "the memory for keys and values cannot grow".to_owned()
            })?;
        let logits = if self.device.is_cpu() {
            // Runs inside the thread pool, so that operations on a few rows need not enter it. This
            // saves 10 % of a decode step.
            rayon::scope(|_| self.compute(chunks))
        } else {
            self.compute(chunks)
        };
        logits.or_exit(Exit::FlowFailed, || "the forward pass failed".to_owned())
    }

    fn synchronize(&self) -> Result<()> {
        self.device
            .synchronize()
            .or_exit(Exit::FlowFailed, || "the device failed".to_owned())
    }
}
