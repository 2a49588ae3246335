//! Translates the regular expressions of a `tokenizer.json` from Oniguruma to fancy-regex.
//!
//! The patterns in these files are written for the Python build of the tokenizers library, which
//! matches them with Oniguruma. Here they run on fancy-regex, where some syntax has another
//! meaning. `a{1,3}+` is possessive in fancy-regex and a repeated repetition in Oniguruma. `$` is
//! the end of the text in fancy-regex and of each line in Oniguruma. `[[:alpha:]]` is ASCII in
//! fancy-regex and all of Unicode in Oniguruma. [`translate`] rewrites a pattern so that it keeps
//! the meaning it has in Oniguruma.
//!
//! Syntax without a counterpart in fancy-regex (`\X`, `(?~…)`, blocks such as `\p{In_Hiragana}`) is
//! left unchanged and rejected when the pattern is compiled. One difference remains: under `(?i)`,
//! Oniguruma treats `ss` and `ß`, or `fi` and `ﬁ`, as equal.
//!
//! Source: `doc/RE` and `doc/SYNTAX.md` of Oniguruma, and the behavior of the Python library with
//! the patterns in `oniguruma_splits.json`.

mod class;

use std::borrow::Cow;

use self::class::WORD_ALONE;

/// Patterns with groups nested deeper than this are left unchanged.
const MAX_DEPTH: usize = 64;

/// The pattern in fancy-regex's syntax; borrowed if nothing changes.
pub(super) fn translate(pattern: &str) -> Cow<'_, str> {
    let mut translator = Translator {
        rest: pattern,
        out: String::with_capacity(pattern.len() + 16),
        extended: false,
        ignores_case: false,
        depth: 0,
    };
    translator.alternatives();
    // An unmatched `)`, which the engine rejects.
    let rest = translator.rest;
    translator.out.push_str(rest);
    if translator.depth > MAX_DEPTH || translator.out == pattern {
        Cow::Borrowed(pattern)
    } else {
        Cow::Owned(translator.out)
    }
}

struct Translator<'a> {
    /// The remaining input.
    rest: &'a str,
    out: String,
    /// Whether whitespace and comments are skipped (`(?x)`).
    extended: bool,
    /// Whether case is ignored (`(?i)`).
    ignores_case: bool,
    depth: usize,
}

