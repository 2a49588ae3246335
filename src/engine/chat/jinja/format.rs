//! Python's two ways of formatting a string: `'%s' % value` and `'{}'.format(value)`.

use super::arguments::Arguments;
use super::evaluate::{member, subscript};
use super::text::Text;
use super::value::{Number, Value};
use super::{Failure, Outcome, print};

/// Upper bound on the width of a field.
const WIDEST: usize = 1 << 20;

/// A parsed format specification.
#[derive(Debug, Default)]
struct Field {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Field {
    fn pad(&self, text: Text, default: char, to: &mut Text) {
        let missing = self.width.saturating_sub(text.as_str().chars().count());
        let fill = self.fill.unwrap_or(' ').to_string();
        let (before, after) = match self.align.unwrap_or(default) {
            '<' => (0, missing),
            '^' => (missing / 2, missing - missing / 2),
            _ => (missing, 0),
        };
        to.push_plain(&fill.repeat(before));
        to.push(&text);
        to.push_plain(&fill.repeat(after));
    }

    /// Zero padding goes between the sign and the digits.
    fn pad_number(&self, negative: bool, digits: &str, to: &mut Text) {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        };
        let between = self.zero && self.align.is_none() || self.align == Some('=');
        if !between {
            return self.pad(Text::plain(format!("{sign}{digits}")), '>', to);
        }
        let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
        let length = sign.len() + digits.chars().count();
        let fill = fill.to_string().repeat(self.width.saturating_sub(length));
        to.push_plain(&format!("{sign}{fill}{digits}"));
    }

    fn number(&self, number: Number, kind: char, to: &mut Text) -> Outcome<()> {
        let (negative, digits) = match (number, kind) {
            (Number::Int(number), 'd' | 'i' | 'u') => {
                (number < 0, number.unsigned_abs().to_string())
            }
            (Number::Int(number), 'x') => (
                number < 0,
                self.prefixed("0x", format!("{:x}", number.unsigned_abs())),
            ),
            (Number::Int(number), 'X') => (
                number < 0,
                self.prefixed("0X", format!("{:X}", number.unsigned_abs())),
            ),
            (Number::Int(number), 'o') => (
                number < 0,
                self.prefixed("0o", format!("{:o}", number.unsigned_abs())),
            ),
            (Number::Int(number), 'b') => (
                number < 0,
                self.prefixed("0b", format!("{:b}", number.unsigned_abs())),
            ),
            (number, 'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => {
                let number = number.float();
                let digits = float(
                    number.abs(),
                    kind,
                    self.precision.unwrap_or(6),
                    self.alternate,
                );
                (number.is_sign_negative() && !number.is_nan(), digits)
            }
            _ => return Err(Failure::new(format!("cannot format a number as '{kind}'"))),
        };
        let digits = match self.grouping {
            Some(separator) => grouped(&digits, separator),
            None => digits,
        };
        self.pad_number(negative, &digits, to);
        Ok(())
    }

    fn prefixed(&self, prefix: &str, digits: String) -> String {
        match self.alternate {
            true => format!("{prefix}{digits}"),
            false => digits,
        }
    }
}

fn grouped(digits: &str, separator: char) -> String {
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(end);
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(separator);
        }
        text.push(digit);
    }
    text + rest
}

