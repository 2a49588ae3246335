//! Checks that need no algebra: a text, a part of it, a pattern, a letter, a number with a tolerance.

use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};

use super::{LONGEST_ANSWER, Verdict, last_boxed};

/// What was found in a response, and whether it is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What was compared with the expected text; `None` if the response holds nothing of the kind.
    pub answer: Option<String>,
    pub verdict: Verdict,
    /// Why it is wrong or undecided; empty for a right answer.
    pub reason: String,
}

/// How far a number may be from the expected one. The larger of both bounds holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Share of the expected number's size.
    pub relative: f64,
    pub absolute: f64,
}

/// Bytes that a compiled pattern may take.
const LARGEST_PATTERN: usize = 1 << 20;

impl Checked {
    fn of(answer: &str, is_right: bool, reason: impl FnOnce() -> String) -> Self {
        Self {
            answer: Some(shortened(answer)),
            verdict: if is_right {
                Verdict::Equal
            } else {
                Verdict::Unequal
            },
            reason: if is_right { String::new() } else { reason() },
        }
    }

    fn nothing(reason: &str) -> Self {
        Self {
            answer: None,
            verdict: Verdict::Unequal,
            reason: reason.to_owned(),
        }
    }

    fn open(reason: String) -> Self {
        Self {
            answer: None,
            verdict: Verdict::Undecided,
            reason,
        }
    }
}

/// The whole response, without white space around it.
pub fn exact(response: &str, expected: &str) -> Checked {
    let answer = response.trim();
    if answer.is_empty() {
        return Checked::nothing("the response is empty");
    }
    Checked::of(answer, answer == expected.trim(), || {
        "it is another text".to_owned()
    })
}

/// Whether the expected text stands anywhere in the response. An expected text without letters decides nothing.
pub fn contains(response: &str, expected: &str) -> Checked {
    let expected = expected.trim();
    if expected.is_empty() {
        return Checked::open(
            "the expected text is empty, which every response contains".to_owned(),
        );
    }
    if response.contains(expected) {
        return Checked::of(expected, true, String::new);
    }
    Checked::nothing("the response does not contain the expected text")
}

/// Compiles a pattern of the `regex` crate's syntax.
///
/// # Errors
/// What is wrong with it.
pub fn pattern(text: &str) -> Result<Regex, String> {
    (RegexBuilder::new(text).size_limit(LARGEST_PATTERN).build()).map_err(|error| error.to_string())
}

/// Whether the pattern matches anywhere in the response. The answer is its first group, or else the match.
pub fn matches(response: &str, expected: &str) -> Checked {
    let pattern = match pattern(expected) {
        Ok(pattern) => pattern,
        Err(why) => return Checked::open(format!("the expected text is no pattern: {why}")),
    };
    match pattern.captures(response) {
        Some(found) => {
            let answer = found.get(1).or_else(|| found.get(0));
            Checked::of(answer.map_or("", |part| part.as_str()), true, String::new)
        }
        None => Checked::nothing("the pattern does not match"),
    }
}

/// The letter of a multiple choice. Strict: the last `\boxed{}`, or the last line, holds the letter alone, or with
/// the words that introduce an answer. Lenient: otherwise the last capital letter that stands alone.
pub fn choice(response: &str, expected: &str, lenient: bool) -> Checked {
    let Some(right) = letter(expected) else {
        return Checked::open(format!(
            "the expected answer is not the letter of a choice: {:?}",
            shortened(expected)
        ));
    };
    let found = last_boxed(response).and_then(letter);
    let found = found.or_else(|| letter(response.trim().lines().next_back()?));
    let found = found.or_else(|| if lenient { last_alone(response) } else { None });
    match found {
        None => Checked::nothing("the response ends with no letter of a choice"),
        Some(found) => Checked::of(&found.to_string(), found == right, || {
            "it is another choice".to_owned()
        }),
    }
}

