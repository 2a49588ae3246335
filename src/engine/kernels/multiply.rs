//! Products of one input with several matrices, cut into parts that threads take.

use std::ops::Range;

use super::activations::{ActivationBlock, BLOCK};
use super::pack::{PackedMatrix, Shared};
use super::pool::{Pool, owner, share};
use super::product::{Input, Part};
use super::simd::LANES;
use super::soon::{Asking, Soon};
use super::{Kernels, paired};

/// One of the products that share an input: `output = input · weightsᵀ`.
pub(crate) struct Product<'a> {
    /// `[rows, cols]`.
    pub(crate) weights: &'a PackedMatrix,
    /// `[tokens, rows]`.
    pub(crate) output: &'a mut [f32],
}

/// Activations of a stretch of tokens that stay in the second-level cache beside the weights, in bytes.
const TOKENS_BYTES: usize = 640 << 10;

/// Multiply-adds of a part, about 10 µs: long runs of weights stream best, and a thread that loses its
/// core leaves the others no more than this to wait for.
const PART_WORK: usize = 4 << 20;

/// How the products of an input are cut: the tokens into stretches, the matrices into runs of groups of
/// rows, none of which crosses from one matrix to the next.
struct Cut<'a> {
    matrices: &'a [&'a PackedMatrix],
    tokens: usize,
    stretches: usize,
    /// Groups of a run.
    step: usize,
    /// Runs of all matrices.
    runs: usize,
}

impl<'a> Cut<'a> {
    /// For `threads` threads, and tiles of `tile` groups. The matrices have one width, and rows.
    fn new(
        matrices: &'a [&'a PackedMatrix],
        tokens: usize,
        (threads, tile): (usize, usize),
    ) -> Self {
        let cols = matrices.first().map_or(0, |weights| weights.cols);
        let groups: usize = matrices.iter().map(|weights| weights.groups()).sum();
        let bytes = tokens * (cols / BLOCK * size_of::<ActivationBlock>());
        let stretches = bytes.div_ceil(TOKENS_BYTES).max(1);
        let wanted = (groups * LANES * cols * tokens / PART_WORK)
            .clamp(threads, threads * 32)
            .div_ceil(stretches)
            .next_multiple_of(threads);
        let step = groups.div_ceil(wanted).max(1).next_multiple_of(tile);
        Self {
            matrices,
            tokens,
            stretches,
            step,
            runs: matrices
                .iter()
                .map(|weights| weights.groups().div_ceil(step))
                .sum(),
        }
    }

    fn parts(&self) -> usize {
        self.stretches * self.runs
    }

    /// The tokens of a part, its matrix, and the groups of it. The runs of a stretch come one after
    /// another.
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

    /// The weights that a part begins with, if there is such a part.
    fn begins(&self, index: usize) -> Option<(&'a PackedMatrix, usize)> {
        (index < self.parts()).then(|| {
            let (_, matrix, groups) = self.part(index);
            (self.matrices[matrix], groups.start)
        })
    }
}

impl Kernels {
    /// Multiplies one input by several weight matrices, in one run of the pool. `next` are the matrices
    /// that come after them, if that is known: their first weights are asked for in advance; `soon` are
    /// keys and values that are to be asked for meanwhile.
    ///
    /// # Panics
    /// Where the shapes do not fit.
    pub(crate) fn matmul(
        self,
        pool: &Pool,
        products: &mut [Product<'_>],
        input: Input<'_>,
        next: &[&PackedMatrix],
        soon: Option<Soon<'_>>,
    ) {
        let Some(cols) = products.first().map(|product| product.weights.cols) else {
            return;
        };
        if input.tokens == 0 {
            return;
        }
        let (matrices, outputs): (Vec<_>, Vec<_>) = products
            .iter_mut()
            .map(|product| {
                let weights = product.weights;
                assert_eq!(weights.cols, cols, "products of one input");
                assert_eq!(product.output.len(), input.tokens * weights.rows);
                if weights.format.is_dense() {
                    assert_eq!(input.values.len(), input.tokens * cols);
                } else {
                    assert_eq!(input.blocks.len() * BLOCK, input.tokens * cols);
                }
                (weights, Shared::new(product.output))
            })
            .unzip();

        let threads = pool.threads();
        let cut = Cut::new(&matrices, input.tokens, (threads, self.table.tile.1));
        let following = Cut::new(next, input.tokens, (threads, self.table.tile.1));
        let count = cut.parts();
        pool.run(count, |index| {
            let (tokens, matrix, groups) = cut.part(index);
            let thread = owner(index, threads, count);
            // What this thread will probably multiply next.
            let next = if index + 1 < share(thread, threads, count).end {
                cut.begins(index + 1)
            } else {
                following.begins(share(thread, threads, following.parts()).start)
            };
            let part = Part {
                weights: matrices[matrix],
                input,
                groups,
                next: next.filter(|(next, _)| !next.format.is_dense()),
                tokens,
                soon: soon.map_or_else(Asking::nothing, |soon| soon.share(index, count)),
                output: outputs[matrix].get(),
            };
            let products = if part.tokens.len() < paired::LEAST {
                &self.table.product
            } else {
                &self.table.product_of_many
            };
            // SAFETY: this processor is able (`Kernels::of`); the lengths were checked above; the parts
            // are different rows or different tokens of the outputs.
            unsafe { (products[part.weights.format as usize])(&part) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::GgmlDType;
    use proptest::prelude::*;

    proptest! {
        /// Every group of rows meets every token once, whatever the sizes, and a part begins with what is
        /// asked for on its behalf.
        #[test]
        fn every_output_is_computed_once(
            rows in prop::collection::vec(1usize..300, 1..4),
            tokens in 1usize..20_000,
            threads in 1usize..9,
            tile in 1usize..3,
        ) {
            const COLS: usize = 64;
            let pool = Pool::new(1).expect("no threads");
            let matrices: Vec<_> = rows
                .iter()
                .map(|&rows| {
                    let bytes = vec![0; rows * COLS * size_of::<f32>()];
                    PackedMatrix::pack_rows(&pool, GgmlDType::F32, (rows, COLS), &bytes, |row| row)
                        .expect("fits")
                })
                .collect();
            let matrices: Vec<_> = matrices.iter().collect();
            let cut = Cut::new(&matrices, tokens, (threads, tile));
            let mut met: Vec<_> = matrices.iter().map(|matrix| vec![0; matrix.groups()]).collect();
            for index in 0..cut.parts() {
                let (tokens, matrix, groups) = cut.part(index);
                let begins = cut.begins(index).expect("a part");
                prop_assert!(std::ptr::eq(begins.0, matrices[matrix]));
                prop_assert_eq!(begins.1, groups.start);
                prop_assert!(!groups.is_empty());
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
    fn nothing_is_cut_into_nothing() {
        let cut = Cut::new(&[], 7, (2, 2));
        assert_eq!(cut.parts(), 0);
        assert!(cut.begins(0).is_none());
    }
}
