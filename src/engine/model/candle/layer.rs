//! One transformer block over a packed batch: all sequences' tokens are rows of one matrix, so that
//! each weight is read once; attention alone is done sequence by sequence.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::rope_thd;

use super::kv::KvCache;
use super::linear::{Linear, WeightFormat};
use super::weights::{Matrix, Weights, required_vector, rotated_bias, rotated_matrix};
use crate::engine::model::{ModelSpec, Slot};
use crate::error::{Context, Error, Exit, Result};

/// The weights of a block.
pub(super) struct Layer {
    index: usize,
    /// `[hidden]`
    attention_norm: Tensor,
    /// Queries, keys and values: `[(heads + 2 kv_heads) · head_size, hidden]`.
    qkv: Linear,
    /// Norms of each head's queries and keys, `[head_size]` (qwen3).
    qk_norms: Option<(Tensor, Tensor)>,
    /// `[hidden, heads · head_size]`
    output: Linear,
    /// `[hidden]`
    feed_forward_norm: Tensor,
    /// `[2 · intermediate, hidden]`
    gate_up: Linear,
    /// `[hidden, intermediate]`
    down: Linear,
}

/// What all blocks of a pass share.
pub(super) struct Pass<'a> {
    pub(super) spec: &'a ModelSpec,
    /// `[tokens, head_size / 2]`
    pub(super) cos: Tensor,
    /// `[tokens, head_size / 2]`
    pub(super) sin: Tensor,
    pub(super) spans: Vec<Span>,
}

/// One sequence's part of a batch.
pub(super) struct Span {
    pub(super) slot: Slot,
    /// Its first row of the batch.
    pub(super) row: usize,
    /// Its tokens, which are consecutive rows.
    pub(super) tokens: usize,
    /// Position of the first of them.
    pub(super) start: usize,
    /// Its queries in blocks; a block looks only as far back as its last query may.
    pub(super) blocks: Vec<QueryBlock>,
}

/// Some consecutive queries of a sequence.
pub(super) struct QueryBlock {
    /// The first, counted from the span's.
    first: usize,
    queries: usize,
    /// `[queries, keys]`, 0 where a query may look and -∞ where not; none for a single query, which
    /// may look at all keys.
    mask: Option<Tensor>,
}

impl Span {
    /// `block`: most queries that attend at once.
    pub(super) fn new(
        slot: Slot,
        row: usize,
        tokens: usize,
        start: usize,
        block: usize,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let blocks = (0..tokens).step_by(block).map(|first| {
            let queries = block.min(tokens - first);
            let mask = match queries {
                1 => None,
                _ => Some(causal_mask(queries, start + first, dtype, device)?),
            };
            Ok(QueryBlock {
                first,
                queries,
                mask,
            })
        });
        Ok(Self {
            slot,
            row,
            tokens,
            start,
            blocks: blocks.collect::<candle_core::Result<_>>()?,
        })
    }
}

/// `[queries, position + queries]` for queries from this position on.
fn causal_mask(
    queries: usize,
    position: usize,
    dtype: DType,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let keys = position + queries;
    let mut mask = vec![0.0f32; queries * keys];
    for (query, row) in mask.chunks_exact_mut(keys).enumerate() {
        row[position + query + 1..].fill(f32::NEG_INFINITY);
    }
    Tensor::from_vec(mask, (queries, keys), &Device::Cpu)?
        .to_dtype(dtype)?
        .to_device(device)
}

