//! Splits template source into tokens. Whitespace around tags is trimmed as Jinja does it:
//! `trim_blocks`, `lstrip_blocks`, and `-` or `+` at either end of a tag.

use super::Failure;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Data(String),
    PrintBegin,
    PrintEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Text(String),
    Int(i64),
    Float(f64),
    Sign(&'static str),
    End,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// 1-based.
    pub(super) line: usize,
}

/// Longest first, so that the first prefix match is the right one.
const SIGNS: [&str; 26] = [
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: usize,
    tokens: Vec<Token>,
    /// Whether the last consumed text ended with a newline.
    starts_line: bool,
}

/// Tokenizes a template.
///
/// # Errors
/// A syntax error, with its line.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>, Failure> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut lexer = Lexer {
        source: source.strip_suffix('\n').unwrap_or(&source),
        at: 0,
        line: 1,
        tokens: Vec::new(),
        starts_line: true,
    };
    lexer.template()?;
    lexer.push(Kind::End);
    Ok(lexer.tokens)
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn push(&mut self, kind: Kind) {
        let line = self.line;
        self.tokens.push(Token { kind, line });
    }

    fn skip(&mut self, length: usize) {
        let passed = &self.source[self.at..self.at + length];
        self.line += passed.matches('\n').count();
        if !passed.is_empty() {
            self.starts_line = passed.ends_with('\n');
        }
        self.at += length;
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.skip(rest.len() - rest.trim_start_matches(super::is_space).len());
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, Failure> {
        Err(Failure::syntax(self.line, message))
    }

    fn template(&mut self) -> Result<(), Failure> {
        while !self.rest().is_empty() {
            let rest = self.rest();
            let found = rest.char_indices().find(|(at, c)| {
                *c == '{' && matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'))
            });
            let Some((length, _)) = found else {
                self.push(Kind::Data(rest.to_owned()));
                self.skip(rest.len());
                return Ok(());
            };
            let opener = &rest[length..length + 2];
            self.data(length, opener != "{{");
            let sign = usize::from(self.rest()[2..].starts_with(['-', '+']));
            match opener {
                "{#" => self.comment(2 + sign)?,
                "{%" => match self.raw_begin(2 + sign) {
                    Some((length, trims)) => self.raw(length, trims)?,
                    None => {
                        self.push(Kind::BlockBegin);
                        self.skip(2 + sign);
                        self.expression("%}")?;
                        self.push(Kind::BlockEnd);
                    }
                },
                _ => {
                    self.push(Kind::PrintBegin);
                    // `{{` takes no `+` modifier: in `{{+` it is a plus sign.
                    let minus = usize::from(self.rest()[2..].starts_with('-'));
                    self.skip(2 + minus);
                    self.expression("}}")?;
                    self.push(Kind::PrintEnd);
                }
            }
        }
        Ok(())
    }

    /// Emits the text before a tag, trimmed as the tag's modifier says.
    fn data(&mut self, length: usize, is_block: bool) {
        let data = &self.rest()[..length];
        let data = self.trimmed(data, self.rest()[length + 2..].chars().next(), is_block);
        if !data.is_empty() {
            self.push(Kind::Data(data.to_owned()));
        }
        self.skip(length);
    }

    fn trimmed<'d>(&self, data: &'d str, sign: Option<char>, is_block: bool) -> &'d str {
        match sign {
            Some('-') => data.trim_end_matches(super::is_space),
            Some('+') => data,
            _ if !is_block => data,
            _ => {
                let line = data.rfind('\n').map_or(0, |at| at + 1);
                let begins_line = line > 0 || self.starts_line;
                match begins_line && data[line..].chars().all(super::is_space) {
                    true => &data[..line],
                    false => data,
                }
            }
        }
    }

    fn comment(&mut self, begin: usize) -> Result<(), Failure> {
        let Some(length) = self.rest()[begin..].find("#}") else {
            return self.fail("a comment (`{#`) is not closed");
        };
        let sign = self.rest()[begin..begin + length].chars().next_back();
        self.skip(begin + length + 2);
        self.after_block(sign);
        Ok(())
    }

    /// Skips the whitespace that a block or comment trims after itself.
    fn after_block(&mut self, sign: Option<char>) {
        match sign {
            Some('-') => self.skip_spaces(),
            Some('+') => {}
            _ if self.rest().starts_with('\n') => self.skip(1),
            _ => {}
        }
    }

    /// Length of a `{% raw %}` tag, and whether it trims the text after it.
    fn raw_begin(&self, begin: usize) -> Option<(usize, bool)> {
        let rest = &self.rest()[begin..];
        let inside = rest
            .trim_start_matches(super::is_space)
            .strip_prefix("raw")?;
        let inside = inside.trim_start_matches(super::is_space);
        let trims = inside.starts_with('-');
        let after = inside
            .strip_prefix('-')
            .unwrap_or(inside)
            .strip_prefix("%}")?;
        Some((self.rest().len() - after.len(), trims))
    }

    fn raw(&mut self, begin: usize, trims: bool) -> Result<(), Failure> {
        self.skip(begin);
        if trims {
            self.skip_spaces();
        }
        let rest = self.rest();
        for (length, _) in rest.match_indices("{%") {
            let tag = &rest[length + 2..];
            let sign = tag.chars().next();
            let inside = tag.strip_prefix(['-', '+']).unwrap_or(tag);
            let inside = inside.trim_start_matches(super::is_space);
            let Some(inside) = inside.strip_prefix("endraw") else {
                continue;
            };
            let inside = inside.trim_start_matches(super::is_space);
            let end_sign = inside.chars().next();
            let Some(after) = inside
                .strip_prefix(['-', '+'])
                .unwrap_or(inside)
                .strip_prefix("%}")
            else {
                continue;
            };
            let data = self.trimmed(&rest[..length], sign, true).to_owned();
            self.push(Kind::Data(data));
            self.skip(rest.len() - after.len());
            self.after_block(end_sign);
            return Ok(());
        }
        self.fail("`{% raw %}` is not closed")
    }

    /// The inside of a tag and its closing delimiter.
    fn expression(&mut self, closer: &str) -> Result<(), Failure> {
        let mut open = Vec::new();
        loop {
            self.skip_spaces();
            let rest = self.rest();
            let Some(first) = rest.chars().next() else {
                return self.fail(format!("a tag is not closed: `{closer}` is missing"));
            };
            if open.is_empty() {
                let sign = Some(first).filter(|c| *c == '-' || (*c == '+' && closer == "%}"));
                let length = usize::from(sign.is_some());
                if rest[length..].starts_with(closer) {
                    self.skip(length + 2);
                    match closer {
                        "%}" => self.after_block(sign),
                        _ if sign.is_some() => self.skip_spaces(),
                        _ => {}
                    }
                    return Ok(());
                }
            }
            if first == '\'' || first == '"' {
                self.text(first)?;
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if first.is_alphanumeric() || first == '_' {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                let name = &rest[..end.unwrap_or(rest.len())];
                self.push(Kind::Name(name.to_owned()));
                self.skip(name.len());
            } else {
                let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) else {
                    return self.fail(format!("unexpected `{first}`"));
                };
                match *sign {
                    "(" | "[" | "{" => open.push(*sign),
                    ")" | "]" | "}" => {
                        let expected = match *sign {
                            ")" => "(",
                            "]" => "[",
                            _ => "{",
                        };
                        if open.pop() != Some(expected) {
                            return self.fail(format!("unexpected `{sign}`"));
                        }
                    }
                    _ => {}
                }
                self.push(Kind::Sign(sign));
                self.skip(sign.len());
            }
        }
    }

    fn number(&mut self) -> Result<(), Failure> {
        let rest = self.rest();
        let after_dot = matches!(
            self.tokens.last(),
            Some(Token {
                kind: Kind::Sign("."),
                ..
            })
        );
        let digits = |text: &str| {
            text.len()
                - text
                    .trim_start_matches(|c: char| c.is_ascii_digit() || c == '_')
                    .len()
        };
        let based = [("0x", 16), ("0o", 8), ("0b", 2)]
            .into_iter()
            .find(|(prefix, _)| {
                rest.get(..2)
                    .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            });
        if let Some((_, base)) = based {
            let length = rest[2..].find(|c: char| !c.is_digit(base) && c != '_');
            let length = length.map_or(rest.len(), |at| at + 2);
            let number = i64::from_str_radix(&rest[2..length].replace('_', ""), base);
            let Ok(number) = number else {
                return self.fail("a number is too large");
            };
            self.push(Kind::Int(number));
            self.skip(length);
            return Ok(());
        }
        let mut length = digits(rest);
        let mut is_float = false;
        if !after_dot {
            let fraction = &rest[length..];
            if fraction.starts_with('.') && fraction[1..].starts_with(|c: char| c.is_ascii_digit())
            {
                length += 1 + digits(&fraction[1..]);
                is_float = true;
            }
            let exponent = &rest[length..];
            if exponent.starts_with(['e', 'E']) {
                let sign = usize::from(exponent[1..].starts_with(['+', '-']));
                let count = digits(&exponent[1 + sign..]);
                if count > 0 {
                    length += 1 + sign + count;
                    is_float = true;
                }
            }
        }
        let text = rest[..length].replace('_', "");
        let kind = match is_float {
            true => text.parse().map(Kind::Float).ok(),
            false => text.parse().map(Kind::Int).ok(),
        };
        let Some(kind) = kind else {
            return self.fail("a number is too large");
        };
        self.push(kind);
        self.skip(length);
        Ok(())
    }

    fn text(&mut self, quote: char) -> Result<(), Failure> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest[1..].char_indices().find(|(_, c)| {
            let is_end = *c == quote && !escaped;
            escaped = *c == '\\' && !escaped;
            is_end
        });
        let Some((length, _)) = end else {
            return self.fail("a string is not closed");
        };
        match unescape(&rest[1..=length]) {
            Ok(text) => self.push(Kind::Text(text)),
            Err(message) => return self.fail(message),
        }
        self.skip(length + 2);
        Ok(())
    }
}

