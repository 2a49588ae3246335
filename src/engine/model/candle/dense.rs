//! Dense matrix product for few tokens.
//!
//! Decoding reads every weight once per step, so it is bound by memory bandwidth. candle's product
//! (the `gemm` crate) reads weights at full speed for one token, but at a third of it for 2 to 64
//! tokens. Here rows of activations are multiplied with rows of weights as stored, in tiles of 4 ×
//! 4 dot products. The order of summation does not depend on the number of tokens, so a result does
//! not depend on how many sequences share the step.
//!
//! For more than [`MOST_TOKENS`] tokens, or without AVX2, candle's product is used.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

/// With more tokens, packing the operands as `gemm` does is faster.
const MOST_TOKENS: usize = 64;
/// Weight rows per tile.
#[cfg(target_arch = "x86_64")]
const TILE: usize = 4;
/// Weight rows per task of the thread pool.
#[cfg(target_arch = "x86_64")]
const TASK_ROWS: usize = 64;

/// `x · wᵀ`; `x`: `[tokens, inputs]`, `w`: `[outputs, inputs]`, both contiguous, in f32. Returns
/// `[tokens, outputs]`.
pub(super) fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if let Some(kernel) = Kernel::of_this_cpu()
        && x.dim(0)? <= MOST_TOKENS
    {
        return x.apply_op2_no_bwd(w, &DenseProduct { kernel });
    }
    x.matmul(&w.t()?)
}

/// The instruction set to use. A value implies that this CPU supports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Kernel {
    #[cfg(target_arch = "x86_64")]
    pub(super) fn of_this_cpu() -> Option<Self> {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            Some(Self::Avx512)
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            Some(Self::Avx2)
        } else {
            None
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn of_this_cpu() -> Option<Self> {
        None
    }

    /// `y = x · wᵀ` for few rows, on the calling thread. `x`: `[rows, inputs]`, `w`: `[outputs,
    /// inputs]`, `y`: `[rows, outputs]` with rows `stride` values apart.
    ///
    /// # Panics
    /// If the sizes of `x`, `w` or `y` do not match, or the rows of `y` overlap.
    pub(super) fn rows(
        self,
        x: &[f32],
        w: &[f32],
        (rows, inputs, outputs): (usize, usize, usize),
        y: &mut [f32],
        stride: usize,
    ) {
        rows_on_this_thread(self, x, w, (rows, inputs, outputs), y, stride);
    }
}

struct DenseProduct {
    kernel: Kernel,
}

impl CustomOp2 for DenseProduct {
    fn name(&self) -> &'static str {
        "dense-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, inputs) = x_layout.shape().dims2()?;
        let (outputs, w_inputs) = w_layout.shape().dims2()?;
        let (Some((x_start, x_end)), Some((w_start, w_end)), true) = (
            x_layout.contiguous_offsets(),
            w_layout.contiguous_offsets(),
            inputs == w_inputs,
        ) else {
            candle_core::bail!("dense product of {x_layout:?} and {w_layout:?}");
        };
        let x = &x.as_slice::<f32>()?[x_start..x_end];
        let w = &w.as_slice::<f32>()?[w_start..w_end];
        let y = multiply(self.kernel, x, w, (tokens, inputs, outputs));
        Ok((CpuStorage::F32(y), Shape::from((tokens, outputs))))
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply(kernel: Kernel, _: &[f32], _: &[f32], _: (usize, usize, usize)) -> Vec<f32> {
    match kernel {}
}

#[cfg(not(target_arch = "x86_64"))]
fn rows_on_this_thread(
    kernel: Kernel,
    _: &[f32],
    _: &[f32],
    _: (usize, usize, usize),
    _: &mut [f32],
    _: usize,
) {
    match kernel {}
}

#[cfg(target_arch = "x86_64")]
use x86::{multiply, rows_on_this_thread};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use rayon::prelude::*;

    use super::{Kernel, TASK_ROWS, TILE};

    /// The output matrix, shared by all tasks: each writes to its own columns.
    struct Output(*mut f32);

