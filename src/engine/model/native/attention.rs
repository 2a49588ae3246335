//! How a pass's attention is cut into parts: which queries look at which pages together.
//!
//! A chunk of a prompt is cut into blocks of tokens, whose queries share each load of the keys and
//! values. Sequences that decode are taken together: over the pages that they share (a common
//! prefix) their queries are one batch; then each looks at its own pages. A sequence that decodes
//! alone is cut by heads, to have a part for each thread. However it is cut, a query's result has
//! the same bits: the positions are visited in the same order, in blocks that meet at multiples of
//! [`SPAN`].

use std::ops::Range;

use super::super::Chunk;
use crate::engine::kernels::{Attention, Kernels, KvLayer, PAGE, Query, Running, SPAN};

/// Tokens of a prompt whose queries are one part.
const PROMPT_BLOCK: usize = 16;

/// One part of a layer's attention.
#[derive(Debug)]
pub(super) struct Part {
    /// The part's numbers in the queries and in the output, both `[tokens, heads · head_size]`:
    /// a stretch of its own.
    pub(super) numbers: Range<usize>,
    kv_heads: Range<usize>,
    /// First KV head whose queries stand in the stretch.
    first_kv_head: usize,
    sequences: Vec<Sequence>,
    /// Positions from the start whose pages all the sequences share; a multiple of [`SPAN`].
    shared: usize,
    /// Numbers of one token in the stretch.
    token_numbers: usize,
}

#[derive(Debug)]
struct Sequence {
    /// Index of its chunk, for its page table.
    chunk: usize,
    /// Positions of its queries.
    positions: Range<usize>,
}

/// The head counts that the cutting needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) kv_heads: usize,
    /// Query heads a KV head.
    pub(super) group: usize,
    pub(super) head_size: usize,
}

impl Heads {
    fn token_numbers(self) -> usize {
        self.kv_heads * self.group * self.head_size
    }
}

