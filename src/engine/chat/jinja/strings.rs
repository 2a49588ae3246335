//! Python's string methods. Positions count characters.

use std::ops::Range;

use super::arguments::{self, Arguments};
use super::checks::is_cased;
use super::text::Text;
use super::value::Value;
use super::{Failure, Outcome, format, is_space, print};

pub(super) const METHODS: [&str; 43] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];

/// Upper bound on the width that a string is padded to.
const WIDEST: usize = 1 << 20;

pub(super) fn call(text: &Text, name: &str, arguments: Arguments) -> Outcome<Value> {
    let plain = text.as_str();
    let one = |arguments: Arguments, parameter: &str| -> Outcome<Value> {
        let [value] = arguments.bind(name, [parameter])?;
        arguments::required(value, name, parameter)
    };
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let [letters] = arguments.bind(name, ["chars"])?;
            let letters = arguments::given(letters);
            let letters = letters.as_ref().map(arguments::text).transpose()?;
            let letters = letters.map(|letters| letters.as_str());
            Ok(Value::text(strip(text, letters, name)))
        }
        "split" | "rsplit" => {
            let [separator, most] = arguments.bind(name, ["sep", "maxsplit"])?;
            let separator = arguments::given(separator);
            let separator = separator.as_ref().map(arguments::text).transpose()?;
            let most = most.as_ref().map_or(Ok(-1), arguments::integer)?;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let separator = separator.map(|separator| separator.as_str());
            split(text, separator, most, name == "rsplit")
        }
        "splitlines" => {
            let [keep] = arguments.bind(name, ["keepends"])?;
            let lines = lines(plain, arguments::flag(keep, false));
            Value::list(lines.map(|line| Value::text(text.part(line))).collect())
        }
        "partition" | "rpartition" => {
            let separator = one(arguments, "sep")?;
            partition(
                text,
                arguments::text(&separator)?.as_str(),
                name == "rpartition",
            )
        }
        "removeprefix" => {
            let part = one(arguments, "prefix")?;
            let left = plain.strip_prefix(arguments::text(&part)?.as_str());
            Ok(Value::text(text.part(left.unwrap_or(plain))))
        }
        "removesuffix" => {
            let part = one(arguments, "suffix")?;
            let left = plain.strip_suffix(arguments::text(&part)?.as_str());
            Ok(Value::text(text.part(left.unwrap_or(plain))))
        }
        "startswith" | "endswith" => {
            let [part, start, end] = arguments.bind(name, ["part", "start", "end"])?;
            let part = arguments::required(part, name, "part")?;
            let window = window(plain, start, end)?.map(|window| &plain[window]);
            let fits = |part: &Value| -> Outcome<bool> {
                let part = arguments::text(part)?.as_str();
                Ok(window.is_some_and(|window| match name {
                    "startswith" => window.starts_with(part),
                    _ => window.ends_with(part),
                }))
            };
            let Value::Tuple(parts) = &part else {
                return fits(&part).map(Value::Bool);
            };
            for part in parts.iter() {
                if fits(part)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [part, start, end] = arguments.bind(name, ["sub", "start", "end"])?;
            let part = arguments::required(part, name, "sub")?;
            find(
                plain,
                arguments::text(&part)?.as_str(),
                window(plain, start, end)?,
                name,
            )
        }
        "replace" => {
            let [old, new, most] = arguments.bind(name, ["old", "new", "count"])?;
            let old = arguments::required(old, name, "old")?;
            let new = arguments::required(new, name, "new")?;
            let most = most.as_ref().map_or(Ok(-1), arguments::integer)?;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let new = arguments::text(&new)?;
            let old = arguments::text(&old)?.as_str();
            Ok(Value::text(replace(text, old, new, most)))
        }
        "join" => {
            let items = one(arguments, "iterable")?.items()?;
            let mut joined = Text::default();
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    joined.push(text);
                }
                joined.push(arguments::text(item)?);
            }
            Ok(Value::text(joined))
        }
        "format" => format::braces(text, &arguments).map(Value::text),
        "center" | "ljust" | "rjust" => {
            let [width, fill] = arguments.bind(name, ["width", "fillchar"])?;
            let width = arguments::count(&arguments::required(width, name, "width")?)?;
            let fill = match fill {
                Some(fill) => print::string(&fill)?,
                None => Text::plain(" "),
            };
            pad(text, width, &fill, name).map(Value::text)
        }
        "zfill" => {
            let width = arguments::count(&one(arguments, "width")?)?.min(WIDEST);
            let missing = width.saturating_sub(plain.chars().count());
            let sign = plain.len() - plain.trim_start_matches(['+', '-']).len();
            let sign = sign.min(1);
            let mut filled = text.slice(0..sign);
            filled.push_plain(&"0".repeat(missing));
            filled.push_slice(text, sign..plain.len());
            Ok(Value::text(filled))
        }
        "expandtabs" => {
            let [size] = arguments.bind(name, ["tabsize"])?;
            let size = size.as_ref().map_or(Ok(8), arguments::count)?.min(WIDEST);
            let mut column = 0;
            Ok(Value::text(text.map(|c, to| match c {
                '\t' if size > 0 => {
                    let spaces = size - column % size;
                    to.extend(std::iter::repeat_n(' ', spaces));
                    column += spaces;
                }
                '\t' => {}
                '\n' | '\r' => {
                    to.push(c);
                    column = 0;
                }
                c => {
                    to.push(c);
                    column += 1;
                }
            })))
        }
        "lower" | "upper" | "casefold" | "capitalize" | "swapcase" | "title" => {
            let [] = arguments.bind(name, [])?;
            Ok(Value::text(cased(text, name)))
        }
        _ => {
            let [] = arguments.bind(name, [])?;
            Ok(Value::Bool(is(plain, name)))
        }
    }
}

