//! As much of Python's syntax as is needed to find a program in text: the extent of strings and comments, and
//! which names a piece of code uses and defines. Mistakes here surface when Python runs the program.

use std::collections::BTreeSet;

/// What is open at the end of a line: a multi-line string, or brackets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct State {
    quote: Option<Quote>,
    depth: usize,
}

/// A multi-line string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quote {
    mark: char,
    formatted: bool,
}

impl State {
    pub(super) fn is_in_string(self) -> bool {
        self.quote.is_some()
    }

    pub(super) fn is_in_statement(self) -> bool {
        self.quote.is_some() || self.depth > 0
    }

    /// Scans a line and returns its code, with strings and comments blanked. The content of f-strings is
    /// kept, since it uses names.
    pub(super) fn read(&mut self, line: &str) -> String {
        let mut code = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(next) = rest.chars().next() {
            if let Some(quote) = self.quote {
                let triple = [quote.mark; 3].iter().collect::<String>();
                let (inside, after, closed) = until(rest, &triple);
                code.push_str(if quote.formatted { inside } else { " " });
                rest = after;
                if closed {
                    self.quote = None;
                }
                continue;
            }
            match next {
                '#' => break,
                '"' | '\'' => {
                    let prefix = code.chars().rev().take_while(char::is_ascii_alphabetic);
                    let formatted = prefix.take(2).any(|letter| "fF".contains(letter));
                    let triple = [next; 3].iter().collect::<String>();
                    if let Some(after) = rest.strip_prefix(&triple) {
                        let mark = next;
                        self.quote = Some(Quote { mark, formatted });
                        rest = after;
                    } else {
                        let (inside, after, _) = until(&rest[1..], &next.to_string());
                        code.push_str(if formatted { inside } else { " " });
                        rest = after;
                    }
                    // A string literal is a value, whatever its content.
                    code.push(' ');
                    continue;
                }
                '(' | '[' | '{' => self.depth += 1,
                ')' | ']' | '}' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            code.push(next);
            rest = &rest[next.len_utf8()..];
        }
        code
    }
}

/// Splits at `end`: the text before it, the text after it, and whether it was found. A backslash escapes the
/// next character.
fn until<'a>(text: &'a str, end: &str) -> (&'a str, &'a str, bool) {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if letter == '\\' {
            escaped = true;
        } else if text[at..].starts_with(end) {
            return (&text[..at], &text[at + end.len()..], true);
        }
    }
    (text, "", false)
}

/// Whether the code defines one of the names at module level, as a function or a variable.
pub(super) fn defines(code: &str, names: &[&str]) -> bool {
    let found = Names::of(code);
    names.iter().any(|name| found.made.contains(name))
}

/// The names in a piece of code.
#[derive(Debug, Default)]
pub(super) struct Names<'a> {
    used: BTreeSet<&'a str>,
    /// Names bound anywhere in the code.
    bound: BTreeSet<&'a str>,
    /// Names defined at module level: functions, classes, variables, imports.
    pub(super) defined: BTreeSet<&'a str>,
    /// Those of `defined` that are functions or variables.
    made: BTreeSet<&'a str>,
    /// Whether it has a `from ... import *`.
    pub(super) star: bool,
}

impl<'a> Names<'a> {
    pub(super) fn of(code: &'a str) -> Self {
        let mut names = Self::default();
        let mut state = State::default();
        let mut statement: Vec<Token<'a>> = Vec::new();
        let mut indent = 0;
        let mut in_scope = false;
        for line in code.lines() {
            if !state.is_in_statement() {
                names.statement(&statement, in_scope);
                statement.clear();
                indent = line.len() - line.trim_start().len();
            }
            let was_string = state.is_in_string();
            let blanked = state.read(line);
            if statement.is_empty() && !was_string && !blanked.trim().is_empty() {
                let first = blanked.split_whitespace().next().unwrap_or_default();
                let opens_scope =
                    ["def", "class", "async"].contains(&first) || first.starts_with('@');
                if indent == 0 {
                    in_scope = opens_scope;
                }
                statement.push(Token::Indent(indent));
            }
            tokens(line, &blanked, &mut statement);
        }
        names.statement(&statement, in_scope);
        names
    }

