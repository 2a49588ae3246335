//! Separates the reasoning of a thinking model from its answer.

/// Markers that open and close reasoning in the text of various models.
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

/// Content of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// An answer without reasoning.
    Answer,
    /// An answer after its reasoning.
    AfterThoughts,
    /// An answer after reasoning that the prompt opened: many chat templates end in `<think>`.
    AfterBegunThoughts,
    /// Only white space.
    Nothing,
    /// Closed reasoning and nothing after it.
    ThoughtsOnly,
    /// Reasoning that is not closed.
    WithinThoughts,
}

/// Classifies `output`. Opening markers count only at the start: an answer may mention them.
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
    fn answers_are_classified() {
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
            // A marker of another model does not close it.
            ("<think>hm</thinking>", Content::WithinThoughts),
        ] {
            assert_eq!(content(output), expected, "{output:?}");
        }
    }
}
