//! Parses tokens into expressions. Precedence, from lowest: `if else`, `or`, `and`, `not`,
//! comparisons, `+ -`, `~`, `* / // %`, `**`, signs; then members, calls, filters and tests.

use std::sync::Arc;

use super::Failure;
use super::ast::{Argument, Call, Comparison, Expression, Kind, Operator, Suffix, SuffixKind};
use super::lexer::Kind as Lexeme;
use super::parser::Parser;
use super::text::Text;

impl Parser {
    pub(super) fn expression(&mut self) -> Result<Expression, Failure> {
        self.nested(Self::choice)
    }

    /// Parses an expression, or a tuple if commas follow. In the head of a loop (`in_loop`), `if`
    /// and `recursive` end it, and `with_choice` says whether `if else` is allowed.
    pub(super) fn tuple(
        &mut self,
        with_choice: bool,
        in_loop: bool,
    ) -> Result<Expression, Failure> {
        let line = self.line();
        let read = |parser: &mut Self| match with_choice || !in_loop {
            true => parser.expression(),
            false => parser.nested(Self::or),
        };
        let first = read(self)?;
        if !self.is_sign(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.take_sign(",") {
            let ends = matches!(
                self.peek(),
                Lexeme::PrintEnd | Lexeme::BlockEnd | Lexeme::Sign(")") | Lexeme::End
            ) || (in_loop && (self.is_name("if") || self.is_name("recursive")));
            if ends {
                break;
            }
            items.push(read(self)?);
        }
        let kind = Kind::Tuple(items);
        Ok(Expression { line, kind })
    }

    fn choice(&mut self) -> Result<Expression, Failure> {
        let line = self.line();
        let mut then = self.or()?;
        while self.take_name("if") {
            let condition = self.or()?;
            let otherwise = match self.take_name("else") {
                true => Some(self.expression()?),
                false => None,
            };
            let kind = Kind::Choice(Box::new((then, condition, otherwise)));
            then = Expression { line, kind };
        }
        Ok(then)
    }

    /// One operand, or several separated by the keyword `name`.
    fn several(
        &mut self,
        name: &str,
        read: fn(&mut Self) -> Result<Expression, Failure>,
        kind: fn(Vec<Expression>) -> Kind,
    ) -> Result<Expression, Failure> {
        let line = self.line();
        let first = read(self)?;
        if !self.is_name(name) {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.take_name(name) {
            operands.push(read(self)?);
        }
        let kind = kind(operands);
        Ok(Expression { line, kind })
    }

    fn or(&mut self) -> Result<Expression, Failure> {
        self.several("or", Self::and, Kind::Or)
    }

    fn and(&mut self) -> Result<Expression, Failure> {
        self.several("and", Self::not, Kind::And)
    }

    fn not(&mut self) -> Result<Expression, Failure> {
        let line = self.line();
        if self.take_name("not") {
            let operand = self.nested(Self::not)?;
            let kind = Kind::Not(Box::new(operand));
            return Ok(Expression { line, kind });
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expression, Failure> {
        let line = self.line();
        let first = self.sum()?;
        let mut others = Vec::new();
        loop {
            let comparison = match self.peek() {
                Lexeme::Sign("==") => Comparison::Equal,
                Lexeme::Sign("!=") => Comparison::Unequal,
                Lexeme::Sign("<") => Comparison::Less,
                Lexeme::Sign("<=") => Comparison::LessOrEqual,
                Lexeme::Sign(">") => Comparison::Greater,
                Lexeme::Sign(">=") => Comparison::GreaterOrEqual,
                Lexeme::Name(name) if name == "in" => Comparison::In,
                Lexeme::Name(name) if name == "not" => {
                    self.next();
                    if !self.is_name("in") {
                        return self.unexpected("`in`");
                    }
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            others.push((comparison, self.sum()?));
        }
        if others.is_empty() {
            return Ok(first);
        }
        let kind = Kind::Compare(Box::new(first), others);
        Ok(Expression { line, kind })
    }

    fn arithmetic(
        &mut self,
        read: fn(&mut Self) -> Result<Expression, Failure>,
        operator: fn(&str) -> Option<Operator>,
    ) -> Result<Expression, Failure> {
        let line = self.line();
        let first = read(self)?;
        let mut others = Vec::new();
        while let Lexeme::Sign(sign) = self.peek()
            && let Some(operator) = operator(sign)
        {
            self.next();
            others.push((operator, read(self)?));
        }
        if others.is_empty() {
            return Ok(first);
        }
        let kind = Kind::Arithmetic(Box::new(first), others);
        Ok(Expression { line, kind })
    }

    fn sum(&mut self) -> Result<Expression, Failure> {
        self.arithmetic(Self::concatenation, |sign| match sign {
            "+" => Some(Operator::Add),
            "-" => Some(Operator::Subtract),
            _ => None,
        })
    }

    fn concatenation(&mut self) -> Result<Expression, Failure> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_sign("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.take_sign("~") {
            parts.push(self.product()?);
        }
        let kind = Kind::Concat(parts);
        Ok(Expression { line, kind })
    }

    fn product(&mut self) -> Result<Expression, Failure> {
        self.arithmetic(Self::power, |sign| match sign {
            "*" => Some(Operator::Multiply),
            "/" => Some(Operator::Divide),
            "//" => Some(Operator::FloorDivide),
            "%" => Some(Operator::Remainder),
            _ => None,
        })
    }

    fn power(&mut self) -> Result<Expression, Failure> {
        let operator = |sign: &str| (sign == "**").then_some(Operator::Power);
        self.arithmetic(|parser| parser.unary(true), operator)
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expression, Failure> {
        let line = self.line();
        let kind = if self.take_sign("-") {
            Kind::Negative(Box::new(self.nested(|parser| parser.unary(false))?))
        } else if self.take_sign("+") {
            Kind::Positive(Box::new(self.nested(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let operand = Expression { line, kind };
        let mut suffixes = Vec::new();
        while let Some(suffix) = self.suffix(with_filters)? {
            suffixes.push(suffix);
        }
        if suffixes.is_empty() {
            return Ok(operand);
        }
        let kind = Kind::Suffixed(Box::new(operand), suffixes);
        Ok(Expression { line, kind })
    }

    fn primary(&mut self) -> Result<Kind, Failure> {
        let is_operand = matches!(
            self.peek(),
            Lexeme::Name(_)
                | Lexeme::Text(_)
                | Lexeme::Int(_)
                | Lexeme::Float(_)
                | Lexeme::Sign("(" | "[" | "{")
        );
        if !is_operand {
            return self.unexpected("an expression");
        }
        Ok(match self.next() {
            Lexeme::Name(name) => match name.as_str() {
                "true" | "True" => Kind::Bool(true),
                "false" | "False" => Kind::Bool(false),
                "none" | "None" => Kind::None,
                _ => Kind::Name(name),
            },
            Lexeme::Text(mut text) => {
                while let Lexeme::Text(more) = self.peek() {
                    text.push_str(more);
                    self.next();
                }
                Kind::Text(Arc::new(Text::plain(text)))
            }
            Lexeme::Int(number) => Kind::Int(number),
            Lexeme::Float(number) => Kind::Float(number),
            Lexeme::Sign("(") => {
                if self.take_sign(")") {
                    return Ok(Kind::Tuple(Vec::new()));
                }
                let inside = self.tuple(true, false)?;
                self.expect_sign(")")?;
                inside.kind
            }
            Lexeme::Sign("[") => Kind::List(self.items("]", Self::expression)?),
            _ => Kind::Dict(self.items("}", |parser| {
                let key = parser.expression()?;
                parser.expect_sign(":")?;
                Ok((key, parser.expression()?))
            })?),
        })
    }

    fn items<T>(
        &mut self,
        end: &str,
        read: fn(&mut Self) -> Result<T, Failure>,
    ) -> Result<Vec<T>, Failure> {
        let mut items = Vec::new();
        while !self.take_sign(end) {
            if !items.is_empty() {
                self.expect_sign(",")?;
                if self.take_sign(end) {
                    break;
                }
            }
            items.push(read(self)?);
        }
        Ok(items)
    }

    /// Parses one suffix of an operand, if there is one.
    fn suffix(&mut self, with_filters: bool) -> Result<Option<Suffix>, Failure> {
        let line = self.line();
        let kind = match self.peek() {
            Lexeme::Sign(".") => {
                self.next();
                match self.peek() {
                    Lexeme::Int(index) => {
                        let kind = Kind::Int(*index);
                        self.next();
                        SuffixKind::Subscript(Expression { line, kind })
                    }
                    _ => SuffixKind::Member(self.name()?),
                }
            }
            Lexeme::Sign("[") => {
                self.next();
                let subscript = self.subscript()?;
                self.expect_sign("]")?;
                subscript
            }
            Lexeme::Sign("(") => SuffixKind::Call(self.call()?),
            Lexeme::Sign("|") if with_filters => {
                self.next();
                return self.filter().map(Some);
            }
            Lexeme::Name(name) if with_filters && name == "is" => {
                self.next();
                self.test()?
            }
            _ => return Ok(None),
        };
        Ok(Some(Suffix { line, kind }))
    }

    fn subscript(&mut self) -> Result<SuffixKind, Failure> {
        let line = self.line();
        let mut parts = [None, None, None];
        let mut part = 0;
        loop {
            if self.is_sign("]") {
                break;
            }
            if self.is_sign(":") && part < 2 {
                self.next();
                part += 1;
                continue;
            }
            if parts[part].is_some() || part > 0 && self.is_sign(",") {
                return self.unexpected("`]`");
            }
            parts[part] = Some(match part {
                0 => self.tuple(true, false)?,
                _ => self.expression()?,
            });
        }
        match (part, parts) {
            (0, [Some(index), _, _]) => Ok(SuffixKind::Subscript(index)),
            (0, _) => Err(Failure::syntax(line, "expected a subscript, found `]`")),
            (_, parts) => Ok(SuffixKind::Slice(Box::new(parts))),
        }
    }

    /// A filter's name and arguments, after the `|`.
    pub(super) fn filter(&mut self) -> Result<Suffix, Failure> {
        let line = self.line();
        let name = self.dotted()?;
        let call = match self.is_sign("(") {
            true => self.call()?,
            false => Call::default(),
        };
        let kind = SuffixKind::Filter(name, call);
        Ok(Suffix { line, kind })
    }

    fn dotted(&mut self) -> Result<String, Failure> {
        let mut name = self.name()?;
        while self.take_sign(".") {
            name.push('.');
            name.push_str(&self.name()?);
        }
        Ok(name)
    }

    /// A test's name and arguments, with or without parentheses, after the `is`.
    fn test(&mut self) -> Result<SuffixKind, Failure> {
        let is_negated = self.take_name("not");
        let name = self.dotted()?;
        let line = self.line();
        let has_argument = match self.peek() {
            Lexeme::Name(name) => {
                !["else", "or", "and", "if", "is", "in", "not"].contains(&name.as_str())
            }
            Lexeme::Text(_) | Lexeme::Int(_) | Lexeme::Float(_) => true,
            Lexeme::Sign(sign) => ["[", "{"].contains(sign),
            _ => false,
        };
        let call = if self.is_sign("(") {
            self.call()?
        } else if has_argument {
            let kind = self.nested(Self::primary)?;
            let operand = Expression { line, kind };
            let mut suffixes = Vec::new();
            while let Some(suffix) = self.suffix(false)? {
                suffixes.push(suffix);
            }
            let kind = Kind::Suffixed(Box::new(operand), suffixes);
            let argument = Argument::Positional(Expression { line, kind });
            Call {
                arguments: vec![argument],
            }
        } else {
            Call::default()
        };
        Ok(SuffixKind::Test(name, call, is_negated))
    }

    fn call(&mut self) -> Result<Call, Failure> {
        self.expect_sign("(")?;
        let mut arguments = Vec::new();
        while !self.take_sign(")") {
            if !arguments.is_empty() {
                self.expect_sign(",")?;
                if self.take_sign(")") {
                    break;
                }
            }
            arguments.push(self.argument()?);
        }
        Ok(Call { arguments })
    }

    fn argument(&mut self) -> Result<Argument, Failure> {
        if self.take_sign("**") {
            return Ok(Argument::SpreadNamed(self.expression()?));
        }
        if self.take_sign("*") {
            return Ok(Argument::Spread(self.expression()?));
        }
        let value = self.expression()?;
        let Kind::Name(name) = &value.kind else {
            return Ok(Argument::Positional(value));
        };
        if !self.is_sign("=") {
            return Ok(Argument::Positional(value));
        }
        let name = name.clone();
        self.next();
        Ok(Argument::Named(name, self.expression()?))
    }
}
