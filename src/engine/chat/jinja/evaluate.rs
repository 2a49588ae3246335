//! Evaluates expressions.

use std::rc::Rc;

use super::arguments::{self, Arguments};
use super::ast::{Argument, Call, Comparison, Expression, Kind, Suffix, SuffixKind};
use super::render::{Frame, Interpreter};
use super::text::Text;
use super::value::{Callable, Loop, Number, Value};
use super::{Failure, Outcome, checks, filters, functions, methods, operators, print};

impl Interpreter {
    pub(super) fn evaluate(&self, expression: &Expression, frame: &Rc<Frame>) -> Outcome<Value> {
        let value = match &expression.kind {
            Kind::None => Ok(Value::None),
            Kind::Bool(flag) => Ok(Value::Bool(*flag)),
            Kind::Int(number) => Ok(Value::Int(*number)),
            Kind::Float(number) => Ok(Value::Float(*number)),
            Kind::Text(text) => Ok(Value::Text(std::sync::Arc::clone(text))),
            Kind::Name(name) => Ok(frame
                .get(name)
                .or_else(|| functions::named(name))
                .unwrap_or_else(|| Value::undefined(name))),
            _ => self.nested(|| self.compound(expression, frame)),
        };
        match value {
            Ok(Value::Text(text)) if text.is_cut() => Err(Failure::too_much()),
            value => value,
        }
        .map_err(|error| error.at(expression.line))
    }

    fn all(&self, expressions: &[Expression], frame: &Rc<Frame>) -> Outcome<Vec<Value>> {
        let values = expressions.iter();
        values
            .map(|expression| self.evaluate(expression, frame))
            .collect()
    }

