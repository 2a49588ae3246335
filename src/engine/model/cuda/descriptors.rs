//! What the kernels read, field by field as `engine/cuda/kernels/*.h` declare it.

use crate::engine::cuda::driver::Plain;
use crate::engine::kernels::ActivationBlock;
use crate::engine::sampler::SamplingParameters;

/// A packed matrix on the device: `Matrix` in `matrix.h`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Matrix {
    pub(super) quants: u64,
    pub(super) scales: u64,
    pub(super) mins: u64,
    pub(super) fine: u64,
    pub(super) bias: u64,
    pub(super) output: u64,
    pub(super) rows: u32,
    pub(super) cols: u32,
    pub(super) format: u32,
    pub(super) first_group: u32,
}

/// Products of one input: `Products` in `product.h`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Products {
    pub(super) matrices: [Matrix; 3],
    pub(super) count: u32,
    pub(super) unused: [u32; 3],
}

/// Keys and values of a layer: `Kv` in `pass.h`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Kv {
    pub(super) layer: u64,
    pub(super) page_numbers: u64,
    pub(super) kv_heads: u32,
    pub(super) head_size: u32,
    pub(super) head_numbers: u32,
    pub(super) values_at: u32,
    pub(super) value_stride: u32,
    pub(super) key_pairs: u32,
    pub(super) query_limit: f32,
    pub(super) scale: f32,
}

/// Norms of heads and the rotary embedding: `Heads` in `vector.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Heads {
    pub(super) query_norm: u64,
    pub(super) key_norm: u64,
    pub(super) cos: u64,
    pub(super) sin: u64,
    pub(super) heads: u32,
    pub(super) pairs: u32,
    pub(super) epsilon: f32,
    pub(super) unused: u32,
}

/// How a row of logits is sampled: `Request` in `sampling.cu`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Request {
    pub(super) share: u64,
    pub(super) random: u64,
    pub(super) inverse_temperature: f32,
    pub(super) top_k: u32,
    pub(super) greedy: u32,
    pub(super) row: u32,
}

impl Request {
    /// `None`: the highest logit.
    pub(super) fn new(row: usize, sampling: Option<SamplingParameters>) -> Self {
        let row = row as u32;
        match sampling {
            None => Self {
                greedy: 1,
                row,
                ..Self::default()
            },
            Some(sampling) => Self {
                share: sampling.share,
                random: sampling.random,
                inverse_temperature: sampling.inverse_temperature,
                top_k: sampling.top_k,
                greedy: 0,
                row,
            },
        }
    }

    /// As the words of an upload.
    pub(super) fn words(self) -> [u32; REQUEST_WORDS] {
        let low = |long: u64| long as u32;
        let high = |long: u64| (long >> 32) as u32;
        [
            low(self.share),
            high(self.share),
            low(self.random),
            high(self.random),
            self.inverse_temperature.to_bits(),
            self.top_k,
            self.greedy,
            self.row,
        ]
    }
}

/// Words of a [`Request`].
pub(super) const REQUEST_WORDS: usize = size_of::<Request>() / size_of::<u32>();

// SAFETY: 48 bytes of integers and floats without padding, and any bits are valid.
unsafe impl Plain for ActivationBlock {}
// SAFETY: integers and floats without padding, and any bits are valid.
unsafe impl Plain for Matrix {}
// SAFETY: as above.
unsafe impl Plain for Products {}
// SAFETY: as above.
unsafe impl Plain for Kv {}
// SAFETY: as above.
unsafe impl Plain for Heads {}

const _: () = assert!(size_of::<ActivationBlock>() == 48);
const _: () = assert!(size_of::<Matrix>() == 64 && size_of::<Products>() == 208);
const _: () =
    assert!(size_of::<Kv>() == 48 && size_of::<Heads>() == 48 && size_of::<Request>() == 32);
