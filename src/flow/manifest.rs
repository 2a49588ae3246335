//! The keys of a template's TOML with their positions, and the checks of individual keys.

use serde::Deserialize;
use toml::Spanned;

use crate::error::{Error, Result};

use super::Context;
use super::params::{Count, ParamKeys, Params};
use super::place::{SourceFile, closest};

/// The supported version of the template format.
const SCHEMA: i64 = 1;

/// Default of `max_tokens` for generation.
const DEFAULT_MAX_TOKENS: usize = 128;

/// Default of `max_tokens` for a judge.
const DEFAULT_VERDICT_TOKENS: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateKeys {
    #[serde(rename = "schema")]
    _schema: i64,
    pub(super) name: Spanned<String>,
    pub(super) description: Option<String>,
    pub(super) suite: Option<Spanned<String>>,
    pub(super) fixture: Option<Spanned<FixtureKeys>>,
    pub(super) params: Option<ParamKeys>,
    pub(super) system: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) step: Vec<StepKeys>,
    #[serde(default)]
    pub(super) r#loop: Vec<LoopKeys>,
}

/// The fixture: a folder in `fixtures/`, or a file of rows there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FixtureKeys {
    pub(super) dir: Option<Spanned<String>>,
    pub(super) include: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) rows: Option<Spanned<String>>,
}

/// The keys of a step. Which of them are allowed depends on its kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepKeys {
    pub(super) id: Spanned<String>,
    pub(super) kind: Option<Spanned<Kind>>,
    #[serde(default = "no_needs")]
    pub(super) needs: Spanned<Vec<Spanned<String>>>,
    pub(super) context: Option<Spanned<Context>>,
    pub(super) prompt: Option<Spanned<String>>,
    pub(super) samples: Option<Spanned<Count>>,
    pub(super) max_tokens: Option<Spanned<Count>>,
    pub(super) temperature: Option<Spanned<f32>>,
    pub(super) top_p: Option<Spanned<f32>>,
    pub(super) top_k: Option<Spanned<i64>>,
    pub(super) of: Option<Spanned<Names>>,
    pub(super) task: Option<Spanned<String>>,
    pub(super) timeout_ms: Option<Spanned<Count>>,
    pub(super) question: Option<Spanned<String>>,
    pub(super) expected: Option<Spanned<String>>,
    pub(super) how: Option<Spanned<HowKeys>>,
    pub(super) keep: Option<Spanned<Count>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    #[default]
    Generate,
    Evaluate,
    Verify,
    Judge,
    Select,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Evaluate => "evaluate",
            Self::Verify => "verify",
            Self::Judge => "judge",
            Self::Select => "select",
        }
    }

    /// The keys allowed for this kind, besides `id`, `kind` and `needs`.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Generate => &[
                "context",
                "prompt",
                "samples",
                "max_tokens",
                "temperature",
                "top_p",
                "top_k",
            ],
            Self::Evaluate => &["of", "task", "timeout_ms"],
            Self::Verify => &["of", "question", "expected", "how"],
            Self::Judge => &["of", "question", "expected", "max_tokens"],
            Self::Select => &["of", "keep"],
        }
    }
}

