//! The arithmetic of the native CPU forward pass: quantised matrix products, attention over paged keys
//! and values, and the vector operations between them.
//!
//! [`Kernels`] is the entry point: chosen once for the processor, then safe methods on slices.
//! [`PackedMatrix`] holds a weight matrix, [`KvMemory`] the keys and values, [`Pool`] the threads.
//!
//! **Bit-identical results.** Every output element is a fixed sequence of IEEE 754 operations, written
//! in `product`, `vector` and `attention` over sixteen abstract lanes (`simd::Simd`). Batch size,
//! prefill chunks, thread count and processor only decide which elements are computed together. So
//! results are equal to the last bit, and the tests compare bits.

#![expect(
    clippy::needless_range_loop,
    reason = "the compiler keeps tiles in registers where loops have constant bounds"
)]

mod activations;
mod aligned;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod ceiling;
mod dispatch;
mod gguf;
mod group;
mod half;
mod kv_memory;
mod kv_prefetch;
pub mod memory;
mod multiply;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod parallel;
mod plan;
mod pool;
mod product;
mod quant;
mod reserved;
mod scalar;
mod scratch;
mod simd;
mod softmax;
mod swiglu;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod vector;
mod weight_prefetch;
#[cfg_attr(
    not(any(test, target_arch = "x86_64")),
    expect(dead_code, reason = "only x86-64 has paired products")
)]
mod winograd;

pub use activations::ActivationBlock;
pub use attention::{Query, SPAN};
pub use ceiling::{CeilingError, Ceilings, Clock, measure as measure_ceilings};
pub use dispatch::{Isa, Kernels};
pub use gguf::WeightType;
pub use kv_memory::{KvLayer, KvLayout, KvMemory, KvShape, PAGE, SlotMapping};
pub use kv_prefetch::KvPrefetch;
pub use multiply::{Matrices, Product, Swiglu};
pub use pack::{Format, PackError, PackedMatrix, PackedParts};
pub use parallel::RowsMut;
pub use plan::{AttentionPart, AttentionPlan, KvSpan};
pub use pool::{Pool, share};
pub use product::{Input, SEGMENTS, segment_columns};
pub use quant::BLOCK;
pub use softmax::WEIGHT_ONE;

use kv_memory::Writing;
use pack::Shared;

/// Minimum numbers of keys, and of values, for a part: about a microsecond of work.
const WRITE_WORK: usize = 2048;

/// Maximum parts per thread.
const WRITE_PARTS: usize = 4;

impl Kernels {
    /// Quantises `values`, `[tokens, cols]`, into `blocks`, `[tokens, cols / 32]`.
    ///
    /// # Panics
    /// If the lengths do not match.
    #[inline]
    pub fn quantize(self, values: &[f32], blocks: &mut [ActivationBlock]) {
        assert_eq!(values.len(), blocks.len() * BLOCK);
        // SAFETY: this processor has the features (`Kernels::of`); the lengths were checked.
        unsafe { (self.table.quantize)(values, blocks) }
    }

    /// `out = x / sqrt(mean(x²) + epsilon) · weight`, for one token or one head.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn rms_norm(self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len());
        // SAFETY: this processor has the features; the lengths were checked.
        unsafe { (self.table.rms_norm)(x, weight, epsilon, out) }
    }

    /// `x += y`.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn add(self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: this processor has the features; the lengths were checked.
        unsafe { (self.table.add)(x, y) }
    }

    /// Rotates the pairs `(x[i], x[i + n])` of one head by `n` angles, given as cosines and sines. This
    /// is the GPT-NeoX order (Qwen, and Llama as safetensors); rows in the other order are permuted at
    /// load.
    ///
    /// # Panics
    /// If there are more angles than pairs.
    #[inline]
    pub fn rope_neox(self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(cos.len() == sin.len() && x.len() >= 2 * cos.len());
        // SAFETY: this processor has the features; the lengths were checked.
        unsafe { (self.table.rope_neox)(x, cos, sin) }
    }

    /// Writes the keys and values of some tokens to one layer. Both are `[tokens, kv_heads,
    /// head_size]`.
    ///
    /// # Panics
    /// If a slot is out of range, or the lengths do not match.
    pub fn write_kv(
        self,
        pool: &Pool,
        memory: &mut KvMemory,
        layer: usize,
        slots: &SlotMapping,
        keys: &[f32],
        values: &[f32],
    ) {
        let shape = memory.shape;
        let last_page = slots.last_page();
        assert!(
            last_page.is_none_or(|page| (page as usize) < memory.pages()),
            "no such page"
        );
        let slots = slots.as_slice();
        let width = shape.kv_heads * shape.head_size;
        let numbers = slots.len() * width;
        assert!(keys.len() == numbers && values.len() == numbers);
        let stride = memory.stride();
        let at = memory.layer_at(layer);
        let pages = Shared::new(&mut memory.numbers[at..]);
        let parts = (numbers / WRITE_WORK).min(slots.len());
        let parts = parts.clamp(1, WRITE_PARTS * pool.threads());
        pool.run(parts, |part| {
            let tokens = share(part, parts, slots.len());
            let numbers = tokens.start * width..tokens.end * width;
            let writing = Writing {
                shape,
                layer: pages.get(),
                stride,
                slots: &slots[tokens],
                keys: &keys[numbers.clone()],
                values: &values[numbers],
            };
            // SAFETY: this processor has the features; slots and lengths were checked; the memory is
            // borrowed mutably, and no two tokens share a slot.
            unsafe { (self.table.write)(&writing) }
        });
    }
}
