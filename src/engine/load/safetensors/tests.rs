//! Intact and damaged folders, and folders of unsupported models.

use std::collections::HashMap;
use std::fs;

use serde_json::json;

use super::*;
use crate::config::Backend;
use crate::engine::decoder;
use crate::engine::model::testing::Tiny;

fn write(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Tiny::new("llama", false).write_folder(folder.path(), config);
    folder
}

fn complaint(folder: &Path) -> String {
    let error = crate::engine::model::load(folder, Backend::Candle).err();
    let error = error.expect("an error");
    assert_eq!(error.exit(), Exit::Preflight, "{}", error.chain());
    error.report()
}

#[test]
fn config_errors_name_the_key() {
    let tiny = Tiny::new("llama", false);
    assert!(crate::engine::model::load(write(&tiny.config()).path(), Backend::Auto).is_ok());
    let cases = [
        ("`model_type` is missing", "model_type", Value::Null),
        (
            "`model_type` is `bert`; from safetensors, llama, mistral",
            "model_type",
            json!("bert"),
        ),
        ("`model_type` is not a string", "model_type", json!(1)),
        ("`hidden_size` is missing", "hidden_size", Value::Null),
        ("`hidden_size` is -1, not a whole", "hidden_size", json!(-1)),
        (
            "has the shape [320, 256], not [320, 512]",
            "hidden_size",
            json!(512),
        ),
        (
            "`num_attention_heads` is \"4\", not a whole",
            "num_attention_heads",
            json!("4"),
        ),
        ("heads of 0", "num_attention_heads", json!(0)),
        ("do not share 3", "num_key_value_heads", json!(3)),
        (
            "has the shape [320, 256], not [321, 256]",
            "vocab_size",
            json!(321),
        ),
        (
            "`model.layers.2.self_attn.q_proj.weight`",
            "num_hidden_layers",
            json!(3),
        ),
        (
            "is not part of a llama model",
            "num_hidden_layers",
            json!(1),
        ),
        (
            "`quantization_config` is set",
            "quantization_config",
            json!({"bits": 4}),
        ),
        ("`hidden_act` is `gelu`", "hidden_act", json!("gelu")),
        (
            "`rope_scaling` is of type `yarn`",
            "rope_scaling",
            json!({"type": "yarn"}),
        ),
        (
            "`rope_scaling.factor`",
            "rope_scaling",
            json!({"rope_type": "linear"}),
        ),
        ("`rope_theta` is \"x\"", "rope_theta", json!("x")),
        ("norm epsilon of 2", "rms_norm_eps", json!(2.0)),
        (
            "`partial_rotary_factor` is not 1",
            "partial_rotary_factor",
            json!(0.5),
        ),
    ];
    for (expected, key, value) in cases {
        let mut config = tiny.config();
        if value.is_null() {
            config.as_object_mut().unwrap().remove(key);
        } else {
            config[key] = value;
        }
        let report = complaint(write(&config).path());
        assert!(report.contains(expected), "{expected}: {report}");
    }
}

#[test]
fn an_incomplete_or_corrupt_folder_is_refused() {
    let tiny = Tiny::new("llama", false);
    let folder = write(&tiny.config());
    let weights = folder.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for length in [0, 4, 100, whole.len() - 1] {
        fs::write(&weights, &whole[..length]).unwrap();
        let report = complaint(folder.path());
        assert!(
            report.contains("cut short or corrupt"),
            "{length}: {report}"
        );
    }
    fs::remove_file(&weights).unwrap();
    assert!(complaint(folder.path()).contains("neither model.safetensors nor"));
    let index = folder.path().join("model.safetensors.index.json");
    for (name, expected) in [
        ("absent.safetensors", "absent.safetensors` is missing"),
        (
            "../absent.safetensors",
            "names `../absent.safetensors`, which is not a",
        ),
        ("/etc/passwd", "names `/etc/passwd`, which is not a"),
        (".", "names `.`, which is not a"),
        (
            "pytorch_model.bin",
            "names `pytorch_model.bin`, which is not a",
        ),
    ] {
        fs::write(&index, json!({ "weight_map": { "t": name } }).to_string()).unwrap();
        let report = complaint(folder.path());
        assert!(report.contains(expected), "{expected}: {report}");
    }
    fs::write(&index, "{").unwrap();
    assert!(complaint(folder.path()).contains("failed to parse"));
    fs::write(folder.path().join("config.json"), "[]").unwrap();
    assert!(complaint(folder.path()).contains("config.json`"));
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(complaint(folder.path()).contains("config.json"));

    // One of a model's files given in place of its folder.
    let folder = write(&tiny.config());
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        let report = complaint(&folder.path().join(file));
        assert!(
            report.contains(&format!("{file}` is one file of a model")),
            "{report}"
        );
        assert!(report.contains("hint: use the folder"), "{report}");
        let hint = format!("MODEL={}", folder.path().display());
        assert!(report.contains(&hint), "{report}");
    }

    // What git leaves if the large files were not downloaded.
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    fs::write(folder.path().join("model.safetensors"), pointer).unwrap();
    let report = complaint(folder.path());
    assert!(report.contains("is a Git LFS pointer"), "{report}");
    assert!(report.contains("hint: download the file"), "{report}");
}