/// Formats a non-negative float as C's `printf` does.
fn float(number: f64, kind: char, precision: usize, alternate: bool) -> String {
    if !number.is_finite() {
        let word = if number.is_nan() { "nan" } else { "inf" };
        return match kind.is_ascii_uppercase() {
            true => word.to_uppercase(),
            false => word.to_owned(),
        };
    }
    let scientific = |precision: usize| {
        let text = format!("{number:.precision$e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        (digits.to_owned(), exponent)
    };
    let exponential = |digits: &str, exponent: i32| {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    };
    let text = match kind.to_ascii_lowercase() {
        'f' => format!("{number:.precision$}"),
        '%' => format!("{:.precision$}%", number * 100.0),
        'e' => {
            let (digits, exponent) = scientific(precision);
            exponential(&digits, exponent)
        }
        _ => {
            let precision = precision.max(1);
            let (digits, exponent) = scientific(precision - 1);
            let without_zeros = |text: String| match text.contains('.') && !alternate {
                true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => text,
            };
            match usize::try_from(exponent) {
                _ if exponent < -4 => exponential(&without_zeros(digits), exponent),
                Ok(whole) if whole >= precision => exponential(&without_zeros(digits), exponent),
                Ok(whole) => without_zeros(format!("{number:.*}", precision - 1 - whole)),
                Err(_) => {
                    let zeros = usize::try_from(-exponent).unwrap_or(0);
                    without_zeros(format!("{number:.*}", precision - 1 + zeros))
                }
            }
        }
    };
    match kind.is_ascii_uppercase() {
        true => text.to_uppercase(),
        false => text,
    }
}

/// Parses leading digits; returns the number and the remaining text.
fn digits(text: &str) -> Outcome<(Option<usize>, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    if end == 0 {
        return Ok((None, text));
    }
    let number = text[..end].parse().ok().filter(|number| *number <= WIDEST);
    let number = number.ok_or_else(|| Failure::new("a field is too wide"))?;
    Ok((Some(number), &text[end..]))
}

/// `template % values`
pub(super) fn percent(template: &Text, values: &Value) -> Outcome<Text> {
    let single = [values.clone()];
    let mut left: std::slice::Iter<'_, Value> = match values {
        Value::Tuple(items) => items.iter(),
        _ => single.iter(),
    };
    let mut text = Text::default();
    let mut rest = template.as_str();
    let mut by_name = false;
    while let Some(at) = rest.find('%') {
        text.push(&template.part(&rest[..at]));
        rest = &rest[at + 1..];
        let mut name = None;
        if let Some(after) = rest.strip_prefix('(') {
            let Some((key, after)) = after.split_once(')') else {
                return Err(Failure::new("incomplete format key"));
            };
            name = Some(key);
            rest = after;
        }
        let mut field = Field::default();
        loop {
            match rest.chars().next() {
                Some('-') => field.align = Some('<'),
                Some('0') => field.zero = true,
                Some('#') => field.alternate = true,
                Some(sign @ ('+' | ' ')) => field.sign = Some(sign),
                _ => break,
            }
            rest = &rest[1..];
        }
        let star = |left: &mut std::slice::Iter<'_, Value>| {
            let value = left.next().and_then(|value| match value.number() {
                Some(Number::Int(number)) => usize::try_from(number).ok(),
                _ => None,
            });
            let width = value.filter(|width| *width <= WIDEST);
            width.ok_or_else(|| Failure::new("* wants int"))
        };
        if let Some(after) = rest.strip_prefix('*') {
            field.width = star(&mut left)?;
            rest = after;
        } else {
            let (width, after) = digits(rest)?;
            field.width = width.unwrap_or(0);
            rest = after;
        }
        if let Some(after) = rest.strip_prefix('.') {
            if let Some(after) = after.strip_prefix('*') {
                field.precision = Some(star(&mut left)?);
                rest = after;
            } else {
                let (precision, after) = digits(after)?;
                field.precision = Some(precision.unwrap_or(0));
                rest = after;
            }
        }
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let Some(kind) = rest.chars().next() else {
            return Err(Failure::new("incomplete format"));
        };
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            text.push_plain("%");
            continue;
        }
        let value = match (name, values) {
            (Some(name), Value::Dict(dict)) => {
                by_name = true;
                let value = dict.named(name);
                value.ok_or_else(|| Failure::new(format!("KeyError: '{name}'")))?
            }
            (Some(_), _) => return Err(Failure::new("format requires a mapping")),
            (None, _) => left
                .next()
                .ok_or_else(|| Failure::new("not enough arguments for format string"))?,
        };
        percent_field(&field, kind, value, &mut text)?;
    }
    text.push(&template.part(rest));
    let is_mapping = matches!(values, Value::Dict(_) | Value::List(_));
    if left.next().is_some() && !by_name && !is_mapping {
        let what = "not all arguments converted during string formatting";
        return Err(Failure::new(what));
    }
    Ok(text)
}

