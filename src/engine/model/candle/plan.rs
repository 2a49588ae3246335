//! Plans a pass as integers: where each token's keys and values are written, and which pages each
//! sequence reads.

use std::ops::Range;

use crate::engine::kv::PAGE_TOKENS;
use crate::engine::model::{Chunk, ModelSpec};

/// Upper bound on the scores of an attention product: 2^27 are 512 MiB in f32.
const MOST_SCORES: usize = 1 << 27;
/// Upper bound on a sequence's queries per product: small blocks keep their scores in the cache and
/// skip the keys after their last query.
const BLOCK: usize = 128;

/// The plan of a pass. A *row* is a token's index in the packed batch.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) tokens: Vec<u32>,
    /// Position of each token in its sequence.
    pub(super) positions: Vec<u32>,
    /// Rows whose logits are wanted.
    pub(super) wanted: Vec<u32>,
    /// Where each token's keys and values are written: page · 16 + offset.
    pub(super) places: Vec<u32>,
    /// Single tokens whose attention reads the pages in place.
    pub(super) pagewise: Vec<Single>,
    /// All other sequences.
    pub(super) gathered: Vec<Gathered>,
    /// The index of each row's attention in the outputs. The outputs are those of `pagewise`,
    /// followed by those of `gathered`.
    pub(super) order: Vec<u32>,
}

/// A sequence that computes one token.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Single {
    pub(super) row: usize,
    /// Number of tokens that it attends to, including itself.
    pub(super) length: usize,
    /// The pages of those tokens.
    pub(super) pages: Vec<u32>,
}

/// A sequence whose pages are gathered.
#[derive(Debug, PartialEq)]
pub(super) struct Gathered {
    /// The pages that contain its tokens at the end of the pass.
    pub(super) pages: Vec<u32>,
    /// Computed one after another.
    pub(super) blocks: Vec<Block>,
}

/// Queries that attend together, and the number of keys they read.
#[derive(Debug, PartialEq)]
pub(super) struct Block {
    /// Rows of the queries.
    pub(super) rows: Range<usize>,
    pub(super) keys: usize,
    /// Whether every query sees all keys.
    pub(super) all: bool,
}

