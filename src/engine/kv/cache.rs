//! The KV cache: leases of pages, and what is known of their contents.

use super::pool::{Page, PagePool};
use super::prefix::{Found, Inserted, PrefixIndex, RadixIndex, common_prefix};

/// The pages of KV memory and the prefixes known to be in them.
///
/// Every page is free, held by leases, known to the index, or both of the latter. Known pages that no
/// lease holds are the cache proper: they are evicted, least recently used first, when a lease needs
/// memory. With `reuse` off nothing is ever known, and only forks share pages.
///
/// Behaviour depends only on the sequence of calls, not on wall time or hash order.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq))]
pub(crate) struct KvCache<I: PrefixIndex = RadixIndex> {
    pool: PagePool,
    index: I,
    page_tokens: usize,
    reuse: bool,
    /// The logical clock: calls so far that count as a use.
    now: u64,
    counts: Counts,
}

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, PartialEq))]
struct Counts {
    acquired: u64,
    hits: u64,
    reused_tokens: u64,
    evictions: u64,
}

/// A running sequence's pages. Must be returned with [`KvCache::finish`] or [`KvCache::release`];
/// dropping it leaks its pages.
#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq))]
#[must_use = "its pages are lost unless it is given back"]
pub(crate) struct Lease {
    table: Vec<Page>,
    /// Full pages at the table's start that the index knows.
    known: usize,
    reused: usize,
    copy: Option<PageCopy>,
}

/// A copy of keys and values from one page to another, in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageCopy {
    pub(crate) from: Page,
    /// The lease's own page.
    pub(crate) to: Page,
    /// Tokens to copy, from the page's start.
    pub(crate) tokens: usize,
}

impl Lease {
    /// The sequence's pages: token `i` is in page `i / page_tokens`, slot `i % page_tokens`.
    pub(crate) fn page_table(&self) -> &[Page] {
        &self.table
    }

    /// The page table as the model takes it.
    pub(crate) fn page_numbers(&self) -> Vec<u32> {
        self.page_table().iter().map(|page| page.number()).collect()
    }

    /// Tokens from the start whose keys and values are present, once the copy has been made.
    pub(crate) fn reused(&self) -> usize {
        self.reused
    }

    /// The copy to make before the next forward pass; returned once.
    pub(crate) fn take_copy(&mut self) -> Option<PageCopy> {
        self.copy.take()
    }
}

/// Current usage in pages, and counts of all calls so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvStats {
    pub(crate) capacity: usize,
    /// Free pages.
    pub(crate) free: usize,
    /// Pages in the prefix index, leased or not.
    pub(crate) cached: usize,
    /// Pages that leases hold, known or not; the others are free or can be evicted.
    pub(crate) leased: usize,
    /// Successful calls of [`KvCache::acquire`].
    pub(crate) acquired: u64,
    /// Those that reused at least one token.
    pub(crate) hits: u64,
    /// Tokens that [`KvCache::acquire`] reused. A preempted sequence counts again when it is
    /// readmitted, and forks do not count.
    pub(crate) reused_tokens: u64,
    /// Known pages evicted because memory was needed.
    pub(crate) evictions: u64,
}

impl<I: PrefixIndex> KvCache<I> {
    /// A cache of `pages` pages of `page_tokens` tokens (at least 1), all free.
    pub(crate) fn new(pages: usize, page_tokens: usize, reuse: bool) -> Self {
        let page_tokens = page_tokens.max(1);
        Self {
            pool: PagePool::new(pages),
            index: I::new(page_tokens),
            page_tokens,
            reuse,
            now: 0,
            counts: Counts::default(),
        }
    }

    /// Pages, from the first on, that will have been used when a lease for `tokens` tokens that has
    /// `had` pages gets the rest: memory has to be committed this far.
    pub(crate) fn pages_touched_for(&self, tokens: usize, had: usize) -> usize {
        let fresh = self.pages_for(tokens).saturating_sub(had);
        self.pool.touched_by(fresh)
    }

    /// Caps the cache at `pages` pages, because there is no memory for more; pages already used stay.
    pub(crate) fn limit(&mut self, pages: usize) {
        self.pool.limit(pages);
    }

    /// Pages for `tokens` tokens.
    pub(crate) fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    /// Pages available to leases: free ones and those that can be evicted.
    pub(crate) fn available(&self) -> usize {
        self.pool.free() + self.index.evictable()
    }

    /// Tokens of `prompt` that [`Self::acquire`] would reuse now. Does not count as a use.
    pub(crate) fn known_prefix(&self, prompt: &[u32]) -> usize {
        let found = self.find(prompt);
        found.full.len() * self.page_tokens + found.tail.map_or(0, |(_, tokens)| tokens)
    }

