//! The expressions in `${ … }`: checked during expansion, evaluated at run time.

use std::ops::Range;
use std::sync::Arc;

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};

use crate::error::{Error, Result};

use super::limits;
use super::place::choice;
use super::visible::{Fields, Readable, Reads, Visible, context};
use super::work::Part;

/// Evaluates the expressions in prompts.
///
/// Answers are data: a `${…}` or `{{…}}` in an answer stays text.
#[derive(Debug)]
pub struct Resolver {
    environment: Environment<'static>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new()
    }
}

impl Resolver {
    pub fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        limits::limit(&mut environment);
        // `debug` prints the whole context, in unspecified order.
        environment.remove_global("debug");
        Self { environment }
    }

    /// Builds the message of `prompt`.
    ///
    /// # Errors
    ///
    /// The flow fails (exit code 100) if an expression does: it names a step that has no answer yet, or
    /// computes something that the answer does not allow.
    pub fn message(&self, prompt: &[Part], visible: &dyn Visible) -> Result<String> {
        let mut message = String::new();
        // A late step of a long flow could read a lot, so gather only what is named.
        let mut reads = Reads::default();
        for part in prompt {
            if let Part::Expr(source) = part {
                reads.add(&tokens(source));
            }
        }
        let context = context(&reads, visible);
        for part in prompt {
            match part {
                Part::Text(text) => message.push_str(text),
                Part::Expr(source) => {
                    let value = self.evaluate(source, &context).map_err(|error| {
                        Error::flow(format!("failed to resolve `${{{source}}}`")).caused_by(error)
                    })?;
                    message.push_str(&value);
                }
            }
        }
        Ok(message)
    }

    fn evaluate(&self, source: &str, context: &Value) -> Result<String, minijinja::Error> {
        let expression = self
            .environment
            .compile_expression_owned(source.to_owned())?;
        let value = expression.eval(context)?;
        if value.is_undefined() {
            return Err(minijinja::Error::new(
                ErrorKind::UndefinedError,
                "the expression has no value",
            ));
        }
        Ok(value.to_string())
    }

    /// Checks an expression: its syntax, that it reads only fields of steps that it may read, and that every
    /// filter, test and method in it exists.
    pub(super) fn check(&self, source: &str, steps: &StepNames) -> Result<(), Wrong> {
        if source.is_empty() {
            return Err(Wrong::new(0, "empty `${}`").hint(ESCAPE));
        }
        let expression = self
            .environment
            .compile_expression_owned(source.to_owned())
            .map_err(|error| {
                let at = error.range().map_or(0, |range| range.start);
                Wrong::new(at, what(&error)).hint(ESCAPE)
            })?;
        let tokens = tokens(source);
        for name in expression.undeclared_variables(false) {
            let known = self.environment.globals().any(|(global, _)| global == name);
            let in_loop = steps.previous.is_some();
            let of_loop = in_loop && matches!(&*name, "previous" | "generation");
            if !matches!(&*name, "steps" | "scratchpad") && !of_loop && !known {
                let at = tokens.iter().find(|token| token.text == name);
                return Err(unknown_variable(
                    at.map_or(0, |token| token.range.start),
                    &name,
                ));
            }
        }
        for index in 0..tokens.len() {
            if is_variable(&tokens, index, "steps") {
                check_reference(&tokens[index..], steps)?;
            } else if let Some(fields) = steps.previous
                && is_variable(&tokens, index, "previous")
            {
                check_field(
                    &tokens[index + 1..],
                    tokens[index].range.start,
                    "previous",
                    fields,
                )?;
            }
        }
        // The answers are not known yet, so the expression may fail on sample data. But a filter that does
        // not exist now will not exist then either.
        let mut reads = Reads::default();
        reads.add(&tokens);
        match expression.eval(context(&reads, steps)) {
            Err(error) if is_unknown_name(error.kind()) => {
                let at = error.range().map_or(0, |range| range.start);
                Err(Wrong::new(at, what(&error)).hint(
                    "filters, tests and methods are those of minijinja, with Python's str methods",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// The steps of a template, as seen by the expressions of one of them.
pub(super) struct StepNames<'a> {
    /// Id of the step that contains the expressions.
    pub(super) own: &'a str,
    /// What it can read of the step with a given id.
    pub(super) known: &'a dyn Fn(&str) -> Known,
    pub(super) all: &'a [&'a str],
    /// The fields of `previous`, in a loop.
    pub(super) previous: Option<Fields>,
}

/// What the expressions of a step can read of another step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Nothing,
    /// The step may not have ended yet.
    Unneeded,
    /// The step has these fields.
    Readable(Fields),
}

/// Sample results of the readable steps, to evaluate expressions on.
impl Visible for StepNames<'_> {
    fn step(&self, name: &str) -> Option<Arc<Readable>> {
        match (self.known)(name) {
            Known::Readable(fields) => Some(Arc::new(Readable::sample(fields))),
            Known::Nothing | Known::Unneeded => None,
        }
    }

    fn previous(&self) -> Option<Arc<Readable>> {
        self.previous
            .map(|fields| Arc::new(Readable::sample(fields)))
    }

    fn generation(&self) -> Option<usize> {
        self.previous.map(|_| 1)
    }

    fn scratchpad(&self) -> String {
        "trial 1: ok".to_owned()
    }
}

impl Reads {
    fn add(&mut self, tokens: &[Token]) {
        for (index, token) in tokens.iter().enumerate() {
            match token.text {
                "steps" => {
                    let id = member(&tokens[index + 1..]);
                    self.steps.extend(id.map(|(id, _)| id.name.to_owned()));
                }
                "previous" => self.previous = true,
                "scratchpad" => self.scratchpad = true,
                _ => {}
            }
        }
    }
}

const ESCAPE: &str =
    "`${…}` is an expression over `steps.<id>.text`; write `$${` for the text `${`";

/// An error in an expression, with its byte offset.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) at: usize,
    pub(super) what: String,
    pub(super) hint: String,
}

