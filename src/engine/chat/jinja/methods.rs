//! Methods of strings, lists, tuples, dictionaries, loops and cyclers. As in Jinja's sandbox, none
//! of them mutates its receiver.

use super::arguments::{self, Arguments};
use super::text::Text;
use super::value::{Callable, Value};
use super::{Failure, Outcome, print, strings};

const OF_LISTS: [&str; 2] = ["count", "index"];
const OF_DICTS: [&str; 5] = ["copy", "get", "items", "keys", "values"];

/// Mutating methods, which the sandbox rejects.
const CHANGING_LISTS: [&str; 8] = [
    "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort",
];
const CHANGING_DICTS: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

pub(super) fn has(value: &Value, name: &str) -> bool {
    match value {
        Value::Text(_) => strings::METHODS.contains(&name),
        Value::List(_) => {
            OF_LISTS.contains(&name) || name == "copy" || CHANGING_LISTS.contains(&name)
        }
        Value::Tuple(_) => OF_LISTS.contains(&name),
        Value::Dict(_) => OF_DICTS.contains(&name) || CHANGING_DICTS.contains(&name),
        Value::Float(_) => name == "is_integer",
        Value::Loop(_) => ["changed", "cycle"].contains(&name),
        Value::Callable(callable) => {
            matches!(callable.as_ref(), Callable::Cycler(..)) && ["next", "reset"].contains(&name)
        }
        _ => false,
    }
}

pub(super) fn call(receiver: &Value, name: &str, arguments: Arguments) -> Outcome<Value> {
    match receiver {
        Value::Text(text) => strings::call(text, name, arguments),
        Value::List(_) | Value::Tuple(_) => of_sequence(receiver, name, arguments),
        Value::Dict(dict) => match name {
            "get" => {
                let [key, default] = arguments.bind(name, ["key", "default"])?;
                let key = arguments::required(key, name, "key")?;
                let found = dict.get(&key).cloned();
                Ok(found.or(default).unwrap_or(Value::None))
            }
            "copy" => Ok(receiver.clone()),
            "items" => {
                let pair =
                    |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
                Value::list(dict.entries().iter().map(pair).collect::<Outcome<_>>()?)
            }
            "keys" => Value::list(dict.entries().iter().map(|(key, _)| key.clone()).collect()),
            "values" => Value::list(
                dict.entries()
                    .iter()
                    .map(|(_, value)| value.clone())
                    .collect(),
            ),
            _ => Err(unsafe_access(receiver, name)),
        },
        Value::Float(number) => Ok(Value::Bool(number.fract() == 0.0)),
        Value::Loop(at) if name == "changed" => {
            let value = Value::tuple(arguments.positional)?;
            let mut last = at.changed.borrow_mut();
            let has_changed = !last.as_ref().is_some_and(|last| last.equals(&value));
            *last = Some(value);
            Ok(Value::Bool(has_changed))
        }
        Value::Loop(at) => {
            let items = arguments.positional;
            if items.is_empty() {
                return Err(Failure::new("no items for cycling given"));
            }
            Ok(items[at.index.get() % items.len()].clone())
        }
        Value::Callable(callable) => match callable.as_ref() {
            Callable::Cycler(items, at) => {
                let index = at.get();
                at.set(match name {
                    "reset" => 0,
                    _ => (index + 1) % items.len().max(1),
                });
                let item = items.get(index).filter(|_| name == "next");
                Ok(item.cloned().unwrap_or(Value::None))
            }
            _ => Err(unsafe_access(receiver, name)),
        },
        _ => Err(unsafe_access(receiver, name)),
    }
}

fn unsafe_access(receiver: &Value, name: &str) -> Failure {
    let kind = receiver.type_name();
    Failure::new(format!(
        "access to attribute '{name}' of '{kind}' object is unsafe: a template may not change it"
    ))
}

fn of_sequence(receiver: &Value, name: &str, arguments: Arguments) -> Outcome<Value> {
    let items = receiver.items()?;
    match name {
        "copy" => Ok(receiver.clone()),
        "count" => {
            let [value] = arguments.bind(name, ["value"])?;
            let value = arguments::required(value, name, "value")?;
            let count = items.iter().filter(|item| item.equals(&value)).count();
            Ok(Value::count(count))
        }
        "index" => {
            let [value] = arguments.bind(name, ["value"])?;
            let value = arguments::required(value, name, "value")?;
            let place = items.iter().position(|item| item.equals(&value));
            place.map(Value::count).ok_or_else(|| {
                let value = print::repr(&value).unwrap_or_else(|_| Text::default());
                Failure::new(format!("{} is not in list", value.as_str()))
            })
        }
        _ => Err(unsafe_access(receiver, name)),
    }
}
