//! Extracts the server's error message and classifies the failure, in the formats that servers use:
//! OpenAI's `error` object, FastAPI's `detail`, an `errors` list, RFC 9457 problems, plain text.

use serde_json::Value;

use super::failure::{Cause, Failure, excerpt, shorten};
use super::json;

/// Maximum nesting of a message.
const DEEPEST: usize = 6;

/// Fields that contain a message, the most specific first.
const MESSAGES: [&str; 12] = [
    "error",
    "message",
    "detail",
    "errors",
    "error_message",
    "errorMessage",
    "status_msg",
    "msg",
    "reason",
    "description",
    "title",
    "base_resp",
];

/// The message in a body, or else the beginning of the body.
pub(super) fn said(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    match message(&value, DEEPEST) {
        Some(message) => shorten(&message),
        None if body.trim_ascii().is_empty() => String::new(),
        None => excerpt(body),
    }
}

/// The message in an error of any shape.
fn message(value: &Value, depth: usize) -> Option<String> {
    let depth = depth.checked_sub(1)?;
    match value {
        Value::String(text) if !text.trim().is_empty() => {
            // Proxies forward an upstream body as a string.
            let inner = serde_json::from_str::<Value>(text).ok();
            let inner = inner.filter(|inner| inner.is_object() || inner.is_array());
            let inner = inner.and_then(|inner| message(&inner, depth));
            Some(inner.unwrap_or_else(|| text.clone()))
        }
        // FastAPI's validation errors name the invalid field of the request: keep them whole.
        Value::Array(items) if items.iter().any(|item| item.get("loc").is_some()) => {
            Some(value.to_string())
        }
        Value::Array(items) => items.iter().find_map(|item| message(item, depth)),
        Value::Object(members) => {
            let told = MESSAGES
                .iter()
                .find_map(|name| message(members.get(*name)?, depth));
            // OpenRouter's "Provider returned error" comes with the provider's own message.
            let raw = value
                .pointer("/metadata/raw")
                .and_then(|raw| message(raw, depth));
            match (told, raw) {
                (Some(told), Some(raw)) if !told.contains(&raw) => Some(format!("{told}: {raw}")),
                (told, raw) => told.or(raw),
            }
        }
        _ => None,
    }
}

/// Whether an `error` is empty: some servers send `null`, `""`, `{}` or `false` with every chunk.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.trim(), "" | "null" | "none" | "None"),
        Value::Array(items) => items.iter().all(is_nothing),
        Value::Object(members) => members.values().all(is_nothing),
    }
}

/// The error in an event or body, if there is one.
pub(super) fn reported(value: &Value) -> Option<Failure> {
    // Gemini wraps it in a list.
    if let Value::Array(items) = value {
        return items.iter().find_map(|item| {
            let error = item.get("error").filter(|error| !is_nothing(error));
            error.map(|_| failure(item))
        });
    }
    let members = value.as_object()?;
    let error = |value: &Value| value.get("error").is_some_and(|error| !is_nothing(error));
    let choices = members.get("choices").and_then(Value::as_array);
    if error(value) {
        return Some(failure(value));
    }
    // OpenRouter reports it inside the choice, Groq in `x_groq`.
    let inner = (choices.into_iter().flatten())
        .chain(members.get("x_groq"))
        .find(|inner| error(inner));
    if let Some(inner) = inner {
        return Some(failure(inner));
    }
    // MiniMax sends a status with every chunk.
    let status = members
        .get("base_resp")
        .and_then(|base| base.get("status_code"));
    if status.is_some_and(|status| !is_nothing(status)) {
        return Some(failure(value));
    }
    let named = |member: &str, names: &[&str]| {
        let name = members.get(member).and_then(Value::as_str);
        name.is_some_and(|name| names.contains(&name.to_ascii_lowercase().as_str()))
    };
    if named("object", &["error"]) || named("type", &["error"]) || named("event", &["error"]) {
        return Some(failure(value));
    }
    // A bare message without `error` around it, unless it comes with an answer or a success code.
    let is_answer = choices.is_some_and(|choices| !choices.is_empty())
        || members.get("usage").is_some_and(Value::is_object)
        || named("type", &["ping", "heartbeat", "keepalive"]);
    let is_well = numeric_code(value).is_some_and(|code| code < 300);
    let is_told = [
        "message",
        "detail",
        "errors",
        "error_message",
        "errorMessage",
        "msg",
    ]
    .iter()
    .any(|name| members.get(*name).is_some_and(|told| !is_nothing(told)));
    (is_told && !is_answer && !is_well).then(|| failure(value))
}

