//! Models in a folder, as Hugging Face lays them out: `config.json`, and weights in one or more
//! `.safetensors` files ([`shards`]).

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

/// What the tensors may be stored as.
const DTYPES: [&str; 3] = ["F32", "F16", "BF16"];

/// An open model folder.
pub(crate) struct SafetensorsFolder {
    path: PathBuf,
    config: Map<String, Value>,
    weights: Weights,
}

impl SafetensorsFolder {
    /// Reads `config.json` and maps the weights.
    ///
    /// # Errors
    /// Exit code 3, naming the file: something is missing or damaged. What model it is does not
    /// matter here: see [`Self::check`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let config = path.join("config.json");
        let config = json::read(&config)?.ok_or_else(|| {
            Error::preflight(format!("`{}` is missing", config.display()))
                .hint("a folder holds config.json, tokenizer.json and *.safetensors")
        })?;
        Ok(Self {
            path: path.to_owned(),
            config,
            weights: Weights::open(path)?,
        })
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
        self.weights.tensors.keys().map(String::as_str)
    }

    /// Bytes and elements of each tensor, in no order.
    pub(crate) fn tensor_sizes(&self) -> impl Iterator<Item = (usize, usize)> {
        let stored = self.tensor_names().filter_map(|name| self.stored(name));
        stored.map(|(_, shape, bytes)| (bytes.len(), shape.iter().product()))
    }

    /// A tensor as it is stored: its type, its shape and its bytes in the mapped file. `None` where
    /// there is none of that name.
    pub(crate) fn stored(&self, name: &str) -> Option<(&str, Vec<usize>, &[u8])> {
        let (dtype, _) = self.weights.tensors.get(name)?;
        let view = self.weights.file_of(name)?.get(name).ok()?;
        Some((dtype, view.shape().to_vec(), view.data()))
    }

    /// What the layers' weights are stored as: `BF16`.
    pub(crate) fn weight_type(&self) -> &str {
        let tensors = &self.weights.tensors;
        tensors
            .get("model.layers.0.mlp.down_proj.weight")
            .or_else(|| tensors.values().next())
            .map_or("no weights", |(dtype, _)| dtype)
    }

    /// Reads a tensor to the device, if there is one of that name.
    ///
    /// # Errors
    /// It is of a type that is not f32, f16 or bf16, or the device has no room.
    pub(crate) fn tensor(&self, name: &str, device: &Device) -> Result<Option<Tensor>> {
        let Some((dtype, _)) = self.weights.tensors.get(name) else {
            return Ok(None);
        };
        if !DTYPES.contains(&dtype.as_str()) {
            return Err(self.unsupported(name, dtype));
        }
        let Some(file) = self.weights.file_of(name) else {
            return Ok(None);
        };
        file.load(name, device)
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
        .hint("take the model in bf16, f16 or f32, or as a GGUF file")
    }

    /// `model_type`.
    ///
    /// # Errors
    /// Exit code 3: there is none.
    pub(crate) fn model_type(&self) -> Result<&str> {
        self.text("model_type")
    }

    /// Whether the model is as the Llama family is computed: neither quantised nor with another
    /// activation, its tensors of types that can be read.
    ///
    /// # Errors
    /// Exit code 3: what differs.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(quantised) = self.config.get("quantization_config")
            && !quantised.is_null()
        {
            return Err(self
                .wrong(
                    "quantization_config",
                    "is there: quantised safetensors are not supported",
                )
                .hint("take the model in bf16, or as a GGUF file"));
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
        let slides = match architecture.as_str() {
            "mistral" => true,
            _ => self.config.get("use_sliding_window") == Some(&Value::Bool(true)),
        };
        let window = self.count("sliding_window")?.filter(|_| slides);
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

    /// A number of `config.json` for people; `?` where there is none.
    pub(crate) fn shown(&self, key: &str) -> String {
        match self.config.get(key) {
            None | Some(Value::Null) => "?".to_owned(),
            Some(value) => value.to_string(),
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

    /// An error that says what is wrong with a key of `config.json`.
    pub(crate) fn wrong(&self, key: &str, what: &str) -> Error {
        Error::preflight(format!("`{}`: key `{key}` {what}", self.config_path()))
    }
}
