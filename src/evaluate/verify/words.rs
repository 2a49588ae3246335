//! Answers that are words or the letter of a choice: compared as words, never as products of letters.

use super::Verdict::{self, Equal, Unequal};

/// A choice: a letter, possibly in brackets or `\text{…}`, and the content of the choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    letter: char,
    /// Whether it is more than a bare letter, which could be a variable.
    is_marked: bool,
    /// The text after the letter.
    pub(super) content: String,
}

/// Words within a line may mean the same; words of different lines never do.
const AFFIRMATION: [&[&str]; 2] = [
    &["yes", "true", "correct", "right", "y", "t"],
    &["no", "false", "incorrect", "wrong", "n", "f"],
];

/// Words that may be interchangeable as the answer to a question.
const NOTHING: &[&str] = &[
    "none",
    "nothing",
    "undefined",
    "dne",
    "divergent",
    "diverges",
    "infinite",
    "infinity",
    "impossible",
    "nonexistent",
    "empty",
    "never",
    "zero",
];

const NUMBERS: &[&str] = &[
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

/// The number named by a word.
pub(super) fn number(words: &str) -> Option<u64> {
    let place = NUMBERS.iter().position(|word| *word == words)?;
    u64::try_from(place).ok()
}

/// The words of a text, in lower case and separated by single spaces. `None` if it contains anything else,
/// and for single letters, which may be variables.
pub(super) fn words(normal: &str) -> Option<String> {
    let plain = without_text(normal)?;
    let mut folded = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            c if c.is_alphabetic() => folded.extend(c.to_lowercase()),
            ' ' | '-' | '.' | ',' | '"' | '!' | '?' => {
                if !folded.is_empty() && !folded.ends_with(' ') {
                    folded.push(' ');
                }
            }
            _ => return None,
        }
    }
    let folded = folded.trim_end();
    let folded = (folded.strip_prefix("the ").or(folded.strip_prefix("a ")))
        .or(folded.strip_prefix("an "))
        .unwrap_or(folded);
    let longest = folded.split(' ').map(|word| word.chars().count()).max()?;
    (longest >= 2).then(|| folded.to_owned())
}

/// Compares two texts of words; `None` if undecided.
pub(super) fn compare(one: &str, other: &str) -> Option<Verdict> {
    if one == other {
        return Some(Equal);
    }
    let place = |word: &str| AFFIRMATION.iter().position(|line| line.contains(&word));
    match (place(one), place(other)) {
        (Some(one), Some(other)) if one != other => return Some(Unequal),
        (Some(_), Some(_)) => return None,
        _ => {}
    }
    let is_nothing = |word: &str| NOTHING.contains(&word) || word.contains(' ');
    // Two short words with the same letters may be products: `xy` and `yx`.
    let sorted = |word: &str| {
        let mut letters: Vec<char> = word.chars().collect();
        letters.sort_unstable();
        letters
    };
    if one.len() <= 3 && sorted(one) == sorted(other) {
        return None;
    }
    // A phrase may be a paraphrase of the other.
    if is_nothing(one) || is_nothing(other) || are_akin(one, other) {
        return None;
    }
    Some(Unequal)
}

/// Whether one may be an abbreviation, another form, or another spelling of the other.
fn are_akin(one: &str, other: &str) -> bool {
    let (short, long) = if one.len() <= other.len() {
        (one, other)
    } else {
        (other, one)
    };
    if long.starts_with(short) || long.ends_with(short) {
        return true;
    }
    let common = short
        .chars()
        .zip(long.chars())
        .take_while(|(one, other)| one == other)
        .count();
    let least = short.chars().count();
    // `colour` and `color`, `parabola` and `parabolic`.
    least >= 5 && common + 2 >= least
}

/// Parses a choice: `B`, `(B)`, `B.`, `\text{(B)}`, `(B) 12`, `Option B`.
pub(super) fn choice(normal: &str) -> Option<Choice> {
    let text = without_text(normal)?;
    let text = text.trim().trim_matches(['{', '}']);
    let lower = text.to_lowercase();
    let named = ["option ", "choice ", "answer ", "answer: "];
    let name = named.iter().find(|name| lower.starts_with(**name));
    let (text, mut is_marked) = match name {
        Some(name) => (text.get(name.len()..)?, true),
        None => (text, normal.contains(r"\text")),
    };
    let (open, rest) = match text.strip_prefix(['(', '[']) {
        Some(rest) => (true, rest.trim_start()),
        None => (false, text),
    };
    let letter = rest.chars().next().filter(char::is_ascii_alphabetic)?;
    let rest = rest[1..].trim_start();
    let content = match (open, rest.chars().next()) {
        (true, Some(')' | ']')) => {
            is_marked = true;
            rest[1..].trim_start_matches(['.', ':'])
        }
        (true, _) => return None,
        (false, None) => "",
        (false, Some(')' | '.' | ':')) => {
            is_marked = true;
            &rest[1..]
        }
        (false, Some(_)) => return None,
    };
    let content = content.trim().to_owned();
    // `(x)(x+1)`, `(a)^2` and `f:A` are not choices.
    let goes_on = content.starts_with(['^', '_', '(', '+', '-', '*', '/', '=', '!', '\'']);
    let is_far = letter.to_ascii_uppercase() > 'J' && !content.is_empty();
    (!goes_on && !is_far).then_some(Choice {
        letter,
        is_marked,
        content,
    })
}

