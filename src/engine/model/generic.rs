//! candle-transformers' models, for GGUF files of other architectures: one sequence at a time.
//!
//! These models store keys and values internally and discard them when a forward pass starts at
//! position 0. So there is only one slot, and opening it only means that the next pass starts at 0.
//! Input that such a model would compute wrongly is kept from it: see [`Traits`].

use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::{
    quantized_gemma3, quantized_glm4, quantized_lfm2, quantized_llama, quantized_phi,
    quantized_phi3,
};

use super::{Chunk, Limits, Model, ModelSpec, Slot, check_chunk};
use crate::engine::load::gguf::GgufFile;
use crate::engine::memory::{self, OutOfMemory};
use crate::error::{Context, Error, Exit, Result};

const CPU: &Device = &Device::Cpu;

enum Inner {
    Llama(quantized_llama::ModelWeights),
    Phi2(quantized_phi::ModelWeights),
    Phi3(quantized_phi3::ModelWeights),
    Gemma3(quantized_gemma3::ModelWeights),
    Glm4(quantized_glm4::ModelWeights),
    Lfm2(quantized_lfm2::ModelWeights),
}

/// Limits of a candle-transformers model.
pub(super) struct Traits {
    /// Number of positions that it has rotations for.
    positions: usize,
    /// The sliding window; sequences are limited to it, since within it the window has no effect.
    /// Beyond it, candle-transformers applies the window in the first pass only (gemma3) or never
    /// (phi3).
    window: Option<usize>,
    /// Whether it can take several tokens after the first pass. gemma3's mask hides the earlier
    /// ones, and lfm2's convolutions lose them, so these models get one token at a time.
    continues: bool,
}

/// A model of candle-transformers.
pub(super) struct GenericModel {
    inner: Inner,
    spec: ModelSpec,
    weights: String,
    continues: bool,
    /// Number of computed tokens; `None` if no sequence is open.
    length: Option<usize>,
    /// Whether there has been a sequence before.
    used: bool,
}

impl GenericModel {
    /// Loads a GGUF model.
    ///
    /// # Errors
    /// Exit code 3 if candle-transformers does not accept the file, or would compute a different
    /// model.
    pub(super) fn from_gguf(file: &GgufFile, limits: &Limits) -> Result<Self> {
        let (mut spec, traits) = check(file)?;
        spec.context_length = spec.context_length.min(traits.positions);
        spec = spec.within_window(traits.window);
        limits.check(&spec)?;
        let positions = limits.tokens_of(&spec, token_bytes(&spec));
        check_tables(&spec, positions).map_err(|source| {
            Error::preflight(format!(
                "`{}` has a context of {}, and there is not enough memory for its RoPE tables",
                file.path().display(),
                spec.context_text()
            ))
            .caused_by(source)
            .hint("set a smaller CONTEXT")
        })?;
        let architecture = spec.architecture.as_str();
        let (mut content, mut reader) = file.for_candle(&spec)?;
        // Tables and caches are allocated for the whole context, whether it is used or not.
        let key = format!("{architecture}.context_length");
        content.metadata.insert(
            key,
            Value::U32(u32::try_from(positions).unwrap_or(u32::MAX)),
        );
        let inner =
            match architecture {
                "llama" => quantized_llama::ModelWeights::from_gguf(content, &mut reader, CPU)
                    .map(Inner::Llama),
                "phi2" => quantized_phi::ModelWeights::from_gguf(content, &mut reader, CPU)
                    .map(Inner::Phi2),
                "phi3" => quantized_phi3::ModelWeights::from_gguf(false, content, &mut reader, CPU)
                    .map(Inner::Phi3),
                "gemma3" => quantized_gemma3::ModelWeights::from_gguf(content, &mut reader, CPU)
                    .map(Inner::Gemma3),
                "glm4" => {
                    quantized_glm4::ModelWeights::from_gguf(content, &mut reader, CPU, DType::F32)
                        .map(Inner::Glm4)
                }
                _ => quantized_lfm2::ModelWeights::from_gguf(content, &mut reader, CPU)
                    .map(Inner::Lfm2),
            };
        let inner = inner.or_exit(Exit::Preflight, || {
            format!(
                "candle cannot load `{}` as a model of the architecture `{architecture}`",
                file.path().display()
            )
        })?;
        Ok(Self {
            inner,
            spec,
            weights: file.weight_type(),
            continues: traits.continues,
            length: None,
            used: false,
        })
    }

