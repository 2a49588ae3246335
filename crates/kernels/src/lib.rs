//! The arithmetic of the native CPU forward: products of quantised weights, attention over paged keys
//! and values, and the vector operations between them.
//!
//! [`Kernels`] is the way in: chosen once for the processor, then safe methods on slices.
//! [`PackedMatrix`] holds a weight matrix, [`KvMemory`] the keys and values, [`Pool`] the threads.
//!
//! **One result.** Every output element is a fixed sequence of IEEE 754 operations, written in `product`,
//! `vector` and `attention` over sixteen abstract lanes ([`simd::Simd`]). The size of the batch, the
//! chunks of a prefill, the number of threads and the processor choose only which elements are computed
//! together. So results are equal to the last bit, and the tests ask for just that.

// Tiles are loops over small constants, which become registers; iterators would hide that.
#![allow(clippy::needless_range_loop)]

mod activations;
mod aligned;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod ceiling;
mod dispatch;
mod gated;
mod gguf;
mod half;
mod kv_memory;
#[cfg(test)]
mod measure;
pub mod memory;
mod multiply;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
#[cfg_attr(
    not(any(test, target_arch = "x86_64")),
    allow(dead_code, reason = "no family of this architecture pairs")
)]
mod paired;
mod parallel;
mod plan;
mod pool;
mod product;
mod reserved;
mod room;
mod scalar;
mod simd;
mod soon;
#[cfg(test)]
mod tests;
mod vector;

#[cfg(test)]
use std::ops::Range;

pub use activations::{ActivationBlock, BLOCK};
pub use attention::{Query, SPAN};
pub use ceiling::{CeilingError, Ceilings, Clock, measure as measure_ceilings};
pub use dispatch::{Isa, Kernels};
pub use gguf::WeightType;
pub use kv_memory::{KvLayer, KvMemory, KvShape, PAGE, Places};
pub use multiply::{Gated, Matrices, Product};
pub use pack::{Format, PackError, PackedMatrix};
pub use parallel::none;
pub use plan::{AttentionPart, AttentionPlan, Look};
pub use pool::{Pool, share};
pub use product::Input;
pub use soon::Soon;

#[cfg(test)]
use attention::{Call, Running};
#[cfg(test)]
use gated::Gating;
use kv_memory::Writing;
use pack::Shared;

/// Attention of some queries to one KV head: what the properties of the kernels are tested by. A forward
/// pass cuts its attention by an [`AttentionPlan`].
#[cfg(test)]
#[derive(Clone)]
pub(crate) struct Attention<'a> {
    /// The layer's keys and values.
    pub(crate) layer: KvLayer<'a>,
    /// Which of its heads.
    pub(crate) kv_head: usize,
    /// Page `i` holds positions `16 i..16 (i + 1)`.
    pub(crate) pages: &'a [u32],
    /// The queries. They may belong to different sequences where these share the pages.
    pub(crate) queries: &'a [Query],
    /// Multiplies the scores: 1 / √head_size.
    pub(crate) scale: f32,
    /// All the queries' numbers.
    pub(crate) input: &'a [f32],
}

/// Numbers of keys, and of values, that a part writes at the least: about a microsecond's.
const WRITE_WORK: usize = 2048;

/// Parts a thread that writing is cut into at most.
const WRITE_PARTS: usize = 4;

impl Kernels {
    /// Quantises `values`, `[tokens, cols]`, into `blocks`, `[tokens, cols / 32]`.
    ///
    /// # Panics
    /// Where the lengths do not fit.
    pub fn quantize(self, values: &[f32], blocks: &mut [ActivationBlock]) {
        assert_eq!(values.len(), blocks.len() * BLOCK);
        // SAFETY: this processor is able (`Kernels::of`); the lengths were checked.
        unsafe { (self.table.quantize)(values, blocks) }
    }

