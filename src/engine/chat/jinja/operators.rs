//! Python's operators.

use std::cmp::Ordering;

use super::arguments;
use super::ast::{Comparison, Operator};
use super::text::Text;
use super::value::{Number, Value};
use super::{Failure, Outcome, format};

/// Upper bound on the length of a list made with `*`.
const LONGEST_LIST: usize = 1_000_000;

fn undefined(value: &Value) -> Outcome<()> {
    match value {
        Value::Undefined(message) => Err(Failure::new(message.as_ref())),
        _ => Ok(()),
    }
}

fn too_large() -> Failure {
    Failure::new("a number is too large")
}

pub(super) fn negative(value: &Value) -> Outcome<Value> {
    undefined(value)?;
    match value.number() {
        Some(Number::Int(number)) => number.checked_neg().map(Value::Int).ok_or_else(too_large),
        Some(Number::Float(number)) => Ok(Value::Float(-number)),
        None => Err(Failure::new(format!(
            "bad operand type for unary -: '{}'",
            value.type_name()
        ))),
    }
}

pub(super) fn positive(value: &Value) -> Outcome<Value> {
    undefined(value)?;
    match value.number() {
        Some(Number::Int(number)) => Ok(Value::Int(number)),
        Some(Number::Float(number)) => Ok(Value::Float(number)),
        None => Err(Failure::new(format!(
            "bad operand type for unary +: '{}'",
            value.type_name()
        ))),
    }
}

pub(super) fn arithmetic(operator: Operator, left: &Value, right: &Value) -> Outcome<Value> {
    undefined(left)?;
    if let (Operator::Remainder, Value::Text(template)) = (operator, left) {
        return format::percent(template, right).map(Value::text);
    }
    undefined(right)?;
    if let (Some(left), Some(right)) = (left.number(), right.number()) {
        return numbers(operator, left, right);
    }
    match (operator, left, right) {
        (Operator::Add, Value::Text(left), Value::Text(right)) => {
            let mut text = Text::default();
            text.push(left);
            text.push(right);
            Ok(Value::text(text))
        }
        (Operator::Add, Value::List(left), Value::List(right)) => {
            Value::list(left.iter().chain(right.iter()).cloned().collect())
        }
        (Operator::Add, Value::Tuple(left), Value::Tuple(right)) => {
            Value::tuple(left.iter().chain(right.iter()).cloned().collect())
        }
        (Operator::Multiply, sequence, times)
            if matches!(times.number(), Some(Number::Int(_)))
                && matches!(sequence, Value::Text(_) | Value::List(_) | Value::Tuple(_)) =>
        {
            repeat(sequence, arguments::count(times)?)
        }
        (Operator::Multiply, sequence, times)
            if matches!(sequence.number(), Some(Number::Int(_)))
                && matches!(times, Value::Text(_) | Value::List(_) | Value::Tuple(_)) =>
        {
            repeat(times, arguments::count(sequence)?)
        }
        _ => Err(Failure::new(format!(
            "unsupported operand types for {}: '{}' and '{}'",
            sign(operator),
            left.type_name(),
            right.type_name()
        ))),
    }
}

fn sign(operator: Operator) -> &'static str {
    match operator {
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::FloorDivide => "//",
        Operator::Remainder => "%",
        Operator::Power => "**",
    }
}

fn repeat(sequence: &Value, times: usize) -> Outcome<Value> {
    match sequence {
        Value::Text(text) => Ok(Value::text(text.repeat(times))),
        Value::List(items) | Value::Tuple(items) => {
            if items.len().saturating_mul(times) > LONGEST_LIST {
                return Err(Failure::too_much());
            }
            let values = items
                .iter()
                .cycle()
                .take(items.len() * times)
                .cloned()
                .collect();
            match sequence {
                Value::List(_) => Value::list(values),
                _ => Value::tuple(values),
            }
        }
        _ => Err(Failure::too_much()),
    }
}

fn numbers(operator: Operator, left: Number, right: Number) -> Outcome<Value> {
    let by_zero = || Err(Failure::new("division by zero"));
    if let (Number::Int(left), Number::Int(right)) = (left, right) {
        let result = match operator {
            Operator::Add => left.checked_add(right),
            Operator::Subtract => left.checked_sub(right),
            Operator::Multiply => left.checked_mul(right),
            Operator::FloorDivide | Operator::Remainder | Operator::Divide if right == 0 => {
                return by_zero();
            }
            Operator::Divide => return Ok(Value::Float(left as f64 / right as f64)),
            Operator::FloorDivide => left.checked_div_euclid(right).map(|quotient| {
                // Python rounds toward negative infinity, for negative divisors too.
                let remainder = left - quotient * right;
                quotient - i64::from(right < 0 && remainder != 0)
            }),
            Operator::Remainder => {
                left.checked_rem_euclid(right)
                    .map(|remainder| match right < 0 && remainder != 0 {
                        true => remainder + right,
                        false => remainder,
                    })
            }
            Operator::Power if right < 0 => {
                return Ok(Value::Float((left as f64).powf(right as f64)));
            }
            Operator::Power => u32::try_from(right)
                .ok()
                .and_then(|right| left.checked_pow(right)),
        };
        return result.map(Value::Int).ok_or_else(too_large);
    }
    let (left, right) = (left.float(), right.float());
    Ok(Value::Float(match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide | Operator::FloorDivide | Operator::Remainder if right == 0.0 => {
            return by_zero();
        }
        Operator::Divide => left / right,
        Operator::FloorDivide => (left / right).floor(),
        Operator::Remainder => left - (left / right).floor() * right,
        Operator::Power => left.powf(right),
    }))
}

