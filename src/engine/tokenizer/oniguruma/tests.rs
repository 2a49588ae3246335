use serde::Deserialize;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
};

use super::*;

/// `oniguruma_splits.json`: for each pattern and text, the start bytes of the pieces that the
/// Python library (tokenizers 0.23.3, with Oniguruma) makes with a `Split`.
#[derive(Deserialize)]
struct Splits {
    texts: Vec<String>,
    patterns: Vec<(String, Vec<Vec<usize>>)>,
}

fn starts(pattern: &str, text: &str) -> Vec<usize> {
    let pattern = SplitPattern::Regex(translate(pattern).into_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
    let mut pieces = PreTokenizedString::from(text);
    split.pre_tokenize(&mut pieces).unwrap();
    pieces
        .get_splits(OffsetReferential::Original, OffsetType::Byte)
        .into_iter()
        .map(|(_, (start, _), _)| start)
        .collect()
}

#[test]
fn patterns_split_as_they_do_in_oniguruma() {
    let splits: Splits =
        serde_json::from_str(include_str!("../../testdata/oniguruma_splits.json")).unwrap();
    assert!(splits.patterns.len() > 100);
    for (pattern, expected) in &splits.patterns {
        for (text, expected) in splits.texts.iter().zip(expected) {
            let translated = translate(pattern);
            assert_eq!(
                starts(pattern, text),
                *expected,
                "{pattern} ({translated}) on {text:?}"
            );
        }
    }
}

#[test]
fn a_pattern_with_the_same_meaning_is_not_changed() {
    for pattern in [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*",
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
        r"(?<name>a)(?>b+)(?<=c)(?<!d)\k<name>\x{E9}\u00e9",
    ] {
        assert!(
            matches!(translate(pattern), Cow::Borrowed(_)),
            "{}",
            translate(pattern)
        );
    }
    assert_eq!(translate(r"\p{Nd}{3}+\z"), r"(?:\p{Nd}{3})+\z");
}

/// Invalid patterns are rejected by the engine, not here.
#[test]
fn invalid_and_deeply_nested_patterns_do_not_panic() {
    for pattern in [
        "(", ")", "[", "a{", "(?", "(?<", "(?i", "\\", "[\\", "[a-", "[[:", "\\x", "\\p", "\\p{",
        "*a", "\\c", "\\C-", "(?#", "[]", "[^", "\\o{9}", "\\u12", "é{", "{,}", "\\xé", "(?'a",
        "\\0é", "[:é:]",
    ] {
        translate(pattern);
    }
    for deep in [
        "(".repeat(100_000),
        "[".repeat(100_000),
        "(?i)".repeat(100_000),
    ] {
        assert!(translate(&deep).len() >= deep.len() / 2);
    }
    // Every combination of a few tokens with a meaning.
    let letters = [
        "(", ")", "[", "]", "?", "\\", "{", "1,2}", "i", ":", "-", "^", "é",
    ];
    for first in letters {
        for second in letters {
            for third in letters {
                for fourth in letters {
                    translate(&format!("{first}{second}{third}{fourth}"));
                }
            }
        }
    }
}