fn percent_field(field: &Field, kind: char, value: &Value, to: &mut Text) -> Outcome<()> {
    match kind {
        's' | 'r' | 'a' => {
            let text = match kind {
                's' => print::string(value)?,
                _ => print::repr(value)?,
            };
            field.pad(shortened(text, field.precision), '>', to);
            Ok(())
        }
        'c' => {
            let text = match value {
                Value::Text(text) if text.as_str().chars().count() == 1 => text.as_ref().clone(),
                Value::Int(code) => {
                    let c = u32::try_from(*code).ok().and_then(char::from_u32);
                    let c = c.ok_or_else(|| Failure::new("%c arg not in range"))?;
                    Text::plain(c)
                }
                _ => return Err(Failure::new("%c requires int or char")),
            };
            field.pad(text, '>', to);
            Ok(())
        }
        _ => {
            let number = value.number().ok_or_else(|| {
                let name = value.type_name();
                Failure::new(format!(
                    "%{kind} format: a real number is required, not {name}"
                ))
            })?;
            let number = match (number, kind) {
                (Number::Float(number), 'd' | 'i' | 'u') => truncated(number)?,
                (number, _) => number,
            };
            field.number(number, kind, to)
        }
    }
}

/// Drops the fraction of a float.
pub(super) fn truncated(number: f64) -> Outcome<Number> {
    // 2^63 is the first value that does not fit.
    if number.is_nan() || number.abs() >= 9_223_372_036_854_775_808.0 {
        return Err(Failure::new("a number is too large"));
    }
    Ok(Number::Int(number.trunc() as i64))
}

fn shortened(text: Text, precision: Option<usize>) -> Text {
    let end = precision.and_then(|most| text.as_str().char_indices().nth(most));
    match end {
        Some((end, _)) => text.slice(0..end),
        None => text,
    }
}

/// `template.format(…)`
pub(super) fn braces(template: &Text, arguments: &Arguments) -> Outcome<Text> {
    let mut next = 0;
    fields(template, arguments, &mut next, 0)
}

fn fields(template: &Text, arguments: &Arguments, next: &mut usize, level: usize) -> Outcome<Text> {
    let mut text = Text::default();
    let mut rest = template.as_str();
    while let Some(at) = rest.find(['{', '}']) {
        text.push(&template.part(&rest[..at]));
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if rest.starts_with(brace) {
            text.push(&template.part(&rest[..1]));
            rest = &rest[1..];
            continue;
        }
        if brace == "}" {
            return Err(Failure::new("Single '}' encountered in format string"));
        }
        let mut open = 1;
        let end = rest.char_indices().find(|(_, c)| {
            open += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            open == 0
        });
        let Some((end, _)) = end else {
            return Err(Failure::new("expected '}' before end of string"));
        };
        let (inside, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        let (head, spec) = match inside.find([':', '!']) {
            None => (inside, ""),
            Some(at) => (&inside[..at], &inside[at..]),
        };
        let (conversion, spec) = match spec.strip_prefix('!') {
            None => (None, spec),
            Some(spec) => {
                let conversion = spec.chars().next();
                (conversion, &spec[conversion.map_or(0, char::len_utf8)..])
            }
        };
        let value = field_value(head, arguments, next)?;
        let spec = spec.strip_prefix(':').unwrap_or("");
        let spec = match spec.contains('{') && level < 2 {
            true => fields(&Text::plain(spec), arguments, next, level + 1)?,
            false => Text::plain(spec),
        };
        let value = match conversion {
            None => value,
            Some('s') => Value::text(print::string(&value)?),
            Some('r' | 'a') => Value::text(print::repr(&value)?),
            Some(other) => {
                let what = format!("Unknown conversion specifier '{other}'");
                return Err(Failure::new(what));
            }
        };
        push_field(spec.as_str(), &value, &mut text)?;
    }
    text.push(&template.part(rest));
    Ok(text)
}

/// `0`, `name`, ``; then `.member` and `[index]`.
fn field_value(head: &str, arguments: &Arguments, next: &mut usize) -> Outcome<Value> {
    let end = head.find(['.', '[']).unwrap_or(head.len());
    let (name, mut path) = head.split_at(end);
    let index = match name {
        "" => {
            *next += 1;
            Some(*next - 1)
        }
        name => name.parse::<usize>().ok(),
    };
    let found = match index {
        Some(index) => arguments.positional.get(index),
        None => {
            let mut named = arguments.named.iter();
            named
                .find(|(known, _)| known == name)
                .map(|(_, value)| value)
        }
    };
    let mut value = found.cloned().ok_or_else(|| {
        Failure::new(format!(
            "the format string uses the argument '{name}', which is not given"
        ))
    })?;
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix('.') {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            value = member(&value, &rest[..end])?;
            path = &rest[end..];
        } else if let Some((index, rest)) = path[1..].split_once(']') {
            let index = index
                .parse()
                .map_or_else(|_| Value::plain(index), Value::Int);
            value = subscript(&value, &index)?;
            path = rest;
        } else {
            return Err(Failure::new("Missing ']' in format string"));
        }
    }
    Ok(value)
}

