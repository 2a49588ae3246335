//! Model folders in Hugging Face's layout: `config.json`, and weights in one or more `.safetensors`
//! files ([`shards`]).

mod rope;
pub(super) mod shards;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::{Map, Value};

use self::shards::Weights;
use super::json;
use crate::engine::model_spec::ModelSpec;
use crate::error::{Context, Error, Exit, Result};

pub(crate) use self::shards::folder_of;

/// Supported tensor types.
const DTYPES: [&str; 3] = ["F32", "F16", "BF16"];

/// An open model folder.
pub(crate) struct SafetensorsFolder {
    path: PathBuf,
    config: Map<String, Value>,
    weights: Weights,
}

impl SafetensorsFolder {
    /// Reads `config.json` and maps the weights. Does not check whether the model is supported: see
    /// [`Self::check`].
    ///
    /// # Errors
    /// Exit code 3 if something is missing or corrupt; the error names the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let config = path.join("config.json");
        let config = json::read(&config)?.ok_or_else(|| {
            Error::preflight(format!("`{}` is missing", config.display()))
                .hint("a model folder has config.json, tokenizer.json and *.safetensors")
        })?;
        Ok(Self {
            path: path.to_owned(),
            config,
            weights: Weights::open(path)?,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The model's name from `config.json`, if any.
    pub(crate) fn name(&self) -> Option<String> {
        let name = self.config.get("_name_or_path")?.as_str()?;
        (!name.is_empty()).then(|| name.to_owned())
    }

    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.weights.tensors.keys().map(String::as_str)
    }

    /// Bytes and elements of each tensor, in no particular order.
    pub(crate) fn tensor_sizes(&self) -> impl Iterator<Item = (usize, usize)> {
        let stored = self.tensor_names().filter_map(|name| self.stored(name));
        stored.map(|(_, shape, bytes)| (bytes.len(), shape.iter().product()))
    }

    /// A tensor's type, shape and bytes in the mapped file. `None` if there is no such tensor.
    pub(crate) fn stored(&self, name: &str) -> Option<(&str, Vec<usize>, &[u8])> {
        let (dtype, _) = self.weights.tensors.get(name)?;
        let view = self.weights.file_of(name)?.get(name).ok()?;
        Some((dtype, view.shape().to_vec(), view.data()))
    }

    /// The type of the layers' weights, such as `BF16`.
    pub(crate) fn weight_type(&self) -> &str {
        let tensors = &self.weights.tensors;
        tensors
            .get("model.layers.0.mlp.down_proj.weight")
            .or_else(|| tensors.values().next())
            .map_or("no weights", |(dtype, _)| dtype)
    }

    /// Copies a tensor; `None` if there is no such tensor.
    ///
    /// # Errors
    /// If its type is not f32, f16 or bf16, or it cannot be read.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some((dtype, _)) = self.weights.tensors.get(name) else {
            return Ok(None);
        };
        if !DTYPES.contains(&dtype.as_str()) {
            return Err(self.unsupported(name, dtype));
        }
        let Some(file) = self.weights.file_of(name) else {
            return Ok(None);
        };
        file.load(name, &Device::Cpu)
            .map(Some)
            .or_exit(Exit::Preflight, || {
                format!(
                    "failed to read tensor `{name}` in `{}`",
                    self.path.display()
                )
            })
    }

    fn unsupported(&self, name: &str, dtype: &str) -> Error {
        Error::preflight(format!(
            "tensor `{name}` in `{}` is of type {dtype}, which is not supported",
            self.path.display()
        ))
        .hint("use the model in bf16, f16 or f32, or as a GGUF file")
    }

    /// `model_type`.
    ///
    /// # Errors
    /// Exit code 3 if it is missing.
    pub(crate) fn model_type(&self) -> Result<&str> {
        self.text("model_type")
    }

    /// Checks that the model can be computed like the Llama family: not quantized, a SiLU
    /// activation, and supported tensor types.
    ///
    /// # Errors
    /// Exit code 3, with the difference.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(quantised) = self.config.get("quantization_config")
            && !quantised.is_null()
        {
            return Err(self
                .wrong(
                    "quantization_config",
                    "is set: quantized safetensors are not supported",
                )
                .hint("use the model in bf16, or as a GGUF file"));
        }
        match self.config.get("hidden_act").and_then(Value::as_str) {
            None | Some("silu" | "swish") => {}
            Some(other) => {
                return Err(self.wrong("hidden_act", &format!("is `{other}`, not `silu`")));
            }
        }
        let mut tensors = self.weights.tensors.iter();
        match tensors.find(|(_, (dtype, _))| !DTYPES.contains(&dtype.as_str())) {
            None => Ok(()),
            Some((name, (dtype, _))) => Err(self.unsupported(name, dtype)),
        }
    }

    /// Whether the output head shares the embedding's weights.
    pub(crate) fn output_is_tied(&self) -> bool {
        self.config.get("tie_word_embeddings") == Some(&Value::Bool(true))
    }

    /// The sliding window, in tokens, whether or not the model uses it.
    ///
    /// # Errors
    /// If it is not a whole number.
    pub(crate) fn sliding_window(&self) -> Result<Option<usize>> {
        self.count("sliding_window")
    }

    /// The model's sizes. The context is cut to the sliding window if `use_sliding_window` is set.
    ///
    /// # Errors
    /// If a key is missing or invalid.
    pub(crate) fn spec(&self) -> Result<ModelSpec> {
        let architecture = self.text("model_type")?.to_owned();
        let hidden = self.required("hidden_size")?;
        let heads = self.required("num_attention_heads")?;
        let head_size = match self.count("head_dim")? {
            Some(size) => size,
            None if heads > 0 => hidden / heads,
            None => return Err(self.wrong("num_attention_heads", "is 0")),
        };
        let slides = self.config.get("use_sliding_window") == Some(&Value::Bool(true));
        let window = self.sliding_window()?.filter(|_| slides);
        let trained = self.required("max_position_embeddings")?;
        let context_length = trained.min(self.rope_limit()?.unwrap_or(usize::MAX));
        if (self.rotated_part()? * head_size as f64) as usize != head_size {
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
            beyond_window: None,
            norm_epsilon: self.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_base: self.rope_base()?,
            rope_dimensions: head_size,
            architecture,
        }
        .within_window(window);
        spec.check().map_err(|what| {
            Error::preflight(format!("the model of `{}` {what}", self.config_path()))
        })?;
        Ok(spec)
    }

    /// A value of `config.json` for display; `?` if it is missing.
    pub(crate) fn shown(&self, key: &str) -> String {
        match self.config.get(key) {
            None | Some(Value::Null) => "?".to_owned(),
            Some(value) => value.to_string(),
        }
    }

    fn text(&self, key: &str) -> Result<&str> {
        match self.config.get(key) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.wrong(key, "is not a string")),
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

    /// The error for an invalid key of `config.json`.
    pub(crate) fn wrong(&self, key: &str, what: &str) -> Error {
        Error::preflight(format!("`{}`: key `{key}` {what}", self.config_path()))
    }
}
