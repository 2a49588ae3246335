//! Reads the fields of a request's JSON object by type, with OpenAI's errors. Every field is taken exactly
//! once, so that what is left over is unknown.

use serde_json::{Map, Value};

use super::errors::{ApiError, ApiResult};

/// A JSON object whose fields are taken one by one. `null` counts as absent, as in OpenAI's interface.
#[derive(Debug)]
pub(super) struct Fields {
    members: Map<String, Value>,
    /// Where the object is, as `messages[0].`; empty for the body.
    place: String,
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn wrong_type(param: &str, expected: &str, value: &Value) -> ApiError {
    ApiError::field(
        param,
        "invalid_type",
        format!(
            "Invalid type for '{param}': expected {expected}, but got {} instead.",
            name_of(value)
        ),
    )
}

impl Fields {
    /// The body of a request.
    ///
    /// # Errors
    /// It is not a JSON object.
    pub(super) fn parse(body: &[u8]) -> ApiResult<Self> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            ApiError::invalid(format!("We could not parse the JSON body: {error}."))
        })?;
        match value {
            Value::Object(members) => Ok(Self {
                members,
                place: String::new(),
            }),
            other => Err(ApiError::invalid(format!(
                "Invalid body: expected an object, but got {} instead.",
                name_of(&other)
            ))),
        }
    }

    /// An object at `param`.
    ///
    /// # Errors
    /// The value is not an object.
    pub(super) fn of(param: &str, value: Value) -> ApiResult<Self> {
        match value {
            Value::Object(members) => Ok(Self {
                members,
                place: format!("{param}."),
            }),
            other => Err(wrong_type(param, "an object", &other)),
        }
    }

    /// The full name of a field.
    pub(super) fn param(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    /// A field's value, if it is there and not `null`.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn string(&mut self, name: &str) -> ApiResult<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.param(name), "a string", &other)),
        }
    }

    pub(super) fn boolean(&mut self, name: &str) -> ApiResult<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(is)) => Ok(Some(is)),
            Some(other) => Err(wrong_type(&self.param(name), "a boolean", &other)),
        }
    }

    pub(super) fn object(&mut self, name: &str) -> ApiResult<Option<Self>> {
        let param = self.param(name);
        self.take(name)
            .map(|value| Self::of(&param, value))
            .transpose()
    }

    pub(super) fn array(&mut self, name: &str) -> ApiResult<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong_type(&self.param(name), "an array", &other)),
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn integer(
        &mut self,
        name: &str,
        least: i128,
        most: i128,
    ) -> ApiResult<Option<i128>> {
        let param = self.param(name);
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = match &value {
            Value::Number(number) => number,
            other => return Err(wrong_type(&param, "an integer", other)),
        };
        let whole = (number.as_i64().map(i128::from)).or(number.as_u64().map(i128::from));
        // Beyond 64 bits it was read as a decimal number.
        let whole = match (whole, number.as_f64()) {
            (Some(whole), _) => whole,
            (None, Some(decimal)) if decimal.fract() == 0.0 => decimal as i128,
            _ => return Err(wrong_type(&param, "an integer", &value)),
        };
        if whole < least {
            return Err(below(&param, "integer", least, whole));
        }
        if whole > most {
            return Err(above(&param, "integer", most, whole));
        }
        Ok(Some(whole))
    }

    /// A number from `least` to `most`.
    pub(super) fn decimal(&mut self, name: &str, least: f64, most: f64) -> ApiResult<Option<f64>> {
        let param = self.param(name);
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_f64() else {
            return Err(wrong_type(&param, "a decimal number", &value));
        };
        if number < least {
            return Err(below(&param, "decimal", least, number));
        }
        if number > most {
            return Err(above(&param, "decimal", most, number));
        }
        Ok(Some(number))
    }

    /// A field that changes nothing about an answer.
    pub(super) fn skip(&mut self, names: &[&str]) {
        for name in names {
            self.members.remove(*name);
        }
    }

    /// A field that is accepted only with a value that has no effect.
    ///
    /// # Errors
    /// It has another value: `message` says what is not supported.
    pub(super) fn only(
        &mut self,
        name: &str,
        has_no_effect: impl FnOnce(&Value) -> bool,
        message: &str,
    ) -> ApiResult<()> {
        match self.take(name) {
            Some(value) if !has_no_effect(&value) => {
                let param = self.param(name);
                Err(ApiError::unsupported(
                    &param,
                    format!("'{param}' is not supported: {message}."),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// Names the first field that is left.
    pub(super) fn end(self) -> ApiResult<()> {
        // `null` and nothing say the same.
        let mut left = self.members.iter().filter(|(_, value)| !value.is_null());
        match left.next() {
            None => Ok(()),
            Some((name, _)) => {
                let param = format!("{}{name}", self.place);
                Err(ApiError::field(
                    &param,
                    "unknown_parameter",
                    format!("Unknown parameter: '{param}'."),
                ))
            }
        }
    }
}

fn below(
    param: &str,
    kind: &str,
    least: impl std::fmt::Display,
    got: impl std::fmt::Display,
) -> ApiError {
    let code = match kind {
        "integer" => "integer_below_min_value",
        _ => "decimal_below_min_value",
    };
    ApiError::field(
        param,
        code,
        format!(
            "Invalid '{param}': {kind} below minimum value. Expected a value >= {least}, but got {got} instead."
        ),
    )
}

fn above(
    param: &str,
    kind: &str,
    most: impl std::fmt::Display,
    got: impl std::fmt::Display,
) -> ApiError {
    let code = match kind {
        "integer" => "integer_above_max_value",
        _ => "decimal_above_max_value",
    };
    ApiError::field(
        param,
        code,
        format!(
            "Invalid '{param}': {kind} above maximum value. Expected a value <= {most}, but got {got} instead."
        ),
    )
}
