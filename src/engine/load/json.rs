//! Lenient parser for the JSON files next to a model's weights.
//!
//! Python's `json` module writes and reads `NaN`, `Infinity`, `-Infinity` and escaped lone
//! surrogates, and some editors add a byte order mark. `serde_json` rejects all of these, so they
//! are rewritten if the strict parser fails. A non-finite number becomes a string with its name.
//! That is harmless for an unused key, and a key that must be a number is reported with its value.

use std::borrow::Cow;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Context, Error, Exit, Result};

/// Reads a JSON file; `None` if it does not exist.
///
/// # Errors
/// Exit code 3, with the path, if the file cannot be read, is not JSON, or does not match `T`.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(
                Error::preflight(format!("failed to read `{}`", path.display())).caused_by(error),
            );
        }
    };
    parse(&bytes).map(Some).or_exit(Exit::Preflight, || {
        format!("failed to parse `{}`", path.display())
    })
}

/// Parses JSON. If Python would reject the text as well, the error is that of the strict parser.
///
/// # Errors
/// If the text is not JSON, or does not match `T`.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(bytes).or_else(|error| match strict(bytes) {
        Cow::Owned(strict) => serde_json::from_slice(&strict),
        Cow::Borrowed(rest) if rest.len() < bytes.len() => serde_json::from_slice(rest),
        Cow::Borrowed(_) => Err(error),
    })
}

/// Rewrites the document as standard JSON.
pub(crate) fn strict(bytes: &[u8]) -> Cow<'_, [u8]> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut out: Option<Vec<u8>> = None;
    let (mut at, mut copied) = (0, 0);
    let mut in_string = false;
    while at < bytes.len() {
        let rest = &bytes[at..];
        // The length of the next token, and its replacement.
        let (length, replacement) = match rest[0] {
            b'"' => {
                in_string = !in_string;
                (1, None)
            }
            b'\\' if in_string => escape(rest),
            _ if in_string => (1, None),
            b'N' if rest.starts_with(b"NaN") => (3, Some(&b"\"NaN\""[..])),
            b'I' if rest.starts_with(b"Infinity") => (8, Some(&b"\"Infinity\""[..])),
            b'-' if rest.starts_with(b"-Infinity") => (9, Some(&b"\"-Infinity\""[..])),
            _ => (1, None),
        };
        if let Some(replacement) = replacement {
            let out = out.get_or_insert_default();
            out.extend_from_slice(&bytes[copied..at]);
            out.extend_from_slice(replacement);
            copied = at + length;
        }
        at += length;
    }
    match out {
        Some(mut out) => {
            out.extend_from_slice(&bytes[copied.min(bytes.len())..]);
            Cow::Owned(out)
        }
        None => Cow::Borrowed(bytes),
    }
}

/// The length of the escape that `rest` starts with, and its replacement. A lone surrogate is not a
/// character and becomes `U+FFFD`.
fn escape(rest: &[u8]) -> (usize, Option<&'static [u8]>) {
    let unit = |at: usize| -> Option<u16> {
        let digits = rest.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    match unit(0) {
        Some(0xd800..=0xdbff) => match unit(6) {
            Some(0xdc00..=0xdfff) => (12, None),
            _ => (6, Some(b"\\ufffd")),
        },
        Some(0xdc00..=0xdfff) => (6, Some(b"\\ufffd")),
        Some(_) => (6, None),
        None => (rest.len().min(2), None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn json_that_python_writes_is_read() {
        let cases: [(&[u8], Value); 8] = [
            (b"{\"a\": Infinity}", json!({"a": "Infinity"})),
            (
                b"[-Infinity, NaN, -1, 1e3]",
                json!(["-Infinity", "NaN", -1, 1e3]),
            ),
            (b"\xef\xbb\xbf{\"a\": 1}", json!({"a": 1})),
            (b"\xef\xbb\xbf[NaN]", json!(["NaN"])),
            (
                br#"{"NaN": "is \"NaN\" Infinity \\", "b": NaN}"#,
                json!({"NaN": "is \"NaN\" Infinity \\", "b": "NaN"}),
            ),
            (br#"["\ud83d"]"#, json!(["\u{fffd}"])),
            (
                br#"["\udc00x\ud83d\ude00\ud83d\n"]"#,
                json!(["\u{fffd}x\u{1f600}\u{fffd}\n"]),
            ),
            // As in Python, the last value wins.
            (br#"{"a": 1, "a": 2}"#, json!({"a": 2})),
        ];
        for (text, expected) in cases {
            let read: Value = parse(text).unwrap();
            assert_eq!(read, expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn json_that_python_rejects_is_rejected() {
        for text in [
            "",
            "{",
            "nan",
            "[Infinit]",
            "[+Infinity]",
            "[Inf]",
            "{\"a\": 1,}",
            "['a']",
            "\"\\u12",
            "\"\\",
            "[\"a\nb\"]",
            "// x\n1",
        ] {
            assert!(parse::<Value>(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert_eq!(read::<Value>(&path).unwrap(), None);
        std::fs::write(&path, "{\"a\": NaN").unwrap();
        let error = read::<Value>(&path).unwrap_err();
        assert_eq!(error.exit(), Exit::Preflight);
        assert!(error.chain().contains("config.json"), "{}", error.chain());
    }
}
