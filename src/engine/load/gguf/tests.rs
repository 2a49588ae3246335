//! Files that are whole, cut short, or not what they say.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use crate::config::Backend;
use std::fs;

use candle_core::quantized::GgmlDType;

use super::*;
use crate::engine::model::testing::{Random, Tiny, test_model, write_gguf};

/// A whole file, and where its header ends.
fn tiny() -> (Vec<u8>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("qwen2", true).write_gguf(folder.path(), GgmlDType::Q4K);
    let bytes = fs::read(path).unwrap();
    let end = header::parse(&bytes).unwrap().tensor_data_offset as usize;
    (bytes, end)
}

/// What is said of a file with this content.
fn complaint(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.gguf");
    fs::write(&path, bytes).unwrap();
    let error = GgufFile::open(&path).err().expect("an error");
    assert_eq!(error.exit(), Exit::Preflight);
    let report = error.report();
    assert!(report.contains("some.gguf"), "{report}");
    assert!(report.contains("hint: "), "{report}");
    report
}

/// A header: version, number of tensors, number of keys, and what follows.
fn raw(version: u32, tensors: u64, keys: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(keys.to_le_bytes());
    bytes.extend(rest.concat());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

#[test]
fn a_file_cut_anywhere_is_an_error_that_says_so() {
    let (bytes, header_end) = tiny();
    assert!(header::parse(&bytes[..0]).is_err());
    for length in 0..header_end {
        match header::parse(&bytes[..length]) {
            Err(HeaderError::CutShort { missing, .. }) => assert!(missing > 0),
            // The padding behind the header may be missing; then so are the tensors.
            Ok(content) => assert!(header::missing_data(&content, length as u64).is_some()),
            other => panic!("{length}: {other:?}"),
        }
    }
    for missing in [1, 32, 1000, bytes.len() - header_end] {
        let report = complaint(&bytes[..bytes.len() - missing]);
        assert!(report.contains("is cut short"), "{report}");
        assert!(
            report.contains(" bytes are missing to the end of tensor `"),
            "{report}"
        );
    }
    assert!(complaint(&[]).contains("4 bytes are missing to read the magic number"));
    let whole = bytes.len() as u64;
    let content = header::parse(&bytes).unwrap();
    assert_eq!(header::missing_data(&content, whole), None);
}

/// 30,000 headers with some bytes changed: an error or a header, but no panic, and no memory
/// beyond what the file's size explains (an allocation of the size that a header claims would
/// end the test).
#[test]
fn random_changes_do_no_harm() {
    let (mut bytes, header_end) = tiny();
    bytes.truncate(header_end);
    let mut random = Random(11);
    let mut refused = 0;
    for _ in 0..30_000 {
        let mut changed = bytes.clone();
        for _ in 0..=random.below(3) {
            let place = random.below(header_end as u32) as usize;
            changed[place] = match random.below(4) {
                0 => 0,
                1 => 0xff,
                2 => changed[place] ^ 1 << random.below(8),
                _ => random.below(256) as u8,
            };
        }
        match header::parse(&changed) {
            Ok(content) => {
                header::missing_data(&content, changed.len() as u64);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    }
    eprintln!("{refused} of 30000 refused");
    assert!(refused > 1000);
}

/// The same as models: what can still be read is loaded, and computes or is refused.
#[test]
fn a_changed_model_is_loaded_or_refused() {
    let (bytes, header_end) = tiny();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.gguf");
    let mut random = Random(12);
    let (mut loaded, mut refused) = (0, 0);
    for _ in 0..150 {
        let mut changed = bytes.clone();
        let place = random.below(header_end as u32) as usize;
        changed[place] ^= 1 << random.below(8);
        fs::write(&path, changed).unwrap();
        match crate::engine::model::load(&path, Backend::Auto, &Device::Cpu) {
            Ok(_) => loaded += 1,
            Err(error) => {
                assert_eq!(error.exit(), Exit::Preflight, "{}", error.chain());
                assert!(error.chain().contains("changed.gguf"), "{}", error.chain());
                refused += 1;
            }
        }
    }
    eprintln!("{loaded} loaded, {refused} refused");
    assert!(loaded > 0 && refused > 50);
}

#[test]
fn what_is_wrong_is_said() {
    let array = |element_type: u32, length: u64| -> Vec<u8> {
        [
            &9u32.to_le_bytes()[..],
            &element_type.to_le_bytes(),
            &length.to_le_bytes(),
        ]
        .concat()
    };
    let nested: Vec<u8> = (0..100).flat_map(|_| array(9, 1)[4..].to_vec()).collect();
    let u32_value = |value: u32| [4u32.to_le_bytes(), value.to_le_bytes()].concat();
    let tensor = |dimensions: &[u64], dtype: u32| -> Vec<u8> {
        let mut bytes = text("t");
        bytes.extend((dimensions.len() as u32).to_le_bytes());
        bytes.extend(
            dimensions
                .iter()
                .flat_map(|dimension| dimension.to_le_bytes()),
        );
        bytes.extend(dtype.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes
    };
    let key = text("general.alignment");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "not a GGUF file (it starts with `PK\\x03\\x04`)",
            b"PK\x03\x04zip".to_vec(),
        ),
        ("version 1; 2 and 3", raw(1, 0, 0, &[])),
        ("big-endian", raw(3u32.swap_bytes(), 0, 0, &[])),
        (
            "the name of tensor 0 of 18446744073709551615",
            raw(3, u64::MAX, 0, &[]),
        ),
        (
            "metadata key 0 of 18446744073709551615",
            raw(3, 0, u64::MAX, &[]),
        ),
        (
            "metadata key `a`",
            raw(3, 0, 1, &[&text("a"), &8u32.to_le_bytes(), &[0xff; 8]]),
        ),
        (
            "unknown type 13",
            raw(3, 0, 1, &[&text("a"), &13u32.to_le_bytes()]),
        ),
        (
            "neither true nor false",
            raw(3, 0, 1, &[&text("a"), &7u32.to_le_bytes(), &[2]]),
        ),
        ("too large", raw(3, 0, 1, &[&text("a"), &array(0, 1 << 40)])),
        (
            "bytes are missing to read a",
            raw(3, 0, 1, &[&text("a"), &array(4, 1 << 20)]),
        ),
        (
            "too large",
            raw(3, 0, 1, &[&text("a"), &9u32.to_le_bytes(), &nested]),
        ),
        (
            "there twice",
            raw(3, 0, 2, &[&key, &u32_value(32), &key, &u32_value(32)]),
        ),
        ("not a power of two", raw(3, 0, 1, &[&key, &u32_value(0)])),
        ("not a power of two", raw(3, 0, 1, &[&key, &u32_value(24)])),
        ("has 0 dimensions", raw(3, 1, 0, &[&tensor(&[], 0)])),
        ("has 5 dimensions", raw(3, 1, 0, &[&tensor(&[1; 5], 0)])),
        ("dimension of 0", raw(3, 1, 0, &[&tensor(&[0], 0)])),
        (
            "dimension of",
            raw(3, 1, 0, &[&tensor(&[1 << 32, 1 << 32], 0)]),
        ),
        ("rows of 33 elements", raw(3, 1, 0, &[&tensor(&[33], 2)])),
        (
            "tensor `t` of type IQ4_NL",
            raw(3, 1, 0, &[&tensor(&[32], 20)]),
        ),
        (
            "tensor `t` of type number 99",
            raw(3, 1, 0, &[&tensor(&[32], 99)]),
        ),
        (
            "there twice",
            raw(3, 2, 0, &[&tensor(&[32], 0), &tensor(&[32], 0)]),
        ),
        (
            "to the end of tensor `t`",
            raw(3, 1, 0, &[&tensor(&[1 << 62], 0)]),
        ),
    ];
    for (expected, bytes) in cases {
        let report = complaint(&bytes);
        assert!(report.contains(expected), "{expected}: {report}");
    }
    let folder = tempfile::tempdir().unwrap();
    let missing = GgufFile::open(&folder.path().join("missing.gguf"));
    let error = missing.err().unwrap();
    assert!(error.chain().contains("missing.gguf"), "{}", error.chain());
}

#[test]
fn the_alignment_of_the_file_is_honoured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aligned.gguf");
    let values = candle_core::Tensor::new(&[1.0f32, 2.0, 3.0], &Device::Cpu).unwrap();
    let tensor = QTensor::quantize(&values, GgmlDType::F32).unwrap();
    let metadata = [("general.alignment".to_owned(), Value::U32(256))];
    write_gguf(&path, &metadata, &[("t".to_owned(), tensor)]);
    // candle writes with an alignment of 32, whatever the key says.
    let mut bytes = fs::read(&path).unwrap();
    let data = bytes.split_off(bytes.len() - 32);
    bytes.resize(bytes.len().next_multiple_of(256), 0);
    bytes.extend(data);
    fs::write(&path, bytes).unwrap();
    let tensor = GgufFile::open(&path)
        .unwrap()
        .tensor("t", &Device::Cpu)
        .unwrap();
    let read: Vec<f32> = tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap();
    assert_eq!(read, [1.0, 2.0, 3.0]);
}

#[test]
fn the_default_model_says_what_it_is() {
    let Some(path) = test_model() else { return };
    let file = GgufFile::open(&path).unwrap();
    let expected = ModelSpec {
        architecture: "llama".to_owned(),
        layers: 30,
        hidden: 576,
        intermediate: 1536,
        heads: 9,
        kv_heads: 3,
        head_size: 64,
        vocabulary: 49_152,
        context_length: 8192,
        norm_epsilon: f64::from(1e-5f32),
        rope_base: 100_000.0,
        rope_dimensions: 64,
    };
    assert_eq!(file.spec().unwrap(), expected);
    assert_eq!(file.weight_type(), "Q4_1");
    assert_eq!(
        file.metadata()["tokenizer.ggml.pre"].to_string().unwrap(),
        "smollm"
    );
    // The same header as candle's own reader finds.
    let (ours, mut reader) = file.for_candle().unwrap();
    let theirs = Content::read(&mut reader).unwrap();
    assert_eq!(ours.tensor_data_offset, theirs.tensor_data_offset);
    assert_eq!(
        format!("{:?}", ours.metadata["tokenizer.ggml.tokens"]),
        format!("{:?}", theirs.metadata["tokenizer.ggml.tokens"])
    );
    assert_eq!(ours.metadata.len(), theirs.metadata.len());
    assert_eq!(ours.tensor_infos.len(), theirs.tensor_infos.len());
    for (name, info) in &ours.tensor_infos {
        assert_eq!(
            format!("{info:?}"),
            format!("{:?}", theirs.tensor_infos[name])
        );
    }
}
