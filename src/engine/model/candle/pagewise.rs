//! Attention of single tokens. Each token reads its sequence's pages in place, so nothing
//! is gathered. A result is always computed by the same sequence of operations over the sequence's
//! tokens in order, so it has the same bits in any batch and with any page table.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::dense::Kernel;
use super::plan::Single;
use super::weighted::add_weighted;
use crate::engine::kv::PAGE_TOKENS;

/// Attention for single tokens of several sequences.
pub(super) struct Pagewise {
    kernel: Kernel,
    tokens: Arc<[Single]>,
    kv_heads: usize,
}

impl Pagewise {
    pub(super) fn new(kernel: Kernel, tokens: Arc<[Single]>, kv_heads: usize) -> Self {
        Self {
            kernel,
            tokens,
            kv_heads,
        }
    }

    /// `queries`: `[rows, heads, head_size]`, scaled; `pool`: `[2 · kv_heads, pages · 16,
    /// head_size]` (f32, contiguous). Returns `[tokens, heads · head_size]`.
    pub(super) fn attend(&self, queries: &Tensor, pool: &Tensor) -> Result<Tensor> {
        queries.apply_op2_no_bwd(pool, self)
    }
}

impl CustomOp2 for Pagewise {
    fn name(&self) -> &'static str {
        "pagewise-attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        queries_layout: &Layout,
        pool: &CpuStorage,
        pool_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, heads, head_size) = queries_layout.shape().dims3()?;
        let (strips, places, width) = pool_layout.shape().dims3()?;
        let (Some((first, last)), Some((pool_first, pool_last)), true) = (
            queries_layout.contiguous_offsets(),
            pool_layout.contiguous_offsets(),
            strips == 2 * self.kv_heads && width == head_size,
        ) else {
            candle_core::bail!("attention of {queries_layout:?} over {pool_layout:?}");
        };
        let queries = &queries.as_slice::<f32>()?[first..last];
        let pool = &pool.as_slice::<f32>()?[pool_first..pool_last];
        let strip = |index: usize| &pool[index * places * width..][..places * width];

        let group = heads / self.kv_heads * head_size;
        let mut output = vec![0.0; self.tokens.len() * heads * head_size];
        output
            .par_chunks_mut(group)
            .enumerate()
            .for_each(|(index, output)| {
                let token = &self.tokens[index / self.kv_heads];
                let head = index % self.kv_heads;
                let queries = &queries[token.row * heads * head_size + head * group..][..group];
                Head {
                    kernel: self.kernel,
                    keys: strip(head),
                    values: strip(self.kv_heads + head),
                    head_size,
                }
                .attend(queries, token, output);
            });
        let shape = Shape::from((self.tokens.len(), heads * head_size));
        Ok((CpuStorage::F32(output), shape))
    }
}

/// One key head and its value head in a layer, both `[pages · 16, head_size]`.
struct Head<'a> {
    kernel: Kernel,
    keys: &'a [f32],
    values: &'a [f32],
    head_size: usize,
}

impl Head<'_> {
    /// `queries`, `output`: `[queries of the head, head_size]`; `output` must be zeroed.
    fn attend(&self, queries: &[f32], token: &Single, output: &mut [f32]) {
        let count = queries.len() / self.head_size;
        let mut scores = vec![0.0; count * token.length];
        for (first, page, tokens) in pages(token) {
            let keys = &self.keys[page * self.head_size..][..tokens * self.head_size];
            let sizes = (count, self.head_size, tokens);
            self.kernel
                .rows(queries, keys, sizes, &mut scores[first..], token.length);
        }
        for scores in scores.chunks_exact_mut(token.length) {
            softmax(scores);
        }
        for (first, page, tokens) in pages(token) {
            let values = &self.values[page * self.head_size..][..tokens * self.head_size];
            add_weighted(
                self.kernel,
                &scores[first..],
                token.length,
                values,
                self.head_size,
                output,
            );
        }
    }
}

/// The pages of a token's sequence: position of the first token, its place in the pool, number of
/// tokens.
fn pages(token: &Single) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
    (0..token.length)
        .step_by(PAGE_TOKENS)
        .zip(&token.pages)
        .map(|(first, page)| {
            let tokens = PAGE_TOKENS.min(token.length - first);
            (first, *page as usize * PAGE_TOKENS, tokens)
        })
}

fn softmax(scores: &mut [f32]) {
    let most = scores
        .iter()
        .fold(f32::NEG_INFINITY, |most, score| most.max(*score));
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - most).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}
