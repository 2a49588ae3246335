//! Filters: what follows `|`. Those over sequences are in [`super::sequences`].

use std::num::IntErrorKind;

use super::arguments::{self, Arguments};
use super::text::Text;
use super::value::{Number, Value};
use super::{Failure, Outcome, format, is_space, print, sequences, strings};

const NAMES: [&str; 28] = [
    "abs",
    "attr",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "e",
    "escape",
    "float",
    "forceescape",
    "format",
    "indent",
    "int",
    "length",
    "lower",
    "pprint",
    "replace",
    "round",
    "safe",
    "string",
    "title",
    "tojson",
    "trim",
    "truncate",
    "upper",
    "urlencode",
    "wordcount",
];

pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name) || sequences::NAMES.contains(&name) || name == "wordwrap"
}

pub(super) fn apply(name: &str, value: Value, arguments: Arguments) -> Outcome<Value> {
    if sequences::NAMES.contains(&name) {
        return sequences::apply(name, value, arguments);
    }
    match name {
        "default" | "d" => {
            let [default, also_false] = arguments.bind(name, ["default_value", "boolean"])?;
            let is_missing = match &value {
                Value::Undefined(_) => true,
                value => arguments::flag(also_false, false) && !value.is_true(),
            };
            match is_missing {
                true => Ok(default.unwrap_or_else(|| Value::plain(""))),
                false => Ok(value),
            }
        }
        "length" | "count" => Ok(Value::count(value.length()?)),
        "tojson" => print::to_json(&value, arguments),
        "string" => match value {
            Value::Text(_) => Ok(value),
            value => print::string(&value).map(Value::text),
        },
        "safe" => Ok(value),
        "attr" => {
            let [name] = arguments.bind("attr", ["name"])?;
            let name = arguments::required(name, "attr", "name")?;
            let name = print::string(&name)?;
            match &value {
                // Attributes only: `attr` does not look up dictionary entries.
                Value::Dict(_) if !super::methods::has(&value, name.as_str()) => {
                    let name = name.as_str();
                    let message = format!("'dict object' has no attribute '{name}'");
                    Ok(Value::Undefined(message.into()))
                }
                value => super::evaluate::member(value, name.as_str()),
            }
        }
        "int" | "float" | "abs" | "round" => of_numbers(name, &value, arguments),
        "format" => {
            let template = print::string(&value)?;
            let values = match arguments.named.is_empty() {
                true => Value::tuple(arguments.positional)?,
                false => {
                    let named = arguments.named.into_iter();
                    Value::dict(
                        named
                            .map(|(name, value)| (Value::plain(name), value))
                            .collect(),
                    )?
                }
            };
            format::percent(&template, &values).map(Value::text)
        }
        "pprint" => print::repr(&value).map(Value::text),
        _ => of_text(name, &print::string(&value)?, arguments),
    }
}

