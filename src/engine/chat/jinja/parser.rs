//! Parses tokens into statements. The grammar is Jinja's, plus the tags that transformers adds
//! (`break`, `continue`, `generation`).

use std::sync::Arc;

use super::Failure;
use super::ast::{Body, Expression, For, Kind, Macro, Statement, Suffix, SuffixKind, Target};
use super::lexer::{Kind as Lexeme, Token, tokens};

/// Maximum nesting of expressions and blocks. Deeper ones would overflow the stack.
const DEEPEST: usize = 60;

pub(super) struct Parser {
    pub(super) tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    depth: usize,
    /// Enclosing loops; `break` and `continue` need one.
    loops: usize,
    /// Occurrences of the name `loop` so far.
    loop_names: usize,
}

/// Parses a template.
///
/// # Errors
/// A syntax error, with its line.
pub(super) fn parse(source: &str) -> Result<Body, Failure> {
    let mut parser = Parser {
        tokens: tokens(source)?.into_iter().peekable(),
        depth: 0,
        loops: 0,
        loop_names: 0,
    };
    let (body, _) = parser.body(&[])?;
    Ok(body)
}

impl Parser {
    pub(super) fn line(&mut self) -> usize {
        self.tokens.peek().map_or(0, |token| token.line)
    }

    pub(super) fn peek(&mut self) -> &Lexeme {
        self.tokens.peek().map_or(&Lexeme::End, |token| &token.kind)
    }

    pub(super) fn next(&mut self) -> Lexeme {
        // `End` is never consumed.
        match self.peek() {
            Lexeme::End => Lexeme::End,
            _ => {
                let lexeme = self.tokens.next().map_or(Lexeme::End, |token| token.kind);
                let is_loop = matches!(&lexeme, Lexeme::Name(name) if name == "loop");
                self.loop_names += usize::from(is_loop);
                lexeme
            }
        }
    }

    pub(super) fn fail<T>(&mut self, message: impl Into<String>) -> Result<T, Failure> {
        let line = self.line();
        Err(Failure::syntax(line, message))
    }

    pub(super) fn unexpected<T>(&mut self, expected: &str) -> Result<T, Failure> {
        let found = match self.peek() {
            Lexeme::Name(name) => format!("`{name}`"),
            Lexeme::Sign(sign) => format!("`{sign}`"),
            Lexeme::Text(_) => "a string".to_owned(),
            Lexeme::Int(_) | Lexeme::Float(_) => "a number".to_owned(),
            Lexeme::BlockEnd => "`%}`".to_owned(),
            Lexeme::PrintEnd => "`}}`".to_owned(),
            Lexeme::End => "the end of the template".to_owned(),
            Lexeme::Data(_) | Lexeme::PrintBegin | Lexeme::BlockBegin => "text".to_owned(),
        };
        self.fail(format!("expected {expected}, found {found}"))
    }

    pub(super) fn is_sign(&mut self, sign: &str) -> bool {
        matches!(self.peek(), Lexeme::Sign(found) if *found == sign)
    }

    pub(super) fn is_name(&mut self, name: &str) -> bool {
        matches!(self.peek(), Lexeme::Name(found) if found == name)
    }

    pub(super) fn take_sign(&mut self, sign: &str) -> bool {
        let is_it = self.is_sign(sign);
        if is_it {
            self.next();
        }
        is_it
    }

    pub(super) fn take_name(&mut self, name: &str) -> bool {
        let is_it = self.is_name(name);
        if is_it {
            self.next();
        }
        is_it
    }

    pub(super) fn expect_sign(&mut self, sign: &str) -> Result<(), Failure> {
        match self.take_sign(sign) {
            true => Ok(()),
            false => self.unexpected(&format!("`{sign}`")),
        }
    }

    fn expect_name(&mut self, name: &str) -> Result<(), Failure> {
        match self.take_name(name) {
            true => Ok(()),
            false => self.unexpected(&format!("`{name}`")),
        }
    }

    pub(super) fn name(&mut self) -> Result<String, Failure> {
        match self.peek() {
            Lexeme::Name(_) => match self.next() {
                Lexeme::Name(name) => Ok(name),
                _ => self.unexpected("a name"),
            },
            _ => self.unexpected("a name"),
        }
    }

