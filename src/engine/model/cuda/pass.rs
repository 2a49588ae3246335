//! The launches of a pass. Every number is made by the CPU's sequence of operations, so a quantised model's
//! logits have the CPU's bits.

use super::descriptors::{Heads, Kv, Products};
use super::repack::GROUP;
use super::split::Split;
use super::timing::{Timer, timed};
use super::upload::{ENDS_AT, Layout, SAMPLES_AT};
use super::weights::{GpuLayer, GpuMatrix};
use super::{CudaModel, Scratch};
use crate::engine::cuda::driver::{Arguments, Buffer, Gpu, GpuError, Kernel};
use crate::engine::cuda::kernels::ByTokens;
use crate::engine::decoder::Norm;
use crate::engine::kernels::BLOCK;
use crate::profile::Span;

/// Threads of a block of the products and of the attention, as the kernels are written.
const THREADS: u32 = 128;
/// Threads of a row's block in norms and embeddings.
const ROW_THREADS: u32 = 256;
/// Threads of a row's block in the sampler.
const SAMPLE_THREADS: u32 = 512;
/// Groups of rows of a block of `product_32`.
const TILE_GROUPS: usize = 4;

/// How many rows a pass has, at most: the kernels read the true counts from the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Rows {
    pub(super) tokens: usize,
    /// Tokens whose logits are wanted.
    pub(super) ends: usize,
}

impl Rows {
    /// Of the upload.
    pub(super) fn layout(self) -> Layout {
        Layout::new(self.tokens, self.ends)
    }
}

/// What the kernels read a row count from.
#[derive(Clone, Copy)]
struct Count {
    address: u64,
    /// An upper bound.
    rows: usize,
}