impl Choice {
    /// Whether it is only a letter, which may be a variable.
    pub(super) fn is_bare(&self) -> bool {
        !self.is_marked && self.content.is_empty()
    }
}

/// Compares two choices by their letters; `None` if undecided.
pub(super) fn compare_choices(one: &Choice, other: &Choice) -> Option<Verdict> {
    let same_content = one.content == other.content;
    let both_say = !one.content.is_empty() && !other.content.is_empty();
    if one.letter == other.letter {
        return (same_content || !both_say).then_some(Equal);
    }
    if one.letter.eq_ignore_ascii_case(&other.letter) {
        let is_marked = one.is_marked || other.is_marked;
        return (is_marked && (same_content || !both_say)).then_some(Equal);
    }
    (!(both_say && same_content)).then_some(Unequal)
}

/// Replaces each `\text{…}` by its content; `None` if there is any other command.
fn without_text(normal: &str) -> Option<String> {
    if !normal.contains('\\') {
        return Some(normal.to_owned());
    }
    let mut plain = String::with_capacity(normal.len());
    let mut rest = normal;
    let mut open = 0_usize;
    while let Some(at) = rest.find(['\\', '}']) {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix('}') {
            open = open.checked_sub(1)?;
            rest = after;
        } else {
            rest = rest
                .strip_prefix(r"\text")?
                .trim_start()
                .strip_prefix('{')?;
            open += 1;
        }
    }
    plain.push_str(rest);
    (open == 0).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::super::normal::normal;
    use super::*;

    #[test]
    fn words_are_normalized() {
        let cases = [
            (r"\text{Tuesday}", Some("tuesday")),
            ("Tuesday.", Some("tuesday")),
            (r"\textbf{No  Solution}", Some("no solution")),
            ("the red ball", Some("red ball")),
            (r"\text{even}", Some("even")),
            ("no-one", Some("no one")),
            ("x", None),
            ("y'", None),
            ("2 apples", None),
            (r"\pi r", None),
            ("x + y", None),
        ];
        for (text, expected) in cases {
            assert_eq!(words(&normal(text)).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn words_are_not_compared_as_products() {
        let cases = [
            ("no", "on", None),
            ("no", "in", Some(Unequal)),
            ("celia", "alice", Some(Unequal)),
            ("listen", "silent", Some(Unequal)),
            ("yes", "no", Some(Unequal)),
            ("yes", "true", None),
            ("tuesday", "tue", None),
            ("even", "odd", Some(Unequal)),
            ("none", "undefined", None),
            ("colour", "color", None),
            ("no solution", "none", None),
            ("even", "even", Some(Equal)),
        ];
        for (one, other, expected) in cases {
            assert_eq!(compare(one, other), expected, "{one} | {other}");
        }
    }

    #[test]
    fn choices_are_compared_by_their_letters() {
        let cases = [
            ("B", "(B)", Some(Equal)),
            (r"\text{(B)}", "B", Some(Equal)),
            (r"\textbf{(B)}\ 12", "B", Some(Equal)),
            ("B.", "B", Some(Equal)),
            ("b)", "(B)", Some(Equal)),
            ("Option B", "B", Some(Equal)),
            ("(B) 12", "(C) 12", None),
            ("(B) 12", "(B) 13", None),
            ("A", "B", Some(Unequal)),
            ("A", "a", None),
            ("y", "Y", None),
        ];
        for (one, other, expected) in cases {
            let [one_choice, other_choice] =
                [one, other].map(|text| choice(&normal(text)).expect(text));
            assert_eq!(
                compare_choices(&one_choice, &other_choice),
                expected,
                "{one} | {other}"
            );
        }
        for text in ["y'", "A^T", "AB", "f(x)", "2", "(x)(x+1)", r"\pi", "B + C"] {
            assert_eq!(choice(&normal(text)), None, "{text}");
        }
    }
}
