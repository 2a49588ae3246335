//! The device-generic forward pass of the Llama family (llama, mistral, qwen2, qwen3) on candle
//! tensors: the same code on a CPU and on a GPU, where only the form of the weights differs.
//!
//! A batch is ragged: each chunk has its own length and position. All tokens are rows of one matrix
//! `[tokens, hidden]`, so that each weight is read once a pass, whatever the number of sequences.
//! Nothing waits for the device between the first layer and the logits.

mod dense;
mod kv;
mod layer;
mod linear;
pub(super) mod rope;
#[cfg(test)]
mod tests;
pub(super) mod weights;

use std::collections::HashSet;

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::rms_norm;
use rayon::prelude::*;

use self::kv::KvCache;
use self::layer::{Layer, Pass, Span};
use self::linear::{Embedding, Linear};
use self::rope::Rope;
use self::weights::{Weights, required_vector};
use super::{Chunk, Model, ModelSpec, Slot};
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::error::{Context, Error, Exit, Result};

pub(crate) use self::linear::WeightFormat;
#[cfg(test)]
pub(super) use self::weights::hub_name;

/// `general.architecture`s that run here. Mistral's files call themselves `llama`.
pub(super) const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];
const MAX_SEQUENCES: usize = 256;
/// Most queries of a sequence that attend at once on a CPU: their scores stay in the cache, and
/// what is behind a query is not computed. On a GPU one product is better.
const CPU_QUERY_BLOCK: usize = 128;

/// Whether the file's model runs here: of the Llama family, without experts.
pub(super) fn supports(file: &GgufFile) -> Result<bool> {
    Ok(ARCHITECTURES.contains(&file.architecture()?)
        && file.count("expert_count")?.unwrap_or(0) == 0)
}

/// The sizes of a GGUF file's model of the Llama family, once it is sure that the file holds such a
/// model and nothing else.
///
/// # Errors
/// Exit code 3: sizes that do not fit, or tensors that no such model has.
pub(super) fn checked_spec(file: &GgufFile) -> Result<ModelSpec> {
    let spec = file.spec()?;
    if spec.rope_dimensions != spec.head_size && spec.architecture != "llama" {
        return Err(file.wrong(
            &format!("{}.rope.dimension_count", spec.architecture),
            &format!(
                "is {}, not the head size {}, which is not supported",
                spec.rope_dimensions, spec.head_size
            ),
        ));
    }
    let value_length = file.count("attention.value_length")?;
    if value_length.is_some_and(|length| length != spec.head_size) {
        return Err(file.wrong(
            &format!("{}.attention.value_length", spec.architecture),
            "is not the key length, which is not supported",
        ));
    }
    check_names(file, &spec, file.tensor_names())?;
    Ok(spec)
}

/// A Llama-family model on one device.
pub(super) struct CandleModel {
    spec: ModelSpec,
    device: Device,
    format: WeightFormat,
    /// For the record: `Q4_1 as f32`.
    weights: String,
    embedding: Embedding,
    layers: Vec<Layer>,
    /// `[hidden]`
    norm: Tensor,
    /// `[vocabulary, hidden]`
    head: Linear,
    rope: Rope,
    cache: KvCache,
}

impl CandleModel {
    /// Loads a GGUF file's model in the form that the device is fast with.
    pub(super) fn from_gguf(file: &GgufFile, device: &Device) -> Result<Self> {
        let format = match device {
            Device::Cpu => WeightFormat::Dense(DType::F32),
            _ => WeightFormat::Quantized,
        };
        Self::from_gguf_as(file, format, device)
    }

    /// Loads a GGUF file's model in this form.
    pub(super) fn from_gguf_as(
        file: &GgufFile,
        format: WeightFormat,
        device: &Device,
    ) -> Result<Self> {
        let spec = checked_spec(file)?;
        let weights = match format {
            WeightFormat::Dense(dtype) => format!("{} as {}", file.weight_type(), dtype.as_str()),
            WeightFormat::Quantized => file.weight_type(),
        };
        Self::load(file, spec, weights, format, device)
    }