pub(super) struct Pass<'a> {
    model: &'a CudaModel,
    scratch: &'a Scratch,
    layout: Layout,
    rows: Rows,
    split: Option<Split>,
    /// Tiles of the attention of all tokens, and of those whose logits are wanted, at most.
    tiles: [usize; 2],
    timer: Timer<'a>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        model: &'a CudaModel,
        scratch: &'a Scratch,
        rows: Rows,
        split: Option<Split>,
        tiles: [usize; 2],
        timer: Timer<'a>,
    ) -> Self {
        Self {
            model,
            scratch,
            layout: rows.layout(),
            rows,
            split,
            tiles,
            timer,
        }
    }

    fn gpu(&self) -> &Gpu {
        &self.model.gpu
    }

    /// Queues a kernel. Its time counts for `span`.
    fn timed(
        &self,
        span: Span,
        queue: impl FnOnce() -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        timed(self.timer, self.gpu(), span, queue)
    }

    /// All tokens of the pass.
    fn all(&self) -> Count {
        Count {
            address: self.scratch.upload.address(0),
            rows: self.rows.tokens,
        }
    }

    /// The tokens whose logits are wanted.
    fn ends(&self) -> Count {
        Count {
            address: self.scratch.upload.address(ENDS_AT),
            rows: self.rows.ends,
        }
    }

    fn epsilon(&self) -> f32 {
        let Norm::Rms { epsilon } = self.model.decoder.norm;
        epsilon
    }

    fn launch(
        &self,
        kernel: &Kernel,
        grid: [usize; 2],
        threads: u32,
        mut arguments: Arguments,
    ) -> Result<(), GpuError> {
        let [x, y] = grid;
        self.gpu()
            .launch(kernel, [x as u32, y as u32, 1], threads, &mut arguments)
    }

    /// Queues the pass up to the logits.
    pub(super) fn queue(&self) -> Result<(), GpuError> {
        let model = self.model;
        self.timed(Span::Embedding, || self.embed())?;
        let last = model.weights.layers.len() - 1;
        for (index, layer) in model.weights.layers.iter().enumerate() {
            self.inputs(index, layer)?;
            let count = match index == last && self.rows.ends < self.rows.tokens {
                true if self.rows.ends == 0 => return Ok(()),
                true => {
                    self.timed(Span::Norm, || self.keep_ends())?;
                    self.ends()
                }
                false => self.all(),
            };
            self.rest(index, layer, count)?;
        }
        let head = model.weights.head();
        self.add_norm(&model.weights.norm, self.ends(), true)?;
        self.timed(Span::Head, || {
            self.products(
                &[(head, &self.scratch.logits)],
                &self.scratch.normed,
                self.ends(),
            )
        })
    }

    /// Queues the choice of a token for each request, at most as many as there are rows of logits.
    pub(super) fn queue_sampling(&self) -> Result<(), GpuError> {
        let arguments = Arguments::new()
            .buffer(&self.scratch.logits)
            .buffer_at(&self.scratch.upload, self.layout.requests_at())
            .buffer_at(&self.scratch.upload, SAMPLES_AT)
            .u32(self.model.decoder.spec.vocabulary as u32)
            .buffer(&self.scratch.sampled);
        let kernel = &self.model.kernels.sample;
        self.timed(Span::Sample, || {
            self.launch(kernel, [self.rows.ends, 1], SAMPLE_THREADS, arguments)
        })
    }

    fn embed(&self) -> Result<(), GpuError> {
        let arguments = Arguments::new()
            .value(self.model.weights.embedding.descriptor(0, 0))
            .buffer_at(&self.scratch.upload, self.layout.tokens_at())
            .buffer(&self.scratch.upload)
            .buffer(&self.scratch.stream);
        let kernel = &self.model.kernels.embed;
        self.launch(kernel, [self.rows.tokens, 1], ROW_THREADS, arguments)
    }

    /// `stream += delta`, `normed = rms_norm(stream)`, and its quantisation.
    fn add_norm(&self, norm: &Buffer<f32>, count: Count, has_delta: bool) -> Result<(), GpuError> {
        let hidden = self.model.decoder.spec.hidden;
        let arguments = Arguments::new().buffer(&self.scratch.stream);
        let arguments = match has_delta {
            true => arguments.buffer(&self.scratch.delta),
            false => arguments.null(),
        };
        let arguments = arguments
            .buffer(norm)
            .buffer(&self.scratch.normed)
            .u64(self.blocks(hidden))
            .u64(count.address)
            .u32(hidden as u32)
            .f32(self.epsilon());
        let kernel = &self.model.kernels.add_norm;
        self.timed(Span::Norm, || {
            self.launch(kernel, [count.rows, 1], ROW_THREADS, arguments)
        })
    }

    /// The quantised input of the next product, if its rows are whole blocks.
    fn blocks(&self, columns: usize) -> u64 {
        match columns.is_multiple_of(BLOCK) {
            true => self.scratch.blocks.address(0),
            false => 0,
        }
    }

    /// Queries, and the keys and values that later tokens need.
    fn inputs(&self, index: usize, layer: &GpuLayer) -> Result<(), GpuError> {
        let (model, scratch) = (self.model, self.scratch);
        self.add_norm(&layer.attention_norm, self.all(), index > 0)?;
        let [query, key, value] = &layer.inputs;
        self.timed(Span::Linear, || {
            self.products(
                &[
                    (query, &scratch.queries),
                    (key, &scratch.keys),
                    (value, &scratch.values),
                ],
                &scratch.normed,
                self.all(),
            )
        })?;
        let spec = &model.decoder.spec;
        let norm = |norm: &Option<Buffer<f32>>| norm.as_ref().map_or(0, |norm| norm.address(0));
        let rotation = &model.rotations[model.decoder.layer_ropes[index]];
        let heads = Heads {
            query_norm: norm(&layer.query_norm),
            key_norm: norm(&layer.key_norm),
            cos: rotation.cos.address(0),
            sin: rotation.sin.address(0),
            heads: spec.heads as u32,
            pairs: rotation.pairs as u32,
            epsilon: self.epsilon(),
            unused: 0,
        };
        let arguments = Arguments::new()
            .value(heads)
            .value(self.kv(index))
            .buffer(&scratch.queries)
            .buffer(&scratch.keys)
            .buffer(&scratch.values)
            .buffer_at(&scratch.upload, self.layout.tokens_at())
            .buffer_at(&scratch.upload, self.layout.tables_at())
            .buffer(&scratch.upload)
            .buffer(&scratch.whole)
            .buffer(&scratch.factors);
        let grid = [self.rows.tokens, spec.heads + 2 * spec.kv_heads];
        self.timed(Span::Rope, || {
            self.launch(&model.kernels.rotate_and_store, grid, 32, arguments)
        })
    }

    fn kv(&self, layer: usize) -> Kv {
        let (model, spec) = (self.model, &self.model.decoder.spec);
        let layout = model.kv_shape.layout();
        Kv {
            layer: model.pages.address(layer * layout.page),
            page_numbers: (spec.layers * layout.page) as u64,
            kv_heads: spec.kv_heads as u32,
            head_size: spec.head_size as u32,
            head_numbers: layout.head as u32,
            values_at: layout.values_at as u32,
            value_stride: layout.value_stride as u32,
            key_pairs: layout.key_pairs as u32,
            query_limit: model.kv_shape.query_limit(),
            scale: model.decoder.attention.scale,
        }
    }

    /// Keeps only the streams of the tokens whose logits are wanted, moved to the front.
    fn keep_ends(&self) -> Result<(), GpuError> {
        let arguments = Arguments::new()
            .buffer(&self.scratch.stream)
            .buffer_at(&self.scratch.upload, self.layout.ends_at())
            .buffer(&self.scratch.upload)
            .u32(self.model.decoder.spec.hidden as u32);
        let kernel = &self.model.kernels.keep_rows;
        self.launch(kernel, [1, 1], ROW_THREADS, arguments)
    }

    /// Attention and the feed-forward network, for `count` tokens.
    fn rest(&self, index: usize, layer: &GpuLayer, count: Count) -> Result<(), GpuError> {
        let (model, scratch) = (self.model, self.scratch);
        self.timed(Span::Attention, || self.attend(index, count))?;
        self.timed(Span::Linear, || {
            self.products(&[(&layer.output, &scratch.delta)], &scratch.attended, count)
        })?;
        self.add_norm(&layer.feed_forward_norm, count, true)?;
        self.timed(Span::Gate, || self.swiglu(layer, count))?;
        self.timed(Span::Linear, || {
            self.product_of(
                &model.kernels.product,
                &[(&layer.down, &scratch.delta)],
                (scratch.gated.address(0), &scratch.gate),
                count,
            )
        })
    }

    fn attend(&self, index: usize, count: Count) -> Result<(), GpuError> {
        let (scratch, spec) = (self.scratch, &self.model.decoder.spec);
        // A head's columns are whole blocks of the next product's input, or a further launch
        // quantises whole rows.
        let fused = spec.head_size.is_multiple_of(BLOCK);
        let width = spec.heads * spec.head_size;
        let blocks = if fused { scratch.blocks.address(0) } else { 0 };
        let is_ends = count.address != self.all().address;
        match self.split {
            None => self.attend_tiles(index, is_ends, blocks)?,
            Some(split) => self.attend_split(split, index, is_ends, count, blocks)?,
        }
        if fused || !width.is_multiple_of(BLOCK) {
            return Ok(());
        }
        let arguments = Arguments::new()
            .buffer(&scratch.attended)
            .buffer(&scratch.blocks)
            .u64(count.address)
            .u32(width as u32);
        let kernel = &self.model.kernels.quantise_rows;
        self.launch(kernel, [count.rows, 1], ROW_THREADS, arguments)
    }

    /// Attention in one launch.
    fn attend_tiles(&self, index: usize, is_ends: bool, blocks: u64) -> Result<(), GpuError> {
        let (scratch, spec) = (self.scratch, &self.model.decoder.spec);
        let at = self.layout.attention(is_ends);
        let arguments = Arguments::new()
            .value(self.kv(index))
            .buffer(&scratch.whole)
            .buffer(&scratch.factors)
            .buffer_at(&scratch.upload, self.layout.tables_at())
            .buffer_at(&scratch.upload, at.places)
            .buffer_at(&scratch.upload, at.tiles)
            .buffer_at(&scratch.upload, at.count)
            .u32((spec.heads / spec.kv_heads) as u32)
            .buffer(&scratch.attended)
            .u64(blocks);
        let [narrow, middle, wide] = &self.model.kernels.attend;
        let kernel = match spec.head_size {
            0..=64 => narrow,
            65..=128 => middle,
            _ => wide,
        };
        let grid = [self.tiles[usize::from(is_ends)], spec.kv_heads];
        self.launch(kernel, grid, THREADS, arguments)
    }

    /// Attention in three launches: scores, values, and their join.
    fn attend_split(
        &self,
        split: Split,
        index: usize,
        is_ends: bool,
        count: Count,
        blocks: u64,
    ) -> Result<(), GpuError> {
        let (scratch, spec) = (self.scratch, &self.model.decoder.spec);
        let at = self.layout.attention(is_ends);
        let [scores, values, join] = &self.model.kernels.attend_split;
        let (rows, heads, spans) = (count.rows as u32, spec.kv_heads as u32, split.spans as u32);
        let group = (spec.heads / spec.kv_heads) as u32;
        let room = &scratch.room.buffer;
        let launch = |kernel, z, threads, mut arguments: Arguments| {
            let grid = [rows, heads, z];
            self.gpu().launch(kernel, grid, threads, &mut arguments)
        };
        // What the first two read of the upload.
        let of_rows = |arguments: Arguments| {
            arguments
                .buffer(&scratch.factors)
                .buffer_at(&scratch.upload, self.layout.tables_at())
                .buffer_at(&scratch.upload, at.places)
                .u64(count.address)
                .u32(group)
                .buffer(room)
        };
        let kv = || Arguments::new().value(self.kv(index));
        launch(scores, spans, THREADS, of_rows(kv().buffer(&scratch.whole)))?;
        launch(values, spans, THREADS, of_rows(kv()))?;
        let arguments = kv()
            .buffer_at(&scratch.upload, at.tokens)
            .u64(count.address)
            .u32(group)
            .u32(spans)
            .buffer(room)
            .buffer(&scratch.attended)
            .u64(blocks);
        launch(join, group, ROW_THREADS, arguments)
    }

    /// Products of one input with up to three matrices, plus their biases. `values` is the input,
    /// `[tokens, cols]`; its quantisation is in the scratch.
    fn products(
        &self,
        products: &[(&GpuMatrix, &Buffer<f32>)],
        values: &Buffer<f32>,
        count: Count,
    ) -> Result<(), GpuError> {
        let input = (self.scratch.blocks.address(0), values);
        self.product_of(&self.model.kernels.product, products, input, count)
    }

    fn product_of(
        &self,
        kernels: &ByTokens,
        products: &[(&GpuMatrix, &Buffer<f32>)],
        (blocks, values): (u64, &Buffer<f32>),
        count: Count,
    ) -> Result<(), GpuError> {
        let matrices = products.iter().map(|(matrix, _)| *matrix);
        let chosen = choose(kernels, count.rows, matrices);
        let mut described = Products::default();
        let mut groups = 0;
        for (at, (matrix, output)) in products.iter().enumerate() {
            described.matrices[at] = matrix.descriptor(output.address(0), groups);
            described.count += 1;
            groups += matrix.groups().next_multiple_of(chosen.groups);
        }
        let arguments = chosen.inputs(Arguments::new().value(described), blocks, values);
        let grid = [count.rows.div_ceil(chosen.tokens), groups / chosen.groups];
        self.launch(chosen.kernel, grid, THREADS, arguments.u64(count.address))
    }

    /// `gate = silu(normed · gateᵀ) · (normed · upᵀ)`, and its quantisation.
    fn swiglu(&self, layer: &GpuLayer, count: Count) -> Result<(), GpuError> {
        let scratch = self.scratch;
        let kernels = &self.model.kernels.swiglu;
        let chosen = choose(kernels, count.rows, [&layer.gate, &layer.up].into_iter());
        let mut described = Products {
            count: 2,
            ..Products::default()
        };
        described.matrices[0] = layer.gate.descriptor(0, 0);
        described.matrices[1] = layer.up.descriptor(0, 0);
        let arguments = Arguments::new().value(described);
        let arguments = chosen.inputs(arguments, scratch.blocks.address(0), &scratch.normed);
        let rows = layer.gate.rows();
        let gated = match rows.is_multiple_of(BLOCK) {
            true => scratch.gated.address(0),
            false => 0,
        };
        let arguments = arguments
            .u64(count.address)
            .buffer(&scratch.gate)
            .u64(gated);
        let grid = [count.rows.div_ceil(chosen.tokens), rows.div_ceil(2 * GROUP)];
        self.launch(chosen.kernel, grid, THREADS, arguments)
    }
}

