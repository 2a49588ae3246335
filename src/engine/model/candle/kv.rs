//! Keys and values of every open sequence, on the device.

use candle_core::{DType, Device, Result, Tensor};

use crate::engine::model::{ModelSpec, Slot};

/// Tokens that a sequence has room for at first. The room doubles when it is full.
const FIRST_CAPACITY: usize = 256;

/// The keys and values of all sequences. A closed sequence's memory goes to the next one opened.
pub(super) struct KvCache {
    layers: usize,
    kv_heads: usize,
    head_size: usize,
    context_length: usize,
    dtype: DType,
    device: Device,
    sequences: Vec<Sequence>,
    /// Closed sequences; the last closed is taken first.
    free: Vec<usize>,
}

struct Sequence {
    open: bool,
    /// Tokens computed.
    length: usize,
    /// Tokens that there is room for.
    capacity: usize,
    /// Keys and values of each layer: `[kv_heads, capacity, head_size]`, so that a head's are one
    /// block for the attention products.
    layers: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    pub(super) fn new(spec: &ModelSpec, dtype: DType, device: &Device) -> Self {
        Self {
            layers: spec.layers,
            kv_heads: spec.kv_heads,
            head_size: spec.head_size,
            context_length: spec.context_length,
            dtype,
            device: device.clone(),
            sequences: Vec::new(),
            free: Vec::new(),
        }
    }

    /// How many sequences are open.
    pub(super) fn open_count(&self) -> usize {
        self.sequences.len() - self.free.len()
    }

    /// Opens an empty sequence.
    pub(super) fn open(&mut self) -> Slot {
        let index = self.free.pop().unwrap_or_else(|| {
            self.sequences.push(Sequence {
                open: false,
                length: 0,
                capacity: 0,
                layers: Vec::new(),
            });
            self.sequences.len() - 1
        });
        let sequence = &mut self.sequences[index];
        sequence.open = true;
        sequence.length = 0;
        Slot(index)
    }

    /// Forgets a sequence; one that is not open is let be.
    pub(super) fn close(&mut self, slot: Slot) {
        if let Some(sequence) = self.sequences.get_mut(slot.0).filter(|found| found.open) {
            sequence.open = false;
            self.free.push(slot.0);
        }
    }

    /// How many tokens of the sequence were computed; `None` where it is not open.
    pub(super) fn length(&self, slot: Slot) -> Option<usize> {
        let sequence = self.sequences.get(slot.0)?;
        sequence.open.then_some(sequence.length)
    }

    /// Makes room for `length` tokens, at most the context.
    pub(super) fn reserve(&mut self, slot: Slot, length: usize) -> Result<()> {
        let sequence = &mut self.sequences[slot.0];
        if length <= sequence.capacity {
            return Ok(());
        }
        let capacity = length
            .max(2 * sequence.capacity)
            .max(FIRST_CAPACITY)
            .min(self.context_length);
        let empty = || {
            Tensor::zeros(
                (self.kv_heads, capacity, self.head_size),
                self.dtype,
                &self.device,
            )
        };
        if sequence.layers.is_empty() {
            let layers: Result<Vec<_>> =
                (0..self.layers).map(|_| Ok((empty()?, empty()?))).collect();
            sequence.layers = layers?;
        } else {
            // One tensor at a time, so that there are never two copies of the whole sequence.
            for (keys, values) in &mut sequence.layers {
                for tensor in [keys, values] {
                    let larger = empty()?;
                    larger.slice_set(tensor, 1, 0)?;
                    *tensor = larger;
                }
            }
        }
        sequence.capacity = capacity;
        Ok(())
    }

    /// Writes the keys and values of tokens from position `start` on (`[kv_heads, tokens,
    /// head_size]`, contiguous), and returns those of all tokens up to and with them
    /// (`[kv_heads, start + tokens, head_size]`, views).
    pub(super) fn extend(
        &self,
        slot: Slot,
        layer: usize,
        start: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (all_keys, all_values) = &self.sequences[slot.0].layers[layer];
        all_keys.slice_set(keys, 1, start)?;
        all_values.slice_set(values, 1, start)?;
        let length = start + keys.dim(1)?;
        Ok((
            all_keys.narrow(1, 0, length)?,
            all_values.narrow(1, 0, length)?,
        ))
    }

    /// Says that the sequence has `length` tokens now.
    pub(super) fn advance(&mut self, slot: Slot, length: usize) {
        self.sequences[slot.0].length = length;
    }
}
