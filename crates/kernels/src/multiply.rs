//! Products of one input with several matrices, cut into parts for the thread pool.

use std::ops::Range;

use super::activations::ActivationBlock;
use super::kv_prefetch::{KvPrefetch, PrefetchCursor};
use super::pack::{PackedMatrix, Shared};
use super::pool::{Pool, owner, share};
use super::product::{Input, Part};
use super::quant::BLOCK;
use super::simd::LANES;
use super::swiglu::SwigluPart;
use super::{Kernels, winograd};

/// One of several products with the same input: `output = input · weightsᵀ`.
pub struct Product<'a> {
    /// `[rows, cols]`.
    pub weights: &'a PackedMatrix,
    /// `[tokens, rows]`.
    pub output: &'a mut [f32],
}

/// Maximum activations of a stretch of tokens, in bytes: they stay in the second-level cache beside the
/// weights.
pub(super) const TOKENS_BYTES: usize = 640 << 10;

/// Multiply-adds of a part, 10–25 µs. Long runs of weights stream best, but a thread that loses its
/// core delays the others by a whole part.
const PART_WORK: usize = 4 << 20;

/// Matrices to multiply one input by, in one run of the pool.
#[derive(Clone, Copy)]
pub enum Matrices<'a> {
    Each(&'a [&'a PackedMatrix]),
    /// Matrices with the same number of rows; each part computes the same rows of all.
    Together(&'a [&'a PackedMatrix]),
}

/// The SwiGLU of a feed-forward block: `silu(input · gateᵀ + bias) · (input · upᵀ + bias)`.
pub struct Swiglu<'a> {
    /// Its output is the result.
    pub gate: Product<'a>,
    /// Has as many rows as the gate. Its output is scratch.
    pub up: Product<'a>,
    /// `[rows]`.
    pub gate_bias: Option<&'a [f32]>,
    /// `[rows]`.
    pub up_bias: Option<&'a [f32]>,
    /// The quantised result, `[tokens, rows / 32]`; empty if it is not wanted.
    pub blocks: &'a mut [ActivationBlock],
}

/// How the products of an input are cut: the tokens into stretches, the matrices into runs of row
/// groups that stay within one matrix.
struct Cut<'a> {
    matrices: &'a [&'a PackedMatrix],
    /// Matrices per part.
    together: usize,
    tokens: usize,
    stretches: usize,
    /// Groups per run.
    step: usize,
    /// Runs of all matrices together.
    runs: usize,
}

impl<'a> Cut<'a> {
    /// For `threads` threads and tiles of `tile` groups. All matrices have the same number of columns,
    /// and at least one row.
    fn new(matrices: Matrices<'a>, tokens: usize, threads: usize, tile: usize) -> Self {
        let (matrices, together, tile) = match matrices {
            Matrices::Each(matrices) => (matrices, 1, tile),
            // The results are quantised in whole blocks.
            Matrices::Together(matrices) => {
                (matrices, matrices.len().max(1), tile.max(BLOCK / LANES))
            }
        };
        let cols = matrices.first().map_or(0, |weights| weights.cols);
        let groups = matrices.iter().map(|weights| weights.groups());
        let groups = groups.sum::<usize>() / together;
        let bytes = tokens * (cols / BLOCK * size_of::<ActivationBlock>());
        let stretches = bytes.div_ceil(TOKENS_BYTES).max(1);
        let wanted = (together * groups * LANES * cols * tokens / PART_WORK)
            .clamp(threads, threads * 32)
            .div_ceil(stretches)
            .next_multiple_of(threads);
        let step = groups.div_ceil(wanted).max(1).next_multiple_of(tile);
        let runs = matrices.iter().step_by(together);
        Self {
            matrices,
            together,
            tokens,
            stretches,
            step,
            runs: runs.map(|weights| weights.groups().div_ceil(step)).sum(),
        }
    }

    fn parts(&self) -> usize {
        self.stretches * self.runs
    }

    /// The tokens of a part, its (first) matrix, and the groups of that. Runs of one stretch have
    /// consecutive indices: with several stretches, threads divide tokens rather than rows.
    fn part(&self, index: usize) -> (Range<usize>, usize, Range<usize>) {
        let stretch = share(index / self.runs, self.stretches, self.tokens);
        let mut run = index % self.runs;
        let mut matrix = 0;
        loop {
            let groups = self.matrices[matrix].groups();
            let runs = groups.div_ceil(self.step);
            if run < runs {
                let start = run * self.step;
                return (stretch, matrix, start..(start + self.step).min(groups));
            }
            run -= runs;
            matrix += 1;
        }
    }