    // SAFETY: the tasks of `multiply`, which share it, write to disjoint columns.
    unsafe impl Sync for Output {}

    /// `y = x · wᵀ` for `x: [tokens, inputs]` and `w: [outputs, inputs]`.
    pub(super) fn multiply(
        kernel: Kernel,
        x: &[f32],
        w: &[f32],
        (tokens, inputs, outputs): (usize, usize, usize),
    ) -> Vec<f32> {
        assert!(x.len() == tokens * inputs && w.len() == outputs * inputs);
        let mut y = vec![0.0; tokens * outputs];
        let output = Output(y.as_mut_ptr());
        let output = &output;
        // At least 8 tasks if the matrix is small, so that no thread waits long for another.
        let task_rows = TASK_ROWS
            .min(outputs.div_ceil(8).next_multiple_of(TILE))
            .max(TILE);
        (0..outputs.div_ceil(task_rows))
            .into_par_iter()
            .for_each(|task| {
                let first = task * task_rows;
                let last = (first + task_rows).min(outputs);
                let w = &w[first * inputs..last * inputs];
                // SAFETY: `first` is at most `outputs`, the length of a row of `y`.
                let y = unsafe { output.0.add(first) };
                let sizes = (tokens, inputs, last - first);
                // SAFETY: `x` and `w` hold `tokens` and `last - first` rows of `inputs`. `y` is
                // column `first` of a matrix of `tokens` rows of `outputs`, whose columns from
                // `first` to `last` no other task writes to. The CPU has the kernel's features,
                // since only `Kernel::of_this_cpu` and the tests, which ask it, make one.
                unsafe {
                    match kernel {
                        Kernel::Avx512 => rows_avx512(x, w, sizes, y, outputs),
                        Kernel::Avx2 => rows_avx2(x, w, sizes, y, outputs),
                    }
                }
            });
        y
    }

    /// See [`Kernel::rows`].
    pub(super) fn rows_on_this_thread(
        kernel: Kernel,
        x: &[f32],
        w: &[f32],
        (rows, inputs, outputs): (usize, usize, usize),
        y: &mut [f32],
        stride: usize,
    ) {
        assert!(x.len() == rows * inputs && w.len() == outputs * inputs);
        assert!(rows == 0 || (stride >= outputs && y.len() >= (rows - 1) * stride + outputs));
        let (sizes, y) = ((rows, inputs, outputs), y.as_mut_ptr());
        // SAFETY: by the assertions `x` and `w` hold their rows, and `outputs` values can be
        // written at `y` and at every `stride` after it. A `Kernel` is only created if the CPU
        // supports it.
        unsafe {
            match kernel {
                Kernel::Avx512 => rows_avx512(x, w, sizes, y, stride),
                Kernel::Avx2 => rows_avx2(x, w, sizes, y, stride),
            }
        }
    }

