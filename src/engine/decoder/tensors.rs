//! The tensors of a decoder: names as in GGUF (`blk.0.attn_q`), shapes, and which a file must have.

use super::rope::DIVISORS;
use super::{Decoder, PairOrder};
use crate::error::{Error, Result};

/// Whether a file has a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Required,
    Optional,
    /// A file with such a tensor is another model.
    Absent,
}

/// A matrix and the bias of its outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MatrixTensor {
    /// Without `.weight` or `.bias`.
    pub(crate) name: String,
    /// `[outputs, inputs]`.
    pub(crate) shape: (usize, usize),
    /// The number of heads whose rows the file stores as [`PairOrder::Neighbours`]; `None` for rows in
    /// the order of the computation. The bias has the order of the rows.
    pub(crate) interleaved_heads: Option<usize>,
    /// Whether there is a bias, `[outputs]`.
    pub(crate) bias: Presence,
}

impl MatrixTensor {
    pub(crate) fn bias_name(&self) -> String {
        format!("{}.bias", self.name)
    }
}

/// A vector that a file must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VectorTensor {
    pub(crate) name: String,
    pub(crate) length: usize,
}

/// The tensors of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerTensors {
    index: usize,
    pub(crate) attention_norm: VectorTensor,
    pub(crate) query: MatrixTensor,
    pub(crate) key: MatrixTensor,
    pub(crate) value: MatrixTensor,
    /// The norms of a query head and of a key head.
    pub(crate) head_norms: Option<[VectorTensor; 2]>,
    pub(crate) output: MatrixTensor,
    pub(crate) feed_forward_norm: VectorTensor,
    pub(crate) gate: MatrixTensor,
    pub(crate) up: MatrixTensor,
    pub(crate) down: MatrixTensor,
}

impl LayerTensors {
    pub(super) fn matrices(&self) -> [&MatrixTensor; 7] {
        [
            &self.query,
            &self.key,
            &self.value,
            &self.output,
            &self.gate,
            &self.up,
            &self.down,
        ]
    }

    /// Checks that what a file has of the tensors that models may lack is what this one needs: a file
    /// without them holds another model. `biases`: of query, key and value; `head_norms`: of queries and
    /// keys.
    ///
    /// # Errors
    /// Exit code 3, with the tensor that is missing.
    pub(crate) fn check_found(&self, biases: [bool; 3], head_norms: [bool; 2]) -> Result<()> {
        if biases.iter().any(|bias| *bias != biases[0]) {
            return Err(Error::preflight(format!(
                "only some of attn_q, attn_k, attn_v in block {} have a bias",
                self.index
            )));
        }
        if self.query.bias == Presence::Required && !biases[0] {
            return Err(Error::preflight(format!(
                "tensor `{}` is missing",
                self.query.bias_name()
            )));
        }
        if let Some([query, _]) = &self.head_norms
            && head_norms.contains(&false)
        {
            return Err(Error::preflight(format!(
                "tensor `{}` or `attn_k_norm.weight` is missing",
                query.name
            )));
        }
        Ok(())
    }
}

impl Decoder {
    /// The tensors of layer `index`.
    pub(crate) fn layer_tensors(&self, index: usize) -> LayerTensors {
        let spec = &self.spec;
        let (hidden, intermediate) = (spec.hidden, spec.intermediate);
        let (queries, keys) = (spec.query_width(), spec.key_width());
        let name = |stem: &str| format!("blk.{index}.{stem}");
        let vector = |stem: &str, length: usize| VectorTensor {
            name: name(&format!("{stem}.weight")),
            length,
        };
        let matrix = |stem: &str, shape: (usize, usize)| MatrixTensor {
            name: name(stem),
            shape,
            interleaved_heads: None,
            bias: Presence::Optional,
        };
        let input = |stem: &str, rows: usize, rotated_heads: Option<usize>| MatrixTensor {
            interleaved_heads: match self.stored_pairs {
                PairOrder::Halves => None,
                PairOrder::Neighbours => rotated_heads,
            },
            bias: self.attention.bias,
            ..matrix(stem, (rows, hidden))
        };
        LayerTensors {
            index,
            attention_norm: vector("attn_norm", hidden),
            query: input("attn_q", queries, Some(spec.heads)),
            key: input("attn_k", keys, Some(spec.kv_heads)),
            value: input("attn_v", keys, None),
            head_norms: self
                .attention
                .head_norm
                .then(|| ["attn_q_norm", "attn_k_norm"].map(|stem| vector(stem, spec.head_size))),
            output: matrix("attn_output", (hidden, queries)),
            feed_forward_norm: vector("ffn_norm", hidden),
            gate: matrix("ffn_gate", (intermediate, hidden)),
            up: matrix("ffn_up", (intermediate, hidden)),
            down: matrix("ffn_down", (hidden, intermediate)),
        }
    }

    /// `[vocabulary, hidden]`.
    pub(crate) fn embedding(&self) -> MatrixTensor {
        self.table("token_embd")
    }

    /// The output head, `[vocabulary, hidden]`; `None` if it is the embedding.
    pub(crate) fn head(&self) -> Option<MatrixTensor> {
        (!self.tied).then(|| self.table("output"))
    }

    fn table(&self, name: &str) -> MatrixTensor {
        MatrixTensor {
            name: name.to_owned(),
            shape: (self.spec.vocabulary, self.spec.hidden),
            interleaved_heads: None,
            bias: Presence::Absent,
        }
    }

    /// The norm before the output head.
    pub(crate) fn output_norm(&self) -> VectorTensor {
        VectorTensor {
            name: "output_norm.weight".to_owned(),
            length: self.spec.hidden,
        }
    }

    /// The names of all tensors that a file of this model may have. A head beside a tied embedding, and
    /// divisors beside those that `config.json` gives, are not used.
    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = String> {
        let outside = ["token_embd.weight", "output_norm.weight", "output.weight"];
        let outside = outside.into_iter().chain([DIVISORS]).map(str::to_owned);
        let inside = (0..self.spec.layers).flat_map(|index| {
            let layer = self.layer_tensors(index);
            let weights = layer.matrices().map(|matrix| {
                let weight = format!("{}.weight", matrix.name);
                let bias = (matrix.bias != Presence::Absent).then(|| matrix.bias_name());
                [Some(weight), bias]
            });
            let norms = [layer.attention_norm, layer.feed_forward_norm];
            let norms = norms
                .into_iter()
                .chain(layer.head_norms.into_iter().flatten());
            let weights = weights.into_iter().flatten().flatten();
            weights
                .chain(norms.map(|norm| norm.name))
                .collect::<Vec<_>>()
        });
        outside.chain(inside)
    }
}
