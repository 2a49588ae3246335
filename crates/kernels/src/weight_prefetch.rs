//! Prefetching the weights that a thread multiplies next, spread over the blocks of the current tile.

use super::aligned::LINE;
use super::group::{GroupPointers, has_min, is_super};
use super::product::Part;
use super::quant::BLOCK;
use super::simd::{LANES, Simd};

/// How many blocks ahead a stream of weights is prefetched: 6 KiB of nibbles, 200 ns.
const DISTANCE: usize = 24;

/// Weights to prefetch, a fixed amount for each block of the current tile.
#[derive(Clone, Copy)]
struct PrefetchRange {
    from: GroupPointers,
    /// Cache lines of quants for each block, starting with `first_line`.
    lines: usize,
    first_line: usize,
    /// Groups whose scales are prefetched with each block.
    scales: usize,
}

impl PrefetchRange {
    /// Prefetches the share of block `block`.
    #[inline(always)]
    unsafe fn prefetch_block<S: Simd, const FORMAT: u8>(&self, block: usize) {
        // SAFETY: as [`Simd`]'s; the address of a prefetch need not be valid.
        unsafe {
            for line in 0..self.lines {
                let at = self.first_line + block * self.lines + line;
                S::prefetch(self.from.quants.wrapping_add(at * LINE));
            }
            if self.scales == 0 {
                return;
            }
            let at = block * self.scales * LANES;
            if is_super(FORMAT) {
                S::prefetch(self.from.fine.wrapping_add(at * 2));
            } else {
                S::prefetch(self.from.scales.wrapping_add(at).cast());
                if has_min(FORMAT) {
                    S::prefetch(self.from.mins.wrapping_add(at).cast());
                }
            }
        }
    }
}

/// What a tile prefetches for the tiles after it: from `now` with each block before `switch`, and from
/// `later` after that.
#[derive(Clone, Copy)]
pub(super) struct WeightPrefetch {
    now: PrefetchRange,
    switch: usize,
    later: PrefetchRange,
}

impl WeightPrefetch {
    /// For tile `index` of `tiles`: its share of the groups from `after` on, or of the next matrix.
    #[inline(always)]
    pub(super) fn for_tile<S: Simd>(
        part: &Part<'_>,
        after: usize,
        index: usize,
        tiles: usize,
    ) -> Self {
        let blocks = part.weights.cols / BLOCK;
        let (weights, group, end) = match part.next {
            Some((next, group)) if after == part.groups.end => (next, group, next.groups()),
            _ => (part.weights, after, part.groups.end),
        };
        let groups = (end - group).min(S::TILE.1);
        let all = groups * (weights.cols / BLOCK) * weights.format.step_bytes() / LINE;
        let lines = all.div_ceil(tiles * blocks.max(1));
        let first_line = index * lines * blocks;
        let same = weights.format == part.weights.format;
        let now = PrefetchRange {
            from: GroupPointers::of(weights, group),
            lines: if first_line < all { lines } else { 0 },
            first_line,
            scales: if index == 0 && same { groups } else { 0 },
        };
        Self {
            now,
            switch: blocks,
            later: now,
        }
    }

    /// For a tile of one group whose weights are read once: the same stream, [`DISTANCE`] blocks ahead;
    /// past the end of the part, the start of the next matrix.
    #[inline(always)]
    pub(super) fn stream(part: &Part<'_>, group: usize) -> Self {
        let format = part.weights.format;
        let remaining = (part.groups.end - group) * (part.weights.cols / BLOCK);
        let now = PrefetchRange {
            from: GroupPointers::of(part.weights, group).skip(format, DISTANCE),
            lines: format.step_bytes() / LINE,
            first_line: 0,
            scales: 1,
        };
        let switch = remaining.saturating_sub(DISTANCE);
        let later = match part.next {
            Some((next, group)) if next.format == format => PrefetchRange {
                from: GroupPointers::of(next, group).skip(format, switch + DISTANCE - remaining),
                ..now
            },
            _ => PrefetchRange {
                lines: 0,
                scales: 0,
                ..now
            },
        };
        Self { now, switch, later }
    }

    /// Prefetches the share of block `block`.
    #[inline(always)]
    pub(super) unsafe fn prefetch_block<S: Simd, const FORMAT: u8>(&self, block: usize) {
        // SAFETY: as this function's.
        unsafe {
            if block < self.switch {
                self.now.prefetch_block::<S, FORMAT>(block);
            } else {
                self.later.prefetch_block::<S, FORMAT>(block - self.switch);
            }
        }
    }
}
