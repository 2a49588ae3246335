//! Batches and files that the forward pass rejects, and the defaults for old files.

use super::*;

#[test]
fn an_invalid_chunk_is_an_error_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::new("llama", true);
    let mut model = ours(&tiny.write_gguf(folder.path(), GgmlDType::F32));
    let tokens = Random(8).tokens(2049, tiny.vocabulary);
    let (slot, other) = (model.open().unwrap(), model.open().unwrap());
    let own = table(slot);
    step(&mut model, slot, &tokens[..10], 0);
    let chunk = |pages, tokens, start| Chunk {
        slot,
        pages,
        tokens,
        start,
        logits: true,
    };
    let good = Chunk {
        slot: other,
        ..chunk(&own, &tokens[..1], 10)
    };
    let cases: [(&str, Vec<Chunk<'_>>); 7] = [
        ("too few pages", vec![good, chunk(&[], &tokens[..1], 10)]),
        ("too few", vec![good, chunk(&own[..1], &tokens[..7], 10)]),
        ("too few", vec![good, chunk(&[1024], &tokens[..1], 10)]),
        ("empty", vec![good, chunk(&own, &[], 10)]),
        ("token 320", vec![good, chunk(&own, &[3, 320], 10)]),
        ("context of 2048", vec![chunk(&own, &tokens[10..], 10)]),
        ("twice", vec![good, good]),
    ];
    for (expected, batch) in cases {
        let error = model.forward(&batch).unwrap_err();
        assert!(error.chain().contains(expected), "{}", error.chain());
        assert_eq!(error.exit(), Exit::FlowFailed);
    }
    assert_eq!(model.forward(&[]).unwrap(), Vec::<Vec<f32>>::new());
    // The last position of the context.
    let after = step(&mut model, slot, &tokens[10..2048], 10);
    let expected = step(&mut model, other, &tokens[..2048], 0);
    assert!(difference(&after, &expected) < 1e-5);
}

#[test]
fn without_pages_a_forward_pass_fails() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::new("llama", true);
    let mut model = ours(&tiny.write_gguf(folder.path(), GgmlDType::F32));
    let slot = model.open().unwrap();
    let chunk = Chunk {
        slot,
        pages: &[0],
        tokens: &[1],
        start: 0,
        logits: true,
    };
    model.set_pages(0).unwrap();
    assert!(model.forward(&[chunk]).is_err());
    model.set_pages(1).unwrap();
    assert!(model.forward(&[chunk]).is_ok());
}

