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
            work.clear();
            state.fill(Running::default());
            let first = (kv_head - self.first_kv_head) * heads.group * heads.head_size;
            let mut token = 0;
            for sequence in &self.sequences {
                for position in sequence.positions.clone() {
                    for head in 0..heads.group {
                        work.push(Query {
                            at: token * self.token_numbers + first + head * heads.head_size,
                            position,
                            state: work.len(),
                        });
                    }
                    token += 1;
                }
            }
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
