//! Why a call failed, as a message, and whether a retry may succeed.

use std::time::Duration;

use ureq::http::HeaderMap;

use crate::record::remote::RemoteRecord;

/// Maximum number of characters quoted from an answer.
const QUOTED: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// There is no connection.
    Connect,
    /// The certificate is not trusted: no connection, now or later.
    Certificate,
    /// A timeout expired.
    Timeout,
    /// The server limits the rate (429).
    RateLimited,
    /// The server failed (408, 5xx).
    Server,
    /// The connection or the stream ended before the answer did.
    CutOff,
    /// The server rejects the request (other 4xx).
    Refused,
    /// The answer cannot be interpreted.
    Malformed,
}

impl Cause {
    /// Whether the same request may succeed later.
    pub(super) fn is_transient(self) -> bool {
        match self {
            Self::Connect | Self::Timeout | Self::RateLimited | Self::Server | Self::CutOff => true,
            Self::Refused | Self::Malformed | Self::Certificate => false,
        }
    }

    /// The counter of this cause in the record.
    pub(super) fn counter(self, record: &mut RemoteRecord) -> &mut usize {
        match self {
            Self::Connect | Self::Certificate => &mut record.connect_failures,
            Self::Timeout => &mut record.timeouts,
            Self::RateLimited => &mut record.rate_limited,
            Self::Server => &mut record.server_errors,
            Self::CutOff => &mut record.cut_off,
            Self::Refused => &mut record.refused,
            Self::Malformed => &mut record.malformed,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    /// What happened, in one line.
    pub(super) message: String,
    /// What to do about it.
    pub(super) hint: Option<&'static str>,
    /// How long the server asks to wait.
    pub(super) retry_after: Option<Duration>,
    /// The HTTP status, if that was the failure.
    pub(super) status: Option<u16>,
}

impl Failure {
    pub(super) fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self {
            cause,
            message: message.into(),
            hint: None,
            retry_after: None,
            status: None,
        }
    }

    pub(super) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    /// An answer with a status other than 200; `said` is the message in its body, if any.
    pub(super) fn status(status: u16, headers: &HeaderMap, said: &str) -> Self {
        let cause = match status {
            429 => Cause::RateLimited,
            408 | 500..=599 => Cause::Server,
            _ => Cause::Refused,
        };
        let mut message = format!("the server answered {}", status_text(status));
        if !said.is_empty() {
            message.push_str(": ");
            message.push_str(said);
        }
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mut failure = Self::new(cause, message);
        failure.status = Some(status);
        failure.retry_after = header("retry-after").and_then(retry_after);
        match status {
            300..=399 => {
                let target = header("location").unwrap_or("elsewhere");
                // The query and the fragment may contain secrets.
                let target = target.split(['?', '#']).next().unwrap_or(target);
                failure.message = format!("the server redirects to {}", shorten(target));
                failure.hint("redirects are not followed, because that would pass the key on: set ENDPOINT to the server itself")
            }
            401 | 403 => failure.hint("set API_KEY in the environment to a key that the server accepts"),
            400 | 422 if names_member(&failure.message) => failure.hint(
                "ENDPOINT_EXTRA can drop a field ({\"seed\": null}) or rename it ({\"max_tokens\": \
                 {\"rename\": \"max_completion_tokens\"}})",
            ),
            404 => failure.hint("is ENDPOINT the base URL (it often ends in /v1), and MODEL a name that GET /models lists?"),
            _ => failure,
        }
    }

    /// Message and hint on one line.
    pub(super) fn line(&self) -> String {
        match self.hint {
            None => self.message.clone(),
            Some(hint) => format!("{} ({hint})", self.message),
        }
    }
}

/// Whether the server rejects a field of the request.
fn names_member(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let refusals = [
        "unsupported",
        "not support",
        "unknown",
        "unrecognized",
        "unexpected",
        "not permitted",
        "not allowed",
        "extra",
        "invalid",
    ];
    SENT.iter().any(|name| message.contains(name))
        && refusals.iter().any(|word| message.contains(word))
}

/// Fields of the request that an error may name.
const SENT: [&str; 7] = [
    "ignore_eos",
    "max_tokens",
    "seed",
    "stream_options",
    "temperature",
    "top_k",
    "top_p",
];

fn status_text(status: u16) -> String {
    let reason = ureq::http::StatusCode::from_u16(status).ok();
    match reason.and_then(|status| status.canonical_reason()) {
        Some(reason) => format!("{status} {reason}"),
        None => status.to_string(),
    }
}

/// The beginning of some bytes, cleaned up for one line.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let beginning = &bytes[..bytes.len().min(4 * QUOTED)];
    shorten(&String::from_utf8_lossy(beginning))
}

