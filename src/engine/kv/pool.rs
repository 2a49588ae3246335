//! The pages of KV memory and their reference counts, with a free list.

/// A page of KV memory, by number: below the pool's capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Page(u32);

impl Page {
    /// The page's index: its memory starts at `index × page size`.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    /// The page's number in the models' page tables.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// All pages, each free or with a number of holders (leases, and the prefix index).
///
/// Pages are handed out last freed first, then never-used ones in ascending order: recently freed pages
/// are likely in the CPU's caches, and untouched memory stays untouched as long as possible.
/// Bookkeeping grows with the pages that were ever used.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq))]
pub(crate) struct PagePool {
    /// Freed pages, a stack: the last one is handed out next.
    back: Vec<Page>,
    /// Holders of each page that was ever handed out; 0 is free. Pages beyond are free.
    holders: Vec<u32>,
    capacity: usize,
}

impl PagePool {
    /// A pool of `pages` free pages.
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            back: Vec::new(),
            holders: Vec::new(),
            capacity: pages.min(u32::MAX as usize),
        }
    }

    /// All pages, free or held.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Pages that were ever handed out: always a prefix.
    pub(crate) fn touched(&self) -> usize {
        self.holders.len()
    }

    /// The same after `fresh` more pages are taken.
    pub(crate) fn touched_by(&self, fresh: usize) -> usize {
        let new = fresh.saturating_sub(self.back.len());
        (self.touched() + new).min(self.capacity)
    }

    /// Caps the capacity at `pages`, but not below the pages that were already handed out.
    pub(crate) fn limit(&mut self, pages: usize) {
        self.capacity = self.capacity.min(pages.max(self.touched()));
    }

    pub(crate) fn free(&self) -> usize {
        self.back.len() + self.capacity - self.touched()
    }

    /// Holders of `page`; 0 is free.
    pub(crate) fn holders(&self, page: Page) -> u32 {
        self.holders.get(page.index()).copied().unwrap_or(0)
    }

    /// Takes a free page, which then has one holder; `None` if all are held.
    pub(crate) fn take(&mut self) -> Option<Page> {
        if let Some(page) = self.back.pop() {
            self.holders[page.index()] = 1;
            return Some(page);
        }
        if self.touched() == self.capacity {
            return None;
        }
        let page = Page(u32::try_from(self.touched()).ok()?);
        self.holders.push(1);
        Some(page)
    }

    /// Adds a holder to a held page; returns the new count.
    pub(crate) fn hold(&mut self, page: Page) -> u32 {
        let holders = &mut self.holders[page.index()];
        debug_assert!(*holders > 0, "a free page has to be taken, not held");
        *holders += 1;
        *holders
    }

    /// Removes a holder; returns the remaining count. At 0 the page is free.
    pub(crate) fn drop_hold(&mut self, page: Page) -> u32 {
        let holders = &mut self.holders[page.index()];
        debug_assert!(*holders > 0, "a page was given back twice");
        *holders -= 1;
        if *holders == 0 {
            self.back.push(page);
        }
        *holders
    }

    /// Hands out pages in ascending order again, as a new pool does. No effect while any page is held.
    pub(crate) fn rewind(&mut self) {
        if self.back.len() == self.touched() {
            self.back.sort_unstable_by(|a, b| b.cmp(a));
        }
    }

    /// All pages, free or held, in ascending order.
    #[cfg(test)]
    pub(super) fn pages(&self) -> impl Iterator<Item = Page> {
        (0..self.capacity as u32).map(Page)
    }

    /// Panics unless the free list holds exactly the pages without holders, each once.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut seen = vec![false; self.capacity()];
        for page in &self.back {
            assert!(!seen[page.index()], "{page:?} is free twice");
            seen[page.index()] = true;
        }
        for (index, holders) in self.holders.iter().enumerate() {
            assert_eq!(seen[index], *holders == 0, "page {index} is lost");
        }
        assert!(self.touched() <= self.capacity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_pages_come_in_ascending_order_and_freed_ones_last_in_first_out() {
        let mut pool = PagePool::new(3);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, [Page(0), Page(1), Page(2)]);
        pool.drop_hold(Page(0));
        pool.drop_hold(Page(2));
        assert_eq!(pool.take(), Some(Page(2)));
        assert_eq!(pool.take(), Some(Page(0)));
        for page in taken {
            pool.drop_hold(page);
        }
        pool.rewind();
        assert_eq!(pool.take(), Some(Page(0)));
        pool.check();
    }

    #[test]
    fn unused_pages_cost_nothing_and_the_capacity_can_shrink() {
        let mut pool = PagePool::new(1 << 40);
        assert_eq!(pool.capacity(), u32::MAX as usize);
        assert_eq!((pool.touched(), pool.touched_by(3)), (0, 3));
        let taken: Vec<_> = (0..3).map_while(|_| pool.take()).collect();
        pool.drop_hold(Page(1));
        // One is reused, another is new.
        assert_eq!(pool.touched_by(2), 4);
        assert_eq!(pool.holders(Page(7)), 0);
        pool.limit(2);
        assert_eq!((pool.capacity(), pool.free()), (3, 1), "given out before");
        assert_eq!((pool.take(), pool.take()), (Some(Page(1)), None));
        assert_eq!(pool.touched_by(9), 3);
        for page in taken {
            pool.drop_hold(page);
        }
        pool.check();
        assert_eq!(pool.free(), 3);
    }

    #[test]
    fn a_page_is_free_once_its_last_holder_drops_it() {
        let mut pool = PagePool::new(1);
        let page = pool.take().expect("one is free");
        assert_eq!(pool.hold(page), 2);
        assert_eq!(pool.drop_hold(page), 1);
        assert_eq!((pool.free(), pool.take()), (0, None));
        assert_eq!(pool.drop_hold(page), 0);
        assert_eq!(pool.free(), 1);
        pool.check();
    }
}
