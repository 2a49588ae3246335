//! Compares the forward pass with candle-transformers' models, and with itself in other batches.

mod company;
mod real_model;
mod refused;

use std::io::{Read, Seek};
use std::path::Path;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, quantized_llama, quantized_qwen2, quantized_qwen3};

use super::*;
use crate::engine::decoder::FAMILIES;
use crate::engine::kv::PAGE_TOKENS;
use crate::engine::model::testing::{
    Random, Tiny, difference, in_f32, test_model, write_gguf as write,
};

/// A model of candle-transformers, as the reference.
enum Reference {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
}

impl Reference {
    fn load(architecture: &str, file: &mut (impl Read + Seek)) -> Self {
        let content = Content::read(file).unwrap();
        match architecture {
            "llama" => {
                Self::Llama(quantized_llama::ModelWeights::from_gguf(content, file, CPU).unwrap())
            }
            "qwen2" => {
                Self::Qwen2(quantized_qwen2::ModelWeights::from_gguf(content, file, CPU).unwrap())
            }
            _ => Self::Qwen3(quantized_qwen3::ModelWeights::from_gguf(content, file, CPU).unwrap()),
        }
    }

    fn forward(&mut self, tokens: &[u32], start: usize) -> Vec<f32> {
        let tokens = Tensor::new(tokens, CPU).unwrap().unsqueeze(0).unwrap();
        let logits = match self {
            Self::Llama(model) => model.forward(&tokens, start),
            Self::Qwen2(model) => model.forward(&tokens, start),
            Self::Qwen3(model) => model.forward(&tokens, start),
        };
        logits.unwrap().squeeze(0).unwrap().to_vec1().unwrap()
    }
}

fn ours(path: &Path) -> CandleModel {
    paged(CandleModel::from_gguf(&GgufFile::open(path).unwrap()).unwrap())
}

/// The model with enough pages for [`table`].
fn paged(mut model: CandleModel) -> CandleModel {
    model.set_pages(8 * MOST_TOKENS / PAGE_TOKENS).unwrap();
    model
}

/// Upper bound on a sequence's tokens: the context of the tiny models.
const MOST_TOKENS: usize = 2048;

/// A page table for one of slots 1 to 8; no page is shared. Adjacent pages in the table are not
/// adjacent in memory.
fn table(slot: Slot) -> Vec<u32> {
    let each = (MOST_TOKENS / PAGE_TOKENS) as u32;
    let index = (slot.0 as u32 - 1) % 8;
    (0..each).rev().map(|page| index * each + page).collect()
}

/// The logits after `tokens`, the next ones of a sequence that is alone in its batch.
fn step(model: &mut CandleModel, slot: Slot, tokens: &[u32], start: usize) -> Vec<f32> {
    let chunk = Chunk {
        slot,
        pages: &table(slot),
        tokens,
        start,
        logits: true,
    };
    model.forward(&[chunk]).unwrap().remove(0)
}

/// The largest difference over a prompt of 150 tokens (two query blocks) and 4 single tokens.
fn compare(model: &mut CandleModel, reference: &mut Reference) -> f32 {
    let tokens = Random(1).tokens(154, model.spec.vocabulary);
    let slot = model.open().unwrap();
    let prompt = step(model, slot, &tokens[..150], 0);
    let mut most = difference(&prompt, &reference.forward(&tokens[..150], 0));
    for at in 150..154 {
        let next = step(model, slot, &tokens[at..=at], at);
        most = most.max(difference(&next, &reference.forward(&tokens[at..=at], at)));
    }
    model.close(slot);
    most
}

#[test]
fn logits_match_candle_transformers_for_every_weight_type() {
    let types = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut most = 0.0f32;
    for architecture in FAMILIES.map(|family| family.name) {
        for (index, dtype) in types.into_iter().enumerate() {
            let tiny = Tiny::new(architecture, index % 2 == 0);
            let path = tiny.write_gguf(folder.path(), dtype);
            // Both from the same dequantized weights.
            let mut reference = Reference::load(architecture, &mut in_f32(&path));
            let apart = compare(&mut ours(&path), &mut reference);
            eprintln!("{architecture} {dtype:?}: {apart:.1e}");
            most = most.max(apart);
        }
    }
    assert!(most < 1e-4, "{most}");
}

