//! A pass's inputs on the device, created once and used by all layers.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::pagewise::Pagewise;
use super::plan::{Block, Group, Moves, Plan, Policy};
use super::rope::Rope;
use crate::engine::kv::PAGE_TOKENS;
use crate::engine::model::ModelSpec;

/// Inputs shared by all blocks of a pass.
pub(super) struct PlannedPass<'a> {
    pub(super) spec: &'a ModelSpec,
    /// `[tokens, head_size / 2]`
    pub(super) cos: Tensor,
    /// `[tokens, head_size / 2]`
    pub(super) sin: Tensor,
    pub(super) writes: Writes,
    /// Single tokens whose attention reads the pages in place.
    pub(super) pagewise: Option<Pagewise>,
    pub(super) groups: Vec<Attending>,
    /// The index of each token's attention in the outputs; `None` if the outputs are in row order.
    pub(super) order: Option<Tensor>,
}

/// Tensors needed only before the first and after the last layer.
pub(super) struct Ends {
    /// `[tokens]`
    pub(super) tokens: Tensor,
    /// `[wanted]`; `None` if no logits are wanted.
    pub(super) wanted: Option<Tensor>,
}

/// Where a pass's keys and values are written.
pub(super) struct Writes {
    /// Whole pages: places `[2 · kv_heads, pages, 16 · head_size]`.
    pub(super) whole: Option<Places>,
    /// Single tokens: places `[2 · kv_heads, tokens, head_size]`.
    pub(super) single: Option<Places>,
}

/// A subset of a pass's tokens, and where they are written.
pub(super) struct Places {
    /// Row indices; `None` for all rows in order.
    pub(super) rows: Option<Tensor>,
    /// Scatter indices, one per element; constant along all dimensions but dimension 1.
    pub(super) places: Tensor,
}

/// Sequences whose attention is one batched product.
pub(super) struct Attending {
    pub(super) sequences: usize,
    /// Per sequence.
    pub(super) queries: usize,
    pub(super) rows: Rows,
    pub(super) pages: Pages,
    pub(super) blocks: Vec<MaskedBlock>,
}

/// The rows of the batch that attend.
pub(super) enum Rows {
    /// Consecutive rows starting at this one.
    From(usize),
    /// `[sequences · queries]`
    Table(Tensor),
}

/// The pages that are read.
pub(super) enum Pages {
    /// One sequence's consecutive pages, which need no gather.
    Row { first: usize, count: usize },
    /// `[sequences · pages]`
    Table(Tensor),
}

/// A range of queries of each sequence that attend together.
pub(super) struct MaskedBlock {
    pub(super) queries: Range<usize>,
    pub(super) keys: usize,
    /// 0 where a query may attend and -∞ elsewhere: `[queries, keys]` for one sequence,
    /// `[sequences, 1, queries, keys]` for several; `None` if all keys are visible.
    pub(super) mask: Option<Tensor>,
}

impl<'a> PlannedPass<'a> {
    /// Sends a plan to the device.
    pub(super) fn new(
        plan: Plan,
        spec: &'a ModelSpec,
        policy: Policy,
        rope: &mut Rope,
        dtype: DType,
        device: &Device,
    ) -> Result<(Self, Ends)> {
        let mut numbers = Numbers::default();
        let tokens = numbers.add(&plan.tokens);
        let positions = numbers.add(&plan.positions);
        let wanted = numbers.add(&plan.wanted);
        let whole = numbers.add_moves(&plan.whole, plan.tokens.len());
        let single = numbers.add_moves(&plan.single, plan.tokens.len());
        let order = (!plan.is_in_order()).then(|| numbers.add(&plan.order));
        let groups: Vec<_> = plan
            .groups
            .iter()
            .map(|group| numbers.add_group(group, &plan.positions))
            .collect();
        let masked = plan.groups.iter().flat_map(|group| &group.blocks);
        let most_keys = masked.map(|block| block.keys).max().unwrap_or(0) as u32;
        let keys = numbers.add(&(0..most_keys).collect::<Vec<_>>());

        let numbers = numbers.send(device)?;
        let mut masks = Masks::new(numbers.part(&keys)?, dtype)?;
        let attending = plan
            .groups
            .iter()
            .zip(groups)
            .map(|(group, sent)| sent.attending(group, &numbers, &mut masks))
            .collect::<Result<_>>()?;
        let (strips, width) = (2 * spec.kv_heads, spec.head_size);
        let (cos, sin) = rope.rows(&numbers.part(&positions)?, &plan.positions)?;
        let pass = Self {
            spec,
            cos,
            sin,
            writes: Writes {
                whole: whole
                    .map(|moves| moves.places(&numbers, strips, PAGE_TOKENS * width))
                    .transpose()?,
                single: single
                    .map(|moves| moves.places(&numbers, strips, width))
                    .transpose()?,
            },
            pagewise: policy
                .pagewise
                .filter(|_| !plan.pagewise.is_empty())
                .map(|kernel| Pagewise::new(kernel, Arc::from(plan.pagewise), spec.kv_heads)),
            groups: attending,
            order: order.map(|order| numbers.part(&order)).transpose()?,
        };
        let ends = Ends {
            tokens: numbers.part(&tokens)?,
            wanted: match wanted.is_empty() {
                true => None,
                false => Some(numbers.part(&wanted)?),
            },
        };
        Ok((pass, ends))
    }
}

