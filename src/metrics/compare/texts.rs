//! The texts of a template that prompts are made of, and where they differ from those of another.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// Texts of a template's source, with its placeholders.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Texts {
    system: String,
    /// Prompts by step.
    prompts: BTreeMap<String, String>,
}

impl Texts {
    /// `None` if the source is no template.
    pub(super) fn of(source: &str) -> Option<Self> {
        let template: Table = source.parse().ok()?;
        let mut texts = Self {
            system: text(&template, "system").to_owned(),
            prompts: BTreeMap::new(),
        };
        let steps = template.get("step").and_then(Value::as_array);
        for step in steps.into_iter().flatten().filter_map(Value::as_table) {
            let prompt = text(step, "prompt").to_owned();
            texts.prompts.insert(text(step, "id").to_owned(), prompt);
        }
        Some(texts)
    }

    /// The first change that a step's prompt has in it, such as ` at byte 2113 of the system message`; of any
    /// step if there is no such step.
    pub(super) fn first_change(&self, other: &Self, step: &str) -> Option<String> {
        if let Some(byte) = first_difference(&self.system, &other.system) {
            return Some(format!(" at byte {byte} of the system message"));
        }
        let mut prompts: Vec<&String> = self.prompts.keys().collect();
        prompts.sort_by_key(|id| id.as_str() != step);
        prompts.into_iter().find_map(|id| {
            let byte = first_difference(&self.prompts[id], other.prompts.get(id)?)?;
            Some(format!(" at byte {byte} of the prompt of {id}"))
        })
    }
}

fn text<'a>(table: &'a Table, key: &str) -> &'a str {
    table.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The first byte, from 0, in which texts differ, moved to the start of its character.
fn first_difference(one: &str, other: &str) -> Option<usize> {
    if one == other {
        return None;
    }
    let same = one
        .bytes()
        .zip(other.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    Some(
        (0..=same)
            .rev()
            .find(|byte| one.is_char_boundary(*byte))
            .unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(system: &str, planner: &str, child: &str) -> Texts {
        let source = format!(
            "schema = 1\nsystem = \"{system}\"\n[[step]]\nid = \"planner\"\nprompt = \"{planner}\"\n\
             [[step]]\nid = \"child\"\nprompt = \"{child}\"\n"
        );
        Texts::of(&source).unwrap()
    }

    #[test]
    fn the_first_change_of_a_step_is_found() {
        let base = template("You review code: é", "Plan it.", "Write it.");
        let place = |other: &Texts, step: &str| base.first_change(other, step);
        assert_eq!(place(&base, "planner"), None);
        // The system message begins all prompts.
        let system = template("You review code: è", "Plan it!", "Write it.");
        assert_eq!(
            place(&system, "child").as_deref(),
            Some(" at byte 17 of the system message")
        );
        let both = template("You review code: é", "Plan it!", "Writes it.");
        assert_eq!(
            place(&both, "planner").as_deref(),
            Some(" at byte 7 of the prompt of planner")
        );
        assert_eq!(
            place(&both, "child").as_deref(),
            Some(" at byte 5 of the prompt of child")
        );
        // A step that only continues another's conversation has its change.
        let planner = template("You review code: é", "Plan it!", "Write it.");
        assert_eq!(
            place(&planner, "child").as_deref(),
            Some(" at byte 7 of the prompt of planner")
        );
        let longer = template("You review code: é and tests", "Plan it.", "Write it.");
        assert_eq!(
            place(&longer, "*").as_deref(),
            Some(" at byte 19 of the system message")
        );
        assert_eq!(Texts::of("schema = "), None);
    }
}