#[test]
fn safetensors_logits_match_candle_transformers_and_the_gguf() {
    let stretched = serde_json::json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    });
    for scaling in [serde_json::Value::Null, stretched] {
        let folder = tempfile::tempdir().unwrap();
        let mut tiny = Tiny::new("llama", false);
        let mut config = tiny.config();
        config["rope_scaling"] = scaling.clone();
        tiny.write_folder(folder.path(), &config);
        let source = SafetensorsFolder::open(folder.path()).unwrap();
        let mut model = paged(CandleModel::from_safetensors(&source).unwrap());

        let config: llama::LlamaConfig = serde_json::from_value(config).unwrap();
        let config = config.into_config(false);
        let tensors = folder.path().join("model.safetensors");
        let weights = candle_core::safetensors::load(tensors, CPU).unwrap();
        let weights = VarBuilder::from_tensors(weights, DType::F32, CPU);
        let reference = llama::Llama::load(weights, &config).unwrap();
        let mut cache = llama::Cache::new(true, DType::F32, &config, CPU).unwrap();
        let mut theirs = |tokens: &[u32], start: usize| -> Vec<f32> {
            let tokens = Tensor::new(tokens, CPU).unwrap().unsqueeze(0).unwrap();
            let logits = reference.forward(&tokens, start, &mut cache).unwrap();
            logits.squeeze(0).unwrap().to_vec1().unwrap()
        };

        // The same model as a GGUF, which stores the RoPE divisors as a tensor.
        if let Some(divisors) = source.rope_divisors(&source.spec().unwrap()).unwrap() {
            assert!(divisors[0] == 1.0 && divisors[31] == 8.0, "{divisors:?}");
            let divisors = Tensor::new(divisors, CPU).unwrap();
            tiny.tensors.push(("rope_freqs.weight".into(), divisors));
        }
        let path = tiny.write_gguf(folder.path(), GgmlDType::F32);
        let mut gguf = ours(&path);

        let tokens = Random(2).tokens(300, model.spec.vocabulary);
        let (slot, gguf_slot) = (model.open().unwrap(), gguf.open().unwrap());
        let (mut most, mut most_gguf) = (0.0f32, 0.0f32);
        for (start, end) in [(0, 290), (290, 291), (291, 292)] {
            let logits = step(&mut model, slot, &tokens[start..end], start);
            most = most.max(difference(&logits, &theirs(&tokens[start..end], start)));
            let from_gguf = step(&mut gguf, gguf_slot, &tokens[start..end], start);
            most_gguf = most_gguf.max(difference(&logits, &from_gguf));
        }
        eprintln!("safetensors, {scaling}: {most:.1e}, from GGUF {most_gguf:.1e}");
        assert!(most < 1e-4 && most_gguf < 1e-4);
    }
}

#[test]
fn half_precision_and_shards_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::new("qwen3", true);
    for (_, tensor) in &mut tiny.tensors {
        *tensor = tensor.to_dtype(DType::BF16).unwrap();
    }
    tiny.write_folder(folder.path(), &tiny.config());
    let file = folder.path().join("model.safetensors");
    let all = candle_core::safetensors::load(&file, CPU).unwrap();
    std::fs::remove_file(file).unwrap();
    let mut weight_map = serde_json::Map::new();
    for (number, part) in ["a", "b"].iter().enumerate() {
        let name = format!("model-{part}.safetensors");
        let part: std::collections::HashMap<_, _> = all
            .iter()
            .filter(|(tensor, _)| tensor.len() % 2 == number)
            .map(|(tensor, values)| (tensor.clone(), values.clone()))
            .collect();
        for tensor in part.keys() {
            weight_map.insert(tensor.clone(), name.clone().into());
        }
        candle_core::safetensors::save(&part, folder.path().join(name)).unwrap();
    }
    let index = serde_json::json!({ "weight_map": weight_map });
    let index_path = folder.path().join("model.safetensors.index.json");
    std::fs::write(index_path, index.to_string()).unwrap();

    let source = SafetensorsFolder::open(folder.path()).unwrap();
    let mut model = paged(CandleModel::from_safetensors(&source).unwrap());
    assert_eq!(model.weights(), "BF16 as f32");
    let mut gguf = ours(&tiny.write_gguf(folder.path(), GgmlDType::BF16));
    let tokens = Random(3).tokens(40, tiny.vocabulary);
    let (slot, gguf_slot) = (model.open().unwrap(), gguf.open().unwrap());
    let logits = step(&mut model, slot, &tokens, 0);
    assert!(difference(&logits, &step(&mut gguf, gguf_slot, &tokens, 0)) < 1e-4);
}

