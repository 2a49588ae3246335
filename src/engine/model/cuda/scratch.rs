//! What a pass computes on the way. It is allocated when the model is loaded; a pass with more of anything makes it
//! larger.

use std::collections::HashMap;

use super::split::{Room, Split};
use super::upload::Layout;
use crate::engine::cuda::driver::{Buffer, Gpu, GpuError, Graph, Pinned};
use crate::engine::kernels::{ActivationBlock, BLOCK};
use crate::engine::model::ModelSpec;

/// What a pass has at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) tokens: usize,
    /// Rows of logits.
    pub(super) ends: usize,
    /// Of all page tables together.
    pub(super) pages: usize,
}

impl Sizes {
    /// Whether a pass of `other` has room here.
    pub(super) fn hold(self, other: Self) -> bool {
        other.tokens <= self.tokens && other.ends <= self.ends && other.pages <= self.pages
    }

    /// Room for both, so that repeated growth ends soon.
    pub(super) fn grown(self, other: Self) -> Self {
        let most = |a: usize, b: usize| a.max(b).next_power_of_two();
        Self {
            tokens: most(self.tokens, other.tokens),
            ends: most(self.ends, other.ends),
            pages: most(self.pages, other.pages),
        }
    }

    /// Device memory of a [`Scratch`] of these sizes, in bytes, without a split attention's.
    pub(super) fn bytes(self, spec: &ModelSpec) -> usize {
        let lengths = Lengths::new(self, spec);
        let numbers = lengths.words
            + 3 * lengths.hidden
            + 2 * lengths.queries
            + 2 * lengths.keys
            + lengths.factors
            + lengths.intermediate
            + lengths.logits
            + self.ends;
        let blocks = lengths.blocks + lengths.gated;
        4 * numbers + size_of::<i16>() * lengths.queries + size_of::<ActivationBlock>() * blocks
    }
}

/// Lengths of the buffers.
struct Lengths {
    words: usize,
    hidden: usize,
    queries: usize,
    keys: usize,
    factors: usize,
    intermediate: usize,
    logits: usize,
    blocks: usize,
    gated: usize,
}

impl Lengths {
    fn new(sizes: Sizes, spec: &ModelSpec) -> Self {
        let queries = spec.heads * spec.head_size;
        let tokens = sizes.tokens;
        Self {
            words: Layout::new(tokens, sizes.ends).words(sizes.pages),
            hidden: tokens * spec.hidden,
            queries: tokens * queries,
            keys: tokens * spec.kv_heads * spec.head_size,
            factors: tokens * spec.heads,
            intermediate: tokens * spec.intermediate,
            logits: sizes.ends * spec.vocabulary,
            blocks: tokens * spec.hidden.max(queries).div_ceil(BLOCK),
            gated: tokens * spec.intermediate.div_ceil(BLOCK),
        }
    }
}

pub(super) struct Scratch {
    pub(super) sizes: Sizes,
    pub(super) staged: Pinned<u32>,
    pub(super) upload: Buffer<u32>,
    pub(super) stream: Buffer<f32>,
    pub(super) delta: Buffer<f32>,
    pub(super) normed: Buffer<f32>,
    pub(super) blocks: Buffer<ActivationBlock>,
    pub(super) gated: Buffer<ActivationBlock>,
    pub(super) queries: Buffer<f32>,
    pub(super) keys: Buffer<f32>,
    pub(super) values: Buffer<f32>,
    pub(super) whole: Buffer<i16>,
    pub(super) factors: Buffer<f32>,
    pub(super) attended: Buffer<f32>,
    pub(super) gate: Buffer<f32>,
    pub(super) logits: Buffer<f32>,
    pub(super) sampled: Buffer<u32>,
    /// `sampled`, on the host.
    pub(super) picked: Pinned<u32>,
    /// Of a split attention.
    pub(super) room: Room,
    /// Decode passes by their rows and their split, recorded with these buffers.
    pub(super) graphs: HashMap<(usize, Option<Split>), Graph>,
}

impl Scratch {
    pub(super) fn allocate(gpu: &Gpu, spec: &ModelSpec, sizes: Sizes) -> Result<Self, GpuError> {
        let lengths = Lengths::new(sizes, spec);
        let numbers = |length: usize| gpu.allocate::<f32>(length);
        Ok(Self {
            sizes,
            staged: gpu.pinned(lengths.words)?,
            upload: gpu.allocate(lengths.words)?,
            stream: numbers(lengths.hidden)?,
            delta: numbers(lengths.hidden)?,
            normed: numbers(lengths.hidden)?,
            blocks: gpu.allocate(lengths.blocks)?,
            gated: gpu.allocate(lengths.gated)?,
            queries: numbers(lengths.queries)?,
            keys: numbers(lengths.keys)?,
            values: numbers(lengths.keys)?,
            whole: gpu.allocate(lengths.queries)?,
            factors: numbers(lengths.factors)?,
            attended: numbers(lengths.queries)?,
            gate: numbers(lengths.intermediate)?,
            logits: numbers(lengths.logits)?,
            sampled: gpu.allocate(sizes.ends)?,
            picked: gpu.pinned(sizes.ends)?,
            room: Room::new(gpu)?,
            graphs: HashMap::new(),
        })
    }
}
