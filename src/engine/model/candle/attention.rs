//! Attention of a packed batch over paged keys and values.

use candle_core::{Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::kv::KvPages;
use super::pass::{Attending, PlannedPass, Rows};

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
    let mut outputs = Vec::with_capacity(pass.groups.len() + 1);
    if let Some(pagewise) = &pass.pagewise {
        outputs.push(pagewise.attend(queries, kv.pool(layer))?);
    }
    for group in &pass.groups {
        attend_together(queries, kv, layer, group, &mut outputs)?;
    }
    let outputs = Tensor::cat(&outputs, 0)?;
    match &pass.order {
        Some(order) => outputs.index_select(order, 0),
        None => Ok(outputs),
    }
}

/// Attention of sequences padded to the same number of queries and of keys, as one batched product.
/// Queries that share a KV head are rows of one product, so keys and values are never repeated.
///
/// The mask gives padding the weight 0. The same holds for the pages' content beyond a sequence's
/// end, which is finite unless a pass has computed NaN or infinity.
fn attend_together(
    queries: &Tensor,
    kv: &KvPages,
    layer: usize,
    group: &Attending,
    outputs: &mut Vec<Tensor>,
) -> Result<()> {
    let (_, heads, head_size) = queries.dims3()?;
    let sequences = group.sequences;
    let (keys, values) = kv.read(layer, sequences, &group.pages)?;
    let kv_heads = keys.dim(0)? / sequences;
    let sharing = heads / kv_heads;
    let queries = match &group.rows {
        Rows::From(first) => queries.narrow(0, *first, sequences * group.queries)?,
        Rows::Table(rows) => queries.index_select(rows, 0)?,
    };
    let queries = queries.reshape((sequences, group.queries, kv_heads, sharing, head_size))?;
    for block in &group.blocks {
        let (count, length) = (block.queries.len(), block.keys);
        let rows = (kv_heads * sequences, sharing * count, head_size);
        let queries = queries
            .narrow(1, block.queries.start, count)?
            .permute((2, 0, 3, 1, 4))?
            .contiguous()?
            .reshape(rows)?;
        let keys = keys.narrow(1, 0, length)?;
        let mut scores = queries.matmul(&keys.t()?)?;
        if let Some(mask) = &block.mask {
            let by_mask = match sequences {
                1 => vec![heads, count, length],
                _ => vec![kv_heads, sequences, sharing, count, length],
            };
            let flat = scores.shape().clone();
            scores = scores
                .reshape(by_mask)?
                .broadcast_add(mask)?
                .reshape(flat)?;
        }
        let attended = softmax_last_dim(&scores)?
            .matmul(&values.narrow(1, 0, length)?)?
            .reshape((kv_heads, sequences, sharing, count, head_size))?
            .permute((1, 3, 0, 2, 4))?
            .reshape((sequences * count, heads * head_size))?;
        outputs.push(attended);
    }
    Ok(())
}