    /// The first weights of a part: matrix and group. `None` past the last part.
    fn begins(&self, index: usize) -> Option<(&'a PackedMatrix, usize)> {
        (index < self.parts()).then(|| {
            let (_, matrix, groups) = self.part(index);
            (self.matrices[matrix], groups.start)
        })
    }
}

impl Kernels {
    /// Multiplies one input by several weight matrices, in one run of the pool. `next` are the matrices
    /// of the following product, if known: their first weights are prefetched. `prefetch` are keys and
    /// values to prefetch meanwhile.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn matmul(
        self,
        pool: &Pool,
        products: &mut [Product<'_>],
        input: Input<'_>,
        next: Matrices<'_>,
        prefetch: Option<KvPrefetch<'_>>,
    ) {
        let (matrices, outputs): (Vec<_>, Vec<_>) = products
            .iter_mut()
            .map(|product| (product.weights, output(product, input)))
            .unzip();
        let matrices = Matrices::Each(&matrices);
        // SAFETY: the outputs were checked against these matrices and this input, and are borrowed
        // mutably.
        unsafe { self.multiply(pool, matrices, next, &outputs, input, prefetch, |_, _| {}) }
    }

    /// Computes a SwiGLU of one input. The other arguments are as in [`Self::matmul`].
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn matmul_swiglu(
        self,
        pool: &Pool,
        gated: Swiglu<'_>,
        input: Input<'_>,
        next: Matrices<'_>,
        prefetch: Option<KvPrefetch<'_>>,
    ) {
        let Swiglu {
            mut gate,
            mut up,
            gate_bias,
            up_bias,
            blocks,
        } = gated;
        let width = gate.weights.rows;
        assert_eq!(width, up.weights.rows, "gate and up have the same rows");
        assert!(gate_bias.is_none_or(|bias| bias.len() == width));
        assert!(up_bias.is_none_or(|bias| bias.len() == width));
        assert!(blocks.is_empty() || blocks.len() * BLOCK == input.tokens * width);
        assert!(blocks.is_empty() || width.is_multiple_of(BLOCK));
        let quantised = !blocks.is_empty();
        let blocks = Shared::new(blocks);
        let outputs = [output(&mut gate, input), output(&mut up, input)];
        let matrices = Matrices::Together(&[gate.weights, up.weights]);
        let then = |tokens: Range<usize>, groups: Range<usize>| {
            let part = SwigluPart {
                gate: outputs[0].get(),
                up: outputs[1].get(),
                width,
                gate_bias,
                up_bias,
                blocks: quantised.then(|| blocks.get()),
                rows: groups.start * LANES..(groups.end * LANES).min(width),
                tokens,
            };
            // SAFETY: this processor has the features (`Kernels::of`); the lengths were checked above;
            // no other part has these rows of these tokens, and runs of groups start and end at whole
            // blocks.
            unsafe { (self.table.swiglu)(&part) }
        };
        // SAFETY: as in `matmul`.
        unsafe { self.multiply(pool, matrices, next, &outputs, input, prefetch, then) }
    }

