//! Cosines and sines of the rotary embedding, computed on the host.

use crate::engine::kernels::Kernels;
use crate::engine::memory::{self, OutOfMemory};

/// Initial positions of the rotation table; it grows with the sequences.
const FIRST_POSITIONS: usize = 1024;

/// Cosines and sines of the rotary embedding, for every position so far.
pub(in crate::engine::model) struct Rotation {
    /// `[pairs]`, in radians per position.
    frequencies: Vec<f32>,
    /// `[positions, pairs]`.
    pub(in crate::engine::model) cos: Vec<f32>,
    /// `[positions, pairs]`.
    pub(in crate::engine::model) sin: Vec<f32>,
}

impl Rotation {
    /// Empty tables. `frequencies`: what each pair of a head turns by from one position to the next, in
    /// radians.
    pub(in crate::engine::model) fn new(frequencies: Vec<f32>) -> Self {
        Self {
            frequencies,
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Extends the tables to at least `positions` positions.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(in crate::engine::model) fn ensure_capacity(
        &mut self,
        positions: usize,
    ) -> Result<(), OutOfMemory> {
        let pairs = self.frequencies.len();
        let have = self.cos.len() / pairs;
        if positions <= have {
            return Ok(());
        }
        let reach = positions.next_power_of_two().max(FIRST_POSITIONS);
        for table in [&mut self.cos, &mut self.sin] {
            memory::ensure_capacity(table, reach * pairs)?;
        }
        for position in have..reach {
            for frequency in &self.frequencies {
                let angle = position as f32 * frequency;
                self.cos.push(angle.cos());
                self.sin.push(angle.sin());
            }
        }
        Ok(())
    }

    /// Cosines and sines, `[positions, pairs]`.
    pub(in crate::engine::model) fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    pub(in crate::engine::model) fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Rotates a head of size `2 · pairs`. The tables must hold the position.
    pub(super) fn rotate(&self, kernels: Kernels, head: &mut [f32], position: usize) {
        let pairs = self.frequencies.len();
        let row = position * pairs..(position + 1) * pairs;
        kernels.rope_neox(head, &self.cos[row.clone()], &self.sin[row]);
    }
}
