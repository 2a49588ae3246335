//! A pass's inputs as tensors, created once and used by all layers.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::CPU;
use super::dense::Kernel;
use super::pagewise::Pagewise;
use super::plan::{Block, Gathered, Plan};
use super::rope::Rope;
use crate::engine::model::ModelSpec;

/// Inputs shared by all blocks of a pass.
pub(super) struct PlannedPass<'a> {
    pub(super) spec: &'a ModelSpec,
    /// `[tokens, head_size / 2]`
    pub(super) cos: Tensor,
    /// `[tokens, head_size / 2]`
    pub(super) sin: Tensor,
    /// Where keys and values are written: scatter indices, `[2 · kv_heads, tokens, head_size]`.
    pub(super) places: Tensor,
    /// Single tokens whose attention reads the pages in place.
    pub(super) pagewise: Option<Pagewise>,
    /// All other sequences.
    pub(super) sequences: Vec<Attending>,
    /// The index of each token's attention in the outputs; `None` if the outputs are in row order.
    pub(super) order: Option<Tensor>,
}

/// A sequence whose pages are gathered.
pub(super) struct Attending {
    pub(super) pages: Pages,
    pub(super) blocks: Vec<MaskedBlock>,
}

/// The pages that are read.
pub(super) enum Pages {
    /// Consecutive pages, which need no gather.
    Row { first: usize, count: usize },
    /// `[pages]`
    Table(Tensor),
}

/// Rows of the batch that attend together.
pub(super) struct MaskedBlock {
    pub(super) rows: Range<usize>,
    pub(super) keys: usize,
    /// 0 where a query may attend and -∞ elsewhere: `[rows, keys]`; `None` if all keys are visible.
    pub(super) mask: Option<Tensor>,
}

impl<'a> PlannedPass<'a> {
    /// Makes tensors of a plan.
    pub(super) fn new(
        plan: Plan,
        spec: &'a ModelSpec,
        kernel: Option<Kernel>,
        rope: &mut Rope,
    ) -> Result<Self> {
        let (cos, sin) = rope.rows(&plan.positions)?;
        let (strips, count, width) = (2 * spec.kv_heads, plan.places.len(), spec.head_size);
        Ok(Self {
            spec,
            cos,
            sin,
            places: Tensor::new(&plan.places[..], CPU)?
                .reshape((1, count, 1))?
                .broadcast_as((strips, count, width))?
                .contiguous()?,
            sequences: plan
                .gathered
                .iter()
                .map(|sequence| Attending::new(sequence, &plan.positions))
                .collect::<Result<_>>()?,
            order: match plan.is_in_order() {
                true => None,
                false => Some(Tensor::new(&plan.order[..], CPU)?),
            },
            pagewise: kernel
                .filter(|_| !plan.pagewise.is_empty())
                .map(|kernel| Pagewise::new(kernel, Arc::from(plan.pagewise), spec.kv_heads)),
        })
    }
}

impl Attending {
    /// `positions`: the position of each row.
    fn new(sequence: &Gathered, positions: &[u32]) -> Result<Self> {
        let table = &sequence.pages;
        let in_row = table.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let block = |block: &Block| {
            Ok(MaskedBlock {
                rows: block.rows.clone(),
                keys: block.keys,
                mask: match block.all {
                    true => None,
                    false => Some(mask(&positions[block.rows.clone()], block.keys)?),
                },
            })
        };
        Ok(Self {
            pages: match in_row {
                true => Pages::Row {
                    first: table[0] as usize,
                    count: table.len(),
                },
                false => Pages::Table(Tensor::new(&table[..], CPU)?),
            },
            blocks: sequence.blocks.iter().map(block).collect::<Result<_>>()?,
        })
    }
}

/// `[positions, keys]`: 0 up to each query's own position, -∞ after it.
fn mask(positions: &[u32], keys: usize) -> Result<Tensor> {
    let mut mask = vec![f32::NEG_INFINITY; positions.len() * keys];
    for (row, position) in mask.chunks_exact_mut(keys).zip(positions) {
        row[..=*position as usize].fill(0.0);
    }
    Tensor::from_vec(mask, (positions.len(), keys), CPU)
}
