//! A Llama of one layer with random weights, whose tokens are bytes: for tests that need some model, however
//! bad its answers. A token takes microseconds on the CPU, and milliseconds on the simulated GPU.

use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use crate::common::Workspace;

const HIDDEN: usize = 64;
const HEADS: usize = 2;
const HEAD_SIZE: usize = 32;
/// One for each byte, and the start and the end of a sequence.
const VOCABULARY: usize = 258;

const CHAT_TEMPLATE: &str =
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";

/// Writes the model's GGUF file.
pub(crate) fn write(path: &Path) {
    let metadata = metadata();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors = tensors();
    let tensors: Vec<(&str, &QTensor)> =
        (tensors.iter().map(|(name, tensor)| (*name, tensor))).collect();
    let mut file = File::create(path).expect("writable");
    gguf_file::write(&mut file, &metadata, &tensors).expect("writable");
}

fn metadata() -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::String(text.to_owned());
    let count = |count: usize| Value::U32(count as u32);
    let mut tokens: Vec<Value> = (0..=u8::MAX).map(|byte| text(&letter(byte))).collect();
    tokens.extend([text("<s>"), text("</s>")]);
    let normal = [Value::I32(1)].into_iter().cycle().take(256);
    let kinds = normal.chain([Value::I32(3), Value::I32(3)]).collect();
    vec![
        ("general.architecture", text("llama")),
        ("general.name", text("tiny")),
        ("llama.block_count", count(1)),
        ("llama.embedding_length", count(HIDDEN)),
        ("llama.feed_forward_length", count(HIDDEN)),
        ("llama.attention.head_count", count(HEADS)),
        ("llama.attention.head_count_kv", count(1)),
        ("llama.context_length", count(4096)),
        ("llama.rope.dimension_count", count(HEAD_SIZE)),
        ("llama.rope.freq_base", Value::F32(10_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("default")),
        ("tokenizer.ggml.tokens", Value::Array(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(kinds)),
        ("tokenizer.ggml.merges", Value::Array(vec![text("a b")])),
        ("tokenizer.ggml.bos_token_id", count(256)),
        ("tokenizer.ggml.eos_token_id", count(257)),
        ("tokenizer.chat_template", text(CHAT_TEMPLATE)),
    ]
}

/// The character that stands for a byte in byte-level BPE: itself if it is printable, else the next one from
/// 256 on.
fn letter(byte: u8) -> String {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = match is_printable(byte) {
        true => u32::from(byte),
        false => 256 + (0..byte).filter(|before| !is_printable(*before)).count() as u32,
    };
    char::from_u32(code).expect("a character").to_string()
}

fn tensors() -> Vec<(&'static str, QTensor)> {
    let mut state = 7u64;
    let mut random = move || {
        // Constants of Knuth's MMIX generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let (queries, keys) = (HEADS * HEAD_SIZE, HEAD_SIZE);
    let shapes: [(&str, &[usize]); 12] = [
        ("token_embd.weight", &[VOCABULARY, HIDDEN]),
        ("output_norm.weight", &[HIDDEN]),
        ("output.weight", &[VOCABULARY, HIDDEN]),
        ("blk.0.attn_norm.weight", &[HIDDEN]),
        ("blk.0.attn_q.weight", &[queries, HIDDEN]),
        ("blk.0.attn_k.weight", &[keys, HIDDEN]),
        ("blk.0.attn_v.weight", &[keys, HIDDEN]),
        ("blk.0.attn_output.weight", &[HIDDEN, queries]),
        ("blk.0.ffn_norm.weight", &[HIDDEN]),
        ("blk.0.ffn_gate.weight", &[HIDDEN, HIDDEN]),
        ("blk.0.ffn_up.weight", &[HIDDEN, HIDDEN]),
        ("blk.0.ffn_down.weight", &[HIDDEN, HIDDEN]),
    ];
    let tensor = |(name, shape): (&'static str, &[usize])| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| random()).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("of this shape");
        (
            name,
            QTensor::quantize(&tensor, GgmlDType::F32).expect("as it is"),
        )
    };
    shapes.into_iter().map(tensor).collect()
}

/// A workspace with the model, and with the readings that the simulated card's NVML gives.
pub(crate) fn with_readings(readings: &str) -> Workspace {
    let workspace = Workspace::new();
    write(&workspace.file("tiny.gguf"));
    workspace.write("nvml.txt", readings);
    workspace
}

/// The variables of a run of `flows` flows of [`with_readings`] on the simulated card.
pub(crate) fn on_the_card(
    driver: &Path,
    workspace: &Workspace,
    flows: usize,
) -> Vec<(&'static str, PathBuf)> {
    let mut variables = vec![
        ("LD_LIBRARY_PATH", driver.to_owned()),
        ("MODEL", workspace.file("tiny.gguf")),
        ("SIMGPU_NVML", workspace.file("nvml.txt")),
        ("NUM_FLOWS", PathBuf::from(flows.to_string())),
    ];
    let settings = [
        ("DEVICE", "cuda"),
        ("MODE", "standalone"),
        ("TEMPLATE", "chain"),
        ("KV_CACHE_MB", "4"),
        ("IGNORE_EOS", "1"),
    ];
    variables.extend(settings.map(|(name, value)| (name, PathBuf::from(value))));
    variables
}