/// The one letter in a text, in upper case: `b`, `(B)`, `**B.**`, `Answer: B`, `The correct answer is (B).`
fn letter(text: &str) -> Option<char> {
    static ONE: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let words = concat!(
            r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+|best\s+)*",
            r"(?:answer|choice|option)(?:\s+is)?\s*[:=]?",
        );
        Regex::new(&format!(
            r"(?i)^[\s*_`#>]*(?:{words})?[\s*_`$(\[{{]*(?:\\text\{{|\\mathrm\{{)?([a-z])[\s*_`$)\]}}.:!]*$"
        ))
        .ok()
    });
    let found = ONE.as_ref()?.captures(text.trim())?;
    found
        .get(1)?
        .as_str()
        .chars()
        .next()
        .map(|letter| letter.to_ascii_uppercase())
}

/// The last capital letter that stands alone, but for `I` and a leading article.
fn last_alone(text: &str) -> Option<char> {
    let is_word = |letter: Option<char>| {
        letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '\'')
    };
    let letters: Vec<char> = text.chars().collect();
    (0..letters.len())
        .rev()
        .map(|at| (at, letters[at]))
        .find_map(|(at, letter)| {
            let before = at.checked_sub(1).map(|before| letters[before]);
            let after = letters.get(at + 1).copied();
            let is_alone = letter.is_ascii_uppercase() && !is_word(before) && !is_word(after);
            // "A dog", "I think": words of English.
            let is_article = matches!(letter, 'A' | 'I')
                && after == Some(' ')
                && letters.get(at + 2).is_some_and(|next| next.is_lowercase());
            (is_alone && !is_article).then_some(letter)
        })
}

/// A number within a tolerance. The answer is the number in the last `\boxed{}`, or after the last `####`, or else
/// the last number of the response.
pub fn numeric(response: &str, expected: &str, tolerance: Tolerance) -> Checked {
    let Some((_, right)) = last_number(expected) else {
        return Checked::open(format!(
            "the expected answer is no number: {:?}",
            shortened(expected)
        ));
    };
    let marked = response.rsplit_once("####").map(|(_, after)| after);
    let found =
        (last_boxed(response).or(marked).and_then(last_number)).or_else(|| last_number(response));
    let Some((text, value)) = found else {
        return Checked::nothing("the response holds no number");
    };
    let allowed = (tolerance.relative * right.abs()).max(tolerance.absolute);
    // A decimal that was read twice differs by rounding.
    let slack = 4.0 * f64::EPSILON * right.abs();
    let off = (value - right).abs();
    Checked::of(text, off <= allowed + slack, || {
        format!("it differs by {off}, and {allowed} are allowed")
    })
}

/// The last number of a text, with commas between thousands and an exponent.
fn last_number(text: &str) -> Option<(&str, f64)> {
    static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let number = r"[-+−]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?";
        Regex::new(number).ok()
    });
    let found = NUMBER.as_ref()?.find_iter(text).last()?;
    // Behind a number or a word, the sign is a dash: `5-3`, `pages 10-12`.
    let follows = text[..found.start()].chars().next_back();
    let number = match follows {
        Some(before) if before.is_alphanumeric() || before == ')' => {
            found.as_str().trim_start_matches(['-', '+', '−'])
        }
        _ => found.as_str(),
    };
    let plain = number.replace(',', "").replace('−', "-");
    let value: f64 = plain.parse().ok()?;
    value.is_finite().then_some((number, value))
}