/// The error of an `event: error`: its data is JSON or plain text, and some servers put the message
/// into a comment.
pub(super) fn named(text: &str, comment: &str) -> Failure {
    let value = json::parse(text).map(|parsed| parsed.value);
    let value = value.filter(|value| value.is_object() || value.is_array());
    let told = match &value {
        Some(value) => message(value, DEEPEST),
        None => Some(text.to_owned()).filter(|text| !text.trim().is_empty()),
    };
    let comment = Some(comment.trim()).filter(|comment| !comment.is_empty());
    let said = match (comment, told) {
        (Some(comment), Some(told)) if comment.contains(&told) => comment.to_owned(),
        (Some(comment), Some(told)) if told.contains(comment) => told,
        (Some(comment), Some(told)) => format!("{comment}: {told}"),
        (Some(comment), None) => comment.to_owned(),
        (None, Some(told)) => told,
        (None, None) if text.trim().is_empty() => "it gives no details".to_owned(),
        (None, None) => text.to_owned(),
    };
    broken_off(value.as_ref().map_or(Cause::Server, cause), &said)
}

fn failure(value: &Value) -> Failure {
    let said = message(value, DEEPEST).unwrap_or_else(|| value.to_string());
    broken_off(cause(value), &said)
}

fn broken_off(cause: Cause, said: &str) -> Failure {
    let said = shorten(said);
    Failure::new(
        cause,
        format!("the server aborted its answer with an error: {said}"),
    )
}

/// Classifies an error: by its code if that is an HTTP status, else by its type.
fn cause(value: &Value) -> Cause {
    match numeric_code(value) {
        Some(429) => Cause::RateLimited,
        Some(408 | 409 | 425) => Cause::Server,
        Some(400..=499) => Cause::Refused,
        Some(500..=599) => Cause::Server,
        _ => called(value).unwrap_or(Cause::Server),
    }
}

/// The objects that may hold an error's code: nested ones first, then the error itself.
fn levels(value: &Value) -> impl Iterator<Item = &Value> {
    let wrapped = [
        "/error",
        "/error/error",
        "/detail",
        "/errors/0",
        "/0/error",
        "/base_resp",
    ];
    (wrapped.into_iter().filter_map(|place| value.pointer(place)))
        .chain(std::iter::once(value))
        .filter(|value| value.is_object())
}

/// The error's code, given as a number or a string.
fn numeric_code(value: &Value) -> Option<u64> {
    const NAMES: [&str; 6] = [
        "code",
        "status",
        "status_code",
        "statusCode",
        "http_code",
        "http_status",
    ];
    levels(value).find_map(|level| {
        NAMES.iter().find_map(|name| match level.get(*name)? {
            Value::Number(code) => {
                (code.as_u64()).or_else(|| code.as_f64().map(|code| code as u64))
            }
            Value::String(code) => code.trim().parse().ok(),
            _ => None,
        })
    })
}

