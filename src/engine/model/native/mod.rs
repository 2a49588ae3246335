//! The tuned CPU forward pass of the Llama family (Llama, SmolLM2, Mistral, Qwen2 with its biases,
//! Qwen3 with its head norms).
//!
//! All tokens of a pass are rows of one `[tokens, hidden]` matrix, whatever sequences they belong to.
//! Weights are repacked without loss; activations are quantised to int8 in blocks of 32 before each
//! product with quantised weights; keys and values are paged integers with scales. Every number is made
//! by a fixed sequence of operations (see [`flowbench_kernels`]), so a sequence's logits have the same
//! bits alone or in a batch, in one chunk or many, on one thread or several.

mod attention;
mod prefetch_plan;
#[cfg(test)]
pub(super) mod tests;
mod weights;

use super::source::{Weights, check_names, checked_spec, frequencies};
use super::{
    Chunk, Model, ModelSpec, Slot, WeightBytes, check_chunk, check_pages, no_room_for_pages,
};
use crate::engine::kernels::{
    ActivationBlock, AttentionPlan, BLOCK, Input, Kernels, KvLayer, KvMemory, KvPrefetch, KvShape,
    Matrices, PAGE, PackedMatrix, Pool, Product, RowsMut, SlotMapping, Swiglu,
};
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::engine::memory::{self, OutOfMemory};
use crate::environment::cpu_threads;
use crate::error::{Context, Error, Exit, Result};
use crate::profile::{self, Span};

use attention::Heads;
use prefetch_plan::{LayerPhase, PrefetchPlan};
use weights::{Layer, Linear, NativeWeights};

pub(super) use weights::check_types;

/// Minimum tokens per part between two products: for fewer, handing them to the pool does not pay.
const FEW_TOKENS: usize = 4;

/// Initial positions of the rotation table; it grows with the sequences.
const FIRST_POSITIONS: usize = 1024;

/// The tuned CPU forward pass.
pub(crate) struct NativeModel {
    spec: ModelSpec,
    weight_type: String,
    kernels: Kernels,
    pool: Pool,
    weights: NativeWeights,
    rotation: Rotation,
    kv: KvMemory,
    /// Sequences opened so far: a slot is just a number.
    opened: usize,
    scratch: Scratch,
}

/// A pass's intermediate results, kept so that a pass allocates nothing.
#[derive(Default)]
struct Scratch {
    /// The residual stream, `[tokens, hidden]`.
    stream: Vec<f32>,
    /// What the last block adds to the stream, `[tokens, hidden]`.
    delta: Vec<f32>,
    /// `[tokens, hidden]`.
    normed: Vec<f32>,
    /// The quantised input of the next product, except for the down projection's.
    blocks: Vec<ActivationBlock>,
    /// The quantised input of the down projection.
    gated: Vec<ActivationBlock>,
    /// `[tokens, heads · head_size]`.
    queries: Vec<f32>,
    /// `[tokens, kv_heads · head_size]`.
    keys: Vec<f32>,
    /// `[tokens, kv_heads · head_size]`.
    values: Vec<f32>,
    /// `[tokens, heads · head_size]`.
    attended: Vec<f32>,
    /// `[tokens, intermediate]`.
    gate: Vec<f32>,
    /// `[tokens, intermediate]`.
    up: Vec<f32>,
}

impl NativeModel {
    /// Loads the model of a GGUF file.
    ///
    /// # Errors
    /// Exit code 3 if a tensor is missing, has another shape, or a type without a kernel.
    pub(super) fn from_gguf(file: &GgufFile) -> Result<Self> {
        let spec = checked_spec(file)?;
        Self::load(file, spec, file.weight_type(), cpu_threads())
    }

    /// Loads the model of a safetensors folder.
    ///
    /// # Errors
    /// As [`Self::from_gguf`].
    pub(super) fn from_safetensors(folder: &SafetensorsFolder) -> Result<Self> {
        let stored = folder.weight_type().to_owned();
        let spec = folder.spec()?;
        check_names(folder, &spec, folder.tensor_names())?;
        Self::load(folder, spec, stored, cpu_threads())
    }