    /// Defines two functions for an instruction set: `$tile`, up to 4 × 4 dot products, and
    /// `$rows`, which covers a matrix with tiles.
    macro_rules! kernel {
        (
            $rows:ident, $tile:ident, $features:literal, $vector:ty, $lanes:literal,
            $zero:ident, $load:ident, $load_some:ident, $multiply_add:ident, $sums:ident,
            $($tokens:literal),+
        ) => {
            /// # Safety
            /// The CPU has the features. `x` holds `TOKENS` rows of `inputs`, each of `w` points to
            /// one, and `columns` (at most [`TILE`]) values can be written at `y` and at every
            /// `stride` after it, `TOKENS` times.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn $tile<const TOKENS: usize>(
                x: *const f32,
                w: [*const f32; TILE],
                inputs: usize,
                y: *mut f32,
                stride: usize,
                columns: usize,
            ) {
                let mut sums = [[$zero(); TILE]; TOKENS];
                let full = inputs / $lanes * $lanes;
                for start in (0..full).step_by($lanes) {
                    let mut weights = [$zero(); TILE];
                    for column in 0..TILE {
                        // SAFETY: `$lanes` values from `start` on are within the row.
                        weights[column] = unsafe { $load(w[column].add(start)) };
                    }
                    for token in 0..TOKENS {
                        // SAFETY: likewise.
                        let values = unsafe { $load(x.add(token * inputs + start)) };
                        for column in 0..TILE {
                            sums[token][column] =
                                $multiply_add(values, weights[column], sums[token][column]);
                        }
                    }
                }
                if full < inputs {
                    let rest = inputs - full;
                    let mut weights = [$zero(); TILE];
                    for column in 0..TILE {
                        // SAFETY: `rest` values from `full` on are within the row.
                        weights[column] = unsafe { $load_some(w[column].add(full), rest) };
                    }
                    for token in 0..TOKENS {
                        // SAFETY: likewise.
                        let values = unsafe { $load_some(x.add(token * inputs + full), rest) };
                        for column in 0..TILE {
                            sums[token][column] =
                                $multiply_add(values, weights[column], sums[token][column]);
                        }
                    }
                }
                for token in 0..TOKENS {
                    let sums = $sums(sums[token]);
                    // SAFETY: the caller's promise about `y`.
                    unsafe {
                        let y = y.add(token * stride);
                        if columns == TILE {
                            _mm_storeu_ps(y, sums);
                        } else {
                            let mut values = [0.0; TILE];
                            _mm_storeu_ps(values.as_mut_ptr(), sums);
                            std::ptr::copy_nonoverlapping(values.as_ptr(), y, columns);
                        }
                    }
                }
            }

            /// # Safety
            /// The CPU has the features, and `outputs` values can be written at `y` and at every
            /// `stride` after it, `tokens` times.
            #[target_feature(enable = $features)]
            unsafe fn $rows(
                x: &[f32],
                w: &[f32],
                (tokens, inputs, outputs): (usize, usize, usize),
                y: *mut f32,
                stride: usize,
            ) {
                assert!(x.len() == tokens * inputs && w.len() == outputs * inputs);
                for row in (0..outputs).step_by(TILE) {
                    let columns = (outputs - row).min(TILE);
                    let mut rows = [w.as_ptr(); TILE];
                    for (place, pointer) in rows.iter_mut().enumerate() {
                        // A tile at the edge computes its last row several times and discards the
                        // copies.
                        *pointer = w[(row + place).min(outputs - 1) * inputs..].as_ptr();
                    }
                    let mut token = 0;
                    while token < tokens {
                        let x = x[token * inputs..].as_ptr();
                        // SAFETY: `x` and `rows` point to rows that the assertion has counted, and
                        // the caller vouches for `y`.
                        unsafe {
                            let y = y.add(token * stride + row);
                            match tokens - token {
                                $($tokens => {
                                    $tile::<$tokens>(x, rows, inputs, y, stride, columns);
                                    token += $tokens;
                                })+
                                _ => {
                                    const MOST: usize = [$($tokens),+][0];
                                    $tile::<MOST>(x, rows, inputs, y, stride, columns);
                                    token += MOST;
                                }
                            }
                        }
                    }
                }
            }
        };
    }

    kernel!(
        rows_avx512,
        tile_avx512,
        "avx512f,avx512dq,avx2",
        __m512,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        load_some_avx512,
        _mm512_fmadd_ps,
        sums_avx512,
        4,
        3,
        2,
        1
    );
    // 16 registers hold 2 × 4 sums and the operands.
    kernel!(
        rows_avx2,
        tile_avx2,
        "avx2,fma",
        __m256,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        load_some_avx2,
        _mm256_fmadd_ps,
        sums_avx2,
        2,
        1
    );

    /// # Safety
    /// `count` values, fewer than 16, can be read at `from`; the other lanes are 0.
    #[target_feature(enable = "avx512f,avx512dq,avx2")]
    #[inline]
    unsafe fn load_some_avx512(from: *const f32, count: usize) -> __m512 {
        // SAFETY: lanes that are masked out are not read.
        unsafe { _mm512_maskz_loadu_ps((1 << count) - 1, from) }
    }

    /// # Safety
    /// `count` values, fewer than 8, can be read at `from`; the other lanes are 0.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load_some_avx2(from: *const f32, count: usize) -> __m256 {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes);
        // SAFETY: lanes that are masked out are not read.
        unsafe { _mm256_maskload_ps(from, mask) }
    }

    /// The sum over each vector's lanes.
    #[target_feature(enable = "avx512f,avx512dq,avx2")]
    #[inline]
    fn sums_avx512(vectors: [__m512; TILE]) -> __m128 {
        let mut halves = [_mm256_setzero_ps(); TILE];
        for place in 0..TILE {
            halves[place] = _mm256_add_ps(
                _mm512_castps512_ps256(vectors[place]),
                _mm512_extractf32x8_ps::<1>(vectors[place]),
            );
        }
        sums_avx2(halves)
    }

    /// The sum over each vector's lanes.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn sums_avx2(vectors: [__m256; TILE]) -> __m128 {
        let first = _mm256_hadd_ps(vectors[0], vectors[1]);
        let second = _mm256_hadd_ps(vectors[2], vectors[3]);
        let all = _mm256_hadd_ps(first, second);
        _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use candle_core::Device;

    use super::*;

    pub(in super::super) fn kernels() -> Vec<Kernel> {
        match Kernel::of_this_cpu() {
            #[cfg(target_arch = "x86_64")]
            Some(Kernel::Avx512) => vec![Kernel::Avx512, Kernel::Avx2],
            other => other.into_iter().collect(),
        }
    }

    pub(in super::super) fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn matches_candles_product_for_every_shape() {
        for kernel in kernels() {
            for tokens in [1, 2, 3, 4, 5, 7, 25, 64] {
                for (inputs, outputs) in [(1, 1), (16, 4), (31, 3), (64, 5), (72, 33), (576, 130)] {
                    let x = values(tokens * inputs, 1);
                    let w = values(outputs * inputs, 2);
                    let x = Tensor::from_vec(x, (tokens, inputs), &Device::Cpu).unwrap();
                    let w = Tensor::from_vec(w, (outputs, inputs), &Device::Cpu).unwrap();
                    let y = x.apply_op2_no_bwd(&w, &DenseProduct { kernel }).unwrap();
                    let expected = x.matmul(&w.t().unwrap()).unwrap();
                    let difference = (y - expected).unwrap().abs().unwrap();
                    let most = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
                    assert!(
                        most < 1e-4,
                        "{kernel:?} {tokens} {inputs} {outputs}: {most}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_token_has_the_same_bits_in_any_batch() {
        let (inputs, outputs) = (100, 37);
        for kernel in kernels() {
            let w = Tensor::from_vec(values(outputs * inputs, 2), (outputs, inputs), &Device::Cpu);
            let w = w.unwrap();
            let all = values(MOST_TOKENS * inputs, 1);
            let product = |first: usize, count: usize| -> Vec<Vec<f32>> {
                let x = all[first * inputs..(first + count) * inputs].to_vec();
                let x = Tensor::from_vec(x, (count, inputs), &Device::Cpu).unwrap();
                let y = x.apply_op2_no_bwd(&w, &DenseProduct { kernel }).unwrap();
                y.to_vec2().unwrap()
            };
            let together = product(0, MOST_TOKENS);
            for (token, row) in together.iter().enumerate() {
                assert_eq!(product(token, 1)[0], *row, "{kernel:?}, token {token}");
            }
            assert_eq!(product(3, 7), together[3..10], "{kernel:?}");
        }
    }

    #[test]
    fn a_view_into_a_larger_tensor_is_read_at_its_offset() {
        let x = Tensor::from_vec(values(6 * 20, 1), (6, 20), &Device::Cpu).unwrap();
        let w = Tensor::from_vec(values(9 * 20, 2), (9, 20), &Device::Cpu).unwrap();
        let (x, w) = (x.narrow(0, 2, 3).unwrap(), w.narrow(0, 1, 7).unwrap());
        let copies = (x.force_contiguous().unwrap(), w.force_contiguous().unwrap());
        let y = product(&x, &w).unwrap().to_vec2::<f32>().unwrap();
        let expected = product(&copies.0, &copies.1)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        assert_eq!(y, expected);
    }
}
