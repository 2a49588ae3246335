//! The values that a template computes with: Python's, as far as Jinja exposes them.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::ast::{For, Macro};
use super::render::Frame;
use super::text::{Text, spend};
use super::{Failure, Outcome};

/// Maximum nesting of values. Deeper ones would overflow the stack of recursive functions.
const DEEPEST: usize = 100;

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A missing value, with the error message for its use.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<Text>),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    /// A generator: it can be iterated only once.
    Stream(Rc<Stream>),
    Namespace(Rc<Namespace>),
    Loop(Rc<Loop>),
    Callable(Rc<Callable>),
}

#[derive(Debug)]
pub(super) struct Items {
    values: Vec<Value>,
    depth: usize,
}

impl std::ops::Deref for Items {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.values
    }
}

/// Keys and values in insertion order. A linear search is enough for the few entries that templates
/// use.
#[derive(Debug, Default)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    depth: usize,
}

#[derive(Debug)]
pub(super) struct Stream {
    items: RefCell<Option<Rc<Items>>>,
    depth: usize,
}

#[derive(Debug, Default)]
pub(super) struct Namespace {
    pub(super) members: RefCell<Dict>,
}

/// The `loop` variable of a `for`.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) items: Rc<Items>,
    pub(super) index: Cell<usize>,
    pub(super) depth: usize,
    pub(super) changed: RefCell<Option<Value>>,
    /// Set in a recursive loop.
    pub(super) recursive: Option<(Arc<For>, Weak<Frame>)>,
}

#[derive(Debug)]
pub(super) enum Callable {
    Function(&'static str),
    Method(Value, String),
    Macro(Arc<Macro>, Weak<Frame>),
    /// `caller` inside a macro invoked by a `call` block.
    Caller(Arc<Macro>, Weak<Frame>),
    /// The separator, and whether it was called before.
    Joiner(Text, Cell<bool>),
    Cycler(Rc<Items>, Cell<usize>),
}

impl Items {
    pub(super) fn new(values: Vec<Value>) -> Outcome<Rc<Self>> {
        let depth = 1 + values.iter().map(Value::depth).max().unwrap_or(0);
        check(depth, values.len())?;
        Ok(Rc::new(Self { values, depth }))
    }
}

fn check(depth: usize, count: usize) -> Outcome<()> {
    if depth > DEEPEST {
        return Err(Failure::new("a value is nested too deeply"));
    }
    match spend(count.saturating_mul(size_of::<Value>())) {
        true => Ok(()),
        false => Err(Failure::too_much()),
    }
}

impl Dict {
    pub(super) fn new(entries: Vec<(Value, Value)>) -> Outcome<Self> {
        let mut dict = Self::default();
        check(1, entries.len())?;
        for (key, value) in entries {
            dict.set(key, value)?;
        }
        Ok(dict)
    }

    /// A key that is not hashable in Python.
    pub(super) fn set(&mut self, key: Value, value: Value) -> Outcome<()> {
        if matches!(key, Value::List(_) | Value::Dict(_)) {
            return Err(Failure::new(format!(
                "unhashable type: '{}'",
                key.type_name()
            )));
        }
        let depth = 1 + key.depth().max(value.depth());
        check(depth, 0)?;
        self.depth = self.depth.max(depth);
        match self
            .entries
            .iter_mut()
            .find(|(known, _)| known.equals(&key))
        {
            Some((_, known)) => *known = value,
            None => self.entries.push((key, value)),
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &Value) -> Option<&Value> {
        let entry = self.entries.iter().find(|(known, _)| known.equals(key));
        entry.map(|(_, value)| value)
    }

    pub(super) fn named(&self, name: &str) -> Option<&Value> {
        let is_it = |key: &Value| matches!(key, Value::Text(text) if text.as_str() == name);
        let entry = self.entries.iter().find(|(key, _)| is_it(key));
        entry.map(|(_, value)| value)
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    fn equals(&self, other: &Self) -> bool {
        self.entries.len() == other.entries.len()
            && (self.entries.iter())
                .all(|(key, value)| other.get(key).is_some_and(|other| value.equals(other)))
    }
}

impl Stream {
    /// The items, unless they were already consumed.
    fn take(&self) -> Option<Rc<Items>> {
        self.items.borrow_mut().take()
    }
}

impl Value {
    pub(super) fn text(text: Text) -> Self {
        Self::Text(Arc::new(text))
    }

    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self::text(Text::plain(text))
    }

    pub(super) fn list(values: Vec<Self>) -> Outcome<Self> {
        Ok(Self::List(Items::new(values)?))
    }

    pub(super) fn tuple(values: Vec<Self>) -> Outcome<Self> {
        Ok(Self::Tuple(Items::new(values)?))
    }

    pub(super) fn dict(entries: Vec<(Self, Self)>) -> Outcome<Self> {
        Ok(Self::Dict(Rc::new(Dict::new(entries)?)))
    }

    pub(super) fn stream(values: Vec<Self>) -> Outcome<Self> {
        let items = Items::new(values)?;
        Ok(Self::Stream(Rc::new(Stream {
            depth: items.depth,
            items: RefCell::new(Some(items)),
        })))
    }

    pub(super) fn method(self, name: &str) -> Outcome<Self> {
        check(self.depth() + 1, 0)?;
        Ok(Self::Callable(Rc::new(Callable::Method(
            self,
            name.to_owned(),
        ))))
    }

    pub(super) fn count(count: usize) -> Self {
        Self::Int(i64::try_from(count).unwrap_or(i64::MAX))
    }

    pub(super) fn undefined(name: &str) -> Self {
        Self::Undefined(format!("'{name}' is undefined").into())
    }

    /// Nesting depth.
    fn depth(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) => items.depth,
            Self::Dict(dict) => dict.depth,
            Self::Stream(stream) => stream.depth,
            Self::Namespace(namespace) => namespace
                .members
                .try_borrow()
                .map_or(DEEPEST, |of| of.depth),
            Self::Loop(at) => at.items.depth,
            Self::Callable(callable) => match callable.as_ref() {
                Callable::Method(value, _) => 1 + value.depth(),
                Callable::Cycler(items, _) => items.depth,
                _ => 1,
            },
            _ => 0,
        }
    }

