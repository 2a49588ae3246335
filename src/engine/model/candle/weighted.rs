//! Weighted sums of rows: attention scores times values.

use super::dense::Kernel;

/// `y[row] += Σ weights[row, i] · values[i]`, by fused multiply-adds in order, on the calling
/// thread. Rows of `weights` are `stride` values apart; `values`: `[count, width]`; `y`: `[rows,
/// width]`.
///
/// # Panics
/// If the sizes do not match.
pub(super) fn add_weighted(
    kernel: Kernel,
    weights: &[f32],
    stride: usize,
    values: &[f32],
    width: usize,
    y: &mut [f32],
) {
    let (count, rows) = (values.len() / width, y.len() / width);
    assert!(values.len() == count * width && y.len() == rows * width);
    assert!(rows == 0 || weights.len() >= (rows - 1) * stride + count);
    match kernel {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Kernel` is only created if the CPU supports it.
        Kernel::Avx512 => unsafe { avx512(weights, stride, values, width, y) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        Kernel::Avx2 => unsafe { avx2(weights, stride, values, width, y) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
fn avx512(weights: &[f32], stride: usize, values: &[f32], width: usize, y: &mut [f32]) {
    rows(weights, stride, values, width, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(weights: &[f32], stride: usize, values: &[f32], width: usize, y: &mut [f32]) {
    rows(weights, stride, values, width, y);
}

/// Inlined into each `target_feature` function, so that it is compiled for each instruction set.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn rows(weights: &[f32], stride: usize, values: &[f32], width: usize, y: &mut [f32]) {
    for (row, y) in y.chunks_exact_mut(width).enumerate() {
        let weights = &weights[row * stride..][..values.len() / width];
        let mut column = 0;
        while column < width {
            column += match width - column {
                64.. => columns::<64>(weights, values, width, column, y),
                16.. => columns::<16>(weights, values, width, column, y),
                _ => columns::<1>(weights, values, width, column, y),
            };
        }
    }
}

/// Computes `COLUMNS` columns of a row, with the sums in registers. Returns `COLUMNS`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn columns<const COLUMNS: usize>(
    weights: &[f32],
    values: &[f32],
    width: usize,
    column: usize,
    y: &mut [f32],
) -> usize {
    let y = &mut y[column..][..COLUMNS];
    let mut sums = [0.0f32; COLUMNS];
    sums.copy_from_slice(y);
    for (weight, values) in weights.iter().zip(values.chunks_exact(width)) {
        let values = &values[column..][..COLUMNS];
        for lane in 0..COLUMNS {
            sums[lane] = values[lane].mul_add(*weight, sums[lane]);
        }
    }
    y.copy_from_slice(&sums);
    COLUMNS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::model::candle::dense::tests::{kernels, values};

    #[test]
    fn sums_have_the_bits_of_sequential_fused_multiply_adds() {
        for kernel in kernels() {
            for width in [1, 12, 16, 64, 72, 128, 150] {
                for (rows, count, stride) in [(1, 1, 1), (3, 16, 16), (4, 7, 30), (2, 0, 5)] {
                    let weights = values(rows * stride, 1);
                    let rows_of_values = values(count * width, 2);
                    let before = values(rows * width, 3);
                    let mut y = before.clone();
                    add_weighted(kernel, &weights, stride, &rows_of_values, width, &mut y);
                    for (place, sum) in y.iter().enumerate() {
                        let (row, column) = (place / width, place % width);
                        let expected = (0..count).fold(before[place], |sum, i| {
                            let value = rows_of_values[i * width + column];
                            value.mul_add(weights[row * stride + i], sum)
                        });
                        assert_eq!(sum.to_bits(), expected.to_bits(), "{kernel:?} {width}");
                    }
                }
            }
        }
    }
}
