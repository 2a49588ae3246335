//! A pass's attention, cut into parts for the thread pool: the same plan serves every layer.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

use super::attention::{AttentionTile, Query, Running, SPAN};
use super::kv_memory::{KvLayer, KvShape, PAGE};
use super::pack::Shared;
use super::{Kernels, Pool, scratch, share};

/// Queries of one KV head, and the positions they attend to. Their [`Query::state`] is their index
/// among the part's queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionPart<'a> {
    pub kv_head: usize,
    pub queries: Vec<Query>,
    /// In processing order: for each query, positions ascend.
    pub spans: Vec<KvSpan<'a>>,
}

/// Positions of one page table that some of a part's queries attend to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpan<'a> {
    /// Page `i` holds positions `16 i..16 (i + 1)`.
    pub pages: &'a [u32],
    /// Starts at a multiple of [`SPAN`], and ends at one or at the end of the sequence.
    pub positions: Range<usize>,
    /// Indices among the part's queries.
    pub queries: Range<usize>,
}

/// The attention of all layers of a pass. No two parts write the same outputs.
pub struct AttentionPlan<'a> {
    shape: KvShape,
    parts: Vec<AttentionPart<'a>>,
    /// Minimum length of the queries' and outputs' buffers.
    numbers: usize,
    /// Minimum pages of a layer.
    pages: usize,
}

thread_local! {
    /// The running softmaxes of the part that a thread is computing.
    static STATES: RefCell<Vec<Running>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `states` fresh states, and scratch for as many queries.
fn with_scratch(shape: KvShape, states: usize, work: impl FnOnce(*mut Running, *mut f32)) {
    STATES.with_borrow_mut(|kept| {
        kept.clear();
        kept.resize(states, Running::default());
        scratch::with(shape.scratch_len(states), |scratch| {
            work(kept.as_mut_ptr(), scratch)
        });
    });
}

impl<'a> AttentionPlan<'a> {
    /// A plan of these parts. Each thread starts with its own share of them, in the order of their
    /// tokens, and takes the costliest first, so that all threads finish at about the same time.
    ///
    /// # Panics
    /// If two queries have the same offset, an offset is not a multiple of the head size, or a span
    /// exceeds its page table or its part.
    pub fn new(shape: KvShape, mut parts: Vec<AttentionPart<'a>>, threads: usize) -> Self {
        let mut offsets = HashSet::new();
        let (mut numbers, mut pages) = (0, 0);
        for part in &parts {
            assert!(part.kv_head < shape.kv_heads, "no such head");
            for (index, query) in part.queries.iter().enumerate() {
                assert!(query.at.is_multiple_of(shape.head_size) && query.state == index);
                assert!(offsets.insert(query.at), "two queries have the same offset");
                numbers = numbers.max(query.at + shape.head_size);
            }
            for span in &part.spans {
                let used = span.positions.end.div_ceil(PAGE);
                assert!(span.positions.start.is_multiple_of(SPAN));
                assert!(used <= span.pages.len(), "too few pages");
                assert!(span.queries.end <= part.queries.len());
                let highest = span.pages[..used].iter().max();
                pages = pages.max(highest.map_or(0, |page| *page as usize + 1));
            }
        }
        parts.sort_by_key(|part| part.queries.first().map(|query| query.at));
        for thread in 0..threads {
            let share = share(thread, threads, parts.len());
            parts[share].sort_by_cached_key(|part| std::cmp::Reverse(part.cost()));
        }
        Self {
            shape,
            parts,
            numbers,
            pages,
        }
    }

    /// Bytes of scratch and states that `threads` threads use.
    pub fn scratch_bytes(&self, threads: usize) -> usize {
        let longest = self.parts.iter().map(|part| part.queries.len()).max();
        let queries = longest.unwrap_or(0);
        let scratch = self.shape.scratch_len(queries) * size_of::<f32>();
        threads * (scratch + queries * size_of::<Running>())
    }

    /// In processing order.
    pub fn parts(&self) -> &[AttentionPart<'a>] {
        &self.parts
    }
}

impl KvSpan<'_> {
    fn pages(&self) -> &[u32] {
        &self.pages[self.positions.start / PAGE..self.positions.end.div_ceil(PAGE)]
    }
}

impl AttentionPart<'_> {
    /// Positions × queries, in total.
    fn cost(&self) -> usize {
        let of = |span: &KvSpan<'_>| span.positions.len() * span.queries.len();
        self.spans.iter().map(of).sum()
    }
}