impl Layer {
    /// Loads block `index`.
    pub(super) fn load(
        index: usize,
        weights: &dyn Weights,
        spec: &ModelSpec,
        format: WeightFormat,
        device: &Device,
    ) -> Result<Self> {
        let name = |stem: &str| format!("blk.{index}.{stem}");
        let norm = |stem: &str, length: usize| {
            let vector =
                required_vector(weights, &name(&format!("{stem}.weight")), length, device)?;
            vector
                .to_dtype(format.activations())
                .or_exit(Exit::Preflight, || {
                    format!(
                        "failed to load {}",
                        weights.place(&weights.file_name(&name(stem)))
                    )
                })
        };
        let linear = |stems: &[&str], matrices: Vec<Matrix>, biases: Vec<Option<Tensor>>| {
            let wanted = biases.len();
            let biases: Vec<Tensor> = biases.into_iter().flatten().collect();
            if !biases.is_empty() && biases.len() != wanted {
                return Err(Error::preflight(format!(
                    "only some of {} in block {index} have a bias",
                    stems.join(", ")
                )));
            }
            Linear::new(matrices, biases, format, device).or_exit(Exit::Preflight, || {
                format!("failed to load {} of block {index}", stems.join(", "))
            })
        };
        let plain = |stem: &str, rows: usize, columns: usize| {
            let matrix = weights.matrix(&name(stem), (rows, columns), device)?;
            let bias = weights.vector(&name(&format!("{stem}.bias")), rows, device)?;
            Ok::<_, Error>((matrix, bias))
        };
        let rotated = |stem: &str, heads: usize| {
            let rows = heads * spec.head_size;
            let shape = (rows, spec.hidden);
            let matrix = rotated_matrix(weights, &name(stem), shape, heads, device)?;
            let bias_name = name(&format!("{stem}.bias"));
            let bias = rotated_bias(weights, &bias_name, rows, heads, device)?;
            Ok::<_, Error>((matrix, bias))
        };

        let (query, query_bias) = rotated("attn_q", spec.heads)?;
        let (key, key_bias) = rotated("attn_k", spec.kv_heads)?;
        let (value, value_bias) = plain("attn_v", spec.kv_heads * spec.head_size, spec.hidden)?;
        if spec.architecture == "qwen2" && query_bias.is_none() {
            return Err(Error::preflight(format!(
                "{} is missing",
                weights.place(&weights.file_name(&name("attn_q.bias")))
            )));
        }
        let (output, output_bias) = plain("attn_output", spec.hidden, spec.heads * spec.head_size)?;
        let (gate, gate_bias) = plain("ffn_gate", spec.intermediate, spec.hidden)?;
        let (up, up_bias) = plain("ffn_up", spec.intermediate, spec.hidden)?;
        let (down, down_bias) = plain("ffn_down", spec.hidden, spec.intermediate)?;
        let qk_norms = if spec.architecture == "qwen3" {
            Some((
                norm("attn_q_norm", spec.head_size)?,
                norm("attn_k_norm", spec.head_size)?,
            ))
        } else {
            None
        };
        Ok(Self {
            index,
            attention_norm: norm("attn_norm", spec.hidden)?,
            qkv: linear(
                &["attn_q", "attn_k", "attn_v"],
                vec![query, key, value],
                vec![query_bias, key_bias, value_bias],
            )?,
            qk_norms,
            output: linear(&["attn_output"], vec![output], vec![output_bias])?,
            feed_forward_norm: norm("ffn_norm", spec.hidden)?,
            gate_up: linear(
                &["ffn_gate", "ffn_up"],
                vec![gate, up],
                vec![gate_bias, up_bias],
            )?,
            down: linear(&["ffn_down"], vec![down], vec![down_bias])?,
        })
    }