    /// `out = x / sqrt(mean(x²) + epsilon) · weight`, for one token or one head.
    ///
    /// # Panics
    /// Where the lengths differ.
    pub fn rms_norm(self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len());
        // SAFETY: this processor is able; the lengths were checked.
        unsafe { (self.table.rms_norm)(x, weight, epsilon, out) }
    }

    /// `x += y`.
    ///
    /// # Panics
    /// Where the lengths differ.
    pub fn add(self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: this processor is able; the lengths were checked.
        unsafe { (self.table.add)(x, y) }
    }

    /// `gate = silu(gate) · up`.
    ///
    /// # Panics
    /// Where the lengths differ.
    #[cfg(test)]
    pub(crate) fn silu_mul(self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        let mut up = up.to_vec();
        let part = Gating {
            gate: gate.as_mut_ptr(),
            up: up.as_mut_ptr(),
            width: up.len(),
            gate_bias: None,
            up_bias: None,
            blocks: None,
            rows: 0..up.len(),
            tokens: 0..1,
        };
        // SAFETY: this processor is able; the lengths were checked.
        unsafe { (self.table.gate)(&part) }
    }

    /// Rotates the pairs `(x[i], x[i + n])` of one head by `n` angles, given as cosines and sines: the
    /// order of GPT-NeoX (Qwen, and Llama as safetensors). Rows in the other order are moved when they
    /// are loaded.
    ///
    /// # Panics
    /// Where there are more angles than pairs.
    pub fn rope_neox(self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(cos.len() == sin.len() && x.len() >= 2 * cos.len());
        // SAFETY: this processor is able; the lengths were checked.
        unsafe { (self.table.rope_neox)(x, cos, sin) }
    }

    /// Writes tokens' keys and values in one layer, `[tokens, kv_heads, head_size]` each, to their places.
    ///
    /// # Panics
    /// Where there is no such place, or the lengths do not fit.
    pub fn write_kv(
        self,
        pool: &Pool,
        memory: &mut KvMemory,
        layer: usize,
        places: &Places,
        keys: &[f32],
        values: &[f32],
    ) {
        let shape = memory.shape;
        let last_page = places.last_page();
        assert!(
            last_page.is_none_or(|page| (page as usize) < memory.pages()),
            "no such page"
        );
        let places = places.as_slice();
        let width = shape.kv_heads * shape.head_size;
        let numbers = places.len() * width;
        assert!(keys.len() == numbers && values.len() == numbers);
        let stride = memory.stride();
        let at = memory.layer_at(layer);
        let pages = Shared::new(&mut memory.numbers[at..]);
        let parts = (numbers / WRITE_WORK).min(places.len());
        let parts = parts.clamp(1, WRITE_PARTS * pool.threads());
        pool.run(parts, |part| {
            let tokens = share(part, parts, places.len());
            let numbers = tokens.start * width..tokens.end * width;
            let writing = Writing {
                shape,
                layer: pages.get(),
                stride,
                places: &places[tokens],
                keys: &keys[numbers.clone()],
                values: &values[numbers],
            };
            // SAFETY: this processor is able; places and lengths were checked; the memory is
            // borrowed for writing, and no two tokens have one place.
            unsafe { (self.table.write)(&writing) }
        });
    }

    /// Attends to the positions, in these steps: the results.
    ///
    /// They have the same bits however the positions are split into steps, as long as each split is at
    /// a multiple of [`SPAN`], and whatever the company of the query.
    ///
    /// # Panics
    /// Where the shapes do not fit.
    #[cfg(test)]
    pub(crate) fn attend(
        self,
        attention: &Attention<'_>,
        steps: &[Range<usize>],
        output: &mut [f32],
    ) {
        let mut state = vec![Running::default(); attention.queries.len()];
        self.check(attention, steps, output.len(), state.len());
        let shape = attention.layer.shape();
        room::with(shape.room_len(state.len()), |room| {
            let mut call = Call {
                layer: attention.layer,
                kv_head: attention.kv_head,
                pages: attention.pages,
                positions: 0..0,
                queries: attention.queries,
                next: &[],
                scale: attention.scale,
                input: attention.input,
                output: output.as_mut_ptr(),
                state: state.as_mut_ptr(),
                room,
            };
            // SAFETY: this processor is able; `check` has compared all that the call names; output
            // and state are borrowed for writing, and the room is the thread's own.
            unsafe {
                (self.table.prepare)(&call);
                for step in steps {
                    call.positions = step.clone();
                    (self.table.attend)(&call);
                }
                (self.table.finish)(&call);
            }
        });
    }

    /// What [`Kernels::attend`] relies on.
    #[cfg(test)]
    fn check(self, attention: &Attention<'_>, steps: &[Range<usize>], output: usize, state: usize) {
        let shape = attention.layer.shape();
        assert!(attention.kv_head < shape.kv_heads);
        for positions in steps {
            assert!(positions.start.is_multiple_of(SPAN));
            let pages = positions.end.div_ceil(PAGE);
            assert!(pages <= attention.pages.len(), "too few pages");
        }
        let known = attention.layer.pages();
        assert!(attention.pages.iter().all(|page| (*page as usize) < known));
        for query in attention.queries {
            let end = query.at + shape.head_size;
            assert!(end <= attention.input.len() && end <= output && query.state < state);
        }
    }
}
