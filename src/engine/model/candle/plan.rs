//! Plans a pass as integers: where each token's keys and values are written, and which sequences
//! attend together.

use std::ops::Range;

use super::dense::Kernel;
use crate::engine::kv::PAGE_TOKENS;
use crate::engine::model::{Chunk, ModelSpec};

/// Upper bound on the scores of an attention product: 2^27 are 512 MiB in f32.
const MOST_SCORES: usize = 1 << 27;
/// Upper bound on the tokens whose keys and values are gathered for one product.
const MOST_GATHERED: usize = 1 << 17;

/// How attention is computed on a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// Whether sequences of similar length are padded into one product. A GPU needs the few
    /// launches. On a CPU, each sequence has its own product of its own length.
    pub(super) together: bool,
    /// Upper bound on a sequence's queries per product. On a CPU, small blocks keep their scores in
    /// the cache and skip the keys after their last query; on a GPU, a single product is faster.
    pub(super) block: usize,
    /// Kernel for the attention of single tokens without gathering their pages; CPU only.
    pub(super) pagewise: Option<Kernel>,
}

impl Policy {
    /// Policy for a CPU; `f32`: whether activations are f32.
    pub(super) fn cpu(f32: bool) -> Self {
        Self {
            together: false,
            block: 128,
            pagewise: Kernel::of_this_cpu().filter(|_| f32),
        }
    }

    /// Policy for a GPU. Works on any device.
    pub(super) fn gpu() -> Self {
        Self {
            together: true,
            block: usize::MAX,
            pagewise: None,
        }
    }
}

/// The plan of a pass. A *row* is a token's index in the packed batch.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) tokens: Vec<u32>,
    /// Position of each token in its sequence.
    pub(super) positions: Vec<u32>,
    /// Rows whose logits are wanted.
    pub(super) wanted: Vec<u32>,
    /// Tokens that fill whole pages.
    pub(super) whole: Moves,
    /// All other tokens.
    pub(super) single: Moves,
    /// Single tokens whose attention reads the pages in place.
    pub(super) pagewise: Vec<Single>,
    pub(super) groups: Vec<Group>,
    /// The index of each row's attention in the outputs. The outputs are those of `pagewise`,
    /// followed by those of each group's rows.
    pub(super) order: Vec<u32>,
}

/// Rows, and where their keys and values are written.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Moves {
    pub(super) rows: Vec<u32>,
    /// One page per 16 rows, or one token place (page · 16 + offset) per row.
    pub(super) places: Vec<u32>,
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

/// Sequences whose attention is one product, padded to the largest number of queries and of pages.
#[derive(Debug, PartialEq)]
pub(super) struct Group {
    pub(super) sequences: usize,
    /// Per sequence.
    pub(super) queries: usize,
    /// Row indices, `[sequences, queries]`. Padding repeats the sequence's last row.
    pub(super) rows: Vec<u32>,
    /// Per sequence.
    pub(super) pages: usize,
    /// `[sequences, pages]`. Padding repeats the sequence's first page and is masked out.
    pub(super) table: Vec<u32>,
    /// Computed one after another. Only a group of a single sequence has more than one.
    pub(super) blocks: Vec<Block>,
}

/// A range of queries of each sequence that attend together, and the number of keys they read.
#[derive(Debug, PartialEq)]
pub(super) struct Block {
    pub(super) queries: Range<usize>,
    pub(super) keys: usize,
    /// Whether every query sees all keys.
    pub(super) all: bool,
}

/// One sequence's part of the batch.
struct Member<'a> {
    row: usize,
    queries: usize,
    start: usize,
    /// The pages that contain tokens at the end of the pass.
    pages: &'a [u32],
}

impl Plan {
    /// Plans a batch, which must be valid.
    pub(super) fn new(chunks: &[Chunk<'_>], spec: &ModelSpec, policy: Policy) -> Self {
        let mut plan = Self::default();
        let mut members = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let row = plan.tokens.len();
            let end = chunk.start + chunk.tokens.len();
            plan.tokens.extend_from_slice(chunk.tokens);
            plan.positions
                .extend((chunk.start..end).map(|position| position as u32));
            if chunk.logits {
                plan.wanted.push(plan.tokens.len() as u32 - 1);
            }
            let member = Member {
                row,
                queries: chunk.tokens.len(),
                start: chunk.start,
                pages: &chunk.pages[..end.div_ceil(PAGE_TOKENS)],
            };
            plan.write(&member);
            members.push(member);
        }
        plan.order = vec![0; plan.tokens.len()];
        if policy.pagewise.is_some() {
            members.retain(|member| {
                if member.queries == 1 {
                    plan.order[member.row] = plan.pagewise.len() as u32;
                    plan.pagewise.push(Single {
                        row: member.row,
                        length: member.start + 1,
                        pages: member.pages.to_vec(),
                    });
                }
                member.queries > 1
            });
        }
        let mut output = plan.pagewise.len();
        for group in grouped(&members, spec.heads, policy) {
            let group = Group::new(&group, spec, policy);
            for (place, row) in group.rows.iter().enumerate().rev() {
                // In reverse, so that the first of several equal rows wins.
                plan.order[*row as usize] = (output + place) as u32;
            }
            output += group.rows.len();
            plan.groups.push(group);
        }
        plan
    }