    /// `x`: `[tokens, hidden]`; returns the same.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
        cache: &KvCache,
    ) -> candle_core::Result<Tensor> {
        let epsilon = pass.spec.norm_epsilon as f32;
        let normed = rms_norm(x, &self.attention_norm, epsilon)?;
        let x = (x + self.attention(&normed, pass, cache)?)?;
        let normed = rms_norm(&x, &self.feed_forward_norm, epsilon)?;
        let gate_up = self.gate_up.forward(&normed)?;
        let gate = gate_up.narrow(1, 0, pass.spec.intermediate)?;
        let up = gate_up.narrow(1, pass.spec.intermediate, pass.spec.intermediate)?;
        let inner = (silu(&gate)? * up)?;
        x + self.down.forward(&inner)?
    }

    fn attention(
        &self,
        x: &Tensor,
        pass: &Pass<'_>,
        cache: &KvCache,
    ) -> candle_core::Result<Tensor> {
        let spec = pass.spec;
        let (heads, kv_heads, head_size) = (spec.heads, spec.kv_heads, spec.head_size);
        let tokens = x.dim(0)?;
        let epsilon = spec.norm_epsilon as f32;
        let qkv = self.qkv.forward(x)?;
        // Queries and keys are rotated together, since they stand side by side.
        let mut qk = qkv
            .narrow(1, 0, (heads + kv_heads) * head_size)?
            .contiguous()?
            .reshape((1, tokens, heads + kv_heads, head_size))?;
        if let Some((query_norm, key_norm)) = &self.qk_norms {
            let queries = qk.narrow(2, 0, heads)?.contiguous()?;
            let keys = qk.narrow(2, heads, kv_heads)?.contiguous()?;
            let queries = rms_norm(&queries, query_norm, epsilon)?;
            let keys = rms_norm(&keys, key_norm, epsilon)?;
            qk = Tensor::cat(&[queries, keys], 2)?;
        }
        let qk = rope_thd(&qk, &pass.cos, &pass.sin)?.squeeze(0)?;
        let scale = 1.0 / (head_size as f64).sqrt();
        let queries = (qk.narrow(1, 0, heads)? * scale)?;
        let keys = qk.narrow(1, heads, kv_heads)?;
        let values = qkv
            .narrow(1, (heads + kv_heads) * head_size, kv_heads * head_size)?
            .reshape((tokens, kv_heads, head_size))?;

        let mut outputs = Vec::with_capacity(pass.spans.len());
        for span in &pass.spans {
            let by_head = |tensor: &Tensor| {
                tensor
                    .narrow(0, span.row, span.tokens)?
                    .transpose(0, 1)?
                    .contiguous()
            };
            let (all_keys, all_values) = cache.extend(
                span.slot,
                self.index,
                span.start,
                &by_head(&keys)?,
                &by_head(&values)?,
            )?;
            for block in &span.blocks {
                let queries = queries.narrow(0, span.row + block.first, block.queries)?;
                let length = span.start + block.first + block.queries;
                outputs.push(attend(
                    &queries,
                    &all_keys.narrow(1, 0, length)?,
                    &all_values.narrow(1, 0, length)?,
                    block.mask.as_ref(),
                )?);
            }
        }
        let attended = match outputs.as_slice() {
            [one] => one.clone(),
            several => Tensor::cat(several, 0)?,
        };
        self.output.forward(&attended)
    }
}

/// Attention of some queries of one sequence. Queries that share a KV head are rows of one product,
/// so that keys and values are never repeated.
///
/// `queries`: `[queries, heads, head_size]`, scaled; `keys`, `values`: `[kv_heads, length,
/// head_size]`. Returns `[queries, heads · head_size]`.
fn attend(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
) -> candle_core::Result<Tensor> {
    let (count, heads, head_size) = queries.dims3()?;
    let (kv_heads, length, _) = keys.dims3()?;
    let rows = heads * count / kv_heads;
    let queries = queries
        .transpose(0, 1)?
        .contiguous()?
        .reshape((kv_heads, rows, head_size))?;
    let mut scores = queries.matmul(&keys.t()?)?;
    if let Some(mask) = mask {
        scores = scores
            .reshape((heads, count, length))?
            .broadcast_add(mask)?
            .reshape((kv_heads, rows, length))?;
    }
    softmax_last_dim(&scores)?
        .matmul(values)?
        .reshape((heads, count, head_size))?
        .transpose(0, 1)?
        .reshape((count, heads * head_size))
}
