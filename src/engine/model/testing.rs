//! Helpers for tests with models: the real model, and tiny models with random weights.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use crate::engine::load::gguf::GgufFile;
pub(crate) use crate::test_model::test_model;

/// A file's model on the native backend with this number of threads.
pub(crate) fn native(path: &Path, threads: usize) -> Box<dyn super::Model> {
    Box::new(super::native::tests::native(path, threads, 0))
}

/// Pseudo-random numbers from -1 to 1.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> f32 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn below(&mut self, end: u32) -> u32 {
        (((f64::from(self.next()) + 1.0) / 2.0 * f64::from(end)) as u32).min(end - 1)
    }

    pub(crate) fn tokens(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocabulary as u32)).collect()
    }

    fn tensor(&mut self, shape: &[usize], around: f32, spread: f32) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| around + spread * self.next()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }
}

/// A model with random weights, with GGUF's tensor names and Hugging Face's row order.
pub(crate) struct Tiny {
    pub(crate) architecture: &'static str,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_size: usize,
    /// Number of leading dimensions of a head that are rotated.
    pub(crate) rope_dimensions: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context_length: usize,
    pub(crate) rope_base: f32,
    pub(crate) tensors: Vec<(String, Tensor)>,
}

pub(crate) const LAYERS: usize = 2;

impl Tiny {
    pub(crate) fn new(architecture: &'static str, tied: bool) -> Self {
        // In candle-transformers, only qwen3 supports a head size other than hidden / heads.
        let head_size = if architecture == "qwen3" { 128 } else { 64 };
        // All row lengths are multiples of 256, as the quantized types require.
        let sizes = Self {
            architecture,
            hidden: 256,
            heads: 4,
            kv_heads: 2,
            head_size,
            rope_dimensions: head_size,
            intermediate: 512,
            vocabulary: 320,
            context_length: 2048,
            rope_base: 10_000.0,
            tensors: Vec::new(),
        };
        sizes.filled(tied)
    }

    /// The same sizes with newly generated tensors.
    pub(crate) fn filled(self, tied: bool) -> Self {
        let mut tiny = Self {
            tensors: Vec::new(),
            ..self
        };
        let architecture = tiny.architecture;
        let mut random = Random(7);
        let (hidden, inner) = (tiny.hidden, tiny.intermediate);
        let (q, kv) = (tiny.heads * tiny.head_size, tiny.kv_heads * tiny.head_size);
        let mut add = |name: String, shape: &[usize]| {
            let (around, spread) = match shape {
                [_] if name.ends_with("norm.weight") => (1.0, 0.2),
                [_] => (0.0, 0.2),
                _ => (0.0, 0.1),
            };
            tiny.tensors
                .push((name, random.tensor(shape, around, spread)));
        };
        add("token_embd.weight".into(), &[tiny.vocabulary, hidden]);
        add("output_norm.weight".into(), &[hidden]);
        if !tied {
            add("output.weight".into(), &[tiny.vocabulary, hidden]);
        }
        for layer in 0..LAYERS {
            let mut add = |stem: &str, shape: &[usize]| add(format!("blk.{layer}.{stem}"), shape);
            add("attn_norm.weight", &[hidden]);
            add("attn_q.weight", &[q, hidden]);
            add("attn_k.weight", &[kv, hidden]);
            add("attn_v.weight", &[kv, hidden]);
            add("attn_output.weight", &[hidden, q]);
            add("ffn_norm.weight", &[hidden]);
            add("ffn_gate.weight", &[inner, hidden]);
            add("ffn_up.weight", &[inner, hidden]);
            add("ffn_down.weight", &[hidden, inner]);
            if architecture == "qwen2" {
                add("attn_q.bias", &[q]);
                add("attn_k.bias", &[kv]);
                add("attn_v.bias", &[kv]);
            }
            if architecture == "qwen3" {
                add("attn_q_norm.weight", &[tiny.head_size]);
                add("attn_k_norm.weight", &[tiny.head_size]);
            }
        }
        tiny
    }

    pub(crate) fn metadata(&self) -> Vec<(String, Value)> {
        let key = |key: &str| format!("{}.{key}", self.architecture);
        let count = |count: usize| Value::U32(count as u32);
        vec![
            (
                "general.architecture".into(),
                Value::String(self.architecture.into()),
            ),
            ("general.name".into(), Value::String("tiny".into())),
            // Without it, candle-transformers' qwen3 computes rotations in f16.
            ("general.dtype".into(), Value::U32(0)),
            (key("block_count"), count(LAYERS)),
            (key("embedding_length"), count(self.hidden)),
            (key("feed_forward_length"), count(self.intermediate)),
            (key("attention.head_count"), count(self.heads)),
            (key("attention.head_count_kv"), count(self.kv_heads)),
            (key("attention.key_length"), count(self.head_size)),
            (key("attention.value_length"), count(self.head_size)),
            (key("context_length"), count(self.context_length)),
            (key("rope.dimension_count"), count(self.rope_dimensions)),
            (key("rope.freq_base"), Value::F32(self.rope_base)),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        ]
    }

    /// Writes a GGUF file with matrices of this type, and returns its path.
    pub(crate) fn write_gguf(&self, folder: &Path, dtype: GgmlDType) -> PathBuf {
        let path = folder.join(format!("{}.{dtype:?}.gguf", self.architecture));
        write_gguf(&path, &self.metadata(), &self.stored(|_| dtype));
        path
    }

