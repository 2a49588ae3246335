//! The structure of an answer: a single item, a list, a set, a tuple or interval, or a matrix.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Single,
    /// Items separated by commas, *and* or *or*.
    List,
    /// Items in `\{ \}`.
    Set,
    /// A tuple or an interval, with its opening and closing bracket.
    Bracketed(char, char),
    /// Rows and columns.
    Matrix(usize, usize),
}

/// One item of an answer: its text, and the name it is assigned to (`x = 5`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: Option<String>,
    pub(super) text: String,
}

/// An answer split into items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) kind: Kind,
    /// The name of the whole answer (`A = \{1, 2\}`, `x \in (1, 2)`).
    pub(super) name: Option<String>,
    pub(super) parts: Vec<Part>,
}

/// Splits a text (see [`super::normal`]) into its items.
pub(super) fn shape(text: &str) -> Shape {
    let (name, text) = without_name(in_one_text(text));
    let (kind, items) = taken_apart(text);
    let items = match kind {
        Kind::Single | Kind::List => items.into_iter().flat_map(both_signs).collect(),
        _ => items,
    };
    let kind = match kind {
        Kind::Single if items.len() > 1 => Kind::List,
        kind => kind,
    };
    let alone = kind == Kind::Single;
    let parts = items.into_iter().map(|item| match without_name(&item) {
        (name, text) if !alone => Part {
            name: name.map(str::to_owned),
            text: text.to_owned(),
        },
        _ => Part {
            name: None,
            text: item,
        },
    });
    Shape {
        kind,
        name: name.map(str::to_owned),
        parts: parts.collect(),
    }
}

/// Removes a `\text{…}` around the whole text if it contains a list.
fn in_one_text(text: &str) -> &str {
    let inner = (text.strip_prefix(r"\text{")).and_then(|text| text.strip_suffix('}'));
    inner
        .filter(|inner| inner.contains(',') && !inner.contains(['{', '}']))
        .unwrap_or(text)
}

/// The whole text as a single item.
pub(super) fn single(text: &str) -> Shape {
    Shape {
        kind: Kind::Single,
        name: None,
        parts: vec![Part {
            name: None,
            text: text.to_owned(),
        }],
    }
}

fn taken_apart(text: &str) -> (Kind, Vec<String>) {
    if text == r"\emptyset" {
        return (Kind::Set, Vec::new());
    }
    if let Some((rows, columns, cells)) = matrix(text) {
        return (Kind::Matrix(rows, columns), cells);
    }
    if let Some((open, inner, close)) = bracketed(text) {
        let items = split(inner);
        if open == '{' {
            let items = if inner.trim().is_empty() {
                Vec::new()
            } else {
                items
            };
            return (Kind::Set, items);
        }
        if items.len() > 1 {
            return (Kind::Bracketed(open, close), items);
        }
    }
    let items = split(text);
    match items.len() {
        0 | 1 => (Kind::Single, vec![text.to_owned()]),
        _ => (Kind::List, items),
    }
}

/// The brackets around the whole text, and their content.
fn bracketed(text: &str) -> Option<(char, &str, char)> {
    const OPENING: [(&str, char); 4] = [(r"\{", '{'), (r"\langle", '('), ("(", '('), ("[", '[')];
    const CLOSING: [(&str, char); 4] = [(r"\}", '}'), (r"\rangle", ')'), (")", ')'), ("]", ']')];
    let (opening, open) = OPENING
        .iter()
        .find(|(opening, _)| text.starts_with(opening))?;
    let (closing, close) = CLOSING
        .iter()
        .find(|(closing, _)| text.ends_with(closing))?;
    if (*open == '{') != (*close == '}') || text.len() < opening.len() + closing.len() {
        return None;
    }
    let inner = &text[opening.len()..text.len() - closing.len()];
    // In `(1, 2) \cup (3, 4)` the last bracket does not close the first.
    let mut depth = 0_usize;
    for (_, step) in steps(inner) {
        match step {
            Step::Open => depth += 1,
            Step::Close => depth = depth.checked_sub(1)?,
            Step::Other => {}
        }
    }
    (depth == 0).then_some((*open, inner, *close))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    Close,
    Other,
}

