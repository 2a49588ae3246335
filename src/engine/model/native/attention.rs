//! How a pass's attention is cut into parts: which queries read which pages together.
//!
//! A prompt chunk is cut into blocks of tokens, whose queries share each load of keys and values.
//! Decoding sequences are grouped: over a common prefix in shared pages their queries form one batch;
//! then each reads its own pages. A sequence that decodes alone is cut by heads, so that each thread
//! has a part. However the work is cut, a query's result has the same bits: positions are visited in
//! the same order, in blocks that meet at multiples of [`SPAN`].

use super::super::{Chunk, ModelSpec};
use crate::engine::kernels::{AttentionPart, AttentionPlan, KvShape, KvSpan, PAGE, Query, SPAN};

/// Prompt tokens whose queries form one part.
const PROMPT_BLOCK: usize = 16;

/// Minimum parts per thread for a batch of decoding sequences, so that differences in cost between
/// parts matter little.
const PARTS_A_THREAD: usize = 6;

#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) kv_heads: usize,
    /// Query heads per KV head.
    pub(super) group: usize,
    pub(super) head_size: usize,
}

impl Heads {
    pub(super) fn of(spec: &ModelSpec) -> Self {
        Self {
            kv_heads: spec.kv_heads,
            group: spec.heads / spec.kv_heads,
            head_size: spec.head_size,
        }
    }

    pub(super) fn token_numbers(self) -> usize {
        self.kv_heads * self.group * self.head_size
    }

    /// The queries of some tokens, given with their positions, to one KV head.
    fn queries(self, tokens: impl Iterator<Item = (usize, usize)>, kv_head: usize) -> Vec<Query> {
        let first = kv_head * self.group * self.head_size;
        let heads = tokens.flat_map(|(token, position)| {
            let at = token * self.token_numbers() + first;
            (0..self.group).map(move |head| (at + head * self.head_size, position))
        });
        heads
            .enumerate()
            .map(|(state, (at, position))| Query {
                at,
                position,
                state,
            })
            .collect()
    }
}

/// Cuts a pass's attention into parts. Queries and outputs are `[tokens, heads · head_size]`.
pub(super) fn cut<'a>(chunks: &[Chunk<'a>], heads: Heads, threads: usize) -> AttentionPlan<'a> {
    let decoding = chunks
        .iter()
        .filter(|chunk| chunk.tokens.len() == 1)
        .count();
    let groups = (PARTS_A_THREAD * threads).div_ceil(heads.kv_heads);
    let together = decoding.div_ceil(groups).max(1);
    let mut parts = Vec::new();
    let mut token = 0;
    let mut rest = chunks;
    while let [chunk, ..] = rest {
        let count = chunk.tokens.len();
        if count > 1 {
            prompt_parts(chunk, token, heads, &mut parts);
            token += count;
            rest = &rest[1..];
            continue;
        }
        let run = rest
            .iter()
            .take(together)
            .take_while(|chunk| chunk.tokens.len() == 1)
            .count();
        let (sequences, others) = rest.split_at(run);
        decode_parts(sequences, token, heads, &mut parts);
        token += run;
        rest = others;
    }
    let shape = KvShape {
        kv_heads: heads.kv_heads,
        head_size: heads.head_size,
    };
    AttentionPlan::new(shape, parts, threads)
}

/// The parts of a prompt chunk whose first token is row `token` of the pass.
fn prompt_parts<'a>(
    chunk: &Chunk<'a>,
    token: usize,
    heads: Heads,
    parts: &mut Vec<AttentionPart<'a>>,
) {
    let count = chunk.tokens.len();
    for start in (0..count).step_by(PROMPT_BLOCK) {
        let block = start..(start + PROMPT_BLOCK).min(count);
        for kv_head in 0..heads.kv_heads {
            let tokens = block.clone().map(|at| (token + at, chunk.start + at));
            let queries = heads.queries(tokens, kv_head);
            parts.push(AttentionPart {
                kv_head,
                spans: vec![KvSpan {
                    pages: chunk.pages,
                    positions: 0..chunk.start + block.end,
                    queries: 0..queries.len(),
                }],
                queries,
            });
        }
    }
}

/// The parts of sequences with one token each, the first of which is row `token` of the pass.
fn decode_parts<'a>(
    sequences: &[Chunk<'a>],
    token: usize,
    heads: Heads,
    parts: &mut Vec<AttentionPart<'a>>,
) {
    let shared = shared_positions(sequences);
    for kv_head in 0..heads.kv_heads {
        let tokens = (token..).zip(sequences.iter().map(|chunk| chunk.start));
        let queries = heads.queries(tokens, kv_head);
        let common = sequences
            .first()
            .filter(|_| shared > 0)
            .map(|first| KvSpan {
                pages: first.pages,
                positions: 0..shared,
                queries: 0..queries.len(),
            });
        let own = sequences.iter().enumerate().map(|(index, chunk)| KvSpan {
            pages: chunk.pages,
            positions: shared..chunk.start + 1,
            queries: index * heads.group..(index + 1) * heads.group,
        });
        parts.push(AttentionPart {
            kv_head,
            spans: common.into_iter().chain(own).collect(),
            queries,
        });
    }
}

