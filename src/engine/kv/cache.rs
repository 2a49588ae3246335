//! The KV cache as the scheduler sees it: leases of pages, and what is known of their contents.

use super::pool::{Page, PagePool};
use super::prefix::{Found, Inserted, PrefixIndex, RadixIndex, common_prefix};

/// The pages of KV memory and the prefixes known in them.
///
/// Every page is free, held by leases, known to the index, or both of the latter. Known pages that
/// no lease holds are the cache proper: they are given up, least recently used first, when a lease
/// needs memory. With `reuse` off nothing is ever known, and pages are shared by forks alone.
///
/// All that it does follows from the calls made: there is no wall time and no hash order in it.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq))]
pub(crate) struct KvCache<I: PrefixIndex = RadixIndex> {
    pool: PagePool,
    index: I,
    page_tokens: usize,
    reuse: bool,
    /// The logical clock: calls so far that can count as a use.
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

/// A running sequence's share of the KV memory. It goes back by [`KvCache::finish`] or
/// [`KvCache::release`]; dropped otherwise, its pages are lost.
#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq))]
#[must_use = "its pages are lost unless it is given back"]
pub(crate) struct Lease {
    table: Vec<Page>,
    /// Pages at the table's start that the index knows in whole.
    known: usize,
    reused: usize,
    copy: Option<PageCopy>,
}

/// Keys and values to copy from one page to another, in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageCopy {
    /// Where they are.
    pub(crate) from: Page,
    /// Where they are to be: the lease's own page.
    pub(crate) to: Page,
    /// How many tokens, from the page's start.
    pub(crate) tokens: usize,
}

impl Lease {
    /// Where the sequence lies: token `i` is in page `i / page_tokens`, at `i % page_tokens`.
    pub(crate) fn page_table(&self) -> &[Page] {
        &self.table
    }

    /// The pages' numbers, as the model takes them.
    pub(crate) fn page_numbers(&self) -> Vec<u32> {
        self.page_table().iter().map(|page| page.number()).collect()
    }

    /// Tokens from the start whose keys and values are there, once the copy has been made.
    pub(crate) fn reused(&self) -> usize {
        self.reused
    }

    /// The copy that is due before the next forward pass, given out once.
    pub(crate) fn take_copy(&mut self) -> Option<PageCopy> {
        self.copy.take()
    }
}