    /// Python's name for the type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Stream(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Callable(callable) => match callable.as_ref() {
                Callable::Function(_) => "function",
                Callable::Method(..) => "builtin_function_or_method",
                Callable::Macro(..) | Callable::Caller(..) => "Macro",
                Callable::Joiner(..) => "Joiner",
                Callable::Cycler(..) => "Cycler",
            },
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(flag) => *flag,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) => !items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            Self::Stream(_) | Self::Namespace(_) | Self::Loop(_) | Self::Callable(_) => true,
        }
    }

    /// The value as a number. As in Python, booleans are numbers.
    pub(super) fn number(&self) -> Option<Number> {
        match self {
            Self::Bool(flag) => Some(Number::Int(i64::from(*flag))),
            Self::Int(number) => Some(Number::Int(*number)),
            Self::Float(number) => Some(Number::Float(*number)),
            _ => None,
        }
    }

    pub(super) fn equals(&self, other: &Self) -> bool {
        if let (Some(left), Some(right)) = (self.number(), other.number()) {
            return left.order(right).is_some_and(std::cmp::Ordering::is_eq);
        }
        let all = |left: &[Self], right: &[Self]| {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|(left, right)| left.equals(right))
        };
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Text(left), Self::Text(right)) => left.as_str() == right.as_str(),
            (Self::List(left), Self::List(right)) | (Self::Tuple(left), Self::Tuple(right)) => {
                all(left, right)
            }
            (Self::Dict(left), Self::Dict(right)) => left.equals(right),
            _ => self.is(other),
        }
    }

    /// Python's `is` (Jinja's test `sameas`).
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Bool(left), Self::Bool(right)) => left == right,
            (Self::Int(left), Self::Int(right)) => left == right,
            (Self::Text(left), Self::Text(right)) => {
                Arc::ptr_eq(left, right) || left.as_str() == right.as_str()
            }
            (Self::List(left), Self::List(right)) | (Self::Tuple(left), Self::Tuple(right)) => {
                Rc::ptr_eq(left, right)
            }
            (Self::Dict(left), Self::Dict(right)) => Rc::ptr_eq(left, right),
            (Self::Stream(left), Self::Stream(right)) => Rc::ptr_eq(left, right),
            (Self::Namespace(left), Self::Namespace(right)) => Rc::ptr_eq(left, right),
            (Self::Loop(left), Self::Loop(right)) => Rc::ptr_eq(left, right),
            (Self::Callable(left), Self::Callable(right)) => Rc::ptr_eq(left, right),
            _ => false,
        }
    }

    /// The items that a loop iterates over.
    ///
    /// # Errors
    /// The value is not iterable.
    pub(super) fn items(&self) -> Outcome<Rc<Items>> {
        match self {
            Self::Undefined(_) => Items::new(Vec::new()),
            Self::List(items) | Self::Tuple(items) => Ok(Rc::clone(items)),
            Self::Text(text) => {
                let letters = text.as_str().char_indices();
                let letter = |(at, c): (usize, char)| Self::text(text.slice(at..at + c.len_utf8()));
                Items::new(letters.map(letter).collect())
            }
            Self::Dict(dict) => {
                Items::new(dict.entries.iter().map(|(key, _)| key.clone()).collect())
            }
            Self::Stream(stream) => match stream.take() {
                Some(items) => Ok(items),
                None => Items::new(Vec::new()),
            },
            _ => Err(Failure::new(format!(
                "'{}' object is not iterable",
                self.type_name()
            ))),
        }
    }

    /// Python's `len`.
    pub(super) fn length(&self) -> Outcome<usize> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Text(text) => Ok(text.as_str().chars().count()),
            Self::List(items) | Self::Tuple(items) => Ok(items.len()),
            Self::Dict(dict) => Ok(dict.entries.len()),
            Self::Loop(at) => Ok(at.items.len()),
            _ => Err(Failure::new(format!(
                "object of type '{}' has no len()",
                self.type_name()
            ))),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    pub(super) fn float(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
        }
    }

    pub(super) fn order(self, other: Self) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (Self::Int(left), Self::Int(right)) => Some(left.cmp(&right)),
            (left, right) => left.float().partial_cmp(&right.float()),
        }
    }
}
