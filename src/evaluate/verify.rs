//! Checking an answer against the known one: the last `\boxed{…}` of a response, compared as exact
//! rational numbers where both sides are plain numerals. [`super::Verifier`] asks others about the rest.

use serde::{Deserialize, Serialize};

/// What came of comparing two answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Both say the same.
    Equal,
    /// They say different things. [`compare`] says so of integers alone.
    Unequal,
    /// Not decided: something other than numerals, or fractions that differ (one side may be
    /// rounded). It needs a checker that knows mathematics, or a judge.
    Undecided,
}

/// The outcome of what is not decided, as records name it.
pub const UNDECIDED: &str = "undecided";

impl Verdict {
    /// What a judge has said.
    pub fn of(same: Option<bool>) -> Self {
        match same {
            Some(true) => Self::Equal,
            Some(false) => Self::Unequal,
            None => Self::Undecided,
        }
    }

    /// Its name in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Unequal => "unequal",
            Self::Undecided => UNDECIDED,
        }
    }

    /// 1 for a right answer, 0 for a wrong one; none where that is not known.
    pub fn score(self) -> Option<f64> {
        match self {
            Self::Equal => Some(1.0),
            Self::Unequal => Some(0.0),
            Self::Undecided => None,
        }
    }
}

/// The content of the last complete `\boxed{…}` in `text`, trimmed; braces inside are matched.
pub fn last_boxed(text: &str) -> Option<&str> {
    const OPENING: &str = r"\boxed{";
    let mut starts = text.rmatch_indices(OPENING);
    starts.find_map(|(start, _)| {
        let content = &text[start + OPENING.len()..];
        closing_brace(content).map(|end| content[..end].trim())
    })
}

/// Where the brace that was open before `text` is closed; `\{` and `\}` are text.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 1_usize;
    let mut escaped = false;
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(place);
        }
    }
    None
}

/// Compares two answers.
pub fn compare(answer: &str, expected: &str) -> Verdict {
    let (answer, expected) = (undressed(answer), undressed(expected));
    if answer == expected && !answer.is_empty() {
        return Verdict::Equal;
    }
    match (Rational::parse(answer), Rational::parse(expected)) {
        (Some(left), Some(right)) if left == right => Verdict::Equal,
        (Some(left), Some(right)) if left.is_integer() && right.is_integer() => Verdict::Unequal,
        _ => Verdict::Undecided,
    }
}

/// The text without the dollar signs and the full stop that answers come in.
fn undressed(text: &str) -> &str {
    let text = text.trim();
    let text = text.strip_suffix('.').unwrap_or(text);
    let inner = text
        .strip_prefix('$')
        .and_then(|text| text.strip_suffix('$'));
    inner.unwrap_or(text).trim()
}

/// A fraction in lowest terms; the denominator is positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rational {
    numerator: i128,
    denominator: i128,
}

impl Rational {
    /// Reads `12`, `-1,234`, `0.75`, `3/4`, `\frac{3}{4}` (also `\dfrac`, `\tfrac`); `None` for all
    /// else, and for numbers that do not fit into 128 bits.
    fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix(['-', '\u{2212}']) {
            Some(rest) => (true, rest.trim_start()),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let magnitude = Self::fraction(text)?;
        Some(Self {
            numerator: if negative {
                -magnitude.numerator
            } else {
                magnitude.numerator
            },
            ..magnitude
        })
    }

    fn fraction(text: &str) -> Option<Self> {
        if let Some((above, below)) = latex_fraction(text).or_else(|| text.split_once('/')) {
            let (above, below) = (Self::decimal(above.trim())?, Self::decimal(below.trim())?);
            return Self::reduced(
                above.numerator.checked_mul(below.denominator)?,
                above.denominator.checked_mul(below.numerator)?,
            );
        }
        Self::decimal(text)
    }

    /// Digits with an optional fractional part; commas may part the integer's thousands.
    fn decimal(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let whole = without_thousands(whole)?;
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() && part.is_empty() || !all_digits(&whole) || !all_digits(part) {
            return None;
        }
        let scale = 10_i128.checked_pow(u32::try_from(part.len()).ok()?)?;
        Self::reduced(format!("{whole}{part}").parse().ok()?, scale)
    }

    fn reduced(numerator: i128, denominator: i128) -> Option<Self> {
        if denominator == 0 {
            return None;
        }
        let divisor = greatest_common_divisor(numerator, denominator);
        Some(Self {
            numerator: numerator / divisor,
            denominator: denominator / divisor,
        })
    }

