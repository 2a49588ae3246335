//! JSON as servers write it. A server that counts in UTF-16 may split an emoji across two chunks,
//! which leaves an unpaired surrogate in each. Python writes `NaN`. Neither is valid JSON, and
//! neither is a reason to lose an answer.

use serde_json::Value;

/// First of the private-use characters that represent unpaired surrogates in repaired text. If the
/// text already contains one of them, its unpaired surrogates become U+FFFD instead.
const HALVES: u32 = 0x10_f000;

/// A value, and whether its strings may contain unpaired surrogates (as private-use characters).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parsed {
    pub(super) value: Value,
    pub(super) halves: bool,
}

/// Parses a value. If it is not valid JSON, unpaired surrogates, `NaN`, infinities and raw control
/// characters are repaired first.
pub(super) fn parse(text: &str) -> Option<Parsed> {
    if let Ok(value) = serde_json::from_str(text) {
        return Some(Parsed {
            value,
            halves: false,
        });
    }
    let mut repair = Repair {
        kept: String::with_capacity(text.len() + 16),
        halves: !text.contains(is_half),
    };
    repair.run(text);
    // An escaped surrogate pair may decode to one of the private-use characters.
    let private = |pair: &str| text.to_ascii_lowercase().contains(pair);
    if repair.halves && (private("\\udbfc") || private("\\udbfd")) {
        repair.halves = false;
        repair.kept.clear();
        repair.run(text);
    }
    let value = serde_json::from_str(&repair.kept).ok()?;
    Some(Parsed {
        value,
        halves: repair.halves,
    })
}

fn is_half(character: char) -> bool {
    (HALVES..HALVES + 0x800).contains(&u32::from(character))
}

struct Repair {
    kept: String,
    /// Keep unpaired surrogates as private-use characters instead of replacing them.
    halves: bool,
}

impl Repair {
    fn run(&mut self, text: &str) {
        let mut rest = text;
        while let Some(quote) = rest.find('"') {
            self.outside(&rest[..quote]);
            self.kept.push('"');
            rest = self.string(&rest[quote + 1..]);
        }
        self.outside(rest);
    }

    /// Repairs text between strings.
    fn outside(&mut self, text: &str) {
        let text = text.replace("-Infinity", "null");
        let text = text.replace("Infinity", "null").replace("NaN", "null");
        self.kept.push_str(&text);
    }

    /// Repairs a string up to its closing quotation mark; returns the text after it.
    fn string<'a>(&mut self, text: &'a str) -> &'a str {
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            if let Some(unit) = escaped_unit(rest) {
                rest = &rest[6..];
                let low = escaped_unit(rest).filter(|low| (0xdc00..0xe000).contains(low));
                match unit {
                    0xd800..0xdc00 if low.is_some() => {
                        self.kept
                            .push_str(&text[text.len() - rest.len() - 6..][..12]);
                        rest = &rest[6..];
                    }
                    0xd800..0xe000 => self.half(unit),
                    _ => (self.kept).push_str(&text[text.len() - rest.len() - 6..][..6]),
                }
                continue;
            }
            rest = &rest[character.len_utf8()..];
            match character {
                '"' => {
                    self.kept.push('"');
                    return rest;
                }
                '\\' => {
                    self.kept.push('\\');
                    if let Some(next) = rest.chars().next() {
                        self.kept.push(next);
                        rest = &rest[next.len_utf8()..];
                    }
                }
                '\0'..' ' => {
                    self.kept
                        .push_str(&format!("\\u{:04x}", u32::from(character)));
                }
                character => self.kept.push(character),
            }
        }
        rest
    }

    fn half(&mut self, unit: u32) {
        let kept = char::from_u32(HALVES + (unit - 0xd800)).filter(|_| self.halves);
        self.kept.push(kept.unwrap_or(char::REPLACEMENT_CHARACTER));
    }
}

/// The code unit of a `\uXXXX` at the beginning of the text.
fn escaped_unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    hexadecimal
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

/// Joins surrogate pairs that were split across two pieces of an answer.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    /// A high surrogate whose low surrogate may come next.
    first: Option<u32>,
}

