//! Values as text: Python's `str` and `repr`, and JSON as `json.dumps` writes it.

use super::arguments::{self, Arguments};
use super::text::Text;
use super::value::{Callable, Value};
use super::{Failure, Outcome};

/// Appends what `{{ value }}` prints.
pub(super) fn push_string(value: &Value, to: &mut Text) -> Outcome<()> {
    match value {
        Value::Undefined(_) => {}
        Value::Text(text) => to.push(text),
        _ => push_repr(value, to)?,
    }
    Ok(())
}

/// Python's `str`.
pub(super) fn string(value: &Value) -> Outcome<Text> {
    if let Value::Text(text) = value {
        return Ok(text.as_ref().clone());
    }
    let mut text = Text::default();
    push_string(value, &mut text)?;
    Ok(text)
}

/// Python's `repr`.
pub(super) fn repr(value: &Value) -> Outcome<Text> {
    let mut text = Text::default();
    push_repr(value, &mut text)?;
    Ok(text)
}

fn push_repr(value: &Value, to: &mut Text) -> Outcome<()> {
    match value {
        Value::Undefined(_) => to.push_plain("Undefined"),
        Value::None => to.push_plain("None"),
        Value::Bool(true) => to.push_plain("True"),
        Value::Bool(false) => to.push_plain("False"),
        Value::Int(number) => to.push_plain(&number.to_string()),
        Value::Float(number) => to.push_plain(&float(*number)),
        Value::Text(text) => push_quoted(text, to),
        Value::List(items) => push_items(["[", "]"], items, to)?,
        Value::Tuple(items) if items.len() == 1 => push_items(["(", ",)"], items, to)?,
        Value::Tuple(items) => push_items(["(", ")"], items, to)?,
        Value::Dict(dict) => {
            to.push_plain("{");
            for (index, (key, value)) in dict.entries().iter().enumerate() {
                if index > 0 {
                    to.push_plain(", ");
                }
                push_repr(key, to)?;
                to.push_plain(": ");
                push_repr(value, to)?;
            }
            to.push_plain("}");
        }
        Value::Callable(callable) => match callable.as_ref() {
            Callable::Macro(of, _) | Callable::Caller(of, _) => {
                to.push_plain(&format!("<Macro '{}'>", of.name));
            }
            _ => to.push_plain(&format!("<{}>", value.type_name())),
        },
        Value::Loop(at) => {
            let (index, length) = (at.index.get() + 1, at.items.len());
            to.push_plain(&format!("<LoopContext {index}/{length}>"));
        }
        Value::Stream(_) | Value::Namespace(_) => {
            to.push_plain(&format!("<{}>", value.type_name()));
        }
    }
    match to.is_cut() {
        true => Err(Failure::too_much()),
        false => Ok(()),
    }
}

fn push_items(ends: [&str; 2], items: &[Value], to: &mut Text) -> Outcome<()> {
    to.push_plain(ends[0]);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            to.push_plain(", ");
        }
        push_repr(item, to)?;
    }
    to.push_plain(ends[1]);
    Ok(())
}

fn push_quoted(text: &Text, to: &mut Text) {
    let plain = text.as_str();
    let quote = match plain.contains('\'') && !plain.contains('"') {
        true => '"',
        false => '\'',
    };
    let mut buffer = [0; 4];
    let quote_text = &*quote.encode_utf8(&mut buffer);
    to.push_plain(quote_text);
    to.push(&text.map(|c, to| match c {
        '\\' => to.push_str("\\\\"),
        '\n' => to.push_str("\\n"),
        '\r' => to.push_str("\\r"),
        '\t' => to.push_str("\\t"),
        c if c == quote => to.extend(['\\', c]),
        c if is_printable(c) => to.push(c),
        c => to.push_str(&match u32::from(c) {
            code @ ..=0xff => format!("\\x{code:02x}"),
            code @ ..=0xffff => format!("\\u{code:04x}"),
            code => format!("\\U{code:08x}"),
        }),
    }));
    to.push_plain(quote_text);
}

/// Python's `str.isprintable` for one character.
pub(super) fn is_printable(c: char) -> bool {
    if matches!(c, '\\' | '\'' | '"') {
        return true;
    }
    // `escape_debug` escapes a combining character only at the start of a string.
    let escaped = ['x', c].iter().collect::<String>();
    let mut escaped = escaped.escape_debug().skip(1);
    escaped.next() == Some(c) && escaped.next().is_none()
}

/// Python's `repr` of a float: the shortest digits that round-trip.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return match plain.contains('.') {
            true => plain,
            false => plain + ".0",
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

struct Json {
    ensure_ascii: bool,
    indent: Option<Text>,
    between: Text,
    colon: Text,
    sort_keys: bool,
}