/// How answers are compared: a name, or a name with its settings.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a name, or a table of one name and its settings"
)]
pub(super) enum HowKeys {
    Name(String),
    Settings(HowSettings),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum HowSettings {
    Choice(Extraction),
    Numeric(ToleranceKeys),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Extraction {
    Strict,
    Lenient,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToleranceKeys {
    #[serde(default)]
    pub(super) relative: f64,
    #[serde(default)]
    pub(super) absolute: f64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a step's id, or a list of them")]
pub(super) enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    pub(super) fn list(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoopKeys {
    pub(super) generations: Spanned<Count>,
    pub(super) steps: Spanned<Vec<Spanned<String>>>,
    pub(super) start: Spanned<String>,
    pub(super) carry: Spanned<String>,
}

fn no_needs() -> Spanned<Vec<Spanned<String>>> {
    Spanned::new(0..0, Vec::new())
}

impl StepKeys {
    pub(super) fn kind(&self) -> Kind {
        self.kind
            .as_ref()
            .map_or(Kind::default(), |kind| *kind.get_ref())
    }

    /// Rejects keys that are not allowed for the step's kind.
    pub(super) fn check_keys(&self, file: &SourceFile) -> Result<()> {
        fn at<T>(key: Option<&Spanned<T>>) -> Option<usize> {
            key.map(|key| key.span().start)
        }
        let given = [
            ("context", at(self.context.as_ref())),
            ("prompt", at(self.prompt.as_ref())),
            ("samples", at(self.samples.as_ref())),
            ("max_tokens", at(self.max_tokens.as_ref())),
            ("temperature", at(self.temperature.as_ref())),
            ("top_p", at(self.top_p.as_ref())),
            ("top_k", at(self.top_k.as_ref())),
            ("of", at(self.of.as_ref())),
            ("task", at(self.task.as_ref())),
            ("timeout_ms", at(self.timeout_ms.as_ref())),
            ("question", at(self.question.as_ref())),
            ("expected", at(self.expected.as_ref())),
            ("how", at(self.how.as_ref())),
            ("keep", at(self.keep.as_ref())),
        ];
        let kind = self.kind();
        for (key, at) in given {
            if let Some(at) = at.filter(|_| !kind.keys().contains(&key)) {
                let what = format!("a step of kind `{}` has no `{key}`", kind.name());
                return Err(file.error(at, what).hint(format!(
                    "its keys: id, kind, needs, {}",
                    kind.keys().join(", ")
                )));
            }
        }
        Ok(())
    }

    /// The error for a missing key that the kind requires.
    pub(super) fn missing(&self, file: &SourceFile, key: &str) -> Error {
        let what = format!(
            "the step `{}` of kind `{}` lacks `{key}`",
            self.id.get_ref(),
            self.kind().name()
        );
        file.error(self.id.span().start, what).hint(format!(
            "`{key}` is {}",
            expected(key).unwrap_or("needed here")
        ))
    }

    pub(super) fn max_tokens(&self, file: &SourceFile, params: &Params) -> Result<usize> {
        let default = match self.kind() {
            Kind::Judge => DEFAULT_VERDICT_TOKENS,
            _ => DEFAULT_MAX_TOKENS,
        };
        let given = self.max_tokens.as_ref();
        params.count(file, given, "max_tokens", default, u32::MAX as usize)
    }

    pub(super) fn top_k(&self, file: &SourceFile) -> Result<usize> {
        whole(file, self.top_k.as_ref(), "top_k", 0, 0)
    }

    pub(super) fn temperature(&self, file: &SourceFile) -> Result<f32> {
        let allowed = |value: f32| value.is_finite() && value >= 0.0;
        decimal(file, self.temperature.as_ref(), "temperature", allowed, 0.0)
    }

    pub(super) fn top_p(&self, file: &SourceFile) -> Result<f32> {
        let allowed = |value: f32| value > 0.0 && value <= 1.0;
        decimal(file, self.top_p.as_ref(), "top_p", allowed, 1.0)
    }
}

fn whole(
    file: &SourceFile,
    given: Option<&Spanned<i64>>,
    key: &str,
    least: i64,
    default: i64,
) -> Result<usize> {
    let value = given.map_or(default, |given| *given.get_ref());
    match usize::try_from(value) {
        Ok(number) if value >= least => Ok(number),
        _ => Err(out_of_range(file, given.map(Spanned::span), key, value)),
    }
}

fn decimal(
    file: &SourceFile,
    given: Option<&Spanned<f32>>,
    key: &str,
    allowed: impl Fn(f32) -> bool,
    default: f32,
) -> Result<f32> {
    let value = given.map_or(default, |given| *given.get_ref());
    if allowed(value) {
        Ok(value)
    } else {
        Err(out_of_range(file, given.map(Spanned::span), key, value))
    }
}

fn out_of_range(
    file: &SourceFile,
    span: Option<std::ops::Range<usize>>,
    key: &str,
    value: impl std::fmt::Display,
) -> Error {
    file.error(
        span.map_or(0, |span| span.start),
        format!("`{key}` cannot be {value}"),
    )
    .hint(format!(
        "`{key}` is {}",
        expected(key).unwrap_or("something else")
    ))
}

/// The expected value of a key, for hints.
fn expected(key: &str) -> Option<&'static str> {
    Some(match key {
        "schema" => "the number 1: schema = 1",
        "name" | "description" | "id" | "dir" | "rows" => "text in quotes",
        "suite" => "the name of a file beside the template: suite = \"three_step.suite.jsonl\"",
        "fixture" => "a table: fixture = { dir = \"helpdesk\" } or { rows = \"tickets.jsonl\" }",
        "include" => "a list of globs: include = [\"**/*.py\", \"**/*.md\"]",
        "system" | "prompt" => "text, in \"\"\" if it has several lines",
        "step" => "a table for each step, headed [[step]]",
        "loop" => "a table for each loop, headed [[loop]]",
        "params" => "a table of numbers and texts: [params], max_generations = 3",
        "kind" => "\"generate\", \"evaluate\", \"verify\", \"judge\" or \"select\"",
        "samples" => "a whole number of at least 1, or a parameter's name: samples = 3",
        "of" => "the id of the step whose results it works on: of = \"answer\"",
        "task" => "what a generated program has to do: task = \"packing\"",
        "timeout_ms" => "how long a program may run, in milliseconds: timeout_ms = 10000",
        "question" => "the question, in quotes: question = \"{{ row.problem }}\"",
        "expected" => "the right answer, in quotes: expected = \"{{ row.answer }}\"",
        "how" => {
            "\"math\", \"choice\", \"exact\", \"contains\", \"regex\" or \"numeric\", or with settings: how = { numeric = { relative = 0.01 } }"
        }
        "keep" => "how many are kept, a whole number of at least 1: keep = 1",
        "generations" => "a whole number of at least 1, or a parameter's name: generations = 3",
        "steps" => "a list of the loop's steps: steps = [\"child\", \"trial\", \"best\"]",
        "start" => "the step before the loop that the first generation starts from, in quotes",
        "carry" => "the step of the loop that the next generation starts from, in quotes",
        "needs" => "a list of steps' ids: needs = [\"planner\"]",
        "context" => "\"fresh\" or \"append\"",
        "max_tokens" => "a whole number of at least 1: max_tokens = 128",
        "temperature" => "a number of at least 0, where 0 is greedy: temperature = 0.7",
        "top_p" => "a number above 0 and at most 1: top_p = 0.95",
        "top_k" => "a whole number, where 0 keeps every token: top_k = 40",
        _ => return None,
    })
}

pub(super) fn parse(file: &SourceFile) -> Result<TemplateKeys> {
    // Parse the schema first: a template of another schema may have unknown keys.
    #[derive(Deserialize)]
    struct Schema {
        schema: Option<Spanned<i64>>,
    }
    let Schema { schema } = toml::from_str(file.text()).map_err(|error| describe(file, &error))?;
    match schema {
        None => Err(file
            .error(0, "the key `schema` is missing")
            .hint("begin the template with: schema = 1")),
        Some(schema) if *schema.get_ref() != SCHEMA => Err(file
            .error(
                schema.span().start,
                format!("templates of schema {} are not supported", schema.get_ref()),
            )
            .hint("this flowbench reads schema = 1")),
        Some(_) => toml::from_str(file.text()).map_err(|error| describe(file, &error)),
    }
}

/// Converts a TOML error, with its position and a hint based on the keys.
fn describe(file: &SourceFile, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(0, |span| span.start);
    let message = error.message();
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match names.split_first() {
        Some((wrong, known)) if message.starts_with("unknown field") => {
            let offer = closest(wrong, known)
                .map_or(String::new(), |key| format!("did you mean `{key}`? "));
            file.error(at, format!("unknown key `{wrong}`"))
                .hint(format!("{offer}known keys here: {}", known.join(", ")))
        }
        Some((missing, _)) if message.starts_with("missing field") => {
            let hint = expected(missing).unwrap_or("needed here");
            file.error(at, format!("the key `{missing}` is missing"))
                .hint(format!("`{missing}` is {hint}"))
        }
        Some((wrong, known)) if message.starts_with("unknown variant") => file
            .error(at, format!("`{wrong}` is not a valid value"))
            .hint(format!("it is one of: {}", known.join(", "))),
        _ if ["invalid type", "invalid value", "expected a "]
            .iter()
            .any(|begin| message.starts_with(begin)) =>
        {
            let error = file.error(at, in_words(message));
            match key_at(file.text(), at) {
                Some((key, hint)) => error.hint(format!("`{key}` is {hint}")),
                None => error,
            }
        }
        _ if message == "duplicate key" => {
            let key = error.span().and_then(|span| file.text().get(span));
            file.error(at, format!("duplicate key `{}`", key.unwrap_or_default()))
                .hint("use each key once; each step has its own [[step]]")
        }
        _ => file.error(at, message).hint(
            "templates are TOML (https://toml.io): text is in quotes, multi-line text in \"\"\"",
        ),
    }
}

/// Replaces the names of Rust types in a message.
fn in_words(message: &str) -> String {
    let Some((found, expected)) = message.split_once(", expected ") else {
        return message.to_owned();
    };
    let expected = match expected {
        "i64" => "a whole number",
        "f32" => "a number",
        "a sequence" => "a list",
        _ if expected.starts_with("struct ") => "a table",
        other => other,
    };
    let found = found.replace(" map", " table");
    format!("{found}, expected {expected}")
}

/// The key whose value starts at `at`, and its expected value.
fn key_at(text: &str, at: usize) -> Option<(&str, &'static str)> {
    let (before, value) = text.split_at_checked(at)?;
    // A table header instead of a value: the header names the key.
    let head = value
        .strip_prefix('[')
        .and_then(|head| head.split(']').next());
    if let Some((key, hint)) = head.and_then(|key| Some((key, expected(key)?))) {
        return Some((key, hint));
    }
    let line_start = before.rfind('\n').map_or(0, |line| line + 1);
    // `key = value`, `table = { key = value`, `key = [value`: the nearest known key.
    before[line_start..]
        .rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .find_map(|word| Some((word, expected(word)?)))
}
