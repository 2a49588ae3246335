//! Attention of few tokens with long contexts, in three launches: every span of 64 positions is computed beside
//! the others, and their parts are joined in their order. The bits are those of one launch.

use super::super::Chunk;
use crate::engine::cuda::driver::{Buffer, Gpu, GpuError};
use crate::engine::kernels::{KvShape, SPAN};

/// As in `attention.h`.
const LANES: usize = 16;
const SPAN_PAGES: usize = 4;

/// Contexts of fewer spans take one launch: two more cost more than they save, by `scripts/gpu_model.py`.
pub(super) const FEWEST_SPANS: usize = 9;

/// Bytes that the launches may hand over; longer contexts take one launch.
const MOST_BYTES: usize = 256 << 20;

/// How a pass's attention is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Split {
    /// Spans of the longest context, rounded up to a power of two: graphs are recorded for each.
    pub(super) spans: usize,
}

impl Split {
    /// How to split a pass of `rows` rows (with padding), if it should be split: only decode passes whose blocks leave
    /// half of the multiprocessors idle, of at least `fewest` spans, or a third, of twice as many.
    pub(super) fn of(
        chunks: &[Chunk<'_>],
        rows: usize,
        shape: KvShape,
        group: usize,
        multiprocessors: usize,
        fewest: usize,
    ) -> Option<Self> {
        let decodes = chunks.iter().all(|chunk| chunk.tokens.len() == 1);
        let longest = chunks.iter().map(|chunk| chunk.start + 1).max()?;
        let spans = longest.div_ceil(SPAN);
        let blocks = rows * shape.kv_heads;
        let fewest = match multiprocessors {
            all if 2 * blocks <= all => fewest,
            all if 3 * blocks <= 2 * all => 2 * fewest,
            _ => return None,
        };
        let split = Self {
            spans: spans.next_power_of_two(),
        };
        let fits = rows * split.floats(shape, group) * size_of::<f32>() <= MOST_BYTES;
        (decodes && fits && spans >= fewest).then_some(split)
    }

    /// Floats that the launches hand over for a token: `span_of` in `split.cu`.
    pub(super) fn floats(self, shape: KvShape, group: usize) -> usize {
        let columns = shape.layout().value_stride;
        let heads = group * (SPAN + LANES + SPAN_PAGES * columns);
        self.spans * shape.kv_heads * (heads + 3 * LANES)
    }
}

/// What the launches hand over.
pub(super) struct Room {
    floats: usize,
    pub(super) buffer: Buffer<f32>,
}

impl Room {
    /// No room yet.
    pub(super) fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Ok(Self {
            floats: 1,
            buffer: gpu.allocate(1)?,
        })
    }

    /// Makes room for `rows` rows. Returns whether the buffer is another one: graphs hold its address.
    pub(super) fn ensure(
        &mut self,
        gpu: &Gpu,
        split: Split,
        rows: usize,
        shape: KvShape,
        group: usize,
    ) -> Result<bool, GpuError> {
        let floats = rows * split.floats(shape, group);
        if floats <= self.floats {
            return Ok(false);
        }
        self.buffer = gpu.allocate(floats)?;
        self.floats = floats;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::model::Slot;

    #[test]
    fn only_long_decode_passes_of_few_rows_are_split() {
        let shape = KvShape {
            kv_heads: 3,
            head_size: 64,
        };
        let split = |start, tokens: &[u32], rows| {
            let chunk = Chunk {
                slot: Slot(0),
                pages: &[],
                tokens,
                start,
                logits: true,
            };
            Split::of(&[chunk], rows, shape, 3, 132, 3)
        };
        assert_eq!(split(127, &[1], 1), None, "two spans");
        assert_eq!(split(128, &[1], 1), Some(Split { spans: 4 }));
        assert_eq!(split(300, &[1], 22), Some(Split { spans: 8 }));
        assert_eq!(split(300, &[1], 23), None, "busy, and not long");
        assert_eq!(split(320, &[1], 29), Some(Split { spans: 8 }));
        assert_eq!(split(320, &[1], 30), None, "busier");
        assert_eq!(split(300, &[1, 2], 1), None, "a prompt");
        assert_eq!(split(1 << 24, &[1], 1), None, "too much to hand over");
    }
}
