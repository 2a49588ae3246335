//! The pages of KV memory and how many hold each: a free list and reference counts.

/// A page of KV memory, by number: 0 up to the pool's capacity (exclusive).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Page(u32);

impl Page {
    /// The page's place among all pages: its memory starts at `index × page size`.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    /// The same, as models take it.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// All pages, each free or with a number of holders (leases, and the prefix index).
///
/// Pages are given out last freed, first given: what comes back first is what the CPU's caches
/// know best, and memory that was never touched stays so for as long as possible. A new pool
/// gives them out in ascending order.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq))]
pub(crate) struct PagePool {
    /// A stack: the next page to give out is the last.
    free: Vec<Page>,
    /// Holders of each page; 0 is free.
    holders: Vec<u32>,
}

impl PagePool {
    /// A pool of `pages` free pages.
    pub(crate) fn new(pages: usize) -> Self {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        Self {
            free: (0..pages).rev().map(Page).collect(),
            holders: vec![0; pages as usize],
        }
    }

    /// All pages, free or not.
    pub(crate) fn capacity(&self) -> usize {
        self.holders.len()
    }

    /// Pages that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// How many hold `page`; 0 is free.
    pub(crate) fn holders(&self, page: Page) -> u32 {
        self.holders[page.index()]
    }

    /// A free page, which then has one holder; `None` where all are held.
    pub(crate) fn take(&mut self) -> Option<Page> {
        let page = self.free.pop()?;
        self.holders[page.index()] = 1;
        Some(page)
    }

    /// One more holder of a page that is held already; returns how many there are now.
    pub(crate) fn hold(&mut self, page: Page) -> u32 {
        let holders = &mut self.holders[page.index()];
        debug_assert!(*holders > 0, "a free page has to be taken, not held");
        *holders += 1;
        *holders
    }

    /// One holder fewer; returns how many are left. With none left the page is free.
    pub(crate) fn drop_hold(&mut self, page: Page) -> u32 {
        let holders = &mut self.holders[page.index()];
        debug_assert!(*holders > 0, "a page was given back twice");
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
        *holders
    }

    /// Gives pages out in ascending order again, as a new pool does. Does nothing while any page
    /// is held.
    pub(crate) fn rewind(&mut self) {
        if self.free.len() == self.holders.len() {
            self.free.sort_unstable_by(|a, b| b.cmp(a));
        }
    }

    /// All pages, free or not, in ascending order.
    #[cfg(test)]
    pub(super) fn pages(&self) -> impl Iterator<Item = Page> {
        (0..self.holders.len() as u32).map(Page)
    }

    /// Panics unless the free list is exactly the pages without holders, each once.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut seen = vec![false; self.capacity()];
        for page in &self.free {
            assert!(!seen[page.index()], "{page:?} is free twice");
            seen[page.index()] = true;
        }
        for (index, holders) in self.holders.iter().enumerate() {
            assert_eq!(seen[index], *holders == 0, "page {index} is lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_in_ascending_order_and_then_last_freed_first() {
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
    fn a_page_is_free_when_its_last_holder_has_let_go() {
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
