//! Prefetching keys and values while a product computes.
//!
//! A product of a few dozen tokens leaves memory idle for most of its time, and the attention after it
//! mostly waits for memory. Prefetches go to the second-level cache; later ones push the lines out to
//! the third level.

use std::ops::Range;

use super::aligned::LINE;
use super::kv_memory::KvLayer;
use super::pool::share;
use super::simd::Simd;

/// The pages of one layer to prefetch.
#[derive(Clone, Copy)]
pub struct KvPrefetch<'a> {
    pub layer: KvLayer<'a>,
    pub pages: &'a [u32],
}

impl<'a> KvPrefetch<'a> {
    /// Cache lines of one page of the layer.
    fn lines_of_page(&self) -> usize {
        self.layer.shape().page_bytes().div_ceil(LINE)
    }

    /// The share of part `index` of a product in `count` parts.
    pub(super) fn cursor(&self, index: usize, count: usize) -> PrefetchCursor<'a> {
        let lines = self.lines_of_page();
        let all = self.pages.len() * lines;
        let Range { start: first, end } = share(index, count, all);
        let pages = self.pages.get(first / lines..).unwrap_or(&[]);
        let mut cursor = PrefetchCursor {
            prefetch: Some(KvPrefetch { pages, ..*self }),
            at: std::ptr::null(),
            page_remaining: 0,
            remaining: end - first,
            per_call: 0,
        };
        cursor.next_page();
        if cursor.remaining > 0 {
            cursor.advance(first % lines);
        }
        cursor
    }
}

/// What a part has still to prefetch.
#[derive(Clone)]
pub(super) struct PrefetchCursor<'a> {
    /// The layer, and the pages after the current one.
    prefetch: Option<KvPrefetch<'a>>,
    at: *const u8,
    /// Lines remaining in the current page.
    page_remaining: usize,
    /// Lines remaining in total.
    remaining: usize,
    /// Lines to prefetch per call of [`Self::prefetch_next`].
    per_call: usize,
}

impl PrefetchCursor<'_> {
    /// A cursor that prefetches nothing.
    pub(super) fn none() -> Self {
        Self {
            prefetch: None,
            at: std::ptr::null(),
            page_remaining: 0,
            remaining: 0,
            per_call: 0,
        }
    }

    /// Spreads the remaining lines over `calls` calls of [`Self::prefetch_next`].
    pub(super) fn spread(&mut self, calls: usize) {
        self.per_call = self.remaining.div_ceil(calls.max(1));
    }

    fn next_page(&mut self) {
        let Some(prefetch) = &mut self.prefetch else {
            return;
        };
        let Some((page, rest)) = prefetch.pages.split_first() else {
            self.remaining = 0;
            return;
        };
        prefetch.pages = rest;
        self.at = prefetch.layer.page(*page).cast();
        self.page_remaining = prefetch.lines_of_page();
    }

    /// Skips lines of the current page, of which there are at least that many.
    #[inline(always)]
    fn advance(&mut self, lines: usize) {
        self.at = self.at.wrapping_add(lines * LINE);
        self.page_remaining -= lines;
        if self.page_remaining == 0 {
            self.next_page();
        }
    }

    /// Prefetches the next lines. At a page's end this prefetches a few lines too many, which is
    /// harmless.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    #[inline(always)]
    pub(super) unsafe fn prefetch_next<S: Simd>(&mut self) {
        if self.remaining == 0 {
            return;
        }
        for line in 0..self.per_call {
            // SAFETY: the address of a prefetch need not be valid.
            unsafe { S::prefetch_far(self.at.wrapping_add(line * LINE)) }
        }
        let lines = self.per_call.min(self.page_remaining).min(self.remaining);
        self.remaining -= lines;
        self.advance(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::super::kv_memory::{KvMemory, KvShape};
    use super::super::scalar::Scalar;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However pages are divided among parts and calls, every line is prefetched, in order, in at
        /// most as many calls as announced plus one for each page end.
        #[test]
        fn every_line_is_prefetched(
            pages in prop::collection::vec(0u32..9, 0..12),
            parts in 1usize..7,
            calls in 1usize..40,
        ) {
            let shape = KvShape { kv_heads: 1, head_size: 8 };
            let memory = KvMemory::new(shape, 2, 9);
            let prefetch = KvPrefetch { layer: memory.layer(1), pages: &pages };
            let mut expected = Vec::new();
            for page in &pages {
                let start = prefetch.layer.page(*page).addr();
                expected.extend((0..prefetch.lines_of_page()).map(|line| start + line * LINE));
            }
            let mut found = Vec::new();
            for part in 0..parts {
                let mut cursor = prefetch.cursor(part, parts);
                cursor.spread(calls);
                let mut made = 0;
                while cursor.remaining > 0 {
                    let lines = cursor.per_call.min(cursor.page_remaining).min(cursor.remaining);
                    found.extend((0..lines).map(|line| cursor.at.addr() + line * LINE));
                    // SAFETY: every processor can run the scalar code.
                    unsafe { cursor.prefetch_next::<Scalar>() }
                    made += 1;
                }
                prop_assert!(made <= calls + pages.len());
            }
            prop_assert_eq!(found, expected);
        }
    }
}
