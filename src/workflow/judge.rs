//! Judgement by the model: its prompt, and the verdict in its answer.
//!
//! Models tend to prefer the first of two answers (position bias). So the model is asked twice, with the
//! answers in either order, and the verdict only counts if both agree (L. Zheng and others, *Judging
//! LLM-as-a-Judge with MT-Bench and Chatbot Arena*, 2023, section 3.4).

/// Which of the two answers comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Order {
    /// The answer to be judged.
    AnswerFirst,
    /// The expected one.
    ExpectedFirst,
}

pub(crate) fn prompt(question: &str, answer: &str, expected: &str, order: Order) -> String {
    let (first, second) = match order {
        Order::AnswerFirst => (answer, expected),
        Order::ExpectedFirst => (expected, answer),
    };
    format!(
        "Question:\n{question}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n\
         Are the two answers the same in value? Their wording and form do not matter. \
         Write [[A=B]] if they are the same, and [[A!=B]] if they are not."
    )
}

/// The last verdict in a judge's answer: whether the two are the same.
pub(crate) fn verdict(text: &str) -> Option<bool> {
    let same = text.rfind("[[A=B]]");
    let other = text.rfind("[[A!=B]]");
    match (same, other) {
        (None, None) => None,
        (same, other) => Some(same > other),
    }
}

/// The common verdict; `None` unless both agree.
pub(crate) fn together(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    one.filter(|_| one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_verdict_counts() {
        assert_eq!(verdict("[[A=B]]"), Some(true));
        assert_eq!(verdict("Not [[A=B]] but [[A!=B]]."), Some(false));
        assert_eq!(verdict("[[A!=B]] ... [[A=B]]"), Some(true));
        assert_eq!(verdict("A=B"), None);
        assert_eq!(verdict(""), None);
    }

    #[test]
    fn both_orders_have_to_agree() {
        assert_eq!(together(Some(true), Some(true)), Some(true));
        assert_eq!(together(Some(false), Some(false)), Some(false));
        assert_eq!(together(Some(true), Some(false)), None);
        assert_eq!(together(None, None), None);
        assert_eq!(together(Some(true), None), None);
    }

    #[test]
    fn the_prompt_has_the_answers_in_order() {
        let one = prompt("q", "mine", "right", Order::AnswerFirst);
        let other = prompt("q", "mine", "right", Order::ExpectedFirst);
        assert!(one.find("mine") < one.find("right"));
        assert!(other.find("right") < other.find("mine"));
    }
}