#[test]
fn a_missing_or_unsupported_tensor_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::new("llama", true);
    let mut config = tiny.config();
    config["tie_word_embeddings"] = json!(false);
    tiny.write_folder(folder.path(), &config);
    assert!(complaint(folder.path()).contains("tensor `lm_head.weight` in"));

    let down = tiny
        .tensors
        .iter_mut()
        .find(|(name, _)| name == "blk.1.ffn_down.weight");
    let (_, tensor) = down.unwrap();
    *tensor = tensor.to_dtype(candle_core::DType::F64).unwrap();
    tiny.write_folder(folder.path(), &tiny.config());
    let report = complaint(folder.path());
    assert!(
        report.contains("layers.1.mlp.down_proj.weight` in"),
        "{report}"
    );
    assert!(report.contains("of type F64"), "{report}");
}

#[test]
fn sliding_windows_and_newer_rope_keys_are_read() {
    let mut tiny = Tiny::new("mistral", false);
    tiny.rope_base = 1e6;
    let mut config = tiny.config();
    config["sliding_window"] = json!(1000);
    let map = config.as_object_mut().unwrap();
    map.remove("rope_theta");
    map.remove("head_dim");
    map.insert(
        "rope_parameters".into(),
        json!({"rope_theta": 1e6, "rope_type": "default"}),
    );
    let folder = tempfile::tempdir().unwrap();
    tiny.write_folder(folder.path(), &config);
    let opened = SafetensorsFolder::open(folder.path()).unwrap();
    let spec = decoder::of_folder(&opened).unwrap().spec;
    assert_eq!(spec.context_length, 1000);
    let context =
        "1000 tokens (its sliding window; longer sequences, up to 2048, are not supported)";
    assert_eq!(spec.context_text(), context);
    assert_eq!(spec.rope_base, 1e6);
    assert_eq!(spec.head_size, 64);
    assert_eq!(opened.rope_divisors(&spec).unwrap(), None);
    assert!(crate::engine::model::load(folder.path(), Backend::Auto).is_ok());
}

/// A folder with weights and these changes in `config.json`; a null removes the key.
fn opened(changes: &Value) -> (tempfile::TempDir, SafetensorsFolder) {
    let mut config = Tiny::new("llama", false).config();
    let map = config.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        map.remove(key);
        if !value.is_null() {
            map.insert(key.clone(), value.clone());
        }
    }
    let folder = write(&config);
    let opened = SafetensorsFolder::open(folder.path()).unwrap();
    (folder, opened)
}