    fn compound(&self, expression: &Expression, frame: &Rc<Frame>) -> Outcome<Value> {
        match &expression.kind {
            Kind::List(items) => Value::list(self.all(items, frame)?),
            Kind::Tuple(items) => Value::tuple(self.all(items, frame)?),
            Kind::Dict(entries) => {
                let mut values = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    values.push((self.evaluate(key, frame)?, self.evaluate(value, frame)?));
                }
                Value::dict(values)
            }
            Kind::Not(operand) => Ok(Value::Bool(!self.evaluate(operand, frame)?.is_true())),
            Kind::Negative(operand) => operators::negative(&self.evaluate(operand, frame)?),
            Kind::Positive(operand) => operators::positive(&self.evaluate(operand, frame)?),
            Kind::And(operands) => self.until(operands, false, frame),
            Kind::Or(operands) => self.until(operands, true, frame),
            Kind::Compare(first, others) => self.compare(first, others, frame),
            Kind::Arithmetic(first, others) => {
                let mut value = self.evaluate(first, frame)?;
                for (operator, other) in others {
                    let other = self.evaluate(other, frame)?;
                    value = operators::arithmetic(*operator, &value, &other)?;
                }
                Ok(value)
            }
            Kind::Concat(parts) => {
                let mut text = Text::default();
                for part in parts {
                    print::push_string(&self.evaluate(part, frame)?, &mut text)?;
                }
                Ok(Value::text(text))
            }
            Kind::Choice(parts) => {
                let (then, condition, otherwise) = parts.as_ref();
                if self.evaluate(condition, frame)?.is_true() {
                    return self.evaluate(then, frame);
                }
                match otherwise {
                    Some(otherwise) => self.evaluate(otherwise, frame),
                    None => Ok(Value::Undefined(
                        "the inline if-expression evaluated to false and no else section was defined"
                            .into(),
                    )),
                }
            }
            Kind::Suffixed(operand, suffixes) => {
                let mut value = self.evaluate(operand, frame)?;
                for suffix in suffixes {
                    value = self
                        .suffix(value, suffix, frame)
                        .map_err(|error| error.at(suffix.line))?;
                }
                Ok(value)
            }
            // `evaluate` handles the other kinds.
            _ => Ok(Value::None),
        }
    }

    /// `and` and `or`: the first operand that decides the result, or the last one.
    fn until(&self, operands: &[Expression], decides: bool, frame: &Rc<Frame>) -> Outcome<Value> {
        let mut value = Value::None;
        for operand in operands {
            value = self.evaluate(operand, frame)?;
            if value.is_true() == decides {
                break;
            }
        }
        Ok(value)
    }

    fn compare(
        &self,
        first: &Expression,
        others: &[(Comparison, Expression)],
        frame: &Rc<Frame>,
    ) -> Outcome<Value> {
        let mut left = self.evaluate(first, frame)?;
        for (comparison, right) in others {
            let right = self.evaluate(right, frame)?;
            if !operators::compare(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    pub(super) fn suffix(
        &self,
        value: Value,
        suffix: &Suffix,
        frame: &Rc<Frame>,
    ) -> Outcome<Value> {
        match &suffix.kind {
            SuffixKind::Member(name) => member(&value, name),
            SuffixKind::Subscript(index) => subscript(&value, &self.evaluate(index, frame)?),
            SuffixKind::Slice(parts) => {
                let mut bounds = [None; 3];
                for (bound, part) in bounds.iter_mut().zip(parts.as_ref()) {
                    if let Some(part) = part {
                        let value = arguments::given(Some(self.evaluate(part, frame)?));
                        *bound = value.as_ref().map(arguments::integer).transpose()?;
                    }
                }
                operators::slice(&value, bounds)
            }
            SuffixKind::Call(call) => {
                let arguments = self.arguments(call, frame)?;
                self.call(&value, arguments)
            }
            SuffixKind::Filter(name, call) => {
                let arguments = self.arguments(call, frame)?;
                filters::apply(name, value, arguments)
            }
            SuffixKind::Test(name, call, is_negated) => {
                let arguments = self.arguments(call, frame)?;
                let passed = checks::check(name, &value, arguments)?;
                Ok(Value::Bool(passed != *is_negated))
            }
        }
    }

    pub(super) fn arguments(&self, call: &Call, frame: &Rc<Frame>) -> Outcome<Arguments> {
        let mut arguments = Arguments::default();
        for argument in &call.arguments {
            match argument {
                Argument::Positional(value) => {
                    arguments.positional.push(self.evaluate(value, frame)?);
                }
                Argument::Named(name, value) => {
                    let value = self.evaluate(value, frame)?;
                    arguments.named.push((name.clone(), value));
                }
                Argument::Spread(values) => {
                    let values = self.evaluate(values, frame)?.items()?;
                    arguments.positional.extend(values.iter().cloned());
                }
                Argument::SpreadNamed(values) => {
                    let Value::Dict(values) = self.evaluate(values, frame)? else {
                        return Err(Failure::new("`**` takes a dictionary"));
                    };
                    for (name, value) in values.entries() {
                        let name = arguments::text(name)?.as_str().to_owned();
                        arguments.named.push((name, value.clone()));
                    }
                }
            }
        }
        Ok(arguments)
    }

    pub(super) fn call(&self, value: &Value, arguments: Arguments) -> Outcome<Value> {
        match value {
            Value::Undefined(message) => Err(Failure::new(message.as_ref())),
            Value::Loop(at) => {
                let [items] = arguments.bind("loop", ["iterable"])?;
                let items = arguments::required(items, "loop", "iterable")?;
                self.repeat_deeper(at, &items)
            }
            Value::Callable(callable) => match callable.as_ref() {
                Callable::Function(name) => functions::call(name, arguments),
                Callable::Method(receiver, name) => methods::call(receiver, name, arguments),
                Callable::Macro(of, frame) | Callable::Caller(of, frame) => {
                    let Some(frame) = frame.upgrade() else {
                        return Err(Failure::new(format!(
                            "the block that `{}` was defined in has ended",
                            of.name
                        )));
                    };
                    self.nested(|| self.call_macro(of, &frame, arguments))
                }
                Callable::Joiner(separator, used) => {
                    let text = match used.replace(true) {
                        true => separator.clone(),
                        false => Text::default(),
                    };
                    Ok(Value::text(text))
                }
                Callable::Cycler(items, at) => {
                    let index = at.get();
                    at.set((index + 1) % items.len().max(1));
                    Ok(items.get(index).cloned().unwrap_or(Value::None))
                }
            },
            _ => Err(Failure::new(format!(
                "'{}' object is not callable",
                value.type_name()
            ))),
        }
    }
}

/// How error messages name the value whose member is missing.
fn object_name(value: &Value) -> String {
    match value {
        Value::None => "None".to_owned(),
        value => format!("{} object", value.type_name()),
    }
}

/// `value.name`
pub(super) fn member(value: &Value, name: &str) -> Outcome<Value> {
    if let Value::Undefined(message) = value {
        return Err(Failure::new(message.as_ref()));
    }
    if methods::has(value, name) {
        return value.clone().method(name);
    }
    let found = match value {
        Value::Dict(dict) => dict.named(name).cloned(),
        Value::Namespace(namespace) => {
            let members = namespace.members.try_borrow();
            members
                .ok()
                .and_then(|members| members.named(name).cloned())
        }
        Value::Loop(at) => of_loop(at, name),
        // The named tuples that `groupby` makes.
        Value::Tuple(items) if items.len() == 2 => match name {
            "grouper" => Some(items[0].clone()),
            "list" => Some(items[1].clone()),
            _ => None,
        },
        Value::Callable(callable) => match (callable.as_ref(), name) {
            (Callable::Macro(of, _) | Callable::Caller(of, _), "name") => {
                Some(Value::plain(of.name.as_str()))
            }
            (Callable::Cycler(items, at), "current") => items.get(at.get()).cloned(),
            _ => None,
        },
        _ => None,
    };
    Ok(found.unwrap_or_else(|| {
        let what = object_name(value);
        Value::Undefined(format!("'{what}' has no attribute '{name}'").into())
    }))
}

fn of_loop(at: &Loop, name: &str) -> Option<Value> {
    let (index, length) = (at.index.get(), at.items.len());
    let neighbour = |index: Option<usize>, what: &str| {
        let item = index.and_then(|index| at.items.get(index)).cloned();
        item.unwrap_or_else(|| Value::Undefined(format!("there is no {what} item").into()))
    };
    Some(match name {
        "index" => Value::count(index + 1),
        "index0" => Value::count(index),
        "revindex" => Value::count(length - index),
        "revindex0" => Value::count(length - index - 1),
        "first" => Value::Bool(index == 0),
        "last" => Value::Bool(index + 1 == length),
        "length" => Value::count(length),
        "depth" => Value::count(at.depth + 1),
        "depth0" => Value::count(at.depth),
        "previtem" => neighbour(index.checked_sub(1), "previous"),
        "nextitem" => neighbour(Some(index + 1), "next"),
        _ => return None,
    })
}

/// `value[index]`
pub(super) fn subscript(value: &Value, index: &Value) -> Outcome<Value> {
    let place = |length: usize| match index.number() {
        Some(Number::Int(number)) if number < 0 => {
            length.checked_sub(usize::try_from(number.unsigned_abs()).ok()?)
        }
        Some(Number::Int(number)) => usize::try_from(number).ok(),
        _ => None,
    };
    let found = match value {
        Value::Undefined(message) => return Err(Failure::new(message.as_ref())),
        Value::Dict(dict) => dict.get(index).cloned(),
        Value::List(items) | Value::Tuple(items) => place(items.len())
            .and_then(|place| items.get(place))
            .cloned(),
        Value::Text(text) if index.number().is_some() => {
            let place = place(text.as_str().chars().count());
            let letter = place.and_then(|place| text.as_str().char_indices().nth(place));
            letter.map(|(at, c)| Value::text(text.slice(at..at + c.len_utf8())))
        }
        _ => None,
    };
    match (found, index) {
        (Some(found), _) => Ok(found),
        (None, Value::Text(name)) => member(value, name.as_str()),
        (None, _) => {
            let what = object_name(value);
            let index = print::repr(index)?;
            let message = format!("{what} has no element {}", index.as_str());
            Ok(Value::Undefined(message.into()))
        }
    }
}