/// Tokens of a tile of the kernels for many.
const MANY: usize = 32;

/// Fewer tokens take the kernels for eight: their blocks share a matrix's columns among warps, and those of
/// the same rows find each other's weights in the cache. By prediction (`scripts/gpu_model.py`).
const FEWEST_OF_MANY: usize = 65;
/// The same for dense matrices, whose blocks for many share columns as well: fewer would be padded.
const FEWEST_OF_MANY_DENSE: usize = 17;

/// A kernel for products.
struct Chosen<'a> {
    kernel: &'a Kernel,
    /// Of a block's tile.
    tokens: usize,
    /// Groups of rows of a block.
    groups: usize,
    /// Whether it takes quantised inputs, and others.
    quantised: bool,
    dense: bool,
}

impl Chosen<'_> {
    /// Adds the inputs that the kernel takes.
    fn inputs(&self, mut arguments: Arguments, blocks: u64, values: &Buffer<f32>) -> Arguments {
        if self.quantised {
            arguments = arguments.u64(blocks);
        }
        if self.dense {
            arguments = arguments.buffer(values);
        }
        arguments
    }
}

/// The kernel that multiplies this many tokens by some matrices.
fn choose<'a, 'm>(
    kernels: &'a ByTokens,
    tokens: usize,
    matrices: impl Iterator<Item = &'m GpuMatrix> + Clone,
) -> Chosen<'a> {
    let dense = matrices.clone().all(GpuMatrix::is_dense);
    let quantised = !matrices.clone().any(GpuMatrix::is_dense);
    let both = |kernel, tokens| Chosen {
        kernel,
        tokens,
        groups: 1,
        quantised: true,
        dense: true,
    };
    match (tokens, &kernels.many) {
        (1, _) => both(&kernels.one, 1),
        (2..=4, _) => both(&kernels.four, 4),
        (FEWEST_OF_MANY.., Some(many)) if quantised => Chosen {
            groups: TILE_GROUPS,
            dense: false,
            ..both(many, MANY)
        },
        (FEWEST_OF_MANY_DENSE.., _) if dense => Chosen {
            quantised: false,
            ..both(&kernels.many_dense, MANY)
        },
        _ => both(&kernels.eight, 8),
    }
}
