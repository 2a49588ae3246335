//! The prefix index: which pages hold the keys and values of which token prefixes.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::pool::Page;

/// Known token prefixes. A page is in the index at most once, for the tokens in it *and* all tokens
/// before them (its ancestors).
///
/// Times are the cache's logical clock, so evictions depend on the calls alone.
pub(crate) trait PrefixIndex {
    /// An empty index for pages of `page_tokens` tokens.
    fn new(page_tokens: usize) -> Self;

    /// The longest known prefix of `tokens`. It may end inside a page. If several pages match equally
    /// far, the result is the first one that sorts after `tokens`, otherwise the last one before.
    fn find(&self, tokens: &[u32]) -> Found;

    /// Records that `page` holds the end of `tokens`, from the last page boundary before the end;
    /// `parent` holds the tokens before. The page is new, or already known for a prefix of the same
    /// tokens. It counts as pinned.
    fn insert(&mut self, parent: Option<Page>, tokens: &[u32], page: Page, now: u64) -> Inserted;

    fn contains(&self, page: Page) -> bool;

    /// Protects a known page from eviction, because a lease now holds it.
    fn pin(&mut self, page: Page);

    /// Ends the protection: no lease holds the page any more. It can be evicted once it has no
    /// children.
    fn unpin(&mut self, page: Page, now: u64);

    /// Counts as a use of the page.
    fn touch(&mut self, page: Page, now: u64);

    /// Removes the least recently used page without children and pins (the lowest page among equals).
    /// `None` if there is none.
    fn evict(&mut self) -> Option<Page>;

    fn pages(&self) -> usize;

    /// Pages in the index that no lease holds. Eviction can free all of them, since whoever holds a
    /// page also holds its ancestors.
    fn evictable(&self) -> usize;

    /// Every known page with all tokens up to its end, sorted by page.
    #[cfg(test)]
    fn entries(&self) -> Vec<(Page, Vec<u32>)>;
}

/// The longest known prefix of a token sequence.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The fully known pages, from the first on.
    pub(crate) full: Vec<Page>,
    /// A page that holds the tokens after those, and how many of them match (at least 1).
    pub(crate) tail: Option<(Page, usize)>,
}

/// The outcome of [`PrefixIndex::insert`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// The page was added. A page that held only a part of the same tokens was removed.
    Added { displaced: Option<Page> },
    /// The page was known for a part of these tokens, and now is for all.
    Extended,
    /// The tokens were known already: this page holds them (and perhaps more).
    Known(Page),
}

/// A tree with one page per node. Only full pages have children, and no page's tokens are a prefix of a
/// sibling's, so siblings sort without ties and the best match is next to the insertion point.
///
/// Memory: 4 bytes per token and about 64 bytes per page, up to the highest page that was ever known.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq))]
pub(crate) struct RadixIndex {
    page_tokens: usize,
    /// `[pages, page_tokens]`: the tokens of each page.
    tokens: Vec<u32>,
    /// One per page, up to the highest that was ever in the index.
    nodes: Vec<Node>,
    /// Pages without a parent, sorted by their tokens.
    roots: Vec<Page>,
    /// Last use and page of all evictable pages: neither pinned nor a parent.
    cold: BTreeSet<(u64, Page)>,
    pages: usize,
    pinned: usize,
}

#[derive(Debug, Clone, Default)]
#[cfg_attr(test, derive(PartialEq))]
struct Node {
    parent: Option<Page>,
    /// Known tokens; 0 if the page is not in the index.
    len: usize,
    /// Sorted by their tokens.
    children: Vec<Page>,
    last_used: u64,
    pinned: bool,
}

/// Length of the common prefix of two sequences, in tokens.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Number of distinct prefixes of these sequences: the tokens that are computed if none is computed
/// twice.
#[cfg(test)]
pub(crate) fn distinct_prefixes(sequences: &[Vec<u32>]) -> usize {
    let mut sorted: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    sorted.sort_unstable();
    let all: usize = sorted.iter().map(|tokens| tokens.len()).sum();
    let known = sorted
        .windows(2)
        .map(|pair| common_prefix(pair[0], pair[1]));
    all - known.sum::<usize>()
}

