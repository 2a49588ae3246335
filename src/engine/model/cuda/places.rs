//! Which tokens' attention is computed together: a tile is some query tokens whose keys and values are, at least at
//! the start, in the same pages. Its block reads the spans of 64 positions that they share once for all of them.

use super::super::Chunk;
use crate::engine::kernels::SPAN;
use crate::engine::kv::PAGE_TOKENS;

/// Query heads of a fragment of the kernels' matrix products, as in `attention.h`.
const FRAGMENT: usize = 16;
/// Most tokens of a tile.
const MOST_ROWS: usize = 16;
/// Heads of more columns leave room for one fragment, others for two.
const NARROW: usize = 128;

/// Words of `Place` and of `Tile` in `pass.h`.
pub(super) const PLACE: usize = 8;
pub(super) const TILE: usize = 4;

/// How tokens become tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Tokens of a tile at most.
    rows: usize,
    /// Whether different sequences share a tile wherever they share a span. Otherwise they do where the tile is
    /// hardly slower than its slowest token alone: its block computes what they do not share one after the other.
    always: bool,
}

/// One token, as `Place` begins: position, offset of its page table, row of the pass, index in the list.
type Token = [usize; 4];

/// A token whose sequence has no other in the list.
struct Row<'a> {
    token: Token,
    /// The pages that it sees.
    pages: &'a [u32],
}

impl Row<'_> {
    fn spans(&self) -> usize {
        (self.pages.len() * PAGE_TOKENS).div_ceil(SPAN)
    }

    /// Spans from the start that are in the same pages.
    fn shared(&self, other: &Self) -> usize {
        let pages = self.pages.iter().zip(other.pages);
        pages.take_while(|(ours, theirs)| ours == theirs).count() * PAGE_TOKENS / SPAN
    }
}

impl Tiling {
    /// For `group` query heads to a KV head, and heads of `head_size` columns.
    pub(super) fn new(group: usize, head_size: usize, always: bool) -> Self {
        let fragments = if head_size > NARROW { 1 } else { 2 };
        Self {
            rows: (fragments * (FRAGMENT / group)).min(MOST_ROWS),
            always,
        }
    }

    /// Whether a tile of so many tokens takes at most a quarter longer than its longest one alone. A span that is
    /// not shared takes three tenths of a span's time more for each further token: an estimate, as those of
    /// `scripts/gpu_model.py`.
    fn pays(self, rows: usize, spans: usize, shared: usize) -> bool {
        let tenths = 10 * shared + (spans - shared) * (7 + 3 * rows);
        self.always || 4 * tenths <= 50 * spans
    }

    /// The tokens of `chunks`, or with `ends` those whose logits are wanted, as [`Places`].
    pub(super) fn places(self, chunks: &[Chunk<'_>], ends: bool) -> Places {
        let mut places = Places::default();
        let mut singles = Vec::new();
        let (mut table, mut row, mut listed) = (0, 0, 0);
        for chunk in chunks {
            let count = chunk.tokens.len();
            let pages = &chunk.pages[..(chunk.start + count).div_ceil(PAGE_TOKENS)];
            let token = |at: usize, listed: usize| [chunk.start + at, table, row + at, listed];
            match (count, ends) {
                (0, _) => {}
                (_, true) if !chunk.logits => {}
                (1, _) | (_, true) => {
                    let token = token(count - 1, listed);
                    singles.push(Row { token, pages });
                    listed += 1;
                }
                (_, false) => {
                    for first in (0..count).step_by(self.rows) {
                        let rows = first..count.min(first + self.rows);
                        let tokens: Vec<Token> = rows.map(|at| token(at, listed + at)).collect();
                        places.add(tokens.into_iter(), usize::MAX);
                    }
                    listed += count;
                }
            }
            table += pages.len();
            row += count;
        }
        // Tables with the same beginning become neighbours.
        singles.sort_by(|a, b| a.pages.cmp(b.pages));
        let mut rest = &singles[..];
        while let Some((first, others)) = rest.split_first() {
            let (mut rows, mut spans, mut shared) = (1, first.spans(), usize::MAX);
            for other in others.iter().take(self.rows - 1) {
                let (longest, common) = (spans.max(other.spans()), shared.min(first.shared(other)));
                if common == 0 || !self.pays(rows + 1, longest, common) {
                    break;
                }
                (rows, spans, shared) = (rows + 1, longest, common);
            }
            places.add(rest[..rows].iter().map(|row| row.token), shared);
            rest = &rest[rows..];
        }
        places
    }
}

/// Tokens in the order of their tiles, as the kernels read them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// `Place` in `pass.h`, for each token.
    pub(super) places: Vec<[u32; PLACE]>,
    /// `Tile` in `pass.h`, for each tile.
    pub(super) tiles: Vec<[u32; TILE]>,
}