    /// Names that must be defined elsewhere, unless they are builtins.
    pub(super) fn needed(&self) -> impl Iterator<Item = &'a str> {
        self.used.difference(&self.bound).copied()
    }

    /// `in_scope`: the statement is inside a function or a class, or begins one.
    fn statement(&mut self, tokens: &[Token<'a>], in_scope: bool) {
        let Some((Token::Indent(indent), tokens)) = tokens.split_first() else {
            return;
        };
        let of_module = *indent == 0 || !in_scope;
        let word = |at: usize| match tokens.get(at) {
            Some(Token::Word(word, _)) => *word,
            _ => "",
        };
        let symbol = |at: usize| match tokens.get(at) {
            Some(Token::Symbol(symbol)) => *symbol,
            _ => ' ',
        };
        let begin = usize::from(word(0) == "async");
        if ["import", "from"].contains(&word(0)) {
            let imports = tokens.iter().position(|token| token.is_word("import"));
            let start = imports.map_or(1, |at| at + 1);
            for at in start..tokens.len() {
                // `import a.b` binds `a`, `import a as b` binds `b`.
                let name = word(at);
                let is_part = at > start && symbol(at - 1) == '.';
                if !name.is_empty() && name != "as" && word(at + 1) != "as" && !is_part {
                    self.bind(name, of_module, false);
                }
                self.star |= symbol(at) == '*';
            }
            return;
        }
        let is_definition = ["def", "class"].contains(&word(begin));
        if is_definition {
            self.bind(word(begin + 1), *indent == 0, word(begin) == "def");
        }
        // Everything before the last `=` outside of brackets is assigned to.
        let in_brackets = depths(tokens);
        let assigned = (0..tokens.len()).rev().find(|at| {
            let compared = |at| "=!<>".contains(symbol(at));
            let equals = symbol(*at) == '=' && in_brackets[*at] == 0;
            equals && !compared(at + 1) && (*at == 0 || !compared(at - 1))
        });
        let assigned = assigned.filter(|_| !is_definition);
        let mut targets: Option<&str> = None;
        for at in 0..tokens.len() {
            let Token::Word(name, attribute) = tokens[at] else {
                let ends = match targets {
                    Some("lambda") => symbol(at) == ':',
                    _ => false,
                };
                if ends {
                    targets = None;
                }
                continue;
            };
            if KEYWORDS.contains(&name) {
                targets = match name {
                    "for" | "lambda" => Some(name),
                    "in" => None,
                    _ => targets.filter(|_| name != "else"),
                };
                continue;
            }
            if attribute {
                continue;
            }
            let before = if at == 0 { ' ' } else { symbol(at - 1) };
            let is_parameter = is_definition
                && word(begin) == "def"
                && in_brackets[at] == 1
                && "(,*".contains(before);
            let is_target = assigned.is_some_and(|end| at < end)
                && before != ':'
                && !"[.(".contains(symbol(at + 1))
                && in_brackets[at] <= 1
                && !(0..at).any(|at| symbol(at) == '[' && in_brackets[at] == 0 && at > 0);
            let is_named = at > 0 && word(at - 1) == "as";
            let is_walrus = symbol(at + 1) == ':' && symbol(at + 2) == '=';
            let is_loop =
                targets.is_some() && (targets == Some("for") || "=,:".contains(symbol(at + 1)));
            if is_parameter || is_target || is_named || is_walrus || is_loop {
                let made = is_target && *indent == 0;
                self.bind(name, of_module && !is_parameter && !is_definition, made);
            } else if !(is_definition && at == begin + 1) {
                self.used.insert(name);
            }
        }
    }

    fn bind(&mut self, name: &'a str, of_module: bool, made: bool) {
        if name.is_empty() {
            return;
        }
        self.bound.insert(name);
        if of_module {
            self.defined.insert(name);
            if made {
                self.made.insert(name);
            }
        }
    }
}

/// The bracket nesting depth of each token.
fn depths(tokens: &[Token<'_>]) -> Vec<usize> {
    let mut depth = 0_usize;
    let depths = tokens.iter().map(|token| match token {
        Token::Symbol('(' | '[' | '{') => {
            depth += 1;
            depth - 1
        }
        Token::Symbol(')' | ']' | '}') => {
            depth = depth.saturating_sub(1);
            depth
        }
        _ => depth,
    });
    depths.collect()
}

#[derive(Debug, Clone, Copy)]
enum Token<'a> {
    /// Indentation of the statement.
    Indent(usize),
    /// A name or keyword, and whether it follows a dot.
    Word(&'a str, bool),
    Symbol(char),
}

impl Token<'_> {
    fn is_word(self, wanted: &str) -> bool {
        matches!(self, Self::Word(word, _) if word == wanted)
    }
}

