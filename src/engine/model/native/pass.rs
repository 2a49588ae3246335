//! One pass: the operations of a transformer block over all tokens of the pass, and their buffers.

use super::attention::Heads;
use super::prefetch_plan::{LayerPhase, PrefetchPlan};
use super::rotation::Rotation;
use super::weights::{Layer, Linear};
use crate::engine::decoder::{Activation, Decoder, Norm, NormPlace};
use crate::engine::kernels::{
    ActivationBlock, AttentionPlan, BLOCK, Input, Kernels, KvLayer, KvMemory, KvPrefetch, Matrices,
    PackedMatrix, Pool, Product, RowsMut, SlotMapping, Swiglu,
};
use crate::engine::memory::{self, OutOfMemory};
use crate::engine::model::ModelSpec;
use crate::profile::{self, Span};

/// Minimum tokens per part between two products: for fewer, handing them to the pool does not pay.
const FEW_TOKENS: usize = 4;

/// A pass's intermediate results, kept so that a pass allocates nothing.
#[derive(Default)]
pub(super) struct Scratch {
    /// The residual stream, `[tokens, hidden]`.
    pub(super) stream: Vec<f32>,
    /// What the last block adds to the stream, `[tokens, hidden]`.
    pub(super) delta: Vec<f32>,
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

impl Scratch {
    /// Makes sure that the buffers fit `tokens` tokens.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(super) fn ensure_capacity(
        &mut self,
        spec: &ModelSpec,
        tokens: usize,
    ) -> Result<(), OutOfMemory> {
        let (queries, keys) = (spec.query_width(), spec.key_width());
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
    pub(super) fn keep(&mut self, spec: &ModelSpec, tokens: &[usize]) {
        let queries = spec.query_width();
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

/// A pass over some tokens.
pub(super) struct NativePass<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) kernels: Kernels,
    pub(super) pool: &'a Pool,
    /// One for each of [`Decoder::ropes`].
    pub(super) rotations: &'a [Rotation],
    pub(super) heads: Heads,
    pub(super) attention: AttentionPlan<'a>,
    /// Position of each token of the pass.
    pub(super) positions: &'a [usize],
    /// Where their keys and values go.
    pub(super) slots: &'a SlotMapping,
    /// Keys and values to prefetch for the next layer.
    pub(super) prefetch: PrefetchPlan,
}

impl NativePass<'_> {
    /// The first part of a transformer block: queries, and the keys and values that later tokens need.
    /// On entry, `scratch.delta` has yet to be added to the stream.
    pub(super) fn inputs(
        &self,
        layer: &Layer,
        kv: &mut KvMemory,
        index: usize,
        scratch: &mut Scratch,
    ) {
        let NormPlace::BeforeBlock = self.decoder.norm_place;
        self.add_and_norm(&layer.attention_norm, scratch);
        self.products(
            [&layer.query, &layer.key, &layer.value],
            [&mut scratch.queries, &mut scratch.keys, &mut scratch.values],
            &scratch.normed,
            &scratch.blocks,
            Matrices::Each(&[&layer.output.matrix]),
            self.prefetch.kv_during(LayerPhase::Inputs, kv, index),
        );
        self.rotate(layer, index, scratch);
        let _span = profile::span(Span::KvWrite);
        let numbers = self.positions.len() * self.heads.kv_heads * self.heads.head_size;
        let (keys, values) = (&scratch.keys[..numbers], &scratch.values[..numbers]);
        self.kernels
            .write_kv(self.pool, kv, index, self.slots, keys, values);
    }

    /// The rest of the block. On return, `scratch.delta` is this block's. `next` are the matrices
    /// multiplied after it, whose first weights are prefetched.
    pub(super) fn rest(
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
        let hidden = self.decoder.spec.hidden;
        let Norm::Rms { epsilon } = self.decoder.norm;
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
    fn rotate(&self, layer: &Layer, index: usize, scratch: &mut Scratch) {
        let _span = profile::span(Span::Rope);
        let Norm::Rms { epsilon } = self.decoder.norm;
        let rotation = &self.rotations[self.decoder.layer_ropes[index]];
        let size = self.heads.head_size;
        let widths = (self.decoder.spec.heads * size, self.heads.kv_heads * size);
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
                                self.kernels.rms_norm(head, norm, epsilon, &mut normed);
                                head.copy_from_slice(&normed);
                            }
                            rotation.rotate(self.kernels, head, *position);
                        }
                    }
                }
            },
        );
    }

    fn attend(&self, kv: KvLayer<'_>, scratch: &mut Scratch) {
        let _span = profile::span(Span::Attention);
        self.kernels.attend_all(
            self.pool,
            kv,
            &self.attention,
            self.decoder.attention.scale,
            &scratch.queries,
            &mut scratch.attended,
        );
    }

    /// `gate = silu(normed · gateᵀ) · (normed · upᵀ)`, and its quantisation.
    fn gate(&self, layer: &Layer, prefetch: Option<KvPrefetch<'_>>, scratch: &mut Scratch) {
        let _span = profile::span(Span::Gate);
        let Activation::SiluGated = self.decoder.activation;
        let (tokens, width) = (self.positions.len(), self.decoder.spec.intermediate);
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
        let input = self.input(self.decoder.spec.hidden, &scratch.normed, &scratch.blocks);
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
    pub(super) fn head(
        &self,
        norm: &[f32],
        head: &PackedMatrix,
        scratch: &mut Scratch,
        logits: &mut Vec<f32>,
    ) {
        let _span = profile::span(Span::Head);
        let tokens = self.positions.len();
        // Every number is overwritten below, so stale contents need no clearing.
        logits.resize(tokens * self.decoder.spec.vocabulary, 0.0);
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
