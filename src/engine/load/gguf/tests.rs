//! Intact, truncated and invalid files.

use std::fs;

use candle_core::quantized::gguf_file::Content;

use super::*;
use crate::config::Backend;
use crate::engine::model::testing::{LAYERS, Random, Tiny, retype, test_model, write_gguf};
use crate::engine::model_spec::ModelSpec;

/// A valid file, and the length of its header.
fn tiny() -> (Vec<u8>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("qwen2", true).write_gguf(folder.path(), GgmlDType::Q4K);
    let bytes = fs::read(path).unwrap();
    let end = header::parse(&bytes).unwrap().data_offset as usize;
    (bytes, end)
}

/// The error report for a file with this content.
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

/// A header: version, number of tensors, number of keys, and the rest.
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
fn a_file_truncated_anywhere_is_reported_as_cut_short() {
    let (bytes, header_end) = tiny();
    assert!(header::parse(&bytes[..0]).is_err());
    for length in 0..header_end {
        match header::parse(&bytes[..length]) {
            Err(HeaderError::CutShort { missing, .. }) => assert!(missing > 0),
            // The file may end in the padding after the header; then all tensor data is missing.
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

/// Parses 30,000 headers with some bytes changed. The result is an error or a header, but never a
/// panic. Memory stays in proportion to the file's size: allocating the size that a header claims
/// would abort the test.
#[test]
fn a_header_with_random_changes_never_panics() {
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

/// The same with whole models: each is either loaded or rejected.
#[test]
fn a_model_with_a_flipped_bit_is_loaded_or_rejected() {
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
        match crate::engine::model::load(&path, Backend::Auto) {
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
fn errors_name_what_is_wrong() {
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
            "not a GGUF file (it starts with `\\x01abc`)",
            b"\x01abcd".to_vec(),
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
            "appears twice",
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
            "`general.alignment` is of type u64, not u32",
            raw(3, 0, 1, &[&key, &10u32.to_le_bytes(), &32u64.to_le_bytes()]),
        ),
        (
            "appears twice",
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
    let tensor = GgufFile::open(&path).unwrap().tensor("t").unwrap();
    let read: Vec<f32> = tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap();
    assert_eq!(read, [1.0, 2.0, 3.0]);
}

#[test]
fn the_default_model_is_described_by_its_header() {
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
        beyond_window: None,
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
    // candle's own parser finds the same header.
    let (ours, mut reader) = file.for_candle(&expected).unwrap();
    let theirs = Content::read(&mut reader).unwrap();
    assert_eq!(
        format!("{:?}", file.metadata()["tokenizer.ggml.tokens"]),
        format!("{:?}", theirs.metadata["tokenizer.ggml.tokens"])
    );
    assert_eq!(file.metadata().len(), theirs.metadata.len());
    assert_eq!(ours.tensor_infos.len(), theirs.tensor_infos.len());
    for (name, info) in &ours.tensor_infos {
        let other = &theirs.tensor_infos[name];
        assert_eq!(info.offset, theirs.tensor_data_offset + other.offset);
        assert_eq!(info.shape, other.shape);
        assert_eq!(info.ggml_dtype, other.ggml_dtype);
    }
}

/// Only a file that may be damaged is worth downloading again.
#[test]
fn the_hint_matches_the_error() {
    let u64_alignment = raw(
        3,
        0,
        1,
        &[
            &text("general.alignment"),
            &10u32.to_le_bytes(),
            &32u64.to_le_bytes(),
        ],
    );
    let cases: [(&str, &str, Vec<u8>); 9] = [
        ("", "convert it with", raw(3u32.swap_bytes(), 0, 0, &[])),
        ("version 1", "convert it again", raw(1, 0, 0, &[])),
        ("version 9", "GGUF version 3", raw(9, 0, 0, &[])),
        ("of type u64, not u32", "convert it again", u64_alignment),
        (
            "Git LFS",
            "git lfs pull",
            b"version https://git-lfs.github.com/spec/v1".to_vec(),
        ),
        (
            "zip archive",
            "with safetensors",
            b"PK\x03\x04rest".to_vec(),
        ),
        ("before GGUF", "use a GGUF file", b"tjgg\x03\0\0\0".to_vec()),
        (
            "web page",
            "not the page",
            b"<!DOCTYPE html><html>".to_vec(),
        ),
        ("starts with `{ 1,`", "give a GGUF file", b"{ 1, }".to_vec()),
    ];
    for (what, hint, bytes) in cases {
        let report = complaint(&bytes);
        assert!(report.contains(what), "{what}: {report}");
        assert!(report.contains(hint), "{hint}: {report}");
        assert!(!report.contains("delete the file"), "{report}");
    }
    let damaged = complaint(&raw(3, 0, 1, &[&text("a")]));
    assert!(damaged.contains("delete the file"), "{damaged}");
}

#[test]
fn any_nonzero_byte_is_true() {
    for (byte, expected) in [(0, false), (1, true), (2, true), (255, true)] {
        let bytes = raw(3, 0, 1, &[&text("a"), &7u32.to_le_bytes(), &[byte]]);
        let header = header::parse(&bytes).unwrap();
        assert!(matches!(header.metadata["a"], Value::Bool(value) if value == expected));
    }
}

#[test]
fn metadata_is_readable_with_weights_of_an_unknown_type() {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::F32);
    for (number, name) in [(20, "IQ4_NL"), (39, "MXFP4"), (99, "number 99")] {
        retype(&path, "blk.1.ffn_up.weight", number);
        assert!(metadata(&path).unwrap().contains_key("llama.block_count"));
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.spec().unwrap().layers, 2);
        let expected = format!("has tensor `blk.1.ffn_up.weight` of type {name}");
        let errors = [
            file.check_types().unwrap_err(),
            file.tensor("blk.1.ffn_up.weight").unwrap_err(),
        ];
        for error in errors {
            let report = error.report();
            assert!(report.contains(&expected), "{report}");
            assert!(
                report.contains("hint: use another quantization"),
                "{report}"
            );
        }
    }
    // The metadata of a truncated file can be read as well.
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1000]).unwrap();
    assert!(metadata(&path).is_ok());
}

/// A llama file with these keys changed, or removed if the value is `None`.
fn with_keys(changes: &[(&str, Option<Value>)]) -> (tempfile::TempDir, GgufFile) {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::new("llama", true);
    let mut metadata = tiny.metadata();
    for (key, value) in changes {
        let key = format!("llama.{key}");
        metadata.retain(|(other, _)| *other != key);
        metadata.extend(value.clone().map(|value| (key, value)));
    }
    let path = folder.path().join("changed.gguf");
    write_gguf(&path, &metadata, &tiny.stored(|_| GgmlDType::F32));
    let file = GgufFile::open(&path).unwrap();
    (folder, file)
}

#[test]
fn integers_of_any_width_and_equal_values_per_layer_are_read() {
    let (_folder, plain) = with_keys(&[]);
    let expected = plain.spec().unwrap();
    let layers = |count: u32| Some(Value::Array(vec![Value::U32(count); LAYERS]));
    for changes in [
        vec![("attention.head_count", layers(4))],
        vec![
            ("attention.head_count", layers(4)),
            ("attention.head_count_kv", layers(2)),
            ("feed_forward_length", layers(512)),
        ],
        vec![
            ("block_count", Some(Value::U64(2))),
            ("embedding_length", Some(Value::I32(256))),
            ("context_length", Some(Value::I64(2048))),
            ("attention.head_count", Some(Value::U8(4))),
            ("attention.head_count_kv", Some(Value::I16(2))),
            ("rope.freq_base", Some(Value::F64(10_000.0))),
        ],
        vec![
            ("rope.freq_base", None),
            ("rope.dimension_count", None),
            ("attention.key_length", None),
        ],
    ] {
        let (_folder, file) = with_keys(&changes);
        assert_eq!(file.spec().unwrap(), expected, "{changes:?}");
    }
    let different = Value::Array(vec![Value::I32(4), Value::I32(2)]);
    for key in [
        "attention.head_count",
        "attention.head_count_kv",
        "feed_forward_length",
    ] {
        let (_folder, file) = with_keys(&[(key, Some(different.clone()))]);
        let report = file.spec().unwrap_err().report();
        let expected =
            format!("`llama.{key}` differs between layers (4, 2), which is not supported");
        assert!(report.contains(&expected), "{report}");
        assert!(!report.contains("delete the file"), "{report}");
        assert_eq!(file.shown(key), "4, 2");
    }
    let (_folder, file) = with_keys(&[("block_count", Some(Value::Array(Vec::new())))]);
    assert!(file.spec().unwrap_err().report().contains("empty array"));
}

/// As in llama.cpp: a factor is linear unless a type says otherwise, and it has an older name.
#[test]
fn linear_rope_scaling_is_read_from_every_key() {
    let number = |number: f32| Some(Value::F32(number));
    let kind = |kind: &str| Some(Value::String(kind.to_owned()));
    let factor = "rope.scaling.factor";
    let old = "rope.scale_linear";
    let of_type = "rope.scaling.type";
    let cases = [
        (vec![], Ok(1.0)),
        (vec![(factor, number(4.0))], Ok(4.0)),
        (vec![(factor, Some(Value::U32(4)))], Ok(4.0)),
        (vec![(factor, Some(Value::F64(2.5)))], Ok(2.5)),
        (vec![(old, number(2.0))], Ok(2.0)),
        (vec![(old, number(2.0)), (factor, number(4.0))], Ok(4.0)),
        (
            vec![(of_type, kind("linear")), (factor, number(8.0))],
            Ok(8.0),
        ),
        (vec![(of_type, kind("linear")), (old, number(8.0))], Ok(8.0)),
        (vec![(of_type, kind("linear"))], Ok(1.0)),
        (
            vec![(of_type, kind("none")), (factor, number(4.0))],
            Ok(1.0),
        ),
        (vec![(factor, number(0.0))], Ok(1.0)),
        (vec![(of_type, kind("yarn"))], Ok(1.0)),
        (vec![("rope.scaling.attn_factor", number(1.0))], Ok(1.0)),
        (
            vec![(of_type, kind("yarn")), (factor, number(4.0))],
            Err("by `yarn`"),
        ),
        (vec![(of_type, kind("longrope"))], Err("by `longrope`")),
        (vec![(of_type, kind("other"))], Err("by `other`")),
        (
            vec![(factor, number(-1.0))],
            Err("is -1, not a number above 0"),
        ),
        (vec![(old, number(f32::NAN))], Err("is not a number")),
        (
            vec![("rope.scaling.attn_factor", number(1.2))],
            Err("attn_factor"),
        ),
    ];
    for (changes, expected) in cases {
        let (_folder, file) = with_keys(&changes);
        match (file.rope_factor(), expected) {
            (Ok(factor), Ok(expected)) => assert_eq!(factor, expected, "{changes:?}"),
            (Err(error), Err(expected)) => {
                assert_eq!(error.exit(), Exit::Preflight);
                assert!(error.report().contains(expected), "{}", error.report());
            }
            (factor, _) => panic!("{changes:?}: {:?}", factor.ok()),
        }
    }
}

#[test]
fn a_split_model_can_be_opened_by_any_part() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::new("llama", false);
    let whole = GgufFile::open(&tiny.write_gguf(folder.path(), GgmlDType::Q8_0)).unwrap();
    let parts = tiny.write_split(folder.path(), GgmlDType::Q8_0, 3);
    for part in &parts {
        let file = GgufFile::open(part).unwrap();
        assert_eq!((file.parts(), file.path()), (3, &*parts[0]));
        assert_eq!(file.spec().unwrap(), whole.spec().unwrap());
        assert_eq!(file.tensor_names().count(), whole.tensor_names().count());
        for name in whole.tensor_names() {
            assert!(file.stored(name) == whole.stored(name), "{name}");
        }
        assert!(metadata(part).unwrap().contains_key("llama.block_count"));
    }

    // A file name that is not a part's.
    let renamed = folder.path().join("renamed.gguf");
    fs::copy(&parts[1], &renamed).unwrap();
    let report = GgufFile::open(&renamed).err().unwrap().report();
    assert!(
        report.contains("is part 2 of 3 of a split model"),
        "{report}"
    );
    assert!(report.contains("NAME-00002-of-00003.gguf"), "{report}");

    // A part of another split.
    let kept = fs::read(&parts[2]).unwrap();
    fs::copy(&parts[1], &parts[2]).unwrap();
    let report = GgufFile::open(&parts[0]).err().unwrap().report();
    assert!(
        report.contains("-00003-of-00003.gguf` is not part 3 of 3"),
        "{report}"
    );

    // A truncated part.
    fs::write(&parts[2], &kept[..kept.len() - 100]).unwrap();
    let report = GgufFile::open(&parts[0]).err().unwrap().report();
    assert!(
        report.contains("-00003-of-00003.gguf` is cut short"),
        "{report}"
    );

    fs::remove_file(&parts[2]).unwrap();
    let missing = |given: usize| GgufFile::open(&parts[given]).err().unwrap().report();
    let report = missing(0);
    assert!(
        report.contains("is part 1 of 3 of a split model"),
        "{report}"
    );
    assert!(
        report.contains("-00003-of-00003.gguf` is missing"),
        "{report}"
    );
    assert!(!report.contains("delete the file"), "{report}");
    fs::remove_file(&parts[0]).unwrap();
    let report = missing(1);
    assert!(report.contains("-00001-of-00003.gguf` and `"), "{report}");
    assert!(
        report.contains("-00003-of-00003.gguf` are missing"),
        "{report}"
    );
}
