//! The native forward pass against the candle path, and against itself in other batches.

mod batches;
mod description;
mod perplexity;
mod real_model;

use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::*;
use crate::engine::decoder::FAMILIES;
use crate::engine::model::candle::CandleModel;
use crate::engine::model::testing::{Random, Tiny, difference, write_gguf};
use crate::error::Exit;

const CPU: Device = Device::Cpu;

/// Maximum difference of a logit from the candle path's in f32, relative to the largest one, for dense
/// weights: keys and values have 13 bits here. Measured: 9.6e-4 at most.
const DENSE_BOUND: f32 = 1.5e-3;

/// The same with int8 activations. These models' weights are noise, which no sum averages out.
/// Measured: 3.9e-2 at most.
const QUANTISED_BOUND: f32 = 6e-2;

pub(in crate::engine::model) const DENSE: [GgmlDType; 3] =
    [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16];
pub(in crate::engine::model) const QUANTISED: [GgmlDType; 8] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// A file's model with `pages` pages.
pub(in crate::engine::model) fn native(path: &Path, threads: usize, pages: usize) -> NativeModel {
    let file = GgufFile::open(path).unwrap();
    let decoder = described_gguf(&file).unwrap();
    let mut model = NativeModel::load(&file, decoder, file.weight_type(), threads).unwrap();
    model.set_pages(pages).unwrap();
    model
}

/// A decoding batch: each sequence's next token goes to slot `at` of the last of its pages.
pub(super) fn decoding(tables: &[Vec<u32>], at: usize) -> Vec<Chunk<'_>> {
    tables
        .iter()
        .map(|pages| Chunk {
            slot: Slot(0),
            pages,
            tokens: &[0],
            start: (pages.len() - 1) * PAGE + at,
            logits: true,
        })
        .collect()
}

/// The candle path in f32 on the same file, with `pages` pages.
fn reference(path: &Path, pages: usize) -> CandleModel {
    let file = GgufFile::open(path).unwrap();
    let mut model = CandleModel::from_gguf(&file).unwrap();
    model.set_pages(pages).unwrap();
    model
}

/// The logits after `tokens`, the next of a sequence that is computed alone.
fn step(
    model: &mut dyn Model,
    slot: Slot,
    pages: &[u32],
    tokens: &[u32],
    start: usize,
) -> Vec<f32> {
    let chunk = Chunk {
        slot,
        pages,
        tokens,
        start,
        logits: true,
    };
    model.forward(&[chunk]).unwrap().remove(0)
}

/// The largest difference over a prompt of 150 tokens and 4 single ones.
fn compare(ours: &mut NativeModel, theirs: &mut CandleModel) -> f32 {
    let tokens = Random(1).tokens(154, ours.decoder.spec.vocabulary);
    let pages: Vec<u32> = (0..10).rev().collect();
    ours.set_pages(10).unwrap();
    theirs.set_pages(10).unwrap();
    let (slot, their_slot) = (ours.open().unwrap(), theirs.open().unwrap());
    let mut most = 0.0f32;
    for (start, end) in [(0, 150), (150, 151), (151, 152), (152, 153), (153, 154)] {
        let part = &tokens[start..end];
        let logits = step(ours, slot, &pages, part, start);
        let expected = step(theirs, their_slot, &pages, part, start);
        most = most.max(difference(&logits, &expected));
    }
    theirs.close(their_slot);
    most
}