fn of_numbers(name: &str, value: &Value, arguments: Arguments) -> Outcome<Value> {
    if let Value::Undefined(message) = value {
        return Err(Failure::new(message.as_ref()));
    }
    match name {
        "abs" => match value.number() {
            Some(Number::Int(number)) => {
                let number = number.checked_abs();
                number
                    .map(Value::Int)
                    .ok_or_else(|| Failure::new("a number is too large"))
            }
            Some(Number::Float(number)) => Ok(Value::Float(number.abs())),
            None => Err(Failure::new(format!(
                "bad operand type for abs(): '{}'",
                value.type_name()
            ))),
        },
        "int" => {
            let [default, base] = arguments.bind(name, ["default", "base"])?;
            let base = base.as_ref().map_or(Ok(10), arguments::integer)?;
            let number = match value {
                Value::Text(text) => integer(text.as_str(), base)?,
                _ => match value.number() {
                    Some(Number::Float(number)) => whole(number)?,
                    Some(Number::Int(number)) => Some(number),
                    None => None,
                },
            };
            Ok(number.map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
        }
        "float" => {
            let [default] = arguments.bind(name, ["default"])?;
            let number = match value {
                Value::Text(text) => read_float(text.as_str()),
                _ => value.number().map(Number::float),
            };
            Ok(number.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        _ => {
            let [precision, method] = arguments.bind(name, ["precision", "method"])?;
            let precision = precision.as_ref().map_or(Ok(0), arguments::integer)?;
            let method = match &method {
                Some(method) => arguments::text(method)?.as_str(),
                None => "common",
            };
            round(value, precision, method)
        }
    }
}

/// Python's `int(number)`: `None` for infinity and for what is no number.
///
/// # Errors
/// If it does not fit: Python has integers of any size.
fn whole(number: f64) -> Outcome<Option<i64>> {
    if !number.is_finite() {
        return Ok(None);
    }
    match format::truncated(number)? {
        Number::Int(number) => Ok(Some(number)),
        Number::Float(_) => Ok(None),
    }
}

/// Python's `int(text, base)`. Like Jinja, truncates a float.
///
/// # Errors
/// If it does not fit.
fn integer(text: &str, base: i64) -> Outcome<Option<i64>> {
    let text = text.trim_matches(is_space);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
    let base = u32::try_from(base)
        .ok()
        .filter(|base| (2..=36).contains(base));
    let Some(base) = base else { return Ok(None) };
    if digits.starts_with('_') || digits.ends_with('_') || digits.contains("__") {
        return Ok(None);
    }
    let digits = digits.replace('_', "");
    if digits.starts_with(['+', '-']) {
        return Ok(None);
    }
    match i64::from_str_radix(&format!("{sign}{digits}"), base) {
        Ok(number) => Ok(Some(number)),
        Err(error) => match (error.kind(), read_float(text)) {
            (IntErrorKind::PosOverflow | IntErrorKind::NegOverflow, _) => {
                Err(Failure::new("a number is too large"))
            }
            (_, Some(number)) => whole(number),
            (_, None) => Ok(None),
        },
    }
}

fn read_float(text: &str) -> Option<f64> {
    text.trim_matches(is_space).replace('_', "").parse().ok()
}

fn round(value: &Value, precision: i64, method: &str) -> Outcome<Value> {
    let Some(number) = value.number() else {
        return Err(Failure::new(format!(
            "type {} doesn't define __round__ method",
            value.type_name()
        )));
    };
    let places = i32::try_from(precision.clamp(-400, 400)).unwrap_or(0);
    let number = number.float();
    let scale = 10_f64.powi(places);
    let rounded = match method {
        "ceil" => (number * scale).ceil() / scale,
        "floor" => (number * scale).floor() / scale,
        // To nearest, ties to even.
        "common" if places >= 0 => {
            let places = usize::try_from(places).unwrap_or(0).min(300);
            format!("{number:.places$}").parse().unwrap_or(number)
        }
        "common" => (number * scale).round_ties_even() / scale,
        _ => return Err(Failure::new("method must be common, ceil or floor")),
    };
    Ok(Value::Float(rounded))
}

fn of_text(name: &str, text: &Text, arguments: Arguments) -> Outcome<Value> {
    let plain = text.as_str();
    let made = match name {
        "trim" => {
            let [letters] = arguments.bind(name, ["chars"])?;
            let letters = arguments::given(letters);
            let letters = letters.as_ref().map(arguments::text).transpose()?;
            strings::strip(text, letters.map(|letters| letters.as_str()), "strip")
        }
        "upper" | "lower" | "capitalize" => strings::cased(text, name),
        "title" => {
            let mut starts = true;
            text.map(|c, to| {
                match std::mem::replace(&mut starts, false) {
                    true => to.extend(c.to_uppercase()),
                    false => to.extend(c.to_lowercase()),
                }
                starts = is_space(c) || "-({[<".contains(c);
            })
        }
        "replace" => {
            let [old, new, most] = arguments.bind(name, ["old", "new", "count"])?;
            let old = print::string(&arguments::required(old, name, "old")?)?;
            let new = print::string(&arguments::required(new, name, "new")?)?;
            let most = arguments::given(most);
            let most = most.as_ref().map_or(Ok(-1), arguments::integer)?;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            strings::replace(text, old.as_str(), &new, most)
        }
        "center" => {
            let [width] = arguments.bind(name, ["width"])?;
            let width = width.as_ref().map_or(Ok(80), arguments::count)?;
            strings::pad(text, width, &Text::plain(" "), name)?
        }
        "indent" => {
            let [width, first, blank] = arguments.bind(name, ["width", "first", "blank"])?;
            let indent = match width {
                Some(Value::Text(indent)) => indent.as_ref().clone(),
                Some(width) => Text::plain(" ").repeat(arguments::count(&width)?),
                None => Text::plain("    "),
            };
            let (first, blank) = (arguments::flag(first, false), arguments::flag(blank, false));
            indented(text, &indent, first, blank)
        }
        "truncate" => {
            let names = ["length", "killwords", "end", "leeway"];
            let [length, kill, end, leeway] = arguments.bind(name, names)?;
            let length = length.as_ref().map_or(Ok(255), arguments::count)?;
            let end = match end {
                Some(end) => print::string(&end)?,
                None => Text::plain("..."),
            };
            let leeway = arguments::given(leeway);
            let leeway = leeway.as_ref().map_or(Ok(5), arguments::count)?;
            truncate(text, length, arguments::flag(kill, false), &end, leeway)
        }
        "escape" | "e" | "forceescape" => text.map(|c, to| match c {
            '&' => to.push_str("&amp;"),
            '<' => to.push_str("&lt;"),
            '>' => to.push_str("&gt;"),
            '\'' => to.push_str("&#39;"),
            '"' => to.push_str("&#34;"),
            c => to.push(c),
        }),
        "urlencode" => text.map(|c, to| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-' | '~' | '/' => to.push(c),
            c => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    to.push_str(&format!("%{byte:02X}"));
                }
            }
        }),
        "wordcount" => {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let words = plain.split(|c: char| !is_word(c));
            return Ok(Value::count(words.filter(|word| !word.is_empty()).count()));
        }
        "wordwrap" => {
            let [width] = arguments.bind(name, ["width"])?;
            let width = width.as_ref().map_or(Ok(79), arguments::count)?;
            text.derive(wrapped(plain, width.max(1)))
        }
        _ => return Err(Failure::new(format!("No filter named '{name}'."))),
    };
    Ok(Value::text(made))
}

