//! Character classes and properties such as `[[:alpha:]_]` and `\p{Word}`.

use super::{MAX_DEPTH, Translator};

/// `\w` inside a class, and `[[:word:]]`.
const WORD: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}";

/// `\w` outside of a class: `²`, `³`, `¹`, `¼`, `½` and `¾` as well.
pub(super) const WORD_ALONE: &str =
    r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE}";

/// A named set of characters in Oniguruma.
struct Named {
    /// The inside of a class.
    body: &'static str,
    /// Whether `body` lists the characters that are not in the set.
    is_negated: bool,
}

/// An element of a class, already translated.
enum Item {
    Character(String),
    Set(String),
}

impl Translator<'_> {
    /// Translates `\p{…}`, `\P{…}` or `\p{^…}`, in a class or outside of one (`is_alone`).
    pub(super) fn property(&mut self, is_alone: bool) -> String {
        let is_braced = self.rest[2..].starts_with('{');
        let Some(end) = self.rest.find('}').filter(|_| is_braced) else {
            return self.take(2).to_owned();
        };
        let text = self.take(end + 1);
        let (is_not, name) = match text[3..end].strip_prefix('^') {
            Some(name) => (true, name),
            None => (false, &text[3..end]),
        };
        let is_negated = is_not != text.starts_with(r"\P");
        // Case, spaces, hyphens and underscores are ignored.
        let plain: String = name
            .chars()
            .filter(|c| !matches!(c, ' ' | '_' | '-'))
            .map(|c| c.to_ascii_lowercase())
            .collect();
        let named = match plain.as_str() {
            // The property is the Unicode category, without the symbols of `[[:punct:]]`.
            "punct" => None,
            "posixpunct" => posix("punct"),
            "word" if is_alone => Some(Named {
                body: WORD_ALONE,
                is_negated: false,
            }),
            plain => posix(plain),
        };
        match named {
            Some(named) => named.written(is_negated),
            None if is_not => format!(r"\{}{{{name}}}", if is_negated { 'P' } else { 'p' }),
            None => text.to_owned(),
        }
    }

    /// Translates a class.
    pub(super) fn class(&mut self) {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return;
        }
        self.copy(1);
        if self.eat("^") {
            self.out.push('^');
        }
        // A leading `]` is literal.
        if self.eat("]") {
            self.out.push_str(r"\]");
            self.range();
        }
        while let Some(next) = self.peek() {
            match next {
                ']' => {
                    self.copy(1);
                    self.depth -= 1;
                    return;
                }
                '[' if !self.rest.starts_with("[:") || self.bracket().is_none() => {
                    self.class();
                    if self.depth > MAX_DEPTH {
                        return;
                    }
                }
                '[' => {
                    if let Some((length, set)) = self.bracket() {
                        self.replace(length, &set);
                    }
                }
                '&' if self.rest.starts_with("&&") => self.copy(2),
                _ => match self.item(next) {
                    Item::Set(set) => self.out.push_str(&set),
                    Item::Character(character) => {
                        self.out.push_str(&character);
                        self.range();
                    }
                },
            }
        }
    }

    /// Translates the end of a range, whose start was already written.
    fn range(&mut self) {
        let Some(ahead) = self.rest.strip_prefix('-') else {
            return;
        };
        let Some(next) = ahead.chars().next().filter(|c| !matches!(c, ']' | '[')) else {
            return;
        };
        if ahead.starts_with("&&") {
            return;
        }
        self.take(1);
        match self.item(next) {
            Item::Character(character) => {
                self.out.push('-');
                self.out.push_str(&character);
            }
            // `a-\d` is not a range.
            Item::Set(set) => {
                self.out.push_str(r"\-");
                self.out.push_str(&set);
            }
        }
    }

    /// The length and the set of `[:alpha:]` or `[:^alpha:]` in a class.
    fn bracket(&self) -> Option<(usize, String)> {
        let end = self.rest.find(":]")?;
        let name = self.rest.get(2..end)?;
        let (is_negated, name) = match name.strip_prefix('^') {
            Some(name) => (true, name),
            None => (false, name),
        };
        Some((end + 2, posix(name)?.written(is_negated)))
    }

    fn item(&mut self, next: char) -> Item {
        if next != '\\' {
            self.take(next.len_utf8());
            // In fancy-regex these are class operators, alone or doubled.
            let is_operator = match next {
                '-' | '[' => true,
                '~' => self.rest.starts_with('~') || self.out.ends_with('~'),
                _ => false,
            };
            let escape = if is_operator { r"\" } else { "" };
            return Item::Character(format!("{escape}{next}"));
        }
        match self.rest[1..].chars().next() {
            None => Item::Character(self.take(1).to_owned()),
            Some('d' | 'D' | 's' | 'S' | 'h' | 'H') => Item::Set(self.take(2).to_owned()),
            Some('w') => {
                self.take(2);
                Item::Set(WORD.to_owned())
            }
            Some('W') => {
                self.take(2);
                Item::Set(format!("[^{WORD}]"))
            }
            Some('p' | 'P') => Item::Set(self.property(false)),
            Some('b') => {
                self.take(2);
                Item::Character(r"\x08".to_owned())
            }
            Some(letter) => Item::Character(self.character(letter)),
        }
    }
}

impl Named {
    fn written(&self, is_negated: bool) -> String {
        let caret = if self.is_negated == is_negated {
            ""
        } else {
            "^"
        };
        format!("[{caret}{}]", self.body)
    }
}

/// The sets of `[[:…:]]`, which cover all of Unicode.
fn posix(name: &str) -> Option<Named> {
    let (body, is_negated) = match name {
        "alnum" => (r"\p{Alphabetic}\p{Nd}", false),
        "alpha" => (r"\p{Alphabetic}", false),
        "ascii" => (r"\x00-\x7F", false),
        "blank" => (r"\t\p{Zs}", false),
        "cntrl" => (r"\p{Cc}", false),
        "digit" => (r"\p{Nd}", false),
        "graph" => (r"\s\p{Cc}\p{Cn}", true),
        "lower" => (r"\p{Lowercase}", false),
        "print" => (r"\p{Cc}\p{Cn}\p{Zl}\p{Zp}", true),
        "punct" => (r"\p{P}\p{S}", false),
        "space" => (r"\s", false),
        "upper" => (r"\p{Uppercase}", false),
        "word" => (WORD, false),
        "xdigit" => ("0-9A-Fa-f", false),
        _ => return None,
    };
    Some(Named { body, is_negated })
}
