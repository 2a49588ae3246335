//! The tuned CPU forward pass. It runs what [`crate::engine::decoder`] describes.
//!
//! All tokens of a pass are rows of one `[tokens, hidden]` matrix, whatever sequences they belong to.
//! Weights are repacked without loss; activations are quantised to int8 in blocks of 32 before each
//! product with quantised weights; keys and values are paged integers with scales. Every number is made
//! by a fixed sequence of operations (see [`flowbench_kernels`]), so a sequence's logits have the same
//! bits alone or in a batch, in one chunk or many, on one thread or several.

mod attention;
mod pass;
mod prefetch_plan;
pub(super) mod rotation;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod weights;

use super::source::{Weights, described_folder, described_gguf, frequencies};
use super::{
    Chunk, Model, ModelSpec, Slot, WeightBytes, check_chunk, check_pages, no_room_for_pages,
    split_rows,
};
use crate::engine::decoder::Decoder;
use crate::engine::kernels::{Kernels, KvMemory, KvShape, Matrices, PAGE, Pool, SlotMapping};
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::engine::memory;
use crate::environment::cpu_threads;
use crate::error::{Context, Error, Exit, Result};
use crate::profile::{self, Span};

use attention::Heads;
use pass::{NativePass, Scratch};
use prefetch_plan::PrefetchPlan;
use rotation::Rotation;
use weights::{Layer, NativeWeights};

pub(super) use weights::check_types;

/// The tuned CPU forward pass.
pub(crate) struct NativeModel {
    decoder: Decoder,
    weight_type: String,
    kernels: Kernels,
    pool: Pool,
    weights: NativeWeights,
    /// One for each of [`Decoder::ropes`].
    rotations: Vec<Rotation>,
    kv: KvMemory,
    /// Sequences opened so far: a slot is just a number.
    opened: usize,
    scratch: Scratch,
}

impl NativeModel {
    /// Loads the model of a GGUF file.
    ///
    /// # Errors
    /// Exit code 3 if a tensor is missing, has another shape, or a type without a kernel.
    pub(super) fn from_gguf(file: &GgufFile) -> Result<Self> {
        let decoder = described_gguf(file)?;
        Self::load(file, decoder, file.weight_type(), cpu_threads())
    }

    /// Loads the model of a safetensors folder.
    ///
    /// # Errors
    /// As [`Self::from_gguf`].
    pub(super) fn from_safetensors(folder: &SafetensorsFolder) -> Result<Self> {
        let stored = folder.weight_type().to_owned();
        let decoder = described_folder(folder)?;
        Self::load(folder, decoder, stored, cpu_threads())
    }

    /// Loads and repacks the weights. `threads` includes the caller's.
    fn load(
        source: &dyn Weights,
        decoder: Decoder,
        weight_type: String,
        threads: usize,
    ) -> Result<Self> {
        let pool = Pool::new(threads)
            .map_err(|source| Error::preflight("failed to start threads").caused_by(source))?;
        let weights = NativeWeights::load(source, &decoder, &pool)?;
        let spec = &decoder.spec;
        let rotations = decoder.ropes.iter();
        let rotations = rotations
            .map(|rope| frequencies(source, rope, spec.head_size).map(Rotation::new))
            .collect::<Result<_>>()?;
        let kv_shape = KvShape {
            kv_heads: spec.kv_heads,
            head_size: spec.head_size,
        };
        Ok(Self {
            kernels: Kernels::best(),
            kv: KvMemory::reserve(kv_shape, spec.layers, 0).or_exit(Exit::Preflight, || {
                "no memory for keys and values".to_owned()
            })?,
            opened: 0,
            scratch: Scratch::default(),
            decoder,
            weight_type,
            pool,
            weights,
            rotations,
        })
    }
}

impl Model for NativeModel {
    fn spec(&self) -> &ModelSpec {
        &self.decoder.spec
    }

