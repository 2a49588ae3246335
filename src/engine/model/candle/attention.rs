//! Attention of a packed batch over paged keys and values.

use candle_core::{Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::kv::KvPages;
use super::pass::{Attending, PlannedPass};

/// Attention of all tokens of a pass. Their keys and values must already be in the pages.
///
/// `queries`: `[tokens, heads, head_size]`, scaled, contiguous. Returns `[tokens, heads ·
/// head_size]`.
pub(super) fn attend(
    queries: &Tensor,
    kv: &KvPages,
    layer: usize,
    pass: &PlannedPass<'_>,
) -> Result<Tensor> {
    let mut outputs = Vec::with_capacity(pass.sequences.len() + 1);
    if let Some(pagewise) = &pass.pagewise {
        outputs.push(pagewise.attend(queries, kv.pool(layer))?);
    }
    for sequence in &pass.sequences {
        attend_gathered(queries, kv, layer, sequence, &mut outputs)?;
    }
    let outputs = Tensor::cat(&outputs, 0)?;
    match &pass.order {
        Some(order) => outputs.index_select(order, 0),
        None => Ok(outputs),
    }
}

/// Attention of a sequence over its gathered pages, a product per block of queries. Queries that share
/// a KV head are rows of one product, so keys and values are never repeated.
///
/// The mask gives the pages' content beyond a sequence's end the weight 0. It is finite unless a pass
/// has computed NaN or infinity.
fn attend_gathered(
    queries: &Tensor,
    kv: &KvPages,
    layer: usize,
    sequence: &Attending,
    outputs: &mut Vec<Tensor>,
) -> Result<()> {
    let (_, heads, head_size) = queries.dims3()?;
    let (keys, values) = kv.read(layer, &sequence.pages)?;
    let kv_heads = keys.dim(0)?;
    let sharing = heads / kv_heads;
    for block in &sequence.blocks {
        let (count, length) = (block.rows.len(), block.keys);
        let queries = queries
            .narrow(0, block.rows.start, count)?
            .reshape((count, kv_heads, sharing, head_size))?
            .permute((1, 2, 0, 3))?
            .contiguous()?
            .reshape((kv_heads, sharing * count, head_size))?;
        let keys = keys.narrow(1, 0, length)?;
        let mut scores = queries.matmul(&keys.t()?)?;
        if let Some(mask) = &block.mask {
            let flat = scores.shape().clone();
            scores = scores
                .reshape((heads, count, length))?
                .broadcast_add(mask)?
                .reshape(flat)?;
        }
        let attended = softmax_last_dim(&scores)?
            .matmul(&values.narrow(1, 0, length)?)?
            .reshape((kv_heads, sharing, count, head_size))?
            .permute((2, 0, 1, 3))?
            .reshape((count, heads * head_size))?;
        outputs.push(attended);
    }
    Ok(())
}
