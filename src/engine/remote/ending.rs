//! Why an answer ended. Only a known good `finish_reason` makes an answer complete: servers invent
//! their own words for requests that they abort.

use super::failure::{Cause, Failure, shorten};
use crate::engine::Finish;

/// The model ended its turn or wrote a stop sequence.
const STOP: &[&str] = &[
    // OpenAI, vLLM, SGLang, llama.cpp, Ollama, KoboldCpp; Cohere; Together and TGI.
    "stop",
    "complete",
    "completed",
    "eos",
    "eostoken",
    // Anthropic, Cohere, TGI, AI21; stop words of llama.cpp; LM Studio.
    "endturn",
    "endofturn",
    "stopsequence",
    "stoptoken",
    "stopword",
    "word",
    "eosfound",
    "stopstringfound",
    // Synonyms.
    "end",
    "done",
    "finish",
    "finished",
];

/// Names of end tokens, which Together reports. Accepted in angle or square brackets only.
const END_TOKENS: &[&str] = &[
    "s",
    "eos",
    "eot",
    "eotid",
    "eomid",
    "endoftext",
    "endofturn",
    "endofsentence",
    "imend",
    "end",
    "return",
    "endoftextid",
    "turn",
];

/// The request's limit, or the end of the context.
const LENGTH: &[&str] = &[
    "length",
    "maxtokens",
    "maxoutputtokens",
    "maxlength",
    "modellength",
    "limit",
    "tokenlimit",
    "maxpredictedtokensreached",
    "contextlengthreached",
    "modelcontextwindowexceeded",
];

/// The model called a tool.
const TOOL_CALLS: &[&str] = &[
    "toolcall",
    "toolcalls",
    "tooluse",
    "functioncall",
    "functioncalls",
];

/// The server withheld or stopped the answer because of its content; a retry would end the same way.
const WITHHELD: &[&str] = &[
    "contentfilter",
    "contentfiltered",
    "safety",
    "recitation",
    "blocklist",
    "prohibitedcontent",
    "spii",
    "guardrailintervened",
    "refusal",
    "sensitive",
    "repetition",
];

/// The server gave up on the request.
const BROKEN_OFF: &[&str] = &[
    "abort",
    "aborted",
    "cancel",
    "cancelled",
    "canceled",
    "error",
    "fail",
    "failed",
    "timeout",
    "timelimit",
    "insufficientsystemresource",
    "resourceexhausted",
    "networkerror",
    "engineoverloaded",
    "modelunloaded",
    "load",
    "unload",
    "userstopped",
];

/// Reads a `finish_reason`, ignoring case and punctuation. `None` if the answer continues.
///
/// # Errors
/// The inner result is an error for a bad or unknown ending.
pub(super) fn read(reason: &str) -> Option<Result<Finish, Failure>> {
    let word: String = (reason.chars())
        .filter(|character| character.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect();
    let word = word.strip_prefix("finishreason").unwrap_or(&word);
    let is_token = reason.trim_start().starts_with(['<', '[']) && END_TOKENS.contains(&word);
    let said = shorten(reason);
    let failed = |cause, how: &str| {
        let message = format!("the server {how} (finish_reason: {said})");
        Err(Failure::new(cause, message))
    };
    Some(match word {
        "" | "null" | "none" | "undefined" | "unspecified" => return None,
        word if STOP.contains(&word) || is_token => Ok(Finish::Stop),
        word if LENGTH.contains(&word) => Ok(Finish::Length),
        word if TOOL_CALLS.contains(&word) => Ok(Finish::ToolCalls),
        word if WITHHELD.contains(&word) => failed(Cause::Refused, "withheld the answer"),
        word if BROKEN_OFF.contains(&word) => failed(Cause::Server, "aborted the answer"),
        _ => failed(
            Cause::Server,
            "ended the answer for a reason that flowbench does not know",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_endings_are_recognized_in_every_spelling() {
        for (finish, reasons) in [
            (
                Finish::Stop,
                &[
                    "stop",
                    "STOP",
                    "eos",
                    "eos_token",
                    "end_turn",
                    "stop_sequence",
                    "COMPLETE",
                    "FINISH_REASON_STOP",
                    "eosFound",
                    " stop ",
                    "<|eot_id|>",
                    "</s>",
                    "<|im_end|>",
                ][..],
            ),
            (
                Finish::Length,
                &[
                    "length",
                    "max_tokens",
                    "MAX_TOKENS",
                    "model_length",
                    "maxPredictedTokensReached",
                ],
            ),
            (
                Finish::ToolCalls,
                &["tool_calls", "function_call", "tool_use", "TOOL_CALL"],
            ),
        ] {
            for reason in reasons {
                assert_eq!(read(reason), Some(Ok(finish)), "{reason}");
            }
        }
    }

    #[test]
    fn empty_reasons_are_no_ending() {
        for reason in [
            "",
            "null",
            "NULL",
            "None",
            " ",
            "<null>",
            "FINISH_REASON_UNSPECIFIED",
        ] {
            assert_eq!(read(reason), None, "{reason}");
        }
    }

    #[test]
    fn bad_and_unknown_endings_fail_with_their_reason() {
        for (cause, reasons) in [
            (
                Cause::Server,
                &[
                    "abort",
                    "aborted",
                    "error",
                    "ERROR",
                    "timeout",
                    "cancelled",
                    "canceled",
                    "insufficient_system_resource",
                    "network_error",
                    "lunch",
                    "s",
                    "stop!stop",
                ][..],
            ),
            (
                Cause::Refused,
                &[
                    "content_filter",
                    "SAFETY",
                    "refusal",
                    "sensitive",
                    "repetition",
                ],
            ),
        ] {
            for reason in reasons {
                let failure = read(reason).expect("an ending").expect_err(reason);
                assert_eq!(failure.cause, cause, "{reason}");
                assert!(failure.message.contains(reason), "{}", failure.message);
            }
        }
    }
}