    /// Like [`Self::write_gguf`], split into `count` parts. The first part has the metadata.
    pub(crate) fn write_split(
        &self,
        folder: &Path,
        dtype: GgmlDType,
        count: usize,
    ) -> Vec<PathBuf> {
        let tensors = self.stored(|_| dtype);
        let share = tensors.len().div_ceil(count);
        let mut paths = Vec::new();
        for (index, part) in tensors.chunks(share).enumerate() {
            let path = folder.join(format!("split-{:05}-of-{count:05}.gguf", index + 1));
            let mut metadata = match index {
                0 => self.metadata(),
                _ => Vec::new(),
            };
            metadata.extend([
                ("split.no".to_owned(), Value::U16(index as u16)),
                ("split.count".to_owned(), Value::U16(count as u16)),
                (
                    "split.tensors.count".to_owned(),
                    Value::I32(tensors.len() as i32),
                ),
            ]);
            write_gguf(&path, &metadata, part);
            paths.push(path);
        }
        assert_eq!(paths.len(), count);
        paths
    }

    /// The tensors as stored in a GGUF file. `types` gives a matrix's type by its name.
    pub(crate) fn stored(&self, types: impl Fn(&str) -> GgmlDType) -> Vec<(String, QTensor)> {
        self.tensors
            .iter()
            .map(|(name, tensor)| {
                let heads = match name {
                    name if name.contains("attn_q.") => self.heads,
                    name if name.contains("attn_k.") => self.kv_heads,
                    _ => 1,
                };
                let tensor = if heads > 1 && self.architecture == "llama" {
                    interleave_rows(tensor, heads)
                } else {
                    tensor.clone()
                };
                let dtype = match tensor.rank() {
                    1 => GgmlDType::F32,
                    _ => types(name),
                };
                (name.clone(), QTensor::quantize(&tensor, dtype).unwrap())
            })
            .collect()
    }

    /// Writes a safetensors model folder.
    pub(crate) fn write_folder(&self, folder: &Path, config: &serde_json::Value) {
        let tensors: HashMap<String, Tensor> = self
            .tensors
            .iter()
            .map(|(name, tensor)| (super::source::hub_name(name), tensor.clone()))
            .collect();
        candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    }

    pub(crate) fn config(&self) -> serde_json::Value {
        serde_json::json!({
            "model_type": self.architecture,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_base,
            "hidden_act": "silu",
            "rope_scaling": null,
            "tie_word_embeddings": !self.tensors.iter().any(|(name, _)| name == "output.weight"),
        })
    }
}

/// The row order of Llama's query and key matrices in converted GGUF files.
fn interleave_rows(tensor: &Tensor, heads: usize) -> Tensor {
    let half = tensor.dim(0).unwrap() / heads / 2;
    tensor
        .reshape((heads, 2, half, tensor.elem_count() / (heads * half * 2)))
        .unwrap()
        .transpose(1, 2)
        .unwrap()
        .contiguous()
        .unwrap()
        .reshape(tensor.shape())
        .unwrap()
}

pub(crate) fn write_gguf(path: &Path, metadata: &[(String, Value)], tensors: &[(String, QTensor)]) {
    let metadata: Vec<(&str, &Value)> = metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    let tensors: Vec<(&str, &QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// Changes a tensor's type in a GGUF file to this ggml type number. The data stays as it is.
pub(crate) fn retype(path: &Path, tensor: &str, number: u32) {
    let mut bytes = std::fs::read(path).unwrap();
    let name = tensor.as_bytes();
    let found = bytes.windows(name.len()).position(|window| window == name);
    let dimensions = found.unwrap() + name.len();
    let count = u32::from_le_bytes(bytes[dimensions..dimensions + 4].try_into().unwrap());
    let place = dimensions + 4 + 8 * count as usize;
    bytes[place..place + 4].copy_from_slice(&number.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

/// The same model with every tensor in f32, as an in-memory file. candle-transformers computes it
/// in f32, since candle treats "quantized" f32 matrices as dense ones.
pub(crate) fn in_f32(path: &Path) -> std::io::Cursor<Vec<u8>> {
    let file = GgufFile::open(path).unwrap();
    let mut names: Vec<&str> = file.tensor_names().collect();
    names.sort_unstable();
    let tensors: Vec<QTensor> = names
        .iter()
        .map(|name| {
            let tensor = file.tensor(name).unwrap();
            let tensor = tensor.dequantize(&Device::Cpu).unwrap();
            QTensor::quantize(&tensor, GgmlDType::F32).unwrap()
        })
        .collect();
    let mut metadata: Vec<(&str, &Value)> = file
        .metadata()
        .iter()
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    metadata.sort_unstable_by_key(|(key, _)| *key);
    let tensors: Vec<(&str, &QTensor)> = names.into_iter().zip(&tensors).collect();
    let mut bytes = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
    bytes.set_position(0);
    bytes
}

/// The largest difference between two rows of logits, relative to the largest logit.
pub(crate) fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.iter().chain(theirs).all(|logit| logit.is_finite()));
    let largest = theirs
        .iter()
        .fold(0.0f32, |most, logit| most.max(logit.abs()));
    let pairs = ours.iter().zip(theirs);
    pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}