    /// Loads a folder's model: in f32 on a CPU, as it is stored elsewhere.
    pub(super) fn from_safetensors(folder: &SafetensorsFolder, device: &Device) -> Result<Self> {
        let spec = folder.spec()?;
        let stored = folder.weight_type();
        let dtype = match (device, stored) {
            (Device::Cpu, _) => DType::F32,
            (_, "F16") => DType::F16,
            (_, "BF16") => DType::BF16,
            _ => DType::F32,
        };
        let weights = format!("{stored} as {}", dtype.as_str());
        check_names(folder, &spec, folder.tensor_names())?;
        Self::load(folder, spec, weights, WeightFormat::Dense(dtype), device)
    }

    fn load(
        source: &dyn Weights,
        spec: ModelSpec,
        weights: String,
        format: WeightFormat,
        device: &Device,
    ) -> Result<Self> {
        let load_layer = |index| Layer::load(index, source, &spec, format, device);
        let layers: Result<Vec<Layer>> = if device.is_cpu() {
            // Turning quantised weights into dense ones is most of the time that loading takes.
            (0..spec.layers).into_par_iter().map(load_layer).collect()
        } else {
            (0..spec.layers).map(load_layer).collect()
        };
        let table = (spec.vocabulary, spec.hidden);
        let failed = || format!("failed to load the {} model", spec.architecture);
        let embedding = source.matrix("token_embd", table, device)?;
        let embedding =
            Embedding::new(embedding, format, device).or_exit(Exit::Preflight, failed)?;
        let head = if source.output_is_tied() {
            embedding.tied_head()
        } else {
            let matrix = source.matrix("output", table, device)?;
            Linear::new(vec![matrix], Vec::new(), format, device)
                .or_exit(Exit::Preflight, failed)?
        };
        let norm = required_vector(source, "output_norm.weight", spec.hidden, device)?
            .to_dtype(format.activations())
            .or_exit(Exit::Preflight, failed)?;
        let divisors = source.rope_divisors(&spec)?;
        let rope = Rope::new(&spec, divisors.as_deref(), format.activations(), device)
            .or_exit(Exit::Preflight, failed)?;
        Ok(Self {
            device: device.clone(),
            format,
            weights,
            embedding,
            layers: layers?,
            norm,
            head,
            rope,
            cache: KvCache::new(&spec, format.activations(), device),
            spec,
        })
    }

    /// What can be wrong with a batch, before anything of it is computed.
    fn check(&self, chunks: &[Chunk<'_>]) -> Result<()> {
        let mut seen = HashSet::new();
        for chunk in chunks {
            let fail = |what: String| {
                Err(Error::new(
                    Exit::FlowFailed,
                    format!("sequence {} {what}", chunk.slot.0),
                ))
            };
            let Some(length) = self.cache.length(chunk.slot) else {
                return fail("is not open".to_owned());
            };
            if !seen.insert(chunk.slot) {
                return fail("is in the batch twice".to_owned());
            }
            super::check_chunk(chunk, length, &self.spec)?;
        }
        Ok(())
    }

    fn compute(&mut self, chunks: &[Chunk<'_>]) -> candle_core::Result<Vec<Vec<f32>>> {
        let dtype = self.format.activations();
        let block = match self.device {
            Device::Cpu => CPU_QUERY_BLOCK,
            _ => usize::MAX,
        };
        let mut tokens = Vec::new();
        let mut positions = Vec::new();
        let mut wanted = Vec::new();
        let mut spans = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let (row, count) = (tokens.len(), chunk.tokens.len());
            self.cache.reserve(chunk.slot, chunk.start + count)?;
            spans.push(Span::new(
                chunk.slot,
                row,
                count,
                chunk.start,
                block,
                dtype,
                &self.device,
            )?);
            tokens.extend_from_slice(chunk.tokens);
            positions.extend((chunk.start..chunk.start + count).map(|position| position as u32));
            if chunk.logits {
                wanted.push((row + count - 1) as u32);
            }
        }
        let (cos, sin) = self.rope.rows(&positions)?;
        let pass = Pass {
            spec: &self.spec,
            cos,
            sin,
            spans,
        };
        let tokens = Tensor::new(tokens, &self.device)?;
        let mut x = self.embedding.lookup(&tokens)?;
        for layer in &self.layers {
            x = layer.forward(&x, &pass, &self.cache)?;
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = Tensor::new(wanted, &self.device)?;
        let x = x.index_select(&wanted, 0)?;
        let x = rms_norm(&x, &self.norm, self.spec.norm_epsilon as f32)?;
        self.head.forward(&x)?.to_dtype(DType::F32)?.to_vec2()
    }
}

impl Model for CandleModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn backend(&self) -> &'static str {
        "candle"
    }

