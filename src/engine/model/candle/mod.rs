//! Forward pass on candle's tensors, on the CPU. It runs what [`crate::engine::decoder`] describes: the
//! reference for the other forward passes, and for weights that they have no kernels for.
//!
//! Batches are ragged: each chunk has its own length and position. All tokens are rows of one
//! matrix `[tokens, hidden]`, so each weight is read once per pass, whatever the number of
//! sequences. Keys and values are in pages that sequences can share. A pass is first planned as
//! integers ([`plan`]), of which the tensors that all layers read are made ([`pass`]).
//!
//! How a sequence's logits depend on the rest of the batch: on a CPU with AVX2, attention returns
//! the same bits in any batch, and so does a whole pass of up to 64 tokens. Larger passes use the
//! `gemm` crate, which chooses the order of summation by the sizes, so the last bits can differ. For
//! the same reason, they can differ between a prompt in one chunk and in several.

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

use candle_core::{Device, Tensor};
use candle_nn::ops::rms_norm;
use rayon::prelude::*;

use self::dense::Kernel;
use self::kv::KvPages;
use self::layer::Layer;
use self::linear::{Embedding, Linear};
use self::pass::PlannedPass;
use self::plan::Plan;
use self::rope::Rope;
use super::source::{
    Weights, described_folder, described_gguf, frequencies, ordered_matrix, required_vector,
};
use super::{Chunk, Model, ModelSpec, Slot, check_chunk, check_pages, no_room_for_pages};
use crate::engine::decoder::{Activation, Decoder, Norm, NormPlace};
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::error::{Context, Error, Exit, Result};

/// Where candle's tensors are.
const CPU: &Device = &Device::Cpu;

/// A described model, in f32.
pub(super) struct CandleModel {
    spec: ModelSpec,
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
    /// For the attention of single tokens, whose pages are read in place; `None`: their pages are gathered
    /// like those of other sequences.
    pagewise: Option<Kernel>,
    /// Number of sequences opened so far; slots are numbered by it and have no other state.
    opened: usize,
}

impl CandleModel {
    /// Loads a GGUF model.
    pub(super) fn from_gguf(file: &GgufFile) -> Result<Self> {
        let decoder = described_gguf(file)?;
        Self::load(file, &decoder, &file.weight_type())
    }

    /// Loads a model folder.
    pub(super) fn from_safetensors(folder: &SafetensorsFolder) -> Result<Self> {
        let decoder = described_folder(folder)?;
        Self::load(folder, &decoder, folder.weight_type())
    }

    /// `stored`: the type of the stored weights.
    fn load(source: &dyn Weights, decoder: &Decoder, stored: &str) -> Result<Self> {
        let spec = &decoder.spec;
        // The kinds that this forward pass computes.
        let Norm::Rms { .. } = decoder.norm;
        let (NormPlace::BeforeBlock, Activation::SiluGated) =
            (decoder.norm_place, decoder.activation);
        // Dequantization takes most of the load time, so layers are loaded in parallel.
        let layers: Result<Vec<Layer>> = (0..spec.layers)
            .into_par_iter()
            .map(|index| Layer::load(index, source, decoder))
            .collect();
        let failed = || format!("failed to load the {} model", spec.architecture);
        let embedding = ordered_matrix(source, &decoder.embedding())?;
        let embedding = Embedding::new(embedding).or_exit(Exit::Preflight, failed)?;
        let head = match decoder.head() {
            None => embedding.tied_head(),
            Some(head) => {
                let matrix = ordered_matrix(source, &head)?;
                Linear::new(vec![matrix], Vec::new()).or_exit(Exit::Preflight, failed)?
            }
        };
        let norm = required_vector(source, &decoder.output_norm())?;
        let [rope] = &decoder.ropes[..] else {
            return Err(Error::preflight(format!(
                "BACKEND=candle rotates all layers alike, which a {} model does not",
                spec.architecture
            ))
            .hint("set BACKEND=auto"));
        };
        let frequencies = frequencies(source, rope, spec.head_size)?;
        let rope = Rope::new(frequencies, spec.context_length).or_exit(Exit::Preflight, failed)?;
        Ok(Self {
            weights: format!("{stored} as f32"),
            embedding,
            layers: layers?,
            norm,
            head,
            rope,
            kv: KvPages::new(spec),
            pagewise: Kernel::of_this_cpu(),
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
        let plan = Plan::new(chunks, &self.spec, self.pagewise.is_some());
        let mut x = self
            .embedding
            .lookup(&Tensor::new(&plan.tokens[..], CPU)?)?;
        let wanted = Tensor::new(&plan.wanted[..], CPU)?;
        let pass = PlannedPass::new(plan, &self.spec, self.pagewise, &mut self.rope)?;
        for layer in &self.layers {
            x = layer.forward(&x, &pass, &self.kv)?;
        }
        if wanted.elem_count() == 0 {
            return Ok(Vec::new());
        }
        let x = x.index_select(&wanted, 0)?;
        let x = rms_norm(&x, &self.norm, self.spec.norm_epsilon as f32)?;
        self.head.forward(&x)?.to_vec2()
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
        // Runs inside the thread pool, so that operations on a few rows need not enter it. This saves
        // 10 % of a decode step.
        let logits = rayon::scope(|_| self.compute(chunks));
        logits.or_exit(Exit::FlowFailed, || "the forward pass failed".to_owned())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