/// A tiny model's architecture and sizes.
#[derive(Clone, Copy)]
enum Shape {
    Plain(&'static str),
    Mistral,
}

/// A model like Mistral's: `llama` in a GGUF file, four query heads per KV head of size 128, an untied
/// head, a large rotary base.
fn mistral() -> Tiny {
    Tiny {
        heads: 4,
        kv_heads: 1,
        head_size: 128,
        rope_dimensions: 128,
        hidden: 512,
        rope_base: 1_000_000.0,
        ..Tiny::new("llama", false)
    }
    .filled(false)
}

#[test]
fn logits_are_those_of_the_candle_path_for_every_weight_type() {
    let folder = tempfile::tempdir().unwrap();
    let mut most = (0.0f32, 0.0f32);
    let shapes = FAMILIES.map(|family| Shape::Plain(family.name)).into_iter();
    for (offset, shape) in shapes.chain([Shape::Mistral]).enumerate() {
        for (index, dtype) in DENSE.into_iter().chain(QUANTISED).enumerate() {
            let tied = (index + offset) % 2 == 0;
            let (architecture, tiny) = match shape {
                Shape::Plain(architecture) => (architecture, Tiny::new(architecture, tied)),
                Shape::Mistral => ("mistral", mistral()),
            };
            let path = tiny.write_gguf(folder.path(), dtype);
            let mut ours = native(&path, 1 + index % 2, 10);
            let apart = compare(&mut ours, &mut reference(&path, 10));
            eprintln!("{architecture} {dtype:?}: {apart:.1e}");
            if DENSE.contains(&dtype) {
                assert!(
                    ours.weights()
                        .starts_with(&format!("{dtype:?} with f32 activations"))
                );
                most.0 = most.0.max(apart);
            } else {
                assert!(ours.weights().contains(" with int8 activations, "));
                most.1 = most.1.max(apart);
            }
        }
    }
    eprintln!("most: dense {:.1e}, quantised {:.1e}", most.0, most.1);
    assert!(most.0 < DENSE_BOUND, "dense: {}", most.0);
    assert!(most.1 < QUANTISED_BOUND, "quantised: {}", most.1);
}

#[test]
fn unusual_sizes_partial_rotation_and_every_bias_are_right() {
    let folder = tempfile::tempdir().unwrap();
    // Rows that are not whole blocks, heads that are not whole vectors.
    let odd = Tiny {
        hidden: 40,
        heads: 6,
        kv_heads: 2,
        head_size: 12,
        rope_dimensions: 12,
        intermediate: 72,
        vocabulary: 77,
        ..Tiny::new("qwen3", false)
    };
    let partial = Tiny {
        rope_dimensions: 24,
        ..Tiny::new("llama", true)
    };
    let long = Tiny {
        rope_base: 1_000_000.0,
        ..Tiny::new("qwen2", false)
    };
    let mut biased = Tiny::new("llama", true).filled(true);
    let mut random = Random(11);
    for (stem, length) in [
        ("attn_q", 256),
        ("attn_k", 128),
        ("attn_v", 128),
        ("attn_output", 256),
        ("ffn_gate", 512),
        ("ffn_up", 512),
        ("ffn_down", 256),
    ] {
        for layer in 0..2 {
            let bias: Vec<f32> = (0..length).map(|_| random.next() / 4.0).collect();
            let bias = Tensor::new(bias, &CPU).unwrap();
            biased
                .tensors
                .push((format!("blk.{layer}.{stem}.bias"), bias));
        }
    }
    let cases = [
        ("odd", odd.filled(false), GgmlDType::F32),
        ("partial", partial.filled(true), GgmlDType::F16),
        ("partial", partial_of_quantised(), GgmlDType::Q8_0),
        ("base", long.filled(false), GgmlDType::BF16),
        ("biased", biased, GgmlDType::F32),
    ];
    for (what, tiny, dtype) in cases {
        let path = tiny.write_gguf(folder.path(), dtype);
        let apart = compare(&mut native(&path, 2, 10), &mut reference(&path, 10));
        eprintln!("{what} {dtype:?}: {apart:.1e}");
        let bound = match DENSE.contains(&dtype) {
            true => DENSE_BOUND,
            false => QUANTISED_BOUND,
        };
        assert!(apart < bound, "{what}: {apart}");
    }
}

/// Files named `Q4_K_M` and the like mix several types.
#[test]
fn types_mix_within_a_file() {
    let folder = tempfile::tempdir().unwrap();
    for (architecture, tied) in [("llama", true), ("qwen2", false), ("qwen3", true)] {
        let tiny = Tiny::new(architecture, tied);
        let path = folder.path().join(format!("{architecture}.gguf"));
        let types = |name: &str| match name {
            name if name.contains("attn_v") || name.contains("ffn_down") => GgmlDType::Q6K,
            name if name.contains("attn_k") => GgmlDType::Q8_0,
            name if name.contains("ffn_up") => GgmlDType::Q5_1,
            name if name.contains("attn_output") => GgmlDType::F16,
            name if name.contains("embd") => GgmlDType::Q5K,
            _ => GgmlDType::Q4K,
        };
        write_gguf(&path, &tiny.metadata(), &tiny.stored(types));
        let apart = compare(&mut native(&path, 2, 10), &mut reference(&path, 10));
        eprintln!("{architecture}: {apart:.1e}");
        assert!(apart < QUANTISED_BOUND, "{architecture}: {apart}");
    }
}

fn partial_of_quantised() -> Tiny {
    Tiny {
        rope_dimensions: 32,
        ..Tiny::new("llama", false)
    }
    .filled(false)
}

#[test]
fn safetensors_give_the_logits_of_the_candle_path() {
    let stretched = serde_json::json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    });
    let stored = [DType::F32, DType::F16, DType::BF16];
    let cases = ["llama", "mistral", "qwen2", "qwen3"]
        .into_iter()
        .flat_map(|architecture| stored.map(|dtype| (architecture, dtype, Value::Null)))
        .chain([("llama", DType::BF16, stretched)]);
    for (architecture, dtype, scaling) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut tiny = match architecture {
            // Its rows are in the order of safetensors.
            "mistral" => Tiny {
                architecture,
                ..mistral()
            },
            _ => Tiny::new(architecture, architecture != "llama"),
        };
        for (_, tensor) in &mut tiny.tensors {
            *tensor = tensor.to_dtype(dtype).unwrap();
        }
        let mut config = tiny.config();
        config["rope_scaling"] = scaling;
        tiny.write_folder(folder.path(), &config);
        let source = SafetensorsFolder::open(folder.path()).unwrap();
        let mut ours = NativeModel::from_safetensors(&source).unwrap();
        let mut theirs = CandleModel::from_safetensors(&source).unwrap();
        let apart = compare(&mut ours, &mut theirs);
        eprintln!("{architecture} {dtype:?}: {apart:.1e}");
        assert!(apart < DENSE_BOUND, "{architecture}: {apart}");
    }
}

