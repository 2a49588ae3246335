//! What an answer of a model that thinks aloud holds: an answer, or thoughts alone.

/// How models mark their thoughts in the text: where they begin and where they end.
const MARKS: [(&str, &str); 9] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis", "<|channel|>final"),
];

/// What an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// An answer without any thoughts.
    Answer,
    /// An answer behind its own thoughts.
    AfterThoughts,
    /// An answer behind thoughts that the prompt has begun: many chat templates end in `<think>`.
    AfterBegunThoughts,
    /// Nothing but white space.
    Nothing,
    /// Thoughts that end, and nothing behind them.
    ThoughtsOnly,
    /// Thoughts that do not end.
    WithinThoughts,
}

/// What `output` holds. Marks count at its beginning only: an answer may be about them.
pub(super) fn content(output: &str) -> Content {
    let mut rest = output.trim();
    if rest.is_empty() {
        return Content::Nothing;
    }
    let mut thought = false;
    while let Some((open, close)) = MARKS.iter().find(|(open, _)| rest.starts_with(open)) {
        match rest[open.len()..].split_once(close) {
            None => return Content::WithinThoughts,
            Some((_, behind)) => rest = behind.trim_start(),
        }
        thought = true;
    }
    if thought {
        return match rest.is_empty() {
            true => Content::ThoughtsOnly,
            false => Content::AfterThoughts,
        };
    }
    let closed = MARKS.iter().find_map(|(open, close)| {
        let (before, behind) = rest.split_once(close)?;
        (!before.contains(open)).then_some(behind)
    });
    match closed.map(|behind| behind.trim().is_empty()) {
        None => Content::Answer,
        Some(true) => Content::ThoughtsOnly,
        Some(false) => Content::AfterBegunThoughts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_hold() {
        for (output, expected) in [
            ("", Content::Nothing),
            (" \n\t ", Content::Nothing),
            ("42", Content::Answer),
            ("<think>hm</think>42", Content::AfterThoughts),
            ("\n<think>\nhm\n</think>\n\n42", Content::AfterThoughts),
            (
                "<think></think><think>again</think> 42",
                Content::AfterThoughts,
            ),
            ("The tag <think> opens thoughts.", Content::Answer),
            ("Write <think>x</think> for it.", Content::Answer),
            ("hm\n</think>\n42", Content::AfterBegunThoughts),
            ("hm\n</think>\n", Content::ThoughtsOnly),
            ("<think>hm</think>", Content::ThoughtsOnly),
            ("<think>hm</think>\n\n", Content::ThoughtsOnly),
            ("<think>hm, and", Content::WithinThoughts),
            ("<think>", Content::WithinThoughts),
            ("<think>a</think> <think>b", Content::WithinThoughts),
            ("[THINK]hm", Content::WithinThoughts),
            ("<seed:think>hm</seed:think>x", Content::AfterThoughts),
            ("<|channel|>analysis<|message|>hm", Content::WithinThoughts),
            ("◁think▷hm◁/think▷", Content::ThoughtsOnly),
            // Another model's mark does not end them.
            ("<think>hm</thinking>", Content::WithinThoughts),
        ] {
            assert_eq!(content(output), expected, "{output:?}");
        }
    }
}
