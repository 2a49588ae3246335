//! Escapes untrusted text for Markdown: names of models, rows, error messages.

use crate::terminal::is_active;

/// Escapes text so that Markdown renders it literally, on one line. Markup gets a backslash;
/// characters that act on a terminal are removed.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut before = ' ';
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let next = characters.peek().copied().unwrap_or(' ');
        let markup = match character {
            '\\' | '`' | '*' | '[' | ']' | '<' | '>' | '|' | '~' | '@' | '$' => true,
            // A list or an underline, at the start only.
            '-' | '+' | '=' => safe.is_empty() && matches!(next, ' ' | '-' | '='),
            // Inside a word it is not emphasis.
            '_' => !(before.is_alphanumeric() && next.is_alphanumeric()),
            // Image, link target, heading, character reference, scheme of a bare link.
            '!' => next == '[',
            '(' => before == ']',
            '#' => before == ' ',
            '&' => next.is_alphanumeric() || next == '#',
            ':' => next == '/',
            '.' => safe.to_ascii_lowercase().ends_with("www"),
            _ => false,
        };
        match character {
            '\n' | '\r' | '\t' => {
                safe.push(' ');
                before = ' ';
                continue;
            }
            hidden if is_active(hidden) || is_invisible(hidden) => continue,
            _ if markup => safe.extend(['\\', character]),
            _ => safe.push(character),
        }
        before = character;
    }
    safe
}

/// Zero-width characters other than bidirectional marks.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped() {
        for (text, shown) in [
            ("it's \"A & B\", 5 %", "it's \"A & B\", 5 %"),
            ("three_step, (95 %), 3–4", "three_step, (95 %), 3–4"),
            ("A <processor>", "A \\<processor\\>"),
            ("[x](https://a.b)", "\\[x\\]\\(https\\://a.b)"),
            ("![x](y)", "\\!\\[x\\]\\(y)"),
            ("Done!", "Done!"),
            (
                "*a* _b_ __c__ `d` ~~e~~",
                "\\*a\\* \\_b\\_ \\_\\_c\\_\\_ \\`d\\` \\~\\~e\\~\\~",
            ),
            ("a|b\nc\\d", "a\\|b c\\\\d"),
            ("@team &lt; &#39;", "\\@team \\&lt; \\&#39;"),
            ("see www.a.b", "see www\\.a.b"),
            ("# a", "\\# a"),
            ("- a - b", "\\- a - b"),
            ("---", "\\---"),
            ("-5", "-5"),
            ("$\\text{a}$", "\\$\\\\text{a}\\$"),
            ("a\n# b", "a \\# b"),
            ("a\u{1b}[2Jb\u{202e}c\u{7}", "a\\[2Jbc"),
            ("model:Q4, 12:30", "model:Q4, 12:30"),
        ] {
            assert_eq!(escaped(text), shown, "{text:?}");
        }
    }
}
