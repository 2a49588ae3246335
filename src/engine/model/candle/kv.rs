//! Keys and values in f32, in pages of 16 tokens that sequences can share.
//!
//! Each layer has one tensor, `[2 · kv_heads, pages · 16, head_size]`, which is written in place.
//! Its first dimension is a strip per key head, then a strip per value head. So one page of a head
//! is contiguous, one `index_select` along the second dimension gathers a page table, and the
//! result has the layout that the attention products need.

use candle_core::{DType, Result, Tensor};

use super::CPU;
use super::pass::Pages;
use crate::engine::kv::PAGE_TOKENS;
use crate::engine::memory;
use crate::engine::model::ModelSpec;

/// Minimum size of a pool that is not empty, in pages.
const LEAST_PAGES: usize = 32;

/// The pages of all layers.
pub(super) struct KvPages {
    layers: usize,
    kv_heads: usize,
    head_size: usize,
    /// Upper bound on the number of pages.
    capacity: usize,
    /// Number of allocated pages.
    pages: usize,
    /// One per layer, `[2 · kv_heads, pages · 16, head_size]`.
    pools: Vec<Tensor>,
}

impl KvPages {
    /// Starts without pages.
    pub(super) fn new(spec: &ModelSpec) -> Self {
        Self {
            layers: spec.layers,
            kv_heads: spec.kv_heads,
            head_size: spec.head_size,
            capacity: 0,
            pages: 0,
            pools: Vec::new(),
        }
    }

    /// Bytes of a page over all layers.
    pub(super) fn page_bytes(&self) -> usize {
        2 * self.kv_heads * PAGE_TOKENS * self.head_size * size_of::<f32>() * self.layers
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of allocated pages.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Sets the capacity and discards all existing pages. Pages are allocated on demand.
    pub(super) fn resize(&mut self, pages: usize) -> Result<()> {
        self.pages = 0;
        self.capacity = pages;
        self.pools = (0..self.layers)
            .map(|_| self.zeros(0))
            .collect::<Result<_>>()?;
        Ok(())
    }

    /// Makes sure that the first `pages` pages are allocated. Growing copies a pool, so its size is
    /// doubled if memory allows.
    ///
    /// # Errors
    /// If there is too little memory, or `pages` exceeds the capacity. Existing pages are kept.
    pub(super) fn provide(&mut self, pages: usize) -> Result<()> {
        if pages <= self.pages {
            return Ok(());
        }
        if pages > self.capacity {
            candle_core::bail!("page {pages} of {}", self.capacity);
        }
        let grown = pages
            .max(2 * self.pages)
            .max(LEAST_PAGES)
            .min(self.capacity);
        match self.grow(grown) {
            // If memory is short, grow to what is needed only.
            Err(_) if grown > pages => self.grow(pages),
            grown => grown,
        }
    }

    fn grow(&mut self, pages: usize) -> Result<()> {
        // One layer's old and new pool exist at the same time.
        let layer = pages.saturating_mul(self.page_bytes() / self.layers.max(1));
        let more = (pages - self.pages).saturating_mul(self.page_bytes());
        memory::check(more.saturating_add(layer)).map_err(candle_core::Error::wrap)?;
        memory::probe(layer).map_err(candle_core::Error::wrap)?;
        for layer in 0..self.layers {
            let pool = self.zeros(pages)?;
            if self.pages > 0 {
                let old = self.pools[layer].narrow(1, 0, self.pages * PAGE_TOKENS)?;
                pool.slice_set(&old.contiguous()?, 1, 0)?;
            }
            self.pools[layer] = pool;
        }
        self.pages = pages;
        Ok(())
    }

    /// A layer's pool of this many pages. It must be zeroed: a masked product multiplies unwritten
    /// numbers by 0, and 0 times NaN is NaN.
    fn zeros(&self, pages: usize) -> Result<Tensor> {
        let shape = (2 * self.kv_heads, pages * PAGE_TOKENS, self.head_size);
        Tensor::zeros(shape, DType::F32, CPU)
    }

    /// Copies a page over another one, in every layer.
    pub(super) fn copy(&self, from: u32, to: u32) -> Result<()> {
        for layer in 0..self.layers {
            let from = from as usize * PAGE_TOKENS;
            let page = self.pools[layer].narrow(1, from, PAGE_TOKENS)?;
            // Copy first: candle cannot set a tensor from its own memory.
            let page = page.force_contiguous()?;
            self.pools[layer].slice_set(&page, 1, to as usize * PAGE_TOKENS)?;
        }
        Ok(())
    }

    /// A layer's pool: `[2 · kv_heads, pages · 16, head_size]`.
    pub(super) fn pool(&self, layer: usize) -> &Tensor {
        &self.pools[layer]
    }

    /// Writes a pass's keys and values, `[2 · kv_heads, tokens, head_size]`, contiguous. `places`:
    /// scatter indices of the same shape, constant along all dimensions but the second.
    pub(super) fn write(&self, layer: usize, rows: &Tensor, places: &Tensor) -> Result<()> {
        self.pools[layer].scatter_set(places, rows, 1)
    }

    /// A sequence's keys and values: both `[kv_heads, pages · 16, head_size]`.
    pub(super) fn read(&self, layer: usize, pages: &Pages) -> Result<(Tensor, Tensor)> {
        let (kv_heads, width) = (self.kv_heads, self.head_size);
        let pool = &self.pools[layer];
        let read = match pages {
            Pages::Row { first, count } => {
                pool.narrow(1, first * PAGE_TOKENS, count * PAGE_TOKENS)?
            }
            Pages::Table(table) => pool
                .reshape((2 * kv_heads, self.pages, PAGE_TOKENS * width))?
                .index_select(table, 1)?
                .reshape((2 * kv_heads, table.dim(0)? * PAGE_TOKENS, width))?,
        };
        Ok((
            read.narrow(0, 0, kv_heads)?,
            read.narrow(0, kv_heads, kv_heads)?,
        ))
    }
}