impl<'a> Translator<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Consumes `length` bytes, which must end at a character boundary.
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    /// Consumes `text` if it comes next.
    fn eat(&mut self, text: &str) -> bool {
        let is_next = self.rest.starts_with(text);
        if is_next {
            self.take(text.len());
        }
        is_next
    }

    fn copy(&mut self, length: usize) {
        let text = self.take(length);
        self.out.push_str(text);
    }

    /// Translates up to the end of the group or the pattern.
    fn alternatives(&mut self) {
        if self.depth > MAX_DEPTH {
            return;
        }
        loop {
            self.skip_blank();
            match self.peek() {
                None | Some(')') => return,
                Some('|') => self.copy(1),
                Some(_) => {
                    let start = self.out.len();
                    self.atom();
                    if self.depth > MAX_DEPTH {
                        return;
                    }
                    self.quantifiers(start);
                }
            }
        }
    }

    /// Skips whitespace and comments in extended mode.
    fn skip_blank(&mut self) {
        while self.extended {
            match self.peek() {
                Some(' ' | '\t'..='\r') => self.take(1),
                Some('#') => self.take(self.rest.find('\n').unwrap_or(self.rest.len())),
                _ => return,
            };
        }
    }

    fn atom(&mut self) {
        match self.peek() {
            Some('(') => self.group(),
            Some('[') => self.class(),
            Some('\\') => self.escape(),
            // Matches at the start of each line, whatever the flags. No line starts after a final
            // newline.
            Some('^') => self.replace(1, r"(?:\A|(?<=\n)(?!\z))"),
            Some('$') => self.replace(1, "(?m:$)"),
            // Not an interval: those are consumed with the atom before them.
            Some('{') => self.replace(1, r"\{"),
            Some(other) => self.copy(other.len_utf8()),
            None => {}
        }
    }

    /// Consumes `length` bytes and writes `text` instead.
    fn replace(&mut self, length: usize, text: &str) {
        self.take(length);
        self.out.push_str(text);
    }

    fn group(&mut self) {
        if self.eat("(?#") {
            self.take(self.rest.find(')').map_or(self.rest.len(), |end| end + 1));
            return;
        }
        let outside = (self.extended, self.ignores_case);
        let flags = self.flags();
        match flags {
            Some((flags, is_rest)) => {
                self.out.push_str("(?");
                self.out.push_str(&flags);
                self.out.push(':');
                self.inside();
                // `(?i)` applies to the rest of the enclosing group, alternatives included.
                if is_rest || self.eat(")") {
                    self.out.push(')');
                }
                if !is_rest {
                    (self.extended, self.ignores_case) = outside;
                }
            }
            None => {
                let is_name = |text: &str| {
                    text.starts_with("(?<")
                        && !text.starts_with("(?<=")
                        && !text.starts_with("(?<!")
                };
                let name_end = match self.rest {
                    text if is_name(text) => text.find('>'),
                    text if text.starts_with("(?'") => text[3..].find('\'').map(|end| end + 3),
                    _ => None,
                };
                let length = match (name_end, self.rest) {
                    (Some(end), _) => end + 1,
                    (None, text) if text.starts_with("(?<=") || text.starts_with("(?<!") => 4,
                    (None, text) if text.starts_with("(?") => {
                        2 + text[2..].chars().next().map_or(0, char::len_utf8)
                    }
                    (None, _) => 1,
                };
                self.copy(length);
                self.inside();
                if self.eat(")") {
                    self.out.push(')');
                }
                (self.extended, self.ignores_case) = outside;
            }
        }
    }

    fn inside(&mut self) {
        self.depth += 1;
        self.alternatives();
        if self.depth <= MAX_DEPTH {
            self.depth -= 1;
        }
    }

    /// The flags at the start of a group, as fancy-regex names them, and whether they apply to the
    /// rest of the enclosing group. `None` without flags, or with flags that Oniguruma does not
    /// have.
    fn flags(&mut self) -> Option<(String, bool)> {
        let text = self.rest.strip_prefix("(?")?;
        let end = text.find([':', ')'])?;
        let letters = &text[..end];
        let is_rest = text[end..].starts_with(')');
        if (letters.is_empty() && !is_rest) || !letters.chars().all(|c| "imx-".contains(c)) {
            return None;
        }
        let mut flags = String::new();
        let mut is_on = true;
        for letter in letters.chars() {
            match letter {
                '-' => is_on = false,
                'x' => self.extended = is_on,
                letter => {
                    self.ignores_case = if letter == 'i' {
                        is_on
                    } else {
                        self.ignores_case
                    };
                    // In Oniguruma, "multi-line" means that the dot matches newlines.
                    if !is_on && !flags.contains('-') {
                        flags.push('-');
                    }
                    flags.push(if letter == 'm' { 's' } else { letter });
                }
            }
        }
        self.take(2 + end + 1);
        Some((flags, is_rest))
    }

    /// Translates the quantifiers after an atom, whose output starts at `start`.
    fn quantifiers(&mut self, start: usize) {
        let mut is_repeated = false;
        loop {
            self.skip_blank();
            let Some(first) = self.peek() else { return };
            let mut is_atomic = false;
            let quantifier = match first {
                '*' | '+' | '?' => {
                    self.take(1);
                    let mut quantifier = String::from(first);
                    if let Some(kind @ ('?' | '+')) = self.peek() {
                        self.take(1);
                        quantifier.push(kind);
                    }
                    quantifier
                }
                '{' => {
                    let Some((low, high)) = self.interval() else {
                        return;
                    };
                    match high {
                        Some(high) if high < low => {
                            is_atomic = true;
                            format!("{{{high},{low}}}")
                        }
                        // `{2}?` is an optional pair. After any other interval, `?` means lazy.
                        Some(high) if high == low => format!("{{{low}}}"),
                        high => {
                            let lazy = if self.eat("?") { "?" } else { "" };
                            let high = high.map_or(String::new(), |high| high.to_string());
                            format!("{{{low},{high}}}{lazy}")
                        }
                    }
                }
                _ => return,
            };
            if is_repeated {
                self.wrap(start, "(?:");
            }
            self.out.push_str(&quantifier);
            if is_atomic {
                self.wrap(start, "(?>");
            }
            is_repeated = !is_atomic;
        }
    }

    fn wrap(&mut self, start: usize, open: &str) {
        self.out.insert_str(start, open);
        self.out.push(')');
    }

    /// Consumes `{2}`, `{2,}`, `{2,4}` or `{,4}` if that comes next.
    fn interval(&mut self) -> Option<(u32, Option<u32>)> {
        let end = self.rest.find('}')?;
        let inside = &self.rest[1..end];
        let interval = match inside.split_once(',') {
            None => {
                let count = number(inside)?;
                (count, Some(count))
            }
            Some((low, "")) => (number(low)?, None),
            Some(("", high)) => (0, Some(number(high)?)),
            Some((low, high)) => (number(low)?, Some(number(high)?)),
        };
        self.take(end + 1);
        Some(interval)
    }

    /// Translates an escape outside of classes.
    fn escape(&mut self) {
        let Some(letter) = self.rest[1..].chars().next() else {
            return self.copy(1);
        };
        match letter {
            'w' => self.replace(2, &format!("[{WORD_ALONE}]")),
            'W' => self.replace(2, &format!("[^{WORD_ALONE}]")),
            'b' => self.replace(
                2,
                &format!("(?:(?<=[{WORD_ALONE}])(?![{WORD_ALONE}])|(?<![{WORD_ALONE}])(?=[{WORD_ALONE}]))"),
            ),
            'B' => self.replace(
                2,
                &format!("(?:(?<=[{WORD_ALONE}])(?=[{WORD_ALONE}])|(?<![{WORD_ALONE}])(?![{WORD_ALONE}]))"),
            ),
            'Z' => self.replace(2, r"(?=\n?\z)"),
            'R' => self.replace(2, r"(?>\r\n|[\n-\r\x{85}\x{2028}\x{2029}])"),
            'N' => self.replace(2, r"[^\n]"),
            '<' | '>' => self.replace(2, if letter == '<' { "<" } else { ">" }),
            'p' | 'P' => {
                // `(?i)` applies to characters and classes, not to properties.
                let property = self.property(true);
                if self.ignores_case {
                    self.out.push_str("(?-i:");
                    self.out.push_str(&property);
                    self.out.push(')');
                } else {
                    self.out.push_str(&property);
                }
            }
            // Anchors, references and others that fancy-regex either shares or rejects.
            'A' | 'z' | 'G' | 'K' | 'O' | 'X' | 'y' | 'Y' | 'k' | 'g' | '1'..='9' | 'd' | 'D'
            | 's' | 'S' | 'h' | 'H' => self.copy(2),
            _ => {
                let character = self.character(letter);
                self.out.push_str(&character);
            }
        }
    }

    /// Translates an escape for one character, inside or outside of a class.
    fn character(&mut self, letter: char) -> String {
        let code = match letter {
            'x' => return self.hexadecimal(),
            'o' => self.octal_in_braces(),
            '0' => {
                let digits = self.rest[1..].chars().take(3).take_while(|c| c.is_digit(8));
                let length = digits.count();
                u32::from_str_radix(&self.take(1 + length)[1..], 8).ok()
            }
            'c' => self.control(2),
            'C' if self.rest.starts_with(r"\C-") => self.control(3),
            'u' => {
                let length = self
                    .rest
                    .char_indices()
                    .nth(6)
                    .map_or(self.rest.len(), |(at, _)| at);
                return self.take(length).to_owned();
            }
            'a' | 'e' | 'f' | 'n' | 'r' | 't' | 'v' | 'M' => None,
            // No special meaning: the letter itself.
            letter if letter.is_ascii_alphabetic() => {
                self.take(2);
                return letter.to_string();
            }
            _ => None,
        };
        match code {
            Some(code) => format!(r"\x{{{code:X}}}"),
            None => self.take(1 + letter.len_utf8()).to_owned(),
        }
    }

    /// `\x41` and `\x{41}`. `\xC3\xA9` is the character with these UTF-8 bytes.
    fn hexadecimal(&mut self) -> String {
        if self.rest.starts_with(r"\x{") {
            let length = self.rest.find('}').map_or(2, |end| end + 1);
            return self.take(length).to_owned();
        }
        let mut bytes = Vec::new();
        let mut ahead = self.rest;
        while let Some(digits) = ahead.strip_prefix(r"\x") {
            let length = digits
                .chars()
                .take(2)
                .take_while(char::is_ascii_hexdigit)
                .count();
            let Ok(byte) = u8::from_str_radix(&digits[..length], 16) else {
                break;
            };
            bytes.push(byte);
            ahead = &digits[length..];
            if let Ok(text) = std::str::from_utf8(&bytes) {
                self.rest = ahead;
                let code = text.chars().next().map_or(0, u32::from);
                return format!(r"\x{{{code:X}}}");
            }
            if bytes.len() == 4 {
                break;
            }
        }
        self.take(2).to_owned()
    }

    /// `\o{101}`.
    fn octal_in_braces(&mut self) -> Option<u32> {
        let digits = self.rest.strip_prefix(r"\o{")?;
        let end = digits.find('}')?;
        let code = u32::from_str_radix(&digits[..end], 8).ok()?;
        self.take(3 + end + 1);
        Some(code)
    }

    /// `\cI` and `\C-I`, with the letter at byte `at`.
    fn control(&mut self, at: usize) -> Option<u32> {
        let letter = self.rest[at..].chars().next().filter(char::is_ascii)?;
        self.take(at + 1);
        Some(if letter == '?' {
            0x7F
        } else {
            u32::from(letter) & 0x1F
        })
    }
}

/// A count in an interval. Oniguruma's own limit is 100,000.
fn number(digits: &str) -> Option<u32> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests;