/// Length of the common prefix in shared pages, before the last token of each sequence; a multiple of
/// [`SPAN`].
fn shared_positions(chunks: &[Chunk<'_>]) -> usize {
    let [first, others @ ..] = chunks else {
        return 0;
    };
    if others.is_empty() {
        return 0;
    }
    let mut pages = first.start / PAGE;
    for other in others {
        let same = first.pages[..pages.min(other.start / PAGE)]
            .iter()
            .zip(other.pages)
            .take_while(|(one, another)| one == another)
            .count();
        pages = same;
    }
    pages * PAGE / SPAN * SPAN
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::model::Slot;
    use crate::engine::model::native::tests::decoding;
    use proptest::prelude::*;

    /// A chunk's start and length, and how many of its first pages are the ones that all chunks can
    /// share.
    fn batches() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
        let chunk = (
            0usize..400,
            prop_oneof![Just(1usize), 1usize..70],
            0usize..26,
        );
        prop::collection::vec(chunk, 1..30)
    }

    proptest! {
        /// Each query attends once to each position up to its own, in ascending order, in the pages of
        /// its sequence.
        #[test]
        fn every_query_sees_each_position_once(
            batch in batches(),
            kv_heads in 1usize..5,
            group in 1usize..4,
            threads in 1usize..9,
        ) {
            let heads = Heads { kv_heads, group, head_size: 8 };
            let tables: Vec<Vec<u32>> = batch
                .iter()
                .zip(1u32..)
                .map(|(&(start, count, common), chunk)| {
                    let pages = (start + count).div_ceil(PAGE);
                    let own = |page| if page < common { 0 } else { 1000 * chunk };
                    (0..pages).map(|page| page as u32 + own(page)).collect()
                })
                .collect();
            let tokens = vec![0; 70];
            let chunks: Vec<Chunk<'_>> = batch
                .iter()
                .zip(&tables)
                .enumerate()
                .map(|(slot, (&(start, count, _), pages))| Chunk {
                    slot: Slot(slot),
                    pages,
                    tokens: &tokens[..count],
                    start,
                    logits: true,
                })
                .collect();
            // The chunk and position of each token of the pass.
            let owners: Vec<(usize, usize)> = batch
                .iter()
                .enumerate()
                .flat_map(|(chunk, &(start, count, _))| {
                    (start..start + count).map(move |position| (chunk, position))
                })
                .collect();
            let width = heads.token_numbers();
            let mut reached = vec![0; owners.len() * kv_heads * group];
            for part in cut(&chunks, heads, threads).parts() {
                for query in &part.queries {
                    let (_, position) = owners[query.at / width];
                    prop_assert_eq!(query.position, position);
                    let head = query.at % width / heads.head_size;
                    prop_assert_eq!(head / group, part.kv_head);
                }
                for span in &part.spans {
                    prop_assert!(span.positions.start.is_multiple_of(SPAN));
                    for query in &part.queries[span.queries.clone()] {
                        let (chunk, position) = owners[query.at / width];
                        let reached = &mut reached[query.at / heads.head_size];
                        prop_assert_eq!(*reached, span.positions.start);
                        prop_assert!(*reached <= position);
                        *reached = span.positions.end.min(position + 1);
                        let pages = span.positions.start / PAGE..reached.div_ceil(PAGE);
                        prop_assert_eq!(&span.pages[pages.clone()], &tables[chunk][pages]);
                    }
                }
            }
            for (index, reached) in reached.iter().enumerate() {
                prop_assert_eq!(*reached, owners[index / (kv_heads * group)].1 + 1);
            }
        }
    }

    #[test]
    fn decoding_sequences_batch_their_shared_prefix() {
        let heads = Heads {
            kv_heads: 2,
            group: 3,
            head_size: 8,
        };
        let tables: Vec<Vec<u32>> = (0..24)
            .map(|own| (0..19).chain([100 + own]).collect())
            .collect();
        let chunks = decoding(&tables, 3);
        let plan = cut(&chunks, heads, 2);
        assert_eq!(plan.parts().len(), 12);
        // 304 positions are in shared pages; blocks of 64 end at 256.
        for part in plan.parts() {
            assert_eq!(part.spans.len(), 5);
            assert_eq!(part.spans[0].positions, 0..256);
            assert_eq!(part.spans[0].queries.len(), 12);
        }
        // A single sequence is cut by heads.
        assert_eq!(cut(&chunks[..1], heads, 2).parts().len(), 2);
    }
}