fn push_field(spec: &str, value: &Value, to: &mut Text) -> Outcome<()> {
    if spec.is_empty() {
        return print::push_string(value, to);
    }
    let field = field(spec)?;
    let is_number = |kind: char| "bdoxXneEfFgG%".contains(kind);
    match (value, value.number()) {
        (Value::Int(_) | Value::Float(_) | Value::Bool(_), Some(number))
            if field.kind.is_none_or(is_number) =>
        {
            let kind = match (field.kind, number) {
                (Some(kind), _) => kind,
                (None, Number::Int(_)) => 'd',
                (None, Number::Float(number)) if field.precision.is_none() => {
                    let text = print::float(number.abs());
                    let text = match field.grouping {
                        Some(separator) => grouped(&text, separator),
                        None => text,
                    };
                    field.pad_number(number.is_sign_negative(), &text, to);
                    return Ok(());
                }
                (None, Number::Float(_)) => 'g',
            };
            field.number(number, kind, to)
        }
        (Value::Text(text), _) if field.kind.is_none_or(|kind| kind == 's') => {
            field.pad(shortened(text.as_ref().clone(), field.precision), '<', to);
            Ok(())
        }
        _ => Err(Failure::new(format!(
            "cannot format '{}' as '{spec}'",
            value.type_name()
        ))),
    }
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`
fn field(spec: &str) -> Outcome<Field> {
    let mut field = Field::default();
    let mut letters = spec.chars();
    let (first, second) = (letters.next(), letters.next());
    let is_align = |c: &char| "<>=^".contains(*c);
    let mut rest = spec;
    if let (Some(fill), Some(align)) = (first, second.filter(is_align)) {
        field.fill = Some(fill);
        field.align = Some(align);
        rest = &rest[fill.len_utf8() + 1..];
    } else if let Some(align) = first.filter(is_align) {
        field.align = Some(align);
        rest = &rest[1..];
    }
    if let Some(sign) = rest.chars().next().filter(|c| "+- ".contains(*c)) {
        field.sign = Some(sign);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('#') {
        field.alternate = true;
        rest = after;
    }
    if let Some(after) = rest.strip_prefix('0') {
        field.zero = true;
        field.fill = field.fill.or(Some('0'));
        rest = after;
    }
    let (width, after) = digits(rest)?;
    field.width = width.unwrap_or(0);
    rest = after;
    if let Some(separator) = rest.chars().next().filter(|c| ",_".contains(*c)) {
        field.grouping = Some(separator);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('.') {
        let (precision, after) = digits(after)?;
        field.precision =
            Some(precision.ok_or_else(|| Failure::new("Format specifier missing precision"))?);
        rest = after;
    }
    let mut letters = rest.chars();
    field.kind = letters.next();
    match letters.next() {
        None => Ok(field),
        Some(_) => Err(Failure::new(format!("Invalid format specifier '{spec}'"))),
    }
}
