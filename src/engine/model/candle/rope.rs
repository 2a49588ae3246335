//! Rotary position embedding: tables of cosines and sines by position.
//!
//! All models use one kind of rotation: dimension `i` of a head is paired with dimension `i +
//! head_size / 2` (NEOX style, as in Hugging Face). GGUF files of the architecture `llama` store
//! the rows of their query and key matrices in another order, which pairs neighbours. The rows are
//! permuted back when they are loaded (`source.rs`).

use candle_core::{Result, Tensor};

use super::CPU;
use crate::engine::memory;

/// Initial number of positions in the table. The table grows at least twofold when a sequence
/// exceeds it.
const FIRST_ROWS: usize = 1024;

/// Cosines and sines by position.
pub(super) struct Rope {
    /// Rotation of dimension pair `i` per position, in radians; 0 for pairs that are not rotated.
    frequencies: Vec<f32>,
    context_length: usize,
    /// Both `[positions so far, head_size / 2]`.
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// `frequencies`: rotation of each pair per position, in radians.
    pub(super) fn new(frequencies: Vec<f32>, context_length: usize) -> Result<Self> {
        let rows = FIRST_ROWS.min(context_length);
        let (cos, sin) = table(&frequencies, rows)?;
        Ok(Self {
            frequencies,
            context_length,
            cos,
            sin,
        })
    }

    /// Cosines and sines for tokens at these positions, `[tokens, head_size / 2]` each.
    pub(super) fn rows(&mut self, positions: &[u32]) -> Result<(Tensor, Tensor)> {
        let needed = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let have = self.cos.dim(0)?;
        if needed > have {
            let rows = needed.max(2 * have).min(self.context_length);
            (self.cos, self.sin) = table(&self.frequencies, rows)?;
        }
        let positions = Tensor::new(positions, CPU)?;
        Ok((
            self.cos.index_select(&positions, 0)?,
            self.sin.index_select(&positions, 0)?,
        ))
    }
}

/// Angles are computed in f32, as in training.
fn table(frequencies: &[f32], rows: usize) -> Result<(Tensor, Tensor)> {
    let count = rows.saturating_mul(frequencies.len());
    memory::probe(count.saturating_mul(2 * size_of::<f32>())).map_err(candle_core::Error::wrap)?;
    let mut cos = Vec::with_capacity(count);
    let mut sin = Vec::with_capacity(count);
    for position in 0..rows {
        for frequency in frequencies {
            let (s, c) = (position as f32 * frequency).sin_cos();
            cos.push(c);
            sin.push(s);
        }
    }
    let shape = (rows, frequencies.len());
    Ok((
        Tensor::from_vec(cos, shape, CPU)?,
        Tensor::from_vec(sin, shape, CPU)?,
    ))
}