    /// The logits after the last of these tokens.
    fn pass(&mut self, tokens: &[u32], start: usize) -> candle_core::Result<Tensor> {
        let tokens = Tensor::new(tokens, CPU)?.unsqueeze(0)?;
        let logits = match &mut self.inner {
            Inner::Llama(model) => model.forward(&tokens, start),
            Inner::Phi2(model) => model.forward(&tokens, start),
            Inner::Phi3(model) => model.forward(&tokens, start),
            Inner::Gemma3(model) => model.forward(&tokens, start),
            Inner::Glm4(model) => model.forward(&tokens, start),
            Inner::Lfm2(model) => model.forward(&tokens, start),
        };
        logits?.squeeze(0)?.to_dtype(DType::F32)
    }

    fn compute(&mut self, chunk: &Chunk<'_>) -> candle_core::Result<Vec<Vec<f32>>> {
        let size = match chunk.start {
            start if start > 0 && !self.continues => 1,
            _ => chunk.tokens.len(),
        };
        let mut logits = None;
        for (index, tokens) in chunk.tokens.chunks(size).enumerate() {
            logits = Some(self.pass(tokens, chunk.start + index * size)?);
        }
        match logits {
            Some(logits) if chunk.logits => Ok(vec![logits.to_vec1()?]),
            _ => Ok(Vec::new()),
        }
    }
}

/// The model's sizes and limits.
///
/// # Errors
/// Exit code 3 if candle-transformers would compute a different model.
pub(super) fn check(file: &GgufFile) -> Result<(ModelSpec, Traits)> {
    let spec = file.spec()?;
    let architecture = spec.architecture.as_str();
    // No model of candle-transformers supports RoPE scaling.
    let factor = file.rope_factor()?;
    if factor != 1.0 {
        return Err(file.differs(format!(
            "stretches its context by {factor} (rope.scaling.factor)"
        )));
    }
    match architecture {
        "llama" => check_llama(file, &spec)?,
        "phi2" if spec.rope_base != 10_000.0 => {
            return Err(file.differs(format!("has the rotary base {}", spec.rope_base)));
        }
        "phi3" if file.shape("rope_factors_short.weight").is_some() => {
            return Err(file.wrong(
                "phi3.rope.scaling",
                "stretches the context, which is not supported",
            ));
        }
        "phi3" if spec.rope_base != 10_000.0 || spec.rope_dimensions != spec.head_size => {
            return Err(file.wrong(
                "phi3.rope",
                "is not that of Phi 3, which is the only one supported",
            ));
        }
        _ => {}
    }
    let positions = match architecture {
        "llama" => quantized_llama::MAX_SEQ_LEN,
        "phi2" => quantized_phi::MAX_SEQ_LEN,
        "gemma3" => quantized_gemma3::MAX_SEQ_LEN,
        _ => spec.context_length,
    };
    let traits = Traits {
        positions,
        window: file.count("attention.sliding_window")?,
        continues: !matches!(architecture, "gemma3" | "lfm2"),
    };
    Ok((spec, traits))
}

