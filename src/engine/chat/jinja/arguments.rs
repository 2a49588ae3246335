//! Arguments of calls, filters and tests.

use std::sync::Arc;

use super::text::Text;
use super::value::{Number, Value};
use super::{Failure, Outcome};

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(String, Value)>,
}

impl Arguments {
    /// Binds the arguments to parameter names; `None` for each one not given.
    ///
    /// # Errors
    /// Too many arguments, an unknown name, or two values for one parameter.
    pub(super) fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
    ) -> Outcome<[Option<Value>; N]> {
        if self.positional.len() > N {
            return Err(Failure::new(format!(
                "{function} takes at most {N} arguments ({} given)",
                self.positional.len()
            )));
        }
        let mut bound = [const { None }; N];
        for (place, value) in bound.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            let place = names.iter().position(|known| *known == name);
            match place.map(|place| &mut bound[place]) {
                Some(place @ None) => *place = Some(value),
                Some(Some(_)) => {
                    let what = format!("{function} got two values for the argument '{name}'");
                    return Err(Failure::new(what));
                }
                None => {
                    let what = format!("{function} got an unexpected keyword argument '{name}'");
                    return Err(Failure::new(what));
                }
            }
        }
        Ok(bound)
    }
}

pub(super) fn required(value: Option<Value>, function: &str, name: &str) -> Outcome<Value> {
    value.ok_or_else(|| Failure::new(format!("{function} is missing the argument '{name}'")))
}

fn wrong_type<T>(value: &Value, wanted: &str) -> Outcome<T> {
    match value {
        Value::Undefined(message) => Err(Failure::new(message.as_ref())),
        _ => Err(Failure::new(format!(
            "expected {wanted}, got '{}'",
            value.type_name()
        ))),
    }
}

pub(super) fn text(value: &Value) -> Outcome<&Arc<Text>> {
    match value {
        Value::Text(text) => Ok(text),
        _ => wrong_type(value, "a string"),
    }
}

pub(super) fn integer(value: &Value) -> Outcome<i64> {
    match value.number() {
        Some(Number::Int(number)) => Ok(number),
        _ => wrong_type(value, "an integer"),
    }
}

/// A count. Negative numbers count as 0.
pub(super) fn count(value: &Value) -> Outcome<usize> {
    Ok(usize::try_from(integer(value)?).unwrap_or(0))
}

/// Treats an explicit `None` like a missing argument.
pub(super) fn given(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !matches!(value, Value::None))
}

pub(super) fn flag(value: Option<Value>, default: bool) -> bool {
    value.map_or(default, |value| value.is_true())
}