impl Kernels {
    /// Computes attention for every query of the plan in one layer. `input` holds the queries and
    /// `output` takes the results, both at [`Query::at`]. `scale` multiplies the scores: 1 /
    /// √head_size.
    ///
    /// The results have the same bits however a plan cuts the same queries and positions.
    ///
    /// # Panics
    /// If the layer, the input or the output does not match the plan.
    pub fn attend_all(
        self,
        pool: &Pool,
        layer: KvLayer<'_>,
        plan: &AttentionPlan<'_>,
        scale: f32,
        input: &[f32],
        output: &mut [f32],
    ) {
        assert!(layer.shape() == plan.shape && plan.pages <= layer.pages());
        assert!(plan.numbers <= input.len() && plan.numbers <= output.len());
        let output = Shared::new(output);
        pool.run(plan.parts.len(), |index| {
            let part = &plan.parts[index];
            with_scratch(plan.shape, part.queries.len(), |state, scratch| {
                let all = AttentionTile {
                    layer,
                    kv_head: part.kv_head,
                    pages: &[],
                    positions: 0..0,
                    queries: &part.queries,
                    next: &[],
                    scale,
                    input,
                    output: output.get(),
                    state,
                    scratch,
                };
                // SAFETY: as for the spans below.
                unsafe { (self.table.prepare)(&all) }
                for (index, span) in part.spans.iter().enumerate() {
                    let next = part.spans.get(index + 1);
                    let tile = AttentionTile {
                        pages: span.pages,
                        positions: span.positions.clone(),
                        queries: &part.queries[span.queries.clone()],
                        next: next.map_or(&[], KvSpan::pages),
                        ..all.clone()
                    };
                    // SAFETY: this processor has the features (`Kernels::of`). Pages, queries, states
                    // and positions were checked when the plan was made, and against this layer, input
                    // and output above. No other part writes these outputs, and the scratch is the
                    // thread's own.
                    unsafe { (self.table.attend)(&tile) }
                }
                // SAFETY: likewise.
                unsafe { (self.table.finish)(&all) }
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvMemory;

    const SHAPE: KvShape = KvShape {
        kv_heads: 1,
        head_size: 8,
    };

    fn part<'a>(offsets: &[usize], positions: Range<usize>, pages: &'a [u32]) -> AttentionPart<'a> {
        let query = |(state, &at)| Query {
            at,
            position: 3,
            state,
        };
        AttentionPart {
            kv_head: 0,
            queries: offsets.iter().enumerate().map(query).collect(),
            spans: vec![KvSpan {
                pages,
                positions,
                queries: 0..offsets.len(),
            }],
        }
    }

    #[test]
    fn each_thread_starts_with_the_costliest_part_of_its_share() {
        let parts = || {
            vec![
                part(&[24, 32, 40], 0..4, &[0]),
                part(&[0], 0..4, &[0]),
                part(&[8, 16], 0..4, &[0]),
                part(&[48, 56, 64, 72], 0..4, &[0]),
            ]
        };
        for (threads, expected) in [(1, [4, 3, 2, 1]), (2, [2, 1, 4, 3]), (4, [1, 2, 3, 4])] {
            let plan = AttentionPlan::new(SHAPE, parts(), threads);
            let counts: Vec<usize> = plan.parts().iter().map(|part| part.queries.len()).collect();
            assert_eq!(counts, expected, "{threads} threads");
        }
    }

    #[test]
    #[should_panic(expected = "two queries have the same offset")]
    fn parts_that_write_the_same_output_panic() {
        AttentionPlan::new(
            SHAPE,
            vec![part(&[0], 0..4, &[0]), part(&[8, 0], 0..4, &[0])],
            1,
        );
    }

    #[test]
    #[should_panic(expected = "too few pages")]
    fn positions_without_pages_panic() {
        AttentionPlan::new(SHAPE, vec![part(&[0], 0..17, &[0])], 1);
    }

    #[test]
    #[should_panic(expected = "plan.pages <= layer.pages()")]
    fn a_layer_with_too_few_pages_panics() {
        let plan = AttentionPlan::new(SHAPE, vec![part(&[0], 0..4, &[7])], 1);
        let pool = Pool::new(1).expect("no threads");
        let memory = KvMemory::new(SHAPE, 1, 7);
        Kernels::best().attend_all(&pool, memory.layer(0), &plan, 1.0, &[0.0; 8], &mut [0.0; 8]);
    }
}
