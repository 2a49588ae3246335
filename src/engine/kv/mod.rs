//! Which tokens lie in which pages of KV memory: the paged cache's bookkeeping. It holds integers
//! only; the tensors belong to the models, which read and write where a page table says.
//!
//! [`KvCache`] is what the scheduler talks to. Under it are a [`pool::PagePool`] (who holds which
//! page) and a [`prefix::PrefixIndex`] (which pages hold the keys and values of which token prefixes).
//! Pages are from vLLM's PagedAttention (Kwon et al., SOSP 2023, arXiv:2309.06180), the tree of
//! known prefixes with its least-recently-used leaves from SGLang's RadixAttention (Zheng et al.,
//! 2024, arXiv:2312.07104).
//!
//! A page is append-only for as long as anyone holds it: the one lease that fills it writes at
//! positions past all that is known of it, so readers never see a known position change.
//!
//! What the caller keeps to:
//! - a lease's [`cache::PageCopy`] is carried out before the next forward pass, and several in the order
//!   in which they were given out;
//! - only positions at or past [`Lease::reused`], in ascending order, are written;
//! - the page table is read afresh for every pass, since [`KvCache::publish`] can change it;
//! - every lease goes back by [`KvCache::finish`] or [`KvCache::release`].

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

/// Tokens in a page. With 16 a prompt wastes half a page (8 tokens) of memory on average, and a
/// page of SmolLM2-135M is 371 KiB: long enough runs to read at full bandwidth.
pub(crate) const PAGE_TOKENS: usize = 16;
