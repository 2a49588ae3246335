//! What a pass uploads, in one copy: counts, tokens, and page tables.

use super::super::Chunk;
use super::descriptors::{REQUEST_WORDS, Request};
use crate::engine::kv::PAGE_TOKENS;

/// Words of `Pass` in `pass.h`.
const HEADER: usize = 4;
/// Where `Pass` has the number of tokens whose logits are wanted, and of tokens to pick.
pub(super) const ENDS_AT: usize = 1;
pub(super) const SAMPLES_AT: usize = 2;
/// Words of `Token` in `pass.h`.
const TOKEN: usize = 4;

/// Where the parts of an upload are, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Tokens that there is room for.
    tokens: usize,
    /// Tokens with logits that there is room for.
    ends: usize,
}

impl Layout {
    pub(super) fn new(tokens: usize, ends: usize) -> Self {
        Self { tokens, ends }
    }

    pub(super) fn tokens_at(self) -> usize {
        HEADER
    }

    pub(super) fn ends_at(self) -> usize {
        HEADER + TOKEN * self.tokens
    }

    /// A multiple of 8 bytes, as the requests' numbers need.
    pub(super) fn requests_at(self) -> usize {
        self.ends_at() + TOKEN * self.ends
    }

    pub(super) fn tables_at(self) -> usize {
        self.requests_at() + REQUEST_WORDS * self.ends
    }

    /// Words in all, with page tables of `pages` pages.
    pub(super) fn words(self, pages: usize) -> usize {
        self.tables_at() + pages
    }
}

/// Pages of the tables of a pass.
pub(super) fn pages_of(chunks: &[Chunk<'_>]) -> usize {
    chunks.iter().map(|chunk| used_pages(chunk).len()).sum()
}

/// The pages that a chunk's tokens see.
fn used_pages<'a>(chunk: &Chunk<'a>) -> &'a [u32] {
    &chunk.pages[..(chunk.start + chunk.tokens.len()).div_ceil(PAGE_TOKENS)]
}

/// Writes the pass to `words`, which has room for it. Returns the words to copy.
pub(super) fn write(
    words: &mut [u32],
    layout: Layout,
    chunks: &[Chunk<'_>],
    requests: &[Request],
) -> usize {
    let (mut token, mut end, mut table) = (0, 0, 0);
    for chunk in chunks {
        let pages = used_pages(chunk);
        words[layout.tables_at() + table..][..pages.len()].copy_from_slice(pages);
        for (at, id) in chunk.tokens.iter().enumerate() {
            let position = chunk.start + at;
            let described = [*id, position as u32, table as u32, token as u32];
            words[layout.tokens_at() + TOKEN * token..][..TOKEN].copy_from_slice(&described);
            if chunk.logits && at + 1 == chunk.tokens.len() {
                words[layout.ends_at() + TOKEN * end..][..TOKEN].copy_from_slice(&described);
                end += 1;
            }
            token += 1;
        }
        table += pages.len();
    }
    for (at, request) in requests.iter().enumerate() {
        words[layout.requests_at() + REQUEST_WORDS * at..][..REQUEST_WORDS]
            .copy_from_slice(&request.words());
    }
    let header = [token as u32, end as u32, requests.len() as u32, 0];
    words[..HEADER].copy_from_slice(&header);
    layout.words(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::model::Slot;

    #[test]
    fn a_pass_lists_tokens_ends_and_tables() {
        let chunk = |tokens, start, pages, logits| Chunk {
            slot: Slot(0),
            pages,
            tokens,
            start,
            logits,
        };
        let chunks = [
            chunk(&[5, 6], 15, &[7, 8, 9], false),
            chunk(&[3, 4], 0, &[2], true),
        ];
        assert_eq!(pages_of(&chunks), 3);
        let layout = Layout::new(4, 1);
        let mut words = vec![99; layout.words(3)];
        let request = Request::new(0, None);
        assert_eq!(write(&mut words, layout, &chunks, &[request]), words.len());
        assert_eq!(words[..4], [4, 1, 1, 0]);
        assert_eq!(words[4..8], [5, 15, 0, 0]);
        assert_eq!(words[8..12], [6, 16, 0, 1]);
        assert_eq!(words[12..16], [3, 0, 2, 2]);
        assert_eq!(words[16..20], [4, 1, 2, 3]);
        assert_eq!(words[20..24], [4, 1, 2, 3]);
        assert_eq!(words[24..32], [0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(words[32..], [7, 8, 2]);
    }
}
