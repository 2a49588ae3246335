//! What the `${ … }` of a step can read: what has come of the steps before it.

use std::collections::BTreeSet;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object};

/// What has come of a step, as later steps read it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Readable {
    /// The answers, programs included, in the order of the samples; of a selection, the best first.
    pub texts: Vec<String>,
    /// What each of them was found to be worth, where the step is one that scores.
    pub scored: Option<Vec<Scored>>,
}

/// What an answer was found to be worth.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// The score; none where there is no valid one.
    pub score: Option<f64>,
    /// How the evaluation or the check ended, in one word.
    pub outcome: String,
    /// What was wrong, in a sentence; empty where nothing was.
    pub detail: String,
    /// The answer that was taken from the text, where one was looked for.
    pub answer: Option<String>,
}

/// Everything that a step's expressions can name. It is asked for what they do name.
pub trait Visible {
    /// A step that has ended before, by the name that the template knows it by.
    fn step(&self, name: &str) -> Option<Arc<Readable>>;

    /// In a loop: what it started from, or what the generation before has carried over.
    fn previous(&self) -> Option<Arc<Readable>>;

    /// In a loop: the number of the generation, from 1.
    fn generation(&self) -> Option<usize>;

    /// What was tried before, a line a trial.
    fn scratchpad(&self) -> String;
}

impl Readable {
    /// Something that has every field of its kind, to try expressions on.
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

    /// One of its fields.
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

/// A step may have thousands of samples: a field is made when it is read.
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

/// What expressions are evaluated on, with what they name in it.
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

/// Which fields a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fields {
    /// `text` and `texts`.
    Answers,
    /// Those, and what the answers were found to be worth.
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