/// As in transformers 5: `rope_scaling` unless it is empty, else `rope_parameters`; a value inside
/// them takes precedence over one at the top level.
#[test]
fn rope_parameters_are_read_from_every_key() {
    let plain = (10_000.0, 1.0);
    let cases = [
        (json!({}), plain),
        (json!({"rope_theta": null}), plain),
        (json!({"rope_scaling": {}}), plain),
        (json!({"rope_scaling": {"rope_theta": 5e5}}), (5e5, 1.0)),
        (
            json!({"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}}),
            (5e5, 1.0),
        ),
        (
            json!({"rope_theta": null, "rope_parameters": {"rope_theta": 500_000}}),
            (5e5, 1.0),
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 4.0}}),
            (10_000.0, 4.0),
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 4, "rope_theta": 5e5}}),
            (5e5, 4.0),
        ),
        (
            json!({"rope_parameters": {"rope_type": "linear", "factor": 2.5}}),
            (10_000.0, 2.5),
        ),
        (
            json!({
                "rope_scaling": {},
                "rope_parameters": {"type": "linear", "factor": 2.0, "rope_theta": 1e6},
            }),
            (1e6, 2.0),
        ),
        (
            json!({
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"type": "linear", "factor": 3.0},
            }),
            (10_000.0, 2.0),
        ),
        (json!({"rope_scaling": {"factor": 1.0}}), plain),
        (
            json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
            plain,
        ),
    ];
    for (changes, (base, factor)) in cases {
        let (_folder, opened) = opened(&changes);
        let spec = opened.spec().unwrap();
        assert_eq!(spec.rope_base, base, "{changes}");
        let divisors = opened.rope_divisors(&spec).unwrap();
        let expected = (factor != 1.0).then(|| vec![factor; 32]);
        assert_eq!(divisors, expected, "{changes}");
    }
    let refused = [
        (json!({"type": "linear"}), "`rope_scaling.factor`"),
        (
            json!({"type": "linear", "factor": "4"}),
            "`rope_scaling.factor` is \"4\"",
        ),
        (json!({"factor": 4.0}), "with no `rope_type`"),
        (
            json!({"type": "yarn", "factor": 4.0}),
            "`rope_scaling` is of type `yarn`",
        ),
        (json!({"type": "longrope"}), "`longrope`"),
        (json!({"rope_type": 3}), "`rope_scaling.rope_type` is 3"),
        (
            json!({"full_attention": {"rope_type": "default"}}),
            "for one kind of layers",
        ),
        (
            json!({"rope_theta": "big"}),
            "`rope_scaling.rope_theta` is \"big\"",
        ),
        (json!({"partial_rotary_factor": 0.5}), "is not 1"),
        (json!("linear"), "is \"linear\", not an object"),
    ];
    for (scaling, expected) in refused {
        let mut config = Tiny::new("llama", false).config();
        config["rope_scaling"] = scaling;
        let report = complaint(write(&config).path());
        assert!(report.contains(expected), "{expected}: {report}");
    }
}

/// `dynamic` scaling changes nothing within the context that the model was trained with. Llama 3's
/// scaling needs that context, which may be given at the top level.
#[test]
fn the_context_before_rope_scaling_is_found() {
    let (_folder, dynamic) = opened(&json!({
        "rope_scaling": {"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 512},
    }));
    assert_eq!(dynamic.spec().unwrap().context_length, 512);
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    });
    let (_folder, inside) = opened(&json!({ "rope_parameters": llama3.clone() }));
    let spec = inside.spec().unwrap();
    let expected = inside.rope_divisors(&spec).unwrap();
    assert!(expected.is_some());
    let mut without = llama3;
    without
        .as_object_mut()
        .unwrap()
        .remove("original_max_position_embeddings");
    let (_folder, at_top) = opened(&json!({
        "rope_scaling": without, "original_max_position_embeddings": 256,
    }));
    assert_eq!(at_top.rope_divisors(&spec).unwrap(), expected);
}