impl RadixIndex {
    fn tokens(&self, page: Page) -> &[u32] {
        let start = page.index() * self.page_tokens;
        &self.tokens[start..start + self.nodes[page.index()].len]
    }

    fn children(&self, parent: Option<Page>) -> &[Page] {
        match parent {
            Some(parent) => &self.nodes[parent.index()].children,
            None => &self.roots,
        }
    }

    fn children_mut(&mut self, parent: Option<Page>) -> &mut Vec<Page> {
        match parent {
            Some(parent) => &mut self.nodes[parent.index()].children,
            None => &mut self.roots,
        }
    }

    /// The index of the first child that does not sort before `chunk`, that child, and the one before
    /// it.
    fn neighbours(&self, parent: Option<Page>, chunk: &[u32]) -> (usize, [Option<Page>; 2]) {
        let children = self.children(parent);
        let at = children.partition_point(|child| self.tokens(*child).cmp(chunk) == Ordering::Less);
        let before = at.checked_sub(1).map(|before| children[before]);
        (at, [children.get(at).copied(), before])
    }

    /// Adds a page without children for `chunk`.
    fn occupy(&mut self, page: Page, parent: Option<Page>, chunk: &[u32], now: u64) {
        if self.nodes.len() <= page.index() {
            let pages = page.index() + 1;
            self.nodes.resize(pages, Node::default());
            self.tokens.resize(pages * self.page_tokens, 0);
        }
        let start = page.index() * self.page_tokens;
        self.tokens[start..start + chunk.len()].copy_from_slice(chunk);
        let node = &mut self.nodes[page.index()];
        debug_assert!(node.len == 0 && node.children.is_empty());
        node.parent = parent;
        node.len = chunk.len();
        node.last_used = now;
        node.pinned = true;
        self.pages += 1;
        self.pinned += 1;
    }

    /// Removes a page without children from everything but its parent's list.
    fn vacate(&mut self, page: Page) {
        let node = &mut self.nodes[page.index()];
        debug_assert!(node.len > 0 && node.children.is_empty());
        self.cold.remove(&(node.last_used, page));
        self.pinned -= usize::from(node.pinned);
        self.pages -= 1;
        node.len = 0;
        node.pinned = false;
    }

    fn may_be_evicted(&self, page: Page) -> bool {
        let node = &self.nodes[page.index()];
        node.len > 0 && !node.pinned && node.children.is_empty()
    }
}

impl PrefixIndex for RadixIndex {
    fn new(page_tokens: usize) -> Self {
        Self {
            page_tokens,
            tokens: Vec::new(),
            nodes: Vec::new(),
            roots: Vec::new(),
            cold: BTreeSet::new(),
            pages: 0,
            pinned: 0,
        }
    }

    fn find(&self, tokens: &[u32]) -> Found {
        let mut found = Found::default();
        for chunk in tokens.chunks(self.page_tokens) {
            let (_, [after, before]) = self.neighbours(found.full.last().copied(), chunk);
            // The tokens would be inserted between these two, so none matches further.
            let common =
                |page: Option<Page>| page.map_or(0, |page| common_prefix(self.tokens(page), chunk));
            let (after_common, before_common) = (common(after), common(before));
            let (best, common) = if after_common >= before_common {
                (after, after_common)
            } else {
                (before, before_common)
            };
            match best {
                Some(page) if common == self.page_tokens => found.full.push(page),
                Some(page) if common > 0 => {
                    found.tail = Some((page, common));
                    break;
                }
                _ => break,
            }
        }
        found
    }

