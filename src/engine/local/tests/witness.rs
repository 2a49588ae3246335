//! A model that wraps the real one and records what is computed: which token is in which slot of which
//! page, and therefore which tokens precede each row of logits, whoever computed them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use super::*;
use crate::engine::model::{ModelSpec, WeightBytes};

/// Everything recorded so far.
#[derive(Default)]
pub(super) struct Seen {
    /// A digest of the logits' bits after each sequence of tokens.
    rows: HashMap<Vec<u32>, u64>,
    /// If set, logits after an unknown sequence are an error.
    pub(super) closed: bool,
    /// Rows that equalled an earlier one.
    pub(super) compared: usize,
    /// Tokens computed.
    pub(super) computed: usize,
    /// Cap on the pages that memory is available for; `None`: no cap.
    pub(super) most_pages: Option<usize>,
}

/// The wrapped model.
struct Witness {
    inner: Box<dyn Model>,
    memory: Vec<[u32; PAGE_TOKENS]>,
    seen: Rc<RefCell<Seen>>,
}

/// Wraps an engine's model.
pub(super) fn witnessed(engine: LocalEngine, seen: &Rc<RefCell<Seen>>) -> LocalEngine {
    LocalEngine {
        model: Box::new(Witness {
            inner: engine.model,
            memory: Vec::new(),
            seen: Rc::clone(seen),
        }),
        ..engine
    }
}

impl Model for Witness {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }

    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn weights(&self) -> String {
        self.inner.weights()
    }

    fn weight_bytes(&self) -> Option<WeightBytes> {
        self.inner.weight_bytes()
    }

    fn max_sequences(&self) -> usize {
        self.inner.max_sequences()
    }

    fn page_bytes(&self) -> Option<usize> {
        self.inner.page_bytes()
    }

    fn set_pages(&mut self, pages: usize) -> Result<()> {
        // No token has this number.
        self.memory = vec![[u32::MAX; PAGE_TOKENS]; pages];
        self.inner.set_pages(pages)
    }

    fn provide_pages(&mut self, pages: usize) -> usize {
        let most = self.seen.borrow().most_pages.unwrap_or(usize::MAX);
        self.inner.provide_pages(pages.min(most))
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        self.memory[to as usize] = self.memory[from as usize];
        self.inner.copy_page(from, to)
    }

    fn open(&mut self) -> Result<Slot> {
        self.inner.open()
    }

    fn close(&mut self, slot: Slot) {
        self.inner.close(slot);
    }

    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>> {
        let mut seen = self.seen.borrow_mut();
        for chunk in chunks {
            for (position, token) in (chunk.start..).zip(chunk.tokens) {
                let page = chunk.pages[position / PAGE_TOKENS] as usize;
                let there = seen.most_pages.is_none_or(|most| page < most);
                assert!(there, "page {page} has no memory");
                self.memory[page][position % PAGE_TOKENS] = *token;
            }
            seen.computed += chunk.tokens.len();
        }
        let rows = self.inner.forward(chunks)?;
        let wanted = chunks.iter().filter(|chunk| chunk.logits);
        for (chunk, row) in wanted.zip(&rows) {
            let places = chunk.pages.iter().map(|page| self.memory[*page as usize]);
            let mut tokens: Vec<u32> = places.flatten().collect();
            tokens.truncate(chunk.start + chunk.tokens.len());
            let mut digest = DefaultHasher::new();
            row.iter()
                .for_each(|logit| logit.to_bits().hash(&mut digest));
            let digest = digest.finish();
            let (count, closed) = (tokens.len(), seen.closed);
            match seen.rows.entry(tokens) {
                Entry::Vacant(_) if closed => panic!("{count} tokens that nobody asked for"),
                Entry::Vacant(entry) => {
                    entry.insert(digest);
                }
                Entry::Occupied(entry) => {
                    assert_eq!(*entry.get(), digest, "other logits after {count} tokens");
                    seen.compared += 1;
                }
            }
        }
        Ok(rows)
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
}