/// transformers' `tojson`: `json.dumps` without HTML escaping and, by default, without escaping
/// non-ASCII characters.
pub(super) fn to_json(value: &Value, arguments: Arguments) -> Outcome<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] = arguments.bind("tojson", names)?;
    let indent = match arguments::given(indent) {
        None => None,
        Some(Value::Text(indent)) => Some(indent.as_ref().clone()),
        Some(count) => Some(Text::plain(" ").repeat(arguments::count(&count)?)),
    };
    let (between, colon) = match arguments::given(separators) {
        Some(Value::Tuple(pair) | Value::List(pair)) if pair.len() == 2 => (
            arguments::text(&pair[0])?.as_ref().clone(),
            arguments::text(&pair[1])?.as_ref().clone(),
        ),
        Some(_) => return Err(Failure::new("tojson: separators are a pair of strings")),
        None if indent.is_some() => (Text::plain(","), Text::plain(": ")),
        None => (Text::plain(", "), Text::plain(": ")),
    };
    let json = Json {
        ensure_ascii: arguments::flag(ensure_ascii, false),
        indent,
        between,
        colon,
        sort_keys: arguments::flag(sort_keys, false),
    };
    let mut text = Text::default();
    json.push(value, 0, &mut text)?;
    Ok(Value::text(text))
}

impl Json {
    fn push(&self, value: &Value, level: usize, to: &mut Text) -> Outcome<()> {
        match value {
            Value::None => to.push_plain("null"),
            Value::Bool(flag) => to.push_plain(&flag.to_string()),
            Value::Int(number) => to.push_plain(&number.to_string()),
            Value::Float(number) => to.push_plain(&json_float(*number)),
            Value::Text(text) => self.push_text(text, to),
            Value::List(items) | Value::Tuple(items) => {
                if items.is_empty() {
                    to.push_plain("[]");
                    return Ok(());
                }
                to.push_plain("[");
                for (index, item) in items.iter().enumerate() {
                    self.separate(index, level + 1, to);
                    self.push(item, level + 1, to)?;
                }
                self.new_line(level, to);
                to.push_plain("]");
            }
            Value::Dict(dict) => {
                if dict.entries().is_empty() {
                    to.push_plain("{}");
                    return Ok(());
                }
                let mut entries = Vec::with_capacity(dict.entries().len());
                for (key, value) in dict.entries() {
                    entries.push((json_key(key)?, value));
                }
                if self.sort_keys {
                    entries.sort_by(|(left, _), (right, _)| left.as_str().cmp(right.as_str()));
                }
                to.push_plain("{");
                for (index, (key, value)) in entries.into_iter().enumerate() {
                    self.separate(index, level + 1, to);
                    self.push_text(&key, to);
                    to.push(&self.colon);
                    self.push(value, level + 1, to)?;
                }
                self.new_line(level, to);
                to.push_plain("}");
            }
            _ => {
                return Err(Failure::new(format!(
                    "Object of type {} is not JSON serializable",
                    value.type_name()
                )));
            }
        }
        match to.is_cut() {
            true => Err(Failure::too_much()),
            false => Ok(()),
        }
    }

    fn separate(&self, index: usize, level: usize, to: &mut Text) {
        if index > 0 {
            to.push(&self.between);
        }
        self.new_line(level, to);
    }

    fn new_line(&self, level: usize, to: &mut Text) {
        if let Some(indent) = &self.indent {
            to.push_plain("\n");
            for _ in 0..level {
                to.push(indent);
            }
        }
    }

    fn push_text(&self, text: &Text, to: &mut Text) {
        to.push_plain("\"");
        to.push(&text.map(|c, to| match c {
            '"' => to.push_str("\\\""),
            '\\' => to.push_str("\\\\"),
            '\n' => to.push_str("\\n"),
            '\r' => to.push_str("\\r"),
            '\t' => to.push_str("\\t"),
            '\u{8}' => to.push_str("\\b"),
            '\u{c}' => to.push_str("\\f"),
            ' '..='~' => to.push(c),
            c if c < ' ' || self.ensure_ascii => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    to.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => to.push(c),
        }));
        to.push_plain("\"");
    }
}

fn json_float(number: f64) -> String {
    match number {
        number if number.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        number => float(number),
    }
}

fn json_key(key: &Value) -> Outcome<Text> {
    Ok(match key {
        Value::Text(text) => text.as_ref().clone(),
        Value::None => Text::plain("null"),
        Value::Bool(flag) => Text::plain(flag.to_string()),
        Value::Int(number) => Text::plain(number.to_string()),
        Value::Float(number) => Text::plain(json_float(*number)),
        _ => {
            return Err(Failure::new(format!(
                "keys must be str, int, float, bool or None, not {}",
                key.type_name()
            )));
        }
    })
}