/// Rejects files that violate an assumption of candle-transformers' Llama, or have something that
/// it ignores.
fn check_llama(file: &GgufFile, spec: &ModelSpec) -> Result<()> {
    const OF_MODEL: [&str; 3] = ["token_embd.weight", "output_norm.weight", "output.weight"];
    const OF_LAYER: [&str; 7] = [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate_inp",
    ];
    let experts = file.count("expert_count")?.unwrap_or(0);
    if experts > 1 {
        let key = "llama.expert_used_count";
        match file.count("expert_used_count")? {
            None => return Err(file.lacks(key)),
            Some(used) if used == 0 || used > experts => {
                return Err(file.wrong(key, &format!("is {used}, of {experts} experts")));
            }
            Some(_) => {}
        }
    }
    if experts == 0 {
        // A file that the candle backend rejects is not computed here either.
        super::source::described_gguf(file)?;
    }
    if file
        .count("attention.value_length")?
        .is_some_and(|length| length != spec.head_size)
    {
        return Err(file.differs("has values that are not as long as its keys".to_owned()));
    }
    if spec.head_size * spec.heads != spec.hidden {
        return Err(file.differs(format!("has {} heads of {}", spec.heads, spec.head_size)));
    }
    if spec.rope_dimensions != spec.head_size {
        return Err(file.differs(format!(
            "rotates {} dimensions of a head",
            spec.rope_dimensions
        )));
    }
    let mut names: Vec<&str> = file.tensor_names().collect();
    names.sort_unstable();
    for name in names {
        let in_layer = name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'));
        let known = match in_layer {
            None => OF_MODEL.contains(&name),
            Some((_, part)) => part.strip_suffix(".weight").is_some_and(|stem| {
                OF_LAYER.contains(&stem)
                    // Separate tensors per expert, merged experts, or a dense layer.
                    || ["ffn_gate", "ffn_up", "ffn_down"].iter().any(|of| stem.starts_with(of))
                    // Rotation frequencies in old files; same as computed from the base.
                    || stem == "attn_rot_embd"
            }),
        };
        if !known {
            return Err(file.differs(format!("has the tensor `{name}`")));
        }
    }
    Ok(())
}

/// Bytes of keys and values per token; candle-transformers stores them in f32.
fn token_bytes(spec: &ModelSpec) -> usize {
    2 * spec.layers * spec.kv_heads * spec.head_size * size_of::<f32>()
}

/// Checks that there is memory for the RoPE tables that candle-transformers creates when it loads a
/// model, and for its temporary tensors. Without enough memory it would abort the process.
fn check_tables(spec: &ModelSpec, positions: usize) -> Result<(), OutOfMemory> {
    let (rows, tables) = match spec.architecture.as_str() {
        // Allocated in every layer, for a fixed number of positions.
        "gemma3" => (quantized_gemma3::MAX_SEQ_LEN, spec.layers),
        _ => (positions, 1),
    };
    // Angles, cosines and sines, each for half a head.
    let table = rows.saturating_mul(3 * spec.head_size / 2 * size_of::<f32>());
    memory::probe(table)?;
    memory::check(table.saturating_mul(tables))
}