/// Cuts a pass's attention into parts, about `threads` or more.
pub(super) fn cut(chunks: &[Chunk<'_>], heads: Heads, threads: usize) -> Vec<Part> {
    let width = heads.token_numbers();
    let decoding = chunks
        .iter()
        .filter(|chunk| chunk.tokens.len() == 1)
        .count();
    // Two parts a thread even out what sequences of different lengths cost.
    let together = decoding.div_ceil(2 * threads).max(1);
    let mut parts = Vec::new();
    let mut token = 0;
    let mut index = 0;
    while index < chunks.len() {
        let chunk = &chunks[index];
        let count = chunk.tokens.len();
        if count > 1 {
            for start in (0..count).step_by(PROMPT_BLOCK) {
                let end = (start + PROMPT_BLOCK).min(count);
                parts.push(Part {
                    numbers: (token + start) * width..(token + end) * width,
                    kv_heads: 0..heads.kv_heads,
                    first_kv_head: 0,
                    sequences: vec![Sequence {
                        chunk: index,
                        positions: chunk.start + start..chunk.start + end,
                    }],
                    shared: 0,
                    token_numbers: width,
                });
            }
            token += count;
            index += 1;
            continue;
        }
        let run = chunks[index..]
            .iter()
            .take(together)
            .take_while(|chunk| chunk.tokens.len() == 1)
            .count();
        let sequences = || {
            (index..index + run).map(|chunk| Sequence {
                chunk,
                positions: chunks[chunk].start..chunks[chunk].start + 1,
            })
        };
        if decoding < threads {
            // One part a KV head: its queries' numbers stand together in a token.
            let stretch = heads.group * heads.head_size;
            for kv_head in 0..heads.kv_heads {
                let start = token * width + kv_head * stretch;
                parts.push(Part {
                    numbers: start..start + stretch,
                    kv_heads: kv_head..kv_head + 1,
                    first_kv_head: kv_head,
                    sequences: sequences().collect(),
                    shared: 0,
                    token_numbers: stretch,
                });
            }
        } else {
            parts.push(Part {
                numbers: token * width..(token + run) * width,
                kv_heads: 0..heads.kv_heads,
                first_kv_head: 0,
                shared: shared_positions(&chunks[index..index + run]),
                sequences: sequences().collect(),
                token_numbers: width,
            });
        }
        token += run;
        index += run;
    }
    parts
}

/// Positions from the start that lie in the same pages for all these sequences, and before the
/// last token of each; a multiple of [`SPAN`].
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

impl Part {
    /// The part's queries that look at this KV head, sequence by sequence, in place of `work`.
    fn queries(&self, kv_head: usize, heads: Heads, work: &mut Vec<Query>) {
        work.clear();
        let first = (kv_head - self.first_kv_head) * heads.group * heads.head_size;
        let positions = self.sequences.iter().flat_map(|seq| seq.positions.clone());
        for (token, position) in positions.enumerate() {
            for head in 0..heads.group {
                work.push(Query {
                    at: token * self.token_numbers + first + head * heads.head_size,
                    position,
                    state: work.len(),
                });
            }
        }
    }

    /// Computes the part: `queries` and `output` are its stretches.
    pub(super) fn run(
        &self,
        kernels: Kernels,
        layer: &KvLayer,
        chunks: &[Chunk<'_>],
        heads: Heads,
        queries: &[f32],
        output: &mut [f32],
    ) {
        let tokens: usize = self.sequences.iter().map(|seq| seq.positions.len()).sum();
        let scale = 1.0 / (heads.head_size as f32).sqrt();
        let mut state = vec![Running::default(); tokens * heads.group];
        let mut work = Vec::with_capacity(tokens * heads.group);
        for kv_head in self.kv_heads.clone() {
            state.fill(Running::default());
            self.queries(kv_head, heads, &mut work);
            let attention =
                |chunk: usize, positions: Range<usize>, range: Range<usize>| Attention {
                    layer,
                    kv_head,
                    pages: chunks[chunk].pages,
                    positions,
                    queries: &work[range],
                    scale,
                    input: queries,
                };
            if self.shared > 0 {
                let chunk = self.sequences[0].chunk;
                let all = attention(chunk, 0..self.shared, 0..work.len());
                kernels.attend(&all, output, &mut state, false);
            }
            let mut at = 0;
            for sequence in &self.sequences {
                let count = sequence.positions.len() * heads.group;
                let own = attention(
                    sequence.chunk,
                    self.shared..sequence.positions.end,
                    at..at + count,
                );
                kernels.attend(&own, output, &mut state, true);
                at += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::model::Slot;
    use proptest::prelude::*;

    /// A chunk's start and number of tokens, and how many of its first pages are those that all
    /// chunks can share.
    fn batches() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
        let chunk = (
            0usize..400,
            prop_oneof![Just(1usize), 1usize..70],
            0usize..26,
        );
        prop::collection::vec(chunk, 1..30)
    }

    proptest! {
        #[test]
        fn parts_cover_each_query_once(
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
            // Whose query each head of each packed token is.
            let owners: Vec<(usize, usize)> = batch
                .iter()
                .enumerate()
                .flat_map(|(chunk, &(start, count, _))| {
                    (start..start + count).map(move |position| (chunk, position))
                })
                .collect();
            let width = heads.token_numbers();
            let mut covered = vec![0; owners.len() * kv_heads * group];
            let mut end = 0;
            let mut work = Vec::new();
            for part in cut(&chunks, heads, threads) {
                prop_assert!(end <= part.numbers.start, "stretches overlap");
                end = part.numbers.end;
                prop_assert!(end <= owners.len() * width);
                prop_assert!(part.shared.is_multiple_of(SPAN));
                let first = &tables[part.sequences[0].chunk];
                for sequence in &part.sequences {
                    // The last token of each is left, so that its own call has something to do.
                    prop_assert!(part.shared <= sequence.positions.start);
                    let pages = part.shared / PAGE;
                    prop_assert_eq!(&first[..pages], &tables[sequence.chunk][..pages]);
                }
                let of_queries: Vec<(usize, usize)> = part
                    .sequences
                    .iter()
                    .flat_map(|seq| seq.positions.clone().map(|position| (seq.chunk, position)))
                    .collect();
                for kv_head in part.kv_heads.clone() {
                    part.queries(kv_head, heads, &mut work);
                    prop_assert_eq!(work.len(), of_queries.len() * group);
                    for (index, query) in work.iter().enumerate() {
                        prop_assert!(query.at + heads.head_size <= part.numbers.len());
                        let number = part.numbers.start + query.at;
                        let owner = owners[number / width];
                        prop_assert_eq!(owner, of_queries[index / group]);
                        prop_assert_eq!(query.position, owner.1);
                        prop_assert_eq!(query.state, index);
                        let head = number % width / heads.head_size;
                        prop_assert_eq!(head / group, kv_head);
                        covered[number / heads.head_size] += 1;
                    }
                }
            }
            prop_assert!(covered.iter().all(|times| *times == 1), "{:?}", covered);
        }
    }

    #[test]
    fn decoding_sequences_on_one_prefix_look_at_it_together() {
        let heads = Heads {
            kv_heads: 2,
            group: 3,
            head_size: 8,
        };
        let tables: Vec<Vec<u32>> = (0..8)
            .map(|own| (0..19).chain([100 + own]).collect())
            .collect();
        let chunks: Vec<Chunk<'_>> = tables
            .iter()
            .map(|pages| Chunk {
                slot: Slot(0),
                pages,
                tokens: &[0],
                start: 19 * PAGE + 3,
                logits: true,
            })
            .collect();
        let parts = cut(&chunks, heads, 2);
        assert_eq!(parts.len(), 4);
        // 304 positions are in shared pages; blocks of 64 end at 256.
        assert!(parts.iter().all(|part| part.shared == 256));
        assert!(parts.iter().all(|part| part.sequences.len() == 2));
        // One alone is cut by heads.
        assert_eq!(cut(&chunks[..1], heads, 2).len(), 2);
    }
}
