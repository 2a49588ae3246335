//! What the events of a streamed completion say (OpenAI's API reference, "The chat completion chunk
//! object" and "Completions"; vLLM's and llama.cpp's servers as they differ from it).

use serde::Deserialize;
use serde_json::Value;

use super::failure::{Cause, Failure, excerpt};
use crate::engine::Finish;

/// What the server counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// Those of them that it had in a cache.
    pub(super) cached: usize,
    /// Tokens that it generated.
    pub(super) decode: usize,
}

/// An event of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Piece {
    /// Text of the answer.
    pub(super) text: String,
    /// Text that the model thought and does not count to its answer.
    pub(super) thought: String,
    /// Why the answer ends, with its last text or after it.
    pub(super) finish: Option<Finish>,
    /// What was counted, mostly with the last event.
    pub(super) usage: Option<Usage>,
    /// `[DONE]`: nothing follows.
    pub(super) done: bool,
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    /// Of chats.
    delta: Option<Delta>,
    /// Of plain completions.
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: usize,
    #[serde(default)]
    completion_tokens: usize,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<usize>,
}

/// Reads an event's data.
///
/// # Errors
/// What is no chunk of a completion, and an error that the server reports in its stream.
pub(super) fn read(data: &[u8]) -> Result<Piece, Failure> {
    if data.trim_ascii() == b"[DONE]" {
        return Ok(Piece {
            done: true,
            ..Piece::default()
        });
    }
    let malformed = |what: &str| {
        Failure::new(
            Cause::Malformed,
            format!("{what} in the stream: {}", excerpt(data)),
        )
    };
    let text = std::str::from_utf8(data).map_err(|_| malformed("bytes that are no UTF-8"))?;
    let value: Value = serde_json::from_str(text).map_err(|_| malformed("no JSON"))?;
    // Some report an error as a message of its own, without the `error` around it.
    let is_error = value.get("object").and_then(Value::as_str) == Some("error");
    let chunk: Chunk =
        Chunk::deserialize(&value).map_err(|_| malformed("no chunk of a completion"))?;
    if is_error || chunk.error.is_some() {
        return Err(Failure::in_stream(&value));
    }
    if chunk.choices.is_none() && chunk.usage.is_none() {
        return Err(malformed("no chunk of a completion"));
    }
    let mut piece = Piece {
        usage: chunk.usage.map(|usage| Usage {
            prompt: usage.prompt_tokens,
            cached: (usage.prompt_tokens_details)
                .and_then(|details| details.cached_tokens)
                .unwrap_or(0)
                .min(usage.prompt_tokens),
            decode: usage.completion_tokens,
        }),
        ..Piece::default()
    };
    if let Some(choice) = chunk.choices.unwrap_or_default().into_iter().next() {
        piece.text = choice.text.unwrap_or_default();
        if let Some(delta) = choice.delta {
            piece.text.push_str(&delta.content.unwrap_or_default());
            piece.thought = (delta.reasoning_content.or(delta.reasoning)).unwrap_or_default();
        }
        piece.finish = match choice.finish_reason.as_deref() {
            None | Some("") => None,
            Some("length") => Some(Finish::Length),
            Some("content_filter") => {
                let why = "the server withheld the answer (finish_reason: content_filter)";
                return Err(Failure::new(Cause::Refused, why));
            }
            Some(_) => Some(Finish::Stop),
        };
    }
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(data: &str) -> Piece {
        read(data.as_bytes()).expect("a chunk")
    }

    #[test]
    fn chunks_of_chats_and_completions() {
        let role =
            piece(r#"{"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}"#);
        assert_eq!(role, Piece::default());
        let chat = piece(r#"{"choices":[{"delta":{"content":"a"},"finish_reason":null}]}"#);
        assert_eq!(chat.text, "a");
        let plain = piece(r#"{"choices":[{"text":"b","index":0,"finish_reason":"length"}]}"#);
        assert_eq!(
            (plain.text.as_str(), plain.finish),
            ("b", Some(Finish::Length))
        );
        let end = piece(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#);
        assert_eq!((end.text.as_str(), end.finish), ("", Some(Finish::Stop)));
        let thought = piece(r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#);
        assert_eq!(
            (thought.text.as_str(), thought.thought.as_str()),
            ("", "hm")
        );
        assert!(piece(" [DONE] ").done);
    }

    #[test]
    fn usage_with_and_without_a_cache() {
        let usage = |text: &str| piece(text).usage.expect("usage");
        assert_eq!(
            usage(
                r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":8}}}"#
            ),
            Usage {
                prompt: 9,
                cached: 8,
                decode: 4
            }
        );
        assert_eq!(
            usage(
                r#"{"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":null}}"#
            ),
            Usage {
                prompt: 9,
                cached: 0,
                decode: 4
            }
        );
        // More cached than there are would make the computed ones negative.
        assert_eq!(
            usage(r#"{"usage":{"prompt_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}}"#)
                .cached,
            2
        );
    }

    #[test]
    fn what_is_no_chunk_is_named() {
        let failure = |data: &[u8]| read(data).expect_err("no chunk");
        for (data, what) in [
            (&b"{oops"[..], "no JSON in the stream: {oops"),
            (b"\xff\xfe", "no UTF-8 in the stream: \u{fffd}\u{fffd}"),
            (
                b"{\"hello\": 1}",
                "no chunk of a completion in the stream: {\"hello\": 1}",
            ),
            (b"[]", "no chunk of a completion"),
            (b"{\"choices\": 3}", "no chunk of a completion"),
            (b"", "no JSON in the stream: nothing"),
        ] {
            let failure = failure(data);
            assert!(failure.message.contains(what), "{}", failure.message);
            assert_eq!(failure.cause, Cause::Malformed);
        }
        let withheld = failure(br#"{"choices":[{"delta":{},"finish_reason":"content_filter"}]}"#);
        assert_eq!(withheld.cause, Cause::Refused);
    }

    #[test]
    fn errors_in_the_stream() {
        let failure = |data: &str| read(data.as_bytes()).expect_err("an error");
        let server = failure(r#"{"error":{"message":"out of pages","code":500}}"#);
        assert_eq!(server.cause, Cause::Server);
        assert!(
            server.message.contains("out of pages"),
            "{}",
            server.message
        );
        let refused = failure(r#"{"error":{"message":"too long","code":400}}"#);
        assert_eq!(refused.cause, Cause::Refused);
        let bare = failure(r#"{"object":"error","message":"gone","code":503}"#);
        assert_eq!(
            (bare.cause, bare.message.contains("gone")),
            (Cause::Server, true)
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(data in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&data);
        }
    }
}