impl Model for GenericModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn backend(&self) -> &'static str {
        "generic"
    }

    fn weights(&self) -> String {
        self.weights.clone()
    }

    fn max_sequences(&self) -> usize {
        1
    }

    fn token_bytes(&self) -> usize {
        token_bytes(&self.spec)
    }

    fn open(&mut self) -> Result<Slot> {
        if self.length.is_some() {
            return Err(Error::flow(format!(
                "a model of the architecture `{}` runs one sequence at a time",
                self.spec.architecture
            )));
        }
        self.length = Some(0);
        Ok(Slot(0))
    }

    fn close(&mut self, slot: Slot) {
        if slot == Slot(0) {
            self.length = None;
        }
    }

    /// After an error of the pass the sequence is lost and must be closed.
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>> {
        let chunk = match chunks {
            [] => return Ok(Vec::new()),
            [chunk] => chunk,
            _ => return Err(Error::flow("more than one sequence in a batch")),
        };
        let Some(length) = self.length.filter(|_| chunk.slot == Slot(0)) else {
            return Err(Error::flow(format!(
                "sequence {} is not open",
                chunk.slot.0
            )));
        };
        check_chunk(chunk, length, &self.spec)?;
        if matches!(self.inner, Inner::Lfm2(_)) && self.used && length == 0 {
            // Its convolutions continue from the end of the previous sequence unless they see two
            // tokens.
            if chunk.tokens.len() == 1 {
                return Err(Error::flow("lfm2 needs a prompt of at least 2 tokens"));
            }
        }
        self.used = true;
        self.length = Some(usize::MAX);
        let logits = self
            .compute(chunk)
            .or_exit(Exit::FlowFailed, || "the forward pass failed".to_owned())?;
        self.length = Some(length + chunk.tokens.len());
        Ok(logits)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;
    use crate::engine::model::candle;
    use crate::engine::model::testing::{Random, Tiny, difference, test_model, write_gguf};

    const HIDDEN: usize = 64;
    const INNER: usize = 96;
    const VOCABULARY: usize = 200;
    const HEADS: usize = 4;

    /// A file of this architecture with random weights: 2 blocks, 4 heads of size 16.
    fn tiny(folder: &Path, architecture: &str) -> PathBuf {
        let norm = HIDDEN;
        let two_dimensional =
            |name: &str, rows: usize, columns: usize| (name.to_owned(), vec![rows, columns]);
        let one = |name: &str, length: usize| (name.to_owned(), vec![length]);
        let mut model = vec![
            two_dimensional("token_embd.weight", VOCABULARY, HIDDEN),
            one("output_norm.weight", norm),
            two_dimensional("output.weight", VOCABULARY, HIDDEN),
        ];
        let mut block = vec![
            one("attn_norm.weight", norm),
            two_dimensional("attn_output.weight", HIDDEN, HIDDEN),
            two_dimensional("ffn_down.weight", HIDDEN, INNER),
        ];
        let kv = HIDDEN / 2;
        let separate = [
            two_dimensional("attn_q.weight", HIDDEN, HIDDEN),
            two_dimensional("attn_k.weight", kv, HIDDEN),
            two_dimensional("attn_v.weight", kv, HIDDEN),
            one("ffn_norm.weight", norm),
        ];
        let qk_norms = [
            one("attn_q_norm.weight", HIDDEN / HEADS),
            one("attn_k_norm.weight", HIDDEN / HEADS),
        ];
        let gated = [
            two_dimensional("ffn_gate.weight", INNER, HIDDEN),
            two_dimensional("ffn_up.weight", INNER, HIDDEN),
        ];
        match architecture {
            "phi2" => {
                model.push(one("output_norm.bias", norm));
                model.push(one("output.bias", VOCABULARY));
                block.extend([
                    one("attn_norm.bias", norm),
                    two_dimensional("attn_qkv.weight", 3 * HIDDEN, HIDDEN),
                    one("attn_qkv.bias", 3 * HIDDEN),
                    one("attn_output.bias", HIDDEN),
                    two_dimensional("ffn_up.weight", INNER, HIDDEN),
                    one("ffn_up.bias", INNER),
                    one("ffn_down.bias", HIDDEN),
                ]);
            }
            "phi3" => block.extend([
                two_dimensional("attn_qkv.weight", HIDDEN + 2 * kv, HIDDEN),
                two_dimensional("ffn_up.weight", 2 * INNER, HIDDEN),
                one("ffn_norm.weight", norm),
            ]),
            "gemma3" => {
                block.extend(separate);
                block.extend(qk_norms);
                block.extend(gated);
                block.push(one("post_attention_norm.weight", norm));
                block.push(one("post_ffw_norm.weight", norm));
            }
            "glm4" => {
                block.extend(separate);
                block.push(two_dimensional("ffn_up.weight", 2 * INNER, HIDDEN));
                block.push(one("post_attention_norm.weight", norm));
                block.push(one("post_ffw_norm.weight", norm));
            }
            "lfm2" => {
                block.extend(separate);
                block.extend(qk_norms);
                block.extend(gated);
                block.extend([
                    two_dimensional("shortconv.in_proj.weight", 3 * HIDDEN, HIDDEN),
                    two_dimensional("shortconv.out_proj.weight", HIDDEN, HIDDEN),
                    two_dimensional("shortconv.conv.weight", HIDDEN, 3),
                ]);
            }
            // A llama with two experts.
            _ => {
                block.extend(separate);
                block.push(two_dimensional("ffn_gate_inp.weight", 2, HIDDEN));
                for expert in 0..2 {
                    let name = |stem: &str| format!("{stem}.{expert}.weight");
                    block.push(two_dimensional(&name("ffn_gate"), INNER, HIDDEN));
                    block.push(two_dimensional(&name("ffn_up"), INNER, HIDDEN));
                    block.push(two_dimensional(&name("ffn_down"), HIDDEN, INNER));
                }
            }
        }
        for layer in 0..2 {
            for (name, shape) in &block {
                model.push((format!("blk.{layer}.{name}"), shape.clone()));
            }
        }
        let mut random = Random(9);
        let tensors: Vec<(String, QTensor)> = model
            .into_iter()
            .map(|(name, shape)| {
                let values: Vec<f32> = (0..shape.iter().product())
                    .map(|_| 0.2 * random.next() + if name.contains("norm.w") { 1.0 } else { 0.0 })
                    .collect();
                let tensor = Tensor::from_vec(values, shape, CPU).unwrap();
                (name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap())
            })
            .collect();

        let count =
            |key: &str, count: usize| (format!("{architecture}.{key}"), Value::U32(count as u32));
        let number = |key: &str, number: f32| (format!("{architecture}.{key}"), Value::F32(number));
        let mut metadata = vec![
            (
                "general.architecture".to_owned(),
                Value::String(architecture.to_owned()),
            ),
            count("block_count", 2),
            count("embedding_length", HIDDEN),
            count("feed_forward_length", INNER),
            count("attention.head_count", HEADS),
            count("attention.key_length", HIDDEN / HEADS),
            count("attention.value_length", HIDDEN / HEADS),
            count("context_length", 128),
            count("rope.dimension_count", HIDDEN / HEADS),
            number("rope.freq_base", 10_000.0),
            number("attention.layer_norm_rms_epsilon", 1e-5),
            number("attention.layer_norm_epsilon", 1e-5),
        ];
        match architecture {
            "phi2" => metadata.push(count("attention.head_count_kv", HEADS)),
            "lfm2" => {
                // The first block is a convolution, the second one attention.
                let heads = vec![Value::U32(0), Value::U32(2)];
                let key = format!("{architecture}.attention.head_count_kv");
                metadata.push((key, Value::Array(heads)));
                metadata.push(count("shortconv.l_cache", 3));
            }
            _ => metadata.push(count("attention.head_count_kv", 2)),
        }
        if architecture == "gemma3" {
            metadata.push(count("attention.sliding_window", 100));
        }
        if architecture == "llama" {
            metadata.push(count("expert_count", 2));
            metadata.push(count("expert_used_count", 1));
        }
        let path = folder.join(format!("{architecture}.gguf"));
        write_gguf(&path, &metadata, &tensors);
        path
    }

    fn run(model: &mut dyn Model, slot: Slot, tokens: &[u32], ends: &[usize]) -> Vec<f32> {
        let (mut start, mut last) = (0, Vec::new());
        for &end in ends {
            let chunk = Chunk {
                slot,
                // Used only by the candle backend, which these models are compared with.
                pages: &[0],
                tokens: &tokens[start..end],
                start,
                logits: true,
            };
            last = model.forward(&[chunk]).unwrap().remove(0);
            start = end;
        }
        last
    }

    #[test]
    fn every_architecture_supports_chunks_and_new_sequences() {
        let folder = tempfile::tempdir().unwrap();
        for architecture in ["llama", "phi2", "phi3", "gemma3", "glm4", "lfm2"] {
            let path = tiny(folder.path(), architecture);
            let mut model = super::super::load(&path, crate::config::Backend::Generic)
                .unwrap()
                .model;
            assert_eq!(model.backend(), "generic");
            assert_eq!(model.max_sequences(), 1);
            let tokens = Random(1).tokens(60, VOCABULARY);
            let slot = model.open().unwrap();
            assert!(model.open().is_err());
            let whole = run(&mut *model, slot, &tokens, &[60]);
            assert_eq!(whole.len(), VOCABULARY);
            model.close(slot);
            for ends in [&[20, 21, 50, 60][..], &[2, 59, 60], &[60]] {
                let slot = model.open().unwrap();
                let chunked = run(&mut *model, slot, &tokens, ends);
                let apart = difference(&chunked, &whole);
                eprintln!("{architecture} {ends:?}: {apart:.1e}");
                assert!(apart < 1e-5, "{architecture} {ends:?}: {apart}");
                model.close(slot);
            }
            let slot = model.open().unwrap();
            let context = model.spec().context_length;
            assert_eq!(context, if architecture == "gemma3" { 100 } else { 128 });
            let long = Random(2).tokens(context + 1, VOCABULARY);
            let chunk = |tokens, start| Chunk {
                slot,
                pages: &[],
                tokens,
                start,
                logits: false,
            };
            assert!(model.forward(&[chunk(&long, 0)]).is_err());
            assert!(model.forward(&[chunk(&[200], 0)]).is_err());
            assert!(model.forward(&[chunk(&[], 0)]).is_err());
            assert!(model.forward(&[chunk(&long[..2], 1)]).is_err());
            assert!(model.forward(&[chunk(&long[..2], 0)]).unwrap().is_empty());
            model.close(slot);
            assert!(model.forward(&[chunk(&long[..2], 2)]).is_err());
        }
    }

    /// Files created since April 2024 have the experts of a layer in one tensor, `[experts, rows,
    /// columns]`. The keys' integer widths vary here as well, as in real files.
    #[test]
    fn merged_experts_give_the_same_logits_as_separate_ones() {
        let folder = tempfile::tempdir().unwrap();
        let separate = tiny(folder.path(), "llama");
        let file = GgufFile::open(&separate).unwrap();
        let mut tensors: Vec<(String, QTensor)> = Vec::new();
        for name in file.tensor_names() {
            let tensor = file.tensor(name).unwrap();
            match name.strip_suffix(".0.weight") {
                Some(stem) => {
                    let dense = |name: &str| {
                        let tensor = file.tensor(name).unwrap();
                        tensor.dequantize(CPU).unwrap()
                    };
                    let experts = [0, 1].map(|expert| dense(&format!("{stem}.{expert}.weight")));
                    let merged = Tensor::stack(&experts, 0).unwrap();
                    let merged = QTensor::quantize(&merged, GgmlDType::F32).unwrap();
                    tensors.push((format!("{stem}_exps.weight"), merged));
                }
                None if name.ends_with(".1.weight") => {}
                None => tensors.push((name.to_owned(), tensor)),
            }
        }
        let mut metadata: Vec<(String, Value)> = file.metadata().clone().into_iter().collect();
        for (key, value) in &mut metadata {
            match key.as_str() {
                "llama.attention.head_count" => *value = Value::Array(vec![Value::I32(4); 2]),
                "llama.block_count" => *value = Value::U64(2),
                "llama.expert_used_count" => *value = Value::U16(1),
                "llama.rope.freq_base" => *value = Value::F64(10_000.0),
                _ => {}
            }
        }
        metadata.retain(|(key, _)| key != "llama.rope.dimension_count");
        let merged = folder.path().join("merged.gguf");
        write_gguf(&merged, &metadata, &tensors);
        let tokens = Random(4).tokens(30, VOCABULARY);
        let logits = |path: &Path| {
            let backend = crate::config::Backend::Auto;
            let mut model = super::super::load(path, backend).unwrap().model;
            assert_eq!(model.backend(), "generic");
            let slot = model.open().unwrap();
            run(&mut *model, slot, &tokens, &[20, 30])
        };
        assert_eq!(logits(&separate), logits(&merged));

        let refused = |change: &dyn Fn(&mut Value), key: &str| {
            let mut metadata = metadata.clone();
            let key = format!("llama.{key}");
            let found = metadata.iter_mut().find(|(other, _)| *other == key);
            change(&mut found.unwrap().1);
            let path = folder.path().join("wrong.gguf");
            write_gguf(&path, &metadata, &tensors);
            let backend = crate::config::Backend::Auto;
            let error = super::super::load(&path, backend).err().unwrap();
            assert_eq!(error.exit(), Exit::Preflight);
            error.report()
        };
        let report = refused(&|value| *value = Value::U32(3), "expert_count");
        assert!(report.contains("does not hold 3 experts"), "{report}");
        let report = refused(&|value| *value = Value::U32(0), "expert_used_count");
        assert!(report.contains("is 0, of 2 experts"), "{report}");
    }

    /// candle-transformers' models support neither RoPE scaling nor biases. A file with either is
    /// rejected here, and the hint names a backend that supports it.
    #[test]
    fn weights_and_keys_that_would_be_ignored_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let tiny_llama = Tiny::new("llama", true);
        let path = folder.path().join("changed.gguf");
        let load = |backend| super::super::load(&path, backend);
        let refused = |metadata: &[(String, Value)], tensors: &[(String, QTensor)], what: &str| {
            write_gguf(&path, metadata, tensors);
            let error = load(crate::config::Backend::Generic).err().unwrap();
            let report = error.report();
            assert!(report.contains(what), "{report}");
            assert!(report.contains("hint: BACKEND=native can"), "{report}");
            assert!(load(crate::config::Backend::Candle).is_ok());
        };
        let stored = || tiny_llama.stored(|_| GgmlDType::F32);
        let mut scaled = tiny_llama.metadata();
        scaled.push(("llama.rope.scaling.factor".to_owned(), Value::F32(2.0)));
        refused(&scaled, &stored(), "stretches its context by 2");

        let one = |name: &str, length: usize| {
            let tensor = Tensor::ones(length, DType::F32, CPU).unwrap();
            (
                name.to_owned(),
                QTensor::quantize(&tensor, GgmlDType::F32).unwrap(),
            )
        };
        let mut tensors = stored();
        tensors.push(one("rope_freqs.weight", 32));
        refused(
            &tiny_llama.metadata(),
            &tensors,
            "the tensor `rope_freqs.weight`",
        );
        let mut tensors = stored();
        for layer in 0..2 {
            for (name, length) in [("attn_q", 256), ("attn_k", 128), ("attn_v", 128)] {
                tensors.push(one(&format!("blk.{layer}.{name}.bias"), length));
            }
        }
        refused(
            &tiny_llama.metadata(),
            &tensors,
            "the tensor `blk.0.attn_k.bias`",
        );
    }

    #[test]
    fn a_split_file_gives_the_same_logits_as_a_whole_one() {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Tiny::new("llama", true);
        let whole = tiny.write_gguf(folder.path(), GgmlDType::Q8_0);
        let parts = tiny.write_split(folder.path(), GgmlDType::Q8_0, 2);
        let tokens = Random(5).tokens(20, tiny.vocabulary);
        let logits = |path: &Path| {
            let backend = crate::config::Backend::Generic;
            let mut model = super::super::load(path, backend).unwrap().model;
            let slot = model.open().unwrap();
            run(&mut *model, slot, &tokens, &[20])
        };
        assert_eq!(logits(&whole), logits(&parts[1]));
    }

    #[test]
    fn an_unknown_architecture_lists_the_supported_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path(), "mamba");
        let error = super::super::load(&path, crate::config::Backend::Generic)
            .err()
            .unwrap();
        let text = error.report();
        assert_eq!(error.exit(), Exit::Preflight);
        for part in ["`mamba`", "llama, qwen2, qwen3", "phi3, gemma3", "hint: "] {
            assert!(text.contains(part), "{text}");
        }
    }

    /// The default model also runs on this backend and agrees with our implementation.
    #[test]
    fn the_default_model_agrees_with_the_candle_backend() {
        let Some(path) = test_model() else { return };
        let file = GgufFile::open(&path).unwrap();
        let mut ours = candle::CandleModel::from_gguf(&file).unwrap();
        ours.set_pages(1).unwrap();
        let mut generic = GenericModel::from_gguf(&file, &Limits::default()).unwrap();
        let tokens = Random(3).tokens(12, generic.spec().vocabulary);
        let (slot, generic_slot) = (ours.open().unwrap(), generic.open().unwrap());
        let expected = run(&mut ours, slot, &tokens, &[11, 12]);
        let logits = run(&mut generic, generic_slot, &tokens, &[11, 12]);
        let apart = difference(&logits, &expected);
        eprintln!("quantised products with 8-bit activations: {apart:.1e}");
        // candle's quantized products round activations to 8 bits; the candle backend computes in
        // f32.
        assert!(apart < 5e-2, "{apart}");
    }

    #[test]
    fn a_plain_llama_uses_the_native_backend() {
        let folder = tempfile::tempdir().unwrap();
        let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::F32);
        let loaded = super::super::load(&path, crate::config::Backend::Auto).unwrap();
        assert_eq!(loaded.model.backend(), "native");
        assert_eq!(loaded.name.as_deref(), Some("tiny"));
    }
}