#[test]
fn an_invalid_model_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.gguf");
    type Metadata = Vec<(String, Value)>;
    type Change<'a> = Box<dyn Fn(&mut Metadata, &mut Tiny) + 'a>;
    let load = |tiny: &Tiny, change: &dyn Fn(&mut Metadata, &mut Tiny)| {
        let mut tiny = Tiny {
            tensors: tiny.tensors.clone(),
            ..*tiny
        };
        let mut metadata = tiny.metadata();
        change(&mut metadata, &mut tiny);
        let tensors: Vec<_> = tiny
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let tensor = candle_core::quantized::QTensor::quantize(tensor, GgmlDType::F32);
                (name.clone(), tensor.unwrap())
            })
            .collect();
        write(&path, &metadata, &tensors);
        crate::engine::model::load(&path, crate::config::Backend::Auto)
    };
    let set = |metadata: &mut Metadata, key: &str, value: Option<Value>| {
        metadata.retain(|(other, _)| *other != format!("llama.{key}"));
        if let Some(value) = value {
            metadata.push((format!("llama.{key}"), value));
        }
    };
    let tiny = Tiny::new("llama", true);
    assert!(load(&tiny, &|_, _| ()).is_ok());
    let key = |key: &'static str, value: Option<Value>| -> Change<'_> {
        Box::new(move |metadata, _| set(metadata, key, value.clone()))
    };
    let without = |name: &'static str| -> Change<'_> {
        Box::new(move |_, tiny| tiny.tensors.retain(|(other, _)| other != name))
    };
    let cases: Vec<(&str, Change<'_>)> = vec![
        (
            "no metadata key `llama.block_count`",
            key("block_count", None),
        ),
        (
            "`llama.block_count` is 0",
            key("block_count", Some(Value::U32(0))),
        ),
        ("blk.2.attn", key("block_count", Some(Value::U32(3)))),
        (
            "not part of a llama model",
            key("block_count", Some(Value::U32(1))),
        ),
        (
            "not a whole number",
            key("block_count", Some(Value::I32(-1))),
        ),
        (
            "not a whole number",
            key("block_count", Some(Value::String("2".into()))),
        ),
        (
            "has the shape [320, 256]",
            key("embedding_length", Some(Value::U32(128))),
        ),
        (
            "has the shape [512, 256]",
            key("feed_forward_length", Some(Value::U32(256))),
        ),
        (
            "do not share 3",
            key("attention.head_count_kv", Some(Value::U32(3))),
        ),
        (
            "has the shape",
            key("attention.head_count_kv", Some(Value::U32(4))),
        ),
        (
            "head size of 63",
            key("attention.key_length", Some(Value::U32(63))),
        ),
        (
            "value_length",
            key("attention.value_length", Some(Value::U32(32))),
        ),
        (
            "rotated part",
            key("rope.dimension_count", Some(Value::U32(128))),
        ),
        ("rotary base", key("rope.freq_base", Some(Value::F32(-1.0)))),
        (
            "not a number",
            key("rope.freq_base", Some(Value::F32(f32::NAN))),
        ),
        (
            "norm epsilon",
            key("attention.layer_norm_rms_epsilon", Some(Value::F32(0.0))),
        ),
        (
            "by `longrope`",
            key("rope.scaling.type", Some(Value::String("longrope".into()))),
        ),
        (
            "rope.scaling.factor",
            key("rope.scaling.factor", Some(Value::F32(-1.0))),
        ),
        ("tensor `token_embd.weight`", without("token_embd.weight")),
        ("`output_norm.weight`", without("output_norm.weight")),
        (
            "tensor `blk.1.ffn_up.weight`",
            without("blk.1.ffn_up.weight"),
        ),
        (
            "`blk.0.attn_norm.weight`",
            without("blk.0.attn_norm.weight"),
        ),
        (
            "`blk.0.attn_sinks.weight` of",
            Box::new(|_, tiny| {
                let norm = tiny.tensors[1].1.clone();
                tiny.tensors.push(("blk.0.attn_sinks.weight".into(), norm));
            }),
        ),
        (
            "only some of attn_q, attn_k, attn_v",
            Box::new(|_, tiny| {
                let bias = Tensor::zeros(256, DType::F32, CPU).unwrap();
                tiny.tensors.push(("blk.0.attn_q.bias".into(), bias));
            }),
        ),
        (
            "supported are",
            Box::new(|metadata, _| metadata[0].1 = Value::String("mamba".into())),
        ),
        (
            "general.architecture",
            Box::new(|metadata, _| {
                metadata.remove(0);
            }),
        ),
    ];
    for (expected, change) in cases {
        let error = load(&tiny, &change)
            .err()
            .unwrap_or_else(|| panic!("{expected}"));
        assert!(
            error.chain().contains(expected),
            "{expected}: {}",
            error.chain()
        );
        assert_eq!(error.exit(), Exit::Preflight);
    }
}

/// Old files have neither `rope.dimension_count` nor `attention.key_length`, and omit the number of
/// KV heads if every head has its own.
#[test]
fn missing_optional_keys_have_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::new("llama", true);
    let path = tiny.write_gguf(folder.path(), GgmlDType::F32);
    let spec = GgufFile::open(&path).unwrap().spec().unwrap();
    let short = folder.path().join("short.gguf");
    let optional = ["key_length", "value_length", "dimension_count", "freq_base"];
    let metadata: Vec<_> = tiny
        .metadata()
        .into_iter()
        .filter(|(key, _)| !optional.iter().any(|end| key.ends_with(end)))
        .collect();
    let file = GgufFile::open(&path).unwrap();
    let tensors: Vec<_> = file
        .tensor_names()
        .map(|name| (name.to_owned(), file.tensor(name).unwrap()))
        .collect();
    write(&short, &metadata, &tensors);
    assert_eq!(GgufFile::open(&short).unwrap().spec().unwrap(), spec);
    let without: Vec<_> = metadata
        .into_iter()
        .filter(|(key, _)| !key.ends_with("head_count_kv"))
        .collect();
    write(&short, &without, &tensors);
    assert_eq!(GgufFile::open(&short).unwrap().spec().unwrap().kv_heads, 4);
}