/// Two shards, the second with a stale copy of a tensor that the index assigns to the first, and a
/// third file that the index does not list.
#[test]
fn only_files_and_tensors_in_the_index_are_used() {
    let tiny = Tiny::new("llama", false);
    let folder = write(&tiny.config());
    let path = |name: &str| folder.path().join(name);
    let single = path("model.safetensors");
    let all = candle_core::safetensors::load(&single, &Device::Cpu).unwrap();
    fs::remove_file(&single).unwrap();
    let stale = "model.norm.weight";
    let (mut first, mut second) = (HashMap::new(), HashMap::new());
    let mut weight_map = serde_json::Map::new();
    for (name, tensor) in &all {
        let (part, file) = match name == stale || name.len() % 2 == 0 {
            true => (&mut first, "a.safetensors"),
            false => (&mut second, "b.safetensors"),
        };
        part.insert(name.clone(), tensor.clone());
        weight_map.insert(name.clone(), json!(file));
    }
    second.insert(stale.to_owned(), all[stale].zeros_like().unwrap());
    let save = |tensors: &HashMap<String, Tensor>, name: &str| {
        candle_core::safetensors::save(tensors, path(name)).unwrap();
    };
    save(&first, "a.safetensors");
    save(&second, "b.safetensors");
    save(&all, "consolidated.safetensors");
    let index = path("model.safetensors.index.json");
    let write_index = |map: &serde_json::Map<String, Value>| {
        fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    };

    // Without an index, the model's files cannot be determined.
    let report = complaint(folder.path());
    assert!(
        report.contains("several weight files (a.safetensors, b.saf"),
        "{report}"
    );
    assert!(
        report.contains("no model.safetensors.index.json"),
        "{report}"
    );

    write_index(&weight_map);
    let opened = SafetensorsFolder::open(folder.path()).unwrap();
    assert_eq!(opened.tensor_names().count(), all.len());
    for (name, expected) in &all {
        let tensor = opened.tensor(name).unwrap().unwrap();
        let difference = (tensor - expected)
            .unwrap()
            .abs()
            .unwrap()
            .sum_all()
            .unwrap();
        assert_eq!(difference.to_scalar::<f32>().unwrap(), 0.0, "{name}");
    }

    // A file that the index does not list changes nothing, even under the usual name.
    save(&second, "model.safetensors");
    assert!(SafetensorsFolder::open(folder.path()).is_ok());

    // A tensor that is not in the file the index gives.
    let mut wrong = weight_map.clone();
    wrong.insert("model.lost.weight".to_owned(), json!("b.safetensors"));
    write_index(&wrong);
    let report = complaint(folder.path());
    assert!(
        report.contains("b.safetensors` has no tensor `model.lost.weight`"),
        "{report}"
    );

    // A missing shard, and an index whose shards were merged into one file.
    write_index(&weight_map);
    fs::remove_file(path("b.safetensors")).unwrap();
    let report = complaint(folder.path());
    assert!(report.contains("b.safetensors` is missing"), "{report}");
    fs::remove_file(path("a.safetensors")).unwrap();
    save(&all, "model.safetensors");
    let merged = SafetensorsFolder::open(folder.path()).unwrap();
    assert_eq!(merged.tensor_names().count(), all.len());
}

#[test]
fn without_an_index_a_single_file_or_a_numbered_set_is_used() {
    let folder = write(&Tiny::new("llama", false).config());
    let path = |name: &str| folder.path().join(name);
    let all = candle_core::safetensors::load(path("model.safetensors"), &Device::Cpu).unwrap();
    fs::rename(path("model.safetensors"), path("weights.safetensors")).unwrap();
    let count =
        || SafetensorsFolder::open(folder.path()).map(|folder| folder.tensor_names().count());
    assert_eq!(count().unwrap(), all.len());
    fs::remove_file(path("weights.safetensors")).unwrap();
    let names: Vec<&String> = all.keys().collect();
    for (index, part) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let part: HashMap<String, Tensor> = part
            .iter()
            .map(|name| ((*name).clone(), all[*name].clone()))
            .collect();
        let name = format!("model-{:05}-of-00002.safetensors", index + 1);
        candle_core::safetensors::save(&part, path(&name)).unwrap();
    }
    assert_eq!(count().unwrap(), all.len());
    fs::remove_file(path("model-00001-of-00002.safetensors")).unwrap();
    let report = complaint(folder.path());
    assert!(
        report.contains("model-00001-of-00002.safetensors` is missing"),
        "{report}"
    );
}

#[test]
fn non_finite_numbers_in_unused_config_keys_are_harmless() {
    let folder = write(&Tiny::new("llama", false).config());
    let path = folder.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    let with = |more: &str| {
        let text = text.replacen('{', &format!("{{{more}, "), 1);
        fs::write(&path, format!("\u{feff}{text}")).unwrap();
    };
    with("\"time_step_limit\": [0.0, Infinity], \"x\": NaN, \"y\": -Infinity");
    assert!(
        SafetensorsFolder::open(folder.path())
            .unwrap()
            .spec()
            .is_ok()
    );
    let text = text.replace("\"rope_theta\":10000.0", "\"rope_theta\":Infinity");
    assert!(text.contains("Infinity"));
    fs::write(&path, text).unwrap();
    let report = complaint(folder.path());
    assert!(
        report.contains("`rope_theta` is \"Infinity\", not a number"),
        "{report}"
    );
}