    fn weights(&self) -> String {
        self.weights.clone()
    }

    fn max_sequences(&self) -> usize {
        MAX_SEQUENCES
    }

    fn open(&mut self) -> Result<Slot> {
        if self.cache.open_count() >= MAX_SEQUENCES {
            return Err(Error::flow(format!(
                "{MAX_SEQUENCES} sequences are open already"
            )));
        }
        Ok(self.cache.open())
    }

    fn close(&mut self, slot: Slot) {
        self.cache.close(slot);
    }

    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        self.check(chunks)?;
        let logits = if self.device.is_cpu() {
            // Inside the thread pool, so that an operation on a few rows need not enter it: 10 % of
            // a decode step.
            rayon::scope(|_| self.compute(chunks))
        } else {
            self.compute(chunks)
        };
        let logits = logits.or_exit(Exit::FlowFailed, || "the forward pass failed".to_owned())?;
        for chunk in chunks {
            self.cache
                .advance(chunk.slot, chunk.start + chunk.tokens.len());
        }
        Ok(logits)
    }

    fn synchronize(&self) -> Result<()> {
        self.device
            .synchronize()
            .or_exit(Exit::FlowFailed, || "the device failed".to_owned())
    }
}

/// Refuses a file with tensors that this forward pass knows nothing of: it would compute another
/// model than the file holds.
pub(super) fn check_names<'a>(
    weights: &dyn Weights,
    spec: &ModelSpec,
    names: impl Iterator<Item = &'a str>,
) -> Result<()> {
    const OF_MODEL: [&str; 4] = [
        "token_embd.weight",
        "output_norm.weight",
        "output.weight",
        "rope_freqs.weight",
    ];
    const OF_LAYER: [&str; 16] = [
        "attn_norm.weight",
        "attn_q.weight",
        "attn_q.bias",
        "attn_k.weight",
        "attn_k.bias",
        "attn_v.weight",
        "attn_v.bias",
        "attn_output.weight",
        "attn_output.bias",
        "ffn_norm.weight",
        "ffn_gate.weight",
        "ffn_gate.bias",
        "ffn_up.weight",
        "ffn_up.bias",
        "ffn_down.weight",
        "ffn_down.bias",
    ];
    const OF_QWEN3_LAYER: [&str; 2] = ["attn_q_norm.weight", "attn_k_norm.weight"];
    let of_family: &[&str] = match spec.architecture.as_str() {
        "qwen3" => &OF_QWEN3_LAYER,
        _ => &[],
    };
    let mut known: HashSet<String> = OF_MODEL
        .iter()
        .map(|name| weights.file_name(name))
        .collect();
    for layer in 0..spec.layers {
        let stems = OF_LAYER.iter().chain(of_family);
        known.extend(stems.map(|stem| weights.file_name(&format!("blk.{layer}.{stem}"))));
    }
    for name in names {
        // Old files have the frequencies of the rotation in every layer.
        let frequencies =
            name.ends_with("rotary_emb.inv_freq") || name.ends_with("rot_embd.weight");
        if !known.contains(name) && !frequencies {
            return Err(Error::preflight(format!(
                "{} is not part of a {} model as flowbench knows it",
                weights.place(name),
                spec.architecture
            ))
            .hint("give another model with MODEL=/path/file.gguf or MODEL=owner/name:file"));
        }
    }
    Ok(())
}
