//! Keys and values that will be read prefetch, asked for while a product computes.
//!
//! A product of a few dozen tokens leaves memory idle for most of its time, and the attention after it
//! waits for memory for most of its own. What is asked for goes to the second-level cache, and from
//! there, pushed out by what follows, to the third.

use std::ops::Range;

use super::aligned::LINE;
use super::kv_memory::KvLayer;
use super::pool::share;
use super::simd::Simd;

/// A layer's parts of some pages.
#[derive(Clone, Copy)]
pub struct KvPrefetch<'a> {
    pub layer: KvLayer<'a>,
    /// Pages of the layer's memory.
    pub pages: &'a [u32],
}

impl<'a> KvPrefetch<'a> {
    /// Cache lines of a page's part.
    fn lines_of_page(&self) -> usize {
        self.layer.shape().page_bytes().div_ceil(LINE)
    }

    /// What part `index` of `count` parts of a product asks for.
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

/// How far a part has come with cursor.
#[derive(Clone)]
pub(super) struct PrefetchCursor<'a> {
    /// The layer, and the pages after the one in hand.
    prefetch: Option<KvPrefetch<'a>>,
    /// The next line.
    at: *const u8,
    /// Lines remaining of the page.
    page_remaining: usize,
    /// Lines remaining of the part.
    remaining: usize,
    /// Lines that are asked for at a time.
    per_call: usize,
}

impl PrefetchCursor<'_> {
    /// Asks for nothing.
    pub(super) fn none() -> Self {
        Self {
            prefetch: None,
            at: std::ptr::null(),
            page_remaining: 0,
            remaining: 0,
            per_call: 0,
        }
    }

    /// Spreads what is remaining over so many calls of [`Self::ask`].
    pub(super) fn spread(&mut self, calls: usize) {
        self.per_call = self.remaining.div_ceil(calls.max(1));
    }

    /// To the next page.
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

    /// Past so many lines of the page.
    #[inline(always)]
    fn advance(&mut self, lines: usize) {
        self.at = self.at.wrapping_add(lines * LINE);
        self.page_remaining -= lines;
        if self.page_remaining == 0 {
            self.next_page();
        }
    }

    /// Asks for the next lines. At a page's end a few too many are asked for, in vain.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    #[inline(always)]
    pub(super) unsafe fn prefetch_next<S: Simd>(&mut self) {
        if self.remaining == 0 {
            return;
        }
        for line in 0..self.per_call {
            // SAFETY: what is asked for need not be valid.
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
        /// However pages are divided among parts and calls, the parts ask for every line in its order,
        /// in as many calls as they were told of and one for each page's end.
        #[test]
        fn every_line_is_asked_for(
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
                    // SAFETY: any processor is able.
                    unsafe { cursor.prefetch_next::<Scalar>() }
                    made += 1;
                }
                prop_assert!(made <= calls + pages.len());
            }
            prop_assert_eq!(found, expected);
        }
    }
}
