//! Keys and values on the device, in pages of 16 tokens that sequences share.
//!
//! A layer's are one tensor, which is written in place and never copied: `[2 · kv_heads, pages · 16,
//! head_size]`, a strip for each key head and then for each value head. So a page of a head is one
//! block, the pages of a table are gathered by one `index_select` along the second dimension, and
//! what comes of it is laid out as the attention products want it.

use candle_core::{DType, Device, Result, Tensor};

use super::pass::{Pages, Places, Writes};
use crate::engine::kv::PAGE_TOKENS;
use crate::engine::memory;
use crate::engine::model::ModelSpec;

/// Pages that a CPU's pools have at the least, once they have any.
const LEAST_PAGES: usize = 32;

/// All pages of all layers.
pub(super) struct KvPages {
    layers: usize,
    kv_heads: usize,
    head_size: usize,
    dtype: DType,
    device: Device,
    /// Most pages.
    capacity: usize,
    /// Pages that there is memory for.
    pages: usize,
    /// `[2 · kv_heads, pages · 16, head_size]` each.
    pools: Vec<Tensor>,
}

impl KvPages {
    /// No pages yet.
    pub(super) fn new(spec: &ModelSpec, dtype: DType, device: &Device) -> Self {
        Self {
            layers: spec.layers,
            kv_heads: spec.kv_heads,
            head_size: spec.head_size,
            dtype,
            device: device.clone(),
            capacity: 0,
            pages: 0,
            pools: Vec::new(),
        }
    }

    /// Bytes of a page in all layers.
    pub(super) fn page_bytes(&self) -> usize {
        2 * self.kv_heads * PAGE_TOKENS * self.head_size * self.dtype.size_in_bytes() * self.layers
    }

    /// Most pages that there can be.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many pages there is memory for.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Makes room for so many pages, in place of those that were there. On a device of its own they are
    /// allocated now, on a CPU as they are needed.
    pub(super) fn resize(&mut self, pages: usize) -> Result<()> {
        // First the old ones go, so that there is never memory for both.
        self.pages = 0;
        self.pools.clear();
        self.capacity = pages;
        let first = if self.device.is_cpu() { 0 } else { pages };
        self.pools = (0..self.layers)
            .map(|_| self.zeros(first))
            .collect::<Result<_>>()?;
        self.pages = first;
        Ok(())
    }

    /// Makes sure that there is memory for the first `pages` pages. A pool that grows is copied, so it
    /// grows to twice what it was.
    ///
    /// # Errors
    /// There is too little memory, or there are not so many pages; those that were there are there
    /// still.
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
            // Where memory is short, no more than is needed.
            Err(_) if grown > pages => self.grow(pages),
            grown => grown,
        }
    }

    fn grow(&mut self, pages: usize) -> Result<()> {
        // A layer's old and new pool are there at once, for a moment.
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

    /// A layer's pool of so many pages. Zeros rather than whatever was there: padding multiplies what
    /// nobody wrote with 0, and 0 times NaN is NaN.
    fn zeros(&self, pages: usize) -> Result<Tensor> {
        let shape = (2 * self.kv_heads, pages * PAGE_TOKENS, self.head_size);
        Tensor::zeros(shape, self.dtype, &self.device)
    }

    /// Copies a page over another one, in every layer.
    pub(super) fn copy(&self, from: u32, to: u32) -> Result<()> {
        for layer in 0..self.layers {
            let from = from as usize * PAGE_TOKENS;
            let page = self.pools[layer].narrow(1, from, PAGE_TOKENS)?;
            // A copy of its own: a tensor cannot be set from its own memory.
            let page = page.force_contiguous()?;
            self.pools[layer].slice_set(&page, 1, to as usize * PAGE_TOKENS)?;
        }
        Ok(())
    }

    /// A layer's pool: `[2 · kv_heads, pages · 16, head_size]`.
    pub(super) fn pool(&self, layer: usize) -> &Tensor {
        &self.pools[layer]
    }

    /// Writes a pass's keys and values, `[2 · kv_heads, tokens, head_size]`, contiguous.
    pub(super) fn write(&self, layer: usize, rows: &Tensor, writes: &Writes) -> Result<()> {
        let (strips, width) = (2 * self.kv_heads, self.head_size);
        let pool = &self.pools[layer];
        if let Some(Places { rows: from, places }) = &writes.whole {
            // Page by page, since a GPU's scatter goes through the pieces of a strip one by one.
            let rows = select(rows, from.as_ref())?;
            let pages = (strips, places.dim(1)?, PAGE_TOKENS * width);
            let pool = pool.reshape((strips, self.pages, PAGE_TOKENS * width))?;
            pool.scatter_set(places, &rows.reshape(pages)?, 1)?;
        }
        if let Some(Places { rows: from, places }) = &writes.single {
            pool.scatter_set(places, &select(rows, from.as_ref())?, 1)?;
        }
        Ok(())
    }

    /// Keys and values of the pages of some sequences, each padded to the same number of pages:
    /// `[kv_heads · sequences, pages · 16, head_size]` both.
    pub(super) fn read(
        &self,
        layer: usize,
        sequences: usize,
        pages: &Pages,
    ) -> Result<(Tensor, Tensor)> {
        let (kv_heads, width) = (self.kv_heads, self.head_size);
        let pool = &self.pools[layer];
        let read = match pages {
            Pages::Row { first, count } => {
                pool.narrow(1, first * PAGE_TOKENS, count * PAGE_TOKENS)?
            }
            Pages::Table(table) => {
                let tokens = table.dim(0)? / sequences * PAGE_TOKENS;
                pool.reshape((2 * kv_heads, self.pages, PAGE_TOKENS * width))?
                    .index_select(table, 1)?
                    .reshape((2 * kv_heads * sequences, tokens, width))?
            }
        };
        let half = kv_heads * sequences;
        Ok((read.narrow(0, 0, half)?, read.narrow(0, half, half)?))
    }
}

/// Some rows (dimension 1) of a tensor; all of them where none are named.
fn select(rows: &Tensor, wanted: Option<&Tensor>) -> Result<Tensor> {
    match wanted {
        Some(wanted) => rows.index_select(wanted, 1),
        None => Ok(rows.clone()),
    }
}
