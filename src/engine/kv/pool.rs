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
/// Pages are given out last freed, first given, and those that were never given out after that, in
/// ascending order: what comes back first is what the CPU's caches know best, and memory that was never
/// touched stays so for as long as possible. What a page costs here it costs when it is first given out.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq))]
pub(crate) struct PagePool {
    /// Pages that came back, a stack: the next page to give out is the last.
    back: Vec<Page>,
    /// Holders of each page that was ever given out; 0 is free. Those after them are free.
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

    /// All pages, free or not.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Pages from the first on that were ever given out.
    pub(crate) fn touched(&self) -> usize {
        self.holders.len()
    }

    /// Pages from the first on that will have been given out when `fresh` more are taken.
    pub(crate) fn touched_by(&self, fresh: usize) -> usize {
        let new = fresh.saturating_sub(self.back.len());
        (self.touched() + new).min(self.capacity)
    }

    /// Gives up the pages from `pages` on, but those that were given out before.
    pub(crate) fn limit(&mut self, pages: usize) {
        self.capacity = self.capacity.min(pages.max(self.touched()));
    }

    /// Pages that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.back.len() + self.capacity - self.touched()
    }

    /// How many hold `page`; 0 is free.
    pub(crate) fn holders(&self, page: Page) -> u32 {
        self.holders.get(page.index()).copied().unwrap_or(0)
    }

    /// A free page, which then has one holder; `None` where all are held.
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
            self.back.push(page);
        }
        *holders
    }

    /// Gives pages out in ascending order again, as a new pool does. Does nothing while any page
    /// is held.
    pub(crate) fn rewind(&mut self) {
        if self.back.len() == self.touched() {
            self.back.sort_unstable_by(|a, b| b.cmp(a));
        }
    }

    /// All pages, free or not, in ascending order.
    #[cfg(test)]
    pub(super) fn pages(&self) -> impl Iterator<Item = Page> {
        (0..self.capacity as u32).map(Page)
    }

    /// Panics unless the free list is exactly the pages without holders, each once.
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
    fn pages_cost_nothing_before_they_are_given_out_and_can_be_given_up() {
        let mut pool = PagePool::new(1 << 40);
        assert_eq!(pool.capacity(), u32::MAX as usize);
        assert_eq!((pool.touched(), pool.touched_by(3)), (0, 3));
        let taken: Vec<_> = (0..3).map_while(|_| pool.take()).collect();
        pool.drop_hold(Page(1));
        // One of them comes back, another is new.
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
