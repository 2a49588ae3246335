//! Entry points for tests: single steps that a forward pass only runs combined.

use std::ops::Range;

use super::attention::{AttentionTile, Query, Running, SPAN};
use super::kv_memory::{KvLayer, PAGE};
use super::swiglu::SwigluPart;
use super::{Kernels, scratch};

/// Attention of some queries to one KV head. A forward pass uses an
/// [`AttentionPlan`](super::AttentionPlan) instead.
#[derive(Clone)]
pub(crate) struct Attention<'a> {
    pub(crate) layer: KvLayer<'a>,
    pub(crate) kv_head: usize,
    /// Page `i` holds positions `16 i..16 (i + 1)`.
    pub(crate) pages: &'a [u32],
    /// May belong to different sequences that share the pages.
    pub(crate) queries: &'a [Query],
    /// Multiplies the scores: 1 / √head_size.
    pub(crate) scale: f32,
    /// The values of all queries.
    pub(crate) input: &'a [f32],
}

impl Kernels {
    /// `gate = silu(gate) · up`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(crate) fn silu_mul(self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        let mut up = up.to_vec();
        let part = SwigluPart {
            gate: gate.as_mut_ptr(),
            up: up.as_mut_ptr(),
            width: up.len(),
            gate_bias: None,
            up_bias: None,
            blocks: None,
            rows: 0..up.len(),
            tokens: 0..1,
        };
        // SAFETY: this processor has the features; the lengths were checked.
        unsafe { (self.table.swiglu)(&part) }
    }

    /// Attends to the positions, one of these steps after the other.
    ///
    /// The results have the same bits however the positions are split into steps, as long as each split
    /// is at a multiple of [`SPAN`], and whatever other queries are computed along.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub(crate) fn attend(
        self,
        attention: &Attention<'_>,
        steps: &[Range<usize>],
        output: &mut [f32],
    ) {
        let mut state = vec![Running::default(); attention.queries.len()];
        self.check(attention, steps, output.len(), state.len());
        let shape = attention.layer.shape();
        scratch::with(shape.scratch_len(state.len()), |scratch| {
            let mut tile = AttentionTile {
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
                scratch,
            };
            // SAFETY: this processor has the features; `check` has validated the tile's ranges; output
            // and state are borrowed mutably, and the scratch is the thread's own.
            unsafe {
                (self.table.prepare)(&tile);
                for step in steps {
                    tile.positions = step.clone();
                    (self.table.attend)(&tile);
                }
                (self.table.finish)(&tile);
            }
        });
    }

    /// Panics unless the shapes are as [`Kernels::attend`] needs them.
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