    /// Whether the outputs are in row order, without padding.
    pub(super) fn is_in_order(&self) -> bool {
        let padded: usize = self.groups.iter().map(|group| group.rows.len()).sum();
        padded + self.pagewise.len() == self.order.len()
            && (0..).zip(&self.order).all(|(row, at)| row == *at)
    }

    fn write(&mut self, member: &Member<'_>) {
        let end = member.start + member.queries;
        let mut position = member.start;
        while position < end {
            let row = (member.row + position - member.start) as u32;
            let page = member.pages[position / PAGE_TOKENS];
            let offset = position % PAGE_TOKENS;
            if offset == 0 && position + PAGE_TOKENS <= end {
                self.whole.rows.extend(row..row + PAGE_TOKENS as u32);
                self.whole.places.push(page);
                position += PAGE_TOKENS;
            } else {
                self.single.rows.push(row);
                self.single
                    .places
                    .push(page * PAGE_TOKENS as u32 + offset as u32);
                position += 1;
            }
        }
    }
}

/// Groups sequences that attend together. A group keeps the batch's order. At most a third of its
/// queries and of its pages is padding.
fn grouped<'a, 'b>(
    members: &'b [Member<'a>],
    heads: usize,
    policy: Policy,
) -> Vec<Vec<&'b Member<'a>>> {
    if !policy.together {
        return members.iter().map(|member| vec![member]).collect();
    }
    let mut sorted: Vec<&Member<'_>> = members.iter().collect();
    sorted.sort_by_key(|member| std::cmp::Reverse((member.queries, member.pages.len())));
    let mut groups: Vec<Vec<&Member<'_>>> = Vec::new();
    // Of the current group: largest number of pages, sum of queries, sum of pages.
    let (mut most, mut queries, mut pages) = (0, 0, 0);
    for member in sorted {
        let own = member.pages.len();
        if let Some(group) = groups.last_mut() {
            let count = group.len() + 1;
            let widest = most.max(own);
            if 2 * count * group[0].queries <= 3 * (queries + member.queries)
                && 2 * count * widest <= 3 * (pages + own)
                && count * widest * PAGE_TOKENS <= MOST_GATHERED
                && heads * count * group[0].queries * widest * PAGE_TOKENS <= MOST_SCORES
            {
                group.push(member);
                (most, queries, pages) = (widest, queries + member.queries, pages + own);
                continue;
            }
        }
        groups.push(vec![member]);
        (most, queries, pages) = (own, member.queries, own);
    }
    for group in &mut groups {
        group.sort_by_key(|member| member.row);
    }
    groups.sort_by_key(|group| group[0].row);
    groups
}

