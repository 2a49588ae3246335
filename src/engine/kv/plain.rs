//! A prefix index without a tree, slow and simple: the oracle for tests of [`super::RadixIndex`].

use super::pool::Page;
use super::prefix::{Found, Inserted, PrefixIndex, common_prefix};

/// A list of known pages, each with all tokens from the sequence's start to the page's end. Every
/// operation scans all of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlainIndex {
    page_tokens: usize,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    tokens: Vec<u32>,
    page: Page,
    last_used: u64,
    pinned: bool,
}

impl PlainIndex {
    fn entry(&mut self, page: Page) -> &mut Entry {
        let mut entries = self.entries.iter_mut();
        entries
            .find(|entry| entry.page == page)
            .expect("it is known")
    }

    /// Tokens before the page that holds the last of `tokens`.
    fn start(&self, tokens: &[u32]) -> usize {
        (tokens.len() - 1) / self.page_tokens * self.page_tokens
    }
}

impl PrefixIndex for PlainIndex {
    fn new(page_tokens: usize) -> Self {
        Self {
            page_tokens,
            entries: Vec::new(),
        }
    }

    fn find(&self, tokens: &[u32]) -> Found {
        let common = |entry: &Entry| common_prefix(&entry.tokens, tokens);
        let longest = self.entries.iter().map(common).max().unwrap_or(0);
        let full = (1..=longest / self.page_tokens).map(|pages| {
            let upto = &tokens[..pages * self.page_tokens];
            let mut entries = self.entries.iter();
            entries
                .find(|entry| entry.tokens == upto)
                .expect("a parent")
                .page
        });
        // Not the pages after one that matches equally far.
        let serves =
            |entry: &&Entry| common(entry) == longest && self.start(&entry.tokens) < longest;
        let candidates = || self.entries.iter().filter(serves);
        let after = candidates()
            .filter(|entry| entry.tokens.as_slice() >= tokens)
            .min_by_key(|entry| &entry.tokens);
        let before = candidates().max_by_key(|entry| &entry.tokens);
        let rest = longest % self.page_tokens;
        Found {
            full: full.collect(),
            tail: after
                .or(before)
                .filter(|_| rest > 0)
                .map(|entry| (entry.page, rest)),
        }
    }

    fn insert(&mut self, _: Option<Page>, tokens: &[u32], page: Page, now: u64) -> Inserted {
        let start = self.start(tokens);
        let mut siblings: Vec<_> = self.entries.clone();
        siblings.retain(|entry| self.start(&entry.tokens) == start);
        if let Some(known) = siblings
            .iter()
            .find(|entry| entry.tokens.starts_with(tokens))
        {
            return Inserted::Known(known.page);
        }
        let part = siblings
            .iter()
            .find(|entry| tokens.starts_with(&entry.tokens));
        let displaced = part.map(|part| part.page);
        if displaced == Some(page) {
            self.entry(page).tokens = tokens.to_vec();
            return Inserted::Extended;
        }
        self.entries.retain(|entry| Some(entry.page) != displaced);
        self.entries.push(Entry {
            tokens: tokens.to_vec(),
            page,
            last_used: now,
            pinned: true,
        });
        Inserted::Added { displaced }
    }

    fn contains(&self, page: Page) -> bool {
        self.entries.iter().any(|entry| entry.page == page)
    }

    fn pin(&mut self, page: Page) {
        self.entry(page).pinned = true;
    }

    fn unpin(&mut self, page: Page, now: u64) {
        let entry = self.entry(page);
        entry.pinned = false;
        entry.last_used = now;
    }

    fn touch(&mut self, page: Page, now: u64) {
        self.entry(page).last_used = now;
    }

    fn evict(&mut self) -> Option<Page> {
        let is_parent = |parent: &Entry| {
            self.entries.iter().any(|entry| {
                entry.tokens.len() > parent.tokens.len() && entry.tokens.starts_with(&parent.tokens)
            })
        };
        let coldest = self
            .entries
            .iter()
            .filter(|entry| !entry.pinned && !is_parent(entry))
            .min_by_key(|entry| (entry.last_used, entry.page))?
            .page;
        self.entries.retain(|entry| entry.page != coldest);
        Some(coldest)
    }

    fn pages(&self) -> usize {
        self.entries.len()
    }

    fn evictable(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.pinned).count()
    }

    fn entries(&self) -> Vec<(Page, Vec<u32>)> {
        let entries = self.entries.iter();
        let mut entries: Vec<_> = entries
            .map(|entry| (entry.page, entry.tokens.clone()))
            .collect();
        entries.sort();
        entries
    }
}