impl Wrong {
    fn new(at: usize, what: impl Into<String>) -> Self {
        Self {
            at,
            what: what.into(),
            hint: String::new(),
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// The text of a minijinja error, without the name and line that it assigns to nameless sources.
pub(super) fn what(error: &minijinja::Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return format!(
            "it does not end within {} instructions",
            limits::INSTRUCTIONS
        );
    }
    match error.detail() {
        Some(detail) if error.kind() == ErrorKind::SyntaxError => format!("syntax error: {detail}"),
        // The detail already states the kind.
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    }
}

fn is_unknown_name(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::UnknownFilter
            | ErrorKind::UnknownTest
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownMethod
    )
}

fn unknown_variable(at: usize, name: &str) -> Wrong {
    let wrong = Wrong::new(at, format!("unknown variable `{name}`"));
    match name {
        "row" | "fixture" | "flow" => wrong.hint(format!(
            "`${{…}}` is evaluated at run time, `{{{{ {name}… }}}}` during expansion: use the latter"
        )),
        "params" => wrong.hint(
            "`${…}` is evaluated at run time, `{{ params.… }}` during expansion: use the latter",
        ),
        "previous" | "generation" => wrong.hint("only the steps of a [[loop]] have it"),
        _ => wrong.hint(ESCAPE),
    }
}

/// Checks that `tokens`, the first of which is `steps`, continue with `.id.text` or `["id"]["text"]`.
fn check_reference(tokens: &[Token], steps: &StepNames) -> Result<(), Wrong> {
    let at = tokens[0].range.start;
    let Some((id, rest)) = member(&tokens[1..]) else {
        return Err(Wrong::new(at, "`steps` must be followed by a step's id")
            .hint("write `steps.<id>.text`, or `steps['<id>'].text`"));
    };
    let known = (steps.known)(id.name);
    if known == Known::Nothing {
        return Err(
            Wrong::new(id.range.start, format!("unknown step `{}`", id.name))
                .hint(choice(id.name, "steps", steps.all)),
        );
    }
    if id.name == steps.own {
        return Err(Wrong::new(id.range.start, "the step reads its own answer")
            .hint("a prompt can use only answers of steps that ended earlier"));
    }
    let Known::Readable(fields) = known else {
        let what = format!("the step `{}` is read but is not a dependency", id.name);
        let hint = if steps.previous.is_some() {
            format!(
                "add \"{}\" to the `needs` of the step `{}`, or read `previous`, the result \
                 of the preceding generation",
                id.name, steps.own
            )
        } else {
            format!(
                "add \"{}\" to the `needs` of the step `{}`",
                id.name, steps.own
            )
        };
        return Err(Wrong::new(id.range.start, what).hint(hint));
    };
    check_field(rest, at, &format!("steps.{}", id.name), fields)
}

/// Checks that `tokens` access a field of a step. `of` is the source text of the step, at offset `at`.
fn check_field(tokens: &[Token], at: usize, of: &str, fields: Fields) -> Result<(), Wrong> {
    let hint = match fields {
        Fields::Answers => format!("write `{of}.text`: a step's answer is its `text`"),
        Fields::Scored => format!("`{of}` has: {}", fields.names().join(", ")),
    };
    match member(tokens) {
        Some((field, _)) if fields.names().contains(&field.name) => Ok(()),
        Some((field, _)) => {
            Err(Wrong::new(field.range.start, format!("a step has no `{}`", field.name)).hint(hint))
        }
        None => Err(Wrong::new(at, format!("`{of}` is not text")).hint(hint)),
    }
}

struct Member<'a> {
    name: &'a str,
    range: Range<usize>,
}