/// Byte offsets of the characters and commands of a text, classified as opening or closing brackets.
fn steps(text: &str) -> impl Iterator<Item = (usize, Step)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
        let place = at;
        let first = rest.chars().next()?;
        let (length, step) = match first {
            '\\' if rest.starts_with(r"\{") => (2, Step::Open),
            '\\' if rest.starts_with(r"\}") => (2, Step::Close),
            '\\' if rest.starts_with(r"\langle") => (7, Step::Open),
            '\\' if rest.starts_with(r"\rangle") => (7, Step::Close),
            '\\' if rest.starts_with(r"\begin") => (6, Step::Open),
            '\\' if rest.starts_with(r"\end") => (4, Step::Close),
            '(' | '[' | '{' => (1, Step::Open),
            ')' | ']' | '}' => (1, Step::Close),
            c => (c.len_utf8(), Step::Other),
        };
        at += length;
        Some((place, step))
    })
}

/// The items between commas, semicolons, *and* and *or* outside brackets. A single item if there are none of
/// these, or if brackets do not match.
fn split(text: &str) -> Vec<String> {
    const WORDS: [&str; 6] = [
        r"\text{ and }",
        r"\text{ or }",
        r"\text{and}",
        r"\text{or}",
        " and ",
        " or ",
    ];
    let has_spaced_comma = text.contains(", ");
    let mut items = Vec::new();
    let mut depth = 0_usize;
    let mut begin = 0;
    let mut skip = 0;
    for (at, step) in steps(text) {
        if at < skip {
            continue;
        }
        let rest = &text[at..];
        let word = (depth == 0).then(|| WORDS.iter().find(|word| rest.starts_with(**word)));
        if let Some(Some(word)) = word {
            items.push(&text[begin..at]);
            skip = at + word.len();
            begin = skip;
            continue;
        }
        match step {
            Step::Open => depth += 1,
            Step::Close if depth == 0 => return vec![text.trim().to_owned()],
            Step::Close => depth -= 1,
            Step::Other if depth > 0 => {}
            Step::Other => {
                let parts = match rest.as_bytes()[0] {
                    b';' => true,
                    b',' => !(has_spaced_comma && is_thousands(text, at)),
                    _ => false,
                };
                if parts {
                    items.push(&text[begin..at]);
                    begin = at + 1;
                }
            }
        }
    }
    items.push(&text[begin..]);
    let items = items.into_iter().map(str::trim);
    items
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Whether the comma at `at` is a thousands separator, as in `1,234`.
fn is_thousands(text: &str, at: usize) -> bool {
    let digits =
        |bytes: &mut dyn Iterator<Item = u8>| bytes.take_while(u8::is_ascii_digit).take(4).count();
    let before = digits(&mut text[..at].bytes().rev());
    let after = digits(&mut text[at + 1..].bytes());
    (1..=3).contains(&before) && after == 3
}

/// Rows, columns and cells of a matrix.
fn matrix(text: &str) -> Option<(usize, usize, Vec<String>)> {
    let names = ["pmatrix", "bmatrix", "matrix"];
    let name = names
        .iter()
        .find(|name| text.starts_with(&format!(r"\begin{{{name}}}")))?;
    let inner = text.strip_prefix(&format!(r"\begin{{{name}}}"))?;
    let inner = inner.strip_suffix(&format!(r"\end{{{name}}}"))?;
    if inner.contains(r"\begin") {
        return None;
    }
    let inner = inner.trim().trim_end_matches(r"\\").trim_end();
    let rows: Vec<Vec<String>> = (inner.split(r"\\"))
        .map(|row| row.split('&').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    let columns = rows.first()?.len();
    let even = rows.iter().all(|row| row.len() == columns);
    even.then(|| (rows.len(), columns, rows.concat()))
}

/// Expands `2 \pm 3` to `2 + 3` and `2 - 3`.
fn both_signs(item: String) -> Vec<String> {
    let mut halves = item.split(r"\pm");
    let (Some(before), Some(after), None) = (halves.next(), halves.next(), halves.next()) else {
        return vec![item];
    };
    // `\pmod` is a different command.
    if after.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return vec![item];
    }
    let with = |sign: &str| format!("{before}{sign}{}", after.trim_start());
    // After a name or at the start, the plus would have no left operand.
    let plus = if before.trim_end().is_empty() || before.trim_end().ends_with('=') {
        ""
    } else {
        "+"
    };
    vec![with(plus), with("-")]
}

/// Splits `name = rest` or `name \in rest`, provided that there is no other relation.
fn without_name(text: &str) -> (Option<&str>, &str) {
    let mut depth = 0_usize;
    let mut relation = None;
    for (at, step) in steps(text) {
        match step {
            Step::Open => depth += 1,
            Step::Close => depth = depth.saturating_sub(1),
            Step::Other if depth > 0 => {}
            Step::Other => {
                let rest = &text[at..];
                let is_command = |name: &str| {
                    let after = rest.strip_prefix(name);
                    after.is_some_and(|after| !after.starts_with(|c: char| c.is_ascii_alphabetic()))
                };
                let others = [r"\le", r"\ge", r"\ne", r"\approx", r"\equiv"];
                let is_other =
                    rest.starts_with(['<', '>']) || others.iter().any(|name| is_command(name));
                let parts_before = rest.starts_with([',', ';']) && relation.is_none();
                if is_other || parts_before {
                    return (None, text);
                }
                let length = match rest.starts_with('=') {
                    true => 1,
                    false if is_command(r"\in") => 3,
                    false => continue,
                };
                if relation.is_some() {
                    return (None, text);
                }
                relation = Some((at, length));
            }
        }
    }
    let Some((at, length)) = relation else {
        return (None, text);
    };
    let (name, rest) = (text[..at].trim(), text[at + length..].trim());
    if is_name(name) && !rest.is_empty() {
        (Some(name), rest)
    } else {
        (None, text)
    }
}

/// Whether a text can be assigned to: `x`, `x_1`, `f(x)`, `AB`, `\angle ABC`, `\text{Area}`.
fn is_name(text: &str) -> bool {
    let geometry = [r"\angle", r"\overline", r"m\angle"];
    if geometry.iter().any(|name| text.starts_with(name)) {
        return !text.contains(['+', '-', '/', '^']);
    }
    if text.starts_with(r"\text{") || text.starts_with(r"\text {") {
        return text.matches(r"\text").count() == 1 && !text.contains(['+', '-', '/', '^']);
    }
    let length = text.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (letters, rest) = match text.strip_prefix('\\') {
        Some(command) => {
            let length = command.bytes().take_while(u8::is_ascii_alphabetic).count();
            let is_operation = [
                "frac", "sqrt", "sin", "cos", "tan", "log", "ln", "int", "sum", "lim",
            ];
            if length == 0 || is_operation.contains(&&command[..length]) {
                return false;
            }
            ("x", &command[length..])
        }
        None => text.split_at(length),
    };
    let is_symbol = letters.len() == 1
        || (2..=4).contains(&letters.len())
            && letters.bytes().all(|byte| byte.is_ascii_uppercase());
    let is_word = letters.len() > 3 && rest.trim_start().is_empty();
    if is_word {
        return true;
    }
    let rest = rest.trim_start_matches('\'').trim_start();
    let rest = match rest.strip_prefix('_') {
        Some(index) if index.starts_with('{') => {
            index.split_once('}').map_or("?", |(_, rest)| rest)
        }
        Some(index) => index.get(1..).unwrap_or("?"),
        None => rest,
    };
    let rest = rest.trim();
    let is_applied = rest.starts_with('(') && rest.ends_with(')') && rest.matches('(').count() == 1;
    is_symbol && (rest.is_empty() || is_applied)
}

#[cfg(test)]
mod tests {
    use super::super::normal::normal;
    use super::*;

    fn parts(text: &str) -> (Kind, Vec<String>) {
        let shape = shape(&normal(text));
        (
            shape.kind,
            shape.parts.into_iter().map(|part| part.text).collect(),
        )
    }

    #[test]
    fn answers_are_split_into_items() {
        let round = Kind::Bracketed('(', ')');
        let cases: [(&str, Kind, &[&str]); 24] = [
            ("5", Kind::Single, &["5"]),
            ("x + 1", Kind::Single, &["x + 1"]),
            ("1, 2", Kind::List, &["1", "2"]),
            ("1, 2, and 3", Kind::List, &["1", "2", "3"]),
            (r"3 \text{ or } 4", Kind::List, &["3", "4"]),
            ("3 and 4", Kind::List, &["3", "4"]),
            ("1; 2", Kind::List, &["1", "2"]),
            ("1,234, 5", Kind::List, &["1,234", "5"]),
            ("(1, 2)", round, &["1", "2"]),
            (r"\left(1, 2\right]", Kind::Bracketed('(', ']'), &["1", "2"]),
            (r"\langle 1, 2 \rangle", round, &["1", "2"]),
            ("(x + 1)", Kind::Single, &["(x + 1)"]),
            ("(1, 2), (3, 4)", Kind::List, &["(1, 2)", "(3, 4)"]),
            (
                r"(1, 2) \cup (3, 4)",
                Kind::Single,
                &[r"(1, 2) \cup (3, 4)"],
            ),
            (r"\{1, 2\}", Kind::Set, &["1", "2"]),
            (r"\{5\}", Kind::Set, &["5"]),
            (r"\{\}", Kind::Set, &[]),
            (r"\pm 3", Kind::List, &["3", "-3"]),
            (
                r"2 \pm \sqrt{3}",
                Kind::List,
                &[r"2 +\sqrt{3}", r"2 -\sqrt{3}"],
            ),
            (r"x = \pm 3", Kind::List, &["3", "-3"]),
            (r"n \pmod 3", Kind::Single, &[r"n \pmod 3"]),
            (
                r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
                Kind::Matrix(2, 2),
                &["1", "2", "3", "4"],
            ),
            ("1, 2)", Kind::Single, &["1, 2)"]),
            (r"\frac{1,2}{3}", Kind::Single, &[r"\frac{1,2}{3}"]),
        ];
        for (text, kind, expected) in cases {
            let (got, items) = parts(text);
            assert_eq!(
                (got, items),
                (kind, expected.iter().map(|&item| item.to_owned()).collect()),
                "{text}"
            );
        }
    }

    #[test]
    fn names_are_split_from_their_values() {
        let cases = [
            ("x = 5", Some("x"), "5"),
            (r"\theta = 5", Some(r"\theta"), "5"),
            ("f(x) = 2x", Some("f(x)"), "2x"),
            ("a_1 = 5", Some("a_1"), "5"),
            ("AB = 5", Some("AB"), "5"),
            (r"\text{Area} = 5", Some(r"\text{Area}"), "5"),
            ("Area = 5", Some("Area"), "5"),
            (r"\angle ABC = 30", Some(r"\angle ABC"), "30"),
            (r"x \in (1, 2)", Some("x"), "(1, 2)"),
            ("2x = 10", None, "2x = 10"),
            ("x + y = 5", None, "x + y = 5"),
            ("xy = 6", None, "xy = 6"),
            ("x^2 = 4", None, "x^2 = 4"),
            (r"\sqrt{x} = 4", None, r"\sqrt{x} = 4"),
            ("x = y = 5", None, "x = y = 5"),
            ("1 < x", None, "1 < x"),
            (r"x \infty", None, r"x \infty"),
        ];
        for (text, name, rest) in cases {
            assert_eq!(without_name(text), (name, rest), "{text}");
        }
    }
}
