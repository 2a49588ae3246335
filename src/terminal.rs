//! What may be written to a terminal: text from elsewhere, made safe, and progress bars.
//!
//! Text from a model, a server, a script or a file name may contain control characters: escape
//! sequences that clear the screen, set the title or write to the clipboard, and marks that change
//! the text direction. They are shown as escapes, so that they are visible and have no effect.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

static BARS_HIDDEN: AtomicBool = AtomicBool::new(false);

/// Keeps this process from drawing progress bars (`QUIET`).
pub fn hide_bars() {
    BARS_HIDDEN.store(true, Ordering::Relaxed);
}

/// Whether progress bars are hidden.
pub fn bars_are_hidden() -> bool {
    BARS_HIDDEN.load(Ordering::Relaxed)
}

/// Escapes control characters (`\x1b`, `\u{202e}`) other than newline and tab.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |character| {
        is_active(character) && !matches!(character, '\n' | '\t')
    })
}

/// Like [`visible`], but also escapes newlines: the text stays on one line.
pub fn visible_line(text: &str) -> Cow<'_, str> {
    escaped(text, |character| is_active(character) && character != '\t')
}

/// Indents every line after the first, so that untrusted text cannot imitate this program's own
/// lines.
pub fn indented(text: &str, by: &str) -> String {
    text.replace('\n', &format!("\n{by}"))
}

/// Whether a terminal acts on the character instead of showing it: control characters (C0, DEL,
/// C1), bidirectional marks, separators that some terminals treat as line ends, and format
/// characters that hide text (tags, annotations) or change how it is drawn.
pub fn is_active(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{180e}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn escaped(text: &str, is_hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match u32::from(character) {
            _ if !is_hidden(character) => shown.push(character),
            code @ 0..0x80 => shown.push_str(&format!("\\x{code:02x}")),
            code => shown.push_str(&format!("\\u{{{code:x}}}")),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        for (text, shown) in [
            (
                "plain, ä, 中, 🧪, a\u{200d}b",
                "plain, ä, 中, 🧪, a\u{200d}b",
            ),
            ("a\tb\nc", "a\tb\nc"),
            ("\u{1b}[2J\u{7}", "\\x1b[2J\\x07"),
            ("a\rb\0c\u{7f}", "a\\x0db\\x00c\\x7f"),
            ("\u{9b}31m\u{85}", "\\u{9b}31m\\u{85}"),
            (
                "\u{202e}txt.exe\u{2069}\u{200f}",
                "\\u{202e}txt.exe\\u{2069}\\u{200f}",
            ),
            ("a\u{2028}b", "a\\u{2028}b"),
            (
                "\u{feff}a\u{fff9}b\u{e0041}c\u{206a}",
                "\\u{feff}a\\u{fff9}b\\u{e0041}c\\u{206a}",
            ),
        ] {
            assert_eq!(visible(text), shown, "{text:?}");
        }
        assert!(matches!(visible("a\nb"), Cow::Borrowed(_)));
        assert_eq!(visible_line("a\nb\tc"), "a\\x0ab\tc");
        for code in (0..0x20).chain(0x7f..0xa0).filter_map(char::from_u32) {
            let passes = matches!(code, '\n' | '\t');
            assert_eq!(
                visible(&code.to_string()).chars().any(is_active),
                passes,
                "{code:?}"
            );
        }
    }

    #[test]
    fn continuation_lines_are_indented() {
        assert_eq!(indented("a\n[TIMING] b", "  "), "a\n  [TIMING] b");
    }
}
