//! A KV memory with contents, and sequences that run on two caches in parallel: one with the tree, one
//! with the plain list. Every step is checked.

use std::collections::HashSet;

use super::super::plain::PlainIndex;
use super::super::{KvCache, KvStats, Lease, Page, PageCopy, PrefixIndex, RadixIndex};

/// Contents of KV memory, `[pages, page_tokens]`: at each position a digest of the token there and all
/// tokens before it, as real keys and values depend on all of them.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    page_tokens: usize,
    cells: Vec<u64>,
}

impl Memory {
    pub(super) fn new(pages: usize, page_tokens: usize) -> Self {
        Self {
            page_tokens,
            cells: vec![0; pages * page_tokens],
        }
    }

    /// The digest of a token and all tokens before it, whose digest is `before` (0 at the start).
    fn digest(before: u64, token: u32) -> u64 {
        (before ^ u64::from(token + 1))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23)
    }

    fn cell(&self, table: &[Page], position: usize) -> usize {
        table[position / self.page_tokens].index() * self.page_tokens + position % self.page_tokens
    }

    /// Computes the last of `tokens` from the contents before it, as a model does.
    pub(super) fn write(&mut self, table: &[Page], tokens: &[u32]) {
        let (token, before) = tokens.split_last().expect("a token");
        let before = match before.len().checked_sub(1) {
            Some(last) => self.cells[self.cell(table, last)],
            None => 0,
        };
        let cell = self.cell(table, tokens.len() - 1);
        self.cells[cell] = Self::digest(before, *token);
    }

    pub(super) fn copy(&mut self, copy: Option<PageCopy>) {
        if let Some(copy) = copy {
            let from = copy.from.index() * self.page_tokens;
            let to = copy.to.index() * self.page_tokens;
            self.cells.copy_within(from..from + copy.tokens, to);
        }
    }

    /// Panics unless all of `computed` is where the table says.
    pub(super) fn verify(&self, table: &[Page], computed: &[u32]) {
        self.verify_from(0, table, computed);
    }

    /// The same for the positions from `start` on.
    fn verify_from(&self, start: usize, table: &[Page], computed: &[u32]) {
        let mut digest = 0;
        for (position, token) in computed.iter().enumerate() {
            digest = Self::digest(digest, *token);
            let right = position < start || self.cells[self.cell(table, position)] == digest;
            assert!(right, "wrong contents at {position} of {computed:?}");
        }
    }
}

/// A running sequence: a lease on each cache, and its tokens, of which the first `computed` are in
/// memory.
#[derive(Debug)]
pub(super) struct Running {
    lease: Lease,
    plain_lease: Lease,
    tokens: Vec<u32>,
    computed: usize,
}

/// The operations. Sequences are named by any number, modulo the number of sequences.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Acquire {
        prompt: Vec<u32>,
        headroom: usize,
    },
    /// Computes this many tokens; after the prompt, each is followed by the next of these.
    Compute {
        which: usize,
        tokens: Vec<u32>,
    },
    Publish {
        which: usize,
    },
    Finish {
        which: usize,
    },
    Release {
        which: usize,
    },
    /// Forks after this share of the computed tokens: 255 is all of them.
    Fork {
        which: usize,
        share: u8,
    },
    /// Ends all sequences and restarts.
    Restart {
        reuse: bool,
    },
}

#[derive(Debug)]
pub(super) struct World {
    radix: KvCache<RadixIndex>,
    plain: KvCache<PlainIndex>,
    memory: Memory,
    running: Vec<Running>,
    pages: usize,
    page_tokens: usize,
    reuse: bool,
    /// Every prefix that was ever published, maintained while nothing was evicted.
    ever_known: Option<HashSet<Vec<u32>>>,
    pub(super) refused: usize,
}

impl World {
    pub(super) fn new(pages: usize, page_tokens: usize, reuse: bool) -> Self {
        Self {
            radix: KvCache::new(pages, page_tokens, reuse),
            plain: KvCache::new(pages, page_tokens, reuse),
            memory: Memory::new(pages, page_tokens),
            running: Vec::new(),
            pages,
            page_tokens,
            reuse,
            ever_known: Some(HashSet::new()),
            refused: 0,
        }
    }

