//! Preserves the original text of the numbers in a JSON document.
//!
//! `serde_json` holds 64-bit integers and doubles. Rows contain more: long integer identifiers and
//! answers, `1e400`, and the `NaN` and `Infinity` of Python's `json` module.

use std::borrow::Cow;

/// A JSON text that `serde_json` accepts, and the original numbers in document order.
#[derive(Debug, PartialEq)]
pub struct Numbers<'t> {
    /// The text, with each number that is not a finite double replaced by `0` and padding. All
    /// offsets match those of the original.
    pub strict: Cow<'t, str>,
    /// Original text of each number.
    pub texts: Vec<&'t str>,
}

/// Finds the numbers in a text. Invalid JSON stays invalid.
pub fn numbers(text: &str) -> Numbers<'_> {
    let bytes = text.as_bytes();
    let mut strict = Cow::Borrowed(text);
    let mut texts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = match bytes[at] {
            b'"' => string_length(&bytes[at..]),
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                let number = number(&text[at..]);
                if !number.is_empty() {
                    texts.push(number);
                    if has_no_double(number) {
                        let blank = format!("{:<1$}", "0", number.len());
                        strict.to_mut().replace_range(at..at + number.len(), &blank);
                    }
                }
                number.len().max(1)
            }
            _ => 1,
        };
        at += length;
    }
    Numbers { strict, texts }
}

/// Length in bytes of the string literal at the start, including its quotes.
fn string_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The number at the start of the text; empty if there is none.
fn number(text: &str) -> &str {
    for name in ["NaN", "Infinity", "-Infinity"] {
        if text.starts_with(name) {
            return &text[..name.len()];
        }
    }
    let is_other = |c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E');
    let number = &text[..text.find(is_other).unwrap_or(text.len())];
    if number.contains(|c: char| c.is_ascii_digit()) {
        number
    } else {
        ""
    }
}

fn has_no_double(number: &str) -> bool {
    number.parse().is_ok_and(|value: f64| !value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_text_and_offsets_do_not_change() {
        let read = |text: &'static str| {
            let numbers = numbers(text);
            (numbers.strict.into_owned(), numbers.texts)
        };
        let plain =
            r#"{"a\"1": [1.0, -2e5], "3": true, "ä": "NaN 4", "b": 12345678901234567890123}"#;
        assert_eq!(
            read(plain),
            (plain.into(), vec!["1.0", "-2e5", "12345678901234567890123"])
        );
        assert_eq!(
            read(r#"[NaN, -Infinity, Infinity, 1e400, -1e400]"#),
            (
                r#"[0  , 0        , 0       , 0    , 0     ]"#.into(),
                vec!["NaN", "-Infinity", "Infinity", "1e400", "-1e400"]
            )
        );
        for broken in ["", "-", "[Nan, Inf]", "\"open 1", "\"\\", "null", "I"] {
            assert_eq!(read(broken), (broken.into(), vec![]), "{broken}");
        }
        assert_eq!(read("[1.2.3]"), ("[1.2.3]".into(), vec!["1.2.3"]));
    }
}