/// The beginning of a text, cleaned up for one line.
pub(super) fn shorten(text: &str) -> String {
    let printable = |character: char| {
        if character.is_control() {
            ' '
        } else {
            character
        }
    };
    let mut short: String = text.trim().chars().take(QUOTED).map(printable).collect();
    if text.trim().chars().count() > QUOTED {
        short.push('…');
    }
    short
}

/// Parses a `Retry-After`: seconds, or a date (RFC 9110, §10.2.3).
fn retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    let wait = at.duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(wait).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::remote::reason::said;

    fn status(status: u16, headers: &[(&'static str, &str)], body: &str) -> Failure {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("a value"));
        }
        Failure::status(status, &map, &said(body.as_bytes()))
    }

    #[test]
    fn statuses_have_a_cause_a_message_and_hints() {
        for (code, cause) in [
            (400, Cause::Refused),
            (401, Cause::Refused),
            (408, Cause::Server),
            (422, Cause::Refused),
            (429, Cause::RateLimited),
            (500, Cause::Server),
            (503, Cause::Server),
            (599, Cause::Server),
        ] {
            assert_eq!(status(code, &[], "").cause, cause, "{code}");
        }
        for (body, line) in [
            ("", "the server answered 400 Bad Request"),
            (" \n", "the server answered 400 Bad Request"),
            (
                r#"{"error":{"message":"too long"}}"#,
                "the server answered 400 Bad Request: too long",
            ),
            (
                r#"{"error":"too long"}"#,
                "the server answered 400 Bad Request: too long",
            ),
            (
                r#"{"detail":"too long"}"#,
                "the server answered 400 Bad Request: too long",
            ),
            (
                r#"{"object":"error","message":"too long"}"#,
                "the server answered 400 Bad Request: too long",
            ),
            (
                "<h1>too\nlong</h1>",
                "the server answered 400 Bad Request: <h1>too long</h1>",
            ),
        ] {
            assert_eq!(status(400, &[], body).line(), line);
        }
        let key = status(401, &[], r#"{"detail":"Invalid API key"}"#).line();
        assert!(key.contains("Invalid API key (set API_KEY"), "{key}");
        let hint = |body: &str| status(400, &[], body).hint;
        assert!(hint(r#"{"error": "Unsupported parameter: 'max_tokens'"}"#).is_some());
        assert_eq!(
            hint(r#"{"error": "max_tokens is larger than the context"}"#),
            None
        );
        assert_eq!(hint(r#"{"error": "unknown model"}"#), None);
        let long = status(400, &[], &"x".repeat(100_000)).line();
        assert!(long.chars().count() < 300 && long.ends_with('…'));
    }

    #[test]
    fn a_redirect_is_reported_without_its_query() {
        let moved = status(
            302,
            &[("location", "https://other.example/v1?token=canary")],
            "",
        );
        assert_eq!(moved.cause, Cause::Refused);
        assert!(
            moved
                .message
                .ends_with("redirects to https://other.example/v1")
        );
        assert!(!moved.line().contains("canary"));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let wait = |text: &str| status(429, &[("retry-after", text)], "").retry_after;
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("0.25"), Some(Duration::from_millis(250)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let later = wait("Tue, 31 Dec 2999 23:59:59 GMT").expect("a date");
        assert!(later > Duration::from_secs(365 * 86_400));
        for bad in ["", "soon", "-3", "nan", "inf"] {
            assert_eq!(wait(bad), None, "{bad}");
        }
    }
}
