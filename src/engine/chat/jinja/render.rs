//! Executes statements.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::arguments::Arguments;
use super::ast::{Body, Expression, For, Kind, Macro, Statement, Suffix, SuffixKind, Target};
use super::text::{Text, spend};
use super::value::{Callable, Items, Loop, Value};
use super::{Failure, Outcome, filters, print};

/// Maximum nesting of blocks, expressions and macro calls. Deeper ones would overflow the stack.
const DEEPEST: usize = 150;

/// What a step costs in the rendering's budget, see [`spend`].
const STEP: usize = 8;

/// The variables of a scope. Lookups continue in the enclosing scopes.
#[derive(Debug)]
pub(super) struct Frame {
    names: RefCell<Vec<(String, Value)>>,
    parent: Option<Rc<Frame>>,
}

impl Frame {
    pub(super) fn root() -> Self {
        Self {
            names: RefCell::default(),
            parent: None,
        }
    }

    fn inside(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self {
            names: RefCell::default(),
            parent: Some(Rc::clone(parent)),
        })
    }

    pub(super) fn set(&self, name: &str, value: Value) {
        let mut names = self.names.borrow_mut();
        match names.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => names.push((name.to_owned(), value)),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut frame = self;
        loop {
            let names = frame.names.borrow();
            if let Some((_, value)) = names.iter().find(|(known, _)| known == name) {
                return Some(value.clone());
            }
            drop(names);
            frame = frame.parent.as_deref()?;
        }
    }
}

/// How control flow continues after a statement.
enum End {
    Next,
    Break,
    Continue,
}

pub(super) fn run(body: &Body, globals: &Rc<Frame>) -> Outcome<Text> {
    let interpreter = Interpreter {
        depth: Cell::new(0),
    };
    let mut output = Text::default();
    interpreter.body(body, globals, &mut output)?;
    match output.is_cut() {
        true => Err(Failure::too_much()),
        false => Ok(output),
    }
}

pub(super) struct Interpreter {
    depth: Cell<usize>,
}

impl Interpreter {
    /// Runs `what` one nesting level deeper.
    pub(super) fn nested<T>(&self, what: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let depth = self.depth.get();
        if depth == DEEPEST {
            return Err(Failure::new("the template calls itself too often"));
        }
        if !spend(STEP) {
            return Err(Failure::too_much());
        }
        self.depth.set(depth + 1);
        let result = what();
        self.depth.set(depth);
        result
    }

    fn body(&self, body: &Body, frame: &Rc<Frame>, output: &mut Text) -> Outcome<End> {
        for statement in body {
            if !spend(STEP) {
                return Err(Failure::too_much());
            }
            match self.statement(statement, frame, output)? {
                End::Next => {}
                end => return Ok(end),
            }
        }
        Ok(End::Next)
    }

    fn statement(
        &self,
        statement: &Statement,
        frame: &Rc<Frame>,
        output: &mut Text,
    ) -> Outcome<End> {
        match statement {
            Statement::Data(text) => output.push_plain(text),
            Statement::Print(expression) => {
                let value = self.evaluate(expression, frame)?;
                print::push_string(&value, output).map_err(|error| error.at(expression.line))?;
            }
            Statement::If(branches) => {
                for (condition, body) in branches {
                    let is_taken = match condition {
                        Some(condition) => self.evaluate(condition, frame)?.is_true(),
                        None => true,
                    };
                    if is_taken {
                        return self.nested(|| self.body(body, frame, output));
                    }
                }
            }
            Statement::For(of) => {
                let items = self.evaluate(&of.items, frame)?;
                self.nested(|| self.repeat(of, &items, 0, frame, output))?;
            }
            Statement::Set(target, value) => {
                let value = self.evaluate(value, frame)?;
                assign(target, value, frame)?;
            }
            Statement::SetBlock(target, with, body) => {
                let text = self.captured(with, body, frame)?;
                assign(target, text, frame)?;
            }
            Statement::Filter(with, body) => {
                let text = self.captured(with, body, frame)?;
                print::push_string(&text, output)?;
            }
            Statement::With(names, body) => {
                let inside = Frame::inside(frame);
                for (target, value) in names {
                    let value = self.evaluate(value, frame)?;
                    assign(target, value, &inside)?;
                }
                return self.nested(|| self.body(body, &inside, output));
            }
            Statement::Scope(body) => {
                let inside = Frame::inside(frame);
                return self.nested(|| self.body(body, &inside, output));
            }
            Statement::Macro(of) => {
                let callable = Callable::Macro(Arc::clone(of), Rc::downgrade(frame));
                frame.set(&of.name, Value::Callable(Rc::new(callable)));
            }
            Statement::Call(call, caller) => {
                let value = self.call_block(call, caller, frame)?;
                print::push_string(&value, output)?;
            }
            Statement::Break => return Ok(End::Break),
            Statement::Continue => return Ok(End::Continue),
        }
        Ok(End::Next)
    }

    /// Renders a body and applies the filters to its text.
    fn captured(&self, with: &[Suffix], body: &Body, frame: &Rc<Frame>) -> Outcome<Value> {
        let mut text = Text::default();
        let inside = Frame::inside(frame);
        self.nested(|| self.body(body, &inside, &mut text))?;
        let mut value = Value::text(text);
        for suffix in with {
            if let SuffixKind::Filter(name, call) = &suffix.kind {
                let arguments = self.arguments(call, frame)?;
                let filtered = filters::apply(name, value, arguments);
                value = filtered.map_err(|error| error.at(suffix.line))?;
            }
        }
        Ok(value)
    }

