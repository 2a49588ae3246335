//! The variables of a template's `{{ … }}`, and the errors of rendering.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};

use crate::error::{Error, Result};

use super::expression::what;
use super::fixture::Fixture;
use super::limits;
use super::place::{closest, shown};
use super::rows::{Row, RowOrder};
use super::split::Literal;
use super::template::Template;
use super::text::Text;

/// The environment for rendering a template's literals.
pub(super) struct Scope<'t> {
    template: &'t Template,
    fixture: &'t Fixture,
    fixture_value: Option<Value>,
    params_value: Value,
    environment: Environment<'static>,
    /// Set when a render reads `row` or `flow`.
    looked: Arc<AtomicBool>,
}

/// The variables of one flow.
pub(super) struct FlowScope<'t> {
    pub(super) number: usize,
    pub(super) row: &'t Row,
    variables: Value,
}

/// A literal and the text that contains it, to locate errors.
#[derive(Clone, Copy)]
pub(super) struct LiteralPlace<'t> {
    pub(super) text: &'t Text,
    pub(super) literal: &'t Literal,
}

pub(super) struct Rendered {
    pub(super) text: String,
    /// Whether `row` or `flow` was read. If not, the text is the same in every flow: renders of different
    /// flows cannot diverge before the first such read.
    pub(super) varies: bool,
}

impl<'t> Scope<'t> {
    pub(super) fn new(template: &'t Template, fixture: &'t Fixture) -> Result<Self> {
        Ok(Self {
            template,
            fixture,
            fixture_value: fixture.value(),
            params_value: template.params.value(),
            environment: environment(template)?,
            looked: Arc::default(),
        })
    }

    /// Compiles a literal under a name.
    pub(super) fn compile(&mut self, name: &str, place: LiteralPlace) -> Result<()> {
        self.environment
            .add_template_owned(name.to_owned(), place.literal.text.clone())
            .map_err(|error| self.explain(&error, place, None))
    }

