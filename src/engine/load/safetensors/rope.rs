//! RoPE parameters in `config.json`, read as transformers 5 does: from `rope_scaling` unless it is
//! empty, else from `rope_parameters`. A base inside them takes precedence over a top-level
//! `rope_theta`.

use serde_json::{Map, Value};

use super::SafetensorsFolder;
use crate::engine::model_spec::ModelSpec;
use crate::error::Result;

/// Keys with RoPE parameters, in order of precedence.
const KEYS: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// `rope_scaling` or `rope_parameters`.
struct Parameters<'a> {
    folder: &'a SafetensorsFolder,
    /// The key they were found under.
    key: &'static str,
    map: &'a Map<String, Value>,
}

impl Parameters<'_> {
    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(key, &format!("is {value}, not a number"))),
            },
        }
    }

    /// A required number, which must be positive.
    fn positive(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(number) if number > 0.0 => Ok(number),
            _ => Err(self.wrong(key, "is not a number above 0")),
        }
    }

    fn wrong(&self, key: &str, what: &str) -> crate::error::Error {
        self.folder.wrong(&format!("{}.{key}", self.key), what)
    }

    /// The kind of scaling; `default` means none.
    fn kind(&self) -> Result<&str> {
        for key in ["rope_type", "type"] {
            match self.map.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::String(kind)) => return Ok(kind),
                Some(other) => return Err(self.wrong(key, &format!("is {other}, not a string"))),
            }
        }
        match self.number("factor")? {
            None | Some(1.0) => Ok("default"),
            Some(factor) => Err(self
                .wrong(
                    "factor",
                    &format!("is {factor}, with no `rope_type` to apply it to"),
                )
                .hint("add \"rope_type\": \"linear\" if that is what the model was trained with")),
        }
    }
}

impl SafetensorsFolder {
    fn rope(&self) -> Result<Option<Parameters<'_>>> {
        for key in KEYS {
            match self.config.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Object(map)) if map.is_empty() => {}
                Some(Value::Object(map)) => {
                    if let Some((kind, _)) = map.iter().find(|(_, value)| value.is_object()) {
                        return Err(self.wrong(
                            &format!("{key}.{kind}"),
                            "is for one kind of layers, which is not supported",
                        ));
                    }
                    let folder = self;
                    return Ok(Some(Parameters { folder, key, map }));
                }
                Some(other) => return Err(self.wrong(key, &format!("is {other}, not an object"))),
            }
        }
        Ok(None)
    }

    /// Base of the rotation frequencies (theta).
    pub(super) fn rope_base(&self) -> Result<f32> {
        self.rope_number("rope_theta")
            .map(|base| base.unwrap_or(10_000.0) as f32)
    }

    /// The rotated fraction of a head's dimensions.
    pub(super) fn rotated_part(&self) -> Result<f64> {
        self.rope_number("partial_rotary_factor")
            .map(|part| part.unwrap_or(1.0))
    }

    /// A number from the RoPE parameters, or else from the top level.
    fn rope_number(&self, key: &str) -> Result<Option<f64>> {
        let inside = self.rope()?.map_or(Ok(None), |rope| rope.number(key))?;
        match inside {
            Some(number) => Ok(Some(number)),
            None => self.number(key),
        }
    }

    /// Upper bound on the positions that [`Self::rope_divisors`] is valid for, if any: `dynamic`
    /// scaling starts beyond the context that the model was trained with.
    pub(super) fn rope_limit(&self) -> Result<Option<usize>> {
        let Some(rope) = self.rope()? else {
            return Ok(None);
        };
        if rope.kind()? != "dynamic" {
            return Ok(None);
        }
        let trained = "original_max_position_embeddings";
        Ok(rope
            .number(trained)?
            .map(|count| count as usize)
            .or(self.count(trained)?))
    }

    /// Divisors of the rotation frequencies, one per pair of rotated dimensions, `[rope_dimensions
    /// / 2]`; `None` if all are 1.
    ///
    /// # Errors
    /// If the scaling is not `linear`, `llama3`, or `dynamic` within the context that the model was
    /// trained with.
    pub(crate) fn rope_divisors(&self, spec: &ModelSpec) -> Result<Option<Vec<f32>>> {
        let Some(rope) = self.rope()? else {
            return Ok(None);
        };
        match rope.kind()? {
            "default" | "dynamic" => Ok(None),
            "linear" => {
                let factor = rope.positive("factor")? as f32;
                Ok(Some(vec![factor; spec.rope_dimensions / 2]))
            }
            "llama3" => {
                let trained = "original_max_position_embeddings";
                let trained = match rope.number(trained)? {
                    Some(_) => rope.positive(trained)?,
                    None => match self.count(trained)? {
                        Some(count) => count as f64,
                        None => self.required("max_position_embeddings")? as f64,
                    },
                };
                let stretch = Llama3 {
                    factor: rope.positive("factor")?,
                    low: rope.positive("low_freq_factor")?,
                    high: rope.positive("high_freq_factor")?,
                    trained,
                };
                Ok(Some(stretch.divisors(spec)))
            }
            other => Err(self
                .wrong(
                    rope.key,
                    &format!("is of type `{other}`, which is not supported"),
                )
                .hint("remove the key to run within the context that the model was trained with")),
        }
    }
}

/// Llama 3.1's RoPE scaling: divides low frequencies by `factor`, keeps high ones, and interpolates
/// in between. Same as transformers' `_compute_llama3_parameters`.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    /// The context length before scaling, in tokens.
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
