//! One transformer block over a packed batch. The tokens of all sequences are rows of one matrix,
//! so each weight is read once per pass. Only attention distinguishes sequences
//! ([`super::attention`]).

use candle_core::Tensor;
use candle_nn::ops::{rms_norm, silu};
use candle_nn::rotary_emb::rope_thd;

use super::attention;
use super::kv::KvPages;
use super::linear::Linear;
use super::pass::PlannedPass;
use crate::engine::decoder::{Decoder, MatrixTensor, Presence, VectorTensor};
use crate::engine::model::source::{Weights, ordered_bias, ordered_matrix, required_vector};
use crate::error::{Context, Error, Exit, Result};

pub(super) struct Layer {
    index: usize,
    /// `[hidden]`
    attention_norm: Tensor,
    /// Queries, keys and values: `[(heads + 2 kv_heads) · head_size, hidden]`.
    qkv: Linear,
    /// Per-head norms of queries and keys, `[head_size]` (qwen3).
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

impl Layer {
    /// Loads block `index`.
    pub(super) fn load(index: usize, weights: &dyn Weights, decoder: &Decoder) -> Result<Self> {
        let norm = |tensor: &VectorTensor| required_vector(weights, tensor);
        let linear = |stems: &[&str], parts: &[&MatrixTensor]| {
            let mut matrices = Vec::new();
            let mut biases = Vec::new();
            for tensor in parts {
                matrices.push(ordered_matrix(weights, tensor)?);
                biases.push(ordered_bias(weights, tensor)?);
            }
            if parts[0].bias == Presence::Required && biases[0].is_none() {
                return Err(Error::preflight(format!(
                    "{} is missing",
                    weights.place(&weights.file_name(&parts[0].bias_name()))
                )));
            }
            let biases: Vec<Tensor> = biases.into_iter().flatten().collect();
            if !biases.is_empty() && biases.len() != parts.len() {
                return Err(Error::preflight(format!(
                    "only some of {} in block {index} have a bias",
                    stems.join(", ")
                )));
            }
            Linear::new(matrices, biases).or_exit(Exit::Preflight, || {
                format!("failed to load {} of block {index}", stems.join(", "))
            })
        };

        let tensors = decoder.layer_tensors(index);
        Ok(Self {
            index,
            qkv: linear(
                &["attn_q", "attn_k", "attn_v"],
                &[&tensors.query, &tensors.key, &tensors.value],
            )?,
            output: linear(&["attn_output"], &[&tensors.output])?,
            gate_up: linear(&["ffn_gate", "ffn_up"], &[&tensors.gate, &tensors.up])?,
            down: linear(&["ffn_down"], &[&tensors.down])?,
            attention_norm: norm(&tensors.attention_norm)?,
            qk_norms: match &tensors.head_norms {
                Some([query, key]) => Some((norm(query)?, norm(key)?)),
                None => None,
            },
            feed_forward_norm: norm(&tensors.feed_forward_norm)?,
        })
    }

    /// `x` and the result: `[tokens, hidden]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        pass: &PlannedPass<'_>,
        kv: &KvPages,
    ) -> candle_core::Result<Tensor> {
        let epsilon = pass.spec.norm_epsilon as f32;
        let normed = rms_norm(x, &self.attention_norm, epsilon)?;
        let x = (x + self.attention(&normed, pass, kv)?)?;
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
        pass: &PlannedPass<'_>,
        kv: &KvPages,
    ) -> candle_core::Result<Tensor> {
        let spec = pass.spec;
        let (heads, kv_heads, head_size) = (spec.heads, spec.kv_heads, spec.head_size);
        let tokens = x.dim(0)?;
        let epsilon = spec.norm_epsilon as f32;
        let qkv = self.qkv.forward(x)?;
        // Queries and keys are adjacent, so they are rotated together.
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

        // Keys, then values, as in the pool.
        let by_head = [keys.transpose(0, 1)?, values.transpose(0, 1)?];
        let rows = Tensor::cat(&by_head, 0)?.contiguous()?;
        kv.write(self.index, &rows, &pass.places)?;
        let attended = attention::attend(&queries, kv, self.index, pass)?;
        self.output.forward(&attended)
    }
}