fn indented(text: &Text, indent: &Text, first: bool, blank: bool) -> Text {
    let plain = text.as_str();
    let mut made = Text::default();
    if first {
        made.push(indent);
    }
    // A trailing newline starts another line.
    let mut lines: Vec<&str> = strings::lines(plain, false).collect();
    if plain.is_empty() || plain.ends_with('\n') {
        lines.push(&plain[plain.len()..]);
    }
    for (index, line) in lines.into_iter().enumerate() {
        if index > 0 {
            made.push_plain("\n");
            if blank || !line.is_empty() {
                made.push(indent);
            }
        }
        made.push(&text.part(line));
    }
    made
}

fn truncate(text: &Text, length: usize, kill: bool, end: &Text, leeway: usize) -> Text {
    let letters = text.as_str().chars().count();
    if letters <= length.saturating_add(leeway) {
        return text.clone();
    }
    let kept = length.saturating_sub(end.as_str().chars().count());
    let cut = text.as_str().char_indices().nth(kept);
    let mut kept = &text.as_str()[..cut.map_or(text.as_str().len(), |(at, _)| at)];
    if !kill {
        kept = kept.rsplit_once(' ').map_or(kept, |(words, _)| words);
    }
    let mut made = text.part(kept);
    made.push(end);
    made
}

/// Wraps lines at `width` characters.
fn wrapped(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in strings::lines(text, false) {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let mut word = word;
            let room = width.saturating_sub(line.chars().count() + usize::from(!line.is_empty()));
            if !line.is_empty() && word.chars().count() > room {
                lines.push(std::mem::take(&mut line));
            }
            while let Some((cut, _)) = word.char_indices().nth(width) {
                lines.push(word[..cut].to_owned());
                word = &word[cut..];
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines.join("\n")
}
