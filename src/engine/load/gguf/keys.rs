//! Model sizes and properties from the metadata, read as llama.cpp does: integers of any width, and
//! arrays with one value per layer in place of a single number.

use candle_core::quantized::gguf_file::Value;

use super::{GIVE_GGUF, GgufFile, OTHER_FILE, whole_number};
use crate::engine::model_spec::ModelSpec;
use crate::error::{Error, Result};

/// Number of per-layer values shown in an error message.
const SHOWN: usize = 4;

impl GgufFile {
    pub(crate) fn architecture(&self) -> Result<&str> {
        match self.metadata().get("general.architecture") {
            Some(Value::String(name)) => Ok(name),
            _ => Err(self.lacks("general.architecture")),
        }
    }

    /// An integer from the architecture's metadata (`llama.block_count` for `block_count`). A
    /// per-layer array counts as one integer if all its values are equal.
    ///
    /// # Errors
    /// If the value is not an integer in range, or differs between layers.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>> {
        let key = format!("{}.{key}", self.architecture()?);
        let Some(value) = self.metadata().get(&key) else {
            return Ok(None);
        };
        let whole = |value: &Value| {
            whole_number(value)
                .and_then(|number| usize::try_from(number).ok())
                .ok_or_else(|| self.wrong(&key, "is not a whole number"))
        };
        let Value::Array(values) = value else {
            return whole(value).map(Some);
        };
        let counts: Vec<usize> = values.iter().map(whole).collect::<Result<_>>()?;
        match counts[..] {
            [] => Err(self.wrong(&key, "is an empty array")),
            [first, ref rest @ ..] if rest.iter().all(|&count| count == first) => Ok(Some(first)),
            _ => Err(Error::preflight(format!(
                "`{}`: metadata key `{key}` differs between layers ({}), which is not supported",
                self.path().display(),
                shown(&counts)
            ))
            .hint("use a model whose layers are all alike")),
        }
    }

    /// A number from the architecture's metadata, integer or not.
    ///
    /// # Errors
    /// If the value is not a finite number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        let full_key = format!("{}.{key}", self.architecture()?);
        let number = match self.metadata().get(&full_key) {
            None => return Ok(None),
            Some(Value::F32(number)) => f64::from(*number),
            Some(Value::F64(number)) => *number,
            Some(_) => self.count(key)?.map_or(f64::NAN, |number| number as f64),
        };
        if number.is_finite() {
            Ok(Some(number))
        } else {
            Err(self.wrong(&full_key, "is not a number"))
        }
    }

    /// A string from the architecture's metadata.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        let key = format!("{}.{key}", self.architecture()?);
        match self.metadata().get(&key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(&key, "is not a string")),
        }
    }

    /// An integer from the architecture's metadata for display: `8`, or `8, 8, 4, 4, …` if layers
    /// differ; `?` if it is missing.
    pub(crate) fn shown(&self, key: &str) -> String {
        let architecture = self.architecture().unwrap_or_default();
        match self.metadata().get(&format!("{architecture}.{key}")) {
            Some(Value::Array(values)) => {
                let counts: Vec<u64> = values.iter().filter_map(whole_number).collect();
                match counts[..] {
                    [first, ref rest @ ..] if rest.iter().all(|&count| count == first) => {
                        first.to_string()
                    }
                    _ => shown(&counts),
                }
            }
            Some(value) => whole_number(value).map_or("?".to_owned(), |count| count.to_string()),
            None => "?".to_owned(),
        }
    }

    /// The factor by which linear RoPE scaling divides positions; 1 without scaling. Keys and
    /// defaults are llama.cpp's: a factor without a type is linear, a factor of 0 means no scaling,
    /// and `rope.scale_linear` is the factor's older name.
    ///
    /// # Errors
    /// If the model uses another kind of RoPE scaling, or the factor is negative or not a number.
    pub(crate) fn rope_factor(&self) -> Result<f64> {
        let keys = ["rope.scaling.factor", "rope.scale_linear"];
        let mut factor = 1.0;
        for key in keys {
            if let Some(number) = self.number(key)? {
                if number < 0.0 {
                    let key = format!("{}.{key}", self.architecture()?);
                    return Err(self.wrong(&key, &format!("is {number}, not a number above 0")));
                }
                factor = if number == 0.0 { 1.0 } else { number };
                break;
            }
        }
        let refused = |what: String| {
            Error::preflight(format!(
                "`{}` stretches its context by {what}, which is not supported",
                self.path().display()
            ))
            .hint("use a model without RoPE scaling, or with `linear` or Llama 3's")
        };
        let magnitude = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        if magnitude != 1.0 {
            return Err(refused(format!(
                "rotations of magnitude {magnitude} (rope.scaling.attn_factor)"
            )));
        }
        match self.text("rope.scaling.type")? {
            None | Some("linear") => Ok(factor),
            Some("none") => Ok(1.0),
            // A factor of 1 changes nothing.
            Some("yarn") if factor == 1.0 => Ok(1.0),
            Some(other) => Err(refused(format!("`{other}`"))),
        }
    }

    /// The model's sizes. If layers differ in their number of KV heads, `kv_heads` is the largest.
    ///
    /// # Errors
    /// If a key is missing, or the sizes contradict each other or the embedding's shape.
    pub(crate) fn spec(&self) -> Result<ModelSpec> {
        let architecture = self.architecture()?.to_owned();
        let required = |key: &str| -> Result<usize> {
            match self.count(key)? {
                Some(0) => Err(self.wrong(&format!("{architecture}.{key}"), "is 0")),
                Some(count) => Ok(count),
                None => Err(self.lacks(&format!("{architecture}.{key}"))),
            }
        };
        let hidden = required("embedding_length")?;
        let heads = required("attention.head_count")?;
        let head_size = match self.count("attention.key_length")? {
            Some(size) => size,
            None => hidden / heads,
        };
        let embedding = "token_embd.weight";
        let vocabulary = match self.shape(embedding) {
            Some(&[vocabulary, width]) if width == hidden => vocabulary,
            Some(shape) => {
                return Err(self.wrong(
                    &format!("{architecture}.embedding_length"),
                    &format!("is {hidden}, but tensor `{embedding}` has the shape {shape:?}"),
                ));
            }
            None => {
                return Err(Error::preflight(format!(
                    "`{}` has no tensor `{embedding}`",
                    self.path().display()
                ))
                .hint(GIVE_GGUF));
            }
        };
        let norm_epsilon = match self.number("attention.layer_norm_rms_epsilon")? {
            Some(epsilon) => epsilon,
            None => self
                .number("attention.layer_norm_epsilon")?
                .ok_or_else(|| {
                    self.lacks(&format!("{architecture}.attention.layer_norm_rms_epsilon"))
                })?,
        };
        let spec = ModelSpec {
            layers: required("block_count")?,
            hidden,
            intermediate: required("feed_forward_length")?,
            heads,
            kv_heads: self.kv_heads()?.unwrap_or(heads),
            head_size,
            vocabulary,
            context_length: required("context_length")?,
            beyond_window: None,
            norm_epsilon,
            rope_base: self.number("rope.freq_base")?.unwrap_or(10_000.0) as f32,
            rope_dimensions: self.count("rope.dimension_count")?.unwrap_or(head_size),
            architecture,
        };
        spec.check().map_err(|what| {
            Error::preflight(format!("`{}` {what}", self.path().display())).hint(OTHER_FILE)
        })?;
        Ok(spec)
    }

    fn kv_heads(&self) -> Result<Option<usize>> {
        let key = "attention.head_count_kv";
        // In lfm2, layers without attention have 0 KV heads.
        if self.architecture()? != "lfm2" {
            return self.count(key);
        }
        let full_key = format!("lfm2.{key}");
        let Some(Value::Array(values)) = self.metadata().get(&full_key) else {
            return self.count(key);
        };
        let counts: Option<Vec<u64>> = values.iter().map(whole_number).collect();
        let most = counts.and_then(|counts| counts.into_iter().max());
        match most.and_then(|most| usize::try_from(most).ok()) {
            Some(most) => Ok(Some(most)),
            None => Err(self.wrong(&full_key, "is not a list of counts")),
        }
    }
}

/// The first few of these numbers, for display.
fn shown<T: ToString>(counts: &[T]) -> String {
    let first = counts.iter().take(SHOWN).map(T::to_string);
    let mut shown = first.collect::<Vec<_>>().join(", ");
    if counts.len() > SHOWN {
        shown.push_str(", …");
    }
    shown
}
