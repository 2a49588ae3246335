//! Finds the answer in a response: `\boxed{…}` and its variants as models write them.

use std::borrow::Cow;

/// The commands that box an answer.
const COMMANDS: [&str; 2] = [r"\boxed", r"\fbox"];

/// The content of boxes that a model only talks about.
const PLACEHOLDERS: [&str; 8] = [
    "...", "…", r"\ldots", r"\dots", r"\cdots", r"\cdot", r"\square", "?",
];

/// The text allowed between boxes that form one answer.
const CONNECTIVES: [&str; 5] = ["", ",", ";", "and", "or"];

/// Byte offsets of a box: start of its command, range of its content, and end.
#[derive(Debug, Clone, Copy)]
struct Boxed {
    start: usize,
    content: (usize, usize),
    end: usize,
}

/// The trimmed content of the last non-empty box in `text`.
///
/// Recognizes `\boxed{…}`, `\boxed {…}`, `\boxed 5` and `\fbox{…}`, with nested braces. A box that is never
/// closed does not count: the response was cut off.
pub fn last_boxed(text: &str) -> Option<&str> {
    let boxes = boxes(text);
    let last = boxes.last()?;
    Some(content(text, last))
}

/// The answer of a response: the last box, or several last boxes separated only by a comma, *and* or *or*
/// (`\boxed{2} or \boxed{3}` is `2, 3`).
pub fn given_answer(text: &str) -> Option<Cow<'_, str>> {
    let boxes = boxes(text);
    let mut first = boxes.len().checked_sub(1)?;
    while first > 0 && are_connected(text, &boxes[first - 1], &boxes[first]) {
        first -= 1;
    }
    let mut contents: Vec<&str> = boxes[first..]
        .iter()
        .map(|one| content(text, one))
        .collect();
    contents.dedup();
    match contents[..] {
        [only] => Some(Cow::Borrowed(only)),
        _ => Some(Cow::Owned(contents.join(", "))),
    }
}

fn content<'a>(text: &'a str, boxed: &Boxed) -> &'a str {
    text[boxed.content.0..boxed.content.1].trim()
}

fn are_connected(text: &str, one: &Boxed, next: &Boxed) -> bool {
    let Some(between) = text.get(one.end..next.start) else {
        // The second box is inside the first.
        return false;
    };
    // Allows for `$ \text{ and } $`.
    if between.len() > 40 {
        return false;
    }
    let between = between.replace(r"\text", "").to_lowercase();
    let word: String = (between.chars())
        .filter(|c| !c.is_whitespace() && !"${}()[]\\".contains(*c))
        .collect();
    let word = word.strip_prefix(',').unwrap_or(&word);
    CONNECTIVES.contains(&word)
}

/// All closed, non-empty boxes, in the order of their starts.
fn boxes(text: &str) -> Vec<Boxed> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    // Open braces. For that of a box: where its command and its content start.
    let mut open: Vec<Option<(usize, usize)>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                let Some(after) = after_command(text, at) else {
                    // `\{` and `\}` are text.
                    at += 2;
                    continue;
                };
                let begin = skip_spaces(bytes, after);
                if bytes.get(begin) == Some(&b'{') {
                    open.push(Some((at, begin + 1)));
                    at = begin + 1;
                } else {
                    let end = bare_end(text, begin);
                    if end > begin {
                        found.push(Boxed {
                            start: at,
                            content: (begin, end),
                            end,
                        });
                    }
                    at = end.max(after);
                }
            }
            b'{' => {
                open.push(None);
                at += 1;
            }
            b'}' => {
                if let Some(Some((start, begin))) = open.pop() {
                    found.push(Boxed {
                        start,
                        content: (begin, at),
                        end: at + 1,
                    });
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    found.retain(|one| holds_something(content(text, one)));
    found.sort_by_key(|one| one.start);
    found
}

/// The end of the box command that starts at `at`, if any.
fn after_command(text: &str, at: usize) -> Option<usize> {
    let rest = &text[at..];
    let command = COMMANDS
        .iter()
        .find(|command| rest.starts_with(**command))?;
    let after = at + command.len();
    // `\boxedx` is a different command.
    let next = text[after..].chars().next();
    (!next.is_some_and(|next| next.is_ascii_alphabetic())).then_some(after)
}

fn skip_spaces(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// The end of the content of a box without braces: the next space, or the end of the formula or the
/// sentence. TeX would take one character, but models mean the whole number.
fn bare_end(text: &str, begin: usize) -> usize {
    let mut depth = 0_usize;
    let mut previous = ' ';
    let mut end = text.len();
    for (offset, c) in text[begin..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                end = begin + offset;
                break;
            }
            '}' => depth -= 1,
            _ if depth > 0 => {}
            ')' | ']' if previous == '\\' => {
                end = begin + offset - 1;
                break;
            }
            '$' => {
                end = begin + offset;
                break;
            }
            c if c.is_whitespace() => {
                end = begin + offset;
                break;
            }
            _ => {}
        }
        previous = c;
    }
    let content = text[begin..end].trim_end_matches(['.', ',', ';', ':', '!']);
    begin + content.len()
}

