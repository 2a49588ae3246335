//! SwiGLU, a part of a product at a time. `silu(gate) · up` and its quantisation directly follow the
//! products of the same rows and tokens, while these are in the caches of the core that computed them.

use std::ops::Range;

use super::activations::{self, ActivationBlock};
use super::quant::BLOCK;
use super::simd::Simd;
use super::vector;

pub(super) struct SwigluPart<'a> {
    /// `[tokens, width]`; overwritten with `silu(gate) · up`.
    pub(super) gate: *mut f32,
    /// `[tokens, width]`.
    pub(super) up: *mut f32,
    pub(super) width: usize,
    /// `[width]`, added to `gate`.
    pub(super) gate_bias: Option<&'a [f32]>,
    pub(super) up_bias: Option<&'a [f32]>,
    /// `[tokens, width / 32]`, if the result is to be quantised: then the rows are whole blocks.
    pub(super) blocks: Option<*mut ActivationBlock>,
    pub(super) rows: Range<usize>,
    pub(super) tokens: Range<usize>,
}

/// Tokens that are computed, and then quantised, together.
const TOGETHER: usize = 4;

/// How many tokens ahead of the stores to prefetch.
const AHEAD: usize = 8;

/// # Safety
/// As [`Simd`]'s; rows and tokens are within gate, up, biases and blocks, and nobody else uses them.
#[inline(always)]
pub(super) unsafe fn swiglu<S: Simd>(part: &SwigluPart<'_>) {
    let mut token = part.tokens.start;
    while token < part.tokens.end {
        let together = TOGETHER.min(part.tokens.end - token);
        // SAFETY: as this function's.
        unsafe {
            for token in token..token + together {
                swiglu_token::<S>(part, token);
            }
            if let Some(blocks) = part.blocks {
                let stride = part.width / BLOCK;
                for block in part.rows.start / BLOCK..part.rows.end / BLOCK {
                    let at = token * stride + block;
                    let values = part.gate.add(at * BLOCK);
                    let blocks = blocks.add(at);
                    activations::quantize_strided::<S>(values, blocks, together, stride, AHEAD);
                }
            }
        }
        token += together;
    }
}

#[inline(always)]
unsafe fn swiglu_token<S: Simd>(part: &SwigluPart<'_>, token: usize) {
    let rows = part.rows.clone();
    let at = token * part.width + rows.start;
    // SAFETY: as `swiglu`'s.
    unsafe {
        let gate = std::slice::from_raw_parts_mut(part.gate.add(at), rows.len());
        let up = std::slice::from_raw_parts_mut(part.up.add(at), rows.len());
        if let Some(bias) = part.gate_bias {
            vector::add::<S>(gate, &bias[rows.clone()]);
        }
        if let Some(bias) = part.up_bias {
            vector::add::<S>(up, &bias[rows]);
        }
        vector::silu_mul::<S>(gate, up);
    }
}
