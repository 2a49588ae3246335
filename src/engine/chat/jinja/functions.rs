//! Global functions: Jinja's, and the ones that transformers adds.

use std::cell::Cell;
use std::rc::Rc;

use super::arguments::{self, Arguments};
use super::text::Text;
use super::value::{Callable, Items, Namespace, Value};
use super::{Failure, Outcome, print};

/// The date that templates get when they ask for today's.
///
/// A prompt must not depend on the day of the run, or neither its tokens nor its cached prefix
/// would be reproducible. Llama 3.1's template falls back to this date itself.
const TODAY: jiff::civil::Date = jiff::civil::date(2024, 7, 26);

/// The limit of Jinja's sandbox.
const LONGEST_RANGE: usize = 100_000;

const FUNCTIONS: [&str; 7] = [
    "range",
    "dict",
    "namespace",
    "cycler",
    "joiner",
    "raise_exception",
    "strftime_now",
];

pub(super) fn named(name: &str) -> Option<Value> {
    let name = FUNCTIONS.iter().find(|known| **known == name)?;
    Some(Value::Callable(Rc::new(Callable::Function(name))))
}

pub(super) fn call(name: &str, arguments: Arguments) -> Outcome<Value> {
    match name {
        "range" => range(arguments),
        "dict" => Value::dict(members(name, arguments)?),
        "namespace" => {
            let namespace = Namespace::default();
            for (key, value) in members(name, arguments)? {
                namespace.members.borrow_mut().set(key, value)?;
            }
            Ok(Value::Namespace(Rc::new(namespace)))
        }
        "cycler" if arguments.positional.is_empty() => {
            Err(Failure::new("at least one item has to be provided"))
        }
        "cycler" => {
            let items = Items::new(arguments.positional)?;
            let cycler = Callable::Cycler(items, Cell::new(0));
            Ok(Value::Callable(Rc::new(cycler)))
        }
        "joiner" => {
            let [separator] = arguments.bind(name, ["sep"])?;
            let separator = match separator {
                Some(separator) => print::string(&separator)?,
                None => Text::plain(", "),
            };
            let joiner = Callable::Joiner(separator, Cell::new(false));
            Ok(Value::Callable(Rc::new(joiner)))
        }
        "raise_exception" => {
            let [message] = arguments.bind(name, ["message"])?;
            let message = print::string(&message.unwrap_or(Value::None))?;
            Err(Failure::refusal(message.as_str()))
        }
        _ => {
            let [format] = arguments.bind(name, ["format"])?;
            let format = arguments::required(format, name, "format")?;
            let format = arguments::text(&format)?.as_str();
            let date = jiff::fmt::strtime::format(format, TODAY.at(0, 0, 0, 0));
            let date = date.map_err(|error| {
                let what = format!("strftime_now does not know the format `{format}`");
                Failure::new(format!("{what}: {error}"))
            })?;
            Ok(Value::plain(date))
        }
    }
}

/// Entries for `dict` and `namespace`: from a dictionary or pairs, then from keyword arguments.
fn members(function: &str, arguments: Arguments) -> Outcome<Vec<(Value, Value)>> {
    let mut entries = Vec::new();
    for value in &arguments.positional {
        if let Value::Dict(dict) = value {
            entries.extend(dict.entries().iter().cloned());
            continue;
        }
        for pair in value.items()?.iter() {
            match &pair.items()?[..] {
                [key, value] => entries.push((key.clone(), value.clone())),
                _ => return Err(Failure::new(format!("{function} takes pairs"))),
            }
        }
    }
    let named = arguments.named.into_iter();
    entries.extend(named.map(|(name, value)| (Value::plain(name), value)));
    Ok(entries)
}

fn range(arguments: Arguments) -> Outcome<Value> {
    let [first, second, step] = arguments.bind("range", ["start", "stop", "step"])?;
    let first = arguments::integer(&arguments::required(first, "range", "stop")?)?;
    let (start, stop) = match second {
        Some(stop) => (first, arguments::integer(&stop)?),
        None => (0, first),
    };
    let step = step.as_ref().map_or(Ok(1), arguments::integer)?;
    if step == 0 {
        return Err(Failure::new("range() arg 3 must not be zero"));
    }
    let numbers = std::iter::successors(Some(start), |at| at.checked_add(step))
        .take_while(|at| if step > 0 { *at < stop } else { *at > stop });
    let numbers: Vec<Value> = numbers.take(LONGEST_RANGE + 1).map(Value::Int).collect();
    if numbers.len() > LONGEST_RANGE {
        return Err(Failure::new(format!(
            "Range too big. The sandbox blocks ranges larger than {LONGEST_RANGE}"
        )));
    }
    Value::list(numbers)
}