/// The member accessed by the first tokens, and the tokens after it.
fn member<'a, 't>(tokens: &'t [Token<'a>]) -> Option<(Member<'a>, &'t [Token<'a>])> {
    let texts: Vec<&str> = tokens.iter().take(3).map(|token| token.text).collect();
    let (name, rest, token) = match texts[..] {
        [".", name, ..] => (name, &tokens[2..], &tokens[1]),
        ["[", name, "]"] if name.starts_with(['"', '\'']) => {
            (name.trim_matches(['"', '\'']), &tokens[3..], &tokens[1])
        }
        _ => return None,
    };
    let range = token.range.clone();
    Some((Member { name, range }, rest))
}

/// Whether the token at `index` is the variable `name`, rather than a member, filter, test or keyword
/// argument of that name.
fn is_variable(tokens: &[Token], index: usize, name: &str) -> bool {
    let before = index.checked_sub(1).map(|before| tokens[before].text);
    let after = tokens.get(index + 1).map(|token| token.text);
    let twice = tokens.get(index + 2).map(|token| token.text);
    tokens[index].text == name
        && !matches!(before, Some("." | "|" | "is"))
        && (after != Some("=") || twice == Some("="))
}

/// A token of an expression: a word, a quoted string, or any other single character.
struct Token<'a> {
    text: &'a str,
    range: Range<usize>,
}

fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = source[at..].chars().next() {
        let rest = &source[at..];
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if first == '"' || first == '\'' {
            string_length(rest, first)
        } else if word(first) {
            rest.find(|c| !word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        if !first.is_whitespace() {
            tokens.push(Token {
                text: &rest[..length],
                range: at..at + length,
            });
        }
        at += length;
    }
    tokens
}

/// Length of the string at the start of `rest`, including its quotes.
fn string_length(rest: &str, quote: char) -> usize {
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        if character == '\\' {
            characters.next();
        } else if character == quote {
            return at + 1;
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;
    use crate::flow::Scored;
    use proptest::prelude::*;

    /// `ok`, or the offset, message and hint of the error.
    fn check(source: &str) -> String {
        let steps = StepNames {
            own: "verifier",
            known: &|name| match name {
                "planner" | "my-step" => Known::Readable(Fields::Answers),
                "best" => Known::Readable(Fields::Scored),
                "executor" | "verifier" => Known::Unneeded,
                _ => Known::Nothing,
            },
            all: &["planner", "executor", "my-step", "verifier", "best"],
            previous: None,
        };
        match Resolver::new().check(source, &steps) {
            Ok(()) => "ok".into(),
            Err(Wrong { at, what, hint }) => format!("{at}: {what}\nhint: {hint}"),
        }
    }

    #[test]
    fn valid_expressions() {
        for source in [
            "steps.planner.text",
            "steps['planner'].text",
            "steps[\"my-step\"]['text'] | upper",
            "steps.planner.text.strip().split('\\n')[0]",
            "steps . planner . text | default('steps.executor')",
            "steps.planner.text | replace('a', 'b') ~ range(3) | join(',')",
            "steps.planner.text | int + 1",
            "steps.planner.text[:200] if 'steps' in steps.planner.text else '{}'",
            "steps.planner.texts | join('; ')",
            "steps.best.score if steps.best.score is not none else steps.best.detail",
            "scratchpad",
            "'constant'",
        ] {
            assert_eq!(check(source), "ok", "{source}");
        }
    }

    #[test]
    fn invalid_expressions() {
        insta::assert_snapshot!(check(""), @"
        0: empty `${}`
        hint: `${…}` is an expression over `steps.<id>.text`; write `$${` for the text `${`
        ");
        insta::assert_snapshot!(check("steps.planner.text |"), @"
        19: syntax error: unexpected end of input, expected identifier
        hint: `${…}` is an expression over `steps.<id>.text`; write `$${` for the text `${`
        ");
        insta::assert_snapshot!(check("a b"), @"
        2: syntax error: unexpected input after expression
        hint: `${…}` is an expression over `steps.<id>.text`; write `$${` for the text `${`
        ");
        insta::assert_snapshot!(check("HOME"), @"
        0: unknown variable `HOME`
        hint: `${…}` is an expression over `steps.<id>.text`; write `$${` for the text `${`
        ");
        insta::assert_snapshot!(check("steps.planner.text ~ row.task"), @"
        21: unknown variable `row`
        hint: `${…}` is evaluated at run time, `{{ row… }}` during expansion: use the latter
        ");
        insta::assert_snapshot!(check("steps.plannr.text"), @"
        6: unknown step `plannr`
        hint: did you mean `planner`? steps: planner, executor, my-step, verifier, best
        ");
        insta::assert_snapshot!(check("1 ~ steps['executor'].text"), @r#"
        10: the step `executor` is read but is not a dependency
        hint: add "executor" to the `needs` of the step `verifier`
        "#);
        insta::assert_snapshot!(check("steps.verifier.text"), @"
        6: the step reads its own answer
        hint: a prompt can use only answers of steps that ended earlier
        ");
        insta::assert_snapshot!(check("steps.planner.tokens"), @"
        14: a step has no `tokens`
        hint: write `steps.planner.text`: a step's answer is its `text`
        ");
        insta::assert_snapshot!(check("steps.best.scor"), @"
        11: a step has no `scor`
        hint: `steps.best` has: text, texts, score, scores, outcome, outcomes, detail, details, answer, answers
        ");
        insta::assert_snapshot!(check("previous.text"), @"
        0: unknown variable `previous`
        hint: only the steps of a [[loop]] have it
        ");
        insta::assert_snapshot!(check("steps.planner"), @"
        0: `steps.planner` is not text
        hint: write `steps.planner.text`: a step's answer is its `text`
        ");
        insta::assert_snapshot!(check("steps"), @"
        0: `steps` must be followed by a step's id
        hint: write `steps.<id>.text`, or `steps['<id>'].text`
        ");
        insta::assert_snapshot!(check("steps[steps.planner.text].text"), @"
        0: `steps` must be followed by a step's id
        hint: write `steps.<id>.text`, or `steps['<id>'].text`
        ");
        insta::assert_snapshot!(check("steps.planner.text | uper"), @"
        21: filter uper is unknown
        hint: filters, tests and methods are those of minijinja, with Python's str methods
        ");
        insta::assert_snapshot!(check("steps.planner.text.stripp()"), @"
        18: string has no method named stripp
        hint: filters, tests and methods are those of minijinja, with Python's str methods
        ");
    }

    #[test]
    fn loops_have_a_previous_generation() {
        let check = |source: &str| {
            let steps = StepNames {
                own: "child",
                known: &|name| match name {
                    "best" => Known::Readable(Fields::Scored),
                    "root" | "child" => Known::Unneeded,
                    _ => Known::Nothing,
                },
                all: &["root", "child", "best"],
                previous: Some(Fields::Scored),
            };
            match Resolver::new().check(source, &steps) {
                Ok(()) => "ok".into(),
                Err(Wrong { at, what, .. }) => format!("{at}: {what}"),
            }
        };
        assert_eq!(
            check("previous.text ~ previous['score'] ~ generation"),
            "ok"
        );
        assert_eq!(check("'x' ~ previous"), "6: `previous` is not text");
        assert_eq!(check("previous.tokens"), "9: a step has no `tokens`");
        assert_eq!(
            check("steps.root.text"),
            "6: the step `root` is read but is not a dependency"
        );
    }

    /// A step that has ended, possibly in a loop. Counts how often the scratchpad was requested.
    #[derive(Default)]
    struct Ended {
        name: &'static str,
        readable: Arc<Readable>,
        generation: Option<usize>,
        gathered: std::cell::Cell<usize>,
    }

    impl Visible for Ended {
        fn step(&self, name: &str) -> Option<Arc<Readable>> {
            (name == self.name).then(|| Arc::clone(&self.readable))
        }

        fn previous(&self) -> Option<Arc<Readable>> {
            self.generation.map(|_| Arc::clone(&self.readable))
        }

        fn generation(&self) -> Option<usize> {
            self.generation
        }

        fn scratchpad(&self) -> String {
            self.gathered.set(self.gathered.get() + 1);
            "trial 1".to_owned()
        }
    }

    fn answer(text: &str) -> Ended {
        Ended {
            name: "planner",
            readable: Arc::new(Readable {
                texts: vec![text.to_owned()],
                scored: None,
            }),
            ..Ended::default()
        }
    }

    #[test]
    fn only_named_results_are_gathered() {
        let reads = |source: &str| {
            let mut reads = Reads::default();
            reads.add(&tokens(source));
            let steps: Vec<String> = reads.steps.into_iter().collect();
            (steps.join(" "), reads.previous, reads.scratchpad)
        };
        assert_eq!(
            reads("steps.a.text ~ steps [ 'my-step' ].score ~ 'steps.b previous'"),
            ("a my-step".to_owned(), false, false)
        );
        assert_eq!(
            reads("previous.text ~ scratchpad|length"),
            (String::new(), true, true)
        );
        let ended = answer("x");
        let message = |source: &str| {
            let twice = [Part::Expr(source.to_owned()), Part::Expr(source.to_owned())];
            Resolver::new()
                .message(&twice, &ended)
                .expect("it resolves")
        };
        assert_eq!(message("steps.planner.text"), "xx");
        assert_eq!(ended.gathered.get(), 0);
        assert_eq!(message("scratchpad"), "trial 1trial 1");
        assert_eq!(ended.gathered.get(), 1, "once a message");
    }

    #[test]
    fn fields_of_scored_steps_can_be_read() {
        let best = Readable {
            texts: vec!["a".to_owned(), "b".to_owned()],
            scored: Some(vec![
                Scored {
                    score: Some(2.5),
                    outcome: "ok".to_owned(),
                    ..Scored::default()
                },
                Scored {
                    outcome: "timeout".to_owned(),
                    detail: "too slow".to_owned(),
                    ..Scored::default()
                },
            ]),
        };
        let visible = Ended {
            name: "best",
            readable: Arc::new(best),
            generation: Some(3),
            ..Ended::default()
        };
        let text = |source: &str| {
            let prompt = [Part::Expr(source.to_owned())];
            Resolver::new()
                .message(&prompt, &visible)
                .expect("it resolves")
        };
        assert_eq!(text("steps.best.text ~ steps.best.score"), "a2.5");
        assert_eq!(
            text("steps.best.texts[1] ~ previous.outcomes[1] ~ previous.details[1]"),
            "btimeouttoo slow"
        );
        assert_eq!(text("previous.scores[1] is none"), "True");
        assert_eq!(text("generation ~ scratchpad"), "3trial 1");
    }

    #[test]
    fn answers_are_inserted_verbatim() {
        let resolver = Resolver::new();
        let answers = answer("look for ${steps.x.text} and {{ row }}<&>\n");
        let prompt = [
            Part::Text("Carry out ${literally}: ".into()),
            Part::Expr("steps.planner.text".into()),
            Part::Text("!".into()),
            Part::Expr("steps['planner'].text | length".into()),
        ];
        assert_eq!(
            resolver.message(&prompt, &answers).expect("it resolves"),
            "Carry out ${literally}: look for ${steps.x.text} and {{ row }}<&>\n!42"
        );
        assert_eq!(resolver.message(&[], &answers).expect("it resolves"), "");
    }

    #[test]
    fn a_failing_expression_fails_the_flow() {
        let resolver = Resolver::new();
        let answers = answer("one line");
        for source in [
            "steps.executor.text",
            "steps.planner.text.splitlines()[7]",
            "steps.planner.text / 2",
        ] {
            let error = resolver
                .message(&[Part::Expr(source.into())], &answers)
                .expect_err("it cannot be resolved");
            assert_eq!(error.exit(), Exit::FlowFailed);
            assert!(error.to_string().contains(source), "{error}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(source in r#"(steps|planner|text|[\[\].'"|(){}=~ä ]|\PC){0,24}"#) {
            let steps = StepNames {
                own: "a",
                known: &|name| match name {
                    "planner" => Known::Readable(Fields::Answers),
                    "a" => Known::Unneeded,
                    _ => Known::Nothing,
                },
                all: &["planner", "a"],
                previous: Some(Fields::Scored),
            };
            let wrong = Resolver::new().check(&source, &steps);
            if let Err(wrong) = wrong {
                prop_assert!(wrong.at <= source.len());
            }
        }
    }
}