impl Joiner {
    /// Returns the next piece without a high surrogate at its end. Unpaired surrogates become
    /// U+FFFD.
    pub(super) fn join(&mut self, piece: String, halves: bool) -> String {
        if !halves && (self.first.is_none() || piece.is_empty()) {
            return piece;
        }
        let mut whole = String::with_capacity(piece.len());
        for character in piece.chars() {
            let unit = (halves && is_half(character)).then(|| u32::from(character) - HALVES);
            match (self.first.take(), unit) {
                (Some(first), Some(second @ 0x400..)) => {
                    let pair = 0x1_0000 + (first << 10) + (second - 0x400);
                    whole.extend(char::from_u32(pair));
                    continue;
                }
                (Some(_), _) => whole.push(char::REPLACEMENT_CHARACTER),
                (None, _) => {}
            }
            match unit {
                Some(first @ ..0x400) => self.first = Some(first),
                Some(_) => whole.push(char::REPLACEMENT_CHARACTER),
                None => whole.push(character),
            }
        }
        whole
    }

    /// U+FFFD if the answer ended with a high surrogate.
    pub(super) fn finish(&mut self) -> &'static str {
        self.first.take().map_or("", |_| "\u{fffd}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Parses and joins JSON strings.
    fn joined(pieces: &[&str]) -> String {
        let mut joiner = Joiner::default();
        let mut text = String::new();
        for piece in pieces {
            let parsed = parse(&format!("\"{piece}\"")).expect("a string");
            let piece = parsed.value.as_str().expect("a string").to_owned();
            text.push_str(&joiner.join(piece, parsed.halves));
        }
        text.push_str(joiner.finish());
        text
    }

    #[test]
    fn split_surrogate_pairs_are_joined() {
        assert_eq!(joined(&[r"a\ud83d", r"\ude00b"]), "a\u{1f600}b");
        assert_eq!(joined(&[r"\uD83D", "", r"\uDE00"]), "\u{1f600}");
        assert_eq!(
            joined(&[r"\ud83d\ude00\ud83d", r"\ude00"]),
            "\u{1f600}\u{1f600}"
        );
        // Unpaired.
        assert_eq!(joined(&[r"a\ud83d", "b"]), "a\u{fffd}b");
        assert_eq!(joined(&[r"a\ude00b"]), "a\u{fffd}b");
        assert_eq!(joined(&[r"\ud83d", r"\ud83d\ude00"]), "\u{fffd}\u{1f600}");
        assert_eq!(joined(&[r"\ud83d"]), "\u{fffd}");
        // An escaped backslash does not start an escape.
        assert_eq!(joined(&[r"\\ud83d", r"\ude00"]), "\\ud83d\u{fffd}");
    }

    #[test]
    fn private_use_characters_in_the_text_are_unchanged() {
        assert_eq!(joined(&["\u{10f03d}\\ud83d"]), "\u{10f03d}\u{fffd}");
        assert_eq!(joined(&[r"\udbfc\udc3d\ud83d"]), "\u{10f03d}\u{fffd}");
    }

    #[test]
    fn python_json_is_accepted() {
        let parsed = parse("{\"a\": [NaN, -Infinity, Infinity], \"b\": \"NaN\ttab\"}");
        let value = parsed.expect("repaired").value;
        assert_eq!(value, json!({"a": [null, null, null], "b": "NaN\ttab"}));
        for broken in ["{oops", "", "{\"a\": \"", "\"\\", "\"\\u12", "\"\\ud83d"] {
            assert_eq!(parse(broken), None, "{broken}");
        }
    }

    proptest! {
        /// Text survives any split between UTF-16 code units.
        #[test]
        fn cuts_in_utf_16_do_not_matter(
            text in "[a\u{fc}\u{1f600}\u{1d11e}\"\\\\]{0,12}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let units: Vec<u16> = text.encode_utf16().collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(units.len() + 1)).collect();
            cuts.extend([0, units.len()]);
            cuts.sort_unstable();
            let escaped = |units: &[u16]| -> String {
                units.iter().map(|unit| format!("\\u{unit:04x}")).collect()
            };
            let pieces: Vec<String> =
                cuts.windows(2).map(|cut| escaped(&units[cut[0]..cut[1]])).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(joined(&pieces), text);
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in "[\"\\\\ud8a3{}:N\u{1f600}]{0,40}") {
            let _ = parse(&text);
        }
    }
}
