//! What a pass uploads, in one copy: counts, tokens, the tiles of its attention, and page tables.

use super::super::Chunk;
use super::descriptors::{REQUEST_WORDS, Request};
use super::places::{PLACE, Places, TILE, Tiling};
use crate::engine::kv::PAGE_TOKENS;

/// Words of `Pass` in `pass.h`.
const HEADER: usize = 8;
/// Where `Pass` has the number of tokens whose logits are wanted, of tokens to pick, and of tiles.
pub(super) const ENDS_AT: usize = 1;
pub(super) const SAMPLES_AT: usize = 2;
pub(super) const TILES_AT: usize = 3;
const END_TILES_AT: usize = 4;
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

    /// Where the attention of the pass's tokens, or of those whose logits are wanted, has its rows.
    pub(super) fn attention(self, ends: bool) -> AttentionAt {
        let places = self.requests_at() + REQUEST_WORDS * self.ends;
        let end_places = places + PLACE * self.tokens;
        let tiles = end_places + PLACE * self.ends;
        match ends {
            false => AttentionAt {
                tokens: self.tokens_at(),
                places,
                tiles,
                count: TILES_AT,
            },
            true => AttentionAt {
                tokens: self.ends_at(),
                places: end_places,
                tiles: tiles + TILE * self.tokens,
                count: END_TILES_AT,
            },
        }
    }

    pub(super) fn tables_at(self) -> usize {
        self.attention(true).tiles + TILE * self.ends
    }

    /// Words in all, with page tables of `pages` pages.
    pub(super) fn words(self, pages: usize) -> usize {
        self.tables_at() + pages
    }
}

/// Where the attention of some tokens finds them, in words.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionAt {
    pub(super) tokens: usize,
    pub(super) places: usize,
    pub(super) tiles: usize,
    /// The number of tiles.
    pub(super) count: usize,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// Words to copy.
    pub(super) words: usize,
    /// Tiles of the attention of all tokens, and of those whose logits are wanted.
    pub(super) tiles: [usize; 2],
}

/// Pages of the tables of a pass.
pub(super) fn pages_of(chunks: &[Chunk<'_>]) -> usize {
    chunks.iter().map(|chunk| used_pages(chunk).len()).sum()
}

/// The pages that a chunk's tokens see.
fn used_pages<'a>(chunk: &Chunk<'a>) -> &'a [u32] {
    &chunk.pages[..(chunk.start + chunk.tokens.len()).div_ceil(PAGE_TOKENS)]
}

/// Writes the pass to `words`, which has room for it.
pub(super) fn write(
    words: &mut [u32],
    layout: Layout,
    chunks: &[Chunk<'_>],
    requests: &[Request],
    tiling: Tiling,
) -> Written {
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
    let all = tiling.places(chunks, false);
    // Only where they are some of the tokens, the last layer computes the ends apart.
    let ends = match end < token {
        true => tiling.places(chunks, true),
        false => Places::default(),
    };
    for (found, is_ends) in [(&all, false), (&ends, true)] {
        let at = layout.attention(is_ends);
        let places = found.places.as_flattened();
        words[at.places..][..places.len()].copy_from_slice(places);
        let tiles = found.tiles.as_flattened();
        words[at.tiles..][..tiles.len()].copy_from_slice(tiles);
    }
    let tiles = [all.tiles.len(), ends.tiles.len()];
    let counts = [token, end, requests.len(), tiles[0], tiles[1]];
    words[..HEADER].fill(0);
    for (word, count) in words.iter_mut().zip(counts) {
        *word = count as u32;
    }
    Written {
        words: layout.words(table),
        tiles,
    }
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
        let tiling = Tiling::new(1, 64, false);
        let written = write(&mut words, layout, &chunks, &[request], tiling);
        let tiles = [2, 1];
        assert_eq!((written.words, written.tiles), (words.len(), tiles));
        assert_eq!(words[..8], [4, 1, 1, 2, 1, 0, 0, 0]);
        assert_eq!(words[8..12], [5, 15, 0, 0]);
        assert_eq!(words[12..16], [6, 16, 0, 1]);
        assert_eq!(words[16..20], [3, 0, 2, 2]);
        assert_eq!(words[20..24], [4, 1, 2, 3]);
        assert_eq!(words[24..28], [4, 1, 2, 3]);
        assert_eq!(words[28..36], [0, 0, 0, 0, 0, 0, 1, 0]);
        let all = u32::MAX;
        assert_eq!(words[36..44], [15, 0, 0, 0, 0, 2, all, 0]);
        assert_eq!(words[44..52], [16, 0, 1, 1, 0, 2, all, 0]);
        assert_eq!(words[52..60], [0, 2, 2, 2, 2, 2, all, 0]);
        assert_eq!(words[60..68], [1, 2, 3, 3, 2, 2, all, 0]);
        assert_eq!(words[68..76], [1, 2, 3, 0, 0, 1, all, 0]);
        assert_eq!(words[76..84], [0, 2, all, 0, 2, 2, all, 0]);
        assert_eq!(words[92..96], [0, 1, all, 0]);
        assert_eq!(words[96..], [7, 8, 2]);
    }
}
