//! What the steps of a flow do: the kinds of work, as an expanded flow holds them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What a step does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Asks the model.
    Generate(Generate),
    /// Runs the programs that another step's answers hold, and scores what they return.
    Evaluate(Evaluate),
    /// Checks another step's answers against the expected one.
    Verify(Verify),
    /// Asks the model whether an answer says the same as the expected one, in both orders.
    Judge(Judge),
    /// Keeps the best of what was scored.
    Select(Select),
}

/// Generation: one prompt, and one or several answers to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Whether the conversation goes on or starts anew.
    pub context: Context,
    /// The user message, in parts; joined they are the message.
    pub prompt: Vec<Part>,
    /// How many answers, each with a seed of its own; their prompt is computed once.
    #[serde(default = "one_sample", skip_serializing_if = "is_one")]
    pub samples: usize,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Temperature; 0 is greedy.
    #[serde(default)]
    pub temperature: f32,
    /// Nucleus sampling; 1 keeps every token.
    #[serde(default = "one")]
    pub top_p: f32,
    /// Keeps the likeliest tokens; 0 keeps every one.
    #[serde(default)]
    pub top_k: usize,
}

/// Evaluation of generated programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// The step whose answers hold the programs.
    pub of: String,
    /// What a program has to do, and how it is scored.
    pub task: Task,
    /// How long a program may run, in milliseconds.
    pub timeout_ms: u64,
}

/// What a generated program has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Place 26 circles in the unit square; the score is the sum of their radii.
    Packing,
}

impl Task {
    /// The tasks by the names that templates know them by.
    pub const NAMES: &'static [&'static str] = &["packing"];

    /// The task of a name.
    pub fn named(name: &str) -> Option<Self> {
        (name == "packing").then_some(Self::Packing)
    }
}

/// Verification of answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// The step whose answers are checked.
    pub of: String,
    /// The question, as the cache of verdicts knows it.
    pub question: Vec<Part>,
    /// The right answer.
    pub expected: Vec<Part>,
}

/// Judgement of answers by the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// The step whose answers are judged. Of a `verify` step, those that it left undecided.
    pub of: String,
    /// The question.
    pub question: Vec<Part>,
    /// The right answer.
    pub expected: Vec<Part>,
    /// Most tokens of a verdict.
    pub max_tokens: usize,
}

/// Selection of the best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// The steps whose results are candidates, in the order that decides among equal scores.
    pub of: Vec<String>,
    /// How many are kept, the best first.
    pub keep: usize,
}

/// Whether a step goes on with a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Context {
    /// A new conversation: the system message and this step's prompt.
    #[default]
    Fresh,
    /// The conversation of the one step that it needs goes on: that step's messages, its answer,
    /// then this step's prompt.
    Append,
}

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Text, complete since the expansion.
    Text(String),
    /// The inside of a `${ … }`: a minijinja expression over `steps.<id>.text` and what else has come
    /// of earlier steps, resolved when those that it names have ended.
    Expr(String),
}

impl Part {
    /// The text, if that is what it is.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Expr(_) => None,
        }
    }
}

impl Work {
    /// The kind, as templates name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Generate(_) => "generate",
            Self::Evaluate(_) => "evaluate",
            Self::Verify(_) => "verify",
            Self::Judge(_) => "judge",
            Self::Select(_) => "select",
        }
    }

    /// The steps whose results it works on, apart from those that its texts read.
    pub fn of(&self) -> &[String] {
        match self {
            Self::Generate(_) => &[],
            Self::Evaluate(Evaluate { of, .. })
            | Self::Verify(Verify { of, .. })
            | Self::Judge(Judge { of, .. }) => std::slice::from_ref(of),
            Self::Select(select) => &select.of,
        }
    }

    /// The same with other names of those steps.
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
            // `previous` may be a step that is named, too.
            let mut seen = BTreeSet::new();
            select.of.retain(|id| seen.insert(id.clone()));
        }
        self
    }

    /// The same with these texts: the prompt, or question and expected answer.
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

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
fn is_one(samples: &usize) -> bool {
    *samples == 1
}
