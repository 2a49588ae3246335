//! Tests: what follows `is`.

use super::arguments::{self, Arguments};
use super::ast::Comparison;
use super::value::{Number, Value};
use super::{Failure, Outcome, filters, operators, print};

const NAMES: [&str; 39] = [
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "in",
    "integer",
    "iterable",
    "lower",
    "mapping",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
    "eq",
    "equalto",
    "==",
    "ne",
    "!=",
    "lt",
    "lessthan",
    "<",
    "le",
    "<=",
    "gt",
    "greaterthan",
    ">",
    "ge",
    ">=",
];

pub(super) fn check(name: &str, value: &Value, arguments: Arguments) -> Outcome<bool> {
    let function = format!("the test '{name}'");
    if let Some(comparison) = comparison(name) {
        let [other] = arguments.bind(&function, ["other"])?;
        let other = arguments::required(other, &function, "other")?;
        return operators::compare(comparison, value, &other);
    }
    let [other] = arguments.bind(&function, ["other"])?;
    let other = || arguments::required(other, &function, "other");
    let integer = || arguments::integer(value);
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.number().is_some(),
        "string" => matches!(value, Value::Text(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => matches!(
            value,
            Value::Undefined(_)
                | Value::Text(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
        ),
        "iterable" => !matches!(
            value,
            Value::None
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
                | Value::Namespace(_)
                | Value::Callable(_)
        ),
        "callable" => matches!(value, Value::Callable(_) | Value::Loop(_)),
        "escaped" => false,
        "even" => integer()? % 2 == 0,
        "odd" => integer()? % 2 != 0,
        "divisibleby" => {
            let other = other()?;
            let remainder = operators::arithmetic(super::ast::Operator::Remainder, value, &other)?;
            matches!(remainder.number(), Some(Number::Int(0)))
        }
        "sameas" => value.is(&other()?),
        "lower" | "upper" => {
            let text = print::string(value)?;
            is_cased(text.as_str(), name == "upper")
        }
        "filter" => filters::exists(arguments::text(value)?.as_str()),
        "test" => NAMES.contains(&arguments::text(value)?.as_str()),
        _ => return Err(Failure::new(format!("No test named '{name}'."))),
    })
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "eq" | "equalto" | "==" => Comparison::Equal,
        "ne" | "!=" => Comparison::Unequal,
        "lt" | "lessthan" | "<" => Comparison::Less,
        "le" | "<=" => Comparison::LessOrEqual,
        "gt" | "greaterthan" | ">" => Comparison::Greater,
        "ge" | ">=" => Comparison::GreaterOrEqual,
        "in" => Comparison::In,
        _ => return None,
    })
}

/// Whether the text has cased characters and all of them have this case.
pub(super) fn is_cased(text: &str, upper: bool) -> bool {
    if upper {
        return text.contains(char::is_uppercase) && !text.contains(char::is_lowercase);
    }
    text.contains(char::is_lowercase) && !text.contains(char::is_uppercase)
}
