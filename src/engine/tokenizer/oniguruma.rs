//! Regular expressions of a `tokenizer.json`, read as Oniguruma reads them.
//!
//! The patterns in these files are written for the tokenizers library as Python has it, which
//! matches them with Oniguruma. Here they run on fancy-regex, where some of the same letters mean
//! something else: `a{1,3}+` is possessive there and a repeated repeat in Oniguruma, `$` is the end
//! of the text there and of each line in Oniguruma, `[[:alpha:]]` is ASCII there and all of Unicode
//! in Oniguruma. [`translate`] writes a pattern so that it means here what it means there.
//!
//! What fancy-regex has no counterpart for (`\X`, `(?~…)`, blocks such as `\p{In_Hiragana}`) is
//! left as it is, and refused when the pattern is compiled. One difference stays: under `(?i)`,
//! Oniguruma takes `ss` and `ß`, or `fi` and `ﬁ`, for equal.
//!
//! Source: `doc/RE` and `doc/SYNTAX.md` of Oniguruma, and what the Python library does with the
//! patterns of `oniguruma_splits.json`.

mod class;

use std::borrow::Cow;

use self::class::WORD_ALONE;

/// Patterns with groups nested deeper than this are left as they are.
const MAX_DEPTH: usize = 64;

/// The same pattern in the syntax of fancy-regex. Borrowed where both read it alike.
pub(super) fn translate(pattern: &str) -> Cow<'_, str> {
    let mut translator = Translator {
        rest: pattern,
        out: String::with_capacity(pattern.len() + 16),
        extended: false,
        ignores_case: false,
        depth: 0,
    };
    translator.alternatives();
    // A parenthesis too many: refused by the engine.
    let rest = translator.rest;
    translator.out.push_str(rest);
    if translator.depth > MAX_DEPTH || translator.out == pattern {
        Cow::Borrowed(pattern)
    } else {
        Cow::Owned(translator.out)
    }
}

struct Translator<'a> {
    /// What is left to read.
    rest: &'a str,
    out: String,
    /// Whether white space and comments are skipped (`(?x)`).
    extended: bool,
    /// Whether case does not count (`(?i)`).
    ignores_case: bool,
    depth: usize,
}

impl<'a> Translator<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Reads this many bytes, which end at a character's boundary.
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    /// Reads the text if it comes next.
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

    /// Up to the end of the group, or of the pattern.
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

    /// White space and comments, where the pattern is written with them.
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
            // Of a line, whatever the flags; none begins behind the last line's end.
            Some('^') => self.replace(1, r"(?:\A|(?<=\n)(?!\z))"),
            Some('$') => self.replace(1, "(?m:$)"),
            // No interval, or it would have been read as one.
            Some('{') => self.replace(1, r"\{"),
            Some(other) => self.copy(other.len_utf8()),
            None => {}
        }
    }

    /// Reads this many bytes and writes `text` for them.
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
                // `(?i)` holds for the rest of the group that it stands in, alternatives included.
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

    /// The flags that a group begins with, as fancy-regex names them, and whether they are for
    /// the rest of the group around it. `None` where it has none, or others than Oniguruma's.
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
                    // What Oniguruma calls "multi-line" is a dot that takes line ends.
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

    /// The repeats behind an atom, which was written from `start` on.
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
                        // `{2}?` is an optional pair; any other is as short as can be.
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

    /// `{2}`, `{2,}`, `{2,4}` or `{,4}`, if that is what comes next.
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

    /// An escape outside of classes.
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
                // `(?i)` is for letters and for classes, not for properties.
                let property = self.property(true);
                if self.ignores_case {
                    self.out.push_str("(?-i:");
                    self.out.push_str(&property);
                    self.out.push(')');
                } else {
                    self.out.push_str(&property);
                }
            }
            // Anchors, references and others that fancy-regex either shares or refuses.
            'A' | 'z' | 'G' | 'K' | 'O' | 'X' | 'y' | 'Y' | 'k' | 'g' | '1'..='9' | 'd' | 'D'
            | 's' | 'S' | 'h' | 'H' => self.copy(2),
            _ => {
                let character = self.character(letter);
                self.out.push_str(&character);
            }
        }
    }

    /// An escape that stands for one character, in a class or out of it, as fancy-regex writes it.
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
            // No meaning of its own: the letter itself.
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

    /// `\x41` and `\x{41}`; `\xC3\xA9` is the character that these bytes are.
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

    /// `\cI` and `\C-I`, whose letter begins at this byte.
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

/// A count of an interval. Oniguruma's own limit is 100,000.
fn number(digits: &str) -> Option<u32> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests;