impl Places {
    fn add(&mut self, tokens: impl ExactSizeIterator<Item = Token>, shared: usize) {
        let (first, rows) = (self.places.len() as u32, tokens.len() as u32);
        let shared = u32::try_from(shared).unwrap_or(u32::MAX);
        let tile = [first, rows, shared, 0];
        self.tiles.push(tile);
        self.places.extend(tokens.map(|token| {
            let [position, table, row, token] = token.map(|number| number as u32);
            let [first, rows, shared, unused] = tile;
            [position, table, row, token, first, rows, shared, unused]
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::model::Slot;

    fn chunk<'a>(tokens: &'a [u32], start: usize, pages: &'a [u32], logits: bool) -> Chunk<'a> {
        Chunk {
            slot: Slot(0),
            pages,
            tokens,
            start,
            logits,
        }
    }

    const ALL: u32 = u32::MAX;

    #[test]
    fn a_tile_has_as_many_tokens_as_its_fragments_have_rows() {
        let rows = |group, head_size| Tiling::new(group, head_size, true).rows;
        assert_eq!([rows(1, 64), rows(2, 64), rows(3, 64)], [16, 16, 10]);
        assert_eq!([rows(4, 128), rows(7, 128), rows(16, 128)], [8, 4, 2]);
        assert_eq!([rows(1, 256), rows(4, 256), rows(9, 256)], [16, 4, 1]);
    }

    #[test]
    fn the_tokens_of_a_chunk_are_tiles() {
        let tiling = Tiling::new(4, 128, false);
        let tokens = [0; 11];
        let chunks = [
            chunk(&tokens[..1], 20, &[5, 6], true),
            chunk(&tokens, 3, &[7], true),
            chunk(&[], 3, &[7], false),
        ];
        let found = tiling.places(&chunks, false);
        assert_eq!(
            found.tiles,
            [[0, 8, ALL, 0], [8, 3, ALL, 0], [11, 1, ALL, 0]]
        );
        let tokens: Vec<u32> = found.places.iter().map(|place| place[3]).collect();
        assert_eq!(tokens, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0]);
        assert_eq!(found.places[8], [11, 2, 9, 9, 8, 3, ALL, 0]);
        assert_eq!(found.places[11], [20, 0, 0, 0, 11, 1, ALL, 0]);
        let ends = tiling.places(&chunks, true);
        assert_eq!(ends.places[0], [20, 0, 0, 0, 0, 1, ALL, 0]);
        assert_eq!(ends.places[1], [13, 2, 11, 1, 1, 1, ALL, 0]);
        assert_eq!(ends.places.len(), 2);
    }

    #[test]
    fn sequences_with_the_same_first_pages_share_tiles() {
        let tables: [&[u32]; 5] = [
            &[1, 2, 3, 4, 5, 6, 7, 8, 20],
            &[90, 2, 3, 4, 5],
            // A fork of the first one, within its second span.
            &[1, 2, 3, 4, 5, 30],
            &[1, 2, 3, 4, 5, 6, 7, 8, 40],
            // Its first span is not whole.
            &[90, 2, 3, 50, 51],
        ];
        let positions = [130, 70, 90, 140, 70];
        let chunks: Vec<Chunk<'_>> = tables
            .iter()
            .zip(positions)
            .map(|(pages, start)| chunk(&[3], start, pages, true))
            .collect();
        let tiles = |always| {
            let found = Tiling::new(2, 64, always).places(&chunks, false);
            let tokens: Vec<u32> = found.places.iter().map(|place| place[3]).collect();
            let tiles = found.tiles.iter().map(|tile| [tile[1], tile[2]]);
            (tokens, tiles.collect::<Vec<_>>())
        };
        let order = vec![0, 3, 2, 1, 4];
        assert_eq!(
            tiles(true),
            (order.clone(), vec![[3, 1], [1, ALL], [1, ALL]])
        );
        // With the fork, two of three spans would be computed for each token.
        let cautious = vec![[2, 2], [1, ALL], [1, ALL], [1, ALL]];
        assert_eq!(tiles(false), (order, cautious));
    }
}
