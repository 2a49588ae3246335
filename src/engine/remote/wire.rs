//! Reads the choices of a streamed completion (OpenAI's API reference, "The chat completion chunk
//! object" and "Completions"), including the deviations of other servers.

use serde_json::Value;

use super::ending;
use super::failure::Failure;
use crate::engine::Finish;

/// Maximum nesting of the parts of a text.
const DEEPEST: usize = 8;

/// Fields that contain thoughts: DeepSeek and vLLM, then OpenRouter and newer vLLM, then others.
const THOUGHTS: [&str; 5] = [
    "reasoning_content",
    "reasoning",
    "thinking",
    "reasoning_text",
    "reasoning_details",
];

/// What one choice of an event adds to its answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Piece {
    /// 0 unless the server was asked for several choices.
    pub(super) index: i64,
    pub(super) text: String,
    /// The text of a `message` that is sent instead of a `delta`: the next piece, or the answer so
    /// far.
    pub(super) message: String,
    /// Text of thoughts, which is not part of the answer.
    pub(super) thought: String,
    /// Whether it contains part of a tool call.
    pub(super) tool: bool,
    /// Why the answer ends. Comes with its last text or after it.
    pub(super) finish: Option<Result<Finish, Failure>>,
}

/// `choices`, or the text in them, has a type that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoChoice;

/// Reads the choices of an event. Everything but text, thoughts and endings is ignored.
///
/// # Errors
/// The value cannot be read as choices.
pub(super) fn pieces(choices: &Value) -> Result<Vec<Piece>, NoChoice> {
    match choices {
        Value::Null => Ok(Vec::new()),
        Value::Array(choices) => {
            let choices = choices.iter().filter(|choice| !choice.is_null());
            choices.map(piece).collect()
        }
        Value::Object(_) => Ok(vec![piece(choices)?]),
        _ => Err(NoChoice),
    }
}

fn piece(choice: &Value) -> Result<Piece, NoChoice> {
    let members = choice.as_object().ok_or(NoChoice)?;
    let mut piece = Piece {
        index: members.get("index").and_then(Value::as_i64).unwrap_or(0),
        ..Piece::default()
    };
    match members.get("delta") {
        Some(delta) if !delta.is_null() => said(delta, &mut piece)?,
        _ => {}
    }
    let whole = members.get("message").filter(|message| !message.is_null());
    if let Some(message) = whole.filter(|_| piece.text.is_empty()) {
        let mut whole = Piece::default();
        said(message, &mut whole)?;
        piece.message = whole.text;
        if piece.thought.is_empty() && piece.message.is_empty() {
            piece.thought = whole.thought;
        }
        piece.tool |= whole.tool;
    }
    if piece.text.is_empty() && piece.message.is_empty() {
        piece.text = text(members.get("text"))?.0;
    }
    piece.finish = members
        .get("finish_reason")
        .and_then(|reason| match reason {
            // SGLang's native API has an object.
            Value::Object(members) => ending::read(members.get("type")?.as_str()?),
            Value::String(reason) => ending::read(reason),
            // Protocol buffers have numbers: 0 is "unspecified", and the others are unknown.
            Value::Number(number) if number.as_f64() == Some(0.0) => None,
            Value::Null | Value::Bool(false) => None,
            other => ending::read(&other.to_string()),
        });
    Ok(piece)
}

/// Reads a `delta` or a `message`.
fn said(delta: &Value, piece: &mut Piece) -> Result<(), NoChoice> {
    let delta = match delta {
        Value::Object(members) => members,
        // Just the text.
        Value::String(text) => {
            piece.text.push_str(text);
            return Ok(());
        }
        _ => return Err(NoChoice),
    };
    let (content, within) = text(delta.get("content"))?;
    piece.text = content;
    if piece.text.is_empty() {
        // OpenAI's models have a separate field for refusals.
        piece.text = text(delta.get("refusal"))?.0;
    }
    piece.thought = (THOUGHTS.iter().copied())
        .filter_map(|name| {
            let (text, thought) = text(delta.get(name)).ok()?;
            Some(text + &thought).filter(|text| !text.is_empty())
        })
        .next()
        .unwrap_or_default();
    if piece.thought.is_empty() {
        piece.thought = within;
    }
    piece.tool = ["tool_calls", "function_call"].iter().any(|name| {
        let call = delta.get(*name);
        call.is_some_and(|call| match call {
            Value::Array(calls) => !calls.is_empty(),
            call => call.is_object(),
        })
    });
    Ok(())
}

/// The text of a `content` and the thoughts in it: a string, or parts of both kinds.
fn text(content: Option<&Value>) -> Result<(String, String), NoChoice> {
    let (mut text, mut thought) = (String::new(), String::new());
    if let Some(content) = content {
        gather(content, false, DEEPEST, &mut text, &mut thought)?;
    }
    Ok((text, thought))
}

