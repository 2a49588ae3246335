//! Which keys and values each product of a pass prefetches.
//!
//! The products between two layers' attention divide the pages that the next attention reads, in
//! proportion to their multiply-adds, so memory works whenever the processor does. A thread mostly
//! prefetches what it will read itself, since cores may not share a cache.

use std::ops::Range;

use super::super::Chunk;
use crate::engine::kernels::{KvMemory, KvPrefetch, PAGE, share};

/// Minimum sequences: with fewer, reading the weights alone keeps memory busy.
const MIN_SEQUENCES: usize = 4;

/// Maximum bytes to prefetch per layer: more would evict the first ones from the third-level cache.
const MAX_BYTES: usize = 8 << 20;

/// The products between the attention of two layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerPhase {
    /// The output projection.
    Output,
    GateAndUp,
    /// The down projection.
    Down,
    /// Query, key and value of the next layer.
    Inputs,
}

/// The pages that a pass reads, once per thread that reads them.
pub(super) struct PrefetchPlan {
    pages: Vec<u32>,
    /// The offset of each phase's share, in the order of [`LayerPhase`], and the end of the last.
    starts: [usize; 5],
}

impl PrefetchPlan {
    /// The plan for a pass. `works` are the products' multiply-adds, and `page_bytes` the bytes of a
    /// page in one layer.
    pub(super) fn of(
        chunks: &[Chunk<'_>],
        works: [usize; 4],
        page_bytes: usize,
        threads: usize,
    ) -> Self {
        let mut plan = Self {
            pages: Vec::new(),
            starts: [0; 5],
        };
        if chunks.len() < MIN_SEQUENCES {
            return plan;
        }
        let max = MAX_BYTES / page_bytes.max(1) / threads;
        let of_threads: Vec<_> = (0..threads)
            .map(|thread| pages_read(&chunks[share(thread, threads, chunks.len())], max))
            .collect();
        let all = works.iter().sum::<usize>().max(1);
        let mut before = 0;
        for (index, work) in works.iter().enumerate() {
            let after = before + work;
            for pages in &of_threads {
                let share = pages.len() * before / all..pages.len() * after / all;
                plan.pages.extend_from_slice(&pages[share]);
            }
            plan.starts[index + 1] = plan.pages.len();
            before = after;
        }
        plan
    }

    /// What a product prefetches for layer `index`, if there is such a layer.
    pub(super) fn kv_during<'a>(
        &'a self,
        phase: LayerPhase,
        kv: &'a KvMemory,
        index: usize,
    ) -> Option<KvPrefetch<'a>> {
        let share = self.share(phase);
        (index < kv.layers() && !share.is_empty()).then(|| KvPrefetch {
            layer: kv.layer(index),
            pages: &self.pages[share],
        })
    }

    fn share(&self, phase: LayerPhase) -> Range<usize> {
        let at = phase as usize;
        self.starts[at]..self.starts[at + 1]
    }
}

/// The distinct pages that these sequences read, at most `max`.
fn pages_read(chunks: &[Chunk<'_>], max: usize) -> Vec<u32> {
    let mut pages = Vec::new();
    for chunk in chunks {
        let end = chunk.start + chunk.tokens.len();
        pages.extend_from_slice(&chunk.pages[..end.div_ceil(PAGE)]);
    }
    pages.sort_unstable();
    pages.dedup();
    pages.truncate(max);
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::KvShape;
    use crate::engine::model::native::tests::decoding;

    fn plan_for(tables: &[Vec<u32>], page_bytes: usize, threads: usize) -> PrefetchPlan {
        let chunks = decoding(tables, PAGE - 1);
        PrefetchPlan::of(&chunks, [1, 5, 3, 2], page_bytes, threads)
    }

    #[test]
    fn the_products_divide_the_pages_of_the_pass() {
        let tables: Vec<Vec<u32>> = (0..8).map(|own| vec![100, 101, own]).collect();
        let plan = plan_for(&tables, 1, 1);
        let shape = KvShape {
            kv_heads: 1,
            head_size: 8,
        };
        let kv = KvMemory::reserve(shape, 2, 200).expect("addresses");
        let mut pages = Vec::new();
        for phase in [
            LayerPhase::Output,
            LayerPhase::GateAndUp,
            LayerPhase::Down,
            LayerPhase::Inputs,
        ] {
            if let Some(prefetch) = plan.kv_during(phase, &kv, 1) {
                pages.extend_from_slice(prefetch.pages);
            }
            assert!(plan.kv_during(phase, &kv, 2).is_none(), "no such layer");
        }
        assert_eq!(pages, [0, 1, 2, 3, 4, 5, 6, 7, 100, 101]);
    }

    #[test]
    fn each_thread_prefetches_what_it_will_read() {
        let tables: Vec<Vec<u32>> = (0..8).map(|own| vec![100, own]).collect();
        let plan = plan_for(&tables, 1, 2);
        assert_eq!(plan.pages.len(), 10);
        for phase in [LayerPhase::Output, LayerPhase::GateAndUp, LayerPhase::Down] {
            let pages = &plan.pages[plan.share(phase)];
            // Two threads compute about half of a product each.
            let (first, second) = pages.split_at(pages.len() / 2);
            assert!(first.iter().all(|page| *page < 4 || *page == 100));
            assert!(second.iter().all(|page| *page >= 4));
        }
    }

    #[test]
    fn small_batches_and_pages_beyond_the_cache_are_not_prefetched() {
        let tables: Vec<Vec<u32>> = (0..8).map(|own| vec![own]).collect();
        assert!(plan_for(&tables[..3], 1, 1).pages.is_empty());
        assert_eq!(plan_for(&tables, MAX_BYTES / 5, 1).pages.len(), 5);
    }
}