    /// Loads and repacks the weights. `threads` includes the caller's.
    fn load(
        weights: &dyn Weights,
        spec: ModelSpec,
        weight_type: String,
        threads: usize,
    ) -> Result<Self> {
        let pool = Pool::new(threads)
            .map_err(|source| Error::preflight("failed to start threads").caused_by(source))?;
        let weights = NativeWeights::load(weights, &spec, &pool)?;
        let rotation = Rotation::new(&spec, weights.rope_divisors.as_deref());
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
            spec,
            weight_type,
            pool,
            weights,
            rotation,
        })
    }

    fn heads(&self) -> Heads {
        Heads {
            kv_heads: self.spec.kv_heads,
            group: self.spec.heads / self.spec.kv_heads,
            head_size: self.spec.head_size,
        }
    }
}

impl Model for NativeModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
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
        Some(self.kv.shape().page_bytes() * self.spec.layers)
    }

    fn set_pages(&mut self, pages: usize) -> Result<()> {
        let shape = self.kv.shape();
        self.kv = KvMemory::reserve(shape, self.spec.layers, pages).map_err(|source| {
            no_room_for_pages(pages, shape.page_bytes() * self.spec.layers, source)
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
        let mut logits = Vec::new();
        self.forward_into(chunks, &mut logits)?;
        let rows = logits.chunks_exact(self.spec.vocabulary);
        Ok(rows.map(<[f32]>::to_vec).collect())
    }

    fn forward_into(&mut self, chunks: &[Chunk<'_>], logits: &mut Vec<f32>) -> Result<()> {
        for chunk in chunks {
            check_chunk(chunk, chunk.start, &self.spec)?;
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
        self.rotation
            .ensure_capacity(last.map_or(0, |last| last + 1))
            .or_exit(Exit::FlowFailed, no_memory)?;

        let heads = self.heads();
        let Self {
            spec,
            kernels,
            pool,
            weights,
            rotation,
            kv,
            scratch,
            ..
        } = self;
        let mut pass = NativePass {
            spec,
            kernels: *kernels,
            pool,
            rotation,
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

impl Scratch {
    /// Makes sure that the buffers fit `tokens` tokens.
    ///
    /// # Errors
    /// There is no memory for them.
    fn ensure_capacity(&mut self, spec: &ModelSpec, tokens: usize) -> Result<(), OutOfMemory> {
        let queries = spec.heads * spec.head_size;
        let keys = spec.kv_heads * spec.head_size;
        for (numbers, width) in [
            (&mut self.stream, spec.hidden),
            (&mut self.delta, spec.hidden),
            (&mut self.normed, spec.hidden),
            (&mut self.queries, queries),
            (&mut self.keys, keys),
            (&mut self.values, keys),
            (&mut self.attended, queries),
            (&mut self.gate, spec.intermediate),
            (&mut self.up, spec.intermediate),
        ] {
            memory::ensure_len(numbers, tokens * width, 0.0)?;
        }
        for (blocks, width) in [
            (&mut self.blocks, spec.hidden.max(queries)),
            (&mut self.gated, spec.intermediate),
        ] {
            let count = tokens * width.div_ceil(BLOCK);
            memory::ensure_len(blocks, count, ActivationBlock::default())?;
        }
        Ok(())
    }

    /// Keeps only the streams and queries of these tokens (in ascending order), moved to the front.
    fn keep(&mut self, spec: &ModelSpec, tokens: &[usize]) {
        let queries = spec.heads * spec.head_size;
        for (to, &from) in tokens.iter().enumerate() {
            for (numbers, width) in [
                (&mut self.stream, spec.hidden),
                (&mut self.queries, queries),
            ] {
                numbers.copy_within(from * width..(from + 1) * width, to * width);
            }
        }
    }
}

struct NativePass<'a> {
    spec: &'a ModelSpec,
    kernels: Kernels,
    pool: &'a Pool,
    rotation: &'a Rotation,
    heads: Heads,
    attention: AttentionPlan<'a>,
    /// Position of each token of the pass.
    positions: &'a [usize],
    /// Where their keys and values go.
    slots: &'a SlotMapping,
    /// Keys and values to prefetch for the next layer.
    prefetch: PrefetchPlan,
}

impl NativePass<'_> {
    /// The first part of a transformer block: queries, and the keys and values that later tokens need.
    /// On entry, `scratch.delta` has yet to be added to the stream.
    fn inputs(&self, layer: &Layer, kv: &mut KvMemory, index: usize, scratch: &mut Scratch) {
        self.add_and_norm(&layer.attention_norm, scratch);
        self.products(
            [&layer.query, &layer.key, &layer.value],
            [&mut scratch.queries, &mut scratch.keys, &mut scratch.values],
            &scratch.normed,
            &scratch.blocks,
            Matrices::Each(&[&layer.output.matrix]),
            self.prefetch.kv_during(LayerPhase::Inputs, kv, index),
        );
        self.rotate(layer, scratch);
        let _span = profile::span(Span::KvWrite);
        let numbers = self.positions.len() * self.heads.kv_heads * self.heads.head_size;
        let (keys, values) = (&scratch.keys[..numbers], &scratch.values[..numbers]);
        self.kernels
            .write_kv(self.pool, kv, index, self.slots, keys, values);
    }

    /// The rest of the block. On return, `scratch.delta` is this block's. `next` are the matrices
    /// multiplied after it, whose first weights are prefetched.
    fn rest(
        &self,
        layer: &Layer,
        kv: &KvMemory,
        index: usize,
        next: Matrices<'_>,
        scratch: &mut Scratch,
    ) {
        if self.positions.is_empty() {
            return;
        }
        self.attend(kv.layer(index), scratch);
        let attended = self.heads.token_numbers();
        self.quantise(&scratch.attended, attended, &mut scratch.blocks);
        self.products(
            [&layer.output],
            [&mut scratch.delta],
            &scratch.attended,
            &scratch.blocks,
            Matrices::Together(&[&layer.gate.matrix, &layer.up.matrix]),
            self.prefetch.kv_during(LayerPhase::Output, kv, index + 1),
        );

        self.add_and_norm(&layer.feed_forward_norm, scratch);
        self.gate(
            layer,
            self.prefetch
                .kv_during(LayerPhase::GateAndUp, kv, index + 1),
            scratch,
        );
        self.products(
            [&layer.down],
            [&mut scratch.delta],
            &scratch.gate,
            &scratch.gated,
            next,
            self.prefetch.kv_during(LayerPhase::Down, kv, index + 1),
        );
    }

    /// `stream += delta`, `normed = rms_norm(stream)`, and its quantisation.
    fn add_and_norm(&self, norm: &[f32], scratch: &mut Scratch) {
        let _span = profile::span(Span::Norm);
        let hidden = self.spec.hidden;
        let epsilon = self.spec.norm_epsilon as f32;
        let kernels = self.kernels;
        let delta = &scratch.delta;
        self.pool.rows3(
            self.positions.len(),
            self.step(),
            RowsMut::new(&mut scratch.stream, hidden),
            RowsMut::new(&mut scratch.normed, hidden),
            RowsMut::new(&mut scratch.blocks, block_width(hidden)),
            |first, stream, normed, blocks| {
                let delta = &delta[first * hidden..][..stream.len()];
                kernels.add(stream, delta);
                let rows = stream.chunks_exact(hidden);
                for (row, normed) in rows.zip(normed.chunks_exact_mut(hidden)) {
                    kernels.rms_norm(row, norm, epsilon, normed);
                }
                if !blocks.is_empty() {
                    kernels.quantize(normed, blocks);
                }
            },
        );
    }

    /// Head norms of queries and keys, and their rotary embedding.
    fn rotate(&self, layer: &Layer, scratch: &mut Scratch) {
        let _span = profile::span(Span::Rope);
        let size = self.heads.head_size;
        let widths = (self.spec.heads * size, self.heads.kv_heads * size);
        self.pool.rows2(
            self.positions.len(),
            self.step(),
            RowsMut::new(&mut scratch.queries, widths.0),
            RowsMut::new(&mut scratch.keys, widths.1),
            |first, queries, keys| {
                let positions = &self.positions[first..];
                let rows = queries
                    .chunks_exact_mut(widths.0)
                    .zip(keys.chunks_exact_mut(widths.1));
                let mut normed = vec![0.0; size];
                for (position, (queries, keys)) in positions.iter().zip(rows) {
                    let sides = [(queries, &layer.query_norm), (keys, &layer.key_norm)];
                    for (numbers, norm) in sides {
                        for head in numbers.chunks_exact_mut(size) {
                            if let Some(norm) = norm {
                                let epsilon = self.spec.norm_epsilon as f32;
                                self.kernels.rms_norm(head, norm, epsilon, &mut normed);
                                head.copy_from_slice(&normed);
                            }
                            self.rotation.rotate(self.kernels, head, *position);
                        }
                    }
                }
            },
        );
    }

    fn attend(&self, kv: KvLayer<'_>, scratch: &mut Scratch) {
        let _span = profile::span(Span::Attention);
        let scale = 1.0 / (self.heads.head_size as f32).sqrt();
        self.kernels.attend_all(
            self.pool,
            kv,
            &self.attention,
            scale,
            &scratch.queries,
            &mut scratch.attended,
        );
    }

    /// `gate = silu(normed · gateᵀ) · (normed · upᵀ)`, and its quantisation.
    fn gate(&self, layer: &Layer, prefetch: Option<KvPrefetch<'_>>, scratch: &mut Scratch) {
        let _span = profile::span(Span::Gate);
        let (tokens, width) = (self.positions.len(), self.spec.intermediate);
        let gated = Swiglu {
            gate: Product {
                weights: &layer.gate.matrix,
                output: &mut scratch.gate[..tokens * width],
            },
            up: Product {
                weights: &layer.up.matrix,
                output: &mut scratch.up[..tokens * width],
            },
            gate_bias: layer.gate.bias.as_deref(),
            up_bias: layer.up.bias.as_deref(),
            blocks: &mut scratch.gated[..tokens * block_width(width)],
        };
        let input = self.input(self.spec.hidden, &scratch.normed, &scratch.blocks);
        let next = Matrices::Each(&[&layer.down.matrix]);
        self.kernels
            .matmul_swiglu(self.pool, gated, input, next, prefetch);
    }

    /// Quantises `values`, `[tokens, cols]`, for the next product.
    fn quantise(&self, values: &[f32], cols: usize, blocks: &mut [ActivationBlock]) {
        let _span = profile::span(Span::Quantise);
        let tokens = self.positions.len();
        let width = block_width(cols);
        if width == 0 {
            return;
        }
        self.pool.rows1(
            tokens,
            self.step(),
            RowsMut::new(blocks, width),
            |first, blocks| {
                let values = &values[first * cols..][..blocks.len() * BLOCK];
                self.kernels.quantize(values, blocks);
            },
        );
    }

    /// Products of one input, `[tokens, cols]`, with several matrices, plus their biases. `next` are
    /// the matrices multiplied after them, whose first weights are prefetched.
    fn products<const N: usize>(
        &self,
        linears: [&Linear; N],
        outputs: [&mut Vec<f32>; N],
        values: &[f32],
        blocks: &[ActivationBlock],
        next: Matrices<'_>,
        prefetch: Option<KvPrefetch<'_>>,
    ) {
        let _span = profile::span(Span::Linear);
        let pairs = linears.iter().zip(outputs);
        let mut products: Vec<_> = pairs
            .map(|(linear, output)| Product {
                weights: &linear.matrix,
                output: &mut output[..self.positions.len() * linear.matrix.rows()],
            })
            .collect();
        self.multiply(&mut products, values, blocks, next, prefetch);
        for (linear, product) in linears.iter().zip(products) {
            if let Some(bias) = &linear.bias {
                self.add_bias(bias, product.output);
            }
        }
    }

    fn add_bias(&self, bias: &[f32], output: &mut [f32]) {
        self.pool.rows1(
            self.positions.len(),
            self.step(),
            RowsMut::new(output, bias.len()),
            |_, output| {
                for row in output.chunks_exact_mut(bias.len()) {
                    self.kernels.add(row, bias);
                }
            },
        );
    }

    fn multiply(
        &self,
        products: &mut [Product<'_>],
        values: &[f32],
        blocks: &[ActivationBlock],
        next: Matrices<'_>,
        prefetch: Option<KvPrefetch<'_>>,
    ) {
        let cols = products.first().map_or(0, |product| product.weights.cols());
        let input = self.input(cols, values, blocks);
        self.kernels
            .matmul(self.pool, products, input, next, prefetch);
    }

    /// The input of a product: the pass's tokens, `cols` numbers each.
    fn input<'i>(
        &self,
        cols: usize,
        values: &'i [f32],
        blocks: &'i [ActivationBlock],
    ) -> Input<'i> {
        let tokens = self.positions.len();
        Input {
            tokens,
            values: &values[..tokens * cols],
            blocks: &blocks[..tokens * (cols / BLOCK)],
        }
    }

    /// The logits of all tokens.
    fn head(
        &self,
        norm: &[f32],
        head: &PackedMatrix,
        scratch: &mut Scratch,
        logits: &mut Vec<f32>,
    ) {
        let _span = profile::span(Span::Head);
        let tokens = self.positions.len();
        // Every number is overwritten below, so stale contents need no clearing.
        logits.resize(tokens * self.spec.vocabulary, 0.0);
        self.add_and_norm(norm, scratch);
        let mut products = [Product {
            weights: head,
            output: logits,
        }];
        let next = Matrices::Each(&[]);
        self.multiply(&mut products, &scratch.normed, &scratch.blocks, next, None);
    }

    /// Rows per part between two products.
    fn step(&self) -> usize {
        self.positions
            .len()
            .div_ceil(4 * self.pool.threads())
            .max(FEW_TOKENS)
    }
}

/// Blocks of a token of `cols` numbers; 0 if these are not whole blocks: then the weights are dense and
/// take unquantised activations.
fn block_width(cols: usize) -> usize {
    match cols.is_multiple_of(BLOCK) {
        true => cols / BLOCK,
        false => 0,
    }
}

/// Cosines and sines of the rotary embedding, for every position so far.
struct Rotation {
    /// The angle of pair `i` of a head from one position to the next, in radians.
    frequencies: Vec<f32>,
    /// `[positions, pairs]`.
    cos: Vec<f32>,
    /// `[positions, pairs]`.
    sin: Vec<f32>,
}

impl Rotation {
    fn new(spec: &ModelSpec, divisors: Option<&[f32]>) -> Self {
        Self {
            frequencies: frequencies(spec, divisors),
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Extends the tables to at least `positions` positions.
    ///
    /// # Errors
    /// There is no memory for them.
    fn ensure_capacity(&mut self, positions: usize) -> Result<(), OutOfMemory> {
        let pairs = self.frequencies.len();
        let have = self.cos.len() / pairs;
        if positions <= have {
            return Ok(());
        }
        let reach = positions.next_power_of_two().max(FIRST_POSITIONS);
        for table in [&mut self.cos, &mut self.sin] {
            memory::ensure_capacity(table, reach * pairs)?;
        }
        for position in have..reach {
            for frequency in &self.frequencies {
                let angle = position as f32 * frequency;
                self.cos.push(angle.cos());
                self.sin.push(angle.sin());
            }
        }
        Ok(())
    }

    fn rotate(&self, kernels: Kernels, head: &mut [f32], position: usize) {
        let pairs = self.frequencies.len();
        let row = position * pairs..(position + 1) * pairs;
        kernels.rope_neox(head, &self.cos[row.clone()], &self.sin[row]);
    }
}