/// Classifies by names such as `invalid_request_error`, `BadRequestError`, `RESOURCE_EXHAUSTED`.
fn called(value: &Value) -> Option<Cause> {
    const PUT_OFF: [&str; 6] = [
        "ratelimit",
        "toomanyrequests",
        "throttl",
        "resourceexhausted",
        "overcapacity",
        "overloaded",
    ];
    const REFUSED: [&str; 15] = [
        "invalid",
        "badrequest",
        "contextlength",
        "contextsize",
        "notfound",
        "authentication",
        "permission",
        "unauthorized",
        "forbidden",
        "validation",
        "contentfilter",
        "contentpolicy",
        "unsupported",
        "unprocessable",
        "quota",
    ];
    levels(value).find_map(|level| {
        ["code", "type", "error_type", "status"]
            .iter()
            .find_map(|name| {
                let name: String = (level.get(*name)?.as_str()?.chars())
                    .filter(char::is_ascii_alphanumeric)
                    .map(|character| character.to_ascii_lowercase())
                    .collect();
                if REFUSED.iter().any(|part| name.contains(part)) {
                    return Some(Cause::Refused);
                }
                (PUT_OFF.iter().any(|part| name.contains(part))).then_some(Cause::RateLimited)
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_of_all_shapes_have_a_message_and_a_cause() {
        for (value, cause) in [
            (
                json!({"error": {"message": "why", "code": 500}}),
                Cause::Server,
            ),
            (
                json!({"error": {"message": "why", "code": 400}}),
                Cause::Refused,
            ),
            (
                json!({"error": {"message": "why", "code": "429"}}),
                Cause::RateLimited,
            ),
            (
                json!({"error": {"message": "why", "type": "invalid_request_error", "code": null}}),
                Cause::Refused,
            ),
            (
                json!({"error": {"message": "why", "type": "BadRequestError", "code": 400}}),
                Cause::Refused,
            ),
            (
                json!({"error": {"message": "why", "type": "rate_limit_error"}}),
                Cause::RateLimited,
            ),
            (
                json!({"error": {"message": "why", "type": "server_error", "code": "internal"}}),
                Cause::Server,
            ),
            (
                json!({"error": {"status": "RESOURCE_EXHAUSTED", "code": 429, "message": "why"}}),
                Cause::RateLimited,
            ),
            (
                json!([{"error": {"code": 400, "message": "why", "status": "INVALID_ARGUMENT"}}]),
                Cause::Refused,
            ),
            (json!({"error": "why"}), Cause::Server),
            (
                json!({"error": "why", "error_type": "validation"}),
                Cause::Refused,
            ),
            (
                json!({"error": "why", "choices": [{"delta": {}}]}),
                Cause::Server,
            ),
            (
                json!({"error": {"error": {"message": "why", "code": 422}}}),
                Cause::Refused,
            ),
            (
                json!({"error": "{\"error\": {\"message\": \"why\"}}", "code": 503}),
                Cause::Server,
            ),
            (
                json!({"object": "error", "message": "why", "code": 503}),
                Cause::Server,
            ),
            (
                json!({"object": "error", "message": "why", "code": 40303}),
                Cause::Server,
            ),
            (
                json!({"type": "error", "error": {"type": "overloaded_error", "message": "why"}}),
                Cause::RateLimited,
            ),
            (json!({"message": "why", "code": 404}), Cause::Refused),
            (json!({"detail": "why"}), Cause::Server),
            (
                json!({"detail": {"message": "why", "code": 401}}),
                Cause::Refused,
            ),
            (
                json!({"errors": [{"code": 10000, "message": "why"}], "success": false}),
                Cause::Server,
            ),
            (
                json!({"title": "no", "detail": "why", "status": 409}),
                Cause::Server,
            ),
            (
                json!({"choices": null, "base_resp": {"status_code": 1008, "status_msg": "why"}}),
                Cause::Server,
            ),
            (
                json!({"choices": [{"delta": {}, "error": {"code": 502, "message": "why"}}]}),
                Cause::Server,
            ),
            (
                json!({"x_groq": {"error": "why"}, "choices": []}),
                Cause::Server,
            ),
        ] {
            let failure = reported(&value).unwrap_or_else(|| panic!("no error: {value}"));
            assert_eq!(failure.cause, cause, "{value}");
            assert!(
                failure.message.ends_with("with an error: why"),
                "{}",
                failure.message
            );
        }
        let provider = json!({"error": {"message": "Provider returned error", "code": 502,
            "metadata": {"raw": "{\"error\": {\"message\": \"out of pages\"}}"}}});
        let message = reported(&provider).expect("an error").message;
        assert!(
            message.ends_with("Provider returned error: out of pages"),
            "{message}"
        );
        // An error without a message is quoted as it is.
        let message = reported(&json!({"error": true, "id": 7}))
            .expect("an error")
            .message;
        assert!(message.contains("\"id\":7"), "{message}");
    }

    #[test]
    fn an_empty_error_is_not_an_error() {
        for error in [
            json!(null),
            json!(""),
            json!({}),
            json!([]),
            json!(false),
            json!(0),
            json!("null"),
            json!({"message": "", "code": null}),
        ] {
            let value = json!({"error": error, "choices": [{"delta": {"content": "a"}}]});
            assert_eq!(reported(&value), None, "{value}");
        }
        for value in [
            json!({}),
            json!({"type": "ping"}),
            json!({"type": "ping", "message": "still here"}),
            json!({"code": 0, "message": "success"}),
            json!({"choices": [], "base_resp": {"status_code": 0, "status_msg": ""}}),
            json!({"choices": [{"message": {"content": "a"}, "error": null}]}),
            json!([1, "a"]),
            json!("error"),
        ] {
            assert_eq!(reported(&value), None, "{value}");
        }
    }

    #[test]
    fn an_event_named_error_is_an_error() {
        let line = |text: &str, comment: &str| named(text, comment).message;
        let said = "the server aborted its answer with an error: ";
        assert_eq!(line("out of memory", ""), format!("{said}out of memory"));
        assert_eq!(line("", "out of memory"), format!("{said}out of memory"));
        assert_eq!(line("", ""), format!("{said}it gives no details"));
        assert_eq!(
            line(r#"{"message": "m", "code": 400}"#, "c"),
            format!("{said}c: m")
        );
        assert_eq!(line(r#"{"code": 7}"#, ""), format!("{said}{{\"code\": 7}}"));
        assert_eq!(named(r#"{"code": 400}"#, "too long").cause, Cause::Refused);
        assert_eq!(named("too long", "").cause, Cause::Server);
    }
}