    fn insert(&mut self, parent: Option<Page>, tokens: &[u32], page: Page, now: u64) -> Inserted {
        debug_assert!(!tokens.is_empty());
        let start = tokens.len().saturating_sub(1) / self.page_tokens * self.page_tokens;
        let (before_chunk, chunk) = tokens.split_at(start);
        debug_assert_eq!(parent.is_none(), before_chunk.is_empty());
        debug_assert!(
            parent.is_none_or(|parent| before_chunk.ends_with(self.tokens(parent))
                && self.nodes[parent.index()].len == self.page_tokens)
        );

        let (at, [after, before]) = self.neighbours(parent, chunk);
        if let Some(known) = after.filter(|after| self.tokens(*after).starts_with(chunk)) {
            return Inserted::Known(known);
        }
        // Everything that sorts between a prefix of the chunk and the chunk starts with that prefix, so
        // a sibling that the chunk makes redundant is right before it.
        let displaced = before.filter(|before| chunk.starts_with(self.tokens(*before)));
        if displaced == Some(page) {
            let start = page.index() * self.page_tokens;
            self.tokens[start..start + chunk.len()].copy_from_slice(chunk);
            self.nodes[page.index()].len = chunk.len();
            return Inserted::Extended;
        }
        if let Some(displaced) = displaced {
            self.vacate(displaced);
            self.children_mut(parent)[at - 1] = page;
        } else {
            if let Some(parent) = parent {
                self.cold
                    .remove(&(self.nodes[parent.index()].last_used, parent));
            }
            self.children_mut(parent).insert(at, page);
        }
        self.occupy(page, parent, chunk, now);
        Inserted::Added { displaced }
    }

    fn contains(&self, page: Page) -> bool {
        (self.nodes.get(page.index())).is_some_and(|node| node.len > 0)
    }

    fn pin(&mut self, page: Page) {
        let node = &mut self.nodes[page.index()];
        debug_assert!(node.len > 0 && !node.pinned);
        node.pinned = true;
        self.pinned += 1;
        self.cold.remove(&(node.last_used, page));
    }

    fn unpin(&mut self, page: Page, now: u64) {
        let node = &mut self.nodes[page.index()];
        debug_assert!(node.len > 0 && node.pinned);
        node.pinned = false;
        node.last_used = now;
        self.pinned -= 1;
        if self.may_be_evicted(page) {
            self.cold.insert((now, page));
        }
    }

    fn touch(&mut self, page: Page, now: u64) {
        let node = &mut self.nodes[page.index()];
        let was_cold = self.cold.remove(&(node.last_used, page));
        node.last_used = now;
        if was_cold {
            self.cold.insert((now, page));
        }
    }

    fn evict(&mut self) -> Option<Page> {
        let (_, page) = self.cold.pop_first()?;
        let parent = self.nodes[page.index()].parent;
        let (at, [itself, _]) = self.neighbours(parent, self.tokens(page));
        debug_assert_eq!(itself, Some(page));
        self.children_mut(parent).remove(at);
        self.vacate(page);
        if let Some(parent) = parent.filter(|parent| self.may_be_evicted(*parent)) {
            self.cold
                .insert((self.nodes[parent.index()].last_used, parent));
        }
        Some(page)
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn evictable(&self) -> usize {
        self.pages - self.pinned
    }

    #[cfg(test)]
    fn entries(&self) -> Vec<(Page, Vec<u32>)> {
        let mut entries = Vec::new();
        let mut open: Vec<_> = self.roots.iter().map(|root| (*root, vec![])).collect();
        while let Some((page, mut tokens)) = open.pop() {
            tokens.extend(self.tokens(page));
            let children = &self.nodes[page.index()].children;
            assert!(children.is_empty() || self.nodes[page.index()].len == self.page_tokens);
            for child in children {
                assert_eq!(self.nodes[child.index()].parent, Some(page));
                open.push((*child, tokens.clone()));
            }
            let cold = (self.nodes[page.index()].last_used, page);
            assert_eq!(self.cold.contains(&cold), self.may_be_evicted(page));
            entries.push((page, tokens));
        }
        entries.sort();
        assert_eq!(entries.len(), self.pages);
        entries
    }
}