/// A batch of all kinds of sequences: long and short prompts, single tokens, continuations. Single tokens
/// read their pages in place, or gather them.
#[test]
fn a_ragged_batch_matches_each_sequence_alone() {
    let folder = tempfile::tempdir().unwrap();
    for (architecture, pagewise) in [
        ("llama", Kernel::of_this_cpu()),
        ("llama", None),
        ("qwen3", Kernel::of_this_cpu()),
        ("qwen3", None),
    ] {
        let tiny = Tiny::new(architecture, true);
        let path = tiny.write_gguf(folder.path(), GgmlDType::Q8_0);
        let mut model = ours(&path);
        model.pagewise = pagewise;
        let mut random = Random(4);
        let texts: Vec<Vec<u32>> = [300, 1, 17, 129, 64, 2]
            .iter()
            .map(|&count| random.tokens(count + 40, tiny.vocabulary))
            .collect();
        // The number of tokens of each text that each pass computes; 0 if the text is not in the
        // batch.
        let passes: [[usize; 6]; 5] = [
            [300, 1, 17, 0, 64, 2],
            [1, 1, 1, 129, 1, 1],
            [0, 30, 0, 5, 1, 0],
            [1, 1, 1, 1, 1, 1],
            [20, 1, 15, 1, 0, 30],
        ];
        let alone: Vec<Vec<Vec<f32>>> = texts
            .iter()
            .enumerate()
            .map(|(text, tokens)| {
                let slot = model.open().unwrap();
                let mut done = 0;
                let logits = passes
                    .iter()
                    .map(|pass| {
                        if pass[text] == 0 {
                            return Vec::new();
                        }
                        let end = done + pass[text];
                        let logits = step(&mut model, slot, &tokens[done..end], done);
                        done = end;
                        logits
                    })
                    .collect();
                model.close(slot);
                logits
            })
            .collect();

        let slots: Vec<Slot> = texts.iter().map(|_| model.open().unwrap()).collect();
        let mut done = [0; 6];
        let mut most = 0.0f32;
        for (pass, counts) in passes.iter().enumerate() {
            let tables: Vec<Vec<u32>> = slots.iter().map(|slot| table(*slot)).collect();
            let mut batch = Vec::new();
            let mut expected = Vec::new();
            for (text, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                // Every third chunk requests no logits.
                let logits = (text + pass) % 3 != 0;
                batch.push(Chunk {
                    slot: slots[text],
                    pages: &tables[text],
                    tokens: &texts[text][done[text]..done[text] + count],
                    start: done[text],
                    logits,
                });
                done[text] += count;
                if logits {
                    expected.push(&alone[text][pass]);
                }
            }
            let logits = model.forward(&batch).unwrap();
            assert_eq!(logits.len(), expected.len());
            for (together, alone) in logits.iter().zip(expected) {
                most = most.max(difference(together, alone));
            }
        }
        eprintln!("{architecture}, {pagewise:?}: {most:.1e}");
        assert!(most < 1e-5, "{architecture}: {most}");
    }
}

#[test]
fn a_prompt_in_chunks_matches_the_prompt_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::new("qwen2", true);
    let mut model = ours(&tiny.write_gguf(folder.path(), GgmlDType::F32));
    // Longer than the first RoPE table and the first page allocation.
    let tokens = Random(5).tokens(1300, tiny.vocabulary);
    let slot = model.open().unwrap();
    let whole = step(&mut model, slot, &tokens, 0);
    for size in [1, 7, 128, 256, 1000] {
        let chunked = model.open().unwrap();
        // Single tokens only up to position 300, since each takes a pass.
        let size_at = |start: usize| if size == 1 && start >= 300 { 500 } else { size };
        let (mut start, mut last) = (0, Vec::new());
        while start < tokens.len() {
            let end = (start + size_at(start)).min(tokens.len());
            last = step(&mut model, chunked, &tokens[start..end], start);
            start = end;
        }
        let apart = difference(&last, &whole);
        eprintln!("chunks of {size}: {apart:.1e}");
        assert!(apart < 1e-5, "chunks of {size}: {apart}");
        model.close(chunked);
    }
}