impl Group {
    fn new(members: &[&Member<'_>], spec: &ModelSpec, policy: Policy) -> Self {
        let most = |of: fn(&Member<'_>) -> usize| {
            let all = members.iter().map(|member| of(member));
            all.max().unwrap_or(0)
        };
        let queries = most(|member| member.queries);
        let pages = most(|member| member.pages.len());
        let (mut rows, mut table) = (Vec::new(), Vec::new());
        for member in members {
            let last = member.queries - 1;
            rows.extend((0..queries).map(|query| (member.row + query.min(last)) as u32));
            let padding = pages - member.pages.len();
            table.extend_from_slice(member.pages);
            table.extend(std::iter::repeat_n(member.pages[0], padding));
        }
        let blocks = match members {
            [one] => {
                let scores = spec.heads * pages * PAGE_TOKENS;
                let size = policy.block.min((MOST_SCORES / scores).max(1));
                (0..queries)
                    .step_by(size)
                    .map(|first| one.block(first..queries.min(first + size)))
                    .collect()
            }
            _ => vec![Block {
                queries: 0..queries,
                keys: pages * PAGE_TOKENS,
                all: false,
            }],
        };
        Self {
            sequences: members.len(),
            queries,
            rows,
            pages,
            table,
            blocks,
        }
    }
}

impl Member<'_> {
    /// A block of a sequence without padding.
    fn block(&self, queries: Range<usize>) -> Block {
        let seen = self.start + queries.end;
        let all = queries.len() == 1;
        // Round up to whole pages if there is a mask: it hides the keys after the last query.
        let keys = match all {
            true => seen,
            false => seen.next_multiple_of(PAGE_TOKENS),
        };
        Block { queries, keys, all }
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
    fn planned(parts: &[(usize, usize)], policy: Policy) -> (Plan, Vec<Vec<u32>>) {
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
        (Plan::new(&chunks, &spec(), policy), tables)
    }

    fn shapes(plan: &Plan) -> Vec<(usize, usize, usize)> {
        let shape = |group: &Group| (group.sequences, group.queries, group.pages);
        plan.groups.iter().map(shape).collect()
    }

    #[test]
    fn tokens_with_similar_contexts_share_a_product_and_a_long_prompt_has_its_own() {
        let decodes = [(300, 1), (310, 1), (400, 1), (305, 1)];
        let (plan, _) = planned(&decodes, Policy::gpu());
        assert_eq!(shapes(&plan), [(4, 1, 26)]);
        assert!(plan.is_in_order());

        let mixed = [(300, 1), (0, 500), (310, 1), (9000, 1), (40, 20), (60, 15)];
        let (plan, _) = planned(&mixed, Policy::gpu());
        let mut all = shapes(&plan);
        all.sort_unstable();
        assert_eq!(all, [(1, 1, 563), (1, 500, 32), (2, 1, 20), (2, 20, 5)]);
        assert!(!plan.is_in_order());

        // On a CPU, each sequence has its own group.
        let mut policy = Policy::cpu(true);
        policy.pagewise = None;
        let (plan, _) = planned(&mixed, policy);
        assert_eq!(plan.groups.len(), 6);
        assert!(plan.is_in_order());
        assert_eq!(plan.groups[1].blocks.len(), 4);
        assert_eq!(plan.groups[1].blocks[0].keys, 128);
        let single = Block {
            queries: 0..1,
            keys: 301,
            all: true,
        };
        assert_eq!(plan.groups[0].blocks, [single]);
    }

    #[test]
    fn a_product_too_large_for_a_device_is_split() {
        let (plan, _) = planned(&[(1 << 20, 512)], Policy::gpu());
        let blocks = &plan.groups[0].blocks;
        assert!(blocks.len() > 1);
        assert!(
            blocks
                .iter()
                .all(|block| 4 * block.queries.len() * block.keys <= MOST_SCORES)
        );
        let many = vec![(1 << 16, 1); 16];
        let (plan, _) = planned(&many, Policy::gpu());
        assert!(plan.groups.len() > 1);
        let gathered = |group: &Group| group.table.len() * PAGE_TOKENS;
        assert!(
            plan.groups
                .iter()
                .all(|group| gathered(group) <= MOST_GATHERED)
        );
        let prompts = vec![(1 << 14, 300); 8];
        let (plan, _) = planned(&prompts, Policy::gpu());
        assert!(plan.groups.len() > 1);
        let scores = |group: &Group| 4 * group.rows.len() * group.pages * PAGE_TOKENS;
        assert!(plan.groups.iter().all(|group| scores(group) <= MOST_SCORES));
    }

    /// Every token is written once, to its place, and its attention is computed once, over its own
    /// pages.
    #[test]
    fn every_token_of_any_batch_is_written_and_attended_once() {
        let mut random = Random(3);
        for policy in [Policy::gpu(), Policy::cpu(true), Policy::cpu(false)] {
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
                let (plan, tables) = planned(&parts, policy);
                let owners: Vec<usize> = (0..parts.len())
                    .flat_map(|index| std::iter::repeat_n(index, parts[index].1))
                    .collect();

                let mut places = vec![None; owners.len()];
                let pages = plan.whole.places.iter().flat_map(|page| {
                    let first = page * PAGE_TOKENS as u32;
                    first..first + PAGE_TOKENS as u32
                });
                let whole = plan.whole.rows.iter().zip(pages);
                let single = plan
                    .single
                    .rows
                    .iter()
                    .zip(plan.single.places.iter().copied());
                for (row, place) in whole.chain(single) {
                    assert!(places[*row as usize].replace(place).is_none());
                }
                // Each output's row, and the pages it reads.
                let mut outputs: Vec<(usize, &[u32])> = plan
                    .pagewise
                    .iter()
                    .map(|single| (single.row, &single.pages[..]))
                    .collect();
                for group in &plan.groups {
                    assert!(2 * group.rows.len() <= 3 * owners.len());
                    assert_eq!(group.table.len(), group.sequences * group.pages);
                    for (place, row) in group.rows.iter().enumerate() {
                        let table = &group.table[place / group.queries * group.pages..];
                        outputs.push((*row as usize, &table[..group.pages]));
                    }
                    let covered: usize = group.blocks.iter().map(|b| b.queries.len()).sum();
                    assert_eq!(covered, group.queries);
                }
                for (row, owner) in owners.iter().enumerate() {
                    let position = plan.positions[row] as usize;
                    let (page, offset) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
                    let expected = tables[*owner][page] * PAGE_TOKENS as u32 + offset as u32;
                    assert_eq!(places[row], Some(expected));
                    let (of, pages) = outputs[plan.order[row] as usize];
                    assert_eq!(of, row);
                    assert_eq!(pages[..=page], tables[*owner][..=page]);
                }
                assert_eq!(plan.wanted.len(), parts.len());
            }
        }
    }
}