impl Plan {
    /// Plans a batch, which must be valid. `in_place`: whether single tokens read their pages in place.
    pub(super) fn new(chunks: &[Chunk<'_>], spec: &ModelSpec, in_place: bool) -> Self {
        let mut plan = Self::default();
        for chunk in chunks {
            let row = plan.tokens.len();
            let end = chunk.start + chunk.tokens.len();
            let pages = &chunk.pages[..end.div_ceil(PAGE_TOKENS)];
            plan.tokens.extend_from_slice(chunk.tokens);
            for position in chunk.start..end {
                let (page, offset) = (pages[position / PAGE_TOKENS], position % PAGE_TOKENS);
                plan.positions.push(position as u32);
                plan.places.push(page * PAGE_TOKENS as u32 + offset as u32);
            }
            if chunk.logits {
                plan.wanted.push(plan.tokens.len() as u32 - 1);
            }
            if in_place && chunk.tokens.len() == 1 {
                plan.pagewise.push(Single {
                    row,
                    length: end,
                    pages: pages.to_vec(),
                });
            } else {
                let rows = row..plan.tokens.len();
                plan.gathered
                    .push(Gathered::new(rows, chunk.start, pages, spec.heads));
            }
        }
        plan.order = vec![0; plan.tokens.len()];
        let singles = plan.pagewise.iter().map(|single| single.row);
        let blocks = plan.gathered.iter().flat_map(|sequence| &sequence.blocks);
        let rows = singles.chain(blocks.flat_map(|block| block.rows.clone()));
        for (output, row) in (0..).zip(rows) {
            plan.order[row] = output;
        }
        plan
    }

    /// Whether the outputs are in row order.
    pub(super) fn is_in_order(&self) -> bool {
        (0..).zip(&self.order).all(|(row, at)| row == *at)
    }
}

impl Gathered {
    /// `rows`: rows of a sequence's queries, the first of them at position `start`.
    fn new(rows: Range<usize>, start: usize, pages: &[u32], heads: usize) -> Self {
        let scores = heads * pages.len() * PAGE_TOKENS;
        let size = BLOCK.min((MOST_SCORES / scores).max(1));
        let block = |first: usize| {
            let last = rows.end.min(first + size);
            let seen = start + last - rows.start;
            let all = last - first == 1;
            // Round up to whole pages if there is a mask: it hides the keys after the last query.
            let keys = match all {
                true => seen,
                false => seen.next_multiple_of(PAGE_TOKENS),
            };
            Block {
                rows: first..last,
                keys,
                all,
            }
        };
        Self {
            pages: pages.to_vec(),
            blocks: rows.clone().step_by(size).map(block).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::model::Slot;
    use crate::engine::model::testing::Random;

    fn spec() -> ModelSpec {
        ModelSpec {
            architecture: "llama".to_owned(),
            layers: 1,
            hidden: 8,
            intermediate: 8,
            heads: 4,
            kv_heads: 2,
            head_size: 2,
            vocabulary: 10,
            context_length: 1 << 20,
            beyond_window: None,
            norm_epsilon: 1e-5,
            rope_base: 1e4,
            rope_dimensions: 2,
        }
    }

    /// Plans chunks with these starts and lengths. Sequences share no pages.
    fn planned(parts: &[(usize, usize)], in_place: bool) -> (Plan, Vec<Vec<u32>>) {
        let mut next = 0;
        let tables: Vec<Vec<u32>> = parts
            .iter()
            .map(|(start, count)| {
                let pages = (start + count).div_ceil(PAGE_TOKENS) as u32 + 1;
                next += pages;
                (next - pages..next).rev().collect()
            })
            .collect();
        let tokens: Vec<Vec<u32>> = parts.iter().map(|(_, count)| vec![3; *count]).collect();
        let chunks: Vec<Chunk<'_>> = parts
            .iter()
            .zip(&tables)
            .zip(&tokens)
            .enumerate()
            .map(|(index, (((start, _), pages), tokens))| Chunk {
                slot: Slot(index),
                pages,
                tokens,
                start: *start,
                logits: true,
            })
            .collect();
        (Plan::new(&chunks, &spec(), in_place), tables)
    }

    /// Rows, number of keys, and whether all of them are visible, of each block.
    fn blocks(sequence: &Gathered) -> Vec<(Range<usize>, usize, bool)> {
        let block = |block: &Block| (block.rows.clone(), block.keys, block.all);
        sequence.blocks.iter().map(block).collect()
    }

    #[test]
    fn a_long_prompt_is_cut_into_blocks_and_single_tokens_are_read_in_place() {
        let mixed = [(300, 1), (0, 300), (310, 1), (40, 20)];
        let (plan, tables) = planned(&mixed, false);
        assert!(plan.is_in_order() && plan.pagewise.is_empty());
        let all: Vec<_> = plan.gathered.iter().map(blocks).collect();
        assert_eq!(
            all,
            [
                vec![(0..1, 301, true)],
                vec![
                    (1..129, 128, false),
                    (129..257, 256, false),
                    (257..301, 304, false)
                ],
                vec![(301..302, 311, true)],
                vec![(302..322, 64, false)],
            ]
        );

        let (plan, _) = planned(&mixed, true);
        assert!(!plan.is_in_order());
        let single = |row, length, table: usize| Single {
            row,
            length,
            pages: tables[table][..length.div_ceil(PAGE_TOKENS)].to_vec(),
        };
        assert_eq!(plan.pagewise, [single(0, 301, 0), single(301, 311, 2)]);
        assert_eq!(plan.gathered.len(), 2);
        assert_eq!(plan.order[..3], [0, 2, 3]);
        assert_eq!(plan.order[301..303], [1, 302]);
    }

    #[test]
    fn a_product_with_too_many_scores_is_split() {
        let (plan, _) = planned(&[(1 << 20, 512)], true);
        let blocks = &plan.gathered[0].blocks;
        assert!(blocks.len() > 512 / BLOCK);
        assert!(
            blocks
                .iter()
                .all(|block| 4 * block.rows.len() * block.keys <= MOST_SCORES)
        );
    }

    /// Every token is written once, to its place, and its attention is computed once, over its own
    /// pages.
    #[test]
    fn every_token_of_any_batch_is_written_and_attended_once() {
        let mut random = Random(3);
        for in_place in [true, false] {
            for _ in 0..200 {
                let parts: Vec<(usize, usize)> = (0..1 + random.below(9))
                    .map(|_| {
                        let count = match random.below(3) {
                            0 => 1,
                            1 => 1 + random.below(40),
                            _ => 1 + random.below(300),
                        };
                        (random.below(500) as usize, count as usize)
                    })
                    .collect();
                let (plan, tables) = planned(&parts, in_place);
                let owners: Vec<usize> = (0..parts.len())
                    .flat_map(|index| std::iter::repeat_n(index, parts[index].1))
                    .collect();
                // Each output's row, the pages it reads, and its number of keys.
                let mut outputs: Vec<(usize, &[u32], usize)> = plan
                    .pagewise
                    .iter()
                    .map(|single| (single.row, &single.pages[..], single.length))
                    .collect();
                for sequence in &plan.gathered {
                    for block in &sequence.blocks {
                        let rows = block.rows.clone();
                        outputs.extend(rows.map(|row| (row, &sequence.pages[..], block.keys)));
                    }
                }
                assert_eq!(outputs.len(), owners.len());
                assert_eq!(plan.places.len(), owners.len());
                for (row, owner) in owners.iter().enumerate() {
                    let position = plan.positions[row] as usize;
                    let (page, offset) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
                    let expected = tables[*owner][page] * PAGE_TOKENS as u32 + offset as u32;
                    assert_eq!(plan.places[row], expected);
                    let (of, pages, keys) = outputs[plan.order[row] as usize];
                    assert_eq!(of, row);
                    assert_eq!(pages[..=page], tables[*owner][..=page]);
                    assert!(position < keys && keys <= pages.len() * PAGE_TOKENS);
                }
                assert_eq!(plan.wanted.len(), parts.len());
            }
        }
    }
}