/// Whether a box holds more than spaces and placeholders.
fn holds_something(content: &str) -> bool {
    const SPACES: [&str; 10] = [
        r"\text",
        r"\phantom",
        r"\mathrm",
        r"\quad",
        r"\,",
        r"\;",
        r"\:",
        r"\!",
        r"\ ",
        "~",
    ];
    if content.is_empty() || PLACEHOLDERS.contains(&content) {
        return false;
    }
    if content.len() > 40 {
        return true;
    }
    let spaces = |text: String, space: &&str| text.replace(*space, "");
    let left = SPACES.iter().fold(content.to_owned(), spaces);
    let left = left.trim_matches(['{', '}', ' ', '\\']);
    !left.is_empty() && !PLACEHOLDERS.contains(&left)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_complete_box_is_taken() {
        let cases = [
            ("none", None),
            (r"\boxed{1} and \boxed{ 2 }.", Some("2")),
            (r"\boxed{\frac{1}{2}}", Some(r"\frac{1}{2}")),
            (r"\boxed{3} then \boxed{4", Some("3")),
            (r"\boxed{\{1, 2\}}", Some(r"\{1, 2\}")),
            (r"\boxed{a\}", None),
            (r"outer \boxed{1 + \boxed{2}}", Some("2")),
            (r"\boxed{\boxed{2}}", Some("2")),
            (r"$\boxed{\text{a } b}$", Some(r"\text{a } b")),
            (r"{\boxed{7}} } \boxed{8}", Some("8")),
        ];
        for (text, expected) in cases {
            assert_eq!(last_boxed(text), expected, "{text}");
        }
    }

    #[test]
    fn boxes_are_found_in_all_their_forms() {
        let cases = [
            (r"It is $\boxed 2$.", Some("2")),
            (r"It is $\boxed12$.", Some("12")),
            (r"It is \(\boxed -3\).", Some("-3")),
            (r"It is \boxed\frac{1}{2}.", Some(r"\frac{1}{2}")),
            ("It is \\boxed \n{2}.", Some("2")),
            (r"It is \fbox{2}.", Some("2")),
            (r"It is \fbox 2", Some("2")),
            (r"\boxedx{3}", None),
            (r"cut off: \boxed", None),
            (r"cut off: \boxed{12", None),
        ];
        for (text, expected) in cases {
            assert_eq!(last_boxed(text), expected, "{text}");
        }
    }

    #[test]
    fn empty_boxes_are_ignored() {
        let cases = [
            (r"It is \boxed{5}. (I used \boxed{} as asked.)", Some("5")),
            (
                r"\boxed{5}, in \boxed{ } or \boxed{\text{ }} or \boxed{\,}",
                Some("5"),
            ),
            (
                r"\boxed{5}. I write \boxed{...} and \boxed{\ldots}.",
                Some("5"),
            ),
            (r"\boxed{}", None),
            (r"\boxed{{}}", None),
        ];
        for (text, expected) in cases {
            assert_eq!(last_boxed(text), expected, "{text}");
        }
    }

    #[test]
    fn connected_boxes_form_one_answer() {
        let cases = [
            (r"It is \boxed{2} or \boxed{3}.", "2, 3"),
            (r"$x=\boxed{2}$ and $\boxed{3}$", "2, 3"),
            (r"\boxed{1}, \boxed{2}, and \boxed{3}", "1, 2, 3"),
            (r"\boxed{1} \text{ or } \boxed{2}", "1, 2"),
            (r"\boxed{4} \boxed{4}", "4"),
            (r"First \boxed{2}. Then, corrected, \boxed{3}", "3"),
            (r"\boxed{2}. \boxed{3}", "3"),
            (r"\boxed{1 + \boxed{2}}", "2"),
        ];
        for (text, expected) in cases {
            assert_eq!(given_answer(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(given_answer("none"), None);
    }

    #[test]
    fn many_open_boxes_take_linear_time() {
        let text = r"\boxed{".repeat(150_000);
        assert_eq!(given_answer(&text), None);
        let text = format!("{text}1{}", "}".repeat(150_000));
        assert_eq!(given_answer(&text).as_deref(), Some("1"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in r"(\\boxed|\\fbox|[\\{}$ .,½a1]){0,30}") {
            let last = last_boxed(&text);
            prop_assert_eq!(last.is_some(), given_answer(&text).is_some());
        }
    }
}