pub(super) fn strip(text: &Text, letters: Option<&str>, name: &str) -> Text {
    let plain = text.as_str();
    let strips = |c: char| match letters {
        Some(letters) => letters.contains(c),
        None => is_space(c),
    };
    text.part(match name {
        "lstrip" => plain.trim_start_matches(strips),
        "rstrip" => plain.trim_end_matches(strips),
        _ => plain.trim_matches(strips),
    })
}

fn split(text: &Text, separator: Option<&str>, most: usize, from_right: bool) -> Outcome<Value> {
    let plain = text.as_str();
    let count = most.saturating_add(1);
    let parts: Vec<&str> = match separator {
        Some("") => return Err(Failure::new("empty separator")),
        Some(separator) if from_right => plain.rsplitn(count, separator).collect(),
        Some(separator) => plain.splitn(count, separator).collect(),
        None => words(plain, most, from_right),
    };
    let parts = parts.into_iter().map(|part| Value::text(text.part(part)));
    match from_right {
        true => Value::list(parts.rev().collect()),
        false => Value::list(parts.collect()),
    }
}

/// Splits at whitespace. After `most` splits, the remaining text is the last part. From the right,
/// the parts come in reverse order.
fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        rest = match from_right {
            true => rest.trim_end_matches(is_space),
            false => rest.trim_start_matches(is_space),
        };
        if rest.is_empty() {
            return words;
        }
        let edge = match from_right {
            true => rest.char_indices().rev().find(|(_, c)| is_space(*c)),
            false => rest.char_indices().find(|(_, c)| is_space(*c)),
        };
        let Some((at, space)) = edge.filter(|_| words.len() < most) else {
            words.push(rest);
            return words;
        };
        let after = at + space.len_utf8();
        match from_right {
            true => {
                words.push(&rest[after..]);
                rest = &rest[..at];
            }
            false => {
                words.push(&rest[..at]);
                rest = &rest[after..];
            }
        }
    }
}

/// The lines of Python's `str.splitlines`, with their line endings if `keep`.
pub(super) fn lines(text: &str, keep: bool) -> impl Iterator<Item = &str> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, length) = match rest.char_indices().find(|(_, c)| is_end(*c)) {
            None => (rest, rest.len()),
            Some((at, _)) if rest[at..].starts_with("\r\n") => (&rest[..at], at + 2),
            Some((at, c)) => (&rest[..at], at + c.len_utf8()),
        };
        let line = if keep { &rest[..length] } else { line };
        rest = &rest[length..];
        Some(line)
    })
}

fn partition(text: &Text, separator: &str, from_right: bool) -> Outcome<Value> {
    let plain = text.as_str();
    if separator.is_empty() {
        return Err(Failure::new("empty separator"));
    }
    let found = match from_right {
        true => plain.rfind(separator),
        false => plain.find(separator),
    };
    let parts = match found {
        Some(at) => {
            let after = at + separator.len();
            [0..at, at..after, after..plain.len()]
        }
        None if from_right => [0..0, 0..0, 0..plain.len()],
        None => [0..plain.len(), 0..0, 0..0],
    };
    Value::tuple(parts.map(|part| Value::text(text.slice(part))).into())
}

/// The byte range between two character positions, negative ones counted from the end. `None` if
/// the start lies after the end.
fn window(text: &str, start: Option<Value>, end: Option<Value>) -> Outcome<Option<Range<usize>>> {
    let (start, end) = (arguments::given(start), arguments::given(end));
    if start.is_none() && end.is_none() {
        return Ok(Some(0..text.len()));
    }
    let length = text.chars().count();
    let place = |value: &Value| -> Outcome<usize> {
        let at = arguments::integer(value)?;
        Ok(match usize::try_from(at) {
            Ok(at) => at,
            Err(_) => {
                let back = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
                length.saturating_sub(back)
            }
        })
    };
    let start = start.as_ref().map_or(Ok(0), place)?;
    let end = end.as_ref().map_or(Ok(length), place)?.min(length);
    if start > end {
        return Ok(None);
    }
    let byte = |place: usize| {
        text.char_indices()
            .nth(place)
            .map_or(text.len(), |(at, _)| at)
    };
    Ok(Some(byte(start)..byte(end)))
}