fn gather(
    content: &Value,
    thinks: bool,
    depth: usize,
    text: &mut String,
    thought: &mut String,
) -> Result<(), NoChoice> {
    let depth = depth.checked_sub(1).ok_or(NoChoice)?;
    match content {
        Value::Null | Value::Bool(false) => {}
        Value::String(said) if thinks => thought.push_str(said),
        Value::String(said) => text.push_str(said),
        Value::Array(parts) => {
            for part in parts {
                gather(part, thinks, depth, text, thought)?;
            }
        }
        Value::Object(part) => {
            let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
            let thinks = thinks || kind.contains("think") || kind.contains("reason");
            let is_text = thinks || kind.contains("text") || kind == "refusal";
            // Mistral's `thinking` is a list of parts, OpenRouter's may be a `summary`, and the
            // `text` of OpenAI's Assistants has a `value`. References, images and other parts have
            // no text.
            let names = [
                "text",
                "thinking",
                "content",
                "value",
                "reasoning",
                "summary",
                "refusal",
            ];
            let inner = names
                .iter()
                .find_map(|name| part.get(*name).filter(|value| !value.is_null()));
            if let Some(inner) = inner.filter(|_| is_text) {
                gather(inner, thinks, depth, text, thought)?;
            }
        }
        Value::Number(_) | Value::Bool(true) => return Err(NoChoice),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::remote::failure::Cause;
    use serde_json::json;

    fn piece(choice: Value) -> Piece {
        let pieces = pieces(&json!([choice])).expect("choices");
        pieces.into_iter().next().expect("one")
    }

    /// Text, message and thought.
    fn texts(choice: Value) -> (String, String, String) {
        let piece = piece(choice);
        (piece.text, piece.message, piece.thought)
    }

    fn three(text: &str, message: &str, thought: &str) -> (String, String, String) {
        (text.to_owned(), message.to_owned(), thought.to_owned())
    }

    #[test]
    fn texts_of_chats_and_completions() {
        for (choice, text) in [
            (json!({"delta": {"role": "assistant", "content": ""}}), ""),
            (json!({"delta": {"role": "assistant"}}), ""),
            (
                json!({"delta": {"content": "a"}, "finish_reason": null}),
                "a",
            ),
            (json!({"delta": "a"}), "a"),
            (json!({"text": "a", "index": 0}), "a"),
            (json!({"text": null, "delta": {"content": "a"}}), "a"),
            (json!({"text": "a", "delta": {"content": "a"}}), "a"),
            (json!({"text": "a", "delta": null}), "a"),
            (json!({"text": "a", "delta": {}}), "a"),
            (json!({"delta": {"content": null, "refusal": "a"}}), "a"),
            (
                json!({"delta": {"content": [{"type": "text", "text": "a"}]}}),
                "a",
            ),
            (
                json!({"delta": {"content": {"type": "text", "text": {"value": "a"}}}}),
                "a",
            ),
            (
                json!({"delta": {"content": ["a", {"text": "b"}, {"type": "reference", "text": "no"}]}}),
                "ab",
            ),
            (
                json!({"delta": {"content": false, "audio": {"id": 1}}, "logprobs": 7}),
                "",
            ),
            (json!({}), ""),
        ] {
            assert_eq!(texts(choice.clone()), three(text, "", ""), "{choice}");
        }
        assert_eq!(
            texts(json!({"message": {"content": "a"}})),
            three("", "a", "")
        );
        assert_eq!(
            texts(json!({"message": {"content": "a"}, "delta": {"content": "b"}})),
            three("b", "", "")
        );
    }

    #[test]
    fn thoughts_are_the_first_field_that_is_not_empty() {
        for delta in [
            json!({"reasoning_content": "hm"}),
            json!({"reasoning": "hm", "reasoning_content": "", "content": ""}),
            json!({"reasoning": "hm", "reasoning_content": "hm"}),
            json!({"thinking": "hm", "reasoning": null}),
            json!({"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}),
            json!({"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]}),
            json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}),
            json!({"content": [{"type": "thinking", "thinking": "hm"}]}),
        ] {
            assert_eq!(
                texts(json!({"delta": delta})),
                three("", "", "hm"),
                "{delta}"
            );
        }
        let both = json!({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]});
        assert_eq!(texts(json!({"delta": both})), three("a", "", "hm"));
        // Other types are ignored.
        assert_eq!(texts(json!({"delta": {"reasoning": 3}})), three("", "", ""));
        assert!(piece(json!({"delta": {"tool_calls": [{"index": 0}]}})).tool);
        assert!(!piece(json!({"delta": {"tool_calls": []}})).tool);
    }

    #[test]
    fn endings_come_with_texts_or_after_them() {
        let plain = piece(json!({"text": "b", "index": 2, "finish_reason": "length"}));
        assert_eq!((plain.index, plain.finish), (2, Some(Ok(Finish::Length))));
        let object = piece(json!({"finish_reason": {"type": "stop", "matched": 2}}));
        assert_eq!(object.finish, Some(Ok(Finish::Stop)));
        for reason in [
            json!(null),
            json!(""),
            json!("null"),
            json!(false),
            json!(0),
            json!([]),
        ] {
            assert_eq!(
                piece(json!({"finish_reason": reason})).finish,
                None,
                "{reason}"
            );
        }
        for unknown in [json!(3), json!(true), json!(["halt"])] {
            let piece = piece(json!({"finish_reason": unknown}));
            let failure = piece.finish.expect("an ending").expect_err("unknown");
            assert_eq!(failure.cause, Cause::Server);
            let named = format!("finish_reason: {unknown}");
            assert!(failure.message.contains(&named), "{}", failure.message);
        }
        let bad = piece(json!({"delta": {}, "finish_reason": "content_filter"}));
        let failure = bad.finish.expect("an ending").expect_err("withheld");
        assert_eq!(failure.cause, Cause::Refused);
    }

    #[test]
    fn values_that_are_no_choices_are_errors() {
        assert_eq!(pieces(&json!(null)), Ok(Vec::new()));
        assert_eq!(pieces(&json!([])), Ok(Vec::new()));
        assert_eq!(pieces(&json!([null])), Ok(Vec::new()));
        assert_eq!(
            pieces(&json!({"delta": {"content": "a"}})).map(|all| all.len()),
            Ok(1)
        );
        for choices in [
            json!(3),
            json!("a"),
            json!([3]),
            json!([{"delta": 3}]),
            json!([{"delta": {"content": 3}}]),
            json!([{"delta": {"content": [[[[[[[[["deep"]]]]]]]]]}}]),
        ] {
            assert_eq!(pieces(&choices), Err(NoChoice), "{choices}");
        }
    }
}
