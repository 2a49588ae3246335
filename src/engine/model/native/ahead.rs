//! Which keys and values a pass asks for while it computes something else.
//!
//! The products between two layers' attention divide the pages that the next one will look at, each as
//! many as its share of the multiply-adds: memory then works all the time that the processor does. Most
//! of what a thread will look at the same thread asks for, since its core may have caches of its own.

use std::ops::Range;

use super::super::Chunk;
use crate::engine::kernels::{KvMemory, PAGE, Soon, share};

/// Sequences from which on it pays: with fewer, reading the weights alone keeps memory busy.
const FEW_SEQUENCES: usize = 4;

/// Bytes of a layer's keys and values that are asked for at most: what comes further would push the
/// first out of the third-level cache.
const MOST_BYTES: usize = 8 << 20;

/// Where the time between two layers' attention goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum During {
    /// The product after the attention.
    Output,
    /// Gate and up.
    GateAndUp,
    /// Down.
    Down,
    /// Query, key and value of the next layer.
    Inputs,
}

/// The pages that a pass looks at, once for each thread that does.
pub(super) struct Upcoming {
    pages: Vec<u32>,
    /// Where the share of each product starts, in the order of [`During`], and where the last one ends.
    starts: [usize; 5],
}

impl Upcoming {
    /// Of the sequences of a pass on so many threads. `works` are the products' multiply-adds, and
    /// `page_bytes` the bytes of a layer's part of a page.
    pub(super) fn of(
        chunks: &[Chunk<'_>],
        works: [usize; 4],
        page_bytes: usize,
        threads: usize,
    ) -> Self {
        let mut upcoming = Self {
            pages: Vec::new(),
            starts: [0; 5],
        };
        if chunks.len() < FEW_SEQUENCES {
            return upcoming;
        }
        let most = MOST_BYTES / page_bytes.max(1) / threads;
        let of_threads: Vec<_> = (0..threads)
            .map(|thread| looked_at(&chunks[share(thread, threads, chunks.len())], most))
            .collect();
        let all = works.iter().sum::<usize>().max(1);
        let mut before = 0;
        for (index, work) in works.iter().enumerate() {
            let after = before + work;
            for pages in &of_threads {
                let share = pages.len() * before / all..pages.len() * after / all;
                upcoming.pages.extend_from_slice(&pages[share]);
            }
            upcoming.starts[index + 1] = upcoming.pages.len();
            before = after;
        }
        upcoming
    }

    /// What a product asks for on behalf of layer `index`, where there is one.
    pub(super) fn during<'a>(
        &'a self,
        during: During,
        kv: &'a KvMemory,
        index: usize,
    ) -> Option<Soon<'a>> {
        let share = self.share(during);
        (index < kv.layers() && !share.is_empty()).then(|| Soon {
            layer: kv.layer(index),
            pages: &self.pages[share],
        })
    }

    fn share(&self, during: During) -> Range<usize> {
        let at = during as usize;
        self.starts[at]..self.starts[at + 1]
    }
}

/// The pages that these sequences look at, each once, and at most so many.
fn looked_at(chunks: &[Chunk<'_>], most: usize) -> Vec<u32> {
    let mut pages = Vec::new();
    for chunk in chunks {
        let end = chunk.start + chunk.tokens.len();
        pages.extend_from_slice(&chunk.pages[..end.div_ceil(PAGE)]);
    }
    pages.sort_unstable();
    pages.dedup();
    pages.truncate(most);
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::KvShape;
    use crate::engine::model::native::tests::decoding;

    fn upcoming(tables: &[Vec<u32>], page_bytes: usize, threads: usize) -> Upcoming {
        let chunks = decoding(tables, PAGE - 1);
        Upcoming::of(&chunks, [1, 5, 3, 2], page_bytes, threads)
    }

    #[test]
    fn the_products_divide_the_pages_that_the_pass_looks_at() {
        let tables: Vec<Vec<u32>> = (0..8).map(|own| vec![100, 101, own]).collect();
        let upcoming = upcoming(&tables, 1, 1);
        let shape = KvShape {
            kv_heads: 1,
            head_size: 8,
        };
        let kv = KvMemory::reserve(shape, 2, 200).expect("addresses");
        let mut pages = Vec::new();
        for during in [
            During::Output,
            During::GateAndUp,
            During::Down,
            During::Inputs,
        ] {
            if let Some(soon) = upcoming.during(during, &kv, 1) {
                pages.extend_from_slice(soon.pages);
            }
            assert!(upcoming.during(during, &kv, 2).is_none(), "no such layer");
        }
        assert_eq!(pages, [0, 1, 2, 3, 4, 5, 6, 7, 100, 101]);
    }

    #[test]
    fn each_thread_asks_for_what_it_will_look_at() {
        let tables: Vec<Vec<u32>> = (0..8).map(|own| vec![100, own]).collect();
        let upcoming = upcoming(&tables, 1, 2);
        assert_eq!(upcoming.pages.len(), 10);
        for during in [During::Output, During::GateAndUp, During::Down] {
            let pages = &upcoming.pages[upcoming.share(during)];
            // Threads take about half of a product each.
            let (first, second) = pages.split_at(pages.len() / 2);
            assert!(first.iter().all(|page| *page < 4 || *page == 100));
            assert!(second.iter().all(|page| *page >= 4));
        }
    }

    #[test]
    fn nothing_is_asked_for_in_small_company_or_beyond_the_cache() {
        let tables: Vec<Vec<u32>> = (0..8).map(|own| vec![own]).collect();
        assert!(upcoming(&tables[..3], 1, 1).pages.is_empty());
        assert_eq!(upcoming(&tables, MOST_BYTES / 5, 1).pages.len(), 5);
    }
}
