//! The kinds of work of a step, as stored in an expanded flow.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Generates with the model.
    Generate(Generate),
    /// Runs the programs in another step's answers and scores their results.
    Evaluate(Evaluate),
    /// Checks another step's answers against the expected answer.
    Verify(Verify),
    /// Asks the model whether an answer and the expected one mean the same, in both orders.
    Judge(Judge),
    /// Keeps the best of the scored results.
    Select(Select),
}

/// Generation: one prompt, with one or more answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Whether to continue a conversation or start a new one.
    pub context: Context,
    /// The user message, as parts to be concatenated.
    pub prompt: Vec<Part>,
    /// Number of answers, each with its own seed; they share one prefill.
    #[serde(default = "one_sample", skip_serializing_if = "is_one")]
    pub samples: usize,
    /// Maximum number of tokens to generate.
    pub max_tokens: usize,
    /// 0 is greedy.
    #[serde(default)]
    pub temperature: f32,
    /// Nucleus sampling; 1 keeps all tokens.
    #[serde(default = "one")]
    pub top_p: f32,
    /// Number of most likely tokens to keep; 0 keeps all.
    #[serde(default)]
    pub top_k: usize,
}

/// Evaluation of generated programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// The step whose answers contain the programs.
    pub of: String,
    pub task: Task,
    /// Time limit of a program (ms).
    pub timeout_ms: u64,
}

/// The task of a generated program, which determines its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Place 26 circles in the unit square; the score is the sum of their radii.
    Packing,
}

impl Task {
    /// The names of the tasks in templates.
    pub const NAMES: &'static [&'static str] = &["packing"];

    pub fn named(name: &str) -> Option<Self> {
        (name == "packing").then_some(Self::Packing)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// The step whose answers are checked.
    pub of: String,
    /// The question, which is part of the key of cached verdicts.
    pub question: Vec<Part>,
    /// The expected answer.
    pub expected: Vec<Part>,
    /// How both are compared.
    #[serde(default, skip_serializing_if = "How::is_math")]
    pub how: How,
}

/// How an answer is compared with the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum How {
    /// As numbers, words, lists and expressions, in the last `\boxed{}`.
    #[default]
    Math,
    /// The letter of a multiple choice.
    Choice {
        /// Whether a letter that stands alone anywhere counts.
        lenient: bool,
    },
    /// The whole response.
    Exact,
    /// Somewhere in the response.
    Contains,
    /// The expected text is a regular expression that matches somewhere in the response.
    Regex,
    /// The last number, within a tolerance: the larger of a share of the expected number and an absolute one.
    Numeric { relative: f64, absolute: f64 },
}

impl How {
    /// The names on their own, for templates.
    pub(super) const NAMES: [&'static str; 6] =
        ["math", "choice", "exact", "contains", "regex", "numeric"];

    /// A name's default form.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "math" => Self::Math,
            "choice" => Self::Choice { lenient: false },
            "exact" => Self::Exact,
            "contains" => Self::Contains,
            "regex" => Self::Regex,
            "numeric" => Self::Numeric {
                relative: 1e-6,
                absolute: 0.0,
            },
            _ => return None,
        })
    }

    fn is_math(&self) -> bool {
        *self == Self::Math
    }
}

/// Judgement of answers by the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// The step whose answers are judged. If it is a `verify` step, only those it left undecided.
    pub of: String,
    pub question: Vec<Part>,
    /// The expected answer.
    pub expected: Vec<Part>,
    /// Maximum number of tokens of a verdict.
    pub max_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// The steps whose results are candidates. Their order breaks ties between equal scores.
    pub of: Vec<String>,
    /// How many are kept, best first.
    pub keep: usize,
}

/// Whether a step continues a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Context {
    /// A new conversation: the system message and this step's prompt.
    #[default]
    Fresh,
    /// Continues the conversation of the only step it needs: that step's messages, its answer, then this
    /// step's prompt.
    Append,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Text that was fully rendered during expansion.
    Text(String),
    /// The content of a `${ … }`: a minijinja expression over `steps.<id>.text` and other results of
    /// earlier steps, evaluated once those steps have ended.
    Expr(String),
}

impl Part {
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Expr(_) => None,
        }
    }
}

impl Work {
    /// The kind, as named in templates.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Generate(_) => "generate",
            Self::Evaluate(_) => "evaluate",
            Self::Verify(_) => "verify",
            Self::Judge(_) => "judge",
            Self::Select(_) => "select",
        }
    }

    /// The steps whose results it works on, not counting those its texts refer to.
    pub fn of(&self) -> &[String] {
        match self {
            Self::Generate(_) => &[],
            Self::Evaluate(Evaluate { of, .. })
            | Self::Verify(Verify { of, .. })
            | Self::Judge(Judge { of, .. }) => std::slice::from_ref(of),
            Self::Select(select) => &select.of,
        }
    }

    /// Renames those steps.
    pub(super) fn renamed(mut self, name: impl Fn(&str) -> String) -> Self {
        let of = match &mut self {
            Self::Generate(_) => &mut [][..],
            Self::Evaluate(Evaluate { of, .. })
            | Self::Verify(Verify { of, .. })
            | Self::Judge(Judge { of, .. }) => std::slice::from_mut(of),
            Self::Select(select) => &mut select.of[..],
        };
        for id in of {
            *id = name(id);
        }
        if let Self::Select(select) = &mut self {
            // `previous` may be a step that is also named.
            let mut seen = BTreeSet::new();
            select.of.retain(|id| seen.insert(id.clone()));
        }
        self
    }

    /// Sets the texts: the prompt, or the question and the expected answer.
    pub(super) fn with_texts(mut self, texts: Vec<Vec<Part>>) -> Self {
        let mut texts = texts.into_iter();
        let mut next = || texts.next().unwrap_or_default();
        match &mut self {
            Self::Generate(generate) => generate.prompt = next(),
            Self::Verify(Verify {
                question, expected, ..
            })
            | Self::Judge(Judge {
                question, expected, ..
            }) => {
                *question = next();
                *expected = next();
            }
            Self::Evaluate(_) | Self::Select(_) => {}
        }
        self
    }
}

fn one() -> f32 {
    1.0
}

fn one_sample() -> usize {
    1
}

fn is_one(samples: &usize) -> bool {
    *samples == 1
}
