//! `ENDPOINT_EXTRA`: fields to add to every request, to change, or to remove.

use serde::Serialize;
use serde_json::{Map, Value};

/// Fields that the program sends itself.
const SENT: [&str; 8] = [
    "ignore_eos",
    "max_tokens",
    "model",
    "seed",
    "stream_options",
    "temperature",
    "top_k",
    "top_p",
];

/// Fields that cannot be changed, and why.
const FIXED: [(&str, &str); 3] = [
    ("messages", "the prompt comes from the template"),
    ("prompt", "the prompt comes from the template"),
    ("stream", "answers are measured as they stream"),
];

/// Changes to the fields of a request, in the server's own terms.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct EndpointExtra(Map<String, Value>);

/// What to do with a field that the program sends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change<'a> {
    /// Send it unchanged.
    None,
    /// Leave it out.
    Drop,
    /// Send it under this name.
    Rename(&'a str),
    /// Send this value.
    Set(&'a Value),
}

impl EndpointExtra {
    /// Parses a JSON object. `null` removes a field, `{"rename": "name"}` renames it, and anything
    /// else is the value to send.
    ///
    /// # Errors
    /// The reason it is invalid.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Ok(members) = serde_json::from_str::<Map<String, Value>>(text) else {
            return Err("expected a JSON object, such as {\"repeat_penalty\": 1.0}".to_owned());
        };
        let extra = Self(members);
        let fixed = |name: &str| FIXED.iter().find(|(fixed, _)| *fixed == name);
        let mut names: Vec<&str> = SENT.to_vec();
        names.retain(|name| extra.change(name) == Change::None);
        for name in extra.0.keys() {
            if let Some((_, why)) = fixed(name) {
                return Err(format!("`{name}` cannot be changed: {why}"));
            }
            let new = match extra.change(name) {
                Change::Rename(_) if !SENT.contains(&name.as_str()) => {
                    return Err(format!(
                        "`{name}` cannot be renamed, since it is not sent; these are: {}",
                        SENT.join(", ")
                    ));
                }
                Change::Rename("") => return Err(format!("`{name}` has no new name")),
                Change::Rename(new) => new,
                Change::Set(value)
                    if SENT.contains(&name.as_str()) && value.get("rename").is_some() =>
                {
                    return Err(format!(
                        "`{name}` needs a text as its new name, and nothing beside it: \
                         {{\"rename\": \"name\"}}"
                    ));
                }
                Change::Set(_) => name,
                Change::Drop | Change::None => continue,
            };
            if let Some((_, why)) = fixed(new) {
                return Err(format!("`{name}` cannot be renamed `{new}`: {why}"));
            }
            if names.contains(&new) {
                return Err(format!("two members would be called `{new}`"));
            }
            names.push(new);
        }
        Ok(extra)
    }

    pub fn change(&self, member: &str) -> Change<'_> {
        match self.0.get(member) {
            None => Change::None,
            Some(Value::Null) => Change::Drop,
            Some(value) => match renamed(value) {
                Some(name) => Change::Rename(name),
                None => Change::Set(value),
            },
        }
    }

    /// Fields that the program does not send itself.
    pub fn others(&self) -> impl Iterator<Item = (&String, &Value)> {
        let all = self.0.iter();
        all.filter(|(name, value)| !SENT.contains(&name.as_str()) && !value.is_null())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The new name in `{"rename": "name"}`.
fn renamed(value: &Value) -> Option<&str> {
    let members = value.as_object().filter(|members| members.len() == 1)?;
    members.get("rename")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_set_removed_and_renamed() {
        let extra = EndpointExtra::parse(
            r#"{"temperature": null, "max_tokens": {"rename": "max_completion_tokens"}, "seed": 4,
                "min_p": 0, "logprobs": null, "stream_options": {"include_usage": false}}"#,
        )
        .expect("sound");
        assert_eq!(extra.change("temperature"), Change::Drop);
        assert_eq!(
            extra.change("max_tokens"),
            Change::Rename("max_completion_tokens")
        );
        assert_eq!(extra.change("seed"), Change::Set(&Value::from(4)));
        assert_eq!(extra.change("top_p"), Change::None);
        let others: Vec<&String> = extra.others().map(|(name, _)| name).collect();
        assert_eq!(others, ["min_p"]);
        // A name is free once its own field is no longer sent under it.
        let swapped = r#"{"top_k": null, "seed": {"rename": "top_k"}}"#;
        assert!(EndpointExtra::parse(swapped).is_ok());
    }

    #[test]
    fn invalid_changes_are_rejected_with_the_reason() {
        for bad in ["", "1", "[]", "{", r#"{"a": 1} b"#] {
            let why = EndpointExtra::parse(bad).expect_err(bad);
            assert!(why.contains("JSON object"), "{bad}: {why}");
        }
        for (bad, words) in [
            (
                r#"{"stream": false}"#,
                "`stream` cannot be changed: answers are measured",
            ),
            (r#"{"messages": []}"#, "`messages` cannot be changed"),
            (r#"{"prompt": null}"#, "`prompt` cannot be changed"),
            (
                r#"{"min_p": {"rename": "p"}}"#,
                "not sent; these are: ignore_eos,",
            ),
            (r#"{"seed": {"rename": ""}}"#, "no new name"),
            (r#"{"seed": {"rename": 5}}"#, "`seed` needs a text"),
            (
                r#"{"seed": {"rename": "x", "value": 1}}"#,
                "nothing beside it",
            ),
            (
                r#"{"seed": {"rename": "messages"}}"#,
                "cannot be renamed `messages`",
            ),
            (
                r#"{"seed": {"rename": "model"}}"#,
                "two members would be called `model`",
            ),
            (
                r#"{"seed": {"rename": "x"}, "x": 1}"#,
                "two members would be called `x`",
            ),
            (
                r#"{"seed": {"rename": "x"}, "top_p": {"rename": "x"}}"#,
                "two members",
            ),
        ] {
            let why = EndpointExtra::parse(bad).expect_err(bad);
            assert!(why.contains(words), "{bad}: {why}");
        }
    }
}