/// All integers of a pass, sent to the device in one transfer.
#[derive(Default)]
struct Numbers(Vec<u32>);

/// The integers on the device.
struct Sent(Tensor);

impl Numbers {
    fn add(&mut self, part: &[u32]) -> Range<usize> {
        let first = self.0.len();
        self.0.extend_from_slice(part);
        first..self.0.len()
    }

    /// `tokens`: number of tokens in the batch.
    fn add_moves(&mut self, moves: &Moves, tokens: usize) -> Option<SentMoves> {
        let all = moves.rows.len() == tokens;
        (!moves.rows.is_empty()).then(|| SentMoves {
            // `moves.rows` is ascending, so this many rows are all rows in order.
            rows: (!all).then(|| self.add(&moves.rows)),
            places: self.add(&moves.places),
        })
    }

    /// `positions`: the position of each row.
    fn add_group(&mut self, group: &Group, positions: &[u32]) -> SentGroup {
        let in_row = |numbers: &[u32]| numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let positions: Vec<u32> = group
            .rows
            .iter()
            .map(|row| positions[*row as usize])
            .collect();
        SentGroup {
            rows: (!in_row(&group.rows)).then(|| self.add(&group.rows)),
            table: (group.sequences > 1 || !in_row(&group.table)).then(|| self.add(&group.table)),
            positions: self.add(&positions),
        }
    }

    fn send(self, device: &Device) -> Result<Sent> {
        Tensor::new(self.0, device).map(Sent)
    }
}

impl Sent {
    fn part(&self, part: &Range<usize>) -> Result<Tensor> {
        self.0.narrow(0, part.start, part.len())
    }
}

/// Ranges of a pass's [`Moves`] in [`Numbers`].
struct SentMoves {
    rows: Option<Range<usize>>,
    places: Range<usize>,
}

impl SentMoves {
    fn places(&self, numbers: &Sent, strips: usize, width: usize) -> Result<Places> {
        let count = self.places.len();
        Ok(Places {
            rows: self
                .rows
                .as_ref()
                .map(|rows| numbers.part(rows))
                .transpose()?,
            places: numbers
                .part(&self.places)?
                .reshape((1, count, 1))?
                .broadcast_as((strips, count, width))?
                .contiguous()?,
        })
    }
}

/// Ranges of a [`Group`] in [`Numbers`].
struct SentGroup {
    rows: Option<Range<usize>>,
    table: Option<Range<usize>>,
    positions: Range<usize>,
}

impl SentGroup {
    fn attending(self, group: &Group, numbers: &Sent, masks: &mut Masks) -> Result<Attending> {
        let positions = numbers.part(&self.positions)?;
        let block = |block: &Block| {
            let sizes = (group.sequences, group.queries);
            Ok(MaskedBlock {
                queries: block.queries.clone(),
                keys: block.keys,
                mask: match block.all {
                    true => None,
                    false => Some(masks.mask(&positions, sizes, block)?),
                },
            })
        };
        Ok(Attending {
            sequences: group.sequences,
            queries: group.queries,
            rows: match &self.rows {
                Some(rows) => Rows::Table(numbers.part(rows)?),
                None => Rows::From(group.rows[0] as usize),
            },
            pages: match &self.table {
                Some(table) => Pages::Table(numbers.part(table)?),
                None => Pages::Row {
                    first: group.table[0] as usize,
                    count: group.pages,
                },
            },
            blocks: group.blocks.iter().map(block).collect::<Result<_>>()?,
        })
    }
}

/// Creates attention masks on the device.
struct Masks {
    /// 0, 1, 2, … up to the largest number of keys in a block.
    keys: Tensor,
    seen: Tensor,
    hidden: Tensor,
}

impl Masks {
    fn new(keys: Tensor, dtype: DType) -> Result<Self> {
        let value = |value: f32| Tensor::new(value, keys.device())?.to_dtype(dtype);
        Ok(Self {
            seen: value(0.0)?,
            hidden: value(f32::NEG_INFINITY)?,
            keys,
        })
    }

    /// `positions`: positions of the queries, `[sequences · queries]`.
    fn mask(
        &self,
        positions: &Tensor,
        (sequences, queries): (usize, usize),
        block: &Block,
    ) -> Result<Tensor> {
        let Range { start, end } = block.queries;
        let positions =
            positions
                .reshape((sequences, 1, queries, 1))?
                .narrow(2, start, end - start)?;
        let seen = positions.broadcast_ge(&self.keys.narrow(0, 0, block.keys)?)?;
        let mask = seen.where_cond(
            &self.seen.broadcast_as(seen.shape())?,
            &self.hidden.broadcast_as(seen.shape())?,
        )?;
        match sequences {
            1 => mask.reshape((end - start, block.keys)),
            _ => Ok(mask),
        }
    }
}
