//! The rotary embedding's parameters in `config.json`, as transformers 5 reads them: `rope_scaling`
//! where it says anything, else `rope_parameters`; a base in there counts before `rope_theta` at the
//! top.

use serde_json::{Map, Value};

use super::SafetensorsFolder;
use crate::engine::model_spec::ModelSpec;
use crate::error::Result;

/// Keys that hold the parameters, in order.
const KEYS: [&str; 2] = ["rope_scaling", "rope_parameters"];

/// `rope_scaling` or `rope_parameters`.
struct Parameters<'a> {
    folder: &'a SafetensorsFolder,
    /// Which of the two it is.
    key: &'static str,
    map: &'a Map<String, Value>,
}

impl Parameters<'_> {
    /// A number, where there is one.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(key, &format!("is {value}, not a number"))),
            },
        }
    }

    /// A number that the kind of scaling cannot do without.
    fn positive(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(number) if number > 0.0 => Ok(number),
            _ => Err(self.wrong(key, "is not a number above 0")),
        }
    }

    fn wrong(&self, key: &str, what: &str) -> crate::error::Error {
        self.folder.wrong(&format!("{}.{key}", self.key), what)
    }

    /// The kind of scaling; `default` is none.
    fn kind(&self) -> Result<&str> {
        for key in ["rope_type", "type"] {
            match self.map.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::String(kind)) => return Ok(kind),
                Some(other) => return Err(self.wrong(key, &format!("is {other}, not a text"))),
            }
        }
        match self.number("factor")? {
            None | Some(1.0) => Ok("default"),
            Some(factor) => Err(self
                .wrong(
                    "factor",
                    &format!("is {factor}, with no `rope_type` that says of what"),
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

    /// Base of the rotation's frequencies.
    pub(super) fn rope_base(&self) -> Result<f32> {
        self.rope_number("rope_theta")
            .map(|base| base.unwrap_or(10_000.0) as f32)
    }

    /// Which part of a head is rotated.
    pub(super) fn rotated_part(&self) -> Result<f64> {
        self.rope_number("partial_rotary_factor")
            .map(|part| part.unwrap_or(1.0))
    }

    /// A number among the parameters, or else at the top of the file.
    fn rope_number(&self, key: &str) -> Result<Option<f64>> {
        let inside = self.rope()?.map_or(Ok(None), |rope| rope.number(key))?;
        match inside {
            Some(number) => Ok(Some(number)),
            None => self.number(key),
        }
    }

    /// Most positions that the frequencies of [`Self::rope_divisors`] hold for, where there is a limit:
    /// `dynamic` scaling begins beyond the context that the model was trained with.
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

    /// What slows each pair of rotated dimensions down, `[rope_dimensions / 2]`; `None` where
    /// nothing does.
    ///
    /// # Errors
    /// Another way to stretch the context than `linear`, `llama3`, and `dynamic` within the context
    /// that the model was trained with.
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