    /// Tokens of `prompt` that are not known yet, but will be once the `prefilling` prompts are
    /// computed. If this is more than a few, waiting is cheaper than computing them twice.
    pub(crate) fn pending_prefix<'a>(
        &self,
        prompt: &[u32],
        prefilling: impl IntoIterator<Item = &'a [u32]>,
    ) -> usize {
        if !self.reuse {
            return 0;
        }
        let reusable = &prompt[..prompt.len().saturating_sub(1)];
        let coming = prefilling
            .into_iter()
            .map(|other| common_prefix(reusable, other))
            .max();
        coming
            .unwrap_or(0)
            .saturating_sub(self.known_prefix(prompt))
    }

    /// A lease for `prompt`: the pages of its longest known prefix, and new ones for the rest. The last
    /// token is never reused, since its logits are wanted.
    ///
    /// If the known prefix ends inside a page, its tokens have to be copied to the lease's own page
    /// ([`Lease::take_copy`]).
    ///
    /// `headroom` is the number of pages that must be [`Self::available`] afterwards, so that running
    /// sequences can grow. `None`, without any change, if memory does not suffice now. It never will if
    /// [`Self::pages_for`] the prompt plus the headroom exceed the capacity.
    pub(crate) fn acquire(&mut self, prompt: &[u32], headroom: usize) -> Option<Lease> {
        let Found { full, tail } = self.find(prompt);
        let fresh = self.pages_for(prompt.len()) - full.len();
        let unheld = |page: &&Page| self.pool.holders(**page) == 1;
        let to_pin = full.iter().filter(unheld).count();
        if fresh + headroom > self.available() - to_pin {
            return None;
        }

        self.now += 1;
        for page in &full {
            self.hold(*page);
        }
        let mut lease = Lease {
            known: full.len(),
            reused: full.len() * self.page_tokens,
            table: full,
            copy: None,
        };
        if let Some((from, tokens)) = tail {
            // Marked as just used, the page is evicted last, and the page evicted last is the first to
            // be taken. So at worst it becomes the very page that it would be copied to.
            self.index.touch(from, self.now);
            self.take_pages(&mut lease, fresh);
            let to = lease.table[lease.known];
            debug_assert!(from == to || self.index.contains(from));
            lease.reused += tokens;
            lease.copy = (from != to).then_some(PageCopy { from, to, tokens });
        } else {
            self.take_pages(&mut lease, fresh);
        }
        self.counts.acquired += 1;
        self.counts.hits += u64::from(lease.reused > 0);
        self.counts.reused_tokens += lease.reused as u64;
        Some(lease)
    }

    /// Grows a lease to `tokens` tokens. False, without any change, if memory does not suffice: then
    /// some sequence has to be preempted.
    #[must_use]
    pub(crate) fn grow(&mut self, lease: &mut Lease, tokens: usize) -> bool {
        let fresh = self.pages_for(tokens).saturating_sub(lease.table.len());
        if fresh > self.available() {
            return false;
        }
        self.take_pages(lease, fresh);
        true
    }

    /// Makes the computed part of a running sequence available for reuse. `computed` are its tokens,
    /// from the first, whose keys and values have been written.
    ///
    /// If another lease has already published the same full page, this lease's own copy is dropped and
    /// its table switched to the known one. The sequence reads the same, because equal prefixes have
    /// bit-identical keys and values (guaranteed by the engine); memory is freed at once, and equal
    /// page numbers show the sharing. A page that is still being filled always stays the lease's own.
    pub(crate) fn publish(&mut self, lease: &mut Lease, computed: &[u32]) {
        debug_assert!(self.pages_for(computed.len()) <= lease.table.len());
        if !self.reuse {
            return;
        }
        self.now += 1;
        while (lease.known + 1) * self.page_tokens <= computed.len() {
            let upto = (lease.known + 1) * self.page_tokens;
            let own = lease.table[lease.known];
            if let Some(known) = self.insert(lease, &computed[..upto])
                && known != own
            {
                debug_assert!(!self.index.contains(own));
                self.hold(known);
                self.let_go(own);
                lease.table[lease.known] = known;
            }
            lease.known += 1;
        }
        if lease.known * self.page_tokens < computed.len() {
            self.insert(lease, computed);
        }
    }

    /// Ends a sequence; what was computed of it stays known until the memory is needed. Also used for
    /// preemption: the sequence gets its pages back if they survive.
    pub(crate) fn finish(&mut self, mut lease: Lease, computed: &[u32]) {
        self.publish(&mut lease, computed);
        self.release(lease);
    }

    /// Ends a sequence without publishing more of it. What it published before stays known.
    pub(crate) fn release(&mut self, lease: Lease) {
        self.now += 1;
        // In reverse, so that free pages are reused in the table's order.
        for page in lease.table.into_iter().rev() {
            self.let_go(page);
        }
    }

    /// Forks a sequence after `computed`, which is what was computed of it, or a prefix of that. Full
    /// pages are shared, and a partial page is copied ([`Lease::take_copy`]). Unlike [`Self::acquire`],
    /// this reuses the last token as well. `None`, without any change, if memory does not suffice now.
    pub(crate) fn fork(&mut self, lease: &mut Lease, computed: &[u32]) -> Option<Lease> {
        let full = computed.len() / self.page_tokens;
        let tokens = computed.len() % self.page_tokens;
        let fresh = usize::from(tokens > 0);
        if fresh > self.available() {
            return None;
        }
        // All shared pages are known then (with `reuse`), so holding a page always implies holding the
        // known pages before it.
        self.publish(lease, computed);
        let mut fork = Lease {
            table: lease.table[..full].to_vec(),
            known: lease.known.min(full),
            reused: computed.len(),
            copy: None,
        };
        for page in &fork.table {
            self.hold(*page);
        }
        self.take_pages(&mut fork, fresh);
        fork.copy = fork.table.get(full).map(|to| PageCopy {
            from: lease.table[full],
            to: *to,
            tokens,
        });
        Some(fork)
    }

    /// Forgets everything and sets `reuse`: between rounds, so that each starts as with a new cache
    /// (the counts go on).
    ///
    /// # Panics
    /// If leases are out.
    pub(crate) fn restart(&mut self, reuse: bool) {
        assert_eq!(self.stats().leased, 0, "leases are out");
        while let Some(page) = self.index.evict() {
            self.pool.drop_hold(page);
        }
        self.pool.rewind();
        self.reuse = reuse;
    }

    /// Cheap enough to call for every pass.
    pub(crate) fn stats(&self) -> KvStats {
        KvStats {
            capacity: self.pool.capacity(),
            free: self.pool.free(),
            cached: self.index.pages(),
            leased: self.pool.capacity() - self.available(),
            acquired: self.counts.acquired,
            hits: self.counts.hits,
            reused_tokens: self.counts.reused_tokens,
            evictions: self.counts.evictions,
        }
    }

    fn find(&self, prompt: &[u32]) -> Found {
        if !self.reuse {
            return Found::default();
        }
        self.index.find(&prompt[..prompt.len().saturating_sub(1)])
    }

    /// Adds `fresh` pages to a lease; the caller has checked that they are available.
    fn take_pages(&mut self, lease: &mut Lease, fresh: usize) {
        while self.pool.free() < fresh {
            let Some(page) = self.index.evict() else {
                break;
            };
            self.counts.evictions += 1;
            self.pool.drop_hold(page);
        }
        let had = lease.table.len();
        lease
            .table
            .extend((0..fresh).map_while(|_| self.pool.take()));
        assert_eq!(lease.table.len(), had + fresh, "pages were miscounted");
    }

    /// Adds the lease's first page that is not fully known to the index, for the end of `tokens`.
    /// Returns the page that holds them if they were known already.
    fn insert(&mut self, lease: &Lease, tokens: &[u32]) -> Option<Page> {
        let own = lease.table[lease.known];
        let parent = lease.known.checked_sub(1).map(|last| lease.table[last]);
        match self.index.insert(parent, tokens, own, self.now) {
            Inserted::Known(page) => return Some(page),
            Inserted::Extended => {}
            Inserted::Added { displaced } => {
                self.pool.hold(own);
                if let Some(displaced) = displaced {
                    self.pool.drop_hold(displaced);
                }
            }
        }
        None
    }

    /// A lease takes hold of a page that is held already.
    fn hold(&mut self, page: Page) {
        if self.pool.hold(page) == 2 && self.index.contains(page) {
            self.index.pin(page);
        }
    }

    /// A lease lets go of a page.
    fn let_go(&mut self, page: Page) {
        if self.pool.drop_hold(page) == 1 && self.index.contains(page) {
            self.index.unpin(page, self.now);
        }
    }

    #[cfg(test)]
    pub(super) fn index(&self) -> &I {
        &self.index
    }

    /// Panics unless all invariants hold, given all leases that are out: every page is free, leased or
    /// known and has the right number of holders, leases agree with the index about their known pages,
    /// and the counts are right.
    #[cfg(test)]
    pub(super) fn check<'a>(&self, leases: impl IntoIterator<Item = &'a Lease>) {
        self.pool.check();
        let entries = self.index.entries();
        let mut holders = vec![0; self.pool.capacity()];
        let mut leased = vec![0; self.pool.capacity()];
        for (page, _) in &entries {
            holders[page.index()] += 1;
        }
        for lease in leases {
            for (place, page) in lease.table.iter().enumerate() {
                holders[page.index()] += 1;
                leased[page.index()] += 1;
                if place < lease.known {
                    let at = entries.binary_search_by_key(page, |(page, _)| *page);
                    let (_, tokens) = &entries[at.expect("it is known")];
                    assert_eq!(tokens.len(), (place + 1) * self.page_tokens);
                }
            }
        }
        for page in self.pool.pages() {
            assert_eq!(holders[page.index()], self.pool.holders(page), "{page:?}");
        }
        let held = leased.iter().filter(|leased| **leased > 0).count();
        assert_eq!(held, self.stats().leased);
        let evictable = entries.iter().filter(|(page, _)| leased[page.index()] == 0);
        assert_eq!(evictable.count(), self.index.evictable());
    }
}