/// Appends the tokens of a line's code. Names are looked up in `line`, which outlives `code`.
fn tokens<'a>(line: &'a str, code: &str, into: &mut Vec<Token<'a>>) {
    let is_name = |letter: char| letter == '_' || letter.is_alphanumeric();
    let mut searched = 0;
    let mut rest = code;
    let mut last = ' ';
    while let Some(next) = rest.chars().next() {
        let length = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        if length == 0 {
            if !next.is_whitespace() {
                into.push(Token::Symbol(next));
                last = next;
            }
            rest = &rest[next.len_utf8()..];
            continue;
        }
        let word = &rest[..length];
        rest = &rest[length..];
        if next.is_numeric() {
            last = '0';
            continue;
        }
        if let Some(at) = line[searched..].find(word) {
            searched += at;
            into.push(Token::Word(&line[searched..searched + length], last == '.'));
            searched += length;
        }
        last = 'a';
    }
}

const KEYWORDS: &[&str] = &[
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue",
    "def", "del", "elif", "else", "except", "finally", "for", "from", "global", "if", "import",
    "in", "is", "lambda", "nonlocal", "not", "or", "pass", "raise", "return", "try", "while",
    "with", "yield",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(code: &str) -> String {
        Names::of(code).needed().collect::<Vec<_>>().join(" ")
    }

    fn defined(code: &str) -> String {
        Names::of(code)
            .defined
            .into_iter()
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn strings_and_comments_are_blanked() {
        let mut state = State::default();
        assert_eq!(state.read("a = 'x # y' # z").trim(), "a =");
        state.read("b = '''it's");
        assert!(state.is_in_string());
        assert_eq!(state.read("```").trim(), "");
        assert_eq!(state.read("''' + c").trim(), "+ c");
        assert!(!state.is_in_statement());
        state.read("d = (1, # (");
        assert!(state.is_in_statement());
        state.read(")");
        assert!(!state.is_in_statement());
        assert!(state.read(r#"e = "\"" + g"#).contains('g'));
        assert!(state.read("f'{h}'").contains('h'));
    }

    #[test]
    fn used_but_undefined_names_are_needed() {
        let cases = [
            (
                "def f(a, b=c, *d, e: int = 0): return a + b + d + e + g",
                "c g int",
            ),
            ("x = y\nprint(x.z, k=w)", "k print w y"),
            ("[i + j for i in range(n)]", "j n range"),
            ("for a, b in c:\n    d = a + b", "c"),
            (
                "import os.path as p, sys\nfrom m import (q,\n  r as s)\np, sys, q, s, r",
                "r",
            ),
            (
                "with open(f) as g: pass\nt[u] = v\nw.x = 1",
                "f open t u v w",
            ),
            ("h = lambda a, b: a + o", "o"),
            ("if (n := m) > 1: n", "m"),
            ("a, (b, c) = d", "d"),
            ("'''x'''\nf'{y}'", "f y"),
        ];
        for (code, expected) in cases {
            let expected = expected.replace("f y", "y");
            let got = needed(code).replace("f y", "y");
            assert_eq!(got, expected, "{code}");
        }
    }

    #[test]
    fn module_level_definitions_are_separated_from_nested_ones() {
        let code = "import numpy as np\nfrom a import b\nX: int = 1\ny = z = 2\n@w\ndef f():\n    q = 1\n\
                    class C:\n    def m(self): pass\ntry:\n    import r\nexcept ImportError:\n    r = None\n";
        assert_eq!(defined(code), "C X b f np r y z");
        for (code, is_there) in [
            ("def solve():\n    pass", true),
            ("async def solve(): pass", true),
            ("solve = f", true),
            ("class A:\n    def solve(self): pass", false),
            ("print(solve())", false),
            ("from x import solve", false),
            ("'''\ndef solve(): pass\n'''", false),
            ("# def solve(): pass", false),
            ("x = [\n  solve == 1]", false),
        ] {
            assert_eq!(defines(code, &["other", "solve"]), is_there, "{code}");
        }
    }
}
