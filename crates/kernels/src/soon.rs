//! Keys and values that will be read soon, asked for while a product computes.
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
pub struct Soon<'a> {
    pub layer: KvLayer<'a>,
    /// Pages of the layer's memory.
    pub pages: &'a [u32],
}

impl<'a> Soon<'a> {
    /// Cache lines of a page's part.
    fn lines_of_page(&self) -> usize {
        self.layer.shape().page_bytes().div_ceil(LINE)
    }

    /// What part `index` of `count` parts of a product asks for.
    pub(super) fn share(&self, index: usize, count: usize) -> Asking<'a> {
        let lines = self.lines_of_page();
        let all = self.pages.len() * lines;
        let Range { start: first, end } = share(index, count, all);
        let pages = self.pages.get(first / lines..).unwrap_or(&[]);
        let mut asking = Asking {
            soon: Some(Soon { pages, ..*self }),
            at: std::ptr::null(),
            of_page: 0,
            left: end - first,
            each: 0,
        };
        asking.turn();
        if asking.left > 0 {
            asking.step(first % lines);
        }
        asking
    }
}

/// How far a part has come with asking.
#[derive(Clone)]
pub(super) struct Asking<'a> {
    /// The layer, and the pages after the one in hand.
    soon: Option<Soon<'a>>,
    /// The next line.
    at: *const u8,
    /// Lines left of the page.
    of_page: usize,
    /// Lines left of the part.
    left: usize,
    /// Lines that are asked for at a time.
    each: usize,
}

impl Asking<'_> {
    /// Asks for nothing.
    pub(super) fn nothing() -> Self {
        Self {
            soon: None,
            at: std::ptr::null(),
            of_page: 0,
            left: 0,
            each: 0,
        }
    }

    /// Spreads what is left over so many calls of [`Self::ask`].
    pub(super) fn spread(&mut self, calls: usize) {
        self.each = self.left.div_ceil(calls.max(1));
    }

    /// To the next page.
    fn turn(&mut self) {
        let Some(soon) = &mut self.soon else { return };
        let Some((page, rest)) = soon.pages.split_first() else {
            self.left = 0;
            return;
        };
        soon.pages = rest;
        self.at = soon.layer.page(*page).cast();
        self.of_page = soon.lines_of_page();
    }

    /// Past so many lines of the page.
    #[inline(always)]
    fn step(&mut self, lines: usize) {
        self.at = self.at.wrapping_add(lines * LINE);
        self.of_page -= lines;
        if self.of_page == 0 {
            self.turn();
        }
    }

    /// Asks for the next lines. At a page's end a few too many are asked for, in vain.
    ///
    /// # Safety
    /// As [`Simd`]'s.
    #[inline(always)]
    pub(super) unsafe fn ask<S: Simd>(&mut self) {
        if self.left == 0 {
            return;
        }
        for line in 0..self.each {
            // SAFETY: what is asked for need not be valid.
            unsafe { S::prefetch_far(self.at.wrapping_add(line * LINE)) }
        }
        let lines = self.each.min(self.of_page).min(self.left);
        self.left -= lines;
        self.step(lines);
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
            let soon = Soon { layer: memory.layer(1), pages: &pages };
            let mut expected = Vec::new();
            for page in &pages {
                let start = soon.layer.page(*page).addr();
                expected.extend((0..soon.lines_of_page()).map(|line| start + line * LINE));
            }
            let mut found = Vec::new();
            for part in 0..parts {
                let mut asking = soon.share(part, parts);
                asking.spread(calls);
                let mut made = 0;
                while asking.left > 0 {
                    let lines = asking.each.min(asking.of_page).min(asking.left);
                    found.extend((0..lines).map(|line| asking.at.addr() + line * LINE));
                    // SAFETY: any processor is able.
                    unsafe { asking.ask::<Scalar>() }
                    made += 1;
                }
                prop_assert!(made <= calls + pages.len());
            }
            prop_assert_eq!(found, expected);
        }
    }
}
