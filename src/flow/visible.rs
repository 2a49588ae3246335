//! What the `${ … }` of a step can read: the results of earlier steps.

use std::collections::BTreeSet;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object};

/// The result of a step, as later steps read it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readable {
    /// The answers, including programs, in the order of the samples; for a selection, best first.
    pub texts: Vec<String>,
    /// The assessment of each answer, if the step is one that scores.
    pub scored: Option<Vec<Scored>>,
}

/// The assessment of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// `None` if there is no valid score.
    pub score: Option<f64>,
    /// The outcome of the evaluation or the check, as one word.
    pub outcome: String,
    /// What was wrong, as a sentence; empty if nothing was.
    pub detail: String,
    /// The answer extracted from the text, if the step extracts one.
    pub answer: Option<String>,
}

/// Everything that a step's expressions can name. Only the named parts are requested.
pub trait Visible {
    /// An earlier step, by its name in the template.
    fn step(&self, name: &str) -> Option<Arc<Readable>>;

    /// In a loop: its start, or the carried step of the preceding generation.
    fn previous(&self) -> Option<Arc<Readable>>;

    /// In a loop: the number of the generation, from 1.
    fn generation(&self) -> Option<usize>;

    /// Earlier trials, one per line.
    fn scratchpad(&self) -> String;
}

impl Readable {
    /// A value with every field of its kind, to evaluate expressions on.
    pub(super) fn sample(fields: Fields) -> Self {
        let scored = Scored {
            score: Some(1.0),
            outcome: "ok".to_owned(),
            detail: "detail".to_owned(),
            answer: Some("answer".to_owned()),
        };
        Self {
            texts: vec!["answer".to_owned()],
            scored: (fields == Fields::Scored).then(|| vec![scored]),
        }
    }

    fn field(&self, name: &str) -> Option<Value> {
        match name {
            "text" => {
                return Some(Value::from(self.texts.first().map_or("", String::as_str)));
            }
            "texts" => return Some(self.texts.iter().map(String::as_str).collect()),
            _ => {}
        }
        let scored = self.scored.as_ref()?;
        let first = |get: fn(&Scored) -> Value| {
            let first = scored.first().map(get);
            first.unwrap_or_else(|| Value::from(()))
        };
        let all = |get: fn(&Scored) -> Value| scored.iter().map(get).collect();
        let score: fn(&Scored) -> Value = |scored| Value::from(scored.score);
        let outcome: fn(&Scored) -> Value = |scored| Value::from(scored.outcome.as_str());
        let detail: fn(&Scored) -> Value = |scored| Value::from(scored.detail.as_str());
        let answer: fn(&Scored) -> Value = |scored| Value::from(scored.answer.clone());
        Some(match name {
            "score" => first(score),
            "scores" => all(score),
            "outcome" => first(outcome),
            "outcomes" => all(outcome),
            "detail" => first(detail),
            "details" => all(detail),
            "answer" => first(answer),
            "answers" => all(answer),
            _ => return None,
        })
    }
}

/// A step may have thousands of samples, so fields are built when they are read.
impl Object for Readable {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.field(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.field(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(match self.scored {
            None => Fields::Answers.names(),
            Some(_) => Fields::Scored.names(),
        })
    }
}

/// What expressions name: perhaps more than they read, never less.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    /// The steps, by the names that the template has for them.
    pub(super) steps: BTreeSet<String>,
    pub(super) previous: bool,
    pub(super) scratchpad: bool,
}

/// The context of expressions, with what they name.
pub(super) fn context(reads: &Reads, visible: &dyn Visible) -> Value {
    let steps = reads.steps.iter().filter_map(|name| {
        let readable = visible.step(name)?;
        Some((name.as_str(), Value::from_dyn_object(readable)))
    });
    let mut pairs = vec![("steps", Value::from_pairs(steps))];
    if reads.scratchpad {
        pairs.push(("scratchpad", Value::from(visible.scratchpad())));
    }
    if let Some(previous) = visible.previous().filter(|_| reads.previous) {
        pairs.push(("previous", Value::from_dyn_object(previous)));
    }
    if let Some(generation) = visible.generation() {
        pairs.push(("generation", Value::from(generation)));
    }
    Value::from_pairs(pairs)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fields {
    /// `text` and `texts`.
    Answers,
    /// Those, and the assessment of the answers.
    Scored,
}

impl Fields {
    pub(super) fn names(self) -> &'static [&'static str] {
        const ALL: &[&str] = &[
            "text", "texts", "score", "scores", "outcome", "outcomes", "detail", "details",
            "answer", "answers",
        ];
        match self {
            Self::Answers => &ALL[..2],
            Self::Scored => ALL,
        }
    }
}