#[test]
fn a_folder_with_an_unexpected_tensor_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::new("llama", true);
    let sinks = Tensor::new(&[0f32; 4], &CPU).unwrap();
    tiny.tensors.push(("blk.0.attn_sinks.weight".into(), sinks));
    tiny.write_folder(folder.path(), &tiny.config());
    let source = SafetensorsFolder::open(folder.path()).unwrap();
    let error = NativeModel::from_safetensors(&source)
        .map(|_| ())
        .unwrap_err();
    assert!(error.chain().contains("attn_sinks"), "{}", error.chain());
    assert_eq!(error.exit(), Exit::Preflight);
}

#[test]
fn types_without_a_kernel_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::Q2K);
    let error = NativeModel::from_gguf(&GgufFile::open(&path).unwrap())
        .map(|_| ())
        .unwrap_err();
    assert!(error.chain().contains("Q2K"), "{}", error.chain());
    assert_eq!(error.exit(), Exit::Preflight);
}

#[test]
fn an_invalid_chunk_is_an_error_without_side_effects() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::new("llama", true);
    let mut model = native(&tiny.write_gguf(folder.path(), GgmlDType::Q4_1), 1, 130);
    let tokens = Random(8).tokens(2049, tiny.vocabulary);
    let table: Vec<u32> = (0..129).collect();
    let slot = model.open().unwrap();
    step(&mut model, slot, &table, &tokens[..10], 0);
    let before = step(&mut model, slot, &table, &tokens[10..11], 10);
    let chunk = |pages, tokens, start| Chunk {
        slot,
        pages,
        tokens,
        start,
        logits: true,
    };
    let good = chunk(&table[..1], &tokens[..11], 0);
    let cases: [(&str, Chunk<'_>); 6] = [
        ("too few pages", chunk(&[], &tokens[10..11], 10)),
        ("too few pages", chunk(&table[..1], &tokens[10..17], 10)),
        ("too few pages", chunk(&[130], &tokens[10..11], 10)),
        ("token 320", chunk(&table, &[3, 320], 10)),
        ("context of 2048", chunk(&table, &tokens[10..], 10)),
        ("empty", chunk(&table, &[], 10)),
    ];
    for (expected, bad) in cases {
        // Chunks before a bad one are not computed either.
        let other = [good, bad];
        for batch in [&other[1..], &other] {
            let error = model.forward(batch).unwrap_err();
            assert!(error.chain().contains(expected), "{}", error.chain());
            assert_eq!(error.exit(), Exit::FlowFailed);
        }
    }
    assert_eq!(model.forward(&[]).unwrap(), Vec::<Vec<f32>>::new());
    assert_eq!(
        step(&mut model, slot, &table, &tokens[10..11], 10),
        before,
        "a refused batch changed something"
    );
    // The last position of the context.
    step(&mut model, slot, &table, &tokens[11..2048], 11);
}
