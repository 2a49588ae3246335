//! Models in a folder, as Hugging Face lays them out: `config.json`, and weights in
//! `model.safetensors` or in shards that `model.safetensors.index.json` lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::engine::model::ModelSpec;
use crate::error::{Context, Error, Exit, Result};

/// `model_type`s of the Llama family.
const FAMILY: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];
const COMPLETE: &str =
    "the folder needs config.json, tokenizer.json and model.safetensors (or its shards and index)";

/// An open model folder.
pub(crate) struct SafetensorsFolder {
    path: PathBuf,
    config: Map<String, Value>,
    weights: MmapedSafetensors,
    /// What the tensors are stored as, by name.
    dtypes: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    /// Reads `config.json` and maps the weights.
    ///
    /// # Errors
    /// Exit code 3, naming the file and the key: something is missing, damaged, or not a model of
    /// the Llama family.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let config: Map<String, Value> = read_json(&path.join("config.json"))?;
        let shards = shards(path)?;
        // SAFETY: the maps are read-only, and this program never writes a weights file in place.
        // A process that shortens one meanwhile would end this one by SIGBUS, as with any program
        // that maps its weights.
        let weights = unsafe { MmapedSafetensors::multi(&shards) }
            .or_exit(Exit::Preflight, || {
                format!("failed to read the weights in `{}`", path.display())
            })
            .map_err(|error| error.hint("a file is cut short or corrupt: fetch it again"))?;
        let dtypes = weights
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, format!("{:?}", view.dtype())))
            .collect();
        let folder = Self {
            path: path.to_owned(),
            config,
            weights,
            dtypes,
        };
        folder.check_family()?;
        Ok(folder)
    }

    /// Where the folder is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The model's name, where `config.json` holds one.
    pub(crate) fn name(&self) -> Option<String> {
        let name = self.config.get("_name_or_path")?.as_str()?;
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// The names of all tensors.
    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.dtypes.keys().map(String::as_str)
    }

    /// What the layers' weights are stored as: `BF16`.
    pub(crate) fn weight_type(&self) -> &str {
        self.dtypes
            .get("model.layers.0.mlp.down_proj.weight")
            .map_or("no weights", String::as_str)
    }

    /// Reads a tensor to the device, if there is one of that name.
    ///
    /// # Errors
    /// It is of a type that is not f32, f16 or bf16, or the device has no room.
    pub(crate) fn tensor(&self, name: &str, device: &Device) -> Result<Option<Tensor>> {
        let Some(dtype) = self.dtypes.get(name) else {
            return Ok(None);
        };
        if !matches!(dtype.as_str(), "F32" | "F16" | "BF16") {
            return Err(Error::preflight(format!(
                "tensor `{name}` in `{}` is of type {dtype}, which is not supported",
                self.path.display()
            ))
            .hint("take the model in bf16, f16 or f32, or as a GGUF file"));
        }
        self.weights
            .load(name, device)
            .map(Some)
            .or_exit(Exit::Preflight, || {
                format!(
                    "failed to read tensor `{name}` in `{}`",
                    self.path.display()
                )
            })
    }

    /// Whether the output head is the embedding.
    pub(crate) fn output_is_tied(&self) -> bool {
        self.config.get("tie_word_embeddings") == Some(&Value::Bool(true))
    }

    /// The model's sizes.
    ///
    /// # Errors
    /// A key is missing, or is not what it should be.
    pub(crate) fn spec(&self) -> Result<ModelSpec> {
        let architecture = self.text("model_type")?.to_owned();
        let hidden = self.required("hidden_size")?;
        let heads = self.required("num_attention_heads")?;
        let head_size = match self.count("head_dim")? {
            Some(size) => size,
            None if heads > 0 => hidden / heads,
            None => return Err(self.wrong("num_attention_heads", "is 0")),
        };
        let mut context_length = self.required("max_position_embeddings")?;
        // Within its window, a model with a sliding one is a model with none.
        let slides = match architecture.as_str() {
            "mistral" => true,
            _ => self.config.get("use_sliding_window") == Some(&Value::Bool(true)),
        };
        if let (true, Some(window)) = (slides, self.count("sliding_window")?) {
            context_length = context_length.min(window);
        }
        let rotated = match self.number("partial_rotary_factor")? {
            None => head_size,
            Some(factor) => (factor * head_size as f64) as usize,
        };
        if rotated != head_size {
            return Err(self.wrong("partial_rotary_factor", "is not 1, which is not supported"));
        }
        let spec = ModelSpec {
            layers: self.required("num_hidden_layers")?,
            hidden,
            intermediate: self.required("intermediate_size")?,
            heads,
            kv_heads: self.count("num_key_value_heads")?.unwrap_or(heads),
            head_size,
            vocabulary: self.required("vocab_size")?,
            context_length,
            norm_epsilon: self.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_base: self.rope_number("rope_theta")?.unwrap_or(10_000.0) as f32,
            rope_dimensions: rotated,
            architecture,
        };
        spec.check().map_err(|what| {
            Error::preflight(format!("the model of `{}` {what}", self.config_path()))
        })?;
        Ok(spec)
    }

    /// What slows each pair of rotated dimensions down, `[rope_dimensions / 2]`; `None` where
    /// nothing does.
    ///
    /// # Errors
    /// Another way to stretch the context than `linear` and `llama3`.
    pub(crate) fn rope_divisors(&self, spec: &ModelSpec) -> Result<Option<Vec<f32>>> {
        let Some(scaling) = self.rope_scaling() else {
            return Ok(None);
        };
        let kind = scaling
            .get("rope_type")
            .or_else(|| scaling.get("type"))
            .and_then(Value::as_str);
        let number = |key: &str| {
            scaling
                .get(key)
                .and_then(Value::as_f64)
                .filter(|number| number.is_finite() && *number > 0.0)
                .ok_or_else(|| {
                    self.wrong(&format!("rope_scaling.{key}"), "is not a number above 0")
                })
        };
        match kind {
            None | Some("default") => Ok(None),
            Some("linear") => {
                let factor = number("factor")? as f32;
                Ok(Some(vec![factor; spec.rope_dimensions / 2]))
            }
            Some("llama3") => {
                let stretch = Llama3 {
                    factor: number("factor")?,
                    low: number("low_freq_factor")?,
                    high: number("high_freq_factor")?,
                    trained: number("original_max_position_embeddings")?,
                };
                Ok(Some(stretch.divisors(spec)))
            }
            Some(other) => Err(self
                .wrong(
                    "rope_scaling",
                    &format!("is of type `{other}`, which is not supported"),
                )
                .hint("remove the key to run within the context that the model was trained with")),
        }
    }

    /// `rope_scaling`, or what newer files have in its place.
    fn rope_scaling(&self) -> Option<&Map<String, Value>> {
        ["rope_scaling", "rope_parameters"]
            .iter()
            .find_map(|key| self.config.get(*key)?.as_object())
    }

    fn rope_number(&self, key: &str) -> Result<Option<f64>> {
        match self
            .config
            .get("rope_parameters")
            .and_then(|map| map.get(key))
        {
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(&format!("rope_parameters.{key}"), "is not a number")),
            },
            None => self.number(key),
        }
    }

    fn check_family(&self) -> Result<()> {
        let model_type = self.text("model_type")?;
        if !FAMILY.contains(&model_type) {
            return Err(self
                .wrong(
                    "model_type",
                    &format!(
                        "is `{model_type}`; from safetensors, {} are supported",
                        FAMILY.join(", ")
                    ),
                )
                .hint("take the model as a GGUF file: more architectures are supported there"));
        }
        if self
            .config
            .get("quantization_config")
            .is_some_and(|value| !value.is_null())
        {
            return Err(self
                .wrong(
                    "quantization_config",
                    "is there: quantised safetensors are not supported",
                )
                .hint("take the model in bf16, or as a GGUF file"));
        }
        match self.config.get("hidden_act").and_then(Value::as_str) {
            None | Some("silu") => Ok(()),
            Some(other) => Err(self.wrong("hidden_act", &format!("is `{other}`, not `silu`"))),
        }
    }

    fn text(&self, key: &str) -> Result<&str> {
        match self.config.get(key) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.wrong(key, "is not a text")),
            None => Err(self.wrong(key, "is missing")),
        }
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.count(key)?
            .ok_or_else(|| self.wrong(key, "is missing"))
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|count| usize::try_from(count).ok()) {
                Some(count) => Ok(Some(count)),
                None => Err(self.wrong(key, &format!("is {value}, not a whole number"))),
            },
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(key, &format!("is {value}, not a number"))),
            },
        }
    }

    fn config_path(&self) -> String {
        self.path.join("config.json").display().to_string()
    }

    fn wrong(&self, key: &str, what: &str) -> Error {
        Error::preflight(format!("`{}`: key `{key}` {what}", self.config_path()))
    }
}