pub(super) fn compare(comparison: Comparison, left: &Value, right: &Value) -> Outcome<bool> {
    let wanted: fn(Ordering) -> bool = match comparison {
        Comparison::Equal => return Ok(left.equals(right)),
        Comparison::Unequal => return Ok(!left.equals(right)),
        Comparison::In => return contains(right, left),
        Comparison::NotIn => return contains(right, left).map(|found| !found),
        Comparison::Less => Ordering::is_lt,
        Comparison::LessOrEqual => Ordering::is_le,
        Comparison::Greater => Ordering::is_gt,
        Comparison::GreaterOrEqual => Ordering::is_ge,
    };
    Ok(order(left, right)?.is_some_and(wanted))
}

/// Compares two values; `None` if either is NaN.
///
/// # Errors
/// The values cannot be ordered.
pub(super) fn order(left: &Value, right: &Value) -> Outcome<Option<Ordering>> {
    undefined(left)?;
    undefined(right)?;
    if let (Some(left), Some(right)) = (left.number(), right.number()) {
        return Ok(left.order(right));
    }
    match (left, right) {
        (Value::Text(left), Value::Text(right)) => Ok(Some(left.as_str().cmp(right.as_str()))),
        (Value::List(left), Value::List(right)) | (Value::Tuple(left), Value::Tuple(right)) => {
            for (left, right) in left.iter().zip(right.iter()) {
                if !left.equals(right) {
                    return order(left, right);
                }
            }
            Ok(Some(left.len().cmp(&right.len())))
        }
        _ => Err(Failure::new(format!(
            "'{}' and '{}' have no order",
            left.type_name(),
            right.type_name()
        ))),
    }
}

pub(super) fn contains(container: &Value, item: &Value) -> Outcome<bool> {
    match container {
        Value::Text(text) => match item {
            Value::Text(part) => Ok(text.as_str().contains(part.as_str())),
            _ => {
                undefined(item)?;
                Err(Failure::new(format!(
                    "'in <string>' requires string as left operand, not {}",
                    item.type_name()
                )))
            }
        },
        Value::Dict(dict) => Ok(dict.get(item).is_some()),
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            Err(Failure::new(format!(
                "argument of type '{}' is not iterable",
                container.type_name()
            )))
        }
        _ => Ok(container.items()?.iter().any(|found| found.equals(item))),
    }
}

/// Python slicing.
pub(super) fn slice(value: &Value, bounds: [Option<i64>; 3]) -> Outcome<Value> {
    undefined(value)?;
    let [start, stop, step] = bounds;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Failure::new("slice step cannot be zero"));
    }
    let length = match value {
        Value::Text(_) | Value::List(_) | Value::Tuple(_) => value.length()?,
        _ => {
            let message = format!("'{}' object is not subscriptable", value.type_name());
            return Ok(Value::Undefined(message.into()));
        }
    };
    let length = i64::try_from(length).map_err(|_| too_large())?;
    let (least, most) = if step > 0 {
        (0, length)
    } else {
        (-1, length - 1)
    };
    let bound = |bound: Option<i64>, default: i64| match bound {
        None => default,
        Some(bound) if bound < 0 => bound.saturating_add(length).max(least),
        Some(bound) => bound.min(most),
    };
    let (first, last) = if step > 0 {
        (0, length)
    } else {
        (length - 1, -1)
    };
    let (start, stop) = (bound(start, first), bound(stop, last));
    if let (Value::Text(text), 1) = (value, step) {
        let mut edges = text.as_str().char_indices().map(|(at, _)| at);
        let (start, stop) = (
            usize::try_from(start).unwrap_or(0),
            usize::try_from(stop.max(start)).unwrap_or(0),
        );
        let whole = text.as_str().len();
        let from = edges.by_ref().nth(start).unwrap_or(whole);
        let to = match stop - start {
            0 => from,
            count => edges.nth(count - 1).unwrap_or(whole),
        };
        return Ok(Value::text(text.slice(from..to)));
    }
    let places = std::iter::successors(Some(start), |at| at.checked_add(step))
        .take_while(|at| if step > 0 { *at < stop } else { *at > stop })
        .filter_map(|at| usize::try_from(at).ok());
    match value {
        Value::List(items) => Value::list(places.map(|at| items[at].clone()).collect()),
        Value::Tuple(items) => Value::tuple(places.map(|at| items[at].clone()).collect()),
        _ => {
            let letters = value.items()?;
            let mut text = Text::default();
            for at in places {
                text.push(arguments::text(&letters[at])?);
            }
            Ok(Value::text(text))
        }
    }
}