    pub(super) fn stats(&self) -> KvStats {
        self.radix.stats()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn apply(&mut self, op: Op) {
        let count = self.running.len();
        match op {
            Op::Acquire { prompt, headroom } => self.acquire(prompt, headroom),
            Op::Restart { reuse } => self.restart(reuse),
            _ if count == 0 => {}
            Op::Compute { which, tokens } => self.compute(which % count, &tokens),
            Op::Publish { which } => self.publish(which % count),
            Op::Finish { which } => self.finish(which % count),
            Op::Release { which } => {
                let run = self.running.swap_remove(which % count);
                self.radix.release(run.lease);
                self.plain.release(run.plain_lease);
            }
            Op::Fork { which, share } => self.fork(which % count, share),
        }
        self.check();
    }

    fn leased(&self) -> HashSet<Page> {
        let tables = self.running.iter().map(|run| run.lease.page_table());
        tables.flatten().copied().collect()
    }

    /// The longest prefix of the prompt, without its last token, that ends in a known page.
    fn longest_known(&self, prompt: &[u32]) -> usize {
        if !self.reuse || prompt.is_empty() {
            return 0;
        }
        let prompt = &prompt[..prompt.len() - 1];
        let entries = self.plain.index().entries();
        let common = entries.iter().map(|(_, known)| {
            let pairs = known.iter().zip(prompt);
            pairs.take_while(|(a, b)| a == b).count()
        });
        let longest = common.max().unwrap_or(0);
        if let Some(known) = &self.ever_known {
            let mut lengths = (0..=prompt.len()).rev();
            let model = lengths.find(|len| *len == 0 || known.contains(&prompt[..*len]));
            assert_eq!(
                longest,
                model.expect("0 is"),
                "something known was forgotten"
            );
        }
        longest
    }

    fn acquire(&mut self, prompt: Vec<u32>, headroom: usize) {
        let longest = self.longest_known(&prompt);
        assert_eq!(self.radix.known_prefix(&prompt), longest);
        let shared = &prompt[..longest / self.page_tokens * self.page_tokens];
        let mut held = self.leased();
        for (page, known) in self.plain.index().entries() {
            if self.reuse
                && shared.starts_with(&known)
                && known.len().is_multiple_of(self.page_tokens)
            {
                held.insert(page);
            }
        }
        let needed = prompt.len().div_ceil(self.page_tokens) - longest / self.page_tokens;
        let fits = held.len() + needed + headroom <= self.pages;

        let before = self.radix.clone();
        let evictions = before.stats().evictions;
        let lease = self.radix.acquire(&prompt, headroom);
        let plain_lease = self.plain.acquire(&prompt, headroom);
        assert_eq!(lease, plain_lease);
        assert_eq!(lease.is_some(), fits);
        let (Some(mut lease), Some(mut plain_lease)) = (lease, plain_lease) else {
            assert_eq!(self.radix, before, "refusing had side effects");
            self.refused += 1;
            return;
        };
        assert_eq!(lease.reused(), longest);
        assert!(self.radix.available() >= headroom);
        if self.radix.stats().evictions > evictions {
            self.ever_known = None;
        }
        self.memory.copy(lease.take_copy());
        plain_lease.take_copy();
        self.running.push(Running {
            computed: lease.reused(),
            lease,
            plain_lease,
            tokens: prompt,
        });
    }

    fn compute(&mut self, which: usize, more: &[u32]) {
        for next in more {
            let available = self.pages - self.leased().len();
            let evictions = self.radix.stats().evictions;
            let run = &mut self.running[which];
            if run.computed == run.tokens.len() {
                run.tokens.push(*next);
            }
            let crosses = run.tokens.len() > run.lease.page_table().len() * self.page_tokens;
            let before = self.radix.clone();
            let grown = self.radix.grow(&mut run.lease, run.tokens.len());
            assert_eq!(
                self.plain.grow(&mut run.plain_lease, run.tokens.len()),
                grown
            );
            assert_eq!(grown, !crosses || available > 0);
            if !grown {
                assert_eq!(self.radix, before, "refusing had side effects");
                return;
            }
            if self.radix.stats().evictions > evictions {
                self.ever_known = None;
            }
            run.computed += 1;
            let (place, computed) = ((run.computed - 1) / self.page_tokens, run.computed);
            let page = self.running[which].lease.page_table()[place];
            for (other, run) in self.running.iter().enumerate() {
                let shared = run.lease.page_table().contains(&page);
                assert!(other == which || !shared, "two could write {page:?}");
            }
            for (known_page, known) in self.plain.index().entries() {
                assert!(
                    known_page != page || known.len() < computed,
                    "{page:?} is known"
                );
            }
            let run = &self.running[which];
            self.memory
                .write(run.lease.page_table(), &run.tokens[..computed]);
        }
    }

    fn learn(&mut self, which: usize) {
        let run = &self.running[which];
        if let Some(known) = self.ever_known.as_mut().filter(|_| self.reuse) {
            known.extend((1..=run.computed).map(|len| run.tokens[..len].to_vec()));
        }
    }

    fn publish(&mut self, which: usize) {
        self.learn(which);
        let run = &mut self.running[which];
        let computed = &run.tokens[..run.computed];
        self.radix.publish(&mut run.lease, computed);
        self.plain.publish(&mut run.plain_lease, computed);
    }

    fn finish(&mut self, which: usize) {
        self.learn(which);
        let run = self.running.swap_remove(which);
        let computed = &run.tokens[..run.computed];
        self.radix.finish(run.lease, computed);
        self.plain.finish(run.plain_lease, computed);
    }

    fn fork(&mut self, which: usize, share: u8) {
        let available = self.pages - self.leased().len();
        let evictions = self.radix.stats().evictions;
        let run = &mut self.running[which];
        let len = run.computed * usize::from(share) / 255;
        let from = run.tokens[..len].to_vec();
        let before = self.radix.clone();
        let fork = self.radix.fork(&mut run.lease, &from);
        let plain_fork = self.plain.fork(&mut run.plain_lease, &from);
        assert_eq!(fork, plain_fork);
        assert_eq!(
            fork.is_some(),
            len.is_multiple_of(self.page_tokens) || available > 0
        );
        let (Some(mut lease), Some(mut plain_lease)) = (fork, plain_fork) else {
            assert_eq!(self.radix, before, "refusing had side effects");
            return;
        };
        if let Some(known) = self.ever_known.as_mut().filter(|_| self.reuse) {
            known.extend((1..=len).map(|len| from[..len].to_vec()));
        }
        if self.radix.stats().evictions > evictions {
            self.ever_known = None;
        }
        assert_eq!(lease.reused(), len);
        self.memory.copy(lease.take_copy());
        plain_lease.take_copy();
        self.running.push(Running {
            lease,
            plain_lease,
            tokens: from,
            computed: len,
        });
    }

    fn restart(&mut self, reuse: bool) {
        while !self.running.is_empty() {
            self.finish(0);
        }
        self.radix.restart(reuse);
        self.plain.restart(reuse);
        assert_eq!(self.radix.stats().free, self.pages, "pages were lost");
        assert_eq!(self.radix.stats().cached, 0);
        self.reuse = reuse;
        self.ever_known = Some(HashSet::new());
    }

    fn check(&self) {
        self.radix.check(self.running.iter().map(|run| &run.lease));
        self.plain
            .check(self.running.iter().map(|run| &run.plain_lease));
        assert_eq!(self.radix.stats(), self.plain.stats());
        let entries = self.radix.index().entries();
        assert_eq!(entries, self.plain.index().entries());
        assert!(self.reuse || entries.is_empty());
        for run in &self.running {
            assert_eq!(run.lease, run.plain_lease);
            let computed = &run.tokens[..run.computed];
            self.memory.verify(run.lease.page_table(), computed);
        }
        // Known contents are right even if no sequence uses them now.
        for (page, tokens) in entries {
            let pages = tokens.len().div_ceil(self.page_tokens);
            let start = (pages - 1) * self.page_tokens;
            self.memory.verify_from(start, &vec![page; pages], &tokens);
        }
    }
}