fn find(text: &str, part: &str, window: Option<Range<usize>>, name: &str) -> Outcome<Value> {
    let start = window.as_ref().map_or(0, |window| window.start);
    let window = window.map(|window| &text[window]);
    let found = match name {
        "count" => {
            let count = window.map_or(0, |window| window.matches(part).count());
            return Ok(Value::count(count));
        }
        "find" | "index" => window.and_then(|window| window.find(part)),
        _ => window.and_then(|window| window.rfind(part)),
    };
    match found {
        Some(at) => Ok(Value::count(text[..start + at].chars().count())),
        None if name.ends_with("index") => Err(Failure::new("substring not found")),
        None => Ok(Value::Int(-1)),
    }
}

pub(super) fn replace(text: &Text, old: &str, new: &Text, most: usize) -> Text {
    let mut replaced = Text::default();
    let mut end = 0;
    for (at, found) in text.as_str().match_indices(old).take(most) {
        replaced.push_slice(text, end..at);
        replaced.push(new);
        end = at + found.len();
        if replaced.is_cut() {
            break;
        }
    }
    replaced.push_slice(text, end..text.as_str().len());
    replaced
}

pub(super) fn pad(text: &Text, width: usize, fill: &Text, name: &str) -> Outcome<Text> {
    if fill.as_str().chars().count() != 1 {
        let what = "The fill character must be exactly one character long";
        return Err(Failure::new(what));
    }
    let width = width.min(WIDEST);
    let missing = width.saturating_sub(text.as_str().chars().count());
    let before = match name {
        "ljust" => 0,
        "rjust" => missing,
        // CPython's rule: an odd fill character goes to the left only if the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let mut padded = fill.repeat(before);
    padded.push(text);
    padded.push(&fill.repeat(missing - before));
    Ok(padded)
}

pub(super) fn cased(text: &Text, name: &str) -> Text {
    // Whether the previous character is cased, for `title`.
    let mut inside = false;
    let mut first = true;
    let cased = text.map(|c, to| {
        let is_first = std::mem::take(&mut first);
        let starts_word = !std::mem::replace(&mut inside, c.is_lowercase() || c.is_uppercase());
        let raise = match name {
            "upper" => true,
            "capitalize" => is_first,
            "title" => starts_word,
            "swapcase" => c.is_lowercase(),
            _ => false,
        };
        match (raise, name, c) {
            (true, "capitalize" | "title", 'ß') => to.push_str("Ss"),
            (true, ..) => to.extend(c.to_uppercase()),
            (false, "casefold", 'ß') => to.push_str("ss"),
            (false, "casefold", 'ς') => to.push('σ'),
            (false, "swapcase", c) if !c.is_uppercase() => to.push(c),
            (false, ..) => to.extend(c.to_lowercase()),
        }
    });
    if name != "lower" || !text.as_str().contains('Σ') {
        return cased;
    }
    // Greek sigma has a separate lowercase form at the end of a word, with the same byte length.
    let lower = text.as_str().to_lowercase();
    match lower.len() == cased.as_str().len() {
        true => cased.with_text(lower),
        false => cased,
    }
}

fn is(text: &str, name: &str) -> bool {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isdecimal" => all(|c| c.is_ascii_digit() || is_decimal(c)),
        "isdigit" => all(|c| c.is_ascii_digit() || is_decimal(c) || is_superscript(c)),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isprintable" => text.chars().all(print::is_printable),
        "islower" => is_cased(text, false),
        "isupper" => is_cased(text, true),
        "isidentifier" => {
            all(|c| c.is_alphanumeric() || c == '_') && !text.starts_with(char::is_numeric)
        }
        // `istitle`: every word starts with an uppercase letter, and has no others.
        _ => {
            let (mut inside, mut any) = (false, false);
            let fits = text.chars().all(|c| {
                let fits = match (c.is_uppercase(), c.is_lowercase()) {
                    (true, _) => !inside,
                    (_, true) => inside,
                    _ => true,
                };
                inside = c.is_uppercase() || c.is_lowercase();
                any |= inside;
                fits
            });
            fits && any
        }
    }
}

fn is_superscript(c: char) -> bool {
    matches!(c, '²' | '³' | '¹' | '\u{2070}' | '\u{2074}'..='\u{2079}' | '\u{2080}'..='\u{2089}')
}

/// Decimal digits outside ASCII. Each script has a block of ten.
fn is_decimal(c: char) -> bool {
    const ZEROS: [u32; 18] = [
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xe50,
        0xed0, 0xf20, 0x1040, 0x17e0, 0xff10,
    ];
    let code = u32::from(c);
    ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&code))
}