/// Llama 3.1's way to stretch the context: slow turns by `factor`, fast ones not at all, those
/// between by something between. As transformers' `_compute_llama3_parameters`.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    /// The context before it was stretched, in tokens.
    trained: f64,
}

impl Llama3 {
    fn divisors(&self, spec: &ModelSpec) -> Vec<f32> {
        let rotated = spec.rope_dimensions;
        (0..rotated / 2)
            .map(|pair| {
                let exponent = (2 * pair) as f64 / rotated as f64;
                let wavelength = std::f64::consts::TAU * f64::from(spec.rope_base).powf(exponent);
                let turns = self.trained / wavelength;
                let divisor = if turns > self.high {
                    1.0
                } else if turns < self.low {
                    self.factor
                } else {
                    let smooth = (turns - self.low) / (self.high - self.low);
                    1.0 / ((1.0 - smooth) / self.factor + smooth)
                };
                divisor as f32
            })
            .collect()
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that hold the weights.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.is_file() {
        return Err(Error::preflight(format!(
            "`{}` holds neither model.safetensors nor model.safetensors.index.json",
            folder.display()
        ))
        .hint(COMPLETE));
    }
    let index: Index = read_json(&index_path)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    names
        .into_iter()
        .map(|name| {
            let mut parts = Path::new(&name).components();
            let plain = matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            );
            let shard = folder.join(&name);
            if plain && shard.is_file() {
                Ok(shard)
            } else {
                Err(Error::preflight(format!(
                    "`{}` lists `{name}`, which is not there",
                    index_path.display()
                ))
                .hint("fetch the missing file"))
            }
        })
        .collect()
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path)
        .or_exit(Exit::Preflight, || {
            format!("failed to read `{}`", path.display())
        })
        .map_err(|error| error.hint(COMPLETE))?;
    serde_json::from_str(&text).or_exit(Exit::Preflight, || {
        format!("`{}` is not what it should be", path.display())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::config::Backend;
    use crate::engine::model::testing::Tiny;

    fn write(config: &Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        Tiny::new("llama", false).write_folder(folder.path(), config);
        folder
    }

    fn complaint(folder: &Path) -> String {
        let error = crate::engine::model::load(folder, Backend::Candle, &Device::Cpu).err();
        let error = error.expect("an error");
        assert_eq!(error.exit(), Exit::Preflight, "{}", error.chain());
        error.report()
    }

    #[test]
    fn what_is_wrong_with_the_config_is_said_with_its_key() {
        let tiny = Tiny::new("llama", false);
        assert!(
            crate::engine::model::load(write(&tiny.config()).path(), Backend::Auto, &Device::Cpu)
                .is_ok()
        );
        let cases = [
            ("`model_type` is missing", "model_type", Value::Null),
            (
                "`model_type` is `bert`; from safetensors, llama, mistral",
                "model_type",
                json!("bert"),
            ),
            ("`model_type` is not a text", "model_type", json!(1)),
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
                "`quantization_config` is there",
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
    fn a_folder_that_is_not_whole_is_refused() {
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
        for name in ["absent.safetensors", "../absent", "/etc/passwd", "."] {
            fs::write(&index, json!({ "weight_map": { "t": name } }).to_string()).unwrap();
            let expected = format!("lists `{name}`, which is not there");
            assert!(complaint(folder.path()).contains(&expected));
        }
        fs::write(&index, "{").unwrap();
        assert!(complaint(folder.path()).contains("index.json` is not what it should be"));
        fs::write(folder.path().join("config.json"), "[]").unwrap();
        assert!(complaint(folder.path()).contains("config.json` is not what it should be"));
        fs::remove_file(folder.path().join("config.json")).unwrap();
        assert!(complaint(folder.path()).contains("config.json"));

        // One of a model's files in place of its folder.
        let folder = write(&tiny.config());
        let report = complaint(&folder.path().join("model.safetensors"));
        assert!(report.contains("hint: give the folder"), "{report}");
    }

    #[test]
    fn a_tensor_that_is_missing_or_of_another_type_is_named() {
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
    fn windows_and_newer_keys_are_understood() {
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
        let spec = opened.spec().unwrap();
        assert_eq!(spec.context_length, 1000);
        assert_eq!(spec.rope_base, 1e6);
        assert_eq!(spec.head_size, 64);
        assert_eq!(opened.rope_divisors(&spec).unwrap(), None);
        assert!(crate::engine::model::load(folder.path(), Backend::Auto, &Device::Cpu).is_ok());
    }
}