/// Python's escapes. Unknown ones are kept as they are, backslash included.
fn unescape(text: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else {
            plain.push('\\');
            break;
        };
        let simple = match c {
            '\n' => Some(""),
            '\\' => Some("\\"),
            '\'' => Some("'"),
            '"' => Some("\""),
            'a' => Some("\u{7}"),
            'b' => Some("\u{8}"),
            'f' => Some("\u{c}"),
            'n' => Some("\n"),
            'r' => Some("\r"),
            't' => Some("\t"),
            'v' => Some("\u{b}"),
            _ => None,
        };
        if let Some(simple) = simple {
            plain.push_str(simple);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let (digits, base, skip) = match c {
            'x' => (2, 16, 1),
            'u' => (4, 16, 1),
            'U' => (8, 16, 1),
            '0'..='7' => {
                let octal = rest
                    .bytes()
                    .take(3)
                    .take_while(|byte| (b'0'..=b'7').contains(byte));
                (octal.count(), 8, 0)
            }
            'N' => return Err("`\\N{…}` in a string is not supported".to_owned()),
            _ => {
                plain.push('\\');
                plain.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        let code = rest
            .get(skip..skip + digits)
            .filter(|code| code.chars().all(|c| c.is_digit(base)));
        let Some(code) = code.and_then(|code| u32::from_str_radix(code, base).ok()) else {
            return Err(format!(
                "a string holds a `\\{c}` without its {digits} digits"
            ));
        };
        rest = &rest[skip + digits..];
        // Python allows lone surrogates in a string; Rust does not, so a pair is combined.
        let low = || {
            rest.strip_prefix("\\u")
                .and_then(|rest| u32::from_str_radix(rest.get(..4)?, 16).ok())
        };
        let code = match (code, low()) {
            (0xd800..=0xdbff, Some(low @ 0xdc00..=0xdfff)) => {
                rest = &rest[6..];
                0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00)
            }
            (code, _) => code,
        };
        match char::from_u32(code) {
            Some(c) => plain.push(c),
            None => return Err(format!("a string holds {code:#x}, not a character")),
        }
    }
    plain.push_str(rest);
    Ok(plain)
}