    fn call_block(
        &self,
        call: &Expression,
        caller: &Arc<Macro>,
        frame: &Rc<Frame>,
    ) -> Outcome<Value> {
        let Kind::Suffixed(operand, suffixes) = &call.kind else {
            return Err(Failure::new("expected a call").at(call.line));
        };
        let Some((last, before)) = suffixes.split_last() else {
            return Err(Failure::new("expected a call").at(call.line));
        };
        let SuffixKind::Call(of) = &last.kind else {
            return Err(Failure::new("expected a call").at(call.line));
        };
        let mut value = self.evaluate(operand, frame)?;
        for suffix in before {
            value = self.suffix(value, suffix, frame)?;
        }
        let mut arguments = self.arguments(of, frame)?;
        let caller = Callable::Caller(Arc::clone(caller), Rc::downgrade(frame));
        let caller = Value::Callable(Rc::new(caller));
        arguments.named.push(("caller".to_owned(), caller));
        self.call(&value, arguments)
            .map_err(|error| error.at(last.line))
    }

    fn repeat(
        &self,
        of: &Arc<For>,
        items: &Value,
        depth: usize,
        frame: &Rc<Frame>,
        output: &mut Text,
    ) -> Outcome<()> {
        let mut items = items.items().map_err(|error| error.at(of.items.line))?;
        let passes = |frame: &Rc<Frame>| match &of.condition {
            Some(condition) => Ok(self.evaluate(condition, frame)?.is_true()),
            None => Ok(true),
        };
        // As in Jinja, the condition is evaluated as the loop goes, unless `loop` needs to know all
        // items.
        let is_lazy = !of.uses_loop;
        if of.condition.is_some() && !is_lazy {
            let mut kept = Vec::new();
            for item in items.iter() {
                let inside = Frame::inside(frame);
                assign(&of.target, item.clone(), &inside)?;
                if passes(&inside)? {
                    kept.push(item.clone());
                }
            }
            items = Items::new(kept)?;
        }
        let at = Rc::new(Loop {
            items: Rc::clone(&items),
            index: Cell::new(0),
            depth,
            changed: RefCell::default(),
            recursive: of
                .is_recursive
                .then(|| (Arc::clone(of), Rc::downgrade(frame))),
        });
        let mut is_empty = true;
        for (index, item) in items.iter().enumerate() {
            at.index.set(index);
            let inside = Frame::inside(frame);
            assign(&of.target, item.clone(), &inside)?;
            if is_lazy && !passes(&inside)? {
                continue;
            }
            is_empty = false;
            inside.set("loop", Value::Loop(Rc::clone(&at)));
            match self.body(&of.body, &inside, output)? {
                End::Break => break,
                End::Next | End::Continue => {}
            }
        }
        if is_empty {
            let inside = Frame::inside(frame);
            self.body(&of.otherwise, &inside, output)?;
        }
        Ok(())
    }

    /// `loop(items)` in a recursive loop.
    pub(super) fn repeat_deeper(&self, at: &Loop, items: &Value) -> Outcome<Value> {
        let recursive = at.recursive.as_ref();
        let frame = recursive.and_then(|(of, frame)| Some((of, frame.upgrade()?)));
        let Some((of, frame)) = frame else {
            return Err(Failure::new("the loop is not `recursive`"));
        };
        let mut text = Text::default();
        self.nested(|| self.repeat(of, items, at.depth + 1, &frame, &mut text))?;
        Ok(Value::text(text))
    }

    pub(super) fn call_macro(
        &self,
        of: &Macro,
        around: &Rc<Frame>,
        arguments: Arguments,
    ) -> Outcome<Value> {
        let inside = Frame::inside(around);
        let mut positional = arguments.positional.into_iter();
        let mut named = arguments.named;
        let mut defaults = Vec::new();
        for (name, default) in &of.parameters {
            let by_name = named.iter().position(|(given, _)| given == name);
            if let Some(value) = positional.next() {
                inside.set(name, value);
            } else if let Some(place) = by_name {
                inside.set(name, named.remove(place).1);
            } else if let Some(default) = default {
                defaults.push((name, default));
            } else {
                let message = format!("parameter '{name}' was not provided");
                inside.set(name, Value::Undefined(message.into()));
            }
        }
        if let Some(place) = named.iter().position(|(name, _)| name == "caller") {
            inside.set("caller", named.remove(place).1);
        }
        inside.set("varargs", Value::tuple(positional.collect())?);
        let rest = named
            .into_iter()
            .map(|(name, value)| (Value::plain(name), value));
        inside.set("kwargs", Value::dict(rest.collect())?);
        for (name, default) in defaults {
            let value = self.evaluate(default, &inside)?;
            inside.set(name, value);
        }
        let mut text = Text::default();
        self.nested(|| self.body(&of.body, &inside, &mut text))?;
        Ok(Value::text(text))
    }
}

fn assign(target: &Target, value: Value, frame: &Frame) -> Outcome<()> {
    match target {
        Target::Name(name) => frame.set(name, value),
        Target::Member(name, member) => match frame.get(name) {
            Some(Value::Namespace(namespace)) => {
                let name = Value::plain(member.as_str());
                let members = namespace.members.try_borrow_mut();
                let mut members =
                    members.map_err(|_| Failure::new("a namespace changes while it is read"))?;
                members.set(name, value)?;
            }
            _ => {
                return Err(Failure::new(
                    "cannot assign attribute on non-namespace object",
                ));
            }
        },
        Target::Tuple(targets) => {
            let items = value.items()?;
            if items.len() != targets.len() {
                return Err(Failure::new(format!(
                    "{} values to unpack, expected {}",
                    items.len(),
                    targets.len()
                )));
            }
            for (target, item) in targets.iter().zip(items.iter()) {
                assign(target, item.clone(), frame)?;
            }
        }
    }
    Ok(())
}