    fn block_end(&mut self) -> Result<(), Failure> {
        match self.peek() {
            Lexeme::BlockEnd => {
                self.next();
                Ok(())
            }
            _ => self.unexpected("`%}`"),
        }
    }

    /// Runs `read` one nesting level deeper.
    pub(super) fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if self.depth == DEEPEST {
            return self.fail("expressions or blocks are nested too deeply");
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Parses statements up to a tag named in `ends`, whose name is consumed. With no names, parses
    /// to the end of the template.
    fn body(&mut self, ends: &[&str]) -> Result<(Body, String), Failure> {
        let mut body = Body::new();
        loop {
            let line = self.line();
            match self.next() {
                Lexeme::Data(text) => body.push(Statement::Data(text)),
                Lexeme::PrintBegin => {
                    let expression = self.tuple(true, false)?;
                    match self.peek() {
                        Lexeme::PrintEnd => self.next(),
                        _ => return self.unexpected("`}}`"),
                    };
                    body.push(Statement::Print(expression));
                }
                Lexeme::BlockBegin => {
                    let tag = self.name()?;
                    if ends.contains(&tag.as_str()) {
                        return Ok((body, tag));
                    }
                    let statement = self.nested(|parser| parser.statement(&tag, line))?;
                    body.push(statement);
                }
                _ if ends.is_empty() => return Ok((body, String::new())),
                _ => return self.fail(format!("`{{% {} %}}` is missing", ends[ends.len() - 1])),
            }
        }
    }

    /// Parses a body and its end tag.
    fn body_to(&mut self, end: &str) -> Result<Body, Failure> {
        self.block_end()?;
        let (body, _) = self.body(&[end])?;
        self.block_end()?;
        Ok(body)
    }

    fn statement(&mut self, tag: &str, line: usize) -> Result<Statement, Failure> {
        match tag {
            "if" => self.branches(),
            "for" => self.a_loop(),
            "set" => self.set(),
            "macro" => {
                let name = self.name()?;
                let parameters = self.parameters()?;
                let body = self.outside_loops(|parser| parser.body_to("endmacro"))?;
                Ok(Statement::Macro(Arc::new(Macro {
                    name,
                    parameters,
                    body,
                })))
            }
            "call" => {
                let parameters = match self.is_sign("(") {
                    true => self.parameters()?,
                    false => Vec::new(),
                };
                let call = self.expression()?;
                let is_call = matches!(&call.kind, Kind::Suffixed(_, suffixes)
                    if matches!(suffixes.last(), Some(Suffix { kind: SuffixKind::Call(_), .. })));
                if !is_call {
                    return self.fail("expected a call");
                }
                let body = self.outside_loops(|parser| parser.body_to("endcall"))?;
                let name = "caller".to_owned();
                let caller = Macro {
                    name,
                    parameters,
                    body,
                };
                Ok(Statement::Call(call, Arc::new(caller)))
            }
            "filter" => {
                let mut filters = vec![self.filter()?];
                while self.take_sign("|") {
                    filters.push(self.filter()?);
                }
                Ok(Statement::Filter(filters, self.body_to("endfilter")?))
            }
            "with" => {
                let mut names = Vec::new();
                while !matches!(self.peek(), Lexeme::BlockEnd) {
                    if !names.is_empty() {
                        self.expect_sign(",")?;
                    }
                    let target = self.target()?;
                    self.expect_sign("=")?;
                    names.push((target, self.expression()?));
                }
                Ok(Statement::With(names, self.body_to("endwith")?))
            }
            // Marks the text to train on; no effect on rendering.
            "generation" => Ok(Statement::Scope(self.body_to("endgeneration")?)),
            "autoescape" => {
                self.expression()?;
                Ok(Statement::Scope(self.body_to("endautoescape")?))
            }
            "block" => {
                let name = self.name()?;
                while self.take_name("scoped") || self.take_name("required") {}
                self.block_end()?;
                let (body, _) = self.body(&["endblock"])?;
                self.take_name(&name);
                self.block_end()?;
                Ok(Statement::Scope(body))
            }
            "print" => {
                let expression = self.tuple(true, false)?;
                self.block_end()?;
                Ok(Statement::Print(expression))
            }
            "break" | "continue" if self.loops == 0 => {
                Err(Failure::syntax(line, format!("`{tag}` outside of a loop")))
            }
            "break" | "continue" => {
                self.block_end()?;
                Ok(match tag {
                    "break" => Statement::Break,
                    _ => Statement::Continue,
                })
            }
            _ => Err(Failure::syntax(line, format!("unknown tag `{tag}`"))),
        }
    }

    /// A macro's body is not part of the loops around it, so it cannot `break` them.
    fn outside_loops<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let loops = std::mem::take(&mut self.loops);
        let result = read(self);
        self.loops = loops;
        result
    }