    pub(super) fn flow(&self, number: usize) -> FlowScope<'t> {
        let rows = &self.template.rows;
        let row = &rows[RowOrder::new(rows.len()).row(number)];
        let variables = Value::from_object(Variables {
            row: row.value.clone(),
            fixture: self.fixture_value.clone(),
            params: self.params_value.clone(),
            flow: Value::from_pairs([("number", number)]),
            looked: Arc::clone(&self.looked),
        });
        FlowScope {
            number,
            row,
            variables,
        }
    }

    /// Renders a compiled literal.
    pub(super) fn render(
        &self,
        name: &str,
        place: LiteralPlace,
        flow: &FlowScope,
    ) -> Result<Rendered> {
        self.looked.store(false, Ordering::Relaxed);
        let text = self
            .environment
            .get_template(name)
            .and_then(|template| template.render(&flow.variables))
            .map_err(|error| self.explain(&error, place, Some(flow)))?;
        Ok(Rendered {
            text,
            varies: self.looked.load(Ordering::Relaxed),
        })
    }

    /// Renders a piece of a literal, if it can be rendered on its own.
    pub(super) fn render_piece(&self, source: &str, flow: &FlowScope) -> Option<Rendered> {
        self.looked.store(false, Ordering::Relaxed);
        let text = self.environment.render_str(source, &flow.variables).ok()?;
        Some(Rendered {
            text,
            varies: self.looked.load(Ordering::Relaxed),
        })
    }

    /// A usage error for a prompt that is empty in this flow.
    pub(super) fn nothing_left(&self, text: &Text, flow: &FlowScope) -> Error {
        let file = &self.template.file;
        let what = format!("the prompt is empty{}", in_flow(flow));
        file.error(text.in_file(file, 0), what)
            .hint("every step needs a prompt for every row")
    }

    /// Converts a minijinja error, with its position in the template's file or in an included one.
    fn explain(
        &self,
        error: &minijinja::Error,
        place: LiteralPlace,
        flow: Option<&FlowScope>,
    ) -> Error {
        // An error in an included file is wrapped.
        let mut error = error;
        while let Some(cause) = std::error::Error::source(error)
            .and_then(|source| source.downcast_ref::<minijinja::Error>())
        {
            error = cause;
        }
        let message = format!("{}{}", what(error), flow.map_or(String::new(), in_flow));
        let name = error.name();
        let placed = match name.and_then(|name| self.template.includes.get(name)) {
            Some(file) => {
                let line = error.line().unwrap_or(1);
                Error::usage(format!("{}:{line}: {message}", shown(file.path())))
            }
            None => {
                let at = error.range().map_or(0, |range| range.start);
                let at = place.literal.in_source(at);
                let file = &self.template.file;
                file.error(place.text.in_file(file, at), message)
            }
        };
        placed.hint(self.hint(error, place.text, flow.map(|flow| flow.row)))
    }

    fn hint(&self, error: &minijinja::Error, text: &Text, row: Option<&Row>) -> String {
        let hint = match error.kind() {
            ErrorKind::UndefinedError => return self.known_variables(error, row),
            ErrorKind::TemplateNotFound => {
                "an included file must be in the template's folder, with its name quoted in the tag"
            }
            ErrorKind::SyntaxError if text.pieces.len() > 1 => {
                "a `{{ … }}` or `{% … %}` cannot span a `${…}`: the text is split there first"
            }
            ErrorKind::SyntaxError => {
                "`{{ … }}` is a minijinja expression; write {{ '{{' }} for the text `{{`"
            }
            _ => "the syntax of `{{ … }}`: https://docs.rs/minijinja/latest/minijinja/syntax/",
        };
        hint.into()
    }

    fn known_variables(&self, error: &minijinja::Error, row: Option<&Row>) -> String {
        let keys = row.and_then(|row| row.value.try_iter().ok());
        let keys = keys.into_iter().flatten().map(|key| format!("row.{key}"));
        let members = self.fixture.members().iter();
        let members = members.map(|member| format!("fixture.{member}"));
        let params = self.template.params.names();
        let params = params.map(|name| format!("params.{name}"));
        let known = keys.chain(members).chain(params);
        let known: Vec<String> = known.chain(["flow.number".into()]).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();

        let mut hint = String::new();
        let wrong = error.detail().and_then(|detail| detail.split('`').nth(1));
        if let Some(name) = wrong.and_then(|wrong| closest(wrong, &known)) {
            hint.push_str(&format!("did you mean `{name}`? "));
        }
        hint.push_str(&format!("known here: {}", known.join(", ")));
        match (row, &self.template.suite) {
            (Some(row), Some(suite)) => {
                hint.push_str(&format!("; the row is {}:{}", shown(suite), row.line));
            }
            _ => hint.push_str("; the template has no `suite`"),
        }
        if self.fixture.members().is_empty() {
            hint.push_str("; the template has no `fixture`");
        }
        hint
    }
}

/// Identifies the flow, if flows differ by row.
fn in_flow(flow: &FlowScope) -> String {
    match flow.row.line {
        0 => String::new(),
        _ => format!(" (flow {}, row `{}`)", flow.number, flow.row.id),
    }
}

/// An environment that leaves text as it is: nothing is escaped or trimmed. Undefined names are errors.
fn environment(template: &Template) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    let syntax = syntax.map_err(|error| Error::usage("bad template syntax").caused_by(error))?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    limits::limit(&mut environment);
    // `debug` prints the whole context, including the fixture.
    environment.remove_global("debug");
    // Makes errors carry positions and the names of undefined variables.
    environment.set_debug(true);
    let includes = template.includes.iter();
    let includes: BTreeMap<String, String> = includes
        .map(|(name, file)| (name.clone(), file.text().to_owned()))
        .collect();
    environment.set_loader(move |name| Ok(includes.get(name).cloned()));
    Ok(environment)
}

/// The variables. Records whether those that differ between flows were read.
#[derive(Debug)]
struct Variables {
    row: Value,
    fixture: Option<Value>,
    params: Value,
    flow: Value,
    looked: Arc<AtomicBool>,
}

impl Object for Variables {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let varying = match key {
            "fixture" => return self.fixture.clone(),
            "params" => return Some(self.params.clone()),
            "row" => &self.row,
            "flow" => &self.flow,
            _ => return None,
        };
        self.looked.store(true, Ordering::Relaxed);
        Some(varying.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["row", "fixture", "params", "flow"])
    }
}