/// An answer as records keep it.
fn shortened(text: &str) -> String {
    let end = (0..=LONGEST_ANSWER.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn verdict(checked: &Checked) -> (Option<&str>, Verdict) {
        (checked.answer.as_deref(), checked.verdict)
    }

    #[test]
    fn texts_are_compared_as_they_are() {
        assert_eq!(
            verdict(&exact(" Paris\n", "Paris")),
            (Some("Paris"), Verdict::Equal)
        );
        assert_eq!(exact("paris", "Paris").verdict, Verdict::Unequal);
        assert_eq!(verdict(&exact(" \n", "")), (None, Verdict::Unequal));
        assert_eq!(
            contains("It is Paris, of course", "Paris").verdict,
            Verdict::Equal
        );
        assert_eq!(contains("It is London", "Paris").verdict, Verdict::Unequal);
        assert_eq!(contains("anything", " ").verdict, Verdict::Undecided);
    }

    #[test]
    fn patterns_give_their_group() {
        let found = matches("id: 17, id: 18", r"id: (\d+)");
        assert_eq!(verdict(&found), (Some("17"), Verdict::Equal));
        assert_eq!(matches("none", r"id: (\d+)").verdict, Verdict::Unequal);
        let broken = matches("x", "(");
        assert_eq!(broken.verdict, Verdict::Undecided);
        assert!(broken.reason.contains("no pattern"), "{}", broken.reason);
        // A pattern that would take much memory is none.
        assert_eq!(matches("x", r"(\w{500}){500}").verdict, Verdict::Undecided);
    }

    #[test]
    fn letters_of_choices_are_found() {
        for response in [
            "B",
            "(B)",
            "b.",
            "**B**",
            "Some thoughts.\n\nAnswer: B",
            "The correct answer is (B).",
            "**Final Answer: B**",
            r"So \boxed{B}",
            r"So \boxed{\text{B}}, as A is wrong.",
            "### Answer\nThe answer is **B**.",
        ] {
            let found = choice(response, "B", false);
            assert_eq!(verdict(&found), (Some("B"), Verdict::Equal), "{response}");
            assert_eq!(
                choice(response, "(c)", false).verdict,
                Verdict::Unequal,
                "{response}"
            );
        }
        for response in [
            "It is B because A is wrong",
            "B) because it is",
            "I think that B fits",
        ] {
            assert_eq!(
                verdict(&choice(response, "B", false)),
                (None, Verdict::Unequal),
                "{response}"
            );
        }
        assert_eq!(
            choice("I think that B fits", "B", true).verdict,
            Verdict::Equal
        );
        assert_eq!(
            choice("We take B. A dog barks, I know", "B", true).verdict,
            Verdict::Equal
        );
        assert_eq!(choice("", "B", true).verdict, Verdict::Unequal);
        assert_eq!(choice("B", "Paris", true).verdict, Verdict::Undecided);
    }

    #[test]
    fn numbers_may_be_off_by_the_tolerance() {
        let within = |response: &str, expected: &str, relative, absolute| {
            numeric(response, expected, Tolerance { relative, absolute }).verdict
        };
        assert_eq!(within("about 3.14", "3.14159", 1e-3, 0.0), Verdict::Equal);
        assert_eq!(within("about 3.14", "3.14159", 1e-4, 0.0), Verdict::Unequal);
        assert_eq!(within("0.1 or so", "0", 0.5, 0.2), Verdict::Equal);
        assert_eq!(
            within("1,234,567 units", "1234567", 0.0, 0.0),
            Verdict::Equal
        );
        assert_eq!(
            within("steps 1, 2\n#### 72", "72", 0.0, 0.0),
            Verdict::Equal
        );
        assert_eq!(
            within(r"\boxed{-1.5e3} in step 2", "−1500", 0.0, 0.0),
            Verdict::Equal
        );
        assert_eq!(within("pages 10-12", "12", 0.0, 0.0), Verdict::Equal);
        assert_eq!(within("it is -12.", "-12", 0.0, 0.0), Verdict::Equal);
        assert_eq!(within(".5", "0.5", 0.0, 0.0), Verdict::Equal);
        assert_eq!(within("none", "1", 1.0, 1.0), Verdict::Unequal);
        assert_eq!(within("1", "one", 0.0, 0.0), Verdict::Undecided);
    }

    proptest! {
        /// Any text gives a verdict, and a number equals itself.
        #[test]
        fn any_text_is_checked(response in any::<String>(), expected in any::<String>(), number in -1e12f64..1e12) {
            for checked in [
                exact(&response, &expected),
                contains(&response, &expected),
                matches(&response, &expected),
                choice(&response, &expected, true),
                numeric(&response, &expected, Tolerance { relative: 0.0, absolute: 0.0 }),
            ] {
                let is_right = checked.verdict == Verdict::Equal;
                prop_assert_eq!(checked.reason.is_empty(), is_right);
            }
            let text = number.to_string();
            let same = numeric(&text, &text, Tolerance { relative: 0.0, absolute: 0.0 });
            prop_assert_eq!(same.verdict, Verdict::Equal);
        }
    }
}
