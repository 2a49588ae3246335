//! A pass's attention, cut into parts that threads take: the same plan serves every layer.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

use super::attention::{AttentionTile, Query, Running, SPAN};
use super::kv_memory::{KvLayer, KvShape, PAGE};
use super::pack::Shared;
use super::{Kernels, Pool, scratch, share};

/// Queries of one KV head, and what they span at. Their [`Query::state`] is their place among the
/// part's queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionPart<'a> {
    /// The head of keys and values.
    pub kv_head: usize,
    /// The queries.
    pub queries: Vec<Query>,
    /// What is looked at, in this order: for each query ascending positions.
    pub spans: Vec<KvSpan<'a>>,
}

/// Some of a part's queries span at some positions of one page table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpan<'a> {
    /// Page `i` holds positions `16 i..16 (i + 1)`.
    pub pages: &'a [u32],
    /// From a multiple of [`SPAN`] to a multiple of it, or to the end.
    pub positions: Range<usize>,
    /// Which of the part's queries.
    pub queries: Range<usize>,
}

/// The attention of all layers of a pass. Its parts write places of their own.
pub struct AttentionPlan<'a> {
    shape: KvShape,
    parts: Vec<AttentionPart<'a>>,
    /// How many numbers the queries and the outputs must have.
    numbers: usize,
    /// How many pages a layer must have.
    pages: usize,
}

thread_local! {
    /// The running softmaxes of the part that a thread has in hand.
    static STATES: RefCell<Vec<Running>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with so many fresh states, and scratch for as many queries.
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
    /// A plan of these parts for so many threads. Each begins with its share of them, which are in the order
    /// of their tokens, and with the costliest of it: so the threads end together.
    ///
    /// # Panics
    /// Where two queries have the same place, places are not multiples of the head size, or a span
    /// leaves its page table or its part.
    pub fn new(shape: KvShape, mut parts: Vec<AttentionPart<'a>>, threads: usize) -> Self {
        let mut places = HashSet::new();
        let (mut numbers, mut pages) = (0, 0);
        for part in &parts {
            assert!(part.kv_head < shape.kv_heads, "no such head");
            for (index, query) in part.queries.iter().enumerate() {
                assert!(query.at.is_multiple_of(shape.head_size) && query.state == index);
                assert!(places.insert(query.at), "two queries have one place");
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

    /// Bytes that so many threads keep for what they compute on the way.
    pub fn scratch_bytes(&self, threads: usize) -> usize {
        let most = self.parts.iter().map(|part| part.queries.len()).max();
        let queries = most.unwrap_or(0);
        let scratch = self.shape.scratch_len(queries) * size_of::<f32>();
        threads * (scratch + queries * size_of::<Running>())
    }

    /// The parts, in the order in which they are taken.
    pub fn parts(&self) -> &[AttentionPart<'a>] {
        &self.parts
    }
}

impl KvSpan<'_> {
    /// The pages that hold its positions.
    fn pages(&self) -> &[u32] {
        &self.pages[self.positions.start / PAGE..self.positions.end.div_ceil(PAGE)]
    }
}

impl AttentionPart<'_> {
    /// Positions × queries, all in all.
    fn cost(&self) -> usize {
        let of = |span: &KvSpan<'_>| span.positions.len() * span.queries.len();
        self.spans.iter().map(of).sum()
    }
}

impl Kernels {
    /// Attends for every query of the plan in one layer: `input` holds the queries' numbers, `output`
    /// takes those of the results, both at [`Query::at`]. `scale` multiplies the scores:
    /// 1 / √head_size.
    ///
    /// The results have the same bits however a plan cuts the same queries and positions.
    ///
    /// # Panics
    /// Where the layer, the input or the output is not what the plan was made for.
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
                    // SAFETY: this processor is able (`Kernels::of`). Pages, queries, states and
                    // positions were checked when the plan was made, and against this layer, input
                    // and output above; no other part has these places, and the scratch is the thread's.
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

    fn part<'a>(places: &[usize], positions: Range<usize>, pages: &'a [u32]) -> AttentionPart<'a> {
        let query = |(state, &at)| Query {
            at,
            position: 3,
            state,
        };
        AttentionPart {
            kv_head: 0,
            queries: places.iter().enumerate().map(query).collect(),
            spans: vec![KvSpan {
                pages,
                positions,
                queries: 0..places.len(),
            }],
        }
    }

    #[test]
    fn each_thread_has_its_tokens_and_begins_with_the_costliest_part() {
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
    #[should_panic(expected = "two queries have one place")]
    fn parts_that_share_a_place_are_refused() {
        AttentionPlan::new(
            SHAPE,
            vec![part(&[0], 0..4, &[0]), part(&[8, 0], 0..4, &[0])],
            1,
        );
    }

    #[test]
    #[should_panic(expected = "too few pages")]
    fn positions_without_pages_are_refused() {
        AttentionPlan::new(SHAPE, vec![part(&[0], 0..17, &[0])], 1);
    }

    #[test]
    #[should_panic(expected = "plan.pages <= layer.pages()")]
    fn a_layer_with_fewer_pages_is_refused() {
        let plan = AttentionPlan::new(SHAPE, vec![part(&[0], 0..4, &[7])], 1);
        let pool = Pool::new(1).expect("no threads");
        let memory = KvMemory::new(SHAPE, 1, 7);
        Kernels::best().attend_all(&pool, memory.layer(0), &plan, 1.0, &[0.0; 8], &mut [0.0; 8]);
    }
}
