//! Descriptions of tiny models against the tensors that these are made of.

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use serde_json::json;

use super::*;
use crate::engine::model::testing::{Tiny, write_gguf};
use crate::error::Exit;

/// The description of a GGUF file of this model, with these metadata keys added.
fn described(tiny: &Tiny, more: Vec<(String, Value)>) -> Result<Decoder> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut metadata = tiny.metadata();
    metadata.retain(|(key, _)| !more.iter().any(|(other, _)| other == key));
    metadata.extend(more);
    write_gguf(&path, &metadata, &tiny.stored(|_| GgmlDType::F32));
    of_gguf(&GgufFile::open(&path).unwrap())
}

/// The description of a folder of this model, with these keys of `config.json` set.
fn described_folder(tiny: &Tiny, changes: &serde_json::Value) -> Result<Decoder> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = tiny.config();
    let map = config.as_object_mut().unwrap();
    map.extend(changes.as_object().unwrap().clone());
    tiny.write_folder(folder.path(), &config);
    of_folder(&SafetensorsFolder::open(folder.path()).unwrap())
}

/// The tensors that a file must have, with their shapes.
fn required(decoder: &Decoder) -> BTreeMap<String, Vec<usize>> {
    let mut found = BTreeMap::new();
    let mut matrix = |tensor: &MatrixTensor| {
        let (rows, columns) = tensor.shape;
        found.insert(format!("{}.weight", tensor.name), vec![rows, columns]);
        if tensor.bias == Presence::Required {
            found.insert(tensor.bias_name(), vec![rows]);
        }
    };
    let layers: Vec<_> = (0..decoder.spec.layers)
        .map(|index| decoder.layer_tensors(index))
        .collect();
    layers
        .iter()
        .flat_map(LayerTensors::matrices)
        .for_each(&mut matrix);
    matrix(&decoder.embedding());
    decoder.head().iter().for_each(&mut matrix);
    let norms = layers.into_iter().flat_map(|layer| {
        let norms = [layer.attention_norm, layer.feed_forward_norm];
        norms
            .into_iter()
            .chain(layer.head_norms.into_iter().flatten())
    });
    for norm in norms.chain([decoder.output_norm()]) {
        found.insert(norm.name, vec![norm.length]);
    }
    found
}

#[test]
fn required_tensors_are_those_of_a_model_of_the_family() {
    for family in FAMILIES {
        for tied in [true, false] {
            let tiny = Tiny::new(family.name, tied);
            let tensors = tiny.tensors.iter();
            let expected: BTreeMap<String, Vec<usize>> = tensors
                .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
                .collect();
            for decoder in [
                described(&tiny, Vec::new()).unwrap(),
                described_folder(&tiny, &json!({})).unwrap(),
            ] {
                assert_eq!(required(&decoder), expected, "{}", family.name);
                let names: Vec<String> = decoder.tensor_names().collect();
                assert!(expected.keys().all(|name| names.contains(name)));
            }
        }
    }
}

#[test]
fn a_folder_and_a_gguf_file_of_one_model_differ_in_the_order_of_rows_alone() {
    for family in FAMILIES {
        let tiny = Tiny::new(family.name, true);
        let of_file = described(&tiny, Vec::new()).unwrap();
        let mut of_folder = described_folder(&tiny, &json!({})).unwrap();
        let interleaved = match family.name {
            "llama" => (Some(tiny.heads), Some(tiny.kv_heads)),
            _ => (None, None),
        };
        let layer = of_file.layer_tensors(1);
        let found = (layer.query.interleaved_heads, layer.key.interleaved_heads);
        assert_eq!(found, interleaved, "{}", family.name);
        assert_eq!(layer.value.interleaved_heads, None);
        assert_eq!(of_folder.layer_tensors(1).query.interleaved_heads, None);
        of_folder.stored_pairs = of_file.stored_pairs;
        // GGUF holds it in f32.
        of_folder.spec.norm_epsilon = of_file.spec.norm_epsilon;
        assert_eq!(of_folder, of_file);
    }
}

#[test]
fn divisors_come_from_the_tensor_or_the_factor_or_config_json() {
    let mut tiny = Tiny::new("llama", true);
    let scaled = |tiny: &Tiny, factor: f32| {
        let key = "llama.rope.scaling.factor".to_owned();
        let decoder = described(tiny, vec![(key, Value::F32(factor))]).unwrap();
        assert_eq!(decoder.layer_ropes, [0, 0]);
        decoder.ropes[0].divisors.clone()
    };
    assert_eq!(scaled(&tiny, 1.0), Divisors::None);
    assert_eq!(scaled(&tiny, 2.0), Divisors::Given(vec![2.0; 32]));
    let linear = json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}});
    let decoder = described_folder(&tiny, &linear).unwrap();
    assert_eq!(decoder.ropes[0].divisors, Divisors::Given(vec![4.0; 32]));
    let norm = tiny.tensors[1].1.clone();
    tiny.tensors.push(("rope_freqs.weight".into(), norm));
    let expected = Divisors::Tensor {
        name: "rope_freqs.weight",
        factor: 2.0,
    };
    assert_eq!(scaled(&tiny, 2.0), expected);
}

#[test]
fn mistral_always_uses_its_window_and_others_if_they_say_so() {
    let context = |model_type: &'static str, switch: Option<bool>| {
        let tiny = Tiny::new(model_type, true);
        let mut changes = json!({"sliding_window": 100});
        if let Some(switch) = switch {
            changes["use_sliding_window"] = json!(switch);
        }
        let spec = described_folder(&tiny, &changes).unwrap().spec;
        (spec.context_length, spec.beyond_window)
    };
    let (cut, whole) = ((100, Some(2048)), (2048, None));
    assert_eq!(context("mistral", None), cut);
    assert_eq!(context("mistral", Some(true)), cut);
    assert_eq!(context("qwen2", None), whole);
    assert_eq!(context("qwen2", Some(false)), whole);
    assert_eq!(context("qwen2", Some(true)), cut);
    assert_eq!(context("llama", None), whole);
}

#[test]
fn partial_rotation_is_llamas_alone() {
    for family in FAMILIES {
        let tiny = Tiny::new(family.name, true);
        let key = format!("{}.rope.dimension_count", family.name);
        let partial = described(&tiny, vec![(key.clone(), Value::U32(32))]);
        match family.name {
            "llama" => assert_eq!(partial.unwrap().ropes[0].dimensions, 32),
            _ => {
                let report = partial.unwrap_err().report();
                assert!(report.contains(&key), "{report}");
                assert!(report.contains("is 32, not the head size"), "{report}");
            }
        }
    }
}

#[test]
fn a_family_without_a_description_is_an_error() {
    let tiny = Tiny::new("olmo", true);
    let errors = [
        described(&tiny, Vec::new()).unwrap_err(),
        described_folder(&tiny, &json!({})).unwrap_err(),
    ];
    for error in errors {
        let report = error.report();
        assert!(report.contains("`olmo`"), "{report}");
        assert!(
            report.contains("hint: use a model of one of these families: llama, qwen2"),
            "{report}"
        );
        assert_eq!(error.exit(), Exit::Preflight);
    }
}