    /// Computes all parts of some products, and calls `then` with each part's tokens and groups, on the
    /// part's thread.
    ///
    /// # Safety
    /// Each output was checked against its matrix and this input, and nobody else uses it.
    #[expect(
        clippy::too_many_arguments,
        reason = "the shared part of two entry points"
    )]
    unsafe fn multiply(
        self,
        pool: &Pool,
        matrices: Matrices<'_>,
        next: Matrices<'_>,
        outputs: &[Shared<f32>],
        input: Input<'_>,
        prefetch: Option<KvPrefetch<'_>>,
        then: impl Fn(Range<usize>, Range<usize>) + Sync,
    ) {
        if input.tokens == 0 {
            return;
        }
        let threads = pool.threads();
        let cut = Cut::new(matrices, input.tokens, threads, self.table.tile.1);
        let following = Cut::new(next, input.tokens, threads, self.table.tile.1);
        let same_width = |weights: &&PackedMatrix| weights.cols == cut.matrices[0].cols;
        assert!(cut.matrices.iter().all(same_width), "products of one input");
        let count = cut.parts();
        pool.run(count, |index| {
            let (tokens, first, groups) = cut.part(index);
            let thread = owner(index, threads, count);
            let products = if tokens.len() < winograd::MIN_TOKENS {
                &self.table.product
            } else {
                &self.table.product_many_tokens
            };
            for matrix in first..first + cut.together {
                // The weights that this thread will probably multiply next.
                let next = if matrix + 1 < first + cut.together {
                    Some((cut.matrices[matrix + 1], groups.start))
                } else if index + 1 < share(thread, threads, count).end {
                    cut.begins(index + 1)
                } else {
                    let mut parts = share(thread, threads, following.parts());
                    parts.next().and_then(|part| following.begins(part))
                };
                let part = Part {
                    weights: cut.matrices[matrix],
                    input,
                    groups: groups.clone(),
                    next: next.filter(|(next, _)| !next.format.is_dense()),
                    tokens: tokens.clone(),
                    kv: prefetch.map_or_else(PrefetchCursor::none, |prefetch| {
                        let product = index * cut.together + matrix - first;
                        prefetch.cursor(product, count * cut.together)
                    }),
                    output: outputs[matrix].get(),
                };
                // SAFETY: this processor has the features (`Kernels::of`); the lengths were checked
                // (`output`); parts have different rows or different tokens of the outputs.
                unsafe { (products[part.weights.format as usize])(&part) }
            }
            then(tokens, groups);
        });
    }
}

/// A product's output, after checking that it fits the weights and the input.
///
/// # Panics
/// If it does not fit.
fn output(product: &mut Product<'_>, input: Input<'_>) -> Shared<f32> {
    let weights = product.weights;
    assert_eq!(product.output.len(), input.tokens * weights.rows);
    if weights.format.is_dense() {
        assert_eq!(input.values.len(), input.tokens * weights.cols);
    } else {
        assert_eq!(input.blocks.len() * BLOCK, input.tokens * weights.cols);
    }
    Shared::new(product.output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WeightType;
    use proptest::prelude::*;

    proptest! {
        /// Every group of rows is multiplied by every token once, whatever the sizes, and a part starts
        /// with the weights that were prefetched for it.
        #[test]
        fn every_output_is_computed_once(
            rows in prop::collection::vec(1usize..300, 1..4),
            tokens in 1usize..20_000,
            threads in 1usize..9,
            tile in 1usize..3,
            together: bool,
        ) {
            const COLS: usize = 64;
            let pool = Pool::new(1).expect("no threads");
            let matrices: Vec<_> = rows
                .iter()
                .map(|&rows| {
                    let bytes = vec![0; rows * COLS * size_of::<f32>()];
                    PackedMatrix::pack_rows(&pool, WeightType::F32, (rows, COLS), &bytes, &|row| row)
                        .expect("fits")
                })
                .collect();
            let matrices: Vec<_> = matrices.iter().collect();
            let cut = match together {
                true => Cut::new(Matrices::Together(&matrices[..1]), tokens, threads, tile),
                false => Cut::new(Matrices::Each(&matrices), tokens, threads, tile),
            };
            let matrices = cut.matrices;
            let mut met: Vec<_> = matrices.iter().map(|matrix| vec![0; matrix.groups()]).collect();
            for index in 0..cut.parts() {
                let (tokens, matrix, groups) = cut.part(index);
                let begins = cut.begins(index).expect("a part");
                prop_assert!(std::ptr::eq(begins.0, matrices[matrix]));
                prop_assert_eq!(begins.1, groups.start);
                prop_assert!(!groups.is_empty());
                prop_assert!(!together || groups.start.is_multiple_of(BLOCK / LANES));
                for met in &mut met[matrix][groups] {
                    prop_assert_eq!(*met, tokens.start, "tokens ascend");
                    *met = tokens.end;
                }
            }
            prop_assert!(met.iter().flatten().all(|met| *met == tokens));
            prop_assert!(cut.begins(cut.parts()).is_none());
        }
    }

    #[test]
    fn no_matrices_are_cut_into_no_parts() {
        let cut = Cut::new(Matrices::Each(&[]), 7, 2, 2);
        assert_eq!(cut.parts(), 0);
        assert!(cut.begins(0).is_none());
    }
}