    fn branches(&mut self) -> Result<Statement, Failure> {
        let mut branches = Vec::new();
        let mut condition = Some(self.tuple(false, false)?);
        loop {
            self.block_end()?;
            let ends: &[&str] = match condition {
                Some(_) => &["elif", "else", "endif"],
                None => &["endif"],
            };
            let (body, end) = self.body(ends)?;
            branches.push((condition, body));
            condition = match end.as_str() {
                "elif" => Some(self.tuple(false, false)?),
                "else" => None,
                _ => {
                    self.block_end()?;
                    return Ok(Statement::If(branches));
                }
            };
        }
    }

    fn a_loop(&mut self) -> Result<Statement, Failure> {
        let target = self.target()?;
        self.expect_name("in")?;
        let items = self.tuple(false, true)?;
        let condition = match self.take_name("if") {
            true => Some(self.expression()?),
            false => None,
        };
        let is_recursive = self.take_name("recursive");
        self.block_end()?;
        self.loops += 1;
        let names_before = self.loop_names;
        let body = self.body(&["else", "endfor"]);
        self.loops -= 1;
        let (body, end) = body?;
        let otherwise = match end.as_str() {
            "else" => {
                self.block_end()?;
                self.body(&["endfor"])?.0
            }
            _ => Body::new(),
        };
        self.block_end()?;
        Ok(Statement::For(Arc::new(For {
            target,
            items,
            condition,
            is_recursive,
            uses_loop: self.loop_names > names_before,
            body,
            otherwise,
        })))
    }

    fn set(&mut self) -> Result<Statement, Failure> {
        let target = self.target()?;
        if self.take_sign("=") {
            let value = self.tuple(true, false)?;
            self.block_end()?;
            return Ok(Statement::Set(target, value));
        }
        let mut filters = Vec::new();
        while self.take_sign("|") {
            filters.push(self.filter()?);
        }
        Ok(Statement::SetBlock(
            target,
            filters,
            self.body_to("endset")?,
        ))
    }

    /// `a`, `a.b`, `a, b`, `(a, b)`
    fn target(&mut self) -> Result<Target, Failure> {
        self.nested(|parser| {
            let first = parser.one_target()?;
            if !parser.is_sign(",") {
                return Ok(first);
            }
            let mut targets = vec![first];
            while parser.take_sign(",") {
                if !matches!(parser.peek(), Lexeme::Name(name) if name != "in")
                    && !parser.is_sign("(")
                {
                    break;
                }
                targets.push(parser.one_target()?);
            }
            Ok(Target::Tuple(targets))
        })
    }

    fn one_target(&mut self) -> Result<Target, Failure> {
        if self.take_sign("(") {
            let target = self.target()?;
            self.expect_sign(")")?;
            return Ok(target);
        }
        let name = self.name()?;
        match self.take_sign(".") {
            true => Ok(Target::Member(name, self.name()?)),
            false => Ok(Target::Name(name)),
        }
    }

    fn parameters(&mut self) -> Result<Vec<(String, Option<Expression>)>, Failure> {
        self.expect_sign("(")?;
        let mut parameters: Vec<(String, Option<Expression>)> = Vec::new();
        while !self.take_sign(")") {
            if !parameters.is_empty() {
                self.expect_sign(",")?;
                if self.take_sign(")") {
                    break;
                }
            }
            let name = self.name()?;
            let default = match self.take_sign("=") {
                true => Some(self.expression()?),
                false => None,
            };
            if default.is_none()
                && parameters
                    .last()
                    .is_some_and(|(_, default)| default.is_some())
            {
                return self.fail("a parameter without a default follows one with a default");
            }
            parameters.push((name, default));
        }
        Ok(parameters)
    }
}