/// How the memory is used now (pages), and what came of all calls so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvStats {
    /// All pages.
    pub(crate) capacity: usize,
    /// Pages with nothing in them.
    pub(crate) free: usize,
    /// Pages that the prefix index knows, leased or not.
    pub(crate) cached: usize,
    /// Pages that leases hold, known or not; the rest is free or can be evicted.
    pub(crate) leased: usize,
    /// Calls of [`KvCache::acquire`] that gave a lease.
    pub(crate) acquired: u64,
    /// Those of them that reused a token or more.
    pub(crate) hits: u64,
    /// Tokens that [`KvCache::acquire`] found known. A sequence that was pre-empted and came back
    /// counts again, and forks do not count.
    pub(crate) reused_tokens: u64,
    /// Known pages given up for want of memory.
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

    /// Pages from the first on that will have been used when a lease for `tokens` tokens, of which
    /// `had` pages are there, has got the rest: how far there has to be memory for it.
    pub(crate) fn pages_touched_for(&self, tokens: usize, had: usize) -> usize {
        let fresh = self.pages_for(tokens).saturating_sub(had);
        self.pool.touched_by(fresh)
    }

    /// There is memory for the first `pages` pages only: goes without the others, as far as they were
    /// not used before.
    pub(crate) fn limit(&mut self, pages: usize) {
        self.pool.limit(pages);
    }

    /// Pages that `tokens` tokens take.
    pub(crate) fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    /// Pages that a lease could get now: the free ones and those that can be evicted.
    pub(crate) fn available(&self) -> usize {
        self.pool.free() + self.index.evictable()
    }

    /// Tokens of `prompt` that [`Self::acquire`] would reuse now. Counts as no use.
    pub(crate) fn known_prefix(&self, prompt: &[u32]) -> usize {
        let found = self.find(prompt);
        found.full.len() * self.page_tokens + found.tail.map_or(0, |(_, tokens)| tokens)
    }

    /// Tokens of `prompt` that are not known yet, but will be when the `prefilling` prompts have
    /// been computed: where this is more than a few, waiting for them is cheaper than computing
    /// the same again beside them.
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

    /// Memory for `prompt`: the pages of its longest known prefix, and further ones for the rest.
    /// The last token is always left to compute, since its logits are wanted.
    ///
    /// Where the known prefix ends inside a page, its tokens are to be copied into a page of the
    /// lease's own ([`Lease::take_copy`]).
    ///
    /// `headroom` is how many pages have to be [`Self::available`] afterwards, so that the running
    /// sequences can grow. `None`, and nothing has changed, where memory does not suffice now; it
    /// never will where [`Self::pages_for`] the prompt and the headroom exceed the capacity.
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
            // As the latest used it would be evicted last, and a page evicted last is the first
            // to be taken: so at worst it becomes the very page that it would be copied to.
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

    /// Makes sure that the lease has pages for `tokens` tokens. False, and nothing has changed,
    /// where memory does not suffice: some sequence has to give way.
    #[must_use]
    pub(crate) fn grow(&mut self, lease: &mut Lease, tokens: usize) -> bool {
        let fresh = self.pages_for(tokens).saturating_sub(lease.table.len());
        if fresh > self.available() {
            return false;
        }
        self.take_pages(lease, fresh);
        true
    }

    /// Makes the computed part of a running sequence known to others: `computed` are its tokens
    /// from the first on whose keys and values have been written.
    ///
    /// Where another was faster with a full page, the lease's own is given up and its table
    /// switched to the known one. That is no change to what the sequence reads, because equal
    /// prefixes have equal keys and values bit for bit (a promise of the engine's), it frees the
    /// memory at once, and it makes sharing visible as equal pages. A page that is still being
    /// filled stays the lease's own in any case.
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

    /// Ends a sequence; what was computed of it stays known until the memory is needed. This is
    /// also how a sequence gives way without loss: its pages serve it again if they survive.
    pub(crate) fn finish(&mut self, mut lease: Lease, computed: &[u32]) {
        self.publish(&mut lease, computed);
        self.release(lease);
    }

    /// Ends a sequence without making anything further known of it. What it has published before
    /// stays known.
    pub(crate) fn release(&mut self, lease: Lease) {
        self.now += 1;
        // Backwards, so that the free pages are taken again in the table's order.
        for page in lease.table.into_iter().rev() {
            self.let_go(page);
        }
    }

    /// A second sequence that goes on from `computed`, which is what was computed of the first one
    /// or a part from its start: full pages are shared, and a page that is not full is copied
    /// ([`Lease::take_copy`]). Unlike with [`Self::acquire`], no token is left to compute.
    /// `None`, and nothing has changed, where memory does not suffice now.
    #[allow(dead_code, reason = "several samples of one prompt come next")]
    pub(crate) fn fork(&mut self, lease: &mut Lease, computed: &[u32]) -> Option<Lease> {
        let full = computed.len() / self.page_tokens;
        let tokens = computed.len() % self.page_tokens;
        let fresh = usize::from(tokens > 0);
        if fresh > self.available() {
            return None;
        }
        // All shared pages are known then (with `reuse`), so that holding a page always means
        // holding the known pages before it.
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

    /// Forgets all, and turns reuse on or off: between rounds, so that each begins as if with a
    /// new cache (the counts go on).
    ///
    /// # Panics
    /// While leases are out.
    pub(crate) fn restart(&mut self, reuse: bool) {
        assert_eq!(self.stats().leased, 0, "leases are out");
        while let Some(page) = self.index.evict() {
            self.pool.drop_hold(page);
        }
        self.pool.rewind();
        self.reuse = reuse;
    }

    /// Costs nothing to speak of.
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

    /// Adds `fresh` pages to a lease; the caller has seen that they are available.
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

    /// Puts the lease's first page that is not known in whole into the index, for the last of
    /// `tokens`. Returns the page that holds them where they were known already.
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

    /// A lease comes to hold a page that is held already.
    fn hold(&mut self, page: Page) {
        if self.pool.hold(page) == 2 && self.index.contains(page) {
            self.index.pin(page);
        }
    }

    /// A lease holds the page no longer.
    fn let_go(&mut self, page: Page) {
        if self.pool.drop_hold(page) == 1 && self.index.contains(page) {
            self.index.unpin(page, self.now);
        }
    }

    /// The index, to see what is known.
    #[cfg(test)]
    pub(super) fn index(&self) -> &I {
        &self.index
    }

    /// Panics unless all invariants hold, `leases` being all that are out: every page is free,
    /// leased or known and has exactly as many holders as there are, leases agree with the index
    /// about what is known of them, and the counts that are kept are the true ones.
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
