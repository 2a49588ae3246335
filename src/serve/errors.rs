//! Errors as OpenAI's interface has them: a status, and `{"error": {"message", "type", "param", "code"}}`.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// An error for the client. The message names the field and says what is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(super) status: StatusCode,
    message: String,
    /// OpenAI's class of the error.
    kind: &'static str,
    /// The field that is wrong.
    param: Option<String>,
    code: Option<&'static str>,
}

/// The class of errors that the client has to mend.
const INVALID: &str = "invalid_request_error";

#[derive(Serialize)]
struct Envelope<'a> {
    error: Object<'a>,
}

#[derive(Serialize)]
struct Object<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            param: None,
            code,
        }
    }

    /// 400: the request as a whole is wrong.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, None, message)
    }

    /// 400: a field is wrong.
    pub(super) fn field(
        param: impl Into<String>,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            param: Some(param.into()),
            code: Some(code),
            ..Self::invalid(message)
        }
    }

    /// 400: the field is known, and this server cannot do what it asks for.
    pub(super) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::field(param, "unsupported_parameter", message)
    }

    pub(super) fn too_long(param: &str, tokens: usize, most: usize) -> Self {
        Self::field(
            param,
            "context_length_exceeded",
            format!(
                "The prompt has {tokens} tokens, and at most {most} leave room for an answer. Shorten the \
                 prompt, or start the server with a larger CONTEXT or KV_CACHE_MB if the model allows it."
            ),
        )
    }

    pub(super) fn unknown_model(asked: &str, known: &str) -> Self {
        Self {
            param: Some("model".to_owned()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                INVALID,
                Some("model_not_found"),
                format!("The model '{asked}' does not exist. This server has '{known}'."),
            )
        }
    }

    pub(super) fn unknown_url(method: &str, path: &str) -> Self {
        let message = format!("Unknown request URL: {method} {path}.");
        Self::new(StatusCode::NOT_FOUND, INVALID, Some("unknown_url"), message)
    }

    pub(super) fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("Not allowed to {method} on {path}.");
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            INVALID,
            Some("method_not_supported"),
            message,
        )
    }

    pub(super) fn wrong_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            INVALID,
            Some("invalid_api_key"),
            "Incorrect API key. Send the server's key as `Authorization: Bearer KEY`.",
        )
    }

    pub(super) fn other_host(host: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            INVALID,
            Some("host_not_allowed"),
            format!(
                "The Host header names '{host}', which is not this server. Use localhost or an IP address, or \
                 start the server with --allow-host {host}."
            ),
        )
    }

    pub(super) fn not_json() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            INVALID,
            Some("unsupported_content_type"),
            "Unsupported content type. Send the body with `Content-Type: application/json`.",
        )
    }

    pub(super) fn large_body(most: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            INVALID,
            Some("request_too_large"),
            format!("The body is larger than {most} bytes."),
        )
    }

    pub(super) fn slow_body() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            INVALID,
            Some("request_timeout"),
            "The body did not arrive in time.",
        )
    }

    pub(super) fn busy(waiting: usize) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "requests",
            Some("rate_limit_exceeded"),
            format!(
                "The queue is full: {waiting} answers are being generated or wait. Try again, or start the \
                 server with a larger --max-queue."
            ),
        )
    }

    pub(super) fn closing() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "server_error",
            Some("shutting_down"),
            "The server is shutting down.",
        )
    }

    /// 500: the engine could not answer.
    pub(super) fn engine(message: impl Into<String>) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "server_error", None, message)
    }

    /// 502: the server behind this one could not answer.
    pub(super) fn upstream(message: impl Into<String>) -> Self {
        let status = StatusCode::BAD_GATEWAY;
        Self::new(status, "server_error", Some("upstream_error"), message)
    }

    /// The error object as JSON.
    pub(super) fn json(&self) -> String {
        let envelope = Envelope {
            error: Object {
                message: &self.message,
                kind: self.kind,
                param: self.param.as_deref(),
                code: self.code,
            },
        };
        // Strings always serialize.
        serde_json::to_string(&envelope).unwrap_or_default()
    }

    pub(super) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

pub(super) type ApiResult<T> = std::result::Result<T, ApiError>;
