//! Which tokens are in which pages of KV memory: the bookkeeping of the paged cache. It holds integers
//! only; the tensors belong to the models, which read and write where a page table says.
//!
//! [`KvCache`] is the interface for the engine. Below it are a [`pool::PagePool`] (who holds which
//! page) and a [`prefix::PrefixIndex`] (which pages hold the keys and values of which token prefixes).
//! Pages follow vLLM's PagedAttention (Kwon et al., SOSP 2023, arXiv:2309.06180), the prefix tree with
//! LRU eviction of leaves SGLang's RadixAttention (Zheng et al., 2024, arXiv:2312.07104).
//!
//! A page is append-only while anyone holds it: only the lease that fills it writes to it, past all
//! published positions, so readers never see a known position change.
//!
//! The caller must ensure that
//! - a lease's [`cache::PageCopy`] is executed before the next forward pass, and several in the order
//!   in which they were handed out;
//! - only positions from [`Lease::reused`] on are written, in ascending order;
//! - the page table is read again for every pass, since [`KvCache::publish`] can change it;
//! - every lease is returned with [`KvCache::finish`] or [`KvCache::release`].

mod cache;
mod pool;
mod prefix;

#[cfg(test)]
mod plain;
#[cfg(test)]
mod tests;

pub(crate) use cache::{KvCache, Lease};

#[cfg(test)]
pub(crate) use prefix::{common_prefix, distinct_prefixes};
#[cfg(test)]
use {
    cache::{KvStats, PageCopy},
    pool::Page,
    prefix::{PrefixIndex, RadixIndex},
};

/// Tokens per page. With 16 a prompt wastes half a page (8 tokens) on average, and a page of
/// SmolLM2-135M is 371 KiB: long enough to read at full bandwidth.
pub(crate) const PAGE_TOKENS: usize = 16;
