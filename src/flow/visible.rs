//! What the `${ … }` of a step can read: what has come of the steps before it.

use minijinja::Value;

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

/// Everything that a step's expressions can name.
#[derive(Debug, Default)]
pub struct Visible<'a> {
    /// The steps that have ended before, by the names that the template knows them by.
    pub steps: Vec<(&'a str, &'a Readable)>,
    /// In a loop: what it started from, or what the generation before has carried over.
    pub previous: Option<&'a Readable>,
    /// In a loop: the number of the generation, from 1.
    pub generation: Option<usize>,
    /// What was tried before, a line a trial.
    pub scratchpad: String,
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

    fn value(&self) -> Value {
        let first = self.texts.first().map_or("", String::as_str);
        let mut pairs = vec![
            ("text", Value::from(first)),
            ("texts", self.texts.iter().map(String::as_str).collect()),
        ];
        if let Some(scored) = &self.scored {
            let mut field = |one, all, get: &dyn Fn(&Scored) -> Value| {
                let values: Vec<Value> = scored.iter().map(get).collect();
                pairs.push((
                    one,
                    values.first().cloned().unwrap_or_else(|| Value::from(())),
                ));
                pairs.push((all, Value::from(values)));
            };
            field("score", "scores", &|scored| Value::from(scored.score));
            field("outcome", "outcomes", &|scored| {
                Value::from(scored.outcome.as_str())
            });
            field("detail", "details", &|scored| {
                Value::from(scored.detail.as_str())
            });
            field("answer", "answers", &|scored| {
                Value::from(scored.answer.clone())
            });
        }
        Value::from_pairs(pairs)
    }
}

impl Visible<'_> {
    pub(super) fn value(&self) -> Value {
        let steps = self
            .steps
            .iter()
            .map(|(name, readable)| (*name, readable.value()));
        let mut pairs = vec![
            ("steps", Value::from_pairs(steps)),
            ("scratchpad", Value::from(self.scratchpad.as_str())),
        ];
        if let Some(previous) = self.previous {
            pairs.push(("previous", previous.value()));
        }
        if let Some(generation) = self.generation {
            pairs.push(("generation", Value::from(generation)));
        }
        Value::from_pairs(pairs)
    }
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