    fn is_integer(self) -> bool {
        self.denominator == 1
    }
}

/// The two halves of `\frac{a}{b}`.
fn latex_fraction(text: &str) -> Option<(&str, &str)> {
    let names = [r"\frac{", r"\dfrac{", r"\tfrac{"];
    let inner = names.iter().find_map(|name| text.strip_prefix(name))?;
    inner.strip_suffix('}')?.split_once("}{")
}

/// `1,234,567` as `1234567`; `None` where a comma does not stand before three digits.
fn without_thousands(whole: &str) -> Option<String> {
    let mut groups = whole.split(',');
    let first = groups.next()?;
    let parted = whole.contains(',');
    if parted && !(1..=3).contains(&first.len()) || groups.any(|group| group.len() != 3) {
        return None;
    }
    Some(whole.replace(',', ""))
}

/// Of non-negative `left` and positive `right`.
fn greatest_common_divisor(left: i128, right: i128) -> i128 {
    let (mut left, mut right) = (left, right);
    while right != 0 {
        (left, right) = (right, left % right);
    }
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_complete_box_counts() {
        let cases = [
            ("none", None),
            (r"\boxed{1} and \boxed{ 2 }.", Some("2")),
            (r"\boxed{\frac{1}{2}}", Some(r"\frac{1}{2}")),
            (r"\boxed{3} then \boxed{4", Some("3")),
            (r"\boxed{\{1, 2\}}", Some(r"\{1, 2\}")),
            (r"\boxed{}", Some("")),
            (r"\boxed{a\}", None),
            (r"outer \boxed{1 + \boxed{2}}", Some("2")),
        ];
        for (text, expected) in cases {
            assert_eq!(last_boxed(text), expected, "{text}");
        }
    }

    #[test]
    fn numerals_are_compared_exactly() {
        use Verdict::{Equal, Undecided, Unequal};
        let cases = [
            ("4", "4", Equal),
            ("4", "4.0", Equal),
            ("$4$.", "4", Equal),
            ("-1,234", "-1234", Equal),
            ("\u{2212}3", "-3", Equal),
            ("0.75", "3/4", Equal),
            (r"\frac{3}{4}", "6/8", Equal),
            (r"-\dfrac{1}{2}", "-0.5", Equal),
            ("-0", "0", Equal),
            ("0.1", "0.10000000000000001", Undecided),
            ("0.3333", "1/3", Undecided),
            ("4", "5", Unequal),
            ("8/2", "5", Unequal),
            ("1,23", "123", Undecided),
            ("x + 1", "x + 1", Equal),
            ("x + 1", "1 + x", Undecided),
            ("", "", Undecided),
            ("1/0", "1", Undecided),
            ("--1", "1", Undecided),
            (".", "0", Undecided),
            ("99999999999999999999999999999999999999999", "1", Undecided),
        ];
        for (answer, expected, verdict) in cases {
            assert_eq!(compare(answer, expected), verdict, "{answer} | {expected}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in r"[\\{}boxed0-9,./ $-]{0,40}") {
            let boxed = last_boxed(&text).unwrap_or(&text);
            let verdict = compare(boxed, &text);
            prop_assert_eq!(verdict, compare(&text, boxed));
        }

        #[test]
        fn a_number_is_equal_to_all_its_spellings(
            numerator in -1_000_000_i64..1_000_000, factor in 1_i64..1000, shift in 0_u32..6,
        ) {
            let scale = 10_i64.pow(shift);
            let sign = if numerator < 0 { "-" } else { "" };
            let magnitude = numerator.abs();
            let width = shift as usize;
            let decimal = match shift {
                0 => format!("{sign}{magnitude}"),
                _ => format!("{sign}{}.{:0width$}", magnitude / scale, magnitude % scale),
            };
            let fraction = format!("{}/{}", numerator * factor, scale * factor);
            let latex = format!(r"{sign}\frac{{{magnitude}}}{{{scale}}}");
            prop_assert_eq!(compare(&decimal, &fraction), Verdict::Equal);
            prop_assert_eq!(compare(&decimal, &latex), Verdict::Equal);
            let next = format!("{}/{scale}", numerator + 1);
            prop_assert_ne!(compare(&decimal, &next), Verdict::Equal);
        }
    }
}
