//! Laws of expressions.

use std::sync::Arc;

use super::expression::{Known, StepNames};
use super::split::{Piece, split};
use super::visible::Fields;
use super::{Part, Readable, Resolver, Scored, Visible};

/// Answers that a model may give.
struct Answers;

impl Visible for Answers {
    fn step(&self, _: &str) -> Option<Arc<Readable>> {
        Some(Arc::new(Readable {
            texts: vec!["Ein Käse, 12 %".to_owned(), "${steps.a.text}".to_owned()],
            scored: Some(vec![Scored {
                score: Some(0.5),
                outcome: "ok".to_owned(),
                detail: "line 1\nline 2".to_owned(),
                answer: None,
            }]),
        }))
    }

    fn previous(&self) -> Option<Arc<Readable>> {
        self.step("previous")
    }

    fn generation(&self) -> Option<usize> {
        Some(2)
    }

    fn scratchpad(&self) -> String {
        "trial 1: ok".to_owned()
    }
}

/// The pieces of a text are in its order and lie within it. Each expression is checked and evaluated, and
/// ends.
pub(crate) fn expression(text: &str) {
    let Ok(pieces) = split(text) else {
        return;
    };
    let resolver = Resolver::new();
    let names = StepNames {
        own: "own",
        known: &|name| match name {
            "a" | "b" => Known::Readable(Fields::Scored),
            "late" => Known::Unneeded,
            _ => Known::Nothing,
        },
        all: &["a", "b", "late", "own"],
        previous: Some(Fields::Scored),
    };
    let mut end = 0;
    for piece in pieces {
        let Piece::Expr { source, offset } = piece else {
            continue;
        };
        assert!(end <= offset && offset <= text.len());
        end = offset + source.len();
        assert_eq!(text.get(offset..end), Some(source.as_str()));
        if let Err(wrong) = resolver.check(&source, &names) {
            assert!(!wrong.what.is_empty() && wrong.at <= source.len());
        }
        let _ = resolver.message(&[Part::Expr(source)], &Answers);
    }
}