    fn backend(&self) -> &'static str {
        "native"
    }

    fn weights(&self) -> String {
        let activations = match self.weights.is_quantised() {
            true => "int8",
            false => "f32",
        };
        let isa = self.kernels.isa();
        format!(
            "{} with {activations} activations, {isa:?} kernels",
            self.weight_type
        )
    }

    fn weight_bytes(&self) -> Option<WeightBytes> {
        Some(self.weights.bytes())
    }

    fn checks_guesses(&self) -> bool {
        true
    }

    fn max_sequences(&self) -> usize {
        // A pass needs little memory for each; memory for keys and values is the caller's concern.
        4096
    }

    fn page_bytes(&self) -> Option<usize> {
        Some(self.kv.shape().page_bytes() * self.decoder.spec.layers)
    }

    fn set_pages(&mut self, pages: usize) -> Result<()> {
        let shape = self.kv.shape();
        self.kv = KvMemory::reserve(shape, self.decoder.spec.layers, pages).map_err(|source| {
            no_room_for_pages(pages, shape.page_bytes() * self.decoder.spec.layers, source)
        })?;
        Ok(())
    }

    fn provide_pages(&mut self, pages: usize) -> usize {
        match self.kv.provide(pages) {
            Ok(()) => pages,
            Err(_) => self.kv.pages(),
        }
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        self.kv
            .prefault(&self.pool, from.max(to))
            .or_exit(Exit::FlowFailed, || "failed to copy a page".to_owned())?;
        self.kv.copy_page(from, to);
        Ok(())
    }

    fn open(&mut self) -> Result<Slot> {
        self.opened += 1;
        Ok(Slot(self.opened))
    }

    fn close(&mut self, _: Slot) {}

    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>> {
        split_rows(self, chunks)
    }

    fn forward_into(&mut self, chunks: &[Chunk<'_>], logits: &mut Vec<f32>) -> Result<()> {
        for chunk in chunks {
            check_chunk(chunk, chunk.start, &self.decoder.spec)?;
            check_pages(chunk, self.kv.capacity())?;
        }
        if chunks.is_empty() {
            logits.clear();
            return Ok(());
        }
        let mut positions = Vec::new();
        let mut slots = Vec::new();
        let mut wanted = Vec::new();
        for chunk in chunks {
            for position in (chunk.start..).take(chunk.tokens.len()) {
                positions.push(position);
                slots.push((chunk.pages[position / PAGE], position % PAGE));
            }
            if chunk.logits {
                wanted.push(positions.len() - 1);
            }
        }
        let slots = SlotMapping::new(slots);
        // The tokens whose logits are wanted, one chunk each.
        let ends: Vec<Chunk<'_>> = chunks
            .iter()
            .filter(|chunk| chunk.logits)
            .map(|chunk| Chunk {
                tokens: &chunk.tokens[chunk.tokens.len() - 1..],
                start: chunk.start + chunk.tokens.len() - 1,
                ..*chunk
            })
            .collect();
        let ends_at: Vec<usize> = ends.iter().map(|end| end.start).collect();
        let last = positions.iter().max();
        for rotation in &mut self.rotations {
            rotation
                .ensure_capacity(last.map_or(0, |last| last + 1))
                .or_exit(Exit::FlowFailed, no_memory)?;
        }

        let Self {
            decoder,
            kernels,
            pool,
            weights,
            rotations,
            kv,
            scratch,
            ..
        } = self;
        let spec = &decoder.spec;
        let heads = Heads::of(spec);
        let mut pass = NativePass {
            decoder,
            kernels: *kernels,
            pool,
            rotations,
            heads,
            attention: attention::cut(chunks, heads, pool.threads()),
            positions: &positions,
            slots: &slots,
            prefetch: PrefetchPlan::of(
                chunks,
                spec.layer_products(),
                kv.shape().page_bytes(),
                pool.threads(),
            ),
        };
        if let Some(page) = slots.last_page() {
            kv.prefault(pool, page).or_exit(Exit::FlowFailed, || {
                "the memory for keys and values cannot grow".to_owned()
            })?;
        }
        memory::check(pass.attention.scratch_bytes(pool.threads()))
            .and_then(|()| scratch.ensure_capacity(spec, positions.len()))
            .and_then(|()| memory::ensure_len(logits, wanted.len() * spec.vocabulary, 0.0))
            .or_exit(Exit::FlowFailed, no_memory)?;
        let tokens = chunks.iter().flat_map(|chunk| chunk.tokens);
        let embedding = profile::span(Span::Embedding);
        for (row, token) in scratch.stream.chunks_exact_mut(spec.hidden).zip(tokens) {
            weights.embedding.row(*token as usize, row);
        }
        drop(embedding);
        scratch.delta[..positions.len() * spec.hidden].fill(0.0);
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        let last_layer = weights.layers.len().saturating_sub(1);
        for (index, layer) in weights.layers.iter().enumerate() {
            pass.inputs(layer, kv, index, scratch);
            if index == last_layer && wanted.len() < positions.len() {
                // The rest is only needed for logits.
                scratch.keep(spec, &wanted);
                pass = NativePass {
                    attention: attention::cut(&ends, heads, pool.threads()),
                    positions: &ends_at,
                    ..pass
                };
            }
            let following = weights.layers.get(index + 1).map(Layer::inputs);
            let next: &[_] = match &following {
                Some(inputs) => inputs,
                None => &[head],
            };
            pass.rest(layer, kv, index, Matrices::Each(next), scratch);
        }
        pass.head(&weights.norm, head, scratch, logits);
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

fn no_memory() -> String {
    "there is no memory for what a forward pass computes on the way".to_owned()
}
