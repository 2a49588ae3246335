//! The vector operations between the matrix products, over any [`Simd`].
//!
//! Vectors may have any length. A tail of fewer than sixteen elements is processed in a padded copy, so
//! that each element (and each lane's part of a sum) sees the same operations wherever it is.

use super::simd::{LANES, Simd};

/// The sixteen elements from `at` on, padded with zeros.
#[inline(always)]
pub(super) unsafe fn load_padded<S: Simd>(values: &[f32], at: usize) -> S::F {
    // SAFETY: as the caller's; both branches read sixteen elements in bounds.
    unsafe {
        if values.len() - at >= LANES {
            S::load(values.as_ptr().add(at))
        } else {
            let mut padded = [0.0; LANES];
            padded[..values.len() - at].copy_from_slice(&values[at..]);
            S::load(padded.as_ptr())
        }
    }
}

/// Stores the lanes of `x` that fit into `values[at..]`.
#[inline(always)]
pub(super) unsafe fn store_padded<S: Simd>(values: &mut [f32], at: usize, x: S::F) {
    // SAFETY: as the caller's; both branches write sixteen elements in bounds.
    unsafe {
        if values.len() - at >= LANES {
            S::store(values.as_mut_ptr().add(at), x);
        } else {
            let mut padded = [0.0; LANES];
            S::store(padded.as_mut_ptr(), x);
            let rest = values.len() - at;
            values[at..].copy_from_slice(&padded[..rest]);
        }
    }
}

/// `out = x / sqrt(mean(x²) + epsilon) · weight`.
///
/// # Safety
/// As [`Simd`]'s; the three have the same length.
#[inline(always)]
pub(super) unsafe fn rms_norm<S: Simd>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    // SAFETY: as this function's.
    unsafe {
        let mut squares = S::splat(0.0);
        for at in (0..x.len()).step_by(LANES) {
            let x = load_padded::<S>(x, at);
            squares = S::mul_add(x, x, squares);
        }
        let mean = S::reduce_add(squares) / x.len() as f32;
        let scale = S::splat(1.0 / (mean + epsilon).sqrt());
        for at in (0..x.len()).step_by(LANES) {
            let scaled = S::mul(load_padded::<S>(x, at), scale);
            let y = S::mul(scaled, load_padded::<S>(weight, at));
            store_padded::<S>(out, at, y);
        }
    }
}

/// `x += y`.
///
/// # Safety
/// As [`Simd`]'s; both have the same length.
#[inline(always)]
pub(super) unsafe fn add<S: Simd>(x: &mut [f32], y: &[f32]) {
    // SAFETY: as this function's.
    unsafe {
        for at in (0..y.len()).step_by(LANES) {
            let sum = S::add(load_padded::<S>(x, at), load_padded::<S>(y, at));
            store_padded::<S>(x, at, sum);
        }
    }
}

/// `gate = silu(gate) · up`, where silu(x) = x / (1 + e^−x).
///
/// # Safety
/// As [`Simd`]'s; both have the same length.
#[inline(always)]
pub(super) unsafe fn silu_mul<S: Simd>(gate: &mut [f32], up: &[f32]) {
    // SAFETY: as this function's.
    unsafe {
        let one = S::splat(1.0);
        for at in (0..up.len()).step_by(LANES) {
            let x = load_padded::<S>(gate, at);
            let decay = S::exp(S::sub(S::splat(0.0), x), 88.0);
            let silu = S::div(x, S::add(one, decay));
            store_padded::<S>(gate, at, S::mul(silu, load_padded::<S>(up, at)));
        }
    }
}

/// Rotates the pairs `(x[i], x[i + half])` of a head by the angles whose cosines and sines are given
/// (`half` each): the NEOX order of rotary embeddings. Elements past the pairs stay unchanged.
///
/// # Safety
/// As [`Simd`]'s; `x` has at least `2 · cos.len()` elements, and `sin` as many as `cos`.
#[inline(always)]
pub(super) unsafe fn rope_neox<S: Simd>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    // SAFETY: as this function's.
    unsafe {
        let half = cos.len();
        let (first, rest) = x.split_at_mut(half);
        let second = &mut rest[..half];
        for at in (0..half).step_by(LANES) {
            let (c, s) = (load_padded::<S>(cos, at), load_padded::<S>(sin, at));
            let (a, b) = (load_padded::<S>(first, at), load_padded::<S>(second, at));
            let minus_b = S::sub(S::splat(0.0), b);
            store_padded::<S>(first, at, S::mul_add(minus_b, s, S::mul(a, c)));
            store_padded::<S>(second, at, S::mul_add(a, s, S::mul(b, c)));
        }
    }
}
